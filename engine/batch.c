/*
 * batch - one step as flat arrays. See batch.h.
 */
#include "engine/batch.h"

#include "base/check.h"

#include <assert.h>
#include <stdlib.h>
#include <string.h>

#define CHUNK_WORDS 4

static_assert(sizeof(struct step_chunk) == CHUNK_WORDS * sizeof(int32_t), "chunks are int32s");

int batch_init(struct batch *b, struct backend *be, int max_rows, int max_logits, int n_slots,
               struct err *err)
{
    size_t rows = ((size_t)max_rows + 15) / 16 * 16; /* parts start at 64 bytes */
    size_t logits = ((size_t)max_logits + 15) / 16 * 16;
    size_t words = 3 * rows + logits + (size_t)n_slots * CHUNK_WORDS;
    void *slot_token = NULL;
    int32_t *at;
    int rc;

    *b = (struct batch){
        .be = be, .max_rows = max_rows, .max_logits = max_logits, .n_slots = n_slots};
    b->block_bytes = words * sizeof(int32_t);
    b->host_block = calloc(words, sizeof(int32_t));
    b->rope_len = calloc(rows, sizeof(int32_t));
    if (!b->host_block || !b->rope_len) {
        rc = err_set(err, ERR_NO_ROOM, "batch: no memory for %d rows", max_rows);
        goto out;
    }
    rc = be->ops->alloc(be, &b->device_block, b->block_bytes, err);
    if (rc == 0)
        rc = be->ops->alloc(be, &slot_token, (size_t)n_slots * sizeof(*b->slot_token), err);
    if (rc < 0)
        goto out;
    b->slot_token = slot_token;
    b->device.slot_token = slot_token;
    b->token = b->host_block;
    b->pos = b->token + rows;
    b->slot = b->pos + rows;
    b->logit_row = b->slot + rows;
    b->chunks = (struct step_chunk *)(b->logit_row + logits);
    at = b->device_block;
    b->device.token = at;
    b->device.pos = at + rows;
    b->device.slot = at + 2 * rows;
    b->device.logit_row = at + 3 * rows;
    b->device.chunks = (const struct step_chunk *)(at + 3 * rows + logits);
out:
    if (rc < 0)
        batch_release(b);
    return rc;
}

void batch_release(struct batch *b)
{
    if (!b || !b->be)
        return;
    b->be->ops->free(b->be, b->device_block);
    b->be->ops->free(b->be, b->slot_token);
    free(b->host_block);
    free(b->rope_len);
    *b = (struct batch){0};
}

static void build_item(struct batch *b, const struct sched_item *item)
{
    const struct sched_seq *seq = item->seq;
    int32_t at = item->logit0;

    for (int32_t r = 0; r < item->n_rows; r++) {
        int32_t pos = item->pos0 + r;

        b->token[item->row0 + r] = pos < seq->n_tokens ? seq->tokens[pos] : -1;
        b->pos[item->row0 + r] = pos;
        b->slot[item->row0 + r] = seq->slot;
        b->rope_len[item->row0 + r] = item->is_decode ? pos + 1 : seq->n_prompt;
    }
    if (!item->is_decode)
        b->chunks[b->device.n_chunks++] = (struct step_chunk){
            .slot = seq->slot, .row0 = item->row0, .n_rows = item->n_rows, .pos0 = item->pos0};
    for (int32_t k = 0; k < item->n_prompt_logits; k++)
        b->logit_row[at++] = item->row0 + sched_item_logit_pos(item, k) - item->pos0;
    if (item->samples)
        b->logit_row[at++] = item->row0 + item->n_rows - 1;
}

void batch_build(struct batch *b, const struct sched_step *step)
{
    CHECK(step->n_rows <= b->max_rows);
    CHECK(step->n_logits <= b->max_logits);
    CHECK(step->n_items - step->n_decode <= b->n_slots);
    b->device.n_rows = step->n_rows;
    b->device.n_decode = step->n_decode;
    b->device.n_logits = step->n_logits;
    b->device.n_chunks = 0;
    for (int i = 0; i < step->n_items; i++)
        build_item(b, &step->items[i]);
}

int batch_upload(struct batch *b, struct err *err)
{
    return b->be->ops->upload(b->be, b->device_block, b->host_block, b->block_bytes, err);
}
