/*
 * Tests of base/ring_queue.c: order, bound, waking, closing, and several threads at once.
 */
#include "tests/lib/test.h"

#include "base/clock.h"
#include "base/err.h"
#include "base/ring_queue.h"

#include <stdint.h>

#define N_PUSHERS  4
#define N_EACH     20000
#define NS_FOREVER -1
#define NS_SECOND  1000000000

static struct ring_queue q;

static void setup(void)
{
    ck_assert_int_eq(ring_queue_init(&q, sizeof(int), 5, NULL), 0);
}

static void teardown(void)
{
    ring_queue_release(&q);
}

/* What goes in first comes out first, over many turns of the ring. */
START_TEST(ring_queue__keeps_the_order)
{
    int next_in = 0, next_out = 0, got[5];

    for (int turn = 0; turn < 100; turn++) {
        for (int i = 0; i < turn % 5 + 1; i++, next_in++)
            ck_assert(ring_queue_push(&q, &next_in));
        while (next_out < next_in) {
            size_t n = ring_queue_pop_many(&q, got, 2);

            ck_assert_uint_gt(n, 0);
            for (size_t i = 0; i < n; i++)
                ck_assert_int_eq(got[i], next_out++);
        }
    }
}
END_TEST

/* The bound holds, and one pop makes room for one push. */
START_TEST(ring_queue__refuses_when_full)
{
    int item = 0;

    for (int i = 0; i < 5; i++)
        ck_assert(ring_queue_push(&q, &i));
    ck_assert(!ring_queue_push(&q, &item));
    ck_assert_uint_eq(ring_queue_len(&q), 5);
    ck_assert_uint_eq(ring_queue_pop_many(&q, &item, 1), 1);
    ck_assert_int_eq(item, 0);
    ck_assert(ring_queue_push(&q, &item));
    ck_assert(!ring_queue_push(&q, &item));
}
END_TEST

/* Popping an empty queue, or for room for none, takes nothing and does not wait. */
START_TEST(ring_queue__pops_nothing_without_waiting)
{
    int item = 7;

    ck_assert_uint_eq(ring_queue_pop_many(&q, &item, 1), 0);
    ring_queue_push(&q, &item);
    ck_assert_uint_eq(ring_queue_pop_many(&q, NULL, 0), 0);
    ck_assert_uint_eq(ring_queue_len(&q), 1);
}
END_TEST

/* Waiting for nothing ends at its time limit and says that nothing came. */
START_TEST(ring_queue__gives_up_at_the_time_limit)
{
    int64_t start = clock_ns();

    ck_assert(!ring_queue_wait(&q, 0));
    ck_assert(!ring_queue_wait(&q, 20000000));
    ck_assert_int_ge(clock_ns() - start, 20000000);
}
END_TEST

/* An item that is already there ends any wait at once. */
START_TEST(ring_queue__does_not_wait_for_what_is_there)
{
    int item = 1;

    ring_queue_push(&q, &item);
    ck_assert(ring_queue_wait(&q, NS_FOREVER));
    ck_assert(ring_queue_wait(&q, 0));
}
END_TEST

/* A closed queue refuses pushes, hands out what it holds, and no longer waits. */
START_TEST(ring_queue__drains_after_closing)
{
    int item = 3, got = 0;

    ring_queue_push(&q, &item);
    ring_queue_close(&q);
    ck_assert(!ring_queue_push(&q, &item));
    ck_assert(ring_queue_wait(&q, NS_FOREVER));
    ck_assert_uint_eq(ring_queue_pop_many(&q, &got, 1), 1);
    ck_assert_int_eq(got, 3);
    ck_assert(!ring_queue_wait(&q, NS_FOREVER));
}
END_TEST

static void *close_it(void *arg)
{
    ring_queue_close(arg);
    return NULL;
}

