/*
 * program_fixture - made-up influence, and the answer by trying everything. See
 * program_fixture.h.
 */
#include "tests/plan_search/program_fixture.h"

#include "base/err.h"
#include "base/rng.h"
#include "engine/plan/search/rule_grid.h"
#include "tests/lib/test.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

static double *make_band(int n_units, int length_idx, int length, uint64_t seed)
{
    int n = (length + KV_TILE - 1) / KV_TILE;
    double *band = calloc((size_t)n_units * (size_t)n, sizeof(*band));

    ck_assert_ptr_nonnull(band);
    for (int u = 0; u < n_units; u++) {
        double weight = exp(4.0 * rng_f32(seed, 1, (uint64_t)u));
        double reach = 64.0 * exp(7.0 * rng_f32(seed, 2, (uint64_t)u));
        double flat = rng_f32(seed, 3, (uint64_t)u) < 0.2f ? 0.1 : 0.001;

        for (int k = 0; k < n; k++) {
            double noise =
                0.5 + rng_f32(seed, 16 + (uint32_t)length_idx, (uint64_t)u * 4096 + (uint64_t)k);

            band[(int64_t)u * n + k] = weight * noise * (exp(-64.0 * k / reach) + flat) * (n - k);
        }
    }
    return band;
}

/* Keeps n random rules, the smallest always among them so that low densities stay possible. */
static int thin_out(struct kv_rule *rules, int n_rules, int n, uint64_t seed)
{
    for (int i = 0; i < n_rules; i++) {
        struct kv_rule t = rules[i];

        if (t.alpha != 0 || t.beta != 0.125)
            continue;
        rules[i] = rules[0];
        rules[0] = t;
    }
    for (int i = 1; i < n && i < n_rules; i++) {
        int k = i + (int)(rng_u64(seed, 9, (uint64_t)i) % (uint64_t)(n_rules - i));
        struct kv_rule t = rules[i];

        rules[i] = rules[k];
        rules[k] = t;
    }
    return n < n_rules ? n : n_rules;
}

void program_fixture_init(struct program_fixture *f, const struct program_shape *shape)
{
    struct rule_grid_params grid = {.kind = GRID_EIGHTH, .shortest = shape->length[0]};
    struct err err = {0};

    memset(f, 0, sizeof(*f));
    f->in = (struct search_input){.n_layers = shape->n_layers,
                                  .units_per_layer = shape->units_per_layer,
                                  .n_lengths = shape->n_lengths};
    f->in.caps.n = shape->n_caps;
    for (int i = 0; i < shape->n_lengths; i++) {
        f->in.length[i] = shape->length[i];
        f->band[i] =
            make_band(shape->n_layers * shape->units_per_layer, i, shape->length[i], shape->seed);
        f->in.band[i] = f->band[i];
        grid.longest = shape->length[i];
    }
    for (int i = 0; i < shape->n_caps; i++) {
        f->in.caps.length[i] = shape->cap_length[i];
        f->in.caps.density[i] = shape->density;
        grid.longest_cap = shape->cap_length[i];
    }
    ck_assert_msg(rule_grid_make(&f->rules, &f->in.n_rules, &grid, &err) == 0, "%s", err.msg);
    if (shape->max_rules)
        f->in.n_rules = thin_out(f->rules, f->in.n_rules, shape->max_rules, shape->seed);
    f->in.rules = f->rules;
    ck_assert_msg(search_program_init(&f->s, &f->in, &err) == 0, "%s", err.msg);
}

void program_fixture_release(struct program_fixture *f)
{
    search_program_release(&f->s);
    for (int i = 0; i < SEARCH_MAX_LENGTHS; i++)
        free(f->band[i]);
    free(f->rules);
}

static bool layers_ok(const struct search_program *s, const int *option, int max_per_layer)
{
    for (int layer = 0; layer < s->in.n_layers && max_per_layer; layer++) {
        const int *o = option + layer * s->in.units_per_layer;
        int n = 0;

        for (int u = 0; u < s->in.units_per_layer; u++) {
            bool seen = false;

            for (int k = 0; k < u; k++)
                seen |= o[k] == o[u];
            n += !seen;
        }
        if (n > max_per_layer)
            return false;
    }
    return true;
}

double program_exhaust(const struct search_program *s, int objective, const double *limit,
                       int max_per_layer)
{
    double best = INFINITY;
    int option[16] = {0}, at = 0;

    ck_assert_int_le(s->n_units, 16);
    while (at >= 0) {
        double total[CHOICE_MAX_VALUES];
        bool ok = true;

        choice_totals(&s->problem, option, total);
        for (int v = 0; v < s->problem.n_values; v++)
            ok &= v == objective || total[v] <= limit[v] + CHOICE_EPS;
        if (ok && total[objective] < best && layers_ok(s, option, max_per_layer))
            best = total[objective];
        for (at = s->n_units - 1; at >= 0 && ++option[at] == s->in.n_rules; at--)
            option[at] = 0;
    }
    return best;
}
