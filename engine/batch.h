/*
 * batch - one step as flat arrays, in host memory and on the device.
 *
 * All int32 arrays lie in one block whose parts never move, so one copy a step carries them and
 * whoever records pointers (a captured graph) may keep them. Engine thread only.
 */
#ifndef BATCH_H
#define BATCH_H

#include "engine/backend.h"
#include "engine/scheduler.h"

struct batch {
    struct step_batch device;    /* what the ops get */
    int32_t *token, *pos, *slot; /* host [max_rows] */
    int32_t *logit_row;          /* host [max_logits] */
    struct step_chunk *chunks;   /* host [n_slots] */
    int32_t *rope_len;           /* host [max_rows] */
    int32_t *slot_token;         /* device [n_slots], as step_batch.slot_token */
    int max_rows, max_logits, n_slots;
    int32_t *host_block; /* private */
    void *device_block;  /* private */
    size_t block_bytes;  /* private */
    struct backend *be;  /* private */
};

int batch_init(struct batch *b, struct backend *be, int max_rows, int max_logits, int n_slots,
               struct err *err);
void batch_release(struct batch *b);

/* Fills the host arrays from what the scheduler planned; tokens still to come are -1. */
void batch_build(struct batch *b, const struct sched_step *step);

/* Copies them to the device. */
int batch_upload(struct batch *b, struct err *err);

#endif
