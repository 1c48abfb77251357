/*
 * The set of plans, the rules they are made of, and what is said when there is none.
 */
#include "base/clock.h"
#include "base/err.h"
#include "engine/plan/search/pareto.h"
#include "engine/plan/search/rule_grid.h"
#include "tests/lib/test.h"
#include "tests/plan_search/program_fixture.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

static struct program_shape shape_of(int n_layers, int units, double density, uint64_t seed)
{
    return (struct program_shape){.n_layers = n_layers,
                                  .units_per_layer = units,
                                  .n_lengths = 3,
                                  .length = {2048, 4096, 8192},
                                  .n_caps = 4,
                                  .cap_length = {2048, 4096, 8192, 16384},
                                  .density = density,
                                  .seed = seed};
}

static int most_rules(const struct search_program *s, const int *rule)
{
    int most = 0;

    for (int layer = 0; layer < s->in.n_layers; layer++) {
        const int *o = rule + layer * s->in.units_per_layer;
        int n = 0;

        for (int u = 0; u < s->in.units_per_layer; u++) {
            bool seen = false;

            for (int k = 0; k < u; k++)
                seen |= o[k] == o[u];
            n += !seen;
        }
        most = n > most ? n : most;
    }
    return most;
}

/* Finds the plans of a shape and checks what must hold of each. */
static void find(const struct program_shape *shape, int max_per_layer, double gap, double seconds)
{
    struct pareto_params params = {
        .n_intervals = 4, .gap = gap, .max_nodes = 200, .max_rules_per_layer = max_per_layer};
    struct program_fixture f;
    struct pareto p;
    struct err err = {0};
    clock_t cpu = clock();
    int64_t t0 = clock_ns();
    double took, of_one_core;

    program_fixture_init(&f, shape);
    ck_assert_msg(pareto_find(&p, &f.s, &params, &err) == 0, "%s", err.msg);
    took = (double)(clock_ns() - t0) * 1e-9;
    of_one_core = (double)(clock() - cpu) / CLOCKS_PER_SEC;
    printf(
        "%d heads, %d rules a layer at most (0: any): %d plans from %d solves (%d infeasible, %d "
        "open, worst gap %.2e) in %.2f s, %.2f s of one core, %lld pivots\n",
        f.s.n_units, max_per_layer, p.n_plans, p.n_solves, p.n_infeasible, p.n_open, p.worst_gap,
        took, of_one_core, (long long)p.n_pivots);
    fflush(stdout);
    ck_assert_int_ge(p.n_plans, max_per_layer == 1 ? 1 : 2);
    ck_assert_msg(of_one_core < seconds, "%.1f s of one core, must be below %.0f s", of_one_core,
                  seconds);
    for (int i = 0; i < p.n_plans; i++) {
        double total[CHOICE_MAX_VALUES];

        choice_totals(&f.s.problem, p.plans[i].rule, total);
        for (int c = 0; c < f.in.caps.n; c++) {
            ck_assert(p.plans[i].density[c] <= shape->density + 1e-9);
            ck_assert_double_eq_tol(search_program_density(&f.s, c, total), p.plans[i].density[c],
                                    1e-12);
        }
        ck_assert(i == 0 || p.plans[i - 1].score <= p.plans[i].score);
        ck_assert(!max_per_layer || most_rules(&f.s, p.plans[i].rule) <= max_per_layer);
        for (int k = 0; k < p.n_plans; k++) {
            bool worse = k != i;

            for (int l = 0; l < f.in.n_lengths; l++)
                worse &= p.plans[k].loss[l] <= p.plans[i].loss[l];
            ck_assert_msg(!worse, "plan %d is dominated by plan %d", i, k);
        }
    }
    pareto_release(&p);
    program_fixture_release(&f);
}

START_TEST(pareto__keeps_caps_and_nothing_dominated)
{
    struct program_shape shape = shape_of(4, 4, 0.5, 3);

    find(&shape, 0, 0, 600);
    find(&shape, 2, 1e-2, 600);
    find(&shape, 1, 1e-2, 600);
}
END_TEST

