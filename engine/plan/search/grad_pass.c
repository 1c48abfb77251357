/*
 * grad_pass - forward, then layer by layer backward. See grad_pass.h.
 */
#include "engine/plan/search/grad_pass.h"

#include "base/check.h"
#include "base/err.h"
#include "engine/model/model_impl.h"

#include <stdlib.h>
#include <string.h>

struct grad_pass {
    struct model *m;    /* borrowed */
    struct backend *be; /* borrowed */
    struct grad *grad;
    int max_rows, stride, n_kept;

    void **kept;    /* [n_kept] inputs of layers 0, stride, 2 stride, .. */
    void **between; /* [stride] inputs of the layers of one stretch; 0 is the kept one */
    void *dx, *da, *dq, *dk, *dv;

    /* Device arrays of the one step. */
    int32_t *token, *pos, *slot;
    struct step_chunk *chunk;
    int32_t *page_table, *head_base, *window;
    struct kv_geom *geom;
    struct kv_view kv;
    struct step_batch batch;
    int32_t *host_rows; /* [max_rows] */
};

static size_t row_floats(const struct model_config *c)
{
    size_t q = (size_t)c->stack.n_heads * c->stack.head_dim,
           kv = (size_t)c->stack.n_kv_heads * c->stack.head_dim;

    /* The model's x, q, k, v, a; dx, da, dq, dk, dv; and one dk and dv a query head. */
    return 2 * (size_t)c->stack.dim + 4 * q + 4 * kv + 2 * q;
}

static struct grad_params grad_params_of(const struct model_config *c, int n_rows)
{
    return (struct grad_params){.max_rows = n_rows,
                                .max_dim = model_config_max_dim(c),
                                .n_heads = c->stack.n_heads,
                                .head_dim = c->stack.head_dim};
}

size_t grad_pass_bytes(const struct model_config *c, const struct backend *be, int n_rows,
                       int stride)
{
    struct grad_params grad = grad_params_of(c, n_rows);
    size_t kept = (size_t)((c->stack.n_layers + stride - 1) / stride + stride - 1);

    return sizeof(float) * (size_t)n_rows * (row_floats(c) + kept * (size_t)c->stack.dim) +
           cpu_grad_bytes(be, &grad);
}

/* The smallest stride from `from` on that fits; 0: none does. */
static int pick_stride(const struct model_config *c, const struct backend *be, int n_rows,
                       size_t room, int from)
{
    for (int s = from; s <= c->stack.n_layers; s++) {
        if (grad_pass_bytes(c, be, n_rows, s) <= room)
            return s;
    }
    return 0;
}

static int no_room(const struct model_config *c, const struct backend *be, int n_rows, size_t room,
                   struct err *err)
{
    int lo = 0, hi = n_rows;
    size_t least = SIZE_MAX;

    for (int s = 1; s <= c->stack.n_layers; s++) {
        size_t bytes = grad_pass_bytes(c, be, n_rows, s);

        least = bytes < least ? bytes : least;
    }
    while (hi - lo > KV_TILE) {
        int mid = lo + (hi - lo) / 2;

        if (pick_stride(c, be, mid, room, 1))
            lo = mid;
        else
            hi = mid;
    }
    return err_set(err, ERR_NO_ROOM,
                   "profiling %d tokens takes %.2f GiB at least and %.2f GiB are free; %d tokens "
                   "would fit",
                   n_rows, (double)least / 1073741824.0, (double)room / 1073741824.0,
                   lo / KV_TILE * KV_TILE);
}

static int device(struct grad_pass *p, void **out, size_t bytes, struct err *err)
{
    return p->be->ops->alloc(p->be, out, bytes, err);
}

