/*
 * jinja_value - values of a running template: making, comparing and printing them as Python does.
 */
#include "base/err.h"
#include "engine/tokenizer/jinja.h"
#include "engine/tokenizer/utf8.h"

#include <math.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

struct jinja_value jinja_fail(struct jinja_run *run, int code, const char *fmt, ...)
{
    char msg[ERR_MSG_BYTES];
    va_list ap;

    if (run->rc < 0)
        return jinja_undefined(NULL);
    va_start(ap, fmt);
    vsnprintf(msg, sizeof(msg), fmt, ap);
    va_end(ap);
    run->rc = err_set(run->err, code, "%s", msg);
    return jinja_undefined(NULL);
}

void *jinja_alloc(struct jinja_run *run, size_t n, size_t size)
{
    void *p = arena_array(&run->arena, n, size);

    if (!p)
        jinja_fail(run, ERR_LIMIT, "chat template: needs more than %u MB of memory",
                   JINJA_MAX_MEMORY >> 20);
    return p;
}

/*
 * Strings.
 */

void jinja_build_init(struct jinja_builder *b, struct jinja_run *run)
{
    *b = (struct jinja_builder){.run = run};
}

static bool build_grow(struct jinja_builder *b, size_t extra)
{
    size_t alloc = b->alloc ? b->alloc : 64;
    char *text;
    unsigned char *client;

    if (b->len + extra <= b->alloc)
        return true;
    if (b->run->rc < 0)
        return false;
    while (alloc < b->len + extra)
        alloc *= 2;
    text = jinja_alloc(b->run, alloc, 1);
    client = jinja_alloc(b->run, alloc, 1);
    if (!text || !client)
        return false;
    if (b->len) {
        memcpy(text, b->text, b->len);
        memcpy(client, b->client, b->len);
    }
    b->text = text;
    b->client = client;
    b->alloc = alloc;
    return true;
}

void jinja_build_add(struct jinja_builder *b, const char *text, size_t len,
                     const unsigned char *client)
{
    if (!len || !build_grow(b, len))
        return;
    memcpy(b->text + b->len, text, len);
    if (client)
        memcpy(b->client + b->len, client, len);
    else
        memset(b->client + b->len, 0, len);
    b->any_client = b->any_client || client;
    b->len += len;
}

void jinja_build_str(struct jinja_builder *b, const char *text)
{
    jinja_build_add(b, text, strlen(text), NULL);
}

void jinja_build_string(struct jinja_builder *b, const struct jinja_string *s)
{
    jinja_build_add(b, s->text, s->len, s->client);
}

static struct jinja_value string_new(struct jinja_run *run, const char *text, size_t len,
                                     const unsigned char *client)
{
    struct jinja_string *s = jinja_alloc(run, 1, sizeof(*s));

    if (!s)
        return jinja_undefined(NULL);
    *s = (struct jinja_string){.text = text, .len = len, .client = client};
    return (struct jinja_value){.kind = JINJA_STRING, .string = s};
}

struct jinja_value jinja_build_done(struct jinja_builder *b)
{
    return string_new(b->run, b->text ? b->text : "", b->len, b->any_client ? b->client : NULL);
}

struct jinja_value jinja_text(struct jinja_run *run, const char *text, size_t len)
{
    struct jinja_builder b;

    jinja_build_init(&b, run);
    jinja_build_add(&b, text, len, NULL);
    return jinja_build_done(&b);
}

struct jinja_value jinja_substring(struct jinja_run *run, const struct jinja_string *s, size_t at,
                                   size_t len)
{
    return string_new(run, s->text + at, len, s->client ? s->client + at : NULL);
}

/*
 * Lists and dictionaries.
 */

struct jinja_value jinja_list_new(struct jinja_run *run, enum jinja_kind kind)
{
    static const struct jinja_list empty;
    struct jinja_list *list = jinja_alloc(run, 1, sizeof(*list));

    if (!list)
        return jinja_undefined(NULL);
    *list = empty;
    return (struct jinja_value){.kind = kind, .list = list};
}

void jinja_list_add(struct jinja_run *run, struct jinja_list *list, struct jinja_value v)
{
    if (run->rc < 0 || !list)
        return;
    if (list->n == list->alloc) {
        size_t alloc = list->alloc ? list->alloc * 2 : 8;
        struct jinja_value *items = jinja_alloc(run, alloc, sizeof(*items));

        if (!items)
            return;
        if (list->n)
            memcpy(items, list->items, list->n * sizeof(*items));
        list->items = items;
        list->alloc = alloc;
    }
    list->items[list->n++] = v;
}

