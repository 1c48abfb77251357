/*
 * cpu_threads - one job at a time, announced by a counter that workers watch.
 *
 * Everyone takes part in every job, the late ones only to find it finished: the join waits for
 * each worker, so a job's fields are never written while somebody still reads them.
 */
#include "engine/cpu/cpu_threads.h"

#include "base/check.h"
#include "base/clock.h"
#include "base/err.h"

#include <errno.h>
#include <pthread.h>
#include <sched.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define MAX_THREADS 256
#define SPIN_NS     100000 /* longer than the engine's own work between two ops of a step */
#define SPIN_BURST  64     /* pauses between two looks at the clock */
#define YIELD_NS    20000  /* a join that takes longer may be short of cores: let others run */

struct worker {
    struct cpu_threads *pool;
    pthread_t thread;
    int index;
    bool started;
};

struct cpu_threads {
    int n_threads;
    bool pin;
    int cores[MAX_THREADS]; /* where thread i is pinned */
    struct worker *workers; /* [n_threads]; the first is the caller and has no thread */

    /* The job; written by the caller before job_seq moves, read by workers after. */
    cpu_threads_fn *fn;
    void *arg;
    int64_t n_items, grain;

    _Alignas(64) atomic_int_fast64_t next_item;
    _Alignas(64) atomic_uint job_seq;
    _Alignas(64) atomic_int n_busy; /* workers that have not finished the job */
    _Alignas(64) atomic_int n_asleep;
    atomic_bool stop;
    pthread_mutex_t mu; /* for sleeping only */
    pthread_cond_t wake;
    pthread_t pinned_caller;
    bool caller_is_pinned;
};

static inline void cpu_pause(void)
{
#if defined(__x86_64__)
    __builtin_ia32_pause();
#endif
}

/* True when cpu is the first of its core's hardware threads that this process may use. */
static bool core_is_first_sibling(int cpu, const cpu_set_t *allowed)
{
    char path[96], text[128];
    bool first = true;
    FILE *f;

    snprintf(path, sizeof(path), "/sys/devices/system/cpu/cpu%d/topology/thread_siblings_list",
             cpu);
    f = fopen(path, "r");
    if (!f)
        return true;
    if (fgets(text, sizeof(text), f)) {
        /* "0,32" or "0-1": only the numbers before our own matter. */
        for (char *p = text; *p >= '0' && *p <= '9';) {
            long lo = strtol(p, &p, 10), hi = lo;

            if (*p == '-')
                hi = strtol(p + 1, &p, 10);
            for (long c = lo; c <= hi && c < cpu; c++) {
                if (CPU_ISSET((size_t)c, allowed))
                    first = false;
            }
            if (*p == ',')
                p++;
        }
    }
    fclose(f);
    return first;
}

/* Whole cores of the cgroup's quota, or max when it sets none. */
static int cgroup_quota_cores(int max)
{
    long long quota, period;
    int n = max;
    FILE *f = fopen("/sys/fs/cgroup/cpu.max", "r");

    if (!f)
        return max;
    if (fscanf(f, "%lld %lld", &quota, &period) == 2 && quota > 0 && period > 0) {
        long long cores = (quota + period - 1) / period;

        if (cores < n)
            n = (int)cores;
    }
    fclose(f);
    return n < 1 ? 1 : n;
}

static int list_cores(int cores[MAX_THREADS])
{
    cpu_set_t allowed;
    int n = 0;

    if (sched_getaffinity(0, sizeof(allowed), &allowed) != 0) {
        cores[0] = 0;
        return 1;
    }
    for (int cpu = 0; cpu < CPU_SETSIZE && n < MAX_THREADS; cpu++) {
        if (CPU_ISSET((size_t)cpu, &allowed) && core_is_first_sibling(cpu, &allowed))
            cores[n++] = cpu;
    }
    if (n == 0)
        cores[n++] = 0;
    return n;
}

int cpu_threads_available(void)
{
    int cores[MAX_THREADS];

    return cgroup_quota_cores(list_cores(cores));
}

static void pin_self(int core)
{
    cpu_set_t set;

    CPU_ZERO(&set);
    CPU_SET((size_t)core, &set);
    /* Pinning is a wish: a cpuset that changed since open must not stop the daemon. */
    (void)pthread_setaffinity_np(pthread_self(), sizeof(set), &set);
}

static void work_on_job(struct cpu_threads *t, int thread)
{
    for (;;) {
        int64_t begin = atomic_fetch_add_explicit(&t->next_item, t->grain, memory_order_relaxed);
        int64_t end = begin + t->grain;

        if (begin >= t->n_items)
            return;
        t->fn(t->arg, begin, end < t->n_items ? end : t->n_items, thread);
    }
}

static void sleep_until_job(struct cpu_threads *t, unsigned seen)
{
    pthread_mutex_lock(&t->mu);
    /* Sequentially consistent on both sides: either we see the job or its caller sees us. */
    atomic_fetch_add(&t->n_asleep, 1);
    while (atomic_load(&t->job_seq) == seen)
        pthread_cond_wait(&t->wake, &t->mu);
    atomic_fetch_sub(&t->n_asleep, 1);
    pthread_mutex_unlock(&t->mu);
}

