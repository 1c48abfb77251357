/*
 * embed, attn_in, attn_out, ffn and logits against the naive ops, at odd sizes, on every
 * instruction set and weight type; and a row's bits alone and in company.
 */
#include "engine/cpu/cpu_isa.h"
#include "tests/engine/cpu/cpu_fixture.h"
#include "tests/ref/ref_ops.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

/* A layer's shape and flavour. */
struct layer_case {
    int dim, n_heads, n_kv_heads, head_dim, ffn_dim, rope_dim, vocab_size;
    enum norm_kind norm;
    enum act_kind act;
    bool gated, bias, qk_norm;
};

static const struct layer_case cases[] = {
    {1, 1, 1, 8, 1, 0, 1, NORM_RMS, ACT_SILU, true, false, false},
    {15, 1, 1, 8, 17, 8, 31, NORM_RMS, ACT_SILU, true, true, false},
    {16, 2, 1, 16, 31, 16, 33, NORM_LAYER, ACT_GELU_ERF, false, true, false},
    {33, 4, 2, 24, 47, 8, 100, NORM_RMS, ACT_GELU_TANH, true, false, true},
    {64, 4, 1, 32, 96, 32, 129, NORM_RMS, ACT_SILU, true, false, true},
    {130, 8, 8, 16, 257, 12, 65, NORM_LAYER, ACT_GELU_TANH, false, true, false},
    {256, 4, 4, 64, 512, 64, 500, NORM_RMS, ACT_SILU, true, true, false},
    {600, 3, 1, 128, 1000, 128, 77, NORM_LAYER, ACT_GELU_ERF, true, true, true},
};

#define N_CASES ((int)(sizeof(cases) / sizeof(cases[0])))

/* Random weights of a case: as f32 for the reference, on the backend for the op. */
struct layer {
    const struct layer_case *c;
    struct backend *be;
    enum dtype dt;
    float *gain, *nbias, *wqkv, *bqkv, *qn, *kn, *wo, *bo, *w_in, *b_in, *w_down, *b_down, *head;
    struct weight d_gain, d_nbias, d_wqkv, d_bqkv, d_qn, d_kn, d_wo, d_bo, d_in, d_bin, d_down,
        d_bdown, d_head;
    float inv_freq[128];
    int qkv_width;
};

static float *make(struct layer *l, struct weight *w, uint64_t seed, int n_out, int n_in,
                   float scale, float offset)
{
    float *x = fixture_random(seed, (int64_t)n_out * n_in, scale);

    for (int64_t i = 0; i < (int64_t)n_out * n_in; i++)
        x[i] += offset;
    fixture_round(x, (int64_t)n_out * n_in, l->dt);
    *w = fixture_weight(l->be, x, n_out, n_in, l->dt);
    return x;
}

static void layer_init(struct layer *l, const struct layer_case *c, struct backend *be,
                       enum dtype dt)
{
    float s = 1.0f / sqrtf((float)c->dim);
    int in = (c->gated ? 2 : 1) * c->ffn_dim;

    memset(l, 0, sizeof(*l));
    l->c = c;
    l->be = be;
    l->dt = dt;
    l->qkv_width = (c->n_heads + 2 * c->n_kv_heads) * c->head_dim;
    l->gain = make(l, &l->d_gain, 1, c->dim, 1, 0.5f, 1.0f);
    l->nbias = make(l, &l->d_nbias, 2, c->dim, 1, 0.5f, 0.0f);
    l->wqkv = make(l, &l->d_wqkv, 3, l->qkv_width, c->dim, s, 0.0f);
    l->bqkv = make(l, &l->d_bqkv, 4, l->qkv_width, 1, 0.5f, 0.0f);
    l->qn = make(l, &l->d_qn, 5, c->head_dim, 1, 0.5f, 1.0f);
    l->kn = make(l, &l->d_kn, 6, c->head_dim, 1, 0.5f, 1.0f);
    l->wo = make(l, &l->d_wo, 7, c->dim, c->n_heads * c->head_dim, s, 0.0f);
    l->bo = make(l, &l->d_bo, 8, c->dim, 1, 0.5f, 0.0f);
    l->w_in = make(l, &l->d_in, 9, in, c->dim, s, 0.0f);
    l->b_in = make(l, &l->d_bin, 10, in, 1, 0.5f, 0.0f);
    l->w_down = make(l, &l->d_down, 11, c->dim, c->ffn_dim, 1.0f / sqrtf((float)c->ffn_dim), 0.0f);
    l->b_down = make(l, &l->d_bdown, 12, c->dim, 1, 0.5f, 0.0f);
    l->head = make(l, &l->d_head, 13, c->vocab_size, c->dim, s, 0.0f);
    for (int i = 0; i < c->rope_dim / 2; i++)
        l->inv_freq[i] = powf(10000.0f, -2.0f * (float)i / (float)c->rope_dim);
}

