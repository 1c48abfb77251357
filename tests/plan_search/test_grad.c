/*
 * The backward pass against PyTorch's autograd (tests/golden/grad_golden.py), and the influence of
 * attention against removing each key and rescaling the rest of its row.
 */
#include "base/err.h"
#include "base/json_file.h"
#include "base/rng.h"
#include "engine/cpu/cpu_isa.h"
#include "engine/plan/search/grad_pass.h"
#include "tests/lib/test.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static const char *const names[] = {"llama-mha",
                                    "llama-gqa-tied",
                                    "llama-bias-sharded",
                                    "llama-head8-odd",
                                    "llama-head128-gelu",
                                    "llama-mqa-head24-f16",
                                    "llama-yarn-mscale",
                                    "llama-llama3",
                                    "llama-dynamic-prompt",
                                    "mistral-window",
                                    "ministral-mixed",
                                    "qwen2",
                                    "qwen3"};
#define N_NAMES (int)(sizeof(names) / sizeof(names[0]))

struct golden {
    json_t *root;
    const char *name;
    int n_rows, dim;
    double worst; /* relative to the largest of its row */
};

static double number(const json_t *list, int i)
{
    return json_number_value(json_array_get(list, (size_t)i));
}

/* Norm of the difference over the norm of what is wanted. */
static double relative(const json_t *want, const double *got, int n)
{
    double diff = 0, norm = 0;

    ck_assert_int_eq((int)json_array_size(want), n);
    for (int i = 0; i < n; i++) {
        diff += (got[i] - number(want, i)) * (got[i] - number(want, i));
        norm += number(want, i) * number(want, i);
    }
    return norm > 0 ? sqrt(diff / norm) : sqrt(diff);
}

static void check_layer(void *arg, int layer, const float *dx)
{
    struct golden *g = arg;
    const json_t *rows = json_object_get(g->root, "rows");
    const json_t *want = json_array_get(json_object_get(g->root, "dx"), (size_t)layer);
    double *got = calloc((size_t)g->dim, sizeof(*got));

    for (int i = 0; i < (int)json_array_size(rows); i++) {
        int row = (int)number(rows, i);
        double off;

        for (int k = 0; k < g->dim; k++)
            got[k] = dx[(int64_t)row * g->dim + k];
        off = relative(json_array_get(want, (size_t)i), got, g->dim);
        g->worst = fmax(g->worst, off);
        ck_assert_msg(off < 1e-4, "%s: gradient of layer %d, row %d is %.2e off", g->name, layer,
                      row, off);
    }
    free(got);
}

static void check_influence(struct golden *g, const char *key, const double *got, int n_layers,
                            int n_heads, int n_blocks)
{
    for (int l = 0; l < n_layers; l++) {
        for (int h = 0; h < n_heads; h++) {
            const json_t *want =
                json_array_get(json_array_get(json_object_get(g->root, key), (size_t)l), (size_t)h);
            double off = relative(want, got + ((int64_t)l * n_heads + h) * n_blocks, n_blocks);

            g->worst = fmax(g->worst, off);
            ck_assert_msg(off < 1e-4, "%s: %s of layer %d, head %d is %.2e off", g->name, key, l, h,
                          off);
        }
    }
}

struct opened {
    struct model_config *cfg;
    struct backend *be;
    struct model *model;
    struct grad_pass *pass;
};

static void open_model_alone(struct opened *o, const char *dir, int max_rows, int n_threads)
{
    struct err err = {0};
    struct model_params params = {
        .dir = dir, .dtype = DTYPE_F32, .max_rows = max_rows, .max_logits = 1};
    struct backend_params be = {.device = "cpu",
                                .dtype = DTYPE_F32,
                                .n_threads = n_threads,
                                .max_rows = max_rows,
                                .max_logits = 64,
                                .max_positions = max_rows};

    memset(o, 0, sizeof(*o));
    o->cfg = calloc(1, sizeof(*o->cfg));
    ck_assert_msg(model_config_load(o->cfg, dir, &err) == 0, "%s", err.msg);
    be.max_dim = model_config_max_dim(o->cfg);
    be.max_vocab = o->cfg->vocab_size;
    ck_assert_msg(backend_open(&o->be, &be, &err) == 0, "%s", err.msg);
    ck_assert_msg(model_open(&o->model, o->cfg, o->be, &params, &err) == 0, "%s", err.msg);
}

static void open_model(struct opened *o, const char *dir, int max_rows, size_t max_bytes,
                       int n_threads)
{
    struct grad_pass_params pass = {.max_rows = max_rows, .max_bytes = max_bytes};
    struct err err = {0};

    open_model_alone(o, dir, max_rows, n_threads);
    ck_assert_msg(grad_pass_open(&o->pass, o->model, o->be, &pass, &err) == 0, "%s", err.msg);
}

