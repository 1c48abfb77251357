/*
 * grammar_schema_types - the keywords of one type each. Part of grammar_schema.
 */
#include "engine/grammar/grammar_regex.h"
#include "engine/grammar/grammar_schema_impl.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define MOST_MULTIPLES 2000 /* that are written out one by one */
#define MAX_MODULUS    1000
#define MAX_PLACES     6 /* of a fraction that numbers are to be multiples of */

/* Strings */

const struct expr *schema_of_string(struct schema_reader *s, const json_t *schema)
{
    const json_t *pattern = json_object_get(schema, "pattern");
    const json_t *format = json_object_get(schema, "format");
    int min = schema_count(s, schema, "minLength", 0);
    int max = schema_count(s, schema, "maxLength", GRAMMAR_NO_MAX);
    bool bounded = min > 0 || max != GRAMMAR_NO_MAX;
    const struct expr *e = NULL;

    if ((pattern && format) || (bounded && (pattern || format))) {
        schema_refuse(s, pattern ? "pattern" : "format",
                      "together with another limit of a string is not supported");
        return expr_never(s->b);
    }
    if (pattern) {
        static const struct regex_options options = {.spell = grammar_json_spell, .search = true};

        if (!json_is_string(pattern))
            schema_refuse(s, "pattern", "must be a string");
        else
            e = grammar_regex(s->b, json_string_value(pattern), json_string_length(pattern),
                              &options);
    } else if (format) {
        e = json_is_string(format) ? grammar_json_format(s->b, json_string_value(format)) : NULL;
        if (!e)
            schema_refuse(s, "format", "names a format that is not supported");
    } else if (!bounded) {
        return grammar_json_string(&s->json);
    } else {
        e = expr_repeat(s->b, grammar_json_char(s->b), min, max);
    }
    return e ? grammar_json_quoted(s->b, e) : expr_never(s->b);
}

/* Numbers */

static struct grammar_json_bounds bounds_of(struct schema_reader *s, const json_t *schema)
{
    static const char *const keys[] = {"minimum", "maximum", "exclusiveMinimum",
                                       "exclusiveMaximum"};
    struct grammar_json_bounds out = {.lo = -INFINITY, .hi = INFINITY};

    for (int i = 0; i < 4; i++) {
        const json_t *v = json_object_get(schema, keys[i]);
        double d = json_number_value(v);

        if (!v)
            continue;
        if (!json_is_number(v)) {
            schema_refuse(s, keys[i], "must be a number");
        } else if (i % 2 == 0 && d >= out.lo) {
            out.lo = d;
            out.excludes_lo = i == 2;
        } else if (i % 2 == 1 && d <= out.hi) {
            out.hi = d;
            out.excludes_hi = i == 3;
        }
    }
    return out;
}

struct int_bounds {
    int64_t lo, hi;
};

static struct int_bounds whole_bounds(struct grammar_json_bounds b)
{
    struct int_bounds out = {INT64_MIN, INT64_MAX};

    if (b.lo > -9e17)
        out.lo = (int64_t)ceil(b.lo) + (b.excludes_lo && b.lo == ceil(b.lo));
    if (b.hi < 9e17)
        out.hi = (int64_t)floor(b.hi) - (b.excludes_hi && b.hi == floor(b.hi));
    return out;
}

/* Multiples within bounds: written out, or by remainders where there is no end to them. */
static const struct expr *multiples(struct schema_reader *s, int64_t of, struct int_bounds bounds)
{
    struct grammar_build *b = s->b;
    const struct expr *e = expr_never(b);
    int64_t first, n = 0;

    if (bounds.hi == INT64_MAX && bounds.lo <= 0 && of <= MAX_MODULUS) {
        e = expr_multiple(b, (int)of);
        if (bounds.lo == INT64_MIN)
            e = expr_seq(b, expr_repeat(b, expr_str(b, "-"), 0, 1), e);
        return e;
    }
    if (bounds.lo == INT64_MIN)
        bounds.lo = (bounds.hi > 0 ? 0 : bounds.hi) - of * (MOST_MULTIPLES / 2);
    first = bounds.lo / of * of;
    if (first < bounds.lo)
        first += of;
    for (int64_t v = first; v <= bounds.hi && n < MOST_MULTIPLES && grammar_step(b); v += of, n++)
        e = expr_alt(b, e, grammar_json_integer_range(b, v, v));
    return e;
}

