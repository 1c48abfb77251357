/*
 * scheduler - which rows run in the next step. See scheduler.h.
 */
#include "engine/scheduler_impl.h"

#include "base/check.h"
#include "base/err.h"
#include "engine/sched_prefix.h"

#include <stdlib.h>
#include <string.h>

static int32_t min32(int32_t a, int32_t b)
{
    return a < b ? a : b;
}

/* Is a in front of b? */
static bool is_before(const struct sched_seq *a, const struct sched_seq *b)
{
    return a->priority != b->priority ? a->priority < b->priority : a->order < b->order;
}

/* Inserts by order; almost always at the tail, so the walk is short. */
static void list_insert(struct sched_list *list, struct sched_seq *seq)
{
    struct sched_seq *before = list->tail;

    while (before && is_before(seq, before))
        before = before->prev;
    seq->prev = before;
    seq->next = before ? before->next : list->head;
    if (seq->next)
        seq->next->prev = seq;
    else
        list->tail = seq;
    if (before)
        before->next = seq;
    else
        list->head = seq;
    list->n++;
}

static void list_remove(struct sched_list *list, struct sched_seq *seq)
{
    if (seq->prev)
        seq->prev->next = seq->next;
    else
        list->head = seq->next;
    if (seq->next)
        seq->next->prev = seq->prev;
    else
        list->tail = seq->prev;
    seq->prev = seq->next = NULL;
    list->n--;
}

static void queue(struct scheduler *s, struct sched_seq *seq)
{
    seq->n_waiting = seq->n_tokens;
    s->waiting_tokens += seq->n_waiting;
    list_insert(&s->waiting, seq);
}

static void unqueue(struct scheduler *s, struct sched_seq *seq)
{
    s->waiting_tokens -= seq->n_waiting;
    list_remove(&s->waiting, seq);
}

int scheduler_init(struct scheduler *s, const struct sched_params *params, struct kv_slots *kv,
                   struct err *err)
{
    /* A Block Transformer's sequence may have rows of both decoders; prompts more of the second. */
    bool blocks = params->block_len > 0;
    size_t n = (size_t)params->max_batch, n_items = blocks ? n + (size_t)params->max_logits : n;

    CHECK(params->max_batch > 0);
    CHECK(params->max_batch <= kv->n_slots);
    CHECK(params->chunk_tokens > 0);
    CHECK(params->max_logits > params->max_batch);
    *s = (struct scheduler){.params = *params, .kv = kv, .next_order = 1};
    s->step.items = calloc(n_items, sizeof(*s->step.items));
    s->blocks = blocks ? calloc((size_t)params->max_logits, sizeof(*s->blocks)) : NULL;
    s->step.admitted = calloc(n, sizeof(*s->step.admitted));
    s->step.preempted = calloc(n, sizeof(*s->step.preempted));
    if (!s->step.items || !s->step.admitted || !s->step.preempted || (blocks && !s->blocks)) {
        scheduler_release(s);
        return err_set(err, ERR_NO_ROOM, "scheduler: no memory for %d sequences",
                       params->max_batch);
    }
    return 0;
}

void scheduler_release(struct scheduler *s)
{
    if (!s)
        return;
    free(s->blocks);
    free(s->step.items);
    free(s->step.admitted);
    free(s->step.preempted);
    *s = (struct scheduler){0};
}

bool scheduler_could_hold(const struct scheduler *s, const struct sched_seq *seq)
{
    return kv_slots_could_hold(s->kv, &seq->need) && seq->n_seen_max <= s->params.max_seen;
}

void scheduler_add(struct scheduler *s, struct sched_seq *seq)
{
    CHECK(seq->state == SEQ_IDLE);
    CHECK(seq->n_prompt + seq->lead > 0);
    CHECK(seq->n_tokens == seq->n_prompt);
    CHECK(seq->n_limit >= seq->n_prompt);
    CHECK(s->params.block_len > 0 || seq->need.n_limit == seq->n_limit);
    CHECK(scheduler_could_hold(s, seq));
    seq->state = SEQ_WAITING;
    seq->n_pending = 0;
    seq->n_done = 0;
    seq->n_logits_done = seq->first_logits_row;
    seq->n_cached = 0;
    seq->prefix_node = PREFIX_NONE;
    seq->n_cuts = 0;
    seq->n_preempted = 0;
    seq->slot = -1;
    seq->order = s->next_order++;
    queue(s, seq);
}

static void unseat(struct scheduler *s, struct sched_seq *seq)
{
    list_remove(&s->running, seq);
    kv_slot_give(s->kv, seq->slot);
    scheduler_forget_blocks(s, seq);
    s->n_seen -= seq->n_seen_max;
    seq->slot = -1;
    seq->n_done = 0;
    seq->prefix_node = PREFIX_NONE;
}

