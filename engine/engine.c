/*
 * engine - the face: open, submit, cancel, poll, text, statistics. See engine.h. What shows the
 * inside is in engine_dump.c.
 */
#include "engine/engine.h"

#include "base/check.h"
#include "base/strbuf.h"
#include "config/config.h"
#include "engine/engine_open.h"
#include "engine/engine_state.h"
#include "engine/grammar/grammar.h"
#include "engine/tokenizer/chat_template.h"
#include "engine/tokenizer/tokenizer.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

#define IDX_BITS 24 /* of an id: the seat in the live table; above it a serial number */

int engine_open(struct engine **out, const struct config *config, const struct engine_hooks *hooks,
                struct err *err)
{
    struct engine *e = calloc(1, sizeof(*e));
    int rc;

    if (!e)
        return err_set(err, ERR_NO_ROOM, "engine: out of memory");
    if (hooks)
        e->hooks = *hooks;
    e->queue_timeout_ns = config->queue_timeout_ms * INT64_C(1000000);
    e->max_waiting_tokens = config->max_waiting_tokens;
    atomic_init(&e->waiting_tokens, 0);
    atomic_init(&e->cancel_pending, false);
    atomic_init(&e->closing, false);
    pthread_mutex_init(&e->mu, NULL);
    pthread_mutex_init(&e->live.mu, NULL);
    outbox_init(&e->outbox);
    strbuf_init(&e->plan_json);
    rc = engine_parts_open(e, config, err);
    if (rc < 0)
        goto out;
    rc = pthread_create(&e->thread, NULL, engine_loop, e);
    if (rc) {
        rc = err_set_errno(err, ERR_IO, rc, "engine thread");
        goto out;
    }
    e->thread_started = true;
    *out = e;
    e = NULL;
out:
    engine_close(e);
    return rc;
}

void engine_close(struct engine *e)
{
    if (!e)
        return;
    if (e->thread_started) {
        /* In this order: what the inbox took, the thread drains after it saw `closing`. */
        ring_queue_close(&e->inbox);
        atomic_store(&e->closing, true);
        pthread_join(e->thread, NULL);
        stats_release(&e->stats);
    }
    engine_parts_close(e);
    outbox_release(&e->outbox);
    pthread_mutex_destroy(&e->live.mu);
    pthread_mutex_destroy(&e->mu);
    free(e);
}

const struct engine_info *engine_get_info(const struct engine *e)
{
    return &e->info;
}

/* A seat in the live table and the id that names it; 0 when all are taken. */
static uint64_t live_take(struct live_table *live)
{
    uint64_t id = 0;

    pthread_mutex_lock(&live->mu);
    if (live->n_free > 0)
        id = (++live->n_ever << IDX_BITS) | (uint64_t)live->free_idx[--live->n_free];
    pthread_mutex_unlock(&live->mu);
    return id;
}

static int live_idx(uint64_t id)
{
    return (int)(id & ((1u << IDX_BITS) - 1));
}

/* Puts r into its seat. ERR_LIMIT: the others leave no memory for it; ERR_INVALID: nobody could. */
static int live_set(struct live_table *live, struct request *r, struct err *err)
{
    int64_t n_bytes;

    if (r->n_bytes > live->max_bytes)
        return err_set(err, ERR_INVALID, "the request takes %lld bytes of %lld for all requests",
                       (long long)r->n_bytes, (long long)live->max_bytes);
    pthread_mutex_lock(&live->mu);
    n_bytes = live->n_bytes + r->n_bytes;
    if (n_bytes <= live->max_bytes) {
        live->n_bytes = n_bytes;
        live->by_idx[live_idx(r->id)] = r;
    }
    pthread_mutex_unlock(&live->mu);
    if (n_bytes <= live->max_bytes)
        return 0;
    return err_set(err, ERR_LIMIT, "the requests that run or wait take all memory meant for them");
}

static void live_give(struct live_table *live, uint64_t id)
{
    struct request **seat = &live->by_idx[live_idx(id)];

    pthread_mutex_lock(&live->mu);
    if (*seat)
        live->n_bytes -= (*seat)->n_bytes;
    *seat = NULL;
    live->free_idx[live->n_free++] = live_idx(id);
    pthread_mutex_unlock(&live->mu);
}

