/*
 * grammar_schema - JSON Schema to rules. See grammar_schema.h. Unions, references and constants are
 * here, the single types in grammar_schema_types.c.
 */
#include "engine/grammar/grammar_schema.h"

#include "engine/grammar/grammar_schema_impl.h"

#include <ctype.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>

enum type_bit {
    TYPE_NULL = 1,
    TYPE_BOOLEAN = 2,
    TYPE_INTEGER = 4,
    TYPE_NUMBER = 8,
    TYPE_STRING = 16,
    TYPE_ARRAY = 32,
    TYPE_OBJECT = 64
};

static const struct {
    const char *name;
    int bit;
} types[] = {
    {"null", TYPE_NULL},     {"boolean", TYPE_BOOLEAN}, {"integer", TYPE_INTEGER},
    {"number", TYPE_NUMBER}, {"string", TYPE_STRING},   {"array", TYPE_ARRAY},
    {"object", TYPE_OBJECT},
};

/* What a keyword is about; 0: nothing that binds. */
static const struct {
    const char *name;
    int type;
} keywords[] = {
    {"properties", TYPE_OBJECT},
    {"required", TYPE_OBJECT},
    {"additionalProperties", TYPE_OBJECT},
    {"items", TYPE_ARRAY},
    {"prefixItems", TYPE_ARRAY},
    {"minItems", TYPE_ARRAY},
    {"maxItems", TYPE_ARRAY},
    {"uniqueItems", TYPE_ARRAY},
    {"minLength", TYPE_STRING},
    {"maxLength", TYPE_STRING},
    {"pattern", TYPE_STRING},
    {"format", TYPE_STRING},
    {"minimum", TYPE_NUMBER},
    {"maximum", TYPE_NUMBER},
    {"exclusiveMinimum", TYPE_NUMBER},
    {"exclusiveMaximum", TYPE_NUMBER},
    {"multipleOf", TYPE_NUMBER},
    {"title", 0},
    {"description", 0},
    {"default", 0},
    {"examples", 0},
    {"$schema", 0},
    {"$id", 0},
    {"$comment", 0},
    {"$defs", 0},
    {"definitions", 0},
    {"deprecated", 0},
    {"readOnly", 0},
    {"writeOnly", 0},
    {"$anchor", 0},
    {"example", 0},
    {"nullable", 0},
};

/* Keywords that say everything: beside them only annotations may stand. */
static const char *const whole[] = {"$ref", "const", "enum", "anyOf", "oneOf", "allOf"};

void schema_refuse(struct schema_reader *s, const char *keyword, const char *why)
{
    grammar_fail(s->b, ERR_INVALID, "JSON schema: '%.60s' %s", keyword, why);
}

int schema_count(struct schema_reader *s, const json_t *schema, const char *key, int otherwise)
{
    const json_t *v = json_object_get(schema, key);
    double d = json_number_value(v);

    if (!v)
        return otherwise;
    if (!json_is_number(v) || !(d >= 0 && d == floor(d)))
        schema_refuse(s, key, "must be an integer of at least 0");
    else if (d > GRAMMAR_MAX_REPEAT)
        schema_refuse(s, key, "is larger than this server supports");
    else
        return (int)d;
    return 0;
}

const struct expr *schema_call(struct schema_reader *s, const json_t *schema, const char *name)
{
    int64_t rule;

    if (s->b->rc < 0)
        return expr_never(s->b);
    if (u64map_get(&s->rules, (uint64_t)(uintptr_t)schema, &rule))
        return expr_call(s->b, (int)rule);
    rule = grammar_rule_new(s->b, name, strlen(name));
    if (s->n_tasks == s->n_tasks_room) {
        int n_room = s->n_tasks_room ? 2 * s->n_tasks_room : 64;
        struct schema_task *tasks = realloc(s->tasks, (size_t)n_room * sizeof(*tasks));

        if (!tasks) {
            grammar_fail(s->b, ERR_NO_ROOM, "no memory for the schema");
            return expr_never(s->b);
        }
        s->tasks = tasks;
        s->n_tasks_room = n_room;
    }
    if (u64map_put(&s->rules, (uint64_t)(uintptr_t)schema, rule) < 0)
        grammar_fail(s->b, ERR_NO_ROOM, "no memory for the schema");
    s->tasks[s->n_tasks++] = (struct schema_task){schema, (int)rule};
    return expr_call(s->b, (int)rule);
}

