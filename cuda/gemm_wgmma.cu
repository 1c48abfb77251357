/*
 * gemm_wgmma.cu - products of few rows with a weight matrix that is streamed once, on Hopper.
 *
 *   x     act  [n_rows, n_in]
 *   w     act  [n_out, n_in]
 *   out   act or f32 [n_rows, n_out]; sums in f32
 *
 * Work     out^T = w x^T in tiles of 128 outputs; a tile's K is cut into units of 64. Where there
 *          are tiles enough each CTA has whole ones, on as many SMs as that takes: two thirds of
 *          them draw all that memory gives. Else a cluster shares a tile: each CTA leaves its sums
 *          with the one that adds up and puts out the row, in ascending order of K. Where neither
 *          goes the units of all tiles form one line that is cut into equal shares, and sums go
 *          through memory. The cuts depend on shape and GPU alone, so a row's bits do not depend
 *          on what it is batched with.
 * Tile     128 x 64 of w (16 KiB) and n_rows x 64 of x a stage, by tensor map, 128-byte swizzle.
 *          Few stages are on their way at a time, many wait to be used: what is queued in the
 *          memory system holds up the sums and the rows of x
 * Roles    one thread loads w, one x; two warpgroups multiply 64 rows of w each; six warps write
 *          finished tiles from shared memory, so that the stream does not stop at the end of a tile
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
#include "cuda/gemm_put.cuh"
#include "cuda/launch.cuh"
#include "cuda/ptx_hopper_rs.cuh"

#include <cudaTypedefs.h>

#define TILE_K       64 /* 128 bytes: the width of the swizzle */
#define WRITER_WARPS 6  /* with the two that load, warps come in fours: so registers are dealt */
#define CONSUMERS    1  /* named barriers */
#define EVERYBODY    2  /* but the threads that load */
#define MAX_STAGES   12
#define IN_FLIGHT    4 /* stages: 64 KiB of w are more than a loaded memory's latency asks for */
/* One CTA an SM: two of the next product on one SM would leave another idle. */
#define SMEM_BYTES (222 << 10)
#define MIN_FULL   0.7 /* of the SMs: so many draw what memory gives, if nothing holds them up */

#define N_GROUPS       2 /* warpgroups that multiply, 64 outputs each */
#define N_CONSUMERS    (128 * N_GROUPS)
#define CONSUMER_WARPS (4 * N_GROUPS)
#define N_WORKERS      (N_CONSUMERS + WRITER_WARPS * WARP_LANES)
#define N_THREADS      (N_WORKERS + 2 * WARP_LANES)
#define W_BYTES        (TILE_OUT * TILE_K * 2)
#define CONSUMER_REGS  168 /* with OTHER_REGS 128 a thread */
#define OTHER_REGS     88

/* What one instance comes to: N rows of x. */
template <int PUT_KIND, int N> struct wgmma_shape {
    static constexpr int PUT = PUT_KIND;
    static constexpr int STAGE_BYTES = W_BYTES + N * TILE_K * 2;
    static constexpr int ROWS = N <= 32 ? 16 : N / 2; /* of sums that are handed over at once */
    static constexpr int SUMS_STRIDE = TILE_OUT + 4;  /* rows start in different banks */
    static constexpr int SUMS_BYTES = ROWS * SUMS_STRIDE * 4;
    static constexpr int STAGES = (SMEM_BYTES - SUMS_BYTES) / STAGE_BYTES;
    static constexpr int QUEUED = IN_FLIGHT < STAGES ? IN_FLIGHT : STAGES - 1;
    static_assert(STAGES <= MAX_STAGES, "barriers for every stage");
};

struct pipeline {
    uint64_t w_full[MAX_STAGES], x_full[MAX_STAGES], empty[MAX_STAGES];
    uint64_t sums_full, sums_empty; /* the buffer between consumers and writers */
};

