/*
 * kv_sweep - proves that every page has exactly one owner: the free list or one place in one
 * head's run, and that what the slots say of themselves adds up.
 *
 * A debugging aid that costs a walk over all pages and table entries. The scheduler's arithmetic
 * should make it pointless; it exists because a page with two owners shows as nothing but slightly
 * wrong text.
 */
#ifndef KV_SWEEP_H
#define KV_SWEEP_H

#include "engine/kv/kv_slot.h"

struct kv_sweep {
    int32_t n_free, n_held; /* pages; held by slots or by whoever other_refs counts */
    int32_t n_shared;       /* of the held ones: with more than one reference */
    int64_t n_named;        /* page table entries in use */
};

/*
 * Fills *out and returns 0, or names the first contradiction with ERR_INVALID. other_refs
 * [n_pages] are references held by others than slots, NULL for none. ERR_NO_ROOM: not checked.
 */
int kv_sweep_slots(struct kv_sweep *out, const struct kv_slots *ks, const int32_t *other_refs,
                   struct err *err);

#endif