static void close_model(struct opened *o)
{
    grad_pass_close(o->pass);
    model_close(o->model);
    o->be->ops->close(o->be);
    free(o->cfg);
}

static void against_autograd(const char *name, int stride, int n_threads, double *worst)
{
    char path[256];
    struct golden g = {.name = name};
    struct opened o;
    struct err err = {0};
    struct grad_pass_args args = {.on_layer = check_layer, .on_layer_arg = &g};
    int32_t tokens[512], rows[512];
    int n_blocks, first;
    size_t n;

    snprintf(path, sizeof(path), "tests/golden/grads/%s.json", name);
    ck_assert_msg(json_file_load(&g.root, test_path(path), 1 << 22, &err) == 0, "%s", err.msg);
    g.n_rows = args.n_rows = (int)json_array_size(json_object_get(g.root, "tokens"));
    for (int i = 0; i < g.n_rows; i++)
        tokens[i] = (int32_t)number(json_object_get(g.root, "tokens"), i);
    first = (int)json_number_value(json_object_get(g.root, "first_target"));
    args.n_targets = g.n_rows - 1 - first;
    for (int i = 0; i < args.n_targets; i++)
        rows[i] = first + i;
    snprintf(path, sizeof(path), "tests/golden/models/%s", name);
    open_model(&o, test_path(path), g.n_rows, 0, n_threads);
    if (stride > 1) {
        struct grad_pass_params pass = {.max_rows = g.n_rows, .stride = stride};

        grad_pass_close(o.pass);
        ck_assert_msg(grad_pass_open(&o.pass, o.model, o.be, &pass, &err) == 0, "%s", err.msg);
        ck_assert_int_eq(grad_pass_stride(o.pass), stride);
    }
    g.dim = o.cfg->stack.dim;
    n_blocks = (g.n_rows + GRAD_BLOCK - 1) / GRAD_BLOCK;
    n = (size_t)o.cfg->stack.n_layers * (size_t)o.cfg->stack.n_heads * (size_t)n_blocks;
    if (json_is_true(json_object_get(g.root, "log_odds")))
        args.kind = GRAD_LOSS_LOG_ODDS;
    args.tokens = tokens;
    args.row = rows;
    args.target = tokens + first + 1;
    args.band = calloc(n, sizeof(double));
    args.sink = calloc(n, sizeof(double));
    ck_assert_msg(grad_pass_run(o.pass, &args, &err) == 0, "%s", err.msg);
    ck_assert_double_eq_tol(args.loss, json_number_value(json_object_get(g.root, "loss")), 1e-4);
    check_influence(&g, "band", args.band, o.cfg->stack.n_layers, o.cfg->stack.n_heads, n_blocks);
    check_influence(&g, "sink", args.sink, o.cfg->stack.n_layers, o.cfg->stack.n_heads, n_blocks);
    *worst = fmax(*worst, g.worst);
    free(args.band);
    free(args.sink);
    json_decref(g.root);
    close_model(&o);
}

START_TEST(grad__equals_autograd)
{
    double worst = 0;

    for (int i = 0; i < N_NAMES; i++)
        against_autograd(names[i], 1, 2, &worst);
    printf("grad: %d models, gradients and influence at most %.1e off autograd\n", N_NAMES, worst);
}
END_TEST

/* The vector code of every instruction set there is. */
START_TEST(grad__equals_autograd_on_each_instruction_set)
{
    static const char *const isas[] = {"scalar", "avx2", "avx512"};
    double worst = 0;

    for (int i = 0; i < 3; i++) {
        struct err err = {0};
        enum cpu_isa isa;

        setenv("SPAND_ISA", isas[i], 1);
        ck_assert_int_eq(cpu_isa_choose(&isa, &err), 0);
        if (strcmp(cpu_isa_name(isa), isas[i]) == 0)
            against_autograd("qwen3", 1, 1, &worst);
    }
    unsetenv("SPAND_ISA");
}
END_TEST

/* Three layers, an input kept for every third: the others are made again. */
START_TEST(grad__equals_autograd_with_layers_recomputed)
{
    double worst = 0;

    against_autograd("ministral-mixed", 2, 2, &worst);
    against_autograd("ministral-mixed", 3, 2, &worst);
}
END_TEST

