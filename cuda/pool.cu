/*
 * pool.cu - sums of rows, one sequence's in double precision: what embeddings are made of.
 *
 *   rows  act  [n_rows, dim], normed
 *   sums  f64  [n_slots, dim], which go on from one step to the next
 *
 * Work     one thread a sum; rows one after the other, so that sums do not depend on chunks
 * Bound    latency: a chunk is a few MB that the norm has just written
 * Checked  against cpu in tests/cuda/test_ops.c
 */
#include "cuda/cuda_backend.h"
#include "cuda/device.cuh"

#define POOL_THREADS 128

template <typename T> struct pool_kernel_args {
    const T *rows;                 /* [n_rows, dim] */
    const struct step_pool *pools; /* [gridDim.y] */
    double *sums;                  /* [n_slots, dim] */
    int dim;
};

/* CTA (x, y) -> columns x * POOL_THREADS.. of pool y */
template <typename T>
static __global__ void __launch_bounds__(POOL_THREADS)
    pool_kernel(const __grid_constant__ pool_kernel_args<T> a)
{
    struct step_pool pool = a.pools[blockIdx.y];
    int col = blockIdx.x * POOL_THREADS + threadIdx.x;
    double *out = a.sums + (int64_t)pool.slot * a.dim + col;
    const T *row = a.rows + (int64_t)pool.row0 * a.dim + col;
    double sum;

    if (col >= a.dim)
        return;
    sum = pool.is_first ? 0.0 : *out;
#pragma unroll 8
    for (int r = 0; r < pool.n_rows; r++)
        sum += (double)to_f32(row[(int64_t)r * a.dim]);
    *out = sum;
}

template <typename T>
static void pool_start(struct cuda_backend *cb, const struct pool_args *a, const void *rows)
{
    struct pool_kernel_args<T> k = {
    };
    dim3 grid((a->dim + POOL_THREADS - 1) / POOL_THREADS, a->batch->n_pools);

    k.rows = (const T *)rows;
    k.pools = a->batch->pools;
    k.sums = a->sums;
    k.dim = a->dim;
    pool_kernel<T><<<grid, POOL_THREADS, 0, cb->stream>>>(k);
}

int pool_launch(struct cuda_backend *cb, const struct pool_args *a, const void *rows,
                struct err *err)
{
    if (a->batch->n_pools == 0)
        return 0;
    switch (cb->base.act_dtype) {
    case DTYPE_F32:
        pool_start<float>(cb, a, rows);
        break;
    case DTYPE_BF16:
        pool_start<__nv_bfloat16>(cb, a, rows);
        break;
    case DTYPE_F16:
        pool_start<__half>(cb, a, rows);
        break;
    }
    return cuda_launched(cb, "pool", err);
}
