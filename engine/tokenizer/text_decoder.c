/*
 * text_decoder - the `decoder` member of tokenizer.json. See text_decoder.h.
 */
#include "engine/tokenizer/text_decoder.h"

#include "base/err.h"
#include "base/strbuf.h"
#include "engine/tokenizer/component.h"
#include "engine/tokenizer/split_regex.h"
#include "engine/tokenizer/utf8.h"

#include <stdlib.h>
#include <string.h>

#define MAX_STRIP 1024

static int parse_mark(struct decode_step *step, const json_t *json, const char *key,
                      struct err *err)
{
    const char *text;
    size_t len;
    int n_bytes, rc = component_string(&text, &len, json, key, err);

    if (rc < 0)
        return rc;
    if (!text || !len || (size_t)utf8_len((unsigned char)text[0]) != len)
        return err_set(err, ERR_PARSE, "decoder %s: %s is not one character", component_type(json),
                       key);
    step->mark = utf8_get(text, &n_bytes);
    return 0;
}

static int parse_metaspace(struct decode_step *step, const json_t *json, struct err *err)
{
    const char *scheme;
    bool add_prefix;
    size_t len;
    int rc;

    step->kind = DECODE_METASPACE;
    rc = parse_mark(step, json, "replacement", err);
    if (rc == 0)
        rc = component_string(&scheme, &len, json, "prepend_scheme", err);
    if (rc == 0)
        rc = component_bool(&add_prefix, json, "add_prefix_space", true, err);
    if (rc == 0)
        step->drops_first = add_prefix && !(scheme && strcmp(scheme, "never") == 0);
    return rc;
}

static int parse_strip(struct decode_step *step, const json_t *json, struct err *err)
{
    int64_t n_start, n_stop;
    int rc;

    step->kind = DECODE_STRIP;
    rc = parse_mark(step, json, "content", err);
    if (rc == 0)
        rc = component_int(&n_start, json, "start", 0, err);
    if (rc == 0)
        rc = component_int(&n_stop, json, "stop", 0, err);
    if (rc < 0)
        return rc;
    if (n_start < 0 || n_start > MAX_STRIP || n_stop < 0 || n_stop > MAX_STRIP)
        return err_set(err, ERR_UNSUPPORTED, "decoder Strip: more than %d", MAX_STRIP);
    step->n_start = (int)n_start;
    step->n_stop = (int)n_stop;
    return 0;
}

static int parse_content(struct decode_step *step, const json_t *json, const char *key,
                         struct err *err)
{
    const char *text;
    int rc = component_string(&text, &step->content_len, json, key, err);

    if (rc < 0)
        return rc;
    step->content = malloc(step->content_len + 1);
    if (!step->content)
        return err_set(err, ERR_NO_ROOM, "out of memory");
    memcpy(step->content, text ? text : "", step->content_len + 1);
    return 0;
}

static int parse_suffix(struct decode_step *step, const json_t *json, struct err *err)
{
    const char *text;
    size_t len;
    int rc = component_string(&text, &len, json, "suffix", err);

    step->kind = DECODE_SUFFIX;
    if (rc < 0)
        return rc;
    step->content = strdup(" ");
    step->content_len = 1;
    if (!step->content)
        return err_set(err, ERR_NO_ROOM, "out of memory");
    return split_regex_new_literal(&step->pattern, text ? text : "</w>",
                                   text ? len : strlen("</w>"), err);
}

/* A pattern over a text that is still growing must not reach over the end of a token. */
static int check_growing(const struct decode_step *step, const json_t *json, struct err *err)
{
    const char *text =
        json_string_value(json_object_get(json_object_get(json, "pattern"), "String"));

    if (step->on_text &&
        (!text || !*text || (size_t)utf8_len((unsigned char)*text) != strlen(text)))
        return err_set(err, ERR_UNSUPPORTED,
                       "decoder: Replace of more than one character behind Fuse or ByteLevel");
    return 0;
}

