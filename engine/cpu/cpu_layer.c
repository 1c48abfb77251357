/*
 * cpu_layer - embedding, the products around attention, the feed-forward part, logits.
 *
 * Decode rows and prompt rows of one op go separate ways: those stream the weights through dot
 * products in f32, these through packed products. Both are cut into blocks of block_rows rows.
 */
#include "engine/cpu/cpu_linear.h"

#include "base/check.h"
#include "base/clock.h"

#include <math.h>
#include <string.h>

#define ROW_GRAIN 4 /* rows of one item in elementwise work */

static int min_int(int a, int b)
{
    return a < b ? a : b;
}

/* ---- embed ---- */

static void embed_items(void *arg, int64_t begin, int64_t end, int thread)
{
    const struct embed_args *a = arg;
    const struct weight *t = a->table;
    size_t row_bytes = (size_t)t->n_in * dtype_bytes(t->dtype);

    (void)thread;
    for (int64_t r = begin; r < end; r++) {
        int token = a->batch->token[r];

        if (token < 0)
            token = a->batch->slot_token[(int64_t)a->batch->slot[r] * step_batch_stride(a->batch)];
        CHECK(token >= 0);
        CHECK(token < t->n_out);
        dtype_convert((float *)a->x + r * t->n_in, DTYPE_F32,
                      (const char *)t->data + (size_t)token * row_bytes, t->dtype, (size_t)t->n_in);
    }
}

int cpu_embed(struct backend *be, const struct embed_args *a, struct err *err)
{
    struct cpu_backend *cb = cpu_of(be);
    int64_t t0 = clock_ns();
    double row_bytes = (double)a->table->n_in * (double)(dtype_bytes(a->table->dtype) + 4);

    (void)err;
    cpu_threads_run(cb->threads, a->batch->n_rows, ROW_GRAIN * 4, embed_items,
                    (void *)(uintptr_t)a);
    cpu_cost_add(cb, OP_EMBED, t0, row_bytes * a->batch->n_rows, 0.0);
    return 0;
}

/* ---- attn_in ---- */

struct rope_job {
    struct cpu_backend *cb;
    const struct attn_in_args *a;
};

static void rope_items(void *arg, int64_t begin, int64_t end, int thread)
{
    const struct rope_job *j = arg;
    const struct attn_in_args *a = j->a;
    const int32_t *pos = a->batch->rope_pos ? a->batch->rope_pos : a->batch->pos;
    int half = a->rope_dim / 2;

    (void)thread;
    for (int64_t r = begin; r < end; r++) {
        const float *inv_freq = a->inv_freq + r * a->inv_freq_stride;
        float *out = j->cb->rope + r * half * 2;

        for (int i = 0; i < half; i++) {
            float angle = (float)pos[r] * inv_freq[i];

            out[2 * i] = cosf(angle) * a->rope_scale;
            out[2 * i + 1] = sinf(angle) * a->rope_scale;
        }
    }
}

/* All layers that see the same rows mostly share one table. */
static void rope_prepare(struct cpu_backend *cb, const struct attn_in_args *a)
{
    const int32_t *pos = a->batch->rope_pos ? a->batch->rope_pos : a->batch->pos;
    struct rope_job job = {.cb = cb, .a = a};

    if (a->rope_dim == 0)
        return;
    if (cb->rope_inv_freq == a->inv_freq && cb->rope_dim == a->rope_dim && cb->rope_pos == pos &&
        cb->rope_rows == a->batch->n_rows && cb->rope_stride == a->inv_freq_stride &&
        cb->rope_scale == a->rope_scale)
        return;
    CHECK(a->rope_dim / 2 <= cb->rope_cap);
    cpu_threads_run(cb->threads, a->batch->n_rows, ROW_GRAIN, rope_items, &job);
    cb->rope_inv_freq = a->inv_freq;
    cb->rope_pos = pos;
    cb->rope_rows = a->batch->n_rows;
    cb->rope_dim = a->rope_dim;
    cb->rope_stride = a->inv_freq_stride;
    cb->rope_scale = a->rope_scale;
}

static void rotate(float *x, const float *cos_sin, int rope_dim)
{
    int half = rope_dim / 2;

    for (int i = 0; i < half; i++) {
        float c = cos_sin[2 * i], s = cos_sin[2 * i + 1];
        float x0 = x[i], x1 = x[i + half];

        x[i] = x0 * c - x1 * s;
        x[i + half] = x1 * c + x0 * s;
    }
}

struct attn_in_job {
    struct cpu_backend *cb;
    const struct attn_in_args *a;
    int row0; /* of the step; row 0 of cb->wide */
    const float *q_norm, *k_norm;
};

