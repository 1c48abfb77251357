/*
 * grammar_json - the pieces of JSON as trees. See grammar_json.h.
 */
#include "engine/grammar/grammar_json.h"

#include "engine/grammar/grammar_regex.h"

#include <string.h>

#define INDENT_MAX 32

static const struct regex_options plain = {.spell = expr_code_points};

static const struct expr *regex(struct grammar_build *b, const char *text)
{
    return grammar_regex(b, text, strlen(text), &plain);
}

void grammar_json_init(struct grammar_json *j, struct grammar_build *b)
{
    *j = (struct grammar_json){b, -1, -1, -1, -1, -1, -1, -1};
}

/* A call of the rule in *slot; true when the rule is new and wants a body. */
static bool is_new(struct grammar_json *j, int *slot, const char *name)
{
    if (*slot >= 0)
        return false;
    *slot = grammar_rule_new(j->b, name, strlen(name));
    return j->b->rc == 0;
}

const struct expr *grammar_json_space(struct grammar_json *j)
{
    struct grammar_build *b = j->b;

    if (is_new(j, &j->space, "space")) {
        const struct expr *blank = expr_byte_range(b, ' ', ' ');
        const struct expr *line =
            expr_seq(b, expr_byte_range(b, '\n', '\n'), expr_repeat(b, blank, 0, INDENT_MAX));

        grammar_rule_set(b, j->space, expr_alt(b, expr_empty(b), expr_alt(b, blank, line)));
    }
    return expr_call(b, j->space);
}

const struct expr *grammar_json_spell(struct grammar_build *b, const struct cp_set *set)
{
    static const char named[] = "\b\f\n\r\t\"\\", names[] = "bfnrt\"\\";
    struct cp_set raw = {0};
    const struct expr *e;

    for (int i = 0; i < set->n; i++) {
        uint32_t lo = set->ranges[i].lo, hi = set->ranges[i].hi;

        lo = lo < ' ' ? ' ' : lo;
        /* All but the quote and the backslash. */
        if (lo <= '"' && hi >= '"') {
            if (lo < '"')
                cp_set_add(b, &raw, lo, '"' - 1);
            lo = '"' + 1;
        }
        if (lo <= '\\' && hi >= '\\') {
            if (lo < '\\')
                cp_set_add(b, &raw, lo, '\\' - 1);
            lo = '\\' + 1;
        }
        if (lo <= hi)
            cp_set_add(b, &raw, lo, hi);
    }
    e = expr_code_points(b, &raw);
    for (uint32_t c = 0; c < 128; c++) {
        const char *found = c ? strchr(named, (int)c) : NULL;
        char text[8] = {'\\'};

        if ((c >= ' ' && !found) || !cp_set_has(set, c))
            continue;
        if (found) {
            text[1] = names[found - named];
        } else {
            memcpy(text + 1, "u00", 3);
            text[4] = (char)('0' + c / 16);
            text[5] = "0123456789abcdef"[c % 16];
        }
        e = expr_alt(b, e, expr_str(b, text));
    }
    return e;
}

const struct expr *grammar_json_char(struct grammar_build *b)
{
    struct cp_set raw = {0};
    const struct expr *escape = regex(b, "\\\\([\"\\\\/bfnrt]|u([0-9a-cA-Ce-fE-F][0-9a-fA-F]{3}|"
                                         "[dD][0-7][0-9a-fA-F]{2}))");

    cp_set_add(b, &raw, ' ', '"' - 1);
    cp_set_add(b, &raw, '"' + 1, '\\' - 1);
    cp_set_add(b, &raw, '\\' + 1, 0x10ffff);
    return expr_alt(b, expr_code_points(b, &raw), escape);
}

const struct expr *grammar_json_quoted(struct grammar_build *b, const struct expr *e)
{
    return expr_seq(b, expr_str(b, "\""), expr_seq(b, e, expr_str(b, "\"")));
}

const struct expr *grammar_json_string(struct grammar_json *j)
{
    if (is_new(j, &j->string, "string"))
        grammar_rule_set(j->b, j->string,
                         grammar_json_quoted(
                             j->b, expr_repeat(j->b, grammar_json_char(j->b), 0, GRAMMAR_NO_MAX)));
    return expr_call(j->b, j->string);
}

/* So many digits that a double holds the number, and exponents that it does not overflow. */
const struct expr *grammar_json_number(struct grammar_json *j)
{
    if (is_new(j, &j->number, "number"))
        grammar_rule_set(
            j->b, j->number,
            regex(j->b, "-?(0|[1-9][0-9]{0,15})(\\.[0-9]{1,16})?([eE][+-]?[0-9]{1,2})?"));
    return expr_call(j->b, j->number);
}

