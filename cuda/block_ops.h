/*
 * block_ops - launchers of what only Block Transformers have. As those of cuda_backend.h.
 */
#ifndef BLOCK_OPS_H
#define BLOCK_OPS_H

#include "cuda/cuda_backend.h"

#ifdef __cplusplus
extern "C" {
#endif

/* Decode rows on a slab. */
int attn_token_launch(struct cuda_backend *cb, const struct attn_args *a, struct err *err);

/* out[r] = the table's rows of a block's tokens, side by side */
int block_gather_launch(struct cuda_backend *cb, const struct block_embed_args *a, void *out,
                        struct err *err);

#ifdef __cplusplus
}
#endif
#endif
