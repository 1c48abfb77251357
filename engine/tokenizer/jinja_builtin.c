/*
 * jinja_builtin - the filters, tests and functions that templates use.
 */
#include "base/err.h"
#include "engine/tokenizer/jinja.h"
#include "engine/tokenizer/utf8.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#define MAX_RANGE 1000000

struct jinja_value jinja_arg(const struct jinja_call_args *args, size_t at, const char *name)
{
    const struct jinja_value *v;

    if (at < args->n_pos)
        return args->pos[at];
    v = args->named ? jinja_dict_find(args->named, name) : NULL;
    return v ? *v : jinja_undefined(NULL);
}

static struct jinja_value method(struct jinja_run *run, struct jinja_value v, const char *name)
{
    struct jinja_call_args none = {0};

    if (v.kind != JINJA_STRING) {
        struct jinja_builder b;

        jinja_build_init(&b, run);
        jinja_build_value(&b, v);
        v = jinja_build_done(&b);
    }
    return run->rc < 0 ? v : jinja_method_call(run, v, name, &none);
}

/* v.a.b or v[0] for the attribute "a.b" or 0. */
static struct jinja_value attribute(struct jinja_run *run, struct jinja_value v,
                                    struct jinja_value path)
{
    const struct jinja_value *found;
    size_t at = 0;

    if (path.kind == JINJA_INT && (v.kind == JINJA_LIST || v.kind == JINJA_TUPLE))
        return path.number >= 0 && (size_t)path.number < v.list->n ? v.list->items[path.number]
                                                                   : jinja_undefined(NULL);
    if (path.kind != JINJA_STRING)
        return jinja_undefined(NULL);
    while (at <= path.string->len && run->rc == 0) {
        const char *dot = memchr(path.string->text + at, '.', path.string->len - at);
        size_t n = (dot ? (size_t)(dot - path.string->text) : path.string->len) - at;
        struct jinja_value key = jinja_substring(run, path.string, at, n);

        if (v.kind != JINJA_DICT)
            return jinja_undefined(path.string->text);
        found = jinja_dict_get(run, v.dict, key);
        if (!found)
            return jinja_undefined(path.string->text);
        v = *found;
        at += n + 1;
    }
    return v;
}

/* select, reject, selectattr, rejectattr. */
static struct jinja_value choose(struct jinja_run *run, const char *name, struct jinja_value v,
                                 const struct jinja_call_args *args)
{
    const struct jinja_list *list = jinja_iterate(run, v);
    struct jinja_value out = jinja_list_new(run, JINJA_LIST);
    bool by_attr = strstr(name, "attr") != NULL, wanted = name[0] == 's';
    size_t skip = by_attr;
    struct jinja_value test = jinja_arg(args, skip, "");
    struct jinja_call_args rest = {.named = args->named};

    if (args->n_pos > skip + 1) {
        rest.pos = args->pos + skip + 1;
        rest.n_pos = args->n_pos - skip - 1;
    }
    for (size_t i = 0; i < list->n && run->rc == 0; i++) {
        struct jinja_value item = list->items[i];
        struct jinja_value what = by_attr ? attribute(run, item, jinja_arg(args, 0, "")) : item;
        char word[32] = {0};
        bool holds;

        if (test.kind == JINJA_STRING && test.string->len < sizeof(word))
            memcpy(word, test.string->text, test.string->len);
        holds =
            test.kind == JINJA_STRING ? jinja_test(run, word, what, &rest) : jinja_is_true(what);
        if (holds == wanted)
            jinja_list_add(run, out.list, item);
    }
    return out;
}

