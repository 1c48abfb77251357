/*
 * batch - one step as flat arrays, in host memory and on the device.
 *
 * All int32 arrays lie in one block whose parts never move, so one copy a step carries them and
 * whoever records pointers (a captured graph) may keep them. Engine thread only.
 */
#ifndef BATCH_H
#define BATCH_H

#include "engine/backend.h"
#include "engine/model/model.h"
#include "engine/scheduler.h"

struct batch_params {
    int max_rows; /* tokens; a Block Transformer's blocks */
    int max_logits, n_slots;
    const struct block_config *block; /* NULL: rows are tokens; borrowed for good */
};

/* The arrays of one batch of rows. */
struct batch_rows {
    int32_t *token, *pos, *rope_pos, *slot; /* host [n] */
};

struct batch {
    struct step_batch device;  /* what the ops get */
    struct block_step blocks;  /* a Block Transformer's instead; its tokens are `device` */
    struct batch_rows rows;    /* tokens; rope_pos is a Block Transformer's */
    struct batch_rows block;   /* blocks: token is [n, block_len], no rope_pos */
    int32_t *logit_row;        /* host [max_logits] */
    int32_t *context_row;      /* host [max_logits] */
    struct step_chunk *chunks; /* host [n_slots] */
    struct step_pool *pools;   /* host [n_slots] */
    int32_t *rope_len;         /* host [max_rows] */
    int32_t *slot_token;       /* device [n_slots], as step_batch.slot_token */
    struct batch_params params;
    int max_tokens;      /* rows of tokens */
    int32_t *host_block; /* private */
    void *device_block;  /* private */
    size_t block_bytes;  /* private */
    struct backend *be;  /* private */
};

int batch_init(struct batch *b, struct backend *be, const struct batch_params *params,
               struct err *err);
void batch_release(struct batch *b);

/* Fills the host arrays from what the scheduler planned; tokens still to come are -1. */
void batch_build(struct batch *b, const struct sched_step *step);

/* Copies them to the device. */
int batch_upload(struct batch *b, struct err *err);

#endif
