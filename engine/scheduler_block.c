/*
 * scheduler_block - the steps of a Block Transformer. See scheduler.h.
 *
 * Whoever gets a row of the block decoder for the block in front of its unfinished one decodes that
 * one in this step and those that follow. A prompt whose tokens' logprobs are wanted has its blocks
 * decoded too, many at a time; its last row waits for a later phase 0, so that the sequence's own
 * tokens come behind all of that.
 */
#include "engine/sched_prefix.h"
#include "engine/scheduler_impl.h"

#include "base/check.h"

static int32_t min32(int32_t a, int32_t b)
{
    return a < b ? a : b;
}

static int32_t max32(int32_t a, int32_t b)
{
    return a > b ? a : b;
}

/* Whole blocks among the lead and n tokens. */
static int32_t whole_blocks(const struct scheduler *s, const struct sched_seq *seq, int32_t n)
{
    return (seq->lead + n) / s->params.block_len;
}

/* The first prompt token whose logits are still wanted; nothing tells those of the first block. */
static int32_t wants_from(const struct scheduler *s, const struct sched_seq *seq)
{
    int32_t first = s->params.block_len - seq->lead;

    return seq->wants_prompt_logits ? max32(first, seq->n_logits_done) : seq->n_prompt;
}

static void begin_block(struct scheduler *s, struct sched_seq *seq, int32_t block, int32_t seat,
                        int32_t context_row, bool is_prompt)
{
    CHECK(s->n_blocks < s->params.max_logits);
    s->blocks[s->n_blocks++] = (struct sched_block){.seq = seq,
                                                    .block = block,
                                                    .seat = seat,
                                                    .context_row = context_row,
                                                    .is_prompt = is_prompt};
}

static struct sched_item *add_blocks(struct scheduler *s, struct sched_seq *seq, int32_t n)
{
    struct sched_item *item = scheduler_add_item(s, seq, n);

    item->kind = SCHED_BLOCKS;
    item->row0 = s->step.n_block_rows;
    s->step.n_block_rows += n;
    return item;
}

/* One row for every sequence that has completed a block, oldest first. */
static void plan_block_rows(struct scheduler *s)
{
    for (struct sched_seq *seq = s->running.head; seq; seq = seq->next) {
        struct sched_item *item;

        if (seq->state != SEQ_DECODE)
            continue;
        CHECK(seq->n_done < whole_blocks(s, seq, sched_seq_len(seq)));
        if (!scheduler_make_room(s, seq, seq->n_done + 1)) {
            s->step.n_stalled++;
            continue;
        }
        item = add_blocks(s, seq, 1);
        item->is_decode = true;
        s->step.n_decode++;
        s->step.n_block_decode++;
        /* Who was preempted replays its blocks first. */
        if (seq->n_done + 1 == whole_blocks(s, seq, sched_seq_len(seq)))
            begin_block(s, seq, seq->n_done + 1, seq->slot, item->row0, false);
    }
}

/*
 * Where seq's next chunk ends, and the first of its rows whose next block's logits are wanted: the
 * end if there is none.
 */
static int32_t chunk_end(const struct scheduler *s, const struct sched_seq *seq,
                         const struct prompt_budget *left, int32_t *first_wanted)
{
    int32_t last = whole_blocks(s, seq, seq->n_prompt) - 1, from = wants_from(s, seq);
    int32_t end = min32(scheduler_prompt_entries(s, seq), seq->n_done + left->n_rows);
    int32_t row = max32(seq->n_done, (from + seq->lead) / s->params.block_len - 1);

    *first_wanted = end;
    if (from < seq->n_prompt && row < last) {
        end = min32(end, min32(last, row + left->n_logits));
        *first_wanted = min32(row, end);
    }
    if (end < last && end / KV_TILE * KV_TILE > seq->n_done) {
        end = end / KV_TILE * KV_TILE;
        *first_wanted = min32(*first_wanted, end);
    }
    return end;
}

/* Tokens of the prompt among blocks first .. end - 1. */
static int32_t tokens_of(const struct scheduler *s, const struct sched_seq *seq, int32_t first,
                         int32_t end)
{
    return max32(0, end * s->params.block_len - seq->lead) -
           max32(0, first * s->params.block_len - seq->lead);
}

void scheduler_plan_block_chunk(struct scheduler *s, struct sched_seq *seq,
                                struct prompt_budget *left)
{
    int32_t wanted, from = seq->n_done, end = chunk_end(s, seq, left, &wanted);
    int32_t prompt_end = scheduler_prompt_entries(s, seq);
    /* Seats in the slab behind those of the slots. */
    int32_t seat = s->params.max_logits - left->n_logits;
    struct sched_item *item;

    if (end == from)
        return;
    CHECK(end <= s->kv->slots[seq->slot].n_room);
    item = add_blocks(s, seq, end - from);
    s->step.n_prompt += tokens_of(s, seq, from, end);
    for (int32_t row = wanted; row < end; row++)
        begin_block(s, seq, row + 1, seat++, item->row0 + row - from, true);
    left->n_rows -= end - from;
    left->n_logits -= end - wanted;
    if (end < prompt_end || wanted < end)
        return;
    item->ends_prompt = wants_from(s, seq) >= seq->n_prompt;
    item->ends = item->ends_prompt && seq->n_limit == seq->n_prompt;
    /* Whole blocks behind the prompt are of a sequence that was preempted: they come first. */
    if (!item->ends && end == whole_blocks(s, seq, sched_seq_len(seq)))
        begin_block(s, seq, end, seq->slot, item->row0 + end - from - 1, false);
}

