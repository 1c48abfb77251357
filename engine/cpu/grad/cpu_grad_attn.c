/*
 * cpu_grad_attn - the way back through attention, and the influence of keys on the way.
 *
 * An item is a query head: 64 rows at a time against all keys they see. Query heads that share a
 * KV head add to buffers of their own, which are summed at the end, so no two threads write to one
 * place and sums have one order.
 */
#include "engine/cpu/grad/cpu_grad.h"

#include "base/check.h"
#include "base/err.h"

#include <math.h>
#include <string.h>

struct attn_job {
    struct cpu_grad *g;
    const struct grad_attn_args *a;
    float *dk, *dv; /* [n_heads, n_rows, head_dim] */
};

/* One thread's tiles. */
struct tiles {
    float *kt, *vt; /* [head_dim, n_rows] */
    float *k, *v;   /* [n_rows, head_dim] */
    float *w, *gw;  /* [GRAD_BLOCK, n_rows] weights and their gradients */
};

static int64_t round_rows(int n)
{
    return (n + 63) / 64 * 64;
}

size_t cpu_grad_attn_scratch(const struct grad_params *p)
{
    int64_t n = round_rows(p->max_rows);

    return sizeof(float) * (size_t)(n * (4 * p->head_dim + 2 * GRAD_BLOCK));
}

static void tiles_init(struct tiles *t, const struct attn_job *j, int thread)
{
    float *at = (float *)(j->g->thread_scratch + (size_t)thread * j->g->thread_bytes);
    int64_t n = round_rows(j->a->n_rows), d = j->a->head_dim;

    t->kt = at;
    t->vt = t->kt + n * d;
    t->k = t->vt + n * d;
    t->v = t->k + n * d;
    t->w = t->v + n * d;
    t->gw = t->w + n * GRAD_BLOCK;
}

/* The KV head's keys and values, plain and transposed. */
static void tiles_fill(struct tiles *t, const struct grad_attn_args *a, int kv_head)
{
    int64_t ld = round_rows(a->n_rows), stride = (int64_t)a->n_kv_heads * a->head_dim;
    const float *k = (const float *)a->k + kv_head * a->head_dim;
    const float *v = (const float *)a->v + kv_head * a->head_dim;

    for (int64_t r = 0; r < a->n_rows; r++) {
        for (int i = 0; i < a->head_dim; i++) {
            t->k[r * a->head_dim + i] = t->kt[i * ld + r] = k[r * stride + i];
            t->v[r * a->head_dim + i] = t->vt[i * ld + r] = v[r * stride + i];
        }
    }
}

static float dot(const float *x, const float *y, int n)
{
    float sum = 0;

    for (int i = 0; i < n; i++)
        sum += x[i] * y[i];
    return sum;
}

/* Weights, gradients of scores and influence of one row; lo .. row are the keys it sees. */
static void row_back(const struct attn_job *j, const struct tiles *t, int head, int row, int lo,
                     int n_keys)
{
    const struct grad_attn_args *a = j->a;
    int64_t ld = round_rows(a->n_rows), at = ((int64_t)row * a->n_heads + head) * a->head_dim;
    int block = row / GRAD_BLOCK, n_blocks = (a->n_rows + GRAD_BLOCK - 1) / GRAD_BLOCK;
    float *w = t->w + row % GRAD_BLOCK * ld, *gw = t->gw + row % GRAD_BLOCK * ld;
    float d = dot((const float *)a->da + at, (const float *)a->a + at, a->head_dim);
    double *band = a->band + (int64_t)head * n_blocks, *sink = a->sink + (int64_t)head * n_blocks;

    j->g->kern->softmax(w, lo, row + 1, n_keys, a->scale);
    memset(gw + row + 1, 0, sizeof(*gw) * (size_t)(n_keys - row - 1));
    memset(gw, 0, sizeof(*gw) * (size_t)lo);
    if (lo == row) { /* nothing is left to take over the weight: the reference counts g A */
        double e = (double)gw[row] * w[row];

        e = a->sum == GRAD_SUM_SIGNED ? e : fabs(e);

        *(row / GRAD_BLOCK ? &band[0] : &sink[block]) += e;
        gw[row] = w[row] * (gw[row] - d) * a->scale;
        return;
    }
    for (int key = lo; key <= row;) {
        int kb = key / GRAD_BLOCK, end = (kb + 1) * GRAD_BLOCK;
        float e;

        end = end < row + 1 ? end : row + 1;
        e = j->g->kern->influence(w + key, gw + key, end - key, d, GRAD_MIN_REST, a->scale,
                                  a->sum == GRAD_SUM_ABS);
        *(kb ? &band[block - kb] : &sink[block]) +=
            a->sum == GRAD_SUM_SIGNED ? (double)e : fabs((double)e);
        key = end;
    }
}

