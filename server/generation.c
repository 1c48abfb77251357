/*
 * generation - from a checked body to engine requests, and from their events to an answer.
 */
#include "server/generation.h"

#include "base/check.h"
#include "config/config.h"
#include "engine/engine.h"
#include "server/access.h"
#include "server/engine_bridge.h"
#include "server/exchange.h"
#include "server/generation_embed.h"
#include "server/generation_prompt.h"
#include "server/generation_write.h"
#include "server/http_server.h"
#include "server/request_trace.h"

#include <math.h>
#include <stdlib.h>

#define GENERATION_MAGIC  0x47454e45u
#define INLINE_BODY_BYTES 16384 /* parsed and tokenized within a ms; more goes to the pool */
#define ARENA_BASE_BYTES  (1 << 20)

/* Life */

static void generation_free(struct generation *g)
{
    engine_bridge_remove(g->server->bridge, g);
    request_trace_unref(g->trace);
    for (int i = 0; g->choices && i < g->n_choices; i++) {
        strbuf_release(&g->choices[i].text);
        strbuf_release(&g->choices[i].token_ids);
        strbuf_release(&g->choices[i].prompt_logprobs);
        tool_calls_release(&g->choices[i].tools);
        logprob_list_release(&g->choices[i].logprobs);
    }
    for (int i = 0; g->prompts && i < g->n_prompts; i++) {
        if (g->prompts[i].is_malloced)
            free(g->prompts[i].ids);
        strbuf_release(&g->prompts[i].echo);
        strbuf_release(&g->prompts[i].ids_text);
    }
    engine_grammar_free(g->grammar);
    for (int i = 0; i < g->n_bad_words; i++)
        free((void *)g->bad_words[i].ids);
    strbuf_release(&g->head);
    strbuf_release(&g->raw);
    json_decref(g->body);
    arena_release(&g->arena);
    g->magic = 0;
    free(g);
}

/* Frees it when neither the client, the engine nor the pool knows it any more. */
static void free_if_unused(struct generation *g)
{
    if (!g->exchange && !g->is_working && g->n_done == g->n_submitted)
        generation_free(g);
}

static void park(struct generation *g, bool parked)
{
    int left = g->n_choices - g->n_submitted;

    if (g->is_parked != parked)
        g->server->metrics.n_parked += parked ? left : -g->n_parked_choices;
    g->n_parked_choices = parked ? left : 0;
    g->is_parked = parked;
}

static void cancel_choices(struct generation *g)
{
    park(g, false);
    for (int i = 0; i < g->n_submitted; i++) {
        if (!g->choices[i].is_done)
            engine_cancel(g->server->engine, g->choices[i].engine_id);
    }
}

static const char *finish_word(enum finish_reason reason)
{
    static const char *const words[] = {"-", "stop", "length", "abort", "error"};

    return words[reason];
}

static void detach(struct generation *g)
{
    if (!g->exchange)
        return;
    g->exchange->generation = NULL;
    g->exchange->prompt_tokens = g->usage.prompt_tokens;
    g->exchange->completion_tokens = g->usage.completion_tokens;
    if (g->n_choices > 0)
        g->exchange->finish = finish_word(g->choices[0].finish);
    request_trace_add_generation(g->trace, g);
    g->exchange = NULL;
}

/* Ends the exchange with an error, in whichever form it can still take. */
static void tell_error(struct generation *g, const struct api_error *e)
{
    struct exchange *ex = g->exchange;

    if (!ex)
        return;
    detach(g);
    if (ex->state <= EXCHANGE_WAITING) {
        exchange_reply_error(ex, e);
    } else {
        generation_write_error(exchange_stream(ex), e);
        exchange_stream_end(ex);
    }
}

static void fail(struct generation *g)
{
    tell_error(g, &g->error);
    cancel_choices(g);
}

void generation_abandon(struct generation *g)
{
    CHECK(g->magic == GENERATION_MAGIC);
    detach(g);
    cancel_choices(g);
    free_if_unused(g);
}

/* *e is not g->error, which may be the pool's to write. */
void generation_refuse(struct generation *g, const struct api_error *e)
{
    CHECK(g->magic == GENERATION_MAGIC);
    tell_error(g, e);
    cancel_choices(g);
    free_if_unused(g);
}

void generation_stop(struct generation *g)
{
    struct api_error e = {0};

    api_error_set(&e, 503, NULL, "shutting_down", "The server is shutting down.");
    generation_refuse(g, &e);
}

bool generation_streams(const struct generation *g)
{
    return !g->is_working && g->params.stream;
}

/* Choices */