static int check_pool(const struct engine *e, const struct request *r, struct err *err)
{
    if (scheduler_could_hold(&e->sched, &r->seq))
        return 0;
    return err_set(err, ERR_CONTEXT,
                   "%d tokens take %lld pages of %lld bytes, and the key-value pool has %lld",
                   (int)r->seq.n_limit, (long long)r->seq.need.n_pages_limit,
                   (long long)e->info.page_bytes, (long long)e->info.n_pages);
}

/* Counts the prompt in before it is pushed, so that two submitters cannot share one gap. */
static int queue_tokens(struct engine *e, const struct request *r, struct err *err)
{
    long long n = r->seq.n_prompt;
    long long before = atomic_fetch_add(&e->waiting_tokens, n);

    if (!e->max_waiting_tokens || before == 0 || before + n <= e->max_waiting_tokens)
        return 0;
    atomic_fetch_sub(&e->waiting_tokens, n);
    return err_set(err, ERR_LIMIT, "%lld prompt tokens are waiting, no more than %lld are queued",
                   before, (long long)e->max_waiting_tokens);
}

int engine_submit(struct engine *e, const struct engine_request *req, uint64_t *id, struct err *err)
{
    struct request *r = NULL;
    enum engine_refusal full = REFUSED_QUEUE;
    uint64_t new_id = 0;
    int rc;

    if (atomic_load(&e->closing))
        return err_set(err, ERR_CLOSED, "the engine is shutting down");
    new_id = live_take(&e->live);
    if (!new_id) {
        rc = err_set(err, ERR_LIMIT, "%d requests are running or waiting, no more are taken",
                     e->live.n_max);
        goto out;
    }
    rc = request_new(&r, &e->env, req, new_id, err);
    if (rc == 0)
        rc = check_pool(e, r, err);
    if (rc == 0) {
        full = REFUSED_MEMORY;
        rc = live_set(&e->live, r, err);
    }
    if (rc == 0) {
        full = REFUSED_TOKENS;
        rc = queue_tokens(e, r, err);
    }
    if (rc < 0)
        goto out;
    *id = new_id; /* before the push: the first event may come at once */
    /* The inbox has room for everyone alive, so only closing can refuse. */
    if (!ring_queue_push(&e->inbox, &r)) {
        rc = err_set(err, ERR_CLOSED, "the engine is shutting down");
        goto out;
    }
    stats_submitted(&e->stats);
    return 0;
out:
    if (new_id)
        live_give(&e->live, new_id);
    request_free(r);
    stats_rejected(&e->stats, rc == ERR_LIMIT ? full : REFUSED_COUNT);
    return rc;
}

void engine_cancel(struct engine *e, uint64_t id)
{
    int idx = live_idx(id);

    if (idx >= e->live.n_max)
        return;
    pthread_mutex_lock(&e->live.mu);
    if (e->live.by_idx[idx] && e->live.by_idx[idx]->id == id) {
        atomic_store(&e->live.by_idx[idx]->cancel, true);
        atomic_store(&e->cancel_pending, true);
    }
    pthread_mutex_unlock(&e->live.mu);
}

int engine_poll(struct engine *e, engine_event_fn *fn, void *arg)
{
    /* Only what is there now: a callback that submits must not keep the caller here forever. */
    int n_listed = outbox_n_listed(&e->outbox), n = 0;

    while (n < n_listed) {
        struct engine_event event;
        struct outbox_record *record = outbox_take(&e->outbox, &event);
        struct request *r;

        if (!record)
            break;
        n++;
        fn(arg, &event);
        if (event.finish == FINISH_NONE) {
            outbox_taken(&e->outbox, record);
            continue;
        }
        r = (struct request *)((char *)record - offsetof(struct request, out));
        live_give(&e->live, event.id);
        request_free(r);
    }
    return n;
}

bool engine_wait(struct engine *e, int64_t timeout_ns)
{
    return outbox_wait(&e->outbox, timeout_ns);
}

static int no_tokenizer(struct err *err)
{
    return err_set(err, ERR_UNSUPPORTED, "the model has no tokenizer.json");
}

int engine_tokenize(const struct engine *e, const char *text, size_t len, bool add_special,
                    bool parse_special, int32_t **ids, int *n_ids, struct err *err)
{
    struct token_ids v;
    int rc;

    if (!e->tokenizer)
        return no_tokenizer(err);
    token_ids_init(&v);
    rc = tokenizer_encode(e->tokenizer, text, len, add_special, parse_special, &v, err);
    if (rc == 0 && v.n > INT32_MAX)
        rc = err_set(err, ERR_LIMIT, "%zu tokens are more than can be counted", v.n);
    if (rc < 0) {
        token_ids_release(&v);
        return rc;
    }
    *ids = v.ids;
    *n_ids = (int)v.n;
    return 0;
}

