/*
 * engine_loop - the engine thread: drain the inbox, plan a step, compute it, sample, tell.
 *
 * Between steps it holds e->mu; during the forward pass it does not. With nothing to run it sleeps
 * on the inbox: a cancel needs no wake-up, since whoever could be cancelled keeps the thread busy
 * or lies in the inbox.
 */
#include "engine/engine_state.h"

#include "base/check.h"
#include "base/clock.h"
#include "base/log.h"
#include "engine/kv/kv_sweep.h"

#include <stdio.h>

static struct request *request_of(const struct sched_seq *seq)
{
    return seq->owner;
}

/* Ends a request in whatever state it is. */
static void finish(struct engine *e, struct request *r, enum finish_reason reason,
                   const char *error)
{
    if (r->seq.state != SEQ_IDLE)
        scheduler_remove(&e->sched, &r->seq);
    if (!r->start_ns)
        atomic_fetch_sub(&e->waiting_tokens, r->seq.n_prompt);
    stats_finished(&e->stats, reason);
    request_end(r, reason, error);
    request_tell(r, &e->outbox);
}

static void drain_inbox(struct engine *e)
{
    size_t n = ring_queue_pop_many(&e->inbox, e->drained, (size_t)e->live.n_max);

    for (size_t i = 0; i < n; i++) {
        scheduler_add(&e->sched, &e->drained[i]->seq);
        /* Its cancel may have been looked for before it could be found. */
        if (atomic_load(&e->drained[i]->cancel))
            atomic_store(&e->cancel_pending, true);
    }
}

static bool cancel_in(struct engine *e, struct sched_list *list, bool all)
{
    bool any = false;

    for (struct sched_seq *seq = list->head, *next; seq; seq = next) {
        struct request *r = request_of(seq);

        next = seq->next;
        if (!all && !atomic_load(&r->cancel))
            continue;
        finish(e, r, FINISH_CANCELED, NULL);
        any = true;
    }
    return any;
}

/* True when somebody was. */
static bool cancel_flagged(struct engine *e, bool all)
{
    bool any = cancel_in(e, &e->sched.running, all);

    return cancel_in(e, &e->sched.waiting, all) || any;
}

/* Ends who waited too long for a first seat. */
static bool expire_waiting(struct engine *e)
{
    int64_t now_ns = e->queue_timeout_ns ? clock_ns() : 0;
    bool any = false;

    for (struct sched_seq *seq = e->sched.waiting.head, *next; now_ns && seq; seq = next) {
        struct request *r = request_of(seq);

        next = seq->next;
        if (r->start_ns)
            continue; /* preempted: it has its promise */
        if (now_ns - r->submit_ns < e->queue_timeout_ns)
            continue;
        finish(e, r, FINISH_ERROR, "no seat became free within queue_timeout_ms");
        any = true;
    }
    return any;
}

static void add_logit_rows(struct engine *e, const struct sched_step *step)
{
    sampler_begin(&e->sampler);
    for (int i = 0; i < step->n_items; i++) {
        const struct sched_item *item = &step->items[i];
        struct request *r = request_of(item->seq);

        for (int k = 0; k < item->n_prompt_logits; k++) {
            int32_t row = e->batch.logit_row[item->logit0 + k];

            sampler_add_prompt(&e->sampler, r, e->batch.pos[row] + 1);
        }
        if (item->samples)
            sampler_add_draw(&e->sampler, r);
    }
    CHECK(e->sampler.n_rows == step->n_logits);
}