static struct jinja_value map(struct jinja_run *run, struct jinja_value v,
                              const struct jinja_call_args *args)
{
    const struct jinja_list *list = jinja_iterate(run, v);
    struct jinja_value out = jinja_list_new(run, JINJA_LIST);
    struct jinja_value attr = jinja_arg(args, args->n_pos, "attribute");
    struct jinja_value other = jinja_arg(args, args->n_pos, "default");
    struct jinja_value filter = jinja_arg(args, 0, "");
    struct jinja_call_args rest = {0};

    if (args->n_pos > 1) {
        rest.pos = args->pos + 1;
        rest.n_pos = args->n_pos - 1;
    }
    for (size_t i = 0; i < list->n && run->rc == 0; i++) {
        struct jinja_value item = list->items[i];

        if (attr.kind != JINJA_UNDEFINED) {
            item = attribute(run, item, attr);
            if (item.kind == JINJA_UNDEFINED && other.kind != JINJA_UNDEFINED)
                item = other;
        } else if (filter.kind == JINJA_STRING && filter.string->len < 32) {
            char word[32] = {0};

            memcpy(word, filter.string->text, filter.string->len);
            item = jinja_filter(run, word, item, &rest);
        } else {
            return jinja_fail(run, ERR_PARSE, "chat template: map() without a filter");
        }
        jinja_list_add(run, out.list, item);
    }
    return out;
}

static struct jinja_value lower_case(struct jinja_run *run, struct jinja_value v)
{
    return v.kind == JINJA_STRING ? method(run, v, "lower") : v;
}

/* A stable sort by insertion into runs: merge sort, bottom up. */
static void sort_keys(struct jinja_run *run, struct jinja_value *keys, struct jinja_value *items,
                      size_t n, bool reverse)
{
    struct jinja_value *tmp = jinja_alloc(run, 2 * n + 1, sizeof(*tmp));

    for (size_t width = 1; tmp && width < n && run->rc == 0; width *= 2) {
        size_t out = 0;

        for (size_t low = 0; low < n; low += 2 * width) {
            size_t mid = low + width < n ? low + width : n;
            size_t high = low + 2 * width < n ? low + 2 * width : n, a = low, b = mid;

            while (a < mid || b < high) {
                bool take_b = a == mid;

                if (a < mid && b < high) {
                    int order = jinja_compare(run, keys[b], keys[a]);

                    take_b = reverse ? order > 0 : order < 0;
                }
                tmp[out] = take_b ? keys[b] : keys[a];
                tmp[n + out++] = take_b ? items[b++] : items[a++];
            }
        }
        memcpy(keys, tmp, n * sizeof(*keys));
        memcpy(items, tmp + n, n * sizeof(*items));
    }
}

static struct jinja_value sort(struct jinja_run *run, struct jinja_value v, const char *name,
                               const struct jinja_call_args *args)
{
    bool dict = !strcmp(name, "dictsort");
    bool reverse = jinja_is_true(jinja_arg(args, dict ? 2 : 0, "reverse"));
    bool cased = jinja_is_true(jinja_arg(args, dict ? 0 : 1, "case_sensitive"));
    struct jinja_value attr = dict ? jinja_undefined(NULL) : jinja_arg(args, 2, "attribute");
    struct jinja_value by = dict ? jinja_arg(args, 1, "by") : jinja_undefined(NULL);
    size_t by_value = by.kind == JINJA_STRING && by.string->len == 5;
    struct jinja_call_args none = {0};
    struct jinja_value out = jinja_list_new(run, JINJA_LIST);
    const struct jinja_list *list;
    struct jinja_value *keys;

    if (dict && v.kind != JINJA_DICT)
        return jinja_fail(run, ERR_INVALID, "chat template: dictsort of a %s", jinja_kind_name(v));
    if (dict)
        v = jinja_method_call(run, v, "items", &none);
    list = jinja_iterate(run, v);
    keys = jinja_alloc(run, list->n + 1, sizeof(*keys));
    for (size_t i = 0; i < list->n && run->rc == 0; i++) {
        struct jinja_value key = list->items[i];

        if (dict)
            key = key.list->items[by_value];
        else if (attr.kind != JINJA_UNDEFINED)
            key = attribute(run, key, attr);
        keys[i] = cased ? key : lower_case(run, key);
        jinja_list_add(run, out.list, list->items[i]);
    }
    if (run->rc == 0)
        sort_keys(run, keys, out.list->items, out.list->n, reverse);
    return out;
}

