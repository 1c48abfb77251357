/*
 * pareto - payoff table, epsilon constraints, what is left undominated. See pareto.h.
 */
#include "engine/plan/search/pareto.h"

#include "base/check.h"
#include "base/err.h"
#include "engine/plan/search/choice_cbc.h"
#include "engine/plan/search/layer_choice.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

#define HOLD 1e-9 /* by how much a loss that was reached may be missed when it is held */

struct finder {
    struct search_program *s;
    const struct pareto_params *params;
    struct pareto *out;
    struct choice_lp lp;
    struct layer_choice layers;
    struct choice_result result;
    int n_alloc, n_total; /* plans; solves to come in all */
};

static int solve(struct finder *f, int objective, const double *limit, struct err *err)
{
    struct choice_problem *p = &f->s->problem;
    struct choice_params params = {.gap = f->params->gap, .max_nodes = f->params->max_nodes};
    struct choice_cbc_params cbc = {.gap = f->params->gap,
                                    .max_seconds = f->params->cbc_seconds,
                                    .layer_groups = f->s->in.units_per_layer,
                                    .max_per_layer = f->params->max_rules_per_layer};
    double gap;
    int rc;

    if (f->params->progress &&
        !f->params->progress(f->params->progress_arg, f->out->n_solves, f->n_total))
        return err_set(err, ERR_CLOSED, "interrupted");
    memcpy(p->limit, limit, sizeof(*limit) * (size_t)p->n_values);
    p->objective = objective;
    if (f->params->max_rules_per_layer > 0)
        rc = layer_choice_solve(&f->result, &f->layers, &f->lp, objective, limit, &params, err);
    else
        rc = choice_solve(&f->result, p, &f->lp, &params, err);
    if (rc < 0)
        return rc;
    f->out->n_solves++;
    f->out->n_nodes += f->result.n_nodes;
    if (!f->result.proven && f->params->use_cbc && choice_cbc_is_built()) {
        rc = choice_cbc_solve(&f->result, p, &cbc, err);
        if (rc < 0)
            return rc;
    }
    f->out->n_infeasible += !f->result.feasible;
    f->out->n_open += !f->result.proven;
    if (!f->result.feasible)
        return 0;
    gap = f->result.total[objective] - f->result.bound;
    gap /= fmax(f->result.total[objective], 1e-12);
    f->out->worst_gap = fmax(f->out->worst_gap, gap);
    return 0;
}

/* Adds the result as a plan, as it is. */
static int keep(struct finder *f, struct err *err)
{
    const struct search_program *s = f->s;
    struct pareto_plan *plan;

    if (f->out->n_plans == f->n_alloc) {
        int n = f->n_alloc ? 2 * f->n_alloc : 32;

        plan = realloc(f->out->plans, sizeof(*plan) * (size_t)n);
        if (!plan)
            return err_set(err, ERR_NO_ROOM, "no memory for %d plans", n);
        f->out->plans = plan;
        f->n_alloc = n;
    }
    plan = &f->out->plans[f->out->n_plans];
    memset(plan, 0, sizeof(*plan));
    plan->rule = malloc(sizeof(*plan->rule) * (size_t)s->n_units);
    if (!plan->rule)
        return err_set(err, ERR_NO_ROOM, "no memory for a plan of %d heads", s->n_units);
    f->out->n_plans++;
    memcpy(plan->rule, f->result.option, sizeof(*plan->rule) * (size_t)s->n_units);
    for (int i = 0; i < s->in.n_lengths; i++) {
        plan->loss[i] = search_program_loss(s, i, f->result.total);
        plan->score += f->result.total[i] / s->in.n_lengths;
    }
    for (int c = 0; c < s->in.caps.n; c++)
        plan->density[c] = search_program_density(s, c, f->result.total);
    return 0;
}

struct range {
    double least, most;
};

/* The payoff table's ranges, in scaled losses. */
static int payoff(struct finder *f, const double *caps, struct range *range, struct err *err)
{
    int n = f->s->in.n_lengths, n_values = f->s->problem.n_values;

    for (int i = 0; i < n; i++)
        range[i] = (struct range){.least = INFINITY, .most = -INFINITY};
    for (int first = 0; first < n; first++) {
        double limit[CHOICE_MAX_VALUES];

        memcpy(limit, caps, sizeof(*limit) * (size_t)n_values);
        for (int k = 0; k < n; k++) {
            int objective = (first + k) % n;
            int rc = solve(f, objective, limit, err);

            if (rc < 0)
                return rc;
            if (!f->result.feasible && k == 0)
                return search_program_infeasible(f->s, f->result.excess, err);
            if (!f->result.feasible)
                break; /* by rounding only: what was held is as good as it gets */
            limit[objective] = f->result.total[objective] * (1 + HOLD) + HOLD;
            /* Only the last solve of a row is lexicographically least; all are candidates. */
            rc = keep(f, err);
            if (rc < 0)
                return rc;
        }
        for (int i = 0; i < n; i++) {
            range[i].least = fmin(range[i].least, f->result.total[i]);
            range[i].most = fmax(range[i].most, f->result.total[i]);
        }
    }
    return 0;
}

