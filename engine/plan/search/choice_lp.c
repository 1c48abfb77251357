/*
 * choice_lp - the linear relaxation of a multiple-choice knapsack. See choice.h.
 *
 * Primal simplex with generalised upper bounds: a group's key option is 1 minus its other basic
 * options, so all that must be factored is the working basis of n_rows columns, each the
 * difference of an option and its group's key. It is rebuilt for every pivot, which at most 16
 * rows make cheap, and nothing drifts.
 */
#include "engine/plan/search/choice.h"

#include "base/check.h"
#include "base/err.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

#define SLACK  (-1)
#define EXCESS (-2)

#define PRICE_EPS  1e-12
#define PIVOT_EPS  1e-10
#define MAX_PIVOTS 2000000
#define STALL      200 /* pivots without progress before the rule that cannot cycle */

struct basis {
    double inverse[CHOICE_MAX_VALUES][CHOICE_MAX_VALUES];
};

int choice_lp_init(struct choice_lp *lp, const struct choice_problem *p, struct err *err)
{
    lp->key = calloc((size_t)p->n_groups, sizeof(*lp->key));
    lp->candidate = calloc((size_t)p->n_groups, 2 * sizeof(*lp->candidate));
    if (!lp->key || !lp->candidate)
        return err_set(err, ERR_NO_ROOM, "no memory for a program of %d groups", p->n_groups);
    return 0;
}

void choice_lp_release(struct choice_lp *lp)
{
    if (!lp)
        return;
    free(lp->key);
    free(lp->candidate);
    lp->key = lp->candidate = NULL;
}

/* The working column of a basic or entering variable, against its group's key. */
static void column_of(const struct choice_lp *lp, const struct choice_problem *p,
                      struct choice_column c, double *col)
{
    if (c.group < 0) {
        memset(col, 0, sizeof(*col) * (size_t)lp->n_rows);
        col[c.option] = c.group == SLACK ? 1.0 : -1.0;
        return;
    }
    for (int i = 0; i < lp->n_rows; i++)
        col[i] = choice_value(&p->groups[c.group], lp->row_value[i], c.option) -
                 choice_value(&p->groups[c.group], lp->row_value[i], lp->key[c.group]);
}

static double cost_of(const struct choice_lp *lp, const struct choice_problem *p,
                      struct choice_column c, bool phase1)
{
    if (c.group < 0)
        return c.group == EXCESS && phase1 ? 1.0 : 0.0;
    if (phase1)
        return 0.0;
    return choice_value(&p->groups[c.group], p->objective, c.option) -
           choice_value(&p->groups[c.group], p->objective, lp->key[c.group]);
}

/* Gauss-Jordan with row exchange. False when the columns are dependent. */
static bool invert(struct basis *b, double a[CHOICE_MAX_VALUES][CHOICE_MAX_VALUES], int n)
{
    memset(b, 0, sizeof(*b));
    for (int i = 0; i < n; i++)
        b->inverse[i][i] = 1.0;
    for (int col = 0; col < n; col++) {
        int best = col;
        double p;

        for (int i = col + 1; i < n; i++)
            best = fabs(a[i][col]) > fabs(a[best][col]) ? i : best;
        p = a[best][col];
        if (fabs(p) < 1e-14)
            return false;
        for (int k = 0; k < n; k++) {
            double t = a[best][k] / p, u = b->inverse[best][k] / p;

            a[best][k] = a[col][k];
            b->inverse[best][k] = b->inverse[col][k];
            a[col][k] = t;
            b->inverse[col][k] = u;
        }
        for (int i = 0; i < n; i++) {
            double f = i == col ? 0.0 : a[i][col];

            for (int k = 0; f != 0.0 && k < n; k++) {
                a[i][k] -= f * a[col][k];
                b->inverse[i][k] -= f * b->inverse[col][k];
            }
        }
    }
    return true;
}

/* Inverse, amounts and prices of the present basis. */
static bool refactor(struct choice_lp *lp, const struct choice_problem *p, struct basis *b,
                     bool phase1)
{
    double a[CHOICE_MAX_VALUES][CHOICE_MAX_VALUES], col[CHOICE_MAX_VALUES];
    int n = lp->n_rows;

    for (int j = 0; j < n; j++) {
        column_of(lp, p, lp->work[j], col);
        for (int i = 0; i < n; i++)
            a[i][j] = col[i];
    }
    if (!invert(b, a, n))
        return false;
    for (int j = 0; j < n; j++) {
        lp->amount[j] = 0;
        for (int i = 0; i < n; i++)
            lp->amount[j] += b->inverse[j][i] * (p->limit[lp->row_value[i]] - lp->key_use[i]);
    }
    for (int i = 0; i < n; i++) {
        double y = 0;

        for (int j = 0; j < n; j++)
            y += cost_of(lp, p, lp->work[j], phase1) * b->inverse[j][i];
        lp->price[i] = -y;
    }
    return true;
}

