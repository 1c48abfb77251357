/*
 * test_cuda_grad - the GPU's backward ops, and whole passes, against the CPU's.
 */
#include "cuda/cuda_backend.h"
#include "engine/backend_grad.h"
#include "engine/plan/search/grad_pass.h"
#include "tests/cuda/cuda_pair.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define MAX_ROWS 448

static void must(int rc, const struct err *err)
{
    ck_assert_msg(rc == 0, "%s", err->msg);
}

/* Both sides' backward ops, opened for what the case needs. */
struct grads {
    struct cuda_pair p;
    struct grad *cpu, *gpu;
};

static void grads_open(struct grads *g, enum dtype dtype, const struct grad_params *params)
{
    struct err err = {0};

    pair_open(&g->p, dtype);
    must(cpu_grad_open(&g->cpu, g->p.cpu, params, &err), &err);
    must(cuda_grad_open(&g->gpu, g->p.gpu, params, &err), &err);
}

static void grads_close(struct grads *g)
{
    g->cpu->ops->close(g->cpu);
    g->gpu->ops->close(g->gpu);
}

/* The same call on both sides, in a step; SIDE() picks as in PAIR_RUN. */
#define GRADS_RUN(g, op, field, ...)                                                               \
    do {                                                                                           \
        struct err grads_err_ = {0};                                                               \
        {                                                                                          \
            enum { on_gpu = 0 };                                                                   \
            struct field grads_args_ = {__VA_ARGS__};                                              \
            must((g)->cpu->ops->op((g)->cpu, &grads_args_, &grads_err_), &grads_err_);             \
        }                                                                                          \
        {                                                                                          \
            enum { on_gpu = 1 };                                                                   \
            struct field grads_args_ = {__VA_ARGS__};                                              \
            must((g)->gpu->ops->op((g)->gpu, &grads_args_, &grads_err_), &grads_err_);             \
            must((g)->gpu->ops->finish((g)->gpu, &grads_err_), &grads_err_);                       \
        }                                                                                          \
    } while (0)

/* Norm of the difference over the norm of what is wanted. */
static double relative(const double *want, const double *got, int n)
{
    double diff = 0, norm = 0;

    for (int i = 0; i < n; i++) {
        diff += (got[i] - want[i]) * (got[i] - want[i]);
        norm += want[i] * want[i];
    }
    return norm > 0 ? sqrt(diff / norm) : sqrt(diff);
}

static void check_sums(const char *what, enum dtype dtype, const double *want, const double *got,
                       int n, double tolerance)
{
    double off = relative(want, got, n);

    if (getenv("PAIR_VERBOSE"))
        fprintf(stderr, "%s (%s): %.2e off\n", what, dtype_name(dtype), off);
    ck_assert_msg(off < tolerance, "%s (%s): %.2e off, want less than %.0e", what,
                  dtype_name(dtype), off, tolerance);
}

/* ---- attention ---- */

struct attn_case {
    int n_rows, n_heads, n_kv_heads, head_dim, window;
    enum grad_sum sum;
};

/* What attention gives, in double precision: the CPU takes it as an input. */
static struct pair_buf attention(struct cuda_pair *p, const struct attn_case *c,
                                 const struct pair_buf *q, const struct pair_buf *k,
                                 const struct pair_buf *v, float scale)
{
    int d = c->head_dim, group = c->n_heads / c->n_kv_heads;
    float *qf = pair_get(p, q, false), *kf = pair_get(p, k, false), *vf = pair_get(p, v, false);
    float *out = calloc(q->n, sizeof(*out));
    double w[MAX_ROWS];
    struct pair_buf b;

    for (int row = 0; row < c->n_rows; row++) {
        for (int h = 0; h < c->n_heads; h++) {
            const float *qr = qf + ((int64_t)row * c->n_heads + h) * d;
            int lo = row - c->window + 1 > 0 ? row - c->window + 1 : 0;
            double top = -INFINITY, sum = 0;

            for (int key = lo; key <= row; key++) {
                const float *kr = kf + ((int64_t)key * c->n_kv_heads + h / group) * d;

                w[key] = 0;
                for (int i = 0; i < d; i++)
                    w[key] += (double)qr[i] * kr[i] * scale;
                top = fmax(top, w[key]);
            }
            for (int key = lo; key <= row; key++)
                sum += w[key] = exp(w[key] - top);
            for (int i = 0; i < d; i++) {
                double o = 0;

                for (int key = lo; key <= row; key++)
                    o += w[key] / sum * vf[((int64_t)key * c->n_kv_heads + h / group) * d + i];
                out[((int64_t)row * c->n_heads + h) * d + i] = (float)o;
            }
        }
    }
    b = pair_f32(p, out, q->n);
    free(qf);
    free(kf);
    free(vf);
    free(out);
    return b;
}

