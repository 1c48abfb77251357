/*
 * rope.cu - what follows the qkv product: bias, norm of q and k heads, rotation, and the way of k
 * and v to their places.
 *
 *   qkv   act  [n_rows, n_heads + 2 n_kv_heads, head_dim]
 *   q     act  [n_rows, n_heads, head_dim]
 *   k, v  kv   decode rows: into pages; prompt rows: [n_rows - n_decode, n_kv_heads, head_dim]
 *
 * Work     one warp per (row, head); a head waits in shared memory for its rotation
 * Bound    launch latency for decode rows; HBM, 4 bytes an element, for prompt rows
 * Limits   head_dim <= 256
 * Checked  against cpu in tests/cuda/test_ops.c
 */
#include "cuda/cuda_backend.h"
#include "cuda/device.cuh"
#include "cuda/kv_entry.cuh"
#include "cuda/launch.cuh"

#define ROPE_WARPS    4
#define ROPE_MAX_HEAD 256

template <typename T> struct rope_kernel_args {
    const T *qkv;
    const float *bias;            /* [(n_heads + 2 n_kv_heads) head_dim] or NULL */
    const float *q_norm, *k_norm; /* [head_dim] or NULL */
    const float *inv_freq;        /* row stride inv_freq_stride */
    T *q, *k_chunk, *v_chunk;
    kv_pages<T> kv;
    const int32_t *pos, *rope_pos, *slot; /* [n_rows] */
    int64_t n_units;                      /* (row, head) pairs from row0 on */
    int row0, n_decode, n_heads;
    int rope_dim, inv_freq_stride;
    float qk_norm_eps, rope_scale;
};

/* Where the k or v head of one row goes. */
template <typename T>
static __device__ T *kv_place(const rope_kernel_args<T> &a, int row, int head, bool is_v)
{
    if (row >= a.n_decode)
        return (is_v ? a.v_chunk : a.k_chunk) +
               ((int64_t)(row - a.n_decode) * a.kv.n_kv_heads + head) * a.kv.head_dim;
    return kv_entry(a.kv, a.slot[row], a.pos[row], head, is_v);
}

/* warp -> (row, head of q, k or v) */
template <typename T>
static __global__ void __launch_bounds__(ROPE_WARPS *WARP_LANES)
    rope_kernel(const __grid_constant__ rope_kernel_args<T> a)
{
    __shared__ float heads[ROPE_WARPS][ROPE_MAX_HEAD];
    int warp = threadIdx.x / WARP_LANES, lane = threadIdx.x % WARP_LANES;
    int64_t unit = (int64_t)blockIdx.x * ROPE_WARPS + warp;
    int n_kv_heads = a.kv.n_kv_heads, head_dim = a.kv.head_dim, n_all = a.n_heads + 2 * n_kv_heads;
    int row = a.row0 + (int)(unit / n_all), head = (int)(unit % n_all), half = a.rope_dim / 2;
    bool is_q = head < a.n_heads, is_v = head >= a.n_heads + n_kv_heads;
    const float *gain = is_q ? a.q_norm : is_v ? NULL : a.k_norm;
    float *buf = heads[warp], sum = 0, pos;
    T *out;

    grid_wait();
    grid_launch_next();
    if (unit >= a.n_units)
        return;
    for (int d = lane; d < head_dim; d += WARP_LANES) {
        float v = to_f32(a.qkv[(unit + (int64_t)a.row0 * n_all) * head_dim + d]);

        if (a.bias)
            v += a.bias[head * head_dim + d];
        buf[d] = v;
        sum += v * v;
    }
    if (gain) {
        float scale = rsqrtf(warp_sum(sum) / (float)head_dim + a.qk_norm_eps);

        for (int d = lane; d < head_dim; d += WARP_LANES)
            buf[d] *= scale * gain[d];
    }
    __syncwarp(); /* the rotation reads other lanes' dims */
    if (is_q)
        out = a.q + ((int64_t)row * a.n_heads + head) * head_dim;
    else
        out = kv_place(a, row, (head - a.n_heads) % n_kv_heads, is_v);
    pos = (float)a.rope_pos[row];
    for (int d = lane; d < head_dim; d += WARP_LANES) {
        float v = buf[d];

        if (!is_v && d < a.rope_dim) {
            int i = d < half ? d : d - half;
            float angle = pos * a.inv_freq[(int64_t)row * a.inv_freq_stride + i], s, c;

            sincosf(angle, &s, &c);
            s *= a.rope_scale;
            c *= a.rope_scale;
            v = d < half ? v * c - buf[d + half] * s : v * c + buf[d - half] * s;
        }
        out[d] = from_f32<T>(v);
    }
}

template <typename T>
static int rope_start(struct cuda_backend *cb, const struct attn_in_args *p, const void *qkv,
                      int row0, struct err *err)
{
    struct rope_kernel_args<T> k = {
    };

    k.qkv = (const T *)qkv;
    k.bias = p->bqkv ? (const float *)p->bqkv->data : NULL;
    k.q_norm = p->q_norm ? (const float *)p->q_norm->data : NULL;
    k.k_norm = p->k_norm ? (const float *)p->k_norm->data : NULL;
    k.inv_freq = p->inv_freq;
    k.q = (T *)p->q;
    k.k_chunk = (T *)p->k_chunk;
    k.v_chunk = (T *)p->v_chunk;
    k.kv = kv_pages_of<T>(p->kv, p->layer);
    k.pos = p->batch->pos;
    k.rope_pos = p->batch->rope_pos ? p->batch->rope_pos : p->batch->pos;
    k.slot = p->batch->slot;
    k.row0 = row0;
    k.n_units = (int64_t)(p->batch->n_rows - row0) * (p->n_heads + 2 * p->n_kv_heads);
    k.n_decode = p->batch->n_decode;
    k.n_heads = p->n_heads;
    k.rope_dim = p->rope_dim;
    k.inv_freq_stride = p->inv_freq_stride;
    k.qk_norm_eps = p->qk_norm_eps;
    k.rope_scale = p->rope_scale;
    return launch_overlapped(cb, "rope", rope_kernel<T>,
                             dim3((unsigned)((k.n_units + ROPE_WARPS - 1) / ROPE_WARPS)),
                             dim3(ROPE_WARPS * WARP_LANES), 0, err, k);
}

int rope_launch(struct cuda_backend *cb, const struct attn_in_args *p, const void *qkv, int row0,
                struct err *err)
{
    if (p->batch->n_rows <= row0)
        return 0;
    if (p->head_dim > ROPE_MAX_HEAD)
        return err_set(err, ERR_UNSUPPORTED, "attn_in: head_dim %d, at most %d is built",
                       p->head_dim, ROPE_MAX_HEAD);
    switch (cb->base.act_dtype) {
    case DTYPE_F32:
        return rope_start<float>(cb, p, qkv, row0, err);
    case DTYPE_BF16:
        return rope_start<__nv_bfloat16>(cb, p, qkv, row0, err);
    case DTYPE_F16:
        return rope_start<__half>(cb, p, qkv, row0, err);
    }
    return 0;
}
