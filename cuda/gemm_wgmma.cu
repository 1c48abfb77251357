/*
 * gemm_wgmma.cu - products of few rows with a weight matrix that is streamed once, on Hopper.
 *
 *   x     act  [n_rows, n_in]
 *   w     act  [n_out, n_in]
 *   out   act or f32 [n_rows, n_out]; sums in f32
 *
 * Work     out^T = w x^T in tiles of 128 outputs; a tile's K is cut into units of 64 or 128. The
 *          units of all tiles form one line that is cut into equal shares, one a CTA, so every SM
 *          streams as many bytes. A tile whose units fell to several CTAs is summed by the last of
 *          them to finish, in ascending order of K. The cuts depend on the shape alone, so a row's
 *          bits do not depend on what it is batched with.
 * Tile     128 x 64 of w (16 KiB) and n_rows x 64 of x a stage, by tensor map, 128-byte swizzle
 * Overlap  half the shared memory of an SM, so that the next product's first weights arrive while
 *          this one still sums and writes: see launch.cuh
 * Fused    RMSNorm: a residual product leaves x times the next norm's gain and sums of squares; the
 *          product behind the norm scales its rows. Bias, activation, residual, and for qkv the
 *          rotation and the way to the pages
 * Bound    HBM: 2 * n_out * n_in bytes; x comes from L2 once a tile, n_rows / 128 of that again
 * Measured see SPEED.md
 * Limits   16-bit types; n_in a multiple of 8. Rotation: heads of 64 or 128 rotated in full
 * Checked  against cpu in tests/cuda/test_ops.c
 */
#include "cuda/cuda_backend.h"
#include "cuda/device.cuh"
#include "cuda/kv_entry.cuh"
#include "cuda/launch.cuh"
#include "cuda/ptx_hopper.cuh"

#include <cudaTypedefs.h>

#define TILE_OUT       128 /* two warpgroups of 64 rows of w */
#define TILE_K         64  /* 128 bytes: the width of the swizzle */
#define N_CONSUMERS    256
#define N_THREADS      (N_CONSUMERS + WARP_LANES) /* the last warp produces */
#define CONSUMER_WARPS (N_CONSUMERS / WARP_LANES)
#define CONSUMERS      1              /* named barrier */
#define EPI_STRIDE     (TILE_OUT + 4) /* rows of sums start in different banks */
#define W_BYTES        (TILE_OUT * TILE_K * 2)
#define MAX_STAGES     8
#define MIN_FULL       0.96 /* of the SMs: whole splits of tiles are preferred from here on */

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
    float4 *parts;     /* sums of tiles that several CTAs share: [2 n_ctas, N / 8, N_CONSUMERS] */
    int32_t *arrived;  /* [n_tiles], zero between launches */
    const float *sum_sq;
    const float *next_gain;
    T *gained;
    float *next_sum_sq;
    kv_pages<T> kv;
    rope_args rope;
    int n_rows, n_cols, n_tiles, tile_units, row0;
    int n_sum_sq, sum_sq_stride, dim;
    float norm_eps;
    int epilogue, act;
};

struct pipeline {
    uint64_t full[MAX_STAGES], empty[MAX_STAGES];
};

/* Index and parity of a ring's next turn. */
struct ring_turn {
    int at, parity;

    __device__ __forceinline__ void advance(int n)
    {
        if (++at == n) {
            at = 0;
            parity ^= 1;
        }
    }
};

static __device__ int share_begin(int cta, int n_ctas, int n_units)
{
    return (int)((int64_t)cta * n_units / n_ctas);
}

/* The CTA whose share holds a unit. */
static __device__ int share_owner(int unit, int n_ctas, int n_units)
{
    return (int)((((int64_t)unit + 1) * n_ctas - 1) / n_units);
}

