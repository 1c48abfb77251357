/*
 * cuda_backend - opens a GPU, owns its stream and scratch memory, and spells each op as launches.
 *
 * Decode rows and prompt rows never share a product: decode rows go through gemm.cu, whose sums are
 * cut by the shape alone, prompt rows through cuBLASLt with one algorithm a shape. So a row's
 * result does not depend on the rest of its step. Only where that is waived (batch_variant) do many
 * decode rows go the way of prompt rows. Engine thread only.
 */
#include "cuda/cuda_backend.h"

#include "base/check.h"
#include "cuda/block_ops.h"

#include <limits.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define MAX_READ_BYTES  ((size_t)4 << 30)   /* to be read for a measurement: far beyond L2 */
#define MIN_DECODE      256                 /* decode rows that any step may have, logits or not */
#define MAX_SAMPLE_CTAS 128                 /* rows that are sampled at once; about one an SM */
#define MANY_ROWS       (GEMM_MAX_ROWS + 1) /* beyond one pass of gemm_hopper's over the weights */
#define MAX_GRID_ROWS   65535               /* of the kernels that have a row of CTAs for each */

int cuda_fail(struct err *err, cudaError_t code, const char *what)
{
    enum err_code ours = code == cudaErrorMemoryAllocation ? ERR_NO_ROOM : ERR_DEVICE;

    return err_set(err, ours, "CUDA: %s: %s: %s", what, cudaGetErrorName(code),
                   cudaGetErrorString(code));
}

int cuda_launched(struct cuda_backend *cb, const char *kernel, struct err *err)
{
    cudaError_t rc = cudaGetLastError();

    if (rc == cudaSuccess && cb->sync_launches)
        rc = cudaStreamSynchronize(cb->stream);
    return rc == cudaSuccess ? 0 : cuda_fail(err, rc, kernel);
}

int cuda_check_matrix(const struct cuda_backend *cb, const struct weight *w, const char *name,
                      struct err *err)
{
    if (w->dtype != cb->base.act_dtype)
        return err_set(err, ERR_UNSUPPORTED,
                       "%s: weights are %s, the CUDA backend was opened for %s", name,
                       dtype_name(w->dtype), dtype_name(cb->base.act_dtype));
    if (w->n_in % 8)
        return err_set(err, ERR_UNSUPPORTED, "%s: %d inputs, want a multiple of 8", name, w->n_in);
    return 0;
}

static struct cuda_backend *of(struct backend *be)
{
    return (struct cuda_backend *)be;
}

/* Row `row` of an activation matrix. */
static void *row_at(const struct cuda_backend *cb, const void *x, int row, int dim)
{
    return (char *)x + (size_t)row * dim * dtype_bytes(cb->base.act_dtype);
}

static int check_fits(const struct cuda_backend *cb, int n_rows, int dim, const char *op,
                      struct err *err)
{
    if (n_rows > cb->params.max_rows || dim > cb->params.max_dim)
        return err_set(err, ERR_UNSUPPORTED, "%s: %d rows of %d, opened for %d of %d", op, n_rows,
                       dim, cb->params.max_rows, cb->params.max_dim);
    return 0;
}

static int check_kv(const struct cuda_backend *cb, const struct kv_view *kv, struct err *err)
{
    if (kv->dtype != cb->base.act_dtype)
        return err_set(err, ERR_UNSUPPORTED, "KV cache is %s, the CUDA backend was opened for %s",
                       dtype_name(kv->dtype), dtype_name(cb->base.act_dtype));
    return 0;
}

static void count(struct cuda_backend *cb, enum backend_op op, double bytes, double flops)
{
    struct op_cost *c = &cb->base.cost[op];

    if (cb->is_timed)
        cuda_prof_mark(cb, op);
    c->n_calls++;
    c->bytes += bytes;
    c->flops += flops;
}

/* The weights once for decode rows, once for prompt rows. */
static void count_product(struct cuda_backend *cb, enum backend_op op, const struct weight *w,
                          const struct step_batch *b)
{
    double size = (double)w->n_out * w->n_in;
    int n_passes = (b->n_decode > 0) + (b->n_rows > b->n_decode);

    cb->base.cost[op].bytes += size * dtype_bytes(w->dtype) * n_passes;
    cb->base.cost[op].flops += 2 * size * b->n_rows;
}

