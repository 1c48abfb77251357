/*
 * grad_cuda - the GPU's backward ops, each spelled as products and launches. See grad_cuda.h.
 *
 * Products take gradients in act_dtype and sum in f32; the residual's gradient dx stays f32, and
 * `low` is its rounding for the next product. Influence and losses come back by copies that nothing
 * waits for before finish(). Scratch rows are the backend's: scratch_norm for normed rows,
 * scratch_wide for what a forward product gives once more.
 */
#include "cuda/grad_cuda.h"

#include "base/check.h"

#include <stdlib.h>
#include <string.h>

#define LOGIT_BYTES ((size_t)64 << 20) /* of logits at a time */
#define RATE_WARM   20                 /* products before those that are timed: clocks settle */
#define RATE_TIMED  50

static struct cuda_grad *of(struct grad *g)
{
    return (struct cuda_grad *)g;
}

static int max_int(int a, int b)
{
    return a > b ? a : b;
}

static int min_int(int a, int b)
{
    return a < b ? a : b;
}

static int inner_width(const struct grad_params *p)
{
    return max_int(p->ffn_dim, (p->n_heads + 2 * p->n_kv_heads) * p->head_dim);
}

static int n_blocks_of(int n_rows)
{
    return (n_rows + GRAD_BLOCK - 1) / GRAD_BLOCK;
}

static int padded(int vocab_size)
{
    return (vocab_size + 7) / 8 * 8;
}

/* Logit rows at a time. */
static int logit_rows_of(const struct cuda_backend *cb, const struct grad_params *p)
{
    int most = (int)(LOGIT_BYTES / (sizeof(float) * (size_t)max_int(p->vocab_size, 1))) + 1;

    return min_int(most, cb->params.max_logits);
}

/* Bytes of each buffer, in the order of buffers_open(). */
#define N_BUFFERS 10
static void buffer_bytes(size_t out[N_BUFFERS], const struct cuda_backend *cb,
                         const struct grad_params *p)
{
    size_t act = dtype_bytes(cb->base.act_dtype), rows = (size_t)p->max_rows;
    size_t blocks = (size_t)n_blocks_of(p->max_rows), heads = (size_t)p->n_heads;
    size_t logit_rows = (size_t)logit_rows_of(cb, p);

    out[0] = cb->base.act_dtype == DTYPE_F32 ? 0 : rows * (size_t)p->dim * act;
    out[1] = rows * (size_t)inner_width(p) * act;
    out[2] = rows * (size_t)p->dim * sizeof(float);
    out[3] = heads * blocks * GRAD_BLOCK * sizeof(float);
    out[4] = out[3];
    out[5] = heads * blocks * blocks * sizeof(float);
    out[6] = (size_t)p->n_layers * heads * 2 * blocks * sizeof(double);
    out[7] = logit_rows * (size_t)p->vocab_size * sizeof(float);
    out[8] = logit_rows * (size_t)padded(p->vocab_size) * act;
    out[9] = 3 * rows * sizeof(int32_t);
}

size_t cuda_grad_bytes(const struct backend *be, const struct grad_params *params)
{
    size_t bytes[N_BUFFERS], sum = 0;

    buffer_bytes(bytes, (const struct cuda_backend *)be, params);
    for (int i = 0; i < N_BUFFERS; i++)
        sum += (bytes[i] + 511) / 512 * 512;
    return sum;
}

static int buffers_open(struct cuda_grad *g, struct err *err)
{
    void **to[N_BUFFERS] = {
        &g->low,          (void **)&g->inner,  (void **)&g->d_in, (void **)&g->lse,
        (void **)&g->dot, (void **)&g->cells,  (void **)&g->sums, (void **)&g->logits,
        &g->d_logits,     (void **)&g->targets};
    struct backend *be = &g->cb->base;
    size_t bytes[N_BUFFERS];
    int rc = 0;

    buffer_bytes(bytes, g->cb, &g->params);
    for (int i = 0; i < N_BUFFERS && rc == 0; i++)
        if (bytes[i] > 0)
            rc = cuda_mem_alloc(be, to[i], bytes[i], err);
    if (rc == 0)
        rc = cuda_mem_host_alloc(be, (void **)&g->host_sums, bytes[6], err);
    if (rc == 0)
        rc = cuda_mem_host_alloc(be, (void **)&g->host_loss,
                                 (size_t)g->params.max_rows * sizeof(float), err);
    g->row_loss = (float *)(g->targets + 2 * (size_t)g->params.max_rows);
    return rc;
}

