/*
 * attn_decode_math - the roles of decode attention that compute: consumers on CUDA cores and on
 * tensor cores, and the finishers that merge their states. See attn_decode.cu.
 */
#ifndef ATTN_DECODE_MATH_CUH
#define ATTN_DECODE_MATH_CUH

#include "cuda/attn_decode_work.cuh"

/*
 * Consumer warp on CUDA cores: LANES lanes hold the dims of a key, 8 each; the warp's keys of a
 * tile are n_iter rounds of 32 / LANES. Every group of lanes keeps its own state until the item
 * ends.
 */
template <typename T, int HEAD_DIM, int TILE_KEYS, int HEADS, int N_WARPS>
static __device__ void consume_cores(const attn_decode_args &a, const T *stages,
                                     const work_item *items, const T *queries, barriers *bars,
                                     float *merge_o, float2 *merge_md, int warp)
{
    constexpr int LANES = HEAD_DIM <= 32 ? 4 : HEAD_DIM <= 64 ? 8 : HEAD_DIM <= 128 ? 16 : 32;
    constexpr int ROUND = WARP_LANES / LANES, N_ROUNDS = TILE_KEYS / N_WARPS / ROUND;
    constexpr int TILE = TILE_KEYS * HEAD_DIM;
    int lane = threadIdx.x % WARP_LANES, sub = lane % LANES;
    int my_key = warp * (TILE_KEYS / N_WARPS) + lane / LANES;
    bool has_dims = sub * 8 < HEAD_DIM;
    struct item_turn t;
    struct turn s = {0, 0}, mt = {0, 0};

    for (; t.next(items, bars); mt.advance(MERGES_CORES)) {
        const work_item &w = items[t.at()];
        float q[HEADS][8], o[HEADS][8], m[HEADS], d[HEADS];
        int window[HEADS];

        for (int h = 0; h < HEADS; h++) {
            int there = w.part * HEADS + h < a.group ? h : 0;

            window[h] = w.window[there];
            m[h] = -INFINITY;
            d[h] = 0;
            for (int j = 0; j < 8; j++)
                q[h][j] = o[h][j] = 0;
            if (has_dims)
                load8(q[h],
                      queries_of<T, HEAD_DIM>(a, w, queries, t.at()) + there * HEAD_DIM + sub * 8);
            for (int j = 0; j < 8; j++)
                q[h][j] *= a.scale_log2;
        }
        for (int key0 = 0; key0 < w.n_keys; key0 += TILE_KEYS, s.advance(a.n_stages)) {
            const T *k_tile = stages + s.at * 2 * TILE;
            float p[N_ROUNDS][HEADS];
            bool valid[N_ROUNDS];
            tile_mask mask = tile_mask_of(w, key0, TILE_KEYS);

            barrier_wait(&bars->stage_full[s.at], s.parity);
#pragma unroll
            for (int i = 0; i < N_ROUNDS; i++) {
                float k[8] = {};

                if (has_dims)
                    load8(k, k_tile + (my_key + i * ROUND) * HEAD_DIM + sub * 8);
                for (int h = 0; h < HEADS; h++) {
                    float dot = 0;

                    for (int j = 0; j < 8; j++)
                        dot += q[h][j] * k[j];
                    p[i][h] = dot;
                }
            }
#pragma unroll
            for (int m2 = LANES / 2; m2 > 0; m2 >>= 1)
                for (int i = 0; i < N_ROUNDS; i++)
                    for (int h = 0; h < HEADS; h++)
                        p[i][h] += __shfl_xor_sync(0xffffffffu, p[i][h], m2);
#pragma unroll
            for (int i = 0; i < N_ROUNDS; i++) {
                int key = key0 + my_key + i * ROUND;

                valid[i] = true;
                if (mask == TILE_RING) {
                    int age = ring_age(w, w.index0 + key - w.sink_end);

                    for (int h = 0; h < HEADS; h++)
                        p[i][h] = age < window[h] ? p[i][h] : -INFINITY;
                } else if (mask == TILE_ANY) {
                    int pos = key < w.n_keys ? position_of(w, w.index0 + key) : -1;

                    valid[i] = pos >= 0;
                    for (int h = 0; h < HEADS; h++)
                        p[i][h] = is_seen(w, pos, window[h]) ? p[i][h] : -INFINITY;
                }
            }
            for (int h = 0; h < HEADS; h++) {
                float top = m[h], ref, shrink;

#pragma unroll
                for (int i = 0; i < N_ROUNDS; i++)
                    top = fmaxf(top, p[i][h]);
                ref = top == -INFINITY ? 0.0f : top; /* nothing seen yet: all weights are 0 */
                shrink = exp2_approx(m[h] - ref);
                m[h] = top;
                d[h] *= shrink;
                for (int j = 0; j < 8; j++)
                    o[h][j] *= shrink;
#pragma unroll
                for (int i = 0; i < N_ROUNDS; i++) {
                    p[i][h] = exp2_approx(p[i][h] - ref);
                    d[h] += p[i][h];
                }
            }
#pragma unroll
            for (int i = 0; i < N_ROUNDS; i++) {
                float v[8] = {};

                /* A stale page may hold NaN: a masked row is not read at all. */
                if (has_dims && valid[i])
                    load8(v, k_tile + TILE + (my_key + i * ROUND) * HEAD_DIM + sub * 8);
                for (int h = 0; h < HEADS; h++)
                    for (int j = 0; j < 8; j++)
                        o[h][j] += p[i][h] * v[j];
            }
            __syncwarp(); /* all lanes have read the stage */
            if (lane == 0)
                barrier_arrive(&bars->stage_empty[s.at]);
        }
        barrier_wait(&bars->merge_empty[mt.at], mt.parity ^ 1);
        for (int h = 0; h < HEADS; h++) {
            int at = (mt.at * N_WARPS + warp) * HEADS + h;

#pragma unroll
            for (int mask = LANES; mask < WARP_LANES; mask <<= 1) {
                float m2 = __shfl_xor_sync(0xffffffffu, m[h], mask);
                float d2 = __shfl_xor_sync(0xffffffffu, d[h], mask);
                float top = fmaxf(m[h], m2), ref = top == -INFINITY ? 0.0f : top;
                float f1 = exp2_approx(m[h] - ref), f2 = exp2_approx(m2 - ref);

                m[h] = top;
                d[h] = d[h] * f1 + d2 * f2;
                for (int j = 0; j < 8; j++)
                    o[h][j] = o[h][j] * f1 + __shfl_xor_sync(0xffffffffu, o[h][j], mask) * f2;
            }
            if (lane == 0)
                merge_md[at] = make_float2(m[h], d[h]);
            if (lane < LANES && has_dims)
                store8(merge_o + at * HEAD_DIM + sub * 8, o[h]);
        }
        __syncwarp(); /* the warp's state is written */
        if (lane == 0) {
            barrier_arrive(&bars->merge_full[mt.at]);
            barrier_arrive(&bars->item_empty[t.at()]);
        }
    }
}

