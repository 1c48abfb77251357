/*
 * grad_attn.cu - the way back through attention, and the influence of keys on the way.
 *
 *   q, da, dq      bf16 [n_rows, n_heads, head_dim]
 *   k, v, dk, dv   bf16 [n_rows, n_kv_heads, head_dim]
 *   cells          f32  [n_heads, n_blocks, n_blocks] influence by row block and key block
 *
 * Work     grad_attn_rows: one CTA per (64 rows, query head) goes over its keys twice: for the sum
 *          of each row's weights and da . a, then for influence and dq. grad_attn_keys: one CTA per
 *          (64 keys, KV head) goes over the rows that see them, of all query heads of the group,
 *          for dk and dv. Neither adds to what another CTA adds to: sums have one order.
 * Tile     64 x 64, the blocks of influence; 4 warps of 16 rows (keys). da . a is the sum of the
 *          weights times da . v, in f32 as they are used: a that was rounded is not.
 * Overlap  two stages of the tiles that are gone over
 * Bound    tensor cores: (4 + 6 + 8) head_dim FLOP a visible pair, where 10 would do if rows' sums
 *          were known and dq was added to from many CTAs
 * Measured see SPEED.md
 * Limits   head_dim 32, 64, 80, 96, 128
 * Checked  against cpu in tests/cuda/test_cuda_grad.c
 */
#include "cuda/device.cuh"
#include "cuda/grad_cuda.h"

#define TILE      GRAD_BLOCK
#define N_WARPS   4
#define N_THREADS (N_WARPS * WARP_LANES)
#define LOG2_E    1.44269504f

/* What the two kernels know of a pair of tiles. */
static __device__ __forceinline__ bool pair_seen(const grad_attn_kernel_args &a, int row, int key)
{
    return key <= row && row - key < a.window && row < a.n_rows;
}

static __device__ __forceinline__ bool tile_is_seen_whole(const grad_attn_kernel_args &a, int i,
                                                          int j)
{
    return j < i && (i - j) * TILE + TILE - 1 < a.window && (i + 1) * TILE <= a.n_rows;
}

/* The first block of keys that row block i sees. */
static __device__ __forceinline__ int first_key_tile(const grad_attn_kernel_args &a, int i)
{
    int lo = i * TILE - a.window + 1;

    return lo > 0 ? lo / TILE : 0;
}

/* The last block of rows that sees key block j. */
static __device__ __forceinline__ int last_row_tile(const grad_attn_kernel_args &a, int j)
{
    int64_t last = ((int64_t)j * TILE + TILE - 1 + a.window - 1) / TILE;

    return last < a.n_blocks - 1 ? (int)last : a.n_blocks - 1;
}

/* 64 rows of a head on their way to shared memory; those that are not there become zeros. */
template <typename T, int D>
static __device__ __forceinline__ void tile_load(T *dst, const void *src, int tile, int n_rows,
                                                 int n_heads, int head)
{
    constexpr int PIECES = D / 8;

    for (int c = threadIdx.x; c < TILE * PIECES; c += N_THREADS) {
        int r = c / PIECES, piece = c % PIECES * 8, row = tile * TILE + r;
        bool have = row < n_rows;

        copy_async16(smem_addr(dst + r * (D + 8) + piece),
                     (const T *)src + ((int64_t)(have ? row : 0) * n_heads + head) * D + piece,
                     have ? 16 : 0);
    }
}

/* s = rows cols^T for the warp's 16 rows and 64 columns; fragments as in mma16816. */
template <typename T, int D>
static __device__ __forceinline__ void scores(float s[TILE / 8][4], const T *rows, const T *cols)
{
    constexpr int STRIDE = D + 8;
    int lane = threadIdx.x % WARP_LANES, matrix = lane / 8, in_matrix = lane % 8;

#pragma unroll
    for (int n = 0; n < TILE / 8; n++)
        for (int e = 0; e < 4; e++)
            s[n][e] = 0;
#pragma unroll
    for (int k = 0; k < D / 16; k++) {
        uint32_t rf[4];

        load_matrix4(rf, smem_addr(rows + (in_matrix + matrix % 2 * 8) * STRIDE + k * 16 +
                                   matrix / 2 * 8));
#pragma unroll
        for (int n = 0; n < TILE / 16; n++) {
            uint32_t cf[4];

            load_matrix4(cf, smem_addr(cols + (n * 16 + in_matrix + matrix / 2 * 8) * STRIDE +
                                       k * 16 + matrix % 2 * 8));
            mma16816<T>(s[2 * n], rf, cf[0], cf[1]);
            mma16816<T>(s[2 * n + 1], rf, cf[2], cf[3]);
        }
    }
}