static int op_embed(struct backend *be, const struct embed_args *a, struct err *err)
{
    double row = (double)a->table->n_in * dtype_bytes(a->table->dtype);

    count(of(be), OP_EMBED, 2 * row * a->batch->n_rows, 0);
    of(be)->gained_by = NULL;
    return embed_launch(of(be), a, err);
}

/* Do n decode rows go the way of prompt rows? */
static bool are_many(const struct cuda_backend *cb, int n)
{
    return n >= cb->many_rows && n <= MAX_GRID_ROWS;
}

/* The step as its products see it: decode rows are those that are few. */
static struct step_batch for_products(const struct cuda_backend *cb, const struct step_batch *b)
{
    struct step_batch p = *b;

    if (are_many(cb, b->n_decode))
        p.n_decode = 0;
    return p;
}

/* Decode and logit rows: Hopper's product where there is one, with all that can be fused. */
static int project_few(struct cuda_backend *cb, struct gemm_args *g, struct err *err)
{
    if (g->n_rows == 0)
        return 0;
    if (are_many(cb, g->n_rows)) { /* logits and prefixes: bare but for a bias */
        int rc = cuda_blas_gemm(cb, g, err);

        return rc < 0 ? rc : add_bias_launch(cb, g->out, g->n_rows, g->w->n_out, g->bias, err);
    }
    return cb->gemm_hopper ? cb->gemm_hopper(cb, g, err) : gemm_stream_launch(cb, g, err);
}

/*
 * The normed decode rows as g's x: begun by the product before, to be scaled behind this one, or
 * made here.
 */
static int norm_few(struct cuda_backend *cb, const struct norm_args *norm, int dim, const void *x,
                    struct gemm_args *g, struct err *err)
{
    if (cb->gained_by == norm->gain) {
        g->x = cb->gained;
        g->norm_in = norm;
        return 0;
    }
    g->x = cb->scratch_norm;
    return norm_launch(cb, norm, dim, x, NULL, g->n_rows, cb->scratch_norm, err);
}

/* Of a residual product: can it leave the next norm's rows behind, and if so it is told to. */
static void begin_norm(struct cuda_backend *cb, struct gemm_args *g, const struct norm_args *next)
{
    /* Before they are scaled the rows may not fit f16's range. */
    bool can = cb->gemm_hopper && cb->base.act_dtype == DTYPE_BF16 && next->gain &&
               next->kind == NORM_RMS && g->n_rows > 0;

    g->norm_out = can ? next : NULL;
    cb->gained_by = can ? next->gain : NULL;
}

/* Prompt rows of out = x w^T. */
static int project_prompt(struct cuda_backend *cb, const struct step_batch *b, const void *x,
                          const struct weight *w, void *out, enum gemm_epilogue epilogue,
                          struct err *err)
{
    struct gemm_args g = {.x = row_at(cb, x, b->n_decode, w->n_in),
                          .n_rows = b->n_rows - b->n_decode,
                          .w = w,
                          .out = row_at(cb, out, b->n_decode, w->n_out),
                          .epilogue = epilogue};

    return cuda_blas_gemm(cb, &g, err);
}

static int norm_prompt(struct cuda_backend *cb, const struct step_batch *b,
                       const struct norm_args *norm, int dim, const void *x, struct err *err)
{
    return norm_launch(cb, norm, dim, row_at(cb, x, b->n_decode, dim), NULL,
                       b->n_rows - b->n_decode, row_at(cb, cb->scratch_norm, b->n_decode, dim),
                       err);
}

/* The first n rows; *row0 is the first row that rope is still to be done for. */
static int attn_in_few(struct cuda_backend *cb, const struct attn_in_args *a, int n, int *row0,
                       struct err *err)
{
    /* Without fusion the bias is added by rope, in f32. */
    bool fused = cb->gemm_hopper && !a->batch->rope_pos && a->rope_dim == a->head_dim &&
                 (a->head_dim == 64 || a->head_dim == 128);
    struct gemm_args g = {.n_rows = n,
                          .w = a->wqkv,
                          .bias = fused ? a->bqkv : NULL,
                          .out = cb->scratch_wide,
                          .epilogue = fused ? GEMM_ROPE : GEMM_STORE,
                          .attn_in = fused ? a : NULL};
    int rc = norm_few(cb, &a->norm, a->dim, a->x, &g, err);

