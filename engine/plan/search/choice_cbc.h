/*
 * choice_cbc - the same problems given to CBC (coinor-libcbc), a general integer solver: a second
 * opinion on ours, and the way to close a gap that ours leaves. Where the library is not installed
 * at build time every call returns ERR_UNSUPPORTED.
 */
#ifndef CHOICE_CBC_H
#define CHOICE_CBC_H

#include "engine/plan/search/choice.h"

bool choice_cbc_is_built(void);

/*
 * max_per_layer > 0: at most so many different options within each run of layer_groups groups,
 * whose options must then mean the same in all of them. gap is relative. out as choice_solve().
 */
struct choice_cbc_params {
    double gap, max_seconds;
    int layer_groups, max_per_layer;
};
int choice_cbc_solve(struct choice_result *out, const struct choice_problem *p,
                     const struct choice_cbc_params *params, struct err *err);

#endif