/* min and max. */
static struct jinja_value extreme(struct jinja_run *run, struct jinja_value v, bool want_max,
                                  const struct jinja_call_args *args)
{
    const struct jinja_list *list = jinja_iterate(run, v);
    struct jinja_value attr = jinja_arg(args, 1, "attribute");
    size_t best = 0;

    for (size_t i = 1; i < list->n && run->rc == 0; i++) {
        struct jinja_value a = list->items[i], b = list->items[best];
        int order;

        if (attr.kind != JINJA_UNDEFINED) {
            a = attribute(run, a, attr);
            b = attribute(run, b, attr);
        }
        order = jinja_compare(run, lower_case(run, a), lower_case(run, b));
        if (want_max ? order > 0 : order < 0)
            best = i;
    }
    return list->n ? list->items[best] : jinja_undefined(NULL);
}

static struct jinja_value join(struct jinja_run *run, struct jinja_value v,
                               const struct jinja_call_args *args)
{
    const struct jinja_list *list = jinja_iterate(run, v);
    struct jinja_value by = jinja_arg(args, 0, "d"), attr = jinja_arg(args, 1, "attribute");
    struct jinja_builder b;

    jinja_build_init(&b, run);
    for (size_t i = 0; i < list->n && run->rc == 0; i++) {
        if (i && by.kind != JINJA_UNDEFINED)
            jinja_build_value(&b, by);
        jinja_build_value(&b, attr.kind == JINJA_UNDEFINED ? list->items[i]
                                                           : attribute(run, list->items[i], attr));
    }
    return jinja_build_done(&b);
}

static struct jinja_value indent(struct jinja_run *run, const struct jinja_string *s,
                                 const struct jinja_call_args *args)
{
    struct jinja_value width = jinja_arg(args, 0, "width");
    bool first = jinja_is_true(jinja_arg(args, 1, "first"));
    bool blank = jinja_is_true(jinja_arg(args, 2, "blank"));
    int64_t n = width.kind == JINJA_INT ? width.number : 4;
    struct jinja_builder b;

    jinja_build_init(&b, run);
    for (size_t at = 0, line = 0; at < s->len && run->rc == 0; line++) {
        const char *end = memchr(s->text + at, '\n', s->len - at);
        size_t len = end ? (size_t)(end - s->text) - at + 1 : s->len - at;
        bool is_blank = end && len == 1;

        if (line ? blank || !is_blank : first) {
            if (width.kind == JINJA_STRING)
                jinja_build_string(&b, width.string);
            else
                for (int64_t i = 0; i < n && run->rc == 0; i++)
                    jinja_build_str(&b, " ");
        }
        jinja_build_add(&b, s->text + at, len, s->client ? s->client + at : NULL);
        at += len;
    }
    return jinja_build_done(&b);
}

static struct jinja_value to_number(struct jinja_value v, bool is_float,
                                    const struct jinja_call_args *args)
{
    struct jinja_value other = jinja_arg(args, 0, "default");
    char text[64] = {0}, *end;
    double d;

    if (v.kind == JINJA_INT || v.kind == JINJA_BOOL) {
        int64_t n = v.kind == JINJA_BOOL ? v.truth : v.number;

        return is_float ? jinja_float((double)n) : jinja_int(n);
    }
    if (v.kind == JINJA_FLOAT && isfinite(v.real) && fabs(v.real) < 9e18)
        return is_float ? v : jinja_int((int64_t)v.real);
    if (v.kind == JINJA_STRING && v.string->len && v.string->len < sizeof(text)) {
        memcpy(text, v.string->text, v.string->len);
        d = strtod(text, &end);
        end += strspn(end, " \n\t\r");
        if (*end == '\0' && !is_float && fabs(d) < 9e18 && !strpbrk(text, ".eExX"))
            return jinja_int(strtoll(text, NULL, 10));
        if (*end == '\0' && end != text && !strpbrk(text, "xX"))
            return is_float ? jinja_float(d) : jinja_int((int64_t)d);
    }
    if (other.kind != JINJA_UNDEFINED)
        return other;
    return is_float ? jinja_float(0.0) : jinja_int(0);
}

