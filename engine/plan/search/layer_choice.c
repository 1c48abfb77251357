/*
 * layer_choice - at most two rules in a layer. See layer_choice.h.
 */
#include "engine/plan/search/layer_choice.h"

#include "base/check.h"
#include "base/err.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

#define MAX_ROUNDS   2000  /* of new assignments in one relaxation */
#define MAX_LISTED   50000 /* assignments listed to prove that nothing is better */
#define NEW_PAYS     1e-11
#define KEEP_OPTIONS 4000 /* a layer; older ones are dropped between solves beyond it */

static int grow(struct layer_choice *lc, int layer, struct err *err)
{
    struct choice_group *g = &lc->problem.groups[layer];
    int n_values = lc->problem.n_values, n_units = lc->s->in.units_per_layer;
    int n_alloc = g->n_alloc ? g->n_alloc * 2 : 64;
    double *value = calloc((size_t)n_values * (size_t)n_alloc, sizeof(*value));
    unsigned char *banned = calloc((size_t)n_alloc, 1);
    int16_t *pick = realloc(lc->pick[layer], sizeof(*pick) * (size_t)n_alloc * (size_t)n_units);

    if (pick)
        lc->pick[layer] = pick;
    if (!value || !banned || !pick) {
        free(value);
        free(banned);
        return err_set(err, ERR_NO_ROOM, "no memory for %d assignments of a layer", n_alloc);
    }
    for (int v = 0; v < n_values && g->n_options > 0; v++)
        memcpy(value + (size_t)v * n_alloc, g->value + (size_t)v * g->n_alloc,
               sizeof(*value) * (size_t)g->n_options);
    if (g->n_options > 0)
        memcpy(banned, g->banned, (size_t)g->n_options);
    free(g->value);
    free(g->banned);
    g->value = value;
    g->banned = banned;
    g->n_alloc = n_alloc;
    return 0;
}

/* Adds the assignment pick [units_per_layer] of a layer. */
static int add_option(struct layer_choice *lc, int layer, const int16_t *pick, struct err *err)
{
    struct choice_group *g = &lc->problem.groups[layer];
    int n_units = lc->s->in.units_per_layer;
    const struct choice_group *unit = &lc->s->problem.groups[layer * n_units];
    int rc = g->n_options == g->n_alloc ? grow(lc, layer, err) : 0;

    if (rc < 0)
        return rc;
    for (int v = 0; v < lc->problem.n_values; v++) {
        double sum = 0;

        for (int u = 0; u < n_units; u++)
            sum += choice_value(&unit[u], v, pick[u]);
        g->value[(int64_t)v * g->n_alloc + g->n_options] = sum;
    }
    memcpy(lc->pick[layer] + (int64_t)g->n_options * n_units, pick,
           sizeof(*pick) * (size_t)n_units);
    g->banned[g->n_options++] = 0;
    return 0;
}

/* A rule that another one beats in every unit of the layer need not be tried. */
static void find_useful(struct layer_choice *lc, int layer)
{
    const struct search_input *in = &lc->s->in;
    const struct choice_group *unit = &lc->s->problem.groups[layer * in->units_per_layer];
    unsigned char *useful = lc->useful + (int64_t)layer * in->n_rules;

    memset(useful, 1, (size_t)in->n_rules);
    for (int b = 0; b < in->n_rules; b++) {
        for (int a = 0; a < in->n_rules && useful[b]; a++) {
            bool beats = a != b && useful[a], equal = true;

            for (int u = 0; u < in->units_per_layer && beats; u++) {
                for (int v = 0; v < lc->problem.n_values && beats; v++) {
                    double x = choice_value(&unit[u], v, a), y = choice_value(&unit[u], v, b);

                    beats = x <= y;
                    equal &= x == y;
                }
            }
            if (beats && (!equal || a < b))
                useful[b] = 0;
        }
    }
}

/* One rule for the whole layer, once for every rule: what the relaxation starts from. */
static int add_first(struct layer_choice *lc, int layer, struct err *err)
{
    int n_units = lc->s->in.units_per_layer, rc = 0;
    int16_t *pick = calloc((size_t)n_units, sizeof(*pick));

    if (!pick)
        return err_set(err, ERR_NO_ROOM, "no memory for a layer of %d heads", n_units);
    for (int r = 0; r < lc->s->in.n_rules && rc == 0; r++) {
        if (!lc->useful[(int64_t)layer * lc->s->in.n_rules + r])
            continue;
        for (int u = 0; u < n_units; u++)
            pick[u] = (int16_t)r;
        rc = add_option(lc, layer, pick, err);
    }
    free(pick);
    return rc;
}