/* Counts are small enough for 32 bits: see wgmma_run(). */
static __device__ __forceinline__ int share_begin(unsigned cta, unsigned n_ctas, unsigned n_units)
{
    return (int)(cta * n_units / n_ctas);
}

/* The CTA whose share holds a unit. */
static __device__ __forceinline__ int share_owner(unsigned unit, unsigned n_ctas, unsigned n_units)
{
    return (int)(((unit + 1) * n_ctas - 1) / n_units);
}

/* The first row of w of one half of a tile: gate rows and up rows, or 64 and the next 64. */
static __device__ __forceinline__ int half_row(int tile, int half, bool gated, int n_cols)
{
    return gated ? tile * 64 + half * n_cols : tile * TILE_OUT + half * 64;
}

/* The CTAs that share a tile. */
struct tile_shares {
    int first, last;
};

template <typename T>
static __device__ __forceinline__ tile_shares shares_of(const gemm_wgmma_args<T> &a, int tile)
{
    int n_units = a.n_tiles * a.tile_units;

    return {share_owner(tile * a.tile_units, gridDim.x, n_units),
            share_owner((tile + 1) * a.tile_units - 1, gridDim.x, n_units)};
}

/* Where CTA c leaves its sums of a tile: the tile that its share begins in is its part 0. */
template <typename T>
static __device__ __forceinline__ int part_of(const gemm_wgmma_args<T> &a, int c, int tile)
{
    int begin = share_begin(c, gridDim.x, a.n_tiles * a.tile_units);

    return 2 * c + (begin / a.tile_units == tile ? 0 : 1);
}

/* Leaves this CTA's sums of a tile that it shares. */
template <typename S, int N, typename T>
static __device__ __forceinline__ void leave_part(const gemm_wgmma_args<T> &a,
                                                  const float (&acc)[N / 2], int tile)
{
    int64_t part = part_of(a, blockIdx.x, tile);

#pragma unroll
    for (int j = 0; j < N / 8; j++)
        __stcg(&a.parts[(part * (N / 8) + j) * N_CONSUMERS + threadIdx.x],
               make_float4(acc[4 * j], acc[4 * j + 1], acc[4 * j + 2], acc[4 * j + 3]));
    named_barrier(CONSUMERS, N_CONSUMERS); /* the CTA's sums are on their way */
    if (threadIdx.x == 0)
        add_release(&a.arrived[2 * tile], 1);
}

/* Fragment v of eight rows from row0 on, into the buffer; outputs of a tile are its columns. */
template <typename S>
static __device__ __forceinline__ void spread(float *sums, int row0, const float v[4])
{
    int warp = threadIdx.x / WARP_LANES, lane = threadIdx.x % WARP_LANES;
    int out = warp * 16 + lane / 4; /* every fourth warp begins a warpgroup: 64 outputs */

    for (int i = 0; i < 4; i++)
        sums[(row0 + lane % 4 * 2 + i % 2) * S::SUMS_STRIDE + out + i / 2 * 8] = v[i];
}

/* n rows of the buffer, which hold rows row0.. of x, by `step` warps of which this is `first`. */
template <typename S, typename T>
static __device__ __forceinline__ void put_rows(const gemm_wgmma_args<T> &a, const float *sums,
                                                int n, int tile, int row0, int first, int step,
                                                const float *scale)
{
    int lane = threadIdx.x % WARP_LANES;

    for (int r = first; r < n && row0 + r < a.n_rows; r += step) {
        row_ahead<T> ahead = look_ahead<S::PUT>(a, tile, a.row0 + row0 + r, lane);

        put_row<S::PUT>(a, sums + r * S::SUMS_STRIDE, tile, a.row0 + row0 + r,
                        a.sum_sq ? scale[row0 + r] : 1.0f, lane, ahead);
    }
}