/* The token decoder's part; drops blocks that have no token left to come. */
static void plan_tokens(struct scheduler *s)
{
    int n = 0;

    for (int i = 0; i < s->n_blocks; i++) {
        struct sched_block b = s->blocks[i];
        int32_t token = b.seq ? b.block * s->params.block_len + s->phase - b.seq->lead : 0;
        struct sched_item *item;

        if (!b.seq || token >= b.seq->n_limit)
            continue;
        s->blocks[n++] = b;
        item = scheduler_add_item(s, b.seq, s->phase == 0 ? s->params.n_prefix : 1);
        item->kind = SCHED_TOKEN;
        item->is_decode = true;
        item->pos0 = token;
        item->seat = b.seat;
        item->context_row = b.context_row;
        item->samples = token == sched_seq_len(b.seq);
        item->n_prompt_logits =
            !item->samples && token < b.seq->n_prompt && token >= wants_from(s, b.seq);
        item->ends_prompt = item->n_prompt_logits && token == b.seq->n_prompt - 1;
        item->ends = item->ends_prompt && b.seq->n_limit == b.seq->n_prompt;
        s->step.n_decode += item->n_rows;
        s->step.n_logits += item->n_prompt_logits + item->samples;
        s->step.n_prompt += !b.is_prompt && token < b.seq->n_prompt;
    }
    s->n_blocks = n;
}

/* Is all that is to be decoded known without the host's help? */
static bool can_go_whole(const struct scheduler *s)
{
    if (!s->params.whole_blocks || s->params.block_len < 2)
        return false;
    for (int i = 0; i < s->n_blocks; i++) {
        const struct sched_block *b = &s->blocks[i];
        int32_t end = (b->block + 1) * s->params.block_len - b->seq->lead;

        if (b->is_prompt || b->seq->needs_tokens)
            return false;
        /* Some of its prompt's logits are of this block. */
        if (wants_from(s, b->seq) < min32(b->seq->n_prompt, end))
            return false;
    }
    return true;
}

/* The token decoder's part, all phases of it. */
static void plan_whole(struct scheduler *s)
{
    for (int i = 0; i < s->n_blocks; i++) {
        const struct sched_block *b = &s->blocks[i];
        int32_t token = b->block * s->params.block_len - b->seq->lead;
        int32_t n = min32(s->params.block_len, b->seq->n_limit - token);
        struct sched_item *item;

        if (n <= 0)
            continue;
        item = scheduler_add_item(s, b->seq, s->params.n_prefix + n - 1);
        item->kind = SCHED_WHOLE;
        item->is_decode = true;
        item->pos0 = token;
        item->seat = b->seat;
        item->context_row = b->context_row;
        item->n_phases = n;
        item->n_known = min32(n, sched_seq_len(b->seq) - token);
        item->samples = item->n_known < n;
        s->step.n_decode += item->n_rows;
        s->step.n_logits++;
        s->step.n_prompt += max32(0, min32(n, b->seq->n_prompt - token));
    }
    s->n_blocks = 0;
}

void scheduler_plan_blocks(struct scheduler *s)
{
    s->step.phase = s->phase;
    s->step.n_phases = 1;
    if (s->phase > 0) {
        plan_tokens(s);
        if (s->step.n_items > 0)
            return;
        s->phase = s->step.phase = 0; /* all of them have ended */
    }
    s->n_blocks = 0;
    plan_block_rows(s);
    scheduler_plan_prompts(s);
    if (can_go_whole(s)) {
        s->step.n_phases = s->params.block_len;
        plan_whole(s);
        return;
    }
    plan_tokens(s);
}

static void blocks_done(struct scheduler *s, const struct sched_item *item)
{
    struct sched_seq *seq = item->seq;

    CHECK(seq->n_done == item->pos0);
    seq->n_done += item->n_rows;
    if (!item->is_decode)
        sched_prefix_queued(s, seq, item->pos0);
    if (seq->state == SEQ_PREFILL && seq->n_done == scheduler_prompt_entries(s, seq))
        seq->state = SEQ_DECODE;
}

void scheduler_blocks_queued(struct scheduler *s)
{
    bool last = s->step.phase + s->step.n_phases == s->params.block_len;

    for (int i = 0; i < s->step.n_items; i++) {
        const struct sched_item *item = &s->step.items[i];
        struct sched_seq *seq = item->seq;

        if (item->kind == SCHED_BLOCKS)
            blocks_done(s, item);
        if (item->kind == SCHED_WHOLE)
            seq->n_pending += item->n_phases - item->n_known;
        else
            seq->n_pending += item->samples;
        /* Blocks of a prompt go side by side: all of them are done, or none. */
        if (item->n_prompt_logits && (last || item->seat == seq->slot))
            seq->n_logits_done = max32(seq->n_logits_done, item->pos0 + 1);
        if (item->ends || (item->samples && sched_seq_len(seq) == seq->n_limit))
            scheduler_remove(s, seq);
    }
    s->phase = last ? 0 : s->step.phase + 1;
    if (last)
        s->n_blocks = 0;
}

void scheduler_forget_blocks(struct scheduler *s, const struct sched_seq *seq)
{
    for (int i = 0; i < s->n_blocks; i++) {
        if (s->blocks[i].seq == seq)
            s->blocks[i].seq = NULL;
    }
}