static void layer_release(struct layer *l)
{
    struct weight *w[] = {&l->d_gain, &l->d_nbias, &l->d_wqkv, &l->d_bqkv, &l->d_qn,
                          &l->d_kn,   &l->d_wo,    &l->d_bo,   &l->d_in,   &l->d_bin,
                          &l->d_down, &l->d_bdown, &l->d_head};
    float *x[] = {l->gain, l->nbias, l->wqkv, l->bqkv,   l->qn,     l->kn,  l->wo,
                  l->bo,   l->w_in,  l->b_in, l->w_down, l->b_down, l->head};

    for (size_t i = 0; i < sizeof(w) / sizeof(w[0]); i++) {
        l->be->ops->weight_free(l->be, w[i]);
        free(x[i]);
    }
}

static struct norm_args norm_of(const struct layer *l)
{
    return (struct norm_args){.kind = l->c->norm,
                              .gain = &l->d_gain,
                              .bias = l->c->norm == NORM_LAYER ? &l->d_nbias : NULL,
                              .eps = 1e-5f};
}

/* Rows of a step: n_decode decode rows in slots 0.., then one chunk of the others in the last slot.
 */
struct rows {
    int n, n_decode;
    int32_t pos[600], slot[600], token[600], logit_row[600];
    struct step_chunk chunk;
    struct step_batch batch;
};

static void rows_init(struct rows *r, int n, int n_decode, int vocab_size)
{
    r->n = n;
    r->n_decode = n_decode;
    for (int i = 0; i < n; i++) {
        r->slot[i] = i < n_decode ? i : n_decode;
        r->pos[i] = i < n_decode ? 3 + 5 * i : i - n_decode;
        r->token[i] = (i * 7 + 3) % vocab_size;
        r->logit_row[i] = n - 1 - i;
    }
    r->chunk = (struct step_chunk){.slot = n_decode, .row0 = n_decode, .n_rows = n - n_decode};
    r->batch = (struct step_batch){.n_rows = n,
                                   .n_decode = n_decode,
                                   .n_chunks = n > n_decode ? 1 : 0,
                                   .n_logits = n,
                                   .token = r->token,
                                   .pos = r->pos,
                                   .slot = r->slot,
                                   .chunks = &r->chunk,
                                   .logit_row = r->logit_row};
}

/*
 * How far a prompt row of bf16 weights may be: its activations are rounded to 8 bits before the
 * product. Elsewhere only f32 sums differ.
 */
static double tolerance(const struct layer *l, int isa, bool prompt)
{
    bool bf16_product = prompt && l->dt == DTYPE_BF16 && isa >= CPU_ISA_AVX512BF16;

    return bf16_product ? 2e-2 : 3e-5;
}

static void widen(double *out, const float *x, int n)
{
    for (int i = 0; i < n; i++)
        out[i] = x[i];
}

static void ref_normed(const struct layer *l, double *out, const float *x)
{
    double in[2048];

    widen(in, x, l->c->dim);
    ref_norm(out, in, l->c->dim, l->c->norm, 1e-5, l->gain,
             l->c->norm == NORM_LAYER ? l->nbias : NULL);
}

/* One head behind its product: norm and rotation. */
static void ref_head(const struct layer *l, double *x, const float *gain, int32_t pos)
{
    double in[256];

    if (l->c->qk_norm) {
        memcpy(in, x, sizeof(double) * (size_t)l->c->head_dim);
        ref_norm(x, in, l->c->head_dim, NORM_RMS, 1e-6, gain, NULL);
    }
    ref_rope(x, l->c->rope_dim, pos, l->inv_freq, 1.25);
}

