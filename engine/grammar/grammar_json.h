/*
 * grammar_json - the pieces of JSON as trees: strings, numbers within bounds, any value.
 *
 * Between tokens of the text there may be a space, or a line break with an indent; never more, so
 * that a model cannot fill its answer with white space. What is always written the same way, such
 * as strings, is a rule of its own: its states are shared by all places that call it.
 */
#ifndef GRAMMAR_JSON_H
#define GRAMMAR_JSON_H

#include "engine/grammar/grammar_expr.h"

/* Rules by number, made when first asked for. -1: not yet. */
struct grammar_json {
    struct grammar_build *b;
    int string, number, integer, space, value, object, array;
};

void grammar_json_init(struct grammar_json *j, struct grammar_build *b);

const struct expr *grammar_json_space(struct grammar_json *j);
const struct expr *grammar_json_string(struct grammar_json *j);
const struct expr *grammar_json_number(struct grammar_json *j);
const struct expr *grammar_json_integer(struct grammar_json *j);
const struct expr *grammar_json_value(struct grammar_json *j);
const struct expr *grammar_json_object(struct grammar_json *j);
const struct expr *grammar_json_array(struct grammar_json *j);

/* One character of a string, escaped where it must be: a regex_spell_fn. */
const struct expr *grammar_json_spell(struct grammar_build *b, const struct cp_set *set);

/* Any character of a string, escapes included. */
const struct expr *grammar_json_char(struct grammar_build *b);

/* `"` e `"` */
const struct expr *grammar_json_quoted(struct grammar_build *b, const struct expr *e);

/* Integers from lo to hi; INT64_MIN and INT64_MAX are no bound. */
const struct expr *grammar_json_integer_range(struct grammar_build *b, int64_t lo, int64_t hi);

/* Numbers from lo to hi, without those ends that are excluded; infinite: no bound. */
struct grammar_json_bounds {
    double lo, hi;
    bool excludes_lo, excludes_hi;
};
const struct expr *grammar_json_number_range(struct grammar_build *b,
                                             struct grammar_json_bounds bounds);

/* A string of a format that JSON Schema names; NULL for an unknown one. */
const struct expr *grammar_json_format(struct grammar_build *b, const char *format);

#endif
