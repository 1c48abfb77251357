/*
 * test_model_run - drives model_forward with a KV pool of its own: fixed pages a slot, shuffled so
 * that a wrong page table shows, and filled with NaN so that reading a stale entry shows.
 *
 * No scheduler, no kv_pool: what a test hands in is what the backend gets. Logits come back for
 * every row, in the order of the rows.
 */
#ifndef TEST_MODEL_RUN_H
#define TEST_MODEL_RUN_H

#include "base/dtype.h"
#include "engine/backend.h"
#include "engine/model/model.h"

#include <stdbool.h>
#include <stdint.h>

struct err;

struct test_model_params {
    const char *dir;
    const char *device; /* NULL: "cpu" */
    enum dtype dtype;
    bool random_weights;
    bool rings; /* windowed layers keep a ring instead of everything */
    int n_slots, max_positions, max_rows;
    int max_items; /* of a Block Transformer */
};

struct test_model {
    struct test_model_params params;
    struct model_config cfg;
    struct backend *be;
    struct model *model;
    struct kv_view kv;
    int32_t *rows;             /* device [5, max_rows]: token, pos, slot, logit_row, chunks */
    struct step_chunk *chunks; /* device [n_slots] */
    int32_t *host;             /* the same as rows */
    int32_t *rope_len;         /* host [max_rows] */
};

/* Some rows of one sequence: either one decode row or a chunk of the prompt. */
struct test_rows {
    int slot, pos0, n;
    const int32_t *tokens; /* [n] */
    bool decode;
    int rope_len; /* length of the prompt; pos0 + 1 for a decode row */
};

int test_model_open(struct test_model *t, const struct test_model_params *params, struct err *err);

/* Accepts what test_model_open left behind when it failed. */
void test_model_close(struct test_model *t);

/* One step; decode rows come first in seqs. logits: [all rows, vocab_size]. */
int test_model_step(struct test_model *t, const struct test_rows *seqs, int n_seqs, float *logits,
                    struct err *err);

/*
 * Feeds a whole sequence through slot 0: the first n_prompt tokens in chunks of chunk_len (0: one
 * chunk), the others one a step. logits: [n, vocab_size].
 */
int test_model_sequence(struct test_model *t, const int32_t *tokens, int n, int n_prompt,
                        int chunk_len, float *logits, struct err *err);

/* The lowest token with the highest logit. */
int32_t test_argmax(const float *logits, int n);

#endif