/* Where row r's key (or value) of one head goes. */
static char *kv_target(const struct attn_in_args *a, int64_t r, int head, bool value)
{
    const struct kv_view *kv = a->kv;
    size_t head_bytes = (size_t)a->head_dim * dtype_bytes(kv->dtype);
    struct kv_head h;
    int index;

    if (r >= a->batch->n_decode) {
        size_t at = (size_t)(r - a->batch->n_decode) * (size_t)a->n_kv_heads + (size_t)head;

        return (char *)(value ? a->v_chunk : a->k_chunk) + at * head_bytes;
    }
    h = cpu_kv_head(kv, a->batch->slot[r], a->layer, head);
    index = kv_index_of(h.geom, a->batch->pos[r]);
    return (char *)kv->pages + (size_t)h.table[index / kv->page_entries] * kv->page_bytes +
           (size_t)(index % kv->page_entries + (value ? kv->page_entries : 0)) * head_bytes;
}

/* From a row of the product to q, and to k and v in their places. */
static void attn_in_items(void *arg, int64_t begin, int64_t end, int thread)
{
    const struct attn_in_job *j = arg;
    const struct attn_in_args *a = j->a;
    const struct cpu_kernels *kern = j->cb->kern;
    int d = a->head_dim, width = (a->n_heads + 2 * a->n_kv_heads) * d;

    (void)thread;
    for (int64_t i = begin; i < end; i++) {
        int64_t r = j->row0 + i;
        float *x = j->cb->wide + i * width;
        const float *cos_sin = j->cb->rope + r * a->rope_dim;

        for (int h = 0; h < a->n_heads + a->n_kv_heads; h++) {
            const float *gain = h < a->n_heads ? j->q_norm : j->k_norm;

            if (gain)
                kern->norm(x + h * d, x + h * d, d, NORM_RMS, a->qk_norm_eps, gain, NULL);
            rotate(x + h * d, cos_sin, a->rope_dim);
        }
        memcpy((float *)a->q + r * a->n_heads * d, x, sizeof(float) * (size_t)(a->n_heads * d));
        for (int h = 0; h < a->n_kv_heads; h++) {
            const float *k = x + (a->n_heads + h) * d;

            dtype_convert(kv_target(a, r, h, false), a->kv->dtype, k, DTYPE_F32, (size_t)d);
            dtype_convert(kv_target(a, r, h, true), a->kv->dtype, k + a->n_kv_heads * d, DTYPE_F32,
                          (size_t)d);
        }
    }
}

/* One block of rows, all of them decode rows or all of them prompt rows. */
static void attn_in_block(struct cpu_backend *cb, const struct attn_in_args *a, int row0, int n)
{
    const float *x = (const float *)a->x + (int64_t)row0 * a->dim;
    struct attn_in_job job = {.cb = cb,
                              .a = a,
                              .row0 = row0,
                              .q_norm = cpu_weight_vector(a->q_norm),
                              .k_norm = cpu_weight_vector(a->k_norm)};
    struct linear_args lin = {.x = cb->rows,
                              .ldx = a->dim,
                              .n_rows = n,
                              .w = a->wqkv,
                              .bias = a->bqkv,
                              .y = cb->wide,
                              .ldy = a->wqkv->n_out};

    CHECK(a->wqkv->n_out <= cb->params.max_dim);
    if (row0 < a->batch->n_decode) {
        cpu_norm_rows(cb, cb->rows, a->dim, x, a->dim, NULL, n, a->dim, &a->norm);
        cpu_linear_decode(cb, &lin);
    } else {
        cpu_linear_pack(cb, cpu_gemm_for(cb, a->wqkv), x, a->dim, n, a->dim, &a->norm);
        cpu_linear_prompt(cb, &lin);
    }
    cpu_threads_run(cb->threads, n, ROW_GRAIN, attn_in_items, &job);
}

/* The end of the block that starts at row: never across the border of decode and prompt rows. */
static int block_end(const struct cpu_backend *cb, const struct step_batch *b, int row)
{
    int end = row < b->n_decode ? b->n_decode : b->n_rows;

    return min_int(end, row + cb->block_rows);
}

int cpu_attn_in(struct backend *be, const struct attn_in_args *a, struct err *err)
{
    struct cpu_backend *cb = cpu_of(be);
    int64_t t0 = clock_ns();
    int n = a->batch->n_rows;

    (void)err;
    CHECK(a->wqkv->n_out == (a->n_heads + 2 * a->n_kv_heads) * a->head_dim);
    rope_prepare(cb, a);
    for (int row = 0, end; row < n; row = end) {
        end = block_end(cb, a->batch, row);
        attn_in_block(cb, a, row, end - row);
    }
    cpu_cost_add(cb, OP_ATTN_IN, t0, n ? weight_bytes(a->wqkv) : 0.0,
                 2.0 * n * a->wqkv->n_out * a->dim);
    return 0;
}

/* ---- attn_out ---- */

