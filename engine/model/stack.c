/*
 * stack - the layers of a decoder, as a straight list of backend ops. See stack.h.
 *
 * To be read beside the papers. The families differ in weights that are NULL, kinds of norms,
 * windows in the kv_view, frequencies; a parallel residual is an order of ops.
 */
#include "engine/model/stack.h"

#include "base/check.h"
#include "base/err.h"
#include "engine/model/rope.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

int stack_init(struct stack *s, const struct stack_config *cfg, struct backend *be, int max_rows,
               struct err *err)
{
    *s = (struct stack){.cfg = *cfg, .be = be, .max_rows = max_rows};
    s->layers = calloc((size_t)cfg->n_layers, sizeof(*s->layers));
    if (!s->layers)
        return err_set(err, ERR_NO_ROOM, "no memory for %d layers", cfg->n_layers);
    return 0;
}

static int buffer(struct stack *s, void **out, size_t n_rows, size_t row_bytes, struct err *err)
{
    int rc = s->be->ops->alloc(s->be, out, n_rows * row_bytes, err);

    if (rc == 0)
        s->buffer_bytes += n_rows * row_bytes;
    return rc;
}

static int open_rope(struct stack *s, struct err *err)
{
    const struct rope_config *r = &s->cfg.rope;
    size_t n_rows = r->kind == ROPE_DYNAMIC ? s->max_rows : 1;
    size_t row_bytes = r->dim / 2 * sizeof(float);
    int rc;

    s->rope_scale = rope_scale(r);
    s->inv_freq_host = calloc(n_rows, row_bytes);
    if (!s->inv_freq_host)
        return err_set(err, ERR_NO_ROOM, "rope: no memory for %zu rows", n_rows);
    rope_inv_freq(s->inv_freq_host, r, 1);
    rc = buffer(s, (void **)&s->inv_freq, n_rows, row_bytes, err);
    if (rc == 0)
        rc = s->be->ops->upload(s->be, s->inv_freq, s->inv_freq_host, row_bytes, err);
    return rc;
}

int stack_open_buffers(struct stack *s, struct err *err)
{
    const struct stack_config *c = &s->cfg;
    size_t act = dtype_bytes(s->be->act_dtype), rows = s->max_rows;
    size_t q_row = (size_t)c->n_heads * c->head_dim * act;
    size_t kv_row = (size_t)c->n_kv_heads * c->head_dim * sizeof(float);
    int rc;

    rc = buffer(s, &s->x, rows, c->dim * act, err);
    if (rc == 0)
        rc = buffer(s, &s->q, rows, q_row, err);
    if (rc == 0)
        rc = buffer(s, &s->attn_out, rows, q_row, err);
    if (rc == 0)
        rc = buffer(s, &s->k_chunk, rows, kv_row, err);
    if (rc == 0)
        rc = buffer(s, &s->v_chunk, rows, kv_row, err);
    if (rc == 0)
        rc = open_rope(s, err);
    return rc;
}

static void layer_release(struct backend *be, struct stack_layer *y)
{
    struct weight *all[] = {&y->attn_norm, &y->attn_norm_bias, &y->wqkv, &y->bqkv,
                            &y->q_norm,    &y->k_norm,         &y->wo,   &y->bo,
                            &y->ffn_norm,  &y->ffn_norm_bias,  &y->w_in, &y->b_in,
                            &y->w_down,    &y->b_down};

    for (size_t i = 0; i < sizeof(all) / sizeof(all[0]); i++)
        be->ops->weight_free(be, all[i]);
}

void stack_release(struct stack *s)
{
    struct backend *be = s->be;

    if (!be)
        return;
    for (int i = 0; s->layers && i < s->cfg.n_layers; i++)
        layer_release(be, &s->layers[i]);
    free(s->layers);
    be->ops->weight_free(be, &s->norm);
    be->ops->weight_free(be, &s->norm_bias);
    be->ops->free(be, s->x);
    be->ops->free(be, s->q);
    be->ops->free(be, s->k_chunk);
    be->ops->free(be, s->v_chunk);
    be->ops->free(be, s->attn_out);
    be->ops->free(be, s->inv_freq);
    free(s->inv_freq_host);
    *s = (struct stack){0};
}