/* Constants */

static int type_of_value(const json_t *v)
{
    switch (json_typeof(v)) {
    case JSON_NULL:
        return TYPE_NULL;
    case JSON_TRUE:
    case JSON_FALSE:
        return TYPE_BOOLEAN;
    case JSON_INTEGER:
        return TYPE_INTEGER | TYPE_NUMBER;
    case JSON_REAL:
        return json_real_value(v) == floor(json_real_value(v)) ? TYPE_INTEGER | TYPE_NUMBER
                                                               : TYPE_NUMBER;
    case JSON_STRING:
        return TYPE_STRING;
    case JSON_ARRAY:
        return TYPE_ARRAY;
    case JSON_OBJECT:
        return TYPE_OBJECT;
    }
    return 0;
}

static const struct expr *constant(struct schema_reader *s, const json_t *v)
{
    char *text = json_dumps(v, JSON_ENCODE_ANY | JSON_COMPACT);
    const struct expr *e = expr_never(s->b);

    if (text)
        e = expr_str(s->b, text);
    else
        grammar_fail(s->b, ERR_NO_ROOM, "no memory for the schema");
    free(text);
    return e;
}

/* Types */

static int type_bit(struct schema_reader *s, const json_t *name)
{
    for (size_t i = 0; json_is_string(name) && i < sizeof(types) / sizeof(types[0]); i++) {
        if (!strcmp(json_string_value(name), types[i].name))
            return types[i].bit;
    }
    schema_refuse(s, "type", "must name one of JSON's types, or several");
    return 0;
}

/* The types that `type` allows, or those that the other keywords are about; 0: all. */
static int types_of(struct schema_reader *s, const json_t *schema)
{
    const json_t *type = json_object_get(schema, "type");
    const char *key;
    json_t *v;
    int bits = 0;

    if (json_is_array(type)) {
        for (size_t i = 0; i < json_array_size(type); i++)
            bits |= type_bit(s, json_array_get(type, i));
        return bits;
    }
    if (type)
        return type_bit(s, type);
    json_object_foreach((json_t *)schema, key, v)
    {
        for (size_t i = 0; i < sizeof(keywords) / sizeof(keywords[0]); i++)
            bits |= strcmp(key, keywords[i].name) ? 0 : keywords[i].type;
    }
    return bits;
}

static const struct expr *of_types(struct schema_reader *s, const json_t *schema, int bits)
{
    struct grammar_build *b = s->b;
    const struct expr *e = expr_never(b);

    if (bits == 0)
        return grammar_json_value(&s->json);
    if (bits & TYPE_NULL)
        e = expr_alt(b, e, expr_str(b, "null"));
    if (bits & TYPE_BOOLEAN)
        e = expr_alt(b, e, expr_alt(b, expr_str(b, "true"), expr_str(b, "false")));
    if (bits & TYPE_NUMBER)
        e = expr_alt(b, e, schema_of_number(s, schema, false));
    else if (bits & TYPE_INTEGER)
        e = expr_alt(b, e, schema_of_number(s, schema, true));
    if (bits & TYPE_STRING)
        e = expr_alt(b, e, schema_of_string(s, schema));
    if (bits & TYPE_ARRAY)
        e = expr_alt(b, e, schema_of_array(s, schema));
    return bits & TYPE_OBJECT ? expr_alt(b, e, schema_of_object(s, schema)) : e;
}

static const struct expr *of_enum(struct schema_reader *s, const json_t *schema,
                                  const json_t *values)
{
    int bits = json_object_get(schema, "type") ? types_of(s, schema) : 0;
    const struct expr *e = expr_never(s->b);

    if (!json_is_array(values) || json_array_size(values) == 0)
        schema_refuse(s, "enum", "must be an array of at least one value");
    for (size_t i = 0; i < json_array_size(values); i++) {
        const json_t *v = json_array_get(values, i);

        if (bits == 0 || (type_of_value(v) & bits))
            e = expr_alt(s->b, e, constant(s, v));
    }
    return e;
}

/* References */