int layer_choice_init(struct layer_choice *lc, const struct search_program *s, int max_rules,
                      struct err *err)
{
    const struct search_input *in = &s->in;
    int rc = 0;

    memset(lc, 0, sizeof(*lc));
    CHECK(max_rules == 1 || max_rules == 2);
    lc->s = s;
    lc->max_rules = max_rules;
    lc->problem.n_groups = in->n_layers;
    lc->problem.n_values = s->problem.n_values;
    lc->problem.groups = calloc((size_t)in->n_layers, sizeof(*lc->problem.groups));
    lc->pick = calloc((size_t)in->n_layers, sizeof(*lc->pick));
    lc->useful = calloc((size_t)in->n_layers * in->n_rules, 1);
    lc->priced = calloc((size_t)in->n_rules * in->units_per_layer, sizeof(*lc->priced));
    if (!lc->problem.groups || !lc->pick || !lc->useful || !lc->priced)
        rc = err_set(err, ERR_NO_ROOM, "no memory for a program of %d layers", in->n_layers);
    for (int layer = 0; layer < in->n_layers && rc == 0; layer++) {
        find_useful(lc, layer);
        rc = add_first(lc, layer, err);
    }
    if (rc == 0)
        rc = choice_lp_init(&lc->lp, &lc->problem, err);
    if (rc < 0)
        layer_choice_release(lc);
    return rc;
}

void layer_choice_release(struct layer_choice *lc)
{
    if (!lc)
        return;
    for (int i = 0; lc->problem.groups && i < lc->problem.n_groups; i++) {
        free(lc->problem.groups[i].value);
        free(lc->problem.groups[i].banned);
    }
    for (int i = 0; lc->pick && i < lc->problem.n_groups; i++)
        free(lc->pick[i]);
    free(lc->problem.groups);
    free(lc->pick);
    free(lc->useful);
    free(lc->priced);
    choice_lp_release(&lc->lp);
    memset(lc, 0, sizeof(*lc));
}

/* Every rule's cost in every unit of the layer at the present prices: lc->priced. */
static void price_units(struct layer_choice *lc, int layer, bool with_cost)
{
    const struct search_input *in = &lc->s->in;
    const struct choice_group *unit = &lc->s->problem.groups[layer * in->units_per_layer];

    for (int u = 0; u < in->units_per_layer; u++) {
        for (int r = 0; r < in->n_rules; r++) {
            double c = with_cost ? choice_value(&unit[u], lc->problem.objective, r) : 0.0;

            for (int i = 0; i < lc->lp.n_rows; i++)
                c += lc->lp.price[i] * choice_value(&unit[u], lc->lp.row_value[i], r);
            lc->priced[(int64_t)r * in->units_per_layer + u] = c;
        }
    }
}

static double pair_cost(const struct layer_choice *lc, int a, int b)
{
    int n = lc->s->in.units_per_layer;
    const double *x = lc->priced + (int64_t)a * n, *y = lc->priced + (int64_t)b * n;
    double sum = 0;

    for (int u = 0; u < n; u++)
        sum += x[u] < y[u] ? x[u] : y[u];
    return sum;
}

/* The best pair of rules for a layer at lc->priced; with one rule allowed, a == b. */
static double best_pair(const struct layer_choice *lc, int layer, int *best_a, int *best_b)
{
    const unsigned char *useful = lc->useful + (int64_t)layer * lc->s->in.n_rules;
    double best = INFINITY;

    for (int a = 0; a < lc->s->in.n_rules; a++) {
        int end = lc->max_rules == 1 ? a + 1 : lc->s->in.n_rules;

        for (int b = a; b < end && useful[a]; b++) {
            double c = useful[b] ? pair_cost(lc, a, b) : INFINITY;

            if (c < best) {
                best = c;
                *best_a = a;
                *best_b = b;
            }
        }
    }
    return best;
}

/* What the layer's cheapest known assignment costs at the present prices. */
static double cheapest_known(const struct layer_choice *lc, int layer, bool with_cost)
{
    const struct choice_group *g = &lc->problem.groups[layer];
    double best = INFINITY;

    for (int o = 0; o < g->n_options; o++) {
        double c = with_cost ? choice_value(g, lc->problem.objective, o) : 0.0;

        for (int i = 0; i < lc->lp.n_rows; i++)
            c += lc->lp.price[i] * choice_value(g, lc->lp.row_value[i], o);
        best = c < best ? c : best;
    }
    return best;
}