/* Closing wakes a waiter that has no time limit. */
START_TEST(ring_queue__wakes_waiters_on_close)
{
    pthread_t thread;

    ck_assert_int_eq(pthread_create(&thread, NULL, close_it, &q), 0);
    ck_assert(!ring_queue_wait(&q, NS_FOREVER));
    pthread_join(thread, NULL);
}
END_TEST

struct pusher {
    struct ring_queue *q;
    uint32_t id;
};

static void *push_many(void *arg)
{
    struct pusher *p = arg;

    for (uint32_t i = 0; i < N_EACH; i++) {
        uint64_t item = (uint64_t)p->id << 32 | i;

        while (!ring_queue_push(p->q, &item))
            sched_yield();
    }
    return NULL;
}

/* Several pushers against one popper: nothing is lost or doubled, each keeps its own order. */
START_TEST(ring_queue__loses_nothing_between_threads)
{
    struct ring_queue wide;
    pthread_t threads[N_PUSHERS];
    struct pusher pushers[N_PUSHERS];
    uint32_t next[N_PUSHERS] = {0};
    uint64_t got[16];
    int n_left = N_PUSHERS * N_EACH;

    ck_assert_int_eq(ring_queue_init(&wide, sizeof(uint64_t), 64, NULL), 0);
    for (uint32_t i = 0; i < N_PUSHERS; i++) {
        pushers[i] = (struct pusher){.q = &wide, .id = i};
        ck_assert_int_eq(pthread_create(&threads[i], NULL, push_many, &pushers[i]), 0);
    }
    while (n_left > 0) {
        size_t n;

        ck_assert(ring_queue_wait(&wide, 30LL * NS_SECOND));
        n = ring_queue_pop_many(&wide, got, 16);
        for (size_t i = 0; i < n; i++)
            ck_assert_uint_eq((uint32_t)got[i], next[got[i] >> 32]++);
        n_left -= (int)n;
    }
    for (int i = 0; i < N_PUSHERS; i++)
        pthread_join(threads[i], NULL);
    ck_assert_uint_eq(ring_queue_len(&wide), 0);
    ring_queue_release(&wide);
}
END_TEST

/* NULL and a queue that was never opened can be released. */
START_TEST(ring_queue__releases_what_holds_nothing)
{
    struct ring_queue zeroed = {0};

    ring_queue_release(NULL);
    ring_queue_release(&zeroed);
}
END_TEST

#if !defined(__SANITIZE_ADDRESS__) && !defined(__SANITIZE_THREAD__) /* which abort on such sizes   \
                                                                     */
/* A capacity whose bytes overflow is refused with its numbers. */
START_TEST(ring_queue__refuses_a_size_that_overflows)
{
    struct ring_queue huge;
    struct err err = {0};

    ck_assert_int_eq(ring_queue_init(&huge, 64, SIZE_MAX / 16, &err), ERR_NO_ROOM);
    ck_assert_int_eq(err.code, ERR_NO_ROOM);
    ring_queue_release(&huge);
}
END_TEST
#endif

TEST_SUITE(ring_queue)
{
    TCase *tc = test_case(suite, "core");

    tcase_add_checked_fixture(tc, setup, teardown);
    tcase_add_test(tc, ring_queue__keeps_the_order);
    tcase_add_test(tc, ring_queue__refuses_when_full);
    tcase_add_test(tc, ring_queue__pops_nothing_without_waiting);
    tcase_add_test(tc, ring_queue__gives_up_at_the_time_limit);
    tcase_add_test(tc, ring_queue__does_not_wait_for_what_is_there);
    tcase_add_test(tc, ring_queue__drains_after_closing);
    tcase_add_test(tc, ring_queue__wakes_waiters_on_close);
    tcase_add_test(tc, ring_queue__loses_nothing_between_threads);
    tcase_add_test(tc, ring_queue__releases_what_holds_nothing);
#if !defined(__SANITIZE_ADDRESS__) && !defined(__SANITIZE_THREAD__)
    tcase_add_test(tc, ring_queue__refuses_a_size_that_overflows);
#endif
}