/* The option's cost with its use of rows paid for. */
static double priced(const struct choice_lp *lp, const struct choice_group *g, int objective,
                     int option, bool phase1)
{
    double c = phase1 ? 0.0 : choice_value(g, objective, option);

    for (int i = 0; i < lp->n_rows; i++)
        c += lp->price[i] * choice_value(g, lp->row_value[i], option);
    return c;
}

/* Priced costs of a group's options, several at once. */
static void price_group(const struct choice_lp *lp, const struct choice_group *g, int objective,
                        bool phase1, double *restrict out)
{
    const double *cost = g->value + (int64_t)objective * g->n_alloc;
    int n = g->n_options;

    for (int o = 0; o < n; o++)
        out[o] = phase1 ? 0.0 : cost[o];
    for (int i = 0; i < lp->n_rows; i++) {
        const double *use = g->value + (int64_t)lp->row_value[i] * g->n_alloc;
        double y = lp->price[i];

        for (int o = 0; o < n && y != 0.0; o++)
            out[o] += y * use[o];
    }
}

#define PRICE_CHUNK 256

/* The cheapest allowed option of a group at the present prices. */
static int cheapest(const struct choice_lp *lp, const struct choice_problem *p, int group,
                    bool phase1, double *at)
{
    const struct choice_group *g = &p->groups[group];
    double stack[PRICE_CHUNK];
    int best = lp->key[group];

    if (g->n_options <= PRICE_CHUNK) {
        price_group(lp, g, p->objective, phase1, stack);
        *at = stack[best];
        for (int o = 0; o < g->n_options; o++) {
            if (!g->banned[o] && stack[o] < *at) {
                *at = stack[o];
                best = o;
            }
        }
        return best;
    }
    *at = priced(lp, g, p->objective, best, phase1);
    for (int o = 0; o < g->n_options; o++) {
        double c = g->banned[o] ? INFINITY : priced(lp, g, p->objective, o, phase1);

        if (c < *at) {
            *at = c;
            best = o;
        }
    }
    return best;
}

static void set_key(struct choice_lp *lp, const struct choice_problem *p, int group, int option)
{
    for (int i = 0; i < lp->n_rows; i++)
        lp->key_use[i] += choice_value(&p->groups[group], lp->row_value[i], option) -
                          choice_value(&p->groups[group], lp->row_value[i], lp->key[group]);
    lp->key[group] = option;
}

static bool is_basic(const struct choice_lp *lp, struct choice_column c)
{
    if (c.group >= 0 && lp->key[c.group] == c.option)
        return true;
    for (int j = 0; j < lp->n_rows; j++)
        if (lp->work[j].group == c.group && lp->work[j].option == c.option)
            return true;
    return false;
}

/* How fast the key of `group` changes while column e enters, delta being what work loses. */
static double key_rate(const struct choice_lp *lp, int group, struct choice_column e,
                       const double *delta)
{
    double rate = e.group == group ? -1.0 : 0.0;

    for (int j = 0; j < lp->n_rows; j++)
        if (lp->work[j].group == group)
            rate += delta[j];
    return rate;
}

static double key_amount(const struct choice_lp *lp, int group)
{
    double x = 1.0;

    for (int j = 0; j < lp->n_rows; j++)
        if (lp->work[j].group == group)
            x -= lp->amount[j];
    return x;
}

/* What leaves when a column enters: a column of work, or the key of a group. */
struct leaving {
    int work, key_group; /* one of them, the other is -1 */
    double step, pivot;
};

static void leave_try(struct leaving *l, int work, int group, double room, double pivot)
{
    double step = (room > 0 ? room : 0) / pivot;

    if (step > l->step + 1e-13 || (step > l->step - 1e-13 && pivot <= l->pivot))
        return;
    *l = (struct leaving){.work = work, .key_group = group, .step = step, .pivot = pivot};
}

