/*
 * Sampling: equal to a full sort for thousands of random settings, on every instruction set; ties,
 * NaN, banned tokens, forced tokens; and the frequencies of what is drawn.
 */
#include "base/rng.h"
#include "engine/cpu/cpu_isa.h"
#include "tests/engine/cpu/cpu_fixture.h"
#include "tests/ref/ref_ops.h"

#include <float.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>

#define MAX_VOCAB 4096
#define MAX_SEEN  24
#define MAX_TOP   20

/* A setting that does nothing but draw. */
static struct sample_row plain_row(uint64_t seed)
{
    return (struct sample_row){.temperature = 1.0f,
                               .top_p = 1.0f,
                               .repetition_penalty = 1.0f,
                               .seed = seed,
                               .forced_token = -1};
}

static struct sample_result sample(struct backend *be, const float *logits, int vocab_size,
                                   const struct sample_row *row, const struct sample_bias *bias,
                                   const struct sample_seen *seen)
{
    struct sample_result res = {.token = -2};
    struct err err = {0};

    ck_assert_int_eq(be->ops->sample(be,
                                     &(struct sample_args){.n_rows = 1,
                                                           .vocab_size = vocab_size,
                                                           .logits = logits,
                                                           .rows = row,
                                                           .bias = bias,
                                                           .seen = seen,
                                                           .result = &res},
                                     &err),
                     0);
    return res;
}

/* A small random stream of its own, so that settings do not depend on the code under test. */
struct dice {
    uint64_t seed, n;
};

static double roll(struct dice *d)
{
    return (double)rng_f32(d->seed, 99, d->n++);
}

static int roll_int(struct dice *d, int n)
{
    return (int)(roll(d) * n);
}

/* Logits of many kinds: flat, peaked, full of ties, with infinities and NaN. */
static void random_logits(struct dice *d, float *x, int n)
{
    int kind = roll_int(d, 6);
    float scale = kind == 0 ? 0.0f : kind == 1 ? 0.3f : kind == 2 ? 3.0f : 15.0f;

    for (int i = 0; i < n; i++) {
        x[i] = (float)(roll(d) * 2.0 - 1.0) * scale;
        if (kind == 4)
            x[i] = roundf(x[i] / 4.0f) * 4.0f;
        if (kind == 5 && roll(d) < 0.05)
            x[i] = roll(d) < 0.3 ? NAN : roll(d) < 0.9 ? -INFINITY : 3e38f;
    }
}

static void random_row(struct dice *d, struct sample_row *r, struct sample_bias *bias,
                       struct sample_seen *seen, int n)
{
    *r = plain_row(d->n);
    r->sample_idx = (uint32_t)roll_int(d, 4);
    r->position = roll_int(d, 100000);
    if (roll(d) < 0.8)
        r->temperature = roll(d) < 0.1 ? 0.0f : (float)(0.05 + roll(d) * 2.5);
    if (roll(d) < 0.5)
        r->top_p = (float)(roll(d) < 0.2 ? roll(d) * 1e-3 : roll(d));
    if (roll(d) < 0.5)
        r->top_k = 1 + roll_int(d, roll(d) < 0.5 ? 5 : n + 5);
    if (roll(d) < 0.3)
        r->min_p = (float)(roll(d) < 0.2 ? 1.0 : roll(d) * 0.2);
    if (roll(d) < 0.3)
        r->repetition_penalty = (float)(0.5 + roll(d) * 1.5);
    if (roll(d) < 0.3)
        r->presence_penalty = (float)(roll(d) * 4.0 - 2.0);
    if (roll(d) < 0.3)
        r->frequency_penalty = (float)(roll(d) * 4.0 - 2.0);
    r->n_seen = roll(d) < 0.5 ? roll_int(d, n < MAX_SEEN ? n : MAX_SEEN) : 0;
    for (int i = 0; i < r->n_seen; i++)
        seen[i] = (struct sample_seen){.token = i * (n / r->n_seen), .n_generated = roll_int(d, 4)};
    r->n_bias = roll(d) < 0.3 ? roll_int(d, MAX_SEEN) : 0;
    for (int i = 0; i < r->n_bias; i++)
        bias[i] = (struct sample_bias){.token = roll_int(d, n),
                                       .value = roll(d) < 0.3 ? -INFINITY
                                                              : (float)(roll(d) * 20.0 - 10.0)};
}

