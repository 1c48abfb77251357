/*
 * engine_step - one step from the plan to its tokens. See engine_step.h.
 */
#include "engine/engine_step.h"

#include "base/check.h"
#include "base/clock.h"
#include "base/log.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

int engine_steps_init(struct engine *e, int max_items, int max_logits, struct err *err)
{
    int rc = 0;

    for (int i = 0; i < BACKEND_STEPS && rc == 0; i++) {
        struct engine_step *step = &e->steps[i];

        step->items = calloc((size_t)max_items, sizeof(*step->items));
        if (!step->items)
            rc = err_set(err, ERR_NO_ROOM, "steps: no memory for %d sequences", max_items);
        else
            rc = sampler_results_init(&step->results, e->be, max_logits, err);
        if (rc == 0 && e->env.embedding_dim)
            rc = e->be->ops->host_alloc(
                e->be, (void **)&step->pooled,
                (size_t)e->kv.n_slots * e->env.embedding_dim * sizeof(*step->pooled), err);
    }
    return rc;
}

void engine_steps_release(struct engine *e)
{
    for (int i = 0; i < BACKEND_STEPS; i++) {
        free(e->steps[i].items);
        sampler_results_release(&e->steps[i].results);
        if (e->be)
            e->be->ops->host_free(e->be, e->steps[i].pooled);
    }
}

static struct request *request_of(const struct sched_seq *seq)
{
    return seq->owner;
}

/* The i-th of the queued steps, oldest first. */
static struct engine_step *queued_step(struct engine *e, int i)
{
    return &e->steps[(e->first_step + i) % BACKEND_STEPS];
}

/* What queued rows of the sequence will give is not wanted any more. */
static void drop_rows(struct engine *e, const struct sched_seq *seq)
{
    for (int i = 0; i < e->n_queued; i++) {
        struct engine_step *step = queued_step(e, i);

        for (int k = 0; k < step->n_items; k++) {
            if (step->items[k].seq == seq)
                step->items[k].seq = NULL;
        }
    }
}

/* Takes a request that has ended out of the engine; from then on it is the poller's. */
static void let_go(struct engine *e, struct request *r)
{
    step_trace_end(e->trace, &r->seq);
    if (r->seq.state != SEQ_IDLE)
        scheduler_remove(&e->sched, &r->seq);
    drop_rows(e, &r->seq);
    if (!r->start_ns)
        atomic_fetch_sub(&e->waiting_tokens, r->seq.n_prompt);
    stats_finished(&e->stats, r->finish);
    e->news_is_due = true;
    request_tell(r, &e->outbox);
}

void engine_step_end_request(struct engine *e, struct request *r, enum finish_reason reason,
                             const char *error)
{
    request_end(r, reason, error);
    let_go(e, r);
}

static void add_logit_rows(struct engine *e, const struct sched_step *step)
{
    sampler_begin(&e->sampler);
    for (int i = 0; i < step->n_items; i++) {
        const struct sched_item *item = &step->items[i];
        struct request *r = request_of(item->seq);

        for (int k = 0; k < item->n_prompt_logits; k++)
            sampler_add_prompt(&e->sampler, r, sched_item_logit_token(item, k));
        if (item->samples)
            sampler_add_draw(&e->sampler, r);
    }
    CHECK(e->sampler.n_rows == step->n_logits);
}

/*
 * Steps of decode rows that all sample are the same but for what lies in the batch's arrays, which
 * never move: their number is the key of a graph, and of a Block Transformer's also whether they
 * begin their blocks. 0: no graph.
 */
static int graph_key(const struct engine *e)
{
    const struct step_batch *b = &e->batch.device;
    const struct block_step *s = &e->batch.blocks;

    if (!e->use_graphs || model_wants_rope_len(e->model))
        return 0;
    if (!e->env.block)
        return b->n_decode == b->n_rows && b->n_logits == b->n_rows ? b->n_rows : 0;
    if (b->n_logits != s->n_items)
        return 0;
    if (!s->from_context)
        return s->n_items;
    return s->blocks.n_rows == s->n_items && s->blocks.n_decode == s->n_items
               ? e->batch.params.max_logits + s->n_items
               : 0;
}

static int forward_rows(struct engine *e, struct err *err)
{
    const int32_t *rope_len = model_wants_rope_len(e->model) ? e->batch.rope_len : NULL;

    if (e->env.block)
        return model_forward_blocks(e->model, &e->batch.blocks, &e->kv_memory.view, err);
    return model_forward(e->model, &e->batch.device, &e->kv_memory.view, rope_len, err);
}

static int forward(struct engine *e, struct err *err)
{
    const struct backend_ops *ops = e->be->ops;
    int key = graph_key(e), rc = key ? ops->graph_begin(e->be, key, err) : 0, end_rc;

    if (rc)
        return rc < 0 ? rc : 0;
    rc = forward_rows(e, err);
    if (!key)
        return rc;
    end_rc = ops->graph_end(e->be, rc == 0, err);
    return rc < 0 ? rc : end_rc;
}

