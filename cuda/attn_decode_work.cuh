/*
 * attn_decode_work - what the warps of decode attention tell each other: items of work, the
 * barriers between the roles, and the two roles that only fetch, planner and producer. See
 * attn_decode.cu.
 */
#ifndef ATTN_DECODE_WORK_CUH
#define ATTN_DECODE_WORK_CUH

#include "cuda/device.cuh"
#include "engine/backend_kv.h"

/*
 * Keys of an item. A state of 520 bytes a query head (head_dim 128) is written for each item and
 * read again, and its ends cost a CTA some 0.3 us; but short sequences want small items, to be
 * spread over all SMs. What is left over of less than a quarter of a chunk goes to the last one.
 */
#define CHUNK            1024
#define MAX_PAGES        (CHUNK / 4 * 5 / 16)
#define MMA_HEADS        8 /* query heads of a part on tensor cores */
#define ITEM_SLOTS       4 /* items known ahead of the finishers */
#define N_PLANNERS       2 /* warps that take turns at items */
#define MAX_STAGES       16
#define MIN_STAGES       3 /* one is read, two are on their way */
#define MAX_PAGE_ENTRIES 256
#define N_FINISHERS      4
#define MERGES_CORES     2 /* buffers for the states of an item's warps */
#define MERGES_MMA       1 /* and room for a third stage */
#define STATE_BARRIER    1 /* named barrier of the finishers */

/* The chunks of so many keys. */
static __host__ __device__ __forceinline__ int n_chunks_of(int used)
{
    int n = (used + CHUNK - CHUNK / 4 - 1) / CHUNK;

    return n > 0 ? n : used > 0;
}

struct attn_decode_args {
    const void *q; /* [n_rows, n_heads, head_dim] */
    void *out;     /* the same */
    const void *pages;
    int64_t page_elems;
    const int32_t *page_table, *head_base;
    const struct kv_geom *geom; /* [n_slots, n_layers, n_kv_heads] */
    const int32_t *window;      /* [n_slots, n_layers, n_heads] */
    const int32_t *pos, *slot;  /* [n_rows] */
    const int32_t *first;       /* [n_pairs + 1] of this layer */
    int32_t *next;              /* [2] items drawn beyond those that are dealt; CTAs done */
    int32_t *arrived;           /* [n_pairs] */
    float *state_o;             /* [items, part_heads, head_dim] */
    float2 *state_md;           /* [items, part_heads] */
    int layer, n_layers, n_heads, n_kv_heads, group, n_parts, part_heads;
    int pair0, n_pairs; /* of this launch */
    int page_entries, n_stages;
    float scale_log2;
};

