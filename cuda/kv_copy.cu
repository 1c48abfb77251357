/*
 * kv_copy.cu - whole pages from place to place; and kv_append, prompt rows into their pages.
 *
 *   k_chunk, v_chunk  kv  [n_rows - n_decode, n_kv_heads, head_dim]
 *   pages             kv  [n_pages, 2, page_entries, head_dim]
 *
 * Work     copy: one CTA per page; append: one warp per (row, kv_head)
 * Bound    HBM: twice the bytes moved
 * Limits   head_dim a multiple of 8; page ids of a copy travel in the launch, 256 pairs at a time
 * Checked  against cpu in tests/cuda/test_attn.c
 */
#include "cuda/cuda_backend.h"
#include "cuda/device.cuh"

#define COPY_PAIRS   256 /* 2 KiB of the 4 KiB that a launch may carry */
#define COPY_THREADS 256
#define APPEND_WARPS 4

struct kv_copy_kernel_args {
    uint4 *pages;
    int64_t page_vecs;
    int32_t src[COPY_PAIRS], dst[COPY_PAIRS];
};

/* CTA -> page */
static __global__ void __launch_bounds__(COPY_THREADS)
    kv_copy_kernel(const __grid_constant__ kv_copy_kernel_args a)
{
    const uint4 *src = a.pages + a.src[blockIdx.x] * a.page_vecs;
    uint4 *dst = a.pages + a.dst[blockIdx.x] * a.page_vecs;

    for (int64_t i = threadIdx.x; i < a.page_vecs; i += COPY_THREADS)
        dst[i] = src[i];
}

struct kv_append_kernel_args {
    const uint4 *k, *v; /* [n_rows, n_kv_heads, row_vecs] */
    uint4 *pages;
    int64_t page_vecs;
    const int32_t *page_table, *head_base;
    const struct kv_geom *geom;
    const int32_t *pos, *slot; /* of the first prompt row */
    const struct step_chunk *chunks;
    int n_chunks, n_decode, n_rows, layer, n_layers, n_kv_heads, row_vecs, page_entries;
};

/* The last position of the chunk that holds `row`; every lane gets it. */
static __device__ int chunk_last_pos(const struct step_chunk *chunks, int n_chunks, int row)
{
    int lane = threadIdx.x % WARP_LANES;

    for (int base = 0; base < n_chunks; base += WARP_LANES) {
        int i = base + lane, last = 0;
        bool hit = false;

        if (i < n_chunks) {
            hit = row >= chunks[i].row0 && row < chunks[i].row0 + chunks[i].n_rows;
            last = chunks[i].pos0 + chunks[i].n_rows - 1;
        }
        unsigned hits = __ballot_sync(0xffffffffu, hit);
        if (hits)
            return __shfl_sync(0xffffffffu, last, __ffs(hits) - 1);
    }
    return -1;
}

/* warp -> (prompt row, kv_head) */
static __global__ void __launch_bounds__(APPEND_WARPS *WARP_LANES)
    kv_append_kernel(const __grid_constant__ kv_append_kernel_args a)
{
    int64_t at = (int64_t)blockIdx.x * APPEND_WARPS + threadIdx.x / WARP_LANES;
    int row = (int)(at / a.n_kv_heads), head = (int)(at % a.n_kv_heads);
    int lane = threadIdx.x % WARP_LANES, pos, last, index;
    int64_t geom_at;
    struct kv_geom g;
    uint4 *entry;

    if (row >= a.n_rows)
        return;
    pos = a.pos[row];
    last = chunk_last_pos(a.chunks, a.n_chunks, row + a.n_decode);
    geom_at = ((int64_t)a.slot[row] * a.n_layers + a.layer) * a.n_kv_heads + head;
    g = a.geom[geom_at];
    if (pos >= g.n_sink && pos <= last - g.ring)
        return; /* a later row of the chunk takes its place in the ring */
    index = kv_index_of(g, pos);
    entry = a.pages + a.page_table[a.head_base[geom_at] + index / a.page_entries] * a.page_vecs +
            index % a.page_entries * a.row_vecs;
    for (int i = lane; i < a.row_vecs; i += WARP_LANES) {
        entry[i] = a.k[at * a.row_vecs + i];
        entry[(int64_t)a.page_entries * a.row_vecs + i] = a.v[at * a.row_vecs + i];
    }
}

int kv_copy_launch(struct cuda_backend *cb, const struct kv_copy_args *c, struct err *err)
{
    for (int done = 0; done < c->n_pages; done += COPY_PAIRS) {
        struct kv_copy_kernel_args k = {};
        int n = c->n_pages - done < COPY_PAIRS ? c->n_pages - done : COPY_PAIRS;
        int rc;

        k.pages = (uint4 *)c->kv->pages;
        k.page_vecs = (int64_t)(c->kv->page_bytes / sizeof(uint4));
        for (int i = 0; i < n; i++) {
            k.src[i] = c->src[done + i];
            k.dst[i] = c->dst[done + i];
        }
        kv_copy_kernel<<<n, COPY_THREADS, 0, cb->stream>>>(k);
        rc = cuda_launched(cb, "kv_copy", err);
        if (rc < 0)
            return rc;
    }
    return 0;
}

int kv_append_launch(struct cuda_backend *cb, const struct kv_append_args *p, struct err *err)
{
    const struct step_batch *b = p->batch;
    struct kv_append_kernel_args k = {};
    int64_t n_warps;

    k.n_rows = b->n_rows - b->n_decode;
    if (k.n_rows == 0)
        return 0;
    k.k = (const uint4 *)p->k_chunk;
    k.v = (const uint4 *)p->v_chunk;
    k.pages = (uint4 *)p->kv->pages;
    k.page_vecs = (int64_t)(p->kv->page_bytes / sizeof(uint4));
    k.page_table = p->kv->page_table;
    k.head_base = p->kv->head_base;
    k.geom = p->kv->geom;
    k.pos = b->pos + b->n_decode;
    k.slot = b->slot + b->n_decode;
    k.chunks = b->chunks;
    k.n_chunks = b->n_chunks;
    k.n_decode = b->n_decode;
    k.layer = p->layer;
    k.n_layers = p->kv->n_layers;
    k.n_kv_heads = p->n_kv_heads;
    k.row_vecs = (int)(p->head_dim * dtype_bytes(p->kv->dtype) / sizeof(uint4));
    k.page_entries = p->kv->page_entries;
    n_warps = (int64_t)k.n_rows * p->n_kv_heads;
    kv_append_kernel<<<(unsigned)((n_warps + APPEND_WARPS - 1) / APPEND_WARPS),
                       APPEND_WARPS * WARP_LANES, 0, cb->stream>>>(k);
    return cuda_launched(cb, "kv_append", err);
}
