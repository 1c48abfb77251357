/*
 * openai_prompt - the parts of a body that become the model's input: the four forms of a prompt,
 * chat messages, token lists. A part of openai_params, split by size.
 */
#include "server/openai_params.h"

#include "base/arena.h"
#include "base/strbuf.h"
#include "server/api_error.h"
#include "server/json_in.h"

#include <string.h>

int openai_refuse_no_room(struct api_error *e)
{
    return api_error_set(e, 400, NULL, NULL, "The request needs more memory than one may have.");
}

int openai_read_ids(struct openai_reader *r, const char *name, const json_t *v, int32_t **ids,
                    int *n_ids)
{
    size_t n = json_array_size(v);
    int32_t *out;

    if (!json_is_array(v))
        return api_error_set(r->e, 400, name, NULL, "'%s' must be an array of token ids, not %s.",
                             name, json_in_kind(v));
    out = arena_array(r->arena, n + 1, sizeof(*out));
    if (!out)
        return openai_refuse_no_room(r->e);
    for (size_t i = 0; i < n; i++) {
        const json_t *item = json_array_get(v, i);
        int64_t id;

        if (!json_in_int(item, &id))
            return api_error_set(r->e, 400, name, NULL, "'%s' mixes token ids with %s (item %zu).",
                                 name, json_in_kind(item), i);
        if (id < 0 || id >= r->limits->vocab_size)
            return api_error_set(r->e, 400, name, NULL,
                                 "'%s': token id %lld is outside the vocabulary (0 to %d).", name,
                                 (long long)id, r->limits->vocab_size - 1);
        out[i] = (int32_t)id;
    }
    *ids = out;
    *n_ids = (int)n;
    return 0;
}

static int read_one_prompt(struct openai_reader *r, const char *name, const json_t *v,
                           struct openai_prompt *out)
{
    if (json_is_null(v)) {
        out->text = ""; /* the beginning of a document, as the API has it */
        return 0;
    }
    if (r->api == API_EMBEDDINGS && json_is_string(v) && json_string_length(v) == 0)
        return api_error_set(r->e, 400, name, NULL, "'%s' must not be an empty string.", name);
    if (json_is_string(v)) {
        if (!json_in_word(v))
            return openai_refuse_nul(r->e, name);
        out->text = json_string_value(v);
        out->text_len = json_string_length(v);
        return 0;
    }
    if (json_array_size(v) == 0)
        return api_error_set(r->e, 400, name, NULL, "'%s' holds an empty token array.", name);
    return openai_read_ids(r, name, v, &out->ids, &out->n_ids);
}

int openai_read_prompt(struct openai_reader *r, const char *name, const json_t *v)
{
    const json_t *first = json_array_get(v, 0);
    bool is_batch = first && !json_is_number(first);
    size_t n = is_batch ? json_array_size(v) : 1;
    struct openai_prompt *prompts;
    int most;

    if (r->api == API_TOKENIZE && !json_is_string(v))
        return api_error_set(r->e, 400, name, NULL, "'%s' must be one string, not %s.", name,
                             json_in_kind(v));
    if (!json_is_string(v) && !json_is_array(v) && !json_is_null(v))
        return api_error_set(
            r->e, 400, name, NULL,
            "'%s' must be a string, an array of strings, an array of token ids, or "
            "an array of token arrays, not %s.",
            name, json_in_kind(v));
    if (json_is_array(v) && !first)
        return api_error_set(r->e, 400, name, NULL, "'%s' must not be an empty array.", name);
    most = r->api == API_EMBEDDINGS ? r->limits->max_inputs : r->limits->max_prompts;
    if (n > (size_t)most)
        return api_error_set(r->e, 400, name, NULL, "'%s' holds %zu prompts; at most %d.", name, n,
                             most);
    prompts = arena_array(r->arena, n, sizeof(*prompts));
    if (!prompts)
        return openai_refuse_no_room(r->e);
    for (size_t i = 0; i < n; i++) {
        const json_t *item = is_batch ? json_array_get(v, i) : v;

        if (is_batch && !json_is_string(item) && !json_is_array(item))
            return api_error_set(r->e, 400, name, NULL,
                                 "'%s': item %zu is %s; want strings or token arrays.", name, i,
                                 json_in_kind(item));
        if (is_batch && json_typeof(item) != json_typeof(first))
            return api_error_set(r->e, 400, name, NULL,
                                 "'%s' mixes strings with token arrays (item %zu).", name, i);
        if (read_one_prompt(r, name, item, &prompts[i]) < 0)
            return ERR_INVALID;
    }
    r->out->prompts = prompts;
    r->out->n_prompts = (int)n;
    return 0;
}

