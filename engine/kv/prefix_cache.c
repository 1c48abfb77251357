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
    int32_t n;            /* grains of the page that it has */
    int32_t newer, older; /* by last use; `newer` links free nodes too */
};

/* The first grains of a node: one link for each number of them, in the list of their hash. */
struct prefix_link {
    uint32_t hash;
    int32_t next, prev; /* -1: none */
};

static int32_t *tokens_of(const struct prefix_cache *c, int32_t node)
{
    return &c->tokens[(int64_t)node * c->page_tokens];
}

static int32_t *pages_of(const struct prefix_cache *c, int32_t node)
{
    return &c->pages[(int64_t)node * c->n_heads];
}

/* The page of the slot's head h. */
static int32_t slot_page(const struct prefix_cache *c, int slot, int h, int32_t page)
{
    return c->kv->page_table[c->kv->head_base[(size_t)slot * c->n_heads + h] + page];
}

/* hashes[i]: of the first i + 1 grains of what stands behind the parent. */
static void hash_grains(uint32_t *hashes, const struct prefix_cache *c, struct prefix_key key,
                        int32_t parent, const int32_t *tokens, int32_t n)
{
    uint64_t h = (key.a ^ (uint64_t)(uint32_t)parent * 0x9e3779b97f4a7c15u) + key.b;

    for (int32_t i = 0; i < n; i++) {
        for (int k = 0; k < c->grain_tokens; k++)
            h = (h ^ (uint32_t)*tokens++) * 0xff51afd7ed558ccdu + (h >> 29);
        hashes[i] = (uint32_t)(h >> 32);
    }
}

static int32_t *bucket_of(const struct prefix_cache *c, uint32_t hash)
{
    return &c->table[hash & (uint32_t)(c->n_table - 1)];
}

/* A node behind the parent that begins with these n grains. */
static int32_t lookup(const struct prefix_cache *c, struct prefix_key key, int32_t parent,
                      const int32_t *tokens, int32_t n, uint32_t hash)
{
    size_t bytes = (size_t)n * c->grain_tokens * sizeof(*tokens);

    for (int32_t at = *bucket_of(c, hash); at >= 0; at = c->links[at].next) {
        const struct prefix_node *node = &c->nodes[at / c->n_grains];

        if (c->links[at].hash == hash && at % c->n_grains == n - 1 && node->parent == parent &&
            node->key.a == key.a && node->key.b == key.b &&
            !memcmp(tokens_of(c, at / c->n_grains), tokens, bytes))
            return at / c->n_grains;
    }
    return PREFIX_NONE;
}

