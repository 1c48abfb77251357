/*
 * split_regex - the regular expressions of tokenizer.json, run by PCRE2.
 *
 * The format's expressions are written for Oniguruma. regex_translate() rewrites them: what both
 * spell alike but mean differently (\h, \s, \w, {n}+, (?m), nested classes and &&, Unicode
 * versions) is spelled out; what PCRE2 cannot do is refused.
 *
 * A compiled expression is immutable. Matching needs a split_matcher, one a thread.
 */
#ifndef SPLIT_REGEX_H
#define SPLIT_REGEX_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

struct err;
struct split_matcher;
struct split_regex;
struct strbuf;

/* Appends the PCRE2 spelling of an Oniguruma expression. ERR_UNSUPPORTED names what is not built.
 */
int regex_translate(struct strbuf *out, const char *pattern, size_t len, struct err *err);

int split_regex_new(struct split_regex **out, const char *pattern, size_t len, struct err *err);

/* Matches the string itself. */
int split_regex_new_literal(struct split_regex **out, const char *text, size_t len,
                            struct err *err);
void split_regex_free(struct split_regex *re);

/* A literal is searched without a matcher. */
bool split_regex_is_literal(const struct split_regex *re);

/* NULL when memory is out. */
struct split_matcher *split_matcher_new(void);
void split_matcher_free(struct split_matcher *m);

/* Where a search in one text stands. Start from {0} with text and len set. */
struct split_search {
    const char *text; /* valid UTF-8 */
    size_t len;
    size_t next;     /* where the next search begins */
    size_t last_end; /* end of the last match, when there was one */
    bool had_match;
};

/*
 * Finds the next match: 1 with [*start, *end), 0 when there is none, negative on error. An empty
 * match directly behind the last match does not count. ERR_LIMIT when the expression backtracks
 * beyond its bound.
 */
int split_regex_next(const struct split_regex *re, struct split_matcher *m, struct split_search *at,
                     size_t *start, size_t *end, struct err *err);

#endif
