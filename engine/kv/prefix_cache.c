/*
 * prefix_cache - pages of prompts, found again by their tokens. See prefix_cache.h.
 */
#include "engine/kv/prefix_cache.h"

#include "base/check.h"
#include "base/err.h"

#include <stdlib.h>
#include <string.h>

struct prefix_node {
    struct prefix_key key;
    int32_t parent, n_children;
    uint32_t hash;
    int32_t next_hash;    /* of the same hash */
    int32_t newer, older; /* by last use; `newer` links free nodes too */
};

static int32_t *tokens_of(const struct prefix_cache *c, int32_t node)
{
    return &c->tokens[(int64_t)node * c->page_tokens];
}

static int32_t *pages_of(const struct prefix_cache *c, int32_t node)
{
    return &c->pages[(int64_t)node * c->n_heads];
}

static uint32_t hash_of(const struct prefix_cache *c, struct prefix_key key, int32_t parent,
                        const int32_t *tokens)
{
    uint64_t h = (key.a ^ (uint64_t)(uint32_t)parent * 0x9e3779b97f4a7c15u) + key.b;

    for (int i = 0; i < c->page_tokens; i++)
        h = (h ^ (uint32_t)tokens[i]) * 0xff51afd7ed558ccdu + (h >> 29);
    return (uint32_t)(h >> 32);
}

static int32_t lookup(const struct prefix_cache *c, struct prefix_key key, int32_t parent,
                      const int32_t *tokens, uint32_t hash)
{
    int32_t node = c->table[hash & (uint32_t)(c->n_table - 1)];

    for (; node >= 0; node = c->nodes[node].next_hash) {
        const struct prefix_node *n = &c->nodes[node];

        if (n->hash == hash && n->parent == parent && n->key.a == key.a && n->key.b == key.b &&
            !memcmp(tokens_of(c, node), tokens, (size_t)c->page_tokens * sizeof(*tokens)))
            return node;
    }
    return PREFIX_NONE;
}

static void unlink_use(struct prefix_cache *c, int32_t node)
{
    struct prefix_node *n = &c->nodes[node];

    if (n->newer >= 0)
        c->nodes[n->newer].older = n->older;
    else
        c->newest = n->older;
    if (n->older >= 0)
        c->nodes[n->older].newer = n->newer;
    else
        c->oldest = n->newer;
}

static void link_use(struct prefix_cache *c, int32_t node)
{
    struct prefix_node *n = &c->nodes[node];

    n->newer = PREFIX_NONE;
    n->older = c->newest;
    if (c->newest >= 0)
        c->nodes[c->newest].newer = node;
    else
        c->oldest = node;
    c->newest = node;
}

/* The node and its parents were used, they last: so a parent is always newer than its children. */
static void touch(struct prefix_cache *c, int32_t node)
{
    for (; node >= 0; node = c->nodes[node].parent) {
        unlink_use(c, node);
        link_use(c, node);
    }
}

static bool is_idle(const struct prefix_cache *c, int32_t node)
{
    return c->kv->pool.n_refs[pages_of(c, node)[0]] == 1;
}

static void drop(struct prefix_cache *c, int32_t node)
{
    struct prefix_node *n = &c->nodes[node];
    int32_t *link = &c->table[n->hash & (uint32_t)(c->n_table - 1)];

    CHECK(n->n_children == 0);
    while (*link != node)
        link = &c->nodes[*link].next_hash;
    *link = n->next_hash;
    unlink_use(c, node);
    if (n->parent >= 0)
        c->nodes[n->parent].n_children--;
    for (int h = 0; h < c->n_heads; h++)
        kv_pool_uncache(&c->kv->pool, pages_of(c, node)[h]);
    n->newer = c->free_node;
    c->free_node = node;
    c->n_nodes--;
}

/* The oldest node that nobody uses. False: there is none. */
static bool drop_oldest_node(struct prefix_cache *c)
{
    for (int32_t node = c->oldest; node >= 0; node = c->nodes[node].newer) {
        if (c->nodes[node].n_children == 0 && is_idle(c, node)) {
            drop(c, node);
            return true;
        }
    }
    return false;
}

/* The pool's call for pages. */
static bool drop_oldest(void *arg)
{
    struct prefix_cache *c = arg;

    return drop_oldest_node(c) || kv_snapshots_drop_oldest(&c->snapshots);
}

int prefix_cache_init(struct prefix_cache *c, struct kv_slots *kv, int entry_tokens,
                      struct err *err)
{
    size_t n, n_heads = (size_t)kv_shape_heads(&kv->shape);