/* out += s rows, for the warp's 16 x 64 and 64 rows. */
template <typename T, int D>
static __device__ __forceinline__ void spread(float out[D / 8][4], const float s[TILE / 8][4],
                                              const T *rows)
{
    constexpr int STRIDE = D + 8;
    int lane = threadIdx.x % WARP_LANES, matrix = lane / 8, in_matrix = lane % 8;

#pragma unroll
    for (int k = 0; k < TILE / 16; k++) {
        uint32_t sf[4] = {pack2<T>(s[2 * k][0], s[2 * k][1]), pack2<T>(s[2 * k][2], s[2 * k][3]),
                          pack2<T>(s[2 * k + 1][0], s[2 * k + 1][1]),
                          pack2<T>(s[2 * k + 1][2], s[2 * k + 1][3])};

#pragma unroll
        for (int n = 0; n < D / 16; n++) {
            uint32_t rf[4];

            load_matrix4_trans(rf, smem_addr(rows +
                                             (k * 16 + in_matrix + matrix % 2 * 8) * STRIDE +
                                             n * 16 + matrix / 2 * 8));
            mma16816<T>(out[2 * n], sf, rf[0], rf[1]);
            mma16816<T>(out[2 * n + 1], sf, rf[2], rf[3]);
        }
    }
}

/* The warp's 16 rows from row0 on, of a head. */
template <typename T, int D>
static __device__ __forceinline__ void rows_store(void *dst, const float out[D / 8][4], int row0,
                                                  int n_rows, int n_heads, int head)
{
    int lane = threadIdx.x % WARP_LANES;

#pragma unroll
    for (int r = 0; r < 2; r++) {
        int row = row0 + lane / 4 + r * 8;
        T *to = (T *)dst + ((int64_t)row * n_heads + head) * D + lane % 4 * 2;

        if (row >= n_rows)
            continue;
#pragma unroll
        for (int n = 0; n < D / 8; n++)
            *(uint32_t *)(to + n * 8) = pack2<T>(out[n][2 * r], out[n][2 * r + 1]);
    }
}

/* A row's state over the keys so far, of two rows a lane. */
struct row_state {
    float max, sum, dot;
};

/* Takes in 64 keys: s are scores, g is da . v. The four lanes of a row leave sums to the end. */
static __device__ __forceinline__ void state_add(row_state *st, const float s[TILE / 8][4],
                                                 const float g[TILE / 8][4], int r)
{
    float top = st->max, ref, shrink;

#pragma unroll
    for (int n = 0; n < TILE / 8; n++)
        top = fmaxf(top, fmaxf(s[n][2 * r], s[n][2 * r + 1]));
    top = fmaxf(top, __shfl_xor_sync(0xffffffffu, top, 1));
    top = fmaxf(top, __shfl_xor_sync(0xffffffffu, top, 2));
    ref = top == -INFINITY ? 0.0f : top; /* nothing seen yet: all weights are 0 */
    shrink = exp2_approx(st->max - ref);
    st->max = top;
    st->sum *= shrink;
    st->dot *= shrink;
#pragma unroll
    for (int n = 0; n < TILE / 8; n++) {
#pragma unroll
        for (int e = 2 * r; e < 2 * r + 2; e++) {
            float p = exp2_approx(s[n][e] - ref);

            st->sum += p;
            st->dot += p * g[n][e];
        }
    }
}

