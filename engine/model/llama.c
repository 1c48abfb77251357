/*
 * llama - the forward pass of the Llama family: Llama, Vicuna, Mistral, Qwen2, Qwen3.
 *
 * A straight list of backend ops, to be read beside the papers. What the families differ in is
 * data: weights that are NULL, windows in the kv_view, frequencies. Engine thread only; allocates
 * nothing.
 */
#include "base/check.h"
#include "base/err.h"
#include "engine/model/model_impl.h"
#include "engine/model/rope.h"

#include <math.h>
#include <string.h>

/* A weight that the architecture does not have is no weight to an op. */
static const struct weight *or_null(const struct weight *w)
{
    return w->data ? w : NULL;
}

/* Dynamic rope: each row's frequencies by its own length, so that a row depends on nothing else. */
int llama_upload_rope(struct model *m, int n_rows, const int32_t *rope_len, struct err *err)
{
    int half = m->cfg.rope.dim / 2;

    CHECK(rope_len);
    for (int row = 0; row < n_rows; row++) {
        float *out = m->inv_freq_host + (size_t)row * half;

        /* The rows of a prompt share a length: the powers are taken once. */
        if (row > 0 && rope_len[row] == rope_len[row - 1])
            memcpy(out, out - half, half * sizeof(*out));
        else
            rope_inv_freq(out, &m->cfg.rope, rope_len[row]);
    }
    return m->be->ops->upload(m->be, m->inv_freq, m->inv_freq_host,
                              (size_t)n_rows * half * sizeof(float), err);
}

static struct norm_args rms_norm(const struct model_config *c, const struct weight *gain)
{
    return (struct norm_args){.kind = NORM_RMS, .gain = gain, .eps = c->norm_eps};
}

struct attn_in_args llama_attn_in(const struct model *m, int layer, const struct step_batch *batch,
                                  const struct kv_view *kv)
{
    const struct model_config *c = &m->cfg;
    const struct llama_layer *y = &m->layers[layer];

    return (struct attn_in_args){.batch = batch,
                                 .kv = kv,
                                 .layer = layer,
                                 .dim = c->dim,
                                 .n_heads = c->n_heads,
                                 .n_kv_heads = c->n_kv_heads,
                                 .head_dim = c->head_dim,
                                 .x = m->x,
                                 .norm = rms_norm(c, &y->attn_norm),
                                 .wqkv = &y->wqkv,
                                 .bqkv = or_null(&y->bqkv),
                                 .q_norm = or_null(&y->q_norm),
                                 .k_norm = or_null(&y->k_norm),
                                 .qk_norm_eps = c->norm_eps,
                                 .rope_dim = c->rope.dim,
                                 .inv_freq = m->inv_freq,
                                 .inv_freq_stride =
                                     c->rope.kind == ROPE_DYNAMIC ? c->rope.dim / 2 : 0,
                                 .rope_scale = m->rope_scale,
                                 .q = m->q,
                                 .k_chunk = m->k_chunk,
                                 .v_chunk = m->v_chunk};
}

struct attn_args llama_attn(const struct model *m, int layer, const struct step_batch *batch,
                            const struct kv_view *kv)
{
    const struct model_config *c = &m->cfg;

    return (struct attn_args){.batch = batch,
                              .kv = kv,
                              .layer = layer,
                              .n_heads = c->n_heads,
                              .n_kv_heads = c->n_kv_heads,
                              .head_dim = c->head_dim,
                              .scale = 1.0f / sqrtf((float)c->head_dim),
                              .q = m->q,
                              .k_chunk = m->k_chunk,
                              .v_chunk = m->v_chunk,
                              .out = m->attn_out};
}

struct attn_out_args llama_attn_out(const struct model *m, int layer,
                                    const struct step_batch *batch)
{
    const struct model_config *c = &m->cfg;
    const struct llama_layer *y = &m->layers[layer];

    return (struct attn_out_args){.batch = batch,
                                  .dim = c->dim,
                                  .n_in = c->n_heads * c->head_dim,
                                  .a = m->attn_out,
                                  .wo = &y->wo,
                                  .bo = or_null(&y->bo),
                                  .x = m->x,
                                  .next_norm = rms_norm(c, &y->ffn_norm)};
}

struct ffn_args llama_ffn(const struct model *m, int layer, const struct step_batch *batch)
{
    const struct model_config *c = &m->cfg;
    const struct llama_layer *y = &m->layers[layer];
    struct ffn_args ffn = {.batch = batch,
                           .dim = c->dim,
                           .ffn_dim = c->ffn_dim,
                           .norm = rms_norm(c, &y->ffn_norm),
                           .act = c->act,
                           .gated = true,
                           .w_in = &y->w_in,
                           .b_in = or_null(&y->b_in),
                           .w_down = &y->w_down,
                           .b_down = or_null(&y->b_down),
                           .x = m->x};

    if (layer + 1 < c->n_layers)
        ffn.next_norm = rms_norm(c, &m->layers[layer + 1].attn_norm);
    return ffn;
}

static int layer_forward(struct model *m, int layer, const struct step_batch *batch,
                         const struct kv_view *kv, struct err *err)
{
    const struct model_config *c = &m->cfg;
    const struct backend_ops *ops = m->be->ops;
    struct attn_in_args attn_in = llama_attn_in(m, layer, batch, kv);
    struct attn_args attn = llama_attn(m, layer, batch, kv);
    struct kv_append_args append = {.batch = batch,
                                    .kv = kv,
                                    .layer = layer,
                                    .n_kv_heads = c->n_kv_heads,
                                    .head_dim = c->head_dim,
                                    .k_chunk = m->k_chunk,
                                    .v_chunk = m->v_chunk};
    struct attn_out_args attn_out = llama_attn_out(m, layer, batch);
    struct ffn_args ffn = llama_ffn(m, layer, batch);
    int rc;

    rc = ops->attn_in(m->be, &attn_in, err);
    if (rc == 0)
        rc = ops->attn(m->be, &attn, err);
    if (rc == 0)
        rc = ops->kv_append(m->be, &append, err);
    if (rc == 0)
        rc = ops->attn_out(m->be, &attn_out, err);
    if (rc == 0)
        rc = ops->ffn(m->be, &ffn, err);
    return rc;
}

int llama_forward(struct model *m, const struct step_batch *batch, const struct kv_view *kv,
                  const int32_t *rope_len, struct err *err)
{
    const struct model_config *c = &m->cfg;
    const struct backend_ops *ops = m->be->ops;
    struct embed_args embed = {.batch = batch, .table = &m->embed, .x = m->x};
    struct logits_args logits = {.batch = batch,
                                 .dim = c->dim,
                                 .vocab_size = c->vocab_size,
                                 .norm = rms_norm(c, &m->norm),
                                 .head = c->tie_embeddings ? &m->embed : &m->head,
                                 .x = m->x,
                                 .out = m->logits};
    int rc = 0;

    CHECK(batch->n_rows <= m->max_rows);
    CHECK(batch->n_logits <= m->max_logits);
    if (c->rope.kind == ROPE_DYNAMIC)
        rc = llama_upload_rope(m, batch->n_rows, rope_len, err);
    if (rc == 0)
        rc = ops->embed(m->be, &embed, err);
    for (int layer = 0; layer < c->n_layers && rc == 0; layer++)
        rc = layer_forward(m, layer, batch, kv, err);
    if (rc == 0 && batch->n_logits > 0)
        rc = ops->logits(m->be, &logits, err);
    return rc;
}