/* Out of snapshots before the forward pass, into new ones behind it. */
static int copy_pages(struct engine *e, const struct kv_copies *copies, struct err *err)
{
    struct kv_copy_args args = {.kv = &e->kv_memory.view};

    if (!copies || copies->n == 0)
        return 0;
    args.n_pages = copies->n;
    args.src = copies->src;
    args.dst = copies->dst;
    return e->be->ops->kv_copy(e->be, &args, err);
}

/* Sums that are complete with this step come to the host; the slot may be another's in the next. */
static int fetch_pooled(struct engine *e, struct engine_step *step, struct err *err)
{
    int rc = 0, dim = e->env.embedding_dim;

    for (int i = 0; i < step->n_items && rc == 0; i++) {
        const struct sched_item *item = &step->items[i];
        int64_t at = (int64_t)item->slot * dim;

        if (item->seq->pooling && item->pos0 + item->n_rows == item->seq->n_prompt)
            rc = e->be->ops->fetch(e->be, step->pooled + at, model_pooled(e->model) + at,
                                   (size_t)dim * sizeof(*step->pooled), err);
    }
    return rc;
}

/* Queues what was planned; results come to step->results. */
static int compute(struct engine *e, struct engine_step *step, struct err *err)
{
    const struct backend_ops *ops = e->be->ops;
    int rc = kv_memory_upload(&e->kv_memory, &e->kv, err), end_rc;

    if (rc == 0)
        rc = batch_upload(&e->batch, err);
    if (rc == 0)
        rc = ops->step_begin(e->be, &e->batch.device, err);
    if (rc < 0)
        return rc;
    rc = copy_pages(e, e->sched.cache ? &e->sched.cache->snapshots.out_of : NULL, err);
    if (rc == 0)
        rc = forward(e, err);
    if (rc == 0)
        rc = copy_pages(e, e->sched.cache ? &e->sched.cache->snapshots.into : NULL, err);
    sampler_fill_masks(&e->sampler); /* while the device works */
    if (rc == 0 && e->sampler.n_rows)
        rc = sampler_run(&e->sampler, model_logits(e->model), e->batch.slot_token, &step->results,
                         err);
    if (rc == 0 && e->batch.device.n_pools)
        rc = fetch_pooled(e, step, err);
    end_rc = ops->step_end(e->be, err);
    return rc < 0 ? rc : end_rc;
}

/* What of the plan is needed when its results come. */
static void keep(struct engine_step *step, const struct sched_step *plan, int last_phase)
{
    memcpy(step->items, plan->items, (size_t)plan->n_items * sizeof(*step->items));
    step->n_items = plan->n_items;
    step->n_rows = plan->n_rows;
    step->n_decode = plan->n_decode;
    step->n_prompt = plan->n_prompt;
    step->err = (struct err){0};
    step->blocks_next = false;
    step->ends_blocks = plan->phase == last_phase;
    for (int i = 0; i < plan->n_items; i++) {
        const struct sched_item *item = &plan->items[i];

        if (item->samples && request_needs_token_on_host(request_of(item->seq)))
            step->blocks_next = true;
    }
}

bool engine_step_queue(struct engine *e)
{
    int64_t start_ns = clock_ns();
    const struct sched_step *plan;
    struct engine_step *step;

    if (e->n_queued > 0 && queued_step(e, e->n_queued - 1)->blocks_next)
        return false;
    CHECK(e->n_queued < BACKEND_STEPS);
    plan = scheduler_plan(&e->sched);
    step_trace_write(e->trace, &e->sched);
    if (plan->n_rows == 0)
        return false;
    for (int i = 0; i < plan->n_admitted; i++) {
        struct request *r = request_of(plan->admitted[i]);

        if (!r->start_ns) {
            r->start_ns = start_ns;
            atomic_fetch_sub(&e->waiting_tokens, r->seq.n_prompt);
        }
    }
    batch_build(&e->batch, plan);
    add_logit_rows(e, plan);
    step = queued_step(e, e->n_queued);
    keep(step, plan, e->env.block ? e->env.block->block_len - 1 : 0);
    step->start_ns = start_ns;
    pthread_mutex_unlock(&e->mu);
    step->rc = compute(e, step, &step->err);
    pthread_mutex_lock(&e->mu);
    step->number = e->be->n_steps;
    if (step->rc < 0)
        step->blocks_next = true;
    scheduler_queued(&e->sched);
    e->n_queued++;
    return true;
}

static void end_rows(struct engine *e, const struct engine_step *step)
{
    for (int i = 0; i < step->n_items; i++) {
        if (step->items[i].seq)
            engine_step_end_request(e, request_of(step->items[i].seq), FINISH_ERROR,
                                    "the computation failed");
    }
}