/* CTA -> (query head, 64 rows), the longest first */
template <typename T, int D>
static __global__ void __launch_bounds__(N_THREADS, 2)
    grad_attn_rows(const __grid_constant__ grad_attn_kernel_args a)
{
    constexpr int ELEMS = TILE * (D + 8);
    extern __shared__ __align__(16) unsigned char smem[];
    __shared__ float parts[2][N_WARPS]; /* influence of a tile by warp, of two tiles in turn */
    T *q_tile = (T *)smem, *da_tile = q_tile + ELEMS, *k_tile = da_tile + ELEMS,
      *v_tile = k_tile + 2 * ELEMS; /* two stages each */
    int head = blockIdx.x, kv_head = head / (a.n_heads / a.n_kv_heads);
    int i = a.n_blocks - 1 - blockIdx.y, j0 = first_key_tile(a, i), n = i - j0 + 1;
    int warp = threadIdx.x / WARP_LANES, lane = threadIdx.x % WARP_LANES, t4 = lane % 4;
    int row0 = i * TILE + warp * 16, row = row0 + lane / 4;
    float scale_log2 = a.scale * LOG2_E;
    float *cells = a.cells + ((int64_t)head * a.n_blocks + i) * a.n_blocks;
    float s[TILE / 8][4], g[TILE / 8][4], dq[D / 8][4], lse[2], dot[2];
    row_state st[2] = {{-INFINITY, 0, 0}, {-INFINITY, 0, 0}};
    const T *my_q = q_tile + warp * 16 * (D + 8), *my_da = da_tile + warp * 16 * (D + 8);

    auto load = [&](int t) {
        if (t < 2 * n) {
            int j = j0 + (t < n ? t : t - n);

            tile_load<T, D>(k_tile + (t & 1) * ELEMS, a.k, j, a.n_rows, a.n_kv_heads, kv_head);
            tile_load<T, D>(v_tile + (t & 1) * ELEMS, a.v, j, a.n_rows, a.n_kv_heads, kv_head);
        }
        copy_async_commit();
    };

    tile_load<T, D>(q_tile, a.q, i, a.n_rows, a.n_heads, head);
    tile_load<T, D>(da_tile, a.da, i, a.n_rows, a.n_heads, head);
    load(0);
    for (int t = 0; t < n; t++) {
        bool whole = tile_is_seen_whole(a, i, j0 + t);

        load(t + 1);
        copy_async_wait<1>();
        __syncthreads(); /* this tile is there */
        scores<T, D>(s, my_q, k_tile + (t & 1) * ELEMS);
        scores<T, D>(g, my_da, v_tile + (t & 1) * ELEMS);
#pragma unroll
        for (int c = 0; c < TILE / 8; c++) {
#pragma unroll
            for (int e = 0; e < 4; e++) {
                s[c][e] *= scale_log2;
                if (!whole &&
                    !pair_seen(a, row + e / 2 * 8, (j0 + t) * TILE + c * 8 + 2 * t4 + e % 2))
                    s[c][e] = -INFINITY;
            }
        }
        state_add(&st[0], s, g, 0);
        state_add(&st[1], s, g, 1);
        __syncthreads(); /* all warps have read this tile */
    }
#pragma unroll
    for (int r = 0; r < 2; r++) {
        for (int m = 1; m < 4; m *= 2) {
            st[r].sum += __shfl_xor_sync(0xffffffffu, st[r].sum, m);
            st[r].dot += __shfl_xor_sync(0xffffffffu, st[r].dot, m);
        }
        /* Rows that are not there see nothing. */
        lse[r] = st[r].sum > 0 ? st[r].max + log2f(st[r].sum) : 0.0f;
        dot[r] = st[r].sum > 0 ? st[r].dot / st[r].sum : 0.0f;
        if (t4 == 0) {
            a.lse[(int64_t)head * a.n_pad + row + r * 8] = lse[r];
            a.dot[(int64_t)head * a.n_pad + row + r * 8] = dot[r];
        }
    }

#pragma unroll
    for (int c = 0; c < D / 8; c++)
        for (int e = 0; e < 4; e++)
            dq[c][e] = 0;
    for (int t = n; t < 2 * n; t++) {
        int j = j0 + t - n;
        bool whole = tile_is_seen_whole(a, i, j);
        float sum[2] = {0, 0};

        load(t + 1);
        copy_async_wait<1>();
        __syncthreads(); /* this tile is there, and the parts of the one before */
        if (threadIdx.x == 0 && t > n)
            cells[j - 1] =
                parts[~t & 1][0] + parts[~t & 1][1] + parts[~t & 1][2] + parts[~t & 1][3];
        scores<T, D>(s, my_q, k_tile + (t & 1) * ELEMS);
        scores<T, D>(g, my_da, v_tile + (t & 1) * ELEMS);
#pragma unroll
        for (int c = 0; c < TILE / 8; c++) {
#pragma unroll
            for (int e = 0; e < 4; e++) {
                float p = exp2_approx(s[c][e] * scale_log2 - lse[e / 2]), change, influence;
                bool alone = false;

                if (!whole) {
                    int at = row + e / 2 * 8;

                    if (!pair_seen(a, at, j * TILE + c * 8 + 2 * t4 + e % 2))
                        p = 0;
                    alone = at == 0 || a.window == 1; /* nothing is left to take over the weight */
                }
                change = p * (g[c][e] - dot[e / 2]);
                influence =
                    alone ? p * g[c][e] : -__fdividef(change, fmaxf(1.0f - p, GRAD_MIN_REST));
                sum[e / 2] += a.sum == GRAD_SUM_ABS ? fabsf(influence) : influence;
                s[c][e] = change * a.scale;
            }
        }
#pragma unroll
        for (int r = 0; r < 2; r++) {
            sum[r] += __shfl_xor_sync(0xffffffffu, sum[r], 1);
            sum[r] += __shfl_xor_sync(0xffffffffu, sum[r], 2);
            sum[r] = a.sum == GRAD_SUM_SIGNED ? sum[r] : fabsf(sum[r]);
        }
        sum[0] += sum[1];
        for (int m = 4; m < WARP_LANES; m *= 2)
            sum[0] += __shfl_xor_sync(0xffffffffu, sum[0], m);
        if (lane == 0)
            parts[t & 1][warp] = sum[0];
        spread<T, D>(dq, s, k_tile + (t & 1) * ELEMS);
        __syncthreads(); /* all warps have read this tile */
    }
    copy_async_wait<0>();
    if (threadIdx.x == 0) {
        const float *last = parts[~(2 * n) & 1];

        cells[i] = last[0] + last[1] + last[2] + last[3];
    }
    rows_store<T, D>(a.dq, dq, row0, a.n_rows, a.n_heads, head);
}