/* Text parts, joined by a newline as vLLM joins them for templates that want a string. */
static int read_parts(struct openai_reader *r, const json_t *parts, struct engine_message *out)
{
    struct strbuf text = STRBUF_INIT;
    int rc = 0;

    for (size_t i = 0; i < json_array_size(parts); i++) {
        const json_t *part = json_array_get(parts, i);
        const char *type = json_in_word(json_object_get(part, "type"));
        const json_t *body = json_object_get(part, "text");

        if (!type || strcmp(type, "text") || !json_is_string(body)) {
            rc = api_error_set(r->e, 400, "messages", NULL,
                               "Content part %zu of type '%.40s' is not supported: only text is.",
                               i, type ? type : "(none)");
            goto out;
        }
        if (!json_in_word(body)) {
            rc = openai_refuse_nul(r->e, "messages");
            goto out;
        }
        if (i > 0)
            strbuf_addch(&text, '\n');
        strbuf_add(&text, json_string_value(body), json_string_length(body));
    }
    out->content = text.failed ? NULL : arena_strndup(r->arena, text.buf, text.len);
    out->content_len = text.len;
    if (!out->content)
        rc = openai_refuse_no_room(r->e);
out:
    strbuf_release(&text);
    return rc;
}

/* The role as templates know it; NULL for one that the API does not have. */
static const char *known_role(const char *role)
{
    static const char *const roles[] = {"system", "user", "assistant", "tool", "function"};

    if (!role)
        return NULL;
    if (!strcmp(role, "developer"))
        return "system"; /* the newer name of the same thing */
    for (size_t i = 0; i < sizeof(roles) / sizeof(roles[0]); i++) {
        if (!strcmp(role, roles[i]))
            return roles[i];
    }
    return NULL;
}

static int read_message(struct openai_reader *r, size_t i, const json_t *v,
                        struct engine_message *out)
{
    const char *role = json_in_word(json_object_get(v, "role"));
    const json_t *content = json_object_get(v, "content");
    const json_t *call = json_object_get(v, "function_call");

    if (!json_is_object(v))
        return api_error_set(r->e, 400, "messages", NULL, "Message %zu is %s, not an object.", i,
                             json_in_kind(v));
    out->role = known_role(role);
    if (!out->role)
        return api_error_set(r->e, 400, "messages", NULL,
                             "Message %zu has the unknown role '%.40s'.", i, role ? role : "");
    if (call && !json_is_null(call))
        return api_error_set(r->e, 400, "messages", "unsupported_parameter",
                             "Message %zu holds a function_call; this server knows tool_calls.", i);
    if (openai_read_calls(r, i, v, out) < 0)
        return ERR_INVALID;
    if (json_is_string(content)) {
        if (!json_in_word(content))
            return openai_refuse_nul(r->e, "messages");
        out->content = json_string_value(content);
        out->content_len = json_string_length(content);
        return 0;
    }
    if (json_is_array(content))
        return read_parts(r, content, out);
    if ((!content || json_is_null(content)) && !strcmp(out->role, "assistant")) {
        out->content = ""; /* templates join texts */
        return 0;
    }
    return api_error_set(r->e, 400, "messages", NULL,
                         "The content of message %zu must be a string or an array of text parts, "
                         "not %s.",
                         i, content ? json_in_kind(content) : "absent");
}

int openai_read_messages(struct openai_reader *r, const char *name, const json_t *v)
{
    size_t n = json_array_size(v);
    struct engine_message *messages;

    if (!json_is_array(v))
        return api_error_set(r->e, 400, name, NULL, "'%s' must be an array, not %s.", name,
                             json_in_kind(v));
    if (n == 0 || n > OPENAI_MAX_MESSAGES)
        return api_error_set(r->e, 400, name, NULL, "'%s' must hold 1 to %d messages, not %zu.",
                             name, OPENAI_MAX_MESSAGES, n);
    messages = arena_array(r->arena, n, sizeof(*messages));
    if (!messages)
        return openai_refuse_no_room(r->e);
    for (size_t i = 0; i < n; i++) {
        if (read_message(r, i, json_array_get(v, i), &messages[i]) < 0)
            return ERR_INVALID;
    }
    r->out->messages = messages;
    r->out->n_messages = (int)n;
    return 0;
}

int openai_read_tokens(struct openai_reader *r, const char *name, const json_t *v)
{
    return openai_read_ids(r, name, v, &r->out->tokens, &r->out->n_tokens);
}