/* A weight that the architecture does not have is no weight to an op. */
static const struct weight *or_null(const struct weight *w)
{
    return w->data ? w : NULL;
}

/* Dynamic rope: each row's frequencies by its own length, so that a row depends on nothing else. */
int stack_upload_rope(struct stack *s, int n_rows, const int32_t *rope_len, struct err *err)
{
    int half = s->cfg.rope.dim / 2;

    CHECK(rope_len);
    for (int row = 0; row < n_rows; row++) {
        float *out = s->inv_freq_host + (size_t)row * half;

        /* The rows of a prompt share a length: the powers are taken once. */
        if (row > 0 && rope_len[row] == rope_len[row - 1])
            memcpy(out, out - half, half * sizeof(*out));
        else
            rope_inv_freq(out, &s->cfg.rope, rope_len[row]);
    }
    return s->be->ops->upload(s->be, s->inv_freq, s->inv_freq_host,
                              (size_t)n_rows * half * sizeof(float), err);
}

static struct norm_args norm_of(const struct stack_config *c, const struct weight *gain,
                                const struct weight *bias)
{
    return (struct norm_args){
        .kind = c->norm, .gain = gain, .bias = or_null(bias), .eps = c->norm_eps};
}

static struct norm_args attn_norm(const struct stack *s, int layer)
{
    const struct stack_layer *y = &s->layers[layer];

    return norm_of(&s->cfg, &y->attn_norm, &y->attn_norm_bias);
}

static struct norm_args ffn_norm(const struct stack *s, int layer)
{
    const struct stack_layer *y = &s->layers[layer];

    return norm_of(&s->cfg, &y->ffn_norm, &y->ffn_norm_bias);
}

struct norm_args stack_norm(const struct stack *s)
{
    return norm_of(&s->cfg, &s->norm, &s->norm_bias);
}

/* What the next layer's first op does to x; nothing behind the last one. */
static struct norm_args next_attn_norm(const struct stack *s, int layer)
{
    return layer + 1 < s->cfg.n_layers ? attn_norm(s, layer + 1) : (struct norm_args){0};
}

struct attn_in_args stack_attn_in(const struct stack *s, int layer, const struct step_batch *batch,
                                  const struct kv_view *kv)
{
    const struct stack_config *c = &s->cfg;
    const struct stack_layer *y = &s->layers[layer];

    return (struct attn_in_args){.batch = batch,
                                 .kv = kv,
                                 .layer = layer,
                                 .dim = c->dim,
                                 .n_heads = c->n_heads,
                                 .n_kv_heads = c->n_kv_heads,
                                 .head_dim = c->head_dim,
                                 .x = s->x,
                                 .norm = attn_norm(s, layer),
                                 .wqkv = &y->wqkv,
                                 .bqkv = or_null(&y->bqkv),
                                 .q_norm = or_null(&y->q_norm),
                                 .k_norm = or_null(&y->k_norm),
                                 .qk_norm_eps = c->norm_eps,
                                 .rope_dim = c->rope.dim,
                                 .inv_freq = s->inv_freq,
                                 .inv_freq_stride =
                                     c->rope.kind == ROPE_DYNAMIC ? c->rope.dim / 2 : 0,
                                 .rope_scale = s->rope_scale,
                                 .q = s->q,
                                 .k_chunk = s->k_chunk,
                                 .v_chunk = s->v_chunk};
}

