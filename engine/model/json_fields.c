/*
 * json_fields - reads the members of one JSON object with type and bounds checked. See
 * json_fields.h.
 */
#include "engine/model/json_fields.h"

#include "base/err.h"

#include <math.h>
#include <stdio.h>

void json_describe(char *buf, size_t size, const json_t *v)
{
    switch (json_typeof(v)) {
    case JSON_INTEGER:
        snprintf(buf, size, "%lld", (long long)json_integer_value(v));
        return;
    case JSON_REAL:
        snprintf(buf, size, "%g", json_real_value(v));
        return;
    case JSON_STRING:
        snprintf(buf, size, "\"%.40s\"", json_string_value(v));
        return;
    case JSON_TRUE:
        snprintf(buf, size, "true");
        return;
    case JSON_FALSE:
        snprintf(buf, size, "false");
        return;
    case JSON_NULL:
        snprintf(buf, size, "null");
        return;
    case JSON_ARRAY:
        snprintf(buf, size, "an array of %zu", json_array_size(v));
        return;
    case JSON_OBJECT:
        snprintf(buf, size, "an object");
        return;
    }
    snprintf(buf, size, "?");
}

static void refuse(struct json_fields *f, const char *key, const json_t *v, const char *want)
{
    char found[64];

    json_describe(found, sizeof(found), v);
    f->rc = err_set(f->err, ERR_PARSE, "%s: %s is %s, want %s", f->where, key, found, want);
}

/* The value under key, or NULL when it is absent, null, or something was wrong before. */
static const json_t *take(const struct json_fields *f, const char *key)
{
    const json_t *v = f->rc ? NULL : json_object_get(f->obj, key);

    return v && !json_is_null(v) ? v : NULL;
}

bool json_fields_has(const struct json_fields *f, const char *key)
{
    return json_object_get(f->obj, key) != NULL;
}

int json_fields_int(struct json_fields *f, const char *key, int lo, int hi, int fallback)
{
    const json_t *v = take(f, key);
    char want[64];

    if (!v) {
        if (fallback == JSON_FIELD_REQUIRED && !f->rc)
            f->rc =
                err_set(f->err, ERR_PARSE, "%s: %s is missing, want %d..%d", f->where, key, lo, hi);
        return fallback == JSON_FIELD_REQUIRED ? lo : fallback;
    }
    if (!json_is_integer(v) || json_integer_value(v) < lo || json_integer_value(v) > hi) {
        snprintf(want, sizeof(want), "%s%d..%d", json_is_integer(v) ? "" : "an integer in ", lo,
                 hi);
        refuse(f, key, v, want);
        return fallback == JSON_FIELD_REQUIRED ? lo : fallback;
    }
    return (int)json_integer_value(v);
}

double json_fields_num(struct json_fields *f, const char *key, double lo, double hi,
                       double fallback)
{
    const json_t *v = take(f, key);
    char want[64];

    if (!v)
        return fallback;
    if (!json_is_number(v) || !(json_number_value(v) >= lo && json_number_value(v) <= hi)) {
        snprintf(want, sizeof(want), "%s%g..%g", json_is_number(v) ? "" : "a number in ", lo, hi);
        refuse(f, key, v, want);
        return fallback;
    }
    return json_number_value(v);
}

bool json_fields_bool(struct json_fields *f, const char *key, bool fallback)
{
    const json_t *v = take(f, key);

    if (!v)
        return fallback;
    if (!json_is_boolean(v)) {
        refuse(f, key, v, "true or false");
        return fallback;
    }
    return json_is_true(v);
}

const char *json_fields_str(struct json_fields *f, const char *key, const char *fallback)
{
    const json_t *v = take(f, key);

    if (!v)
        return fallback;
    if (!json_is_string(v)) {
        refuse(f, key, v, "a string");
        return fallback;
    }
    return json_string_value(v);
}

const json_t *json_fields_obj(struct json_fields *f, const char *key)
{
    const json_t *v = take(f, key);

    if (v && !json_is_object(v)) {
        refuse(f, key, v, "an object");
        return NULL;
    }
    return v;
}

const json_t *json_fields_array(struct json_fields *f, const char *key)
{
    const json_t *v = take(f, key);

    if (v && !json_is_array(v)) {
        refuse(f, key, v, "an array");
        return NULL;
    }
    return v;
}
