/*
 * grad_pass - forward, then layer by layer backward. See grad_pass.h.
 */
#include "engine/plan/search/grad_pass.h"

#include "base/check.h"
#include "base/err.h"
#include "engine/model/model_impl.h"
#include "engine/plan/search/grad_open.h"

#include <stdlib.h>
#include <string.h>

/* What lies within a layer: the model's own buffers, or those that are kept. */
struct within {
    void *q, *k, *v, *a;
    void *mid;  /* what goes into the feed-forward part; NULL: the model's x */
    void *wide; /* its first product, or NULL */
};

struct grad_pass {
    struct model *m;    /* borrowed */
    struct backend *be; /* borrowed */
    struct grad *grad;
    int max_rows, stride, n_kept;
    enum grad_keep keep;

    void **kept;           /* [n_kept] inputs of layers 0, stride, 2 stride, .. */
    void **between;        /* [stride] inputs of the layers of one stretch; 0 is the kept one */
    struct within *within; /* [n_layers] with KEEP_ATTN or more */
    float *dx;
    void *da, *dq, *dk, *dv;
    double needed, attn_flops; /* attention's forward FLOPs, which a GPU's ops do not count */
    double flops_at_open;      /* of the backend's ops */

    /* Device arrays of the one step. */
    int32_t *token, *pos, *slot;
    struct step_chunk *chunk;
    int32_t *page_table, *head_base, *window;
    struct kv_geom *geom;
    struct kv_view kv;
    struct step_batch batch;
    int32_t *host_rows; /* [max_rows] */
};

/* Elements a row of the pass: da, dq, dk, dv; those of x, q, k, v and the output are the model's.
 */
static size_t row_elems(const struct model_config *c, enum grad_keep keep)
{
    const struct stack_config *s = &c->stack;
    size_t q = (size_t)s->n_heads * (size_t)s->head_dim;
    size_t kv = (size_t)s->n_kv_heads * (size_t)s->head_dim;
    size_t n = 2 * q + 2 * kv;

    if (keep >= KEEP_ATTN)
        n += (size_t)s->n_layers * (2 * q + 2 * kv + (size_t)s->dim);
    if (keep >= KEEP_WIDE)
        n += (size_t)s->n_layers * (size_t)s->ffn_dim * (s->is_gated ? 2 : 1);
    return n;
}

static struct grad_params grad_params_of(const struct model_config *c, int n_rows)
{
    return (struct grad_params){.max_rows = n_rows,
                                .max_dim = model_config_max_dim(c),
                                .n_heads = c->stack.n_heads,
                                .head_dim = c->stack.head_dim,
                                .n_kv_heads = c->stack.n_kv_heads,
                                .n_layers = c->stack.n_layers,
                                .dim = c->stack.dim,
                                .ffn_dim = c->stack.ffn_dim,
                                .vocab_size = c->vocab_size};
}

size_t grad_pass_bytes(const struct model_config *c, const struct backend *be, int n_rows,
                       int stride, enum grad_keep keep)
{
    struct grad_params grad = grad_params_of(c, n_rows);
    size_t kept = (size_t)((c->stack.n_layers + stride - 1) / stride + stride - 1);
    size_t elems = row_elems(c, keep) + kept * (size_t)c->stack.dim;

    return (size_t)n_rows *
               (dtype_bytes(be->act_dtype) * elems + sizeof(float) * (size_t)c->stack.dim) +
           grad_bytes(be, &grad);
}

/* The smallest stride from `from` on that fits; 0: none does. */
static int pick_stride(const struct model_config *c, const struct backend *be, int n_rows,
                       size_t room, int from)
{
    for (int s = from; s <= c->stack.n_layers; s++) {
        if (grad_pass_bytes(c, be, n_rows, s, KEEP_INPUT) <= room)
            return s;
    }
    return 0;
}

/* The most that is wanted and fits. */
static enum grad_keep pick_keep(const struct model_config *c, const struct backend *be, int n_rows,
                                size_t room, enum grad_keep most)
{
    while (most > KEEP_INPUT && grad_pass_bytes(c, be, n_rows, 1, most) > room)
        most--;
    return most;
}

static int no_room(const struct model_config *c, const struct backend *be, int n_rows, size_t room,
                   struct err *err)
{
    int lo = 0, hi = n_rows;
    size_t least = SIZE_MAX;