/* Adds the best new assignment of every layer that has one. Returns how many, or an error. */
static int add_paying(struct layer_choice *lc, bool with_cost, struct err *err)
{
    int n_units = lc->s->in.units_per_layer, n_new = 0, rc = 0;
    int16_t *pick = calloc((size_t)n_units, sizeof(*pick));

    if (!pick)
        return err_set(err, ERR_NO_ROOM, "no memory for a layer of %d heads", n_units);
    for (int layer = 0; layer < lc->problem.n_groups && rc == 0; layer++) {
        double known = cheapest_known(lc, layer, with_cost), best;
        int a = 0, b = 0;

        price_units(lc, layer, with_cost);
        best = best_pair(lc, layer, &a, &b);
        if (best > known - NEW_PAYS * (1 + fabs(known)))
            continue;
        for (int u = 0; u < n_units; u++)
            pick[u] = (int16_t)(lc->priced[(int64_t)a * n_units + u] <=
                                        lc->priced[(int64_t)b * n_units + u]
                                    ? a
                                    : b);
        rc = add_option(lc, layer, pick, err);
        n_new++;
    }
    free(pick);
    return rc < 0 ? rc : n_new;
}

/* The relaxation over all assignments. Returns 1 solved, 0 infeasible, or an error. */
static int relax(struct layer_choice *lc, double *excess, struct err *err)
{
    for (int round = 0; round < MAX_ROUNDS; round++) {
        bool feasible = choice_lp_solve(&lc->lp, &lc->problem, excess);
        int n = add_paying(lc, feasible, err);

        if (n < 0)
            return n;
        if (n == 0)
            return feasible;
    }
    return choice_lp_solve(&lc->lp, &lc->problem, excess);
}

/* Lagrange over all assignments, whatever the relaxation reached. */
static double full_bound(struct layer_choice *lc)
{
    double v = 0;
    int a, b;

    for (int i = 0; i < lc->lp.n_rows; i++)
        v -= lc->lp.price[i] * lc->problem.limit[lc->lp.row_value[i]];
    for (int layer = 0; layer < lc->problem.n_groups; layer++) {
        price_units(lc, layer, true);
        v += best_pair(lc, layer, &a, &b);
    }
    return v;
}

/* All assignments by the pair a, b that cost at most room more than the pair's best. */
struct listing {
    struct layer_choice *lc;
    int layer, a, b, n;
    int16_t *pick;
    bool full;
    struct err *err;
    int rc;
};

static void list_units(struct listing *l, int u, double room)
{
    int n_units = l->lc->s->in.units_per_layer;
    double x, y;

    if (l->rc < 0 || l->full)
        return;
    if (u == n_units) {
        bool has_a = false, has_b = false;

        for (int i = 0; i < n_units; i++) {
            has_a |= l->pick[i] == l->a;
            has_b |= l->pick[i] == l->b;
        }
        if (!has_a || !has_b) /* with one rule alone: listed as the pair of it and itself */
            return;
        l->full = ++l->n > MAX_LISTED;
        if (!l->full)
            l->rc = add_option(l->lc, l->layer, l->pick, l->err);
        return;
    }
    x = l->lc->priced[(int64_t)l->a * n_units + u];
    y = l->lc->priced[(int64_t)l->b * n_units + u];
    if (x - fmin(x, y) <= room) {
        l->pick[u] = (int16_t)l->a;
        list_units(l, u + 1, room - (x - fmin(x, y)));
    }
    if (l->a != l->b && y - fmin(x, y) <= room) {
        l->pick[u] = (int16_t)l->b;
        list_units(l, u + 1, room - (y - fmin(x, y)));
    }
}

/* Adds all that could be part of something better by room. 1: all of it, 0: too much of it. */
static int list_all(struct layer_choice *lc, double room, struct err *err)
{
    struct listing l = {.lc = lc, .err = err};

    l.pick = calloc((size_t)lc->s->in.units_per_layer, sizeof(*l.pick));
    if (!l.pick)
        return err_set(err, ERR_NO_ROOM, "no memory to list assignments");
    for (l.layer = 0; l.layer < lc->problem.n_groups && !l.full && l.rc == 0; l.layer++) {
        const unsigned char *useful = lc->useful + (int64_t)l.layer * lc->s->in.n_rules;
        double best;

        price_units(lc, l.layer, true);
        best = best_pair(lc, l.layer, &l.a, &l.b);
        for (l.a = 0; l.a < lc->s->in.n_rules; l.a++) {
            int end = lc->max_rules == 1 ? l.a + 1 : lc->s->in.n_rules;

            for (l.b = l.a; l.b < end && useful[l.a]; l.b++) {
                double over = useful[l.b] ? pair_cost(lc, l.a, l.b) - best : INFINITY;

                if (over <= room)
                    list_units(&l, 0, room - over);
            }
        }
    }
    free(l.pick);
    return l.rc < 0 ? l.rc : !l.full;
}