static int open_buffers(struct grad_pass *p, struct err *err)
{
    const struct model_config *c = model_get_config(p->m);
    size_t x = sizeof(float) * (size_t)p->max_rows * (size_t)c->stack.dim;
    size_t q =
        sizeof(float) * (size_t)p->max_rows * (size_t)c->stack.n_heads * (size_t)c->stack.head_dim;
    size_t kv = q / (size_t)c->stack.n_heads * (size_t)c->stack.n_kv_heads;
    int rc = 0;

    p->kept = calloc((size_t)p->n_kept, sizeof(*p->kept));
    p->between = calloc((size_t)p->stride, sizeof(*p->between));
    p->host_rows = calloc((size_t)p->max_rows, sizeof(*p->host_rows));
    if (!p->kept || !p->between || !p->host_rows)
        return err_set(err, ERR_NO_ROOM, "profile: out of memory");
    for (int i = 0; i < p->n_kept && rc == 0; i++)
        rc = device(p, &p->kept[i], x, err);
    for (int i = 1; i < p->stride && rc == 0; i++)
        rc = device(p, &p->between[i], x, err);
    if (rc == 0)
        rc = device(p, &p->dx, x, err);
    if (rc == 0)
        rc = device(p, &p->da, q, err);
    if (rc == 0)
        rc = device(p, &p->dq, q, err);
    if (rc == 0)
        rc = device(p, &p->dk, kv, err);
    if (rc == 0)
        rc = device(p, &p->dv, kv, err);
    return rc;
}

static int open_step(struct grad_pass *p, struct err *err)
{
    size_t rows = sizeof(int32_t) * (size_t)p->max_rows;
    int rc = device(p, (void **)&p->token, rows, err);

    if (rc == 0)
        rc = device(p, (void **)&p->pos, rows, err);
    if (rc == 0)
        rc = device(p, (void **)&p->slot, rows, err);
    if (rc == 0)
        rc = device(p, (void **)&p->chunk, sizeof(*p->chunk), err);
    for (int i = 0; i < p->max_rows; i++)
        p->host_rows[i] = i;
    if (rc == 0)
        rc = p->be->ops->upload(p->be, p->pos, p->host_rows, rows, err);
    memset(p->host_rows, 0, rows);
    if (rc == 0)
        rc = p->be->ops->upload(p->be, p->slot, p->host_rows, rows, err);
    return rc;
}

/* Every head keeps everything, or its trained window; no page is ever touched. */
static int open_view(struct grad_pass *p, struct err *err)
{
    const struct model_config *c = model_get_config(p->m);
    int n_kv = c->stack.n_layers * c->stack.n_kv_heads, n_q = c->stack.n_layers * c->stack.n_heads;
    struct kv_geom *geom = calloc((size_t)n_kv, sizeof(*geom));
    int32_t *window = calloc((size_t)n_q, sizeof(*window));
    int32_t *base = calloc((size_t)n_kv, sizeof(*base));
    int rc = 0;

    if (!geom || !window || !base) {
        rc = err_set(err, ERR_NO_ROOM, "profile: out of memory");
        goto out;
    }
    for (int i = 0; i < n_kv; i++) {
        int w = c->window[i / c->stack.n_kv_heads];

        geom[i] = (struct kv_geom){.ring = w < KV_WINDOW_ALL ? (w + KV_TILE - 1) / KV_TILE * KV_TILE
                                                             : KV_RING_DENSE,
                                   .mask = KV_MASK_TOKEN};
    }
    for (int i = 0; i < n_q; i++)
        window[i] = c->window[i / c->stack.n_heads];
    rc = device(p, (void **)&p->geom, sizeof(*geom) * (size_t)n_kv, err);
    if (rc == 0)
        rc = device(p, (void **)&p->window, sizeof(*window) * (size_t)n_q, err);
    if (rc == 0)
        rc = device(p, (void **)&p->head_base, sizeof(*base) * (size_t)n_kv, err);
    if (rc == 0)
        rc = device(p, (void **)&p->page_table, sizeof(int32_t), err);
    if (rc == 0)
        rc = p->be->ops->upload(p->be, p->geom, geom, sizeof(*geom) * (size_t)n_kv, err);
    if (rc == 0)
        rc = p->be->ops->upload(p->be, p->window, window, sizeof(*window) * (size_t)n_q, err);
    if (rc == 0)
        rc = p->be->ops->upload(p->be, p->head_base, base, sizeof(*base) * (size_t)n_kv, err);
    if (rc == 0)
        rc = p->be->ops->upload(p->be, p->page_table, base, sizeof(int32_t), err);
    p->kv = (struct kv_view){.pages = p->page_table,
                             .page_entries = KV_TILE,
                             .head_dim = c->stack.head_dim,
                             .n_layers = c->stack.n_layers,
                             .n_heads = c->stack.n_heads,
                             .n_kv_heads = c->stack.n_kv_heads,
                             .dtype = p->be->act_dtype,
                             .page_table = p->page_table,
                             .head_base = p->head_base,
                             .geom = p->geom,
                             .window = p->window};
out:
    free(geom);
    free(window);
    free(base);
    return rc;
}

