/*
 * block_embed.cu - rows of an embedding table side by side: the tokens of a block as one row.
 *
 *   table  act  [vocab_size, embed_dim]
 *   out    act  [n_rows, block_len, embed_dim]
 *
 * Work     one CTA per row, 16 bytes a thread
 * Limits   embed_dim a multiple of 8; an id outside the table reads row 0 (the engine checks ids)
 * Checked  against cpu in tests/cuda/test_block.c
 */
#include "cuda/block_ops.h"
#include "cuda/device.cuh"

struct block_gather_args {
    const uint4 *table;   /* [vocab_size, row_vecs] */
    const int32_t *token; /* [n_rows, block_len]; k-th < 0: slot_token[slot * block_len + k] */
    const int32_t *slot, *slot_token;
    uint4 *out; /* [n_rows, block_len, row_vecs] */
    int block_len, row_vecs, vocab_size;
};

/* CTA -> row; thread -> every blockDim-th vector of it */
static __global__ void block_gather_kernel(const __grid_constant__ block_gather_args a)
{
    int n = a.block_len * a.row_vecs;

    for (int i = threadIdx.x; i < n; i += blockDim.x) {
        int token = a.token[(int64_t)blockIdx.x * a.block_len + i / a.row_vecs];

        if (token < 0 && a.slot_token)
            token = a.slot_token[(int64_t)a.slot[blockIdx.x] * a.block_len + i / a.row_vecs];
        if ((unsigned)token >= (unsigned)a.vocab_size)
            token = 0;
        a.out[(int64_t)blockIdx.x * n + i] = a.table[(int64_t)token * a.row_vecs + i % a.row_vecs];
    }
}

int block_gather_launch(struct cuda_backend *cb, const struct block_embed_args *e, void *out,
                        struct err *err)
{
    struct block_gather_args k = {};
    int rc = cuda_check_matrix(cb, e->table, "embedder", err);

    if (rc < 0 || e->batch->n_rows == 0)
        return rc;
    k.table = (const uint4 *)e->table->data;
    k.token = e->token;
    k.slot = e->batch->slot;
    k.slot_token = e->batch->slot_token;
    k.out = (uint4 *)out;
    k.block_len = e->block_len;
    k.row_vecs = (int)(e->table->n_in * dtype_bytes(cb->base.act_dtype) / sizeof(uint4));
    k.vocab_size = e->table->n_out;
    block_gather_kernel<<<e->batch->n_rows, 128, 0, cb->stream>>>(k);
    return cuda_launched(cb, "block_gather", err);
}