static void grad_close(struct grad *base)
{
    struct cuda_grad *g = of(base);
    struct backend *be;

    if (!g)
        return;
    be = &g->cb->base;
    cudaStreamSynchronize(g->cb->stream);
    cuda_mem_free(be, g->low);
    cuda_mem_free(be, g->inner);
    cuda_mem_free(be, g->d_in);
    cuda_mem_free(be, g->lse);
    cuda_mem_free(be, g->dot);
    cuda_mem_free(be, g->cells);
    cuda_mem_free(be, g->sums);
    cuda_mem_free(be, g->logits);
    cuda_mem_free(be, g->d_logits);
    cuda_mem_free(be, g->targets);
    cuda_mem_host_free(be, g->host_sums);
    cuda_mem_host_free(be, g->host_loss);
    free(g->pending);
    free(g);
}

/* ---- copies, and what goes to the host ---- */

static int grad_copy(struct grad *base, void *dst, const void *src, size_t bytes, struct err *err)
{
    if (dst == of(base)->low_of)
        of(base)->low_of = NULL;
    CUDA_TRY(err, cudaMemcpyAsync(dst, src, bytes, cudaMemcpyDeviceToDevice, of(base)->cb->stream));
    return 0;
}

static int grad_zero(struct grad *base, void *dst, size_t bytes, struct err *err)
{
    if (dst == of(base)->low_of)
        of(base)->low_of = NULL;
    CUDA_TRY(err, cudaMemsetAsync(dst, 0, bytes, of(base)->cb->stream));
    return 0;
}

static size_t sums_stride(const struct cuda_grad *g)
{
    return (size_t)g->params.n_heads * 2 * (size_t)g->n_blocks;
}

static int grad_finish(struct grad *base, struct err *err)
{
    struct cuda_grad *g = of(base);

    CUDA_TRY(err, cudaStreamSynchronize(g->cb->stream));
    for (int i = 0; i < g->n_pending; i++) {
        const struct grad_pending *p = &g->pending[i];
        const double *from = g->host_sums + (size_t)i * sums_stride(g);
        int n = p->n_blocks;

        for (int h = 0; h < p->n_heads; h++, from += 2 * n) {
            for (int b = 0; b < n; b++) {
                p->band[h * n + b] += from[b];
                p->sink[h * n + b] += from[n + b];
            }
        }
    }
    for (int i = 0; i < g->n_losses; i++) {
        *g->loss_sum += (double)g->host_loss[i];
        if (g->loss_to)
            g->loss_to[i] = g->host_loss[i];
    }
    g->n_pending = g->n_losses = 0;
    return 0;
}

/* ---- products ---- */

/* out = x w, the way back through y = x w^T. */
static int product_back(struct cuda_grad *g, const void *x, int n_rows, int ldx,
                        const struct weight *w, void *out, enum gemm_epilogue epilogue,
                        struct err *err)
{
    struct gemm_args a = {.x = x, .n_rows = n_rows, .w = w, .out = out, .epilogue = epilogue};

    g->base.flops += 2.0 * n_rows * w->n_in * (double)w->n_out;
    return cuda_blas_gemm_back(g->cb, &a, ldx, err);
}

/* scratch_wide = norm(x) w^T, without the bias. */
static int forward_again(struct cuda_grad *g, const struct norm_args *norm, const void *x,
                         int n_rows, int dim, const struct weight *w, struct err *err)
{
    struct gemm_args a = {.x = g->cb->scratch_norm,
                          .n_rows = n_rows,
                          .w = w,
                          .out = g->cb->scratch_wide,
                          .epilogue = GEMM_STORE};
    int rc = norm_launch(g->cb, norm, dim, x, NULL, n_rows, g->cb->scratch_norm, err);

    g->base.flops += 2.0 * n_rows * dim * (double)w->n_out;
    return rc < 0 ? rc : cuda_blas_gemm(g->cb, &a, err);
}

/* dx as a product takes it. */
static int rounded(struct cuda_grad *g, const float *dx, int n_rows, int dim, const void **out,
                   struct err *err)
{
    int rc = 0;