static struct jinja_value round_value(struct jinja_run *run, struct jinja_value v,
                                      const struct jinja_call_args *args)
{
    struct jinja_value precision = jinja_arg(args, 0, "precision"),
                       how = jinja_arg(args, 1, "method");
    int64_t p = precision.kind == JINJA_INT ? precision.number : 0;
    double scale = pow(10.0, (double)p);
    char text[400];

    if (v.kind != JINJA_FLOAT)
        return v.kind == JINJA_INT || v.kind == JINJA_BOOL
                   ? to_number(v, true, &(struct jinja_call_args){0})
                   : jinja_fail(run, ERR_INVALID, "chat template: round of a %s",
                                jinja_kind_name(v));
    if (how.kind == JINJA_STRING && how.string->len && how.string->text[1] == 'e') /* ceil */
        return jinja_float(ceil(v.real * scale) / scale);
    if (how.kind == JINJA_STRING && how.string->len && how.string->text[0] == 'f')
        return jinja_float(floor(v.real * scale) / scale);
    if (p < 0 || p > 20)
        return jinja_float(rint(v.real * scale) / scale);
    snprintf(text, sizeof(text), "%.*f", (int)p, v.real);
    return jinja_float(strtod(text, NULL));
}

static struct jinja_value reversed(struct jinja_run *run, struct jinja_value v)
{
    const struct jinja_list *list = jinja_iterate(run, v);
    struct jinja_value out = jinja_list_new(run, JINJA_LIST);
    struct jinja_builder b;

    for (size_t i = list->n; i-- > 0 && run->rc == 0;)
        jinja_list_add(run, out.list, list->items[i]);
    if (v.kind != JINJA_STRING || run->rc < 0)
        return out;
    jinja_build_init(&b, run);
    for (size_t i = 0; i < out.list->n; i++)
        jinja_build_string(&b, out.list->items[i].string);
    return jinja_build_done(&b);
}

static struct jinja_value unique(struct jinja_run *run, struct jinja_value v,
                                 const struct jinja_call_args *args)
{
    const struct jinja_list *list = jinja_iterate(run, v);
    struct jinja_value out = jinja_list_new(run, JINJA_LIST), seen = jinja_dict_new(run);
    bool cased = jinja_is_true(jinja_arg(args, 0, "case_sensitive"));
    struct jinja_value attr = jinja_arg(args, 1, "attribute");

    for (size_t i = 0; i < list->n && run->rc == 0; i++) {
        struct jinja_value key = list->items[i];

        if (attr.kind != JINJA_UNDEFINED)
            key = attribute(run, key, attr);
        key = cased ? key : lower_case(run, key);
        if (run->rc < 0 || jinja_dict_get(run, seen.dict, key))
            continue;
        jinja_dict_put(run, seen.dict, key, jinja_none());
        jinja_list_add(run, out.list, list->items[i]);
    }
    return out;
}

static struct jinja_value sum(struct jinja_run *run, struct jinja_value v,
                              const struct jinja_call_args *args)
{
    const struct jinja_list *list = jinja_iterate(run, v);
    struct jinja_value attr = jinja_arg(args, 0, "attribute");
    double total = 0;
    int64_t n = 0;
    bool real = false;

    for (size_t i = 0; i < list->n && run->rc == 0; i++) {
        struct jinja_value item = list->items[i];

        if (attr.kind != JINJA_UNDEFINED)
            item = attribute(run, item, attr);
        real = real || item.kind == JINJA_FLOAT;
        if (item.kind == JINJA_FLOAT)
            total += item.real;
        else if (item.kind != JINJA_INT || __builtin_add_overflow(n, item.number, &n))
            return jinja_fail(run, ERR_INVALID, "chat template: sum of a %s",
                              jinja_kind_name(item));
    }
    return real ? jinja_float(total + (double)n) : jinja_int(n);
}

static struct jinja_value escape(struct jinja_run *run, const struct jinja_string *s)
{
    struct jinja_builder b;

    jinja_build_init(&b, run);
    for (size_t i = 0; i < s->len && run->rc == 0; i++) {
        static const char from[] = "&<>\"'";
        static const char *const to[] = {"&amp;", "&lt;", "&gt;", "&#34;", "&#39;"};
        const char *known = s->text[i] ? strchr(from, s->text[i]) : NULL;

        if (known)
            jinja_build_str(&b, to[known - from]);
        else
            jinja_build_add(&b, s->text + i, 1, s->client ? s->client + i : NULL);
    }
    return jinja_build_done(&b);
}