static int compute(struct engine *e, const struct sched_step *step, struct err *err)
{
    const struct backend_ops *ops = e->be->ops;
    const int32_t *rope_len = model_wants_rope_len(e->model) ? e->batch.rope_len : NULL;
    int rc = kv_memory_upload(&e->kv_memory, &e->kv, err), end_rc;

    if (rc == 0)
        rc = batch_upload(&e->batch, err);
    if (rc == 0)
        rc = ops->step_begin(e->be, &e->batch.device, err);
    if (rc < 0)
        return rc;
    rc = model_forward(e->model, &e->batch.device, &e->kv_memory.view, rope_len, err);
    sampler_fill_masks(&e->sampler); /* while the device works */
    if (rc == 0 && step->n_logits)
        rc =
            sampler_run(&e->sampler, model_logits(e->model), e->batch.slot_token, &e->results, err);
    end_rc = ops->step_end(e->be, err);
    if (rc == 0)
        rc = end_rc;
    end_rc = ops->step_wait(e->be, e->be->n_steps, err);
    return rc < 0 ? rc : end_rc;
}

/* The requests of a step that failed end; those that had no row in it live on. */
static void fail_step(struct engine *e, const struct sched_step *step, const struct err *err)
{
    e->n_failures++;
    snprintf(e->failure, sizeof(e->failure), "%s", err->msg);
    log_error("step of %d rows failed: %s", step->n_rows, err->msg);
    for (int i = 0; i < step->n_items; i++)
        finish(e, request_of(step->items[i].seq), FINISH_ERROR, "the computation failed");
}

static void take_prompt_logits(struct engine *e, const struct sched_item *item)
{
    struct request *r = request_of(item->seq);

    for (int k = 0; k < item->n_prompt_logits; k++) {
        int32_t pos = e->batch.pos[e->batch.logit_row[item->logit0 + k]] + 1;

        r->prompt_tokens[pos] =
            sampler_token(&e->results, item->logit0 + k, r->sampling.n_prompt_logprobs);
    }
    if (r->prompt_tokens && !r->prompt_told && r->seq.n_done >= r->seq.n_prompt)
        r->prompt_told = r->prompt_ready = true;
}

/* The item's results: logprobs, a new token, perhaps the end. Returns new tokens. */
static int take_item(struct engine *e, const struct sched_item *item, int64_t now_ns)
{
    struct request *r = request_of(item->seq);
    struct engine_token token;
    enum finish_reason reason;

    take_prompt_logits(e, item);
    if (!item->samples) {
        /* max_tokens 0: the prompt was all. */
        if (r->seq.n_done >= r->seq.n_prompt && r->seq.n_tokens == r->seq.need.n_limit)
            finish(e, r, FINISH_LENGTH, NULL);
        else
            request_tell(r, &e->outbox);
        return 0;
    }
    if (!r->has_choice) {
        finish(e, r, FINISH_ERROR, "no token is left that the request may draw");
        return 0;
    }
    token =
        sampler_token(&e->results, item->logit0 + item->n_prompt_logits, r->sampling.n_logprobs);
    reason = request_push_token(r, &token, now_ns);
    e->sampler.mask_ns += r->filter.take_ns;
    r->filter.take_ns = 0;
    if (reason != FINISH_NONE) {
        scheduler_remove(&e->sched, &r->seq);
        stats_finished(&e->stats, reason);
    }
    request_tell(r, &e->outbox);
    return 1;
}

struct engine_pages engine_count_pages(const struct engine *e)
{
    struct engine_pages n = {0};

    for (const struct sched_seq *seq = e->sched.running.head; seq; seq = seq->next) {
        const struct kv_slot *slot = &e->kv.slots[seq->slot];

        if (seq->state == SEQ_PREFILL)
            n.prefill += slot->n_pages;
        else
            n.decode += slot->n_pages;
        n.fixed += slot->growable ? 0 : slot->n_pages;
    }
    return n;
}

/* kv_sweep_steps: ends the process when a page has two owners or none. */
static void sweep_pages(struct engine *e)
{
    struct err err = {0};
    struct kv_sweep sweep;
    int rc = kv_sweep_slots(&sweep, &e->kv, engine_cache_refs(e), &err);

    if (rc < 0)
        log_error("key-value pool: %s", err.msg);
    CHECK(rc == 0 || rc == ERR_NO_ROOM);
}

