/*
 * null_engine - the engine's face without a model: tokens are bytes, and every answer is the letter
 * x.
 *
 * Linked in place of engine/ it gives the server alone, for what is only about the server: how many
 * events a second its loop sends, what a thousand streams cost, and bytes from a fuzzer. One thread
 * gives each request its next token as soon as the last one was collected, so the server is always
 * the slower side. With NULL_PACE_MS=N in the environment tokens come every N ms instead, and each
 * is the time of its making in ns, so that a client on the same machine can tell how long it took.
 * All requests get theirs at the same moment, as from a step; with NULL_SPREAD=1 each at its own.
 */
#include "engine/engine.h"

#include "base/clock.h"
#include "base/strbuf.h"
#include "config/config.h"

#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#define TICK_US     1000 /* of NULL_SPREAD */
#define VOCAB_SIZE  256
#define MAX_SEQ_LEN 65536

struct null_request {
    struct null_request *prev, *next; /* of the live ones */
    uint64_t id;
    void *user;
    int n_prompt, max_tokens, n_done;
    bool is_ready, is_canceled, is_over; /* an event waits; its last event was collected */
    enum finish_reason finish;
    struct engine_token token;
    char text[24];
    int64_t submit_ns, first_ns, last_ns, due_ns;
};

struct engine {
    struct engine_hooks hooks;
    struct engine_info info;
    pthread_t thread;
    pthread_mutex_t mu; /* guards all below */
    pthread_cond_t work, news;
    struct null_request *live;
    int n_live, n_ready;
    uint64_t last_id;
    int pace_ms; /* 0: as fast as they are collected */
    bool spread;
    bool closing;
    struct engine_stats stats;
};

static void advance(struct engine *e, struct null_request *r)
{
    r->is_ready = true;
    e->n_ready++;
    if (r->is_canceled) {
        r->finish = FINISH_CANCELED;
        return;
    }
    r->last_ns = clock_ns();
    if (!r->first_ns)
        r->first_ns = r->last_ns;
    r->n_done++;
    if (e->pace_ms)
        snprintf(r->text, sizeof(r->text), "%lld ", (long long)r->last_ns);
    r->token = (struct engine_token){.id = 'x', .text_len = (int)strlen(r->text)};
    if (r->n_done >= r->max_tokens)
        r->finish = FINISH_LENGTH;
    e->stats.generation_tokens++;
}

/* With a pace of its own each request's moments lie elsewhere in the interval. */
static bool is_due(const struct engine *e, struct null_request *r, int64_t now_ns)
{
    int64_t pace_ns = e->pace_ms * INT64_C(1000000);

    if (!e->spread || r->is_canceled)
        return true;
    if (now_ns < r->due_ns)
        return false;
    r->due_ns += pace_ns;
    return true;
}

static void *run(void *arg)
{
    struct engine *e = arg;

    pthread_setname_np(pthread_self(), "null-engine");
    pthread_mutex_lock(&e->mu);
    while (!e->closing) {
        int64_t now_ns = clock_ns();
        int n = 0;

        for (struct null_request *r = e->live; r; r = r->next) {
            if (r->is_ready || r->finish != FINISH_NONE || !is_due(e, r, now_ns))
                continue;
            advance(e, r);
            n++;
        }
        if (n == 0 && !(e->spread && e->n_live > 0)) {
            pthread_cond_wait(&e->work, &e->mu);
            continue;
        }
        if (n > 0) {
            e->stats.n_steps++;
            e->stats.last_step_ns = clock_ns();
            pthread_cond_broadcast(&e->news);
            if (e->hooks.wake)
                e->hooks.wake(e->hooks.arg);
        }
        if (e->pace_ms) {
            pthread_mutex_unlock(&e->mu);
            usleep(e->spread ? TICK_US : (useconds_t)e->pace_ms * 1000);
            pthread_mutex_lock(&e->mu);
        } else {
            pthread_cond_wait(&e->work, &e->mu); /* until somebody collected */
        }
    }
    pthread_mutex_unlock(&e->mu);
    return NULL;
}

int engine_open(struct engine **out, const struct config *config, const struct engine_hooks *hooks,
                struct err *err)
{
    struct engine *e = calloc(1, sizeof(*e));

