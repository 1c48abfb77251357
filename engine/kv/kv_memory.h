/*
 * kv_memory - the pages themselves and the device's copy of the slot arrays.
 *
 * kv_slot.h keeps the originals on the host; this copies what changed before a step and hands the
 * backend one view of it all. Engine thread only.
 */
#ifndef KV_MEMORY_H
#define KV_MEMORY_H

#include "engine/backend.h"
#include "engine/kv/kv_slot.h"

struct kv_memory { /* fields are private but for view */
    struct kv_view view;
    struct backend *be;
    void *pages, *page_table, *head_base, *geom, *window;
};

/* Takes the memory for all that ks describes. ERR_NO_ROOM names the bytes. */
int kv_memory_init(struct kv_memory *m, struct backend *be, const struct kv_slots *ks,
                   struct err *err);
void kv_memory_release(struct kv_memory *m);

/* Copies the slots that changed since the last call. */
int kv_memory_upload(struct kv_memory *m, struct kv_slots *ks, struct err *err);

#endif