/* A decimal fraction: units / 10^places, in its lowest terms of ten. */
struct decimal {
    int64_t units, power; /* power is 10^places */
    int places;
};

/* False for a number that takes more than MAX_PLACES places. */
static bool decimal_of(double d, struct decimal *out)
{
    *out = (struct decimal){.power = 1};
    for (; out->places <= MAX_PLACES; out->places++, out->power *= 10) {
        double units = round(d * (double)out->power);

        if (units / (double)out->power == d) {
            out->units = (int64_t)units;
            return true;
        }
    }
    return false;
}

static int64_t common_divisor(int64_t a, int64_t b)
{
    return b ? common_divisor(b, a % b) : a;
}

/* units / 10^places as JSON has it, without zeros at its end. */
static const struct expr *decimal_text(struct schema_reader *s, int64_t units, struct decimal of)
{
    int64_t size = units < 0 ? -units : units, part = size % of.power;
    char text[64];
    int n =
        snprintf(text, sizeof(text), "%s%lld", units < 0 ? "-" : "", (long long)(size / of.power));

    if (part) {
        n += snprintf(text + n, sizeof(text) - (size_t)n, ".%0*lld", of.places, (long long)part);
        while (text[n - 1] == '0')
            text[--n] = '\0';
    }
    return expr_text(s->b, text, (size_t)n);
}

/* What stands behind the integer of a multiple of 1 / n: fractions repeat from one to the next. */
static const struct expr *parts_of_one(struct schema_reader *s, struct decimal of)
{
    const struct expr *e = expr_empty(s->b);

    if (of.units == 1) /* all digits there is place for */
        return expr_alt(s->b, e,
                        expr_seq(s->b, expr_str(s->b, "."),
                                 expr_repeat(s->b, expr_byte_range(s->b, '0', '9'), 1, of.places)));
    for (int64_t units = of.units; units < of.power && grammar_step(s->b); units += of.units) {
        char text[32];
        int n = snprintf(text, sizeof(text), ".%0*lld", of.places, (long long)units);

        while (text[n - 1] == '0')
            text[--n] = '\0';
        e = expr_alt(s->b, e, expr_text(s->b, text, (size_t)n));
    }
    return e;
}

/* Multiples of a fraction: written out within bounds, or of 1 / n without any. */
static const struct expr *decimals(struct schema_reader *s, double multiple,
                                   struct grammar_json_bounds bounds)
{
    const struct expr *e = expr_never(s->b);
    struct decimal of;
    int64_t first, last;

    if (!decimal_of(multiple, &of)) {
        schema_refuse(s, "multipleOf", "has more decimal places than this server supports");
        return e;
    }
    if (isinf(bounds.lo) && isinf(bounds.hi) && of.power % of.units == 0 &&
        (of.units == 1 || of.power / of.units <= MOST_MULTIPLES))
        return expr_seq(s->b, grammar_json_integer(&s->json), parts_of_one(s, of));
    if (!(bounds.lo > -1e12 && bounds.hi < 1e12)) {
        schema_refuse(s, "multipleOf",
                      "of a fraction is supported for 0.1, 0.25, 0.5 and the "
                      "like, or with a minimum and a maximum");
        return e;
    }
    first = (int64_t)ceil(bounds.lo / multiple) - 1;
    last = (int64_t)floor(bounds.hi / multiple) + 1;
    if (last - first > MOST_MULTIPLES)
        last = first + MOST_MULTIPLES;
    for (int64_t i = first; i <= last && grammar_step(s->b); i++) {
        double v = (double)(i * of.units) / (double)of.power;

        if ((v > bounds.lo || (v == bounds.lo && !bounds.excludes_lo)) &&
            (v < bounds.hi || (v == bounds.hi && !bounds.excludes_hi)))
            e = expr_alt(s->b, e, decimal_text(s, i * of.units, of));
    }
    return e;
}

