/*
 * backend_kv - where a key lives in a head's pages, and who may see it. Pure arithmetic, shared by
 * the engine, the CPU backend and the CUDA kernels.
 *
 * A head keeps its first n_sink positions for good and the newest `ring` of the rest:
 *
 *     index  0 ......... 64P-1 | 64P ................ 64P+ring-1        P = ceil(n_sink/64)
 *            sink (n_sink used)| ring: position p at 64P + (p - n_sink) mod ring
 *
 * A dense head is n_sink 0 and ring KV_RING_DENSE: the index is then the position. Index i lies in
 * entry i / page_entries of the head's page list. Masks test positions, never indices.
 */
#ifndef BACKEND_KV_H
#define BACKEND_KV_H

#include <stdbool.h>
#include <stdint.h>

#ifdef __CUDACC__
#define KV_FN static __host__ __device__ inline
#else
#define KV_FN static inline
#endif

#define KV_TILE       64        /* spans, rings and prefill tiles are multiples of this */
#define KV_RING_DENSE (1 << 30) /* no ring is this long: nothing is ever overwritten */
#define KV_WINDOW_ALL (1 << 30)

enum kv_mask {
    KV_MASK_TOKEN = 0, /* visible iff j < n_sink or i - j < window, prefill and decode alike */
    KV_MASK_BLOCK = 1  /* MoA: prefill rows see whole 64-token blocks, decode rows the exact ring */
};

/* What one KV head of one layer keeps, for one slot. */
struct kv_geom {
    int32_t n_sink;
    int32_t ring; /* multiple of KV_TILE */
    int32_t mask; /* enum kv_mask */
};

KV_FN int32_t kv_index_of(struct kv_geom g, int32_t pos)
{
    int32_t base;

    if (pos < g.n_sink)
        return pos;
    base = (g.n_sink + KV_TILE - 1) / KV_TILE * KV_TILE;
    return base + (pos - g.n_sink) % g.ring;
}

/* The position held at ring offset r when `newest` was the last one written; invalid if < n_sink.
 */
KV_FN int32_t kv_position_at(struct kv_geom g, int32_t r, int32_t newest)
{
    int32_t d = (newest - g.n_sink - r) % g.ring;

    return newest - (d < 0 ? d + g.ring : d);
}

/* May a decode row at position i see position j <= i? `window` is the query head's own. */
KV_FN bool kv_sees_decode(struct kv_geom g, int32_t window, int32_t i, int32_t j)
{
    return j <= i && (j < g.n_sink || i - j < window);
}

/* May a prompt row at position i see position j? */
KV_FN bool kv_sees_prompt(struct kv_geom g, int32_t window, int32_t i, int32_t j)
{
    if (g.mask == KV_MASK_TOKEN)
        return kv_sees_decode(g, window, i, j);
    return j <= i &&
           (j / KV_TILE < g.n_sink / KV_TILE || j / KV_TILE >= i / KV_TILE - window / KV_TILE + 1);
}

/* The lowest position that prompt row i may see outside the sink. */
KV_FN int32_t kv_window_start_prompt(struct kv_geom g, int32_t window, int32_t i)
{
    int32_t lo =
        g.mask == KV_MASK_TOKEN ? i - window + 1 : (i / KV_TILE - window / KV_TILE + 1) * KV_TILE;

    return lo < 0 ? 0 : lo;
}

#endif
