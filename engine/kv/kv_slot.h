/*
 * kv_slot - the seats of running sequences: which pages each head of each slot holds.
 *
 * All slots share one page table of int32 page numbers. A slot owns one range of it, cut into one
 * run a head, long enough for the most pages that the head will ever need, so growing never moves
 * anything:
 *
 *     page_table   [ ...      | slot 3: l0h0 . . | l0h1 . . . . | l1h0 . . | ...      ]
 *     head_base    [slot, layer, kv_head] -> first entry of the head's run
 *
 * These arrays are the host's originals; whoever copies them to a device asks `dirty`.
 * Engine thread only. A slot whose every head keeps all its tokens may grow page by page; any
 * other holds all its pages from the start.
 */
#ifndef KV_SLOT_H
#define KV_SLOT_H

#include "engine/kv/kv_layout.h"
#include "engine/kv/kv_pool.h"

#include <stdbool.h>
#include <stdint.h>

struct err;

/* What a request will want, known before it is admitted. */
struct kv_need {
    const struct kv_geom *geom; /* [n_layers, n_kv_heads] borrowed as long as the slot is held */
    const int32_t *window;      /* [n_layers, n_heads] borrowed likewise */
    int32_t n_limit;            /* most tokens the sequence can reach */
    bool growable;              /* no head ever overwrites a key */
    int64_t n_pages_limit;      /* pages at n_limit; also the entries of the page table */
};

/* Pages that others computed and the sequence begins with. */
struct kv_shared {
    int32_t n;            /* of each head */
    const int32_t *pages; /* [n, n_layers * n_kv_heads] */
    const int32_t *part;  /* [n_layers * n_kv_heads] those behind them begin alike; NULL: none */
};

/* Copies of whole pages, for the device to make. */
struct kv_copies {
    int32_t *src, *dst; /* [n] */
    int32_t n;
};

static inline void kv_copies_add(struct kv_copies *c, int32_t src, int32_t dst)
{
    c->src[c->n] = src;
    c->dst[c->n++] = dst;
}

struct kv_slot {
    bool used, growable;
    bool geom_dirty, table_dirty; /* not yet on the device */
    int32_t n_limit, n_room;      /* tokens that may come; tokens that the pages held can take */
    int64_t n_pages, n_shared;    /* held; among them: found in a cache when it was seated */
    int64_t table_at, table_len;
};

struct kv_slots {
    struct kv_shape shape;
    int n_slots, n_used;
    struct kv_slot *slots; /* [n_slots] */
    struct kv_pool pool;
    int64_t table_len;
    int32_t *page_table;  /* [table_len] */
    int32_t *head_base;   /* [n_slots, n_layers, n_kv_heads] */
    int32_t *head_pages;  /* [n_slots, n_layers, n_kv_heads] pages held */
    struct kv_geom *geom; /* [n_slots, n_layers, n_kv_heads] */
    int32_t *window;      /* [n_slots, n_layers, n_heads] */
    int *by_table;        /* [n_used] slots in the order of their ranges */
};

int kv_slots_init(struct kv_slots *ks, const struct kv_shape *shape, int n_slots, int32_t n_pages,
                  int64_t table_len, struct err *err);
void kv_slots_release(struct kv_slots *ks);

/* Fills in the need of a sequence that ends at n_limit tokens, from its geometry. */
void kv_need_init(struct kv_need *need, const struct kv_shape *shape, const struct kv_geom *geom,
                  const int32_t *window, int32_t n_limit);

/* Pages the sequence must hold to have n_tokens: all of them unless it is growable. */
int64_t kv_need_pages(const struct kv_need *need, const struct kv_shape *shape, int32_t n_tokens);

/* Could the empty pool hold it to its end? */
bool kv_slots_could_hold(const struct kv_slots *ks, const struct kv_need *need);

/*
 * Seats a sequence with room for n_tokens and leaves `headroom` pages free. Its first pages are the
 * shared ones, if there are any (NULL: none); each gets a reference more. Of a part the slot gets
 * copies, in pages of its own: they are added to *copies, and each source gets a reference, which
 * is the caller's to drop; n_tokens must reach into them. The slot's number, or ERR_NO_ROOM with
 * nothing changed.
 */
int kv_slot_take_shared(struct kv_slots *ks, const struct kv_need *need, int32_t n_tokens,
                        int64_t headroom, const struct kv_shared *shared, struct kv_copies *copies);

static inline int kv_slot_take(struct kv_slots *ks, const struct kv_need *need, int32_t n_tokens,
                               int64_t headroom)
{
    return kv_slot_take_shared(ks, need, n_tokens, headroom, NULL, NULL);
}

/*
 * Seats a sequence that holds all its pages from the start and begins with n_tokens that others
 * computed; pages has those of each head, head after head. Pages that will not be written again are
 * shared. For the others the slot has pages of its own: the copies are added to *copies, and each
 * source gets a reference, which is the caller's to drop.
 */
int kv_slot_take_copied(struct kv_slots *ks, const struct kv_need *need, int32_t n_tokens,
                        int64_t headroom, const int32_t *pages, struct kv_copies *copies);

/* Makes room for n_tokens in all. False, with nothing changed, when the pool has not enough. */
bool kv_slot_grow(struct kv_slots *ks, int slot, int32_t n_tokens);

/* Gives every page back. */
void kv_slot_give(struct kv_slots *ks, int slot);

#endif
