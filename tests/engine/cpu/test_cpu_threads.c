/*
 * The pool: every item once, any number of threads and items, sleeping workers wake up.
 */
#include "base/err.h"
#include "engine/cpu/cpu_threads.h"
#include "tests/lib/test.h"

#include <stdlib.h>
#include <string.h>
#include <time.h>

struct tally {
    int *count; /* how often an item was worked on; no two threads share one */
    int max_thread;
};

static void tally_items(void *arg, int64_t begin, int64_t end, int thread)
{
    struct tally *t = arg;

    if (thread < 0 || thread >= t->max_thread)
        abort(); /* Check's assertions are not for threads */
    for (int64_t i = begin; i < end; i++)
        t->count[i]++;
}

static struct cpu_threads *open_threads(int n, bool pin)
{
    struct cpu_threads *t = NULL;
    struct err err = {0};

    ck_assert_msg(cpu_threads_open(&t, n, pin, &err) == 0, "%s", err.msg);
    return t;
}

/* Each item is worked on exactly once, whatever the grain. */
START_TEST(cpu_threads__deals_each_item_once)
{
    struct cpu_threads *t = open_threads(_i, false);
    int count[1000];

    for (int n = 0; n <= 1000; n = n * 2 + 1) {
        for (int grain = 1; grain <= 1024; grain *= 4) {
            struct tally tally = {.count = count, .max_thread = _i};

            memset(count, 0, sizeof(count));
            cpu_threads_run(t, n, grain, tally_items, &tally);
            for (int i = 0; i < 1000; i++)
                ck_assert_int_eq(count[i], i < n);
        }
    }
    cpu_threads_close(t);
}
END_TEST

/* Thousands of short jobs one after another, as a step has them: what one wrote the next reads. */
START_TEST(cpu_threads__joins_between_jobs)
{
    struct cpu_threads *t = open_threads(4, true);
    int count[64] = {0};
    struct tally tally = {.count = count, .max_thread = 4};

    for (int i = 0; i < 2000; i++)
        cpu_threads_run(t, 64, 1 + i % 7, tally_items, &tally);
    for (int i = 0; i < 64; i++)
        ck_assert_int_eq(count[i], 2000);
    cpu_threads_close(t);
}
END_TEST

/* Workers that went to sleep take part in the next job. */
START_TEST(cpu_threads__wakes_sleeping_workers)
{
    struct cpu_threads *t = open_threads(3, false);
    struct timespec nap = {.tv_nsec = 2000000};
    int count[32] = {0};
    struct tally tally = {.count = count, .max_thread = 3};

    for (int i = 0; i < 20; i++) {
        nanosleep(&nap, NULL); /* longer than workers spin: the state under test */
        cpu_threads_run(t, 32, 1, tally_items, &tally);
    }
    for (int i = 0; i < 32; i++)
        ck_assert_int_eq(count[i], 20);
    cpu_threads_close(t);
}
END_TEST

/* Zero asks for every core this process may use; closing NULL is fine. */
START_TEST(cpu_threads__counts_cores)
{
    struct cpu_threads *t = open_threads(0, false);

    ck_assert_int_ge(cpu_threads_available(), 1);
    ck_assert_int_eq(cpu_threads_count(t), cpu_threads_available());
    cpu_threads_close(t);
    cpu_threads_close(NULL);
}
END_TEST

TEST_SUITE(cpu_threads)
{
    TCase *tc = test_case(suite, "core");

    tcase_add_loop_test(tc, cpu_threads__deals_each_item_once, 1, 6);
    tcase_add_test(tc, cpu_threads__joins_between_jobs);
    tcase_add_test(tc, cpu_threads__wakes_sleeping_workers);
    tcase_add_test(tc, cpu_threads__counts_cores);
}