static void run_attn_in(struct layer *l, struct rows *r, struct kv_world *w, const float *x,
                        float *q, void *k, void *v)
{
    const struct layer_case *c = l->c;
    struct attn_in_args a = {.batch = &r->batch,
                             .kv = &w->kv,
                             .dim = c->dim,
                             .n_heads = c->n_heads,
                             .n_kv_heads = c->n_kv_heads,
                             .head_dim = c->head_dim,
                             .x = x,
                             .norm = norm_of(l),
                             .wqkv = &l->d_wqkv,
                             .bqkv = c->bias ? &l->d_bqkv : NULL,
                             .q_norm = c->qk_norm ? &l->d_qn : NULL,
                             .k_norm = c->qk_norm ? &l->d_kn : NULL,
                             .qk_norm_eps = 1e-6f,
                             .rope_dim = c->rope_dim,
                             .inv_freq = l->inv_freq,
                             .rope_scale = 1.25f,
                             .q = q,
                             .k_chunk = k,
                             .v_chunk = v};
    struct err err = {0};

    ck_assert_int_eq(l->be->ops->step_begin(l->be, &r->batch, &err), 0);
    ck_assert_int_eq(l->be->ops->attn_in(l->be, &a, &err), 0);
}

static void check_attn_in(struct layer *l, int isa, int n, int n_decode)
{
    const struct layer_case *c = l->c;
    int d = c->head_dim, qn = c->n_heads * d, kn = c->n_kv_heads * d;
    struct kv_shape s = {.n_slots = n_decode + 1,
                         .n_heads = c->n_heads,
                         .n_kv_heads = c->n_kv_heads,
                         .head_dim = d,
                         .page_entries = 64,
                         .max_tokens = 260,
                         .dtype = DTYPE_F32};
    float *x = fixture_random(20, (int64_t)n * c->dim, 2.0f);
    float *q = calloc((size_t)(n * qn), 4), *k = calloc((size_t)(n * kn), 4);
    float *v = calloc((size_t)(n * kn), 4);
    double xn[2048], y[2048];
    struct kv_world w;
    struct rows r;

    kv_world_init(&w, &s);
    rows_init(&r, n, n_decode, c->vocab_size);
    run_attn_in(l, &r, &w, x, q, k, v);
    for (int i = 0; i < n; i++) {
        double tol = tolerance(l, isa, i >= n_decode);

        ref_normed(l, xn, x + (int64_t)i * c->dim);
        ref_linear(y, xn, l->wqkv, c->bias ? l->bqkv : NULL, l->qkv_width, c->dim);
        for (int h = 0; h < c->n_heads + c->n_kv_heads; h++)
            ref_head(l, y + h * d, h < c->n_heads ? l->qn : l->kn, r.pos[i]);
        fixture_close_to(q + (int64_t)i * qn, y, qn, tol * (c->qk_norm ? 8 : 1), tol, "q");
        for (int h = 0; h < c->n_kv_heads; h++) {
            float *at_k = k + ((int64_t)(i - n_decode) * c->n_kv_heads + h) * d;
            float *at_v = v + ((int64_t)(i - n_decode) * c->n_kv_heads + h) * d;

            if (i < n_decode) {
                at_k = (float *)kv_world_at(&w, i, h, r.pos[i], false);
                at_v = (float *)kv_world_at(&w, i, h, r.pos[i], true);
            }
            fixture_close_to(at_k, y + qn + h * d, d, tol * (c->qk_norm ? 8 : 1), tol, "k");
            fixture_close_to(at_v, y + qn + kn + h * d, d, tol, tol, "v");
        }
    }
    kv_world_release(&w);
    free(x);
    free(q);
    free(k);
    free(v);
}

