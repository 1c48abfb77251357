/*
 * cpu_linear - decode rows stream the weights once; prompt rows go through packed groups.
 *
 * The products are our own and not oneDNN's because a row's bits may depend neither on the number
 * of rows nor of threads, which oneDNN does not promise: its bf16 matmul (2.6.3, [512, 2048] by
 * [8192, 2048], one thread of a Zen 4) kept them at 1 to 512 rows, but without the bf16
 * instructions one row alone had other bits in 6,686 of 8,192 outputs, at 37 GFLOP/s. Where it kept
 * them it was little faster: 84 ms on the row-major weights that decode rows read too, 80 ms on a
 * second, reordered copy, ours 90 ms. On AMX the two have not been compared.
 */
#include "engine/cpu/cpu_linear.h"

#include "base/check.h"

#define DECODE_STRIP 24 /* outputs; the dot kernels' own strip */

/* Outputs of one item: some items a thread for balance, large enough to stream. */
static int64_t decode_grain(const struct cpu_backend *cb, int n_out)
{
    int64_t per_thread = n_out / (8 * cpu_threads_count(cb->threads));
    int64_t grain = per_thread / DECODE_STRIP * DECODE_STRIP;

    return grain < DECODE_STRIP       ? DECODE_STRIP
           : grain > 8 * DECODE_STRIP ? 8 * DECODE_STRIP
                                      : grain;
}

struct decode_job {
    struct cpu_backend *cb;
    const struct linear_args *a;
    struct dot_args dot;
    const float *bias;
};

static void decode_items(void *arg, int64_t begin, int64_t end, int thread)
{
    const struct decode_job *j = arg;
    const struct linear_args *a = j->a;

    (void)thread;
    j->cb->kern->dot(&j->dot, (int)begin, (int)(end - begin));
    if (!j->bias && !a->add)
        return;
    for (int r = 0; r < a->n_rows; r++) {
        const float *x = j->dot.y + r * j->dot.ldy;
        float *y = a->y + r * a->ldy;

        for (int64_t o = begin; o < end; o++) {
            float v = j->bias ? x[o] + j->bias[o] : x[o];

            y[o] = a->add ? y[o] + v : v;
        }
    }
}

struct prepare_job {
    struct cpu_backend *cb;
    const float *x;
    int64_t ldx, ldo;
    const struct weight *w;
};

static void prepare_items(void *arg, int64_t begin, int64_t end, int thread)
{
    const struct prepare_job *j = arg;

    (void)thread;
    for (int64_t r = begin; r < end; r++)
        j->cb->kern->dot_prepare(j->cb->dot_rows + r * j->ldo, j->x + r * j->ldx, j->w->n_in,
                                 j->w->dtype);
}

int64_t cpu_dot_prepare(struct cpu_backend *cb, const float *x, int64_t ldx, int n_rows,
                        const struct weight *w)
{
    struct prepare_job job = {.cb = cb,
                              .x = x,
                              .ldx = ldx,
                              .w = w,
                              .ldo = (w->n_in + DOT_ROUND - 1) / DOT_ROUND * DOT_ROUND};

    CHECK(n_rows <= cb->block_rows);
    CHECK(w->n_in <= cb->params.max_dim);
    cpu_threads_run(cb->threads, n_rows, 4, prepare_items, &job);
    return job.ldo;
}

void cpu_linear_decode(struct cpu_backend *cb, const struct linear_args *a)
{
    const struct weight *w = a->w;
    struct decode_job job = {.cb = cb,
                             .a = a,
                             .bias = cpu_weight_vector(a->bias),
                             .dot = {.w = w->data,
                                     .dtype = w->dtype,
                                     .n_in = w->n_in,
                                     .n_rows = a->n_rows,
                                     .x = cb->dot_rows,
                                     .y = a->add ? cb->wide : a->y,
                                     .ldy = a->add ? w->n_out : a->ldy}};

    if (a->n_rows == 0)
        return;
    CHECK(a->n_rows <= cb->block_rows);
    CHECK(!a->add || w->n_out <= cb->params.max_dim);
    job.dot.ldx = cpu_dot_prepare(cb, a->x, a->ldx, a->n_rows, w);
    cpu_threads_run(cb->threads, w->n_out, decode_grain(cb, w->n_out), decode_items, &job);
}

const struct cpu_gemm *cpu_gemm_for(const struct cpu_backend *cb, const struct weight *w)
{
    return w->dtype == DTYPE_BF16 && cb->gemm_bf16 ? cb->gemm_bf16 : cb->kern->gemm;
}

struct norm_job {
    struct cpu_backend *cb;
    const struct norm_args *norm;
    const float *gain, *bias;
    const float *x;
    int64_t ldx, ldo;
    const int32_t *index;
    int dim, n_rows;
    float *out;
    const struct cpu_gemm *gemm;
};