/* Fragments v of n eights of rows from eight j0 on, below eight `end`, by all consumers. */
template <typename S, int n, typename T>
static __device__ __forceinline__ void put_eights(const gemm_wgmma_args<T> &a, const float (*v)[4],
                                                  const row_ahead<T> *ahead, int tile, int j0,
                                                  int end, float *sums, const float *scale)
{
    int warp = threadIdx.x / WARP_LANES, lane = threadIdx.x % WARP_LANES;

    named_barrier(CONSUMERS, N_CONSUMERS); /* earlier rows have been read */
#pragma unroll
    for (int j = 0; j < n; j++)
        spread<S>(sums, j * 8, v[j]);
    named_barrier(CONSUMERS, N_CONSUMERS); /* the rows are there */
#pragma unroll
    for (int j = 0; j < n; j++) {
        int row = (j0 + j) * 8 + warp;

        if (j0 + j < end && row < a.n_rows)
            put_row<S::PUT>(a, sums + (j * 8 + warp) * S::SUMS_STRIDE, tile, a.row0 + row,
                            a.sum_sq ? scale[row] : 1.0f, lane, ahead[j]);
    }
}

#define PARTS_AT_ONCE 4

/*
 * When all CTAs of a shared tile have left their sums, each adds up and puts out some of the rows,
 * by eights. All CTAs of the grid are running, so waiting for them ends.
 */
template <typename S, int N, typename T>
static __device__ __forceinline__ void put_shared(const gemm_wgmma_args<T> &a, int tile,
                                                  float *sums, const float *scale)
{
    constexpr int VECS = N / 8, AT_ONCE = VECS < 2 ? VECS : 2;
    int warp = threadIdx.x / WARP_LANES, lane = threadIdx.x % WARP_LANES;
    tile_shares who = shares_of(a, tile);
    int n = who.last - who.first + 1, me = blockIdx.x - who.first;
    int n_vecs = (a.n_rows + 7) / 8;
    /* Few rows: the last to arrive have them, who need not wait long. */
    int begin = me * n_vecs / n, end = (me + 1) * n_vecs / n;

    for (int j0 = begin; j0 < end; j0 += AT_ONCE) {
        float v[AT_ONCE][4] = {};
        row_ahead<T> ahead[AT_ONCE] = {};

        /* All this is on its way while others still multiply. */
#pragma unroll
        for (int j = 0; j < AT_ONCE; j++) {
            int row = (j0 + j) * 8 + warp;

            if (j0 + j < end && row < a.n_rows)
                ahead[j] = look_ahead<S::PUT>(a, tile, a.row0 + row, lane);
        }
        if (j0 == begin) {
            while (threadIdx.x == 0 && load_acquire(&a.arrived[2 * tile]) < n)
                __nanosleep(20);
            named_barrier(CONSUMERS, N_CONSUMERS); /* all sums have been left */
        }
        for (int c = who.first; c <= who.last; c += PARTS_AT_ONCE) {
            float4 p[AT_ONCE][PARTS_AT_ONCE];

#pragma unroll
            for (int k = 0; k < PARTS_AT_ONCE; k++) {
                int64_t part = part_of(a, c + k <= who.last ? c + k : c, tile);

#pragma unroll
                for (int j = 0; j < AT_ONCE; j++) {
                    int at = j0 + j < end ? j0 + j : j0;

                    p[j][k] = __ldcg(&a.parts[(part * VECS + at) * N_CONSUMERS + threadIdx.x]);
                }
            }
#pragma unroll
            for (int k = 0; k < PARTS_AT_ONCE; k++) {
#pragma unroll
                for (int j = 0; j < AT_ONCE; j++) {
                    if (c + k > who.last)
                        continue;
                    v[j][0] += p[j][k].x;
                    v[j][1] += p[j][k].y;
                    v[j][2] += p[j][k].z;
                    v[j][3] += p[j][k].w;
                }
            }
        }
        put_eights<S, AT_ONCE>(a, v, ahead, tile, j0, end, sums, scale);
    }
    if (threadIdx.x == 0 && atomicAdd(&a.arrived[2 * tile + 1], 1) == n - 1) {
        a.arrived[2 * tile] = 0;
        a.arrived[2 * tile + 1] = 0;
    }
}

