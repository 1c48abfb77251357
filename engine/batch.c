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

/* Where the phases of whole blocks find what differs from step to step. */
static void lay_out_whole(struct batch *b, size_t *at)
{
    size_t n_items = (size_t)b->params.max_logits;
    const int32_t *seat = part(b, &b->seat, n_items, at), *token;

    b->whole.tokens.slot =
        part(b, &b->prefix_seat, n_items * (size_t)b->params.block->n_prefix, at);
    token = part(b, &b->later_token, n_items * (size_t)(b->params.block->block_len - 1), at);
    for (int p = 1; p < b->params.block->block_len && b->later; p++) {
        b->later[p - 1].tokens.slot = seat;
        b->later[p - 1].tokens.token = token ? token + (size_t)(p - 1) * n_items : NULL;
    }
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
        lay_out_whole(b, &at);
    }
    chunks = part(b, &host_chunks, (size_t)b->params.n_slots * CHUNK_WORDS, &at);
    d->chunks = (const struct step_chunk *)chunks;
    b->chunks = (struct step_chunk *)host_chunks;
    pools = part(b, &host_pools, (size_t)b->params.n_slots * POOL_WORDS, &at);
    b->device.pools = (const struct step_pool *)pools;
    b->pools = (struct step_pool *)host_pools;
    return at;
}

/*
 * What phase p's rows are in every step: n_prefix of them an item in phase 0, else one. Written to
 * host where that is not NULL; returns how many words.
 */
static size_t fixed_rows(const struct batch *b, struct block_step *step, int p, int32_t *host,
                         const int32_t *device)
{
    const struct block_config *c = b->params.block;
    size_t n_items = (size_t)b->params.max_logits, per = p == 0 ? (size_t)c->n_prefix : 1;
    size_t n = n_items * per;

    step->tokens.pos = device;
    step->tokens.logit_row = device + n;
    step->tokens.rope_pos = c->shares_prefix_pos ? device + n + n_items : NULL;
    if (p == 0)
        step->tokens.token = device + 2 * n + n_items;
    for (size_t i = 0; i < n && host; i++) {
        host[i] = p == 0 ? (int32_t)(i % per) : c->n_prefix + p - 1;
        host[n + n_items + i] = p;
        host[2 * n + n_items + i] = 0;
    }
    for (size_t i = 0; i < n_items && host; i++)
        host[n + i] = (int32_t)(i * per + per - 1);
    return 3 * n + n_items;
}

/* All phases' words; returns how many. */
static size_t fixed_phases(struct batch *b, int32_t *host)
{
    const int32_t *device = b->fixed_block;
    size_t at = fixed_rows(b, &b->whole, 0, host, device);

    for (int p = 1; p < b->params.block->block_len; p++)
        at += fixed_rows(b, &b->later[p - 1], p, host ? host + at : NULL, device + at);
    return at;
}

static int open_whole(struct batch *b, struct err *err)
{
    const struct backend_ops *ops = b->be->ops;
    int len = b->params.block->block_len, rc;
    int32_t *host;
    size_t words;

    b->later = calloc((size_t)(len > 1 ? len - 1 : 1), sizeof(*b->later));
    if (!b->later)
        return err_set(err, ERR_NO_ROOM, "batch: no memory for %d phases", len);
    words = (size_t)b->params.max_logits * (size_t)(3 * b->params.block->n_prefix + 4 * len - 3);
    host = calloc(words, sizeof(*host));
    rc = host ? ops->alloc(b->be, &b->fixed_block, words * sizeof(*host), err)
              : err_set(err, ERR_NO_ROOM, "batch: no memory for %d blocks", b->params.max_logits);
    if (rc == 0) {
        CHECK(fixed_phases(b, host) == words);
        rc = ops->upload(b->be, b->fixed_block, host, words * sizeof(*host), err);
    }
    free(host);
    return rc;
}

/* Tokens that nobody has drawn are read all the same, where a block is decoded past its end. */
static int open_slot_tokens(struct batch *b, struct err *err)
{
    int stride = b->params.block ? b->params.block->block_len : 1;
    size_t n = (size_t)b->params.n_slots * (size_t)stride;
    int32_t *zeros = calloc(n, sizeof(*zeros));
    void *slot_token = NULL;
    int rc = zeros ? b->be->ops->alloc(b->be, &slot_token, n * sizeof(*zeros), err)
                   : err_set(err, ERR_NO_ROOM, "batch: no memory for %d slots", b->params.n_slots);

    b->slot_token = slot_token;
    if (rc == 0)
        rc = b->be->ops->upload(b->be, slot_token, zeros, n * sizeof(*zeros), err);
    free(zeros);
    b->device.slot_token = b->blocks.blocks.slot_token = slot_token;
    b->device.slot_stride = b->blocks.blocks.slot_stride = stride;
    for (int p = 1; rc == 0 && p < stride; p++) {
        b->later[p - 1].tokens.slot_token = b->slot_token + p - 1;
        b->later[p - 1].tokens.slot_stride = stride;
    }
    return rc;
}