    if (!e)
        return err_set(err, ERR_NO_ROOM, "null engine: out of memory");
    if (hooks)
        e->hooks = *hooks;
    e->info = (struct engine_info){.model_id = "null",
                                   .model_type = "null",
                                   .plan = "dense",
                                   .device = "none",
                                   .dtype = "none",
                                   .fingerprint = "null",
                                   .plan_json = "{\"density_kv\":1}",
                                   .vocab_size = VOCAB_SIZE,
                                   .max_seq_len = MAX_SEQ_LEN,
                                   .n_layers = 1,
                                   .n_heads = 1,
                                   .n_kv_heads = 1,
                                   .head_dim = 1,
                                   .max_batch = config->max_batch,
                                   .bos_id = 1,
                                   .n_pages = 1,
                                   .page_bytes = 1,
                                   .page_tokens = 64,
                                   .has_chat_template = true,
                                   .default_temperature = 1,
                                   .default_top_p = 1,
                                   .default_repetition_penalty = 1};
    e->pace_ms = getenv("NULL_PACE_MS") ? atoi(getenv("NULL_PACE_MS")) : 0;
    e->spread = e->pace_ms > 0 && getenv("NULL_SPREAD");
    e->stats.healthy = true;
    e->stats.pages_total = 1;
    pthread_mutex_init(&e->mu, NULL);
    pthread_cond_init(&e->work, NULL);
    pthread_cond_init(&e->news, NULL);
    if (pthread_create(&e->thread, NULL, run, e) != 0) {
        free(e);
        return err_set(err, ERR_IO, "null engine: no thread");
    }
    *out = e;
    return 0;
}

void engine_close(struct engine *e)
{
    if (!e)
        return;
    pthread_mutex_lock(&e->mu);
    e->closing = true;
    pthread_cond_broadcast(&e->work);
    pthread_mutex_unlock(&e->mu);
    pthread_join(e->thread, NULL);
    while (e->live) {
        struct null_request *r = e->live;

        e->live = r->next;
        free(r);
    }
    pthread_cond_destroy(&e->news);
    pthread_cond_destroy(&e->work);
    pthread_mutex_destroy(&e->mu);
    free(e);
}

const struct engine_info *engine_get_info(const struct engine *e)
{
    return &e->info;
}

void sampling_params_init(struct sampling_params *p)
{
    *p = (struct sampling_params){.temperature = 1,
                                  .top_p = 1,
                                  .repetition_penalty = 1,
                                  .max_tokens = 16,
                                  .skip_special = true,
                                  .n_logprobs = -1,
                                  .n_prompt_logprobs = -1};
}

int engine_submit(struct engine *e, const struct engine_request *req, uint64_t *id, struct err *err)
{
    struct null_request *r = calloc(1, sizeof(*r));

    if (!r)
        return err_set(err, ERR_NO_ROOM, "null engine: out of memory");
    r->user = req->user;
    r->text[0] = 'x';
    r->n_prompt = req->n_prompt;
    r->max_tokens = req->sampling.max_tokens > 0 ? req->sampling.max_tokens : 1;
    r->submit_ns = clock_ns();
    r->due_ns = r->submit_ns;
    pthread_mutex_lock(&e->mu);
    *id = r->id = ++e->last_id;
    if (e->spread)
        r->due_ns += (int64_t)(r->id * 7919 % (uint64_t)e->pace_ms) * 1000000;
    r->next = e->live;
    if (r->next)
        r->next->prev = r;
    e->live = r;
    e->n_live++;
    e->stats.n_submitted++;
    e->stats.prompt_tokens += r->n_prompt;
    pthread_cond_signal(&e->work);
    pthread_mutex_unlock(&e->mu);
    return 0;
}

void engine_cancel(struct engine *e, uint64_t id)
{
    pthread_mutex_lock(&e->mu);
    for (struct null_request *r = e->live; r; r = r->next) {
        if (r->id == id)
            r->is_canceled = true;
    }
    pthread_cond_signal(&e->work);
    pthread_mutex_unlock(&e->mu);
}

static void remove_over(struct engine *e)
{
    struct null_request *next;

    for (struct null_request *r = e->live; r; r = next) {
        next = r->next;
        if (!r->is_over)
            continue;
        if (r->prev)
            r->prev->next = r->next;
        else
            e->live = r->next;
        if (r->next)
            r->next->prev = r->prev;
        e->n_live--;
        free(r);
    }
}

int engine_poll(struct engine *e, engine_event_fn *fn, void *arg)
{
    struct null_request *first;
    int n = 0;

    pthread_mutex_lock(&e->mu);
    first = e->n_ready > 0 ? e->live : NULL;
    pthread_mutex_unlock(&e->mu);
    /* Only this thread adds and removes, and the engine's leaves ready ones alone. */
    for (struct null_request *r = first; r; r = r->next) {
        struct engine_event ev;
        bool ready;

        pthread_mutex_lock(&e->mu);
        ready = r->is_ready;
        pthread_mutex_unlock(&e->mu);
        if (!ready)
            continue;
        ev = (struct engine_event){.id = r->id,
                                   .user = r->user,
                                   .text = r->text,
                                   .text_len = r->finish == FINISH_CANCELED ? 0 : strlen(r->text),
                                   .tokens = &r->token,
                                   .n_tokens = r->finish == FINISH_CANCELED ? 0 : 1,
                                   .n_prompt_tokens = r->n_prompt,
                                   .n_completion_tokens = r->n_done,
                                   .finish = r->finish,
                                   .stop_token = -1,
                                   .submit_ns = r->submit_ns,
                                   .start_ns = r->submit_ns,
                                   .first_token_ns = r->first_ns,
                                   .last_token_ns = r->last_ns};
        fn(arg, &ev);
        n++;
        pthread_mutex_lock(&e->mu);
        r->is_ready = false;
        e->n_ready--;
        if (r->finish != FINISH_NONE) {
            r->is_over = true;
            e->stats.n_finished[r->finish]++;
        }
        pthread_mutex_unlock(&e->mu);
    }
    pthread_mutex_lock(&e->mu);
    remove_over(e);
    pthread_cond_signal(&e->work);
    pthread_mutex_unlock(&e->mu);
    return n;
}

