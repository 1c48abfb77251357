/*
 * The AMX product's source on modelled tiles: against sums in double and against the AVX-512 bf16
 * product, at sizes around tiles and blocks of k; and the model's own rules.
 */
#include "engine/cpu/cpu_kernels.h"
#include "engine/cpu/cpu_linear.h"
#include "tests/engine/cpu/cpu_amx_model.h"
#include "tests/engine/cpu/cpu_fixture.h"
#include "tests/ref/ref_ops.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#if defined(__x86_64__)
extern const struct cpu_gemm cpu_amx_gemm_modelled;

#define MARGIN 3 /* floats between two rows of y, which nobody may write */

/* Memory whose last byte lies before a page that nobody may touch. */
struct guarded {
    char *map;
    size_t map_bytes;
    void *at;
};

static struct guarded guarded_new(size_t bytes)
{
    size_t page = (size_t)sysconf(_SC_PAGESIZE), room = (bytes + page - 1) / page * page;
    struct guarded g = {.map_bytes = room + page};

    g.map = mmap(NULL, g.map_bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    ck_assert_ptr_ne(g.map, MAP_FAILED);
    ck_assert_int_eq(mprotect(g.map + room, page, PROT_NONE), 0);
    g.at = g.map + room - bytes;
    return g;
}

static void guarded_free(struct guarded *g)
{
    munmap(g->map, g->map_bytes);
}

/* One product: its numbers, rounded to bf16 where the product takes bf16. */
struct gemm_case {
    int n_rows, n_in, n_out;
    enum gemm_epilogue epilogue;
    enum act_kind act;
    bool gated, bias;
    int grain; /* outputs of an item */
};

struct gemm_run {
    struct gemm_case c;
    float *x, *w[2], *bias[2]; /* [n_rows, n_in], [n_out, n_in], [n_out]; gate or only one, up */
    struct guarded bits[2];    /* of w */
    float *y;                  /* [n_rows, n_out + MARGIN] */
    uint16_t *h;               /* packed [n_groups, h_dim / 2, 16, 2] */
    int h_dim;
};

static size_t y_len(const struct gemm_case *c)
{
    return (size_t)c->n_rows * (size_t)(c->n_out + MARGIN);
}

static size_t h_len(const struct gemm_run *r)
{
    return (size_t)((r->c.n_rows + 15) / 16 * 16) * (size_t)r->h_dim;
}

static void run_init(struct gemm_run *r, const struct gemm_case *c)
{
    *r = (struct gemm_run){.c = *c, .h_dim = (c->n_out + 31) / 32 * 32};
    r->x = fixture_random(1, (int64_t)c->n_rows * c->n_in, 1.0f);
    fixture_round(r->x, (int64_t)c->n_rows * c->n_in, DTYPE_BF16);
    for (int s = 0; s < 2; s++) {
        int64_t n = (int64_t)c->n_out * c->n_in;

        r->w[s] = fixture_random(2 + (uint64_t)s, n, 1.7f / sqrtf((float)c->n_in));
        fixture_round(r->w[s], n, DTYPE_BF16);
        r->bits[s] = guarded_new((size_t)n * 2);
        dtype_convert(r->bits[s].at, DTYPE_BF16, r->w[s], DTYPE_F32, (size_t)n);
        r->bias[s] = fixture_random(4 + (uint64_t)s, c->n_out, 0.5f);
    }
    r->y = fixture_random(6, (int64_t)y_len(c), 1.0f);
    r->h = calloc(h_len(r), sizeof(*r->h));
}

static void run_release(struct gemm_run *r)
{
    for (int s = 0; s < 2; s++) {
        free(r->w[s]);
        free(r->bias[s]);
        guarded_free(&r->bits[s]);
    }
    free(r->x);
    free(r->y);
    free(r->h);
}

static void run_product(struct gemm_run *r, const struct cpu_gemm *gemm)
{
    const struct gemm_case *c = &r->c;
    int n_groups = (c->n_rows + gemm->lanes - 1) / gemm->lanes;
    size_t group_bytes = gemm_group_bytes(gemm, c->n_in);
    struct guarded packed = guarded_new((size_t)n_groups * group_bytes);
    struct guarded scratch = guarded_new((gemm->scratch_bytes(c->n_in) + 63) / 64 * 64);
    struct gemm_args a = {.w = r->bits[0].at,
                          .w_up = c->gated ? r->bits[1].at : NULL,
                          .dtype = DTYPE_BF16,
                          .n_in = c->n_in,
                          .n_rows = c->n_rows,
                          .packed = packed.at,
                          .epilogue = c->epilogue,
                          .act = c->act,
                          .bias = c->bias ? r->bias[0] : NULL,
                          .bias_up = c->bias ? r->bias[1] : NULL,
                          .y = r->y,
                          .ldy = c->n_out + MARGIN,
                          .h = r->h,
                          .h_dim = r->h_dim};
    struct gemm_queue queue = {.n_out = c->n_out, .grain = c->grain};

    for (int g = 0; g < n_groups; g++) {
        int left = c->n_rows - g * gemm->lanes;

        gemm->pack((char *)packed.at + (size_t)g * group_bytes,
                   r->x + (int64_t)g * gemm->lanes * c->n_in, c->n_in,
                   left < gemm->lanes ? left : gemm->lanes, c->n_in);
    }
    memset(scratch.at, 0xff, gemm->scratch_bytes(c->n_in)); /* NaN: sums must not start from it */
    gemm->run(&a, &queue, scratch.at);
    guarded_free(&packed);
    guarded_free(&scratch);
}

/* Output o of row, wherever the epilogue has put it. */
static float run_result(const struct gemm_run *r, int row, int o)
{
    size_t at = ((size_t)(row / 16) * (size_t)(r->h_dim / 2) + (size_t)(o / 2)) * 32 +
                (size_t)(row % 16) * 2 + (size_t)(o % 2);

    if (r->c.epilogue == GEMM_ACT_PACK)
        return bf16_to_f32(r->h[at]);
    return r->y[(int64_t)row * (r->c.n_out + MARGIN) + o];
}

static double sum_of(const struct gemm_run *r, int side, int row, int o)
{
    double sum = r->c.bias ? r->bias[side][o] : 0.0;

    for (int k = 0; k < r->c.n_in; k++)
        sum += (double)r->x[(int64_t)row * r->c.n_in + k] *
               (double)r->w[side][(int64_t)o * r->c.n_in + k];
    return sum;
}

static double ref_result(const struct gemm_run *r, const float *y_before, int row, int o)
{
    double sum = sum_of(r, 0, row, o);

    if (r->c.epilogue == GEMM_ADD)
        return sum + y_before[(int64_t)row * (r->c.n_out + MARGIN) + o];
    if (r->c.epilogue == GEMM_ACT_PACK) {
        sum = ref_act(sum, r->c.act);
        return r->c.gated ? sum * sum_of(r, 1, row, o) : sum;
    }
    return sum;
}

/*
 * Sums of up to 1000 products of 1 by 0.05 in f32. Packed results are rounded to 8 bits besides: to
 * half a unit of the exact one, and two of them may be a whole unit apart.
 */
static void check_close(const struct gemm_run *r, double got, double want, int row, int o,
                        bool exact)
{
    double unit = r->c.epilogue == GEMM_ACT_PACK ? (exact ? 0x1.1p-8 : 0x1.1p-7) : 1e-6;
    double tol = (r->c.epilogue == GEMM_ACT_PACK ? 1e-4 : 2e-5) + unit * fabs(want);

    ck_assert_msg(fabs(got - want) <= tol,
                  "%d rows, n_in %d, n_out %d, epilogue %d, gated %d: row %d, output %d is %.9g, "
                  "%s %.9g",
                  r->c.n_rows, r->c.n_in, r->c.n_out, (int)r->c.epilogue, r->c.gated, row, o, got,
                  exact ? "in double" : "by vectors", want);
}

static void check_case(const struct gemm_case *c)
{
    struct gemm_run amx, vec;
    float *before = fixture_random(6, (int64_t)y_len(c), 1.0f);
    struct amx_model *tiles = amx_model_state();

    run_init(&amx, c);
    run_init(&vec, c);
    run_product(&amx, &cpu_amx_gemm_modelled);
    run_product(&vec, &cpu_gemm_avx512bf16);
    ck_assert(!tiles->configured);
    ck_assert_int_eq(tiles->n_configs, tiles->n_releases);
    for (int row = 0; row < c->n_rows; row++) {
        for (int o = 0; o < c->n_out; o++) {
            double got = run_result(&amx, row, o);

            /* Doubles are slow: every row near the ends of groups, all rows against vectors. */
            if (row < 18 || row % 16 == 15 || row == c->n_rows - 1)
                check_close(&amx, got, ref_result(&amx, before, row, o), row, o, true);
            check_close(&amx, got, run_result(&vec, row, o), row, o, false);
        }
        ck_assert_mem_eq(amx.y + (int64_t)row * (c->n_out + MARGIN) + c->n_out,
                         before + (int64_t)row * (c->n_out + MARGIN) + c->n_out,
                         sizeof(float) * MARGIN);
    }
    free(before);
    run_release(&amx);
    run_release(&vec);
}

#define MODEL_MOST 60e6 /* products of one case that the model takes in a second or so */

static const int row_counts[] = {1, 15, 16, 17, 47, 512};
static const int inner_sizes[] = {1, 31, 33, 255, 256, 511, 513, 1000, 1536};
static const int out_counts[] = {1, 63, 65, 128, 300};
static const int grains[] = {32, 64}; /* twice that when not gated */

#define COUNT(a) ((int)(sizeof(a) / sizeof((a)[0])))

/* Row counts are the loop; every inner size and output count, items of every size. */
static void check_epilogue(int n_rows, enum gemm_epilogue epilogue, bool gated)
{
    for (int i = 0; i < COUNT(inner_sizes); i++) {
        for (int o = 0; o < COUNT(out_counts); o++) {
            struct gemm_case c = {.n_rows = n_rows,
                                  .n_in = inner_sizes[i],
                                  .n_out = out_counts[o],
                                  .epilogue = epilogue,
                                  .act = (enum act_kind)(i % 3),
                                  .gated = gated,
                                  .bias = (i + o) % 2 == 0,
                                  .grain = grains[(i + o) % COUNT(grains)] * (gated ? 1 : 2)};

            if ((double)n_rows * c.n_in * c.n_out <= MODEL_MOST)
                check_case(&c);
        }
    }
}

/* Every size agrees with sums in double and with the vector product. */
START_TEST(cpu_amx_gemm__stores_the_product)
{
    check_epilogue(row_counts[_i], GEMM_STORE, false);
}
END_TEST

START_TEST(cpu_amx_gemm__adds_the_product)
{
    check_epilogue(row_counts[_i], GEMM_ADD, false);
}
END_TEST

START_TEST(cpu_amx_gemm__packs_activations)
{
    check_epilogue(row_counts[_i], GEMM_ACT_PACK, false);
}
END_TEST

START_TEST(cpu_amx_gemm__packs_gated_activations)
{
    check_epilogue(row_counts[_i], GEMM_ACT_PACK, true);
}
END_TEST

/* A row's bits are the same however many rows and outputs are computed beside it. */
START_TEST(cpu_amx_gemm__gives_the_same_bits_at_any_row_count)
{
    static const int counts[] = {1, 15, 16, 17, 31, 32, 33, 48, 100};

    for (int epilogue = GEMM_STORE; epilogue <= GEMM_ACT_PACK; epilogue++) {
        struct gemm_case c = {.n_rows = 512,
                              .n_in = 1000,
                              .n_out = 65,
                              .grain = 64,
                              .epilogue = (enum gemm_epilogue)epilogue,
                              .gated = epilogue == GEMM_ACT_PACK};
        struct gemm_run all, some;

        run_init(&all, &c);
        run_product(&all, &cpu_amx_gemm_modelled);
        for (int i = 0; i < COUNT(counts); i++) {
            c.n_rows = counts[i];
            c.grain = grains[i % COUNT(grains)];
            run_init(&some, &c);
            run_product(&some, &cpu_amx_gemm_modelled);
            for (int row = 0; row < c.n_rows; row++) {
                for (int o = 0; o < c.n_out; o++) {
                    float a = run_result(&all, row, o), b = run_result(&some, row, o);

                    ck_assert_msg(memcmp(&a, &b, sizeof(a)) == 0,
                                  "row %d, output %d: %.9g of 512 rows, %.9g of %d", row, o, a, b,
                                  c.n_rows);
                }
            }
            run_release(&some);
        }
        run_release(&all);
    }
}
END_TEST

/* ---- the model ---- */

static void config_of(uint8_t config[64], int rows, int row_bytes)
{
    memset(config, 0, 64);
    config[0] = 1;
    for (int i = 0; i < AMX_TILES; i++) {
        config[16 + 2 * i] = (uint8_t)row_bytes;
        config[48 + i] = (uint8_t)rows;
    }
}

/* What the processor refuses to load, the model refuses. */
START_TEST(amx_model__refuses_bad_configurations)
{
    static const struct {
        int at, value;
    } bad[] = {{0, 0},  {0, 2},   {1, 1},  {2, 1},  {15, 1},  {16, 65},
               {17, 1}, {48, 17}, {48, 0}, {16, 0}, {32, 64}, {56, 16}};
    uint8_t config[64];

    config_of(config, 16, 64);
    ck_assert_ptr_null(amx_config_fault(config));
    for (int i = 0; i < COUNT(bad); i++) {
        config_of(config, 16, 64);
        config[bad[i].at] = (uint8_t)bad[i].value;
        ck_assert_msg(amx_config_fault(config) != NULL, "byte %d = %d", bad[i].at, bad[i].value);
    }
}
END_TEST

/* Shapes that do not fit together are refused. */
START_TEST(amx_model__refuses_products_of_odd_shapes)
{
    uint8_t config[64];

    config_of(config, 16, 64);
    config[48 + 3] = 8;      /* tile 3: 8 rows */
    config[16 + 2 * 4] = 32; /* tile 4: 8 pairs a row */
    amx_loadconfig(config);
    ck_assert_ptr_null(amx_product_fault(0, 1, 2));
    ck_assert_ptr_nonnull(amx_product_fault(0, 0, 1));
    ck_assert_ptr_nonnull(amx_product_fault(0, 1, 1));
    ck_assert_ptr_nonnull(amx_product_fault(1, 0, 1));
    ck_assert_ptr_nonnull(amx_product_fault(0, 3, 1)); /* rows of dst and a */
    ck_assert_ptr_nonnull(amx_product_fault(0, 1, 4)); /* columns of dst and b */
    ck_assert_ptr_nonnull(amx_product_fault(0, 4, 1)); /* pairs of a, rows of b */
    amx_release();
}
END_TEST

static float product_1x1(const uint16_t *a, const uint16_t *b, int n_pairs, float start)
{
    uint8_t config[64];
    float c[16] = {start};

    config_of(config, 1, 4);
    config[48 + 2] = (uint8_t)n_pairs; /* b: a pair a row */
    config[16 + 2] = (uint8_t)(4 * n_pairs);
    amx_loadconfig(config);
    amx_loadd(0, c, 64);
    amx_loadd(1, a, 64);
    amx_loadd(2, b, 4);
    amx_dpbf16ps(0, 1, 2);
    amx_stored(0, c, 64);
    amx_release();
    return c[0];
}

/* Even and odd elements have a sum each; the two meet before they reach the tile. */
START_TEST(amx_model__sums_in_the_manuals_order)
{
    uint16_t big = f32_to_bf16(16777216.0f), one = f32_to_bf16(1.0f);
    uint16_t a[4] = {big, f32_to_bf16(-16777216.0f), one, one}, b[4] = {one, one, one, one};

    /* 2^24 + 1 rounds to 2^24, -2^24 + 1 is exact; in ascending order it would be 2. */
    ck_assert_float_eq(product_1x1(a, b, 2, 0.0f), 1.0f);
    ck_assert_float_eq(product_1x1(a, b, 2, 0.5f), 1.5f);
}
END_TEST

/* Denormal operands, products, sums and tile elements count as zero. */
START_TEST(amx_model__flushes_denormals)
{
    uint16_t one = f32_to_bf16(1.0f), small = f32_to_bf16(0x1p-70f), huge = f32_to_bf16(0x1p100f);
    uint16_t denormal[2] = {0x0001, 0x0040}, huges[2] = {huge, huge}, smalls[2] = {small, small};
    uint16_t ones[2] = {one, one};
    uint16_t near[2] = {f32_to_bf16(0x1.8p-126f), f32_to_bf16(-0x1p-126f)};

    ck_assert_float_eq(product_1x1(denormal, huges, 1, 0.0f), 0.0f);
    ck_assert_float_eq(product_1x1(smalls, smalls, 1, 0.0f), 0.0f);
    ck_assert_float_eq(product_1x1(near, ones, 1, 0.0f), 0.0f);
    ck_assert_float_eq(product_1x1(smalls, ones, 1, 0x1p-130f), 0x1p-69f);
}
END_TEST

static bool machine_has_the_vectors(void)
{
    return cpu_isa_detect() >= CPU_ISA_AVX512BF16;
}
#else
static bool machine_has_the_vectors(void)
{
    return false;
}
#endif

TEST_SUITE(cpu_amx_gemm)
{
    TCase *tc = test_case(suite, "core");

    tcase_set_timeout(tc, 300);
    if (!machine_has_the_vectors()) {
        printf("cpu_amx_gemm: skipped, the product's vectors need AVX-512 bf16\n");
        return;
    }
#if defined(__x86_64__)
    tcase_add_loop_test(tc, cpu_amx_gemm__stores_the_product, 0, COUNT(row_counts));
    tcase_add_loop_test(tc, cpu_amx_gemm__adds_the_product, 0, COUNT(row_counts));
    tcase_add_loop_test(tc, cpu_amx_gemm__packs_activations, 0, COUNT(row_counts));
    tcase_add_loop_test(tc, cpu_amx_gemm__packs_gated_activations, 0, COUNT(row_counts));
    tcase_add_test(tc, cpu_amx_gemm__gives_the_same_bits_at_any_row_count);
    tcase_add_test(tc, amx_model__refuses_bad_configurations);
    tcase_add_test(tc, amx_model__refuses_products_of_odd_shapes);
    tcase_add_test(tc, amx_model__sums_in_the_manuals_order);
    tcase_add_test(tc, amx_model__flushes_denormals);
#endif
}