static __device__ __forceinline__ uint32_t word_of(uint4 v, int i)
{
    return i == 0 ? v.x : i == 1 ? v.y : i == 2 ? v.z : v.w;
}

static __device__ __forceinline__ uint4 choose(bool first, uint4 a, uint4 b)
{
    return make_uint4(first ? a.x : b.x, first ? a.y : b.y, first ? a.z : b.z, first ? a.w : b.w);
}

/*
 * A lane's pieces of one key: i * 4 + lane % 4 of segment i, and of the next one if there is room
 * for two. Rows start in the same bank: of two, lanes of odd keys read the second one first.
 */
template <typename T, int CHUNKS, int AT_ONCE>
static __device__ __forceinline__ void load_key(uint4 (&k)[AT_ONCE], const T *row, int i)
{
    int lane = threadIdx.x % WARP_LANES, t4 = lane % 4;
    bool odd = lane / 4 % 2;

    if constexpr (AT_ONCE == 2) {
        uint4 one = *(const uint4 *)(row + ((i + odd) * 4 + t4) * 8);
        uint4 two = *(const uint4 *)(row + ((i + !odd) * 4 + t4) * 8);

        k[0] = choose(odd, two, one);
        k[1] = choose(odd, one, two);
    } else {
        k[0] = make_uint4(0, 0, 0, 0);
        if (i * 4 + t4 < CHUNKS)
            k[0] = *(const uint4 *)(row + (i * 4 + t4) * 8);
    }
}