static void wait_for_job(struct cpu_threads *t, unsigned seen)
{
    int64_t until = clock_ns() + SPIN_NS;

    do {
        for (int i = 0; i < SPIN_BURST; i++) {
            if (atomic_load_explicit(&t->job_seq, memory_order_acquire) != seen)
                return;
            cpu_pause();
        }
    } while (clock_ns() < until);
    sleep_until_job(t, seen);
}

static void *worker_main(void *arg)
{
    struct worker *w = arg;
    struct cpu_threads *t = w->pool;
    unsigned seen = 0;

    if (t->pin)
        pin_self(t->cores[w->index]);
    for (;;) {
        wait_for_job(t, seen);
        seen++;
        if (atomic_load(&t->stop))
            return NULL;
        work_on_job(t, w->index);
        atomic_fetch_sub_explicit(&t->n_busy, 1, memory_order_acq_rel);
    }
}

static void announce_job(struct cpu_threads *t)
{
    atomic_fetch_add(&t->job_seq, 1);
    if (atomic_load(&t->n_asleep) > 0) {
        pthread_mutex_lock(&t->mu);
        pthread_cond_broadcast(&t->wake);
        pthread_mutex_unlock(&t->mu);
    }
}

static void join_workers(struct cpu_threads *t)
{
    int64_t yield_after = 0;

    for (;;) {
        for (int i = 0; i < SPIN_BURST; i++) {
            if (atomic_load_explicit(&t->n_busy, memory_order_acquire) == 0)
                return;
            cpu_pause();
        }
        if (yield_after == 0)
            yield_after = clock_ns() + YIELD_NS;
        else if (clock_ns() > yield_after)
            sched_yield();
    }
}

void cpu_threads_run(struct cpu_threads *t, int64_t n_items, int64_t grain, cpu_threads_fn *fn,
                     void *arg)
{
    if (n_items <= 0)
        return;
    CHECK(grain > 0);
    if (t->pin && (!t->caller_is_pinned || !pthread_equal(t->pinned_caller, pthread_self()))) {
        pin_self(t->cores[0]);
        t->pinned_caller = pthread_self();
        t->caller_is_pinned = true;
    }
    if (t->n_threads == 1 || n_items <= grain) {
        fn(arg, 0, n_items, 0);
        return;
    }
    t->fn = fn;
    t->arg = arg;
    t->n_items = n_items;
    t->grain = grain;
    atomic_store_explicit(&t->next_item, 0, memory_order_relaxed);
    atomic_store_explicit(&t->n_busy, t->n_threads - 1, memory_order_relaxed);
    announce_job(t);
    work_on_job(t, 0);
    join_workers(t);
}

int cpu_threads_count(const struct cpu_threads *t)
{
    return t->n_threads;
}

void cpu_threads_close(struct cpu_threads *t)
{
    if (!t)
        return;
    atomic_store(&t->stop, true);
    announce_job(t);
    for (int i = 1; t->workers && i < t->n_threads; i++) {
        if (t->workers[i].started)
            pthread_join(t->workers[i].thread, NULL);
    }
    pthread_cond_destroy(&t->wake);
    pthread_mutex_destroy(&t->mu);
    free(t->workers);
    free(t);
}

int cpu_threads_open(struct cpu_threads **out, int n_threads, bool pin, struct err *err)
{
    int rc = 0, n_cores;
    struct cpu_threads *t = aligned_alloc(64, (sizeof(*t) + 63) / 64 * 64);

    if (!t)
        return err_set(err, ERR_NO_ROOM, "cpu threads: out of memory");
    memset(t, 0, sizeof(*t));
    pthread_mutex_init(&t->mu, NULL);
    pthread_cond_init(&t->wake, NULL);
    n_cores = list_cores(t->cores);
    if (n_threads <= 0)
        n_threads = cgroup_quota_cores(n_cores);
    if (n_threads > MAX_THREADS)
        n_threads = MAX_THREADS;
    for (int i = n_cores; i < n_threads; i++)
        t->cores[i] = t->cores[i % n_cores];
    t->n_threads = n_threads;
    t->pin = pin;
    t->workers = calloc((size_t)n_threads, sizeof(*t->workers));
    if (!t->workers) {
        rc = err_set(err, ERR_NO_ROOM, "cpu threads: out of memory");
        goto out;
    }
    for (int i = 1; i < n_threads; i++) {
        struct worker *w = &t->workers[i];
        int error;

        w->pool = t;
        w->index = i;
        error = pthread_create(&w->thread, NULL, worker_main, w);
        if (error) {
            rc = err_set_errno(err, ERR_IO, error, "cpu threads: thread %d of %d", i, n_threads);
            goto out;
        }
        w->started = true;
    }
    *out = t;
    t = NULL; /* the caller owns it now */
out:
    cpu_threads_close(t);
    return rc;
}