static struct leaving ratio_test(const struct choice_lp *lp, struct choice_column e,
                                 const double *delta, bool phase1)
{
    struct leaving l = {.work = -1, .key_group = -1, .step = INFINITY};

    for (int j = 0; j < lp->n_rows; j++) {
        struct choice_column c = lp->work[j];

        if (delta[j] > PIVOT_EPS)
            leave_try(&l, j, -1, lp->amount[j], delta[j]);
        /* An excess that is 0 must stay 0 once the limits are kept. */
        else if (!phase1 && c.group == EXCESS && delta[j] < -PIVOT_EPS)
            leave_try(&l, j, -1, 0.0, -delta[j]);
        if (c.group >= 0) {
            double rate = key_rate(lp, c.group, e, delta);

            if (rate < -PIVOT_EPS)
                leave_try(&l, -1, c.group, key_amount(lp, c.group), -rate);
        }
    }
    if (e.group >= 0) {
        double rate = key_rate(lp, e.group, e, delta);

        if (rate < -PIVOT_EPS)
            leave_try(&l, -1, e.group, key_amount(lp, e.group), -rate);
    }
    return l;
}

/* Brings e into the basis. False when numbers do not allow it. */
static bool pivot(struct choice_lp *lp, const struct choice_problem *p, struct basis *b,
                  struct choice_column e, bool phase1, double *step)
{
    double col[CHOICE_MAX_VALUES], delta[CHOICE_MAX_VALUES];
    struct leaving l;

    column_of(lp, p, e, col);
    for (int j = 0; j < lp->n_rows; j++) {
        delta[j] = 0;
        for (int i = 0; i < lp->n_rows; i++)
            delta[j] += b->inverse[j][i] * col[i];
    }
    l = ratio_test(lp, e, delta, phase1);
    if (!isfinite(l.step))
        return false;
    *step = l.step;
    if (l.work >= 0) {
        lp->work[l.work] = e;
    } else if (l.key_group == e.group) {
        set_key(lp, p, e.group, e.option);
    } else {
        int j = 0;

        while (lp->work[j].group != l.key_group)
            j++;
        set_key(lp, p, l.key_group, lp->work[j].option);
        lp->work[j] = e;
    }
    lp->n_pivots++;
    return refactor(lp, p, b, phase1);
}

/* Reduced cost of a column that is not basic; below 0 it pays to enter. */
static double reduced(const struct choice_lp *lp, const struct choice_problem *p,
                      struct choice_column c, bool phase1)
{
    if (c.group == SLACK)
        return lp->price[c.option];
    if (c.group == EXCESS)
        return phase1 ? 1.0 - lp->price[c.option] : INFINITY;
    return priced(lp, &p->groups[c.group], p->objective, c.option, phase1) -
           priced(lp, &p->groups[c.group], p->objective, lp->key[c.group], phase1);
}

/* Both enter every candidate that still pays, and return how many did. */
static int enter_slacks(struct choice_lp *lp, const struct choice_problem *p, struct basis *b,
                        bool phase1)
{
    int n = 0;

    for (int i = 0; i < lp->n_rows; i++) {
        struct choice_column c = {.group = SLACK, .option = i};
        double step;

        if (!is_basic(lp, c) && reduced(lp, p, c, phase1) < -PRICE_EPS)
            n += pivot(lp, p, b, c, phase1, &step);
    }
    return n;
}

static int enter_options(struct choice_lp *lp, const struct choice_problem *p, struct basis *b,
                         bool phase1, bool first_only)
{
    int n_candidates = 0, n = 0;
    double step;

    for (int g = 0; g < p->n_groups; g++) {
        double at;
        int o = cheapest(lp, p, g, phase1, &at);

        if (o == lp->key[g] ||
            at > priced(lp, &p->groups[g], p->objective, lp->key[g], phase1) - PRICE_EPS)
            continue;
        lp->candidate[2 * n_candidates] = g;
        lp->candidate[2 * n_candidates + 1] = o;
        n_candidates++;
        if (first_only)
            break;
    }
    for (int k = 0; k < n_candidates; k++) {
        struct choice_column c = {.group = lp->candidate[2 * k],
                                  .option = lp->candidate[2 * k + 1]};

        if (!is_basic(lp, c) && reduced(lp, p, c, phase1) < -PRICE_EPS)
            n += pivot(lp, p, b, c, phase1, &step);
    }
    return n;
}