int cpu_attn_out(struct backend *be, const struct attn_out_args *a, struct err *err)
{
    struct cpu_backend *cb = cpu_of(be);
    int64_t t0 = clock_ns();
    int n = a->batch->n_rows;

    (void)err;
    for (int row = 0, end; row < n; row = end) {
        const float *in = (const float *)a->a + (int64_t)row * a->n_in;
        struct linear_args lin = {.x = in,
                                  .ldx = a->n_in,
                                  .w = a->wo,
                                  .bias = a->bo,
                                  .y = (float *)a->x + (int64_t)row * a->dim,
                                  .ldy = a->dim,
                                  .add = true};

        end = block_end(cb, a->batch, row);
        lin.n_rows = end - row;
        if (row < a->batch->n_decode) {
            cpu_linear_decode(cb, &lin);
        } else {
            cpu_linear_pack(cb, cpu_gemm_for(cb, a->wo), in, a->n_in, end - row, a->n_in, NULL);
            cpu_linear_prompt(cb, &lin);
        }
    }
    cpu_cost_add(cb, OP_ATTN_OUT, t0, n ? weight_bytes(a->wo) : 0.0, 2.0 * n * a->dim * a->n_in);
    return 0;
}

/* ---- ffn ---- */

struct ffn_job {
    struct cpu_backend *cb;
    const struct ffn_args *a;
    struct dot_args dot;
    const float *bias;
};

/* Inner outputs begin .. end - 1 of decode rows: gate, up and activation at once. */
static void ffn_items(void *arg, int64_t begin, int64_t end, int thread)
{
    const struct ffn_job *j = arg;
    const struct ffn_args *a = j->a;
    int n = (int)(end - begin), n_sides = a->gated ? 2 : 1;

    (void)thread;
    for (int side = 0; side < n_sides; side++)
        j->cb->kern->dot(&j->dot, (int)begin + side * a->ffn_dim, n);
    for (int r = 0; r < j->dot.n_rows; r++) {
        float *gate = j->dot.y + r * j->dot.ldy + begin;
        float *up = a->gated ? gate + a->ffn_dim : NULL;

        for (int side = 0; j->bias && side < n_sides; side++) {
            const float *bias = j->bias + side * a->ffn_dim + begin;
            float *y = side ? up : gate;

            for (int i = 0; i < n; i++)
                y[i] += bias[i];
        }
        j->cb->kern->act(gate, up, n, a->act);
    }
}

static void ffn_decode(struct cpu_backend *cb, const struct ffn_args *a, float *x, int n)
{
    const struct weight *w = a->w_in;
    int64_t ldy = w->n_out;
    struct ffn_job job = {.cb = cb,
                          .a = a,
                          .bias = cpu_weight_vector(a->b_in),
                          .dot = {.w = w->data,
                                  .dtype = w->dtype,
                                  .n_in = a->dim,
                                  .n_rows = n,
                                  .x = cb->dot_rows,
                                  .y = cb->packed_h,
                                  .ldy = ldy}};
    struct linear_args down = {.x = cb->packed_h,
                               .ldx = ldy,
                               .n_rows = n,
                               .w = a->w_down,
                               .bias = a->b_down,
                               .y = x,
                               .ldy = a->dim,
                               .add = true};
    int grain = 24 * (a->ffn_dim / (24 * 16 * cpu_threads_count(cb->threads)) + 1);

    cpu_norm_rows(cb, cb->rows, a->dim, x, a->dim, NULL, n, a->dim, &a->norm);
    job.dot.ldx = cpu_dot_prepare(cb, cb->rows, a->dim, n, w);
    cpu_threads_run(cb->threads, a->ffn_dim, grain, ffn_items, &job);
    cpu_linear_decode(cb, &down);
}

/* Zeros behind the last inner output, where the padded product reads. */
static void packed_h_pad(struct cpu_backend *cb, const struct cpu_gemm *gemm, int n, int ffn_dim)
{
    size_t esize = gemm->bf16 ? 2 : 4, group = gemm_group_bytes(gemm, ffn_dim);
    size_t used = (size_t)(ffn_dim / 2 * 2) * (size_t)gemm->lanes * esize;

    if (gemm_k_pad(gemm, ffn_dim) == ffn_dim)
        return;
    for (int g = 0; g * gemm->lanes < n; g++)
        memset((char *)cb->packed_h + (size_t)g * group + used, 0, group - used);
}

