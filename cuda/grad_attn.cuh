/*
 * grad_attn - the kernels of the way back through attention, for two kinds of tensor core products.
 *
 * M is how 64 x 64 tiles are multiplied: mma.sync in grad_attn.cu, wgmma in grad_attn_wgmma.cu. A
 * CTA has 128 threads, warp w has rows 16 w.. of the 64; fragments are those of mma16816, one after
 * the other: s[4 n + e] is row lane / 4 + 8 (e / 2), column 8 n + 2 (lane % 4) + e % 2. M has
 *
 *   elem, DIM, TILE_BYTES   of a tile of 64 rows in shared memory
 *   load()                  copies a tile, without waiting
 *   landed()                behind the wait for copies, before the barrier
 *   queue_scores()          s = rows cols^T over DIM, for all 64 rows of both tiles
 *   queue_spread()          out += packed rows, for 64 x 64 and 64 x DIM
 *   ready<N>()              x is there when at most N of those queued are unfinished
 */
#ifndef GRAD_ATTN_CUH
#define GRAD_ATTN_CUH

#include "cuda/device.cuh"
#include "cuda/grad_cuda.h"

#define TILE      GRAD_BLOCK
#define N_WARPS   4
#define N_THREADS (N_WARPS * WARP_LANES)
#define LOG2_E    1.44269504f
#define N_SCORES  (TILE / 8 * 4) /* of a thread */

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

/* The 64 rows of a head that a tile has, piece by piece of 16 bytes: at(r, piece) is its place. */
template <typename T, int D, typename PLACE>
static __device__ __forceinline__ void pieces_load(const void *src, int tile, int n_rows,
                                                   int n_heads, int head, PLACE at)
{
    constexpr int PIECES = D / 8;

#pragma unroll 4
    for (int c = threadIdx.x; c < TILE * PIECES; c += N_THREADS) {
        int r = c / PIECES, piece = c % PIECES, row = tile * TILE + r;
        bool have = row < n_rows; /* those that are not there become zeros */

        copy_async16(at(r, piece),
                     (const T *)src + ((int64_t)(have ? row : 0) * n_heads + head) * D + piece * 8,
                     have ? 16 : 0);
    }
}

/* Scores as the first operand of a product. */
template <typename T>
static __device__ __forceinline__ void pack_scores(uint32_t (&packed)[N_SCORES / 2],
                                                   const float (&s)[N_SCORES])
{
#pragma unroll
    for (int i = 0; i < N_SCORES / 2; i++)
        packed[i] = pack2<T>(s[2 * i], s[2 * i + 1]);
}

/* The warp's 16 rows from row0 on, of a head. */
template <typename T, int D>
static __device__ __forceinline__ void rows_store(void *dst, const float (&out)[D / 2], int row0,
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
            *(uint32_t *)(to + n * 8) = pack2<T>(out[4 * n + 2 * r], out[4 * n + 2 * r + 1]);
    }
}

struct row_state {
    float max, sum, dot; /* of a row over the keys so far, with da . v weighted */
};

/* Takes in 64 keys of row r of 2: s are scores. The four lanes of a row leave sums to the end. */
static __device__ __forceinline__ float state_begin(row_state *st, const float (&s)[N_SCORES],
                                                    int r)
{
    float top = st->max, ref, shrink;

#pragma unroll
    for (int n = 0; n < TILE / 8; n++)
        top = fmaxf(top, fmaxf(s[4 * n + 2 * r], s[4 * n + 2 * r + 1]));
    top = fmaxf(top, __shfl_xor_sync(0xffffffffu, top, 1));
    top = fmaxf(top, __shfl_xor_sync(0xffffffffu, top, 2));
    ref = top == -INFINITY ? 0.0f : top; /* nothing seen yet: all weights are 0 */
    shrink = exp2_approx(st->max - ref);
    st->max = top;
    st->sum *= shrink;
    st->dot *= shrink;
    return ref;
}

