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

#define MANY_RUNNING   512
#define PAGES_EVERY_NS 20000000 /* far more often than anybody asks */

int engine_steps_init(struct engine *e, int max_items, int max_logits, struct err *err)
{
    int rc = 0;

    for (int i = 0; i < BACKEND_STEPS && rc == 0; i++) {
        struct engine_step *step = &e->steps[i];

        step->items = calloc((size_t)max_items, sizeof(*step->items));
        if (!step->items)
            rc = err_set(err, ERR_NO_ROOM, "steps: no memory for %d sequences", max_items);
        else
            rc = sampler_results_init(&step->results, e->be,
                                      max_logits * (e->env.block ? e->env.block->block_len : 1),
                                      err);
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

/* What queued rows of the request will give is not wanted any more. */
static void drop_rows(struct engine *e, const struct request *r)
{
    for (int i = 0; i < e->n_queued; i++) {
        struct engine_step *step = queued_step(e, i);
        int at = (int)(step - e->steps);

        if (r->items[at].serial != step->serial)
            continue;
        for (int32_t k = r->items[at].last; k >= 0; k = step->items[k].prev) {
            CHECK(step->items[k].seq == &r->seq);
            step->items[k].seq = NULL;
        }
    }
}

/* Each item knows the one before it of the same request, and the request its last. */
static void link_items(struct engine *e, struct engine_step *step)
{
    int at = (int)(step - e->steps);

    step->serial = ++e->n_serials;
    for (int i = 0; i < step->n_items; i++) {
        struct request *r = request_of(step->items[i].seq);

        step->items[i].prev = r->items[at].serial == step->serial ? r->items[at].last : -1;
        r->items[at].serial = step->serial;
        r->items[at].last = i;
    }
}

/* Takes a request that has ended out of the engine; from then on it is the poller's. */
static void let_go(struct engine *e, struct request *r)
{
    step_trace_end(e->trace, &r->seq);
    if (r->seq.state != SEQ_IDLE)
        scheduler_remove(&e->sched, &r->seq);
    drop_rows(e, r);
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

        if (item->kind == SCHED_WHOLE) {
            sampler_add_block(&e->sampler, r, item->pos0, item->n_known, item->n_phases);
            continue;
        }
        for (int k = 0; k < item->n_prompt_logits; k++)
            sampler_add_prompt(&e->sampler, r, sched_item_logit_token(item, k));
        if (item->samples)
            sampler_add_draw(&e->sampler, r);
    }
    CHECK(e->sampler.n_rows == step->n_logits);
}

/* Kinds of graphs of a Block Transformer; each has a key for every number of rows. */
enum graph_kind {
    GRAPH_PHASE,       /* a later phase */
    GRAPH_FIRST_PHASE, /* with the block decoder */
    GRAPH_TOKENS,      /* all phases */
    GRAPH_WHOLE,       /* with the block decoder */
    N_GRAPH_KINDS
};

int engine_steps_graphs(int max_logits)
{
    return N_GRAPH_KINDS * max_logits;
}

static int block_key(const struct engine *e, enum graph_kind kind, int n)
{
    return (int)kind * e->batch.params.max_logits + n;
}

/* Do all blocks that tokens come of have a row of the block decoder, and nobody else? */
static bool all_decode(const struct block_step *s)
{
    return s->blocks.n_rows == s->n_items && s->blocks.n_decode == s->n_items;
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
        return block_key(e, GRAPH_PHASE, s->n_items);
    return all_decode(s) ? block_key(e, GRAPH_FIRST_PHASE, s->n_items) : 0;
}

/* Ops that a graph may stand for. */
typedef int ops_fn(struct engine *e, struct err *err);

static int run_ops(struct engine *e, int key, ops_fn *fn, struct err *err)
{
    const struct backend_ops *ops = e->be->ops;
    struct err first = {0};
    int rc = key ? ops->graph_begin(e->be, key, err) : 0, end_rc;

    if (rc)
        return rc < 0 ? rc : 0;
    if (!key)
        return fn(e, err);
    rc = fn(e, &first);
    end_rc = ops->graph_end(e->be, rc == 0, &first);
    if (end_rc > 0) /* nothing has run */
        return fn(e, err);
    if (rc == 0)
        rc = end_rc;
    return rc < 0 ? err_set(err, rc, "%s", first.msg) : 0;
}

static int forward_rows(struct engine *e, struct err *err)
{
    const int32_t *rope_len = model_wants_rope_len(e->model) ? e->batch.rope_len : NULL;

    if (e->env.block)
        return model_decode_blocks(e->model, &e->batch.blocks, &e->kv_memory.view, err);
    return model_forward(e->model, &e->batch.device, &e->kv_memory.view, rope_len, err);
}

static int forward(struct engine *e, struct err *err)
{
    return run_ops(e, graph_key(e), forward_rows, err);
}

/* Logits of a phase's tokens, and what is drawn of them: as many rows at a time as have room. */
static int draw_phase(struct engine *e, const struct step_batch *tokens, int phase, int slot_phase,
                      struct err *err)
{
    int most = model_logit_rows(e->model), rc = 0;

    for (int at = 0; at < tokens->n_logits && rc == 0; at += most) {
        struct sampler_part part = {.first = at,
                                    .n = tokens->n_logits - at,
                                    .phase = phase,
                                    .logits = model_logits(e->model),
                                    .slot_token = e->batch.slot_token + slot_phase,
                                    .slot_stride = e->env.block->block_len};

        part.n = part.n < most ? part.n : most;
        rc = model_block_logits(e->model, tokens, at, part.n, err);
        if (rc == 0)
            rc = sampler_draw(&e->sampler, &part, err);
    }
    return rc;
}

/* Whole blocks */

/*
 * Rows of a graph for n: all numbers up to 64, then 32 between two powers of two. So a batch that
 * grows and shrinks finds its graphs made, and surplus rows are 3 % at the most.
 */
static int graph_rows(const struct engine *e, int n)
{
    int step = 1;

    while (n / step >= 64)
        step *= 2;
    n = (n + step - 1) / step * step;
    return n < e->sched.params.max_batch ? n : e->sched.params.max_batch;
}

/* All that follows the block decoder. */
static int decode_tokens(struct engine *e, struct err *err)
{
    struct block_step first = e->batch.whole;
    int rc;

    first.blocks.n_rows = 0;
    rc = model_decode_blocks(e->model, &first, &e->kv_memory.view, err);
    if (rc == 0)
        rc = draw_phase(e, &first.tokens, 0, 0, err);
    for (int p = 1; p < e->env.block->block_len && rc == 0; p++) {
        const struct block_step *later = &e->batch.later[p - 1];

        rc = model_decode_blocks(e->model, later, &e->kv_memory.view, err);
        if (rc == 0)
            rc = draw_phase(e, &later->tokens, p, p, err);
    }
    return rc;
}

static int decode_blocks(struct engine *e, struct err *err)
{
    struct block_step blocks = e->batch.whole;

    blocks.n_items = blocks.tokens.n_rows = blocks.tokens.n_decode = 0;
    blocks.tokens.n_logits = 0;
    return model_decode_blocks(e->model, &blocks, &e->kv_memory.view, err);
}

static int decode_whole(struct engine *e, struct err *err)
{
    int rc = decode_blocks(e, err);

    return rc < 0 ? rc : decode_tokens(e, err);
}

/* All phases: the block decoder within the graph unless there are prompts in it. */
static int forward_whole(struct engine *e, bool with_graph, struct err *err)
{
    int n = e->batch.whole.n_items, rc;

    if (n == 0)
        return decode_blocks(e, err);
    if (all_decode(&e->batch.whole))
        return run_ops(e, with_graph ? block_key(e, GRAPH_WHOLE, n) : 0, decode_whole, err);
    rc = decode_blocks(e, err);
    return rc < 0 ? rc
                  : run_ops(e, with_graph ? block_key(e, GRAPH_TOKENS, n) : 0, decode_tokens, err);
}

/* Alternatives to tokens are rare, and a graph would be of one number of them. */
static bool whole_has_graph(const struct engine *e)
{
    return e->use_graphs && e->sampler.max_top == 0 && e->batch.whole.n_items > 0;
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

/* A step of one phase, or of a model that knows none. */
static int compute_rows(struct engine *e, struct engine_step *step, struct err *err)
{
    int phase = step->phase, rc = forward(e, err);

    if (rc == 0)
        rc = copy_pages(e, e->sched.cache ? &e->sched.cache->snapshots.into : NULL, err);
    sampler_fill_masks(&e->sampler); /* while the device works */
    if (rc < 0 || e->sampler.n_rows == 0)
        return rc;
    if (!e->env.block)
        return sampler_run(&e->sampler, model_logits(e->model), e->batch.slot_token, &step->results,
                           err);
    rc = sampler_upload(&e->sampler, err);
    if (rc == 0)
        rc = draw_phase(e, &e->batch.blocks.tokens, 0, phase, err);
    return rc < 0 ? rc : sampler_fetch(&e->sampler, 1, &step->results, err);
}

/* What the sampler needs is on its way before the first op. */
static int compute_whole(struct engine *e, struct engine_step *step, bool with_graph,
                         struct err *err)
{
    int rc = forward_whole(e, with_graph, err);

    if (rc == 0)
        rc = copy_pages(e, e->sched.cache ? &e->sched.cache->snapshots.into : NULL, err);
    return rc < 0 ? rc : sampler_fetch(&e->sampler, step->n_phases, &step->results, err);
}

/* Queues what was planned; results come to step->results. */
static int compute(struct engine *e, struct engine_step *step, struct err *err)
{
    const struct backend_ops *ops = e->be->ops;
    bool whole = step->n_phases > 1, with_graph = whole && whole_has_graph(e);
    int rc = kv_memory_upload(&e->kv_memory, &e->kv, err), end_rc;

    if (with_graph) {
        batch_pad_whole(&e->batch, graph_rows(e, e->batch.whole.n_items));
        sampler_pad(&e->sampler, e->batch.whole.n_items);
    }
    if (whole)
        sampler_fill_masks(&e->sampler);
    if (rc == 0)
        rc = batch_upload(&e->batch, err);
    if (rc == 0 && whole)
        rc = sampler_upload(&e->sampler, err);
    if (rc == 0)
        rc = ops->step_begin(e->be, whole ? &e->batch.whole.tokens : &e->batch.device, err);
    if (rc < 0)
        return rc;
    rc = copy_pages(e, e->sched.cache ? &e->sched.cache->snapshots.out_of : NULL, err);
    if (rc == 0)
        rc = whole ? compute_whole(e, step, with_graph, err) : compute_rows(e, step, err);
    if (rc == 0 && e->batch.device.n_pools)
        rc = fetch_pooled(e, step, err);
    end_rc = ops->step_end(e->be, err);
    return rc < 0 ? rc : end_rc;
}

/*
 * Bytes of keys and values that the step's attention reads: decode rows each their own, a prompt's
 * rows together what the last one sees.
 */
static double kv_bytes(const struct engine *e, const struct sched_step *plan)
{
    int n_heads = kv_shape_heads(&e->kv.shape);
    int64_t n_keys = 0;

    for (int i = 0; i < plan->n_items; i++) {
        const struct sched_item *item = &plan->items[i];
        const struct kv_geom *geom = &e->kv.geom[(int64_t)item->seq->slot * n_heads];

        for (int h = 0; h < n_heads; h++)
            n_keys += kv_geom_keys_read(geom[h], item->pos0 + item->n_rows - 1);
    }
    return (double)n_keys * (double)kv_page_bytes(&e->kv.shape) / e->kv.shape.page_entries;
}

/* What of the plan is needed when its results come. */
static void keep(struct engine_step *step, const struct sched_step *plan, int last_phase)
{
    memcpy(step->items, plan->items, (size_t)plan->n_items * sizeof(*step->items));
    step->n_items = plan->n_items;
    step->n_rows = plan->n_rows;
    step->n_decode = plan->n_decode;
    step->n_prompt = plan->n_prompt;
    step->phase = plan->phase;
    step->n_phases = plan->n_phases;
    step->err = (struct err){0};
    step->blocks_next = false;
    step->ends_blocks = plan->phase + plan->n_phases - 1 == last_phase;
    for (int i = 0; i < plan->n_items; i++) {
        const struct sched_item *item = &plan->items[i];

        if (item->samples && item->seq->needs_tokens)
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
    e->batch.device.kv_bytes = e->be->times_next && !e->env.block ? kv_bytes(e, plan) : 0;
    add_logit_rows(e, plan);
    step = queued_step(e, e->n_queued);
    keep(step, plan, e->env.block ? e->env.block->block_len - 1 : 0);
    link_items(e, step);
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
        sampler_token(&step->results, 0, item->logit0 + k, r->sampling.n_prompt_logprobs,
                      &r->prompt_tokens[sched_item_logit_token(item, k)]);
    if (r->prompt_tokens && !r->prompt_told && item->ends_prompt)
        r->prompt_told = r->prompt_ready = true;
}

/* The token that the item drew in a phase. Returns whether it goes on. */
static bool take_token(struct engine *e, const struct engine_step *step,
                       const struct sched_item *item, int phase, int64_t now_ns)
{
    struct request *r = request_of(item->seq);
    struct engine_token token;

    sampler_token(&step->results, phase, item->logit0 + item->n_prompt_logits,
                  r->sampling.n_logprobs, &token);
    step_trace_token(e->trace, &r->seq);
    request_push_token(r, &token, now_ns);
    e->sampler.mask_ns += r->filter.take_ns;
    r->filter.take_ns = 0;
    return r->finish == FINISH_NONE;
}

/* A block's tokens up to the last that the request wants. Returns new tokens. */
static int take_block(struct engine *e, const struct engine_step *step,
                      const struct sched_item *item, int64_t now_ns)
{
    int phase = item->n_known;

    while (phase < item->n_phases && take_token(e, step, item, phase++, now_ns))
        ;
    return phase - item->n_known;
}

/* The item's results: logprobs, new tokens, perhaps the end. Returns new tokens. */
static int take_item(struct engine *e, const struct engine_step *step,
                     const struct sched_item *item, int64_t now_ns)
{
    struct request *r = request_of(item->seq);
    int n_new = 1;

    if (item->kind == SCHED_BLOCKS && item->is_decode)
        return 0;
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
    if (item->kind == SCHED_WHOLE)
        n_new = take_block(e, step, item, now_ns);
    else
        take_token(e, step, item, 0, now_ns);
    if (r->finish != FINISH_NONE)
        let_go(e, r);
    else
        request_tell(r, &e->outbox);
    return n_new;
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

/* Pages by state; of thousands of sequences only now and then, since that looks at each. */
static void count_pages(struct engine *e, int64_t now_ns)
{
    if (e->sched.running.n > MANY_RUNNING && now_ns - e->pages_ns < PAGES_EVERY_NS)
        return;
    e->pages = engine_count_pages(e);
    e->pages_ns = now_ns;
}

static void count_step(struct engine *e, const struct engine_step *step, int n_new)
{
    int64_t now_ns = clock_ns();
    struct stats_step add = {.end_ns = now_ns,
                             .n_prompt_rows = step->n_prompt,
                             .n_decode_rows = step->n_decode,
                             .n_new_tokens = n_new,
                             .n_waiting = e->sched.waiting.n,
                             .n_running = e->sched.running.n,
                             .n_preemptions = e->sched.n_preemptions,
                             .n_prefix_asked = e->sched.n_prefix_asked,
                             .n_prefix_found = e->sched.n_prefix_found,
                             .pages_used = kv_pool_used(&e->kv.pool),
                             .waiting_tokens = e->sched.waiting_tokens,
                             .healthy = e->n_failures < ENGINE_MAX_FAILURES};

    count_pages(e, now_ns);
    add.pages = e->pages;
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
