/*
 * Tests of base/clock.c and base/build_info.c: the units are the promised ones.
 */
#include "tests/lib/test.h"

#include "base/build_info.h"
#include "base/clock.h"

#include <string.h>
#include <time.h>

/* Intervals never run backwards. */
START_TEST(clock__is_monotonic)
{
    int64_t last = clock_ns();

    for (int i = 0; i < 10000; i++) {
        int64_t now = clock_ns();

        ck_assert_int_ge(now, last);
        last = now;
    }
}
END_TEST

/* Nanoseconds are nanoseconds: the process clock agrees on the order of magnitude. */
START_TEST(clock__counts_nanoseconds)
{
    int64_t start = clock_ns();
    clock_t cpu = clock();

    while (clock() - cpu < CLOCKS_PER_SEC / 100)
        ;
    ck_assert_int_ge(clock_ns() - start, 8000000);
}
END_TEST

/* The wall clock is the system's, in milliseconds. */
START_TEST(clock__tells_unix_time)
{
    int64_t s = clock_unix_ms() / 1000;

    ck_assert_int_le(s - (int64_t)time(NULL), 1);
    ck_assert_int_ge(s - (int64_t)time(NULL), -1);
}
END_TEST

/* A binary knows its version and commit, and neither is empty. */
START_TEST(build_info__names_the_source)
{
    ck_assert_uint_ge(strlen(build_version()), 5);
    ck_assert_ptr_nonnull(strchr(build_version(), '.'));
    ck_assert_uint_ge(strlen(build_commit()), 7);
}
END_TEST

TEST_SUITE(clock)
{
    TCase *tc = test_case(suite, "core");

    tcase_add_test(tc, clock__is_monotonic);
    tcase_add_test(tc, clock__counts_nanoseconds);
    tcase_add_test(tc, clock__tells_unix_time);
    tcase_add_test(tc, build_info__names_the_source);
}
