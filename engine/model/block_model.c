/*
 * block_model - the forward pass of a Block Transformer, and what its token decoder keeps.
 *
 * The token decoder's keys live for one block: n_prefix + block_len - 1 of them, in a slab with one
 * page a head, overwritten by the next block that takes its place. So its ops are those of every
 * decoder, on a view of their own.
 */
#include "base/check.h"
#include "base/err.h"
#include "engine/model/model_impl.h"

#include <stdlib.h>

static int buffer(struct model *m, void **out, size_t bytes, struct err *err)
{
    int rc = m->be->ops->alloc(m->be, out, bytes, err);

    if (rc == 0)
        m->block.buffer_bytes += bytes;
    return rc;
}

/* The same n int32s or geometries for every head, on the device. */
static int open_table(struct model *m, void **out, const void *host, size_t bytes, struct err *err)
{
    int rc = buffer(m, out, bytes, err);

    return rc < 0 ? rc : m->be->ops->upload(m->be, *out, host, bytes, err);
}

static int open_slab(struct model *m, int n_items, struct err *err)
{
    const struct stack_config *c = &m->cfg.block.token;
    struct block_parts *b = &m->block;
    int page_entries = m->cfg.block.n_prefix + m->cfg.block.block_len - 1;
    size_t n_kv = (size_t)n_items * c->n_layers * c->n_kv_heads;
    size_t n_query = (size_t)n_items * c->n_layers * c->n_heads;
    size_t page_bytes = 2 * (size_t)page_entries * c->head_dim * dtype_bytes(m->be->act_dtype);
    int32_t *pages = calloc(n_kv, sizeof(*pages)), *window = calloc(n_query, sizeof(*window));
    struct kv_geom *geom = calloc(n_kv, sizeof(*geom));
    int rc = 0;

    if (!pages || !window || !geom)
        rc = err_set(err, ERR_NO_ROOM, "token decoder: no memory for %d blocks", n_items);
    for (size_t i = 0; i < n_kv && rc == 0; i++) {
        pages[i] = (int32_t)i;
        geom[i] = (struct kv_geom){.ring = KV_RING_DENSE, .mask = KV_MASK_TOKEN};
    }
    for (size_t i = 0; i < n_query && rc == 0; i++)
        window[i] = KV_WINDOW_ALL;
    if (rc == 0)
        rc = buffer(m, &b->pages, n_kv * page_bytes, err);
    if (rc == 0)
        rc = open_table(m, &b->page_table, pages, n_kv * sizeof(*pages), err);
    if (rc == 0)
        rc = open_table(m, &b->geom, geom, n_kv * sizeof(*geom), err);
    if (rc == 0)
        rc = open_table(m, &b->window, window, n_query * sizeof(*window), err);
    b->slab = (struct kv_view){.pages = b->pages,
                               .page_bytes = page_bytes,
                               .page_entries = page_entries,
                               .is_slab = true,
                               .head_dim = c->head_dim,
                               .n_layers = c->n_layers,
                               .n_heads = c->n_heads,
                               .n_kv_heads = c->n_kv_heads,
                               .dtype = m->be->act_dtype,
                               .page_table = b->page_table,
                               .head_base = b->page_table, /* head i's run is page i alone */
                               .geom = b->geom,
                               .window = b->window};
    free(pages);
    free(window);
    free(geom);
    return rc;
}

int block_parts_open(struct model *m, int n_items, struct err *err)
{
    const struct block_config *c = &m->cfg.block;
    size_t gathered = (size_t)m->max_rows * c->block_len * c->embed_dim;
    int rc = 0;

    if (!m->be->ops->block_embed || !m->be->ops->block_to_prefix)
        return err_set(err, ERR_UNSUPPORTED, "Block Transformers are not built for device %s",
                       m->be->ops->name);
    CHECK(n_items > 0);
    if (c->projects)
        rc = buffer(m, &m->block.gathered, gathered * dtype_bytes(m->be->act_dtype), err);
    if (rc == 0)
        rc = stack_open_buffers(&m->block.token, err);
    if (rc == 0)
        rc = open_slab(m, n_items, err);
    m->block.buffer_bytes += m->block.token.buffer_bytes;
    return rc;
}