/* Whatever the settings, the token is the one that a full sort gives. */
START_TEST(cpu_sample__equals_a_full_sort)
{
    static const int vocabs[] = {1, 2, 7, 15, 16, 17, 100, 500, 1000, 4001};
    struct backend *be = fixture_open(_i, DTYPE_F32, 1, 16);
    struct dice d = {.seed = 5};
    float *logits = malloc(sizeof(float) * MAX_VOCAB);
    struct sample_bias bias[MAX_SEEN];
    struct sample_seen seen[MAX_SEEN];

    for (int i = 0; i < 3000; i++) {
        int n = vocabs[roll_int(&d, i % 20 == 0 ? 10 : 8)];
        struct sample_row row;
        struct sample_result got, want;

        random_logits(&d, logits, n);
        random_row(&d, &row, bias, seen, n);
        got = sample(be, logits, n, &row, bias, seen);
        want = ref_sample(logits, n, &row, bias, seen, NULL);
        ck_assert_msg(
            got.token == want.token,
            "setting %d: token %d, want %d (vocab %d, T %g, top_k %d, top_p %g, min_p %g)", i,
            got.token, want.token, n, (double)row.temperature, row.top_k, (double)row.top_p,
            (double)row.min_p);
        ck_assert_msg(fabs((double)got.logprob - (double)want.logprob) <=
                              2e-6 * (1.0 + fabs((double)want.logprob)) ||
                          (isinf(got.logprob) && isinf(want.logprob)) || want.logprob < -1e30f ||
                          isnan(want.logprob),
                      "setting %d: logprob %g, want %g", i, (double)got.logprob,
                      (double)want.logprob);
    }
    free(logits);
    be->ops->close(be);
}
END_TEST

/* A row of several phases is in each what a row of its own would be, and silent outside of its own.
 */
START_TEST(cpu_sample__phases_are_rows_of_later_positions)
{
    enum { ROWS = 24, N = 777, STRIDE = 3 };
    struct backend *be = fixture_open(0, DTYPE_F32, 2, ROWS);
    float *logits = fixture_random(5, ROWS * N, 6.0f);
    const struct sample_bias bias[] = {{3, 4.0f}, {5, -INFINITY}, {700, 9.0f}, {3, 1.0f}};
    struct sample_row rows[ROWS];
    struct err err = {0};
    int n_early = 0;

    for (int i = 0; i < ROWS; i++) {
        rows[i] = plain_row((uint64_t)i);
        rows[i].slot = i;
        rows[i].n_top = i % 2 - 1;
        rows[i].temperature = i % 3 ? 0.8f : 0.0f;
        rows[i].first_phase = i % 4 == 1 ? 2 : 0;
        rows[i].end_phase = i % 4 == 2 ? 2 : 0;
        rows[i].n_bias = 1;
        rows[i].bias_min_at = 1;
        rows[i].n_bias_min = 3;
        rows[i].min_end = rows[i].position + i % 5;
    }
    for (int phase = 0; phase < 4; phase++) {
        struct sample_result res[ROWS];
        int32_t slot_token[ROWS * STRIDE];

        for (int i = 0; i < ROWS; i++)
            res[i] = (struct sample_result){.token = -9};
        for (int i = 0; i < ROWS * STRIDE; i++)
            slot_token[i] = -5;
        ck_assert_int_eq(be->ops->sample(be,
                                         &(struct sample_args){.n_rows = ROWS,
                                                               .vocab_size = N,
                                                               .logits = logits,
                                                               .rows = rows,
                                                               .bias = bias,
                                                               .phase = phase,
                                                               .result = res,
                                                               .slot_token = slot_token + 1,
                                                               .slot_stride = STRIDE},
                                         &err),
                         0);
        for (int i = 0; i < ROWS; i++) {
            struct sample_row row = rows[i];
            struct sample_result alone;
            bool early = row.position + phase < row.min_end;
            bool silent = phase < row.first_phase || (row.end_phase && phase >= row.end_phase);

            row.position += phase;
            row.first_phase = row.end_phase = 0;
            row.min_end = 0;
            if (early) {
                row.bias_at = row.bias_min_at;
                row.n_bias = row.n_bias_min;
            }
            alone = sample(be, logits + i * N, N, &row, bias, NULL);
            n_early += early && !silent;
            ck_assert_int_eq(res[i].token, silent ? -9 : alone.token);
            ck_assert_int_eq(slot_token[i * STRIDE + 1], silent ? -5 : alone.token);
            ck_assert_int_eq(slot_token[i * STRIDE], -5);
            if (row.n_top < 0)
                ck_assert(res[i].logprob == 0.0f);
            else
                ck_assert(silent || res[i].logprob < 0.0f);
        }
    }
    ck_assert_int_gt(n_early, 10);
    free(logits);
    be->ops->close(be);
}
END_TEST