START_TEST(grad_pass__says_what_fits)
{
    struct opened o;
    struct err err = {0};
    struct grad_pass *pass;
    struct grad_pass_params params = {.max_rows = 512};

    open_model(&o, test_path("tests/golden/models/llama-mha"), 512, 0, 1);
    params.max_bytes = grad_pass_bytes(o.cfg, o.be, 300, 1, KEEP_INPUT);
    ck_assert_int_eq(grad_pass_open(&pass, o.model, o.be, &params, &err), ERR_NO_ROOM);
    ck_assert_ptr_nonnull(strstr(err.msg, "profiling 512 tokens takes"));
    ck_assert_ptr_nonnull(strstr(err.msg, "256 tokens would fit"));
    close_model(&o);
}
END_TEST

/* Layers that no backward pass is built for are refused by name. */
START_TEST(grad_pass__refuses_other_layers)
{
    struct opened o;
    struct err err = {0};
    struct grad_pass *pass = NULL;
    struct grad_pass_params params = {.max_rows = 64};

    open_model_alone(&o, test_path("tests/golden/models/neox-pythia"), 64, 1);
    ck_assert_int_eq(grad_pass_open(&pass, o.model, o.be, &params, &err), ERR_UNSUPPORTED);
    ck_assert_ptr_nonnull(strstr(err.msg, "gpt_neox"));
    close_model(&o);
}
END_TEST

#define N   130
#define D   8
#define H   4
#define KVH 2

/* One head's loss, linear in the output, with key j of row i removed (j < 0: none). */
static double loss_of(const double *a, const float *v, const float *da, int i, int j)
{
    double sum = 0, rest = 1;

    if (j >= 0)
        rest = 1 - a[j];
    for (int k = 0; k <= i; k++)
        for (int x = 0; x < D && k != j; x++)
            sum += a[k] / rest * v[k * KVH * D + x] * da[x];
    return sum;
}

/* Sums |change of loss| by removal over one head into band and sink. */
static void removal(bool blocks, const float *q, const float *k, const float *v, const float *da,
                    double *band, double *sink)
{
    for (int i = 0; i < N; i++) {
        double a[N], sum = 0, whole, cell[N / GRAD_BLOCK + 1] = {0};

        for (int j = 0; j <= i; j++) {
            double s = 0;

            for (int x = 0; x < D; x++)
                s += (double)q[i * H * D + x] * k[j * KVH * D + x];
            a[j] = exp(s * 0.5);
            sum += a[j];
        }
        for (int j = 0; j <= i; j++)
            a[j] /= sum;
        whole = loss_of(a, v, da + i * H * D, i, -1);
        for (int j = 0; j <= i; j++) {
            double e = i == 0 ? whole : loss_of(a, v, da + i * H * D, i, j) - whole;

            cell[j / GRAD_BLOCK] += blocks ? e : fabs(e);
        }
        for (int b = 0; b <= i / GRAD_BLOCK; b++)
            *(b ? &band[i / GRAD_BLOCK - b] : &sink[i / GRAD_BLOCK]) += fabs(cell[b]);
    }
}

START_TEST(grad_attn__influence_is_explicit_removal)
{
    static float q[N * H * D], k[N * KVH * D], v[N * KVH * D], a[N * H * D], da[N * H * D];
    static float dq[N * H * D], dk[N * KVH * D], dv[N * KVH * D];
    double band[H * 3] = {0}, sink[H * 3] = {0};
    struct backend_params params = {.device = "cpu",
                                    .dtype = DTYPE_F32,
                                    .n_threads = 2,
                                    .max_rows = N,
                                    .max_dim = 64,
                                    .max_vocab = 16,
                                    .max_logits = 1,
                                    .max_positions = N};
    struct grad_params gp = {.max_rows = N, .max_dim = 64, .n_heads = H, .head_dim = D};
    struct grad_attn_args args = {.n_rows = N,
                                  .n_heads = H,
                                  .n_kv_heads = KVH,
                                  .head_dim = D,
                                  .scale = 0.5f,
                                  .window = KV_WINDOW_ALL,
                                  .q = q,
                                  .k = k,
                                  .v = v,
                                  .a = a,
                                  .da = da,
                                  .dq = dq,
                                  .dk = dk,
                                  .dv = dv,
                                  .band = band,
                                  .sink = sink};
    struct backend *be;
    struct grad *g;
    struct err err = {0};

    for (int i = 0; i < N * H * D; i++) {
        q[i] = 2 * rng_f32(1, 1, (uint64_t)i) - 1;
        da[i] = 2 * rng_f32(1, 2, (uint64_t)i) - 1;
    }
    for (int i = 0; i < N * KVH * D; i++) {
        k[i] = 2 * rng_f32(1, 3, (uint64_t)i) - 1;
        v[i] = 2 * rng_f32(1, 4, (uint64_t)i) - 1;
    }
    for (int h = 0; h < H; h++) { /* what attention gives */
        for (int i = 0; i < N; i++) {
            double w[N], sum = 0;

            for (int j = 0; j <= i; j++) {
                double s = 0;

                for (int x = 0; x < D; x++)
                    s += (double)q[(i * H + h) * D + x] * k[(j * KVH + h / 2) * D + x];
                sum += w[j] = exp(s * 0.5);
            }
            for (int x = 0; x < D; x++) {
                double o = 0;

                for (int j = 0; j <= i; j++)
                    o += w[j] / sum * v[(j * KVH + h / 2) * D + x];
                a[(i * H + h) * D + x] = (float)o;
            }
        }
    }
    ck_assert_int_eq(backend_open(&be, &params, &err), 0);
    ck_assert_int_eq(cpu_grad_open(&g, be, &gp, &err), 0);
    for (int blocks = 0; blocks < 2; blocks++) {
        memset(band, 0, sizeof(band));
        memset(sink, 0, sizeof(sink));
        args.sum = blocks ? GRAD_SUM_BLOCK : GRAD_SUM_ABS;
        ck_assert_int_eq(g->ops->attn(g, &args, &err), 0);
        for (int h = 0; h < H; h++) {
            double want_band[3] = {0}, want_sink[3] = {0};

            removal(blocks, q + h * D, k + h / 2 * D, v + h / 2 * D, da + h * D, want_band,
                    want_sink);
            for (int b = 0; b < 3; b++) {
                ck_assert_double_eq_tol(band[h * 3 + b], want_band[b], 1e-5 * (1 + want_band[b]));
                ck_assert_double_eq_tol(sink[h * 3 + b], want_sink[b], 1e-5 * (1 + want_sink[b]));
            }
        }
    }
    g->ops->close(g);
    be->ops->close(be);
}
END_TEST