    *row0 = fused ? n : 0;
    return rc < 0 ? rc : project_few(cb, &g, err);
}

static int op_attn_in(struct backend *be, const struct attn_in_args *a, struct err *err)
{
    struct cuda_backend *cb = of(be);
    struct step_batch b = for_products(cb, a->batch);
    int row0 = 0, rc = cuda_check_matrix(cb, a->wqkv, "wqkv", err);

    count(cb, OP_ATTN_IN, 0, 0);
    count_product(cb, OP_ATTN_IN, a->wqkv, &b);
    if (rc == 0)
        rc = check_kv(cb, a->kv, err);
    if (rc == 0)
        rc = check_fits(cb, a->batch->n_rows, a->dim, "attn_in", err);
    if (rc == 0)
        rc = check_fits(cb, a->batch->n_rows, a->wqkv->n_out, "attn_in", err);
    if (rc == 0 && !a->kv->is_slab)
        rc = attn_plan_launch(cb, a->kv, a->batch, a->layer, err);
    if (rc == 0)
        rc = attn_in_few(cb, a, b.n_decode, &row0, err);
    if (rc == 0)
        rc = norm_prompt(cb, &b, &a->norm, a->dim, a->x, err);
    if (rc == 0)
        rc = project_prompt(cb, &b, cb->scratch_norm, a->wqkv, cb->scratch_wide, GEMM_STORE, err);
    if (rc == 0)
        rc = rope_launch(cb, a, cb->scratch_wide, row0, err);
    return rc;
}

static int op_attn(struct backend *be, const struct attn_args *a, struct err *err)
{
    struct cuda_backend *cb = of(be);
    int rc = check_kv(cb, a->kv, err);

    count(cb, OP_ATTN, 0, 0); /* lengths are the device's: the bench computes the bytes */
    if (rc == 0 && a->n_heads % a->n_kv_heads)
        rc = err_set(err, ERR_UNSUPPORTED, "attn: %d heads over %d KV heads", a->n_heads,
                     a->n_kv_heads);
    if (rc == 0 && a->kv->is_slab)
        return attn_token_launch(cb, a, err);
    if (rc == 0)
        rc = attn_decode_launch(cb, a, err);
    if (rc == 0)
        rc = attn_prefill_launch(cb, a, err);
    return rc;
}

static int op_kv_append(struct backend *be, const struct kv_append_args *a, struct err *err)
{
    int rc = check_kv(of(be), a->kv, err);
    double row = 2.0 * a->n_kv_heads * a->head_dim * dtype_bytes(a->kv->dtype);

    count(of(be), OP_KV_APPEND, 2 * row * (a->batch->n_rows - a->batch->n_decode), 0);
    return rc < 0 ? rc : kv_append_launch(of(be), a, err);
}

static int op_attn_out(struct backend *be, const struct attn_out_args *a, struct err *err)
{
    struct cuda_backend *cb = of(be);
    const struct step_batch products = for_products(cb, a->batch), *b = &products;
    struct gemm_args few = {.x = a->a,
                            .n_rows = b->n_decode,
                            .w = a->wo,
                            .bias = a->bo,
                            .out = a->x,
                            .epilogue = GEMM_RESIDUAL};
    int rc = cuda_check_matrix(cb, a->wo, "wo", err);

    count(cb, OP_ATTN_OUT, 0, 0);
    count_product(cb, OP_ATTN_OUT, a->wo, b);
    begin_norm(cb, &few, &a->next_norm);
    if (rc == 0)
        rc = project_few(cb, &few, err);
    if (rc == 0)
        rc = add_bias_launch(cb, row_at(cb, a->x, b->n_decode, a->dim), b->n_rows - b->n_decode,
                             a->dim, a->bo, err);
    if (rc == 0)
        rc = project_prompt(cb, b, a->a, a->wo, a->x, GEMM_RESIDUAL, err);
    return rc;
}