/* The project's bounds are 60 s and 15 minutes; one core's time, since the machine may be busy. */
START_TEST(pareto__finds_a_full_set_in_time)
{
    struct program_shape shape = shape_of(32, 32, 0.5, 5);

    find(&shape, 0, 1e-4, 60);
    find(&shape, 2, 1e-2, 900);
}
END_TEST

START_TEST(pareto__minimises_each_length_alone)
{
    struct pareto_params params = {.n_intervals = 4, .gap = 0, .max_nodes = 100000};

    for (int i = 0; i < 10; i++) {
        struct program_shape shape = shape_of(2, 3, 0.5, 40 + (uint64_t)i);
        struct program_fixture f;
        struct pareto p;
        struct err err = {0};

        shape.max_rules = 6;
        program_fixture_init(&f, &shape);
        ck_assert_int_eq(pareto_find(&p, &f.s, &params, &err), 0);
        ck_assert_int_eq(p.n_open, 0);
        for (int l = 0; l < 3; l++) {
            double want = program_exhaust(&f.s, l, f.s.problem.limit, 0) * f.s.loss_scale[l];
            double best = INFINITY;

            for (int k = 0; k < p.n_plans; k++)
                best = fmin(best, p.plans[k].loss[l]);
            ck_assert_double_eq_tol(best, want, 1e-7 * (1 + want));
        }
        pareto_release(&p);
        program_fixture_release(&f);
    }
}
END_TEST

START_TEST(pareto__names_the_cap_that_fails)
{
    struct program_shape shape = shape_of(2, 2, 0.5, 1);
    struct program_fixture f;
    struct search_program s;
    struct err err = {0};

    program_fixture_init(&f, &shape);
    f.in.caps.density[0] = 0.1;
    ck_assert_int_eq(search_program_init(&s, &f.in, &err), ERR_INVALID);
    ck_assert_str_eq(err.msg, "density 0.1000 at 2048 tokens cannot be kept: the smallest rules of "
                              "the grid already take 0.1250, 0.0250 too much");
    program_fixture_release(&f);
}
END_TEST

/* Each cap can be kept alone, by other rules. */
START_TEST(pareto__names_the_caps_that_fail_together)
{
    struct program_shape shape = shape_of(2, 2, 0.5, 1);
    struct pareto_params params = {.n_intervals = 4, .max_nodes = 100};
    struct program_fixture f;
    struct search_program s;
    struct pareto p;
    struct err err = {0};
    struct kv_rule two[2] = {{.kind = KV_RULE_ELASTIC, .alpha = 1024, .beta = 0},
                             {.kind = KV_RULE_ELASTIC, .alpha = 0, .beta = 0.25}};

    program_fixture_init(&f, &shape);
    f.in.rules = two;
    f.in.n_rules = 2;
    f.in.caps.density[0] = 0.3; /* 0.5 or 0.25 */
    f.in.caps.density[3] = 0.1; /* 0.0625 or 0.25 */
    ck_assert_msg(search_program_init(&s, &f.in, &err) == 0, "%s", err.msg);
    ck_assert_int_eq(pareto_find(&p, &s, &params, &err), ERR_INVALID);
    ck_assert_ptr_nonnull(strstr(err.msg, "no rules keep all density caps together"));
    ck_assert_ptr_nonnull(strstr(err.msg, "by 0."));
    search_program_release(&s);
    program_fixture_release(&f);
}
END_TEST

/* The span includes the sink: uniform 0.5 is exactly tight, and 64 tokens too much if it does not.
 */
START_TEST(pareto__counts_the_sink_by_convention)
{
    struct program_shape shape = shape_of(2, 2, 0.5, 1);
    struct kv_rule half = {.kind = KV_RULE_ELASTIC, .alpha = 0, .beta = 0.5};
    struct program_fixture f;
    struct search_program s;
    struct err err = {0};

    program_fixture_init(&f, &shape);
    f.in.rules = &half;
    f.in.n_rules = 1;
    ck_assert_int_eq(search_program_init(&s, &f.in, &err), 0);
    search_program_release(&s);
    f.in.convention = KV_SPAN_EXCLUDES_SINK;
    ck_assert_int_eq(search_program_init(&s, &f.in, &err), ERR_INVALID);
    ck_assert_ptr_nonnull(strstr(err.msg, "0.5312, 0.0312 too much"));
    program_fixture_release(&f);
}
END_TEST

