/*
 * normalizer - the `normalizer` member of tokenizer.json. See normalizer.h.
 */
#include "engine/tokenizer/normalizer.h"

#include "base/err.h"
#include "base/strbuf.h"
#include "engine/tokenizer/component.h"
#include "engine/tokenizer/normal_form.h"
#include "engine/tokenizer/split_regex.h"
#include "engine/tokenizer/unicode.h"
#include "engine/tokenizer/utf8.h"

#include <stdint.h>
#include <stdlib.h>
#include <string.h>

enum step_kind { STEP_FORM, STEP_PREPEND, STEP_REPLACE, STEP_LOWER, STEP_STRIP, STEP_ACCENTS };

struct step {
    enum step_kind kind;
    enum normal_form form;
    char *content; /* of Prepend and Replace; owned */
    size_t content_len;
    struct split_regex *pattern; /* owned */
    bool strip_left, strip_right;
};

struct normalizer {
    int n_steps;
    struct step steps[COMPONENT_MAX_STEPS];
};

static int take_content(struct step *step, const json_t *json, const char *key, struct err *err)
{
    const char *text;
    int rc = component_string(&text, &step->content_len, json, key, err);

    if (rc < 0)
        return rc;
    if (!text)
        return err_set(err, ERR_PARSE, "normalizer %s: no %s", component_type(json), key);
    step->content = malloc(step->content_len + 1);
    if (!step->content)
        return err_set(err, ERR_NO_ROOM, "out of memory");
    memcpy(step->content, text, step->content_len + 1); /* may hold a NUL */
    return 0;
}

static int step_parse(struct step *step, const json_t *json, struct err *err)
{
    static const char *const forms[] = {"NFC", "NFD", "NFKC", "NFKD"};
    const char *type = component_type(json);
    int rc;

    for (int i = 0; i < 4; i++) {
        if (strcmp(type, forms[i]) == 0) {
            step->kind = STEP_FORM;
            step->form = (enum normal_form)i;
            return 0;
        }
    }
    if (strcmp(type, "Prepend") == 0) {
        step->kind = STEP_PREPEND;
        return take_content(step, json, "prepend", err);
    }
    if (strcmp(type, "Replace") == 0) {
        step->kind = STEP_REPLACE;
        rc = take_content(step, json, "content", err);
        return rc < 0 ? rc : component_pattern(&step->pattern, json, err);
    }
    if (strcmp(type, "Strip") == 0) {
        step->kind = STEP_STRIP;
        rc = component_bool(&step->strip_left, json, "strip_left", true, err);
        return rc < 0 ? rc : component_bool(&step->strip_right, json, "strip_right", true, err);
    }
    if (strcmp(type, "Lowercase") == 0) {
        step->kind = STEP_LOWER;
        return 0;
    }
    if (strcmp(type, "StripAccents") == 0) {
        step->kind = STEP_ACCENTS;
        return 0;
    }
    return component_unknown("normalizer", type, err);
}

int normalizer_new(struct normalizer **out, const json_t *json, struct err *err)
{
    const json_t *steps[COMPONENT_MAX_STEPS];
    struct normalizer *n;
    int rc;

    *out = NULL;
    rc = component_flatten(steps, json, "normalizers", "normalizer", err);
    if (rc <= 0)
        return rc;
    n = calloc(1, sizeof(*n));
    if (!n)
        return err_set(err, ERR_NO_ROOM, "out of memory");
    n->n_steps = rc;
    for (int i = 0; i < n->n_steps; i++) {
        rc = step_parse(&n->steps[i], steps[i], err);
        if (rc < 0)
            goto out;
    }
    *out = n;
    n = NULL; /* the caller owns it now */
    rc = 0;
out:
    normalizer_free(n);
    return rc;
}

void normalizer_free(struct normalizer *n)
{
    if (!n)
        return;
    for (int i = 0; i < n->n_steps; i++) {
        free(n->steps[i].content);
        split_regex_free(n->steps[i].pattern);
    }
    free(n);
}

static int replace(const struct step *step, struct split_matcher *m, const char *text, size_t len,
                   struct strbuf *out, size_t *n_origin, struct err *err)
{
    struct split_search at = {.text = text, .len = len};
    size_t done = 0, start, end;
    int rc;