/* Activation and bias happen in the epilogue; scratch_wide holds the inner rows. */
static int ffn_few(struct cuda_backend *cb, const struct ffn_args *a, int n, struct err *err)
{
    struct gemm_args in = {.n_rows = n,
                           .w = a->w_in,
                           .bias = a->b_in,
                           .out = cb->scratch_wide,
                           .epilogue = a->gated ? GEMM_GATED : GEMM_ACT,
                           .act = a->act};
    struct gemm_args down = {.x = cb->scratch_wide,
                             .n_rows = n,
                             .w = a->w_down,
                             .bias = a->b_down,
                             .out = a->x,
                             .epilogue = GEMM_RESIDUAL};
    int rc = norm_few(cb, &a->norm, a->dim, a->x, &in, err);

    if (rc == 0)
        rc = project_few(cb, &in, err);
    begin_norm(cb, &down, &a->next_norm);
    return rc < 0 ? rc : project_few(cb, &down, err);
}

/* Rows from `first` on. scratch_wide holds gate and up; the inner rows take the place of the normed
 * ones. */
static int ffn_prompt(struct cuda_backend *cb, const struct ffn_args *a, int first, struct err *err)
{
    int n = a->batch->n_rows - first;
    void *x = row_at(cb, a->x, first, a->dim);
    struct gemm_args in = {.x = row_at(cb, cb->scratch_norm, first, a->dim),
                           .n_rows = n,
                           .w = a->w_in,
                           .out = cb->scratch_wide,
                           .epilogue = GEMM_STORE};
    struct gemm_args down = {
        .x = cb->scratch_norm, .n_rows = n, .w = a->w_down, .out = x, .epilogue = GEMM_RESIDUAL};
    int rc = cuda_blas_gemm(cb, &in, err);

    if (rc == 0)
        rc = ffn_act_launch(cb, a, cb->scratch_wide, n, cb->scratch_norm, err);
    if (rc == 0)
        rc = add_bias_launch(cb, x, n, a->dim, a->b_down, err);
    return rc < 0 ? rc : cuda_blas_gemm(cb, &down, err);
}

static int op_ffn(struct backend *be, const struct ffn_args *a, struct err *err)
{
    struct cuda_backend *cb = of(be);
    struct step_batch b = for_products(cb, a->batch);
    int rc = cuda_check_matrix(cb, a->w_in, "w_in", err);

    count(cb, OP_FFN, 0, 0);
    count_product(cb, OP_FFN, a->w_in, &b);
    count_product(cb, OP_FFN, a->w_down, &b);
    if (rc == 0)
        rc = cuda_check_matrix(cb, a->w_down, "w_down", err);
    if (rc == 0)
        rc = check_fits(cb, a->batch->n_rows, a->w_in->n_out, "ffn", err);
    if (rc == 0)
        rc = check_fits(cb, a->batch->n_rows, a->dim, "ffn", err);
    if (rc == 0)
        rc = ffn_few(cb, a, b.n_decode, err);
    if (rc == 0)
        rc = norm_prompt(cb, &b, &a->norm, a->dim, a->x, err);
    if (rc == 0)
        rc = ffn_prompt(cb, a, b.n_decode, err);
    return rc;
}

static int op_logits(struct backend *be, const struct logits_args *a, struct err *err)
{
    struct cuda_backend *cb = of(be);
    int n = a->batch->n_logits, rc = cuda_check_matrix(cb, a->head, "head", err);
    struct gemm_args head = {
        .x = cb->scratch_norm, .n_rows = n, .w = a->head, .out = a->out, .epilogue = GEMM_F32};
    double size = (double)a->head->n_out * a->head->n_in;

    count(cb, OP_LOGITS, size * dtype_bytes(a->head->dtype), 2 * size * n);
    if (rc == 0)
        rc = check_fits(cb, n, a->dim, "logits", err);
    if (rc == 0)
        rc = norm_launch(cb, &a->norm, a->dim, a->x, a->batch->logit_row, n, cb->scratch_norm, err);
    return rc < 0 ? rc : project_few(cb, &head, err);
}