/* Which piece of a row of V is column n of group c: two groups at once weave theirs. */
template <int AT_ONCE> static __device__ __forceinline__ int value_piece(int c, int n)
{
    return AT_ONCE == 1 ? c * 8 + n : c / 2 * 16 + 2 * n + c % 2;
}

/* A lane's pieces of one row of V for groups c.., into v[][i]; by turns, against bank conflicts. */
template <typename T, int CHUNKS, int AT_ONCE>
static __device__ __forceinline__ void load_value(uint4 (&v)[AT_ONCE][4], int i, const T *row,
                                                  int c, bool valid)
{
    int lane = threadIdx.x % WARP_LANES, n = lane / 4;
    bool odd = lane % 2;

    for (int k = 0; k < AT_ONCE; k++)
        v[k][i] = make_uint4(0, 0, 0, 0);
    if constexpr (AT_ONCE == 2) {
        if (valid) {
            uint4 one = *(const uint4 *)(row + value_piece<2>(c + odd, n) * 8);
            uint4 two = *(const uint4 *)(row + value_piece<2>(c + !odd, n) * 8);

            v[0][i] = choose(odd, two, one);
            v[1][i] = choose(odd, one, two);
        }
    } else if (valid && c * 8 + n < CHUNKS) {
        v[0][i] = *(const uint4 *)(row + (c * 8 + n) * 8);
    }
}

/*
 * Consumer warp on tensor cores: 16 keys of each tile of 64. Rows of the mma are query heads (8 of
 * 16 used). Lane 4g + t reads dims 8t.. of a segment of 32 from key g: K needs no transposition, as
 * dims are permuted alike in q. V is read by key pairs and woven into fragments with prmt; its
 * columns are permuted, which only the final store has to know.
 */
