/*
 * scheduler_impl - what scheduler.c and scheduler_block.c share.
 */
#ifndef SCHEDULER_IMPL_H
#define SCHEDULER_IMPL_H

#include "engine/scheduler.h"

/* What is left of a step for prompts. */
struct prompt_budget {
    int32_t n_rows, n_logits;
};

/* Room for n positions. False when seq must sit this step out. */
bool scheduler_make_room(struct scheduler *s, struct sched_seq *seq, int32_t n);

/* An item of n_rows rows from the first one that seq has not done. */
struct sched_item *scheduler_add_item(struct scheduler *s, struct sched_seq *seq, int32_t n_rows);

/* Chunks of the seated prompts, then of newcomers, oldest first. */
void scheduler_plan_prompts(struct scheduler *s);

/* Tokens of a position of keys: 1, or a block's. */
static inline int32_t scheduler_entry_tokens(const struct scheduler *s)
{
    return s->params.block_len ? s->params.block_len : 1;
}

/* Positions of keys that the prompt's rows fill. */
static inline int32_t scheduler_prompt_entries(const struct scheduler *s,
                                               const struct sched_seq *seq)
{
    int32_t n = (seq->lead + seq->n_prompt) / scheduler_entry_tokens(s);

    /* The last block's is not needed where nothing follows it. */
    return n < seq->need.n_limit ? n : seq->need.n_limit;
}

/* The parts of Block Transformers. */
void scheduler_plan_blocks(struct scheduler *s);
void scheduler_plan_block_chunk(struct scheduler *s, struct sched_seq *seq,
                                struct prompt_budget *left);
void scheduler_blocks_queued(struct scheduler *s);
void scheduler_forget_blocks(struct scheduler *s, const struct sched_seq *seq);

#endif
