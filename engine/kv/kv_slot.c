/*
 * kv_slot - the seats of running sequences. See kv_slot.h.
 */
#include "engine/kv/kv_slot.h"

#include "base/check.h"
#include "base/err.h"

#include <stdlib.h>
#include <string.h>

int kv_slots_init(struct kv_slots *ks, const struct kv_shape *shape, int n_slots, int32_t n_pages,
                  int64_t table_len, struct err *err)
{
    size_t n_kv = (size_t)n_slots * kv_shape_heads(shape);
    size_t n_q = (size_t)n_slots * shape->n_layers * shape->n_heads;
    int rc;

    CHECK(n_slots > 0);
    CHECK(KV_TILE % shape->page_entries == 0);
    CHECK(table_len > 0 && table_len <= INT32_MAX);
    *ks = (struct kv_slots){.shape = *shape, .n_slots = n_slots, .table_len = table_len};
    rc = kv_pool_init(&ks->pool, n_pages, err);
    if (rc < 0)
        return rc;
    ks->slots = calloc((size_t)n_slots, sizeof(*ks->slots));
    ks->by_table = calloc((size_t)n_slots, sizeof(*ks->by_table));
    ks->page_table = calloc((size_t)table_len, sizeof(*ks->page_table));
    ks->head_base = calloc(n_kv, sizeof(*ks->head_base));
    ks->head_pages = calloc(n_kv, sizeof(*ks->head_pages));
    ks->geom = calloc(n_kv, sizeof(*ks->geom));
    ks->window = calloc(n_q, sizeof(*ks->window));
    if (!ks->slots || !ks->by_table || !ks->page_table || !ks->head_base || !ks->head_pages ||
        !ks->geom || !ks->window) {
        kv_slots_release(ks);
        return err_set(err, ERR_NO_ROOM, "page table: no memory for %d slots and %lld entries",
                       n_slots, (long long)table_len);
    }
    return 0;
}

void kv_slots_release(struct kv_slots *ks)
{
    if (!ks)
        return;
    kv_pool_release(&ks->pool);
    free(ks->slots);
    free(ks->by_table);
    free(ks->page_table);
    free(ks->head_base);
    free(ks->head_pages);
    free(ks->geom);
    free(ks->window);
    *ks = (struct kv_slots){0};
}

static int64_t pages_for(const struct kv_geom *geom, const struct kv_shape *shape, int32_t n_tokens)
{
    int64_t n_pages = 0;

    for (int i = 0; i < kv_shape_heads(shape); i++)
        n_pages += kv_geom_pages(geom[i], n_tokens, shape->page_entries);
    return n_pages;
}

void kv_need_init(struct kv_need *need, const struct kv_shape *shape, const struct kv_geom *geom,
                  const int32_t *window, int32_t n_limit)
{
    bool growable = true;

    for (int i = 0; i < kv_shape_heads(shape); i++)
        growable = growable && kv_geom_keeps_all(geom[i], n_limit);
    *need = (struct kv_need){.geom = geom,
                             .window = window,
                             .n_limit = n_limit,
                             .growable = growable,
                             .n_pages_limit = pages_for(geom, shape, n_limit)};
}

int64_t kv_need_pages(const struct kv_need *need, const struct kv_shape *shape, int32_t n_tokens)
{
    return need->growable ? pages_for(need->geom, shape, n_tokens) : need->n_pages_limit;
}

bool kv_slots_could_hold(const struct kv_slots *ks, const struct kv_need *need)
{
    return need->n_pages_limit <= ks->pool.n_pages && need->n_pages_limit <= ks->table_len;
}

/* First fit. Sets *order to where the range goes in by_table; -1 when there is no gap. */
static int64_t range_find(const struct kv_slots *ks, int64_t len, int *order)
{
    int64_t at = 0;

    for (int i = 0; i < ks->n_used; i++) {
        const struct kv_slot *s = &ks->slots[ks->by_table[i]];

        if (s->table_at - at >= len) {
            *order = i;
            return at;
        }
        at = s->table_at + s->table_len;
    }
    *order = ks->n_used;
    return ks->table_len - at >= len ? at : -1;
}

/* The caller knows that the pool has enough. */
static void take_pages(struct kv_slots *ks, int slot, int32_t n_tokens)
{
    struct kv_slot *s = &ks->slots[slot];
    int n_heads = kv_shape_heads(&ks->shape);
    size_t at = (size_t)slot * n_heads;
    int32_t room = INT32_MAX;

    for (int i = 0; i < n_heads; i++) {
        struct kv_geom g = ks->geom[at + i];
        int64_t want = kv_geom_pages(g, n_tokens, ks->shape.page_entries);
        int32_t head_room;

        while (ks->head_pages[at + i] < want) {
            ks->page_table[ks->head_base[at + i] + ks->head_pages[at + i]] =
                kv_pool_take(&ks->pool);
            ks->head_pages[at + i]++;
            s->n_pages++;
            s->table_dirty = true;
        }
        head_room = kv_geom_room(g, ks->head_pages[at + i], ks->shape.page_entries);
        room = head_room < room ? head_room : room;
    }
    CHECK(s->n_pages <= s->table_len);
    s->n_room = room < s->n_limit ? room : s->n_limit;
}