    *c = (struct prefix_cache){.kv = kv,
                               .n_heads = (int)n_heads,
                               .page_tokens = kv->shape.page_entries * entry_tokens,
                               .n_nodes_max = (int)((size_t)kv->pool.n_pages / n_heads),
                               .free_node = PREFIX_NONE,
                               .newest = PREFIX_NONE,
                               .oldest = PREFIX_NONE,
                               .n_table = 64};
    n = (size_t)c->n_nodes_max + 1;
    while (c->n_table < 2 * c->n_nodes_max)
        c->n_table *= 2;
    c->nodes = calloc(n, sizeof(*c->nodes));
    c->tokens = calloc(n * (size_t)c->page_tokens, sizeof(*c->tokens));
    c->pages = calloc(n * n_heads, sizeof(*c->pages));
    c->hit_pages = calloc(n * n_heads, sizeof(*c->hit_pages));
    c->table = calloc((size_t)c->n_table, sizeof(*c->table));
    if (!c->nodes || !c->tokens || !c->pages || !c->hit_pages || !c->table) {
        c->kv = NULL;
        prefix_cache_release(c);
        return err_set(err, ERR_NO_ROOM, "prefix cache: no memory for %d nodes", c->n_nodes_max);
    }
    if (kv_snapshots_init(&c->snapshots, kv, err) < 0) {
        c->kv = NULL;
        prefix_cache_release(c);
        return ERR_NO_ROOM;
    }
    memset(c->table, 0xff, (size_t)c->n_table * sizeof(*c->table));
    for (int32_t i = c->n_nodes_max - 1; i >= 0; i--) {
        c->nodes[i].newer = c->free_node;
        c->free_node = i;
    }
    kv_pool_set_reclaim(&kv->pool, drop_oldest, c);
    return 0;
}

void prefix_cache_release(struct prefix_cache *c)
{
    if (c->kv)
        kv_pool_set_reclaim(&c->kv->pool, NULL, NULL);
    free(c->nodes);
    free(c->tokens);
    free(c->pages);
    free(c->hit_pages);
    free(c->table);
    kv_snapshots_release(&c->snapshots);
    *c = (struct prefix_cache){0};
}

bool prefix_cache_suits(const struct kv_shape *shape, const struct kv_need *need)
{
    for (int i = 0; need->growable && i < kv_shape_heads(shape); i++) {
        /* With a sink of whole pages the index of a position is the position, until the ring wraps.
         */
        if (need->geom[i].n_sink % KV_TILE)
            return false;
    }
    return true;
}

struct prefix_hit prefix_cache_find(struct prefix_cache *c, struct prefix_key key,
                                    const int32_t *tokens, int32_t n)
{
    struct prefix_hit hit = {.node = PREFIX_NONE};

    while (hit.n_tokens + c->page_tokens <= n) {
        const int32_t *page = tokens + hit.n_tokens;
        int32_t node = lookup(c, key, hit.node, page, hash_of(c, key, hit.node, page));

        if (node < 0)
            break;
        memcpy(&c->hit_pages[(int64_t)hit.shared.n * c->n_heads], pages_of(c, node),
               (size_t)c->n_heads * sizeof(*c->hit_pages));
        hit.shared.n++;
        hit.n_tokens += c->page_tokens;
        hit.node = node;
    }
    hit.shared.pages = c->hit_pages;
    touch(c, hit.node);
    return hit;
}

int32_t prefix_cache_add(struct prefix_cache *c, struct prefix_key key, int32_t parent,
                         const int32_t *tokens, int slot, int32_t page)
{
    uint32_t hash = hash_of(c, key, parent, tokens);
    int32_t node = lookup(c, key, parent, tokens, hash);
    size_t at = (size_t)slot * c->n_heads;
    struct prefix_node *n;

    if (node >= 0) {
        touch(c, node);
        return pages_of(c, node)[0] == c->kv->page_table[c->kv->head_base[at] + page]
                   ? node
                   : PREFIX_FOREIGN;
    }
    /* A page belongs to one node at most, so there are nodes as long as there are pages. */
    CHECK(c->free_node >= 0);
    node = c->free_node;
    n = &c->nodes[node];
    c->free_node = n->newer;
    *n = (struct prefix_node){.key = key, .parent = parent, .hash = hash};
    memcpy(tokens_of(c, node), tokens, (size_t)c->page_tokens * sizeof(*tokens));
    for (int h = 0; h < c->n_heads; h++) {
        int32_t p = c->kv->page_table[c->kv->head_base[at + h] + page];

        pages_of(c, node)[h] = p;
        kv_pool_cache(&c->kv->pool, p);
    }
    n->next_hash = c->table[hash & (uint32_t)(c->n_table - 1)];
    c->table[hash & (uint32_t)(c->n_table - 1)] = node;
    if (parent >= 0)
        c->nodes[parent].n_children++;
    link_use(c, node);
    touch(c, node);
    c->n_nodes++;
    return node;
}

void prefix_cache_clear(struct prefix_cache *c)
{
    while (drop_oldest(c))
        ;
}

void prefix_cache_count_refs(const struct prefix_cache *c, int32_t *refs)
{
    for (int32_t node = c->newest; node >= 0; node = c->nodes[node].older) {
        for (int h = 0; h < c->n_heads; h++)
            refs[pages_of(c, node)[h]]++;
    }
    kv_snapshots_count_refs(&c->snapshots, refs);
}