/* Filters whose operand is a text; the caller has made it one. */
static struct jinja_value text_filter(struct jinja_run *run, const char *name, struct jinja_value v,
                                      const struct jinja_call_args *args)
{
    struct jinja_value a = jinja_arg(args, 0, "chars");

    if (!strcmp(name, "trim"))
        return jinja_trim(run, v.string, a.kind == JINJA_STRING ? a.string : NULL, true, true);
    if (!strcmp(name, "indent"))
        return indent(run, v.string, args);
    if (!strcmp(name, "replace")) {
        struct jinja_value from = jinja_arg(args, 0, "old"), to = jinja_arg(args, 1, "new");
        struct jinja_value max = jinja_arg(args, 2, "count");

        if (from.kind != JINJA_STRING || to.kind != JINJA_STRING)
            return jinja_fail(run, ERR_INVALID, "chat template: replace of a %s by a %s",
                              jinja_kind_name(from), jinja_kind_name(to));
        return jinja_replace(run, v.string, from.string, to.string,
                             max.kind == JINJA_INT ? max.number : -1);
    }
    if (!strcmp(name, "escape") || !strcmp(name, "e") || !strcmp(name, "forceescape"))
        return escape(run, v.string);
    if (!strcmp(name, "wordcount")) {
        struct jinja_value words = method(run, v, "split");

        return run->rc < 0 ? words : jinja_int((int64_t)words.list->n);
    }
    if (!strcmp(name, "string") || !strcmp(name, "safe"))
        return v;
    return method(run, v, name); /* upper, lower, title, capitalize */
}

static bool is_one_of(const char *name, const char *const *names)
{
    for (; *names; names++)
        if (strcmp(name, *names) == 0)
            return true;
    return false;
}

struct jinja_value jinja_filter(struct jinja_run *run, const char *name, struct jinja_value v,
                                const struct jinja_call_args *args)
{
    static const char *const texts[] = {"trim",   "indent",      "replace",   "escape", "e",
                                        "string", "forceescape", "safe",      "upper",  "lower",
                                        "title",  "capitalize",  "wordcount", NULL};
    struct jinja_call_args none = {0};
    struct jinja_builder b;

    if (++run->n_steps > JINJA_MAX_STEPS)
        return jinja_fail(run, ERR_LIMIT, "chat template: does not come to an end");
    if (is_one_of(name, texts)) {
        if (v.kind != JINJA_STRING) {
            jinja_build_init(&b, run);
            jinja_build_value(&b, v);
            v = jinja_build_done(&b);
        }
        return run->rc < 0 ? v : text_filter(run, name, v, args);
    }
    if (!strcmp(name, "tojson")) {
        jinja_build_init(&b, run);
        jinja_to_json(&b, v, args);
        return jinja_build_done(&b);
    }
    if (!strcmp(name, "length") || !strcmp(name, "count"))
        return jinja_int((int64_t)jinja_length(run, v));
    if (!strcmp(name, "default") || !strcmp(name, "d")) {
        bool falsy = jinja_is_true(jinja_arg(args, 1, "boolean")) && !jinja_is_true(v);

        if (v.kind != JINJA_UNDEFINED && !falsy)
            return v;
        v = jinja_arg(args, 0, "default_value");
        return v.kind == JINJA_UNDEFINED ? jinja_text(run, "", 0) : v;
    }
    if (!strcmp(name, "first") || !strcmp(name, "last")) {
        const struct jinja_list *list = jinja_iterate(run, v);

        return list->n ? list->items[name[0] == 'f' ? 0 : list->n - 1] : jinja_undefined(name);
    }
    if (!strcmp(name, "join"))
        return join(run, v, args);
    if (!strcmp(name, "map"))
        return map(run, v, args);
    if (!strcmp(name, "select") || !strcmp(name, "reject") || !strcmp(name, "selectattr") ||
        !strcmp(name, "rejectattr"))
        return choose(run, name, v, args);
    if (!strcmp(name, "sort") || !strcmp(name, "dictsort"))
        return sort(run, v, name, args);
    if (!strcmp(name, "items"))
        return v.kind == JINJA_DICT ? jinja_method_call(run, v, "items", &none)
                                    : jinja_list_new(run, JINJA_LIST);
    if (!strcmp(name, "list")) {
        struct jinja_value list = {.kind = JINJA_LIST, .list = jinja_iterate(run, v)};

        return run->rc < 0 ? v : jinja_method_call(run, list, "copy", &none);
    }
    if (!strcmp(name, "min") || !strcmp(name, "max"))
        return extreme(run, v, name[1] == 'a', args);
    if (!strcmp(name, "reverse"))
        return reversed(run, v);
    if (!strcmp(name, "unique"))
        return unique(run, v, args);
    if (!strcmp(name, "sum"))
        return sum(run, v, args);
    if (!strcmp(name, "int") || !strcmp(name, "float"))
        return to_number(v, name[0] == 'f', args);
    if (!strcmp(name, "round"))
        return round_value(run, v, args);
    if (!strcmp(name, "abs") && v.kind == JINJA_INT && v.number != INT64_MIN)
        return jinja_int(v.number < 0 ? -v.number : v.number);
    if (!strcmp(name, "abs") && v.kind == JINJA_FLOAT)
        return jinja_float(fabs(v.real));
    return jinja_fail(run, ERR_UNSUPPORTED, "chat template: filter '%.64s' is not supported", name);
}

