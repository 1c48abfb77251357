/*
 * component - reading the members of tokenizer.json's components. See component.h.
 */
#include "engine/tokenizer/component.h"

#include "base/err.h"
#include "engine/tokenizer/split_regex.h"

#include <string.h>

const char *component_type(const json_t *step)
{
    return json_string_value(json_object_get(step, "type"));
}

/* A list that is being walked. */
struct level {
    const json_t *list;
    size_t next;
};

int component_flatten(const json_t **steps, const json_t *json, const char *list, const char *kind,
                      struct err *err)
{
    struct level levels[COMPONENT_MAX_DEPTH];
    int depth = 0, n = 0;

    if (!json || json_is_null(json))
        return 0;
    for (;;) {
        const char *type = component_type(json);

        if (!json_is_object(json) || !type)
            return err_set(err, ERR_PARSE, "%s: not an object with a type", kind);
        if (strcmp(type, "Sequence") == 0) {
            const json_t *items = json_object_get(json, list);

            if (!json_is_array(items))
                return err_set(err, ERR_PARSE, "%s: a Sequence without a list '%s'", kind, list);
            if (depth == COMPONENT_MAX_DEPTH)
                return err_set(err, ERR_UNSUPPORTED, "%s: Sequences nested deeper than %d", kind,
                               COMPONENT_MAX_DEPTH);
            levels[depth++] = (struct level){items, 0};
        } else {
            if (n == COMPONENT_MAX_STEPS)
                return err_set(err, ERR_UNSUPPORTED, "%s: more than %d steps", kind,
                               COMPONENT_MAX_STEPS);
            steps[n++] = json;
        }
        while (depth && levels[depth - 1].next == json_array_size(levels[depth - 1].list))
            depth--;
        if (!depth)
            return n;
        json = json_array_get(levels[depth - 1].list, levels[depth - 1].next++);
    }
}

static int wrong_type(const json_t *json, const char *key, const char *want, struct err *err)
{
    const char *type = component_type(json);

    return err_set(err, ERR_PARSE, "%s: %s is not %s", type ? type : "tokenizer", key, want);
}

int component_bool(bool *out, const json_t *json, const char *key, bool otherwise, struct err *err)
{
    const json_t *v = json_object_get(json, key);

    *out = otherwise;
    if (!v || json_is_null(v))
        return 0;
    if (!json_is_boolean(v))
        return wrong_type(json, key, "true or false", err);
    *out = json_is_true(v);
    return 0;
}

int component_int(int64_t *out, const json_t *json, const char *key, int64_t otherwise,
                  struct err *err)
{
    const json_t *v = json_object_get(json, key);

    *out = otherwise;
    if (!v || json_is_null(v))
        return 0;
    if (!json_is_integer(v))
        return wrong_type(json, key, "an integer", err);
    *out = json_integer_value(v);
    return 0;
}

int component_string(const char **out, size_t *len, const json_t *json, const char *key,
                     struct err *err)
{
    const json_t *v = json_object_get(json, key);

    *out = NULL;
    *len = 0;
    if (!v || json_is_null(v))
        return 0;
    if (!json_is_string(v))
        return wrong_type(json, key, "a string", err);
    *out = json_string_value(v);
    *len = json_string_length(v);
    return 0;
}

int component_pattern(struct split_regex **out, const json_t *json, struct err *err)
{
    const json_t *pattern = json_object_get(json, "pattern");
    const char *text;
    size_t len;
    int rc;

    rc = component_string(&text, &len, pattern, "String", err);
    if (rc < 0)
        return rc;
    if (text)
        return split_regex_new_literal(out, text, len, err);
    rc = component_string(&text, &len, pattern, "Regex", err);
    if (rc < 0)
        return rc;
    if (!text)
        return wrong_type(json, "pattern", "a String or a Regex", err);
    return split_regex_new(out, text, len, err);
}

int component_unknown(const char *kind, const char *type, struct err *err)
{
    return err_set(err, ERR_UNSUPPORTED, "%s of type %.64s is not supported", kind, type);
}
