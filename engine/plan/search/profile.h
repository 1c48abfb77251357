/*
 * profile - how much each head's attention matters, by the distance of what it looks at.
 *
 * Sums of grad_pass over the items of each length, kept in profile_LENGTH.csv after every few
 * items, so that an interrupted run goes on where it was. A unit is a KV head, its query heads
 * summed, or a query head.
 */
#ifndef PROFILE_H
#define PROFILE_H

#include "engine/plan/search/calibration.h"

struct profile_length {
    int length, n_blocks, n_items; /* items summed */
    double *band, *sink;           /* [n_units, n_blocks] sums over items */
    double loss;                   /* mean over items */
    /* Of this run: */
    int n_ran; /* items; the others were kept */
    int64_t n_tokens;
    double seconds;
    double flops_done, flops_needed; /* see grad_pass_flops */
};

struct profile {
    int n_lengths, n_layers, units_per_layer;
    struct profile_length at[SEARCH_MAX_LENGTHS];
    double product_rate; /* FLOP/s of the model's largest product alone; 0: not measured */
    double open_seconds; /* until weights and memory were there */
};

/* Runs or loads. ERR_CLOSED when it was interrupted: what was summed so far is kept. */
int profile_get(struct profile *out, const struct search_options *o, const struct calibration *c,
                struct err *err);
void profile_release(struct profile *p);

#endif
