/*
 * The optimiser against the answer by trying everything, and against CBC.
 */
#include "base/clock.h"
#include "base/err.h"
#include "base/rng.h"
#include "engine/plan/search/choice_cbc.h"
#include "engine/plan/search/layer_choice.h"
#include "engine/plan/search/pareto.h"
#include "tests/lib/test.h"
#include "tests/plan_search/program_fixture.h"

#include <math.h>
#include <stdio.h>
#include <string.h>

#define N_TOYS 200

/* 3 lengths and 4 caps on 6 heads of 6 rules: 46,656 choices. */
static struct program_shape toy(int i)
{
    return (struct program_shape){.n_layers = 2,
                                  .units_per_layer = 3,
                                  .n_lengths = 3,
                                  .length = {2048, 4096, 8192},
                                  .n_caps = 4,
                                  .cap_length = {2048, 4096, 8192, 16384},
                                  .density = 0.35 + 0.4 * rng_f32(7, 1, (uint64_t)i),
                                  .max_rules = 6,
                                  .seed = (uint64_t)i + 1};
}

/* The caps, and for two toys of three a limit on the other losses as well. */
static void toy_limits(const struct program_fixture *f, int i, double *limit)
{
    memcpy(limit, f->s.problem.limit, sizeof(double) * CHOICE_MAX_VALUES);
    for (int v = 1; v < f->in.n_lengths && i % 3; v++)
        limit[v] = f->s.n_units * (0.05 + 0.6 * rng_f32(8, (uint32_t)v, (uint64_t)i));
}

static void same(int i, const struct choice_result *r, const double *limit, int objective,
                 double want)
{
    ck_assert_msg(r->feasible == isfinite(want), "toy %d: feasible %d, exhaustive finds %g", i,
                  r->feasible, want);
    ck_assert_msg(r->proven, "toy %d: not proven", i);
    if (!r->feasible)
        return;
    ck_assert_msg(fabs(r->total[objective] - want) <= 1e-9 * (1 + fabs(want)),
                  "toy %d: %.12g, exhaustive finds %.12g", i, r->total[objective], want);
    ck_assert_msg(r->bound <= want + 1e-9 * (1 + fabs(want)), "toy %d: bound %.12g above %.12g", i,
                  r->bound, want);
    for (int v = 0; v < CHOICE_MAX_VALUES; v++)
        ck_assert(v == objective || !isfinite(limit[v]) || limit[v] == 0 ||
                  r->total[v] <= limit[v] + CHOICE_EPS);
}

static const struct choice_params exact = {.gap = 0, .max_nodes = 1000000};

START_TEST(choice__equals_exhaustive_search)
{
    int n_feasible = 0;

    for (int i = 0; i < N_TOYS; i++) {
        struct program_shape shape = toy(i);
        struct program_fixture f;
        struct choice_lp lp = {0};
        struct choice_result r;
        struct err err = {0};
        double limit[CHOICE_MAX_VALUES];

        program_fixture_init(&f, &shape);
        toy_limits(&f, i, limit);
        memcpy(f.s.problem.limit, limit, sizeof(limit));
        f.s.problem.objective = 0;
        search_program_ban(&f.s, true);
        ck_assert_int_eq(choice_lp_init(&lp, &f.s.problem, &err), 0);
        ck_assert_int_eq(choice_result_init(&r, &f.s.problem, &err), 0);
        ck_assert_int_eq(choice_solve(&r, &f.s.problem, &lp, &exact, &err), 0);
        same(i, &r, limit, 0, program_exhaust(&f.s, 0, limit, 0));
        n_feasible += r.feasible;
        choice_result_release(&r);
        choice_lp_release(&lp);
        program_fixture_release(&f);
    }
    printf("choice: %d of %d equal to exhaustive search, %d of them feasible\n", N_TOYS, N_TOYS,
           n_feasible);
    ck_assert_int_gt(n_feasible, N_TOYS / 2);
}
END_TEST

START_TEST(layer_choice__equals_exhaustive_search)
{
    int n_feasible = 0;

    for (int i = 0; i < N_TOYS; i++) {
        struct program_shape shape = toy(i);
        struct program_fixture f;
        struct layer_choice lc;
        struct choice_lp lp = {0};
        struct choice_result r;
        struct err err = {0};
        double limit[CHOICE_MAX_VALUES];
        int max_rules = i % 4 ? 2 : 1;

        program_fixture_init(&f, &shape);
        toy_limits(&f, i, limit);
        ck_assert_int_eq(choice_lp_init(&lp, &f.s.problem, &err), 0);
        ck_assert_int_eq(choice_result_init(&r, &f.s.problem, &err), 0);
        ck_assert_int_eq(layer_choice_init(&lc, &f.s, max_rules, &err), 0);
        ck_assert_int_eq(layer_choice_solve(&r, &lc, &lp, 0, limit, &exact, &err), 0);
        same(i, &r, limit, 0, program_exhaust(&f.s, 0, limit, max_rules));
        n_feasible += r.feasible;
        layer_choice_release(&lc);
        choice_result_release(&r);
        choice_lp_release(&lp);
        program_fixture_release(&f);
    }
    printf("layer_choice: %d of %d equal to exhaustive search, %d of them feasible\n", N_TOYS,
           N_TOYS, n_feasible);
    ck_assert_int_gt(n_feasible, N_TOYS / 2);
}
END_TEST

