/*
 * kv_entry - where the key or value of one position lies in the pages of its head.
 */
#ifndef KV_ENTRY_CUH
#define KV_ENTRY_CUH

#include "engine/backend.h"

/* A layer's pages, as kv_view describes them, with pointers of one element type. */
template <typename T> struct kv_pages {
    T *pages;
    int64_t page_elems;
    const int32_t *page_table, *head_base;
    const struct kv_geom *geom;
    int layer, n_layers, n_kv_heads, head_dim, page_entries;
};

template <typename T> static kv_pages<T> kv_pages_of(const struct kv_view *kv, int layer)
{
    kv_pages<T> p = {};

    p.pages = (T *)kv->pages;
    p.page_elems = (int64_t)(kv->page_bytes / sizeof(T));
    p.page_table = kv->page_table;
    p.head_base = kv->head_base;
    p.geom = kv->geom;
    p.layer = layer;
    p.n_layers = kv->n_layers;
    p.n_kv_heads = kv->n_kv_heads;
    p.head_dim = kv->head_dim;
    p.page_entries = kv->page_entries;
    return p;
}

template <typename T>
static __device__ __forceinline__ T *kv_entry(const kv_pages<T> &p, int slot, int pos, int kv_head,
                                              bool is_v)
{
    int64_t at = ((int64_t)slot * p.n_layers + p.layer) * p.n_kv_heads + kv_head;
    int index = kv_index_of(p.geom[at], pos);
    int page = p.page_table[p.head_base[at] + index / p.page_entries];

    return p.pages + page * p.page_elems +
           (int64_t)(index % p.page_entries + (is_v ? p.page_entries : 0)) * p.head_dim;
}

#endif