    for (int s = 1; s <= c->stack.n_layers; s++) {
        size_t bytes = grad_pass_bytes(c, be, n_rows, s, KEEP_INPUT);

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

/* Bytes of max_rows rows of n elements. */
static size_t rows_bytes(const struct grad_pass *p, int n)
{
    return dtype_bytes(p->be->act_dtype) * (size_t)p->max_rows * (size_t)n;
}

static int open_within(struct grad_pass *p, struct err *err)
{
    const struct stack_config *c = &model_get_config(p->m)->stack;
    int q = c->n_heads * c->head_dim, kv = c->n_kv_heads * c->head_dim, rc = 0;

    if (p->keep == KEEP_INPUT)
        return 0;
    p->within = calloc((size_t)c->n_layers, sizeof(*p->within));
    if (!p->within)
        return err_set(err, ERR_NO_ROOM, "profile: out of memory");
    for (int i = 0; i < c->n_layers && rc == 0; i++) {
        struct within *w = &p->within[i];

        rc = device(p, &w->q, rows_bytes(p, q), err);
        if (rc == 0)
            rc = device(p, &w->k, rows_bytes(p, kv), err);
        if (rc == 0)
            rc = device(p, &w->v, rows_bytes(p, kv), err);
        if (rc == 0)
            rc = device(p, &w->a, rows_bytes(p, q), err);
        if (rc == 0)
            rc = device(p, &w->mid, rows_bytes(p, c->dim), err);
        if (rc == 0 && p->keep >= KEEP_WIDE)
            rc = device(p, &w->wide, rows_bytes(p, c->ffn_dim * (c->is_gated ? 2 : 1)), err);
    }
    return rc;
}

static int open_buffers(struct grad_pass *p, struct err *err)
{
    const struct stack_config *c = &model_get_config(p->m)->stack;
    size_t x = rows_bytes(p, c->dim), q = rows_bytes(p, c->n_heads * c->head_dim);
    size_t kv = rows_bytes(p, c->n_kv_heads * c->head_dim);
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
        rc = device(p, (void **)&p->dx, sizeof(float) * (size_t)p->max_rows * (size_t)c->dim, err);
    if (rc == 0)
        rc = device(p, &p->da, q, err);
    if (rc == 0)
        rc = device(p, &p->dq, q, err);
    if (rc == 0)
        rc = device(p, &p->dk, kv, err);
    if (rc == 0)
        rc = device(p, &p->dv, kv, err);
    return rc < 0 ? rc : open_within(p, err);
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
                             .page_bytes = 2 * KV_TILE * (size_t)c->stack.head_dim *
                                           dtype_bytes(p->be->act_dtype),
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

/* Of the products that the backend has done since it was opened. */
static double backend_flops(const struct backend *be)
{
    static const enum backend_op ops[] = {OP_ATTN_IN, OP_ATTN_OUT, OP_FFN, OP_LOGITS};
    double sum = 0;

    for (size_t i = 0; i < sizeof(ops) / sizeof(ops[0]); i++)
        sum += be->cost[ops[i]].flops;
    return sum;
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
    p->flops_at_open = backend_flops(be);
    rc = grad_open(&p->grad, be, &grad, err);
    if (rc == 0 && stride == 1)
        p->keep = pick_keep(c, be, params->max_rows, params->max_bytes ? room : room / 2,
                            p->grad->ops->ffn_keep || params->keep < KEEP_WIDE ? params->keep
                                                                               : KEEP_ATTN);
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

static void close_within(struct grad_pass *p, struct within *w)
{
    void *const all[] = {w->q, w->k, w->v, w->a, w->mid, w->wide};

    for (size_t i = 0; i < sizeof(all) / sizeof(all[0]); i++)
        p->be->ops->free(p->be, all[i]);
}

void grad_pass_close(struct grad_pass *p)
{
    if (!p)
        return;
    for (int i = 0; p->kept && i < p->n_kept; i++)
        p->be->ops->free(p->be, p->kept[i]);
    for (int i = 1; p->between && i < p->stride; i++)
        p->be->ops->free(p->be, p->between[i]);
    for (int i = 0; p->within && i < model_get_config(p->m)->stack.n_layers; i++)
        close_within(p, &p->within[i]);
    free(p->kept);
    free(p->between);
    free(p->within);
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

enum grad_keep grad_pass_keep(const struct grad_pass *p)
{
    return p->keep;
}

struct grad_pass_flops grad_pass_flops(const struct grad_pass *p)
{
    return (struct grad_pass_flops){.done = p->grad->flops + p->attn_flops + backend_flops(p->be) -
                                            p->flops_at_open,
                                    .needed = p->needed};
}

int grad_pass_product_rate(struct grad_pass *p, double *flops_per_s, struct err *err)
{
    const struct grad_ops *ops = p->grad->ops;

    *flops_per_s = 0;
    return ops->product_rate ? ops->product_rate(p->grad, &p->m->stack.layers[0].w_in, p->max_rows,
                                                 flops_per_s, err)
                             : 0;
}

/* Pairs of a row and a key that it sees, of all query heads of a layer, times head_dim. */
static double pair_elems(const struct model_config *c, int layer, int n_rows)
{
    double n = n_rows, w = c->window[layer];
    double pairs = w < n ? w * (w + 1) / 2 + (n - w) * w : n * (n + 1) / 2;

    return pairs * c->stack.n_heads * c->stack.head_dim;
}

/* FLOPs that a run needs at least: 2 a weight and row forward, 2 back; 4 and 10 of attention. */
static double needed_flops(const struct grad_pass *p, const struct grad_pass_args *args)
{
    const struct model_config *c = &p->m->cfg;
    double sum = 4.0 * args->n_targets * c->stack.dim * (double)c->vocab_size;

    for (int i = 0; i < c->stack.n_layers; i++) {
        const struct stack_layer *y = &p->m->stack.layers[i];
        const struct weight *all[] = {&y->wqkv, &y->wo, &y->w_in, &y->w_down};

        for (size_t k = 0; k < sizeof(all) / sizeof(all[0]); k++)
            sum += 4.0 * args->n_rows * all[k]->n_in * (double)all[k]->n_out;
        sum += 14.0 * pair_elems(c, i, args->n_rows);
    }
    return sum;
}

/* Where a layer's q, k, v and attention's output are. */
static struct within within_of(const struct grad_pass *p, int layer)
{
    const struct stack *s = &p->m->stack;

    if (p->within)
        return p->within[layer];
    return (struct within){.q = s->q, .k = s->k_chunk, .v = s->v_chunk, .a = s->attn_out};
}

/* From the model's x to q, k, v and the attention's output, and x behind the residual. */
static int attention_forward(struct grad_pass *p, int layer, struct err *err)
{
    const struct backend_ops *ops = p->be->ops;
    struct attn_in_args in = stack_attn_in(&p->m->stack, layer, &p->batch, &p->kv);
    struct attn_args attn = stack_attn(&p->m->stack, layer, &p->batch, &p->kv);
    struct attn_out_args out = stack_attn_out(&p->m->stack, layer, &p->batch);
    struct within w = within_of(p, layer);
    int rc;

    in.q = w.q;
    in.k_chunk = w.k;
    in.v_chunk = w.v;
    attn.q = w.q;
    attn.k_chunk = w.k;
    attn.v_chunk = w.v;
    attn.out = w.a;
    out.a = w.a;
    out.next_norm.gain = NULL; /* x may be replaced before its next op */
    rc = ops->attn_in(p->be, &in, err);
    if (rc == 0)
        rc = ops->attn(p->be, &attn, err);
    if (rc == 0)
        rc = ops->attn_out(p->be, &out, err);
    p->attn_flops += 4.0 * pair_elems(&p->m->cfg, layer, p->batch.n_rows);
    return rc;
}

/* Copies between the model's x and a buffer. */
static int copy_x(struct grad_pass *p, void *dst, const void *src, struct err *err)
{
    size_t bytes = dtype_bytes(p->be->act_dtype) * (size_t)p->batch.n_rows *
                   (size_t)model_get_config(p->m)->stack.dim;

    return p->grad->ops->copy(p->grad, dst, src, bytes, err);
}

static int layer_forward(struct grad_pass *p, int layer, struct err *err)
{
    struct ffn_args ffn = stack_ffn(&p->m->stack, layer, &p->batch);
    struct within w = within_of(p, layer);
    int rc = attention_forward(p, layer, err);

    ffn.next_norm.gain = NULL;
    if (rc == 0 && w.mid)
        rc = copy_x(p, w.mid, p->m->stack.x, err);
    if (rc < 0)
        return rc;
    return w.wide ? p->grad->ops->ffn_keep(p->grad, &ffn, w.wide, err)
                  : p->be->ops->ffn(p->be, &ffn, err);
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

/* The gradient of the targets' loss in dx; their losses go to *sum. */
static int loss_back(struct grad_pass *p, struct grad_pass_args *args, double *sum, struct err *err)
{
    const struct model_config *c = &p->m->cfg;
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
                                      .loss_sum = sum,
                                      .row_loss = args->row_loss};
    int rc = p->grad->ops->zero(p->grad, p->dx,
                                sizeof(float) * (size_t)args->n_rows * (size_t)c->stack.dim, err);

    if (rc == 0)
        rc = p->grad->ops->logits(p->grad, &logits, err);
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
    struct within w = within_of(p, layer);
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
                                     .x = w.mid ? w.mid : p->m->stack.x,
                                     .wide = w.wide,
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
                                       .scale = stack_attn(&p->m->stack, layer, NULL, NULL).scale,
                                       .sum = args->sum,
                                       .window = c->window[layer],
                                       .q = w.q,
                                       .k = w.k,
                                       .v = w.v,
                                       .a = w.a,
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
    int rc = 0;

    if (!p->within) {
        rc = copy_x(p, p->m->stack.x, x, err);
        if (rc == 0)
            rc = attention_forward(p, layer, err);
    }
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

static int backward(struct grad_pass *p, struct grad_pass_args *args, double *sum, struct err *err)
{
    int n_layers = p->m->cfg.stack.n_layers;
    int rc = loss_back(p, args, sum, err);

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
    double sum = 0;
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
        rc = backward(p, args, &sum, err);
    if (rc == 0)
        rc = ops->step_end(p->be, err);
    if (rc == 0)
        rc = p->grad->ops->finish(p->grad, err);
    if (rc == 0)
        p->needed += needed_flops(p, args);
    args->loss = args->n_targets ? sum / args->n_targets : 0.0;
    return rc;
}
