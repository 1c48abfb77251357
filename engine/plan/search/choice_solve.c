/*
 * choice_solve - whole options from the relaxation: repair, exchange, and a search by branching.
 * See choice.h.
 */
#include "engine/plan/search/choice.h"

#include "base/check.h"
#include "base/err.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

#define EXACT_EPS      1e-11 /* relative: what two sums of the same numbers may differ by */
#define MAX_REPAIRS    64    /* changes; a rounded relaxation needs a few */
#define MAX_EXCHANGES  256
#define PAIR_MOVES     600 /* single changes of which all pairs are tried */
#define HEURISTIC_EACH 64  /* nodes */

struct move {
    int group, option;
    double priced, delta[CHOICE_MAX_VALUES];
};

struct search {
    const struct choice_problem *p;
    struct choice_lp *lp;
    const struct choice_params *params;
    struct choice_result *best;
    double best_cost, gap;
    int *option;       /* [n_groups] scratch */
    struct move *move; /* [n_moves_max] scratch */
    double *priced;    /* [most options of a group] scratch */
    int n_moves_max;
    int64_t n_nodes;
    bool cut_short; /* the node limit was hit */
    bool no_room;
};

void choice_totals(const struct choice_problem *p, const int *option, double *total)
{
    memset(total, 0, sizeof(*total) * (size_t)p->n_values);
    for (int g = 0; g < p->n_groups; g++)
        for (int v = 0; v < p->n_values; v++)
            total[v] += choice_value(&p->groups[g], v, option[g]);
}

static double limit_of(const struct choice_problem *p, int v)
{
    return v == p->objective ? INFINITY : p->limit[v] + CHOICE_EPS;
}

static double miss(const struct choice_problem *p, const double *total)
{
    double sum = 0;

    for (int v = 0; v < p->n_values; v++)
        if (total[v] > limit_of(p, v))
            sum += total[v] - p->limit[v];
    return sum;
}

/* Takes s->option as the best if it is. */
static void offer(struct search *s, const double *total)
{
    if (miss(s->p, total) > 0 || total[s->p->objective] >= s->best_cost)
        return;
    s->best_cost = total[s->p->objective];
    s->best->feasible = true;
    memcpy(s->best->option, s->option, sizeof(int) * (size_t)s->p->n_groups);
    memcpy(s->best->total, total, sizeof(*total) * (size_t)s->p->n_values);
}

static void apply(const struct search *s, double *total, int group, int option)
{
    const struct choice_group *g = &s->p->groups[group];

    for (int v = 0; v < s->p->n_values; v++)
        total[v] += choice_value(g, v, option) - choice_value(g, v, s->option[group]);
    s->option[group] = option;
}

/* The largest part of each group in the relaxation. Returns the most divided group, -1: none. */
static int round_down(const struct search *s, double *total)
{
    const struct choice_lp *lp = s->lp;
    double least = 1.0 - 1e-9;
    int divided = -1;

    memcpy(s->option, lp->key, sizeof(int) * (size_t)s->p->n_groups);
    for (int j = 0; j < lp->n_rows; j++) {
        int g = lp->work[j].group;
        double key = 1.0, most;

        if (g < 0)
            continue;
        for (int k = 0; k < lp->n_rows; k++)
            key -= lp->work[k].group == g ? lp->amount[k] : 0.0;
        most = key;
        s->option[g] = lp->key[g];
        for (int k = 0; k < lp->n_rows; k++) {
            if (lp->work[k].group == g && lp->amount[k] > most) {
                most = lp->amount[k];
                s->option[g] = lp->work[k].option;
            }
        }
        if (most < least) {
            least = most;
            divided = g;
        }
    }
    choice_totals(s->p, s->option, total);
    return divided;
}

/* Changes options until all limits are kept, each time the one that costs least for what it mends.
 */
static bool repair(struct search *s, double *total)
{
    const struct choice_problem *p = s->p;

    for (int turn = 0; turn < MAX_REPAIRS; turn++) {
        double now = miss(p, total), best = INFINITY;
        int best_g = -1, best_o = -1;

        if (now <= 0)
            return true;
        for (int g = 0; g < p->n_groups; g++) {
            const struct choice_group *group = &p->groups[g];

            for (int o = 0; o < group->n_options; o++) {
                double after[CHOICE_MAX_VALUES], mended, cost;

                if (group->banned[o] || o == s->option[g])
                    continue;
                for (int v = 0; v < p->n_values; v++)
                    after[v] =
                        total[v] + choice_value(group, v, o) - choice_value(group, v, s->option[g]);
                mended = now - miss(p, after);
                cost = after[p->objective] - total[p->objective];
                if (mended <= 0)
                    continue;
                cost = cost > 0 ? cost / mended : -mended;
                if (cost < best) {
                    best = cost;
                    best_g = g;
                    best_o = o;
                }
            }
        }
        if (best_g < 0)
            return false;
        apply(s, total, best_g, best_o);
    }
    return false;
}