static void check_attn(enum dtype dtype, const struct attn_case *c)
{
    struct grad_params params = {.max_rows = c->n_rows,
                                 .max_dim = PAIR_MAX_DIM,
                                 .n_heads = c->n_heads,
                                 .n_kv_heads = c->n_kv_heads,
                                 .head_dim = c->head_dim,
                                 .n_layers = 1,
                                 .dim = 64,
                                 .ffn_dim = 64,
                                 .vocab_size = 64};
    size_t nq = (size_t)c->n_rows * c->n_heads * c->head_dim;
    size_t nk = (size_t)c->n_rows * c->n_kv_heads * c->head_dim;
    int n_blocks = (c->n_rows + GRAD_BLOCK - 1) / GRAD_BLOCK, n_sums = c->n_heads * n_blocks;
    float scale = 1.0f / sqrtf((float)c->head_dim);
    double *sums = calloc(4 * (size_t)n_sums, sizeof(*sums));
    /* With its sign, influence all but cancels. */
    double tolerance = (dtype == DTYPE_F32 ? 1e-5 : 2e-3) * (c->sum == GRAD_SUM_SIGNED ? 25 : 1);
    struct pair_buf q, k, v, a, da, dq, dk, dv;
    struct grads g;
    char what[160];

    grads_open(&g, dtype, &params);
    q = pair_random(&g.p, nq, 3, 1);
    k = pair_random(&g.p, nk, 3, 2);
    v = pair_random(&g.p, nk, 1, 3);
    da = pair_random(&g.p, nq, 1, 4);
    a = attention(&g.p, c, &q, &k, &v, scale);
    dq = pair_random(&g.p, nq, 1, 5);
    dk = pair_random(&g.p, nk, 1, 6);
    dv = pair_random(&g.p, nk, 1, 7);
    GRADS_RUN(&g, attn, grad_attn_args, .n_rows = c->n_rows, .n_heads = c->n_heads,
              .n_kv_heads = c->n_kv_heads, .head_dim = c->head_dim, .scale = scale, .sum = c->sum,
              .window = c->window, .q = SIDE(q), .k = SIDE(k), .v = SIDE(v), .a = SIDE(a),
              .da = SIDE(da), .dq = SIDE(dq), .dk = SIDE(dk), .dv = SIDE(dv),
              .band = sums + on_gpu * 2 * n_sums, .sink = sums + (on_gpu * 2 + 1) * n_sums);
    snprintf(what, sizeof(what), "%d rows, heads %d/%d of %d, window %d, sum %d", c->n_rows,
             c->n_heads, c->n_kv_heads, c->head_dim, c->window, (int)c->sum);
    if (c->window > 1) { /* else both are 0 but for rounding */
        pair_compare(&g.p, &dq, what, 2);
        pair_compare(&g.p, &dk, what, 2);
    }
    pair_compare(&g.p, &dv, what, 2);
    check_sums(what, dtype, sums, sums + 2 * n_sums, n_sums, tolerance);
    check_sums(what, dtype, sums + n_sums, sums + 3 * n_sums, n_sums, tolerance);
    struct pair_buf *all[] = {&q, &k, &v, &a, &da, &dq, &dk, &dv};
    for (size_t i = 0; i < sizeof(all) / sizeof(all[0]); i++)
        pair_free(&g.p, all[i]);
    free(sums);
    grads_close(&g);
}

/* Lengths around a block, groups of 1 and more, every head_dim that is built, windows, every sum.
 */