/* CTA -> (KV head, 64 keys), the longest first */
template <typename T, int D>
static __global__ void __launch_bounds__(N_THREADS, 2)
    grad_attn_keys(const __grid_constant__ grad_attn_kernel_args a)
{
    constexpr int ELEMS = TILE * (D + 8);
    extern __shared__ __align__(16) unsigned char smem[];
    T *k_tile = (T *)smem, *v_tile = k_tile + ELEMS, *q_tile = v_tile + ELEMS,
      *da_tile = q_tile + 2 * ELEMS;             /* two stages each */
    float *state = (float *)(da_tile + 2 * ELEMS); /* [2, 2, 64] lse and dot of two stages */
    int kv_head = blockIdx.x, group = a.n_heads / a.n_kv_heads, j = blockIdx.y;
    int n = last_row_tile(a, j) - j + 1;
    int warp = threadIdx.x / WARP_LANES, lane = threadIdx.x % WARP_LANES, t4 = lane % 4;
    int key = j * TILE + warp * 16 + lane / 4;
    float scale_log2 = a.scale * LOG2_E;
    float s[TILE / 8][4], g[TILE / 8][4], dk[D / 8][4], dv[D / 8][4];

    auto load = [&](int t) {
        if (t < group * n) {
            int head = kv_head * group + t / n, i = j + t % n;
            const float *from = (threadIdx.x < TILE / 4 ? a.lse : a.dot) +
                                (int64_t)head * a.n_pad + i * TILE + threadIdx.x % (TILE / 4) * 4;

            tile_load<T, D>(q_tile + (t & 1) * ELEMS, a.q, i, a.n_rows, a.n_heads, head);
            tile_load<T, D>(da_tile + (t & 1) * ELEMS, a.da, i, a.n_rows, a.n_heads, head);
            if (threadIdx.x < TILE / 2)
                copy_async16(smem_addr(state + (t & 1) * 2 * TILE + threadIdx.x * 4), from);
        }
        copy_async_commit();
    };

#pragma unroll
    for (int c = 0; c < D / 8; c++)
        for (int e = 0; e < 4; e++)
            dk[c][e] = dv[c][e] = 0;
    tile_load<T, D>(k_tile, a.k, j, a.n_rows, a.n_kv_heads, kv_head);
    tile_load<T, D>(v_tile, a.v, j, a.n_rows, a.n_kv_heads, kv_head);
    load(0);
    for (int t = 0; t < group * n; t++) {
        int i = j + t % n;
        bool whole = tile_is_seen_whole(a, i, j);
        const float *lse = state + (t & 1) * 2 * TILE, *dot = lse + TILE;

        load(t + 1);
        copy_async_wait<1>();
        __syncthreads(); /* this tile is there */
        scores<T, D>(s, k_tile + warp * 16 * (D + 8), q_tile + (t & 1) * ELEMS);
        scores<T, D>(g, v_tile + warp * 16 * (D + 8), da_tile + (t & 1) * ELEMS);
#pragma unroll
        for (int c = 0; c < TILE / 8; c++) {
            float2 l = *(const float2 *)(lse + c * 8 + 2 * t4);
            float2 d = *(const float2 *)(dot + c * 8 + 2 * t4);

#pragma unroll
            for (int e = 0; e < 4; e++) {
                float p = exp2_approx(s[c][e] * scale_log2 - (e % 2 ? l.y : l.x));

                if (!whole &&
                    !pair_seen(a, i * TILE + c * 8 + 2 * t4 + e % 2, key + e / 2 * 8))
                    p = 0;
                s[c][e] = p;
                g[c][e] = p * (g[c][e] - (e % 2 ? d.y : d.x)) * a.scale;
            }
        }
        spread<T, D>(dv, s, da_tile + (t & 1) * ELEMS);
        spread<T, D>(dk, g, q_tile + (t & 1) * ELEMS);
        __syncthreads(); /* all warps have read this tile */
    }
    copy_async_wait<0>();
    rows_store<T, D>(a.dk, dk, j * TILE + warp * 16, a.n_rows, a.n_kv_heads, kv_head);
    rows_store<T, D>(a.dv, dv, j * TILE + warp * 16, a.n_rows, a.n_kv_heads, kv_head);
}

