/*
 * scheduler - which rows run in the next step. Policy only: no math, no I/O, no clock.
 *
 * Each step: one decode row for every running sequence past its prompt, then prompt chunks up to
 * chunk_tokens, oldest sequence first. Order is that of priority, then arrival, throughout, so
 * nobody overtakes ("older" below means in front in that order):
 *
 *   admission   the head of the queue, when a slot, the pages of its prompt and one token (all its
 *               pages if it cannot grow), table entries and a share of the penalty room are free
 *   preemption  a sequence that needs a page nobody has takes one from the youngest growable
 *               sequence behind it; with none behind, it sits the step out. So the oldest always
 *               moves on: growable ones behind it yield, reserved ones need nothing to finish
 *   recompute   the victim queues where its age puts it, in front of all that never ran. Its
 *               prompt runs again as prompt rows, then its tokens as decode rows, one a step and
 *               unsampled: the very rows that made them, so what follows is unchanged too
 *
 *   prefixes    a newcomer whose prompt begins like one that is being computed waits until that
 *               part is done, then takes it over: n samples of a prompt compute it once. See
 *               sched_prefix.h
 *
 * A step may be planned before the tokens of the one before it are known: a sequence counts the
 * tokens that queued rows will give it, and whoever goes on to its end leaves when the last of them
 * is queued. Who stops sooner has a row too many, whose result nobody takes. Pages given back are
 * taken again at once: what is queued later runs later.
 *
 * Block Transformers (params.block_len > 0) keep keys by blocks of tokens and alternate: a step of
 * phase 0 runs rows of the block decoder, one for every sequence that has just completed a block,
 * then chunks of prompts; each leaves the context that its next block is decoded from. Phases 0 to
 * block_len - 1 then give one token each to every sequence that began in phase 0, in lock step.
 * Newcomers, and pages, come in phase 0 only. Tokens that are known, the end of a prompt that fills
 * no block, go through the phases without being drawn. With params.whole_blocks a step has all
 * phases at once, unless somebody in it must have one token on the host before the next is drawn
 * (needs_tokens), or wants logits of its prompt: then it is a phase, as are those that follow it up
 * to the next block.
 *
 * The engine thread owns the scheduler and every sched_seq in it.
 */
#ifndef SCHEDULER_H
#define SCHEDULER_H

#include "engine/engine.h"
#include "engine/kv/kv_slot.h"
#include "engine/kv/prefix_cache.h"

#include <stdbool.h>
#include <stdint.h>

#define SCHED_MAX_CUTS 4

enum seq_state { SEQ_IDLE = 0, SEQ_WAITING, SEQ_PREFILL, SEQ_DECODE };

/* One generation as the scheduler sees it; embedded in the request. */
struct sched_seq {
    /* Set before scheduler_add(). */
    struct kv_need need;        /* of n_limit tokens; a Block Transformer's: of their blocks */
    int32_t n_limit;            /* prompt + max_tokens */
    const int32_t *tokens;      /* [n_tokens] the prompt and what was generated, borrowed */
    int32_t lead;               /* tokens in front of it, tokens[-lead] to tokens[-1]: blocks' */
    int32_t n_prompt, n_tokens; /* n_tokens grows by scheduler_push_token() */
    int32_t n_seen_max;         /* penalty entries a step of it can take */
    bool wants_prompt_logits;
    bool needs_tokens; /* on the host, before its next one is drawn */
    enum engine_pooling pooling;
    int32_t priority;      /* lower comes first; equal ones by arrival */
    bool shares_prefix;    /* its prompt may come from the prefix cache, and go there */
    struct prefix_key key; /* with it */
    void *owner;

    /* The scheduler's own. */
    enum seq_state state;
    int32_t n_pending;        /* tokens that queued rows sample, to come on top of n_tokens */
    int32_t n_done;           /* positions whose keys are in the pages, once all queued has run */
    int32_t first_logits_row; /* prompt rows before it need none; blocks': prompt tokens */
    int32_t n_logits_done;    /* prompt rows (tokens) whose logits were handed out */
    int slot;                 /* -1 unless running */
    int n_preempted;
    int32_t n_waiting;            /* tokens that it counts for while it waits */
    int32_t n_cached;             /* prompt tokens that were found when it was first seated */
    int32_t prefix_node;          /* of its last whole page in the cache */
    int32_t cuts[SCHED_MAX_CUTS]; /* [n_cuts] ascending: where chunks of its prompt end, so that */
    int n_cuts;                   /* what its heads keep there can be kept for others */
    uint64_t order;               /* of arrival */
    struct sched_seq *prev, *next;
};

enum sched_kind {
    SCHED_ROWS = 0, /* tokens */
    SCHED_BLOCKS,   /* blocks, for the block decoder: no logits */
    SCHED_TOKEN,    /* one token of a block, for the token decoder */
    SCHED_WHOLE     /* all tokens of a block, for the token decoder */
};