template <typename T, int HEAD_DIM, int N_WARPS>
static __device__ void consume_mma(const attn_decode_args &a, const T *stages,
                                   const work_item *items, const T *queries, barriers *bars,
                                   float *merge_o, float2 *merge_md, int warp)
{
    constexpr int TILE_KEYS = 16 * N_WARPS, TILE = TILE_KEYS * HEAD_DIM;
    constexpr int CHUNKS = HEAD_DIM / 8; /* 16-byte pieces of a row */
    constexpr int N_SEGS = (CHUNKS + 3) / 4, N_GROUPS = (CHUNKS + 7) / 8;
    constexpr bool BUSY = CHUNKS > 16; /* registers are short */
    constexpr int K_AT_ONCE = CHUNKS % 8 == 0 && !BUSY ? 2 : 1;
    constexpr int V_AT_ONCE = CHUNKS % 16 == 0 && !BUSY ? 2 : 1;
    int lane = threadIdx.x % WARP_LANES, g = lane / 4, t4 = lane % 4;
    const uint4 zero = make_uint4(0, 0, 0, 0);
    struct item_turn t;
    struct turn s = {0, 0}, mt = {0, 0};

    for (; t.next(items, bars); mt.advance(MERGES_MMA)) {
        const work_item &w = items[t.at()];
        uint4 q[N_SEGS];
        float o[N_GROUPS][8][4] = {}, m = -INFINITY, d = 0;
        int window = 0;

        for (int i = 0; i < N_SEGS; i++)
            q[i] = zero;
        if (g < a.part_heads && w.part * a.part_heads + g < a.group) {
            const T *row = queries_of<T, HEAD_DIM>(a, w, queries, t.at()) + g * HEAD_DIM;

            window = w.window[g];
            for (int i = 0; i < N_SEGS; i++) {
                if (i * 4 + t4 < CHUNKS)
                    q[i] = *(const uint4 *)(row + (i * 4 + t4) * 8);
            }
        }
        for (int key0 = 0; key0 < w.n_keys; key0 += TILE_KEYS, s.advance(a.n_stages)) {
            const T *k_tile = stages + s.at * 2 * TILE + warp * 16 * HEAD_DIM;
            const T *v_tile = k_tile + TILE;
            float p[2][4] = {}, p_odd[2][4] = {}, top = m, ref, shrink; /* half of the dims each */
            uint32_t pa[4];
            tile_mask mask = tile_mask_of(w, key0, TILE_KEYS);
            bool valid[4] = {true, true, true, true}; /* keys 2t, 2t + 1, 2t + 8, 2t + 9 */

            barrier_wait(&bars->stage_full[s.at], s.parity);
#pragma unroll
            for (int i = 0; i < N_SEGS; i += K_AT_ONCE) {
#pragma unroll
                for (int j = 0; j < 2; j++) {
                    uint4 k[K_AT_ONCE];

                    load_key<T, CHUNKS, K_AT_ONCE>(k, k_tile + (j * 8 + g) * HEAD_DIM, i);
#pragma unroll
                    for (int e = 0; e < K_AT_ONCE; e++) {
                        uint4 dims = q[i + e];
                        uint32_t a0[4] = {dims.x, 0, dims.y, 0}, a1[4] = {dims.z, 0, dims.w, 0};

                        mma16816<T>(p[j], a0, k[e].x, k[e].y);
                        mma16816<T>(p_odd[j], a1, k[e].z, k[e].w);
                    }
                }
            }
#pragma unroll
            for (int i = 0; i < 4; i++) {
                float score = (p[i / 2][i % 2] + p_odd[i / 2][i % 2]) * a.scale_log2;
                int key = key0 + warp * 16 + i / 2 * 8 + 2 * t4 + i % 2;

                if (mask == TILE_RING) {
                    score = ring_age(w, w.index0 + key - w.sink_end) < window ? score : -INFINITY;
                } else if (mask == TILE_ANY) {
                    int pos = key < w.n_keys ? position_of(w, w.index0 + key) : -1;

                    valid[i] = pos >= 0;
                    score = is_seen(w, pos, window) ? score : -INFINITY;
                }
                p[i / 2][i % 2] = score;
                top = fmaxf(top, score);
            }
            top = fmaxf(top, __shfl_xor_sync(0xffffffffu, top, 1));
            top = fmaxf(top, __shfl_xor_sync(0xffffffffu, top, 2));
            ref = top == -INFINITY ? 0.0f : top;
            shrink = exp2_approx(m - ref);
            m = top;
            d *= shrink;
#pragma unroll
            for (int i = 0; i < 4; i++) {
                p[i / 2][i % 2] = exp2_approx(p[i / 2][i % 2] - ref);
                d += p[i / 2][i % 2];
            }
            pa[0] = pack2<T>(p[0][0], p[0][1]);
            pa[2] = pack2<T>(p[1][0], p[1][1]);
            pa[1] = pa[3] = 0;
#pragma unroll
            for (int c = 0; c < N_GROUPS; c += V_AT_ONCE) {
                uint4 v[V_AT_ONCE][4];

#pragma unroll
                for (int i = 0; i < 4; i++)
                    load_value<T, CHUNKS, V_AT_ONCE>(
                        v, i, v_tile + (i / 2 * 8 + 2 * t4 + i % 2) * HEAD_DIM, c, valid[i]);
#pragma unroll
                for (int i = 0; i < 8 * V_AT_ONCE; i++) {
                    const uint4 *vc = v[i / 8];
                    float *sum = o[c + i / 8][i % 8];
                    int pick = i % 2 ? 0x7632 : 0x5410, word = i % 8 / 2;
                    uint32_t b0 = __byte_perm(word_of(vc[0], word), word_of(vc[1], word), pick);
                    uint32_t b1 = __byte_perm(word_of(vc[2], word), word_of(vc[3], word), pick);

                    sum[0] *= shrink;
                    sum[1] *= shrink;
                    mma16816<T>(*(float(*)[4])sum, pa, b0, b1);
                }
            }
            __syncwarp(); /* all lanes have read the stage */
            if (lane == 0)
                barrier_arrive(&bars->stage_empty[s.at]);
        }
        d += __shfl_xor_sync(0xffffffffu, d, 1);
        d += __shfl_xor_sync(0xffffffffu, d, 2);
        barrier_wait(&bars->merge_empty[mt.at], mt.parity ^ 1);
        if (g < a.part_heads) {
            int at = (mt.at * N_WARPS + warp) * a.part_heads + g;

            if (t4 == 0)
                merge_md[at] = make_float2(m, d);
#pragma unroll
            for (int c = 0; c < N_GROUPS; c++) {
#pragma unroll
                for (int e = 0; e < 2; e++) {
                    int piece = value_piece<V_AT_ONCE>(c, 2 * t4 + e);
                    float row[8];

#pragma unroll
                    for (int i = 0; i < 8; i++)
                        row[i] = o[c][i][e];
                    if (piece < CHUNKS)
                        store8(merge_o + at * HEAD_DIM + piece * 8, row);
                }
            }
        }
        __syncwarp(); /* the warp's state is written */
        if (lane == 0) {
            barrier_arrive(&bars->merge_full[mt.at]);
            barrier_arrive(&bars->item_empty[t.at()]);
        }
    }
}