/*
 * The same where the CTAs that share a tile are a cluster: each leaves its sums in the shared
 * memory of the one that puts them out, in the place of stages that nobody needs any more.
 */
template <typename S, int N, typename T>
static __device__ __forceinline__ void
put_cluster(const gemm_wgmma_args<T> &a, const float (&acc)[N / 2], int tile, unsigned char *stages,
            float *sums, const float *scale)
{
    constexpr int AT_ONCE = N / 8 < 2 ? N / 8 : 2;
    int warp = threadIdx.x / WARP_LANES, lane = threadIdx.x % WARP_LANES;
    int me = blockIdx.x % a.split, n_vecs = (a.n_rows + 7) / 8;
    int begin = me * n_vecs / a.split, end = (me + 1) * n_vecs / a.split;
    int n_most = (n_vecs + a.split - 1) / a.split;
    const float4 *left = (const float4 *)stages; /* [split, n_most, consumers] */
    int owner = 0, owner_end = n_vecs / a.split, owner_begin = 0;

    cluster_sync(); /* no stage is in use */
#pragma unroll
    for (int j = 0; j < N / 8; j++) {
        if (j >= n_vecs)
            break;
        while (j >= owner_end) {
            owner++;
            owner_begin = owner_end;
            owner_end = (owner + 1) * n_vecs / a.split;
        }
        store_at(&left[(me * n_most + j - owner_begin) * N_CONSUMERS + threadIdx.x], owner,
                 make_float4(acc[4 * j], acc[4 * j + 1], acc[4 * j + 2], acc[4 * j + 3]));
    }
    cluster_arrive();
    for (int j0 = begin; j0 < end; j0 += AT_ONCE) {
        float v[AT_ONCE][4] = {};
        row_ahead<T> ahead[AT_ONCE] = {};

#pragma unroll
        for (int j = 0; j < AT_ONCE; j++) {
            int row = (j0 + j) * 8 + warp;

            if (j0 + j < end && row < a.n_rows)
                ahead[j] = look_ahead<S::PUT>(a, tile, a.row0 + row, lane);
        }
        if (j0 == begin)
            cluster_wait(); /* all sums have been left */
        for (int s = 0; s < a.split; s++) {
#pragma unroll
            for (int j = 0; j < AT_ONCE; j++) {
                int at = j0 + j < end ? j0 + j - begin : 0;
                float4 p = left[(s * n_most + at) * N_CONSUMERS + threadIdx.x];

                v[j][0] += p.x;
                v[j][1] += p.y;
                v[j][2] += p.z;
                v[j][3] += p.w;
            }
        }
        put_eights<S, AT_ONCE>(a, v, ahead, tile, j0, end, sums, scale);
    }
    if (begin == end)
        cluster_wait();
}

/* scale[row] = 1 / rms, from the sums of squares that the residual product left. */
template <typename T> static __device__ void find_scales(const gemm_wgmma_args<T> &a, float *scale)
{
    int warp = threadIdx.x / WARP_LANES, lane = threadIdx.x % WARP_LANES;

    for (int r = warp; r < a.n_rows; r += CONSUMER_WARPS + WRITER_WARPS) {
        float sum = 0;

        for (int p = lane; p < a.n_sum_sq; p += WARP_LANES)
            sum += a.sum_sq[(int64_t)p * a.sum_sq_stride + a.row0 + r];
        sum = warp_sum(sum);
        if (lane == 0)
            scale[r] = rsqrtf(sum / (float)a.dim + a.norm_eps);
    }
    named_barrier(EVERYBODY, N_WORKERS); /* the scales are there */
}

