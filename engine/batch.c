/*
 * batch - one step as flat arrays. See batch.h.
 */
#include "engine/batch.h"

#include "base/check.h"

#include <assert.h>
#include <stdlib.h>
#include <string.h>

#define CHUNK_WORDS 4
#define POOL_WORDS  4

static_assert(sizeof(struct step_chunk) == CHUNK_WORDS * sizeof(int32_t), "chunks are int32s");
static_assert(sizeof(struct step_pool) == POOL_WORDS * sizeof(int32_t), "pools are int32s");

static size_t round_up(size_t n)
{
    return (n + 15) / 16 * 16; /* parts start at 64 bytes */
}

/* Where a part lies: its host memory at *host, its device memory returned; *at moves behind it. */
static const int32_t *part(const struct batch *b, int32_t **host, size_t n, size_t *at)
{
    const int32_t *device = b->device_block ? (int32_t *)b->device_block + *at : NULL;

    *host = b->host_block ? b->host_block + *at : NULL;
    *at += round_up(n);
    return device;
}

/* Cuts the memory into its parts; returns how many words they take. */
static size_t lay_out(struct batch *b)
{
    const struct block_config *c = b->params.block;
    size_t tokens = (size_t)b->max_tokens, blocks = (size_t)b->params.max_rows, at = 0;
    struct step_batch *d = &b->device;
    const int32_t *chunks, *pools;
    int32_t *host_chunks, *host_pools;

    d->token = part(b, &b->rows.token, tokens, &at);
    d->pos = part(b, &b->rows.pos, tokens, &at);
    d->slot = part(b, &b->rows.slot, tokens, &at);
    d->logit_row = part(b, &b->logit_row, (size_t)b->params.max_logits, &at);
    if (c) {
        /* Where rotation goes by the keys' places there is nothing to say. */
        if (c->shares_prefix_pos)
            d->rope_pos = part(b, &b->rows.rope_pos, tokens, &at);
        d = &b->blocks.blocks;
        b->blocks.block_token = part(b, &b->block.token, blocks * (size_t)c->block_len, &at);
        d->pos = part(b, &b->block.pos, blocks, &at);
        d->slot = part(b, &b->block.slot, blocks, &at);
        b->blocks.context_row = part(b, &b->context_row, (size_t)b->params.max_logits, &at);
    }
    chunks = part(b, &host_chunks, (size_t)b->params.n_slots * CHUNK_WORDS, &at);
    d->chunks = (const struct step_chunk *)chunks;
    b->chunks = (struct step_chunk *)host_chunks;
    pools = part(b, &host_pools, (size_t)b->params.n_slots * POOL_WORDS, &at);
    b->device.pools = (const struct step_pool *)pools;
    b->pools = (struct step_pool *)host_pools;
    return at;
}

int batch_init(struct batch *b, struct backend *be, const struct batch_params *params,
               struct err *err)
{
    const struct block_config *c = params->block;
    void *slot_token = NULL;
    size_t words;
    int rc;

