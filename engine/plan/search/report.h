/*
 * report - what a search found, for people: tables as CSV, the Pareto front and the spans as SVG,
 * and one page with all of it that needs nothing else.
 */
#ifndef REPORT_H
#define REPORT_H

#include "engine/plan/search/pareto.h"
#include "engine/plan/search/search_options.h"

struct err;

struct report_row {
    const char *label;    /* "plan 3", "dense" */
    double loss, density; /* validation; NAN where there is none. At the validation length */
};

struct report {
    const struct search_options *o;
    const struct search_program *program;
    const struct pareto *pareto;
    const struct report_row *rows; /* [n_rows] validated plans and baselines */
    int n_rows;
    const double *validation; /* [n_plans] NAN where a plan was not validated */
    int chosen;               /* index of the plan that was written */
    const char *command;
    const char *stages; /* lines of text: what each stage did and how long it took */
};

/* pareto.csv, plans.csv, front.svg, spans.svg, index.html */
int report_write(const struct report *r, struct err *err);

#endif