/* Where the result of a part's head h goes; NULL when the group has no such head. */
template <typename T, int HEAD_DIM>
static __device__ __forceinline__ T *out_row(const attn_decode_args &a, const work_item &w, int h)
{
    int in_group = w.part * a.part_heads + h;

    if (in_group >= a.group)
        return NULL;
    return (T *)a.out + ((int64_t)w.row * a.n_heads + w.kv_head * a.group + in_group) * HEAD_DIM;
}

/*
 * All chunk states of one pair into the result, in ascending order. Few heads: each warp takes a
 * quarter of the chunks of a head, and the quarters are added in order. Many: a warp takes a head.
 */
template <typename T, int HEAD_DIM>
static __device__ void merge_chunks(const attn_decode_args &a, const work_item &w, float *quarter_o,
                                    float *quarter_d, int warp)
{
    constexpr int N_DIMS = (HEAD_DIM + WARP_LANES - 1) / WARP_LANES;
    int lane = threadIdx.x % WARP_LANES;
    bool by_quarter = a.part_heads < N_FINISHERS;
    int quarter = (w.n_chunks + N_FINISHERS - 1) / N_FINISHERS;
    int begin = by_quarter ? warp * quarter : 0;
    int end = by_quarter && begin + quarter < w.n_chunks ? begin + quarter : w.n_chunks;

    for (int h = by_quarter ? 0 : warp; h < a.part_heads; h += by_quarter ? 1 : N_FINISHERS) {
        const float2 *md = a.state_md + (int64_t)w.state0 * a.part_heads + h;
        const float *so = a.state_o + ((int64_t)w.state0 * a.part_heads + h) * HEAD_DIM;
        float top = -INFINITY, ref, d = 0, o[N_DIMS] = {};
        T *out = out_row<T, HEAD_DIM>(a, w, h);

        for (int c = lane; c < w.n_chunks; c += WARP_LANES)
            top = fmaxf(top, __ldcg(&md[(int64_t)c * a.part_heads]).x);
        top = warp_max(top);
        ref = top == -INFINITY ? 0.0f : top;
#pragma unroll 16
        for (int c = begin; c < end; c++) {
            float2 state = __ldcg(&md[(int64_t)c * a.part_heads]);
            float f = exp2_approx(state.x - ref);

            d += state.y * f;
#pragma unroll
            for (int i = 0; i < N_DIMS; i++) {
                if (i * WARP_LANES + lane < HEAD_DIM)
                    o[i] +=
                        f *
                        __ldcg(&so[(int64_t)c * a.part_heads * HEAD_DIM + i * WARP_LANES + lane]);
            }
        }
        if (by_quarter) {
            if (lane == 0)
                quarter_d[warp] = d;
            for (int i = 0; i < N_DIMS; i++) {
                if (i * WARP_LANES + lane < HEAD_DIM)
                    quarter_o[warp * HEAD_DIM + i * WARP_LANES + lane] = o[i];
            }
            named_barrier(STATE_BARRIER, N_FINISHERS * WARP_LANES); /* all quarters are there */
            if (warp == 0) {
                d = 0;
                for (int f = 0; f < N_FINISHERS; f++)
                    d += quarter_d[f];
                for (int i = 0; i < N_DIMS; i++) {
                    o[i] = 0;
                    for (int f = 0; f < N_FINISHERS && i * WARP_LANES + lane < HEAD_DIM; f++)
                        o[i] += quarter_o[f * HEAD_DIM + i * WARP_LANES + lane];
                }
            }
            named_barrier(STATE_BARRIER, N_FINISHERS * WARP_LANES); /* they have been read */
        }
        if (!out || (by_quarter && warp != 0))
            continue;
        for (int i = 0; i < N_DIMS; i++) {
            if (i * WARP_LANES + lane < HEAD_DIM)
                out[i * WARP_LANES + lane] = from_f32<T>(d > 0 ? o[i] / d : 0.0f);
        }
    }
}