    if (!len)
        return 0;
    while ((rc = split_regex_next(step->pattern, m, &at, &start, &end, err)) > 0) {
        if (start == 0)
            *n_origin = (end || *n_origin ? step->content_len : 0) +
                        (*n_origin > end ? *n_origin - end : 0);
        strbuf_add(out, text + done, start - done);
        strbuf_add(out, step->content, step->content_len);
        done = end;
    }
    strbuf_add(out, text + done, len - done);
    return rc;
}

static void lower(const char *text, size_t len, struct strbuf *out)
{
    uint32_t cps[3];
    int n_bytes;

    for (size_t at = 0; at < len; at += (size_t)n_bytes) {
        int n = unicode_lower(utf8_get(text + at, &n_bytes), cps);

        for (int i = 0; i < n; i++)
            utf8_add(out, cps[i]);
    }
}

static void strip(const struct step *step, const char *text, size_t len, struct strbuf *out,
                  size_t *n_origin)
{
    size_t first = 0;
    int n_bytes;

    while (step->strip_left && first < len && unicode_is_space(utf8_get(text + first, &n_bytes)))
        first += (size_t)n_bytes;
    while (step->strip_right && len > first) {
        uint32_t cp = utf8_before(text, len);
        char c[4];

        if (!unicode_is_space(cp))
            break;
        len -= (size_t)utf8_put(c, cp);
    }
    strbuf_add(out, text + first, len - first);
    *n_origin = *n_origin > first ? *n_origin - first : 0;
}

static void strip_accents(const char *text, size_t len, struct strbuf *out, size_t *n_origin)
{
    int n_bytes;

    for (size_t at = 0; at < len; at += (size_t)n_bytes) {
        if (!unicode_is_accent(utf8_get(text + at, &n_bytes)))
            strbuf_add(out, text + at, (size_t)n_bytes);
        else if (at == 0)
            *n_origin = 0;
    }
}

static int step_apply(const struct step *step, struct split_matcher *m, const char *text,
                      size_t len, struct strbuf *out, size_t *n_origin, struct err *err)
{
    size_t at = out->len;
    int rc = 0;

    switch (step->kind) {
    case STEP_FORM:
        rc = normal_form_add(out, text, len, step->form);
        break;
    case STEP_PREPEND:
        if (len) {
            strbuf_add(out, step->content, step->content_len);
            strbuf_add(out, text, len);
            *n_origin += step->content_len;
        }
        return 0;
    case STEP_REPLACE:
        return replace(step, m, text, len, out, n_origin, err);
    case STEP_LOWER:
        lower(text, len, out);
        break;
    case STEP_STRIP:
        strip(step, text, len, out, n_origin);
        return 0;
    case STEP_ACCENTS:
        strip_accents(text, len, out, n_origin);
        return 0;
    }
    if (*n_origin) /* the first character may have changed its length */
        *n_origin = out->len > at ? (size_t)utf8_len((unsigned char)out->buf[at]) : 0;
    return rc < 0 ? err_set(err, rc, "out of memory") : 0;
}

int normalizer_apply(const struct normalizer *n, struct split_matcher *m, const char *text,
                     size_t len, struct strbuf *out, size_t *n_origin, struct err *err)
{
    struct strbuf here = STRBUF_INIT, next = STRBUF_INIT;
    int n_steps = n ? n->n_steps : 0, rc = 0;

    *n_origin = len ? (size_t)utf8_len((unsigned char)text[0]) : 0;
    for (int i = 0; i < n_steps; i++) {
        struct strbuf *to = i + 1 == n_steps ? out : &next;
        struct strbuf swap;

        rc =
            step_apply(&n->steps[i], m, i ? here.buf : text, i ? here.len : len, to, n_origin, err);
        if (rc < 0)
            goto out;
        swap = here;
        here = next;
        next = swap;
        strbuf_reset(&next);
        if (here.failed)
            break;
    }
    if (n_steps == 0)
        strbuf_add(out, text, len);
    if (out->failed || here.failed)
        rc = err_set(err, ERR_NO_ROOM, "out of memory");
out:
    strbuf_release(&here);
    strbuf_release(&next);
    return rc;
}