struct jinja_value jinja_dict_new(struct jinja_run *run)
{
    struct jinja_dict *d = jinja_alloc(run, 1, sizeof(*d));

    return d ? (struct jinja_value){.kind = JINJA_DICT, .dict = d} : jinja_undefined(NULL);
}

const struct jinja_value *jinja_dict_get(struct jinja_run *run, const struct jinja_dict *d,
                                         struct jinja_value key)
{
    run->n_steps += (int64_t)(d->n / 16);
    for (size_t i = 0; i < d->n; i++)
        if (jinja_equal(run, d->pairs[i].key, key))
            return &d->pairs[i].value;
    return NULL;
}

const struct jinja_value *jinja_dict_find(const struct jinja_dict *d, const char *key)
{
    size_t len = strlen(key);

    for (size_t i = 0; i < d->n; i++) {
        const struct jinja_value *k = &d->pairs[i].key;

        if (k->kind == JINJA_STRING && k->string->len == len &&
            memcmp(k->string->text, key, len) == 0)
            return &d->pairs[i].value;
    }
    return NULL;
}

void jinja_dict_put(struct jinja_run *run, struct jinja_dict *d, struct jinja_value key,
                    struct jinja_value v)
{
    struct jinja_value *old;

    if (run->rc < 0 || !d)
        return;
    old = (struct jinja_value *)jinja_dict_get(run, d, key);
    if (old) {
        *old = v;
        return;
    }
    if (d->n == d->alloc) {
        size_t alloc = d->alloc ? d->alloc * 2 : 8;
        struct jinja_pair *pairs = jinja_alloc(run, alloc, sizeof(*pairs));

        if (!pairs)
            return;
        if (d->n)
            memcpy(pairs, d->pairs, d->n * sizeof(*pairs));
        d->pairs = pairs;
        d->alloc = alloc;
    }
    d->pairs[d->n++] = (struct jinja_pair){key, v};
}

/* A role like `user` becomes part of a template's <|user|>, so a plain word does not count. */
static bool is_plain_role(const char *key, const char *text, size_t len)
{
    if (strcmp(key, "role") != 0 || len > 32)
        return false;
    return strspn(text, "abcdefghijklmnopqrstuvwxyz_-") == len;
}

/* The marks of a string of len bytes; NULL when nobody else wrote it. */
static unsigned char *client_marks(struct jinja_run *run, size_t len, bool client)
{
    unsigned char *marks = client && len ? jinja_alloc(run, len, 1) : NULL;

    if (marks)
        memset(marks, 1, len);
    return marks;
}

static struct jinja_value container_from_json(struct jinja_run *run, const json_t *json,
                                              bool client)
{
    struct jinja_value out;
    const char *key;
    json_t *item;
    size_t i;

    if (json_is_array(json)) {
        out = jinja_list_new(run, JINJA_LIST);
        json_array_foreach(json, i, item) if (run->rc == 0)
            jinja_list_add(run, out.list, jinja_from_json(run, item, client));
        return out;
    }
    out = jinja_dict_new(run);
    json_object_foreach((json_t *)json, key, item)
    {
        struct jinja_value name;
        bool trusted = json_is_string(item) &&
                       is_plain_role(key, json_string_value(item), json_string_length(item));

        if (run->rc < 0)
            break;
        name = string_new(run, key, strlen(key), client_marks(run, strlen(key), client));
        jinja_dict_put(run, out.dict, name, jinja_from_json(run, item, client && !trusted));
    }
    return out;
}

struct jinja_value jinja_from_json(struct jinja_run *run, const json_t *json, bool client)
{
    struct jinja_value out;

    if (++run->depth > JINJA_MAX_DEPTH)
        return jinja_fail(run, ERR_INVALID, "messages: nested too deeply");
    switch (json_typeof(json)) {
    case JSON_OBJECT:
    case JSON_ARRAY:
        out = container_from_json(run, json, client);
        break;
    case JSON_STRING:
        out = string_new(run, json_string_value(json), json_string_length(json),
                         client_marks(run, json_string_length(json), client));
        break;
    case JSON_INTEGER:
        out = jinja_int(json_integer_value(json));
        break;
    case JSON_REAL:
        out = jinja_float(json_real_value(json));
        break;
    case JSON_TRUE:
    case JSON_FALSE:
        out = jinja_bool(json_is_true(json));
        break;
    default:
        out = jinja_none();
        break;
    }
    run->depth--;
    return out;
}