    *out = g->low ? g->low : (const void *)dx;
    if (g->low && g->low_of != dx)
        rc = grad_round_launch(g->cb, dx, (int64_t)n_rows * dim, g->low, err);
    g->low_of = dx;
    return rc;
}

/* dx += the way back through norm(x) from d_in, and its rounding for the next product. */
static int norm_back(struct cuda_grad *g, const struct norm_args *norm, const void *x, float *dx,
                     int n_rows, int dim, struct err *err)
{
    struct grad_norm_args a = {.norm = norm,
                               .n_rows = n_rows,
                               .dim = dim,
                               .x = x,
                               .dy = g->d_in,
                               .dx = dx,
                               .low = g->low,
                               .add = true};

    g->low_of = dx;
    return grad_norm_launch(g->cb, &a, err);
}

static int check_fits(const struct cuda_grad *g, int n_rows, int width, const char *op,
                      struct err *err)
{
    if (n_rows > g->params.max_rows || width > inner_width(&g->params))
        return err_set(err, ERR_UNSUPPORTED, "%s: %d rows of %d, opened for %d of %d", op, n_rows,
                       width, g->params.max_rows, inner_width(&g->params));
    return 0;
}

/* ---- ops ---- */

/* Logit rows at..at + n - 1 of the targets. */
static int logits_chunk(struct cuda_grad *g, const struct grad_logits_args *a, int at, int n,
                        struct err *err)
{
    const int32_t *rows = g->targets + at;
    struct step_batch batch = {.n_logits = n, .logit_row = rows};
    struct logits_args forward = {.batch = &batch,
                                  .dim = a->dim,
                                  .vocab_size = a->vocab_size,
                                  .norm = a->norm,
                                  .head = a->head,
                                  .x = a->x,
                                  .out = g->logits};
    struct grad_loss_args loss = {.logits = g->logits,
                                  .target = g->targets + g->params.max_rows + at,
                                  .out = g->d_logits,
                                  .loss = g->row_loss + at,
                                  .n_rows = n,
                                  .vocab_size = a->vocab_size,
                                  .ld = padded(a->vocab_size),
                                  .scale = a->scale,
                                  .kind = a->loss};
    struct grad_norm_args norm = {.norm = &a->norm,
                                  .n_rows = n,
                                  .dim = a->dim,
                                  .rows = rows,
                                  .x = a->x,
                                  .dy = g->d_in,
                                  .dx = a->dx};
    int rc = g->base.be->ops->logits(g->base.be, &forward, err);

    if (rc == 0)
        rc = grad_loss_launch(g->cb, &loss, err);
    if (rc == 0)
        rc = product_back(g, g->d_logits, n, loss.ld, a->head, g->d_in, GEMM_F32, err);
    return rc < 0 ? rc : grad_norm_launch(g->cb, &norm, err);
}

static int grad_logits(struct grad *base, const struct grad_logits_args *a, struct err *err)
{
    struct cuda_grad *g = of(base);
    struct backend *be = base->be;
    size_t bytes = (size_t)a->n_targets * sizeof(int32_t);
    int rc = g->n_losses ? grad_finish(base, err) : 0;

    CHECK(a->n_targets <= g->params.max_rows);
    CHECK(a->vocab_size <= g->params.vocab_size);
    g->low_of = NULL;
    if (rc == 0)
        rc = cuda_mem_upload(be, g->targets, a->row, bytes, err);
    if (rc == 0)
        rc = cuda_mem_upload(be, g->targets + g->params.max_rows, a->target, bytes, err);
    for (int at = 0; at < a->n_targets && rc == 0; at += g->logit_rows)
        rc = logits_chunk(g, a, at, min_int(g->logit_rows, a->n_targets - at), err);
    if (rc == 0)
        rc = cuda_mem_fetch(be, g->host_loss, g->row_loss, bytes, err);
    if (rc == 0) {
        g->n_losses = a->n_targets;
        g->loss_sum = a->loss_sum;
        g->loss_to = a->row_loss;
    }
    return rc;
}

