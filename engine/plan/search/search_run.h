/*
 * search_run - calibrate, profile, optimise, validate, and write what came of it.
 */
#ifndef SEARCH_RUN_H
#define SEARCH_RUN_H

#include "engine/plan/search/search_options.h"

struct err;

enum search_stage { STAGE_CALIBRATE, STAGE_PROFILE, STAGE_OPTIMISE, STAGE_ALL };

/*
 * Runs the stages up to `until`; o->output is written by the last one only, whole or not at all.
 * Each stage prints what it did and how long it took to stdout. command is for the report.
 */
int search_run(const struct search_options *o, enum search_stage until, const char *command,
               struct err *err);

#endif
