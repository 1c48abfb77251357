/*
 * cpu_grad_layer - the way back through logits, the feed-forward part and the products around
 * attention, in blocks of rows. What the forward pass did not keep is computed once more.
 */
#include "engine/cpu/grad/cpu_grad.h"

#include "base/check.h"

#include <math.h>
#include <string.h>

static int min_int(int a, int b)
{
    return a < b ? a : b;
}

/* ---- logits ---- */

#define LOGIT_BYTES ((size_t)16 << 20) /* of logits at a time */

struct softmax_job {
    float *logits;
    const int32_t *target;
    int vocab_size;
    float scale;
    enum grad_loss kind;
    float *loss; /* [n rows] */
};

/* The greatest of the others alone, and the sum of their weights relative to it. */
static double sum_others(const float *l, int n, int target, float *max)
{
    double sum = 0;

    *max = -INFINITY;
    for (int i = 0; i < n; i++)
        *max = i != target && l[i] > *max ? l[i] : *max;
    for (int i = 0; i < n; i++)
        sum += i != target ? (double)expf(l[i] - *max) : 0.0;
    return sum;
}

/*
 * From logits to scale times softmax less one at the target; for log odds softmax is over the
 * others.
 */
static void softmax_items(void *arg, int64_t begin, int64_t end, int thread)
{
    const struct softmax_job *j = arg;

    (void)thread;
    for (int64_t r = begin; r < end; r++) {
        float *l = j->logits + r * j->vocab_size, max;
        int target = j->target[r];
        double sum = sum_others(l, j->vocab_size, target, &max), own = (double)l[target] - max;
        /* -log p = log(1 + others / own) with the larger of both taken out. */
        double loss =
            own > log(sum) ? log1p(sum * exp(-own)) : log(sum) - own + log1p(exp(own) / sum);
        double all = j->kind == GRAD_LOSS_LOG_ODDS ? sum : sum + exp(own);

        j->loss[r] = (float)loss;
        for (int i = 0; i < j->vocab_size; i++)
            l[i] = (float)(j->scale * exp((double)(l[i] - max)) / all);
        l[target] = j->scale * (float)(j->kind == GRAD_LOSS_LOG_ODDS ? -1.0 : -sum / all);
    }
}

int cpu_grad_logits(struct grad *base, const struct grad_logits_args *a, struct err *err)
{
    struct cpu_grad *g = cpu_grad_of(base);
    size_t row_bytes = sizeof(float) * (size_t)a->vocab_size;
    int rows = min_int(min_int((int)(LOGIT_BYTES / row_bytes) + 1, g->block_rows), a->n_targets);
    float *logits = NULL, loss[256];
    int rc;

    rows = min_int(rows, 256);
    if (a->n_targets == 0)
        return 0;
    rc = g->base.be->ops->alloc(g->base.be, (void **)&logits, (size_t)rows * row_bytes, err);
    for (int at = 0; at < a->n_targets && rc == 0; at += rows) {
        int n = min_int(rows, a->n_targets - at);
        struct step_batch batch = {.n_logits = n, .logit_row = a->row + at};
        struct logits_args forward = {.batch = &batch,
                                      .dim = a->dim,
                                      .vocab_size = a->vocab_size,
                                      .norm = a->norm,
                                      .head = a->head,
                                      .x = a->x,
                                      .out = logits};
        struct softmax_job job = {.logits = logits,
                                  .target = a->target + at,
                                  .vocab_size = a->vocab_size,
                                  .scale = a->scale,
                                  .kind = a->loss,
                                  .loss = loss};

        rc = g->base.be->ops->logits(g->base.be, &forward, err);
        cpu_threads_run(g->cb->threads, n, 1, softmax_items, &job);
        cpu_grad_back(g, &(struct grad_back_args){.n_rows = n,
                                                  .dy = logits,
                                                  .ldy = a->vocab_size,
                                                  .w = a->head,
                                                  .dx = g->d_in,
                                                  .ldx = a->dim});
        cpu_grad_norm(g, &a->norm, a->x, a->dx, g->d_in, n, a->dim, a->row + at, false);
        for (int i = 0; i < n; i++) {
            *a->loss_sum += loss[i];
            if (a->row_loss)
                a->row_loss[at + i] = loss[i];
        }
    }
    g->base.be->ops->free(g->base.be, logits);
    return rc;
}

