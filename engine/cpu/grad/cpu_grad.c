/*
 * cpu_grad - opening the CPU's backward ops, and the two steps back that all of them are made of.
 */
#include "engine/cpu/grad/cpu_grad.h"

#include "base/check.h"
#include "base/err.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

#define WEIGHT_ROWS 64 /* of a weight converted to f32 at a time */

static size_t max_size(size_t a, size_t b)
{
    return a > b ? a : b;
}

static int block_rows_of(const struct cpu_backend *cb, const struct grad_params *p)
{
    int n = cb->block_rows < p->max_rows ? cb->block_rows : p->max_rows;

    return n < 256 ? n : 256;
}

static size_t thread_bytes_of(const struct grad_params *p)
{
    size_t weight = sizeof(float) * WEIGHT_ROWS * (size_t)p->max_dim;

    return (max_size(weight, cpu_grad_attn_scratch(p)) + 4095) / 4096 * 4096;
}

size_t cpu_grad_bytes(const struct backend *be, const struct grad_params *params)
{
    const struct cpu_backend *cb = (const struct cpu_backend *)be;
    /* dk and dv of every query head, while attention runs. */
    size_t by_head = 2 * sizeof(float) * (size_t)params->n_heads * (size_t)params->head_dim *
                     (size_t)params->max_rows;

    return by_head +
           3 * sizeof(float) * (size_t)block_rows_of(cb, params) * (size_t)params->max_dim +
           (size_t)cpu_threads_count(cb->threads) * thread_bytes_of(params);
}

static void cpu_grad_close(struct grad *base)
{
    struct cpu_grad *g = cpu_grad_of(base);

    if (!g)
        return;
    cpu_memory_free(g->d_out);
    cpu_memory_free(g->d_in);
    cpu_memory_free(g->wide);
    cpu_memory_free(g->thread_scratch);
    free(g);
}

static int cpu_grad_copy(struct grad *g, void *dst, const void *src, size_t bytes, struct err *err)
{
    (void)g;
    (void)err;
    memcpy(dst, src, bytes);
    return 0;
}

static int cpu_grad_zero(struct grad *g, void *dst, size_t bytes, struct err *err)
{
    (void)g;
    (void)err;
    memset(dst, 0, bytes);
    return 0;
}

static int cpu_grad_finish(struct grad *g, struct err *err)
{
    (void)g;
    (void)err;
    return 0;
}

static const struct grad_ops cpu_grad_ops = {
    .close = cpu_grad_close,
    .copy = cpu_grad_copy,
    .zero = cpu_grad_zero,
    .logits = cpu_grad_logits,
    .ffn = cpu_grad_ffn,
    .attn_out = cpu_grad_attn_out,
    .attn = cpu_grad_attn,
    .attn_in = cpu_grad_attn_in,
    .finish = cpu_grad_finish,
};

int cpu_grad_open(struct grad **out, struct backend *be, const struct grad_params *params,
                  struct err *err)
{
    struct cpu_grad *g = calloc(1, sizeof(*g));
    size_t rows_bytes;
    int rc = 0;

    if (!g)
        return err_set(err, ERR_NO_ROOM, "cpu: out of memory");
    g->base.ops = &cpu_grad_ops;
    g->base.be = be;
    g->cb = cpu_of(be);
    g->kern = grad_kernels_for(g->cb->isa);
    g->params = *params;
    g->block_rows = block_rows_of(g->cb, params);
    g->thread_bytes = thread_bytes_of(params);
    rows_bytes = sizeof(float) * (size_t)g->block_rows * (size_t)params->max_dim;
    g->d_out = cpu_memory_new(rows_bytes);
    g->d_in = cpu_memory_new(rows_bytes);
    g->wide = cpu_memory_new(rows_bytes);
    g->thread_scratch = cpu_memory_new((size_t)cpu_threads_count(g->cb->threads) * g->thread_bytes);
    if (!g->d_out || !g->d_in || !g->wide || !g->thread_scratch) {
        rc = err_set(err, ERR_NO_ROOM, "cpu: no memory for gradients of %d rows of %d",
                     params->max_rows, params->max_dim);
        goto out;
    }
    *out = &g->base;
    g = NULL;
out:
    cpu_grad_close(g ? &g->base : NULL);
    return rc;
}

/* ---- back through a product ---- */

struct back_job {
    struct cpu_grad *g;
    const struct grad_back_args *a;
};