START_TEST(grad_attn__is_the_cpus)
{
    static const struct attn_case cases[] = {{1, 1, 1, 64, KV_WINDOW_ALL, GRAD_SUM_ABS},
                                             {63, 2, 1, 32, KV_WINDOW_ALL, GRAD_SUM_ABS},
                                             {64, 1, 1, 80, KV_WINDOW_ALL, GRAD_SUM_BLOCK},
                                             {65, 2, 2, 96, KV_WINDOW_ALL, GRAD_SUM_ABS},
                                             {130, 4, 2, 128, KV_WINDOW_ALL, GRAD_SUM_ABS},
                                             {200, 3, 1, 64, 100, GRAD_SUM_SIGNED},
                                             {193, 2, 1, 32, 1, GRAD_SUM_ABS},
                                             {257, 2, 1, 32, 65, GRAD_SUM_BLOCK},
                                             {150, 2, 1, 64, KV_WINDOW_ALL, GRAD_SUM_SIGNED}};

    struct cuda_pair p;
    struct cuda_backend *gpu;
    int arch;

    check_attn(DTYPE_F32, &cases[_i]);
    check_attn(DTYPE_BF16, &cases[_i]);
    pair_open(&p, DTYPE_BF16);
    gpu = (struct cuda_backend *)p.gpu;
    arch = gpu->arch;
    gpu->arch = 80; /* without what only sm_90 has */
    check_attn(DTYPE_BF16, &cases[_i]);
    gpu->arch = arch;
}
END_TEST

/* A key that takes nearly all of a row's weight: the clamped rest is the CPU's. */
START_TEST(grad_attn__stays_finite_when_one_key_takes_all)
{
    enum { N = 130, D = 32 };
    static const struct grad_params params = {.max_rows = N,
                                              .max_dim = PAIR_MAX_DIM,
                                              .n_heads = 1,
                                              .n_kv_heads = 1,
                                              .head_dim = D,
                                              .n_layers = 1,
                                              .dim = 64,
                                              .ffn_dim = 64,
                                              .vocab_size = 64};
    static float qf[N * D], kf[N * D], vf[N * D], af[N * D], daf[N * D];
    double sums[4][3] = {{0}};
    struct pair_buf b[8];
    struct grads g;
    struct err err = {0};

    grads_open(&g, DTYPE_F32, &params);
    for (int i = 0; i < N * D; i++) {
        qf[i] = 10;
        kf[i] = i / D == 70 ? 10 : -10; /* from row 70 on, key 70 has weight 1 */
        vf[i] = i / D == 70 ? 1 : 2;
        af[i] = i / D >= 70 ? 1 : 2;
        daf[i] = 1;
    }
    b[0] = pair_f32(&g.p, qf, N * D), b[1] = pair_f32(&g.p, kf, N * D);
    b[2] = pair_f32(&g.p, vf, N * D), b[3] = pair_f32(&g.p, af, N * D);
    b[4] = pair_f32(&g.p, daf, N * D), b[5] = pair_f32(&g.p, qf, N * D);
    b[6] = pair_f32(&g.p, kf, N * D), b[7] = pair_f32(&g.p, vf, N * D);
    GRADS_RUN(&g, attn, grad_attn_args, .n_rows = N, .n_heads = 1, .n_kv_heads = 1, .head_dim = D,
              .scale = 1, .window = KV_WINDOW_ALL, .q = SIDE(b[0]), .k = SIDE(b[1]),
              .v = SIDE(b[2]), .a = SIDE(b[3]), .da = SIDE(b[4]), .dq = SIDE(b[5]),
              .dk = SIDE(b[6]), .dv = SIDE(b[7]), .band = sums[on_gpu * 2],
              .sink = sums[on_gpu * 2 + 1]);
    for (int i = 0; i < 3; i++) {
        ck_assert_double_eq_tol(sums[2][i], sums[0][i], 1e-3 + 1e-4 * sums[0][i]);
        ck_assert_double_eq_tol(sums[3][i], sums[1][i], 1e-3 + 1e-4 * sums[1][i]);
    }
    for (int i = 0; i < 8; i++)
        pair_free(&g.p, &b[i]);
    must(g.gpu->ops->finish(g.gpu, &err), &err);
    grads_close(&g);
}
END_TEST

/* ---- the other ops ---- */