const struct expr *schema_of_number(struct schema_reader *s, const json_t *schema, bool integer)
{
    struct grammar_json_bounds bounds = bounds_of(s, schema);
    const json_t *multiple = json_object_get(schema, "multipleOf");
    double of = json_number_value(multiple);
    bool bounded = !isinf(bounds.lo) || !isinf(bounds.hi);
    struct decimal fraction;

    if (multiple && (!json_is_number(multiple) || !(of > 0 && of < 1e15))) {
        schema_refuse(s, "multipleOf", "must be a number above 0");
        return expr_never(s->b);
    }
    if (multiple && of == floor(of))
        return multiples(s, (int64_t)of, whole_bounds(bounds));
    if (multiple && integer) {
        /* The integers among the multiples of a / b in lowest terms are the multiples of a. */
        if (decimal_of(of, &fraction))
            return multiples(s, fraction.units / common_divisor(fraction.units, fraction.power),
                             whole_bounds(bounds));
        schema_refuse(s, "multipleOf", "has more decimal places than this server supports");
        return expr_never(s->b);
    }
    if (multiple)
        return decimals(s, of, bounds);
    if (integer && bounded) {
        struct int_bounds w = whole_bounds(bounds);

        return w.lo > w.hi ? expr_never(s->b) : grammar_json_integer_range(s->b, w.lo, w.hi);
    }
    if (bounded)
        return grammar_json_number_range(s->b, bounds);
    return integer ? grammar_json_integer(&s->json) : grammar_json_number(&s->json);
}

/* Arrays */

static const struct expr *comma(struct schema_reader *s)
{
    return expr_seq(s->b, expr_str(s->b, ","), grammar_json_space(&s->json));
}

static const struct expr *between(struct schema_reader *s, const char *open, const struct expr *e,
                                  const char *close)
{
    struct grammar_build *b = s->b;

    e = expr_seq(b, grammar_json_space(&s->json), e);
    return expr_seq(b, expr_str(b, open), expr_seq(b, e, expr_str(b, close)));
}

/* Elements from number i on, as far as there are any; those before are written. */
static const struct expr *elements(struct schema_reader *s, const json_t *prefix,
                                   const struct expr *item, int min, int max)
{
    struct grammar_build *b = s->b;
    int n_prefix = (int)json_array_size(prefix);
    int n_more = max == GRAMMAR_NO_MAX ? max : max > n_prefix ? max - n_prefix : 0;
    const struct expr *e;

    /* Behind the prefix; the first element of all has no comma, so it is taken out. */
    if (n_prefix == 0) {
        n_more = n_more > 0 ? n_more - 1 : n_more;
        e = expr_repeat(b, expr_seq(b, comma(s), item), min > 1 ? min - 1 : 0, n_more);
        e = expr_seq(b, item, e);
        e = max == 0 ? expr_never(b) : e;
    } else {
        e = expr_repeat(b, expr_seq(b, comma(s), item), min > n_prefix ? min - n_prefix : 0,
                        n_more);
        for (int i = n_prefix; i > 0; i--) {
            const struct expr *one = schema_call(s, json_array_get(prefix, (size_t)i - 1), "item");

            one = i > 1 ? expr_seq(b, comma(s), one) : one;
            e = expr_seq(b, one, e);
            if (max != GRAMMAR_NO_MAX && max < i)
                e = expr_empty(b); /* beyond maxItems: not written at all */
            else if (i > 1 && i > min)
                e = expr_alt(b, expr_empty(b), e);
        }
    }
    e = expr_seq(b, e, grammar_json_space(&s->json));
    return min == 0 ? expr_alt(b, expr_empty(b), e) : e;
}

const struct expr *schema_of_array(struct schema_reader *s, const json_t *schema)
{
    const json_t *items = json_object_get(schema, "items");
    const json_t *prefix = json_object_get(schema, "prefixItems");
    int min = schema_count(s, schema, "minItems", 0);
    int max = schema_count(s, schema, "maxItems", GRAMMAR_NO_MAX);
    const struct expr *item;

    if (json_is_true(json_object_get(schema, "uniqueItems")))
        schema_refuse(s, "uniqueItems", "is not supported");
    if (prefix && (!json_is_array(prefix) || json_array_size(prefix) == 0))
        schema_refuse(s, "prefixItems", "must be an array of schemas");
    if (s->b->rc < 0)
        return expr_never(s->b);
    if (items)
        item = schema_call(s, items, "item");
    else if (prefix && min <= (int)json_array_size(prefix))
        item = expr_never(s->b); /* nothing is added to what is named */
    else
        item = grammar_json_value(&s->json);
    return between(s, "[", elements(s, prefix, item, min, max), "]");
}

