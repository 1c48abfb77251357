/*
 * split_regex - compiled expressions and their search. See split_regex.h.
 *
 * Texts are checked before, so PCRE2 is told not to check UTF-8 again: it would for every match.
 */
#include "engine/tokenizer/split_regex.h"

#include "base/err.h"
#include "base/strbuf.h"
#include "engine/tokenizer/utf8.h"

#include <stdlib.h>
#include <string.h>

#define PCRE2_CODE_UNIT_WIDTH 8
#include <pcre2.h>

#define MATCH_LIMIT     10000000    /* Oniguruma's own default of retries */
#define JIT_STACK_START (32 * 1024) /* what PCRE2 takes from the machine stack otherwise */
#define JIT_STACK_MAX   (8 * 1024 * 1024)

struct split_regex {
    pcre2_code *code; /* NULL for a literal */
    bool jit;
    size_t literal_len;
    char literal[]; /* [literal_len] */
};

struct split_matcher {
    pcre2_match_data *data;
    pcre2_match_context *limits;
    pcre2_jit_stack *stack;
};

int split_regex_new_literal(struct split_regex **out, const char *text, size_t len, struct err *err)
{
    struct split_regex *re = calloc(1, sizeof(*re) + len + 1);

    if (!re)
        return err_set(err, ERR_NO_ROOM, "out of memory");
    memcpy(re->literal, text, len);
    re->literal_len = len;
    *out = re;
    return 0;
}

int split_regex_new(struct split_regex **out, const char *pattern, size_t len, struct err *err)
{
    struct strbuf pcre = STRBUF_INIT;
    pcre2_compile_context *ctx = pcre2_compile_context_create(NULL);
    struct split_regex *re = calloc(1, sizeof(*re) + 1);
    PCRE2_UCHAR why[128];
    size_t at;
    int code, rc;

    if (!ctx || !re) {
        rc = err_set(err, ERR_NO_ROOM, "out of memory");
        goto out;
    }
    rc = regex_translate(&pcre, pattern, len, err);
    if (rc < 0)
        goto out;
    if (pcre.failed) {
        rc = err_set(err, ERR_NO_ROOM, "out of memory");
        goto out;
    }
    pcre2_set_newline(ctx, PCRE2_NEWLINE_LF);
    pcre2_set_bsr(ctx, PCRE2_BSR_UNICODE);
    re->code = pcre2_compile((PCRE2_SPTR)pcre.buf, pcre.len,
                             PCRE2_UTF | PCRE2_UCP | PCRE2_MULTILINE | PCRE2_NEVER_BACKSLASH_C,
                             &code, &at, ctx);
    if (!re->code) {
        pcre2_get_error_message(code, why, sizeof(why));
        rc = err_set(err, ERR_UNSUPPORTED, "regular expression '%.*s': %s",
                     (int)(len > 200 ? 200 : len), pattern, (const char *)why);
        goto out;
    }
    re->jit = pcre2_jit_compile(re->code, PCRE2_JIT_COMPLETE) == 0;
    *out = re;
    re = NULL; /* the caller owns it now */
out:
    split_regex_free(re);
    pcre2_compile_context_free(ctx);
    strbuf_release(&pcre);
    return rc;
}

void split_regex_free(struct split_regex *re)
{
    if (!re)
        return;
    pcre2_code_free(re->code);
    free(re);
}

bool split_regex_is_literal(const struct split_regex *re)
{
    return !re->code;
}

struct split_matcher *split_matcher_new(void)
{
    struct split_matcher *m = calloc(1, sizeof(*m));

    if (!m)
        return NULL;
    m->data = pcre2_match_data_create(1, NULL);
    m->limits = pcre2_match_context_create(NULL);
    m->stack = pcre2_jit_stack_create(JIT_STACK_START, JIT_STACK_MAX, NULL);
    if (!m->data || !m->limits || !m->stack) {
        split_matcher_free(m);
        return NULL;
    }
    pcre2_set_match_limit(m->limits, MATCH_LIMIT);
    pcre2_jit_stack_assign(m->limits, NULL, m->stack);
    return m;
}

void split_matcher_free(struct split_matcher *m)
{
    if (!m)
        return;
    pcre2_jit_stack_free(m->stack);
    pcre2_match_context_free(m->limits);
    pcre2_match_data_free(m->data);
    free(m);
}

static int next_literal(const struct split_regex *re, const struct split_search *at, size_t *start,
                        size_t *end)
{
    const char *hit;

    if (re->literal_len == 0) { /* the empty expression matches everywhere */
        *start = *end = at->next;
        return 1;
    }
    hit = memmem(at->text + at->next, at->len - at->next, re->literal, re->literal_len);
    if (!hit)
        return 0;
    *start = (size_t)(hit - at->text);
    *end = *start + re->literal_len;
    return 1;
}

static int next_match(const struct split_regex *re, struct split_matcher *m,
                      const struct split_search *at, size_t *start, size_t *end, struct err *err)
{
    const PCRE2_SIZE *ovector = pcre2_get_ovector_pointer(m->data);
    PCRE2_SPTR text = (PCRE2_SPTR)at->text;
    int rc;

    if (re->jit)
        rc = pcre2_jit_match(re->code, text, at->len, at->next, 0, m->data, m->limits);
    else
        rc = pcre2_match(re->code, text, at->len, at->next, PCRE2_NO_UTF_CHECK, m->data, m->limits);
    if (rc == PCRE2_ERROR_NOMATCH)
        return 0;
    if (rc < 0)
        return err_set(err, rc == PCRE2_ERROR_NOMEMORY ? ERR_NO_ROOM : ERR_LIMIT,
                       "text to tokenize: the pre-tokenizer's expression gave up (pcre2 %d)", rc);
    *start = ovector[0];
    *end = ovector[1];
    return 1;
}

int split_regex_next(const struct split_regex *re, struct split_matcher *m, struct split_search *at,
                     size_t *start, size_t *end, struct err *err)
{
    int rc;

    while (at->next <= at->len) {
        rc = re->code ? next_match(re, m, at, start, end, err) : next_literal(re, at, start, end);
        if (rc <= 0)
            return rc;
        if (*start == *end && at->had_match && at->last_end == *end) {
            at->next +=
                at->next < at->len ? (size_t)utf8_len((unsigned char)at->text[at->next]) : 1;
            continue;
        }
        at->next = at->last_end = *end;
        at->had_match = true;
        return 1;
    }
    return 0;
}