static int step_parse(struct decode_step *step, const json_t *json, struct err *err)
{
    const char *type = component_type(json);
    int rc = 0;

    if (strcmp(type, "ByteLevel") == 0) {
        step->kind = DECODE_BYTES;
    } else if (strcmp(type, "Metaspace") == 0) {
        rc = parse_metaspace(step, json, err);
    } else if (strcmp(type, "ByteFallback") == 0) {
        step->kind = DECODE_FALLBACK;
    } else if (strcmp(type, "Fuse") == 0) {
        step->kind = DECODE_FUSE;
    } else if (strcmp(type, "Strip") == 0) {
        rc = parse_strip(step, json, err);
    } else if (strcmp(type, "Replace") == 0) {
        step->kind = DECODE_REPLACE;
        rc = parse_content(step, json, "content", err);
        if (rc == 0)
            rc = check_growing(step, json, err);
        if (rc == 0)
            rc = component_pattern(&step->pattern, json, err);
    } else if (strcmp(type, "BPEDecoder") == 0) {
        rc = parse_suffix(step, json, err);
    } else {
        return component_unknown("decoder", type, err);
    }
    return rc;
}

int text_decoder_load(struct text_decoder *td, const json_t *json, struct err *err)
{
    const json_t *steps[COMPONENT_MAX_STEPS];
    bool on_text = false;
    int n, rc, n_holding = 0;

    *td = (struct text_decoder){0};
    n = component_flatten(steps, json, "decoders", "decoder", err);
    if (n < 0)
        return n;
    if (n > TEXT_DECODER_MAX_STEPS)
        return err_set(err, ERR_UNSUPPORTED, "decoder: more than %d steps", TEXT_DECODER_MAX_STEPS);
    if (n == 0) {
        td->steps[td->n_steps++].kind = DECODE_JOIN;
        return 0;
    }
    for (int i = 0; i < n; i++) {
        struct decode_step *step = &td->steps[td->n_steps++];

        step->on_text = on_text;
        rc = step_parse(step, steps[i], err);
        if (rc < 0)
            return rc;
        /* Those that keep something from token to token; detok has one buffer of each kind. */
        if (step->kind == DECODE_BYTES || step->kind == DECODE_FALLBACK)
            n_holding += 1;
        if (step->kind == DECODE_SUFFIX || (step->kind == DECODE_STRIP && on_text && step->n_stop))
            n_holding += 16;
        if (n_holding % 16 > 1 || n_holding / 16 > 1)
            return err_set(err, ERR_UNSUPPORTED, "decoder: %s once more", component_type(steps[i]));
        if (step->kind == DECODE_BYTES || step->kind == DECODE_FUSE)
            on_text = true;
    }
    return 0;
}

void text_decoder_release(struct text_decoder *td)
{
    for (int i = 0; i < td->n_steps; i++) {
        free(td->steps[i].content);
        split_regex_free(td->steps[i].pattern);
    }
    *td = (struct text_decoder){0};
}

static int hex_digit(char c)
{
    if (c >= '0' && c <= '9')
        return c - '0';
    c |= 32;
    return c >= 'a' && c <= 'f' ? c - 'a' + 10 : -1;
}

int text_decoder_fallback_byte(const char *token, size_t len)
{
    int high, low;

    if (len != 6 || memcmp(token, "<0x", 3) != 0 || token[5] != '>')
        return -1;
    high = token[3] == '+' ? 0 : hex_digit(token[3]); /* Rust's number parser takes a plus */
    low = hex_digit(token[4]);
    return high < 0 || low < 0 ? -1 : high * 16 + low;
}

void text_decoder_marks(const struct decode_step *step, const char *token, size_t len, bool drop,
                        struct strbuf *out)
{
    int n_bytes;

    for (size_t at = 0; at < len; at += (size_t)n_bytes) {
        if (utf8_get(token + at, &n_bytes) != step->mark)
            strbuf_add(out, token + at, (size_t)n_bytes);
        else if (!drop)
            strbuf_addch(out, ' ');
    }
}

void text_decoder_replace(const struct decode_step *step, const char *token, size_t len,
                          struct strbuf *out)
{
    struct split_matcher *m = split_regex_is_literal(step->pattern) ? NULL : split_matcher_new();
    struct split_search at = {.text = token, .len = len};
    size_t done = 0, start, end;

    while (len && (m || split_regex_is_literal(step->pattern)) &&
           split_regex_next(step->pattern, m, &at, &start, &end, NULL) > 0) {
        strbuf_add(out, token + done, start - done);
        strbuf_add(out, step->content, step->content_len);
        done = end;
    }
    strbuf_add(out, token + done, len - done);
    split_matcher_free(m);
}