int engine_detokenize(const struct engine *e, const int32_t *ids, int n_ids, bool skip_special,
                      struct strbuf *out, struct err *err)
{
    if (!e->tokenizer)
        return no_tokenizer(err);
    for (int i = 0; i < n_ids; i++) {
        if (ids[i] < 0 || ids[i] >= e->info.vocab_size)
            return err_set(err, ERR_INVALID, "token %d is %d, must be in 0..%d", i, (int)ids[i],
                           e->info.vocab_size - 1);
    }
    return tokenizer_decode(e->tokenizer, ids, (size_t)n_ids, skip_special, out);
}

int engine_token_bytes(const struct engine *e, int32_t id, struct strbuf *out)
{
    if (!e->tokenizer)
        return ERR_UNSUPPORTED;
    return tokenizer_token_bytes(e->tokenizer, id, out) ? 0 : ERR_NOT_FOUND;
}

int engine_grammar_new(struct engine *e, enum engine_grammar_kind kind, const char *text,
                       size_t len, struct grammar **out, struct err *err)
{
    if (!e->grammars)
        return no_tokenizer(err);
    if (!e->env.has_masks)
        return err_set(err, ERR_UNSUPPORTED,
                       "this device cannot restrict the tokens that are drawn");
    return grammar_cache_get(e->grammars, kind, text, len, out, err);
}

void engine_grammar_free(struct grammar *g)
{
    grammar_unref(g);
}

static json_t *messages_to_json(const struct engine_message *messages, int n_messages)
{
    json_t *list = json_array();

    for (int i = 0; list && i < n_messages; i++) {
        json_t *role = json_string(messages[i].role);
        json_t *content = json_stringn(messages[i].content, messages[i].content_len);
        json_t *extra =
            messages[i].extra ? json_loads(messages[i].extra, JSON_ALLOW_NUL, NULL) : NULL;
        json_t *message = json_object();

        json_object_set_new(message, "role", role);
        json_object_set_new(message, "content", content);
        json_object_update(message, extra);
        json_decref(extra);
        if (!role || !content || !message || json_array_append_new(list, message) < 0) {
            json_decref(list);
            return NULL;
        }
    }
    return list;
}

int engine_chat_tokenize(const struct engine *e, const struct engine_message *messages,
                         int n_messages, const char *tools_json, bool add_generation_prompt,
                         int32_t **ids, int *n_ids, struct strbuf *prompt_text, struct err *err)
{
    struct chat_prompt prompt = {0};
    struct token_ids v;
    json_t *list = NULL, *tools = NULL;
    int rc;

    if (!e->chat_template)
        return err_set(err, ERR_UNSUPPORTED, "the model has no usable chat template: %s",
                       e->template_err.msg);
    if (!e->tokenizer)
        return no_tokenizer(err);
    token_ids_init(&v);
    list = messages_to_json(messages, n_messages);
    if (!list) {
        rc = err_set(err, ERR_INVALID, "a message is not valid UTF-8");
        goto out;
    }
    tools = tools_json ? json_loads(tools_json, JSON_ALLOW_NUL, NULL) : NULL;
    rc = chat_template_render(e->chat_template,
                              &(struct chat_args){.messages = list,
                                                  .tools = tools,
                                                  .add_generation_prompt = add_generation_prompt},
                              &prompt, err);
    if (rc == 0)
        rc = chat_prompt_encode(&prompt, e->tokenizer, &v, err);
    if (rc == 0 && v.n == 0)
        rc = err_set(err, ERR_INVALID, "the chat template renders to nothing");
    if (rc < 0)
        goto out;
    if (prompt_text)
        strbuf_add(prompt_text, prompt.text, prompt.len);
    *ids = v.ids;
    *n_ids = (int)v.n;
    token_ids_init(&v); /* the caller owns them now */
out:
    token_ids_release(&v);
    chat_prompt_release(&prompt);
    json_decref(tools);
    json_decref(list);
    return rc;
}

void engine_get_stats(const struct engine *e, struct engine_stats *out)
{
    stats_get((struct stats *)&e->stats, out); /* the lock inside is the only thing changed */
}