/*
 * Questions.
 */

const char *jinja_kind_name(struct jinja_value v)
{
    static const char *const names[] = {"undefined", "None",     "bool",   "int",  "float",
                                        "str",       "list",     "tuple",  "dict", "namespace",
                                        "macro",     "function", "method", "loop"};

    return names[v.kind];
}

bool jinja_is_true(struct jinja_value v)
{
    switch (v.kind) {
    case JINJA_UNDEFINED:
    case JINJA_NONE:
        return false;
    case JINJA_BOOL:
        return v.truth;
    case JINJA_INT:
        return v.number != 0;
    case JINJA_FLOAT:
        return v.real != 0.0;
    case JINJA_STRING:
        return v.string->len > 0;
    case JINJA_LIST:
    case JINJA_TUPLE:
        return v.list->n > 0;
    case JINJA_DICT:
        return v.dict->n > 0;
    default:
        return true;
    }
}

static bool is_number(struct jinja_value v)
{
    return v.kind == JINJA_BOOL || v.kind == JINJA_INT || v.kind == JINJA_FLOAT;
}

static double to_double(struct jinja_value v)
{
    return v.kind == JINJA_FLOAT ? v.real : v.kind == JINJA_BOOL ? v.truth : (double)v.number;
}

static int64_t to_int(struct jinja_value v)
{
    return v.kind == JINJA_BOOL ? v.truth : v.number;
}

static bool lists_equal(struct jinja_run *run, const struct jinja_list *a,
                        const struct jinja_list *b)
{
    if (a->n != b->n)
        return false;
    for (size_t i = 0; i < a->n; i++)
        if (!jinja_equal(run, a->items[i], b->items[i]))
            return false;
    return true;
}

static bool dicts_equal(struct jinja_run *run, const struct jinja_dict *a,
                        const struct jinja_dict *b)
{
    if (a->n != b->n)
        return false;
    for (size_t i = 0; i < a->n; i++) {
        const struct jinja_value *v = jinja_dict_get(run, b, a->pairs[i].key);

        if (!v || !jinja_equal(run, a->pairs[i].value, *v))
            return false;
    }
    return true;
}

bool jinja_equal(struct jinja_run *run, struct jinja_value a, struct jinja_value b)
{
    bool equal = false;

    run->n_steps++;
    if (is_number(a) && is_number(b)) {
        if (a.kind == JINJA_FLOAT || b.kind == JINJA_FLOAT)
            return to_double(a) == to_double(b);
        return to_int(a) == to_int(b);
    }
    if (a.kind != b.kind)
        return false;
    if (++run->depth > JINJA_MAX_DEPTH || run->n_steps > JINJA_MAX_STEPS) {
        jinja_fail(run, ERR_LIMIT, "chat template: a comparison without end");
        return false;
    }
    switch (a.kind) {
    case JINJA_UNDEFINED:
    case JINJA_NONE:
        equal = true;
        break;
    case JINJA_STRING:
        equal = a.string->len == b.string->len &&
                memcmp(a.string->text, b.string->text, a.string->len) == 0;
        break;
    case JINJA_LIST:
    case JINJA_TUPLE:
        equal = lists_equal(run, a.list, b.list);
        break;
    case JINJA_DICT:
        equal = dicts_equal(run, a.dict, b.dict);
        break;
    default:
        equal = a.list == b.list; /* the same object */
        break;
    }
    run->depth--;
    return equal;
}

static int compare_strings(const struct jinja_string *a, const struct jinja_string *b)
{
    size_t n = a->len < b->len ? a->len : b->len;
    int order = n ? memcmp(a->text, b->text, n) : 0;

    return order ? order : a->len < b->len ? -1 : a->len > b->len;
}

int jinja_compare(struct jinja_run *run, struct jinja_value a, struct jinja_value b)
{
    if (is_number(a) && is_number(b)) {
        if (a.kind == JINJA_FLOAT || b.kind == JINJA_FLOAT)
            return to_double(a) < to_double(b) ? -1 : to_double(a) > to_double(b);
        return to_int(a) < to_int(b) ? -1 : to_int(a) > to_int(b);
    }
    if (a.kind == JINJA_STRING && b.kind == JINJA_STRING)
        return compare_strings(a.string, b.string);
    if ((a.kind == JINJA_LIST || a.kind == JINJA_TUPLE) && a.kind == b.kind) {
        for (size_t i = 0; i < a.list->n && i < b.list->n; i++)
            if (!jinja_equal(run, a.list->items[i], b.list->items[i]))
                return jinja_compare(run, a.list->items[i], b.list->items[i]);
        return a.list->n < b.list->n ? -1 : a.list->n > b.list->n;
    }
    jinja_fail(run, ERR_INVALID, "chat template: %s and %s have no order", jinja_kind_name(a),
               jinja_kind_name(b));
    return 0;
}

