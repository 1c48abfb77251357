/*
 * gemm.cu - products of few rows with a weight matrix, which is streamed once: decode and logits.
 *
 *   x     act  [n_rows, n_in]
 *   w     act  [n_out, n_in]
 *   out   act or f32 [n_rows, n_out]; sums in f32
 *
 * Work     persistent CTAs over tiles of 32 outputs; the 8 warps of a CTA take an eighth of K each
 *          and are summed in ascending order at the end of a tile. That order depends on K alone,
 *          and a column of an mma on its own row alone, so a row's bits do not depend on what it is
 *          batched with. More than 64 rows run as several blocks.
 * Tile     32 x 64: each lane copies 16-byte pieces of 4 rows, two a row, and later multiplies just
 *          the pieces that it copied itself. So no barrier stands between copy and use, and the
 *          pipeline runs on over the borders of tiles. K is permuted alike in x and w, which lets a
 *          piece of 8 consecutive elements serve as the fragments of two mma.
 * Bound    HBM: 2 * n_out * n_in bytes; x comes from L2 once a tile, n_rows / 32 of that again
 * Measured see SPEED.md
 * Limits   n_in a multiple of 8
 * Checked  against cpu in tests/cuda/test_ops.c
 */
#include "cuda/cuda_backend.h"
#include "cuda/device.cuh"

#define GEMM_WARPS   8
#define GEMM_THREADS (GEMM_WARPS * WARP_LANES)
#define TILE_OUT     32
#define TILE_K       64 /* 128 bytes of a row: a whole line */
#define W_PIECES     8  /* of 16 bytes a lane and stage: 4 rows, 2 a row */

struct gemm_kernel_args {
    const void *x;     /* [n_rows, n_in] */
    const void *w;     /* [n_out, n_in] */
    const float *bias; /* [n_out] or NULL */
    void *out;         /* [n_rows, n_cols] */
    int n_rows, n_in, n_out;
    int n_cols;     /* of out: n_out, or n_out / 2 when gated */
    int n_tiles;    /* of 32 outputs, or of 16 gate and 16 up */
    int slice_segs; /* TILE_K segments of K that a warp takes */
    int epilogue, act;
};

/* Row of w behind row `r` of a tile; rows past the end repeat the last one and are not stored. */
static __device__ __forceinline__ int weight_row(const gemm_kernel_args &a, int tile, int r)
{
    int row;

    if (a.epilogue == GEMM_GATED) {
        row = tile * 16 + r % 16;
        row = row < a.n_cols ? row : a.n_cols - 1;
        return r < 16 ? row : row + a.n_cols;
    }
    row = tile * TILE_OUT + r;
    return row < a.n_out ? row : a.n_out - 1;
}

/* One output from the sum of all slices. `up` counts for GEMM_GATED only. */
template <typename T>
static __device__ __forceinline__ void finish(const gemm_kernel_args &a, int row, int col,
                                              float acc, float up)
{
    int64_t at = (int64_t)row * a.n_cols + col;
    T *out = (T *)a.out;

    if (a.bias)
        acc += a.bias[col];
    switch (a.epilogue) {
    case GEMM_STORE:
        out[at] = from_f32<T>(acc);
        break;
    case GEMM_RESIDUAL:
        out[at] = from_f32<T>(to_f32(out[at]) + acc);
        break;
    case GEMM_ACT:
        out[at] = from_f32<T>(act_f32(a.act, acc));
        break;
    case GEMM_GATED:
        if (a.bias)
            up += a.bias[a.n_cols + col];
        out[at] = from_f32<T>(act_f32(a.act, acc) * up);
        break;
    case GEMM_F32:
        ((float *)a.out)[at] = acc;
        break;
    }
}

/*
 * CTA -> tiles blockIdx.x, + gridDim.x, ...; blockIdx.y -> block of 8 N_TILES rows.
 * Lane 4g + t holds w rows g, g+8, g+16, g+24 and x rows 8n + g, elements 8t.. and 32+8t.. of a
 * segment.
 */