const struct expr *grammar_json_integer(struct grammar_json *j)
{
    if (is_new(j, &j->integer, "integer"))
        grammar_rule_set(j->b, j->integer, regex(j->b, "-?(0|[1-9][0-9]{0,15})"));
    return expr_call(j->b, j->integer);
}

/* open ( item ( , item )* )? close */
static const struct expr *list_of(struct grammar_json *j, const char *open, const struct expr *item,
                                  const char *close)
{
    struct grammar_build *b = j->b;
    const struct expr *comma = expr_seq(b, expr_str(b, ","), grammar_json_space(j));
    const struct expr *more = expr_repeat(b, expr_seq(b, comma, item), 0, GRAMMAR_NO_MAX);
    const struct expr *all = expr_seq(b, expr_seq(b, item, more), grammar_json_space(j));

    all = expr_seq(b, grammar_json_space(j), expr_alt(b, expr_empty(b), all));
    return expr_seq(b, expr_str(b, open), expr_seq(b, all, expr_str(b, close)));
}

const struct expr *grammar_json_object(struct grammar_json *j)
{
    struct grammar_build *b = j->b;

    if (is_new(j, &j->object, "object")) {
        const struct expr *pair = expr_seq(b, expr_str(b, ":"), grammar_json_space(j));

        pair = expr_seq(b, grammar_json_string(j), expr_seq(b, pair, grammar_json_value(j)));
        grammar_rule_set(b, j->object, list_of(j, "{", pair, "}"));
    }
    return expr_call(b, j->object);
}

const struct expr *grammar_json_array(struct grammar_json *j)
{
    if (is_new(j, &j->array, "array"))
        grammar_rule_set(j->b, j->array, list_of(j, "[", grammar_json_value(j), "]"));
    return expr_call(j->b, j->array);
}

const struct expr *grammar_json_value(struct grammar_json *j)
{
    struct grammar_build *b = j->b;

    if (is_new(j, &j->value, "value")) {
        const struct expr *e = regex(b, "true|false|null");

        e = expr_alt(b, e, grammar_json_string(j));
        e = expr_alt(b, e, grammar_json_number(j));
        e = expr_alt(b, e, grammar_json_object(j));
        grammar_rule_set(b, j->value, expr_alt(b, e, grammar_json_array(j)));
    }
    return expr_call(b, j->value);
}

#define DATE                                                                                       \
    "[12][0-9]{3}-((0[13578]|1[02])-(0[1-9]|[12][0-9]|3[01])|(0[469]|11)-(0[1-9]|[12][0-9]|30)|"   \
    "02-(0[1-9]|1[0-9]|2[0-8]))"
#define TIME                                                                                       \
    "([01][0-9]|2[0-3]):[0-5][0-9]:[0-5][0-9](\\.[0-9]{1,6})?(Z|[+-]([01][0-9]|2[0-3]):[0-5][0-9]" \
    ")"
#define LABEL "[a-z0-9]([a-z0-9-]{0,20}[a-z0-9])?"
#define HOST  LABEL "(\\." LABEL "){0,4}\\.[a-z]{2,12}"
#define OCTET "(25[0-5]|2[0-4][0-9]|1[0-9][0-9]|[1-9]?[0-9])"
#define H16   "[0-9a-f]{1,4}"

const struct expr *grammar_json_format(struct grammar_build *b, const char *format)
{
    static const struct {
        const char *name, *regex;
    } formats[] = {
        {"date-time", DATE "T" TIME},
        {"date", DATE},
        {"time", TIME},
        {"duration", "P([0-9]{1,4}[YMWD]|T[0-9]{1,4}[HMS]|[0-9]{1,4}Y[0-9]{1,2}M([0-9]{1,2}D)?|"
                     "[0-9]{1,4}DT[0-9]{1,2}H([0-9]{1,2}M)?([0-9]{1,2}S)?)"},
        {"email", "[a-zA-Z0-9_+-]{1,24}(\\.[a-zA-Z0-9_+-]{1,24}){0,3}@" HOST},
        {"hostname", HOST},
        {"ipv4", OCTET "(\\." OCTET "){3}"},
        {"ipv6", "(" H16 ":){7}" H16 "|(" H16 ":){1,6}:" H16 "|::(" H16 ")?"},
        {"uuid", "[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12}"},
        {"uri", "https?://" HOST "(/[a-zA-Z0-9._~-]{0,40}){0,8}"},
    };

    for (size_t i = 0; i < sizeof(formats) / sizeof(formats[0]); i++) {
        if (!strcmp(format, formats[i].name))
            return regex(b, formats[i].regex);
    }
    return NULL;
}
