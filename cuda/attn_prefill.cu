/*
 * attn_prefill.cu - prompt rows attend to their slot's pages as they were, and to their own chunk.
 *
 *   q         act  [n_rows, n_heads, head_dim]
 *   pages     kv   positions before the chunk, where the ring still has them
 *   k_chunk   kv   [n_rows - n_decode, n_kv_heads, head_dim] positions of the chunk; v_chunk alike
 *   out       act  [n_rows, n_heads, head_dim]; sums and softmax state in f32
 *
 * Work     one CTA per (tile of 64 positions, query head), longest first; 4 warps of 16 rows each
 * Tile     64 x 64, cut by absolute position and visited in ascending order: a row's bits do not
 *          depend on where its chunk begins. Tiles that no row sees are neither loaded nor
 *          computed, and a position that no row of the tile may see is not read: it may be gone.
 * Overlap  one buffer of K, one of V: the next K loads during softmax and PV, the next V during QK
 * Bound    tensor cores: 4 * head_dim FLOP a visible pair; on sm_90 attn_prefill_wgmma.cu has
 *          head_dim 64 and 128, since mma.sync reaches some 60 % there at best
 * Measured see SPEED.md
 * Limits   head_dim 32, 64, 80, 96, 128, 256. f32: CUDA cores, a warp per row, for parity only
 * Checked  against cpu in tests/cuda/test_attn.c
 */
#include "cuda/attn_prefill.cuh"
#include "cuda/attn_prefill_wgmma.h"

#define N_WARPS   4
#define N_THREADS (N_WARPS * WARP_LANES)

/* Finds tile `n`, counted over all chunks. False behind the last: the grid is an upper bound. */
static __device__ bool job_find(const attn_prefill_args &a, int n, int head, prefill_job *j)
{
    for (int c = 0; c < a.n_chunks; c++) {
        struct step_chunk chunk = a.chunks[c];
        int n_tiles = chunk_n_tiles(chunk, TILE);

        if (n < n_tiles) { /* the longest first */
            job_set(a, chunk, chunk_last(chunk) / TILE - n, head, j);
            return true;
        }
        n -= n_tiles;
    }
    return false;
}

