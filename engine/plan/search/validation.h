/*
 * validation - the loss of plans at a length that no plan was made for, through the engine as it
 * serves: the mean over items of the mean loss of the answer's tokens.
 */
#ifndef VALIDATION_H
#define VALIDATION_H

#include "engine/plan/search/calibration.h"

struct validation {
    double loss, seconds;
    int n_items;
    bool was_kept;
};

/* spec is a plan as --plan takes it. label names its file. ERR_CLOSED when it was interrupted. */
int validation_get(struct validation *out, const struct search_options *o,
                   const struct calibration *c, const char *spec, const char *label,
                   struct err *err);

#endif