/* CTA -> (query head, 64 rows), the longest first */
template <typename M>
static __device__ __forceinline__ void attn_rows(const grad_attn_kernel_args &a,
                                                 unsigned char *smem, float (&parts)[2][N_WARPS])
{
    typedef typename M::elem T;
    constexpr int D = M::DIM, BYTES = M::TILE_BYTES;
    unsigned char *q_tile = smem, *da_tile = q_tile + BYTES, *k_tile = da_tile + BYTES,
                  *v_tile = k_tile + 2 * BYTES; /* two stages each */
    int head = blockIdx.x, kv_head = head / (a.n_heads / a.n_kv_heads);
    int i = a.n_blocks - 1 - blockIdx.y, j0 = first_key_tile(a, i), n = i - j0 + 1;
    int warp = threadIdx.x / WARP_LANES, lane = threadIdx.x % WARP_LANES, t4 = lane % 4;
    int row0 = i * TILE + warp * 16, row = row0 + lane / 4;
    float scale_log2 = a.scale * LOG2_E;
    float *cells = a.cells + ((int64_t)head * a.n_blocks + i) * a.n_blocks;
    float s[N_SCORES], g[N_SCORES], dq[D / 2], lse[2], dot[2];
    row_state st[2] = {{-INFINITY, 0, 0}, {-INFINITY, 0, 0}};

    auto load = [&](int t) {
        if (t < 2 * n) {
            int j = j0 + (t < n ? t : t - n);

            M::load(k_tile + (t & 1) * BYTES, a.k, j, a.n_rows, a.n_kv_heads, kv_head);
            M::load(v_tile + (t & 1) * BYTES, a.v, j, a.n_rows, a.n_kv_heads, kv_head);
        }
        copy_async_commit();
    };
    auto begin = [&](int t) {
        load(t + 1);
        copy_async_wait<1>();
        M::landed();
        __syncthreads(); /* this tile is there, and the parts of the one before */
        M::queue_scores(s, q_tile, k_tile + (t & 1) * BYTES);
        M::queue_scores(g, da_tile, v_tile + (t & 1) * BYTES);
    };

    M::load(q_tile, a.q, i, a.n_rows, a.n_heads, head);
    M::load(da_tile, a.da, i, a.n_rows, a.n_heads, head);
    load(0);
    for (int t = 0; t < n; t++) {
        bool whole = tile_is_seen_whole(a, i, j0 + t);
        float ref[2];

        begin(t);
        M::template ready<1>(s);
#pragma unroll
        for (int c = 0; c < N_SCORES; c++) {
            s[c] *= scale_log2;
            if (!whole &&
                !pair_seen(a, row + c / 2 % 2 * 8, (j0 + t) * TILE + c / 4 * 8 + 2 * t4 + c % 2))
                s[c] = -INFINITY;
        }
        ref[0] = state_begin(&st[0], s, 0);
        ref[1] = state_begin(&st[1], s, 1);
#pragma unroll
        for (int c = 0; c < N_SCORES; c++) {
            s[c] = exp2_approx(s[c] - ref[c / 2 % 2]);
            st[c / 2 % 2].sum += s[c];
        }
        M::template ready<0>(g);
#pragma unroll
        for (int c = 0; c < N_SCORES; c++)
            st[c / 2 % 2].dot += s[c] * g[c];
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
    for (int c = 0; c < D / 2; c++)
        dq[c] = 0;
    for (int t = n; t < 2 * n; t++) {
        int j = j0 + t - n;
        bool whole = tile_is_seen_whole(a, i, j);
        float sum[2] = {0, 0};
        uint32_t packed[N_SCORES / 2];

        begin(t);
        if (threadIdx.x == 0 && t > n)
            cells[j - 1] =
                parts[~t & 1][0] + parts[~t & 1][1] + parts[~t & 1][2] + parts[~t & 1][3];
        M::template ready<1>(s);
#pragma unroll
        for (int c = 0; c < N_SCORES; c++) {
            s[c] = exp2_approx(s[c] * scale_log2 - lse[c / 2 % 2]);
            if (!whole && !pair_seen(a, row + c / 2 % 2 * 8, j * TILE + c / 4 * 8 + 2 * t4 + c % 2))
                s[c] = 0;
        }
        M::template ready<0>(g);
#pragma unroll
        for (int c = 0; c < N_SCORES; c++) {
            float p = s[c], change = p * (g[c] - dot[c / 2 % 2]), influence;
            /* Alone: nothing is left to take over the weight. */
            bool alone = !whole && (row + c / 2 % 2 * 8 == 0 || a.window == 1);

            influence = alone ? p * g[c] : -__fdividef(change, fmaxf(1.0f - p, GRAD_MIN_REST));
            sum[c / 2 % 2] += a.sum == GRAD_SUM_ABS ? fabsf(influence) : influence;
            s[c] = change * a.scale;
        }
        pack_scores<T>(packed, s);
        M::queue_spread(dq, packed, k_tile + (t & 1) * BYTES);
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
        M::template ready<0>(dq);
        __syncthreads(); /* all warps have read this tile */
    }
    copy_async_wait<0>();
    if (threadIdx.x == 0)
        cells[i] = parts[1][0] + parts[1][1] + parts[1][2] + parts[1][3]; /* 2 n - 1 is odd */
    rows_store<T, D>(a.dq, dq, row0, a.n_rows, a.n_heads, head);
}

/* CTA -> (KV head, 64 keys), the longest first; smem ends with [2, 2, 64] floats */
template <typename M>
static __device__ __forceinline__ void attn_keys(const grad_attn_kernel_args &a,
                                                 unsigned char *smem)
{
    typedef typename M::elem T;
    constexpr int D = M::DIM, BYTES = M::TILE_BYTES;
    unsigned char *k_tile = smem, *v_tile = k_tile + BYTES, *q_tile = v_tile + BYTES,
                  *da_tile = q_tile + 2 * BYTES;   /* two stages each */
    float *state = (float *)(da_tile + 2 * BYTES); /* lse and dot of two stages */
    int kv_head = blockIdx.x, group = a.n_heads / a.n_kv_heads, j = blockIdx.y;
    int n = last_row_tile(a, j) - j + 1;
    int warp = threadIdx.x / WARP_LANES, lane = threadIdx.x % WARP_LANES, t4 = lane % 4;
    int key = j * TILE + warp * 16 + lane / 4;
    float scale_log2 = a.scale * LOG2_E;
    float s[N_SCORES], g[N_SCORES], dk[D / 2], dv[D / 2];

    auto load = [&](int t) {
        if (t < group * n) {
            int head = kv_head * group + t / n, i = j + t % n;
            const float *from = (threadIdx.x < TILE / 4 ? a.lse : a.dot) + (int64_t)head * a.n_pad +
                                i * TILE + threadIdx.x % (TILE / 4) * 4;

            M::load(q_tile + (t & 1) * BYTES, a.q, i, a.n_rows, a.n_heads, head);
            M::load(da_tile + (t & 1) * BYTES, a.da, i, a.n_rows, a.n_heads, head);
            if (threadIdx.x < TILE / 2)
                copy_async16(smem_addr(state + (t & 1) * 2 * TILE + threadIdx.x * 4), from);
        }
        copy_async_commit();
    };

#pragma unroll
    for (int c = 0; c < D / 2; c++)
        dk[c] = dv[c] = 0;
    M::load(k_tile, a.k, j, a.n_rows, a.n_kv_heads, kv_head);
    M::load(v_tile, a.v, j, a.n_rows, a.n_kv_heads, kv_head);
    load(0);
    for (int t = 0; t < group * n; t++) {
        int i = j + t % n;
        bool whole = tile_is_seen_whole(a, i, j);
        const float *lse = state + (t & 1) * 2 * TILE, *dot = lse + TILE;
        uint32_t weights[N_SCORES / 2], changes[N_SCORES / 2];

        load(t + 1);
        copy_async_wait<1>();
        M::landed();
        __syncthreads(); /* this tile is there */
        M::queue_scores(s, k_tile, q_tile + (t & 1) * BYTES);
        M::queue_scores(g, v_tile, da_tile + (t & 1) * BYTES);
        M::template ready<1>(s);
#pragma unroll
        for (int c = 0; c < N_SCORES; c++) {
            int column = c / 4 * 8 + 2 * t4 + c % 2; /* of the tile of rows */

            s[c] = exp2_approx(s[c] * scale_log2 - lse[column]);
            if (!whole && !pair_seen(a, i * TILE + column, key + c / 2 % 2 * 8))
                s[c] = 0;
        }
        pack_scores<T>(weights, s);
        M::template ready<0>(g);
        M::queue_spread(dv, weights, da_tile + (t & 1) * BYTES);
#pragma unroll
        for (int c = 0; c < N_SCORES; c++)
            g[c] = s[c] * (g[c] - dot[c / 4 * 8 + 2 * t4 + c % 2]) * a.scale;
        pack_scores<T>(changes, g);
        M::queue_spread(dk, changes, q_tile + (t & 1) * BYTES);
        M::template ready<0>(dv);
        M::template ready<0>(dk);
        __syncthreads(); /* all warps have read this tile */
    }
    copy_async_wait<0>();
    rows_store<T, D>(a.dk, dk, j * TILE + warp * 16, a.n_rows, a.n_kv_heads, kv_head);
    rows_store<T, D>(a.dv, dv, j * TILE + warp * 16, a.n_rows, a.n_kv_heads, kv_head);
}

#endif