static void norm_items(void *arg, int64_t begin, int64_t end, int thread)
{
    const struct norm_job *j = arg;

    (void)thread;
    for (int64_t r = begin; r < end; r++) {
        int64_t from = j->index ? j->index[r] : r;

        j->cb->kern->norm(j->out + r * j->ldo, j->x + from * j->ldx, j->dim, j->norm->kind,
                          j->norm->eps, j->gain, j->bias);
    }
}

void cpu_norm_rows(struct cpu_backend *cb, float *out, int64_t ldo, const float *x, int64_t ldx,
                   const int32_t *index, int n_rows, int dim, const struct norm_args *norm)
{
    struct norm_job job = {.cb = cb,
                           .norm = norm,
                           .gain = cpu_weight_vector(norm->gain),
                           .bias = cpu_weight_vector(norm->bias),
                           .x = x,
                           .ldx = ldx,
                           .ldo = ldo,
                           .index = index,
                           .dim = dim,
                           .out = out};

    /* A few rows are done before another thread has heard of them. */
    cpu_threads_run(cb->threads, n_rows, 4, norm_items, &job);
}

static void pack_items(void *arg, int64_t begin, int64_t end, int thread)
{
    const struct norm_job *j = arg;
    int lanes = j->gemm->lanes;

    for (int64_t g = begin; g < end; g++) {
        int n = j->n_rows - (int)g * lanes < lanes ? j->n_rows - (int)g * lanes : lanes;
        const float *x = j->x + g * lanes * j->ldx;
        char *group = (char *)j->cb->packed + (size_t)g * gemm_group_bytes(j->gemm, j->dim);
        float *normed = thread_scratch(j->cb, thread);

        if (!j->norm) {
            j->gemm->pack(group, x, j->ldx, n, j->dim);
            continue;
        }
        for (int r = 0; r < n; r++)
            j->cb->kern->norm(normed + (int64_t)r * j->dim, x + r * j->ldx, j->dim, j->norm->kind,
                              j->norm->eps, j->gain, j->bias);
        j->gemm->pack(group, normed, j->dim, n, j->dim);
    }
}

void cpu_linear_pack(struct cpu_backend *cb, const struct cpu_gemm *gemm, const float *x,
                     int64_t ldx, int n_rows, int n_in, const struct norm_args *norm)
{
    struct norm_job job = {.cb = cb,
                           .norm = norm,
                           .gain = norm ? cpu_weight_vector(norm->gain) : 0,
                           .bias = norm ? cpu_weight_vector(norm->bias) : NULL,
                           .x = x,
                           .ldx = ldx,
                           .dim = n_in,
                           .n_rows = n_rows,
                           .gemm = gemm};

    CHECK(n_rows <= cb->block_rows);
    CHECK(n_in <= cb->params.max_dim);
    cpu_threads_run(cb->threads, (n_rows + gemm->lanes - 1) / gemm->lanes, 1, pack_items, &job);
}

#define ITEMS_A_THREAD 4 /* of a product, where its grain allows */

struct gemm_job {
    struct cpu_backend *cb;
    const struct cpu_gemm *gemm;
    const struct gemm_args *a;
    struct gemm_queue queue;
};

/* One item of the pool's is a thread's share of the queue, whatever that will be. */
static void gemm_items(void *arg, int64_t begin, int64_t end, int thread)
{
    struct gemm_job *j = arg;

    (void)begin;
    (void)end;
    j->gemm->run(j->a, &j->queue, thread_scratch(j->cb, thread));
}

void cpu_gemm_run(struct cpu_backend *cb, const struct cpu_gemm *gemm, const struct gemm_args *a,
                  int n_out)
{
    int n_threads = cpu_threads_count(cb->threads);
    int grain = a->w_up ? gemm->grain_gated : gemm->grain;
    struct gemm_job job = {.cb = cb, .gemm = gemm, .a = a};

    while (grain > gemm->grain_least && (int64_t)grain * n_threads * ITEMS_A_THREAD > n_out)
        grain /= 2;
    job.queue.n_out = n_out;
    job.queue.grain = grain;
    cpu_threads_run(cb->threads, n_threads, 1, gemm_items, &job);
}

void cpu_linear_prompt(struct cpu_backend *cb, const struct linear_args *a)
{
    struct gemm_args g = {.w = a->w->data,
                          .dtype = a->w->dtype,
                          .n_in = a->w->n_in,
                          .n_rows = a->n_rows,
                          .packed = cb->packed,
                          .epilogue = a->add ? GEMM_ADD : GEMM_STORE,
                          .bias = cpu_weight_vector(a->bias),
                          .y = a->y,
                          .ldy = a->ldy};

    CHECK(a->n_rows <= cb->block_rows);
    cpu_gemm_run(cb, cpu_gemm_for(cb, a->w), &g, a->w->n_out);
}