static void hold_pages(struct kv_slots *ks, const int32_t *pages, int64_t n, bool hold)
{
    for (int64_t i = 0; i < n; i++) {
        if (hold)
            kv_pool_share(&ks->pool, pages[i]);
        else
            kv_pool_give(&ks->pool, pages[i]);
    }
}

/* References to the shared pages, so that nobody reclaims them while others are taken. */
static void hold_shared(struct kv_slots *ks, const struct kv_shared *shared, bool hold)
{
    int n_heads = kv_shape_heads(&ks->shape);

    if (shared)
        hold_pages(ks, shared->pages, (int64_t)shared->n * n_heads, hold);
    if (shared && shared->part)
        hold_pages(ks, shared->part, n_heads, hold);
}

/* The slot's first pages; their references are held already. */
static void put_shared(struct kv_slots *ks, int slot, const struct kv_shared *shared)
{
    int n_heads = kv_shape_heads(&ks->shape);
    size_t at = (size_t)slot * n_heads;

    for (int i = 0; shared && i < n_heads; i++) {
        for (int32_t p = 0; p < shared->n; p++)
            ks->page_table[ks->head_base[at + i] + p] = shared->pages[(int64_t)p * n_heads + i];
        ks->head_pages[at + i] = shared->n;
        ks->slots[slot].n_pages += shared->n;
        ks->slots[slot].n_shared += shared->n;
    }
}

/* Copies of the part into the pages behind the shared ones; its references are held already. */
static void copy_part(const struct kv_slots *ks, int slot, const struct kv_shared *shared,
                      struct kv_copies *copies)
{
    int n_heads = kv_shape_heads(&ks->shape);
    size_t at = (size_t)slot * n_heads;

    for (int i = 0; i < n_heads; i++) {
        CHECK(ks->head_pages[at + i] > shared->n);
        kv_copies_add(copies, shared->part[i], ks->page_table[ks->head_base[at + i] + shared->n]);
    }
}

static bool has_seat(const struct kv_slots *ks, const struct kv_need *need)
{
    int order;

    return ks->n_used < ks->n_slots && range_find(ks, need->n_pages_limit, &order) >= 0;
}

/* A slot without pages; has_seat() said that there is one. */
static int seat(struct kv_slots *ks, const struct kv_need *need)
{
    int n_heads = kv_shape_heads(&ks->shape);
    int n_windows = ks->shape.n_layers * ks->shape.n_heads;
    int slot = 0, order;
    int64_t table_at = range_find(ks, need->n_pages_limit, &order), base = table_at;

    while (ks->slots[slot].used)
        slot++;
    memmove(&ks->by_table[order + 1], &ks->by_table[order],
            (size_t)(ks->n_used - order) * sizeof(*ks->by_table));
    ks->by_table[order] = slot;
    ks->n_used++;
    ks->slots[slot] = (struct kv_slot){.used = true,
                                       .growable = need->growable,
                                       .geom_dirty = true,
                                       .table_dirty = true,
                                       .n_limit = need->n_limit,
                                       .table_at = table_at,
                                       .table_len = need->n_pages_limit};
    for (int i = 0; i < n_heads; i++) {
        size_t at = (size_t)slot * n_heads + i;

        ks->geom[at] = need->geom[i];
        ks->head_base[at] = (int32_t)base;
        ks->head_pages[at] = 0;
        base += kv_geom_pages(need->geom[i], need->n_limit, ks->shape.page_entries);
    }
    CHECK(base == table_at + need->n_pages_limit);
    memcpy(&ks->window[(size_t)slot * n_windows], need->window,
           (size_t)n_windows * sizeof(*ks->window));
    return slot;
}

int kv_slot_take_shared(struct kv_slots *ks, const struct kv_need *need, int32_t n_tokens,
                        int64_t headroom, const struct kv_shared *shared, struct kv_copies *copies)
{
    int64_t n_shared = shared ? (int64_t)shared->n * kv_shape_heads(&ks->shape) : 0;
    int slot;

    CHECK(n_tokens <= need->n_limit);
    if (!need->growable)
        n_tokens = need->n_limit;
    if (!has_seat(ks, need))
        return ERR_NO_ROOM;
    hold_shared(ks, shared, true);
    if (!kv_pool_has_room(&ks->pool,
                          kv_need_pages(need, &ks->shape, n_tokens) - n_shared + headroom)) {
        hold_shared(ks, shared, false);
        return ERR_NO_ROOM;
    }
    slot = seat(ks, need);
    put_shared(ks, slot, shared);
    take_pages(ks, slot, n_tokens);
    if (shared && shared->part)
        copy_part(ks, slot, shared, copies);
    return slot;
}