template <typename T, int N_TILES, int STAGES>
static __global__ void __launch_bounds__(GEMM_THREADS, 1)
    gemm_stream_w_kernel(const __grid_constant__ gemm_kernel_args a)
{
    constexpr int PIECES = W_PIECES + 2 * N_TILES;
    constexpr int RED_N = N_TILES > 1 ? 2 : 1; /* n tiles that are summed over the warps at once */
    extern __shared__ uint4 smem[];
    uint4 *ring = smem + (threadIdx.x / WARP_LANES) * STAGES * PIECES * WARP_LANES;
    float *red = (float *)(smem + GEMM_WARPS * STAGES * PIECES * WARP_LANES);
    int warp = threadIdx.x / WARP_LANES, lane = threadIdx.x % WARP_LANES;
    int g = lane / 4, t = lane % 4, row0 = blockIdx.y * N_TILES * 8;
    int k_begin = warp * a.slice_segs * TILE_K;
    int my_tiles = (a.n_tiles - (int)blockIdx.x + (int)gridDim.x - 1) / (int)gridDim.x;
    int n_steps = my_tiles * a.slice_segs;
    const T *w = (const T *)a.w, *x = (const T *)a.x;
    const T *w_row[4], *x_row[N_TILES];
    bool x_there[N_TILES];
    float acc[2][N_TILES][4];
    int load_tile = blockIdx.x, load_seg = 0, tile = blockIdx.x, seg = 0;

    for (int n = 0; n < N_TILES; n++) {
        int row = row0 + n * 8 + g;

        x_there[n] = row < a.n_rows;
        x_row[n] = x + (int64_t)(x_there[n] ? row : 0) * a.n_in + t * 8;
    }
    auto point_at_tile = [&](int at) {
        for (int r = 0; r < 4; r++)
            w_row[r] = w + (int64_t)weight_row(a, at, r * 8 + g) * a.n_in + t * 8;
    };
    /* Queues the copies of step `step`, if there is one; a group is committed either way. */
    auto load = [&](int step) {
        if (step < n_steps) {
            uint4 *dst = ring + step % STAGES * PIECES * WARP_LANES + lane;
            int k = k_begin + load_seg * TILE_K;
            /* A piece past the end of K reads nothing and is zero. */
            int there0 = k + t * 8 < a.n_in ? 16 : 0, there1 = k + 32 + t * 8 < a.n_in ? 16 : 0;
            int64_t at0 = there0 ? k : 0, at1 = there1 ? k + 32 : 0;

            for (int r = 0; r < 4; r++) {
                copy_async16(smem_addr(dst + (2 * r) * WARP_LANES), w_row[r] + at0, there0);
                copy_async16(smem_addr(dst + (2 * r + 1) * WARP_LANES), w_row[r] + at1, there1);
            }
            for (int n = 0; n < N_TILES; n++) {
                uint4 *xd = dst + (W_PIECES + 2 * n) * WARP_LANES;

                copy_async16(smem_addr(xd), x_row[n] + at0, x_there[n] ? there0 : 0);
                copy_async16(smem_addr(xd + WARP_LANES), x_row[n] + at1, x_there[n] ? there1 : 0);
            }
            if (++load_seg == a.slice_segs) {
                load_seg = 0;
                load_tile += gridDim.x;
                point_at_tile(
                    load_tile); /* clamped, so a tile past the end points at the last row */
            }
        }
        copy_async_commit();
    };
    point_at_tile(load_tile);
    for (int step = 0; step < STAGES - 1; step++)
        load(step);
    for (int m = 0; m < 2; m++)
        for (int n = 0; n < N_TILES; n++)
            for (int i = 0; i < 4; i++)
                acc[m][n][i] = 0;

    for (int step = 0; step < n_steps; step++) {
        const uint4 *src = ring + step % STAGES * PIECES * WARP_LANES + lane;
        uint4 piece[W_PIECES];

        load(step + STAGES - 1);
        copy_async_wait<STAGES - 1>();
        for (int i = 0; i < W_PIECES; i++)
            piece[i] = src[i * WARP_LANES];
        for (int h = 0; h < 2; h++) { /* elements 0..31, then 32..63 of the segment */
            for (int n = 0; n < N_TILES; n++) {
                uint4 xp = src[(W_PIECES + 2 * n + h) * WARP_LANES];

                for (int m = 0; m < 2; m++) {
                    uint4 lo = piece[4 * m + h], hi = piece[4 * m + 2 + h];
                    uint32_t first[4] = {lo.x, hi.x, lo.y, hi.y};
                    uint32_t second[4] = {lo.z, hi.z, lo.w, hi.w};

                    mma16816<T>(acc[m][n], first, xp.x, xp.y);
                    mma16816<T>(acc[m][n], second, xp.z, xp.w);
                }
            }
        }
        if (++seg < a.slice_segs)
            continue;
        seg = 0;
        for (int n0 = 0; n0 < N_TILES; n0 += RED_N) {
            __syncthreads(); /* the sums of the pass before have been read */
#pragma unroll
            for (int n = 0; n < N_TILES; n++) {
                if (n < n0 || n >= n0 + RED_N)
                    continue;
                for (int m = 0; m < 2; m++) {
                    for (int i = 0; i < 4; i++) {
                        int out = m * 16 + g + (i / 2) * 8, row = (n - n0) * 8 + 2 * t + i % 2;

                        red[(warp * RED_N * 8 + row) * TILE_OUT + out] = acc[m][n][i];
                        acc[m][n][i] = 0;
                    }
                }
            }
            __syncthreads(); /* every warp's sums are there */
            for (int i = threadIdx.x; i < RED_N * 8 * TILE_OUT; i += GEMM_THREADS) {
                int out = i % TILE_OUT, row = row0 + n0 * 8 + i / TILE_OUT, col;
                float sum = 0, up = 0;
                bool gated = a.epilogue == GEMM_GATED;

                if (gated && out >= 16)
                    continue;
                for (int s = 0; s < GEMM_WARPS; s++)
                    sum += red[s * RED_N * 8 * TILE_OUT + i];
                for (int s = 0; gated && s < GEMM_WARPS; s++)
                    up += red[s * RED_N * 8 * TILE_OUT + i + 16];
                col = gated ? tile * 16 + out : tile * TILE_OUT + out;
                if (row < a.n_rows && col < a.n_cols)
                    finish<T>(a, row, col, sum, up);
            }
        }
        tile += gridDim.x;
    }
    copy_async_wait<0>(); /* empty groups; nothing may be in flight at exit */
}

