/*
 * attn_decode.cu - one new token per sequence attends to the pages of its heads.
 *
 *   q     act  [n_rows, n_heads, head_dim]
 *   k, v  kv   per (slot, layer, kv_head) a list of pages [2, page_entries, head_dim], sink then ring
 *   out   act  [n_rows, n_heads, head_dim]; sums and softmax state in f32
 *
 * Work     one item per (row, kv_head, part of its query heads, chunk of 256 or 1,024 cache indices).
 *          Chunks are cut by index and merged in ascending order, so a row's bits depend on nothing
 *          but its own sequence. Persistent CTAs draw items from a counter; who draws what does not
 *          matter. Whoever finishes the last chunk of a (row, head) merges it: no second kernel.
 * Roles    a planner warp finds items and page ids two or three ahead; a producer warp keeps all
 *          stages of shared memory under copy (bulk copies of whole pages on sm_90, cp.async on
 *          sm_80); consumers hold a softmax state per warp and never wait for each other; finishers
 *          merge the warps' states and write. So the loads never stop at the border of an item.
 * Tile     32 KiB a stage (16 KiB of K, as much V): with 6 stages some 190 KiB are in flight an SM
 * Arithm.  MHA and groups of 2 on CUDA cores: a quarter to a half of the issue slots. Groups from 3
 *          on tensor cores, 8 query heads padded to the 16 rows of an mma; more heads are parts.
 * Bound    HBM: 4 * head_dim bytes per (row, kv_head, key) in 16 bits
 * Measured see SPEED.md
 * Limits   head_dim 32, 64, 80, 96, 128, 256; page_entries 16 to 256, a power of 2
 * Checked  against cpu in tests/cuda/test_attn.c
 */
#include "base/check.h"
#include "cuda/cuda_backend.h"
#include "cuda/device.cuh"

#define ITEM_SLOTS    4    /* items known ahead of the finishers */
#define MAX_STAGES    16
#define N_FINISHERS   4
#define MMA_HEADS     8    /* query heads of a part on tensor cores */
#define CHUNK_CORES   256  /* keys: 32 items for 8k, and a state of 0.4 % of the bytes it stands for */
#define CHUNK_MMA     1024 /* a state per query head: 8 of them are 3 % of 256 keys, 0.8 % of 1,024 */
#define MAX_PAGES     (CHUNK_MMA / 16)
#define PLAN_THREADS  1024
#define STATE_BARRIER 1    /* named barrier of the finishers */

struct attn_decode_args {
    const void *q;             /* [n_rows, n_heads, head_dim] */
    void *out;                 /* the same */
    const void *pages;
    int64_t page_elems;
    const int32_t *page_table, *head_base;
    const struct kv_geom *geom; /* [n_slots, n_layers, n_kv_heads] */
    const int32_t *window;     /* [n_slots, n_layers, n_heads] */
    const int32_t *pos, *slot; /* [n_rows] */
    const int32_t *first;      /* [n_pairs + 1] of this layer */
    int32_t *next;             /* [2] items handed out beyond the first of each CTA; CTAs done */
    int32_t *arrived;          /* [n_pairs] */
    float *state_o;            /* [items, part_heads, head_dim] */
    float2 *state_md;          /* [items, part_heads] */
    int layer, n_layers, n_heads, n_kv_heads, group, n_parts, part_heads;
    int pair0, n_pairs;        /* of this launch */
    int page_entries, chunk, n_stages;
    float scale_log2;
};

/* One piece of work, as the planner describes it to the other warps. */
struct work_item {
    int32_t pair;              /* -1: there is no more work */
    int32_t row, kv_head, part;
    int32_t index0, n_keys;    /* cache indices index0.. of the head */
    int32_t n_sink, sink_end, ring, ring_at, newest;
    int32_t chunk, n_chunks, state0; /* of the pair; state0 is where its first state lies */
    bool plain;                /* every key is valid and seen by every head */
    int32_t page[MAX_PAGES];
};

/* How many cache indices a decode row at `newest` reads. */
static __device__ int indices_used(struct kv_geom g, int newest)
{
    int filled = newest - g.n_sink + 1;

    if (filled <= 0)
        return newest + 1;
    return (g.n_sink + KV_TILE - 1) / KV_TILE * KV_TILE + (filled < g.ring ? filled : g.ring);
}

/* The position at a cache index, -1 where there is none (padding behind the sink). */
static __device__ __forceinline__ int position_of(const work_item &w, int index)
{
    int r = index - w.sink_end;

    if (r < 0)
        return index < w.n_sink ? index : -1;
    return w.newest - (w.ring_at - r + (r > w.ring_at ? w.ring : 0));
}