/* Finisher warps: merge the consumers' states of an item; the last item of a pair ends the pair. */
template <typename T, int HEAD_DIM, int N_WARPS, int MERGES>
static __device__ void finish(const attn_decode_args &a, const work_item *items, barriers *bars,
                              const float *merge_o, const float2 *merge_md, float *quarter_o,
                              float *quarter_d, int *is_last, int warp)
{
    int lane = threadIdx.x % WARP_LANES, thread = warp * WARP_LANES + lane;
    struct item_turn t;
    struct turn mt = {0, 0};

    for (; t.next(items, bars); mt.advance(MERGES)) {
        const work_item &w = items[t.at()];

        barrier_wait(&bars->merge_full[mt.at], mt.parity);
        for (int i = thread; i < a.part_heads * HEAD_DIM; i += N_FINISHERS * WARP_LANES) {
            int h = i / HEAD_DIM, dim = i % HEAD_DIM;
            float top = -INFINITY, ref, d = 0, o = 0;

#pragma unroll
            for (int c = 0; c < N_WARPS; c++)
                top = fmaxf(top, merge_md[(mt.at * N_WARPS + c) * a.part_heads + h].x);
            ref = top == -INFINITY ? 0.0f : top;
#pragma unroll
            for (int c = 0; c < N_WARPS; c++) {
                int at = (mt.at * N_WARPS + c) * a.part_heads + h;
                float f = exp2_approx(merge_md[at].x - ref);

                d += f * merge_md[at].y;
                o += f * merge_o[at * HEAD_DIM + dim];
            }
            if (w.n_chunks == 1) {
                T *out = out_row<T, HEAD_DIM>(a, w, h);

                if (out)
                    out[dim] = from_f32<T>(d > 0 ? o / d : 0.0f);
            } else {
                int64_t state = (int64_t)(w.state0 + w.chunk) * a.part_heads + h;

                __stcg(&a.state_o[state * HEAD_DIM + dim], o);
                if (dim == 0)
                    __stcg(&a.state_md[state], make_float2(top, d));
            }
        }
        __syncwarp(); /* the warp has read the merge area */
        if (lane == 0)
            barrier_arrive(&bars->merge_empty[mt.at]);
        if (w.n_chunks > 1) {
            named_barrier(STATE_BARRIER, N_FINISHERS * WARP_LANES); /* the state is on its way */
            if (thread == 0)
                *is_last = add_acq_rel(&a.arrived[w.pair], 1) == w.n_chunks - 1;
            named_barrier(STATE_BARRIER, N_FINISHERS * WARP_LANES); /* is_last is there */
            if (*is_last) {
                if (thread == 0)
                    a.arrived[w.pair] = 0;
                merge_chunks<T, HEAD_DIM>(a, w, quarter_o, quarter_d, warp);
            }
            named_barrier(STATE_BARRIER, N_FINISHERS * WARP_LANES); /* is_last has been read */
        }
        if (lane == 0)
            barrier_arrive(&bars->item_empty[t.at()]);
    }
}

#endif
