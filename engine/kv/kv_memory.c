/*
 * kv_memory - the pages and the device's copy of the slot arrays. See kv_memory.h.
 */
#include "engine/kv/kv_memory.h"

int kv_memory_init(struct kv_memory *m, struct backend *be, const struct kv_slots *ks,
                   struct err *err)
{
    const struct kv_shape *shape = &ks->shape;
    size_t n_heads = (size_t)ks->n_slots * kv_shape_heads(shape);
    size_t n_windows = (size_t)ks->n_slots * shape->n_layers * shape->n_heads;
    size_t page_bytes = kv_page_bytes(shape);
    int rc;

    *m = (struct kv_memory){.be = be};
    rc = be->ops->alloc(be, &m->pages, page_bytes * (size_t)ks->pool.n_pages, err);
    if (rc == 0)
        rc = be->ops->alloc(be, &m->page_table, (size_t)ks->table_len * sizeof(int32_t), err);
    if (rc == 0)
        rc = be->ops->alloc(be, &m->head_base, n_heads * sizeof(int32_t), err);
    if (rc == 0)
        rc = be->ops->alloc(be, &m->geom, n_heads * sizeof(struct kv_geom), err);
    if (rc == 0)
        rc = be->ops->alloc(be, &m->window, n_windows * sizeof(int32_t), err);
    if (rc < 0) {
        err_prefix(err, "key-value pool of %d pages of %zu bytes", (int)ks->pool.n_pages,
                   page_bytes);
        kv_memory_release(m);
        return rc;
    }
    m->view = (struct kv_view){.pages = m->pages,
                               .page_bytes = page_bytes,
                               .page_entries = shape->page_entries,
                               .head_dim = shape->head_dim,
                               .n_layers = shape->n_layers,
                               .n_heads = shape->n_heads,
                               .n_kv_heads = shape->n_kv_heads,
                               .dtype = shape->dtype,
                               .page_table = m->page_table,
                               .head_base = m->head_base,
                               .geom = m->geom,
                               .window = m->window};
    return 0;
}

void kv_memory_release(struct kv_memory *m)
{
    if (!m || !m->be)
        return;
    m->be->ops->free(m->be, m->pages);
    m->be->ops->free(m->be, m->page_table);
    m->be->ops->free(m->be, m->head_base);
    m->be->ops->free(m->be, m->geom);
    m->be->ops->free(m->be, m->window);
    *m = (struct kv_memory){0};
}

static int upload(struct kv_memory *m, void *device, const void *host, size_t at, size_t bytes,
                  struct err *err)
{
    return m->be->ops->upload(m->be, (char *)device + at, (const char *)host + at, bytes, err);
}

static int upload_geometry(struct kv_memory *m, const struct kv_slots *ks, size_t slot,
                           struct err *err)
{
    size_t n_heads = (size_t)kv_shape_heads(&ks->shape);
    size_t n_windows = (size_t)ks->shape.n_layers * ks->shape.n_heads;
    int rc = upload(m, m->head_base, ks->head_base, slot * n_heads * sizeof(*ks->head_base),
                    n_heads * sizeof(*ks->head_base), err);

    if (rc == 0)
        rc = upload(m, m->geom, ks->geom, slot * n_heads * sizeof(*ks->geom),
                    n_heads * sizeof(*ks->geom), err);
    if (rc == 0)
        rc = upload(m, m->window, ks->window, slot * n_windows * sizeof(*ks->window),
                    n_windows * sizeof(*ks->window), err);
    return rc;
}

int kv_memory_upload(struct kv_memory *m, struct kv_slots *ks, struct err *err)
{
    for (int slot = 0; slot < ks->n_slots; slot++) {
        struct kv_slot *s = &ks->slots[slot];
        int rc = 0;

        if (!s->used)
            continue;
        if (s->geom_dirty)
            rc = upload_geometry(m, ks, (size_t)slot, err);
        if (rc == 0 && s->table_dirty)
            rc = upload(m, m->page_table, ks->page_table,
                        (size_t)s->table_at * sizeof(*ks->page_table),
                        (size_t)s->table_len * sizeof(*ks->page_table), err);
        if (rc < 0)
            return rc;
        s->geom_dirty = s->table_dirty = false;
    }
    return 0;
}
