/*
 * kv_snapshot - what the heads kept of earlier prompts. See kv_snapshot.h.
 */
#include "engine/kv/kv_snapshot.h"

#include "base/check.h"
#include "base/err.h"

#include <stdlib.h>
#include <string.h>

#define MAX_SNAPSHOTS 256 /* found by looking at each: a few tens of us among so many */
#define TOKENS_FACTOR 8   /* prompts' tokens kept, in sequences that would fill the pool densely */

struct kv_snapshot {
    struct prefix_key key;
    int64_t tokens_at, pages_at;
    int32_t n_tokens, n_pages;
    uint64_t used; /* the clock's time of last use */
};

int kv_snapshots_init(struct kv_snapshots *c, struct kv_slots *kv, struct err *err)
{
    size_t n_pages = (size_t)kv->pool.n_pages;
    int64_t dense = (int64_t)n_pages / kv_shape_heads(&kv->shape) + 1;

    *c = (struct kv_snapshots){.kv = kv,
                               .tokens_room = TOKENS_FACTOR * dense * kv->shape.page_entries,
                               .pages_room = 4 * (int64_t)n_pages};
    c->list = calloc(MAX_SNAPSHOTS, sizeof(*c->list));
    c->tokens = calloc((size_t)c->tokens_room, sizeof(*c->tokens));
    c->pages = calloc((size_t)c->pages_room, sizeof(*c->pages));
    c->taken = calloc(n_pages, sizeof(*c->taken));
    c->found = calloc(n_pages, sizeof(*c->found));
    c->into = (struct kv_copies){.src = calloc(n_pages, sizeof(int32_t)),
                                 .dst = calloc(n_pages, sizeof(int32_t))};
    c->out_of = (struct kv_copies){.src = calloc(n_pages, sizeof(int32_t)),
                                   .dst = calloc(n_pages, sizeof(int32_t))};
    if (!c->list || !c->tokens || !c->pages || !c->taken || !c->found || !c->into.src ||
        !c->into.dst || !c->out_of.src || !c->out_of.dst) {
        kv_snapshots_release(c);
        return err_set(err, ERR_NO_ROOM, "snapshots: no memory for %zu pages", n_pages);
    }
    return 0;
}

void kv_snapshots_release(struct kv_snapshots *c)
{
    free(c->list);
    free(c->tokens);
    free(c->pages);
    free(c->taken);
    free(c->found);
    free(c->into.src);
    free(c->into.dst);
    free(c->out_of.src);
    free(c->out_of.dst);
    *c = (struct kv_snapshots){0};
}

static bool same_key(struct prefix_key a, struct prefix_key b)
{
    return a.a == b.a && a.b == b.b;
}

static int32_t n_same(const int32_t *a, const int32_t *b, int32_t n)
{
    int32_t i = 0;

    while (i + 64 <= n && !memcmp(a + i, b + i, 64 * sizeof(*a)))
        i += 64;
    while (i < n && a[i] == b[i])
        i++;
    return i;
}

struct kv_snapshot_hit kv_snapshot_find(struct kv_snapshots *c, struct prefix_key key,
                                        const int32_t *tokens, int32_t n)
{
    int32_t page = c->kv->shape.page_entries;
    struct kv_snapshot_hit hit = {0};
    struct kv_snapshot *best = NULL;

    for (int i = 0; i < c->n - c->n_pending; i++) {
        struct kv_snapshot *s = &c->list[i];
        int32_t same;

        if (!same_key(s->key, key))
            continue;
        same = n_same(&c->tokens[s->tokens_at], tokens, s->n_tokens < n ? s->n_tokens : n);
        if (same / page * page > hit.n_common)
            hit.n_common = same / page * page;
        if (same == s->n_tokens && same > hit.n_tokens) {
            hit.n_tokens = same;
            best = s;
        }
    }
    if (best) {
        best->used = ++c->clock;
        /* Whoever takes pages may drop snapshots, and then the lists move. */
        memcpy(c->found, &c->pages[best->pages_at], (size_t)best->n_pages * sizeof(*c->found));
        hit.pages = c->found;
    }
    return hit;
}

/* Takes entry i out of the arrays; its references are the caller's to drop. */
static void forget(struct kv_snapshots *c, int i)
{
    struct kv_snapshot gone = c->list[i];
    int64_t tokens_end = gone.tokens_at + gone.n_tokens;
    int64_t pages_end = gone.pages_at + gone.n_pages;

    memmove(&c->tokens[gone.tokens_at], &c->tokens[tokens_end],
            (size_t)(c->n_tokens - tokens_end) * sizeof(*c->tokens));
    memmove(&c->pages[gone.pages_at], &c->pages[pages_end],
            (size_t)(c->n_pages - pages_end) * sizeof(*c->pages));
    c->n_tokens -= gone.n_tokens;
    c->n_pages -= gone.n_pages;
    memmove(&c->list[i], &c->list[i + 1], (size_t)(c->n - i - 1) * sizeof(*c->list));
    c->n--;
    for (; i < c->n; i++) {
        c->list[i].tokens_at -= gone.n_tokens;
        c->list[i].pages_at -= gone.n_pages;
    }
}