/* CTA -> (tile of rows, head); warp -> 16 rows; fragments as in mma16816. */
template <typename T, int HEAD_DIM>
static __global__ void __launch_bounds__(N_THREADS)
    attn_prefill_flash(const __grid_constant__ attn_prefill_args a)
{
    constexpr int STRIDE = HEAD_DIM + 8; /* an odd number of 16-byte pieces: no bank conflicts */
    constexpr int PIECES = HEAD_DIM / 8, N_K16 = HEAD_DIM / 16, N_N8 = HEAD_DIM / 8;
    constexpr bool Q_IN_REGS = HEAD_DIM <= 128; /* else the registers are needed for the output */
    extern __shared__ __align__(16) unsigned char smem[];
    __shared__ int64_t offset[2][TILE]; /* of a tile's rows; -1: not there */
    __shared__ bool in_chunk[2][TILE];
    __shared__ prefill_job job;
    __shared__ bool there;
    T *q_tile = (T *)smem, *k_tile = q_tile + TILE * STRIDE, *v_tile = k_tile + TILE * STRIDE;
    int head = blockIdx.x, kv_head = head / (a.n_heads / a.n_kv_heads);
    int warp = threadIdx.x / WARP_LANES, lane = threadIdx.x % WARP_LANES, g = lane / 4,
        t4 = lane % 4;
    int matrix = lane / 8, in_matrix = lane % 8; /* which row address this lane gives to ldmatrix */
    float o[N_N8][4], m[2] = {-INFINITY, -INFINITY}, d[2] = {0, 0};
    uint32_t qf[Q_IN_REGS ? N_K16 : 1][4];
    int pos[2];
    key_tiles tiles;

    if (threadIdx.x == 0)
        there = job_find(a, blockIdx.y, head, &job);
    __syncthreads(); /* the job is there */
    if (!there)
        return;
    tiles = tiles_of(job);
    for (int i = threadIdx.x; i < TILE * PIECES; i += N_THREADS) {
        int r = i / PIECES, p = job.tile * TILE + r;
        bool have = p >= job.first && p <= job.last;
        int64_t row = job.row0 + (have ? p - job.pos0 : 0);

        copy_async16(smem_addr(q_tile + r * STRIDE + i % PIECES * 8),
                     (const T *)a.q + (row * a.n_heads + head) * HEAD_DIM + i % PIECES * 8,
                     have ? 16 : 0);
    }
    copy_async_commit();

    auto find_rows = [&](int i) {
        if (threadIdx.x < TILE && i < tiles.n) {
            int p = tiles.at(i) * TILE + threadIdx.x;
            bool chunk = false;

            offset[i & 1][threadIdx.x] =
                job_needs(job, p) ? row_offset(a, job, kv_head, HEAD_DIM, p, &chunk) : -1;
            in_chunk[i & 1][threadIdx.x] = chunk;
        }
    };
    /* Rows that are not there become zeros: their weights are 0, and 0 * NaN must not be. */
    auto load_rows = [&](int i, T *dst, const T *chunk_rows, int64_t in_page) {
        for (int c = threadIdx.x; c < TILE * PIECES; c += N_THREADS) {
            int r = c / PIECES, piece = c % PIECES * 8;
            int64_t at = offset[i & 1][r];
            const T *src = in_chunk[i & 1][r] ? chunk_rows + at : (const T *)a.pages + in_page + at;

            copy_async16(smem_addr(dst + r * STRIDE + piece),
                         at >= 0 ? src + piece : (const T *)a.q, at >= 0 ? 16 : 0);
        }
    };
    int64_t v_in_page = (int64_t)a.page_entries * HEAD_DIM;

    find_rows(0);
    __syncthreads(); /* the first tile's offsets are there */
    load_rows(0, k_tile, (const T *)a.k_chunk, 0);
    copy_async_commit();
    load_rows(0, v_tile, (const T *)a.v_chunk, v_in_page);
    copy_async_commit();
    for (int n = 0; n < N_N8; n++)
        for (int i = 0; i < 4; i++)
            o[n][i] = 0;
    pos[0] = job.tile * TILE + warp * 16 + g;
    pos[1] = pos[0] + 8;
    copy_async_wait<2>();
    __syncthreads(); /* q is there */
    auto load_q = [&](uint32_t f[4], int k16) {
        load_matrix4(f, smem_addr(q_tile + (warp * 16 + in_matrix + matrix % 2 * 8) * STRIDE +
                                  k16 * 16 + matrix / 2 * 8));
    };
    if constexpr (Q_IN_REGS) {
#pragma unroll
        for (int k = 0; k < N_K16; k++)
            load_q(qf[k], k);
    }

    for (int i = 0; i < tiles.n; i++) {
        float s[TILE / 8][4];
        bool full = tile_is_full(job, tiles.at(i));

        copy_async_wait<1>();
        find_rows(i + 1);
        __syncthreads(); /* K of this tile and the offsets of the next are there */
#pragma unroll
        for (int n = 0; n < TILE / 8; n++)
            for (int e = 0; e < 4; e++)
                s[n][e] = 0;
#pragma unroll
        for (int k = 0; k < N_K16; k++) {
            if constexpr (!Q_IN_REGS)
                load_q(qf[0], k);
#pragma unroll
            for (int n = 0; n < TILE / 16; n++) {
                uint32_t kf[4];

                /* keys 16n + 0..7 dims 0..7, dims 8..15; keys 16n + 8..15 likewise */
                load_matrix4(kf, smem_addr(k_tile + (n * 16 + in_matrix + matrix / 2 * 8) * STRIDE +
                                           k * 16 + matrix % 2 * 8));
                mma16816<T>(s[2 * n], qf[Q_IN_REGS ? k : 0], kf[0], kf[1]);
                mma16816<T>(s[2 * n + 1], qf[Q_IN_REGS ? k : 0], kf[2], kf[3]);
            }
        }
        __syncthreads(); /* all warps have read K */
        if (i + 1 < tiles.n)
            load_rows(i + 1, k_tile, (const T *)a.k_chunk, 0);
        copy_async_commit();

        float top[2] = {m[0], m[1]}, shrink[2];
#pragma unroll
        for (int n = 0; n < TILE / 8; n++) {
#pragma unroll
            for (int e = 0; e < 4; e++) {
                s[n][e] *= a.scale_log2;
                if (!full && !kv_sees_prompt(job.geom, job.window, pos[e / 2],
                                             tiles.at(i) * TILE + n * 8 + 2 * t4 + e % 2))
                    s[n][e] = -INFINITY;
                top[e / 2] = fmaxf(top[e / 2], s[n][e]);
            }
        }
#pragma unroll
        for (int r = 0; r < 2; r++) {
            float ref;

            top[r] = fmaxf(top[r], __shfl_xor_sync(0xffffffffu, top[r], 1));
            top[r] = fmaxf(top[r], __shfl_xor_sync(0xffffffffu, top[r], 2));
            ref = top[r] == -INFINITY ? 0.0f : top[r]; /* nothing seen yet: all weights are 0 */
            shrink[r] = exp2_approx(m[r] - ref);
            m[r] = top[r];
            d[r] *= shrink[r];
#pragma unroll
            for (int n = 0; n < TILE / 8; n++) {
#pragma unroll
                for (int e = 2 * r; e < 2 * r + 2; e++) {
                    s[n][e] = exp2_approx(s[n][e] - ref);
                    d[r] += s[n][e];
                }
            }
        }
#pragma unroll
        for (int n = 0; n < N_N8; n++) {
            o[n][0] *= shrink[0];
            o[n][1] *= shrink[0];
            o[n][2] *= shrink[1];
            o[n][3] *= shrink[1];
        }
        copy_async_wait<1>();
        __syncthreads(); /* V of this tile is there */
#pragma unroll
        for (int k = 0; k < TILE / 16; k++) {
            uint32_t pf[4] = {pack2<T>(s[2 * k][0], s[2 * k][1]),
                              pack2<T>(s[2 * k][2], s[2 * k][3]),
                              pack2<T>(s[2 * k + 1][0], s[2 * k + 1][1]),
                              pack2<T>(s[2 * k + 1][2], s[2 * k + 1][3])};

#pragma unroll
            for (int n = 0; n < N_K16; n++) {
                uint32_t vf[4];

                /* keys 16k + 0..7 and 8..15 of dims 16n + 0..7, then of dims 16n + 8..15 */
                load_matrix4_trans(vf, smem_addr(v_tile +
                                                 (k * 16 + in_matrix + matrix % 2 * 8) * STRIDE +
                                                 n * 16 + matrix / 2 * 8));
                mma16816<T>(o[2 * n], pf, vf[0], vf[1]);
                mma16816<T>(o[2 * n + 1], pf, vf[2], vf[3]);
            }
        }
        __syncthreads(); /* all warps have read V */
        if (i + 1 < tiles.n)
            load_rows(i + 1, v_tile, (const T *)a.v_chunk, v_in_page);
        copy_async_commit();
    }
    copy_async_wait<0>();
#pragma unroll
    for (int r = 0; r < 2; r++) {
        float f;
        T *out;

        d[r] += __shfl_xor_sync(0xffffffffu, d[r], 1);
        d[r] += __shfl_xor_sync(0xffffffffu, d[r], 2);
        f = d[r] > 0 ? 1.0f / d[r] : 0.0f;
        if (pos[r] < job.first || pos[r] > job.last)
            continue;
        out = (T *)a.out + ((int64_t)(job.row0 + pos[r] - job.pos0) * a.n_heads + head) * HEAD_DIM;
#pragma unroll
        for (int n = 0; n < N_N8; n++)
            *(uint32_t *)(out + n * 8 + 2 * t4) = pack2<T>(o[n][2 * r] * f, o[n][2 * r + 1] * f);
    }
}