/* Rows of one call do not touch each other, and threads do not change anything. */
START_TEST(cpu_sample__rows_are_independent)
{
    enum { ROWS = 16, N = 777 };
    struct backend *be = fixture_open(_i, DTYPE_F32, 3, ROWS);
    float *logits = fixture_random(3, ROWS * N, 6.0f);
    struct sample_row rows[ROWS];
    struct sample_result res[ROWS];
    int32_t slot_token[ROWS];
    struct err err = {0};

    for (int i = 0; i < ROWS; i++) {
        slot_token[i] = -5;
        rows[i] = plain_row((uint64_t)i);
        rows[i].slot = i % 4 == 1 ? -1 : (i * 7 + 2) % ROWS;
        rows[i].top_p = i % 2 ? 0.9f : 1.0f;
        rows[i].top_k = i % 3 ? 40 : 0;
    }
    ck_assert_int_eq(be->ops->sample(be,
                                     &(struct sample_args){.n_rows = ROWS,
                                                           .vocab_size = N,
                                                           .logits = logits,
                                                           .rows = rows,
                                                           .result = res,
                                                           .slot_token = slot_token},
                                     &err),
                     0);
    for (int i = 0; i < ROWS; i++) {
        struct sample_result alone = sample(be, logits + i * N, N, &rows[i], NULL, NULL);

        ck_assert_int_eq(res[i].token, alone.token);
        ck_assert(res[i].logprob == alone.logprob);
        /* Who has a slot finds its token there, and nobody else does. */
        ck_assert_int_eq(slot_token[(i * 7 + 2) % ROWS], rows[i].slot < 0 ? -5 : alone.token);
    }
    free(logits);
    be->ops->close(be);
}
END_TEST

/* The best tokens come by raw logit, ties by id, with their logprobs; -1 behind the end. */
START_TEST(cpu_sample__reports_the_best_tokens)
{
    static const int vocabs[] = {1, 5, 20, 33, 1000};
    struct backend *be = fixture_open(_i, DTYPE_F32, 1, 16);
    struct dice d = {.seed = 6};
    float logits[1000];

    for (int i = 0; i < 200; i++) {
        int n = vocabs[roll_int(&d, 5)];
        struct sample_row row = plain_row(1);
        struct sample_result res;
        struct err err = {0};
        int32_t top[MAX_TOP], want[MAX_TOP];
        float top_logprob[MAX_TOP];

        random_logits(&d, logits, n);
        row.n_top = roll_int(&d, MAX_TOP + 1);
        ck_assert_int_eq(be->ops->sample(be,
                                         &(struct sample_args){.n_rows = 1,
                                                               .vocab_size = n,
                                                               .max_top = MAX_TOP,
                                                               .logits = logits,
                                                               .rows = &row,
                                                               .result = &res,
                                                               .top_token = top,
                                                               .top_logprob = top_logprob},
                                         &err),
                         0);
        ref_top(logits, n, row.n_top, want);
        for (int j = 0; j < MAX_TOP; j++) {
            ck_assert_int_eq(top[j], j < row.n_top ? want[j] : -1);
            if (top[j] >= 0 && logits[top[j]] > -1e30f && fabsf(logits[top[j]]) < 1e30f) {
                double lp = ref_logprob(logits, n, top[j]);

                ck_assert(fabs((double)top_logprob[j] - lp) <= 2e-6 * (1.0 + fabs(lp)));
            }
        }
    }
    be->ops->close(be);
}
END_TEST

