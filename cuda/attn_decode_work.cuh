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
 * read again: 0.2 % of 512 keys for one head, 0.8 % for 4 heads of 512 keys and for 8 of 1,024.
 * Short sequences want small items, to be spread over all SMs; measured, 512 beat 256 by 1 %.
 */
#define CHUNK_CORES      512
#define CHUNK_MMA_4      512  /* parts of up to 4 query heads on tensor cores */
#define CHUNK_MMA_8      1024 /* of 5 to 8 */
#define MAX_PAGES        (CHUNK_MMA_8 / 16)
#define MMA_HEADS        8 /* query heads of a part on tensor cores */
#define ITEM_SLOTS       4 /* items known ahead of the finishers */
#define MAX_STAGES       16
#define MIN_STAGES       2 /* one is read, one is on its way */
#define MAX_PAGE_ENTRIES 256
#define N_FINISHERS      4
#define STATE_BARRIER    1 /* named barrier of the finishers */

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
    int32_t *next;              /* [2] items handed out beyond the first of each CTA; CTAs done */
    int32_t *arrived;           /* [n_pairs] */
    float *state_o;             /* [items, part_heads, head_dim] */
    float2 *state_md;           /* [items, part_heads] */
    int layer, n_layers, n_heads, n_kv_heads, group, n_parts, part_heads;
    int pair0, n_pairs; /* of this launch */
    int page_entries, chunk, n_stages;
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

/*
 * Planner warp: describes item after item, ahead of everybody else. The first needs nothing that
 * the kernel before this one writes.
 */
static __device__ void plan_items(const attn_decode_args &a, work_item *items, barriers *bars)
{
    bool waited = false;
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
            window = a.window[((int64_t)slot * a.n_layers + a.layer) * a.n_heads + head * a.group +
                              in_group];
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
        if (!waited) /* the counter may be the kernel's before */
            grid_wait();
        waited = true;
        if (lane == 0)
            following = atomicAdd(a.next, 1) + (int)gridDim.x;
        item = __shfl_sync(0xffffffffu, following, 0);
    }
    if (!waited)
        grid_wait();
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
    struct turn t = {0, 0}, s = {0, 0};
    const T *pages = (const T *)a.pages;
    bool waited = false;
#if HAS_BULK_COPY
    uint64_t policy = policy_evict_first();
#endif

    for (;; t.advance(ITEM_SLOTS)) {
        const work_item *w = &items[t.at];

        barrier_wait(&bars->item_full[t.at], t.parity);
        if (w->pair < 0)
            break;
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
            barrier_arrive(&bars->item_empty[t.at]);
        if (!waited)
            grid_wait();
        waited = true;
    }
    if (!waited)
        grid_wait();
    grid_launch_next(); /* this CTA asks memory for nothing more */
}

#endif