struct attn_args stack_attn(const struct stack *s, int layer, const struct step_batch *batch,
                            const struct kv_view *kv)
{
    const struct stack_config *c = &s->cfg;

    return (struct attn_args){.batch = batch,
                              .kv = kv,
                              .layer = layer,
                              .n_heads = c->n_heads,
                              .n_kv_heads = c->n_kv_heads,
                              .head_dim = c->head_dim,
                              .scale = 1.0f / sqrtf((float)c->head_dim),
                              .q = s->q,
                              .k_chunk = s->k_chunk,
                              .v_chunk = s->v_chunk,
                              .out = s->attn_out};
}

struct attn_out_args stack_attn_out(const struct stack *s, int layer,
                                    const struct step_batch *batch)
{
    const struct stack_config *c = &s->cfg;
    const struct stack_layer *y = &s->layers[layer];

    return (struct attn_out_args){.batch = batch,
                                  .dim = c->dim,
                                  .n_in = c->n_heads * c->head_dim,
                                  .a = s->attn_out,
                                  .wo = &y->wo,
                                  .bo = or_null(&y->bo),
                                  .x = s->x,
                                  .next_norm = c->is_parallel ? next_attn_norm(s, layer)
                                                              : ffn_norm(s, layer)};
}

struct ffn_args stack_ffn(const struct stack *s, int layer, const struct step_batch *batch)
{
    const struct stack_config *c = &s->cfg;
    const struct stack_layer *y = &s->layers[layer];

    return (struct ffn_args){.batch = batch,
                             .dim = c->dim,
                             .ffn_dim = c->ffn_dim,
                             .norm = ffn_norm(s, layer),
                             .act = c->act,
                             .gated = c->is_gated,
                             .w_in = &y->w_in,
                             .b_in = or_null(&y->b_in),
                             .w_down = &y->w_down,
                             .b_down = or_null(&y->b_down),
                             .x = s->x,
                             .next_norm =
                                 c->is_parallel ? (struct norm_args){0} : next_attn_norm(s, layer)};
}

static int layer_forward(struct stack *s, int layer, const struct step_batch *batch,
                         const struct kv_view *kv, struct err *err)
{
    const struct stack_config *c = &s->cfg;
    const struct backend_ops *ops = s->be->ops;
    struct attn_in_args attn_in = stack_attn_in(s, layer, batch, kv);
    struct attn_args attn = stack_attn(s, layer, batch, kv);
    struct kv_append_args append = {.batch = batch,
                                    .kv = kv,
                                    .layer = layer,
                                    .n_kv_heads = c->n_kv_heads,
                                    .head_dim = c->head_dim,
                                    .k_chunk = s->k_chunk,
                                    .v_chunk = s->v_chunk};
    struct attn_out_args attn_out = stack_attn_out(s, layer, batch);
    struct ffn_args ffn = stack_ffn(s, layer, batch);
    int rc;

    rc = ops->attn_in(s->be, &attn_in, err);
    if (rc == 0)
        rc = ops->attn(s->be, &attn, err);
    if (rc == 0)
        rc = ops->kv_append(s->be, &append, err);
    /* Both read the same x if they are parallel: what is added to it first is the other's. */
    if (rc == 0 && c->is_parallel)
        rc = ops->ffn(s->be, &ffn, err);
    if (rc == 0)
        rc = ops->attn_out(s->be, &attn_out, err);
    if (rc == 0 && !c->is_parallel)
        rc = ops->ffn(s->be, &ffn, err);
    return rc;
}

int stack_forward(struct stack *s, const struct step_batch *batch, const struct kv_view *kv,
                  const int32_t *rope_len, struct err *err)
{
    int rc = 0;

    CHECK(batch->n_rows <= s->max_rows);
    if (s->cfg.rope.kind == ROPE_DYNAMIC)
        rc = stack_upload_rope(s, batch->n_rows, rope_len, err);
    for (int layer = 0; layer < s->cfg.n_layers && rc == 0; layer++)
        rc = layer_forward(s, layer, batch, kv, err);
    return rc;
}