static int grad_ffn(struct grad *base, const struct grad_ffn_args *a, struct err *err)
{
    struct cuda_grad *g = of(base);
    void *wide = a->wide ? a->wide : g->cb->scratch_wide;
    const void *dy = NULL;
    int rc = check_fits(g, a->n_rows, a->ffn_dim, "ffn", err);

    if (rc == 0 && !a->wide)
        rc = forward_again(g, &a->norm, a->x, a->n_rows, a->dim, a->w_in, err);
    if (rc == 0)
        rc = rounded(g, a->dx, a->n_rows, a->dim, &dy, err);
    if (rc == 0)
        rc = product_back(g, dy, a->n_rows, a->dim, a->w_down, g->inner, GEMM_STORE, err);
    if (rc == 0)
        rc = grad_act_launch(g->cb, a, wide, g->inner, err);
    if (rc == 0)
        rc = product_back(g, wide, a->n_rows, a->w_in->n_out, a->w_in, g->d_in, GEMM_F32, err);
    return rc < 0 ? rc : norm_back(g, &a->norm, a->x, a->dx, a->n_rows, a->dim, err);
}

static int grad_ffn_keep(struct grad *base, const struct ffn_args *a, void *wide, struct err *err)
{
    struct cuda_grad *g = of(base);
    struct cuda_backend *cb = g->cb;
    int n = a->batch->n_rows;
    struct gemm_args in = {
        .x = cb->scratch_norm, .n_rows = n, .w = a->w_in, .out = wide, .epilogue = GEMM_STORE};
    struct gemm_args down = {
        .x = cb->scratch_norm, .n_rows = n, .w = a->w_down, .out = a->x, .epilogue = GEMM_RESIDUAL};
    int rc = norm_launch(cb, &a->norm, a->dim, a->x, NULL, n, cb->scratch_norm, err);

    CHECK(a->batch->n_decode == 0);
    if (rc == 0)
        rc = cuda_blas_gemm(cb, &in, err);
    if (rc == 0)
        rc = ffn_act_launch(cb, a, wide, n, cb->scratch_norm, err);
    if (rc == 0)
        rc = add_bias_launch(cb, a->x, n, a->dim, a->b_down, err);
    if (rc == 0)
        rc = cuda_blas_gemm(cb, &down, err);
    base->flops += 2.0 * n * a->dim * ((double)a->w_in->n_out + a->w_down->n_in);
    return rc;
}

static int grad_product_rate(struct grad *base, const struct weight *w, int n_rows,
                             double *flops_per_s, struct err *err)
{
    struct cuda_backend *cb = of(base)->cb;
    struct gemm_args a = {.x = cb->scratch_norm,
                          .n_rows = n_rows,
                          .w = w,
                          .out = cb->scratch_wide,
                          .epilogue = GEMM_STORE};
    cudaEvent_t begun = NULL, ended = NULL;
    float ms = 0;
    int rc = 0;

    CHECK(n_rows <= cb->params.max_rows);
    CUDA_TRY(err, cudaEventCreate(&begun));
    CUDA_TRY(err, cudaEventCreate(&ended));
    for (int i = 0; i < RATE_WARM + RATE_TIMED && rc == 0; i++) {
        if (i == RATE_WARM)
            CUDA_TRY(err, cudaEventRecord(begun, cb->stream));
        rc = cuda_blas_gemm(cb, &a, err);
    }
    if (rc < 0)
        return rc;
    CUDA_TRY(err, cudaEventRecord(ended, cb->stream));
    CUDA_TRY(err, cudaEventSynchronize(ended));
    CUDA_TRY(err, cudaEventElapsedTime(&ms, begun, ended));
    *flops_per_s = 2e3 * RATE_TIMED * n_rows * w->n_in * (double)w->n_out / (double)ms;
    cudaEventDestroy(begun);
    cudaEventDestroy(ended);
    return 0;
}

static int grad_attn_out(struct grad *base, const struct grad_attn_out_args *a, struct err *err)
{
    struct cuda_grad *g = of(base);
    const void *dy = NULL;
    int rc = rounded(g, a->dx, a->n_rows, a->dim, &dy, err);

    return rc < 0 ? rc : product_back(g, dy, a->n_rows, a->dim, a->wo, a->da, GEMM_STORE, err);
}

