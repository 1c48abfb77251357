/*
 * grammar_regex - regular expressions, as JSON Schema's `pattern` and structured_outputs' `regex`
 * write them: ECMA 262's syntax with u, without what is no regular language (look-around,
 * back-references).
 */
#ifndef GRAMMAR_REGEX_H
#define GRAMMAR_REGEX_H

#include "engine/grammar/grammar_expr.h"

/* How one code point of a set is written in the output. */
typedef const struct expr *regex_spell_fn(struct grammar_build *b, const struct cp_set *set);

struct regex_options {
    regex_spell_fn *spell; /* expr_code_points: as itself */
    bool search;           /* match anywhere, as `pattern` does; else the whole text */
};

const struct expr *grammar_regex(struct grammar_build *b, const char *text, size_t len,
                                 const struct regex_options *options);

/* One element of a class after a backslash: \d, \n, \u00e9, \x41. Shared with EBNF. */
struct regex_reader {
    struct grammar_build *b;
    const char *at, *end;
    const struct regex_options *options;
    int depth;
};

/* The next code point of the source; a failure when it is not UTF-8. */
uint32_t regex_code_point(struct regex_reader *r);

/* [...] behind its opening bracket. */
struct cp_set regex_class(struct regex_reader *r);

/* {n}, {n,}, {n,m}, *, + or ? behind e, if there is one. */
const struct expr *regex_repeat(struct regex_reader *r, const struct expr *e);

#endif
