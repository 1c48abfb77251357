/*
 * openai_params - the table of fields and its one validator.
 *
 * Bounds are those of the OpenAI schema, and of vLLM for its extensions. Numbers are compared as
 * doubles before they are narrowed, so no bound can be missed by rounding.
 */
#include "server/openai_params.h"

#include "base/arena.h"
#include "server/api_error.h"
#include "server/json_in.h"

#include <stddef.h>
#include <stdlib.h>
#include <string.h>

#define GEN        (API_COMPLETIONS | API_CHAT)
#define MODEL      (GEN | API_EMBEDDINGS) /* what runs the model */
#define MAX_INT    2147483647.0
#define ABOVE_0    1e-37 /* the least value of an interval that is open at 0 */
#define MIN_REPEAT 1e-5  /* a divisor; vLLM takes all above 0, the engine all above a millionth */

enum field_kind { FIELD_BOOL, FIELD_INT, FIELD_INT64, FIELD_FLOAT };

/* A field that is one value; `at` is where it goes in struct openai_params. */
struct field {
    const char *name;
    unsigned apis;
    enum field_kind kind;
    size_t at;
    double min, max;
};

#define AT(member) offsetof(struct openai_params, member)

static const struct field fields[] = {
    {"max_tokens", API_COMPLETIONS, FIELD_INT, AT(legacy_max_tokens), 0, MAX_INT},
    {"max_tokens", API_CHAT, FIELD_INT, AT(legacy_max_tokens), 1, MAX_INT},
    {"max_completion_tokens", API_CHAT, FIELD_INT, AT(max_completion_tokens), 1, MAX_INT},
    {"min_tokens", GEN, FIELD_INT, AT(sampling.min_tokens), 0, MAX_INT},
    {"temperature", GEN, FIELD_FLOAT, AT(sampling.temperature), 0, 2},
    {"top_p", GEN, FIELD_FLOAT, AT(sampling.top_p), ABOVE_0, 1},
    {"min_p", GEN, FIELD_FLOAT, AT(sampling.min_p), 0, 1},
    {"top_k", GEN, FIELD_INT, AT(top_k), -1, MAX_INT},
    {"repetition_penalty", GEN, FIELD_FLOAT, AT(sampling.repetition_penalty), MIN_REPEAT, 10},
    {"presence_penalty", GEN, FIELD_FLOAT, AT(sampling.presence_penalty), -2, 2},
    {"frequency_penalty", GEN, FIELD_FLOAT, AT(sampling.frequency_penalty), -2, 2},
    {"seed", GEN, FIELD_INT64, AT(seed), -9.3e18, 9.3e18},
    {"n", GEN, FIELD_INT, AT(n), 1, OPENAI_MAX_N},
    {"best_of", API_COMPLETIONS, FIELD_INT, AT(best_of), 0, 20},
    {"truncate_prompt_tokens", MODEL, FIELD_INT, AT(truncate_prompt), -1, MAX_INT},
    {"priority", MODEL, FIELD_INT, AT(priority), -MAX_INT - 1, MAX_INT},
    {"stream", GEN, FIELD_BOOL, AT(stream), 0, 0},
    {"echo", API_COMPLETIONS, FIELD_BOOL, AT(echo), 0, 0},
    {"logprobs", API_COMPLETIONS, FIELD_INT, AT(n_logprobs), 0, 5},
    {"logprobs", API_CHAT, FIELD_BOOL, AT(wants_logprobs), 0, 0},
    {"top_logprobs", API_CHAT, FIELD_INT, AT(n_top_logprobs), 0, ENGINE_MAX_TOP},
    {"prompt_logprobs", GEN, FIELD_INT, AT(n_prompt_logprobs), 0, ENGINE_MAX_TOP},
    {"ignore_eos", GEN, FIELD_BOOL, AT(sampling.ignore_eos), 0, 0},
    {"include_stop_str_in_output", GEN, FIELD_BOOL, AT(sampling.include_stop), 0, 0},
    {"skip_special_tokens", GEN, FIELD_BOOL, AT(sampling.skip_special), 0, 0},
    {"add_special_tokens", MODEL | API_TOKENIZE, FIELD_BOOL, AT(add_special), 0, 0},
    {"add_generation_prompt", API_CHAT | API_TOKENIZE, FIELD_BOOL, AT(add_generation_prompt), 0, 0},
    {"return_token_ids", GEN, FIELD_BOOL, AT(return_token_ids), 0, 0},
    {"return_tokens_as_token_ids", GEN, FIELD_BOOL, AT(tokens_as_ids), 0, 0},
    {"parallel_tool_calls", API_CHAT, FIELD_BOOL, AT(parallel_tools), 0, 0},
    {"normalize", API_EMBEDDINGS, FIELD_BOOL, AT(normalize), 0, 0},
    {"return_token_strs", API_TOKENIZE, FIELD_BOOL, AT(return_token_strs), 0, 0},
};