/* The first row of w of one half of a tile: gate rows and up rows, or 64 and the next 64. */
static __device__ __forceinline__ int half_row(int tile, int half, bool gated, int n_cols)
{
    return gated ? tile * 64 + half * n_cols : tile * TILE_OUT + half * 64;
}

template <typename T> static __device__ __forceinline__ void store4(T *p, const float v[4], int n)
{
    if (n == 4 && (uintptr_t)p % (4 * sizeof(T)) == 0) {
        *reinterpret_cast<uint2 *>(p) = make_uint2(pack2<T>(v[0], v[1]), pack2<T>(v[2], v[3]));
        return;
    }
    for (int i = 0; i < n; i++)
        p[i] = from_f32<T>(v[i]);
}

/* x += v, and what the next norm needs of the new x. One warp has the tile's columns of a row. */
template <typename T>
static __device__ __forceinline__ void add_residual(const gemm_wgmma_args<T> &a, int tile, int row,
                                                    int col, const float v[4], int n, int lane)
{
    T *x = (T *)a.out + (int64_t)row * a.n_cols + col;
    float sum[4] = {}, gained[4] = {}, sq = 0;

    if (n == 4 && (uintptr_t)x % (4 * sizeof(T)) == 0) {
        uint2 u = *reinterpret_cast<const uint2 *>(x);
        float2 lo = unpack2<T>(u.x), hi = unpack2<T>(u.y);

        sum[0] = lo.x, sum[1] = lo.y, sum[2] = hi.x, sum[3] = hi.y;
    } else {
        for (int i = 0; i < n; i++)
            sum[i] = to_f32(x[i]);
    }
    for (int i = 0; i < 4; i++) {
        sum[i] = to_f32(from_f32<T>(sum[i] + v[i]));
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

/* Four dims of a head: norm, rotation, and out to q or to the pages. A warp has whole heads. */
template <typename T>
static __device__ __forceinline__ void put_head(const gemm_wgmma_args<T> &a, int row, int col,
                                                float v[4], bool there)
{
    const rope_args &r = a.rope;
    int head = col / r.head_dim, d = col % r.head_dim, half = r.head_dim / 2;
    int partner = r.head_dim / 8; /* lanes to the other half */
    bool is_q = head < r.n_heads, is_v = head >= r.n_heads + r.n_kv_heads;
    const float *gain = is_q ? r.q_norm : is_v ? NULL : r.k_norm;
    int pos = r.pos[row];
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
        float other = __shfl_xor_sync(0xffffffffu, v[i], partner), s, c;

        if (is_v)
            continue;
        sincosf((float)pos * r.inv_freq[(int64_t)row * r.inv_freq_stride + (d + i) % half], &s, &c);
        s *= r.rope_scale;
        c *= r.rope_scale;
        v[i] = d < half ? v[i] * c - other * s : v[i] * c + other * s;
    }
    if (!there)
        return;
    if (is_q)
        store4((T *)r.q + (int64_t)row * r.n_heads * r.head_dim + col, v, 4);
    else
        store4(kv_entry(a.kv, r.slot[row], pos, (head - r.n_heads) % r.n_kv_heads, is_v) + d, v, 4);
}

/* One row of a tile's sums, by one warp: lane -> 4 outputs, gated 2. */
template <typename T>
static __device__ __forceinline__ void put_row(const gemm_wgmma_args<T> &a, const float *sums,
                                               int tile, int row, float scale, int lane)
{
    float4 s = *reinterpret_cast<const float4 *>(sums + lane * 4);
    float v[4] = {s.x * scale, s.y * scale, s.z * scale, s.w * scale};
    int col = tile * TILE_OUT + lane * 4, n = a.n_cols - col;

    if (a.epilogue == GEMM_GATED) {
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
    if (a.bias) {
        for (int i = 0; i < n; i++)
            v[i] += a.bias[col + i];
    }
    switch (a.epilogue) {
    case GEMM_RESIDUAL:
        add_residual(a, tile, row, col, v, n, lane);
        break;
    case GEMM_ROPE:
        put_head(a, row, n > 0 ? col : 0, v, n > 0);
        break;
    case GEMM_F32:
        for (int i = 0; i < n; i++)
            ((float *)a.out)[(int64_t)row * a.n_cols + col + i] = v[i];
        break;
    case GEMM_ACT:
        for (int i = 0; i < n; i++)
            v[i] = act_f32(a.act, v[i]);
        /* fall through */
    default:
        store4((T *)a.out + (int64_t)row * a.n_cols + col, v, n);
    }
}

/*
 * Leaves this CTA's sums of a shared tile. True for the last of the tile's CTAs to arrive: acc is
 * then the sum over all of them, in ascending order.
 */
template <int N, typename T>
static __device__ __forceinline__ bool sum_parts(const gemm_wgmma_args<T> &a, float (&acc)[N / 2],
                                                 int tile, int part, int *is_last)
{
    constexpr int VECS = N / 8;
    int n_units = a.n_tiles * a.tile_units, n_ctas = gridDim.x;
    int first = share_owner(tile * a.tile_units, n_ctas, n_units);
    int last = share_owner(tile * a.tile_units + a.tile_units - 1, n_ctas, n_units);

    for (int j = 0; j < VECS; j++)
        __stcg(&a.parts[((int64_t)(2 * blockIdx.x + part) * VECS + j) * N_CONSUMERS + threadIdx.x],
               make_float4(acc[4 * j], acc[4 * j + 1], acc[4 * j + 2], acc[4 * j + 3]));
    __threadfence();
    named_barrier(CONSUMERS, N_CONSUMERS); /* the CTA's sums are out */
    if (threadIdx.x == 0) {
        *is_last = atomicAdd(&a.arrived[tile], 1) == last - first;
        if (*is_last)
            a.arrived[tile] = 0;
    }
    named_barrier(CONSUMERS, N_CONSUMERS); /* is_last is there */
    if (!*is_last)
        return false;
    __threadfence();
    for (int i = 0; i < N / 2; i++)
        acc[i] = 0;
    for (int c = first; c <= last; c++) {
        /* A CTA's share begins inside its part 0; a later tile that it does not end is part 1. */
        int at = share_begin(c, n_ctas, n_units) / a.tile_units == tile ? 2 * c : 2 * c + 1;

#pragma unroll
        for (int j = 0; j < VECS; j++) {
            float4 v = __ldcg(&a.parts[((int64_t)at * VECS + j) * N_CONSUMERS + threadIdx.x]);

            acc[4 * j] += v.x;
            acc[4 * j + 1] += v.y;
            acc[4 * j + 2] += v.z;
            acc[4 * j + 3] += v.w;
        }
    }
    return true;
}

/* The tile's sums from fragments to rows in shared memory, some rows at a time, and out. */
template <int N, typename T>
static __device__ __forceinline__ void put_tile(const gemm_wgmma_args<T> &a,
                                                const float (&acc)[N / 2], int tile, float *sums,
                                                const float *scale)
{
    constexpr int ROWS = N < 16 ? N : 16;
    int warp = threadIdx.x / WARP_LANES, lane = threadIdx.x % WARP_LANES;
    int out = warp * 16 + lane / 4; /* warp 4 begins the second warpgroup: row 64 */

#pragma unroll
    for (int n0 = 0; n0 < N; n0 += ROWS) {
        if (n0 >= a.n_rows)
            break;
        named_barrier(CONSUMERS, N_CONSUMERS); /* the rows before have been read */
#pragma unroll
        for (int j = n0 / 8; j < (n0 + ROWS) / 8; j++) {
            for (int i = 0; i < 4; i++) {
                int row = 8 * j + lane % 4 * 2 + i % 2 - n0;

                sums[row * EPI_STRIDE + out + i / 2 * 8] = acc[4 * j + i];
            }
        }
        named_barrier(CONSUMERS, N_CONSUMERS); /* the rows are there */
        for (int r = warp; r < ROWS && n0 + r < a.n_rows; r += CONSUMER_WARPS)
            put_row(a, sums + r * EPI_STRIDE, tile, a.row0 + n0 + r,
                    a.sum_sq ? scale[n0 + r] : 1.0f, lane);
    }
}

/* scale[row] = 1 / rms, from the sums of squares that the residual product left. */
template <typename T> static __device__ void find_scales(const gemm_wgmma_args<T> &a, float *scale)
{
    int warp = threadIdx.x / WARP_LANES, lane = threadIdx.x % WARP_LANES;

    for (int r = warp; r < a.n_rows; r += CONSUMER_WARPS) {
        float sum = 0;

        for (int p = lane; p < a.n_sum_sq; p += WARP_LANES)
            sum += a.sum_sq[(int64_t)p * a.sum_sq_stride + a.row0 + r];
        sum = warp_sum(sum);
        if (lane == 0)
            scale[r] = rsqrtf(sum / (float)a.dim + a.norm_eps);
    }
}

/* CTA -> its share of the units; warpgroups 0, 1 multiply 64 rows of w each; one thread loads. */
template <typename T, int N, int N_SUB, int STAGES>
static __global__ void __launch_bounds__(N_THREADS, N <= 64 ? 2 : 1)
    gemm_wgmma_kernel(const __grid_constant__ CUtensorMap w_map,
                      const __grid_constant__ CUtensorMap x_map,
                      const __grid_constant__ gemm_wgmma_args<T> a)
{
    constexpr int N_ONE = N < 128 ? N : 128; /* columns of one instruction */
    constexpr int X_BYTES = N * TILE_K * 2, SUB_BYTES = W_BYTES + X_BYTES;
    constexpr int STAGE_BYTES = N_SUB * SUB_BYTES;
    extern __shared__ __align__(1024) unsigned char smem[];
    __shared__ pipeline pipe;
    __shared__ float scale[N];
    __shared__ int is_last;
    float *sums = (float *)(smem + STAGES * STAGE_BYTES);
    int n_units = a.n_tiles * a.tile_units;
    int begin = share_begin(blockIdx.x, gridDim.x, n_units);
    int end = share_begin(blockIdx.x + 1, gridDim.x, n_units);
    bool gated = a.epilogue == GEMM_GATED;
    ring_turn t = {0, 0};

    if (threadIdx.x == 0) {
        for (int i = 0; i < STAGES; i++) {
            barrier_init(&pipe.full[i], 1);
            barrier_init(&pipe.empty[i], 2);
        }
        barrier_init_done();
    }
    __syncthreads(); /* the barriers are ready */

    if (threadIdx.x >= N_CONSUMERS) {
        uint64_t stream = policy_evict_first(), keep = policy_evict_last();
        int ahead = end - begin < STAGES ? end - begin : STAGES;

        if (threadIdx.x != N_CONSUMERS)
            return;
        auto load_w = [&](int unit, int stage) {
            int tile = unit / a.tile_units, k = unit % a.tile_units * N_SUB * TILE_K;

            barrier_arrive_expect(&pipe.full[stage], STAGE_BYTES);
            for (int s = 0; s < N_SUB; s++) {
                smem_ref dst = smem_addr(smem + stage * STAGE_BYTES + s * SUB_BYTES);

                for (int half = 0; half < 2; half++)
                    copy_tensor_2d(dst + half * (W_BYTES / 2), &w_map, k + s * TILE_K,
                                   half_row(tile, half, gated, a.n_cols), &pipe.full[stage],
                                   stream);
            }
        };
        auto load_x = [&](int unit, int stage) {
            int k = unit % a.tile_units * N_SUB * TILE_K;

            for (int s = 0; s < N_SUB; s++)
                copy_tensor_2d(smem_addr(smem + stage * STAGE_BYTES + s * SUB_BYTES + W_BYTES),
                               &x_map, k + s * TILE_K, a.row0, &pipe.full[stage], keep);
        };
        /* Weights depend on nothing: the first of them are fetched before x is there. */
        for (int i = 0; i < ahead; i++)
            load_w(begin + i, i);
        grid_wait();
        for (int i = 0; i < ahead; i++)
            load_x(begin + i, i);
        for (int unit = begin + ahead; unit < end; unit++, t.advance(STAGES)) {
            barrier_wait(&pipe.empty[t.at], t.parity);
            load_w(unit, t.at);
            load_x(unit, t.at);
        }
        grid_launch_next();
        return;
    }

    int group = threadIdx.x / 128;
    float acc[N / 2];

    grid_wait();
    if (a.sum_sq)
        find_scales(a, scale); /* ordered before its use by the barriers of put_tile() */
    for (int unit = begin; unit < end;) {
        int tile = unit / a.tile_units, first = unit % a.tile_units;
        int n = a.tile_units - first < end - unit ? a.tile_units - first : end - unit;
        int before = 0;
        bool complete = n == a.tile_units;

        for (int i = 0; i < n; i++, t.advance(STAGES)) {
            barrier_wait(&pipe.full[t.at], t.parity);
            wgmma_fence();
#pragma unroll
            for (int s = 0; s < N_SUB; s++) {
                smem_ref at = smem_addr(smem + t.at * STAGE_BYTES + s * SUB_BYTES);
                uint64_t wd = wgmma_desc(at + group * (W_BYTES / 2)), xd = wgmma_desc(at + W_BYTES);

#pragma unroll
                for (int k = 0; k < TILE_K / WGMMA_K; k++) {
#pragma unroll
                    for (int c = 0; c < N; c += N_ONE)
                        wgmma_ss<T, N_ONE>::run(acc + c / 2, wd + 2 * k, xd + c * 8 + 2 * k,
                                                i > 0 || s > 0 || k > 0);
                }
            }
            wgmma_commit();
            if (i > 0) {
                wgmma_wait<1>(); /* the stage before has been read */
                if (threadIdx.x % 128 == 0)
                    barrier_arrive(&pipe.empty[before]);
            }
            before = t.at;
        }
        wgmma_wait<0>();
        if (threadIdx.x % 128 == 0)
            barrier_arrive(&pipe.empty[before]);
        if (!complete)
            complete = sum_parts<N>(a, acc, tile, unit == begin ? 0 : 1, &is_last);
        if (complete)
            put_tile<N>(a, acc, tile, sums, scale);
        unit += n;
    }
}

/* How many CTAs share the units: all SMs, or a few less where tiles then split evenly. */
static int n_shares(int n_sms, int n_tiles, int tile_units)
{
    for (int split = 1; split <= tile_units && n_tiles * split <= n_sms; split++) {
        if (n_tiles * split >= MIN_FULL * n_sms && tile_units % split == 0)
            return n_tiles * split;
    }
    return n_tiles * tile_units < n_sms ? n_tiles * tile_units : n_sms;
}

static int map_rows(struct cuda_backend *cb, CUtensorMap *map, const void *data, int n_rows,
                    int n_in, int box_rows, struct err *err)
{
    PFN_cuTensorMapEncodeTiled_v12000 encode =
        (PFN_cuTensorMapEncodeTiled_v12000)cb->tensor_map_encode;
    cuuint64_t dims[2] = {(cuuint64_t)n_in, (cuuint64_t)n_rows}, stride = (cuuint64_t)n_in * 2;
    cuuint32_t box[2] = {TILE_K, (cuuint32_t)box_rows}, step[2] = {1, 1};
    CUresult rc = encode(map,
                         cb->base.act_dtype == DTYPE_BF16 ? CU_TENSOR_MAP_DATA_TYPE_BFLOAT16
                                                          : CU_TENSOR_MAP_DATA_TYPE_FLOAT16,
                         2, (void *)data, dims, &stride, box, step, CU_TENSOR_MAP_INTERLEAVE_NONE,
                         CU_TENSOR_MAP_SWIZZLE_128B, CU_TENSOR_MAP_L2_PROMOTION_L2_256B,
                         CU_TENSOR_MAP_FLOAT_OOB_FILL_NONE);

    if (rc != CUDA_SUCCESS)
        return err_set(err, ERR_DEVICE, "CUDA: tensor map of [%d, %d]: error %d", n_rows, n_in,
                       (int)rc);
    return 0;
}

template <typename T, int N, int N_SUB, int STAGES>
static int wgmma_start(struct cuda_backend *cb, const struct gemm_args *p, gemm_wgmma_args<T> *k,
                       struct err *err)
{
    constexpr int ROWS = N < 16 ? N : 16;
    size_t smem = (size_t)STAGES * N_SUB * (W_BYTES + N * TILE_K * 2) +
                  (size_t)ROWS * EPI_STRIDE * sizeof(float);
    CUtensorMap w_map, x_map;
    int rc;

    static_assert(STAGES <= MAX_STAGES, "barriers for every stage");
    k->tile_units = (p->w->n_in + N_SUB * TILE_K - 1) / (N_SUB * TILE_K);
    rc = map_rows(cb, &w_map, p->w->data, p->w->n_out, p->w->n_in, TILE_OUT / 2, err);
    if (rc == 0)
        rc = map_rows(cb, &x_map, p->x, p->n_rows, p->w->n_in, N, err);
    if (rc < 0)
        return rc;
    CUDA_TRY(err, cudaFuncSetAttribute(gemm_wgmma_kernel<T, N, N_SUB, STAGES>,
                                       cudaFuncAttributeMaxDynamicSharedMemorySize, (int)smem));
    return launch_overlapped(cb, "gemm_wgmma", gemm_wgmma_kernel<T, N, N_SUB, STAGES>,
                             dim3(n_shares(cb->n_sms, k->n_tiles, k->tile_units)), dim3(N_THREADS),
                             smem, err, w_map, x_map, *k);
}

/* Stages fill half the shared memory of an SM up to 64 rows, then most of it. */
template <typename T>
static int wgmma_choose(struct cuda_backend *cb, const struct gemm_args *p, gemm_wgmma_args<T> *k,
                        struct err *err)
{
    if (k->n_rows <= 8)
        return wgmma_start<T, 8, 2, 3>(cb, p, k, err);
    if (k->n_rows <= 16)
        return wgmma_start<T, 16, 1, 5>(cb, p, k, err);
    if (k->n_rows <= 32)
        return wgmma_start<T, 32, 1, 4>(cb, p, k, err);
    if (k->n_rows <= 64)
        return wgmma_start<T, 64, 1, 4>(cb, p, k, err);
    if (k->n_rows <= 128)
        return wgmma_start<T, 128, 1, 6>(cb, p, k, err);
    return wgmma_start<T, 256, 1, 4>(cb, p, k, err);
}

static rope_args rope_of(const struct attn_in_args *in)
{
    rope_args r = {};

    r.q_norm = in->q_norm ? (const float *)in->q_norm->data : NULL;
    r.k_norm = in->k_norm ? (const float *)in->k_norm->data : NULL;
    r.inv_freq = in->inv_freq;
    r.pos = in->batch->pos;
    r.slot = in->batch->slot;
    r.q = in->q;
    r.inv_freq_stride = in->inv_freq_stride;
    r.n_heads = in->n_heads;
    r.n_kv_heads = in->n_kv_heads;
    r.head_dim = in->head_dim;
    r.qk_norm_eps = in->qk_norm_eps;
    r.rope_scale = in->rope_scale;
    return r;
}

template <typename T>
static int wgmma_run(struct cuda_backend *cb, const struct gemm_args *p, struct err *err)
{
    gemm_wgmma_args<T> k = {};
    bool gated = p->epilogue == GEMM_GATED;
    int rc = 0;

    k.bias = p->bias ? (const float *)p->bias->data : NULL;
    k.out = p->out;
    k.parts = (float4 *)cb->gemm_parts;
    k.arrived = cb->gemm_arrived;
    k.sum_sq = p->norm_in ? cb->sum_sq : NULL;
    k.n_sum_sq = (p->w->n_in + TILE_OUT - 1) / TILE_OUT;
    k.sum_sq_stride = cb->max_decode;
    k.dim = p->w->n_in;
    k.norm_eps = p->norm_in ? p->norm_in->eps : 0;
    k.next_gain = p->norm_out ? (const float *)p->norm_out->gain->data : NULL;
    k.gained = (T *)cb->gained;
    k.next_sum_sq = cb->sum_sq;
    k.n_cols = gated ? p->w->n_out / 2 : p->w->n_out;
    k.n_tiles = gated ? (k.n_cols + 63) / 64 : (k.n_cols + TILE_OUT - 1) / TILE_OUT;
    k.epilogue = p->epilogue;
    k.act = p->act;
    if (p->attn_in) {
        k.kv = kv_pages_of<T>(p->attn_in->kv, p->attn_in->layer);
        k.rope = rope_of(p->attn_in);
    }
    if (k.n_tiles > GEMM_MAX_TILES)
        return err_set(err, ERR_UNSUPPORTED, "gemm: %d outputs, at most %d are built", p->w->n_out,
                       GEMM_MAX_TILES * TILE_OUT);
    for (int row0 = 0; row0 < p->n_rows && rc == 0; row0 += GEMM_MAX_ROWS) {
        k.row0 = row0;
        k.n_rows = p->n_rows - row0 < GEMM_MAX_ROWS ? p->n_rows - row0 : GEMM_MAX_ROWS;
        rc = wgmma_choose<T>(cb, p, &k, err);
    }
    return rc;
}

static int gemm_wgmma_launch(struct cuda_backend *cb, const struct gemm_args *p, struct err *err)
{
    if (cb->base.act_dtype == DTYPE_BF16)
        return wgmma_run<__nv_bfloat16>(cb, p, err);
    return wgmma_run<__half>(cb, p, err);
}

int cuda_hopper_open(struct cuda_backend *cb, struct err *err)
{
    cudaDriverEntryPointQueryResult found;
    size_t parts = (size_t)2 * cb->n_sms * TILE_OUT * GEMM_MAX_ROWS * sizeof(float);
    int n_sum_sq = (cb->params.max_dim + TILE_OUT - 1) / TILE_OUT;

    if (cb->arch != 90 || cb->base.act_dtype == DTYPE_F32)
        return 0;
    CUDA_TRY(err, cudaGetDriverEntryPointByVersion("cuTensorMapEncodeTiled", &cb->tensor_map_encode,
                                                   12000, cudaEnableDefault, &found));
    if (found != cudaDriverEntryPointSuccess)
        return err_set(err, ERR_DEVICE, "CUDA: the driver has no cuTensorMapEncodeTiled");
    CUDA_TRY(err, cudaMalloc((void **)&cb->gemm_parts, parts));
    CUDA_TRY(err, cudaMalloc((void **)&cb->gemm_arrived, GEMM_MAX_TILES * sizeof(int32_t)));
    CUDA_TRY(err,
             cudaMemsetAsync(cb->gemm_arrived, 0, GEMM_MAX_TILES * sizeof(int32_t), cb->stream));
    CUDA_TRY(err,
             cudaMalloc((void **)&cb->sum_sq, (size_t)n_sum_sq * cb->max_decode * sizeof(float)));
    CUDA_TRY(err, cudaMalloc(&cb->gained, (size_t)cb->max_decode * cb->params.max_dim * 2));
    cb->gemm_hopper = gemm_wgmma_launch;
    return 0;
}
