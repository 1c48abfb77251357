/*
 * kv_snapshot - what the heads kept of prompts that were computed before, found by their tokens.
 *
 * prefix_cache.h shares pages that nobody writes again, and needs every head to keep everything. A
 * head that drops tokens writes its ring again and again, so a sequence that begins like an earlier
 * one needs what the ring held then. A snapshot is that: the pages of all heads as they were behind
 * n tokens of a prompt.
 *
 *     final pages    sinks, heads that keep all: shared, in the snapshot and out of it
 *     other pages    somebody is going to write them: copied, in and out
 *
 * Each snapshot stands for itself: those of prompts that begin alike share their final pages. Where
 * a prompt is worth one is the scheduler's to say. Copies are made on the device, in a step: those
 * out of snapshots before its forward pass, those into new ones behind it. Both lists, and the
 * references that keep their pages, live from the plan of the step to kv_snapshots_commit().
 *
 * A snapshot's references are the cache's as in kv_pool.h; the one not used for the longest time
 * goes first. Engine thread only; allocates nothing after init.
 */
#ifndef KV_SNAPSHOT_H
#define KV_SNAPSHOT_H

#include "engine/kv/kv_slot.h"

#include <stdbool.h>
#include <stdint.h>

struct err;

/* What must be equal besides the tokens: spans, salt. All zero is a key too. */
struct prefix_key {
    uint64_t a, b;
};

struct kv_snapshot;

struct kv_snapshots {
    struct kv_copies into, out_of; /* of the step that is being planned */
    /* The rest is private. */
    struct kv_slots *kv;
    struct kv_snapshot *list; /* [n] in the order of their ranges of tokens and pages */
    int n, n_pending;         /* the last n_pending of them are not yet copied */
    int32_t *tokens, *pages;  /* [tokens_room], [pages_room] */
    int64_t n_tokens, tokens_room, n_pages, pages_room;
    int32_t *taken, *found; /* [pool pages] scratch; what the last find points to */
    uint64_t clock;
};

int kv_snapshots_init(struct kv_snapshots *c, struct kv_slots *kv, struct err *err);
void kv_snapshots_release(struct kv_snapshots *c);

struct kv_snapshot_hit {
    int32_t n_tokens;     /* of the longest snapshot that the prompt begins with; 0: none */
    int32_t n_common;     /* tokens of whole pages shared with any prompt that has a snapshot */
    const int32_t *pages; /* head after head; valid until the next call */
};

/* Looks for tokens[0..n). Nothing is referred to yet. */
struct kv_snapshot_hit kv_snapshot_find(struct kv_snapshots *c, struct prefix_key key,
                                        const int32_t *tokens, int32_t n);

/*
 * The step being planned brings the slot to n tokens: what its heads hold then becomes a snapshot,
 * if there is room for the copies, and if there is none of these tokens yet.
 */
void kv_snapshot_add(struct kv_snapshots *c, struct prefix_key key, const int32_t *tokens,
                     int32_t n, int slot);

/* The step was queued: new snapshots may be found from now on. */
void kv_snapshots_commit(struct kv_snapshots *c);

/* Drops the least recently used one; false when there is none. The pool's call for pages. */
bool kv_snapshots_drop_oldest(struct kv_snapshots *c);

/* For kv_sweep: references to each page. */
void kv_snapshots_count_refs(const struct kv_snapshots *c, int32_t *refs);

#endif
