/*
 * layer_choice - the same program with at most one or two different rules in each layer.
 *
 * A group is then a layer and an option a whole assignment of it. There are far too many to list,
 * so they are made when they are wanted: at given prices the best assignment of a layer is found
 * exactly, by trying every pair of rules and giving each head the cheaper one. When no new
 * assignment pays, the relaxation over all of them is solved; the rest is choice_solve().
 */
#ifndef LAYER_CHOICE_H
#define LAYER_CHOICE_H

#include "engine/plan/search/search_program.h"

struct layer_choice {
    const struct search_program *s;
    int max_rules;
    struct choice_problem problem; /* groups are layers */
    struct choice_lp lp;
    int16_t **pick;        /* [n_layers] of [n_options, units_per_layer]: rules */
    unsigned char *useful; /* [n_layers, n_rules] */
    double *priced;        /* [n_rules, units_per_layer] private */
};

/* max_rules 1 or 2. */
int layer_choice_init(struct layer_choice *lc, const struct search_program *s, int max_rules,
                      struct err *err);
void layer_choice_release(struct layer_choice *lc);

/*
 * Minimises value `objective` within limit [n_values]. out is one of s->problem: options of units.
 * unit_lp belongs to s->problem.
 */
int layer_choice_solve(struct choice_result *out, struct layer_choice *lc,
                       struct choice_lp *unit_lp, int objective, const double *limit,
                       const struct choice_params *params, struct err *err);

#endif