static __device__ __forceinline__ bool is_seen(const work_item &w, int pos, int window)
{
    return pos >= 0 && (pos < w.n_sink || w.newest - pos < window);
}

struct attn_plan_args {
    const struct kv_geom *geom;
    const int32_t *pos, *slot;
    int32_t *first;  /* [n_layers, first_stride] */
    int n_pairs, first_stride, layer0, n_layers, n_kv_heads, n_parts, chunk;
};

/* CTA -> layer; running counts of chunks over the pairs */
static __global__ void __launch_bounds__(PLAN_THREADS)
attn_plan_kernel(const __grid_constant__ attn_plan_args a)
{
    __shared__ int sums[PLAN_THREADS / WARP_LANES];
    int layer = a.layer0 + blockIdx.x, warp = threadIdx.x / WARP_LANES;
    int lane = threadIdx.x % WARP_LANES, carry = 0;
    int32_t *first = a.first + (int64_t)layer * a.first_stride;

    if (threadIdx.x == 0)
        first[0] = 0;
    for (int base = 0; base < a.n_pairs; base += PLAN_THREADS) {
        int pair = base + threadIdx.x, n = 0, before = 0, total = 0;

        if (pair < a.n_pairs) {
            int head = pair / a.n_parts % a.n_kv_heads, row = pair / a.n_parts / a.n_kv_heads;
            int64_t at = ((int64_t)a.slot[row] * a.n_layers + layer) * a.n_kv_heads + head;

            n = (indices_used(a.geom[at], a.pos[row]) + a.chunk - 1) / a.chunk;
        }
        for (int m = 1; m < WARP_LANES; m <<= 1) {
            int below = __shfl_up_sync(0xffffffffu, n, m);

            n += lane >= m ? below : 0;
        }
        if (lane == WARP_LANES - 1)
            sums[warp] = n;
        __syncthreads(); /* every warp's total is there */
        for (int i = 0; i < PLAN_THREADS / WARP_LANES; i++) {
            before += i < warp ? sums[i] : 0;
            total += sums[i];
        }
        if (pair < a.n_pairs)
            first[pair + 1] = carry + before + n;
        carry += total;
        __syncthreads(); /* sums have been read */
    }
}

/* A ring of barriers: index and parity of the turn that comes next. */
struct turn {
    int at, parity;

    __device__ void advance(int n)
    {
        if (++at == n) {
            at = 0;
            parity ^= 1;
        }
    }
};

struct barriers {
    uint64_t stage_full[MAX_STAGES], stage_empty[MAX_STAGES];
    uint64_t item_full[ITEM_SLOTS], item_empty[ITEM_SLOTS];
    uint64_t merge_full[2], merge_empty[2];
};

/* The pair whose range of chunks holds `item`: a search by 32 at once over first[]. */
static __device__ int find_pair(const int32_t *first, int pair0, int n_pairs, int item)
{
    int lane = threadIdx.x % WARP_LANES, lo = pair0, n = n_pairs;

    while (n > 1) {
        int step = (n + WARP_LANES - 1) / WARP_LANES, k;
        bool below = lane * step < n && first[lo + lane * step] <= item;

        k = __popc(__ballot_sync(0xffffffffu, below)) - 1;
        lo += k * step;
        n = n - k * step < step ? n - k * step : step;
    }
    return lo;
}