#define ROWS  131
#define DIM   256
#define FFN   696
#define VOCAB 1003

static const struct grad_params op_params = {.max_rows = ROWS,
                                             .max_dim = PAIR_MAX_DIM,
                                             .n_heads = 8,
                                             .n_kv_heads = 2,
                                             .head_dim = 32,
                                             .n_layers = 1,
                                             .dim = DIM,
                                             .ffn_dim = FFN,
                                             .vocab_size = VOCAB};

static void check_ffn(enum dtype dtype, enum act_kind act, bool gated, bool biased, bool kept)
{
    struct grads g;
    struct pair_weight gain, w_in, b_in, w_down;
    struct pair_buf x, dx, wide = {0};
    float *start;
    struct err err = {0};

    grads_open(&g, dtype, &op_params);
    gain = pair_weight_random(&g.p, DIM, 1, false, 0.2f, 1, 1);
    w_in = pair_weight_random(&g.p, gated ? 2 * FFN : FFN, DIM, true, 0.1f, 0, 2);
    b_in = pair_weight_random(&g.p, gated ? 2 * FFN : FFN, 1, false, 0.5f, 0, 3);
    w_down = pair_weight_random(&g.p, DIM, FFN, true, 0.1f, 0, 4);
    x = pair_random(&g.p, (size_t)ROWS * DIM, 2, 5);
    wide = pair_random(&g.p, (size_t)ROWS * 2 * FFN, 1, 6);
    dx = pair_random(&g.p, (size_t)ROWS * DIM, 1, 7);
    start = pair_get(&g.p, &dx, false);
    pair_free(&g.p, &dx);
    dx = pair_f32(&g.p, start, (size_t)ROWS * DIM);
    free(start);
    if (kept) { /* ffn_keep() changes its x */
        struct pair_buf moved = pair_random(&g.p, (size_t)ROWS * DIM, 2, 5);
        struct step_batch batch = {.n_rows = ROWS};
        struct ffn_args f = {.batch = &batch,
                             .dim = DIM,
                             .ffn_dim = FFN,
                             .norm = {.gain = &gain.gpu, .eps = 1e-5f},
                             .act = act,
                             .gated = gated,
                             .w_in = &w_in.gpu,
                             .b_in = biased ? &b_in.gpu : NULL,
                             .w_down = &w_down.gpu,
                             .x = moved.gpu};

        must(g.gpu->ops->ffn_keep(g.gpu, &f, wide.gpu, &err), &err);
        f.norm.gain = &gain.cpu;
        f.w_in = &w_in.cpu;
        f.b_in = biased ? &b_in.cpu : NULL;
        f.w_down = &w_down.cpu;
        f.x = moved.cpu;
        must(g.p.cpu->ops->step_begin(g.p.cpu, &batch, &err), &err);
        must(g.p.cpu->ops->ffn(g.p.cpu, &f, &err), &err);
        must(g.p.cpu->ops->step_end(g.p.cpu, &err), &err);
        pair_compare(&g.p, &moved, "ffn forward", 4);
        pair_free(&g.p, &moved);
    }
    GRADS_RUN(&g, ffn, grad_ffn_args, .n_rows = ROWS, .dim = DIM, .ffn_dim = FFN,
              .norm = {.gain = SIDE_REF(gain), .eps = 1e-5f}, .act = act, .gated = gated,
              .w_in = SIDE_REF(w_in), .b_in = biased ? SIDE_REF(b_in) : NULL,
              .w_down = SIDE_REF(w_down), .x = SIDE(x), .dx = SIDE(dx),
              .wide = on_gpu && kept ? wide.gpu : NULL);
    pair_compare(&g.p, &dx, "ffn back", 4);
    pair_weight_free(&g.p, &gain);
    pair_weight_free(&g.p, &w_in);
    pair_weight_free(&g.p, &b_in);
    pair_weight_free(&g.p, &w_down);
    pair_free(&g.p, &x);
    pair_free(&g.p, &dx);
    pair_free(&g.p, &wide);
    grads_close(&g);
}

