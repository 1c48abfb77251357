/*
 * openai_tools - tools, tool_choice, and the calls and results that messages carry. A part of
 * openai_params, split by size.
 *
 * What must be called is a matter of grammar: "required" holds the answer to an array of calls, a
 * named tool to the arguments alone. What may be called is for the model to say, in its own format.
 */
#include "server/openai_params.h"

#include "base/arena.h"
#include "base/strbuf.h"
#include "server/api_error.h"
#include "server/json_in.h"

#include <stdlib.h>
#include <string.h>

#define MAX_TOOLS 128

static const json_t *function_of(const json_t *tool)
{
    return json_object_get(tool, "function");
}

static const char *name_of(const json_t *tool)
{
    return json_in_word(json_object_get(function_of(tool), "name"));
}

static bool is_function_name(const char *s)
{
    return s && *s && strlen(s) <= 64 &&
           strspn(s, "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789_-.") ==
               strlen(s);
}

int openai_read_tools(struct openai_reader *r, const char *name, const json_t *v)
{
    if (!json_is_array(v) || json_array_size(v) > MAX_TOOLS)
        return api_error_set(r->e, 400, name, NULL, "'%s' must be an array of at most %d tools.",
                             name, MAX_TOOLS);
    for (size_t i = 0; i < json_array_size(v); i++) {
        const json_t *tool = json_array_get(v, i);
        const json_t *parameters = json_object_get(function_of(tool), "parameters");
        const char *type = json_in_word(json_object_get(tool, "type"));

        if (!type || strcmp(type, "function"))
            return api_error_set(r->e, 400, name, NULL, "Tool %zu is not of type \"function\".", i);
        if (!is_function_name(name_of(tool)))
            return api_error_set(r->e, 400, name, NULL,
                                 "Tool %zu must have a name of 1 to 64 letters, digits, _, - or .",
                                 i);
        if (parameters && !json_is_object(parameters) && !json_is_null(parameters))
            return api_error_set(r->e, 400, name, NULL,
                                 "The parameters of tool %zu must be a JSON schema.", i);
    }
    r->out->tools = json_array_size(v) ? v : NULL;
    return 0;
}

int openai_read_tool_choice(struct openai_reader *r, const char *name, const json_t *v)
{
    static const char *const words[] = {"none", "auto", "required"};
    const char *word = json_in_word(v);

    for (int i = 0; word && i < 3; i++) {
        if (!strcmp(word, words[i])) {
            r->out->tool_choice = (enum openai_tool_choice)(TOOL_CHOICE_NONE + i);
            return 0;
        }
    }
    if (json_is_object(v) && is_function_name(name_of(v))) {
        r->out->tool_choice = TOOL_CHOICE_NAMED;
        r->out->tool_name = name_of(v);
        return 0;
    }
    return api_error_set(r->e, 400, name, NULL,
                         "'%s' must be \"none\", \"auto\", \"required\" or a function by its name.",
                         name);
}

/* Points the references of a schema that moved into $defs to where they are now. */
static void move_refs(json_t *v, const char *to)
{
    const char *key, *ref;
    json_t *member;
    size_t i;

    if (json_is_array(v)) {
        json_array_foreach(v, i, member) move_refs(member, to);
        return;
    }
    ref = json_in_word(json_object_get(v, "$ref"));
    if (ref && *ref == '#') {
        struct strbuf moved = STRBUF_INIT;

        strbuf_addf(&moved, "#/$defs/%s%s", to, ref + 1);
        json_object_set_new(v, "$ref", json_stringn(moved.buf, moved.len));
        strbuf_release(&moved);
    }
    json_object_foreach(v, key, member) move_refs(member, to);
}

/* The schema of a tool's arguments; any object without one. Owned by the caller. */
static json_t *arguments_of(const json_t *tool)
{
    const json_t *parameters = json_object_get(function_of(tool), "parameters");

    return json_is_object(parameters) && json_object_size(parameters)
               ? json_deep_copy(parameters)
               : json_pack("{s:s}", "type", "object");
}

/* [{"name": ..., "parameters": {...}}, ...] */
static json_t *calls_schema(const struct openai_params *p)
{
    json_t *defs = json_object(), *calls = json_array(), *schema;

    for (size_t i = 0; i < json_array_size(p->tools); i++) {
        const json_t *tool = json_array_get(p->tools, i);
        json_t *arguments = arguments_of(tool);
        struct strbuf name = STRBUF_INIT;
        struct strbuf ref = STRBUF_INIT;

        strbuf_addf(&name, "t%zu", i);
        strbuf_addf(&ref, "#/$defs/t%zu", i);
        move_refs(arguments, name.buf);
        json_object_set_new(defs, name.buf, arguments);
        json_array_append_new(
            calls, json_pack("{s:s, s:{s:{s:s}, s:{s:s}}, s:[s,s], s:b}", "type", "object",
                             "properties", "name", "const", name_of(tool), "parameters", "$ref",
                             ref.buf, "required", "name", "parameters", "additionalProperties", 0));
        strbuf_release(&name);
        strbuf_release(&ref);
    }
    schema = json_pack("{s:s, s:i, s:{s:o}, s:o}", "type", "array", "minItems", 1, "items", "anyOf",
                       calls, "$defs", defs);
    if (schema && !p->parallel_tools)
        json_object_set_new(schema, "maxItems", json_integer(1));
    return schema;
}

