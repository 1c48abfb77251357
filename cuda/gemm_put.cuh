/*
 * gemm_put - where the sums of a product of few rows go: bias, activation, residual and the next
 * norm, rotation and the way to the pages. One warp has 128 outputs of a row. For gemm_wgmma.cu.
 */
#ifndef GEMM_PUT_CUH
#define GEMM_PUT_CUH

#include "cuda/cuda_backend.h"
#include "cuda/device.cuh"
#include "cuda/kv_entry.cuh"

#define TILE_OUT 128 /* two warpgroups of 64 rows of w */

/* What a product's end is compiled for; the rest is decided at run time. */
enum put_kind { PUT_PLAIN, PUT_RESIDUAL, PUT_GATED, PUT_ROTATED };

struct rope_args {
    const float *q_norm, *k_norm; /* [head_dim] or NULL */
    const float *inv_freq;
    const int32_t *pos, *slot;
    void *q;
    int inv_freq_stride, n_heads, n_kv_heads, head_dim;
    float qk_norm_eps, rope_scale;
};

template <typename T> struct gemm_wgmma_args {
    const float *bias; /* [n_out] or NULL */
    void *out;         /* [n_rows, n_cols] */
    float4 *parts;     /* sums of tiles that several CTAs share: [2 n_ctas, N / 8, consumers] */
    int32_t *arrived;  /* [n_tiles, 2] CTAs that have left their sums; that are done. Then zero */
    const float *sum_sq;
    const float *next_gain;
    T *gained;
    float *next_sum_sq;
    kv_pages<T> kv;
    rope_args rope;
    int n_rows, n_cols, n_tiles, tile_units, row0;
    int n_shares, split; /* CTAs; of a tile, where they are a cluster, else 0 */
    int n_sum_sq, sum_sq_stride, dim;
    float norm_eps;
    int epilogue, act;
};

template <typename T> static __device__ __forceinline__ void store4(T *p, const float v[4], int n)
{
    if (n == 4 && (uintptr_t)p % (4 * sizeof(T)) == 0) {
        *reinterpret_cast<uint2 *>(p) = make_uint2(pack2<T>(v[0], v[1]), pack2<T>(v[2], v[3]));
        return;
    }
#pragma unroll
    for (int i = 0; i < 4; i++) {
        if (i < n)
            p[i] = from_f32<T>(v[i]);
    }
}

/*
 * What a lane wants of memory before it can put its outputs of a row: the residual, or the angles
 * of its dims and where they go. Asked for while the sums are still being made.
 */
template <typename T> struct row_ahead {
    float v[4], sin[4]; /* the residual; or cosines and sines */
    T *to;              /* of a rotated row; NULL: nowhere */
};

template <typename T>
static __device__ __forceinline__ void residual_ahead(const gemm_wgmma_args<T> &a, int col, int row,
                                                      row_ahead<T> *r)
{
    const T *x = (const T *)a.out + (int64_t)row * a.n_cols + col;
    int n = a.n_cols - col;

    if (n >= 4 && (uintptr_t)x % (4 * sizeof(T)) == 0) {
        uint2 u = *reinterpret_cast<const uint2 *>(x);
        float2 lo = unpack2<T>(u.x), hi = unpack2<T>(u.y);

        r->v[0] = lo.x, r->v[1] = lo.y, r->v[2] = hi.x, r->v[3] = hi.y;
        return;
    }
#pragma unroll
    for (int i = 0; i < 4; i++)
        r->v[i] = i < n ? to_f32(x[i]) : 0.0f;
}

template <typename T>
static __device__ __forceinline__ void head_ahead(const gemm_wgmma_args<T> &a, int col, int row,
                                                  row_ahead<T> *r)
{
    const rope_args &p = a.rope;
    int head = col / p.head_dim, d = col % p.head_dim, half = p.head_dim / 2, pos = p.pos[row];
    bool is_v = head >= p.n_heads + p.n_kv_heads;

    r->to = NULL;
    if (col >= a.n_cols)
        return;
    if (head < p.n_heads)
        r->to = (T *)p.q + (int64_t)row * p.n_heads * p.head_dim + col;
    else
        r->to = kv_entry(a.kv, p.slot[row], pos, (head - p.n_heads) % p.n_kv_heads, is_v) + d;
    for (int i = 0; i < 4 && !is_v; i++) {
        sincosf((float)pos * p.inv_freq[(int64_t)row * p.inv_freq_stride + (d + i) % half],
                &r->sin[i], &r->v[i]);
        r->sin[i] *= p.rope_scale;
        r->v[i] *= p.rope_scale;
    }
}

template <int PUT, typename T>
static __device__ __forceinline__ row_ahead<T> look_ahead(const gemm_wgmma_args<T> &a, int tile,
                                                          int row, int lane)
{
    row_ahead<T> r = {};

    if constexpr (PUT == PUT_RESIDUAL)
        residual_ahead(a, tile * TILE_OUT + lane * 4, row, &r);
    if constexpr (PUT == PUT_ROTATED)
        head_ahead(a, tile * TILE_OUT + lane * 4, row, &r);
    return r;
}