/* Adds or drops the references that kv_slot_take_copied() promises; returns the shared pages. */
static int64_t hold_copied(struct kv_slots *ks, const struct kv_need *need, int32_t n_tokens,
                           const int32_t *pages, bool hold)
{
    int page_entries = ks->shape.page_entries;
    int64_t n_shared = 0;

    for (int i = 0; i < kv_shape_heads(&ks->shape); i++) {
        int64_t held = kv_geom_pages(need->geom[i], n_tokens, page_entries);

        for (int64_t p = 0; p < held; p++) {
            if (hold)
                kv_pool_share(&ks->pool, *pages++);
            else
                kv_pool_give(&ks->pool, *pages++);
            n_shared +=
                kv_geom_page_is_final(need->geom[i], p, n_tokens, need->n_limit, page_entries);
        }
    }
    return n_shared;
}

/* The slot's first pages: held ones that are final, and places for copies of the others. */
static void put_copied(struct kv_slots *ks, int slot, int32_t n_tokens, const int32_t *pages,
                       struct kv_copies *copies)
{
    int n_heads = kv_shape_heads(&ks->shape), page_entries = ks->shape.page_entries;
    struct kv_slot *s = &ks->slots[slot];

    for (int i = 0; i < n_heads; i++) {
        size_t at = (size_t)slot * n_heads + i;
        int64_t held = kv_geom_pages(ks->geom[at], n_tokens, page_entries);

        for (int64_t p = 0; p < held; p++, pages++) {
            int32_t page = *pages;

            if (kv_geom_page_is_final(ks->geom[at], p, n_tokens, s->n_limit, page_entries)) {
                s->n_shared++;
            } else {
                page = kv_pool_take(&ks->pool);
                kv_copies_add(copies, *pages, page);
            }
            ks->page_table[ks->head_base[at] + p] = page;
        }
        ks->head_pages[at] = (int32_t)held;
        s->n_pages += held;
    }
}

int kv_slot_take_copied(struct kv_slots *ks, const struct kv_need *need, int32_t n_tokens,
                        int64_t headroom, const int32_t *pages, struct kv_copies *copies)
{
    int64_t n_shared;
    int slot;

    CHECK(!need->growable);
    CHECK(n_tokens <= need->n_limit);
    if (!has_seat(ks, need))
        return ERR_NO_ROOM;
    n_shared = hold_copied(ks, need, n_tokens, pages, true);
    if (!kv_pool_has_room(&ks->pool, need->n_pages_limit - n_shared + headroom)) {
        hold_copied(ks, need, n_tokens, pages, false);
        return ERR_NO_ROOM;
    }
    slot = seat(ks, need);
    put_copied(ks, slot, n_tokens, pages, copies);
    take_pages(ks, slot, need->n_limit);
    return slot;
}

bool kv_slot_grow(struct kv_slots *ks, int slot, int32_t n_tokens)
{
    struct kv_slot *s = &ks->slots[slot];
    const struct kv_geom *geom = &ks->geom[(size_t)slot * kv_shape_heads(&ks->shape)];

    CHECK(s->used);
    CHECK(n_tokens <= s->n_limit);
    if (n_tokens <= s->n_room)
        return true;
    CHECK(s->growable);
    if (!kv_pool_has_room(&ks->pool, pages_for(geom, &ks->shape, n_tokens) - s->n_pages))
        return false;
    take_pages(ks, slot, n_tokens);
    return true;
}

void kv_slot_give(struct kv_slots *ks, int slot)
{
    struct kv_slot *s = &ks->slots[slot];
    int n_heads = kv_shape_heads(&ks->shape);
    int order = 0;

    CHECK(s->used);
    for (int i = 0; i < n_heads; i++) {
        size_t at = (size_t)slot * n_heads + i;

        for (int32_t p = 0; p < ks->head_pages[at]; p++)
            kv_pool_give(&ks->pool, ks->page_table[ks->head_base[at] + p]);
        ks->head_pages[at] = 0;
    }
    while (ks->by_table[order] != slot)
        order++;
    ks->n_used--;
    memmove(&ks->by_table[order], &ks->by_table[order + 1],
            (size_t)(ks->n_used - order) * sizeof(*ks->by_table));
    *s = (struct kv_slot){0};
}
