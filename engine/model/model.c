/*
 * model - opening, closing and asking a loaded decoder. See model.h.
 *
 * Owns the weights, the mapped files behind them, and the activation buffers. What happens between
 * embedding and head is in stack.c.
 */
#include "engine/model/model.h"

#include "base/check.h"
#include "base/err.h"
#include "engine/model/model_impl.h"
#include "engine/model/weights_dir.h"

#include <stdlib.h>

#define MAX_LOGITS_BYTES ((size_t)256 << 20) /* a thousand rows of 50k: what a product wants */
#define LOGITS_STEP      128                 /* rows of a product's tile */

/*
 * Room for what the forward pass ends in. Thousands of a Block Transformer's rows have their logits
 * in turns: all of them at once would be gigabytes.
 */
static int open_results(struct model *m, struct err *err)
{
    size_t row_bytes = (size_t)m->cfg.vocab_size * sizeof(float), bytes;
    size_t most = MAX_LOGITS_BYTES / row_bytes / LOGITS_STEP * LOGITS_STEP;
    size_t pooled_bytes = (size_t)m->n_pool_slots * m->cfg.stack.dim * sizeof(double);
    int rc;

    most = most > LOGITS_STEP ? most : LOGITS_STEP;
    m->n_logit_rows = m->max_logits;
    if (m->cfg.block.block_len && (size_t)m->max_logits > most)
        m->n_logit_rows = (int)most;
    bytes = (size_t)m->n_logit_rows * row_bytes;
    rc = m->be->ops->alloc(m->be, (void **)&m->logits, bytes, err);
    if (rc == 0 && pooled_bytes)
        rc = m->be->ops->alloc(m->be, (void **)&m->pooled, pooled_bytes, err);
    m->buffer_bytes = m->stack.buffer_bytes + m->block.buffer_bytes + bytes + pooled_bytes;
    return rc;
}

int model_open(struct model **out, const struct model_config *cfg, struct backend *be,
               const struct model_params *params, struct err *err)
{
    int rc;
    struct model *m = calloc(1, sizeof(*m));

    if (!m)
        return err_set(err, ERR_NO_ROOM, "model dir %s: out of memory", params->dir);
    m->cfg = *cfg;
    m->be = be;
    m->max_rows = params->max_rows;
    m->max_logits = params->max_logits;
    m->n_pool_slots = params->n_pool_slots;
    rc = stack_init(&m->stack, &cfg->stack, be, params->max_rows, err);
    if (rc < 0)
        goto out;
    if (cfg->block.block_len)
        rc = stack_init(&m->block.token, &cfg->block.token, be,
                        params->max_items * cfg->block.n_prefix, err);
    if (rc < 0)
        goto out;
    rc = weight_list_load(m, params, err);
    if (rc < 0)
        goto out;
    rc = stack_open_buffers(&m->stack, err);
    if (rc < 0)
        goto out;
    if (cfg->block.block_len)
        rc = block_parts_open(m, params->max_items, err);
    if (rc < 0)
        goto out;
    rc = open_results(m, err);
    if (rc < 0)
        goto out;
    *out = m;
    m = NULL; /* the caller owns it now */
out:
    model_close(m); /* accepts NULL and half-built */
    return rc;
}

void model_close(struct model *m)
{
    if (!m)
        return;
    m->be->ops->weight_free(m->be, &m->embed);
    m->be->ops->weight_free(m->be, &m->head);
    block_parts_release(m);
    stack_release(&m->stack);
    m->be->ops->free(m->be, m->logits);
    m->be->ops->free(m->be, m->pooled);
    for (int i = 0; i < m->n_aligned; i++)
        free(m->aligned[i]);
    free(m->aligned);
    weights_dir_close(m->files); /* last: weights may have pointed into it */
    free(m);
}

const struct model_config *model_get_config(const struct model *m)
{
    return &m->cfg;
}

int model_unused(const struct model *m, const char **example)
{
    if (example)
        *example = m->unused;
    return m->n_unused;
}

size_t model_weight_bytes(const struct model *m)
{
    return m->weight_bytes;
}

size_t model_buffer_bytes(const struct model *m)
{
    return m->buffer_bytes;
}

bool model_wants_rope_len(const struct model *m)
{
    return m->cfg.stack.rope.kind == ROPE_DYNAMIC;
}

int model_logit_rows(const struct model *m)
{
    return m->n_logit_rows;
}

float *model_logits(struct model *m)
{
    return m->logits;
}

double *model_pooled(struct model *m)
{
    return m->pooled;
}

int model_forward(struct model *m, const struct step_batch *batch, const struct kv_view *kv,
                  const int32_t *rope_len, struct err *err)
{
    const struct backend_ops *ops = m->be->ops;
    struct embed_args embed = {.batch = batch, .table = &m->embed, .x = m->stack.x};
    struct logits_args logits = {.batch = batch,
                                 .dim = m->cfg.stack.dim,
                                 .vocab_size = m->cfg.vocab_size,
                                 .norm = stack_norm(&m->stack),
                                 .head = m->cfg.tie_embeddings ? &m->embed : &m->head,
                                 .x = m->stack.x,
                                 .out = m->logits};
    struct pool_args pool = {.batch = batch,
                             .dim = m->cfg.stack.dim,
                             .norm = logits.norm,
                             .x = m->stack.x,
                             .sums = m->pooled};
    int rc = ops->embed(m->be, &embed, err);

    CHECK(batch->n_logits <= m->max_logits);
    CHECK(batch->n_pools <= m->n_pool_slots);
    if (rc == 0)
        rc = stack_forward(&m->stack, batch, kv, rope_len, err);
    if (rc == 0 && batch->n_logits > 0)
        rc = ops->logits(m->be, &logits, err);
    if (rc == 0 && batch->n_pools > 0)
        rc = ops->pool(m->be, &pool, err);
    return rc;
}
