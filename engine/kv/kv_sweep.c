/*
 * kv_sweep - proves that every page has exactly one owner. See kv_sweep.h.
 */
#include "engine/kv/kv_sweep.h"

#include "base/err.h"

#include <stdlib.h>

/* The free list names free pages, each once. */
static int check_free(const struct kv_pool *pool, int32_t *seen, struct err *err)
{
    for (int32_t i = 0; i < pool->n_free; i++) {
        int32_t page = pool->free_pages[i];

        if (page < 0 || page >= pool->n_pages)
            return err_set(err, ERR_INVALID, "the free list names page %d of %d", (int)page,
                           (int)pool->n_pages);
        if (seen[page]++)
            return err_set(err, ERR_INVALID, "page %d is twice in the free list", (int)page);
        if (pool->n_refs[page])
            return err_set(err, ERR_INVALID, "page %d is free and has %d references", (int)page,
                           (int)pool->n_refs[page]);
    }
    return 0;
}

/* One head's run: inside its slot's range, as long as its tokens need, counted in refs. */
static int check_head(const struct kv_slots *ks, int slot, int head, int64_t *base, int32_t *refs,
                      struct err *err)
{
    size_t at = (size_t)slot * kv_shape_heads(&ks->shape) + head;
    const struct kv_slot *s = &ks->slots[slot];
    int64_t most = kv_geom_pages(ks->geom[at], s->n_limit, ks->shape.page_entries);
    int64_t least = kv_geom_pages(ks->geom[at], s->n_room, ks->shape.page_entries);

    if (ks->head_base[at] != *base)
        return err_set(err, ERR_INVALID, "slot %d head %d starts at entry %d, not %lld", slot, head,
                       (int)ks->head_base[at], (long long)*base);
    if (ks->head_pages[at] < least || ks->head_pages[at] > most)
        return err_set(err, ERR_INVALID, "slot %d head %d has %d pages, not %lld..%lld", slot, head,
                       (int)ks->head_pages[at], (long long)least, (long long)most);
    for (int32_t i = 0; i < ks->head_pages[at]; i++) {
        int32_t page = ks->page_table[*base + i];

        if (page < 0 || page >= ks->pool.n_pages)
            return err_set(err, ERR_INVALID, "slot %d head %d names page %d of %d", slot, head,
                           (int)page, (int)ks->pool.n_pages);
        refs[page]++;
    }
    *base += most;
    return 0;
}

static int check_slot(const struct kv_slots *ks, int slot, struct kv_sweep *out, int32_t *refs,
                      struct err *err)
{
    const struct kv_slot *s = &ks->slots[slot];
    int64_t base = s->table_at, n_pages = 0;

    for (int head = 0; head < kv_shape_heads(&ks->shape); head++) {
        int rc = check_head(ks, slot, head, &base, refs, err);

        if (rc < 0)
            return rc;
        n_pages += ks->head_pages[(size_t)slot * kv_shape_heads(&ks->shape) + head];
    }
    out->n_named += n_pages;
    if (base != s->table_at + s->table_len)
        return err_set(err, ERR_INVALID, "slot %d fills %lld entries of its %lld", slot,
                       (long long)(base - s->table_at), (long long)s->table_len);
    if (n_pages != s->n_pages)
        return err_set(err, ERR_INVALID, "slot %d holds %lld pages and counts %lld", slot,
                       (long long)n_pages, (long long)s->n_pages);
    if (!s->growable && n_pages != s->table_len)
        return err_set(err, ERR_INVALID, "slot %d has a fixed size and %lld pages of %lld", slot,
                       (long long)n_pages, (long long)s->table_len);
    return 0;
}

/* The slots in use, in the order of their ranges: none overlaps the next or the table's end. */
static int check_ranges(const struct kv_slots *ks, struct err *err)
{
    int64_t end = 0;
    int n_used = 0;

    for (int i = 0; i < ks->n_slots; i++)
        n_used += ks->slots[i].used;
    if (n_used != ks->n_used)
        return err_set(err, ERR_INVALID, "%d slots are in use, %d are counted", n_used, ks->n_used);
    for (int i = 0; i < ks->n_used; i++) {
        const struct kv_slot *s = &ks->slots[ks->by_table[i]];

        if (!s->used || s->table_at < end || s->table_at + s->table_len > ks->table_len)
            return err_set(err, ERR_INVALID,
                           "slot %d has entries %lld..%lld, those before end %lld", ks->by_table[i],
                           (long long)s->table_at, (long long)(s->table_at + s->table_len - 1),
                           (long long)end);
        end = s->table_at + s->table_len;
    }
    return 0;
}

static int check_pages(const struct kv_slots *ks, const int32_t *seen, const int32_t *refs,
                       struct kv_sweep *out, struct err *err)
{
    for (int32_t page = 0; page < ks->pool.n_pages; page++) {
        if (refs[page] != ks->pool.n_refs[page])
            return err_set(err, ERR_INVALID, "page %d has %d owners and %d references", (int)page,
                           (int)refs[page], (int)ks->pool.n_refs[page]);
        if (!refs[page] && !seen[page])
            return err_set(err, ERR_INVALID, "page %d is lost: neither held nor free", (int)page);
        out->n_held += refs[page] > 0;
        out->n_shared += refs[page] > 1;
    }
    out->n_free = ks->pool.n_free;
    return 0;
}

int kv_sweep_slots(struct kv_sweep *out, const struct kv_slots *ks, const int32_t *other_refs,
                   struct err *err)
{
    int32_t *seen = calloc((size_t)ks->pool.n_pages, sizeof(*seen));
    int32_t *refs = calloc((size_t)ks->pool.n_pages, sizeof(*refs));
    int rc;

    *out = (struct kv_sweep){0};
    if (!seen || !refs) {
        rc = err_set(err, ERR_NO_ROOM, "no memory to check %d pages", (int)ks->pool.n_pages);
        goto out;
    }
    for (int32_t page = 0; other_refs && page < ks->pool.n_pages; page++)
        refs[page] = other_refs[page];
    rc = check_free(&ks->pool, seen, err);
    if (rc == 0)
        rc = check_ranges(ks, err);
    for (int slot = 0; rc == 0 && slot < ks->n_slots; slot++) {
        if (ks->slots[slot].used)
            rc = check_slot(ks, slot, out, refs, err);
    }
    if (rc == 0)
        rc = check_pages(ks, seen, refs, out, err);
out:
    free(seen);
    free(refs);
    return rc;
}
