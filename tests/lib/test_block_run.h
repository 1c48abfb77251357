/*
 * test_block_run - drives model_forward_blocks over one sequence whose tokens are all known: blocks
 * of the prompt as one chunk, later ones as decode rows, and every block's tokens by the token
 * decoder, all contexts of a step at a time.
 */
#ifndef TEST_BLOCK_RUN_H
#define TEST_BLOCK_RUN_H

#include "tests/lib/test_model_run.h"

/*
 * logits [n + 1, vocab_size]: row i predicts tokens[i], row n what would follow. Rows of a first
 * block that nothing predicts are left alone. max_items of the model must hold the prompt's blocks.
 */
int test_block_sequence(struct test_model *t, const int32_t *tokens, int n, int n_prompt,
                        float *logits, struct err *err);

#endif
