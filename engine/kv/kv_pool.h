/*
 * kv_pool - the pages that hold keys and values, by number, with reference counts.
 *
 * A page serves any head of any layer. The pool knows numbers only; the memory is the backend's.
 * Engine thread only. Always: pages free + pages with a reference == n_pages.
 *
 * A cache may keep a page: while its references are the only ones the page is idle. Idle pages
 * count as room: when no page is free, the pool asks the cache to give some up.
 */
#ifndef KV_POOL_H
#define KV_POOL_H

#include <stdbool.h>
#include <stdint.h>

struct err;

struct kv_pool { /* fields are private */
    int32_t n_pages, n_free;
    int32_t *free_pages; /* [n_pages] a stack, n_free of them valid */
    int32_t *n_refs;     /* [n_pages] */
    int32_t n_idle;
    int32_t *n_cached; /* [n_pages] of n_refs: the cache's */
    bool (*reclaim)(void *arg);
    void *reclaim_arg;
};

/* Every page is free afterwards. ERR_NO_ROOM when the host has no memory for the lists. */
int kv_pool_init(struct kv_pool *pool, int32_t n_pages, struct err *err);
void kv_pool_release(struct kv_pool *pool);

static inline bool kv_pool_has_room(const struct kv_pool *pool, int64_t n_pages)
{
    return n_pages <= (int64_t)pool->n_free + pool->n_idle;
}

/* Pages that sequences hold. */
static inline int32_t kv_pool_used(const struct kv_pool *pool)
{
    return pool->n_pages - pool->n_free - pool->n_idle;
}

/* fn gives up idle pages, at least one; false when it has none. NULL: nobody caches. */
void kv_pool_set_reclaim(struct kv_pool *pool, bool (*fn)(void *arg), void *arg);

/* The cache takes a reference to a page that has one, or drops one of its own. */
void kv_pool_cache(struct kv_pool *pool, int32_t page);
void kv_pool_uncache(struct kv_pool *pool, int32_t page);

/* A page with one reference. The pool must have room. */
int32_t kv_pool_take(struct kv_pool *pool);

/* One more reference to a page that has one. */
void kv_pool_share(struct kv_pool *pool, int32_t page);

/* Drops a reference; the last one frees the page. */
void kv_pool_give(struct kv_pool *pool, int32_t page);

/* Puts the free pages into a random order: benches show that scattered pages cost nothing. */
void kv_pool_shuffle(struct kv_pool *pool, uint64_t seed);

/* Counts again and compares with the counters; for tests and the dump. */
bool kv_pool_is_consistent(const struct kv_pool *pool);

#endif
