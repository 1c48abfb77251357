/*
 * choice_cbc - multiple-choice knapsacks for CBC. See choice_cbc.h.
 */
#include "engine/plan/search/choice_cbc.h"

#include "base/err.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

#ifdef SPAND_CBC

#include <Cbc_C_Interface.h>

/* Columns are the options, group by group, then one indicator for each layer and option. */
struct build {
    const struct choice_problem *p;
    const struct choice_cbc_params *params;
    int n_options, n_indicators, n_layers;
    int *first; /* [n_groups + 1] column of a group's first option */
    int *index;
    double *coef; /* [n_options + n_indicators] one row */
};

static int build_init(struct build *b, struct err *err)
{
    const struct choice_problem *p = b->p;
    size_t n;

    b->first = calloc((size_t)p->n_groups + 1, sizeof(*b->first));
    for (int g = 0; b->first && g < p->n_groups; g++)
        b->first[g + 1] = b->first[g] + p->groups[g].n_options;
    b->n_options = b->first ? b->first[p->n_groups] : 0;
    if (b->params->max_per_layer > 0) {
        b->n_layers = p->n_groups / b->params->layer_groups;
        b->n_indicators = b->n_layers * p->groups[0].n_options;
    }
    n = (size_t)(b->n_options + b->n_indicators);
    b->index = calloc(n, sizeof(*b->index));
    b->coef = calloc(n, sizeof(*b->coef));
    if (!b->first || !b->index || !b->coef)
        return err_set(err, ERR_NO_ROOM, "cbc: no memory for %zu columns", n);
    return 0;
}

static void add_columns(Cbc_Model *m, const struct build *b)
{
    for (int g = 0; g < b->p->n_groups; g++) {
        const struct choice_group *group = &b->p->groups[g];

        for (int o = 0; o < group->n_options; o++)
            Cbc_addCol(m, "x", 0.0, group->banned[o] ? 0.0 : 1.0,
                       choice_value(group, b->p->objective, o), 1, 0, NULL, NULL);
    }
    for (int i = 0; i < b->n_indicators; i++)
        Cbc_addCol(m, "z", 0.0, 1.0, 0.0, 1, 0, NULL, NULL);
}

static void add_group_rows(Cbc_Model *m, struct build *b)
{
    for (int g = 0; g < b->p->n_groups; g++) {
        int n = b->p->groups[g].n_options;

        for (int o = 0; o < n; o++) {
            b->index[o] = b->first[g] + o;
            b->coef[o] = 1.0;
        }
        Cbc_addRow(m, "one", n, b->index, b->coef, 'E', 1.0);
    }
}

static void add_limit_rows(Cbc_Model *m, struct build *b)
{
    for (int v = 0; v < b->p->n_values; v++) {
        int n = 0;

        if (v == b->p->objective || !isfinite(b->p->limit[v]))
            continue;
        for (int g = 0; g < b->p->n_groups; g++) {
            for (int o = 0; o < b->p->groups[g].n_options; o++) {
                b->index[n] = b->first[g] + o;
                b->coef[n++] = choice_value(&b->p->groups[g], v, o);
            }
        }
        Cbc_addRow(m, "cap", n, b->index, b->coef, 'L', b->p->limit[v]);
    }
}

/* x <= z for each option, and a sum of z for each layer. */
static void add_layer_rows(Cbc_Model *m, struct build *b)
{
    int n_rules = b->p->groups[0].n_options;

    for (int g = 0; g < b->n_layers * b->params->layer_groups; g++) {
        int z0 = b->n_options + g / b->params->layer_groups * n_rules;

        for (int o = 0; o < n_rules; o++) {
            int index[2] = {b->first[g] + o, z0 + o};
            double coef[2] = {1.0, -1.0};

            Cbc_addRow(m, "used", 2, index, coef, 'L', 0.0);
        }
    }
    for (int layer = 0; layer < b->n_layers; layer++) {
        for (int o = 0; o < n_rules; o++) {
            b->index[o] = b->n_options + layer * n_rules + o;
            b->coef[o] = 1.0;
        }
        Cbc_addRow(m, "most", n_rules, b->index, b->coef, 'L', (double)b->params->max_per_layer);
    }
}

static void read_solution(struct choice_result *out, Cbc_Model *m, const struct build *b)
{
    const double *x = Cbc_getColSolution(m);

    for (int g = 0; g < b->p->n_groups; g++) {
        int best = 0;

        for (int o = 1; o < b->p->groups[g].n_options; o++)
            best = x[b->first[g] + o] > x[b->first[g] + best] ? o : best;
        out->option[g] = best;
    }
    choice_totals(b->p, out->option, out->total);
}

bool choice_cbc_is_built(void)
{
    return true;
}

int choice_cbc_solve(struct choice_result *out, const struct choice_problem *p,
                     const struct choice_cbc_params *params, struct err *err)
{
    struct build b = {.p = p, .params = params};
    Cbc_Model *m = NULL;
    int rc = build_init(&b, err);

    if (rc < 0)
        goto out;
    m = Cbc_newModel();
    if (!m) {
        rc = err_set(err, ERR_NO_ROOM, "cbc: no memory for a model");
        goto out;
    }
    Cbc_setLogLevel(m, 0);
    /* By default the groups become special ordered sets, and branching on those finds no end. */
    Cbc_setParameter(m, "preprocess", "on");
    add_columns(m, &b);
    add_group_rows(m, &b);
    add_limit_rows(m, &b);
    add_layer_rows(m, &b);
    Cbc_setAllowableGap(m, 0.0);
    Cbc_setAllowableFractionGap(m, params->gap);
    Cbc_setMaximumSeconds(m, params->max_seconds);
    Cbc_solve(m);
    out->n_nodes = Cbc_getNodeCount(m);
    out->proven = Cbc_isProvenOptimal(m) || Cbc_isProvenInfeasible(m);
    out->feasible = Cbc_bestSolution(m) != NULL;
    out->bound = Cbc_getBestPossibleObjValue(m);
    if (out->feasible)
        read_solution(out, m, &b);
out:
    if (m)
        Cbc_deleteModel(m);
    free(b.first);
    free(b.index);
    free(b.coef);
    return rc;
}

#else

bool choice_cbc_is_built(void)
{
    return false;
}

int choice_cbc_solve(struct choice_result *out, const struct choice_problem *p,
                     const struct choice_cbc_params *params, struct err *err)
{
    (void)out;
    (void)p;
    (void)params;
    return err_set(err, ERR_UNSUPPORTED,
                   "this build has no CBC: install coinor-libcbc-dev and build again");
}

#endif