/* ---- the feed-forward part ---- */

static float act_of(float x, enum act_kind kind, float *slope)
{
    if (kind == ACT_SILU) {
        float s = 1.0f / (1.0f + expf(-x));

        *slope = s * (1.0f + x * (1.0f - s));
        return x * s;
    }
    if (kind == ACT_GELU_TANH) {
        float c = 0.7978845608f, u = c * (x + 0.044715f * x * x * x), t = tanhf(u);

        *slope =
            0.5f * (1.0f + t) + 0.5f * x * (1.0f - t * t) * c * (1.0f + 3.0f * 0.044715f * x * x);
        return 0.5f * x * (1.0f + t);
    }
    *slope = 0.5f * (1.0f + erff(x * 0.7071067812f)) + x * 0.3989422804f * expf(-0.5f * x * x);
    return 0.5f * x * (1.0f + erff(x * 0.7071067812f));
}

struct act_job {
    const struct grad_ffn_args *a;
    float *wide; /* in: gate and up; out: their gradients */
    int64_t ld;
    const float *dh; /* [n_rows, ffn_dim] */
};

static void act_items(void *arg, int64_t begin, int64_t end, int thread)
{
    const struct act_job *j = arg;
    int n = j->a->ffn_dim;

    (void)thread;
    for (int64_t r = begin; r < end; r++) {
        float *gate = j->wide + r * j->ld, *up = j->a->gated ? gate + n : NULL;
        const float *dh = j->dh + r * n;

        for (int i = 0; i < n; i++) {
            float slope, h = act_of(gate[i], j->a->act, &slope);

            gate[i] = dh[i] * slope * (up ? up[i] : 1.0f);
            if (up)
                up[i] = dh[i] * h;
        }
    }
}

/* wide = norm(x) w^T + bias for one block of rows. */
static void forward_again(struct cpu_grad *g, const float *x, int n, int dim,
                          const struct norm_args *norm, const struct weight *w,
                          const struct weight *bias)
{
    struct linear_args lin = {.n_rows = n, .w = w, .bias = bias, .y = g->wide, .ldy = w->n_out};

    CHECK(w->n_out <= g->params.max_dim);
    cpu_linear_pack(g->cb, cpu_gemm_for(g->cb, w), x, dim, n, dim, norm);
    cpu_linear_prompt(g->cb, &lin);
    g->base.flops += 2.0 * n * dim * (double)w->n_out;
}

int cpu_grad_ffn(struct grad *base, const struct grad_ffn_args *a, struct err *err)
{
    struct cpu_grad *g = cpu_grad_of(base);

    (void)err;
    for (int row = 0; row < a->n_rows; row += g->block_rows) {
        int n = min_int(g->block_rows, a->n_rows - row);
        const float *x = (const float *)a->x + (int64_t)row * a->dim;
        float *dx = (float *)a->dx + (int64_t)row * a->dim;
        struct act_job job = {.a = a, .wide = g->wide, .ld = a->w_in->n_out, .dh = g->d_out};

        forward_again(g, x, n, a->dim, &a->norm, a->w_in, a->b_in);
        cpu_grad_back(g, &(struct grad_back_args){.n_rows = n,
                                                  .dy = dx,
                                                  .ldy = a->dim,
                                                  .w = a->w_down,
                                                  .dx = g->d_out,
                                                  .ldx = a->ffn_dim});
        cpu_threads_run(g->cb->threads, n, 8, act_items, &job);
        cpu_grad_back(g, &(struct grad_back_args){.n_rows = n,
                                                  .dy = g->wide,
                                                  .ldy = a->w_in->n_out,
                                                  .w = a->w_in,
                                                  .dx = g->d_in,
                                                  .ldx = a->dim});
        cpu_grad_norm(g, &a->norm, x, dx, g->d_in, n, a->dim, NULL, true);
    }
    return 0;
}

/* ---- around attention ---- */

int cpu_grad_attn_out(struct grad *base, const struct grad_attn_out_args *a, struct err *err)
{
    (void)err;
    cpu_grad_back(cpu_grad_of(base), &(struct grad_back_args){.n_rows = a->n_rows,
                                                              .dy = a->dx,
                                                              .ldy = a->dim,
                                                              .w = a->wo,
                                                              .dx = a->da,
                                                              .ldx = a->n_in});
    return 0;
}

