/*
 * generation - from a checked body to engine requests, and from their events to an answer.
 */
#include "server/generation.h"

#include "base/check.h"
#include "base/clock.h"
#include "base/log.h"
#include "config/config.h"
#include "engine/engine.h"
#include "server/engine_bridge.h"
#include "server/exchange.h"
#include "server/generation_write.h"
#include "server/http_server.h"
#include "server/json_in.h"

#include <stdlib.h>
#include <string.h>
#include <sys/random.h>

#define GENERATION_MAGIC    0x47454e45u
#define INLINE_TEXT_BYTES   8192 /* tokenized within a few hundred us; more goes to the pool */
#define DEFAULT_COMPLETION  16   /* what the API prescribes for completions without max_tokens */
#define ARENA_BASE_BYTES    (1 << 20)

/* Life */

static void generation_free(struct generation *g)
{
    engine_bridge_remove(g->server->bridge, g);
    for (int i = 0; g->choices && i < g->n_choices; i++) {
        strbuf_release(&g->choices[i].text);
        strbuf_release(&g->choices[i].token_ids);
        strbuf_release(&g->choices[i].prompt_logprobs);
        logprob_list_release(&g->choices[i].logprobs);
    }
    for (int i = 0; g->prompts && i < g->n_prompts; i++) {
        if (g->prompts[i].is_malloced)
            free(g->prompts[i].ids);
        strbuf_release(&g->prompts[i].echo);
        strbuf_release(&g->prompts[i].ids_text);
    }
    strbuf_release(&g->head);
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

static void detach(struct generation *g)
{
    if (!g->exchange)
        return;
    g->exchange->generation = NULL;
    g->exchange->prompt_tokens = g->usage.prompt_tokens;
    g->exchange->completion_tokens = g->usage.completion_tokens;
    g->exchange = NULL;
}

/* Ends the exchange with g->error, in whichever form it can still take. */
static void tell_error(struct generation *g)
{
    struct exchange *ex = g->exchange;

    if (!ex)
        return;
    detach(g);
    if (ex->state <= EXCHANGE_WAITING) {
        exchange_reply_error(ex, &g->error);
    } else {
        generation_write_error(exchange_stream(ex), &g->error);
        exchange_stream_end(ex);
    }
}

static void fail(struct generation *g)
{
    tell_error(g);
    cancel_choices(g);
}

void generation_abandon(struct generation *g)
{
    CHECK(g->magic == GENERATION_MAGIC);
    detach(g);
    cancel_choices(g);
    free_if_unused(g);
}

void generation_stop(struct generation *g)
{
    CHECK(g->magic == GENERATION_MAGIC);
    api_error_set(&g->error, 503, NULL, "shutting_down", "The server is shutting down.");
    fail(g);
    free_if_unused(g);
}

bool generation_streams(const struct generation *g)
{
    return g->params.stream;
}

/* Prompts */

static int tokenize_text(struct generation *g, struct generation_prompt *p,
                         const struct openai_prompt *in, struct err *err)
{
    struct engine *e = g->server->engine;
    int rc;

    if (in->text) {
        rc = engine_tokenize(e, in->text, in->text_len, g->params.add_special != 0, true, &p->ids,
                             &p->n_ids, err);
        if (rc < 0)
            return rc;
        p->is_malloced = true;
        if (g->params.echo)
            strbuf_add(&p->echo, in->text, in->text_len);
        return 0;
    }
    p->ids = in->ids;
    p->n_ids = in->n_ids;
    if (!g->params.echo)
        return 0;
    return engine_detokenize(e, p->ids, p->n_ids, g->params.sampling.skip_special, &p->echo, err);
}

static int tokenize_chat(struct generation *g, struct generation_prompt *p, struct err *err)
{
    int rc = engine_chat_tokenize(g->server->engine, g->params.messages, g->params.n_messages,
                                  g->params.add_generation_prompt, &p->ids, &p->n_ids, NULL, err);

    p->is_malloced = rc == 0;
    return rc;
}

/* An empty prompt is BOS, where the tokenizer has one to add. */
static int fill_empty(struct generation *g, struct generation_prompt *p)
{
    int bos_id = g->server->info->bos_id;
    int32_t *ids;

    if (p->n_ids > 0)
        return 0;
    if (bos_id < 0)
        return api_error_set(&g->error, 400, g->api == API_CHAT ? "messages" : "prompt", NULL,
                             "The prompt is empty, and this model has no token to begin with.");
    ids = arena_array(&g->arena, 1, sizeof(*ids));
    if (!ids)
        return openai_refuse_no_room(&g->error);
    if (p->is_malloced)
        free(p->ids);
    ids[0] = bos_id;
    p->ids = ids;
    p->n_ids = 1;
    p->is_malloced = false;
    return 0;
}

/* Fixes max_tokens, and with it N, the length that the request's memory is planned for. */
static int fit_context(struct generation *g, struct generation_prompt *p)
{
    int most = g->server->limits.max_seq_len;
    int asked = g->params.max_tokens;
    int room = most - p->n_ids;
    int fallback = g->api == API_CHAT ? g->server->config->default_max_tokens : DEFAULT_COMPLETION;
    const char *param = g->api == API_CHAT ? "messages" : "prompt";

    if (asked < 0 && room < 1)
        return api_error_set(&g->error, 400, param, "context_length_exceeded",
                             "This model's maximum context length is %d tokens, but the prompt has "
                             "%d tokens and leaves no room for an answer.",
                             most, p->n_ids);
    if (asked >= 0 && asked > room)
        return api_error_set(&g->error, 400, param, "context_length_exceeded",
                             "This model's maximum context length is %d tokens, but %lld were "
                             "requested: %d in the prompt and %d for the answer.",
                             most, (long long)p->n_ids + asked, p->n_ids, asked);
    p->max_tokens = asked >= 0 ? asked : fallback < room ? fallback : room;
    return 0;
}

/* On the pool or on the loop: turns every prompt into tokens. Touches nothing but g. */
static int tokenize(struct generation *g)
{
    const char *param = g->api == API_CHAT ? "messages" : "prompt";

    for (int i = 0; i < g->n_prompts; i++) {
        struct generation_prompt *p = &g->prompts[i];
        struct err err = {0};
        int rc;

        if (g->api == API_CHAT)
            rc = tokenize_chat(g, p, &err);
        else
            rc = tokenize_text(g, p, &g->params.prompts[i], &err);
        if (rc < 0)
            return api_error_from_err(&g->error, &err, param);
        if (fill_empty(g, p) < 0 || fit_context(g, p) < 0)
            return ERR_INVALID;
        for (int k = 0; g->params.return_token_ids && k < p->n_ids; k++)
            openai_add_id(&p->ids_text, p->ids[k]);
    }
    return 0;
}

/* Choices */

static int make_choices(struct generation *g)
{
    int n = g->n_prompts * g->params.n;

    g->choices = arena_array(&g->arena, n, sizeof(*g->choices));
    if (!g->choices)
        return openai_refuse_no_room(&g->error);
    for (int i = 0; i < n; i++) {
        struct choice *c = &g->choices[i];

        c->generation = g;
        c->index = i;
        c->prompt_idx = i / g->params.n;
        c->sample_idx = i % g->params.n;
        c->stop_token = -1;
        strbuf_init(&c->text);
        strbuf_init(&c->token_ids);
        strbuf_init(&c->prompt_logprobs);
        logprob_list_init(&c->logprobs,
                          g->api == API_CHAT ? LOGPROBS_CHAT : LOGPROBS_COMPLETIONS);
    }
    g->n_choices = n;
    for (int i = 0; i < g->n_prompts; i++)
        g->usage.prompt_tokens += g->prompts[i].n_ids;
    return 0;
}

static int submit_one(struct generation *g, struct choice *c, struct err *err)
{
    struct generation_prompt *p = &g->prompts[c->prompt_idx];
    struct engine_request req = {
        .prompt = p->ids, .n_prompt = p->n_ids, .sampling = g->params.sampling, .user = c};

    req.sampling.max_tokens = p->max_tokens;
    req.sampling.sample_idx = (uint32_t)c->sample_idx;
    req.sampling.seed = (uint64_t)g->params.seed;
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
    while (g->n_submitted < g->n_choices && g->n_submitted - g->n_done < most) {
        int rc = submit_one(g, &g->choices[g->n_submitted], &err);

        if (rc == ERR_LIMIT && g->n_submitted > 0) {
            park(g, true); /* accepted in part: it waits for the queue to move */
            return;
        }
        if (rc < 0) {
            api_error_from_err(&g->error, &err, g->api == API_CHAT ? "messages" : "prompt");
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

static void finish(struct generation *g)
{
    struct exchange *ex = g->exchange;
    struct strbuf body = STRBUF_INIT;

    detach(g);
    if (g->params.stream) {
        generation_write_stream_end(g, exchange_stream(ex));
        exchange_stream_end(ex);
    } else {
        generation_write_body(g, &body);
        exchange_reply_json(ex, 200, &body);
    }
}

static void note_end(struct generation *g, struct choice *c, const struct engine_event *ev)
{
    c->is_done = true;
    g->n_done++;
    if (ev->finish == FINISH_CANCELED && g->exchange)
        api_error_set(&g->error, 503, NULL, "shutting_down", "The server is shutting down.");
    if (ev->finish == FINISH_ERROR && ev->start_ns == 0)
        api_error_set(&g->error, 429, NULL, "server_is_overloaded", "%s",
                      ev->error ? ev->error : "The request waited too long for a seat.");
    else if (ev->finish == FINISH_ERROR)
        api_error_set(&g->error, 500, NULL, NULL, "%s",
                      ev->error ? ev->error : "The generation failed.");
}

void generation_take_event(const struct engine_event *ev)
{
    struct choice *c = ev->user;
    struct generation *g = c->generation;

    CHECK(g->magic == GENERATION_MAGIC);
    metrics_count_event(&g->server->metrics, ev, c->last_token_ns);
    if (ev->n_tokens > 0)
        c->last_token_ns = ev->last_token_ns;
    g->usage.completion_tokens += ev->n_completion_tokens - c->n_tokens;
    c->n_tokens = ev->n_completion_tokens;
    if (c->sample_idx == 0) {
        g->usage.cached_tokens += ev->n_cached_tokens - g->prompts[c->prompt_idx].n_cached;
        g->prompts[c->prompt_idx].n_cached = ev->n_cached_tokens;
    }
    if (ev->finish != FINISH_NONE)
        note_end(g, c, ev);
    if (g->error.status && g->exchange) {
        fail(g);
    } else if (g->exchange) {
        generation_add_event(c, ev);
        if (g->params.stream && generation_has_chunk(c)) {
            generation_write_chunks(c, exchange_stream(g->exchange));
            exchange_stream_flush(g->exchange);
        }
        if (g->n_done == g->n_choices)
            finish(g);
        else if (c->is_done && g->n_submitted < g->n_choices)
            submit(g);
    }
    free_if_unused(g);
}

/* Start */

static int prepare(struct generation *g, const struct strbuf *body)
{
    struct http_server *s = g->server;

    if (json_in_parse(&g->body, body->buf, body->len, s->limits.json_depth, &g->error) < 0)
        return ERR_INVALID;
    if (openai_params_read(&g->params, g->api, g->body, &s->limits, &g->arena, &g->error) < 0)
        return ERR_INVALID;
    g->n_prompts = g->api == API_CHAT ? 1 : g->params.n_prompts;
    g->prompts = arena_array(&g->arena, g->n_prompts, sizeof(*g->prompts));
    if (!g->prompts)
        return openai_refuse_no_room(&g->error);
    for (int i = 0; i < g->n_prompts; i++) {
        strbuf_init(&g->prompts[i].echo);
        strbuf_init(&g->prompts[i].ids_text);
    }
    if (!g->params.has_seed &&
        getrandom(&g->params.seed, sizeof(g->params.seed), GRND_NONBLOCK) < 0)
        g->params.seed = clock_ns();
    generation_write_head(g);
    return 0;
}

static size_t text_bytes(const struct generation *g)
{
    size_t n = 0;

    for (int i = 0; i < g->params.n_prompts; i++)
        n += g->params.prompts[i].text_len;
    for (int i = 0; i < g->params.n_messages; i++)
        n += g->params.messages[i].content_len;
    return n;
}

/* The prompts are tokens, or g->error says why not. */
static void start_choices(struct generation *g)
{
    if (!g->error.status && g->exchange && make_choices(g) == 0)
        submit(g);
    if (g->error.status)
        tell_error(g);
    free_if_unused(g);
}

static void work_tokenize(uv_work_t *work)
{
    tokenize(work->data);
}

static void after_tokenize(uv_work_t *work, int status)
{
    struct generation *g = work->data;

    CHECK(g->magic == GENERATION_MAGIC);
    g->is_working = false;
    if (status < 0)
        api_error_set(&g->error, 503, NULL, "shutting_down", "The server is shutting down.");
    start_choices(g);
}

void generation_start(struct exchange *ex, enum openai_api api)
{
    struct generation *g = calloc(1, sizeof(*g));
    struct api_error no_room = {0};

    if (!g) {
        api_error_set(&no_room, 503, NULL, NULL, "The server is out of memory.");
        exchange_reply_error(ex, &no_room);
        return;
    }
    g->magic = GENERATION_MAGIC;
    g->server = ex->server;
    g->api = api;
    g->exchange = ex;
    ex->generation = g;
    strbuf_init(&g->head);
    arena_init(&g->arena, 4 * (size_t)ex->server->config->max_body_bytes + ARENA_BASE_BYTES, 0);
    engine_bridge_add(g->server->bridge, g);
    if (prepare(g, &ex->body) < 0) {
        start_choices(g);
        return;
    }
    strbuf_release(&ex->body); /* its strings live on in g->body */
    exchange_watch(ex, g->params.stream);
    g->work.data = g;
    if (text_bytes(g) > INLINE_TEXT_BYTES &&
        uv_queue_work(ex->server->uv, &g->work, work_tokenize, after_tokenize) == 0) {
        g->is_working = true;
        return;
    }
    tokenize(g);
    start_choices(g);
}