/* A key that takes nearly all of a row's weight: nothing infinite, nothing beyond its bound. */
START_TEST(grad_attn__stays_finite_when_one_key_takes_all)
{
    static float q[N * D], k[N * D], v[N * D], a[N * D], da[N * D], dq[N * D], dk[N * D], dv[N * D];
    double band[3] = {0}, sink[3] = {0};
    struct backend_params params = {.device = "cpu",
                                    .dtype = DTYPE_F32,
                                    .n_threads = 1,
                                    .max_rows = N,
                                    .max_dim = 64,
                                    .max_vocab = 16,
                                    .max_logits = 1,
                                    .max_positions = N};
    struct grad_params gp = {.max_rows = N, .max_dim = 64, .n_heads = 1, .head_dim = D};
    struct grad_attn_args args = {.n_rows = N,
                                  .n_heads = 1,
                                  .n_kv_heads = 1,
                                  .head_dim = D,
                                  .scale = 1,
                                  .window = KV_WINDOW_ALL,
                                  .q = q,
                                  .k = k,
                                  .v = v,
                                  .a = a,
                                  .da = da,
                                  .dq = dq,
                                  .dk = dk,
                                  .dv = dv,
                                  .band = band,
                                  .sink = sink};
    struct backend *be;
    struct grad *g;
    struct err err = {0};

    for (int i = 0; i < N * D; i++) {
        q[i] = 10.0f;
        k[i] = i / D == 70 ? 10.0f : -10.0f; /* from row 70 on, key 70 has weight 1 */
        v[i] = a[i] = i / D == 70 ? 1.0f : 2.0f;
        da[i] = 1.0f;
    }
    for (int i = 70 * D; i < N * D; i++)
        a[i] = 1.0f;
    ck_assert_int_eq(backend_open(&be, &params, &err), 0);
    ck_assert_int_eq(cpu_grad_open(&g, be, &gp, &err), 0);
    ck_assert_int_eq(g->ops->attn(g, &args, &err), 0);
    for (int b = 0; b < 3; b++) {
        ck_assert(isfinite(band[b]));
        ck_assert(isfinite(sink[b]));
        ck_assert_double_le(band[b], N * D * 2.0);
    }
    g->ops->close(g);
    be->ops->close(be);
}
END_TEST

TEST_SUITE(grad)
{
    TCase *tc = test_case(suite, "core");

    tcase_set_timeout(tc, 600);
    tcase_add_test(tc, grad__equals_autograd);
    tcase_add_test(tc, grad__equals_autograd_on_each_instruction_set);
    tcase_add_test(tc, grad__equals_autograd_with_layers_recomputed);
    tcase_add_test(tc, grad_pass__says_what_fits);
    tcase_add_test(tc, grad_pass__refuses_other_layers);
    tcase_add_test(tc, grad_attn__influence_is_explicit_removal);
    tcase_add_test(tc, grad_attn__stays_finite_when_one_key_takes_all);
}
