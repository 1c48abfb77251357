/*
 * attn_prefill - what the kernels of prompt attention share: arguments, and which keys a tile of
 * rows sees and where they lie. attn_prefill.cu has mma.sync and f32, attn_prefill_wgmma.cu sm_90.
 *
 * Rows and keys are cut into tiles of 64 absolute positions, visited in ascending order: a row's
 * bits then depend on its position alone, not on where its chunk begins or what else is in the
 * step. Positions that no row of a tile may see are never read: they may be gone, or be NaN.
 */
#ifndef ATTN_PREFILL_CUH
#define ATTN_PREFILL_CUH

#include "cuda/cuda_backend.h"
#include "cuda/device.cuh"

#define TILE 64 /* == KV_TILE: BLOCK masks are then uniform over a tile of keys */

static_assert(TILE == KV_TILE, "tiles of keys are blocks of the mask");

struct attn_prefill_args {
    const void *q, *k_chunk, *v_chunk, *pages;
    void *out;
    int64_t page_elems;
    const int32_t *page_table, *head_base;
    const struct kv_geom *geom; /* [n_slots, n_layers, n_kv_heads] */
    const int32_t *window;      /* [n_slots, n_layers, n_heads] */
    const struct step_chunk *chunks;
    int n_chunks, n_decode, layer, n_layers, n_heads, n_kv_heads, page_entries;
    float scale_log2;
};

/* The part of a chunk that one CTA (f32: one warp) works on, and what its rows may see. */
struct prefill_job {
    int row0, pos0;  /* of the chunk */
    int tile;        /* query positions TILE * tile .. */
    int first, last; /* query positions of the tile that the chunk has */
    int window;
    struct kv_geom geom;
    const int32_t *table; /* the head's pages */
};

static __device__ __forceinline__ int chunk_last(const step_chunk &chunk)
{
    return chunk.pos0 + chunk.n_rows - 1;
}

/* Tiles of n_positions that a chunk touches. */
static __device__ __forceinline__ int chunk_n_tiles(const step_chunk &chunk, int n_positions)
{
    return chunk.n_rows > 0 ? chunk_last(chunk) / n_positions - chunk.pos0 / n_positions + 1 : 0;
}

/* What a tile of rows of a chunk is; j->last is -1 where the chunk has none of its positions. */
static __device__ void job_set(const attn_prefill_args &a, const step_chunk &chunk, int tile,
                               int head, prefill_job *j)
{
    int begin = tile * TILE, end = begin + TILE - 1;
    int64_t at = ((int64_t)chunk.slot * a.n_layers + a.layer) * a.n_kv_heads +
                 head / (a.n_heads / a.n_kv_heads);

    j->row0 = chunk.row0;
    j->pos0 = chunk.pos0;
    j->tile = tile;
    j->first = begin > chunk.pos0 ? begin : chunk.pos0;
    j->last = end < chunk_last(chunk) ? end : chunk_last(chunk);
    if (j->last < j->first)
        j->last = -1;
    j->geom = a.geom[at];
    j->table = a.page_table + a.head_base[at];
    j->window = a.window[((int64_t)chunk.slot * a.n_layers + a.layer) * a.n_heads + head];
}

/* May any row of the tile that the chunk has see position p? Then, and only then, it is there. */
static __device__ __forceinline__ bool job_needs(const prefill_job &j, int p)
{
    if (p > j.last)
        return false;
    if (j.geom.mask == KV_MASK_TOKEN)
        return p < j.geom.n_sink || p > j.first - j.window;
    return p / TILE < j.geom.n_sink / TILE || p / TILE > j.tile - j.window / TILE;
}

/* Element offset of position p's row in pages or, where *in_chunk says so, in the chunk buffers. */
static __device__ __forceinline__ int64_t row_offset(const attn_prefill_args &a,
                                                     const prefill_job &j, int kv_head,
                                                     int head_dim, int p, bool *in_chunk)
{
    int index;

    *in_chunk = p >= j.pos0;
    if (*in_chunk)
        return ((int64_t)(j.row0 - a.n_decode + p - j.pos0) * a.n_kv_heads + kv_head) * head_dim;
    index = kv_index_of(j.geom, p);
    return j.table[index / a.page_entries] * a.page_elems +
           (int64_t)(index % a.page_entries) * head_dim;
}

/* The tiles of keys that a tile of rows sees: 0 .. n_sink - 1, then window .. tile, none twice. */
struct key_tiles {
    int n_sink, window, n;

    __device__ int at(int i) const
    {
        return i < n_sink ? i : window + i - n_sink;
    }
};

static __device__ key_tiles tiles_of(const prefill_job &j)
{
    key_tiles t;
    int lo;

    if (j.geom.mask == KV_MASK_TOKEN) {
        t.n_sink = (j.geom.n_sink + TILE - 1) / TILE;
        /* By the tile's first position, not the chunk's: the visit must not depend on the cut. */
        lo = j.tile * TILE - j.window + 1;
        t.window = lo > 0 ? lo / TILE : 0;
    } else {
        t.n_sink = j.geom.n_sink / TILE;
        lo = j.tile - j.window / TILE + 1;
        t.window = lo > 0 ? lo : 0;
    }
    t.n_sink = t.n_sink < j.tile + 1 ? t.n_sink : j.tile + 1;
    t.window = t.window > t.n_sink ? t.window : t.n_sink;
    t.n = t.n_sink + (t.window <= j.tile ? j.tile - t.window + 1 : 0);
    return t;
}

/* Do all 64 rows see all keys of the tile? */
static __device__ __forceinline__ bool tile_is_full(const prefill_job &j, int key_tile)
{
    if (key_tile >= j.tile)
        return false;
    if (j.geom.mask != KV_MASK_TOKEN)
        return true; /* tiles_of() lists no others */
    return key_tile * TILE + TILE <= j.geom.n_sink ||
           (j.tile - key_tile) * TILE + TILE - 1 < j.window;
}

static inline attn_prefill_args attn_prefill_args_of(const struct attn_args *p)
{
    attn_prefill_args k = {};

    k.q = p->q;
    k.k_chunk = p->k_chunk;
    k.v_chunk = p->v_chunk;
    k.pages = p->kv->pages;
    k.out = p->out;
    k.page_elems = (int64_t)(p->kv->page_bytes / dtype_bytes(p->kv->dtype));
    k.page_table = p->kv->page_table;
    k.head_base = p->kv->head_base;
    k.geom = p->kv->geom;
    k.window = p->kv->window;
    k.chunks = p->batch->chunks;
    k.n_chunks = p->batch->n_chunks;
    k.n_decode = p->batch->n_decode;
    k.layer = p->layer;
    k.n_layers = p->kv->n_layers;
    k.n_heads = p->n_heads;
    k.n_kv_heads = p->n_kv_heads;
    k.page_entries = p->kv->page_entries;
    k.scale_log2 = p->scale * 1.44269504f;
    return k;
}

#endif