bool jinja_contains(struct jinja_run *run, struct jinja_value in, struct jinja_value v)
{
    if (in.kind == JINJA_STRING && v.kind == JINJA_STRING)
        return v.string->len == 0 ||
               memmem(in.string->text, in.string->len, v.string->text, v.string->len) != NULL;
    if (in.kind == JINJA_DICT)
        return jinja_dict_get(run, in.dict, v) != NULL;
    if (in.kind == JINJA_LIST || in.kind == JINJA_TUPLE) {
        for (size_t i = 0; i < in.list->n; i++)
            if (jinja_equal(run, in.list->items[i], v))
                return true;
        return false;
    }
    if (in.kind != JINJA_UNDEFINED)
        jinja_fail(run, ERR_INVALID, "chat template: nothing is in a value of type %s",
                   jinja_kind_name(in));
    return false;
}

size_t jinja_length(struct jinja_run *run, struct jinja_value v)
{
    switch (v.kind) {
    case JINJA_UNDEFINED:
        return 0;
    case JINJA_STRING:
        return utf8_count(v.string->text, v.string->len);
    case JINJA_LIST:
    case JINJA_TUPLE:
        return v.list->n;
    case JINJA_DICT:
        return v.dict->n;
    default:
        jinja_fail(run, ERR_INVALID, "chat template: %s has no length", jinja_kind_name(v));
        return 0;
    }
}

struct jinja_list *jinja_iterate(struct jinja_run *run, struct jinja_value v)
{
    static struct jinja_list nothing; /* empty, and stays so: callers only read */
    struct jinja_value out;
    int n_bytes;

    if (v.kind == JINJA_LIST || v.kind == JINJA_TUPLE)
        return v.list;
    if (v.kind != JINJA_STRING && v.kind != JINJA_DICT) {
        if (v.kind != JINJA_UNDEFINED)
            jinja_fail(run, ERR_INVALID, "chat template: %s cannot be iterated over",
                       jinja_kind_name(v));
        return &nothing;
    }
    out = jinja_list_new(run, JINJA_LIST);
    if (run->rc < 0)
        return &nothing;
    if (v.kind == JINJA_DICT) {
        for (size_t i = 0; i < v.dict->n; i++)
            jinja_list_add(run, out.list, v.dict->pairs[i].key);
        return out.list;
    }
    for (size_t at = 0; at < v.string->len; at += (size_t)n_bytes) {
        utf8_get(v.string->text + at, &n_bytes);
        jinja_list_add(run, out.list, jinja_substring(run, v.string, at, (size_t)n_bytes));
    }
    return out.list;
}

/*
 * Printing.
 */

/* The shortest decimal that reads back as d, laid out as Python's repr(). */
static void add_float(struct jinja_builder *b, double d, bool json)
{
    char text[40], *e;
    int digits = 1, exponent;

    if (isnan(d) || isinf(d)) {
        if (json)
            jinja_build_str(b, isnan(d) ? "NaN" : d > 0 ? "Infinity" : "-Infinity");
        else
            jinja_build_str(b, isnan(d) ? "nan" : d > 0 ? "inf" : "-inf");
        return;
    }
    do
        snprintf(text, sizeof(text), "%.*e", digits - 1, d);
    while (strtod(text, NULL) != d && ++digits <= 17);
    e = strchr(text, 'e');
    exponent = atoi(e + 1);
    if (exponent >= -4 && exponent < 16) {
        int after = digits - 1 - exponent;

        snprintf(text, sizeof(text), "%.*f", after > 1 ? after : 1, d);
    } else {
        snprintf(e, sizeof(text) - (size_t)(e - text), "e%c%02d", exponent < 0 ? '-' : '+',
                 abs(exponent));
    }
    jinja_build_str(b, text);
}

