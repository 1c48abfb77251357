/*
 * test - what every suite includes: Check, and a macro that registers a suite by itself.
 *
 *     TEST_SUITE(kv_pool)
 *     {
 *         TCase *tc = test_case(suite, "core");
 *         tcase_add_test(tc, kv_pool__refuses_a_slot_over_budget);
 *     }
 *
 * The runner (tests/lib/test_runner.c) runs every registered suite; CK_RUN_SUITE=name picks one.
 */
#ifndef TEST_H
#define TEST_H

#include <check.h>

typedef void test_suite_fn(Suite *suite);

/* Called by constructors before main; the table is fixed-size and checked. */
void test_register(const char *name, test_suite_fn *fn);

/* Called once before any suite runs; a test program with something to look for first defines it. */
void test_before_suites(void) __attribute__((weak));

/* A case with the tree's time limit (60 s; sanitizers are slow), added to the suite. */
TCase *test_case(Suite *suite, const char *name);

/* The path of a file under the repository root; a static buffer a call. Tests run from there. */
const char *test_path(const char *relative);

#define TEST_SUITE(name)                                                                           \
    static void test_suite_##name(Suite *suite);                                                   \
    __attribute__((constructor)) static void test_register_##name(void)                            \
    {                                                                                              \
        test_register(#name, test_suite_##name);                                                   \
    }                                                                                              \
    static void test_suite_##name(Suite *suite)

#endif