/* Consecutive rows of one sequence, or what the token decoder does for one of its blocks. */
struct sched_item {
    struct sched_seq *seq;
    enum sched_kind kind;
    int slot;
    int32_t row0, n_rows, pos0;      /* SCHED_TOKEN: pos0 is the token that the logits are of */
    int32_t logit0, n_prompt_logits; /* logits of the item's last rows: prompt rows, then ... */
    bool samples;                    /* ... its last row, which gives the next token */
    bool is_decode;
    bool ends_prompt;          /* no logits of the prompt come behind it */
    bool ends;                 /* nothing of the sequence comes behind it, and it samples nothing */
    int32_t seat, context_row; /* SCHED_TOKEN: in the slab; the row of the context, in phase 0 */
    /* SCHED_WHOLE: pos0 is the block's first token; phases n_known to n_phases - 1 sample. */
    int32_t n_known, n_phases;
    int32_t prev; /* the engine's: the sequence's item before it in the step; -1: none */
};

/* The position of the row that the item's k-th prompt logits are of. */
static inline int32_t sched_item_logit_pos(const struct sched_item *item, int32_t k)
{
    int32_t end = item->pos0 + item->n_rows;

    /* The prompt's last row predicts no prompt token. */
    return (end == item->seq->n_prompt ? end - 1 : end) - item->n_prompt_logits + k;
}

/* The prompt token that they tell the logprob of. */
static inline int32_t sched_item_logit_token(const struct sched_item *item, int32_t k)
{
    return item->kind == SCHED_TOKEN ? item->pos0 : sched_item_logit_pos(item, k) + 1;
}

struct sched_step {
    /*
     * [n_items] decode rows first; Block Transformers': blocks that decode, chunks of blocks, then
     * tokens. n_rows counts all rows, n_decode those of them that serve generation.
     */
    struct sched_item *items;
    int n_items, n_rows, n_decode, n_logits;
    int n_prompt;                             /* prompt tokens that are done with the step */
    int phase;                                /* Block Transformers' */
    int n_phases;                             /* from there on; likewise */
    int n_block_rows, n_block_decode;         /* rows of the block decoder */
    struct sched_seq **admitted, **preempted; /* in the order it happened */
    int n_admitted, n_preempted;
    int n_stalled; /* running sequences without a row, for want of pages */
};

struct sched_list {
    struct sched_seq *head, *tail;
    int n;
};

struct sched_params {
    int max_batch;     /* running sequences; the slots of kv */
    int chunk_tokens;  /* prompt rows of a step */
    int max_logits;    /* logit rows of a step, more than max_batch */
    int32_t max_seen;  /* penalty entries of a step */
    int block_len;     /* tokens of a Block Transformer's block; 0: rows are tokens */
    int n_prefix;      /* its token decoder's rows for a block in phase 0 */
    bool whole_blocks; /* steps of all phases, where they can be */
};

/* A block that the token decoder is at. */
struct sched_block {
    struct sched_seq *seq; /* NULL: it is not wanted any more */
    int32_t block, seat, context_row;
    bool is_prompt; /* all of it, and only its logits are wanted */
};

struct scheduler {
    struct sched_params params;
    struct kv_slots *kv;                    /* borrowed */
    struct prefix_cache *cache;             /* borrowed, or NULL */
    int64_t n_prefix_asked, n_prefix_found; /* prompt tokens that could be, and were, found */
    struct sched_list waiting, running;     /* both by order */
    struct sched_step step;
    int phase;                  /* of the next step; Block Transformers' */
    struct sched_block *blocks; /* [n_blocks] since phase 0 */
    int n_blocks;
    uint64_t next_order;
    int64_t n_seen; /* penalty entries of all running sequences */
    int64_t n_preemptions;
    int64_t waiting_tokens; /* of all that wait, as they were when they came */
};

int scheduler_init(struct scheduler *s, const struct sched_params *params, struct kv_slots *kv,
                   struct err *err);
void scheduler_release(struct scheduler *s);

/* Could it run alone? If not, it must not be added. */
bool scheduler_could_hold(const struct scheduler *s, const struct sched_seq *seq);

/* How long the sequence is, its tokens to come included. */
static inline int32_t sched_seq_len(const struct sched_seq *seq)
{
    return seq->n_tokens + seq->n_pending;
}

/* Queues a sequence. */
void scheduler_add(struct scheduler *s, struct sched_seq *seq);

/*
 * Takes a sequence out in whatever state it is and gives its pages back. Not between plan and
 * queued. Rows of it that are queued still run: their results are not to be pushed.
 */
void scheduler_remove(struct scheduler *s, struct sched_seq *seq);

/*
 * The next step, borrowed until the next call; n_rows is 0 when nothing can run, which may be for
 * want of tokens that are still to come. Slots are seated and pages taken when it returns. Each
 * must be followed by scheduler_queued() unless it is empty.
 */
const struct sched_step *scheduler_plan(struct scheduler *s);

/*
 * The step was queued, and all rows of later steps will find its keys in the pages. Sequences that
 * want no further row are out: their state is SEQ_IDLE, and only their tokens are still to come.
 */
void scheduler_queued(struct scheduler *s);

/* The oldest token to come is known: it lies in tokens[n_tokens]. */
void scheduler_push_token(struct sched_seq *seq);

#endif