/* Python's repr() of a string, near enough: what is printable stays. */
static void add_repr(struct jinja_builder *b, const struct jinja_string *s)
{
    bool single = memchr(s->text, '\'', s->len) != NULL,
         twice = memchr(s->text, '"', s->len) != NULL;
    char quote = single && !twice ? '"' : '\'';
    char text[8];

    jinja_build_add(b, &quote, 1, NULL);
    for (size_t i = 0; i < s->len; i++) {
        unsigned char c = (unsigned char)s->text[i];

        text[0] = '\0';
        if (c == '\n')
            strcpy(text, "\\n");
        else if (c == '\r')
            strcpy(text, "\\r");
        else if (c == '\t')
            strcpy(text, "\\t");
        else if (c == '\\' || c == (unsigned char)quote)
            snprintf(text, sizeof(text), "\\%c", c);
        else if (c < 0x20 || c == 0x7f)
            snprintf(text, sizeof(text), "\\x%02x", c);
        if (text[0])
            jinja_build_str(b, text);
        else
            jinja_build_add(b, s->text + i, 1, s->client ? s->client + i : NULL);
    }
    jinja_build_add(b, &quote, 1, NULL);
}

static void add_value(struct jinja_builder *b, struct jinja_value v, bool repr);

static void add_items(struct jinja_builder *b, struct jinja_value v)
{
    bool tuple = v.kind == JINJA_TUPLE;

    jinja_build_str(b, tuple ? "(" : "[");
    for (size_t i = 0; i < v.list->n && b->run->rc == 0; i++) {
        if (i)
            jinja_build_str(b, ", ");
        add_value(b, v.list->items[i], true);
    }
    jinja_build_str(b, tuple ? v.list->n == 1 ? ",)" : ")" : "]");
}

static void add_value(struct jinja_builder *b, struct jinja_value v, bool repr)
{
    char text[32];

    if (++b->run->depth > JINJA_MAX_DEPTH) {
        jinja_fail(b->run, ERR_LIMIT, "chat template: a value nested too deeply");
        return;
    }
    switch (v.kind) {
    case JINJA_UNDEFINED:
        if (repr)
            jinja_build_str(b, "Undefined");
        break;
    case JINJA_NONE:
        jinja_build_str(b, "None");
        break;
    case JINJA_BOOL:
        jinja_build_str(b, v.truth ? "True" : "False");
        break;
    case JINJA_INT:
        snprintf(text, sizeof(text), "%lld", (long long)v.number);
        jinja_build_str(b, text);
        break;
    case JINJA_FLOAT:
        add_float(b, v.real, false);
        break;
    case JINJA_STRING:
        if (repr)
            add_repr(b, v.string);
        else
            jinja_build_string(b, v.string);
        break;
    case JINJA_LIST:
    case JINJA_TUPLE:
        add_items(b, v);
        break;
    case JINJA_DICT:
        jinja_build_str(b, "{");
        for (size_t i = 0; i < v.dict->n && b->run->rc == 0; i++) {
            if (i)
                jinja_build_str(b, ", ");
            add_value(b, v.dict->pairs[i].key, true);
            jinja_build_str(b, ": ");
            add_value(b, v.dict->pairs[i].value, true);
        }
        jinja_build_str(b, "}");
        break;
    default:
        jinja_fail(b->run, ERR_PARSE, "chat template: prints a %s", jinja_kind_name(v));
        break;
    }
    b->run->depth--;
}

void jinja_build_value(struct jinja_builder *b, struct jinja_value v)
{
    add_value(b, v, false);
}

/*
 * JSON, as json.dumps(ensure_ascii=False) writes it.
 */

struct json_style {
    const char *item, *key; /* separators */
    int indent;             /* -1: on one line */
    bool sort_keys;
};

static void add_json_string(struct jinja_builder *b, const struct jinja_string *s)
{
    char text[8];

    jinja_build_str(b, "\"");
    for (size_t i = 0; i < s->len; i++) {
        unsigned char c = (unsigned char)s->text[i];
        static const char from[] = "\"\\\n\r\t\f\b", to[] = "\"\\nrtfb";
        const char *known = c ? strchr(from, c) : NULL;

        if (known) {
            snprintf(text, sizeof(text), "\\%c", to[known - from]);
            jinja_build_str(b, text);
        } else if (c < 0x20) {
            snprintf(text, sizeof(text), "\\u%04x", c);
            jinja_build_str(b, text);
        } else {
            jinja_build_add(b, s->text + i, 1, s->client ? s->client + i : NULL);
        }
    }
    jinja_build_str(b, "\"");
}