void scheduler_remove(struct scheduler *s, struct sched_seq *seq)
{
    CHECK(seq->state != SEQ_IDLE);
    if (seq->state == SEQ_WAITING)
        unqueue(s, seq);
    else
        unseat(s, seq);
    seq->state = SEQ_IDLE;
}

static void preempt(struct scheduler *s, struct sched_seq *seq)
{
    CHECK(seq->need.growable);
    CHECK(seq != s->running.head);
    unseat(s, seq);
    seq->state = SEQ_WAITING;
    seq->n_preempted++;
    s->n_preemptions++;
    queue(s, seq);
    s->step.preempted[s->step.n_preempted++] = seq;
}

/* The youngest growable running sequence behind seq, or NULL. */
static struct sched_seq *victim_behind(const struct scheduler *s, const struct sched_seq *seq)
{
    struct sched_seq *victim = s->running.tail;

    while (victim != seq && !victim->need.growable)
        victim = victim->prev;
    return victim == seq ? NULL : victim;
}

bool scheduler_make_room(struct scheduler *s, struct sched_seq *seq, int32_t n)
{
    while (!kv_slot_grow(s->kv, seq->slot, n)) {
        struct sched_seq *victim = victim_behind(s, seq);

        if (!victim)
            return false;
        preempt(s, victim);
    }
    return true;
}

struct sched_item *scheduler_add_item(struct scheduler *s, struct sched_seq *seq, int32_t n_rows)
{
    struct sched_step *step = &s->step;
    struct sched_item *item = &step->items[step->n_items++];

    *item = (struct sched_item){.seq = seq,
                                .row0 = step->n_rows,
                                .n_rows = n_rows,
                                .pos0 = seq->n_done,
                                .slot = seq->slot,
                                .logit0 = step->n_logits};
    step->n_rows += n_rows;
    return item;
}

/* An item whose rows are tokens. */
static struct sched_item *add_rows(struct scheduler *s, struct sched_seq *seq, int32_t n_rows)
{
    struct sched_item *item = scheduler_add_item(s, seq, n_rows);
    int32_t end = seq->n_done + n_rows;

    /* A row gives a token only where the sequence ends, and only when one is still wanted. */
    item->samples = end == sched_seq_len(seq) && end < seq->n_limit;
    item->ends_prompt = end >= seq->n_prompt;
    item->ends = end == seq->n_limit;
    return item;
}

/* Oldest first: those behind may lose their place while this walks, never those in front. */
static void plan_decode_rows(struct scheduler *s)
{
    for (struct sched_seq *seq = s->running.head; seq; seq = seq->next) {
        struct sched_item *item;

        if (seq->state != SEQ_DECODE)
            continue;
        CHECK(seq->n_done < sched_seq_len(seq));
        CHECK(sched_seq_len(seq) < seq->n_limit);
        if (!scheduler_make_room(s, seq, seq->n_done + 1)) {
            s->step.n_stalled++;
            continue;
        }
        item = add_rows(s, seq, 1);
        item->is_decode = true;
        s->step.n_decode++;
        s->step.n_logits += item->samples;
    }
}

/*
 * Pages to leave free at an admission: one a head, so that the next growth of those who run need
 * not evict the newcomer at once; less when they cannot grow by that much any more.
 */
static int64_t growth_headroom(const struct scheduler *s)
{
    int64_t most = kv_shape_heads(&s->kv->shape), to_come = 0;

    for (const struct sched_seq *seq = s->running.head; seq && to_come < most; seq = seq->next)
        to_come += seq->need.n_pages_limit - s->kv->slots[seq->slot].n_pages;
    return to_come < most ? to_come : most;
}

/* Seats the head of the queue, if what it needs is free; NULL if not. */
static struct sched_seq *admit_next(struct scheduler *s)
{
    struct sched_seq *seq = s->waiting.head;
    struct sched_prefix_hit hit;
    int slot;

    if (!seq || s->running.n == s->params.max_batch)
        return NULL;
    if (seq->n_pending) /* preempted: the replay needs all its tokens */
        return NULL;
    if (s->n_seen + seq->n_seen_max > s->params.max_seen)
        return NULL;
    if (!sched_prefix_find(s, seq, &hit))
        return NULL;
    slot = sched_prefix_seat(s, seq, growth_headroom(s), &hit);
    if (slot < 0)
        return NULL;
    if (seq->n_preempted == 0) {
        seq->n_cached = hit.n_tokens > seq->lead ? hit.n_tokens - seq->lead : 0;
        s->n_prefix_asked += hit.n_shareable > seq->lead ? hit.n_shareable - seq->lead : 0;
        s->n_prefix_found += seq->n_cached;
    }
    seq->n_done = hit.n_tokens / scheduler_entry_tokens(s);
    seq->prefix_node = hit.node;
    unqueue(s, seq);
    seq->slot = slot;
    seq->state = SEQ_PREFILL;
    s->n_seen += seq->n_seen_max;
    list_insert(&s->running, seq);
    s->step.admitted[s->step.n_admitted++] = seq;
    return seq;
}

