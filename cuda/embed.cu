/*
 * embed.cu - rows of the embedding table by token id.
 *
 *   table  act  [vocab_size, dim]
 *   x      act  [n_rows, dim]
 *
 * Work     one CTA per row, 16 bytes a thread
 * Limits   dim a multiple of 8; an id outside the table reads row 0 (the engine checks ids)
 * Checked  against cpu in tests/cuda/test_ops.c
 */
#include "cuda/cuda_backend.h"
#include "cuda/device.cuh"

struct embed_kernel_args {
    const uint4 *table;   /* [vocab_size, row_vecs] */
    const int32_t *token; /* [n_rows]; < 0: slot_token[slot * slot_stride] */
    const int32_t *slot, *slot_token;
    uint4 *x; /* [n_rows, row_vecs] */
    int row_vecs, vocab_size, slot_stride;
};

/* CTA -> row */
static __global__ void embed_kernel(const __grid_constant__ embed_kernel_args a)
{
    int token = a.token[blockIdx.x];

    if (token < 0 && a.slot_token)
        token = a.slot_token[(int64_t)a.slot[blockIdx.x] * a.slot_stride];
    if ((unsigned)token >= (unsigned)a.vocab_size)
        token = 0;
    for (int i = threadIdx.x; i < a.row_vecs; i += blockDim.x)
        a.x[(int64_t)blockIdx.x * a.row_vecs + i] = a.table[(int64_t)token * a.row_vecs + i];
}

int embed_launch(struct cuda_backend *cb, const struct embed_args *e, struct err *err)
{
    struct embed_kernel_args k = {};
    int n_rows = e->batch->n_rows, dim = e->table->n_in;
    size_t act = dtype_bytes(cb->base.act_dtype);
    int rc = cuda_check_matrix(cb, e->table, "embed", err);

    if (rc < 0 || n_rows == 0)
        return rc;
    k.table = (const uint4 *)e->table->data;
    k.token = e->batch->token;
    k.slot = e->batch->slot;
    k.slot_token = e->batch->slot_token;
    k.x = (uint4 *)e->x;
    k.row_vecs = (int)(dim * act / sizeof(uint4));
    k.vocab_size = e->table->n_out;
    k.slot_stride = step_batch_stride(e->batch);
    embed_kernel<<<n_rows, 128, 0, cb->stream>>>(k);
    return cuda_launched(cb, "embed", err);
}
