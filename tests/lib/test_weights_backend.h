/*
 * test_weights_backend - a backend that holds weights and computes nothing: for tests of loading.
 * It counts what is allocated and can refuse any one allocation. Weights are never borrowed, so a
 * test reads what the loader handed over.
 */
#ifndef TEST_WEIGHTS_BACKEND_H
#define TEST_WEIGHTS_BACKEND_H

#include "engine/backend.h"

struct test_weights_backend {
    struct backend be; /* first */
    int n_live;        /* allocations and weights not given back */
    int fail_at;       /* the allocation or weight that is refused, counted from 0; -1: none */
    int n_calls;
    int n_misaligned; /* parts handed over at an address that their type must not have */
};

void test_weights_backend_init(struct test_weights_backend *tb);

#endif