bool kv_snapshots_drop_oldest(struct kv_snapshots *c)
{
    const struct kv_snapshot *s;
    int oldest = 0;

    if (c->n == c->n_pending)
        return false;
    for (int i = 1; i < c->n - c->n_pending; i++) {
        if (c->list[i].used < c->list[oldest].used)
            oldest = i;
    }
    s = &c->list[oldest];
    for (int32_t p = 0; p < s->n_pages; p++)
        kv_pool_uncache(&c->kv->pool, c->pages[s->pages_at + p]);
    forget(c, oldest);
    return true;
}

/* Is there one of these tokens, pending ones included? Then it was used. */
static bool is_known(struct kv_snapshots *c, struct prefix_key key, const int32_t *tokens,
                     int32_t n)
{
    for (int i = 0; i < c->n; i++) {
        struct kv_snapshot *s = &c->list[i];

        if (s->n_tokens == n && same_key(s->key, key) &&
            n_same(&c->tokens[s->tokens_at], tokens, n) == n) {
            s->used = ++c->clock;
            return true;
        }
    }
    return false;
}

/* Room in the arrays, at the expense of others. */
static bool make_room(struct kv_snapshots *c, int32_t n_tokens, int64_t n_pages)
{
    if (n_tokens > c->tokens_room || n_pages > c->pages_room)
        return false;
    while (c->n == MAX_SNAPSHOTS || c->n_tokens + n_tokens > c->tokens_room ||
           c->n_pages + n_pages > c->pages_room) {
        if (!kv_snapshots_drop_oldest(c))
            return false;
    }
    return true;
}

/* The pages that n tokens take of a slot's heads; *n_copies of them will be written again. */
static int64_t count_pages(const struct kv_slots *kv, int slot, int32_t n, int64_t *n_copies)
{
    int n_heads = kv_shape_heads(&kv->shape), page_entries = kv->shape.page_entries;
    int64_t n_pages = 0;

    *n_copies = 0;
    for (int h = 0; h < n_heads; h++) {
        struct kv_geom g = kv->geom[(size_t)slot * n_heads + h];
        int64_t held = kv_geom_pages(g, n, page_entries);

        n_pages += held;
        for (int64_t p = 0; p < held; p++)
            *n_copies += !kv_geom_page_is_final(g, p, n, kv->slots[slot].n_limit, page_entries);
    }
    return n_pages;
}

/* References to the pages, head after head, into c->taken; copies are ordered where needed. */
static void take_pages(struct kv_snapshots *c, int slot, int32_t n)
{
    const struct kv_slots *kv = c->kv;
    int n_heads = kv_shape_heads(&kv->shape), page_entries = kv->shape.page_entries;
    int32_t *out = c->taken;

    for (int h = 0; h < n_heads; h++) {
        size_t at = (size_t)slot * n_heads + h;
        int64_t held = kv_geom_pages(kv->geom[at], n, page_entries);

        CHECK(held <= kv->head_pages[at]);
        for (int64_t p = 0; p < held; p++) {
            int32_t page = kv->page_table[kv->head_base[at] + p];

            if (kv_geom_page_is_final(kv->geom[at], p, n, kv->slots[slot].n_limit, page_entries)) {
                kv_pool_share(&c->kv->pool, page);
                *out++ = page;
                continue;
            }
            *out = kv_pool_take(&c->kv->pool);
            kv_copies_add(&c->into, page, *out++);
        }
    }
}

void kv_snapshot_add(struct kv_snapshots *c, struct prefix_key key, const int32_t *tokens,
                     int32_t n, int slot)
{
    int64_t n_pages, n_copies;
    struct kv_snapshot *s;

    if (is_known(c, key, tokens, n))
        return;
    n_pages = count_pages(c->kv, slot, n, &n_copies);
    if (!make_room(c, n, n_pages) || n_pages > c->kv->pool.n_pages ||
        !kv_pool_has_room(&c->kv->pool, n_copies))
        return;
    /* May drop others, so the arrays are filled afterwards. */
    take_pages(c, slot, n);
    s = &c->list[c->n++];
    c->n_pending++;
    *s = (struct kv_snapshot){.key = key,
                              .tokens_at = c->n_tokens,
                              .pages_at = c->n_pages,
                              .n_tokens = n,
                              .n_pages = (int32_t)n_pages,
                              .used = ++c->clock};
    memcpy(&c->tokens[s->tokens_at], tokens, (size_t)n * sizeof(*tokens));
    memcpy(&c->pages[s->pages_at], c->taken, (size_t)n_pages * sizeof(*c->pages));
    c->n_tokens += n;
    c->n_pages += n_pages;
}

void kv_snapshots_commit(struct kv_snapshots *c)
{
    for (; c->n_pending > 0; c->n_pending--) {
        const struct kv_snapshot *s = &c->list[c->n - c->n_pending];

        for (int32_t p = 0; p < s->n_pages; p++) {
            kv_pool_cache(&c->kv->pool, c->pages[s->pages_at + p]);
            kv_pool_give(&c->kv->pool, c->pages[s->pages_at + p]);
        }
    }
    for (int32_t i = 0; i < c->out_of.n; i++)
        kv_pool_give(&c->kv->pool, c->out_of.src[i]);
    c->into.n = c->out_of.n = 0;
}

void kv_snapshots_count_refs(const struct kv_snapshots *c, int32_t *refs)
{
    for (int64_t i = 0; i < c->n_pages; i++)
        refs[c->pages[i]]++;
    for (int32_t i = 0; i < c->out_of.n; i++)
        refs[c->out_of.src[i]]++;
}
