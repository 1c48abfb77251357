/*
 * null_engine - the engine's face without a model: tokens are bytes, and every answer is the letter
 * x.
 *
 * Linked in place of engine/ it gives the server alone, for what is only about the server: how many
 * events a second its loop sends, what a thousand streams cost, and bytes from a fuzzer. Tokens
 * reach the server through the real outbox. One thread gives each request its next token as soon as
 * the last one was collected, so the server is always the slower side; with NULL_AHEAD=N in the
 * environment as soon as fewer than N wait. With NULL_PACE_US=N tokens come every N us instead,
 * collected or not, and each is the time of its making in ns, so that a client on the same machine
 * can tell how long it took. All requests get theirs at the same moment, as from a step; with
 * NULL_SPREAD=1 each at its own.
 */
#include "engine/engine.h"

#include "base/clock.h"
#include "base/strbuf.h"
#include "config/config.h"
#include "engine/outbox.h"

#include <errno.h>
#include <pthread.h>
#include <stdatomic.h>
#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#define TICK_NS     1000000 /* of NULL_SPREAD */
#define VOCAB_SIZE  256
#define MAX_SEQ_LEN 65536
#define MAX_AHEAD   64

struct null_request {
    struct null_request *prev, *next; /* of the live ones */
    uint64_t id;
    int n_prompt, max_tokens, n_done;
    atomic_int n_collected;
    bool is_canceled;
    enum finish_reason finish;
    struct outbox_record out;
    int64_t submit_ns, first_ns, due_ns;
};

struct engine {
    struct engine_hooks hooks;
    struct engine_info info;
    pthread_t thread;
    struct outbox outbox;
    pthread_mutex_t mu; /* guards all below */
    pthread_cond_t work;
    struct null_request *live;
    int n_live;
    uint64_t last_id;
    int64_t pace_ns; /* 0: as fast as they are collected */
    int n_ahead;
    bool spread, closing;
    struct engine_stats stats;
};

/* The tokens that a request is due; 0: none. */
static int n_due(const struct engine *e, struct null_request *r, int64_t now_ns)
{
    int n = e->pace_ns ? 1 : e->n_ahead - (r->n_done - r->n_collected);

    if (e->spread && now_ns < r->due_ns)
        return 0;
    r->due_ns += e->pace_ns;
    return n < r->max_tokens - r->n_done ? n : r->max_tokens - r->n_done;
}

static void advance(struct engine *e, struct null_request *r, int n, int64_t now_ns)
{
    struct engine_token tokens[MAX_AHEAD];
    char text[MAX_AHEAD + 24];
    struct outbox_news news = {.text = text, .tokens = tokens, .stop_token = -1};

    for (int i = 0; i < n; i++) {
        int len = e->pace_ns ? snprintf(text, sizeof(text), "%lld ", (long long)now_ns) : 1;

        if (!e->pace_ns)
            text[i] = 'x';
        tokens[i] =
            (struct engine_token){.id = 'x', .text_at = (int)news.text_len, .text_len = len};
        news.text_len += (size_t)len;
    }
    if (n > 0 && !r->first_ns)
        r->first_ns = now_ns;
    r->n_done += n;
    if (r->is_canceled)
        r->finish = FINISH_CANCELED;
    else if (r->n_done >= r->max_tokens)
        r->finish = FINISH_LENGTH;
    news.n_tokens = n;
    news.n_completion_tokens = r->n_done;
    news.finish = r->finish;
    news.start_ns = r->submit_ns;
    news.first_token_ns = r->first_ns;
    news.last_token_ns = n > 0 ? now_ns : 0;
    e->stats.generation_tokens += n;
    outbox_add(&e->outbox, &r->out, &news);
}

/* One step: every request that is due. Returns how many were. */
static int step(struct engine *e)
{
    int64_t now_ns = clock_ns();
    int n_requests = 0;

    for (struct null_request *r = e->live; r; r = r->next) {
        int n = r->finish || r->is_canceled ? 0 : n_due(e, r, now_ns);

        if (r->finish || (n == 0 && !r->is_canceled))
            continue;
        advance(e, r, n, now_ns);
        n_requests++;
    }
    if (n_requests == 0)
        return 0;
    e->stats.n_steps++;
    e->stats.last_step_ns = clock_ns();
    outbox_signal(&e->outbox);
    if (e->hooks.wake)
        e->hooks.wake(e->hooks.arg);
    return n_requests;
}