static int refuse_type(struct api_error *e, const char *name, const char *want, const json_t *v)
{
    return api_error_set(e, 400, name, NULL, "'%s' must be %s, not %s.", name, want,
                         json_in_kind(v));
}

int openai_refuse_nul(struct api_error *e, const char *name)
{
    return api_error_set(e, 400, name, NULL, "'%s' must not hold the character U+0000.", name);
}

static int refuse_range(struct api_error *e, const struct field *f, const char *what)
{
    if (f->max >= MAX_INT)
        return api_error_set(e, 400, f->name, NULL, "'%s' must be %s from %.0f to %.0f.", f->name,
                             what, f->min, f->max);
    if (f->min == ABOVE_0)
        return api_error_set(e, 400, f->name, NULL, "'%s' must be %s above 0 and at most %g.",
                             f->name, what, f->max);
    return api_error_set(e, 400, f->name, NULL, "'%s' must be %s from %g to %g.", f->name, what,
                         f->min, f->max);
}

static int read_field(struct openai_reader *r, const struct field *f, const json_t *v)
{
    char *at = (char *)r->out + f->at;
    int64_t i;
    double d;

    switch (f->kind) {
    case FIELD_BOOL:
        if (!json_is_boolean(v))
            return refuse_type(r->e, f->name, "a boolean", v);
        if (f->at == AT(add_special))
            r->out->add_special = json_is_true(v);
        else
            *(bool *)at = json_is_true(v);
        return 0;
    case FIELD_INT:
    case FIELD_INT64:
        if (!json_in_int(v, &i))
            return refuse_type(r->e, f->name, "an integer", v);
        if ((double)i < f->min || (double)i > f->max)
            return refuse_range(r->e, f, "an integer");
        if (f->kind == FIELD_INT)
            *(int *)at = (int)i;
        else
            *(int64_t *)at = i;
        return 0;
    case FIELD_FLOAT:
        if (!json_is_number(v))
            return refuse_type(r->e, f->name, "a number", v);
        d = json_number_value(v);
        if (!(d >= f->min && d <= f->max))
            return refuse_range(r->e, f, "a number");
        *(float *)at = (float)d;
        return 0;
    }
    return 0;
}

static int read_model(struct openai_reader *r, const char *name, const json_t *v)
{
    if (!json_is_string(v))
        return refuse_type(r->e, name, "a string", v);
    if (!json_in_word(v) || strcmp(json_string_value(v), r->limits->model_id))
        return api_error_set(r->e, 404, name, "model_not_found",
                             "The model '%.100s' does not exist; this server has '%s'.",
                             json_string_value(v), r->limits->model_id);
    return 0;
}

static int read_stop(struct openai_reader *r, const char *name, const json_t *v)
{
    bool is_list = json_is_array(v);
    size_t n = is_list ? json_array_size(v) : 1;
    const char **stops;

    if (!is_list && !json_is_string(v))
        return refuse_type(r->e, name, "a string or an array of strings", v);
    if (n > OPENAI_MAX_STOPS)
        return api_error_set(r->e, 400, name, NULL, "'stop' holds %zu strings; at most %d.", n,
                             OPENAI_MAX_STOPS);
    stops = arena_array(r->arena, n + 1, sizeof(*stops));
    if (!stops)
        return openai_refuse_no_room(r->e);
    for (size_t i = 0; i < n; i++) {
        const json_t *item = is_list ? json_array_get(v, i) : v;

        if (!json_is_string(item))
            return refuse_type(r->e, name, "a string or an array of strings", item);
        if (json_string_length(item) == 0)
            return api_error_set(r->e, 400, name, NULL, "A stop string must not be empty.");
        if (json_string_length(item) > OPENAI_MAX_STOP_BYTES)
            return api_error_set(r->e, 400, name, NULL, "A stop string is longer than %d bytes.",
                                 OPENAI_MAX_STOP_BYTES);
        stops[i] = json_in_word(item);
        if (!stops[i])
            return openai_refuse_nul(r->e, name);
    }
    r->out->sampling.stop = stops;
    r->out->sampling.n_stop = (int)n;
    return 0;
}