static int grad_attn(struct grad *base, const struct grad_attn_args *a, struct err *err)
{
    struct cuda_grad *g = of(base);
    bool f32 = g->cb->base.act_dtype == DTYPE_F32;
    int n_blocks = n_blocks_of(a->n_rows);
    struct grad_attn_kernel_args k = {.q = a->q,
                                      .k = a->k,
                                      .v = a->v,
                                      .da = a->da,
                                      .dq = a->dq,
                                      .dk = a->dk,
                                      .dv = a->dv,
                                      .lse = g->lse,
                                      .dot = g->dot,
                                      .cells = g->cells,
                                      .n_rows = a->n_rows,
                                      .n_pad = n_blocks * GRAD_BLOCK,
                                      .n_blocks = n_blocks,
                                      .n_heads = a->n_heads,
                                      .n_kv_heads = a->n_kv_heads,
                                      .head_dim = a->head_dim,
                                      .window = a->window,
                                      .sum = a->sum,
                                      .scale = a->scale};
    size_t at, bytes = (size_t)a->n_heads * 2 * (size_t)n_blocks * sizeof(double);
    int rc = g->n_pending == g->params.n_layers ? grad_finish(base, err) : 0;

    CHECK(a->n_rows <= g->params.max_rows);
    CHECK(a->n_heads <= g->params.n_heads);
    at = (size_t)g->n_pending * sums_stride(g);
    k.sums = g->sums + at;
    if (rc == 0)
        rc = f32 ? grad_attn_f32_launch(g->cb, &k, err) : grad_attn_rows_launch(g->cb, &k, err);
    if (rc == 0 && !f32)
        rc = grad_attn_keys_launch(g->cb, &k, err);
    if (rc == 0)
        rc = grad_cells_launch(g->cb, &k, err);
    if (rc == 0)
        rc = cuda_mem_fetch(base->be, g->host_sums + at, k.sums, bytes, err);
    if (rc < 0)
        return rc;
    g->pending[g->n_pending++] = (struct grad_pending){
        .band = a->band, .sink = a->sink, .n_blocks = n_blocks, .n_heads = a->n_heads};
    g->base.flops += 5.0 * a->n_rows * ((double)a->n_rows + 1) * a->n_heads * a->head_dim;
    return 0;
}

static int grad_attn_in(struct grad *base, const struct grad_attn_in_args *a, struct err *err)
{
    struct cuda_grad *g = of(base);
    int width = a->wqkv->n_out, rc = check_fits(g, a->n_rows, width, "attn_in", err);

    if (rc == 0 && (a->q_norm || a->k_norm))
        rc = forward_again(g, &a->norm, a->x, a->n_rows, a->dim, a->wqkv, err);
    if (rc == 0)
        rc = grad_rope_launch(g->cb, a, g->cb->scratch_wide, g->inner, err);
    if (rc == 0)
        rc = product_back(g, g->inner, a->n_rows, width, a->wqkv, g->d_in, GEMM_F32, err);
    return rc < 0 ? rc : norm_back(g, &a->norm, a->x, a->dx, a->n_rows, a->dim, err);
}

static const struct grad_ops cuda_grad_ops = {
    .close = grad_close,
    .copy = grad_copy,
    .zero = grad_zero,
    .logits = grad_logits,
    .ffn = grad_ffn,
    .attn_out = grad_attn_out,
    .attn = grad_attn,
    .attn_in = grad_attn_in,
    .ffn_keep = grad_ffn_keep,
    .product_rate = grad_product_rate,
    .finish = grad_finish,
};

int cuda_grad_open(struct grad **out, struct backend *be, const struct grad_params *params,
                   struct err *err)
{
    struct cuda_grad *g;
    int rc;

    if (be->act_dtype == DTYPE_F16)
        return err_set(err, ERR_UNSUPPORTED,
                       "gradients leave the range of f16: want --dtype bf16 or f32");
    g = calloc(1, sizeof(*g));
    if (!g)
        return err_set(err, ERR_NO_ROOM, "cuda: out of memory");
    g->base.ops = &cuda_grad_ops;
    g->base.be = be;
    g->cb = (struct cuda_backend *)be;
    g->params = *params;
    g->n_blocks = n_blocks_of(params->max_rows);
    g->logit_rows = logit_rows_of(g->cb, params);
    g->pending = calloc((size_t)params->n_layers, sizeof(*g->pending));
    rc = g->pending ? buffers_open(g, err) : err_set(err, ERR_NO_ROOM, "cuda: out of memory");
    if (rc < 0) {
        grad_close(&g->base);
        return rc;
    }
    *out = &g->base;
    return 0;
}
