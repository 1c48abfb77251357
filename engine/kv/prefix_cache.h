/*
 * prefix_cache - the pages of prompts that were computed before, found again by their tokens.
 *
 * A tree: a node is one page of tokens behind all those of its parents, with the page of every head
 * that holds their keys and values. The tree keeps one reference to each of them, so they outlive
 * the sequence that computed them; a sequence that begins alike takes another and computes the
 * rest.
 *
 *     root key -> [64 tokens] -> [64 tokens] -> ...
 *                             \> [64 tokens] -> ...
 *
 * With parts, for Block Transformers, whose pages are long, a node may also be the beginning of a
 * page, and the beginning of any node's page may be found, by whole positions: it is copied to the
 * page of the sequence that goes on from there. The owner of a page goes on writing behind what the
 * node has of it. A node has no children until its page is whole; one that begins another node of
 * the same parent says nothing that the other does not, and goes.
 *
 * Nothing is ever compared by hash alone: a hit has the same tokens. Only prompt rows go in: what
 * decode rows compute may differ in the last bit. Pages that the tree alone refers to are idle: as
 * good as free, since the pool asks for them when it runs out. The node that was not used for the
 * longest time goes first; a node's parent was always used later than itself.
 *
 * Engine thread only; allocates nothing after init.
 */
#ifndef PREFIX_CACHE_H
#define PREFIX_CACHE_H

#include "engine/kv/kv_slot.h"
#include "engine/kv/kv_snapshot.h"

#include <stdbool.h>
#include <stdint.h>

struct err;

#define PREFIX_NONE    (-1) /* no node: before the first page */
#define PREFIX_FOREIGN (-2) /* the page is known, but as another's: nothing goes behind it */

struct prefix_node;
struct prefix_link;

struct prefix_cache { /* fields are private */
    struct kv_slots *kv;
    int n_heads, page_tokens, n_nodes_max, n_nodes;
    int grain_tokens, n_grains; /* prompts share by so many tokens; those of a page */
    struct prefix_node *nodes;
    struct prefix_link *links; /* [n_nodes_max, n_grains] what each node begins with */
    int32_t *tokens;           /* [n_nodes_max, page_tokens] */
    int32_t *pages;            /* [n_nodes_max, n_heads] */
    int32_t *node_of;          /* [pool pages] whose first page it is, -1: nobody's */
    int32_t *table;            /* [n_table] first link of a hash, -1: none */
    int32_t n_table;
    int32_t free_node, newest, oldest;
    int32_t *hit_pages;            /* [n_nodes_max, n_heads] of the last prefix_cache_find() */
    struct kv_snapshots snapshots; /* of sequences that cannot share page by page; public */
};

/*
 * Serves kv's pool from now on; kv must outlive the cache. entry_tokens: that one position of keys
 * stands for, 1 or a block's. has_parts: beginnings of pages go in and are found, too.
 */
int prefix_cache_init(struct prefix_cache *c, struct kv_slots *kv, int entry_tokens, bool has_parts,
                      struct err *err);
void prefix_cache_release(struct prefix_cache *c);

/*
 * Can a sequence of this need share what it computes? If it grows, then as pages, each of which
 * must hold the positions of its number; else as snapshots.
 */
bool prefix_cache_suits(const struct kv_shape *shape, const struct kv_need *need);

/* What was found; pages stay valid until the next find. */
struct prefix_hit {
    int32_t node, n_tokens; /* node: of the last whole page; n_tokens: those of the part, too */
    struct kv_shared shared;
};

/* The longest known beginning of tokens[0..n). Nothing is referred to yet. */
struct prefix_hit prefix_cache_find(struct prefix_cache *c, struct prefix_key key,
                                    const int32_t *tokens, int32_t n);

/*
 * Page number `page` of the slot, behind `parent`, has its first n tokens: all, or with parts any
 * number of whole positions. Returns what the parent of the slot's next node is to be: the page's
 * node, whose pages are the slot's; `parent` while the page is not complete; or PREFIX_FOREIGN when
 * the same tokens are there in other pages: those may go while the slot stays, so no node of the
 * slot may have them as its parent.
 */
int32_t prefix_cache_add(struct prefix_cache *c, struct prefix_key key, int32_t parent,
                         const int32_t *tokens, int32_t n, int slot, int32_t page);

/* Drops everything that no sequence uses: for tests, and before the pages are counted. */
void prefix_cache_clear(struct prefix_cache *c);

/* For kv_sweep: references of tree and snapshots to each page. */
void prefix_cache_count_refs(const struct prefix_cache *c, int32_t *refs);

#endif