int grad_pass_open(struct grad_pass **out, struct model *m, struct backend *be,
                   const struct grad_pass_params *params, struct err *err)
{
    const struct model_config *c = model_get_config(m);
    struct grad_params grad = grad_params_of(c, params->max_rows);
    size_t room = params->max_bytes   ? params->max_bytes
                  : be->ops->mem_free ? be->ops->mem_free(be)
                                      : 0;
    struct grad_pass *p;
    int rc, stride = params->stride > 1 ? params->stride : 1;

    if (c->stack.kind != STACK_LLAMA)
        return err_set(err, ERR_UNSUPPORTED,
                       "the plan search goes back through Llama's layers only; %s has others",
                       c->model_type);
    if (room > 0)
        stride = pick_stride(c, be, params->max_rows, room, stride);
    if (stride == 0)
        return no_room(c, be, params->max_rows, room, err);
    p = calloc(1, sizeof(*p));
    if (!p)
        return err_set(err, ERR_NO_ROOM, "profile: out of memory");
    p->m = m;
    p->be = be;
    p->max_rows = params->max_rows;
    p->stride = stride;
    p->n_kept = (c->stack.n_layers + stride - 1) / stride;
    rc = cpu_grad_open(&p->grad, be, &grad, err);
    if (rc == 0)
        rc = open_buffers(p, err);
    if (rc == 0)
        rc = open_step(p, err);
    if (rc == 0)
        rc = open_view(p, err);
    if (rc < 0) {
        grad_pass_close(p);
        return rc;
    }
    *out = p;
    return 0;
}

void grad_pass_close(struct grad_pass *p)
{
    if (!p)
        return;
    for (int i = 0; p->kept && i < p->n_kept; i++)
        p->be->ops->free(p->be, p->kept[i]);
    for (int i = 1; p->between && i < p->stride; i++)
        p->be->ops->free(p->be, p->between[i]);
    free(p->kept);
    free(p->between);
    free(p->host_rows);
    p->be->ops->free(p->be, p->dx);
    p->be->ops->free(p->be, p->da);
    p->be->ops->free(p->be, p->dq);
    p->be->ops->free(p->be, p->dk);
    p->be->ops->free(p->be, p->dv);
    p->be->ops->free(p->be, p->token);
    p->be->ops->free(p->be, p->pos);
    p->be->ops->free(p->be, p->slot);
    p->be->ops->free(p->be, p->chunk);
    p->be->ops->free(p->be, p->geom);
    p->be->ops->free(p->be, p->window);
    p->be->ops->free(p->be, p->head_base);
    p->be->ops->free(p->be, p->page_table);
    if (p->grad)
        p->grad->ops->close(p->grad);
    free(p);
}

int grad_pass_stride(const struct grad_pass *p)
{
    return p->stride;
}

double grad_pass_flops(const struct grad_pass *p)
{
    return p->grad->flops;
}

/* From the model's x to q, k, v and the attention's output, and x behind the residual. */
static int attention_forward(struct grad_pass *p, int layer, struct err *err)
{
    const struct backend_ops *ops = p->be->ops;
    struct attn_in_args in = stack_attn_in(&p->m->stack, layer, &p->batch, &p->kv);
    struct attn_args attn = stack_attn(&p->m->stack, layer, &p->batch, &p->kv);
    struct attn_out_args out = stack_attn_out(&p->m->stack, layer, &p->batch);
    int rc = ops->attn_in(p->be, &in, err);

    out.next_norm.gain = NULL; /* x may be replaced before its next op */
    if (rc == 0)
        rc = ops->attn(p->be, &attn, err);
    if (rc == 0)
        rc = ops->attn_out(p->be, &out, err);
    return rc;
}

static int layer_forward(struct grad_pass *p, int layer, struct err *err)
{
    struct ffn_args ffn = stack_ffn(&p->m->stack, layer, &p->batch);
    int rc = attention_forward(p, layer, err);

    ffn.next_norm.gain = NULL;
    return rc == 0 ? p->be->ops->ffn(p->be, &ffn, err) : rc;
}

/* Copies between the model's x and a buffer. */
static int copy_x(struct grad_pass *p, void *dst, const void *src, struct err *err)
{
    size_t bytes =
        sizeof(float) * (size_t)p->batch.n_rows * (size_t)model_get_config(p->m)->stack.dim;

    return p->grad->ops->copy(p->grad, dst, src, bytes, err);
}