static const json_t *step_into(const json_t *at, const char *name, size_t len)
{
    char key[256];
    size_t n = 0;

    for (size_t i = 0; i < len && n + 1 < sizeof(key); i++) {
        char c = name[i];

        /* A fragment of a URI first, a pointer then. */
        if (c == '%' && i + 2 < len && isxdigit((unsigned char)name[i + 1]) &&
            isxdigit((unsigned char)name[i + 2])) {
            const char hex[] = {name[i + 1], name[i + 2], '\0'};

            c = (char)strtoul(hex, NULL, 16);
            i += 2;
        }
        if (c == '~' && i + 1 < len)
            c = name[++i] == '1' ? '/' : '~';
        key[n++] = c;
    }
    key[n] = '\0';
    if (json_is_array(at))
        return json_array_get(at, (size_t)strtoul(key, NULL, 10));
    return json_object_get(at, key);
}

static const json_t *resolve(struct schema_reader *s, const json_t *ref)
{
    const char *text = json_string_value(ref);
    const json_t *at = s->root;

    if (!text || *text != '#') {
        schema_refuse(s, "$ref", "must point into the same schema: #, #/$defs/name");
        return NULL;
    }
    text++;
    while (*text == '/' && at) {
        size_t len = strcspn(text + 1, "/");

        at = step_into(at, text + 1, len);
        text += 1 + len;
    }
    if (!at || *text) {
        schema_refuse(s, "$ref", "points to nothing");
        return NULL;
    }
    return at;
}

/* Unions */

/* The schema itself, behind any references; NULL when they go in a circle. */
static const json_t *behind_refs(struct schema_reader *s, const json_t *schema)
{
    for (int i = 0; i < GRAMMAR_MAX_DEPTH && schema; i++) {
        const json_t *ref = json_object_get(schema, "$ref");

        if (!ref)
            return schema;
        schema = resolve(s, ref);
    }
    return NULL;
}

/* The value of a property that can only be one constant, which tells alternatives apart. */
static const json_t *tag_of(const json_t *schema, const char *key)
{
    const json_t *property = json_object_get(json_object_get(schema, "properties"), key);
    const json_t *values = json_object_get(property, "enum"), *required;
    const json_t *tag = json_object_get(property, "const");

    if (!tag && json_array_size(values) == 1)
        tag = json_array_get(values, 0);
    required = json_object_get(schema, "required");
    for (size_t i = 0; i < json_array_size(required); i++) {
        const char *name = json_string_value(json_array_get(required, i));

        if (name && !strcmp(name, key))
            return tag;
    }
    return NULL;
}

static int value_types(struct schema_reader *s, const json_t *schema)
{
    const json_t *values = json_object_get(schema, "enum"), *one = json_object_get(schema, "const");
    int bits = one ? type_of_value(one) : 0;

    for (size_t i = 0; i < json_array_size(values); i++)
        bits |= type_of_value(json_array_get(values, i));
    if (bits == 0)
        bits = types_of(s, schema);
    if (bits & TYPE_NUMBER)
        bits |= TYPE_INTEGER;
    return bits ? bits : ~0;
}

/* Can no value satisfy both? Then one of them is all that oneOf asks for. */
static bool are_apart(struct schema_reader *s, const json_t *a, const json_t *b)
{
    const char *key;
    json_t *v;

    a = behind_refs(s, a);
    b = behind_refs(s, b);
    if (!a || !b)
        return false;
    if (!(value_types(s, a) & value_types(s, b)))
        return true;
    if (json_object_get(a, "const") && json_object_get(b, "const"))
        return !json_equal(json_object_get(a, "const"), json_object_get(b, "const"));
    json_object_foreach(json_object_get(a, "properties"), key, v)
    {
        const json_t *x = tag_of(a, key), *y = tag_of(b, key);

        if (x && y && !json_equal(x, y))
            return true;
    }
    return false;
}

static const struct expr *of_union(struct schema_reader *s, const json_t *list, bool one)
{
    const struct expr *e = expr_never(s->b);

    if (!json_is_array(list) || json_array_size(list) == 0)
        schema_refuse(s, one ? "oneOf" : "anyOf", "must be an array of schemas");
    for (size_t i = 0; i < json_array_size(list); i++) {
        for (size_t k = 0; k < i && one && grammar_step(s->b); k++) {
            if (!are_apart(s, json_array_get(list, i), json_array_get(list, k)))
                schema_refuse(s, "oneOf",
                              "has alternatives that one value could satisfy together; "
                              "use anyOf");
        }
        e = expr_alt(s->b, e, schema_call(s, json_array_get(list, i), "alternative"));
    }
    return e;
}