int batch_init(struct batch *b, struct backend *be, const struct batch_params *params,
               struct err *err)
{
    const struct block_config *c = params->block;
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
    if (rc == 0 && c)
        rc = open_whole(b, err);
    if (rc == 0)
        rc = open_slot_tokens(b, err);
    if (rc < 0)
        goto out;
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
    b->be->ops->free(b->be, b->fixed_block);
    free(b->later);
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

/* Row i of all phases. */
static void put_whole(struct batch *b, int i, int32_t seat, int32_t context_row)
{
    int n_prefix = b->params.block->n_prefix;

    b->seat[i] = seat;
    for (int r = 0; r < n_prefix; r++)
        b->prefix_seat[i * n_prefix + r] = seat;
    b->context_row[i] = context_row;
}

/* A whole block's rows for the token decoder, in all phases. */
static void build_whole(struct batch *b, const struct sched_item *item)
{
    int i = b->whole.n_items++;

    put_whole(b, i, item->seat, item->context_row);
    for (int p = 1; p < b->params.block->block_len; p++)
        b->later_token[(p - 1) * b->params.max_logits + i] =
            token_at(item->seq, item->pos0 + p - 1);
}

/* The steps that the ops get, of n items. */
static void size_whole(struct batch *b, int n)
{
    struct step_batch *t = &b->whole.tokens;

    b->whole.blocks = b->blocks.blocks;
    b->whole.block_token = b->blocks.block_token;
    b->whole.context_row = b->blocks.context_row;
    b->whole.from_context = true;
    b->whole.n_items = n;
    t->n_rows = t->n_decode = n * b->params.block->n_prefix;
    t->n_logits = n;
    for (int p = 1; p < b->params.block->block_len; p++) {
        t = &b->later[p - 1].tokens;
        b->later[p - 1].n_items = n;
        t->n_rows = t->n_decode = t->n_logits = n;
    }
}

void batch_pad_whole(struct batch *b, int n_items)
{
    struct step_batch *d = &b->blocks.blocks;
    int n = b->whole.n_items, len = b->params.block->block_len;
    bool all_decode = d->n_rows == n && d->n_decode == n;

    CHECK(n > 0);
    CHECK(n_items <= b->params.max_logits);
    for (int i = n; i < n_items; i++) {
        put_whole(b, i, b->seat[0], b->context_row[0]);
        for (int p = 1; p < len; p++)
            b->later_token[(p - 1) * b->params.max_logits + i] =
                b->later_token[(p - 1) * b->params.max_logits];
    }
    for (int i = n; i < n_items && all_decode; i++) {
        CHECK(i < b->params.max_rows);
        b->block.pos[i] = b->block.pos[0];
        b->block.slot[i] = b->block.slot[0];
        memcpy(&b->block.token[i * len], b->block.token, (size_t)len * sizeof(int32_t));
    }
    if (all_decode && n_items > n)
        d->n_rows = d->n_decode = n_items;
    size_whole(b, n_items > n ? n_items : n);
}

void batch_build(struct batch *b, const struct sched_step *step)
{
    CHECK(step->n_logits <= b->params.max_logits);
    b->device.n_rows = b->device.n_decode = b->device.n_chunks = b->device.n_pools = 0;
    b->blocks.blocks.n_chunks = b->blocks.n_items = b->whole.n_items = 0;
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
        case SCHED_WHOLE:
            build_whole(b, item);
            break;
        }
    }
    if (b->params.block) {
        CHECK(b->device.n_rows <= b->max_tokens);
        b->device.n_decode = b->device.n_rows;
        b->blocks.blocks.n_rows = step->n_block_rows;
        b->blocks.blocks.n_decode = step->n_block_decode;
        b->blocks.from_context = step->phase == 0;
        if (step->phase > 0) /* what phase before drew */
            b->device.slot_token = b->slot_token + step->phase - 1;
        b->blocks.tokens = b->device;
        size_whole(b, b->whole.n_items);
    }
}

int batch_upload(struct batch *b, struct err *err)
{
    return b->be->ops->upload(b->be, b->device_block, b->host_block, b->block_bytes, err);
}