START_TEST(grad_ffn__is_the_cpus)
{
    enum dtype dtype = _i ? DTYPE_BF16 : DTYPE_F32;

    check_ffn(dtype, ACT_SILU, true, false, false);
    check_ffn(dtype, ACT_GELU_TANH, true, true, true);
    check_ffn(dtype, ACT_GELU_ERF, false, true, false);
}
END_TEST

START_TEST(grad_attn_out__is_the_cpus)
{
    enum dtype dtype = _i ? DTYPE_BF16 : DTYPE_F32;
    struct grads g;
    struct pair_weight wo;
    struct pair_buf dx, da, start;
    float *values;

    grads_open(&g, dtype, &op_params);
    wo = pair_weight_random(&g.p, DIM, 8 * 32, true, 0.1f, 0, 1);
    start = pair_random(&g.p, (size_t)ROWS * DIM, 1, 2);
    values = pair_get(&g.p, &start, false);
    dx = pair_f32(&g.p, values, (size_t)ROWS * DIM);
    da = pair_random(&g.p, (size_t)ROWS * 8 * 32, 1, 3);
    GRADS_RUN(&g, attn_out, grad_attn_out_args, .n_rows = ROWS, .dim = DIM, .n_in = 8 * 32,
              .wo = SIDE_REF(wo), .dx = SIDE(dx), .da = SIDE(da));
    pair_compare(&g.p, &da, "attn_out back", 2);
    free(values);
    pair_weight_free(&g.p, &wo);
    pair_free(&g.p, &start);
    pair_free(&g.p, &dx);
    pair_free(&g.p, &da);
    grads_close(&g);
}
END_TEST

static void check_attn_in(enum dtype dtype, bool normed, int rope_dim, int stride)
{
    enum { H = 8, KVH = 2, D = 32, WIDTH = (H + 2 * KVH) * D };
    struct grads g;
    struct pair_weight gain, wqkv, bqkv, q_norm, k_norm;
    struct pair_buf x, dx, dq, dk, dv, inv_freq, start;
    float *values, freq[ROWS * D / 2];

    grads_open(&g, dtype, &op_params);
    for (int i = 0; i < ROWS * D / 2; i++)
        freq[i] = 1.0f / (1.0f + (float)(i % (rope_dim / 2)) * 3 + (stride ? (float)(i / 16) : 0));
    gain = pair_weight_random(&g.p, DIM, 1, false, 0.2f, 1, 1);
    q_norm = pair_weight_random(&g.p, D, 1, false, 0.2f, 1, 2);
    k_norm = pair_weight_random(&g.p, D, 1, false, 0.2f, 1, 3);
    wqkv = pair_weight_random(&g.p, WIDTH, DIM, true, 0.1f, 0, 4);
    bqkv = pair_weight_random(&g.p, WIDTH, 1, false, 0.5f, 0, 5);
    inv_freq = pair_f32(&g.p, freq, ROWS * D / 2);
    x = pair_random(&g.p, (size_t)ROWS * DIM, 2, 6);
    start = pair_random(&g.p, (size_t)ROWS * DIM, 1, 7);
    values = pair_get(&g.p, &start, false);
    dx = pair_f32(&g.p, values, (size_t)ROWS * DIM);
    dq = pair_random(&g.p, (size_t)ROWS * H * D, 1, 8);
    dk = pair_random(&g.p, (size_t)ROWS * KVH * D, 1, 9);
    dv = pair_random(&g.p, (size_t)ROWS * KVH * D, 1, 10);
    GRADS_RUN(
        &g, attn_in, grad_attn_in_args, .n_rows = ROWS, .dim = DIM, .n_heads = H, .n_kv_heads = KVH,
        .head_dim = D, .norm = {.gain = SIDE_REF(gain), .eps = 1e-5f}, .wqkv = SIDE_REF(wqkv),
        .bqkv = SIDE_REF(bqkv), .q_norm = normed ? SIDE_REF(q_norm) : NULL,
        .k_norm = normed ? SIDE_REF(k_norm) : NULL, .qk_norm_eps = 1e-5f, .rope_dim = rope_dim,
        .inv_freq = SIDE(inv_freq), .inv_freq_stride = stride, .rope_scale = 1.25f, .x = SIDE(x),
        .dq = SIDE(dq), .dk = SIDE(dk), .dv = SIDE(dv), .dx = SIDE(dx));
    pair_compare(&g.p, &dx, "attn_in back", 4);
    free(values);
    struct pair_weight *weights[] = {&gain, &wqkv, &bqkv, &q_norm, &k_norm};
    struct pair_buf *all[] = {&x, &dx, &dq, &dk, &dv, &inv_freq, &start};
    for (size_t i = 0; i < sizeof(weights) / sizeof(weights[0]); i++)
        pair_weight_free(&g.p, weights[i]);
    for (size_t i = 0; i < sizeof(all) / sizeof(all[0]); i++)
        pair_free(&g.p, all[i]);
    grads_close(&g);
}