/* Writer warps: finished tiles of the share, as consumers hand them over. */
template <typename S, int N, typename T>
static __device__ __forceinline__ void write_tiles(const gemm_wgmma_args<T> &a, const float *sums,
                                                   pipeline *pipe, int begin, int end,
                                                   const float *scale)
{
    int warp = threadIdx.x / WARP_LANES - CONSUMER_WARPS, lane = threadIdx.x % WARP_LANES;
    int first = (begin + a.tile_units - 1) / a.tile_units, last = end / a.tile_units;
    int parity = 0;

    for (int tile = first; tile < last; tile++) {
        for (int row0 = 0; row0 < N && row0 < a.n_rows; row0 += S::ROWS, parity ^= 1) {
            barrier_wait(&pipe->sums_full, parity);
            put_rows<S>(a, sums, S::ROWS, tile, row0, warp, WRITER_WARPS, scale);
            __syncwarp(); /* the warp has read its rows */
            if (lane == 0)
                barrier_arrive(&pipe->sums_empty);
        }
    }
}

/* The one thread that loads weights. They depend on nothing: it does not wait for other kernels. */
template <typename S, typename T>
static __device__ __forceinline__ void
load_weights(const CUtensorMap *map, const gemm_wgmma_args<T> &a, unsigned char *stages,
             pipeline *pipe, int begin, int end)
{
    uint64_t stream = policy_evict_first();
    struct turn t = {0, 1}, landed = {0, 0};

    for (int unit = begin; unit < end; unit++, t.advance(S::STAGES)) {
        int tile = unit / a.tile_units, k = unit % a.tile_units * TILE_K;
        smem_ref dst = smem_addr(stages + t.at * S::STAGE_BYTES);

        barrier_wait(&pipe->empty[t.at], t.parity);
        if (unit >= begin + S::QUEUED) {
            barrier_wait(&pipe->w_full[landed.at], landed.parity);
            landed.advance(S::STAGES);
        }
        barrier_arrive_expect(&pipe->w_full[t.at], W_BYTES);
        for (int half = 0; half < 2; half++)
            copy_tensor_2d(dst + half * (W_BYTES / 2), map, k,
                           half_row(tile, half, S::PUT == PUT_GATED, a.n_cols), &pipe->w_full[t.at],
                           stream);
    }
}

/* The one thread that loads x. */
template <typename S, typename T>
static __device__ __forceinline__ void load_rows(const CUtensorMap *map,
                                                 const gemm_wgmma_args<T> &a, unsigned char *stages,
                                                 pipeline *pipe, int begin, int end)
{
    uint64_t keep = policy_evict_last();
    struct turn t = {0, 1};

    grid_wait();
    for (int unit = begin; unit < end; unit++, t.advance(S::STAGES)) {
        barrier_wait(&pipe->empty[t.at], t.parity);
        barrier_arrive_expect(&pipe->x_full[t.at], S::STAGE_BYTES - W_BYTES);
        copy_tensor_2d(smem_addr(stages + t.at * S::STAGE_BYTES + W_BYTES), map,
                       unit % a.tile_units * TILE_K, a.row0, &pipe->x_full[t.at], keep);
    }
    grid_launch_next(); /* this CTA asks memory for nothing more */
}