    *b = (struct batch){.be = be, .params = *params};
    b->max_tokens = c ? params->max_logits * c->n_prefix : params->max_rows;
    words = lay_out(b);
    b->block_bytes = words * sizeof(int32_t);
    b->host_block = calloc(words, sizeof(int32_t));
    b->rope_len = calloc((size_t)b->max_tokens, sizeof(int32_t));
    if (!b->host_block || !b->rope_len) {
        rc = err_set(err, ERR_NO_ROOM, "batch: no memory for %d rows", params->max_rows);
        goto out;
    }
    rc = be->ops->alloc(be, &b->device_block, b->block_bytes, err);
    if (rc == 0)
        rc = be->ops->alloc(be, &slot_token, (size_t)params->n_slots * sizeof(*b->slot_token), err);
    if (rc < 0)
        goto out;
    b->slot_token = slot_token;
    b->device.slot_token = b->blocks.blocks.slot_token = slot_token;
    lay_out(b);
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

/* A token of the sequence, counted from its first: negative ones are of its lead. */
static int32_t token_at(const struct sched_seq *seq, int32_t at)
{
    return at < seq->n_tokens ? seq->tokens[at] : -1;
}

/* All rows count for a mean, and the prompt's last one alone for itself. */
static void build_pool(struct batch *b, const struct sched_item *item)
{
    struct step_pool pool = {.slot = item->slot, .row0 = item->row0, .n_rows = item->n_rows};

    pool.is_first = item->pos0 == 0;
    if (item->seq->pooling == POOLING_LAST) {
        if (item->pos0 + item->n_rows < item->seq->n_prompt)
            return;
        pool = (struct step_pool){item->slot, item->row0 + item->n_rows - 1, 1, true};
    }
    b->pools[b->device.n_pools++] = pool;
}

static void build_rows(struct batch *b, const struct sched_item *item)
{
    const struct sched_seq *seq = item->seq;
    int32_t at = item->logit0;

    for (int32_t r = 0; r < item->n_rows; r++) {
        int32_t pos = item->pos0 + r;

        b->rows.token[item->row0 + r] = token_at(seq, pos);
        b->rows.pos[item->row0 + r] = pos;
        b->rows.slot[item->row0 + r] = seq->slot;
        b->rope_len[item->row0 + r] = item->is_decode ? pos + 1 : seq->n_prompt;
    }
    if (!item->is_decode)
        b->chunks[b->device.n_chunks++] = (struct step_chunk){
            .slot = seq->slot, .row0 = item->row0, .n_rows = item->n_rows, .pos0 = item->pos0};
    for (int32_t k = 0; k < item->n_prompt_logits; k++)
        b->logit_row[at++] = item->row0 + sched_item_logit_pos(item, k) - item->pos0;
    if (item->seq->pooling)
        build_pool(b, item);
    if (item->samples)
        b->logit_row[at++] = item->row0 + item->n_rows - 1;
}

static void build_blocks(struct batch *b, const struct sched_item *item)
{
    const struct sched_seq *seq = item->seq;
    int len = b->params.block->block_len;

    for (int32_t r = 0; r < item->n_rows; r++) {
        int32_t row = item->row0 + r, pos = item->pos0 + r;

        b->block.pos[row] = pos;
        b->block.slot[row] = seq->slot;
        for (int k = 0; k < len; k++)
            b->block.token[row * len + k] = token_at(seq, pos * len + k - seq->lead);
    }
    if (!item->is_decode)
        b->chunks[b->blocks.blocks.n_chunks++] = (struct step_chunk){
            .slot = seq->slot, .row0 = item->row0, .n_rows = item->n_rows, .pos0 = item->pos0};
}

/* One block's rows for the token decoder; its row0 comes from the rows that are there already. */
static void build_token(struct batch *b, const struct sched_item *item, int phase)
{
    const struct block_config *c = b->params.block;
    int32_t row0 = b->device.n_rows, last = row0 + item->n_rows - 1, at = item->logit0;

    for (int32_t r = 0; r < item->n_rows; r++) {
        int32_t row = row0 + r, pos = phase == 0 ? r : c->n_prefix + phase - 1;

        b->rows.token[row] = phase == 0 ? 0 : token_at(item->seq, item->pos0 - 1);
        b->rows.pos[row] = pos;
        if (c->shares_prefix_pos)
            b->rows.rope_pos[row] = phase;
        b->rows.slot[row] = item->seat;
    }
    b->device.n_rows += item->n_rows;
    b->context_row[b->blocks.n_items++] = item->context_row;
    if (item->n_prompt_logits || item->samples)
        b->logit_row[at] = last;
}

void batch_build(struct batch *b, const struct sched_step *step)
{
    CHECK(step->n_logits <= b->params.max_logits);
    b->device.n_rows = b->device.n_decode = b->device.n_chunks = b->device.n_pools = 0;
    b->blocks.blocks.n_chunks = b->blocks.n_items = 0;
    b->device.n_logits = step->n_logits;
    if (!b->params.block) {
        CHECK(step->n_rows <= b->params.max_rows);
        CHECK(step->n_items - step->n_decode <= b->params.n_slots);
        b->device.n_rows = step->n_rows;
        b->device.n_decode = step->n_decode;
    }
    CHECK(step->n_block_rows <= b->params.max_rows);
    for (int i = 0; i < step->n_items; i++) {
        const struct sched_item *item = &step->items[i];

        switch (item->kind) {
        case SCHED_ROWS:
            build_rows(b, item);
            break;
        case SCHED_BLOCKS:
            build_blocks(b, item);
            break;
        case SCHED_TOKEN:
            build_token(b, item, step->phase);
            break;
        }
    }
    if (b->params.block) {
        CHECK(b->device.n_rows <= b->max_tokens);
        b->device.n_decode = b->device.n_rows;
        b->blocks.blocks.n_rows = step->n_block_rows;
        b->blocks.blocks.n_decode = step->n_block_decode;
        b->blocks.from_context = step->phase == 0;
        b->blocks.tokens = b->device;
    }
}

int batch_upload(struct batch *b, struct err *err)
{
    return b->be->ops->upload(b->be, b->device_block, b->host_block, b->block_bytes, err);
}
