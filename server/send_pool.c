/*
 * send_pool - a fork and a join around send().
 */
#include "server/send_pool.h"

#include "base/err.h"

#include <errno.h>
#include <pthread.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stdlib.h>
#include <sys/socket.h>

#define TAKEN_AT_ONCE 8  /* jobs: some 50 us of work between two looks at the shared counter */
#define WORTH_WAKING  64 /* jobs: fewer are sent sooner than the threads are awake */

struct send_pool {
    pthread_mutex_t mu; /* guards all below but next */
    pthread_cond_t work, idle;
    struct send_job *jobs; /* [n_jobs] NULL: nothing to join in */
    int n_jobs, n_working;
    bool closing;
    atomic_int next; /* the first job that nobody has taken */
    int n_threads;
    pthread_t threads[];
};

static void send_one(struct send_job *job)
{
    do
        job->n_sent = send(job->fd, job->buf, job->len, MSG_DONTWAIT | MSG_NOSIGNAL);
    while (job->n_sent < 0 && errno == EINTR);
    job->error = job->n_sent < 0 ? errno : 0;
}

static void take_jobs(struct send_pool *pool, struct send_job *jobs, int n_jobs)
{
    int at;

    while ((at = atomic_fetch_add(&pool->next, TAKEN_AT_ONCE)) < n_jobs) {
        for (int i = at; i < at + TAKEN_AT_ONCE && i < n_jobs; i++)
            send_one(&jobs[i]);
    }
}

static void *run(void *arg)
{
    struct send_pool *pool = arg;

    pthread_setname_np(pthread_self(), "spand-send");
    pthread_mutex_lock(&pool->mu);
    while (!pool->closing) {
        struct send_job *jobs = pool->jobs;
        int n_jobs = pool->n_jobs;

        if (!jobs || atomic_load(&pool->next) >= n_jobs) {
            pthread_cond_wait(&pool->work, &pool->mu);
            continue;
        }
        pool->n_working++;
        pthread_mutex_unlock(&pool->mu);
        take_jobs(pool, jobs, n_jobs);
        pthread_mutex_lock(&pool->mu);
        if (--pool->n_working == 0)
            pthread_cond_signal(&pool->idle);
    }
    pthread_mutex_unlock(&pool->mu);
    return NULL;
}

int send_pool_open(struct send_pool **out, int n_threads, struct err *err)
{
    struct send_pool *pool = calloc(1, sizeof(*pool) + (size_t)n_threads * sizeof(pthread_t));

    if (!pool)
        return err_set(err, ERR_NO_ROOM, "no memory for %d threads that send", n_threads);
    pthread_mutex_init(&pool->mu, NULL);
    pthread_cond_init(&pool->work, NULL);
    pthread_cond_init(&pool->idle, NULL);
    for (int i = 0; i < n_threads; i++) {
        if (pthread_create(&pool->threads[i], NULL, run, pool) != 0) {
            send_pool_close(pool);
            return err_set(err, ERR_IO, "thread %d of %d that send does not start", i, n_threads);
        }
        pool->n_threads++;
    }
    *out = pool;
    return 0;
}

void send_pool_run(struct send_pool *pool, struct send_job *jobs, int n_jobs)
{
    if (!pool || n_jobs < WORTH_WAKING) {
        for (int i = 0; i < n_jobs; i++)
            send_one(&jobs[i]);
        return;
    }
    pthread_mutex_lock(&pool->mu);
    pool->jobs = jobs;
    pool->n_jobs = n_jobs;
    atomic_store(&pool->next, 0);
    pthread_cond_broadcast(&pool->work);
    pthread_mutex_unlock(&pool->mu);
    take_jobs(pool, jobs, n_jobs);
    pthread_mutex_lock(&pool->mu);
    pool->jobs = NULL; /* who wakes now has come too late, and need not be waited for */
    while (pool->n_working > 0)
        pthread_cond_wait(&pool->idle, &pool->mu);
    pthread_mutex_unlock(&pool->mu);
}

void send_pool_close(struct send_pool *pool)
{
    if (!pool)
        return;
    pthread_mutex_lock(&pool->mu);
    pool->closing = true;
    pthread_cond_broadcast(&pool->work);
    pthread_mutex_unlock(&pool->mu);
    for (int i = 0; i < pool->n_threads; i++)
        pthread_join(pool->threads[i], NULL);
    pthread_cond_destroy(&pool->idle);
    pthread_cond_destroy(&pool->work);
    pthread_mutex_destroy(&pool->mu);
    free(pool);
}
