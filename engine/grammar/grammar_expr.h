/*
 * grammar_expr - a language of bytes as a tree: what the readers of schemas, regular expressions
 * and EBNF make, and what grammar_dfa compiles.
 *
 * A build owns everything in one arena with a cap. Its errors stick: after the first one every
 * function returns some node and does nothing else, so that readers look at `rc` once, at the end.
 */
#ifndef GRAMMAR_EXPR_H
#define GRAMMAR_EXPR_H

#include "base/arena.h"
#include "base/err.h"

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#define GRAMMAR_MAX_DEPTH  64 /* of nesting, in every source language */
#define GRAMMAR_MAX_REPEAT 4096
#define GRAMMAR_NO_MAX     (-1)

enum expr_kind {
    EXPR_EMPTY,   /* the empty text */
    EXPR_NEVER,   /* nothing at all */
    EXPR_BYTES,   /* one byte of a set */
    EXPR_SEQ,     /* left, then right */
    EXPR_ALT,     /* left or right */
    EXPR_REPEAT,  /* left, min to max times */
    EXPR_CALL,    /* a rule */
    EXPR_MULTIPLE /* decimal digits of a multiple of min, without leading zeros */
};

struct expr {
    enum expr_kind kind;
    const struct expr *left, *right;
    int min, max, rule;
    uint32_t bytes[8]; /* bit b % 32 of word b / 32 */
};

struct grammar_rule {
    const char *name; /* for messages */
    const struct expr *body;
};

/* What a compilation may take. */
struct grammar_budget {
    size_t max_bytes;    /* memory of the tree, and again of the automaton */
    int64_t deadline_ns; /* clock_ns() */
};

struct grammar_build {
    struct arena arena;
    struct err *err;
    int rc;
    struct grammar_budget budget;
    struct grammar_rule *rules; /* [n_rules] */
    int n_rules, n_rules_room, root;
    int n_steps;
};

void grammar_build_init(struct grammar_build *b, const struct grammar_budget *budget,
                        struct err *err);
void grammar_build_release(struct grammar_build *b);

/* Notes the first error and returns its code. */
int grammar_fail(struct grammar_build *b, enum err_code code, const char *fmt, ...)
    __attribute__((format(printf, 3, 4)));

/* Counts work against the deadline; false once it has passed or anything else went wrong. */
bool grammar_step(struct grammar_build *b);

/* A rule without a body yet; its number. name is copied. */
int grammar_rule_new(struct grammar_build *b, const char *name, size_t len);
void grammar_rule_set(struct grammar_build *b, int rule, const struct expr *body);

const struct expr *expr_empty(struct grammar_build *b);
const struct expr *expr_never(struct grammar_build *b);
const struct expr *expr_byte_range(struct grammar_build *b, int lo, int hi);
const struct expr *expr_text(struct grammar_build *b, const char *text, size_t len);
const struct expr *expr_str(struct grammar_build *b, const char *text);
const struct expr *expr_seq(struct grammar_build *b, const struct expr *left,
                            const struct expr *right);
const struct expr *expr_alt(struct grammar_build *b, const struct expr *left,
                            const struct expr *right);
const struct expr *expr_repeat(struct grammar_build *b, const struct expr *e, int min, int max);
const struct expr *expr_call(struct grammar_build *b, int rule);
const struct expr *expr_multiple(struct grammar_build *b, int of);

/* A set of code points: sorted, disjoint ranges. Surrogates are never in it. */
struct cp_range {
    uint32_t lo, hi;
};
struct cp_set {
    struct cp_range *ranges; /* [n] in the build's arena */
    int n, n_room;
};

void cp_set_add(struct grammar_build *b, struct cp_set *set, uint32_t lo, uint32_t hi);
void cp_set_add_all(struct grammar_build *b, struct cp_set *set, const struct cp_set *other);
struct cp_set cp_set_negate(struct grammar_build *b, const struct cp_set *set);
bool cp_set_has(const struct cp_set *set, uint32_t cp);

/* The UTF-8 of one code point of the set. */
const struct expr *expr_code_points(struct grammar_build *b, const struct cp_set *set);

#endif
