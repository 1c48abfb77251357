/*
 * model - opening, closing and asking a loaded decoder. See model.h.
 *
 * Owns the weights, the mapped files behind them, and the activation buffers. The forward passes
 * live in a file for each family.
 */
#include "engine/model/model.h"

#include "base/err.h"
#include "engine/model/model_impl.h"
#include "engine/model/rope.h"
#include "engine/model/weights_dir.h"

#include <stdlib.h>

static int buffer(struct model *m, void **out, size_t n_rows, size_t row_bytes, struct err *err)
{
    int rc = m->be->ops->alloc(m->be, out, n_rows * row_bytes, err);

    if (rc == 0)
        m->buffer_bytes += n_rows * row_bytes;
    return rc;
}

static int open_buffers(struct model *m, struct err *err)
{
    const struct model_config *c = &m->cfg;
    size_t act = dtype_bytes(m->be->act_dtype), rows = m->max_rows;
    size_t q_row = (size_t)c->n_heads * c->head_dim * act;
    size_t kv_row = (size_t)c->n_kv_heads * c->head_dim * sizeof(float);
    int rc;

    rc = buffer(m, &m->x, rows, c->dim * act, err);
    if (rc == 0)
        rc = buffer(m, &m->q, rows, q_row, err);
    if (rc == 0)
        rc = buffer(m, &m->attn_out, rows, q_row, err);
    if (rc == 0)
        rc = buffer(m, &m->k_chunk, rows, kv_row, err);
    if (rc == 0)
        rc = buffer(m, &m->v_chunk, rows, kv_row, err);
    if (rc == 0)
        rc = buffer(m, (void **)&m->logits, m->max_logits, c->vocab_size * sizeof(float), err);
    return rc;
}

static int open_rope(struct model *m, struct err *err)
{
    const struct rope_config *r = &m->cfg.rope;
    size_t n_rows = r->kind == ROPE_DYNAMIC ? m->max_rows : 1;
    size_t row_bytes = r->dim / 2 * sizeof(float);
    int rc;

    m->rope_scale = rope_scale(r);
    m->inv_freq_host = calloc(n_rows, row_bytes);
    if (!m->inv_freq_host)
        return err_set(err, ERR_NO_ROOM, "rope: no memory for %zu rows", n_rows);
    rope_inv_freq(m->inv_freq_host, r, 1);
    rc = buffer(m, (void **)&m->inv_freq, n_rows, row_bytes, err);
    if (rc == 0)
        rc = m->be->ops->upload(m->be, m->inv_freq, m->inv_freq_host, row_bytes, err);
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
    m->layers = calloc(cfg->n_layers, sizeof(*m->layers));
    if (!m->layers) {
        rc = err_set(err, ERR_NO_ROOM, "model dir %s: out of memory", params->dir);
        goto out;
    }
    rc = weight_list_load(m, params, err);
    if (rc < 0)
        goto out;
    rc = open_buffers(m, err);
    if (rc < 0)
        goto out;
    rc = open_rope(m, err);
    if (rc < 0)
        goto out;
    *out = m;
    m = NULL; /* the caller owns it now */
out:
    model_close(m); /* accepts NULL and half-built */
    return rc;
}

static void layer_release(struct backend *be, struct llama_layer *y)
{
    struct weight *all[] = {&y->attn_norm, &y->wqkv, &y->bqkv,   &y->q_norm,
                            &y->k_norm,    &y->wo,   &y->bo,     &y->ffn_norm,
                            &y->w_in,      &y->b_in, &y->w_down, &y->b_down};

    for (size_t i = 0; i < sizeof(all) / sizeof(all[0]); i++)
        be->ops->weight_free(be, all[i]);
}

void model_close(struct model *m)
{
    if (!m)
        return;
    m->be->ops->weight_free(m->be, &m->embed);
    m->be->ops->weight_free(m->be, &m->head);
    m->be->ops->weight_free(m->be, &m->norm);
    for (int i = 0; m->layers && i < m->cfg.n_layers; i++)
        layer_release(m->be, &m->layers[i]);
    free(m->layers);
    m->be->ops->free(m->be, m->x);
    m->be->ops->free(m->be, m->q);
    m->be->ops->free(m->be, m->k_chunk);
    m->be->ops->free(m->be, m->v_chunk);
    m->be->ops->free(m->be, m->attn_out);
    m->be->ops->free(m->be, m->logits);
    m->be->ops->free(m->be, m->inv_freq);
    free(m->inv_freq_host);
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
    return m->cfg.rope.kind == ROPE_DYNAMIC;
}

float *model_logits(struct model *m)
{
    return m->logits;
}

int model_forward(struct model *m, const struct step_batch *batch, const struct kv_view *kv,
                  const int32_t *rope_len, struct err *err)
{
    return llama_forward(m, batch, kv, rope_len, err);
}