/* Blocks' rows of the embedder, and with a projection their product, as attn_in has it. */
static int op_block_embed(struct backend *be, const struct block_embed_args *a, struct err *err)
{
    struct cuda_backend *cb = of(be);
    const struct step_batch products = for_products(cb, a->batch), *b = &products;
    double row = (double)a->block_len * a->table->n_in * dtype_bytes(a->table->dtype);
    struct gemm_args few = {.x = a->gathered,
                            .n_rows = b->n_decode,
                            .w = a->w,
                            .bias = a->b,
                            .out = a->x,
                            .epilogue = GEMM_STORE};
    int rc = block_gather_launch(cb, a, a->w ? a->gathered : a->x, err);

    cb->gained_by = NULL;
    count(cb, OP_BLOCK_EMBED, 2 * row * b->n_rows, 0);
    if (rc < 0 || !a->w)
        return rc;
    count_product(cb, OP_BLOCK_EMBED, a->w, b);
    rc = cuda_check_matrix(cb, a->w, "projection", err);
    if (rc == 0)
        rc = project_few(cb, &few, err);
    if (rc == 0)
        rc = project_prompt(cb, b, a->gathered, a->w, a->x, GEMM_STORE, err);
    if (rc == 0)
        rc = add_bias_launch(cb, row_at(cb, a->x, b->n_decode, a->w->n_out),
                             b->n_rows - b->n_decode, a->w->n_out, a->b, err);
    return rc;
}

static int op_block_to_prefix(struct backend *be, const struct block_to_prefix_args *a,
                              struct err *err)
{
    struct cuda_backend *cb = of(be);
    int rc = cuda_check_matrix(cb, a->w, "expansion", err);
    double size = (double)a->w->n_out * a->w->n_in;
    struct gemm_args expand = {.x = cb->scratch_norm,
                               .n_rows = a->n_items,
                               .w = a->w,
                               .bias = a->b,
                               .out = a->out,
                               .epilogue = GEMM_STORE};

    cb->gained_by = NULL;
    count(cb, OP_BLOCK_TO_PREFIX, size * dtype_bytes(a->w->dtype), 2 * size * a->n_items);
    if (rc == 0)
        rc = check_fits(cb, a->n_items, a->w->n_out, "block_to_prefix", err);
    if (rc == 0)
        rc = norm_launch(cb, &a->norm, a->dim, a->x, a->row, a->n_items, cb->scratch_norm, err);
    return rc < 0 ? rc : project_few(cb, &expand, err);
}

static int op_pool(struct backend *be, const struct pool_args *a, struct err *err)
{
    struct cuda_backend *cb = of(be);
    int n = a->batch->n_rows, rc = check_fits(cb, n, a->dim, "pool", err);

    count(cb, OP_POOL, 3.0 * n * a->dim * dtype_bytes(cb->base.act_dtype), 2.0 * n * a->dim);
    if (rc == 0)
        rc = norm_launch(cb, &a->norm, a->dim, a->x, NULL, n, cb->scratch_norm, err);
    return rc < 0 ? rc : pool_launch(cb, a, cb->scratch_norm, err);
}

static int op_sample(struct backend *be, const struct sample_args *a, struct err *err)
{
    count(of(be), OP_SAMPLE, 4.0 * a->n_rows * a->vocab_size, 0);
    return sample_launch(of(be), a, err);
}

static int op_kv_copy(struct backend *be, const struct kv_copy_args *a, struct err *err)
{
    count(of(be), OP_KV_COPY, 2.0 * a->n_pages * (double)a->kv->page_bytes, 0);
    return kv_copy_launch(of(be), a, err);
}

static int step_wait(struct backend *be, int64_t step, struct err *err)
{
    struct cuda_backend *cb = of(be);

    CHECK(step <= be->n_steps);
    while (cb->n_waited < step) {
        int at = (int)(++cb->n_waited % BACKEND_STEPS);
        float ms;

        CUDA_TRY(err, cudaEventSynchronize(cb->step_ended[at]));
        CUDA_TRY(err, cudaEventElapsedTime(&ms, cb->step_begun[at], cb->step_ended[at]));
        be->steps_ns += (int64_t)((double)ms * 1e6);
        cuda_prof_take(cb, cb->n_waited);
    }
    return 0;
}