#define F32_ROWS 4 /* rows of x that a warp takes at once */

/* warp -> (output, F32_ROWS rows); lanes stride over K and are summed by a fixed tree */
static __global__ void __launch_bounds__(GEMM_THREADS)
    gemm_f32_kernel(const __grid_constant__ gemm_kernel_args a)
{
    int lane = threadIdx.x % WARP_LANES;
    int col = blockIdx.x * GEMM_WARPS + threadIdx.x / WARP_LANES, row0 = blockIdx.y * F32_ROWS;
    const float *x = (const float *)a.x, *w = (const float *)a.w;
    bool gated = a.epilogue == GEMM_GATED;
    float sum[F32_ROWS] = {}, up[F32_ROWS] = {};

    if (col >= a.n_cols)
        return;
    for (int k = lane * 4; k < a.n_in; k += WARP_LANES * 4) {
        float4 p = *(const float4 *)(w + (int64_t)col * a.n_in + k), q = p;

        if (gated)
            q = *(const float4 *)(w + (int64_t)(col + a.n_cols) * a.n_in + k);
        for (int r = 0; r < F32_ROWS; r++) {
            if (row0 + r >= a.n_rows)
                break;
            float4 v = *(const float4 *)(x + (int64_t)(row0 + r) * a.n_in + k);

            sum[r] += p.x * v.x + p.y * v.y + p.z * v.z + p.w * v.w;
            up[r] += q.x * v.x + q.y * v.y + q.z * v.z + q.w * v.w;
        }
    }
    for (int r = 0; r < F32_ROWS; r++) {
        sum[r] = warp_sum(sum[r]);
        up[r] = warp_sum(up[r]);
        if (lane == 0 && row0 + r < a.n_rows)
            finish<float>(a, row0 + r, col, sum[r], up[r]);
    }
}