static void check_attn_out(struct layer *l, int isa, int n, int n_decode)
{
    const struct layer_case *c = l->c;
    int n_in = c->n_heads * c->head_dim;
    float *a = fixture_random(21, (int64_t)n * n_in, 1.0f);
    float *x = fixture_random(22, (int64_t)n * c->dim, 1.0f);
    float *before = fixture_random(22, (int64_t)n * c->dim, 1.0f);
    double in[2048], y[2048];
    struct err err = {0};
    struct rows r;

    rows_init(&r, n, n_decode, c->vocab_size);
    ck_assert_int_eq(l->be->ops->attn_out(l->be,
                                          &(struct attn_out_args){.batch = &r.batch,
                                                                  .dim = c->dim,
                                                                  .n_in = n_in,
                                                                  .a = a,
                                                                  .wo = &l->d_wo,
                                                                  .bo = c->bias ? &l->d_bo : NULL,
                                                                  .x = x},
                                          &err),
                     0);
    for (int i = 0; i < n; i++) {
        double tol = tolerance(l, isa, i >= n_decode) * sqrt((double)n_in / c->dim + 1.0);

        widen(in, a + (int64_t)i * n_in, n_in);
        ref_linear(y, in, l->wo, c->bias ? l->bo : NULL, c->dim, n_in);
        for (int o = 0; o < c->dim; o++)
            y[o] += before[(int64_t)i * c->dim + o];
        fixture_close_to(x + (int64_t)i * c->dim, y, c->dim, tol, tol, "attn_out");
    }
    free(a);
    free(x);
    free(before);
}

static void check_ffn(struct layer *l, int isa, int n, int n_decode)
{
    const struct layer_case *c = l->c;
    float *x = fixture_random(23, (int64_t)n * c->dim, 2.0f);
    float *before = fixture_random(23, (int64_t)n * c->dim, 2.0f);
    double xn[2048], y[2048], h[2048];
    struct err err = {0};
    struct rows r;

    rows_init(&r, n, n_decode, c->vocab_size);
    ck_assert_int_eq(l->be->ops->ffn(l->be,
                                     &(struct ffn_args){.batch = &r.batch,
                                                        .dim = c->dim,
                                                        .ffn_dim = c->ffn_dim,
                                                        .norm = norm_of(l),
                                                        .act = c->act,
                                                        .gated = c->gated,
                                                        .w_in = &l->d_in,
                                                        .b_in = c->bias ? &l->d_bin : NULL,
                                                        .w_down = &l->d_down,
                                                        .b_down = c->bias ? &l->d_bdown : NULL,
                                                        .x = x},
                                     &err),
                     0);
    for (int i = 0; i < n; i++) {
        double tol = 2.0 * tolerance(l, isa, i >= n_decode);

        ref_normed(l, xn, before + (int64_t)i * c->dim);
        ref_linear(y, xn, l->w_in, c->bias ? l->b_in : NULL, (c->gated ? 2 : 1) * c->ffn_dim,
                   c->dim);
        for (int o = 0; o < c->ffn_dim; o++)
            h[o] = ref_act(y[o], c->act) * (c->gated ? y[c->ffn_dim + o] : 1.0);
        ref_linear(y, h, l->w_down, c->bias ? l->b_down : NULL, c->dim, c->ffn_dim);
        for (int o = 0; o < c->dim; o++)
            y[o] += before[(int64_t)i * c->dim + o];
        fixture_close_to(x + (int64_t)i * c->dim, y, c->dim, tol, tol, "ffn");
    }
    free(x);
    free(before);
}

static void check_logits(struct layer *l, int n)
{
    const struct layer_case *c = l->c;
    float *x = fixture_random(24, (int64_t)n * c->dim, 2.0f);
    float *out = calloc((size_t)(n * c->vocab_size), 4);
    double xn[2048], y[2048];
    struct err err = {0};
    struct rows r;

    rows_init(&r, n, n / 2, c->vocab_size);
    ck_assert_int_eq(l->be->ops->logits(l->be,
                                        &(struct logits_args){.batch = &r.batch,
                                                              .dim = c->dim,
                                                              .vocab_size = c->vocab_size,
                                                              .norm = norm_of(l),
                                                              .head = &l->d_head,
                                                              .x = x,
                                                              .out = out},
                                        &err),
                     0);
    for (int i = 0; i < n; i++) {
        ref_normed(l, xn, x + (int64_t)r.logit_row[i] * c->dim);
        ref_linear(y, xn, l->head, NULL, c->vocab_size, c->dim);
        fixture_close_to(out + (int64_t)i * c->vocab_size, y, c->vocab_size, 3e-5, 3e-5, "logits");
    }
    free(x);
    free(out);
}