/* Consumer warps: this CTA's units; it puts out what it does not hand to the writers. */
template <typename S, int N, typename T>
static __device__ __forceinline__ void multiply(const gemm_wgmma_args<T> &a, unsigned char *stages,
                                                pipeline *pipe, float *sums, const float *scale,
                                                int begin, int end)
{
    int group = threadIdx.x / 128, n_handed = 0;
    float acc[N / 2];
    struct turn t = {0, 0};

    for (int unit = begin; unit < end;) {
        int tile = unit / a.tile_units, first = unit % a.tile_units;
        int n = a.tile_units - first < end - unit ? a.tile_units - first : end - unit;

        for (int i = 0; i < n; i++, t.advance(S::STAGES)) {
            smem_ref at = smem_addr(stages + t.at * S::STAGE_BYTES);
            uint64_t wd = wgmma_desc(at + group * (W_BYTES / 2)), xd = wgmma_desc(at + W_BYTES);

            barrier_wait(&pipe->w_full[t.at], t.parity);
            barrier_wait(&pipe->x_full[t.at], t.parity);
            wgmma_fence();
#pragma unroll
            for (int k = 0; k < TILE_K / WGMMA_K; k++)
                wgmma_ss<T, N>::run(acc, wd + 2 * k, xd + 2 * k, i > 0 || k > 0);
            wgmma_commit();
            wgmma_wait<1>();
            if (threadIdx.x % 128 == 0 && i > 0) /* the stage before is free */
                barrier_arrive(&pipe->empty[t.at == 0 ? S::STAGES - 1 : t.at - 1]);
        }
        wgmma_wait<0>();
        if (threadIdx.x % 128 == 0)
            barrier_arrive(&pipe->empty[t.at == 0 ? S::STAGES - 1 : t.at - 1]);
        unit += n;
        if (a.split > 0) {
            put_cluster<S, N>(a, acc, tile, stages, sums, scale);
            return;
        }
        if (n < a.tile_units) {
            leave_part<S, N>(a, acc, tile);
            continue;
        }
#pragma unroll
        for (int row0 = 0; row0 < N; row0 += S::ROWS) {
            if (row0 >= a.n_rows)
                break;
            barrier_wait(&pipe->sums_empty, (n_handed & 1) ^ 1);
            n_handed++;
#pragma unroll
            for (int j = 0; j < S::ROWS / 8 && row0 + 8 * j < N; j++)
                spread<S>(sums, 8 * j, acc + row0 / 2 + 4 * j);
            __syncwarp(); /* the warp's sums are there */
            if (threadIdx.x % WARP_LANES == 0)
                barrier_arrive(&pipe->sums_full);
        }
    }
    if (n_handed > 0)
        barrier_wait(&pipe->sums_empty,
                     (n_handed & 1) ^ 1); /* the buffer is the consumers' again */
    /* Shared are at most the first tile and the last. */
    if (begin % a.tile_units != 0 || end < begin + a.tile_units)
        put_shared<S, N>(a, begin / a.tile_units, sums, scale);
    if (end % a.tile_units != 0 && (end - 1) / a.tile_units != begin / a.tile_units)
        put_shared<S, N>(a, (end - 1) / a.tile_units, sums, scale);
}

/* CTA -> its share of the units; first warps multiply, six write, two threads load. */
template <typename T, int PUT, int N>
static __global__ void __launch_bounds__(N_THREADS, 1)
    gemm_wgmma_kernel(const __grid_constant__ CUtensorMap w_map,
                      const __grid_constant__ CUtensorMap x_map,
                      const __grid_constant__ gemm_wgmma_args<T> a)
{
    using S = wgmma_shape<PUT, N>;
    extern __shared__ __align__(1024) unsigned char smem[];
    __shared__ pipeline pipe;
    __shared__ float scale[N];
    float *sums = (float *)(smem + S::STAGES * S::STAGE_BYTES);
    int n_units = a.n_tiles * a.tile_units;
    int begin = share_begin(blockIdx.x, gridDim.x, n_units);
    int end = share_begin(blockIdx.x + 1, gridDim.x, n_units);

    if (threadIdx.x == 0) {
        for (int i = 0; i < S::STAGES; i++) {
            barrier_init(&pipe.w_full[i], 1);
            barrier_init(&pipe.x_full[i], 1);
            barrier_init(&pipe.empty[i], N_GROUPS);
        }
        barrier_init(&pipe.sums_full, CONSUMER_WARPS);
        barrier_init(&pipe.sums_empty, WRITER_WARPS);
        barrier_init_done();
    }
    __syncthreads(); /* the barriers are ready */
    if (threadIdx.x < N_CONSUMERS)
        registers_take<CONSUMER_REGS>();
    else
        registers_give<OTHER_REGS>();
    if (threadIdx.x >= N_WORKERS) {
        if (threadIdx.x == N_WORKERS)
            load_weights<S>(&w_map, a, smem, &pipe, begin, end);
        else if (threadIdx.x == N_WORKERS + WARP_LANES)
            load_rows<S>(&x_map, a, smem, &pipe, begin, end);
        return;
    }
    grid_wait();
    if (a.sum_sq)
        find_scales(a, scale);
    if (threadIdx.x < N_CONSUMERS)
        multiply<S, N>(a, smem, &pipe, sums, scale, begin, end);
    else
        write_tiles<S, N>(a, sums, &pipe, begin, end, scale);
}