/*
 * Solves one program by ours and by CBC, and compares the least loss. CBC stops at gap: to close it
 * altogether takes it minutes where ours takes a fraction of a second.
 */
static void against_cbc(int n_layers, int units_per_layer, double density, uint64_t seed,
                        double our_gap, double gap)
{
    struct program_shape shape = {.n_layers = n_layers,
                                  .units_per_layer = units_per_layer,
                                  .n_lengths = 3,
                                  .length = {2048, 4096, 8192},
                                  .n_caps = 4,
                                  .cap_length = {2048, 4096, 8192, 16384},
                                  .density = density,
                                  .seed = seed};
    struct choice_params params = {.gap = our_gap, .max_nodes = 200000};
    struct choice_cbc_params cbc = {.gap = gap, .max_seconds = 20};
    struct program_fixture f;
    struct choice_lp lp = {0};
    struct choice_result ours, theirs;
    struct err err = {0};
    int64_t t0, t1, t2;

    program_fixture_init(&f, &shape);
    f.s.problem.objective = (int)(seed % 3);
    f.s.problem.limit[(seed + 1) % 3] = 0.2 * f.s.n_units;
    search_program_ban(&f.s, true);
    ck_assert_int_eq(choice_lp_init(&lp, &f.s.problem, &err), 0);
    ck_assert_int_eq(choice_result_init(&ours, &f.s.problem, &err), 0);
    ck_assert_int_eq(choice_result_init(&theirs, &f.s.problem, &err), 0);
    t0 = clock_ns();
    ck_assert_int_eq(choice_solve(&ours, &f.s.problem, &lp, &params, &err), 0);
    t1 = clock_ns();
    search_program_ban(&f.s, false); /* CBC sees the whole program */
    ck_assert_int_eq(choice_cbc_solve(&theirs, &f.s.problem, &cbc, &err), 0);
    t2 = clock_ns();
    printf("%4d heads, density %.2f: ours %.9g (bound %.9g, %lld nodes, %.2f s), CBC %.9g (%.2f "
           "s)%s%s\n",
           f.s.n_units, density, ours.total[f.s.problem.objective], ours.bound,
           (long long)ours.n_nodes, (double)(t1 - t0) * 1e-9, theirs.total[f.s.problem.objective],
           (double)(t2 - t1) * 1e-9, ours.proven ? "" : ", ours open",
           theirs.proven ? "" : ", CBC open");
    fflush(stdout);
    ck_assert_int_eq(ours.feasible, theirs.feasible);
    if (ours.feasible) {
        double a = ours.total[f.s.problem.objective], b = theirs.total[f.s.problem.objective];

        ck_assert(ours.proven);
        ck_assert_msg(fabs(a - b) <= (gap + 1e-7) * fabs(b), "%.12g and %.12g", a, b);
    }
    choice_result_release(&theirs);
    choice_result_release(&ours);
    choice_lp_release(&lp);
    program_fixture_release(&f);
}

START_TEST(choice__equals_cbc_up_to_64_heads)
{
    if (!choice_cbc_is_built()) {
        printf("CBC is not built in: not compared\n");
        return;
    }
    for (int i = 0; i < 3; i++) {
        against_cbc(2, 4, 0.5, (uint64_t)i + 1, 0, 1e-4);
        against_cbc(4, 4, 0.3, (uint64_t)i + 11, 0, 1e-4);
        against_cbc(8, 4, 0.5, (uint64_t)i + 21, 0, 1e-4);
        against_cbc(8, 8, 0.4, (uint64_t)i + 31, 0, 1e-4);
    }
}
END_TEST

START_TEST(choice__equals_cbc_on_a_full_program)
{
    if (!choice_cbc_is_built()) {
        printf("CBC is not built in: not compared\n");
        return;
    }
    against_cbc(32, 32, 0.5, 5, 1e-5, 1e-4);
}
END_TEST

TEST_SUITE(choice)
{
    TCase *tc = test_case(suite, "core");

    tcase_set_timeout(tc, 900);
    tcase_add_test(tc, choice__equals_exhaustive_search);
    tcase_add_test(tc, layer_choice__equals_exhaustive_search);
    tcase_add_test(tc, choice__equals_cbc_up_to_64_heads);
    tcase_add_test(tc, choice__equals_cbc_on_a_full_program);
}
