/*
 * focus - leaves loss to those answer tokens alone that depend on what a plain window forgets.
 *
 * A token is kept if uniform spans of the density make it at most half as likely as the dense model
 * does. What the model would say anyway, the words around a number, does not count; items that lose
 * no token are dropped. The losses behind the choice are kept in focus.csv.
 */
#ifndef FOCUS_H
#define FOCUS_H

#include "engine/plan/search/calibration.h"

struct focus {
    int n_tokens, n_kept;   /* of all answers */
    int n_items, n_dropped; /* items before, and of them without such a token */
    bool was_kept;          /* from an earlier run */
    double seconds;
};

/*
 * Sets `bears` of the items. ERR_INVALID when no item of a length is left, with the way out;
 * ERR_CLOSED when it was interrupted.
 */
int focus_apply(struct focus *out, struct calibration *c, const struct search_options *o,
                struct err *err);

#endif
