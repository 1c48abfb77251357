/*
 * search_program - the integer program of a plan: which rule each unit takes.
 *
 * A unit is a KV head (its query heads share a rule), or a query head. Values of an option are
 * first the losses at the profiled lengths, then the densities at the lengths with a cap, all
 * scaled to lie around 1: losses by loss_scale, densities by the number of units, so that a cap's
 * limit is density * n_units. What a rule keeps comes from kv_layout, with its floor and rounding.
 */
#ifndef SEARCH_PROGRAM_H
#define SEARCH_PROGRAM_H

#include "engine/kv/kv_layout.h"
#include "engine/plan/search/choice.h"

#define SEARCH_MAX_LENGTHS 8

struct err;

struct search_caps {
    int n;
    int length[SEARCH_MAX_LENGTHS];
    double density[SEARCH_MAX_LENGTHS];
};

struct search_input {
    int n_layers, units_per_layer;
    const struct kv_rule *rules; /* [n_rules] */
    int n_rules;
    enum kv_convention convention;
    int n_lengths, length[SEARCH_MAX_LENGTHS];
    /* Influence on block diagonals, key blocks >= 1: [n_units, ceil(length / 64)] a length. */
    const double *band[SEARCH_MAX_LENGTHS];
    const double *sink[SEARCH_MAX_LENGTHS]; /* on key block 0, by row block; NULL: of no account */
    struct search_caps caps;
    /* [n_layers] trained windows, KV_WINDOW_ALL for none; NULL: none at all. As in plan.h, a text
     * longer than the window leaves the last tokens alone: what the rule gives, the window at most.
     */
    const int *window;
};

struct search_program {
    struct search_input in; /* what it points to is borrowed */
    int n_units;
    double loss_scale[SEARCH_MAX_LENGTHS];
    struct choice_problem problem; /* groups are units, option i is rules[i]; limits: the caps */
    bool *useless;                 /* [n_units, n_rules] some other rule is as good at all values */
};

/* ERR_INVALID: names the cap that even the smallest rules miss, and by how much. */
int search_program_init(struct search_program *s, const struct search_input *in, struct err *err);
void search_program_release(struct search_program *s);

/* Bans the useless options, or no option. */
void search_program_ban(struct search_program *s, bool useless);

/* Loss and density of a choice [n_units], unscaled. */
double search_program_loss(const struct search_program *s, int length_idx, const double *total);
double search_program_density(const struct search_program *s, int cap_idx, const double *total);

/* Why nothing keeps all caps, from choice_lp_solve()'s excess. Returns ERR_INVALID. */
int search_program_infeasible(const struct search_program *s, const double *excess,
                              struct err *err);

#endif