static int step_begin(struct backend *be, const struct step_batch *batch, struct err *err)
{
    struct cuda_backend *cb = of(be);
    int rc;

    if (batch->n_rows > cb->params.max_rows || batch->n_logits > cb->params.max_logits)
        return err_set(err, ERR_INVALID, "step of %d rows and %d logits, opened for %d and %d",
                       batch->n_rows, batch->n_logits, cb->params.max_rows, cb->params.max_logits);
    if (batch->n_decode > cb->max_decode)
        return err_set(err, ERR_INVALID, "step of %d decode rows, opened for %d", batch->n_decode,
                       cb->max_decode);
    CUDA_TRY(err, cudaSetDevice(cb->device)); /* the thread that opened may be another one */
    rc = step_wait(be, be->n_steps + 1 - BACKEND_STEPS, err);
    if (rc < 0)
        return rc;
    CUDA_TRY(err, cudaEventRecord(cb->step_begun[(be->n_steps + 1) % BACKEND_STEPS], cb->stream));
    cb->in_step = true;
    cb->plan.valid = false;
    cb->gained_by = NULL;
    cuda_prof_begin(cb, batch);
    return 0;
}

static int step_end(struct backend *be, struct err *err)
{
    struct cuda_backend *cb = of(be);

    cb->in_step = false;
    cb->plan.valid = false;
    be->n_steps++;
    cuda_prof_end(cb);
    CUDA_TRY(err, cudaEventRecord(cb->step_ended[be->n_steps % BACKEND_STEPS], cb->stream));
    return 0;
}

static void backend_close(struct backend *be)
{
    struct cuda_backend *cb = of(be);

    if (!cb)
        return;
    if (cb->stream)
        cudaStreamSynchronize(cb->stream);
    cuda_graphs_close(cb);
    cuda_prof_close(cb);
    cuda_blas_close(cb->blas);
    cudaFree(cb->scratch_norm);
    cudaFree(cb->scratch_wide);
    cudaFree(cb->sample_rows);
    cudaFree(cb->attn_state);
    cudaFree(cb->attn_next);
    cudaFree(cb->gemm_parts);
    cudaFree(cb->gemm_arrived);
    cudaFree(cb->gained);
    cudaFree(cb->sum_sq);
    cudaFree(cb->plan.first);
    cudaFree(cb->plan.arrived);
    for (int i = 0; i < 2; i++) {
        cudaFreeHost(cb->staging[i]);
        if (cb->staging_free[i])
            cudaEventDestroy(cb->staging_free[i]);
    }
    for (int i = 0; i < BACKEND_STEPS; i++) {
        if (cb->step_begun[i])
            cudaEventDestroy(cb->step_begun[i]);
        if (cb->step_ended[i])
            cudaEventDestroy(cb->step_ended[i]);
    }
    if (cb->stream)
        cudaStreamDestroy(cb->stream);
    free(cb);
}

/* The more the better, within what weights and pages have left. */
static int read_bandwidth(struct backend *be, double *bytes_per_s, struct err *err)
{
    size_t bytes = cuda_mem_room(be) / 2;
    double registers, bulk;
    int rc;

    CUDA_TRY(err, cudaSetDevice(of(be)->device));
    rc = cuda_read_bandwidth(of(be), bytes < MAX_READ_BYTES ? bytes : MAX_READ_BYTES, &registers,
                             &bulk, err);
    *bytes_per_s = registers > bulk ? registers : bulk;
    return rc;
}