static void add_line(struct jinja_builder *b, const struct json_style *style, int level)
{
    if (style->indent < 0)
        return;
    jinja_build_str(b, "\n");
    for (int i = 0; i < style->indent * level && b->run->rc == 0; i++)
        jinja_build_str(b, " ");
}

static int by_key(const void *a, const void *b)
{
    const struct jinja_pair *x = a, *y = b;

    return compare_strings(x->key.string, y->key.string);
}

static void add_json(struct jinja_builder *b, struct jinja_value v, const struct json_style *style,
                     int level);

static void add_json_dict(struct jinja_builder *b, const struct jinja_dict *d,
                          const struct json_style *style, int level)
{
    struct jinja_pair *pairs = d->pairs;

    for (size_t i = 0; i < d->n; i++)
        if (pairs[i].key.kind != JINJA_STRING)
            jinja_fail(b->run, ERR_INVALID, "chat template: tojson of a key that is no string");
    if (style->sort_keys && d->n && b->run->rc == 0) {
        pairs = jinja_alloc(b->run, d->n, sizeof(*pairs));
        if (!pairs)
            return;
        memcpy(pairs, d->pairs, d->n * sizeof(*pairs));
        qsort(pairs, d->n, sizeof(*pairs), by_key);
    }
    jinja_build_str(b, "{");
    for (size_t i = 0; i < d->n && b->run->rc == 0; i++) {
        if (i)
            jinja_build_str(b, style->item);
        add_line(b, style, level + 1);
        add_json_string(b, pairs[i].key.string);
        jinja_build_str(b, style->key);
        add_json(b, pairs[i].value, style, level + 1);
    }
    if (d->n)
        add_line(b, style, level);
    jinja_build_str(b, "}");
}

static void add_json(struct jinja_builder *b, struct jinja_value v, const struct json_style *style,
                     int level)
{
    if (level > JINJA_MAX_DEPTH) {
        jinja_fail(b->run, ERR_LIMIT, "chat template: tojson nested too deeply");
        return;
    }
    switch (v.kind) {
    case JINJA_NONE:
        jinja_build_str(b, "null");
        break;
    case JINJA_BOOL:
        jinja_build_str(b, v.truth ? "true" : "false");
        break;
    case JINJA_INT:
        jinja_build_value(b, v);
        break;
    case JINJA_FLOAT:
        add_float(b, v.real, true);
        break;
    case JINJA_STRING:
        add_json_string(b, v.string);
        break;
    case JINJA_LIST:
    case JINJA_TUPLE:
        jinja_build_str(b, "[");
        for (size_t i = 0; i < v.list->n && b->run->rc == 0; i++) {
            if (i)
                jinja_build_str(b, style->item);
            add_line(b, style, level + 1);
            add_json(b, v.list->items[i], style, level + 1);
        }
        if (v.list->n)
            add_line(b, style, level);
        jinja_build_str(b, "]");
        break;
    case JINJA_DICT:
        add_json_dict(b, v.dict, style, level);
        break;
    default:
        jinja_fail(b->run, ERR_INVALID, "chat template: tojson of a %s", jinja_kind_name(v));
        break;
    }
}

/* A separator as a C string in the arena. */
static const char *separator(struct jinja_run *run, struct jinja_value v)
{
    char *text = v.kind == JINJA_STRING ? jinja_alloc(run, v.string->len + 1, 1) : NULL;

    if (!text) {
        jinja_fail(run, ERR_INVALID, "chat template: tojson: a separator that is no string");
        return "";
    }
    return memcpy(text, v.string->text, v.string->len);
}

void jinja_to_json(struct jinja_builder *b, struct jinja_value v,
                   const struct jinja_call_args *options)
{
    struct jinja_value indent = jinja_arg(options, 1, "indent");
    struct jinja_value separators = jinja_arg(options, 2, "separators");
    struct json_style style = {.item = ", ", .key = ": ", .indent = -1};

    if (indent.kind == JINJA_INT && indent.number >= 0 && indent.number <= 16) {
        style.indent = (int)indent.number;
        style.item = ",";
    }
    if ((separators.kind == JINJA_TUPLE || separators.kind == JINJA_LIST) &&
        separators.list->n == 2) {
        style.item = separator(b->run, separators.list->items[0]);
        style.key = separator(b->run, separators.list->items[1]);
    }
    style.sort_keys = jinja_is_true(jinja_arg(options, 3, "sort_keys"));
    add_json(b, v, &style, 0);
}