static double objective_of(const struct choice_lp *lp, const struct choice_problem *p, bool phase1)
{
    double v = 0;

    for (int j = 0; j < lp->n_rows; j++)
        v += lp->amount[j] * cost_of(lp, p, lp->work[j], phase1);
    for (int g = 0; g < p->n_groups && !phase1; g++)
        v += choice_value(&p->groups[g], p->objective, lp->key[g]);
    return v;
}

static void sum_keys(struct choice_lp *lp, const struct choice_problem *p)
{
    memset(lp->key_use, 0, sizeof(lp->key_use));
    for (int g = 0; g < p->n_groups; g++)
        for (int i = 0; i < lp->n_rows; i++)
            lp->key_use[i] += choice_value(&p->groups[g], lp->row_value[i], lp->key[g]);
}

/* Pivots until nothing pays. */
static void run_phase(struct choice_lp *lp, const struct choice_problem *p, bool phase1)
{
    struct basis b;
    double last = INFINITY;
    int64_t stalled = 0, end = lp->n_pivots + MAX_PIVOTS;

    sum_keys(lp, p);
    if (!refactor(lp, p, &b, phase1))
        return;
    while (lp->n_pivots < end) {
        int n = enter_slacks(lp, p, &b, phase1);
        double now;

        n += enter_options(lp, p, &b, phase1, stalled > STALL);
        if (n == 0)
            return;
        sum_keys(lp, p);
        if (!refactor(lp, p, &b, phase1))
            return;
        now = objective_of(lp, p, phase1);
        stalled = now < last - 1e-14 * (1 + fabs(last)) ? 0 : stalled + n;
        last = now < last ? now : last;
        if (stalled > 20 * STALL)
            return; /* only rounding is left to gain; the bound holds at any prices */
    }
}

/* Lagrange: at any prices >= 0, the cheapest options less what the limits are worth. */
static double bound_at(struct choice_lp *lp, const struct choice_problem *p)
{
    double v = 0, at;

    for (int i = 0; i < lp->n_rows; i++) {
        lp->price[i] = lp->price[i] > 0 ? lp->price[i] : 0;
        v -= lp->price[i] * p->limit[lp->row_value[i]];
    }
    for (int g = 0; g < p->n_groups; g++) {
        cheapest(lp, p, g, false, &at);
        v += at;
    }
    return v;
}

void choice_priced(const struct choice_lp *lp, const struct choice_problem *p, int group,
                   double *out)
{
    const struct choice_group *g = &p->groups[group];
    double at;

    cheapest(lp, p, group, false, &at);
    price_group(lp, g, p->objective, false, out);
    for (int o = 0; o < g->n_options; o++)
        out[o] -= at;
}

/* All slack, and an excess where the keys alone miss a limit. */
static bool start_basis(struct choice_lp *lp, const struct choice_problem *p)
{
    bool misses = false;

    lp->n_rows = 0;
    for (int v = 0; v < p->n_values; v++)
        if (isfinite(p->limit[v]) && v != p->objective)
            lp->row_value[lp->n_rows++] = v;
    for (int g = 0; g < p->n_groups; g++) {
        const struct choice_group *group = &p->groups[g];

        for (int o = 0; lp->key[g] >= group->n_options || group->banned[lp->key[g]]; o++) {
            CHECK(o < group->n_options);
            lp->key[g] = o;
        }
    }
    sum_keys(lp, p);
    for (int i = 0; i < lp->n_rows; i++) {
        bool over = lp->key_use[i] > p->limit[lp->row_value[i]];

        lp->work[i] = (struct choice_column){.group = over ? EXCESS : SLACK, .option = i};
        misses |= over;
    }
    return misses;
}

bool choice_lp_solve(struct choice_lp *lp, const struct choice_problem *p, double *excess)
{
    bool feasible = true;

    if (start_basis(lp, p))
        run_phase(lp, p, true);
    if (excess)
        memset(excess, 0, sizeof(*excess) * (size_t)p->n_values);
    for (int j = 0; j < lp->n_rows; j++) {
        if (lp->work[j].group != EXCESS || lp->amount[j] < CHOICE_EPS)
            continue;
        feasible = false;
        if (excess)
            excess[lp->row_value[lp->work[j].option]] = lp->amount[j];
    }
    if (!feasible) {
        lp->bound = INFINITY;
        return false;
    }
    run_phase(lp, p, false);
    lp->bound = bound_at(lp, p);
    return true;
}