/* How calls of tools will be written in the answer. */
static enum tool_format tool_format(const struct generation *g)
{
    switch (g->params.tool_choice) {
    case TOOL_CHOICE_NAMED:
        return TOOLS_ARGUMENTS;
    case TOOL_CHOICE_REQUIRED:
        return TOOLS_ARRAY;
    case TOOL_CHOICE_AUTO:
        break;
    default:
        return TOOLS_NONE;
    }
    switch (g->server->config->tool_format) {
    case CONFIG_TOOL_FORMAT_HERMES:
        return TOOLS_HERMES;
    case CONFIG_TOOL_FORMAT_LLAMA3:
        return TOOLS_LLAMA3;
    case CONFIG_TOOL_FORMAT_MISTRAL:
        return TOOLS_MISTRAL;
    default:
        return tool_format_of_template(g->server->info->chat_template);
    }
}

static int make_choices(struct generation *g)
{
    int n = g->n_prompts * g->params.n_samples;
    enum tool_format format = tool_format(g);

    if (g->params.tool_choice == TOOL_CHOICE_AUTO && format == TOOLS_NONE)
        return api_error_set(&g->error, 400, "tools", "unsupported_parameter",
                             "The model's chat template knows no tools: ask for a call with "
                             "'tool_choice', or leave 'tools' out.");

    g->choices = arena_array(&g->arena, n, sizeof(*g->choices));
    if (!g->choices)
        return openai_refuse_no_room(&g->error);
    for (int i = 0; i < n; i++) {
        struct choice *c = &g->choices[i];

        c->generation = g;
        c->index = i;
        c->prompt_idx = i / g->params.n_samples;
        c->sample_idx = i % g->params.n_samples;
        c->stop_token = -1;
        strbuf_init(&c->text);
        strbuf_init(&c->token_ids);
        strbuf_init(&c->prompt_logprobs);
        tool_calls_init(&c->tools, format, g->params.tool_name);
        logprob_list_init(&c->logprobs, g->api == API_CHAT ? LOGPROBS_CHAT : LOGPROBS_COMPLETIONS);
    }
    g->n_choices = n;
    for (int i = 0; i < g->n_prompts; i++) {
        g->usage.prompt_tokens += g->prompts[i].n_ids;
        metrics_count_params(&g->server->metrics, g->params.n, g->prompts[i].max_tokens);
    }
    return 0;
}

/* What keeps this request's prompts apart from others': the client's salt, and its key if asked. */
static int set_salt(struct generation *g)
{
    bool by_key = g->server->config->prefix_cache_scope == CONFIG_PREFIX_CACHE_SCOPE_KEY;
    const struct api_key *key = by_key ? g->exchange->key : NULL;
    const char *salt = g->params.cache_salt;
    struct strbuf both = STRBUF_INIT;

    if (key)
        strbuf_addf(&both, "%s\n", key->id);
    if (salt)
        strbuf_addstr(&both, salt);
    if (both.len > 0 || both.failed) {
        g->cache_salt = both.failed ? NULL : arena_strndup(&g->arena, both.buf, both.len);
        if (!g->cache_salt)
            openai_refuse_no_room(&g->error);
    }
    strbuf_release(&both);
    return g->error.status ? ERR_NO_ROOM : 0;
}

static enum engine_pooling pooling(const struct generation *g)
{
    if (g->api != API_EMBEDDINGS)
        return POOLING_NONE;
    return g->server->config->embedding_pooling == CONFIG_EMBEDDING_POOLING_LAST ? POOLING_LAST
                                                                                 : POOLING_MEAN;
}

static int submit_one(struct generation *g, struct choice *c, struct err *err)
{
    struct generation_prompt *p = &g->prompts[c->prompt_idx];
    struct engine_request req = {.prompt = p->ids,
                                 .n_prompt = p->n_ids,
                                 .pooling = pooling(g),
                                 .sampling = g->params.sampling,
                                 .priority = g->params.priority,
                                 .cache_salt = g->cache_salt,
                                 .user = c};

    req.sampling.max_tokens = p->max_tokens;
    req.sampling.sample_idx = (uint32_t)c->sample_idx;
    req.sampling.seed = (uint64_t)g->params.seed;
    req.sampling.grammar = g->grammar;
    req.sampling.bad_words = g->bad_words;
    req.sampling.n_bad_words = g->n_bad_words;
    if (g->params.n_samples > g->params.n && req.sampling.n_logprobs < 0)
        req.sampling.n_logprobs = 0; /* they decide who is best */
    if (req.sampling.min_tokens > p->max_tokens)
        req.sampling.min_tokens = p->max_tokens;
    return engine_submit(g->server->engine, &req, &c->engine_id, err);
}

