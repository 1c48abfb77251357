/*
 * rule_grid - the candidate rules. See rule_grid.h.
 */
#include "engine/plan/search/rule_grid.h"

#include "base/err.h"

#include <math.h>
#include <stdlib.h>

#define N_BETAS 9 /* 0, 1/8 .. 1 */

struct axis {
    double at[RULE_GRID_MAX];
    int n;
};

static int fill_range(struct axis *a, double from, double to, double step, struct err *err)
{
    a->n = 0;
    for (double v = from; v <= to + step * 1e-9; v += step) {
        if (a->n == RULE_GRID_MAX)
            return err_set(err, ERR_INVALID, "grid: alphas in steps of %g are more than %d", step,
                           RULE_GRID_MAX);
        a->at[a->n++] = v;
    }
    return 0;
}

static int fill_alphas(struct axis *a, const struct rule_grid_params *p, struct err *err)
{
    double step = p->step > 0 ? p->step : p->longest / 8.0;

    switch (p->kind) {
    case GRID_EIGHTH:
        return fill_range(a, -floor(p->shortest / step) * step, p->longest, step, err);
    case GRID_PAPER:
        return fill_range(a, -p->longest / 4.0, p->longest, p->longest / 4.0, err);
    case GRID_LIST:
        break;
    }
    for (a->n = 0; a->n < p->n_alphas && a->n < RULE_GRID_MAX; a->n++)
        a->at[a->n] = p->alphas[a->n];
    return 0;
}

static void fill_betas(struct axis *b, const struct rule_grid_params *p)
{
    for (b->n = 0; p->kind != GRID_LIST && b->n < N_BETAS; b->n++)
        b->at[b->n] = b->n / (double)(N_BETAS - 1);
    for (; p->kind == GRID_LIST && b->n < p->n_betas && b->n < RULE_GRID_MAX; b->n++)
        b->at[b->n] = p->betas[b->n];
}

static bool is_kept(const struct rule_grid_params *p, double alpha, double beta)
{
    if (p->kind != GRID_EIGHTH)
        return true;
    return alpha + beta * p->longest <= p->longest &&
           alpha + beta * p->longest_cap <= p->longest_cap && alpha + beta * p->shortest > 0;
}

int rule_grid_make(struct kv_rule **rules, int *n_rules, const struct rule_grid_params *params,
                   struct err *err)
{
    struct axis *axes = calloc(2, sizeof(*axes)); /* alphas, betas */
    struct kv_rule *out = calloc(RULE_GRID_MAX, sizeof(*out));
    int n = 0, rc = 0;

    if (!axes || !out) {
        rc = err_set(err, ERR_NO_ROOM, "grid: out of memory");
        goto out;
    }
    rc = fill_alphas(&axes[0], params, err);
    if (rc < 0)
        goto out;
    fill_betas(&axes[1], params);
    for (int b = 0; b < axes[1].n; b++) {
        for (int a = 0; a < axes[0].n; a++) {
            if (!is_kept(params, axes[0].at[a], axes[1].at[b]))
                continue;
            if (n == RULE_GRID_MAX) {
                rc =
                    err_set(err, ERR_INVALID, "grid: %d alphas and %d betas are more than %d pairs",
                            axes[0].n, axes[1].n, RULE_GRID_MAX);
                goto out;
            }
            out[n++] = (struct kv_rule){
                .kind = KV_RULE_ELASTIC, .alpha = axes[0].at[a], .beta = axes[1].at[b]};
        }
    }
    if (n == 0) {
        rc = err_set(err, ERR_INVALID, "grid: no pair of alpha and beta is left");
        goto out;
    }
    *rules = out;
    *n_rules = n;
    out = NULL;
out:
    free(axes);
    free(out);
    return rc;
}
