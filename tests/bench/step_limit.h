/*
 * step_limit - what the tokens of a model must move and multiply, from its configuration alone.
 *
 * A Block Transformer's numbers are the mean over a block: the block decoder once, the token
 * decoder and the head for every token.
 */
#ifndef STEP_LIMIT_H
#define STEP_LIMIT_H

#include "engine/engine_state.h"

/* Positions of keys that n tokens take, and tokens to a position. */
int step_limit_entries(const struct engine *e, int n);
int step_limit_entry_tokens(const struct engine *e);

/* Weight bytes that a step reads, however many its rows: all but tables, of which it reads rows. */
double step_limit_weight_bytes(const struct engine *e);

/* Key and value bytes that the token at position pos of a sequence of n reads under the plan. */
double step_limit_kv_bytes(const struct engine *e, int n, int pos);

/* Two for each weight that a generated token is multiplied with. Without attention. */
double step_limit_flops(const struct engine *e);

/* The same of a prompt's token: no head, and of a Block Transformer no token decoder. */
double step_limit_prompt_flops(const struct engine *e);

/* Memory of a sequence of n tokens: its pages, and what its keys alone would take. */
struct step_limit_sample {
    double page_bytes, exact_bytes;
};
struct step_limit_sample step_limit_sample(const struct engine *e, int n);

/* Sequences of n tokens that the pool holds, at most max_batch. */
int step_limit_batch(const struct engine *e, int n);

#endif