static int read_stop_ids(struct openai_reader *r, const char *name, const json_t *v)
{
    int32_t *ids;
    int n;

    if (json_is_array(v) && json_array_size(v) > ENGINE_MAX_STOP_IDS)
        return api_error_set(r->e, 400, name, NULL, "'%s' holds more than %d ids.", name,
                             ENGINE_MAX_STOP_IDS);
    if (openai_read_ids(r, name, v, &ids, &n) < 0)
        return ERR_INVALID;
    r->out->sampling.stop_ids = ids;
    r->out->sampling.n_stop_ids = n;
    return 0;
}

/* A token id as an object key: decimal digits in their shortest form. */
static bool parse_token_key(const char *s, int vocab_size, int32_t *token)
{
    int64_t v = 0;

    if (!*s || (s[0] == '0' && s[1]))
        return false;
    for (; *s; s++) {
        if (*s < '0' || *s > '9')
            return false;
        v = v * 10 + (*s - '0');
        if (v >= vocab_size)
            return false;
    }
    *token = (int32_t)v;
    return true;
}

static int read_bias(struct openai_reader *r, const char *name, const json_t *v)
{
    struct engine_bias *bias;
    const char *key;
    json_t *value;
    int n = 0;

    if (!json_is_object(v))
        return refuse_type(r->e, name, "an object", v);
    if (json_object_size(v) > OPENAI_MAX_BIAS)
        return api_error_set(r->e, 400, name, NULL, "'%s' holds more than %d tokens.", name,
                             OPENAI_MAX_BIAS);
    bias = arena_array(r->arena, json_object_size(v) + 1, sizeof(*bias));
    if (!bias)
        return openai_refuse_no_room(r->e);
    json_object_foreach((json_t *)v, key, value)
    {
        double d = json_number_value(value);

        if (!parse_token_key(key, r->limits->vocab_size, &bias[n].token))
            return api_error_set(r->e, 400, name, NULL,
                                 "'%s': key '%.40s' is not a token id below %d.", name, key,
                                 r->limits->vocab_size);
        if (!json_is_number(value) || !(d >= -100 && d <= 100))
            return api_error_set(r->e, 400, name, NULL,
                                 "'%s': the value for token %s must be a number from -100 to 100.",
                                 name, key);
        bias[n++].value = (float)d;
    }
    r->out->sampling.bias = bias;
    r->out->sampling.n_bias = n;
    return 0;
}

static int read_allowed(struct openai_reader *r, const char *name, const json_t *v)
{
    int32_t *ids;
    int n;

    if (openai_read_ids(r, name, v, &ids, &n) < 0)
        return ERR_INVALID;
    if (n == 0)
        return api_error_set(r->e, 400, name, NULL, "'%s' must not be empty.", name);
    r->out->sampling.allowed = ids;
    r->out->sampling.n_allowed = n;
    return 0;
}

static int read_bad_words(struct openai_reader *r, const char *name, const json_t *v)
{
    size_t n = json_array_size(v);

    if (!json_is_array(v))
        return refuse_type(r->e, name, "an array of strings", v);
    if (n > OPENAI_MAX_BAD_WORDS)
        return api_error_set(r->e, 400, name, NULL, "'%s' holds more than %d words.", name,
                             OPENAI_MAX_BAD_WORDS);
    r->out->bad_words = arena_array(r->arena, n + 1, sizeof(*r->out->bad_words));
    if (!r->out->bad_words)
        return openai_refuse_no_room(r->e);
    for (size_t i = 0; i < n; i++) {
        const json_t *word = json_array_get(v, i);

        if (!json_is_string(word))
            return refuse_type(r->e, name, "an array of strings", word);
        if (json_string_length(word) == 0 || json_string_length(word) > OPENAI_MAX_WORD_BYTES)
            return api_error_set(r->e, 400, name, NULL, "Word %zu of '%s' must have 1 to %d bytes.",
                                 i, name, OPENAI_MAX_WORD_BYTES);
        r->out->bad_words[i] = json_in_word(word);
        if (!r->out->bad_words[i])
            return openai_refuse_nul(r->e, name);
    }
    r->out->n_bad_words = (int)n;
    return 0;
}