/* Submits as much as the engine and our own share of it allow. */
static void submit(struct generation *g)
{
    int most = g->server->config->max_batch;
    struct err err = {0};

    park(g, false);
    if (g->n_submitted == 0 && g->server->metrics.n_parked > 0) {
        api_error_set(&g->error, 429, NULL, "server_is_overloaded",
                      "The queue is full, and others wait for it.");
        g->server->metrics.n_refused_parked++;
        fail(g);
        return;
    }
    while (g->n_submitted < g->n_choices && g->n_submitted - g->n_done < most) {
        int rc = submit_one(g, &g->choices[g->n_submitted], &err);

        if (rc == ERR_LIMIT && g->n_submitted > 0) {
            park(g, true); /* accepted in part: it waits for the queue to move */
            return;
        }
        if (rc < 0) {
            api_error_from_err(&g->error, &err, generation_input_name(g));
            fail(g);
            return;
        }
        g->n_submitted++;
    }
}

void generation_unpark(struct generation *g)
{
    if (!g->is_parked)
        return;
    submit(g);
    free_if_unused(g);
}

/* Events */

/* The likelier per token first; of equals the earlier. Choices without a token come last. */
static int compare_choices(const void *a, const void *b)
{
    const struct choice *x = a, *y = b;
    double lx = x->n_tokens ? x->logprob_sum / x->n_tokens : -INFINITY;
    double ly = y->n_tokens ? y->logprob_sum / y->n_tokens : -INFINITY;

    if (x->prompt_idx != y->prompt_idx)
        return x->prompt_idx < y->prompt_idx ? -1 : 1;
    if (lx != ly)
        return lx > ly ? -1 : 1;
    return x->sample_idx < y->sample_idx ? -1 : 1;
}

/* Of each prompt's best_of choices the n best stay, and get their index in the answer. */
static void pick_best(struct generation *g)
{
    int n = g->params.n, n_samples = g->params.n_samples;

    if (n_samples == n)
        return;
    qsort(g->choices, (size_t)g->n_choices, sizeof(*g->choices), compare_choices);
    for (int i = 0; i < g->n_choices; i++)
        g->choices[i].index = i % n_samples < n ? i / n_samples * n + i % n_samples : -1;
}

static void finish(struct generation *g)
{
    struct exchange *ex = g->exchange;
    struct strbuf body = STRBUF_INIT;
    int longest = 0;

    for (int i = 0; i < g->n_choices; i++)
        longest = g->choices[i].n_tokens > longest ? g->choices[i].n_tokens : longest;
    metrics_count_longest(&g->server->metrics, longest);
    detach(g);
    if (g->params.stream) {
        generation_write_stream_end(g, exchange_stream(ex));
        exchange_stream_end(ex);
    } else {
        pick_best(g);
        if (g->api == API_EMBEDDINGS)
            generation_write_embeddings(g, &body);
        else
            generation_write_body(g, &body);
        exchange_reply_json(ex, 200, &body);
    }
}

static void note_end(struct generation *g, struct choice *c, const struct engine_event *ev)
{
    c->is_done = true;
    c->finish = ev->finish;
    g->n_done++;
    request_trace_add_choice(g->trace, c, ev);
    if (ev->finish == FINISH_CANCELED && g->exchange)
        api_error_set(&g->error, 503, NULL, "shutting_down", "The server is shutting down.");
    if (ev->finish == FINISH_ERROR && ev->start_ns == 0)
        api_error_set(&g->error, 429, NULL, "server_is_overloaded", "%s",
                      ev->error ? ev->error : "The request waited too long for a seat.");
    else if (ev->finish == FINISH_ERROR)
        api_error_set(&g->error, 500, NULL, NULL, "%s",
                      ev->error ? ev->error : "The generation failed.");
}

static void stream_piece(struct choice *c, const struct engine_event *ev)
{
    struct exchange *ex = c->generation->exchange;

    generation_add_event(c, ev);
    if (!generation_has_chunk(c))
        return;
    generation_write_chunks(c, exchange_stream(ex));
    exchange_stream_flush(ex);
}

/*
 * Each token is an SSE event of its own, so that what a client sees does not depend on how many had
 * come when the loop got to look. Those that wait leave in one send.
 */
static void stream_event(struct choice *c, const struct engine_event *ev)
{
    struct openai_usage *usage = &c->generation->usage;
    int64_t n_completion = usage->completion_tokens;
    int n = ev->n_tokens > 1 ? ev->n_tokens : 1;
    size_t from = 0;

    for (int i = 0; i < n; i++) {
        bool is_last = i + 1 == n;
        size_t to = is_last ? ev->text_len : (size_t)ev->tokens[i + 1].text_at;
        struct engine_event piece = *ev;

        CHECK(from <= to);
        piece.text += from;
        piece.text_len = to - from;
        piece.tokens += i;
        piece.n_tokens = ev->n_tokens > 1 ? 1 : ev->n_tokens;
        if (i > 0)
            piece.prompt_tokens = NULL;
        if (!is_last) {
            piece.finish = FINISH_NONE;
            piece.stop_token = -1;
            piece.stop_string = NULL;
        }
        usage->completion_tokens = n_completion - (n - 1 - i);
        stream_piece(c, &piece);
        from = to;
    }
}