static const struct expr *of_all(struct schema_reader *s, const json_t *list)
{
    if (json_array_size(list) != 1) {
        schema_refuse(s, "allOf", "is supported with one schema only");
        return expr_never(s->b);
    }
    return schema_call(s, json_array_get(list, 0), "all");
}

static bool is_whole(const char *key)
{
    for (size_t i = 0; i < sizeof(whole) / sizeof(whole[0]); i++) {
        if (!strcmp(key, whole[i]))
            return true;
    }
    return false;
}

/* Does `type` allow every type that the keyword beside it leaves? */
static bool type_says_nothing(struct schema_reader *s, const json_t *schema, const char *keyword)
{
    const json_t *v = json_object_get(schema, keyword), *one;
    int allowed = types_of(s, schema);

    if (allowed & TYPE_NUMBER)
        allowed |= TYPE_INTEGER;
    if (!strcmp(keyword, "$ref")) {
        one = behind_refs(s, resolve(s, v));
        return one && !(value_types(s, one) & ~allowed);
    }
    for (size_t i = 0; i < json_array_size(v); i++) {
        one = behind_refs(s, json_array_get(v, i));
        if (!one || (value_types(s, one) & ~allowed))
            return false;
    }
    return true;
}

/* Every member is understood, and nothing binds beside a keyword that says everything. */
static const char *check_members(struct schema_reader *s, const json_t *schema)
{
    const char *key, *says_all = NULL, *binding = NULL;
    json_t *v;

    json_object_foreach((json_t *)schema, key, v)
    {
        size_t i = 0, n = sizeof(keywords) / sizeof(keywords[0]);

        if (is_whole(key)) {
            if (says_all)
                schema_refuse(s, key, "beside another of its kind is not supported");
            says_all = key;
            continue;
        }
        while (i < n && strcmp(key, keywords[i].name))
            i++;
        if (i == n && strcmp(key, "type"))
            schema_refuse(s, key, "is not supported");
        else if (i < n && keywords[i].type)
            binding = key;
    }
    if (says_all && binding)
        schema_refuse(s, binding, "beside $ref, const, enum or a union is not supported");
    if (says_all && strcmp(says_all, "enum") && strcmp(says_all, "const") &&
        json_object_get(schema, "type") && !type_says_nothing(s, schema, says_all))
        schema_refuse(s, "type", "beside $ref or a union must allow all that they allow");
    return says_all;
}

static const struct expr *compile(struct schema_reader *s, const json_t *schema)
{
    const char *says_all;
    const json_t *v;

    if (json_is_true(schema))
        return grammar_json_value(&s->json);
    if (json_is_false(schema))
        return expr_never(s->b);
    if (!json_is_object(schema)) {
        schema_refuse(s, "schema", "must be an object or a boolean");
        return expr_never(s->b);
    }
    says_all = check_members(s, schema);
    if (s->b->rc < 0)
        return expr_never(s->b);
    if (!says_all)
        return of_types(s, schema, types_of(s, schema));
    v = json_object_get(schema, says_all);
    if (!strcmp(says_all, "$ref")) {
        v = resolve(s, v);
        return v ? schema_call(s, v, "reference") : expr_never(s->b);
    }
    if (!strcmp(says_all, "const")) {
        if (json_object_get(schema, "type") && !(types_of(s, schema) & type_of_value(v)))
            return expr_never(s->b);
        return constant(s, v);
    }
    if (!strcmp(says_all, "enum"))
        return of_enum(s, schema, v);
    if (!strcmp(says_all, "allOf"))
        return of_all(s, v);
    return of_union(s, v, !strcmp(says_all, "oneOf"));
}

void grammar_schema(struct grammar_build *b, const json_t *schema)
{
    struct schema_reader s = {.b = b, .root = schema};

    grammar_json_init(&s.json, b);
    u64map_init(&s.rules);
    schema_call(&s, schema, "schema");
    b->root = 0;
    while (s.n_done < s.n_tasks && b->rc == 0) {
        struct schema_task t = s.tasks[s.n_done++];

        grammar_rule_set(b, t.rule, compile(&s, t.schema));
    }
    free(s.tasks);
    u64map_release(&s.rules);
}
