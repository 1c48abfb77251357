/*
 * choice - multiple-choice knapsacks: of each group take exactly one option, keep the totals of
 * some values within their limits, and make the total of one value least.
 *
 * A group is a head and its options the rules, or a layer and its options whole assignments. Only
 * a few rows couple many groups, so the linear relaxation has at most as many undecided groups as
 * rows. choice_lp solves it by a simplex method that keeps one key option a group and a working
 * basis of one column a row; choice_solve repairs it to whole options, and searches on while the
 * gap is larger than asked.
 *
 * Values should lie around 1: tolerances are absolute.
 */
#ifndef CHOICE_H
#define CHOICE_H

#include <stdbool.h>
#include <stdint.h>

struct err;

#define CHOICE_MAX_VALUES 16 /* lengths profiled and lengths with a cap, together */
#define CHOICE_EPS        1e-9

struct choice_group {
    int n_options, n_alloc;
    double *value;         /* [n_values, n_alloc] */
    unsigned char *banned; /* [n_alloc] not 0: out of the game for now */
};

struct choice_problem {
    int n_groups, n_values;
    struct choice_group *groups;     /* [n_groups] */
    int objective;                   /* index of the value to be minimised */
    double limit[CHOICE_MAX_VALUES]; /* upper bounds of totals; INFINITY: none */
};

static inline double choice_value(const struct choice_group *g, int value, int option)
{
    return g->value[(int64_t)value * g->n_alloc + option];
}

/* A column of the working basis. */
struct choice_column {
    int group;  /* -1: the slack of a row, -2: its excess */
    int option; /* of the group, or the row */
};

/* The relaxation's state; zero-initialise, choice_lp_init() once. */
struct choice_lp {
    int n_rows, row_value[CHOICE_MAX_VALUES]; /* rows are the values that have a limit */
    int *key;                                 /* [n_groups] the option that is basic in a group */
    struct choice_column work[CHOICE_MAX_VALUES];
    double amount[CHOICE_MAX_VALUES]; /* of work's columns */
    double price[CHOICE_MAX_VALUES]; /* of rows, >= 0 when optimal: what a unit of limit is worth */
    double key_use[CHOICE_MAX_VALUES];
    double bound; /* no choice costs less */
    int64_t n_pivots;
    int *candidate; /* private */
};

int choice_lp_init(struct choice_lp *lp, const struct choice_problem *p, struct err *err);
void choice_lp_release(struct choice_lp *lp);

/*
 * Minimises, starting from lp->key. False when no mixture of options keeps all limits: excess
 * [n_values] then holds by how much each is missed at the least sum of misses; excess may be NULL.
 */
bool choice_lp_solve(struct choice_lp *lp, const struct choice_problem *p, double *excess);

/* What a group's options cost beyond its cheapest at the relaxation's prices: out [n_options]. */
void choice_priced(const struct choice_lp *lp, const struct choice_problem *p, int group,
                   double *out);

struct choice_params {
    double gap;        /* relative to the bound: stop when it is this near */
    int64_t max_nodes; /* of the search behind the root; 0: repair only */
};

struct choice_result {
    int *option; /* [n_groups] owned by the caller of choice_result_init() */
    double total[CHOICE_MAX_VALUES];
    double bound;  /* of the objective */
    bool feasible; /* total and option are filled in */
    bool proven;   /* nothing is better by more than gap, or nothing is feasible */
    int64_t n_nodes;
    double excess[CHOICE_MAX_VALUES]; /* when the relaxation has no solution, as above */
};

int choice_result_init(struct choice_result *r, const struct choice_problem *p, struct err *err);
void choice_result_release(struct choice_result *r);

/*
 * Solves p. lp carries prices and keys from one problem to the next similar one. Options that are
 * banned stay so; others are banned during the search only. ERR_NO_ROOM.
 */
int choice_solve(struct choice_result *out, const struct choice_problem *p, struct choice_lp *lp,
                 const struct choice_params *params, struct err *err);

/* Totals of a choice. */
void choice_totals(const struct choice_problem *p, const int *option, double *total);

#endif