START_TEST(grad_attn_in__is_the_cpus)
{
    enum dtype dtype = _i ? DTYPE_BF16 : DTYPE_F32;

    check_attn_in(dtype, false, 32, 0);
    check_attn_in(dtype, true, 16, 0);
    check_attn_in(dtype, true, 32, 16);
}
END_TEST

static void check_logits(enum dtype dtype, enum grad_loss kind, int n_targets)
{
    struct grads g;
    struct pair_weight gain, head;
    struct pair_buf x, dx;
    double loss[2] = {0, 0};
    float row_loss[2][ROWS];
    int32_t row[ROWS], target[ROWS];
    float *zero = calloc((size_t)ROWS * DIM, sizeof(*zero));

    grads_open(&g, dtype, &op_params);
    gain = pair_weight_random(&g.p, DIM, 1, false, 0.2f, 1, 1);
    head = pair_weight_random(&g.p, VOCAB, DIM, true, 0.2f, 0, 2);
    x = pair_random(&g.p, (size_t)ROWS * DIM, 2, 3);
    dx = pair_f32(&g.p, zero, (size_t)ROWS * DIM);
    for (int i = 0; i < n_targets; i++) {
        row[i] = ROWS - n_targets + i;
        target[i] = (i * 331 + 5) % VOCAB;
    }
    GRADS_RUN(&g, logits, grad_logits_args, .dim = DIM, .vocab_size = VOCAB, .n_targets = n_targets,
              .row = row, .target = target, .loss = kind, .scale = 1.0f / (float)n_targets,
              .norm = {.gain = SIDE_REF(gain), .eps = 1e-5f}, .head = SIDE_REF(head), .x = SIDE(x),
              .dx = SIDE(dx), .loss_sum = &loss[on_gpu], .row_loss = row_loss[on_gpu]);
    pair_compare(&g.p, &dx, "logits back", 4);
    ck_assert_double_eq_tol(loss[1], loss[0], (dtype == DTYPE_F32 ? 1e-5 : 5e-3) * loss[0]);
    for (int i = 0; i < n_targets; i++)
        ck_assert_float_eq_tol(row_loss[1][i], row_loss[0][i], dtype == DTYPE_F32 ? 1e-4f : 0.1f);
    free(zero);
    pair_weight_free(&g.p, &gain);
    pair_weight_free(&g.p, &head);
    pair_free(&g.p, &x);
    pair_free(&g.p, &dx);
    grads_close(&g);
}

START_TEST(grad_logits__is_the_cpus)
{
    enum dtype dtype = _i ? DTYPE_BF16 : DTYPE_F32;

    check_logits(dtype, GRAD_LOSS_CROSS_ENTROPY, 1);
    check_logits(dtype, GRAD_LOSS_LOG_ODDS, 70);
}
END_TEST

/* f16 is refused, since gradients leave its range. */
START_TEST(cuda_grad__refuses_f16)
{
    struct cuda_pair p;
    struct grad *g;
    struct err err = {0};

    pair_open(&p, DTYPE_F16);
    ck_assert_int_eq(cuda_grad_open(&g, p.gpu, &op_params, &err), ERR_UNSUPPORTED);
    ck_assert_ptr_nonnull(strstr(err.msg, "bf16"));
}
END_TEST

/* ---- whole passes ---- */

#define LENGTH   170
#define N_LAYERS 3

