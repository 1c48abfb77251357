/*
 * pareto - the plans of which none is better at one length without being worse at another.
 *
 * Each length's loss is minimised alone, and among the minima the others' in turn (a lexicographic
 * payoff table), which gives every loss a range. Each range is cut into intervals; then each loss
 * is minimised once for every combination of the others' upper ends. What is dominated is dropped.
 */
#ifndef PARETO_H
#define PARETO_H

#include "engine/plan/search/search_program.h"

struct pareto_params {
    int n_intervals;         /* a range is cut into; the reference: 4 */
    double gap;              /* relative to the loss: how near to the bound each solve must come */
    int64_t max_nodes;       /* of each solve */
    int max_rules_per_layer; /* 1, 2; 0: no limit */
    bool use_cbc;            /* for what is left open within max_nodes, where it is built in */
    double cbc_seconds;
    /* Called before each solve; false stops with ERR_CLOSED. May be NULL. */
    bool (*progress)(void *arg, int done, int total);
    void *progress_arg;
};

struct pareto_plan {
    int *rule; /* [n_units] index into the rules */
    double loss[SEARCH_MAX_LENGTHS], density[SEARCH_MAX_LENGTHS];
    double score; /* mean of the scaled losses, what plans are ranked by: lowest first */
};

struct pareto {
    int n_plans;
    struct pareto_plan *plans;          /* [n_plans] by score */
    int n_solves, n_infeasible, n_open; /* open: the gap was not closed within max_nodes */
    double worst_gap;                   /* relative, over all solves */
    int64_t n_nodes, n_pivots;
};

/* ERR_INVALID when the caps cannot be kept together. */
int pareto_find(struct pareto *out, struct search_program *s, const struct pareto_params *params,
                struct err *err);
void pareto_release(struct pareto *p);

#endif