static const json_t *tool_named(const struct openai_params *p, const char *name)
{
    for (size_t i = 0; i < json_array_size(p->tools); i++) {
        if (!strcmp(name_of(json_array_get(p->tools, i)), name))
            return json_array_get(p->tools, i);
    }
    return NULL;
}

int openai_check_tools(struct openai_reader *r)
{
    struct openai_params *p = r->out;
    const json_t *named = NULL;
    json_t *schema;
    int rc;

    if (!p->tools && p->tool_choice > TOOL_CHOICE_AUTO)
        return api_error_set(r->e, 400, "tool_choice", NULL,
                             "'tool_choice' asks for a call, but there are no 'tools'.");
    if (!p->tools || p->tool_choice == TOOL_CHOICE_NONE) {
        p->tools = NULL; /* the model is not told of them */
        p->tool_choice = TOOL_CHOICE_NONE;
        return 0;
    }
    if (p->tool_choice == TOOL_CHOICE_ABSENT)
        p->tool_choice = TOOL_CHOICE_AUTO;
    if (p->tool_choice == TOOL_CHOICE_AUTO)
        return 0;
    if (p->tool_choice == TOOL_CHOICE_NAMED) {
        named = tool_named(p, p->tool_name);
        if (!named)
            return api_error_set(r->e, 400, "tool_choice", NULL,
                                 "'tool_choice' names '%.64s', which is none of the 'tools'.",
                                 p->tool_name);
    }
    schema = named ? arguments_of(named) : calls_schema(p);
    if (!schema)
        return openai_refuse_no_room(r->e);
    rc = openai_set_schema(r, "tool_choice", schema);
    json_decref(schema);
    return rc;
}

/* A call as templates want it: its arguments parsed, where they are JSON. */
static json_t *call_for_template(const json_t *call)
{
    json_t *copy = json_deep_copy(call);
    json_t *function = json_object_get(copy, "function");
    const char *text = json_in_word(json_object_get(function, "arguments"));
    json_t *parsed = text ? json_loads(text, JSON_REJECT_DUPLICATES, NULL) : NULL;

    if (json_is_object(parsed))
        json_object_set(function, "arguments", parsed);
    json_decref(parsed);
    return copy;
}

/* Ids and types that are left out are no news to a template. */
static bool is_call(const json_t *call)
{
    const json_t *id = json_object_get(call, "id"), *type = json_object_get(call, "type");

    if (id && !json_is_null(id) && !json_is_string(id))
        return false;
    if (type && !json_is_null(type) &&
        (!json_in_word(type) || strcmp(json_in_word(type), "function")))
        return false;
    return name_of(call) && json_is_string(json_object_get(function_of(call), "arguments"));
}

int openai_read_calls(struct openai_reader *r, size_t i, const json_t *message,
                      struct engine_message *out)
{
    const json_t *calls = json_object_get(message, "tool_calls");
    static const char *const names[] = {"tool_call_id", "name"};
    json_t *extra = json_object(), *list = json_array();
    char *text = NULL;
    int rc = 0;

    if (calls && !json_is_array(calls) && !json_is_null(calls))
        rc = api_error_set(r->e, 400, "messages", NULL,
                           "The tool_calls of message %zu must be an array, not %s.", i,
                           json_in_kind(calls));
    for (size_t k = 0; k < json_array_size(calls) && rc == 0; k++) {
        const json_t *call = json_array_get(calls, k);

        if (!is_call(call))
            rc = api_error_set(r->e, 400, "messages", NULL,
                               "Tool call %zu of message %zu must be of type \"function\", with an "
                               "id, and a function with a name and arguments, all strings.",
                               k, i);
        else
            json_array_append_new(list, call_for_template(call));
    }
    if (json_array_size(list))
        json_object_set(extra, "tool_calls", list);
    for (int k = 0; k < 2; k++) {
        const json_t *v = json_object_get(message, names[k]);

        if (json_is_string(v))
            json_object_set(extra, names[k], (json_t *)v);
        else if (v && !json_is_null(v) && rc == 0)
            rc = api_error_set(r->e, 400, "messages", NULL,
                               "The %s of message %zu must be a string, not %s.", names[k], i,
                               json_in_kind(v));
    }
    if (rc == 0 && json_object_size(extra)) {
        text = json_dumps(extra, JSON_COMPACT);
        out->extra = text ? arena_strndup(r->arena, text, strlen(text)) : NULL;
        if (!out->extra)
            rc = openai_refuse_no_room(r->e);
    }
    free(text);
    json_decref(list);
    json_decref(extra);
    return rc;
}
