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
    struct step_batch device; /* what the ops get */
    struct block_step blocks; /* a Block Transformer's instead; its tokens are `device` */
    struct batch_rows rows;   /* tokens; rope_pos is a Block Transformer's */
    struct batch_rows block;  /* blocks: token is [n, block_len], no rope_pos */
    /* A step of whole blocks: what the phases share, and the tokens that go in behind phase 0. */
    struct block_step whole;     /* phase 0, with the block decoder's rows */
    struct block_step *later;    /* [block_len - 1] phases 1.. */
    int32_t *seat, *prefix_seat; /* host [max_logits], [max_logits * n_prefix] */
    int32_t *later_token;        /* host [block_len - 1, max_logits] */
    int32_t *logit_row;          /* host [max_logits] */
    int32_t *context_row;        /* host [max_logits] */
    struct step_chunk *chunks;   /* host [n_slots] */
    struct step_pool *pools;     /* host [n_slots] */
    int32_t *rope_len;           /* host [max_rows] */
    int32_t *slot_token;         /* device [n_slots, block_len], as step_batch.slot_token; 1 a slot
                                    where rows are tokens */
    struct batch_params params;
    int max_tokens;      /* rows of tokens */
    int32_t *host_block; /* private */
    void *device_block;  /* private */
    void *fixed_block;   /* private; device: what whole blocks have in every step */
    size_t block_bytes;  /* private */
    struct backend *be;  /* private */
};

int batch_init(struct batch *b, struct backend *be, const struct batch_params *params,
               struct err *err);
void batch_release(struct batch *b);

/* Fills the host arrays from what the scheduler planned; tokens still to come are -1. */
void batch_build(struct batch *b, const struct sched_step *step);

/*
 * Makes the rows of a step of whole blocks n_items, with copies of its first: all of the same bytes
 * are written once more. The block decoder's too where all of them decode, one for each item.
 */
void batch_pad_whole(struct batch *b, int n_items);

/* Copies them to the device. */
int batch_upload(struct batch *b, struct err *err);

#endif