/* One query head, rows row0 .. row0 + n - 1 of one block. */
static void block_back(const struct attn_job *j, const struct tiles *t, int head, int row0, int n)
{
    const struct grad_attn_args *a = j->a;
    const struct grad_kernels *kern = j->g->kern;
    int64_t ld = round_rows(a->n_rows), stride = (int64_t)a->n_heads * a->head_dim;
    int d = a->head_dim, n_keys = row0 + n;
    int first = a->window < KV_WINDOW_ALL && row0 - a->window + 1 > 0 ? row0 - a->window + 1 : 0;
    const float *q = (const float *)a->q + row0 * stride + head * d;
    const float *da = (const float *)a->da + row0 * stride + head * d;
    float *dk = j->dk + ((int64_t)head * a->n_rows + first) * d;
    float *dv = j->dv + ((int64_t)head * a->n_rows + first) * d;
    struct grad_product scores = {
        .m = n, .n = n_keys - first, .k = d, .a_row = stride, .a_col = 1, .ldb = ld, .ldc = ld};
    struct grad_product to_keys = {.m = n_keys - first,
                                   .n = d,
                                   .k = n,
                                   .a_row = 1,
                                   .a_col = ld,
                                   .ldb = stride,
                                   .ldc = d,
                                   .add = true};

    scores.a = q;
    scores.b = t->kt + first;
    scores.c = t->w + first;
    kern->product(&scores);
    scores.a = da;
    scores.b = t->vt + first;
    scores.c = t->gw + first;
    kern->product(&scores);
    for (int r = 0; r < n; r++) {
        int row = row0 + r, lo = row - a->window + 1;

        row_back(j, t, head, row, a->window < KV_WINDOW_ALL && lo > 0 ? lo : 0, n_keys);
    }
    kern->product(&(struct grad_product){.m = n,
                                         .n = d,
                                         .k = n_keys - first,
                                         .a = t->gw + first,
                                         .a_row = ld,
                                         .a_col = 1,
                                         .b = t->k + (int64_t)first * d,
                                         .ldb = d,
                                         .c = (float *)a->dq + row0 * stride + head * d,
                                         .ldc = stride});
    to_keys.a = t->gw + first;
    to_keys.b = q;
    to_keys.c = dk;
    kern->product(&to_keys);
    to_keys.a = t->w + first;
    to_keys.b = da;
    to_keys.c = dv;
    kern->product(&to_keys);
}

static void head_items(void *arg, int64_t begin, int64_t end, int thread)
{
    const struct attn_job *j = arg;
    const struct grad_attn_args *a = j->a;
    int group = a->n_heads / a->n_kv_heads;
    struct tiles t;

    tiles_init(&t, j, thread);
    for (int64_t head = begin; head < end; head++) {
        size_t bytes = sizeof(float) * (size_t)a->n_rows * (size_t)a->head_dim;

        tiles_fill(&t, a, (int)head / group);
        memset(j->dk + head * a->n_rows * a->head_dim, 0, bytes);
        memset(j->dv + head * a->n_rows * a->head_dim, 0, bytes);
        for (int row = 0; row < a->n_rows; row += GRAD_BLOCK)
            block_back(j, &t, (int)head, row,
                       a->n_rows - row < GRAD_BLOCK ? a->n_rows - row : GRAD_BLOCK);
    }
}

/* Sums the query heads of each KV head in their order. */
static void sum_items(void *arg, int64_t begin, int64_t end, int thread)
{
    const struct attn_job *j = arg;
    const struct grad_attn_args *a = j->a;
    int group = a->n_heads / a->n_kv_heads, d = a->head_dim;

    (void)thread;
    for (int64_t r = begin; r < end; r++) {
        for (int h = 0; h < a->n_heads; h++) {
            int64_t from = ((int64_t)h * a->n_rows + r) * d;
            int64_t to = (r * a->n_kv_heads + h / group) * d;
            float *dk = (float *)a->dk + to, *dv = (float *)a->dv + to;

            for (int i = 0; i < d; i++) {
                dk[i] = j->dk[from + i] + (h % group ? dk[i] : 0.0f);
                dv[i] = j->dv[from + i] + (h % group ? dv[i] : 0.0f);
            }
        }
    }
}

int cpu_grad_attn(struct grad *base, const struct grad_attn_args *a, struct err *err)
{
    struct cpu_grad *g = cpu_grad_of(base);
    struct attn_job job = {.g = g, .a = a};
    size_t bytes = sizeof(float) * (size_t)a->n_heads * (size_t)a->n_rows * (size_t)a->head_dim;
    double pairs = 0.5 * a->n_rows * ((double)a->n_rows + 1);
    int rc = 0;

    CHECK(a->n_rows <= g->params.max_rows);
    CHECK(a->head_dim <= g->params.head_dim);
    job.dk = cpu_memory_new(bytes);
    job.dv = cpu_memory_new(bytes);
    if (!job.dk || !job.dv) {
        rc = err_set(err, ERR_NO_ROOM, "cpu: no memory for gradients of %d keys of %d heads",
                     a->n_rows, a->n_heads);
        goto out;
    }
    cpu_threads_run(g->cb->threads, a->n_heads, 1, head_items, &job);
    cpu_threads_run(g->cb->threads, a->n_rows, 64, sum_items, &job);
    g->base.flops += 10.0 * pairs * a->n_heads * a->head_dim;
out:
    cpu_memory_free(job.dk);
    cpu_memory_free(job.dv);
    return rc;
}
