/*
 * attn_token.cu - rows of a Block Transformer's token decoder attend to the keys of their block.
 *
 *   q     act  [n_rows, n_heads, head_dim]
 *   k, v  act  a slab: one page a (slot, layer, kv head), K [page_entries, head_dim], V behind it
 *   out   act  [n_rows, n_heads, head_dim]; scores and sums in f32
 *
 * Work     8 dims a lane, so head_dim / 8 lanes, rounded up to a power of two, a (row, query head):
 *          all of its keys and values are in registers before the first is used
 * Bound    HBM: 4 * (pos + 1) * head_dim bytes a (row, KV head) in 16 bits
 * Limits   head_dim a multiple of 8, at most 256; 11 keys, those of blocks of 8 and 4 prefixes;
 *          decode rows
 * Checked  against cpu in tests/cuda/test_block.c
 */
#include "cuda/block_ops.h"
#include "cuda/device.cuh"
#include "cuda/kv_entry.cuh"
#include "cuda/launch.cuh"

#define TOKEN_THREADS 128
#define FEW_KEYS      5 /* of the published models: 2 prefixes, 3 tokens */
#define MOST_KEYS     11

template <typename T> struct attn_token_args {
    const T *q;
    T *out;
    kv_pages<T> kv;
    const int32_t *pos, *slot; /* [n_rows] */
    int n_units;               /* (row, query head) pairs */
    int n_heads, group;        /* query heads to a KV head */
    int lanes;                 /* of a unit */
    float scale;
};

/* The sum over `lanes` neighbours, a power of two, for each of them. */
static __device__ __forceinline__ float lanes_sum(float v, int lanes)
{
    for (int m = lanes / 2; m > 0; m >>= 1)
        v += __shfl_xor_sync(0xffffffffu, v, m);
    return v;
}

/* lanes -> (row, query head); a lane -> 8 dims, none where head_dim has no more. */
template <typename T, int KEYS>
static __global__ void __launch_bounds__(TOKEN_THREADS)
    attn_token_kernel(const __grid_constant__ attn_token_args<T> a)
{
    int thread = blockIdx.x * TOKEN_THREADS + threadIdx.x, unit = thread / a.lanes;
    int dim = a.kv.head_dim, d = thread % a.lanes * 8;
    bool active = unit < a.n_units && d < dim;
    float q[8] = {}, o[8] = {}, k[KEYS][8], v[KEYS][8], score[KEYS], max = -INFINITY, sum = 0;
    int n = 0;

    grid_wait();
    grid_launch_next();
    if (active) {
        int row = unit / a.n_heads, head = unit % a.n_heads;
        const T *keys = kv_entry(a.kv, a.slot[row], 0, head / a.group, false) + d;
        const T *values = keys + (int64_t)a.kv.page_entries * dim;

        n = a.pos[row] + 1;
        load8(q, a.q + (int64_t)unit * dim + d);
#pragma unroll
        for (int j = 0; j < KEYS; j++) {
            if (j < n) {
                load8(k[j], keys + (int64_t)j * dim);
                load8(v[j], values + (int64_t)j * dim);
            }
        }
    }
    /* The lanes of a unit agree on n but for those without dims: all take every turn. */
#pragma unroll
    for (int j = 0; j < KEYS; j++) {
        float dot = 0;

        if (j < n) {
            for (int i = 0; i < 8; i++)
                dot += q[i] * k[j][i];
        }
        score[j] = lanes_sum(dot, a.lanes) * a.scale;
        if (j < n)
            max = fmaxf(max, score[j]);
    }
    if (!active)
        return;
#pragma unroll
    for (int j = 0; j < KEYS; j++) {
        if (j < n) {
            float w = expf(score[j] - max);

            sum += w;
            for (int i = 0; i < 8; i++)
                o[i] += w * v[j][i];
        }
    }
    for (int i = 0; i < 8; i++)
        o[i] /= sum;
    store8(a.out + (int64_t)unit * dim + d, o);
}

template <typename T>
static int token_start(struct cuda_backend *cb, const struct attn_args *p, struct err *err)
{
    struct attn_token_args<T> k = {
    };
    int64_t n_threads;
    dim3 grid;

    k.q = (const T *)p->q;
    k.out = (T *)p->out;
    k.kv = kv_pages_of<T>(p->kv, p->layer);
    k.pos = p->batch->pos;
    k.slot = p->batch->slot;
    k.n_units = p->batch->n_decode * p->n_heads;
    k.n_heads = p->n_heads;
    k.group = p->n_heads / p->n_kv_heads;
    k.scale = p->scale;
    k.lanes = 1;
    while (k.lanes * 8 < p->head_dim)
        k.lanes *= 2;
    n_threads = (int64_t)k.n_units * k.lanes;
    grid = dim3((unsigned)((n_threads + TOKEN_THREADS - 1) / TOKEN_THREADS));
    if (p->kv->page_entries <= FEW_KEYS)
        return launch_overlapped(cb, "attn_token", attn_token_kernel<T, FEW_KEYS>, grid,
                                 dim3(TOKEN_THREADS), 0, err, k);
    return launch_overlapped(cb, "attn_token", attn_token_kernel<T, MOST_KEYS>, grid,
                             dim3(TOKEN_THREADS), 0, err, k);
}

int attn_token_launch(struct cuda_backend *cb, const struct attn_args *p, struct err *err)
{
    if (p->batch->n_rows > p->batch->n_decode)
        return err_set(err, ERR_UNSUPPORTED, "attn: prompt rows on a slab");
    if (p->head_dim % 8 || p->head_dim > 256 || p->kv->page_entries > MOST_KEYS)
        return err_set(
            err, ERR_UNSUPPORTED,
            "attn: slab of %d keys of %d dims, built for %d of a multiple of 8 up to 256",
            p->kv->page_entries, p->head_dim, MOST_KEYS);
    if (p->batch->n_decode == 0)
        return 0;
    switch (cb->base.act_dtype) {
    case DTYPE_F32:
        return token_start<float>(cb, p, err);
    case DTYPE_BF16:
        return token_start<__nv_bfloat16>(cb, p, err);
    case DTYPE_F16:
        return token_start<__half>(cb, p, err);
    }
    return 0;
}