static int forward(struct grad_pass *p, struct err *err)
{
    struct embed_args embed = {.batch = &p->batch, .table = &p->m->embed, .x = p->m->stack.x};
    int rc = p->be->ops->embed(p->be, &embed, err);

    for (int layer = 0; layer < p->m->cfg.stack.n_layers && rc == 0; layer++) {
        if (layer % p->stride == 0)
            rc = copy_x(p, p->kept[layer / p->stride], p->m->stack.x, err);
        if (rc == 0)
            rc = layer_forward(p, layer, err);
    }
    return rc;
}

/* The loss of the targets and its gradient in dx. */
static int loss_back(struct grad_pass *p, struct grad_pass_args *args, struct err *err)
{
    const struct model_config *c = &p->m->cfg;
    double sum = 0;
    struct grad_logits_args logits = {.dim = c->stack.dim,
                                      .vocab_size = c->vocab_size,
                                      .n_targets = args->n_targets,
                                      .row = args->row,
                                      .target = args->target,
                                      .loss = args->kind,
                                      .scale =
                                          args->n_targets ? 1.0f / (float)args->n_targets : 0.0f,
                                      .norm = stack_norm(&p->m->stack),
                                      .head = c->tie_embeddings ? &p->m->embed : &p->m->head,
                                      .x = p->m->stack.x,
                                      .dx = p->dx,
                                      .loss_sum = &sum,
                                      .row_loss = args->row_loss};
    int rc = p->grad->ops->zero(p->grad, p->dx,
                                sizeof(float) * (size_t)args->n_rows * (size_t)c->stack.dim, err);

    if (rc == 0)
        rc = p->grad->ops->logits(p->grad, &logits, err);
    args->loss = args->n_targets ? sum / args->n_targets : 0.0;
    return rc;
}

/* x is the layer's input. */
static int layer_back(struct grad_pass *p, int layer, const void *x, struct grad_pass_args *args,
                      struct err *err)
{
    const struct model_config *c = &p->m->cfg;
    const struct grad_ops *ops = p->grad->ops;
    struct ffn_args ffn = stack_ffn(&p->m->stack, layer, &p->batch);
    struct attn_in_args in = stack_attn_in(&p->m->stack, layer, &p->batch, &p->kv);
    struct attn_args attn = stack_attn(&p->m->stack, layer, &p->batch, &p->kv);
    int n = args->n_rows, n_blocks = (n + GRAD_BLOCK - 1) / GRAD_BLOCK;
    int64_t at = (int64_t)layer * c->stack.n_heads * n_blocks;
    struct grad_ffn_args ffn_back = {.n_rows = n,
                                     .dim = c->stack.dim,
                                     .ffn_dim = c->stack.ffn_dim,
                                     .norm = ffn.norm,
                                     .act = ffn.act,
                                     .gated = ffn.gated,
                                     .w_in = ffn.w_in,
                                     .b_in = ffn.b_in,
                                     .w_down = ffn.w_down,
                                     .x = p->m->stack.x,
                                     .dx = p->dx};
    struct grad_attn_out_args out_back = {.n_rows = n,
                                          .dim = c->stack.dim,
                                          .n_in = c->stack.n_heads * c->stack.head_dim,
                                          .wo = &p->m->stack.layers[layer].wo,
                                          .dx = p->dx,
                                          .da = p->da};
    struct grad_attn_args attn_back = {.n_rows = n,
                                       .n_heads = c->stack.n_heads,
                                       .n_kv_heads = c->stack.n_kv_heads,
                                       .head_dim = c->stack.head_dim,
                                       .scale = attn.scale,
                                       .sum = args->sum,
                                       .window = c->window[layer],
                                       .q = attn.q,
                                       .k = attn.k_chunk,
                                       .v = attn.v_chunk,
                                       .a = attn.out,
                                       .da = p->da,
                                       .dq = p->dq,
                                       .dk = p->dk,
                                       .dv = p->dv,
                                       .band = args->band + at,
                                       .sink = args->sink + at};
    struct grad_attn_in_args in_back = {.n_rows = n,
                                        .dim = c->stack.dim,
                                        .n_heads = c->stack.n_heads,
                                        .n_kv_heads = c->stack.n_kv_heads,
                                        .head_dim = c->stack.head_dim,
                                        .norm = in.norm,
                                        .wqkv = in.wqkv,
                                        .bqkv = in.bqkv,
                                        .q_norm = in.q_norm,
                                        .k_norm = in.k_norm,
                                        .qk_norm_eps = in.qk_norm_eps,
                                        .rope_dim = in.rope_dim,
                                        .inv_freq = in.inv_freq,
                                        .inv_freq_stride = in.inv_freq_stride,
                                        .rope_scale = in.rope_scale,
                                        .x = x,
                                        .dq = p->dq,
                                        .dk = p->dk,
                                        .dv = p->dv,
                                        .dx = p->dx};
    int rc = copy_x(p, p->m->stack.x, x, err);

