/*
 * kv_pool - pages by number. See kv_pool.h.
 */
#include "engine/kv/kv_pool.h"

#include "base/check.h"
#include "base/err.h"
#include "base/rng.h"

#include <stdlib.h>

int kv_pool_init(struct kv_pool *pool, int32_t n_pages, struct err *err)
{
    CHECK(n_pages > 0);
    *pool = (struct kv_pool){.n_pages = n_pages, .n_free = n_pages};
    pool->free_pages = calloc((size_t)n_pages, sizeof(*pool->free_pages));
    pool->n_refs = calloc((size_t)n_pages, sizeof(*pool->n_refs));
    pool->n_cached = calloc((size_t)n_pages, sizeof(*pool->n_cached));
    if (!pool->free_pages || !pool->n_refs || !pool->n_cached) {
        kv_pool_release(pool);
        return err_set(err, ERR_NO_ROOM, "page lists: no memory for %d pages", (int)n_pages);
    }
    /* Top of the stack is page 0, so that a quiet pool uses its first pages over and over. */
    for (int32_t i = 0; i < n_pages; i++)
        pool->free_pages[i] = n_pages - 1 - i;
    return 0;
}

void kv_pool_release(struct kv_pool *pool)
{
    if (!pool)
        return;
    free(pool->free_pages);
    free(pool->n_refs);
    free(pool->n_cached);
    *pool = (struct kv_pool){0};
}

int32_t kv_pool_take(struct kv_pool *pool)
{
    int32_t page;

    while (pool->n_free == 0)
        CHECK(pool->reclaim && pool->reclaim(pool->reclaim_arg));
    page = pool->free_pages[--pool->n_free];
    CHECK(pool->n_refs[page] == 0);
    pool->n_refs[page] = 1;
    return page;
}

static bool is_idle(const struct kv_pool *pool, int32_t page)
{
    return pool->n_refs[page] > 0 && pool->n_refs[page] == pool->n_cached[page];
}

void kv_pool_share(struct kv_pool *pool, int32_t page)
{
    CHECK(page >= 0 && page < pool->n_pages);
    CHECK(pool->n_refs[page] > 0);
    pool->n_idle -= is_idle(pool, page);
    pool->n_refs[page]++;
}

void kv_pool_give(struct kv_pool *pool, int32_t page)
{
    CHECK(page >= 0 && page < pool->n_pages);
    CHECK(pool->n_refs[page] > pool->n_cached[page]);
    if (--pool->n_refs[page] == 0)
        pool->free_pages[pool->n_free++] = page;
    pool->n_idle += is_idle(pool, page);
}

void kv_pool_set_reclaim(struct kv_pool *pool, bool (*fn)(void *arg), void *arg)
{
    pool->reclaim = fn;
    pool->reclaim_arg = arg;
}

void kv_pool_cache(struct kv_pool *pool, int32_t page)
{
    kv_pool_share(pool, page);
    pool->n_cached[page]++;
    pool->n_idle += is_idle(pool, page);
}

void kv_pool_uncache(struct kv_pool *pool, int32_t page)
{
    CHECK(pool->n_cached[page] > 0);
    pool->n_idle -= is_idle(pool, page);
    pool->n_cached[page]--;
    if (--pool->n_refs[page] == 0)
        pool->free_pages[pool->n_free++] = page;
    pool->n_idle += is_idle(pool, page);
}

void kv_pool_shuffle(struct kv_pool *pool, uint64_t seed)
{
    for (int32_t i = pool->n_free - 1; i > 0; i--) {
        int32_t j = (int32_t)(rng_u64(seed, 0, (uint64_t)i) % ((uint64_t)i + 1));
        int32_t page = pool->free_pages[i];

        pool->free_pages[i] = pool->free_pages[j];
        pool->free_pages[j] = page;
    }
}

bool kv_pool_is_consistent(const struct kv_pool *pool)
{
    int32_t n_held = 0;

    for (int32_t i = 0; i < pool->n_pages; i++)
        n_held += pool->n_refs[i] > 0;
    for (int32_t i = 0; i < pool->n_free; i++) {
        if (pool->n_refs[pool->free_pages[i]] != 0)
            return false;
    }
    return n_held + pool->n_free == pool->n_pages;
}