static void count_step(struct engine *e, const struct sched_step *step, int n_new, int64_t start_ns)
{
    struct stats_step add = {.end_ns = clock_ns(),
                             .n_prompt_rows = step->n_rows - step->n_decode,
                             .n_decode_rows = step->n_decode,
                             .n_new_tokens = n_new,
                             .n_waiting = e->sched.waiting.n,
                             .n_running = e->sched.running.n,
                             .n_preemptions = e->sched.n_preemptions,
                             .n_prefix_asked = e->sched.n_prefix_asked,
                             .n_prefix_found = e->sched.n_prefix_found,
                             .pages_used = kv_pool_used(&e->kv.pool),
                             .pages = engine_count_pages(e),
                             .healthy = e->n_failures < ENGINE_MAX_FAILURES};

    for (const struct sched_seq *seq = e->sched.waiting.head; seq; seq = seq->next)
        add.waiting_tokens += seq->n_tokens;
    add.step_ns = add.end_ns - start_ns;
    add.mask_ns = e->sampler.mask_ns;
    e->sampler.mask_ns = 0;
    stats_add_step(&e->stats, &add, e->be);
}

/* Runs one step. False when there was nothing to run. */
static bool run_step(struct engine *e)
{
    int64_t start_ns = clock_ns();
    const struct sched_step *step = scheduler_plan(&e->sched);
    struct err err = {0};
    int rc, n_new = 0;

    if (step->n_rows == 0)
        return false;
    step_trace_write(e->trace, &e->sched);
    for (int i = 0; i < step->n_admitted; i++) {
        struct request *r = request_of(step->admitted[i]);

        if (!r->start_ns) {
            r->start_ns = start_ns;
            atomic_fetch_sub(&e->waiting_tokens, r->seq.n_prompt);
        }
    }
    batch_build(&e->batch, step);
    add_logit_rows(e, step);
    pthread_mutex_unlock(&e->mu);
    rc = compute(e, step, &err);
    pthread_mutex_lock(&e->mu);
    if (rc < 0) {
        fail_step(e, step, &err);
    } else {
        int64_t now_ns = clock_ns();

        e->n_failures = 0;
        scheduler_done(&e->sched);
        for (int i = 0; i < step->n_items; i++)
            n_new += take_item(e, &step->items[i], now_ns);
    }
    count_step(e, step, n_new, start_ns);
    return true;
}

static void tell_outside(struct engine *e)
{
    outbox_signal(&e->outbox);
    if (e->hooks.wake)
        e->hooks.wake(e->hooks.arg);
}

void *engine_loop(void *arg)
{
    struct engine *e = arg;
    int n_unswept = 0; /* steps */

    pthread_setname_np(pthread_self(), "spand-engine");
    pthread_mutex_lock(&e->mu);
    for (;;) {
        bool ended, ran;

        drain_inbox(e);
        ended = atomic_exchange(&e->cancel_pending, false) && cancel_flagged(e, false);
        ended = expire_waiting(e) || ended;
        if (atomic_load(&e->closing))
            break;
        ran = run_step(e);
        if (e->sweep_steps && (++n_unswept >= e->sweep_steps || !ran)) {
            sweep_pages(e);
            n_unswept = 0;
        }
        if ((ran || ended) && outbox_n_listed(&e->outbox) > 0)
            tell_outside(e);
        if (ran)
            continue;
        CHECK(e->sched.running.n == 0);
        CHECK(e->sched.waiting.n == 0);
        stats_idle(&e->stats, e->sched.waiting.n, e->sched.running.n, kv_pool_used(&e->kv.pool));
        step_trace_flush(e->trace);
        pthread_mutex_unlock(&e->mu);
        ring_queue_wait(&e->inbox, -1);
        pthread_mutex_lock(&e->mu);
    }
    drain_inbox(e);
    cancel_flagged(e, true);
    tell_outside(e);
    pthread_mutex_unlock(&e->mu);
    return NULL;
}