static int compare_moves(const void *a, const void *b)
{
    const struct move *x = a, *y = b;

    if (x->priced != y->priced)
        return x->priced < y->priced ? -1 : 1;
    if (x->group != y->group)
        return x->group - y->group;
    return x->option - y->option;
}

/*
 * Single changes from the present options, the promising ones first. An option whose priced cost
 * alone exceeds the gap to the bound is part of nothing better.
 */
static int list_moves(struct search *s, double gap)
{
    const struct choice_problem *p = s->p;
    int n = 0;

    for (int g = 0; g < p->n_groups; g++) {
        const struct choice_group *group = &p->groups[g];

        choice_priced(s->lp, p, g, s->priced);
        for (int o = 0; o < group->n_options; o++) {
            struct move *m = &s->move[n];

            if (group->banned[o] || o == s->option[g] || s->priced[o] > gap)
                continue;
            m->group = g;
            m->option = o;
            m->priced = s->priced[o] - s->priced[s->option[g]];
            for (int v = 0; v < p->n_values; v++)
                m->delta[v] = choice_value(group, v, o) - choice_value(group, v, s->option[g]);
            n++;
        }
    }
    qsort(s->move, (size_t)n, sizeof(*s->move), compare_moves);
    return n;
}

static bool fits(const struct choice_problem *p, const double *total, const struct move *a,
                 const struct move *b)
{
    for (int v = 0; v < p->n_values; v++) {
        double t = total[v] + a->delta[v] + (b ? b->delta[v] : 0.0);

        if (t > limit_of(p, v))
            return false;
    }
    return true;
}

/* The best change of one or two groups that keeps all limits. False: none is better. */
static bool exchange(struct search *s, double *total)
{
    const struct choice_problem *p = s->p;
    int n = list_moves(s, total[p->objective] - s->lp->bound);
    int n_pair = n < PAIR_MOVES ? n : PAIR_MOVES;
    const struct move *first = NULL, *second = NULL;
    double best = -EXACT_EPS * (1 + fabs(total[p->objective]));

    for (int i = 0; i < n; i++) {
        const struct move *m = &s->move[i];

        if (m->delta[p->objective] < best && fits(p, total, m, NULL)) {
            best = m->delta[p->objective];
            first = m;
        }
    }
    for (int i = 0; i < n_pair; i++) {
        const struct move *a = &s->move[i];

        for (int k = i + 1; k < n_pair; k++) {
            const struct move *b = &s->move[k];

            if (a->delta[p->objective] + b->delta[p->objective] >= best || a->group == b->group ||
                !fits(p, total, a, b))
                continue;
            best = a->delta[p->objective] + b->delta[p->objective];
            first = a;
            second = b;
        }
    }
    if (!first)
        return false;
    apply(s, total, first->group, first->option);
    if (second)
        apply(s, total, second->group, second->option);
    return true;
}

/* Whole options near the relaxation's solution, offered as the best. */
static void heuristic(struct search *s)
{
    double total[CHOICE_MAX_VALUES];

    round_down(s, total);
    if (!repair(s, total))
        return;
    for (int i = s->n_nodes <= 1 ? MAX_EXCHANGES : MAX_EXCHANGES / 32; i > 0 && exchange(s, total);
         i--)
        ;
    choice_totals(s->p, s->option, total);
    offer(s, total);
}

/* What a node's bound must be below to be worth a look. */
static double wanted_below(const struct search *s)
{
    double eps = EXACT_EPS * (1 + fabs(s->best_cost));

    return s->best->feasible ? s->best_cost - fmax(s->gap, eps) : INFINITY;
}

struct ban {
    int group, option;
};

/* Bans what cannot be part of anything better. Returns the list for unban(), NULL: no memory. */
static struct ban *ban_dear(struct search *s, int *n_bans)
{
    const struct choice_problem *p = s->p;
    double room = wanted_below(s) - s->lp->bound;
    int64_t n = 0, n_all = 0;
    struct ban *list;

    for (int g = 0; g < p->n_groups; g++)
        n_all += p->groups[g].n_options;
    list = malloc(sizeof(*list) * (size_t)n_all);
    for (int g = 0; list && g < p->n_groups && isfinite(room); g++) {
        struct choice_group *group = &p->groups[g];

        choice_priced(s->lp, p, g, s->priced);
        for (int o = 0; o < group->n_options; o++) {
            if (group->banned[o] || s->priced[o] <= room)
                continue;
            group->banned[o] = 1;
            list[n++] = (struct ban){.group = g, .option = o};
        }
    }
    *n_bans = (int)n;
    return list;
}

static void unban(struct search *s, struct ban *list, int n_bans)
{
    for (int i = 0; i < n_bans; i++)
        s->p->groups[list[i].group].banned[list[i].option] = 0;
    free(list);
}

static void node(struct search *s);

static int compare_options(const void *a, const void *b)
{
    const double *x = a, *y = b;

    return x[0] < y[0] ? -1 : x[0] > y[0] ? 1 : x[1] < y[1] ? -1 : x[1] > y[1];
}