#define CELL_THREADS 128

/* thread -> one sum of a head: the distances of band, then the row blocks of sink */
static __global__ void __launch_bounds__(CELL_THREADS)
    grad_cells(const __grid_constant__ grad_attn_kernel_args a)
{
    int at = blockIdx.y * CELL_THREADS + threadIdx.x, n = a.n_blocks;
    const float *cells = a.cells + (int64_t)blockIdx.x * n * n;
    double sum = 0;

    if (at >= 2 * n)
        return;
    if (at >= n) {
        sum = first_key_tile(a, at - n) == 0 ? (double)cells[(int64_t)(at - n) * n] : 0.0;
    } else {
        for (int i = at + 1; i < n; i++) { /* key block 0 is the sink's */
            if (first_key_tile(a, i) <= i - at)
                sum += (double)cells[(int64_t)i * n + i - at];
        }
    }
    a.sums[(int64_t)blockIdx.x * 2 * n + at] = sum;
}

template <typename T, int D>
static int attn_start(struct cuda_backend *cb, const struct grad_attn_kernel_args *k,
                      struct err *err)
{
    int tiles = 6 * TILE * (D + 8) * (int)sizeof(T), with_state = tiles + 4 * TILE * 4, rc;

    CUDA_TRY(err, cudaFuncSetAttribute(grad_attn_rows<T, D>,
                                       cudaFuncAttributeMaxDynamicSharedMemorySize, tiles));
    CUDA_TRY(err, cudaFuncSetAttribute(grad_attn_keys<T, D>,
                                       cudaFuncAttributeMaxDynamicSharedMemorySize, with_state));
    grad_attn_rows<T, D><<<dim3(k->n_heads, k->n_blocks), N_THREADS, tiles, cb->stream>>>(*k);
    rc = cuda_launched(cb, "grad_attn_rows", err);
    if (rc < 0)
        return rc;
    grad_attn_keys<T, D>
        <<<dim3(k->n_kv_heads, k->n_blocks), N_THREADS, with_state, cb->stream>>>(*k);
    return cuda_launched(cb, "grad_attn_keys", err);
}

int grad_attn_launch(struct cuda_backend *cb, const struct grad_attn_kernel_args *k,
                     struct err *err)
{
    switch (k->head_dim) {
    case 32:
        return attn_start<__nv_bfloat16, 32>(cb, k, err);
    case 64:
        return attn_start<__nv_bfloat16, 64>(cb, k, err);
    case 80:
        return attn_start<__nv_bfloat16, 80>(cb, k, err);
    case 96:
        return attn_start<__nv_bfloat16, 96>(cb, k, err);
    case 128:
        return attn_start<__nv_bfloat16, 128>(cb, k, err);
    }
    return err_set(err, ERR_UNSUPPORTED,
                   "the way back through attention: head_dim %d, built are 32, 64, 80, 96 and 128",
                   k->head_dim);
}

int grad_cells_launch(struct cuda_backend *cb, const struct grad_attn_kernel_args *k,
                      struct err *err)
{
    dim3 grid(k->n_heads, (2 * k->n_blocks + CELL_THREADS - 1) / CELL_THREADS);

    grad_cells<<<grid, CELL_THREADS, 0, cb->stream>>>(*k);
    return cuda_launched(cb, "grad_cells", err);
}