#define F32_MAX_DIM 256

/* CTA -> (tile of rows, head); warp -> rows in turn, 32 keys of an absolute position at a time */
static __global__ void __launch_bounds__(N_THREADS)
    attn_prefill_f32(const __grid_constant__ attn_prefill_args a, int head_dim)
{
    __shared__ float q[N_WARPS][F32_MAX_DIM];
    __shared__ prefill_job job;
    __shared__ bool there;
    int head = blockIdx.x, kv_head = head / (a.n_heads / a.n_kv_heads);
    int warp = threadIdx.x / WARP_LANES, lane = threadIdx.x % WARP_LANES;
    int64_t v_in_page = (int64_t)a.page_entries * head_dim;
    key_tiles tiles;

    if (threadIdx.x == 0)
        there = job_find(a, blockIdx.y, head, &job);
    __syncthreads(); /* the job is there */
    if (!there)
        return;
    tiles = tiles_of(job);
    for (int pos = job.first + warp; pos <= job.last; pos += N_WARPS) {
        int64_t at = ((int64_t)(job.row0 + pos - job.pos0) * a.n_heads + head) * head_dim;
        float m = -INFINITY, d = 0, o[F32_MAX_DIM / WARP_LANES] = {};

        __syncwarp(); /* q of the row before has been read */
        for (int i = lane; i < head_dim; i += WARP_LANES)
            q[warp][i] = ((const float *)a.q)[at + i] * a.scale_log2;
        __syncwarp(); /* q is there */
        for (int half = 0; half < 2 * tiles.n; half++) {
            int p = tiles.at(half / 2) * TILE + half % 2 * WARP_LANES + lane;
            bool seen = kv_sees_prompt(job.geom, job.window, pos, p), chunk = false;
            int64_t row = seen ? row_offset(a, job, kv_head, head_dim, p, &chunk) : 0;
            const float *k = (chunk ? (const float *)a.k_chunk : (const float *)a.pages) + row;
            const float *v =
                chunk ? (const float *)a.v_chunk + row : (const float *)a.pages + v_in_page + row;
            float s = 0, top, shrink;

            for (int i = 0; seen && i < head_dim; i++)
                s += q[warp][i] * k[i];
            s = seen ? s : -INFINITY;
            top = fmaxf(m, warp_max(s));
            if (top == -INFINITY)
                continue;
            shrink = exp2f(m - top);
            s = exp2f(s - top);
            m = top;
            d = d * shrink + warp_sum(s);
            for (int i = 0; i < F32_MAX_DIM / WARP_LANES; i++)
                o[i] *= shrink;
            for (int key = 0; key < WARP_LANES; key++) {
                float w = __shfl_sync(0xffffffffu, s, key);
                const float *src =
                    (const float *)__shfl_sync(0xffffffffu, (unsigned long long)v, key);

                if (w == 0) /* also rows that are not there */
                    continue;
                for (int i = 0; i < F32_MAX_DIM / WARP_LANES; i++) {
                    if (i * WARP_LANES + lane < head_dim)
                        o[i] += w * src[i * WARP_LANES + lane];
                }
            }
        }
        for (int i = 0; i < F32_MAX_DIM / WARP_LANES; i++) {
            if (i * WARP_LANES + lane < head_dim)
                ((float *)a.out)[at + i * WARP_LANES + lane] = d > 0 ? o[i] / d : 0.0f;
        }
    }
}