void block_parts_release(struct model *m)
{
    struct block_parts *b = &m->block;
    struct weight *weights[] = {&b->proj, &b->proj_bias, &b->expand, &b->expand_bias,
                                &b->token_embed};

    for (size_t i = 0; i < sizeof(weights) / sizeof(weights[0]); i++)
        m->be->ops->weight_free(m->be, weights[i]);
    stack_release(&b->token);
    m->be->ops->free(m->be, b->gathered);
    m->be->ops->free(m->be, b->pages);
    m->be->ops->free(m->be, b->page_table);
    m->be->ops->free(m->be, b->geom);
    m->be->ops->free(m->be, b->window);
}

static int run_block_decoder(struct model *m, const struct block_step *step,
                             const struct kv_view *kv, struct err *err)
{
    const struct block_config *c = &m->cfg.block;
    struct block_embed_args embed = {.batch = &step->blocks,
                                     .block_len = c->block_len,
                                     .token = step->block_token,
                                     .table = &m->embed,
                                     .w = c->projects ? &m->block.proj : NULL,
                                     .b = c->projects ? &m->block.proj_bias : NULL,
                                     .gathered = m->block.gathered,
                                     .x = m->stack.x};
    int rc = m->be->ops->block_embed(m->be, &embed, err);

    return rc < 0 ? rc : stack_forward(&m->stack, &step->blocks, kv, NULL, err);
}

/* What goes into the token decoder: prefixes, or the tokens drawn last. */
static int begin_tokens(struct model *m, const struct block_step *step, struct err *err)
{
    struct embed_args embed = {
        .batch = &step->tokens, .table = &m->block.token_embed, .x = m->block.token.x};
    struct block_to_prefix_args prefix = {.n_items = step->n_items,
                                          .dim = m->cfg.stack.dim,
                                          .row = step->context_row,
                                          .norm = stack_norm(&m->stack),
                                          .w = &m->block.expand,
                                          .b = &m->block.expand_bias,
                                          .x = m->stack.x,
                                          .out = m->block.token.x};

    return step->from_context ? m->be->ops->block_to_prefix(m->be, &prefix, err)
                              : m->be->ops->embed(m->be, &embed, err);
}

int model_block_logits(struct model *m, const struct step_batch *tokens, int first, int n,
                       struct err *err)
{
    struct step_batch batch = *tokens;
    struct logits_args logits = {.batch = &batch,
                                 .dim = m->cfg.block.token.dim,
                                 .vocab_size = m->cfg.vocab_size,
                                 .norm = stack_norm(&m->block.token),
                                 .head = m->cfg.tie_embeddings ? &m->block.token_embed : &m->head,
                                 .x = m->block.token.x,
                                 .out = m->logits};

    CHECK(first + n <= tokens->n_logits);
    CHECK(n <= m->n_logit_rows);
    batch.n_logits = n;
    batch.logit_row += first;
    return n > 0 ? m->be->ops->logits(m->be, &logits, err) : 0;
}

int model_decode_blocks(struct model *m, const struct block_step *step, const struct kv_view *kv,
                        struct err *err)
{
    int rc = 0;

    CHECK(step->tokens.n_decode == step->tokens.n_rows);
    CHECK(step->tokens.n_logits <= m->max_logits);
    if (step->blocks.n_rows > 0)
        rc = run_block_decoder(m, step, kv, err);
    if (rc < 0 || step->tokens.n_rows == 0)
        return rc;
    rc = begin_tokens(m, step, err);
    return rc < 0 ? rc : stack_forward(&m->block.token, &step->tokens, &m->block.slab, NULL, err);
}

int model_forward_blocks(struct model *m, const struct block_step *step, const struct kv_view *kv,
                         struct err *err)
{
    int rc = model_decode_blocks(m, step, kv, err);

    return rc < 0 ? rc : model_block_logits(m, &step->tokens, 0, step->tokens.n_logits, err);
}