static void ffn_prompt(struct cpu_backend *cb, const struct ffn_args *a, float *x, int n)
{
    const struct cpu_gemm *gemm = cpu_gemm_for(cb, a->w_in);
    const struct weight *w = a->w_in;
    const float *bias = cpu_weight_vector(a->b_in);
    size_t half = (size_t)a->ffn_dim * (size_t)a->dim * dtype_bytes(w->dtype);
    struct gemm_args up = {.w = w->data,
                           .w_up = a->gated ? (const char *)w->data + half : NULL,
                           .dtype = w->dtype,
                           .n_in = a->dim,
                           .n_rows = n,
                           .packed = cb->packed,
                           .epilogue = GEMM_ACT_PACK,
                           .act = a->act,
                           .bias = bias,
                           .bias_up = bias && a->gated ? bias + a->ffn_dim : NULL,
                           .h = cb->packed_h,
                           .h_dim = gemm_k_pad(gemm, a->ffn_dim)};
    struct gemm_args down = {.w = a->w_down->data,
                             .dtype = a->w_down->dtype,
                             .n_in = a->ffn_dim,
                             .n_rows = n,
                             .packed = cb->packed_h,
                             .epilogue = GEMM_ADD,
                             .bias = cpu_weight_vector(a->b_down),
                             .y = x,
                             .ldy = a->dim};

    CHECK(a->w_down->dtype == w->dtype);
    cpu_linear_pack(cb, gemm, x, a->dim, n, a->dim, &a->norm);
    packed_h_pad(cb, gemm, n, a->ffn_dim);
    cpu_gemm_run(cb, gemm, &up, a->ffn_dim);
    cpu_gemm_run(cb, gemm, &down, a->dim);
}

int cpu_ffn(struct backend *be, const struct ffn_args *a, struct err *err)
{
    struct cpu_backend *cb = cpu_of(be);
    int64_t t0 = clock_ns();
    int n = a->batch->n_rows;

    (void)err;
    CHECK(a->w_in->n_out == (a->gated ? 2 : 1) * a->ffn_dim);
    CHECK(a->w_in->n_out <= cb->params.max_dim);
    for (int row = 0, end; row < n; row = end) {
        float *x = (float *)a->x + (int64_t)row * a->dim;

        end = block_end(cb, a->batch, row);
        if (row < a->batch->n_decode)
            ffn_decode(cb, a, x, end - row);
        else
            ffn_prompt(cb, a, x, end - row);
    }
    cpu_cost_add(cb, OP_FFN, t0, n ? weight_bytes(a->w_in) + weight_bytes(a->w_down) : 0.0,
                 2.0 * n * a->dim * ((double)a->w_in->n_out + a->ffn_dim));
    return 0;
}

/* ---- logits ---- */

int cpu_logits(struct backend *be, const struct logits_args *a, struct err *err)
{
    struct cpu_backend *cb = cpu_of(be);
    int64_t t0 = clock_ns();
    int n = a->batch->n_logits;

    (void)err;
    for (int row = 0; row < n; row += cb->block_rows) {
        struct linear_args lin = {.x = cb->rows,
                                  .ldx = a->dim,
                                  .n_rows = min_int(n - row, cb->block_rows),
                                  .w = a->head,
                                  .y = a->out + (int64_t)row * a->vocab_size,
                                  .ldy = a->vocab_size};

        cpu_norm_rows(cb, cb->rows, a->dim, a->x, a->dim, a->batch->logit_row + row, lin.n_rows,
                      a->dim, &a->norm);
        cpu_linear_decode(cb, &lin);
    }
    cpu_cost_add(cb, OP_LOGITS, t0, n ? weight_bytes(a->head) : 0.0,
                 2.0 * n * a->vocab_size * a->dim);
    return 0;
}

/* ---- pool ---- */

static void pool_rows(double *sums, const float *rows, int n_rows, int dim)
{
    for (int r = 0; r < n_rows; r++) {
        for (int i = 0; i < dim; i++)
            sums[i] += (double)rows[(int64_t)r * dim + i];
    }
}

int cpu_pool(struct backend *be, const struct pool_args *a, struct err *err)
{
    struct cpu_backend *cb = cpu_of(be);
    int64_t t0 = clock_ns(), n_rows = 0;

    (void)err;
    for (int p = 0; p < a->batch->n_pools; p++) {
        const struct step_pool *pool = &a->batch->pools[p];
        double *sums = a->sums + (int64_t)pool->slot * a->dim;

        if (pool->is_first)
            memset(sums, 0, (size_t)a->dim * sizeof(*sums));
        for (int row = 0; row < pool->n_rows; row += cb->block_rows) {
            int n = min_int(pool->n_rows - row, cb->block_rows);
            const float *x = (const float *)a->x + (int64_t)(pool->row0 + row) * a->dim;

            cpu_norm_rows(cb, cb->rows, a->dim, x, a->dim, NULL, n, a->dim, &a->norm);
            pool_rows(sums, cb->rows, n, a->dim);
        }
        n_rows += pool->n_rows;
    }
    cpu_cost_add(cb, OP_POOL, t0, 4.0 * (double)n_rows * a->dim, (double)n_rows * a->dim);
    return 0;
}