template <typename T, int HEAD_DIM>
static int flash_start(struct cuda_backend *cb, const attn_prefill_args *k, dim3 grid,
                       struct err *err)
{
    int smem = 3 * TILE * (HEAD_DIM + 8) * (int)sizeof(T);

    CUDA_TRY(err, cudaFuncSetAttribute(attn_prefill_flash<T, HEAD_DIM>,
                                       cudaFuncAttributeMaxDynamicSharedMemorySize, smem));
    attn_prefill_flash<T, HEAD_DIM><<<grid, N_THREADS, smem, cb->stream>>>(*k);
    return cuda_launched(cb, "attn_prefill_flash", err);
}

template <typename T>
static int flash_dim(struct cuda_backend *cb, const attn_prefill_args *k, dim3 grid, int head_dim,
                     struct err *err)
{
    switch (head_dim) {
    case 32:
        return flash_start<T, 32>(cb, k, grid, err);
    case 64:
        return flash_start<T, 64>(cb, k, grid, err);
    case 80:
        return flash_start<T, 80>(cb, k, grid, err);
    case 96:
        return flash_start<T, 96>(cb, k, grid, err);
    case 128:
        return flash_start<T, 128>(cb, k, grid, err);
    case 256:
        return flash_start<T, 256>(cb, k, grid, err);
    }
    return err_set(err, ERR_UNSUPPORTED, "attn: head_dim %d, built are 32, 64, 80, 96, 128 and 256",
                   head_dim);
}

int attn_prefill_launch(struct cuda_backend *cb, const struct attn_args *p, struct err *err)
{
    const struct step_batch *b = p->batch;
    int n_rows = b->n_rows - b->n_decode;
    struct attn_prefill_args k = attn_prefill_args_of(p);
    /* A chunk of n rows touches at most n / TILE + 2 tiles: the device alone knows where it begins.
     */
    dim3 grid(p->n_heads, n_rows / TILE + 2 * b->n_chunks);

    if (n_rows == 0)
        return 0;
    if (attn_prefill_wgmma_takes(cb, p))
        return attn_prefill_wgmma_launch(cb, p, err);
    switch (cb->base.act_dtype) {
    case DTYPE_BF16:
        return flash_dim<__nv_bfloat16>(cb, &k, grid, p->head_dim, err);
    case DTYPE_F16:
        return flash_dim<__half>(cb, &k, grid, p->head_dim, err);
    case DTYPE_F32:
        break;
    }
    if (p->head_dim > F32_MAX_DIM)
        return err_set(err, ERR_UNSUPPORTED, "attn: head_dim %d, at most %d is built", p->head_dim,
                       F32_MAX_DIM);
    attn_prefill_f32<<<grid, N_THREADS, 0, cb->stream>>>(k, p->head_dim);
    return cuda_launched(cb, "attn_prefill_f32", err);
}