void generation_take_event(const struct engine_event *ev)
{
    struct choice *c = ev->user;
    struct generation *g = c->generation;

    CHECK(g->magic == GENERATION_MAGIC);
    metrics_count_event(&g->server->metrics, ev, c->last_token_ns);
    if (ev->n_tokens > 0)
        c->last_token_ns = ev->last_token_ns;
    if (g->exchange && !g->exchange->ttft_us && ev->first_token_ns)
        g->exchange->ttft_us = (ev->first_token_ns - g->exchange->began_ns) / 1000;
    g->usage.completion_tokens += ev->n_completion_tokens - c->n_tokens;
    c->n_tokens = ev->n_completion_tokens;
    if (c->sample_idx == 0) {
        g->usage.cached_tokens += ev->n_cached_tokens - g->prompts[c->prompt_idx].n_cached;
        g->prompts[c->prompt_idx].n_cached = ev->n_cached_tokens;
    }
    if (ev->finish != FINISH_NONE)
        note_end(g, c, ev);
    if (ev->embedding && g->exchange)
        generation_add_embedding(c, ev->embedding, ev->n_embedding);
    if (g->error.status && g->exchange) {
        fail(g);
    } else if (g->exchange) {
        if (g->params.stream)
            stream_event(c, ev);
        else
            generation_add_event(c, ev);
        if (g->n_done == g->n_choices)
            finish(g);
        else if (c->is_done && g->n_submitted < g->n_choices)
            submit(g);
    }
    free_if_unused(g);
}

/* Start */

/* The prompts are tokens, or g->error says why not. */
static void start_choices(struct generation *g)
{
    struct strbuf body = STRBUF_INIT;
    struct exchange *ex = g->exchange;

    if (g->error.status || !ex) {
        tell_error(g, &g->error);
    } else if (g->api & (API_TOKENIZE | API_DETOKENIZE)) {
        detach(g);
        generation_write_tokens(g, &body);
        exchange_reply_json(ex, 200, &body);
    } else {
        exchange_watch(ex, g->params.stream);
        if (set_salt(g) == 0 && make_choices(g) == 0)
            submit(g);
        else
            tell_error(g, &g->error);
    }
    free_if_unused(g);
}

static void work_prepare(uv_work_t *work)
{
    struct generation *g = work->data;

    if (g->raw.len > 0)
        generation_prepare(g);
    generation_compile(g);
}

static void after_prepare(uv_work_t *work, int status)
{
    struct generation *g = work->data;

    CHECK(g->magic == GENERATION_MAGIC);
    g->is_working = false;
    if (status < 0)
        api_error_set(&g->error, 503, NULL, "shutting_down", "The server is shutting down.");
    start_choices(g);
}

/* What is left to prepare goes to the pool; false when it takes no more. */
static bool to_pool(struct generation *g)
{
    g->is_working = uv_queue_work(g->server->uv, &g->work, work_prepare, after_prepare) == 0;
    return g->is_working;
}

void generation_start(struct exchange *ex, enum openai_api api)
{
    struct generation *g = calloc(1, sizeof(*g));
    struct api_error e = {0};

    if (api & (API_COMPLETIONS | API_CHAT))
        ex->trace = request_trace_new(ex);
    if (!g)
        api_error_set(&e, 503, NULL, NULL, "The server is out of memory.");
    else if (api & (API_COMPLETIONS | API_CHAT | API_EMBEDDINGS))
        access_begin_generation(ex, &e);
    if (e.status) {
        free(g);
        exchange_reply_error(ex, &e);
        return;
    }
    g->magic = GENERATION_MAGIC;
    g->server = ex->server;
    g->api = api;
    g->exchange = ex;
    ex->generation = g;
    g->trace = request_trace_ref(ex->trace);
    g->raw = ex->body;
    strbuf_init(&ex->body);
    strbuf_init(&g->head);
    arena_init(&g->arena, 4 * (size_t)ex->server->config->max_body_bytes + ARENA_BASE_BYTES, 0);
    engine_bridge_add(g->server->bridge, g);
    g->work.data = g;
    if (g->raw.len > INLINE_BODY_BYTES && to_pool(g))
        return;
    generation_prepare(g);
    if (g->params.grammar.field && !g->error.status && to_pool(g))
        return; /* compiling may take a while */
    generation_compile(g);
    start_choices(g);
}