static void back_items(void *arg, int64_t begin, int64_t end, int thread)
{
    const struct back_job *j = arg;
    const struct grad_back_args *a = j->a;
    const struct weight *w = a->w;
    float *chunk = (float *)(j->g->thread_scratch + (size_t)thread * j->g->thread_bytes);
    size_t row_bytes = (size_t)w->n_in * dtype_bytes(w->dtype);

    for (int o = 0; o < w->n_out; o += WEIGHT_ROWS) {
        int n = w->n_out - o < WEIGHT_ROWS ? w->n_out - o : WEIGHT_ROWS;
        const char *from = (const char *)w->data + (size_t)o * row_bytes;

        if (w->dtype != DTYPE_F32)
            dtype_convert(chunk, DTYPE_F32, from, w->dtype, (size_t)n * (size_t)w->n_in);
        j->g->kern->product(
            &(struct grad_product){.m = (int)(end - begin),
                                   .n = w->n_in,
                                   .k = n,
                                   .a = a->dy + begin * a->ldy + o,
                                   .a_row = a->ldy,
                                   .a_col = 1,
                                   .b = w->dtype == DTYPE_F32 ? (const float *)from : chunk,
                                   .ldb = w->n_in,
                                   .c = a->dx + begin * a->ldx,
                                   .ldc = a->ldx,
                                   .add = a->add || o > 0});
    }
}

void cpu_grad_back(struct cpu_grad *g, const struct grad_back_args *a)
{
    struct back_job job = {.g = g, .a = a};
    int64_t n_threads = cpu_threads_count(g->cb->threads);
    int64_t grain = (a->n_rows + n_threads - 1) / n_threads;

    CHECK(a->w->n_in <= g->params.max_dim);
    /* A chunk of the weight is converted once an item, so items are large. */
    grain = grain > 64 ? (grain + 1) / 2 : grain;
    cpu_threads_run(g->cb->threads, a->n_rows, grain, back_items, &job);
    g->base.flops += 2.0 * a->n_rows * a->w->n_in * (double)a->w->n_out;
}

/* ---- back through a norm ---- */

struct norm_job {
    const struct norm_args *norm;
    const float *gain, *x, *dy;
    float *dx;
    int dim;
    const int32_t *index;
    bool add;
};

/*
 * RMSNorm: y = x r g with r = (mean x^2 + eps)^-1/2, so
 * dx = r (g dy - x r^2 mean(x g dy)). LayerNorm has the mean of g dy taken off as well.
 */
static void norm_row(const struct norm_job *j, const float *x, float *dx, const float *dy)
{
    bool centred = j->norm->kind == NORM_LAYER;
    double mean = 0, square = 0, dot = 0, sum = 0;
    float r;

    for (int i = 0; centred && i < j->dim; i++)
        mean += x[i];
    mean /= j->dim;
    for (int i = 0; i < j->dim; i++) {
        double c = x[i] - mean, gdy = (double)dy[i] * j->gain[i];

        square += c * c;
        dot += c * gdy;
        sum += gdy;
    }
    r = (float)(1.0 / sqrt(square / j->dim + j->norm->eps));
    dot *= (double)r * r / j->dim;
    sum = centred ? sum / j->dim : 0.0;
    for (int i = 0; i < j->dim; i++) {
        float d = r * (float)((double)dy[i] * j->gain[i] - sum - (x[i] - mean) * dot);

        dx[i] = j->add ? dx[i] + d : d;
    }
}

static void norm_items(void *arg, int64_t begin, int64_t end, int thread)
{
    const struct norm_job *j = arg;

    (void)thread;
    for (int64_t i = begin; i < end; i++) {
        int64_t at = (j->index ? j->index[i] : i) * j->dim;

        norm_row(j, j->x + at, j->dx + at, j->dy + i * j->dim);
    }
}

void cpu_grad_norm(struct cpu_grad *g, const struct norm_args *norm, const float *x, float *dx,
                   const float *dy, int n_rows, int dim, const int32_t *index, bool add)
{
    struct norm_job job = {.norm = norm,
                           .gain = cpu_weight_vector(norm->gain),
                           .x = x,
                           .dx = dx,
                           .dy = dy,
                           .dim = dim,
                           .index = index,
                           .add = add};

    cpu_threads_run(g->cb->threads, n_rows, 8, norm_items, &job);
}