struct in_job {
    struct cpu_grad *g;
    const struct grad_attn_in_args *a;
    int row0;
    const float *q_gain, *k_gain;
};

/* The rotation turned back; cos and sin carry rope_scale, which stays a factor. */
static void rotate_back(float *d, const struct grad_attn_in_args *a, int64_t row)
{
    const float *inv_freq = a->inv_freq + row * a->inv_freq_stride;
    int half = a->rope_dim / 2;

    for (int i = 0; i < half; i++) {
        float angle = (float)row * inv_freq[i];
        float c = cosf(angle) * a->rope_scale, s = sinf(angle) * a->rope_scale;
        float d0 = d[i], d1 = d[i + half];

        d[i] = d0 * c + d1 * s;
        d[i + half] = d1 * c - d0 * s;
    }
}

/* RMSNorm of one head, back: x is what went in, dy becomes what comes out. */
static void head_norm_back(float *dy, const float *x, const float *gain, int n, float eps)
{
    double square = 0, dot = 0, r;

    for (int i = 0; i < n; i++) {
        square += (double)x[i] * x[i];
        dot += (double)x[i] * dy[i] * gain[i];
    }
    r = 1.0 / sqrt(square / n + eps);
    dot *= r * r / n;
    for (int i = 0; i < n; i++)
        dy[i] = (float)(r * ((double)dy[i] * gain[i] - x[i] * dot));
}

/* Gathers a row's dq, dk, dv as the product's output, with rope and norms undone. */
static void in_items(void *arg, int64_t begin, int64_t end, int thread)
{
    const struct in_job *j = arg;
    const struct grad_attn_in_args *a = j->a;
    int d = a->head_dim, width = (a->n_heads + 2 * a->n_kv_heads) * d;

    (void)thread;
    for (int64_t i = begin; i < end; i++) {
        int64_t row = j->row0 + i;
        float *out = j->g->d_out + i * width;
        const float *x = j->g->wide + i * width; /* only with norms */

        memcpy(out, (const float *)a->dq + row * a->n_heads * d,
               sizeof(float) * (size_t)(a->n_heads * d));
        memcpy(out + a->n_heads * d, (const float *)a->dk + row * a->n_kv_heads * d,
               sizeof(float) * (size_t)(a->n_kv_heads * d));
        memcpy(out + (a->n_heads + a->n_kv_heads) * d,
               (const float *)a->dv + row * a->n_kv_heads * d,
               sizeof(float) * (size_t)(a->n_kv_heads * d));
        for (int h = 0; h < a->n_heads + a->n_kv_heads; h++) {
            const float *gain = h < a->n_heads ? j->q_gain : j->k_gain;

            rotate_back(out + h * d, a, row);
            if (gain)
                head_norm_back(out + h * d, x + h * d, gain, d, a->qk_norm_eps);
        }
    }
}

int cpu_grad_attn_in(struct grad *base, const struct grad_attn_in_args *a, struct err *err)
{
    struct cpu_grad *g = cpu_grad_of(base);
    struct in_job job = {.g = g,
                         .a = a,
                         .q_gain = cpu_weight_vector(a->q_norm),
                         .k_gain = cpu_weight_vector(a->k_norm)};

    (void)err;
    for (int row = 0; row < a->n_rows; row += g->block_rows) {
        int n = min_int(g->block_rows, a->n_rows - row);
        const float *x = (const float *)a->x + (int64_t)row * a->dim;
        float *dx = (float *)a->dx + (int64_t)row * a->dim;

        if (job.q_gain || job.k_gain)
            forward_again(g, x, n, a->dim, &a->norm, a->wqkv, a->bqkv);
        job.row0 = row;
        cpu_threads_run(g->cb->threads, n, 4, in_items, &job);
        cpu_grad_back(g, &(struct grad_back_args){.n_rows = n,
                                                  .dy = g->d_out,
                                                  .ldy = a->wqkv->n_out,
                                                  .w = a->wqkv,
                                                  .dx = g->d_in,
                                                  .ldx = a->dim});
        cpu_grad_norm(g, &a->norm, x, dx, g->d_in, n, a->dim, NULL, true);
    }
    return 0;
}