/* Layer 0 was trained with a window of 512: it keeps the last tokens alone, 512 at most. */
START_TEST(search_program__obeys_trained_windows)
{
    struct program_shape shape = shape_of(2, 2, 0.99, 1);
    const int window[2] = {512, KV_WINDOW_ALL};
    struct kv_rule rules[2] = {{.kind = KV_RULE_ELASTIC, .alpha = 256, .beta = 0},
                               {.kind = KV_RULE_ELASTIC, .alpha = 1024, .beta = 0}};
    struct program_fixture f;
    struct search_program s;
    struct err err = {0};
    double hidden = 0;

    program_fixture_init(&f, &shape);
    f.in.rules = rules;
    f.in.n_rules = 2;
    f.in.window = window;
    for (int i = 0; i < 3; i++)
        f.in.sink[i] = f.band[i]; /* any numbers */
    ck_assert_msg(search_program_init(&s, &f.in, &err) == 0, "%s", err.msg);
    ck_assert_double_eq(choice_value(&s.problem.groups[0], 3, 0), 256 / 2048.0);
    ck_assert_double_eq(choice_value(&s.problem.groups[0], 3, 1), 512 / 2048.0);
    ck_assert_double_eq(choice_value(&s.problem.groups[2], 3, 1), 1024 / 2048.0);
    ck_assert_double_eq(choice_value(&s.problem.groups[0], 0, 1), 0); /* hides nothing it saw */
    for (int k = 4; k < 32; k++)
        hidden += 2 * f.band[0][k]; /* beyond 256 tokens, and the sink from there on */
    ck_assert_double_eq_tol(choice_value(&s.problem.groups[0], 0, 0) * s.loss_scale[0], hidden,
                            1e-9 * hidden);
    search_program_release(&s);
    program_fixture_release(&f);
}
END_TEST

START_TEST(rule_grid__has_the_published_rules)
{
    struct rule_grid_params p = {.shortest = 2048, .longest = 8192, .longest_cap = 16384};
    struct kv_rule *rules;
    struct err err = {0};
    int n, n_of_beta[9] = {0};
    static const int want[9] = {8, 8, 7, 6, 5, 5, 4, 3, 2};

    ck_assert_int_eq(rule_grid_make(&rules, &n, &p, &err), 0);
    ck_assert_int_eq(n, 48);
    for (int i = 0; i < n; i++) {
        n_of_beta[(int)(rules[i].beta * 8)]++;
        ck_assert_double_eq(fmod(rules[i].alpha, 1024), 0);
    }
    for (int b = 0; b < 9; b++)
        ck_assert_int_eq(n_of_beta[b], want[b]);
    free(rules);
    p.kind = GRID_PAPER;
    ck_assert_int_eq(rule_grid_make(&rules, &n, &p, &err), 0);
    ck_assert_int_eq(n, 54);
    ck_assert_double_eq(rules[0].alpha, -2048);
    ck_assert_double_eq(rules[5].alpha, 8192);
    free(rules);
}
END_TEST

TEST_SUITE(pareto)
{
    TCase *tc = test_case(suite, "core");

    tcase_set_timeout(tc, 1800);
    tcase_add_test(tc, rule_grid__has_the_published_rules);
    tcase_add_test(tc, pareto__keeps_caps_and_nothing_dominated);
    tcase_add_test(tc, pareto__minimises_each_length_alone);
    tcase_add_test(tc, pareto__names_the_cap_that_fails);
    tcase_add_test(tc, pareto__names_the_caps_that_fail_together);
    tcase_add_test(tc, pareto__counts_the_sink_by_convention);
    tcase_add_test(tc, search_program__obeys_trained_windows);
    tcase_add_test(tc, pareto__finds_a_full_set_in_time);
}