static const struct backend_ops cuda_ops = {
    .name = "cuda",
    .has_masks = true,
    .close = backend_close,
    .supports = attn_supports,
    .alloc = cuda_mem_alloc,
    .free = cuda_mem_free,
    .upload = cuda_mem_upload,
    .download = cuda_mem_download,
    .host_alloc = cuda_mem_host_alloc,
    .host_free = cuda_mem_host_free,
    .fetch = cuda_mem_fetch,
    .weight_load = cuda_mem_weight_load,
    .weight_random = cuda_mem_weight_random,
    .weight_free = cuda_mem_weight_free,
    .mem_free = cuda_mem_room,
    .read_bandwidth = read_bandwidth,
    .step_begin = step_begin,
    .step_end = step_end,
    .step_wait = step_wait,
    .graph_begin = cuda_graph_begin,
    .graph_end = cuda_graph_end,
    .embed = op_embed,
    .attn_in = op_attn_in,
    .attn = op_attn,
    .kv_append = op_kv_append,
    .attn_out = op_attn_out,
    .ffn = op_ffn,
    .logits = op_logits,
    .pool = op_pool,
    .sample = op_sample,
    .kv_copy = op_kv_copy,
    .block_embed = op_block_embed,
    .block_to_prefix = op_block_to_prefix,
};

/* "cuda" and "auto" are device 0, "cuda:N" is N. */
static int device_parse(const char *name, int *device, struct err *err)
{
    char *end;
    long n = 0;

    if (name && strncmp(name, "cuda:", 5) == 0) {
        n = strtol(name + 5, &end, 10);
        if (end == name + 5 || *end || n < 0 || n > 1024)
            return err_set(err, ERR_INVALID, "device \"%s\": want cuda:N", name);
    }
    *device = (int)n;
    return 0;
}

/* Says which of the many things is missing when CUDA does not come up. */
static int device_find(int device, struct err *err)
{
    int n_devices = 0, driver = 0, runtime = 0;
    cudaError_t rc = cudaGetDeviceCount(&n_devices);

    if (rc == cudaErrorInsufficientDriver) {
        cudaDriverGetVersion(&driver);
        cudaRuntimeGetVersion(&runtime);
        if (driver == 0)
            return err_set(err, ERR_DEVICE,
                           "CUDA: no NVIDIA driver on this machine "
                           "(libcuda.so.1 was not found)");
        return err_set(err, ERR_DEVICE,
                       "CUDA: the driver supports CUDA %d.%d, this program needs %d.%d",
                       driver / 1000, driver % 1000 / 10, runtime / 1000, runtime % 1000 / 10);
    }
    if (rc == cudaErrorNoDevice || (rc == cudaSuccess && n_devices == 0))
        return err_set(err, ERR_DEVICE,
                       "CUDA: a driver, but no GPU that it shows "
                       "(CUDA_VISIBLE_DEVICES is %s)",
                       getenv("CUDA_VISIBLE_DEVICES") ? getenv("CUDA_VISIBLE_DEVICES") : "not set");
    if (rc != cudaSuccess)
        return cuda_fail(err, rc, "looking for GPUs");
    if (device >= n_devices)
        return err_set(err, ERR_DEVICE, "CUDA: device %d, there are %d", device, n_devices);
    return 0;
}

static int device_open(struct cuda_backend *cb, struct err *err)
{
    struct cudaDeviceProp prop;
    int smem, code, rc;

    CUDA_TRY(err, cudaSetDevice(cb->device));
    CUDA_TRY(err, cudaGetDeviceProperties(&prop, cb->device));
    cb->arch = prop.major * 10 + prop.minor;
    if (cb->arch < 80)
        return err_set(err, ERR_DEVICE, "CUDA: %s has compute capability %d.%d, want 8.0 or newer",
                       prop.name, prop.major, prop.minor);
    rc = cuda_code_arch(&code, err);
    if (rc < 0)
        return rc;
    if (code > 0 && code < cb->arch)
        cb->arch = code;
    CUDA_TRY(err,
             cudaDeviceGetAttribute(&smem, cudaDevAttrMaxSharedMemoryPerBlockOptin, cb->device));
    cb->smem_max = smem;
    cb->n_sms = prop.multiProcessorCount;
    CUDA_TRY(err, cudaStreamCreateWithFlags(&cb->stream, cudaStreamNonBlocking));
    snprintf(cb->base.description, sizeof(cb->base.description),
             "%.100s, sm_%d, %d SMs, %.1f GB, activations %s", prop.name, cb->arch, cb->n_sms,
             (double)prop.totalGlobalMem / 1e9, dtype_name(cb->base.act_dtype));
    return 0;
}