static void check_embed(struct layer *l, int n)
{
    const struct layer_case *c = l->c;
    float *x = calloc((size_t)(n * c->dim), 4);
    int32_t given[600], slot[600], slot_token[600] = {0};
    struct err err = {0};
    struct rows r;

    rows_init(&r, n, 0, c->vocab_size);
    for (int i = 0; i < n; i++) { /* some rows' tokens are known to the device alone */
        slot[i] = n - 1 - i;
        given[i] = i % 3 == 1 ? -1 : r.token[i];
        if (given[i] < 0)
            slot_token[slot[i]] = r.token[i];
    }
    r.batch.token = given;
    r.batch.slot = slot;
    r.batch.slot_token = slot_token;
    ck_assert_int_eq(
        l->be->ops->embed(
            l->be, &(struct embed_args){.batch = &r.batch, .table = &l->d_head, .x = x}, &err),
        0);
    for (int i = 0; i < n; i++)
        ck_assert_mem_eq(x + (int64_t)i * c->dim, l->head + (int64_t)r.token[i] * c->dim,
                         sizeof(float) * (size_t)c->dim);
    free(x);
}

/* Every op of a layer agrees with the naive one, on decode rows and prompt rows. */
START_TEST(cpu_layer__agrees_with_the_naive_ops)
{
    static const int n_rows[] = {1, 2, 3, 15, 16, 17, 33, 49};
    struct backend *be = fixture_open(_i, DTYPE_BF16, 2, 64);

    for (int i = 0; i < N_CASES; i++) {
        for (int dt = DTYPE_F32; dt <= DTYPE_F16; dt++) {
            struct layer l;

            layer_init(&l, &cases[i], be, (enum dtype)dt);
            for (size_t j = 0; j < sizeof(n_rows) / sizeof(n_rows[0]); j++) {
                int n = n_rows[j], n_decode = j % 3 == 0 ? n : j % 3 == 1 ? 0 : n / 2;

                check_embed(&l, n);
                check_attn_in(&l, _i, n, n_decode);
                check_attn_out(&l, _i, n, n_decode);
                check_ffn(&l, _i, n, n_decode);
                check_logits(&l, n);
            }
            layer_release(&l);
        }
    }
    be->ops->close(be);
}
END_TEST

/* An empty step is no error. */
START_TEST(cpu_layer__accepts_a_step_without_rows)
{
    struct backend *be = fixture_open(_i, DTYPE_BF16, 2, 64);
    struct layer l;

    layer_init(&l, &cases[3], be, DTYPE_BF16);
    check_embed(&l, 0);
    check_attn_in(&l, _i, 0, 0);
    check_attn_out(&l, _i, 0, 0);
    check_ffn(&l, _i, 0, 0);
    check_logits(&l, 0);
    layer_release(&l);
    be->ops->close(be);
}
END_TEST

/* The layer's ops on rows first .. of x, as decode or prompt rows; results go to out in place. */
static void layer_pass(struct layer *l, float *x, int first, int n, bool decode)
{
    const struct layer_case *c = l->c;
    int d = c->head_dim;
    struct kv_shape s = {.n_slots = decode ? n : 1,
                         .n_heads = c->n_heads,
                         .n_kv_heads = c->n_kv_heads,
                         .head_dim = d,
                         .page_entries = 64,
                         .max_tokens = decode ? 64 : 1,
                         .dtype = DTYPE_F32};
    float *q = calloc((size_t)(n * c->n_heads * d), 4), *k = calloc((size_t)(n * l->qkv_width), 4);
    float *rows_x = x + (int64_t)first * c->dim;
    struct kv_world w;
    struct rows r;
    struct err err = {0};

    kv_world_init(&w, &s);
    rows_init(&r, n, decode ? n : 0, c->vocab_size);
    for (int i = 0; i < n; i++)
        r.pos[i] = decode ? (first + i) % 64 : first + i;
    r.chunk.pos0 = first;
    run_attn_in(l, &r, &w, rows_x, q, k, k + n * c->n_kv_heads * d);
    l->be->ops->attn_out(l->be,
                         &(struct attn_out_args){.batch = &r.batch,
                                                 .dim = c->dim,
                                                 .n_in = c->n_heads * d,
                                                 .a = q,
                                                 .wo = &l->d_wo,
                                                 .x = rows_x},
                         &err);
    l->be->ops->ffn(l->be,
                    &(struct ffn_args){.batch = &r.batch,
                                       .dim = c->dim,
                                       .ffn_dim = c->ffn_dim,
                                       .norm = norm_of(l),
                                       .act = c->act,
                                       .gated = c->gated,
                                       .w_in = &l->d_in,
                                       .w_down = &l->d_down,
                                       .x = rows_x},
                    &err);
    kv_world_release(&w);
    free(q);
    free(k);
}