/* One piece of work, as the planner describes it to the other warps. */
struct work_item {
    int32_t pair; /* -1: there is no more work */
    int32_t row, kv_head, part;
    int32_t index0, n_keys; /* cache indices index0.. of the head */
    int32_t n_sink, sink_end, ring, ring_at, newest;
    int32_t chunk, n_chunks, state0; /* of the pair; state0 is where its first state lies */
    bool plain;                      /* every key is valid and seen by every head */
    bool has_q;                      /* the heads' queries lie in shared memory */
    int32_t window[MMA_HEADS];       /* of the part's heads */
    int32_t least_window;
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

/* How far back the key at index r of the ring lies, where the ring is used so far. */
static __device__ __forceinline__ int ring_age(const work_item &w, int r)
{
    int age = w.ring_at - r;

    return age < 0 ? age + w.ring : age;
}

/* What is to be asked of each of n keys from key0 on: nothing, its age alone, or everything. */
enum tile_mask { TILE_PLAIN, TILE_RING, TILE_ANY };

static __device__ __forceinline__ tile_mask tile_mask_of(const work_item &w, int key0, int n)
{
    int r = w.index0 + key0 - w.sink_end;
    bool has_oldest = r <= w.ring_at && r + n - 1 > w.ring_at; /* the ring's seam */

    if (key0 + n > w.n_keys)
        return TILE_ANY;
    if (w.plain)
        return TILE_PLAIN;
    if (r < 0)
        return TILE_ANY;
    return (has_oldest ? w.ring - 1 : ring_age(w, r)) < w.least_window ? TILE_PLAIN : TILE_RING;
}

struct barriers {
    uint64_t stage_full[MAX_STAGES], stage_empty[MAX_STAGES];
    uint64_t item_full[ITEM_SLOTS], item_empty[ITEM_SLOTS];
    uint64_t merge_full[2], merge_empty[2];
};

/* Where consumers find the queries of an item's heads, one after the other. */
template <typename T, int HEAD_DIM>
static __device__ __forceinline__ const T *queries_of(const attn_decode_args &a, const work_item &w,
                                                      const T *queries, int item_slot)
{
    int head = w.kv_head * a.group + w.part * a.part_heads;

    if (w.has_q)
        return queries + (int64_t)item_slot * a.part_heads * HEAD_DIM;
    return (const T *)a.q + ((int64_t)w.row * a.n_heads + head) * HEAD_DIM;
}

/* A search by 32 at once over first[]: what its first step looks at stays in a register a lane. */
struct pair_search {
    int step, pivot, item0;
};

static __device__ pair_search search_begin(const attn_decode_args &a)
{
    int lane = threadIdx.x % WARP_LANES;
    pair_search s;

    s.item0 = a.first[a.pair0];
    s.step = (a.n_pairs + WARP_LANES - 1) / WARP_LANES;
    s.pivot = lane * s.step < a.n_pairs ? a.first[a.pair0 + lane * s.step] : INT32_MAX;
    return s;
}

/* The pair whose range of chunks holds `item`, counted from first[0]. */
static __device__ int find_pair(const attn_decode_args &a, pair_search s, int item)
{
    int lane = threadIdx.x % WARP_LANES;
    int k = __popc(__ballot_sync(0xffffffffu, s.pivot <= item)) - 1;
    int lo = a.pair0 + k * s.step;
    int n = a.n_pairs - k * s.step < s.step ? a.n_pairs - k * s.step : s.step;

    while (n > 1) {
        int step = (n + WARP_LANES - 1) / WARP_LANES;
        bool below = lane * step < n && a.first[lo + lane * step] <= item;

        k = __popc(__ballot_sync(0xffffffffu, below)) - 1;
        lo += k * step;
        n = n - k * step < step ? n - k * step : step;
    }
    return lo;
}

/* What is to be known of one item, and its pages. The heads' queries, too, if they are there. */
template <typename T, int HEAD_DIM>
static __device__ void plan_item(const attn_decode_args &a, pair_search search, int item,
                                 work_item *w, T *queries, bool has_q)
{
    constexpr int Q_VECS = HEAD_DIM * sizeof(T) / 16;
    int lane = threadIdx.x % WARP_LANES, pair = find_pair(a, search, item);
    int row = pair / a.n_parts / a.n_kv_heads, kv_head = pair / a.n_parts % a.n_kv_heads;
    int part = pair % a.n_parts, first_head = part * a.part_heads;
    int n_heads = a.group - first_head < a.part_heads ? a.group - first_head : a.part_heads;
    /* Each group of loads waits for the one before it: there are few, since each takes long. */
    int slot = a.slot[row], newest = a.pos[row], first = a.first[pair];
    int n_chunks = a.first[pair + 1] - first, chunk = item - first;
    int head = kv_head * a.group + first_head;
    const uint4 *q = (const uint4 *)((const T *)a.q + ((int64_t)row * a.n_heads + head) * HEAD_DIM);
    int64_t geom_at = ((int64_t)slot * a.n_layers + a.layer) * a.n_kv_heads + kv_head;
    struct kv_geom g = a.geom[geom_at];
    const int32_t *pages = a.page_table + a.head_base[geom_at] + chunk * CHUNK / a.page_entries;
    int window = INT32_MAX, least, index0 = chunk * CHUNK, n_keys, sink_end;
    bool plain;

    if (lane < n_heads)
        window = a.window[((int64_t)slot * a.n_layers + a.layer) * a.n_heads + head + lane];
    for (int i = lane; has_q && i < n_heads * Q_VECS; i += WARP_LANES)
        ((uint4 *)queries)[i] = q[i];
    n_keys = chunk + 1 < n_chunks ? CHUNK : indices_used(g, newest) - index0;
    sink_end = (g.n_sink + KV_TILE - 1) / KV_TILE * KV_TILE;
    for (int i = lane; i * a.page_entries < n_keys; i += WARP_LANES)
        w->page[i] = pages[i];
    least = window;
    for (int m = MMA_HEADS / 2; m > 0; m >>= 1) {
        int other = __shfl_xor_sync(0xffffffffu, least, m);

        least = other < least ? other : least;
    }
    least = __shfl_sync(0xffffffffu, least, 0);
    plain = (least >= g.ring || least > newest) &&
            (g.n_sink == sink_end || index0 >= sink_end || index0 + n_keys <= g.n_sink);
    if (lane < n_heads)
        w->window[lane] = window;
    if (lane == 0) {
        w->pair = pair;
        w->row = row;
        w->kv_head = kv_head;
        w->part = part;
        w->newest = newest;
        w->n_sink = g.n_sink;
        w->sink_end = sink_end;
        w->ring = g.ring;
        w->ring_at = newest >= g.n_sink ? (newest - g.n_sink) % g.ring : 0;
        w->chunk = chunk;
        w->n_chunks = n_chunks;
        w->state0 = first - search.item0;
        w->index0 = index0;
        w->n_keys = n_keys;
        w->plain = plain;
        w->least_window = least;
        w->has_q = has_q;
    }
}

/*
 * Planner warps take turns at describing items, ahead of everybody else: the small reads that one
 * takes wait behind all the pages on their way. Most items are dealt, those of the last rounds
 * drawn from a counter, since SMs are not equally fast. The first ones are described without
 * anything that the kernel before this one writes: so without their queries.
 */
template <typename T, int HEAD_DIM>
static __device__ void plan_items(const attn_decode_args &a, work_item *items, T *queries,
                                  barriers *bars, int planner)
{
    int lane = threadIdx.x % WARP_LANES, n_ctas = gridDim.x;
    pair_search search = search_begin(a);
    int n_items = a.first[a.pair0 + a.n_pairs] - search.item0, n_rounds = n_items / n_ctas;
    int n_dealt = n_rounds - 1 - n_rounds / 8;
    bool waited = false;
    int k = planner; /* of this CTA's items */

    n_dealt = n_dealt > N_PLANNERS ? n_dealt : N_PLANNERS;
    for (;; k += N_PLANNERS) {
        int at = k % ITEM_SLOTS, item = blockIdx.x + k * n_ctas;

        barrier_wait(&bars->item_empty[at], k / ITEM_SLOTS % 2 ^ 1);
        if (k >= n_dealt) { /* drawn as late as can be */
            if (lane == 0)
                item = atomicAdd(a.next, 1) + n_dealt * n_ctas;
            item = __shfl_sync(0xffffffffu, item, 0);
        }
        if (item >= n_items)
            break;
        plan_item<T, HEAD_DIM>(a, search, search.item0 + item, &items[at],
                               queries + (int64_t)at * a.part_heads * HEAD_DIM, waited);
        __syncwarp(); /* all of the item is written */
        if (lane == 0)
            barrier_arrive(&bars->item_full[at]);
        if (!waited) /* the queries and the counter may be the kernel's before */
            grid_wait();
        waited = true;
    }
    if (!waited)
        grid_wait();
    if (lane == 0) {
        items[k % ITEM_SLOTS].pair = -1;
        barrier_arrive(&bars->item_full[k % ITEM_SLOTS]);
        /* The last planner leaves the counters as it found them. */
        __threadfence();
        if (atomicAdd(a.next + 1, 1) == N_PLANNERS * n_ctas - 1) {
            a.next[0] = 0;
            a.next[1] = 0;
        }
    }
}

/* Items in the order of the planners' turns, as all other warps go through them. */
struct item_turn {
    int k = -1, ended = 0; /* the last item; planners that have no more, by bits */

