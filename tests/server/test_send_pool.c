/*
 * The sends of a step, alone and shared among threads.
 */
#include "tests/lib/test.h"

#include "base/err.h"
#include "server/send_pool.h"

#include <errno.h>
#include <stdio.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

#define N_MOST                                                                                     \
    200 /* more than what wakes the threads, and no multiple of what one takes at once             \
         */

static int pairs[N_MOST][2];
static char texts[N_MOST][16];
static struct send_job jobs[N_MOST];

static void open_pairs(void)
{
    for (int i = 0; i < N_MOST; i++) {
        ck_assert_int_eq(socketpair(AF_UNIX, SOCK_STREAM, 0, pairs[i]), 0);
        snprintf(texts[i], sizeof(texts[i]), "event %d", i);
    }
}

static void close_pairs(void)
{
    for (int i = 0; i < N_MOST; i++) {
        close(pairs[i][0]);
        close(pairs[i][1]);
    }
}

static void fill_jobs(void)
{
    for (int i = 0; i < N_MOST; i++)
        jobs[i] = (struct send_job){
            .fd = pairs[i][0], .buf = texts[i], .len = strlen(texts[i]), .n_sent = -2};
}

/* Every job is sent once, whole, and to its own socket, however many threads take part. */
START_TEST(send_pool__sends_each_job_once)
{
    static const int threads[] = {0, 1, 5};
    struct send_pool *pool = NULL;
    struct err err = {0};
    char got[64];

    if (threads[_i])
        ck_assert_int_eq(send_pool_open(&pool, threads[_i], &err), 0);
    for (int round = 0; round < 50; round++) {
        int n = round % 2 ? N_MOST : round;

        fill_jobs();
        send_pool_run(pool, jobs, n);
        for (int i = 0; i < N_MOST; i++) {
            ssize_t n_got = recv(pairs[i][1], got, sizeof(got), MSG_DONTWAIT);

            ck_assert_int_eq(n_got, i < n ? (ssize_t)strlen(texts[i]) : -1);
            ck_assert_int_eq(jobs[i].n_sent, i < n ? n_got : -2);
            if (i < n)
                ck_assert_int_eq(memcmp(got, texts[i], (size_t)n_got), 0);
        }
    }
    send_pool_close(pool);
}
END_TEST

/* A full socket and a closed one are told apart, and hold nobody up. */
START_TEST(send_pool__tells_what_the_kernel_says)
{
    struct send_pool *pool = NULL;
    struct err err = {0};
    char filler[4096] = {0};

    ck_assert_int_eq(send_pool_open(&pool, 2, &err), 0);
    while (send(pairs[3][0], filler, sizeof(filler), MSG_DONTWAIT) > 0)
        ;
    close(pairs[90][1]);
    fill_jobs();
    send_pool_run(pool, jobs, N_MOST);
    for (int i = 0; i < N_MOST; i++) {
        ck_assert_int_eq(jobs[i].error, i == 3 ? EAGAIN : i == 90 ? EPIPE : 0);
        ck_assert_int_eq(jobs[i].n_sent, jobs[i].error ? -1 : (ssize_t)jobs[i].len);
    }
    send_pool_close(pool);
}
END_TEST

TEST_SUITE(send_pool)
{
    TCase *tc = test_case(suite, "sends");

    tcase_add_checked_fixture(tc, open_pairs, close_pairs);
    tcase_add_loop_test(tc, send_pool__sends_each_job_once, 0, 3);
    tcase_add_test(tc, send_pool__tells_what_the_kernel_says);
}