/* Planner warp: describes item after item, ahead of everybody else. */
static __device__ void plan_items(const attn_decode_args &a, work_item *items, barriers *bars)
{
    int lane = threadIdx.x % WARP_LANES, item = blockIdx.x;
    int item0 = a.first[a.pair0], n_items = a.first[a.pair0 + a.n_pairs] - item0;
    struct turn t = {0, 0};

    for (;; t.advance(ITEM_SLOTS)) {
        work_item *w = &items[t.at];
        int following = 0, pair, head, row, slot, chunk, used, n_pages;
        int64_t geom_at;
        struct kv_geom g;
        bool plain = true;

        barrier_wait(&bars->item_empty[t.at], t.parity ^ 1);
        if (item >= n_items)
            break;
        if (lane == 0)
            following = atomicAdd(a.next, 1) + (int)gridDim.x;
        pair = find_pair(a.first, a.pair0, a.n_pairs, item0 + item);
        chunk = item0 + item - a.first[pair];
        head = pair / a.n_parts % a.n_kv_heads;
        row = pair / a.n_parts / a.n_kv_heads;
        slot = a.slot[row];
        geom_at = ((int64_t)slot * a.n_layers + a.layer) * a.n_kv_heads + head;
        g = a.geom[geom_at];
        used = indices_used(g, a.pos[row]);
        if (lane == 0) {
            w->pair = pair;
            w->row = row;
            w->kv_head = head;
            w->part = pair % a.n_parts;
            w->newest = a.pos[row];
            w->n_sink = g.n_sink;
            w->sink_end = (g.n_sink + KV_TILE - 1) / KV_TILE * KV_TILE;
            w->ring = g.ring;
            w->ring_at = w->newest >= g.n_sink ? (w->newest - g.n_sink) % g.ring : 0;
            w->chunk = chunk;
            w->n_chunks = a.first[pair + 1] - a.first[pair];
            w->state0 = a.first[pair] - item0;
            w->index0 = chunk * a.chunk;
            w->n_keys = used - w->index0 < a.chunk ? used - w->index0 : a.chunk;
        }
        __syncwarp(); /* lane 0's fields are read below */
        for (int h = lane; h < a.part_heads; h += WARP_LANES) {
            int in_group = w->part * a.part_heads + h, window;

            if (in_group >= a.group)
                break;
            window = a.window[((int64_t)slot * a.n_layers + a.layer) * a.n_heads +
                              head * a.group + in_group];
            plain = plain && (window >= g.ring || window > w->newest);
        }
        plain = plain && (w->n_sink == w->sink_end || w->index0 >= w->sink_end ||
                          w->index0 + w->n_keys <= w->n_sink);
        plain = __all_sync(0xffffffffu, plain);
        if (lane == 0)
            w->plain = plain;
        n_pages = (w->n_keys + a.page_entries - 1) / a.page_entries;
        for (int i = lane; i < n_pages; i += WARP_LANES)
            w->page[i] = a.page_table[a.head_base[geom_at] + w->index0 / a.page_entries + i];
        __syncwarp(); /* all of the item is written */
        if (lane == 0)
            barrier_arrive(&bars->item_full[t.at]);
        item = __shfl_sync(0xffffffffu, following, 0);
    }
    if (lane == 0) {
        items[t.at].pair = -1;
        barrier_arrive(&bars->item_full[t.at]);
        /* The last CTA leaves the counters as it found them. */
        __threadfence();
        if (atomicAdd(a.next + 1, 1) == (int)gridDim.x - 1) {
            a.next[0] = 0;
            a.next[1] = 0;
        }
    }
}

/* Producer warp: fills stage after stage, K in the first half of a stage and V in the second. */
template <typename T, int HEAD_DIM, int TILE_KEYS>
static __device__ void produce(const attn_decode_args &a, T *stages, const work_item *items,
                               barriers *bars)
{
    constexpr int TILE = TILE_KEYS * HEAD_DIM;
    int lane = threadIdx.x % WARP_LANES;
    struct turn t = {0, 0}, s = {0, 0};
    const T *pages = (const T *)a.pages;
#if HAS_BULK_COPY
    uint64_t policy = policy_evict_first();
#endif

    for (;; t.advance(ITEM_SLOTS)) {
        const work_item *w = &items[t.at];

        barrier_wait(&bars->item_full[t.at], t.parity);
        if (w->pair < 0)
            return;
        for (int key0 = 0; key0 < w->n_keys; key0 += TILE_KEYS, s.advance(a.n_stages)) {
            int n = w->n_keys - key0 < TILE_KEYS ? w->n_keys - key0 : TILE_KEYS;
            T *k_dst = stages + s.at * 2 * TILE;

            barrier_wait(&bars->stage_empty[s.at], s.parity ^ 1);
#if HAS_BULK_COPY
            if (lane == 0)
                barrier_arrive_expect(&bars->stage_full[s.at], n * HEAD_DIM * 2 * sizeof(T));
#endif
            for (int done = 0, run; done < n; done += run) {
                int in_page = (key0 + done) % a.page_entries;
                const T *k_src = pages + w->page[(key0 + done) / a.page_entries] * a.page_elems +
                                 in_page * HEAD_DIM;
                const T *v_src = k_src + a.page_entries * HEAD_DIM;

                run = a.page_entries - in_page < n - done ? a.page_entries - in_page : n - done;
#if HAS_BULK_COPY
                if (lane == 0) {
                    uint32_t n_bytes = run * HEAD_DIM * sizeof(T);

                    copy_bulk(smem_addr(k_dst + done * HEAD_DIM), k_src, n_bytes,
                              &bars->stage_full[s.at], policy);
                    copy_bulk(smem_addr(k_dst + TILE + done * HEAD_DIM), v_src, n_bytes,
                              &bars->stage_full[s.at], policy);
                }
#else
                constexpr int VEC = 16 / sizeof(T);

                for (int i = lane * VEC; i < run * HEAD_DIM; i += WARP_LANES * VEC) {
                    copy_async16(smem_addr(k_dst + done * HEAD_DIM + i), k_src + i);
                    copy_async16(smem_addr(k_dst + TILE + done * HEAD_DIM + i), v_src + i);
                }
#endif
            }
#if !HAS_BULK_COPY
            barrier_arrive_on_copies(&bars->stage_full[s.at]);
#endif
            __syncwarp(); /* the lanes wait for the next stage together */
        }
        if (lane == 0)
            barrier_arrive(&bars->item_empty[t.at]);
    }
}