/* Tests that compare: the operator's sign or name. */
static bool compare_test(struct jinja_run *run, const char *name, struct jinja_value v,
                         struct jinja_value other, bool *known)
{
    *known = true;
    if (!strcmp(name, "eq") || !strcmp(name, "equalto") || !strcmp(name, "=="))
        return jinja_equal(run, v, other);
    if (!strcmp(name, "ne") || !strcmp(name, "!="))
        return !jinja_equal(run, v, other);
    if (!strcmp(name, "in"))
        return jinja_contains(run, other, v);
    if (!strcmp(name, "lt") || !strcmp(name, "lessthan") || !strcmp(name, "<"))
        return jinja_compare(run, v, other) < 0;
    if (!strcmp(name, "gt") || !strcmp(name, "greaterthan") || !strcmp(name, ">"))
        return jinja_compare(run, v, other) > 0;
    if (!strcmp(name, "le") || !strcmp(name, "<="))
        return jinja_compare(run, v, other) <= 0;
    if (!strcmp(name, "ge") || !strcmp(name, ">="))
        return jinja_compare(run, v, other) >= 0;
    if (!strcmp(name, "sameas"))
        return v.kind == other.kind && (v.kind == JINJA_BOOL   ? v.truth == other.truth
                                        : v.kind == JINJA_INT  ? v.number == other.number
                                        : v.kind == JINJA_NONE ? true
                                                               : v.list == other.list);
    *known = false;
    return false;
}

bool jinja_test(struct jinja_run *run, const char *name, struct jinja_value v,
                const struct jinja_call_args *args)
{
    struct jinja_value other = jinja_arg(args, 0, "");
    enum jinja_kind k = v.kind;
    bool known, holds;

    if (!strcmp(name, "defined"))
        return k != JINJA_UNDEFINED;
    if (!strcmp(name, "undefined"))
        return k == JINJA_UNDEFINED;
    if (!strcmp(name, "none"))
        return k == JINJA_NONE;
    if (!strcmp(name, "true") || !strcmp(name, "false"))
        return k == JINJA_BOOL && v.truth == (name[0] == 't');
    if (!strcmp(name, "boolean"))
        return k == JINJA_BOOL;
    if (!strcmp(name, "string"))
        return k == JINJA_STRING;
    if (!strcmp(name, "mapping"))
        return k == JINJA_DICT;
    if (!strcmp(name, "number"))
        return k == JINJA_INT || k == JINJA_FLOAT || k == JINJA_BOOL;
    if (!strcmp(name, "integer"))
        return k == JINJA_INT;
    if (!strcmp(name, "float"))
        return k == JINJA_FLOAT;
    if (!strcmp(name, "iterable") || !strcmp(name, "sequence"))
        return k == JINJA_STRING || k == JINJA_LIST || k == JINJA_TUPLE || k == JINJA_DICT ||
               k == JINJA_UNDEFINED;
    if (!strcmp(name, "callable"))
        return k == JINJA_MACRO || k == JINJA_FUNCTION || k == JINJA_METHOD;
    if (!strcmp(name, "upper") || !strcmp(name, "lower"))
        return k == JINJA_STRING &&
               jinja_is_true(method(run, v, name[0] == 'u' ? "isupper" : "islower"));
    if (!strcmp(name, "odd") || !strcmp(name, "even") || !strcmp(name, "divisibleby")) {
        int64_t by = name[0] == 'd' ? (other.kind == JINJA_INT ? other.number : 0) : 2;

        if (k != JINJA_INT || by == 0 || by == -1) {
            jinja_fail(run, ERR_INVALID, "chat template: is %s of a %s", name, jinja_kind_name(v));
            return false;
        }
        return (v.number % by == 0) == (name[0] != 'o');
    }
    holds = compare_test(run, name, v, other, &known);
    if (!known)
        jinja_fail(run, ERR_UNSUPPORTED, "chat template: test '%.64s' is not supported", name);
    return holds;
}

