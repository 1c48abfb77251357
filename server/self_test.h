/*
 * self_test - one token, generated to prove that the device still answers. Loop thread only.
 *
 * A server without requests cannot tell an idle engine from a dead one, so after some idle time it
 * asks the engine for a token of its own. The same token proves at start that the model computes.
 */
#ifndef SELF_TEST_H
#define SELF_TEST_H

#include <stdbool.h>
#include <stdint.h>

struct engine;
struct engine_event;
struct engine_stats;
struct err;

struct self_test {    /* fields are private */
    int64_t since_ns; /* when the running test was submitted; 0: none runs */
    int64_t n_submitted, n_passed, n_failed;
    bool has_failed; /* the last one */
};

/* Submits a test unless one runs. ERR_LIMIT and the like when the engine takes none. */
int self_test_start(struct self_test *t, struct engine *e, struct err *err);

/* Is the event about a test? Events of tests carry the test as their user. */
bool self_test_owns(const struct self_test *t, const struct engine_event *ev);
void self_test_take_event(struct self_test *t, const struct engine_event *ev);

/* Takes the tests' share out of what users are told. */
void self_test_hide(const struct self_test *t, struct engine_stats *s);

#endif