/* From assignments of layers to options of units. */
static void unpack(struct choice_result *out, const struct layer_choice *lc,
                   const struct choice_result *layers)
{
    int n_units = lc->s->in.units_per_layer;

    for (int layer = 0; layer < lc->problem.n_groups; layer++)
        for (int u = 0; u < n_units; u++)
            out->option[layer * n_units + u] =
                lc->pick[layer][(int64_t)layers->option[layer] * n_units + u];
    choice_totals(&lc->s->problem, out->option, out->total);
}

/* With each layer's two rules fixed, units choose among them anew. */
static int polish(struct choice_result *out, struct layer_choice *lc, struct choice_lp *unit_lp,
                  const struct choice_problem *units, const struct choice_params *params,
                  struct err *err)
{
    int n_units = lc->s->in.units_per_layer, n_rules = lc->s->in.n_rules;
    struct choice_result better;
    int rc = choice_result_init(&better, units, err);

    if (rc < 0)
        return rc;
    for (int layer = 0; layer < lc->problem.n_groups; layer++) {
        int a = out->option[layer * n_units], b = a;

        for (int u = 1; u < n_units; u++)
            b = out->option[layer * n_units + u] != a ? out->option[layer * n_units + u] : b;
        for (int u = 0; u < n_units; u++) {
            unsigned char *banned = units->groups[layer * n_units + u].banned;

            memset(banned, 1, (size_t)n_rules);
            banned[a] = banned[b] = 0;
        }
    }
    rc = choice_solve(&better, units, unit_lp, params, err);
    for (int u = 0; u < units->n_groups; u++)
        memset(units->groups[u].banned, 0, (size_t)n_rules);
    if (rc == 0 && better.feasible &&
        better.total[units->objective] < out->total[units->objective]) {
        memcpy(out->option, better.option, sizeof(int) * (size_t)units->n_groups);
        memcpy(out->total, better.total, sizeof(better.total));
    }
    choice_result_release(&better);
    return rc;
}

/* Old assignments that nothing uses any more make every later solve slower. */
static void forget(struct layer_choice *lc)
{
    for (int layer = 0; layer < lc->problem.n_groups; layer++) {
        struct choice_group *g = &lc->problem.groups[layer];

        if (g->n_options > KEEP_OPTIONS) {
            g->n_options = KEEP_OPTIONS;
            lc->lp.key[layer] = 0;
        }
    }
}

int layer_choice_solve(struct choice_result *out, struct layer_choice *lc,
                       struct choice_lp *unit_lp, int objective, const double *limit,
                       const struct choice_params *params, struct err *err)
{
    struct choice_problem units = lc->s->problem;
    struct choice_result layers = {0};
    double bound, gap;
    int rc;

    forget(lc);
    lc->problem.objective = units.objective = objective;
    memcpy(lc->problem.limit, limit, sizeof(*limit) * (size_t)units.n_values);
    memcpy(units.limit, limit, sizeof(*limit) * (size_t)units.n_values);
    out->feasible = out->proven = false;
    rc = choice_result_init(&layers, &lc->problem, err);
    if (rc < 0)
        return rc;
    rc = relax(lc, out->excess, err);
    if (rc <= 0) {
        out->proven = rc == 0;
        out->bound = INFINITY;
        goto out;
    }
    bound = full_bound(lc);
    gap = fmax(params->gap, 0.0) * fabs(bound) + NEW_PAYS * (1 + fabs(bound));
    rc = choice_solve(&layers, &lc->problem, &lc->lp, params, err);
    if (rc < 0)
        goto out;
    out->n_nodes = layers.n_nodes;
    out->bound = bound;
    if (layers.feasible) {
        unpack(out, lc, &layers);
        out->feasible = true;
        rc = polish(out, lc, unit_lp, &units, params, err);
        if (rc < 0)
            goto out;
    }
    out->proven = out->feasible && out->total[objective] - bound <= gap;
    if (out->proven || params->max_nodes == 0)
        goto out;
    /* List what could still be better, and search among that. */
    rc = relax(lc, out->excess, err);
    if (rc < 0)
        goto out;
    rc = list_all(lc, out->feasible ? out->total[objective] - bound : INFINITY, err);
    if (rc <= 0)
        goto out;
    rc = choice_solve(&layers, &lc->problem, &lc->lp, params, err);
    if (rc < 0)
        goto out;
    out->n_nodes += layers.n_nodes;
    out->proven = layers.proven;
    if (layers.feasible && (!out->feasible || layers.total[objective] < out->total[objective])) {
        unpack(out, lc, &layers);
        out->feasible = true;
    }
    if (out->proven && out->feasible)
        out->bound = fmax(bound, out->total[objective] - gap);
out:
    choice_result_release(&layers);
    return rc < 0 ? rc : 0;
}