template <typename T, int N_TILES, int STAGES>
static int stream_start(struct cuda_backend *cb, const struct gemm_kernel_args *k, struct err *err)
{
    constexpr int PIECES = W_PIECES + 2 * N_TILES;
    constexpr int RED_N = N_TILES > 1 ? 2 : 1;
    size_t smem = (size_t)GEMM_WARPS * STAGES * PIECES * WARP_LANES * sizeof(uint4) +
                  (size_t)GEMM_WARPS * RED_N * 8 * TILE_OUT * sizeof(float);
    dim3 grid(k->n_tiles < cb->n_sms ? k->n_tiles : cb->n_sms,
              (k->n_rows + N_TILES * 8 - 1) / (N_TILES * 8));

    CUDA_TRY(err, cudaFuncSetAttribute(gemm_stream_w_kernel<T, N_TILES, STAGES>,
                                       cudaFuncAttributeMaxDynamicSharedMemorySize, (int)smem));
    gemm_stream_w_kernel<T, N_TILES, STAGES><<<grid, GEMM_THREADS, smem, cb->stream>>>(*k);
    return cuda_launched(cb, "gemm_stream_w", err);
}

/* Stages fill the shared memory of an SM: 227 KiB on sm_90, 163 KiB on sm_80. */
template <typename T>
static int stream_choose(struct cuda_backend *cb, const struct gemm_kernel_args *k, struct err *err)
{
    if (cb->smem_max >= 220u << 10) {
        if (k->n_rows <= 8)
            return stream_start<T, 1, 5>(cb, k, err);
        if (k->n_rows <= 16)
            return stream_start<T, 2, 4>(cb, k, err);
        if (k->n_rows <= 32)
            return stream_start<T, 4, 3>(cb, k, err);
        return stream_start<T, 8, 2>(cb, k, err);
    }
    if (k->n_rows <= 8)
        return stream_start<T, 1, 3>(cb, k, err);
    if (k->n_rows <= 16)
        return stream_start<T, 2, 2>(cb, k, err);
    return stream_start<T, 4, 2>(cb, k, err);
}

static void f32_start(struct cuda_backend *cb, const struct gemm_kernel_args *k)
{
    dim3 grid((k->n_cols + GEMM_WARPS - 1) / GEMM_WARPS, (k->n_rows + F32_ROWS - 1) / F32_ROWS);

    gemm_f32_kernel<<<grid, GEMM_THREADS, 0, cb->stream>>>(*k);
}

int gemm_stream_launch(struct cuda_backend *cb, const struct gemm_args *p, struct err *err)
{
    struct gemm_kernel_args k = {};
    bool gated = p->epilogue == GEMM_GATED;
    int segs;

    if (p->n_rows == 0)
        return 0;
    if (p->w->n_in % 8)
        return err_set(err, ERR_UNSUPPORTED, "gemm: n_in %d, want a multiple of 8", p->w->n_in);
    segs = (p->w->n_in + TILE_K - 1) / TILE_K;
    k.x = p->x;
    k.w = p->w->data;
    k.bias = p->bias ? (const float *)p->bias->data : NULL;
    k.out = p->out;
    k.n_rows = p->n_rows;
    k.n_in = p->w->n_in;
    k.n_out = p->w->n_out;
    k.n_cols = gated ? k.n_out / 2 : k.n_out;
    k.n_tiles = gated ? (k.n_cols + 15) / 16 : (k.n_out + TILE_OUT - 1) / TILE_OUT;
    k.slice_segs = (segs + GEMM_WARPS - 1) / GEMM_WARPS;
    k.epilogue = p->epilogue;
    k.act = p->act;
    switch (cb->base.act_dtype) {
    case DTYPE_BF16:
        return stream_choose<__nv_bfloat16>(cb, &k, err);
    case DTYPE_F16:
        return stream_choose<__half>(cb, &k, err);
    case DTYPE_F32:
        break;
    }
    f32_start(cb, &k);
    return cuda_launched(cb, "gemm_f32", err);
}