bool jinja_is_function(const char *name)
{
    static const char *const names[] = {"range",           "namespace",    "dict",
                                        "raise_exception", "strftime_now", NULL};

    return is_one_of(name, names);
}

static struct jinja_value range(struct jinja_run *run, const struct jinja_call_args *args)
{
    struct jinja_value out = jinja_list_new(run, JINJA_LIST);
    int64_t n[3] = {0, 0, 1};

    for (size_t i = 0; i < args->n_pos && i < 3; i++) {
        if (args->pos[i].kind != JINJA_INT)
            return jinja_fail(run, ERR_INVALID, "chat template: range of a %s",
                              jinja_kind_name(args->pos[i]));
        n[i] = args->pos[i].number;
    }
    if (args->n_pos == 1) {
        n[1] = n[0];
        n[0] = 0;
    }
    if (n[2] == 0 || llabs(n[0]) > MAX_RANGE || llabs(n[1]) > MAX_RANGE || llabs(n[2]) > MAX_RANGE)
        return jinja_fail(run, ERR_LIMIT, "chat template: a range beyond %d", MAX_RANGE);
    for (int64_t i = n[0]; run->rc == 0 && (n[2] > 0 ? i < n[1] : i > n[1]); i += n[2])
        jinja_list_add(run, out.list, jinja_int(i));
    return out;
}

static struct jinja_value strftime_now(struct jinja_run *run, struct jinja_value f)
{
    time_t now = run->now_unix ? (time_t)run->now_unix : time(NULL);
    char text[256], fmt[128];
    struct tm tm;

    if (f.kind != JINJA_STRING || f.string->len >= sizeof(fmt) || !localtime_r(&now, &tm))
        return jinja_fail(run, ERR_INVALID, "chat template: strftime_now of a %s",
                          jinja_kind_name(f));
    memcpy(fmt, f.string->text, f.string->len);
    fmt[f.string->len] = '\0';
    return jinja_text(run, text, strftime(text, sizeof(text), fmt, &tm));
}

struct jinja_value jinja_function(struct jinja_run *run, const char *name,
                                  const struct jinja_call_args *args)
{
    struct jinja_value a = jinja_arg(args, 0, "message"), out;
    struct jinja_builder b;

    if (!strcmp(name, "range"))
        return range(run, args);
    if (!strcmp(name, "strftime_now"))
        return strftime_now(run, jinja_arg(args, 0, "format"));
    if (!strcmp(name, "raise_exception")) {
        jinja_build_init(&b, run);
        jinja_build_value(&b, a);
        if (b.len == 0 || b.text[0] == '\0')
            return jinja_fail(run, ERR_INVALID, "chat template: the messages are refused");
        return jinja_fail(run, ERR_INVALID, "%.*s", (int)(b.len > 400 ? 400 : b.len), b.text);
    }
    out = jinja_dict_new(run); /* namespace(...) and dict(...) */
    if (a.kind == JINJA_DICT)
        for (size_t i = 0; i < a.dict->n; i++)
            jinja_dict_put(run, out.dict, a.dict->pairs[i].key, a.dict->pairs[i].value);
    for (size_t i = 0; args->named && i < args->named->n; i++)
        jinja_dict_put(run, out.dict, args->named->pairs[i].key, args->named->pairs[i].value);
    if (run->rc == 0 && name[0] == 'n')
        out.kind = JINJA_NAMESPACE;
    return out;
}