/* Equal logits: greedy takes the lowest id, top_k the lowest ids. */
START_TEST(cpu_sample__breaks_ties_by_id)
{
    struct backend *be = fixture_open(_i, DTYPE_F32, 1, 16);
    struct sample_row row = plain_row(1);
    float logits[100];

    for (int i = 0; i < 100; i++)
        logits[i] = i < 10 ? -1.0f : i % 2 ? 0.0f : -0.0f; /* the zeros are one logit */
    row.temperature = 0.0f;
    ck_assert_int_eq(sample(be, logits, 100, &row, NULL, NULL).token, 10);
    row.temperature = 1.0f;
    row.top_k = 3;
    for (int i = 0; i < 200; i++) {
        int token;

        row.position = i;
        token = sample(be, logits, 100, &row, NULL, NULL).token;
        ck_assert_int_ge(token, 10);
        ck_assert_int_le(token, 12);
    }
    be->ops->close(be);
}
END_TEST

/* A forced token is only reported; nothing else decides. */
START_TEST(cpu_sample__reports_a_forced_token)
{
    struct backend *be = fixture_open(_i, DTYPE_F32, 1, 16);
    float *logits = fixture_random(8, 300, 4.0f);
    struct sample_row row = plain_row(1);
    struct sample_result res;

    row.forced_token = 123;
    row.top_k = 1;
    res = sample(be, logits, 300, &row, NULL, NULL);
    ck_assert_int_eq(res.token, 123);
    ck_assert(fabs((double)res.logprob - ref_logprob(logits, 300, 123)) < 1e-5);
    free(logits);
    be->ops->close(be);
}
END_TEST

/* All logits NaN, or all tokens banned: token 0, and no crash. */
START_TEST(cpu_sample__survives_rows_without_a_choice)
{
    struct backend *be = fixture_open(_i, DTYPE_F32, 1, 16);
    struct sample_bias bias[40];
    struct sample_row row = plain_row(1);
    float logits[40];

    for (int i = 0; i < 40; i++) {
        logits[i] = NAN;
        bias[i] = (struct sample_bias){.token = i, .value = -INFINITY};
    }
    ck_assert_int_eq(sample(be, logits, 40, &row, NULL, NULL).token, 0);
    for (int i = 0; i < 40; i++)
        logits[i] = (float)i;
    row.n_bias = 40;
    for (int kind = 0; kind < 4; kind++) {
        row.temperature = kind == 0 ? 0.0f : 1.0f;
        row.top_k = kind == 2 ? 5 : 0;
        row.top_p = kind == 3 ? 0.5f : 1.0f;
        ck_assert_int_eq(sample(be, logits, 40, &row, bias, NULL).token, 0);
    }
    be->ops->close(be);
}
END_TEST