/*
 * The requests of a step that failed end, and those of the step queued behind it, which may share
 * pages that were never written; so may the cache. Those that had no row in either live on.
 */
static void fail_step(struct engine *e, const struct engine_step *step)
{
    e->n_failures++;
    snprintf(e->failure, sizeof(e->failure), "%s", step->err.msg);
    log_error("step of %d rows failed: %s", step->n_rows, step->err.msg);
    end_rows(e, step);
    for (int i = 0; i < e->n_queued; i++)
        end_rows(e, queued_step(e, i));
    step_trace_clear(e->trace);
    if (e->sched.cache)
        prefix_cache_clear(e->sched.cache);
}

static void take_prompt_logits(const struct engine_step *step, const struct sched_item *item,
                               struct request *r)
{
    for (int k = 0; k < item->n_prompt_logits; k++)
        r->prompt_tokens[sched_item_logit_token(item, k)] =
            sampler_token(&step->results, item->logit0 + k, r->sampling.n_prompt_logprobs);
    if (r->prompt_tokens && !r->prompt_told && item->ends_prompt)
        r->prompt_told = r->prompt_ready = true;
}

/* The item's results: logprobs, a new token, perhaps the end. Returns new tokens. */
static int take_item(struct engine *e, const struct engine_step *step,
                     const struct sched_item *item, int64_t now_ns)
{
    struct request *r = request_of(item->seq);
    struct engine_token token;
    enum finish_reason reason;

    take_prompt_logits(step, item, r);
    e->news_is_due = e->news_is_due || step->ends_blocks || r->prompt_ready || !r->first_token_ns;
    if (!item->samples) {
        if (item->ends && r->embedding)
            request_take_pooled(r, step->pooled + (int64_t)item->slot * r->env->embedding_dim);
        /* max_tokens 0: the prompt was all. */
        if (item->ends)
            engine_step_end_request(e, r, FINISH_LENGTH, NULL);
        else
            request_tell(r, &e->outbox);
        return 0;
    }
    if (!r->has_choice) {
        engine_step_end_request(e, r, FINISH_ERROR, "no token is left that the request may draw");
        return 0;
    }
    token =
        sampler_token(&step->results, item->logit0 + item->n_prompt_logits, r->sampling.n_logprobs);
    step_trace_token(e->trace, &r->seq);
    reason = request_push_token(r, &token, now_ns);
    e->sampler.mask_ns += r->filter.take_ns;
    r->filter.take_ns = 0;
    if (reason != FINISH_NONE)
        let_go(e, r);
    else
        request_tell(r, &e->outbox);
    return 1;
}

struct engine_pages engine_count_pages(const struct engine *e)
{
    struct engine_pages n = {0};

    for (const struct sched_seq *seq = e->sched.running.head; seq; seq = seq->next) {
        const struct kv_slot *slot = &e->kv.slots[seq->slot];

        if (seq->state == SEQ_PREFILL)
            n.prefill += slot->n_pages - slot->n_shared;
        else
            n.decode += slot->n_pages - slot->n_shared;
        n.fixed += slot->growable ? 0 : slot->n_pages;
    }
    n.shared = kv_pool_used(&e->kv.pool) - n.prefill - n.decode;
    n.cached = e->kv.pool.n_idle;
    return n;
}

static void count_step(struct engine *e, const struct engine_step *step, int n_new)
{
    struct stats_step add = {.end_ns = clock_ns(),
                             .n_prompt_rows = step->n_prompt,
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
    /* It began when the one before it was over. */
    add.step_ns = add.end_ns - (step->start_ns > e->step_end_ns ? step->start_ns : e->step_end_ns);
    e->step_end_ns = add.end_ns;
    add.mask_ns = e->sampler.mask_ns;
    e->sampler.mask_ns = 0;
    stats_add_step(&e->stats, &add, e->be);
}

void engine_step_take(struct engine *e)
{
    struct engine_step *step = queued_step(e, 0);
    int n_new = 0, rc;

    CHECK(e->n_queued > 0);
    pthread_mutex_unlock(&e->mu);
    rc = e->be->ops->step_wait(e->be, step->number, &step->err);
    pthread_mutex_lock(&e->mu);
    if (rc < 0 || step->rc < 0) {
        fail_step(e, step);
    } else {
        int64_t now_ns = clock_ns();

        e->n_failures = 0;
        for (int i = 0; i < step->n_items; i++) {
            if (step->items[i].seq)
                n_new += take_item(e, step, &step->items[i], now_ns);
        }
    }
    /* Only now: who ends may have further items in it, and they are to be dropped. */
    e->first_step = (e->first_step + 1) % BACKEND_STEPS;
    e->n_queued--;
    count_step(e, step, n_new);
}