static int scratch_open(struct cuda_backend *cb, struct err *err)
{
    const struct backend_params *p = &cb->params;
    const char *many = getenv("SPAND_CUDA_MANY_ROWS"); /* for tests */
    size_t row = (size_t)p->max_dim * dtype_bytes(cb->base.act_dtype);
    int n_norm = p->max_rows > p->max_logits ? p->max_rows : p->max_logits;

    /* Whoever decodes may sample: so many rows at least, unless somebody knows of more. */
    cb->max_decode = p->max_decode > p->max_logits ? p->max_decode : p->max_logits;
    cb->max_decode = cb->max_decode > MIN_DECODE ? cb->max_decode : MIN_DECODE;
    cb->max_decode = cb->max_decode < p->max_rows ? cb->max_decode : p->max_rows;
    cb->many_rows = p->batch_variant ? many && *many ? atoi(many) : MANY_ROWS : INT_MAX;
    cb->n_sample_ctas = p->max_logits < MAX_SAMPLE_CTAS ? p->max_logits : MAX_SAMPLE_CTAS;
    CUDA_TRY(err, cudaMalloc(&cb->scratch_norm, n_norm * row));
    CUDA_TRY(err, cudaMalloc(&cb->scratch_wide, p->max_rows * row));
    CUDA_TRY(err, cudaMalloc((void **)&cb->sample_rows,
                             (size_t)cb->n_sample_ctas * p->max_vocab * sizeof(float) + 16));
    CUDA_TRY(err, cudaMalloc((void **)&cb->attn_state, ATTN_STATE_BYTES));
    CUDA_TRY(err, cudaMalloc((void **)&cb->attn_next, 2 * sizeof(int32_t)));
    CUDA_TRY(err, cudaMemsetAsync(cb->attn_next, 0, 2 * sizeof(int32_t), cb->stream));
    for (int i = 0; i < 2; i++) {
        CUDA_TRY(err, cudaHostAlloc(&cb->staging[i], CUDA_STAGING_BYTES, cudaHostAllocDefault));
        CUDA_TRY(err, cudaEventCreateWithFlags(&cb->staging_free[i], cudaEventDisableTiming));
    }
    for (int i = 0; i < BACKEND_STEPS; i++) {
        CUDA_TRY(err, cudaEventCreate(&cb->step_begun[i]));
        CUDA_TRY(err, cudaEventCreate(&cb->step_ended[i]));
    }
    return 0;
}

int cuda_backend_open(struct backend **out, const struct backend_params *params, struct err *err)
{
    const char *sync = getenv("SPAND_CUDA_SYNC");
    struct cuda_backend *cb = calloc(1, sizeof(*cb));
    int rc;

    if (!cb)
        return err_set(err, ERR_NO_ROOM, "cuda backend: out of memory");
    cb->base.ops = &cuda_ops;
    cb->base.act_dtype = params->dtype;
    cb->base.is_async = true;
    cb->params = *params;
    cb->sync_launches = sync && *sync && *sync != '0';
    if (params->max_rows < 1 || params->max_dim < 1) {
        rc = err_set(err, ERR_INVALID, "cuda backend: max_rows %d, max_dim %d", params->max_rows,
                     params->max_dim);
        goto out;
    }
    rc = device_parse(params->device, &cb->device, err);
    if (rc == 0)
        rc = device_find(cb->device, err);
    if (rc == 0)
        rc = device_open(cb, err);
    if (rc == 0)
        rc = scratch_open(cb, err);
    if (rc == 0)
        rc = cuda_hopper_open(cb, err);
    if (rc == 0)
        rc = cuda_graphs_open(cb, err);
    if (rc == 0)
        rc = cuda_prof_open(cb, err);
    if (rc == 0)
        rc = cuda_blas_open(&cb->blas, cb, err);
    if (rc < 0)
        goto out;
    *out = &cb->base;
    cb = NULL; /* the caller owns it now */
out:
    backend_close(cb ? &cb->base : NULL); /* accepts NULL and half-built */
    return rc;
}