/* One child an option of the group, the cheapest first. */
static void branch(struct search *s, int g)
{
    struct choice_group *group = &s->p->groups[g];
    double bound = s->lp->bound;
    double(*order)[2] = malloc(sizeof(*order) * (size_t)group->n_options);
    unsigned char *before = malloc((size_t)group->n_options);
    int n = 0;

    if (!order || !before) {
        s->no_room = true;
        goto out;
    }
    memcpy(before, group->banned, (size_t)group->n_options);
    choice_priced(s->lp, s->p, g, s->priced);
    for (int o = 0; o < group->n_options; o++) {
        if (before[o])
            continue;
        order[n][0] = s->priced[o];
        order[n++][1] = o;
    }
    qsort(order, (size_t)n, sizeof(*order), compare_options);
    for (int i = 0; i < n && bound + order[i][0] < wanted_below(s) && !s->cut_short; i++) {
        memset(group->banned, 1, (size_t)group->n_options);
        group->banned[(int)order[i][1]] = 0;
        node(s);
    }
    memcpy(group->banned, before, (size_t)group->n_options);
out:
    free(order);
    free(before);
}

/* A group that has more than one option left; -1: none. */
static int open_group(const struct search *s)
{
    for (int g = 0; g < s->p->n_groups; g++) {
        const struct choice_group *group = &s->p->groups[g];
        int n = 0;

        for (int o = 0; o < group->n_options; o++)
            n += !group->banned[o];
        if (n > 1)
            return g;
    }
    return -1;
}

/* Everything below the present bans. */
static void node(struct search *s)
{
    double total[CHOICE_MAX_VALUES];
    struct ban *bans;
    int divided, n_bans = 0;

    if (s->n_nodes >= s->params->max_nodes) {
        s->cut_short = true;
        return;
    }
    s->n_nodes++;
    if (!choice_lp_solve(s->lp, s->p, NULL) || s->lp->bound >= wanted_below(s))
        return;
    divided = round_down(s, total);
    offer(s, total);
    if (divided < 0 && miss(s->p, total) <= 0)
        return;
    if (s->n_nodes % HEURISTIC_EACH == 1)
        heuristic(s);
    if (s->lp->bound >= wanted_below(s))
        return;
    if (divided < 0)
        divided = open_group(s); /* whole, and over a limit by rounding only */
    if (divided < 0)
        return;
    bans = ban_dear(s, &n_bans);
    if (!bans) {
        s->no_room = true;
        return;
    }
    branch(s, divided);
    unban(s, bans, n_bans);
}

int choice_result_init(struct choice_result *r, const struct choice_problem *p, struct err *err)
{
    memset(r, 0, sizeof(*r));
    r->option = calloc((size_t)p->n_groups, sizeof(*r->option));
    if (!r->option)
        return err_set(err, ERR_NO_ROOM, "no memory for a choice in %d groups", p->n_groups);
    return 0;
}

void choice_result_release(struct choice_result *r)
{
    if (!r)
        return;
    free(r->option);
    r->option = NULL;
}

static int search_init(struct search *s, struct err *err)
{
    int64_t n = 0;
    int most = 1;

    for (int g = 0; g < s->p->n_groups; g++) {
        n += s->p->groups[g].n_options;
        most = s->p->groups[g].n_options > most ? s->p->groups[g].n_options : most;
    }
    s->n_moves_max = (int)n;
    s->priced = calloc((size_t)most, sizeof(*s->priced));
    s->option = calloc((size_t)s->p->n_groups, sizeof(*s->option));
    s->move = calloc((size_t)n, sizeof(*s->move));
    if (!s->option || !s->move || !s->priced)
        return err_set(err, ERR_NO_ROOM, "no memory for a program of %lld options", (long long)n);
    return 0;
}

int choice_solve(struct choice_result *out, const struct choice_problem *p, struct choice_lp *lp,
                 const struct choice_params *params, struct err *err)
{
    struct search s = {.p = p, .lp = lp, .params = params, .best = out, .best_cost = INFINITY};
    double root;
    int rc;

    CHECK(p->n_values <= CHOICE_MAX_VALUES);
    out->feasible = out->proven = false;
    rc = search_init(&s, err);
    if (rc < 0)
        goto out;
    s.n_nodes = 1;
    if (!choice_lp_solve(lp, p, out->excess)) {
        out->proven = true;
        out->bound = INFINITY;
        goto out;
    }
    root = lp->bound;
    s.gap = fmax(params->gap, 0.0) * fabs(root);
    heuristic(&s);
    if (lp->bound < wanted_below(&s) && params->max_nodes > 0) {
        s.n_nodes = 0;
        node(&s);
    } else {
        s.cut_short = lp->bound < wanted_below(&s);
    }
    if (s.no_room) {
        rc = err_set(err, ERR_NO_ROOM, "no memory for the search among %d groups", p->n_groups);
        goto out;
    }
    out->n_nodes = s.n_nodes;
    out->proven = !s.cut_short;
    out->bound = root;
    if (out->proven && out->feasible)
        out->bound = fmax(root, s.best_cost - s.gap);
out:
    free(s.option);
    free(s.move);
    free(s.priced);
    return rc;
}
