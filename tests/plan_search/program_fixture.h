/*
 * program_fixture - made-up influence for search programs: heads whose influence falls with the
 * distance at rates of their own, some of them flat, as retrieval heads are.
 */
#ifndef PROGRAM_FIXTURE_H
#define PROGRAM_FIXTURE_H

#include "engine/plan/search/search_program.h"

struct program_fixture {
    struct search_input in;
    struct search_program s;
    struct kv_rule *rules;
    double *band[SEARCH_MAX_LENGTHS];
};

struct program_shape {
    int n_layers, units_per_layer;
    int n_lengths, length[SEARCH_MAX_LENGTHS];
    int n_caps, cap_length[SEARCH_MAX_LENGTHS];
    double density;
    int max_rules; /* of the grid, a random part of it; 0: all */
    uint64_t seed;
};

/* Fails the test when it cannot. */
void program_fixture_init(struct program_fixture *f, const struct program_shape *shape);
void program_fixture_release(struct program_fixture *f);

/*
 * The least objective by trying every choice; INFINITY when none keeps the limits. max_per_layer
 * 0: any number of different rules in a layer.
 */
double program_exhaust(const struct search_program *s, int objective, const double *limit,
                       int max_per_layer);

#endif