/* The node that has most of n grains in common with the tokens: *n_same of them, at least 1. */
static int32_t lookup_longest(const struct prefix_cache *c, struct prefix_key key, int32_t parent,
                              const int32_t *tokens, int32_t n, int32_t *n_same)
{
    uint32_t hashes[KV_TILE];
    int32_t node = PREFIX_NONE;

    hash_grains(hashes, c, key, parent, tokens, n);
    for (*n_same = n; *n_same > 0; --*n_same) {
        node = lookup(c, key, parent, tokens, *n_same, hashes[*n_same - 1]);
        if (node >= 0)
            break;
    }
    return node;
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

static void put_link(struct prefix_cache *c, int32_t at, uint32_t hash)
{
    int32_t *bucket = bucket_of(c, hash);

    c->links[at] = (struct prefix_link){.hash = hash, .next = *bucket, .prev = -1};
    if (*bucket >= 0)
        c->links[*bucket].prev = at;
    *bucket = at;
}

static void drop_link(struct prefix_cache *c, int32_t at)
{
    const struct prefix_link *link = &c->links[at];

    if (link->next >= 0)
        c->links[link->next].prev = link->prev;
    if (link->prev >= 0)
        c->links[link->prev].next = link->next;
    else
        *bucket_of(c, link->hash) = link->next;
}

static void drop(struct prefix_cache *c, int32_t node)
{
    struct prefix_node *n = &c->nodes[node];

    CHECK(n->n_children == 0);
    for (int32_t i = 0; i < n->n; i++)
        drop_link(c, node * c->n_grains + i);
    c->node_of[pages_of(c, node)[0]] = PREFIX_NONE;
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

static int no_room(struct prefix_cache *c, struct err *err)
{
    int n = c->n_nodes_max;

    c->kv = NULL; /* nobody was promised anything yet */
    prefix_cache_release(c);
    return err_set(err, ERR_NO_ROOM, "prefix cache: no memory for %d nodes", n);
}

int prefix_cache_init(struct prefix_cache *c, struct kv_slots *kv, int entry_tokens, bool has_parts,
                      struct err *err)
{
    size_t n, n_heads = (size_t)kv_shape_heads(&kv->shape), n_pages = (size_t)kv->pool.n_pages;
    int n_grains = has_parts ? kv->shape.page_entries : 1;

    *c = (struct prefix_cache){.kv = kv,
                               .n_heads = (int)n_heads,
                               .page_tokens = kv->shape.page_entries * entry_tokens,
                               .grain_tokens = kv->shape.page_entries * entry_tokens / n_grains,
                               .n_grains = n_grains,
                               .n_nodes_max = (int)(n_pages / n_heads),
                               .free_node = PREFIX_NONE,
                               .newest = PREFIX_NONE,
                               .oldest = PREFIX_NONE,
                               .n_table = 64};
    n = (size_t)c->n_nodes_max + 1;
    if (n * (size_t)n_grains > INT32_MAX / 4) /* links are numbered */
        return no_room(c, err);
    while ((size_t)c->n_table < 2 * n * (size_t)n_grains)
        c->n_table *= 2;
    c->nodes = calloc(n, sizeof(*c->nodes));
    c->links = calloc(n * (size_t)n_grains, sizeof(*c->links));
    c->tokens = calloc(n * (size_t)c->page_tokens, sizeof(*c->tokens));
    c->pages = calloc(n * n_heads, sizeof(*c->pages));
    c->node_of = malloc(n_pages * sizeof(*c->node_of));
    c->hit_pages = calloc(n * n_heads, sizeof(*c->hit_pages));
    c->table = malloc((size_t)c->n_table * sizeof(*c->table));
    if (!c->nodes || !c->links || !c->tokens || !c->pages || !c->node_of || !c->hit_pages ||
        !c->table)
        return no_room(c, err);
    if (kv_snapshots_init(&c->snapshots, kv, err) < 0)
        return no_room(c, err);
    memset(c->table, 0xff, (size_t)c->n_table * sizeof(*c->table));
    memset(c->node_of, 0xff, n_pages * sizeof(*c->node_of));
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
    free(c->links);
    free(c->tokens);
    free(c->pages);
    free(c->node_of);
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

/* Puts the node's pages behind those that were found. */
static const int32_t *put_hit(struct prefix_cache *c, int32_t page, int32_t node)
{
    int32_t *at = &c->hit_pages[(int64_t)page * c->n_heads];

    memcpy(at, pages_of(c, node), (size_t)c->n_heads * sizeof(*at));
    return at;
}

/* The most grains, but not the whole page, that stand behind the whole pages of the hit. */
static void find_part(struct prefix_cache *c, struct prefix_key key, const int32_t *tokens,
                      int32_t n, struct prefix_hit *hit)
{
    int32_t most = (n - hit->n_tokens) / c->grain_tokens, n_same, node;

    if (most > c->n_grains - 1)
        most = c->n_grains - 1;
    node = lookup_longest(c, key, hit->node, tokens + hit->n_tokens, most, &n_same);
    if (node < 0)
        return;
    hit->shared.part = put_hit(c, hit->shared.n, node);
    hit->n_tokens += n_same * c->grain_tokens;
    touch(c, node);
}

struct prefix_hit prefix_cache_find(struct prefix_cache *c, struct prefix_key key,
                                    const int32_t *tokens, int32_t n)
{
    struct prefix_hit hit = {.node = PREFIX_NONE};
    uint32_t hashes[KV_TILE];

    while (hit.n_tokens + c->page_tokens <= n) {
        const int32_t *page = tokens + hit.n_tokens;
        int32_t node;

        hash_grains(hashes, c, key, hit.node, page, c->n_grains);
        node = lookup(c, key, hit.node, page, c->n_grains, hashes[c->n_grains - 1]);
        if (node < 0)
            break;
        put_hit(c, hit.shared.n++, node);
        hit.n_tokens += c->page_tokens;
        hit.node = node;
    }
    hit.shared.pages = c->hit_pages;
    touch(c, hit.node);
    find_part(c, key, tokens, n, &hit);
    return hit;
}

/* A node with no grain yet. A page belongs to one at most, so there are nodes as long as there are
 * pages. */
static int32_t new_node(struct prefix_cache *c, struct prefix_key key, int32_t parent, int slot,
                        int32_t page)
{
    int32_t node = c->free_node;

    CHECK(node >= 0);
    c->free_node = c->nodes[node].newer;
    c->nodes[node] = (struct prefix_node){.key = key, .parent = parent};
    for (int h = 0; h < c->n_heads; h++) {
        int32_t p = slot_page(c, slot, h, page);

        pages_of(c, node)[h] = p;
        kv_pool_cache(&c->kv->pool, p);
    }
    c->node_of[pages_of(c, node)[0]] = node;
    if (parent >= 0)
        c->nodes[parent].n_children++;
    link_use(c, node);
    c->n_nodes++;
    return node;
}

/* The node has the first n grains of its page from now on. */
static void extend(struct prefix_cache *c, int32_t node, const int32_t *tokens, int32_t n)
{
    struct prefix_node *p = &c->nodes[node];
    uint32_t hashes[KV_TILE];

    memcpy(tokens_of(c, node), tokens, (size_t)n * c->grain_tokens * sizeof(*tokens));
    hash_grains(hashes, c, p->key, p->parent, tokens, n);
    for (; p->n < n; p->n++)
        put_link(c, node * c->n_grains + p->n, hashes[p->n]);
}

int32_t prefix_cache_add(struct prefix_cache *c, struct prefix_key key, int32_t parent,
                         const int32_t *tokens, int32_t n_tokens, int slot, int32_t page)
{
    int32_t own = c->node_of[slot_page(c, slot, 0, page)], n = n_tokens / c->grain_tokens;
    bool is_whole = n == c->n_grains;
    int32_t n_same, known;

    CHECK(n > 0);
    CHECK(n <= c->n_grains);
    if (own < 0 || c->nodes[own].n < n) {
        known = lookup_longest(c, key, parent, tokens, n, &n_same);
        if (known >= 0 && n_same == n) {
            /* Another's page has it all. */
            if (own >= 0)
                drop(c, own);
            touch(c, known);
            return is_whole ? PREFIX_FOREIGN : parent;
        }
        if (known >= 0 && known != own && c->nodes[known].n == n_same)
            drop(c, known); /* the new one begins with it */
        if (own < 0)
            own = new_node(c, key, parent, slot, page);
        extend(c, own, tokens, n);
    }
    touch(c, own);
    return is_whole ? own : parent;
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