static int read_stream_options(struct openai_reader *r, const char *name, const json_t *v)
{
    const json_t *usage, *continuous;

    if (!json_is_object(v))
        return refuse_type(r->e, name, "an object", v);
    r->out->has_stream_options = true;
    usage = json_object_get(v, "include_usage");
    continuous = json_object_get(v, "continuous_usage_stats");
    if (usage && !json_is_boolean(usage) && !json_is_null(usage))
        return refuse_type(r->e, "stream_options.include_usage", "a boolean", usage);
    if (continuous && !json_is_boolean(continuous) && !json_is_null(continuous))
        return refuse_type(r->e, "stream_options.continuous_usage_stats", "a boolean", continuous);
    r->out->include_usage = json_is_true(usage);
    r->out->continuous_usage = r->out->include_usage && json_is_true(continuous);
    return 0;
}

static int read_string(struct openai_reader *r, const char *name, const json_t *v)
{
    return json_is_string(v) ? 0 : refuse_type(r->e, name, "a string", v);
}

static int read_cache_salt(struct openai_reader *r, const char *name, const json_t *v)
{
    if (!json_is_string(v) || json_string_length(v) == 0)
        return refuse_type(r->e, name, "a string that is not empty", v);
    r->out->cache_salt = json_in_word(v);
    return r->out->cache_salt ? 0 : openai_refuse_nul(r->e, name);
}

static int read_encoding(struct openai_reader *r, const char *name, const json_t *v)
{
    const char *format = json_in_word(v);

    if (!format)
        return refuse_type(r->e, name, "a string", v);
    r->out->as_base64 = !strcmp(format, "base64");
    if (!r->out->as_base64 && strcmp(format, "float"))
        return api_error_set(r->e, 400, name, NULL, "'%s' must be 'float' or 'base64'.", name);
    return 0;
}

/* A prefix of hidden states is no embedding of its own: models must be trained for that. */
static int read_dimensions(struct openai_reader *r, const char *name, const json_t *v)
{
    int64_t n;

    if (!json_in_int(v, &n))
        return refuse_type(r->e, name, "an integer", v);
    if (n != r->limits->embedding_dim)
        return api_error_set(r->e, 400, name, "unsupported_value",
                             "'%s' is %lld; this model's embeddings have %d and cannot be cut.",
                             name, (long long)n, r->limits->embedding_dim);
    return 0;
}

/* Fields that are not one value. */
static const struct {
    const char *name;
    unsigned apis;
    int (*read)(struct openai_reader *r, const char *name, const json_t *v);
} readers[] = {
    {"model", ~0u, read_model},
    {"prompt", API_COMPLETIONS | API_TOKENIZE, openai_read_prompt},
    {"input", API_EMBEDDINGS, openai_read_prompt},
    {"encoding_format", API_EMBEDDINGS, read_encoding},
    {"dimensions", API_EMBEDDINGS, read_dimensions},
    {"messages", API_CHAT | API_TOKENIZE, openai_read_messages},
    {"tokens", API_DETOKENIZE, openai_read_tokens},
    {"stop", GEN, read_stop},
    {"stop_token_ids", GEN, read_stop_ids},
    {"logit_bias", GEN, read_bias},
    {"allowed_token_ids", GEN, read_allowed},
    {"bad_words", GEN, read_bad_words},
    {"stream_options", GEN, read_stream_options},
    {"user", MODEL, read_string},
    {"cache_salt", MODEL, read_cache_salt},
    {"tools", API_CHAT, openai_read_tools},
    {"tool_choice", API_CHAT, openai_read_tool_choice},
    {"response_format", GEN, openai_read_response_format},
    {"structured_outputs", GEN, openai_read_structured},
    {"guided_json", GEN, openai_read_schema},
    {"guided_regex", GEN, openai_read_regex},
    {"guided_choice", GEN, openai_read_choice},
    {"guided_grammar", GEN, openai_read_ebnf},
    {"json_schema", GEN, openai_read_schema},
    {"grammar", GEN, openai_read_ebnf},
};

static bool means_nothing(const json_t *v)
{
    return json_is_false(v) || (json_is_string(v) && json_string_length(v) == 0) ||
           (json_is_array(v) && json_array_size(v) == 0) ||
           (json_is_object(v) && json_object_size(v) == 0);
}

static bool is_none(const json_t *v)
{
    return json_in_word(v) && !strcmp(json_in_word(v), "none");
}

static bool is_only_text(const json_t *v)
{
    const char *first = json_in_word(json_array_get(v, 0));

    return json_array_size(v) == 1 && first && !strcmp(first, "text");
}

static bool is_auto_or_none(const json_t *v)
{
    return is_none(v) || (json_in_word(v) && !strcmp(json_in_word(v), "auto"));
}