/*
 * Consumer warp on CUDA cores: LANES lanes hold the dims of a key, 8 each; the warp's keys of a tile
 * are n_iter rounds of 32 / LANES. Every group of lanes keeps its own state until the item ends.
 */
template <typename T, int HEAD_DIM, int TILE_KEYS, int HEADS, int N_WARPS>
static __device__ void consume_cores(const attn_decode_args &a, const T *stages,
                                     const work_item *items, barriers *bars, float *merge_o,
                                     float2 *merge_md, int warp)
{
    constexpr int LANES = HEAD_DIM <= 32 ? 4 : HEAD_DIM <= 64 ? 8 : HEAD_DIM <= 128 ? 16 : 32;
    constexpr int ROUND = WARP_LANES / LANES, N_ROUNDS = TILE_KEYS / N_WARPS / ROUND;
    constexpr int TILE = TILE_KEYS * HEAD_DIM;
    int lane = threadIdx.x % WARP_LANES, sub = lane % LANES;
    int my_key = warp * (TILE_KEYS / N_WARPS) + lane / LANES;
    bool has_dims = sub * 8 < HEAD_DIM;
    struct turn t = {0, 0}, s = {0, 0}, mt = {0, 0};

    for (;; t.advance(ITEM_SLOTS), mt.advance(2)) {
        const work_item &w = items[t.at];
        float q[HEADS][8], o[HEADS][8], m[HEADS], d[HEADS];
        int window[HEADS];

        barrier_wait(&bars->item_full[t.at], t.parity);
        if (w.pair < 0)
            return;
        for (int h = 0; h < HEADS; h++) {
            int in_group = w.part * HEADS + h;
            int head = w.kv_head * a.group + (in_group < a.group ? in_group : 0);

            window[h] = a.window[((int64_t)a.slot[w.row] * a.n_layers + a.layer) * a.n_heads + head];
            m[h] = -INFINITY;
            d[h] = 0;
            for (int j = 0; j < 8; j++)
                q[h][j] = o[h][j] = 0;
            if (has_dims)
                load8(q[h], (const T *)a.q + ((int64_t)w.row * a.n_heads + head) * HEAD_DIM + sub * 8);
            for (int j = 0; j < 8; j++)
                q[h][j] *= a.scale_log2;
        }
        for (int key0 = 0; key0 < w.n_keys; key0 += TILE_KEYS, s.advance(a.n_stages)) {
            const T *k_tile = stages + s.at * 2 * TILE;
            float p[N_ROUNDS][HEADS];
            bool valid[N_ROUNDS];
            bool plain = w.plain && key0 + TILE_KEYS <= w.n_keys;

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
            for (int mask = LANES / 2; mask > 0; mask >>= 1)
                for (int i = 0; i < N_ROUNDS; i++)
                    for (int h = 0; h < HEADS; h++)
                        p[i][h] += __shfl_xor_sync(0xffffffffu, p[i][h], mask);
#pragma unroll
            for (int i = 0; i < N_ROUNDS; i++) {
                int key = key0 + my_key + i * ROUND;

                valid[i] = true;
                if (!plain) {
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
            barrier_arrive(&bars->item_empty[t.at]);
        }
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
                                   const work_item *items, barriers *bars, float *merge_o,
                                   float2 *merge_md, int warp)
{
    constexpr int TILE_KEYS = 16 * N_WARPS, TILE = TILE_KEYS * HEAD_DIM;
    constexpr int CHUNKS = HEAD_DIM / 8; /* 16-byte pieces of a row */
    constexpr int N_SEGS = (CHUNKS + 3) / 4, N_GROUPS = (CHUNKS + 7) / 8;
    int lane = threadIdx.x % WARP_LANES, g = lane / 4, t4 = lane % 4;
    const uint4 zero = make_uint4(0, 0, 0, 0);
    struct turn t = {0, 0}, s = {0, 0}, mt = {0, 0};

    for (;; t.advance(ITEM_SLOTS), mt.advance(2)) {
        const work_item &w = items[t.at];
        uint4 q[N_SEGS];
        float o[N_GROUPS][8][4] = {}, m = -INFINITY, d = 0;
        int head, window = 0;

        barrier_wait(&bars->item_full[t.at], t.parity);
        if (w.pair < 0)
            return;
        head = w.part * a.part_heads + g;
        for (int i = 0; i < N_SEGS; i++)
            q[i] = zero;
        if (g < a.part_heads && head < a.group) {
            head += w.kv_head * a.group;
            window = a.window[((int64_t)a.slot[w.row] * a.n_layers + a.layer) * a.n_heads + head];
            for (int i = 0; i < N_SEGS; i++) {
                if (i * 4 + t4 < CHUNKS)
                    q[i] = *(const uint4 *)((const T *)a.q +
                                            ((int64_t)w.row * a.n_heads + head) * HEAD_DIM +
                                            (i * 4 + t4) * 8);
            }
        }
        for (int key0 = 0; key0 < w.n_keys; key0 += TILE_KEYS, s.advance(a.n_stages)) {
            const T *k_tile = stages + s.at * 2 * TILE + warp * 16 * HEAD_DIM;
            const T *v_tile = k_tile + TILE;
            float p[2][4] = {}, top = m, ref, shrink;
            uint32_t pa[4];
            bool plain = w.plain && key0 + TILE_KEYS <= w.n_keys;
            bool valid[4] = {true, true, true, true}; /* keys 2t, 2t + 1, 2t + 8, 2t + 9 */

            barrier_wait(&bars->stage_full[s.at], s.parity);
#pragma unroll
            for (int i = 0; i < N_SEGS; i++) {
                uint32_t a0[4] = {q[i].x, 0, q[i].y, 0}, a1[4] = {q[i].z, 0, q[i].w, 0};

#pragma unroll
                for (int j = 0; j < 2; j++) {
                    uint4 k = zero;

                    if (i * 4 + t4 < CHUNKS)
                        k = *(const uint4 *)(k_tile + (j * 8 + g) * HEAD_DIM + (i * 4 + t4) * 8);
                    mma16816<T>(p[j], a0, k.x, k.y);
                    mma16816<T>(p[j], a1, k.z, k.w);
                }
            }
#pragma unroll
            for (int i = 0; i < 4; i++) {
                float score = p[i / 2][i % 2] * a.scale_log2;

                if (!plain) {
                    int key = key0 + warp * 16 + i / 2 * 8 + 2 * t4 + i % 2;
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
            for (int c = 0; c < N_GROUPS; c++) {
                uint4 v[4];

#pragma unroll
                for (int i = 0; i < 4; i++) {
                    v[i] = zero;
                    if (valid[i] && c * 8 + g < CHUNKS)
                        v[i] = *(const uint4 *)(v_tile +
                                                (i / 2 * 8 + 2 * t4 + i % 2) * HEAD_DIM +
                                                (c * 8 + g) * 8);
                }
#pragma unroll
                for (int i = 0; i < 8; i++) {
                    int pick = i % 2 ? 0x7632 : 0x5410;
                    uint32_t w0 = i / 2 == 0 ? v[0].x : i / 2 == 1 ? v[0].y : i / 2 == 2 ? v[0].z : v[0].w;
                    uint32_t w1 = i / 2 == 0 ? v[1].x : i / 2 == 1 ? v[1].y : i / 2 == 2 ? v[1].z : v[1].w;
                    uint32_t w2 = i / 2 == 0 ? v[2].x : i / 2 == 1 ? v[2].y : i / 2 == 2 ? v[2].z : v[2].w;
                    uint32_t w3 = i / 2 == 0 ? v[3].x : i / 2 == 1 ? v[3].y : i / 2 == 2 ? v[3].z : v[3].w;

                    o[c][i][0] *= shrink;
                    o[c][i][1] *= shrink;
                    mma16816<T>(o[c][i], pa, __byte_perm(w0, w1, pick), __byte_perm(w2, w3, pick));
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
                    int piece = c * 8 + 2 * t4 + e;
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
            barrier_arrive(&bars->item_empty[t.at]);
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
static __device__ void merge_chunks(const attn_decode_args &a, const work_item &w,
                                    float *quarter_o, float *quarter_d, int warp)
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
#pragma unroll 8
        for (int c = begin; c < end; c++) {
            float2 state = __ldcg(&md[(int64_t)c * a.part_heads]);
            float f = exp2_approx(state.x - ref);

            d += state.y * f;
#pragma unroll
            for (int i = 0; i < N_DIMS; i++) {
                if (i * WARP_LANES + lane < HEAD_DIM)
                    o[i] += f * __ldcg(&so[(int64_t)c * a.part_heads * HEAD_DIM + i * WARP_LANES + lane]);
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
template <typename T, int HEAD_DIM, int N_WARPS>
static __device__ void finish(const attn_decode_args &a, const work_item *items, barriers *bars,
                              const float *merge_o, const float2 *merge_md, float *quarter_o,
                              float *quarter_d, int *is_last, int warp)
{
    int lane = threadIdx.x % WARP_LANES, thread = warp * WARP_LANES + lane;
    struct turn t = {0, 0}, mt = {0, 0};

    for (;; t.advance(ITEM_SLOTS), mt.advance(2)) {
        const work_item &w = items[t.at];

        barrier_wait(&bars->item_full[t.at], t.parity);
        if (w.pair < 0)
            return;
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
            __threadfence();
            named_barrier(STATE_BARRIER, N_FINISHERS * WARP_LANES); /* the whole state is out */
            if (thread == 0)
                *is_last = atomicAdd(&a.arrived[w.pair], 1) == w.n_chunks - 1;
            named_barrier(STATE_BARRIER, N_FINISHERS * WARP_LANES); /* is_last is there */
            if (*is_last) {
                __threadfence();
                if (thread == 0)
                    a.arrived[w.pair] = 0;
                merge_chunks<T, HEAD_DIM>(a, w, quarter_o, quarter_d, warp);
            }
            named_barrier(STATE_BARRIER, N_FINISHERS * WARP_LANES); /* is_last has been read */
        }
        if (lane == 0)
            barrier_arrive(&bars->item_empty[t.at]);
    }
}

/* What the shapes of one instance come to. */
template <typename T, int HEAD_DIM, bool MMA> struct decode_shape {
    static constexpr int BYTES = sizeof(T) * HEAD_DIM;
    static constexpr int N_CONSUMERS = MMA ? 4 : 8;
    static constexpr int TILE_KEYS = MMA ? 64 : BYTES <= 64 ? 256 : BYTES <= 128 ? 128 :
                                     BYTES <= 256 ? 64 : BYTES <= 512 ? 32 : 16;
    static constexpr int STAGE_BYTES = 2 * TILE_KEYS * BYTES;
    static constexpr int N_THREADS = (N_CONSUMERS + 2 + N_FINISHERS) * WARP_LANES;

    static size_t merge_bytes(int part_heads)
    {
        return 2 * N_CONSUMERS * part_heads * (HEAD_DIM * sizeof(float) + sizeof(float2));
    }
};

/* CTA -> items drawn from a.next; warps 0.. consume, then producer, planner, finishers. */
template <typename T, int HEAD_DIM, int HEADS, bool MMA>
static __global__ void __launch_bounds__(decode_shape<T, HEAD_DIM, MMA>::N_THREADS, 1)
attn_decode_split_kv(const __grid_constant__ attn_decode_args a)
{
    using shape = decode_shape<T, HEAD_DIM, MMA>;
    constexpr int N_WARPS = shape::N_CONSUMERS;
    extern __shared__ __align__(128) unsigned char smem[];
    __shared__ barriers bars;
    __shared__ work_item items[ITEM_SLOTS];
    __shared__ float quarter_o[N_FINISHERS * HEAD_DIM], quarter_d[N_FINISHERS];
    __shared__ int is_last;
    T *stages = (T *)smem;
    float *merge_o = (float *)(smem + a.n_stages * shape::STAGE_BYTES);
    float2 *merge_md = (float2 *)(merge_o + 2 * N_WARPS * a.part_heads * HEAD_DIM);
    int warp = threadIdx.x / WARP_LANES;

    if (threadIdx.x == 0) {
        for (int i = 0; i < a.n_stages; i++) {
#if HAS_BULK_COPY
            barrier_init(&bars.stage_full[i], 1);
#else
            barrier_init(&bars.stage_full[i], WARP_LANES);
#endif
            barrier_init(&bars.stage_empty[i], N_WARPS);
        }
        for (int i = 0; i < ITEM_SLOTS; i++) {
            barrier_init(&bars.item_full[i], 1);
            barrier_init(&bars.item_empty[i], N_WARPS + 1 + N_FINISHERS);
        }
        for (int i = 0; i < 2; i++) {
            barrier_init(&bars.merge_full[i], N_WARPS);
            barrier_init(&bars.merge_empty[i], N_FINISHERS);
        }
#if HAS_BULK_COPY
        barrier_init_done();
#endif
    }
    __syncthreads(); /* the barriers are ready */
    if (warp < N_WARPS) {
        if constexpr (MMA)
            consume_mma<T, HEAD_DIM, N_WARPS>(a, stages, items, &bars, merge_o, merge_md, warp);
        else
            consume_cores<T, HEAD_DIM, shape::TILE_KEYS, HEADS, N_WARPS>(a, stages, items, &bars,
                                                                        merge_o, merge_md, warp);
    } else if (warp == N_WARPS) {
        produce<T, HEAD_DIM, shape::TILE_KEYS>(a, stages, items, &bars);
    } else if (warp == N_WARPS + 1) {
        plan_items(a, items, &bars);
    } else {
        finish<T, HEAD_DIM, N_WARPS>(a, items, &bars, merge_o, merge_md, quarter_o, quarter_d,
                                     &is_last, warp - N_WARPS - 2);
    }
}

/* Work lists for this model: taken by the first step, kept until the backend closes. */
static int plan_reserve(struct cuda_backend *cb, int n_layers, int n_pairs, struct err *err)
{
    struct attn_plan *p = &cb->plan;

    if (p->n_layers >= n_layers && p->max_pairs >= n_pairs)
        return 0;
    CUDA_TRY(err, cudaStreamSynchronize(cb->stream));
    cudaFree(p->first);
    cudaFree(p->arrived);
    *p = attn_plan();
    CUDA_TRY(err, cudaMalloc((void **)&p->first, sizeof(int32_t) * n_layers * ((size_t)n_pairs + 1)));
    CUDA_TRY(err, cudaMalloc((void **)&p->arrived, sizeof(int32_t) * n_pairs));
    CUDA_TRY(err, cudaMemsetAsync(p->arrived, 0, sizeof(int32_t) * n_pairs, cb->stream));
    p->n_layers = n_layers;
    p->max_pairs = n_pairs;
    return 0;
}

/* Plans every layer of the step at its first attention; outside a step, this layer each time. */
static int plan_run(struct cuda_backend *cb, const struct attn_args *p, int n_parts, int chunk,
                    struct err *err)
{
    struct attn_plan_args k = {};
    int n_layers = p->kv->n_layers, pairs_per_row = p->n_kv_heads * n_parts, rc;

    rc = plan_reserve(cb, n_layers, cb->params.max_rows * pairs_per_row, err);
    if (rc < 0 || (cb->in_step && cb->plan.valid))
        return rc;
    k.geom = p->kv->geom;
    k.pos = p->batch->pos;
    k.slot = p->batch->slot;
    k.first = cb->plan.first;
    k.n_pairs = p->batch->n_decode * pairs_per_row;
    k.first_stride = cb->plan.max_pairs + 1;
    k.layer0 = cb->in_step ? 0 : p->layer;
    k.n_layers = n_layers;
    k.n_kv_heads = p->n_kv_heads;
    k.n_parts = n_parts;
    k.chunk = chunk;
    attn_plan_kernel<<<cb->in_step ? n_layers : 1, PLAN_THREADS, 0, cb->stream>>>(k);
    cb->plan.valid = cb->in_step;
    return cuda_launched(cb, "attn_plan", err);
}

template <typename T, int HEAD_DIM, int HEADS, bool MMA>
static int decode_start(struct cuda_backend *cb, const struct attn_args *p, struct err *err)
{
    using shape = decode_shape<T, HEAD_DIM, MMA>;
    struct attn_decode_args k = {};
    int group = p->n_heads / p->n_kv_heads, pairs_per_row, max_chunks, rows_at_once, rc;
    size_t row_state, fixed, static_smem;
    cudaFuncAttributes attr;

    k.part_heads = MMA ? (group < MMA_HEADS ? group : MMA_HEADS) : HEADS;
    k.n_parts = (group + k.part_heads - 1) / k.part_heads;
    k.chunk = MMA ? CHUNK_MMA : CHUNK_CORES;
    static_assert(CHUNK_MMA % shape::TILE_KEYS == 0 && CHUNK_CORES % shape::TILE_KEYS == 0,
                  "a chunk is whole tiles");
    rc = plan_run(cb, p, k.n_parts, k.chunk, err);
    if (rc < 0)
        return rc;
    k.q = p->q;
    k.out = p->out;
    k.pages = p->kv->pages;
    k.page_elems = (int64_t)(p->kv->page_bytes / sizeof(T));
    k.page_table = p->kv->page_table;
    k.head_base = p->kv->head_base;
    k.geom = p->kv->geom;
    k.window = p->kv->window;
    k.pos = p->batch->pos;
    k.slot = p->batch->slot;
    k.first = cb->plan.first + (int64_t)p->layer * (cb->plan.max_pairs + 1);
    k.arrived = cb->plan.arrived;
    k.layer = p->layer;
    k.n_layers = p->kv->n_layers;
    k.n_heads = p->n_heads;
    k.n_kv_heads = p->n_kv_heads;
    k.group = group;
    k.page_entries = p->kv->page_entries;
    k.scale_log2 = p->scale * 1.44269504f;

    /* The longest sequence decides how many rows the state memory holds at once. */
    pairs_per_row = p->n_kv_heads * k.n_parts;
    max_chunks = (cb->params.max_positions + 2 * KV_TILE + k.chunk - 1) / k.chunk;
    row_state = (size_t)pairs_per_row * max_chunks * k.part_heads *
                (HEAD_DIM * sizeof(float) + sizeof(float2));
    rows_at_once = (int)(ATTN_STATE_BYTES / row_state < 1 << 20 ? ATTN_STATE_BYTES / row_state : 1 << 20);
    if (rows_at_once == 0)
        return err_set(err, ERR_UNSUPPORTED, "attn: %d positions of %d heads exceed the state memory",
                       cb->params.max_positions, p->n_heads);
    k.state_md = (float2 *)cb->attn_state;
    k.state_o = cb->attn_state + (size_t)2 * pairs_per_row * max_chunks * k.part_heads *
                                     (rows_at_once < p->batch->n_decode ? rows_at_once
                                                                        : p->batch->n_decode);

    CUDA_TRY(err, cudaFuncGetAttributes(&attr, attn_decode_split_kv<T, HEAD_DIM, HEADS, MMA>));
    static_smem = attr.sharedSizeBytes;
    fixed = shape::merge_bytes(k.part_heads) + static_smem;
    k.n_stages = (int)((cb->smem_max - fixed) / shape::STAGE_BYTES);
    k.n_stages = k.n_stages < MAX_STAGES ? k.n_stages : MAX_STAGES;
    CHECK(k.n_stages >= 1);
    fixed = k.n_stages * shape::STAGE_BYTES + shape::merge_bytes(k.part_heads);
    CUDA_TRY(err, cudaFuncSetAttribute(attn_decode_split_kv<T, HEAD_DIM, HEADS, MMA>,
                                       cudaFuncAttributeMaxDynamicSharedMemorySize, (int)fixed));
    for (int row0 = 0; row0 < p->batch->n_decode; row0 += rows_at_once) {
        int n = p->batch->n_decode - row0;

        k.pair0 = row0 * pairs_per_row;
        k.n_pairs = (n < rows_at_once ? n : rows_at_once) * pairs_per_row;
        k.next = cb->attn_next;
        attn_decode_split_kv<T, HEAD_DIM, HEADS, MMA>
            <<<cb->n_sms, shape::N_THREADS, fixed, cb->stream>>>(k);
        rc = cuda_launched(cb, "attn_decode_split_kv", err);
        if (rc < 0)
            return rc;
    }
    return 0;
}

template <typename T, int HEAD_DIM>
static int decode_group(struct cuda_backend *cb, const struct attn_args *p, struct err *err)
{
    int group = p->n_heads / p->n_kv_heads;

    if constexpr (sizeof(T) == 2) {
        if (group == 1)
            return decode_start<T, HEAD_DIM, 1, false>(cb, p, err);
        if (group == 2)
            return decode_start<T, HEAD_DIM, 2, false>(cb, p, err);
        return decode_start<T, HEAD_DIM, MMA_HEADS, true>(cb, p, err);
    } else {
        return decode_start<T, HEAD_DIM, 1, false>(cb, p, err); /* f32: every head is a part */
    }
}

template <typename T>
static int decode_dim(struct cuda_backend *cb, const struct attn_args *p, struct err *err)
{
    switch (p->head_dim) {
    case 32:
        return decode_group<T, 32>(cb, p, err);
    case 64:
        return decode_group<T, 64>(cb, p, err);
    case 80:
        return decode_group<T, 80>(cb, p, err);
    case 96:
        return decode_group<T, 96>(cb, p, err);
    case 128:
        return decode_group<T, 128>(cb, p, err);
    case 256:
        return decode_group<T, 256>(cb, p, err);
    }
    return err_set(err, ERR_UNSUPPORTED,
                   "attn: head_dim %d, built are 32, 64, 80, 96, 128 and 256", p->head_dim);
}

int attn_decode_launch(struct cuda_backend *cb, const struct attn_args *p, struct err *err)
{
    int pe = p->kv->page_entries;

    if (p->batch->n_decode == 0)
        return 0;
    if (pe < 16 || pe > CHUNK_CORES || (pe & (pe - 1)))
        return err_set(err, ERR_UNSUPPORTED, "attn: pages of %d entries, want 16 to %d, a power of 2",
                       pe, CHUNK_CORES);
    switch (cb->base.act_dtype) {
    case DTYPE_F32:
        return decode_dim<float>(cb, p, err);
    case DTYPE_BF16:
        return decode_dim<__nv_bfloat16>(cb, p, err);
    case DTYPE_F16:
        return decode_dim<__half>(cb, p, err);
    }
    return 0;
}
