/*
 * answer_loss - what every answer token of a calibration costs under a plan, through the engine as
 * it serves.
 */
#ifndef ANSWER_LOSS_H
#define ANSWER_LOSS_H

#include "engine/plan/search/calibration.h"

struct answer_loss_args {
    const struct search_options *o;
    const struct calibration *items;
    int length;        /* of the items that are run; 0: all */
    const char *spec;  /* a plan as --plan takes it */
    const char *label; /* names the stage in progress and errors */
    /*
     * Once an item, in any order: minus the log-probability of its tokens from
     * calibration_first_target() on, [n], of the call only.
     */
    void (*on_item)(void *arg, const struct calibration_item *item, const float *loss, int n);
    void *arg;
};

/* The number of items run. ERR_CLOSED when it was interrupted. */
int answer_loss_run(const struct answer_loss_args *args, struct err *err);

/*
 * The same, and the mean over items of the mean loss of the tokens that bear it; 0 of no items.
 * on_item and arg are not used.
 */
int answer_loss_mean(const struct answer_loss_args *args, double *mean, struct err *err);

#endif