/*
 * How many CTAs share the units: what gives each the same number of whole tiles, or tiles the same
 * number of CTAs, a cluster (*split) if it may be one; else all SMs.
 */
static int n_shares(const struct cuda_backend *cb, int n_tiles, int tile_units, int *split)
{
    int n_sms = cb->n_sms, each = (n_tiles + n_sms - 1) / n_sms;

    *split = 0;
    if (n_tiles >= MIN_FULL * n_sms)
        return (n_tiles + each - 1) / each;
    for (int n = 2; n <= tile_units && n_tiles * n <= n_sms; n++) {
        if (n_tiles * n < MIN_FULL * n_sms)
            continue;
        if (n <= GEMM_MAX_CLUSTER && n_tiles <= cb->gemm_clusters[n])
            *split = n;
        return n_tiles * n;
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

template <typename T, int PUT, int N>
static int wgmma_start(struct cuda_backend *cb, const struct gemm_args *p,
                       const gemm_wgmma_args<T> &k, struct err *err)
{
    CUtensorMap w_map, x_map;
    int rc = map_rows(cb, &w_map, p->w->data, p->w->n_out, p->w->n_in, TILE_OUT / 2, err);

    if (rc == 0)
        rc = map_rows(cb, &x_map, p->x, p->n_rows, p->w->n_in, N, err);
    if (rc < 0)
        return rc;
    CUDA_TRY(err, cudaFuncSetAttribute(gemm_wgmma_kernel<T, PUT, N>,
                                       cudaFuncAttributeMaxDynamicSharedMemorySize, SMEM_BYTES));
    return launch_clusters(cb, "gemm_wgmma", gemm_wgmma_kernel<T, PUT, N>, k.split ? k.split : 1,
                           dim3(k.n_shares), dim3(N_THREADS), SMEM_BYTES, err, w_map, x_map, k);
}

template <typename T, int PUT>
static int wgmma_rows(struct cuda_backend *cb, const struct gemm_args *p,
                      const gemm_wgmma_args<T> &k, struct err *err)
{
    if (k.n_rows <= 8)
        return wgmma_start<T, PUT, 8>(cb, p, k, err);
    if (k.n_rows <= 16)
        return wgmma_start<T, PUT, 16>(cb, p, k, err);
    if (k.n_rows <= 32)
        return wgmma_start<T, PUT, 32>(cb, p, k, err);
    if (k.n_rows <= 64)
        return wgmma_start<T, PUT, 64>(cb, p, k, err);
    return wgmma_start<T, PUT, 128>(cb, p, k, err);
}

template <typename T>
static int wgmma_choose(struct cuda_backend *cb, const struct gemm_args *p,
                        const gemm_wgmma_args<T> &k, struct err *err)
{
    switch (p->epilogue) {
    case GEMM_RESIDUAL:
        return wgmma_rows<T, PUT_RESIDUAL>(cb, p, k, err);
    case GEMM_GATED:
        return wgmma_rows<T, PUT_GATED>(cb, p, k, err);
    case GEMM_ROPE:
        return wgmma_rows<T, PUT_ROTATED>(cb, p, k, err);
    default:
        return wgmma_rows<T, PUT_PLAIN>(cb, p, k, err);
    }
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
    k.tile_units = (p->w->n_in + TILE_K - 1) / TILE_K;
    k.n_shares = n_shares(cb, k.n_tiles, k.tile_units, &k.split);
    k.epilogue = p->epilogue;
    k.act = p->act;
    if (p->attn_in) {
        k.kv = kv_pages_of<T>(p->attn_in->kv, p->attn_in->layer);
        k.rope = rope_of(p->attn_in);
    }
    static_assert((int64_t)GEMM_MAX_TILES * (GEMM_MAX_K / TILE_K) * 256 <= UINT32_MAX,
                  "units times CTAs are counted in 32 bits");
    if (p->w->n_in > GEMM_MAX_K)
        return err_set(err, ERR_UNSUPPORTED, "gemm: %d inputs, at most %d are built", p->w->n_in,
                       GEMM_MAX_K);
    if (k.n_tiles > GEMM_MAX_TILES)
        return err_set(err, ERR_UNSUPPORTED, "gemm: %d outputs, at most %d are built", p->w->n_out,
                       GEMM_MAX_TILES * TILE_OUT);
    for (int row0 = 0; row0 < p->n_rows && rc == 0; row0 += GEMM_MAX_ROWS) {
        k.row0 = row0;
        k.n_rows = p->n_rows - row0 < GEMM_MAX_ROWS ? p->n_rows - row0 : GEMM_MAX_ROWS;
        rc = wgmma_choose<T>(cb, p, k, err);
    }
    return rc;
}

static int gemm_wgmma_launch(struct cuda_backend *cb, const struct gemm_args *p, struct err *err)
{
    if (cb->base.act_dtype == DTYPE_BF16)
        return wgmma_run<__nv_bfloat16>(cb, p, err);
    return wgmma_run<__half>(cb, p, err);
}

/* How many clusters of each size the GPU runs at once. */
template <typename T> static int clusters_count(struct cuda_backend *cb, struct err *err)
{
    void (*kernel)(CUtensorMap, CUtensorMap, gemm_wgmma_args<T>) =
        gemm_wgmma_kernel<T, PUT_RESIDUAL, 64>;

    CUDA_TRY(err,
             cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, SMEM_BYTES));
    for (int n = 2; n <= GEMM_MAX_CLUSTER; n++) {
        cudaLaunchAttribute attr = {};
        cudaLaunchConfig_t config = {};

        attr.id = cudaLaunchAttributeClusterDimension;
        attr.val.clusterDim.x = (unsigned)n;
        attr.val.clusterDim.y = 1;
        attr.val.clusterDim.z = 1;
        config.gridDim = dim3(n);
        config.blockDim = dim3(N_THREADS);
        config.dynamicSmemBytes = SMEM_BYTES;
        config.attrs = &attr;
        config.numAttrs = 1;
        if (cudaOccupancyMaxActiveClusters(&cb->gemm_clusters[n], kernel, &config) != cudaSuccess) {
            cudaGetLastError();
            cb->gemm_clusters[n] = 0; /* sums go through memory then */
        }
    }
    return 0;
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
    CUDA_TRY(err, cudaMalloc((void **)&cb->gemm_arrived, 2 * GEMM_MAX_TILES * sizeof(int32_t)));
    CUDA_TRY(err, cudaMemsetAsync(cb->gemm_arrived, 0, 2 * GEMM_MAX_TILES * sizeof(int32_t),
                                  cb->stream));
    CUDA_TRY(err,
             cudaMalloc((void **)&cb->sum_sq, (size_t)n_sum_sq * cb->max_decode * sizeof(float)));
    CUDA_TRY(err, cudaMalloc(&cb->gained, (size_t)cb->max_decode * cb->params.max_dim * 2));
    cb->gemm_hopper = gemm_wgmma_launch;
    return cb->base.act_dtype == DTYPE_BF16 ? clusters_count<__nv_bfloat16>(cb, err)
                                            : clusters_count<__half>(cb, err);
}
