/*
 * json_in - request bodies. jansson 2.14 parses by recursion and limits the depth at 2048 by
 * itself; a scan in front of it brings that down to what requests need, without any recursion.
 */
#include "server/json_in.h"

#include "server/api_error.h"

#include <math.h>
#include <string.h>

#define PARSE_FLAGS (JSON_REJECT_DUPLICATES | JSON_DECODE_ANY | JSON_ALLOW_NUL)
#define EXACT_INT   9007199254740992.0 /* 2^53: below it a double holds every integer */

/* True when brackets outside strings nest deeper than max_depth. */
static bool is_too_deep(const char *s, size_t len, int max_depth)
{
    int depth = 0;
    bool in_string = false;

    for (size_t i = 0; i < len; i++) {
        char c = s[i];

        if (in_string) {
            if (c == '\\')
                i++;
            else if (c == '"')
                in_string = false;
        } else if (c == '"') {
            in_string = true;
        } else if (c == '[' || c == '{') {
            if (++depth > max_depth)
                return true;
        } else if (c == ']' || c == '}') {
            depth--;
        }
    }
    return false;
}

int json_in_parse(json_t **root, const char *body, size_t len, int max_depth, struct api_error *e)
{
    json_error_t je;
    json_t *v;

    if (len == 0)
        return api_error_set(e, 400, NULL, NULL, "The request body is empty; it must be JSON.");
    if (is_too_deep(body, len, max_depth))
        return api_error_set(e, 400, NULL, NULL, "The body nests deeper than %d levels.",
                             max_depth);
    v = json_loadb(body, len, PARSE_FLAGS, &je);
    /* Integers beyond 64 bits are no fault of fields that nobody reads. */
    if (!v && json_error_code(&je) == json_error_numeric_overflow)
        v = json_loadb(body, len, PARSE_FLAGS | JSON_DECODE_INT_AS_REAL, &je);
    if (!v)
        return api_error_set(e, 400, NULL, NULL,
                             "The body is not valid JSON: %s (line %d, column %d).", je.text,
                             je.line, je.column);
    if (!json_is_object(v)) {
        api_error_set(e, 400, NULL, NULL, "The body must be a JSON object, not %s.",
                      json_in_kind(v));
        json_decref(v);
        return ERR_INVALID;
    }
    *root = v;
    return 0;
}

bool json_in_int(const json_t *v, int64_t *out)
{
    double d;

    if (json_is_integer(v)) {
        *out = json_integer_value(v);
        return true;
    }
    if (!json_is_real(v))
        return false;
    d = json_real_value(v);
    if (d != floor(d) || fabs(d) > EXACT_INT)
        return false;
    *out = (int64_t)d;
    return true;
}

const char *json_in_word(const json_t *v)
{
    const char *s = json_string_value(v);

    return s && strlen(s) == json_string_length(v) ? s : NULL;
}

const char *json_in_kind(const json_t *v)
{
    switch (json_typeof(v)) {
    case JSON_OBJECT:
        return "an object";
    case JSON_ARRAY:
        return "an array";
    case JSON_STRING:
        return "a string";
    case JSON_INTEGER:
        return "an integer";
    case JSON_REAL:
        return "a number";
    case JSON_NULL:
        return "null";
    default:
        return "a boolean";
    }
}