/* Objects */

struct property {
    const struct expr *pair;
    bool required;
};

static bool is_required(const json_t *required, const char *key)
{
    for (size_t i = 0; i < json_array_size(required); i++) {
        const char *name = json_string_value(json_array_get(required, i));

        if (name && !strcmp(name, key))
            return true;
    }
    return false;
}

/* key ":" value */
static const struct expr *pair(struct schema_reader *s, const struct expr *key,
                               const struct expr *value)
{
    struct grammar_build *b = s->b;

    return expr_seq(
        b, key, expr_seq(b, expr_str(b, ":"), expr_seq(b, grammar_json_space(&s->json), value)));
}

static const struct expr *named_key(struct schema_reader *s, const char *name)
{
    json_t *text = json_string(name);
    char *quoted = json_dumps(text, JSON_ENCODE_ANY);
    const struct expr *e = quoted ? expr_str(s->b, quoted) : expr_never(s->b);

    if (!quoted)
        grammar_fail(s->b, ERR_NO_ROOM, "no memory for the schema");
    free(quoted);
    json_decref(text);
    return e;
}

/* One plain character that a key may have: what needs escapes stays out of added keys. */
static void plain_chars(struct grammar_build *b, struct cp_set *set)
{
    cp_set_add(b, set, ' ', '"' - 1);
    cp_set_add(b, set, '"' + 1, '\\' - 1);
    cp_set_add(b, set, '\\' + 1, 0x10ffff);
}

/* Keys that begin like `prefix` and are none of the names: the first difference decides. */
static const struct expr *other_keys(struct schema_reader *s, const json_t *names,
                                     const char *prefix, int depth)
{
    struct grammar_build *b = s->b;
    struct cp_set rest = {0}, taken = {0};
    size_t len = strlen(prefix);
    const struct expr *any, *e;
    bool is_name = json_object_get(names, prefix) != NULL;
    const char *name;
    json_t *v;

    plain_chars(b, &rest);
    any = expr_repeat(b, expr_code_points(b, &rest), 0, GRAMMAR_NO_MAX);
    e = is_name ? expr_never(b) : expr_empty(b);
    if (depth >= GRAMMAR_MAX_DEPTH)
        return e; /* longer than any name's common beginning: nothing more is allowed */
    json_object_foreach((json_t *)names, name, v)
    {
        unsigned char c = strncmp(name, prefix, len) ? 0 : (unsigned char)name[len];
        char longer[GRAMMAR_MAX_DEPTH + 2];

        /* Beyond ASCII all continuations are left out: a name's byte is no whole character. */
        if (c == 0 || cp_set_has(&taken, c))
            continue;
        if (c >= 0x80) {
            cp_set_add(b, &taken, 0x80, 0x10ffff);
            continue;
        }
        cp_set_add(b, &taken, c, c);
        if (c < ' ' || c == '"' || c == '\\' || !grammar_step(b))
            continue;
        snprintf(longer, sizeof(longer), "%s%c", prefix, (char)c);
        e = expr_alt(
            b, e, expr_seq(b, expr_byte_range(b, c, c), other_keys(s, names, longer, depth + 1)));
    }
    taken = cp_set_negate(b, &taken);
    rest = (struct cp_set){0};
    for (int i = 0; i < taken.n; i++) {
        struct cp_set one = {0}, plain = {0};

        cp_set_add(b, &one, taken.ranges[i].lo, taken.ranges[i].hi);
        plain_chars(b, &plain);
        for (int k = 0; k < plain.n; k++) {
            uint32_t lo =
                plain.ranges[k].lo > one.ranges[0].lo ? plain.ranges[k].lo : one.ranges[0].lo;
            uint32_t hi =
                plain.ranges[k].hi < one.ranges[0].hi ? plain.ranges[k].hi : one.ranges[0].hi;

            if (lo <= hi)
                cp_set_add(b, &rest, lo, hi);
        }
    }
    return expr_alt(b, e, expr_seq(b, expr_code_points(b, &rest), any));
}