/* Not built, and the answer would differ: refused, unless harmless() says that nothing is asked. */
static const struct {
    const char *name;
    unsigned apis;
    bool (*harmless)(const json_t *v);
} refused[] = {
    {"suffix", API_COMPLETIONS, means_nothing},
    {"function_call", API_CHAT, is_auto_or_none}, /* auto without functions asks for nothing */
    {"functions", API_CHAT, means_nothing},
    {"modalities", API_CHAT, is_only_text},
    {"audio", API_CHAT, means_nothing},
    {"web_search_options", API_CHAT, NULL},
    {"documents", API_CHAT, means_nothing},
    {"chat_template", API_CHAT | API_TOKENIZE, means_nothing},
    {"chat_template_kwargs", API_CHAT | API_TOKENIZE, means_nothing},
    {"continue_final_message", API_CHAT | API_TOKENIZE, means_nothing},
    {"prompt_embeds", GEN, means_nothing},
    {"use_beam_search", GEN, means_nothing},
};

static int check_refused(struct openai_reader *r, const json_t *body)
{
    for (size_t i = 0; i < sizeof(refused) / sizeof(refused[0]); i++) {
        const json_t *v = json_object_get(body, refused[i].name);

        if (!v || json_is_null(v) || !(refused[i].apis & r->api))
            continue;
        if (!refused[i].harmless || !refused[i].harmless(v))
            return api_error_set(r->e, 400, refused[i].name, "unsupported_parameter",
                                 "'%s' is not supported by this server.", refused[i].name);
    }
    return 0;
}

/* max_tokens under its two names, logprobs under their three, top_k with its two ways of "off". */
static void merge_names(struct openai_reader *r)
{
    struct openai_params *p = r->out;

    p->max_tokens = p->max_completion_tokens >= 0 ? p->max_completion_tokens : p->legacy_max_tokens;
    if (r->api == API_EMBEDDINGS)
        p->max_tokens = 0;
    if (r->api == API_COMPLETIONS)
        p->sampling.n_logprobs = p->n_logprobs;
    else if (p->wants_logprobs)
        p->sampling.n_logprobs = p->n_top_logprobs > 0 ? p->n_top_logprobs : 0;
    p->sampling.n_prompt_logprobs = p->n_prompt_logprobs;
    if (p->echo && p->n_logprobs > p->sampling.n_prompt_logprobs)
        p->sampling.n_prompt_logprobs = p->n_logprobs;
    p->sampling.top_k = p->top_k < 0 || p->top_k >= r->limits->vocab_size ? 0 : p->top_k;
}

static int check_tokens_asked(struct openai_reader *r)
{
    struct openai_params *p = r->out;

    if (p->max_tokens >= 0 && p->sampling.min_tokens > p->max_tokens)
        return api_error_set(r->e, 400, "min_tokens", NULL,
                             "'min_tokens' (%d) is above 'max_tokens' (%d).",
                             p->sampling.min_tokens, p->max_tokens);
    if (p->has_stream_options && !p->stream)
        return api_error_set(r->e, 400, "stream_options", NULL,
                             "'stream_options' is allowed only with 'stream': true.");
    if (p->n_prompt_logprobs >= 0 && p->stream)
        return api_error_set(r->e, 400, "prompt_logprobs", NULL,
                             "'prompt_logprobs' is not available with 'stream': true.");
    return 0;
}

/* Rules that take more than one field. */
static int check_together(struct openai_reader *r)
{
    struct openai_params *p = r->out;
    int most = r->limits->max_logprobs;

    p->n_samples = p->best_of > p->n ? p->best_of : p->n;
    if (r->api != API_EMBEDDINGS &&
        (int64_t)p->n_samples * (p->n_prompts ? p->n_prompts : 1) > r->limits->max_choices)
        return api_error_set(r->e, 400, p->n_prompts > r->limits->max_choices ? "prompt" : "n",
                             NULL, "%d prompts with %s = %d; this server gives at most %d choices.",
                             p->n_prompts ? p->n_prompts : 1, p->best_of > p->n ? "best_of" : "n",
                             p->n_samples, r->limits->max_choices);
    if (p->best_of > 1 && p->best_of < p->n)
        return api_error_set(r->e, 400, "best_of", NULL, "'best_of' must not be below 'n'.");
    if (p->best_of > p->n && p->stream)
        return api_error_set(
            r->e, 400, "best_of", NULL,
            "'best_of' above 'n' cannot be streamed: the best are known at the end.");
    if (p->priority != 0 && !r->limits->has_priorities)
        return api_error_set(r->e, 400, "priority", NULL,
                             "This server serves in the order of arrival: 'priority' must be 0.");
    if (p->n_top_logprobs >= 0 && !p->wants_logprobs)
        return api_error_set(r->e, 400, "top_logprobs", NULL,
                             "'top_logprobs' is allowed only with 'logprobs': true.");
    if (p->n_top_logprobs > most)
        return api_error_set(r->e, 400, "top_logprobs", NULL,
                             "'top_logprobs' is %d; this server allows at most %d.",
                             p->n_top_logprobs, most);
    if (p->n_logprobs > most || p->n_prompt_logprobs > most)
        return api_error_set(r->e, 400, p->n_logprobs > most ? "logprobs" : "prompt_logprobs", NULL,
                             "This server gives at most %d alternatives a token.", most);
    return check_tokens_asked(r);
}