static void check_same_bits(struct layer *one, struct layer *many, bool decode)
{
    static const int sizes[] = {1, 2, 5, 17, 48, 600};
    const struct layer_case *c = one->c;
    int n = decode ? 49 : 600;
    size_t bytes = sizeof(float) * (size_t)n * (size_t)c->dim;
    float *start = fixture_random(30, (int64_t)n * c->dim, 1.0f);
    float *want = malloc(bytes), *got = malloc(bytes);

    memcpy(want, start, bytes);
    layer_pass(one, want, 0, n, decode);
    for (size_t j = 0; j < sizeof(sizes) / sizeof(sizes[0]); j++) {
        int last = sizes[j] < 17 ? 40 : n; /* a few rows of the small sizes are enough */

        memcpy(got, start, bytes);
        for (int at = 0; at < last; at += sizes[j])
            layer_pass(j % 2 ? one : many, got, at, last - at < sizes[j] ? last - at : sizes[j],
                       decode);
        ck_assert_msg(memcmp(want, got, sizeof(float) * (size_t)(last * c->dim)) == 0,
                      "rows in steps of %d differ", sizes[j]);
    }
    free(start);
    free(want);
    free(got);
}

/* A row's bits are the same in steps of 1, 17 or 600 rows and with 1 or 3 threads. */
START_TEST(cpu_layer__gives_the_same_bits_in_any_company)
{
    static const int which[] = {3, 6};
    struct backend *one = fixture_open(_i, DTYPE_BF16, 1, 600);
    struct backend *many = fixture_open(_i, DTYPE_BF16, 3, 600);

    for (int i = 0; i < 2; i++) {
        for (int dt = DTYPE_F32; dt <= DTYPE_F16; dt++) {
            struct layer a, b;

            layer_init(&a, &cases[which[i]], one, (enum dtype)dt);
            layer_init(&b, &cases[which[i]], many, (enum dtype)dt);
            check_same_bits(&a, &b, true);
            check_same_bits(&a, &b, false);
            layer_release(&a);
            layer_release(&b);
        }
    }
    one->ops->close(one);
    many->ops->close(many);
}
END_TEST

/* Inner sizes beyond a block of k of the AMX product, and many rows. */
START_TEST(cpu_layer__agrees_on_long_rows)
{
    static const struct layer_case wide = {1000, 2,        1,        64,   1020,  64,
                                           100,  NORM_RMS, ACT_SILU, true, false, false};
    struct backend *be = fixture_open(_i, DTYPE_BF16, 2, 100);
    struct layer l;

    layer_init(&l, &wide, be, DTYPE_BF16);
    check_attn_in(&l, _i, 67, 0);
    check_ffn(&l, _i, 67, 3);
    check_attn_out(&l, _i, 67, 66);
    layer_release(&l);
    be->ops->close(be);
}
END_TEST

TEST_SUITE(cpu_layer)
{
    TCase *tc = test_case(suite, "core");

    tcase_set_timeout(tc, 300);
    tcase_add_loop_test(tc, cpu_layer__agrees_with_the_naive_ops, 0, fixture_n_isas());
    tcase_add_loop_test(tc, cpu_layer__accepts_a_step_without_rows, 0, fixture_n_isas());
    tcase_add_loop_test(tc, cpu_layer__gives_the_same_bits_in_any_company, 0, fixture_n_isas());
    tcase_add_loop_test(tc, cpu_layer__agrees_on_long_rows, 0, fixture_n_isas());
}