bool engine_wait(struct engine *e, int64_t timeout_ns)
{
    struct timespec until;
    bool ready;

    clock_gettime(CLOCK_REALTIME, &until);
    until.tv_nsec += timeout_ns % 1000000000;
    until.tv_sec += timeout_ns / 1000000000 + until.tv_nsec / 1000000000;
    until.tv_nsec %= 1000000000;
    pthread_mutex_lock(&e->mu);
    if (e->n_ready == 0)
        pthread_cond_timedwait(&e->news, &e->mu, &until);
    ready = e->n_ready > 0;
    pthread_mutex_unlock(&e->mu);
    return ready;
}

int engine_tokenize(const struct engine *e, const char *text, size_t len, bool add_special,
                    bool parse_special, int32_t **ids, int *n_ids, struct err *err)
{
    (void)e;
    (void)add_special;
    (void)parse_special;
    *ids = malloc((len + 1) * sizeof(**ids));
    if (!*ids)
        return err_set(err, ERR_NO_ROOM, "null engine: out of memory");
    for (size_t i = 0; i < len; i++)
        (*ids)[i] = (unsigned char)text[i];
    *n_ids = (int)len;
    return 0;
}

int engine_detokenize(const struct engine *e, const int32_t *ids, int n_ids, bool skip_special,
                      struct strbuf *out, struct err *err)
{
    (void)skip_special;
    for (int i = 0; i < n_ids; i++) {
        if (ids[i] < 0 || ids[i] >= e->info.vocab_size)
            return err_set(err, ERR_INVALID, "token %d is out of range", i);
        strbuf_addch(out, ids[i] < 0x80 && ids[i] > 0 ? ids[i] : '?');
    }
    return 0;
}

int engine_token_bytes(const struct engine *e, int32_t id, struct strbuf *out)
{
    (void)e;
    strbuf_addch(out, id < 0x80 && id > 0 ? id : '?');
    return 0;
}

int engine_grammar_new(struct engine *e, enum engine_grammar_kind kind, const char *text,
                       size_t len, struct grammar **out, struct err *err)
{
    (void)e;
    (void)kind;
    (void)text;
    (void)len;
    (void)out;
    return err_set(err, ERR_UNSUPPORTED, "the null engine has no grammars");
}

void engine_grammar_free(struct grammar *g)
{
    (void)g;
}

int engine_chat_tokenize(const struct engine *e, const struct engine_message *messages,
                         int n_messages, const char *tools, bool add_generation_prompt,
                         int32_t **ids, int *n_ids, struct strbuf *prompt_text, struct err *err)
{
    struct strbuf all = STRBUF_INIT;
    int rc;

    (void)tools;
    (void)add_generation_prompt;
    for (int i = 0; i < n_messages; i++)
        strbuf_add(&all, messages[i].content, messages[i].content_len);
    rc = engine_tokenize(e, all.buf, all.len, false, false, ids, n_ids, err);
    if (rc == 0 && prompt_text)
        strbuf_add(prompt_text, all.buf, all.len);
    strbuf_release(&all);
    return rc;
}

void engine_get_stats(const struct engine *e, struct engine_stats *out)
{
    struct engine *own = (struct engine *)e; /* the lock is all that changes */

    pthread_mutex_lock(&own->mu);
    *out = own->stats;
    out->n_running = own->n_live;
    pthread_mutex_unlock(&own->mu);
}

void engine_dump(struct engine *e, struct strbuf *out)
{
    (void)e;
    strbuf_addstr(out, "{}");
}

int engine_dump_kv(struct engine *e, int slot, struct strbuf *out, struct err *err)
{
    (void)slot;
    (void)err;
    engine_dump(e, out);
    return 0;
}

int engine_dump_plan(const struct engine *e, int n_tokens, struct strbuf *out, struct err *err)
{
    (void)n_tokens;
    (void)err;
    strbuf_addstr(out, e->info.plan_json);
    return 0;
}