/* A pair that the schema does not name, as additionalProperties allows it; NULL: none. */
static const struct expr *added_pair(struct schema_reader *s, const json_t *schema,
                                     const json_t *names)
{
    const json_t *added = json_object_get(schema, "additionalProperties");
    const struct expr *key;

    if (!added || json_is_false(added))
        return NULL;
    key = json_object_size(names) ? grammar_json_quoted(s->b, other_keys(s, names, "", 0))
                                  : grammar_json_string(&s->json);
    return pair(s, key,
                json_is_true(added) ? grammar_json_value(&s->json)
                                    : schema_call(s, added, "added"));
}

/* All pairs in order; `first` while none is written. Tails are rules, so that none is built twice.
 */
static const struct expr *chain(struct schema_reader *s, const struct property *p, int n,
                                const struct expr *added)
{
    struct grammar_build *b = s->b;
    const struct expr *tail = expr_empty(b), *first = expr_empty(b);

    if (added) {
        tail = expr_repeat(b, expr_seq(b, comma(s), added), 0, GRAMMAR_NO_MAX);
        first = expr_alt(b, first, expr_seq(b, added, tail));
    }
    for (int i = n - 1; i >= 0; i--) {
        const struct expr *here = expr_seq(b, p[i].pair, tail), *next;

        first = p[i].required ? here : expr_alt(b, here, first);
        next = expr_seq(b, comma(s), p[i].pair);
        next = expr_seq(b, p[i].required ? next : expr_repeat(b, next, 0, 1), tail);
        tail = next;
        if (i > 0 && !p[i - 1].required) { /* it will be used more than once */
            int rule = grammar_rule_new(b, "tail", 4);

            grammar_rule_set(b, rule, next);
            tail = expr_call(b, rule);
        }
    }
    return first;
}

/* Properties, and required names that have no schema of their own. */
static int read_properties(struct schema_reader *s, const json_t *schema, json_t *names,
                           struct property *out)
{
    const json_t *required = json_object_get(schema, "required");
    const json_t *added = json_object_get(schema, "additionalProperties");
    const char *key;
    json_t *v;
    int n = 0;

    json_object_foreach(json_object_get(schema, "properties"), key, v)
    {
        out[n++] = (struct property){.pair = pair(s, named_key(s, key), schema_call(s, v, key)),
                                     .required = is_required(required, key)};
        json_object_set_new(names, key, json_true());
    }
    for (size_t i = 0; i < json_array_size(required); i++) {
        const struct expr *value = grammar_json_value(&s->json);

        key = json_string_value(json_array_get(required, i));
        if (!key) {
            schema_refuse(s, "required", "must be an array of names");
            return 0;
        }
        if (json_object_get(names, key))
            continue;
        if (json_is_false(added))
            value = expr_never(s->b);
        else if (json_is_object(added))
            value = schema_call(s, added, "added");
        out[n++] = (struct property){.pair = pair(s, named_key(s, key), value), .required = true};
        json_object_set_new(names, key, json_true());
    }
    return n;
}

const struct expr *schema_of_object(struct schema_reader *s, const json_t *schema)
{
    const json_t *properties = json_object_get(schema, "properties");
    const json_t *required = json_object_get(schema, "required");
    const json_t *added = json_object_get(schema, "additionalProperties");
    size_t n = json_object_size(properties) + json_array_size(required);
    struct grammar_build *b = s->b;
    struct property *list;
    const struct expr *e;
    json_t *names;

    if (properties && !json_is_object(properties))
        schema_refuse(s, "properties", "must be an object");
    if (required && !json_is_array(required))
        schema_refuse(s, "required", "must be an array of names");
    if (added && !json_is_object(added) && !json_is_boolean(added))
        schema_refuse(s, "additionalProperties", "must be a schema");
    if (b->rc < 0)
        return expr_never(b);
    if (n == 0 && !added)
        return grammar_json_object(&s->json);
    list = arena_array(&b->arena, n + 1, sizeof(*list));
    names = json_object();
    if (!list || !names) {
        grammar_fail(b, ERR_LIMIT, "the schema takes too much memory");
        json_decref(names);
        return expr_never(b);
    }
    n = (size_t)read_properties(s, schema, names, list);
    e = chain(s, list, (int)n, added_pair(s, schema, names));
    json_decref(names);
    return between(s, "{", expr_seq(b, e, grammar_json_space(&s->json)), "}");
}