/* One solve for every primary loss and every combination of the others' intervals. */
static int epsilon(struct finder *f, const double *caps, const struct range *range, struct err *err)
{
    int n = f->s->in.n_lengths, m = f->params->n_intervals, n_combos = 1;

    for (int i = 1; i < n; i++)
        n_combos *= m;
    for (int primary = 0; primary < n && n > 1; primary++) {
        for (int combo = 0; combo < n_combos; combo++) {
            double limit[CHOICE_MAX_VALUES];
            int rest = combo, rc;

            memcpy(limit, caps, sizeof(*limit) * (size_t)f->s->problem.n_values);
            for (int i = 0; i < n; i++) {
                if (i == primary)
                    continue;
                limit[i] = range[i].least + (range[i].most - range[i].least) * (rest % m + 1) / m;
                rest /= m;
            }
            rc = solve(f, primary, limit, err);
            if (rc == 0 && f->result.feasible)
                rc = keep(f, err);
            if (rc < 0)
                return rc;
        }
    }
    return 0;
}

/* Is b no better than a at any length? */
static bool loses(const struct pareto_plan *b, const struct pareto_plan *a, int n, bool a_first)
{
    bool equal = true;

    for (int i = 0; i < n; i++) {
        if (a->loss[i] > b->loss[i])
            return false;
        equal &= a->loss[i] == b->loss[i];
    }
    return !equal || a_first;
}

static int compare_plans(const void *a, const void *b)
{
    const struct pareto_plan *x = a, *y = b;

    return x->score < y->score ? -1 : x->score > y->score;
}

static void drop_dominated(struct finder *f)
{
    struct pareto *out = f->out;
    int n = 0;

    for (int b = 0; b < out->n_plans; b++) {
        bool drop = false;

        for (int a = 0; a < out->n_plans && !drop; a++)
            drop = a != b && out->plans[a].rule &&
                   loses(&out->plans[b], &out->plans[a], f->s->in.n_lengths, a < b);
        if (drop) {
            free(out->plans[b].rule);
            out->plans[b].rule = NULL;
        }
    }
    for (int b = 0; b < out->n_plans; b++)
        if (out->plans[b].rule)
            out->plans[n++] = out->plans[b];
    out->n_plans = n;
    qsort(out->plans, (size_t)n, sizeof(*out->plans), compare_plans);
}

int pareto_find(struct pareto *out, struct search_program *s, const struct pareto_params *params,
                struct err *err)
{
    struct finder f = {.s = s, .params = params, .out = out};
    struct range range[SEARCH_MAX_LENGTHS];
    double caps[CHOICE_MAX_VALUES];
    int rc, n_eps = s->in.n_lengths > 1 ? s->in.n_lengths : 0;

    memset(out, 0, sizeof(*out));
    memcpy(caps, s->problem.limit, sizeof(caps));
    for (int i = 1; i < s->in.n_lengths; i++)
        n_eps *= params->n_intervals;
    f.n_total = s->in.n_lengths * s->in.n_lengths + n_eps;
    rc = choice_lp_init(&f.lp, &s->problem, err);
    if (rc == 0)
        rc = choice_result_init(&f.result, &s->problem, err);
    search_program_ban(s, params->max_rules_per_layer == 0);
    if (rc == 0 && params->max_rules_per_layer > 0)
        rc = layer_choice_init(&f.layers, s, params->max_rules_per_layer, err);
    if (rc == 0)
        rc = payoff(&f, caps, range, err);
    if (rc == 0)
        rc = epsilon(&f, caps, range, err);
    if (rc == 0)
        drop_dominated(&f);
    out->n_pivots = f.lp.n_pivots + f.layers.lp.n_pivots;
    memcpy(s->problem.limit, caps, sizeof(caps));
    search_program_ban(s, false);
    layer_choice_release(&f.layers);
    choice_lp_release(&f.lp);
    choice_result_release(&f.result);
    if (rc < 0)
        pareto_release(out);
    return rc;
}

void pareto_release(struct pareto *p)
{
    if (!p)
        return;
    for (int i = 0; i < p->n_plans; i++)
        free(p->plans[i].rule);
    free(p->plans);
    memset(p, 0, sizeof(*p));
}