/* Rows of seq's next chunk within the budgets. */
static int32_t chunk_rows(const struct sched_seq *seq, int32_t n_budget, int32_t n_logit_budget)
{
    int32_t end = sched_prefix_cut(seq, min32(seq->n_prompt, seq->n_done + n_budget));

    if (seq->wants_prompt_logits) {
        int32_t first = seq->n_done > seq->n_logits_done ? seq->n_done : seq->n_logits_done;

        end = min32(end, first + n_logit_budget);
    }
    /* Whole tiles where the budget allows: chunks that start inside one cost an extra tile each. */
    if (end < seq->n_prompt && end / KV_TILE * KV_TILE > seq->n_done)
        end = end / KV_TILE * KV_TILE;
    return end - seq->n_done;
}

static void plan_chunk(struct scheduler *s, struct sched_seq *seq, struct prompt_budget *left)
{
    int32_t n_rows = chunk_rows(seq, left->n_rows, left->n_logits);
    int32_t end = seq->n_done + n_rows;
    struct sched_item *item;

    if (n_rows == 0)
        return;
    s->step.n_prompt += n_rows;
    CHECK(end <= s->kv->slots[seq->slot].n_room);
    item = add_rows(s, seq, n_rows);
    if (seq->wants_prompt_logits) {
        int32_t first = seq->n_done > seq->n_logits_done ? seq->n_done : seq->n_logits_done;
        /* The last prompt row predicts no prompt token. */
        int32_t last = min32(end, seq->n_prompt - 1);

        item->n_prompt_logits = last > first ? last - first : 0;
    }
    s->step.n_logits += item->n_prompt_logits + item->samples;
    sched_prefix_planned(s, seq, end);
    left->n_rows -= n_rows;
    left->n_logits -= item->n_prompt_logits;
}

static void plan_prompt(struct scheduler *s, struct sched_seq *seq, struct prompt_budget *left)
{
    if (s->params.block_len)
        scheduler_plan_block_chunk(s, seq, left);
    else
        plan_chunk(s, seq, left);
}

void scheduler_plan_prompts(struct scheduler *s)
{
    /* One logit row a running sequence is set aside for sampling; the rest is for prompts. */
    struct prompt_budget left = {.n_rows = s->params.chunk_tokens,
                                 .n_logits = s->params.max_logits - s->params.max_batch};

    for (struct sched_seq *seq = s->running.head; seq && left.n_rows > 0; seq = seq->next) {
        if (seq->state == SEQ_PREFILL)
            plan_prompt(s, seq, &left);
    }
    /* Who sits out or was just evicted comes before anybody new. */
    if (s->step.n_preempted || s->step.n_stalled)
        return;
    while (left.n_rows > 0) {
        struct sched_seq *seq = admit_next(s);

        if (!seq)
            return;
        plan_prompt(s, seq, &left);
    }
}

const struct sched_step *scheduler_plan(struct scheduler *s)
{
    struct sched_step *step = &s->step;

    step->n_items = step->n_rows = step->n_decode = step->n_logits = 0;
    step->n_admitted = step->n_preempted = step->n_stalled = 0;
    step->n_prompt = step->n_block_rows = step->n_block_decode = 0;
    step->n_phases = 1;
    if (s->params.block_len) {
        scheduler_plan_blocks(s);
    } else {
        plan_decode_rows(s);
        scheduler_plan_prompts(s);
        CHECK(step->n_rows - step->n_decode <= s->params.chunk_tokens);
    }
    CHECK(step->n_logits <= s->params.max_logits);
    return step;
}

void scheduler_queued(struct scheduler *s)
{
    if (s->cache)
        kv_snapshots_commit(&s->cache->snapshots);
    if (s->params.block_len) {
        scheduler_blocks_queued(s);
        return;
    }
    for (int i = 0; i < s->step.n_items; i++) {
        const struct sched_item *item = &s->step.items[i];
        struct sched_seq *seq = item->seq;

        CHECK(seq->n_done == item->pos0);
        seq->n_done += item->n_rows;
        seq->n_pending += item->samples;
        if (!item->is_decode)
            sched_prefix_queued(s, seq, item->pos0);
        if (seq->n_done > seq->n_logits_done)
            seq->n_logits_done = min32(seq->n_done, seq->n_prompt);
        if (seq->n_done < seq->n_prompt)
            continue;
        seq->state = SEQ_DECODE;
        if (sched_seq_len(seq) == seq->n_limit)
            scheduler_remove(s, seq);
    }
}

void scheduler_push_token(struct sched_seq *seq)
{
    CHECK(seq->n_pending > 0);
    CHECK(seq->n_tokens < seq->n_limit);
    seq->n_pending--;
    seq->n_tokens++;
}