/* Over many positions, tokens come as often as their weights say: chi-square under 1 in 10^4. */
START_TEST(cpu_sample__draws_in_proportion)
{
    enum { N = 24, DRAWS = 20000 };
    struct backend *be = fixture_open(_i, DTYPE_F32, 1, 16);
    float *logits = fixture_random(9, N, 1.5f);
    struct sample_row row = plain_row(77);
    uint64_t weight[N], total = 0;
    int count[N] = {0};
    double chi2 = 0.0;
    int freedom = -1;

    row.top_p = 0.9f;
    row.temperature = 0.8f;
    for (int i = 0; i < DRAWS; i++) {
        row.position = i;
        count[sample(be, logits, N, &row, NULL, NULL).token]++;
    }
    ref_sample(logits, N, &row, NULL, NULL, weight);
    for (int i = 0; i < N; i++)
        total += weight[i];
    for (int i = 0; i < N; i++) {
        double want = (double)weight[i] / (double)total * DRAWS;

        if (weight[i] == 0) {
            ck_assert_int_eq(count[i], 0);
            continue;
        }
        chi2 += (count[i] - want) * (count[i] - want) / want;
        freedom++;
    }
    ck_assert_msg(chi2 < freedom + 4.5 * sqrt(2.0 * freedom) + 8.0, "chi-square %g with %d degrees",
                  chi2, freedom);
    free(logits);
    be->ops->close(be);
}
END_TEST

/* A masked token is one whose bias is minus infinity, whatever else was asked for. */
START_TEST(cpu_sample__a_mask_bans_like_a_bias)
{
    enum { VOCAB = 333, ROUNDS = 400 };
    struct backend *be = fixture_open(_i, DTYPE_F32, 1, 16);
    struct dice d = {.seed = 77};
    static float logits[VOCAB];
    static struct sample_bias bias[MAX_SEEN + VOCAB];
    static struct sample_seen seen[MAX_SEEN];
    uint32_t mask[2][SAMPLE_MASK_WORDS(VOCAB)];

    for (int round = 0; round < ROUNDS; round++) {
        struct sample_row row, banned;
        struct sample_result res = {.token = -2}, want;
        struct err err = {0};

        random_logits(&d, logits, VOCAB);
        random_row(&d, &row, bias, seen, VOCAB);
        banned = row;
        memset(mask, 0xff, sizeof(mask));
        for (int t = 0; t < VOCAB; t++) {
            if (roll(&d) < 0.4) {
                mask[1][t / 32] &= ~(UINT32_C(1) << (t % 32));
                bias[banned.n_bias++] = (struct sample_bias){.token = t, .value = -INFINITY};
            }
        }
        want = sample(be, logits, VOCAB, &banned, bias, seen);
        row.mask = 2;
        ck_assert_int_eq(be->ops->sample(be,
                                         &(struct sample_args){.n_rows = 1,
                                                               .vocab_size = VOCAB,
                                                               .logits = logits,
                                                               .rows = &row,
                                                               .bias = bias,
                                                               .seen = seen,
                                                               .mask = mask[0],
                                                               .result = &res},
                                         &err),
                         0);
        ck_assert_int_eq(res.token, want.token);
        ck_assert(res.logprob == want.logprob || want.logprob != want.logprob);
    }
    be->ops->close(be);
}
END_TEST

TEST_SUITE(cpu_sample)
{
    TCase *tc = test_case(suite, "core");
    int n = fixture_n_isas();

    tcase_set_timeout(tc, 300);
    tcase_add_loop_test(tc, cpu_sample__equals_a_full_sort, 0, n);
    tcase_add_test(tc, cpu_sample__phases_are_rows_of_later_positions);
    tcase_add_loop_test(tc, cpu_sample__rows_are_independent, 0, n);
    tcase_add_loop_test(tc, cpu_sample__reports_the_best_tokens, 0, n);
    tcase_add_loop_test(tc, cpu_sample__breaks_ties_by_id, 0, n);
    tcase_add_loop_test(tc, cpu_sample__reports_a_forced_token, 0, n);
    tcase_add_loop_test(tc, cpu_sample__survives_rows_without_a_choice, 0, n);
    tcase_add_loop_test(tc, cpu_sample__draws_in_proportion, 0, n);
    tcase_add_loop_test(tc, cpu_sample__a_mask_bans_like_a_bias, 0, n);
}