static void sleep_until(int64_t ns)
{
    struct timespec until = {.tv_sec = ns / 1000000000, .tv_nsec = ns % 1000000000};

    while (clock_nanosleep(CLOCK_MONOTONIC, TIMER_ABSTIME, &until, NULL) == EINTR)
        ;
}

static void *run(void *arg)
{
    struct engine *e = arg;
    int64_t next_ns = clock_ns(), every_ns = e->spread ? TICK_NS : e->pace_ns;

    pthread_setname_np(pthread_self(), "null-engine");
    pthread_mutex_lock(&e->mu);
    while (!e->closing) {
        bool is_idle = step(e) == 0;

        if (!e->pace_ns || e->n_live == 0) {
            if (is_idle) /* until somebody submits or collects */
                pthread_cond_wait(&e->work, &e->mu);
            next_ns = clock_ns();
            continue;
        }
        pthread_mutex_unlock(&e->mu);
        next_ns += every_ns;
        if (next_ns < clock_ns()) /* late: beats are left out, and others get the lock */
            next_ns = clock_ns() + every_ns;
        sleep_until(next_ns);
        pthread_mutex_lock(&e->mu);
    }
    pthread_mutex_unlock(&e->mu);
    return NULL;
}

static int64_t env_int(const char *name, int64_t otherwise)
{
    return getenv(name) ? strtoll(getenv(name), NULL, 10) : otherwise;
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
    e->pace_ns = env_int("NULL_PACE_US", 0) * 1000;
    e->spread = e->pace_ns > 0 && getenv("NULL_SPREAD");
    e->n_ahead = (int)env_int("NULL_AHEAD", 1);
    e->n_ahead = e->n_ahead < 1 ? 1 : e->n_ahead > MAX_AHEAD ? MAX_AHEAD : e->n_ahead;
    e->stats.healthy = true;
    e->stats.pages_total = 1;
    pthread_mutex_init(&e->mu, NULL);
    pthread_cond_init(&e->work, NULL);
    outbox_init(&e->outbox);
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
        outbox_record_release(&r->out);
        free(r);
    }
    outbox_release(&e->outbox);
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
    int rc;

    if (!r)
        return err_set(err, ERR_NO_ROOM, "null engine: out of memory");
    r->n_prompt = req->n_prompt;
    r->max_tokens = req->sampling.max_tokens > 0 ? req->sampling.max_tokens : 1;
    r->due_ns = r->submit_ns = clock_ns();
    pthread_mutex_lock(&e->mu);
    *id = r->id = ++e->last_id;
    rc = outbox_record_init(&r->out, r->id, req->user, r->n_prompt, r->max_tokens, NULL, err);
    if (rc < 0) {
        pthread_mutex_unlock(&e->mu);
        free(r);
        return rc;
    }
    r->out.head.submit_ns = r->submit_ns;
    if (e->spread)
        r->due_ns += (int64_t)(r->id * 7919 * TICK_NS % (uint64_t)e->pace_ns);
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

static struct null_request *request_of(struct outbox_record *record)
{
    return (struct null_request *)((char *)record - offsetof(struct null_request, out));
}

/* The event was handled; its last one ends the request. */
static void collected(struct engine *e, struct null_request *r, const struct engine_event *ev)
{
    outbox_taken(&e->outbox, &r->out);
    atomic_fetch_add(&r->n_collected, ev->n_tokens);
    if (ev->finish == FINISH_NONE)
        return;
    pthread_mutex_lock(&e->mu);
    e->stats.n_finished[ev->finish]++;
    if (r->prev)
        r->prev->next = r->next;
    else
        e->live = r->next;
    if (r->next)
        r->next->prev = r->prev;
    e->n_live--;
    pthread_mutex_unlock(&e->mu);
    outbox_record_release(&r->out);
    free(r);
}

int engine_poll(struct engine *e, engine_event_fn *fn, void *arg)
{
    struct outbox_record *record;
    struct engine_event ev;
    int n = outbox_n_listed(&e->outbox); /* not those that come meanwhile */

    for (int i = 0; i < n; i++) {
        record = outbox_take(&e->outbox, &ev);
        if (!record)
            return i;
        fn(arg, &ev);
        collected(e, request_of(record), &ev);
    }
    pthread_mutex_lock(&e->mu);
    pthread_cond_signal(&e->work);
    pthread_mutex_unlock(&e->mu);
    return n;
}

bool engine_wait(struct engine *e, int64_t timeout_ns)
{
    return outbox_wait(&e->outbox, timeout_ns);
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
