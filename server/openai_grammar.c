/*
 * openai_grammar - the fields that say what an answer must look like, under all their names:
 * response_format of OpenAI, structured_outputs and the older guided_* of vLLM, json_schema and
 * grammar of llama.cpp. A part of openai_params, split by size.
 */
#include "server/openai_params.h"

#include "base/arena.h"
#include "server/api_error.h"
#include "server/json_in.h"

#include <stdlib.h>
#include <string.h>

#define MAX_NAME 64

/* Sets the grammar; two of them cannot hold together. */
static int set_grammar(struct openai_reader *r, const char *name, enum engine_grammar_kind kind,
                       const char *text, size_t len)
{
    struct openai_grammar *g = &r->out->grammar;

    if (memchr(text, '\0', len))
        return api_error_set(r->e, 400, name, NULL, "'%s' must not hold the character U+0000.",
                             name);
    if (g->field)
        return api_error_set(r->e, 400, name, NULL, "'%s' and '%s' cannot both be given.", g->field,
                             name);
    *g = (struct openai_grammar){.field = name, .kind = kind, .text = text, .len = len};
    return 0;
}

int openai_set_schema(struct openai_reader *r, const char *name, const json_t *schema)
{
    char *text = json_dumps(schema, JSON_COMPACT | JSON_ENCODE_ANY);
    size_t len = text ? strlen(text) : 0;
    char *copy = text ? arena_strndup(r->arena, text, len) : NULL;

    free(text);
    if (!copy)
        return openai_refuse_no_room(r->e);
    return set_grammar(r, name, ENGINE_GRAMMAR_JSON_SCHEMA, copy, len);
}

/* A schema, or its text. */
int openai_read_schema(struct openai_reader *r, const char *name, const json_t *v)
{
    if (json_is_string(v))
        return set_grammar(r, name, ENGINE_GRAMMAR_JSON_SCHEMA, json_string_value(v),
                           json_string_length(v));
    if (!json_is_object(v) && !json_is_boolean(v))
        return api_error_set(r->e, 400, name, NULL, "'%s' must be a JSON schema, not %s.", name,
                             json_in_kind(v));
    return openai_set_schema(r, name, v);
}

static int read_text(struct openai_reader *r, const char *name, const json_t *v,
                     enum engine_grammar_kind kind)
{
    if (!json_is_string(v) || json_string_length(v) == 0)
        return api_error_set(r->e, 400, name, NULL, "'%s' must be a string that is not empty.",
                             name);
    return set_grammar(r, name, kind, json_string_value(v), json_string_length(v));
}

int openai_read_regex(struct openai_reader *r, const char *name, const json_t *v)
{
    return read_text(r, name, v, ENGINE_GRAMMAR_REGEX);
}

int openai_read_ebnf(struct openai_reader *r, const char *name, const json_t *v)
{
    return read_text(r, name, v, ENGINE_GRAMMAR_EBNF);
}

int openai_read_choice(struct openai_reader *r, const char *name, const json_t *v)
{
    int rc;

    if (!json_is_array(v) || json_array_size(v) == 0)
        return api_error_set(r->e, 400, name, NULL, "'%s' must be an array of strings.", name);
    rc = openai_set_schema(r, name, v);
    r->out->grammar.kind = ENGINE_GRAMMAR_CHOICE;
    return rc;
}

/* The name of a json_schema: letters, digits, _ and -, at most 64. */
static bool is_name(const json_t *v)
{
    const char *s = json_in_word(v);

    return s && *s && strlen(s) <= MAX_NAME &&
           strspn(s, "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789_-") ==
               strlen(s);
}

int openai_read_response_format(struct openai_reader *r, const char *name, const json_t *v)
{
    const char *type = json_in_word(json_object_get(v, "type"));
    const json_t *spec = json_object_get(v, "json_schema"), *schema;

    if (!json_is_object(v))
        return api_error_set(r->e, 400, name, NULL, "'%s' must be an object, not %s.", name,
                             json_in_kind(v));
    if (type && !strcmp(type, "text"))
        return 0;
    if (type && !strcmp(type, "json_object"))
        return set_grammar(r, name, ENGINE_GRAMMAR_JSON_OBJECT, "", 0);
    if (!type || strcmp(type, "json_schema"))
        return api_error_set(r->e, 400, "response_format.type", NULL,
                             "'response_format.type' must be \"text\", \"json_object\" or "
                             "\"json_schema\".");
    if (!json_is_object(spec) || !is_name(json_object_get(spec, "name")))
        return api_error_set(r->e, 400, "response_format.json_schema", NULL,
                             "'response_format.json_schema' must have a name of 1 to %d letters, "
                             "digits, _ or -.",
                             MAX_NAME);
    schema = json_object_get(spec, "schema");
    if (!schema || json_is_null(schema))
        return set_grammar(r, name, ENGINE_GRAMMAR_JSON_OBJECT, "", 0);
    if (!json_is_object(schema))
        return api_error_set(r->e, 400, "response_format.json_schema.schema", NULL,
                             "'response_format.json_schema.schema' must be an object, not %s.",
                             json_in_kind(schema));
    return openai_set_schema(r, name, schema);
}

int openai_read_structured(struct openai_reader *r, const char *name, const json_t *v)
{
    static const struct {
        const char *name;
        int (*read)(struct openai_reader *r, const char *name, const json_t *v);
    } kinds[] = {
        {"json", openai_read_schema},
        {"regex", openai_read_regex},
        {"choice", openai_read_choice},
        {"grammar", openai_read_ebnf},
    };
    const json_t *any = json_object_get(v, "json_object"), *tag;

    if (!json_is_object(v))
        return api_error_set(r->e, 400, name, NULL, "'%s' must be an object, not %s.", name,
                             json_in_kind(v));
    tag = json_object_get(v, "structural_tag");
    if (tag && !json_is_null(tag))
        return api_error_set(r->e, 400, "structured_outputs.structural_tag",
                             "unsupported_parameter",
                             "'structural_tag' is not supported by this server.");
    for (size_t i = 0; i < sizeof(kinds) / sizeof(kinds[0]); i++) {
        const json_t *member = json_object_get(v, kinds[i].name);

        if (member && !json_is_null(member) && kinds[i].read(r, name, member) < 0)
            return ERR_INVALID;
    }
    if (json_is_true(any) && set_grammar(r, name, ENGINE_GRAMMAR_JSON_OBJECT, "", 0) < 0)
        return ERR_INVALID;
    if (r->out->grammar.field || json_object_size(v) == 0)
        return 0;
    return api_error_set(r->e, 400, name, NULL,
                         "'%s' must have one of json, regex, choice, grammar and json_object.",
                         name);
}