static int check_required(struct openai_reader *r, const json_t *body)
{
    const char *want = NULL;

    if (r->api & MODEL && json_is_null(json_object_get(body, "model")))
        return refuse_type(r->e, "model", "a string", json_object_get(body, "model"));
    if (r->api & MODEL && !json_object_get(body, "model"))
        want = "model";
    else if (r->api == API_COMPLETIONS && json_is_null(json_object_get(body, "prompt")))
        return openai_read_prompt(r, "prompt", json_object_get(body, "prompt"));
    else if (r->api == API_COMPLETIONS && !r->out->prompts)
        want = "prompt";
    else if (r->api == API_EMBEDDINGS && !r->out->prompts)
        want = "input";
    else if (r->api == API_CHAT && !r->out->messages)
        want = "messages";
    else if (r->api == API_DETOKENIZE && !r->out->tokens)
        want = "tokens";
    else if (r->api == API_TOKENIZE && !r->out->prompts && !r->out->messages)
        want = "prompt";
    if (want)
        return api_error_set(r->e, 400, want, NULL, "'%s' is required.", want);
    return 0;
}

static void set_defaults(struct openai_params *p, const struct openai_limits *limits)
{
    memset(p, 0, sizeof(*p));
    sampling_params_init(&p->sampling);
    p->sampling.temperature = limits->temperature;
    p->sampling.top_p = limits->top_p;
    p->sampling.repetition_penalty = limits->repetition_penalty;
    p->sampling.skip_special = true;
    p->sampling.n_logprobs = -1;
    p->sampling.n_prompt_logprobs = -1;
    p->top_k = limits->top_k;
    p->n = 1;
    p->truncate_prompt = -2;
    p->parallel_tools = true;
    p->legacy_max_tokens = p->max_completion_tokens = p->max_tokens = -1;
    p->n_logprobs = p->n_top_logprobs = p->n_prompt_logprobs = -1;
    p->add_special = -1;
    p->add_generation_prompt = true;
    p->normalize = limits->normalize;
}

int openai_params_read(struct openai_params *out, enum openai_api api, const json_t *body,
                       const struct openai_limits *limits, struct arena *arena, struct api_error *e)
{
    struct openai_reader r = {.out = out, .limits = limits, .arena = arena, .e = e, .api = api};

    set_defaults(out, limits);
    if (api == API_EMBEDDINGS && !limits->embedding_dim)
        return api_error_set(e, 400, "model", "unsupported_endpoint",
                             "The model '%.100s' gives no embeddings on this server.",
                             limits->model_id);
    for (size_t i = 0; i < sizeof(readers) / sizeof(readers[0]); i++) {
        const json_t *v = json_object_get(body, readers[i].name);

        if (v && !json_is_null(v) && (readers[i].apis & api) &&
            readers[i].read(&r, readers[i].name, v) < 0)
            return ERR_INVALID;
    }
    if (check_required(&r, body) < 0)
        return ERR_INVALID;
    for (size_t i = 0; i < sizeof(fields) / sizeof(fields[0]); i++) {
        const json_t *v = json_object_get(body, fields[i].name);

        if (v && !json_is_null(v) && (fields[i].apis & api) && read_field(&r, &fields[i], v) < 0)
            return ERR_INVALID;
    }
    out->has_seed = json_is_number(json_object_get(body, "seed"));
    if (check_refused(&r, body) < 0)
        return ERR_INVALID;
    if (openai_check_tools(&r) < 0)
        return ERR_INVALID;
    merge_names(&r);
    return check_together(&r);
}