    if (rc == 0)
        rc = attention_forward(p, layer, err);
    if (rc == 0)
        rc = ops->ffn(p->grad, &ffn_back, err);
    if (rc == 0)
        rc = ops->attn_out(p->grad, &out_back, err);
    if (rc == 0)
        rc = ops->attn(p->grad, &attn_back, err);
    if (rc == 0)
        rc = ops->attn_in(p->grad, &in_back, err);
    return rc;
}

static int tell_layer(struct grad_pass *p, int layer, const struct grad_pass_args *args,
                      struct err *err)
{
    size_t bytes = sizeof(float) * (size_t)args->n_rows * (size_t)p->m->cfg.stack.dim;
    float *host = malloc(bytes);
    int rc;

    if (!host)
        return err_set(err, ERR_NO_ROOM, "profile: out of memory");
    rc = p->be->ops->download(p->be, host, p->dx, bytes, err);
    if (rc == 0)
        args->on_layer(args->on_layer_arg, layer, host);
    free(host);
    return rc;
}

/* The inputs of the layers from a kept one to the next, in p->between. */
static int stretch_inputs(struct grad_pass *p, int first, int last, struct err *err)
{
    int rc = 0;

    p->between[0] = p->kept[first / p->stride];
    if (last > first)
        rc = copy_x(p, p->m->stack.x, p->between[0], err);
    for (int layer = first; layer < last && rc == 0; layer++) {
        rc = layer_forward(p, layer, err);
        if (rc == 0)
            rc = copy_x(p, p->between[layer + 1 - first], p->m->stack.x, err);
    }
    return rc;
}

static int backward(struct grad_pass *p, struct grad_pass_args *args, struct err *err)
{
    int n_layers = p->m->cfg.stack.n_layers;
    int rc = loss_back(p, args, err);

    for (int i = p->n_kept - 1; i >= 0 && rc == 0; i--) {
        int first = i * p->stride;
        int last = first + p->stride - 1 < n_layers - 1 ? first + p->stride - 1 : n_layers - 1;

        rc = stretch_inputs(p, first, last, err);
        for (int layer = last; layer >= first && rc == 0; layer--) {
            rc = layer_back(p, layer, p->between[layer - first], args, err);
            if (rc == 0 && args->on_layer)
                rc = tell_layer(p, layer, args, err);
        }
    }
    return rc;
}

int grad_pass_run(struct grad_pass *p, struct grad_pass_args *args, struct err *err)
{
    const struct backend_ops *ops = p->be->ops;
    struct step_chunk chunk = {.n_rows = args->n_rows};
    int n = args->n_rows, rc;

    CHECK(n > 0);
    CHECK(n <= p->max_rows);
    p->batch = (struct step_batch){.n_rows = n,
                                   .n_chunks = 1,
                                   .token = p->token,
                                   .pos = p->pos,
                                   .slot = p->slot,
                                   .chunks = p->chunk};
    rc = ops->upload(p->be, p->token, args->tokens, sizeof(int32_t) * (size_t)n, err);
    if (rc == 0)
        rc = ops->upload(p->be, p->chunk, &chunk, sizeof(chunk), err);
    if (rc == 0 && model_wants_rope_len(p->m)) {
        for (int i = 0; i < n; i++)
            p->host_rows[i] = n;
        rc = stack_upload_rope(&p->m->stack, n, p->host_rows, err);
    }
    if (rc == 0)
        rc = ops->step_begin(p->be, &p->batch, err);
    if (rc == 0)
        rc = forward(p, err);
    if (rc == 0)
        rc = backward(p, args, err);
    if (rc == 0)
        rc = ops->step_end(p->be, err);
    return rc;
}