static void make_config(struct model_config *c, int variant)
{
    memset(c, 0, sizeof(*c));
    strcpy(c->model_type, "llama");
    c->vocab_size = VOCAB;
    c->stack.dim = 256;
    c->stack.n_layers = N_LAYERS;
    c->stack.n_heads = 8;
    c->stack.n_kv_heads = variant == 0 ? 8 : 2;
    c->stack.head_dim = variant == 2 ? 64 : 32;
    c->stack.ffn_dim = FFN;
    c->max_seq_len = 512;
    c->stack.norm_eps = 1e-5f;
    c->stack.act = ACT_SILU;
    c->stack.is_gated = true;
    c->stack.rope.kind = ROPE_DEFAULT;
    c->stack.rope.theta = 10000;
    c->stack.rope.factor = 1;
    c->stack.rope.dim = c->stack.head_dim;
    c->stack.qkv_bias = variant == 1;
    c->stack.qk_norm = variant == 2;
    c->tie_embeddings = variant == 2;
    for (int i = 0; i < N_LAYERS; i++)
        c->window[i] = variant == 1 && i == 1 ? 100 : KV_WINDOW_ALL;
}

/* One side's model and what came of its pass. */
struct passed {
    struct model *model;
    double *dx; /* [n_layers, LENGTH, dim] */
    double *band, *sink, loss;
    int n_sums, dim;
};

static void keep_layer(void *arg, int layer, const float *dx)
{
    struct passed *s = arg;

    for (int i = 0; i < LENGTH * s->dim; i++)
        s->dx[layer * LENGTH * s->dim + i] = dx[i];
}

static void passed_open(struct passed *s, const struct model_config *c, struct backend *be,
                        enum dtype dtype)
{
    struct model_params params = {
        .random_weights = true, .seed = 7, .dtype = dtype, .max_rows = LENGTH, .max_logits = 1};
    struct err err = {0};

    memset(s, 0, sizeof(*s));
    s->dim = c->stack.dim;
    s->n_sums = N_LAYERS * c->stack.n_heads * ((LENGTH + GRAD_BLOCK - 1) / GRAD_BLOCK);
    s->dx = calloc((size_t)N_LAYERS * LENGTH * s->dim, sizeof(*s->dx));
    s->band = calloc((size_t)s->n_sums, sizeof(*s->band));
    s->sink = calloc((size_t)s->n_sums, sizeof(*s->sink));
    must(model_open(&s->model, c, be, &params, &err), &err);
}

static void passed_close(struct passed *s)
{
    model_close(s->model);
    free(s->dx);
    free(s->band);
    free(s->sink);
}

static void pass_run(struct passed *s, struct backend *be, int stride, enum grad_keep keep)
{
    struct grad_pass_params params = {.max_rows = LENGTH + 3, .stride = stride, .keep = keep};
    int32_t tokens[LENGTH], row[40];
    struct grad_pass_args args = {.tokens = tokens,
                                  .n_rows = LENGTH,
                                  .row = row,
                                  .n_targets = 40,
                                  .band = s->band,
                                  .sink = s->sink,
                                  .on_layer = keep_layer,
                                  .on_layer_arg = s};
    struct grad_pass *pass;
    struct grad_pass_flops flops;
    struct err err = {0};

    for (int i = 0; i < LENGTH; i++)
        tokens[i] = (i * i * 31 + 7) % VOCAB;
    for (int i = 0; i < 40; i++)
        row[i] = LENGTH - 41 + i;
    args.target = tokens + LENGTH - 40;
    memset(s->band, 0, sizeof(*s->band) * (size_t)s->n_sums);
    memset(s->sink, 0, sizeof(*s->sink) * (size_t)s->n_sums);
    must(grad_pass_open(&pass, s->model, be, &params, &err), &err);
    ck_assert_int_eq(grad_pass_stride(pass), stride);
    ck_assert_int_eq(grad_pass_keep(pass), keep);
    must(grad_pass_run(pass, &args, &err), &err);
    flops = grad_pass_flops(pass);
    /* Nothing of what is needed is left out; what is done twice comes to half of that at most. */
    ck_assert_double_ge(flops.done, 0.999 * flops.needed);
    ck_assert_double_le(flops.done, (stride > 1          ? 2.0
                                     : keep == KEEP_WIDE ? 1.1
                                                         : 1.5) *
                                        flops.needed);
    s->loss = args.loss;
    grad_pass_close(pass);
}