    __device__ int at() const
    {
        return k % ITEM_SLOTS;
    }

    /* Waits for the next one. False: there is none. */
    __device__ bool next(const work_item *items, barriers *bars)
    {
        for (;;) {
            k++;
            if (ended >> k % N_PLANNERS & 1)
                continue;
            barrier_wait(&bars->item_full[at()], k / ITEM_SLOTS % 2);
            if (items[at()].pair >= 0)
                return true;
            ended |= 1 << k % N_PLANNERS;
            if (ended == (1 << N_PLANNERS) - 1)
                return false;
        }
    }
};
static_assert(ITEM_SLOTS % N_PLANNERS == 0, "a slot is one planner's");

/* The cache index of the newest position, which the kernel before this one writes. */
static __device__ __forceinline__ int newest_index(const work_item &w)
{
    return w.newest < w.n_sink ? w.newest : w.sink_end + w.ring_at;
}

/*
 * Producer warp: fills stage after stage, K in the first half of a stage and V in the second. Of
 * its first item it loads what lies before the newest key while the kernel before this one still
 * runs.
 */
template <typename T, int HEAD_DIM, int TILE_KEYS>
static __device__ void produce(const attn_decode_args &a, T *stages, const work_item *items,
                               barriers *bars)
{
    constexpr int TILE = TILE_KEYS * HEAD_DIM;
    int lane = threadIdx.x % WARP_LANES;
    struct item_turn t;
    struct turn s = {0, 0};
    const T *pages = (const T *)a.pages;
    bool waited = false;
#if HAS_BULK_COPY
    uint64_t policy = policy_evict_first();
#endif

    while (t.next(items, bars)) {
        const work_item *w = &items[t.at()];

        for (int key0 = 0; key0 < w->n_keys; key0 += TILE_KEYS, s.advance(a.n_stages)) {
            int n = w->n_keys - key0 < TILE_KEYS ? w->n_keys - key0 : TILE_KEYS;
            int newest = newest_index(*w) - w->index0 - key0;
            T *k_dst = stages + s.at * 2 * TILE;

            if (!waited && newest >= 0 && newest < n) {
                grid_wait();
                waited = true;
            }
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

                    /* A whole page is one piece: longer pieces suit memory and its tables. */
                    if (run == TILE_KEYS && run == a.page_entries) {
                        copy_bulk(smem_addr(k_dst), k_src, 2 * n_bytes, &bars->stage_full[s.at],
                                  policy);
                        continue;
                    }
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
            barrier_arrive(&bars->item_empty[t.at()]);
        if (!waited)
            grid_wait();
        waited = true;
    }
    if (!waited)
        grid_wait();
    grid_launch_next(); /* this CTA asks memory for nothing more */
}

#endif
