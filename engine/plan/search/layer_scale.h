/*
 * layer_scale - holds the profile's first-order influence against the truth, layer by layer.
 *
 * Influence adds up what every hidden key would take away alone. A layer that looks everywhere with
 * small weights loses less than that sum. So one layer at a time gets the cheapest spans of the
 * grid, all others stay dense, and the loss that this costs is measured through the engine; the
 * layer's influence is scaled to add up to it. In the layers that cost most the same is done unit
 * by unit, which tells how the layer's loss is dealt to them. Runs over the items of each length:
 * n_layers + 1, and the units of those layers.
 */
#ifndef LAYER_SCALE_H
#define LAYER_SCALE_H

#include "engine/plan/search/profile.h"

struct layer_scale {
    double *factor[SEARCH_MAX_LENGTHS]; /* [n_units] */
    bool was_kept;                      /* from an earlier run */
    double seconds;
};

/* Scales band and sink of p in place. ERR_CLOSED when it was interrupted. */
int layer_scale_apply(struct layer_scale *out, struct profile *p, const struct search_options *o,
                      const struct calibration *c, struct err *err);
void layer_scale_release(struct layer_scale *l);

#endif