static void check_pass(enum dtype dtype, int variant)
{
    static const struct {
        int stride;
        enum grad_keep keep;
    } ways[] = {{1, KEEP_INPUT}, {2, KEEP_INPUT}, {1, KEEP_ATTN}, {1, KEEP_WIDE}};
    double tolerance = dtype == DTYPE_F32 ? 1e-4 : 4e-2;
    struct model_config c;
    struct cuda_pair p;
    struct passed cpu, gpu;

    make_config(&c, variant);
    pair_open(&p, dtype);
    passed_open(&cpu, &c, p.cpu, dtype);
    passed_open(&gpu, &c, p.gpu, dtype);
    pass_run(&cpu, p.cpu, 1, KEEP_INPUT);
    for (int i = variant; i < variant + 2; i++) { /* the models share the four ways */
        char what[64];

        snprintf(what, sizeof(what), "pass %d, stride %d, keep %d", variant, ways[i].stride,
                 (int)ways[i].keep);
        pass_run(&gpu, p.gpu, ways[i].stride, ways[i].keep);
        ck_assert_double_eq_tol(gpu.loss, cpu.loss, tolerance * cpu.loss);
        check_sums(what, dtype, cpu.dx, gpu.dx, N_LAYERS * LENGTH * cpu.dim, tolerance);
        check_sums(what, dtype, cpu.band, gpu.band, cpu.n_sums, tolerance);
        check_sums(what, dtype, cpu.sink, gpu.sink, cpu.n_sums, tolerance);
    }
    passed_close(&cpu);
    passed_close(&gpu);
}

/* f32 throughout: only the order of sums differs. */
START_TEST(grad_pass__is_the_cpus_in_f32)
{
    check_pass(DTYPE_F32, _i);
}
END_TEST

/* In bf16 activations and the gradients that products take are rounded: a dozen of 2^-9 a layer. */
START_TEST(grad_pass__is_near_the_cpus_in_bf16)
{
    check_pass(DTYPE_BF16, _i);
}
END_TEST

/* Two runs give the same bits: sums have one order. */
START_TEST(grad_pass__repeats_itself)
{
    struct model_config c;
    struct cuda_pair p;
    struct passed a, b;

    make_config(&c, 1);
    pair_open(&p, DTYPE_BF16);
    passed_open(&a, &c, p.gpu, DTYPE_BF16);
    passed_open(&b, &c, p.gpu, DTYPE_BF16);
    pass_run(&a, p.gpu, 1, KEEP_WIDE);
    pass_run(&b, p.gpu, 1, KEEP_INPUT);
    ck_assert_mem_eq(a.band, b.band, sizeof(*a.band) * (size_t)a.n_sums);
    ck_assert_mem_eq(a.sink, b.sink, sizeof(*a.sink) * (size_t)a.n_sums);
    ck_assert_mem_eq(a.dx, b.dx, sizeof(*a.dx) * N_LAYERS * LENGTH * (size_t)a.dim);
    passed_close(&a);
    passed_close(&b);
}
END_TEST

TEST_SUITE(cuda_grad)
{
    TCase *attn = test_case(suite, "attn"), *ops = test_case(suite, "ops");
    TCase *pass = test_case(suite, "pass");

    tcase_set_timeout(attn, 600);
    tcase_add_loop_test(attn, grad_attn__is_the_cpus, 0, 9);
    tcase_add_test(attn, grad_attn__stays_finite_when_one_key_takes_all);
    tcase_add_loop_test(ops, grad_ffn__is_the_cpus, 0, 2);
    tcase_add_loop_test(ops, grad_attn_out__is_the_cpus, 0, 2);
    tcase_add_loop_test(ops, grad_attn_in__is_the_cpus, 0, 2);
    tcase_add_loop_test(ops, grad_logits__is_the_cpus, 0, 2);
    tcase_add_test(ops, cuda_grad__refuses_f16);
    tcase_set_timeout(pass, 600);
    tcase_add_loop_test(pass, grad_pass__is_the_cpus_in_f32, 0, 3);
    tcase_add_loop_test(pass, grad_pass__is_near_the_cpus_in_bf16, 0, 3);
    tcase_add_test(pass, grad_pass__repeats_itself);
}
