/*
 * rule_grid - the candidate rules: pairs of a constant alpha and a slope beta.
 *
 * GRID_EIGHTH   alpha in steps of an eighth of the longest profile length, from minus the shortest
 *               to the longest; pairs that exceed the length at the longest profile length or the
 *               longest cap length, or keep nothing at the shortest length, are left out. With
 *               profile lengths 2k, 4k, 8k and caps up to 16k these are the 48 rules that the
 *               published plans were made of.
 * GRID_PAPER    six alphas from minus a quarter of the longest profile length to all of it, nothing
 *               left out: 54 pairs.
 * GRID_LIST     given alphas and betas, nothing left out.
 */
#ifndef RULE_GRID_H
#define RULE_GRID_H

#include "engine/kv/kv_layout.h"

struct err;

#define RULE_GRID_MAX 4096

enum rule_grid_kind { GRID_EIGHTH, GRID_PAPER, GRID_LIST };

struct rule_grid_params {
    enum rule_grid_kind kind;
    int shortest, longest;        /* profile lengths */
    int longest_cap;              /* the longest length that has a density cap */
    double step;                  /* GRID_EIGHTH: of alpha, 0: longest / 8 */
    const double *alphas, *betas; /* GRID_LIST */
    int n_alphas, n_betas;
};

/* *rules is malloc'ed, sorted by beta, then alpha. ERR_INVALID when nothing or too much is left. */
int rule_grid_make(struct kv_rule **rules, int *n_rules, const struct rule_grid_params *params,
                   struct err *err);

#endif