/* x += v, and what the next norm needs of the new x. One warp has the tile's columns of a row. */
template <typename T>
static __device__ __forceinline__ void add_residual(const gemm_wgmma_args<T> &a, int tile, int row,
                                                    int col, const float v[4], int n, int lane,
                                                    const row_ahead<T> &ahead)
{
    T *x = (T *)a.out + (int64_t)row * a.n_cols + col;
    float sum[4] = {}, gained[4] = {}, sq = 0;

    for (int i = 0; i < 4; i++) {
        sum[i] = to_f32(from_f32<T>(ahead.v[i] + v[i]));
        if (i < n && a.next_gain) {
            sq += sum[i] * sum[i];
            gained[i] = sum[i] * a.next_gain[col + i];
        }
    }
    if (n > 0)
        store4(x, sum, n);
    if (!a.next_gain)
        return;
    if (n > 0)
        store4(a.gained + (int64_t)row * a.n_cols + col, gained, n);
    sq = warp_sum(sq);
    if (lane == 0)
        a.next_sum_sq[(int64_t)tile * a.sum_sq_stride + row] = sq;
}

/* Four dims of a head: norm, rotation, and out. A warp has whole heads. */
template <typename T>
static __device__ __forceinline__ void put_head(const gemm_wgmma_args<T> &a, int col, float v[4],
                                                const row_ahead<T> &ahead)
{
    const rope_args &r = a.rope;
    int head = col / r.head_dim, d = col % r.head_dim, half = r.head_dim / 2;
    int partner = r.head_dim / 8; /* lanes to the other half */
    bool is_v = head >= r.n_heads + r.n_kv_heads;
    const float *gain = head < r.n_heads ? r.q_norm : is_v ? NULL : r.k_norm;
    float sq = 0;

    if (r.q_norm || r.k_norm) { /* the whole warp takes part, whatever its heads are */
        for (int i = 0; i < 4; i++)
            sq += v[i] * v[i];
        for (int m = r.head_dim / 8; m > 0; m >>= 1)
            sq += __shfl_xor_sync(0xffffffffu, sq, m);
        if (gain) {
            float scale = rsqrtf(sq / (float)r.head_dim + r.qk_norm_eps);

            for (int i = 0; i < 4; i++)
                v[i] *= scale * gain[d + i];
        }
    }
    for (int i = 0; i < 4; i++) {
        float other = __shfl_xor_sync(0xffffffffu, v[i], partner);

        if (!is_v)
            v[i] = v[i] * ahead.v[i] + (d < half ? -other : other) * ahead.sin[i];
    }
    if (ahead.to)
        store4(ahead.to, v, 4);
}

/* One row of a tile's sums, by one warp: lane -> 4 outputs, gated 2. */
template <int PUT, typename T>
static __device__ __forceinline__ void put_row(const gemm_wgmma_args<T> &a, const float *sums,
                                               int tile, int row, float scale, int lane,
                                               const row_ahead<T> &ahead)
{
    float4 s = *reinterpret_cast<const float4 *>(sums + lane * 4);
    float v[4] = {s.x * scale, s.y * scale, s.z * scale, s.w * scale};
    int col = tile * TILE_OUT + lane * 4, n = a.n_cols - col;

    if constexpr (PUT == PUT_GATED) {
        float2 g = *reinterpret_cast<const float2 *>(sums + lane * 2);
        float2 u = *reinterpret_cast<const float2 *>(sums + 64 + lane * 2);
        float gate[2] = {g.x * scale, g.y * scale}, up[2] = {u.x * scale, u.y * scale};

        col = tile * 64 + lane * 2;
        for (int i = 0; i < 2 && col + i < a.n_cols; i++) {
            if (a.bias) {
                gate[i] += a.bias[col + i];
                up[i] += a.bias[a.n_cols + col + i];
            }
            ((T *)a.out)[(int64_t)row * a.n_cols + col + i] =
                from_f32<T>(act_f32(a.act, gate[i]) * up[i]);
        }
        return;
    }
    n = n < 0 ? 0 : n < 4 ? n : 4;
#pragma unroll
    for (int i = 0; i < 4; i++) /* no loop over n: v must stay in registers */
        v[i] += a.bias && i < n ? a.bias[col + i] : 0.0f;
    if constexpr (PUT == PUT_RESIDUAL) {
        add_residual(a, tile, row, col, v, n, lane, ahead);
    } else if constexpr (PUT == PUT_ROTATED) {
        put_head(a, n > 0 ? col : 0, v, ahead);
    } else if (a.epilogue == GEMM_F32) {
#pragma unroll
        for (int i = 0; i < 4; i++) {
            if (i < n)
                ((float *)a.out)[(int64_t)row * a.n_cols + col + i] = v[i];
        }
    } else {
#pragma unroll
        for (int i = 0; i < 4; i++)
            v[i] = a.epilogue == GEMM_ACT ? act_f32(a.act, v[i]) : v[i];
        store4((T *)a.out + (int64_t)row * a.n_cols + col, v, n);
    }
}

#endif
