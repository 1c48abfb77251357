/*
 * cpu_threads - one job at a time, announced by a ticket that workers watch and take items from.
 *
 * The join waits for items, never for workers: on a machine that others use too, a worker may be
 * off its core for milliseconds, and then the caller does the work alone. So a late worker can
 * look at a job that is over. The ticket makes that harmless:
 *
 *     ticket   [ job number : 32 | next item : 32 ]     next item CLOSED between jobs
 *
 * A worker reads ticket, then the job's fields, then takes items by exchanging the very ticket it
 * read. The caller closes the ticket before it changes a field, so an exchange that succeeds
 * proves that the fields belong to the job.
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
#define SPIN_NS     100000     /* longer than the engine's own work between two ops of a step */
#define SPIN_BURST  64         /* pauses between two looks at the clock */
#define YIELD_NS    20000      /* a join that takes longer may be short of cores: let others run */
#define CLOSED      UINT32_MAX /* the ticket's next item while there is no job */

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

    /* The job; written by the caller while the ticket is closed. */
    _Atomic(cpu_threads_fn *) fn;
    _Atomic(void *) arg;
    _Atomic uint32_t n_items, grain;

    _Alignas(64) _Atomic uint64_t ticket;
    _Alignas(64) _Atomic uint32_t n_done; /* items of the job that are finished */
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

static uint32_t ticket_job(uint64_t ticket)
{
    return (uint32_t)(ticket >> 32);
}

/* Takes items until none of job is left. */
static void work_on_job(struct cpu_threads *t, uint32_t job, int thread)
{
    uint64_t ticket = atomic_load_explicit(&t->ticket, memory_order_acquire);

    for (;;) {
        cpu_threads_fn *fn = atomic_load_explicit(&t->fn, memory_order_acquire);
        void *arg = atomic_load_explicit(&t->arg, memory_order_acquire);
        uint32_t n_items = atomic_load_explicit(&t->n_items, memory_order_acquire);
        uint32_t grain = atomic_load_explicit(&t->grain, memory_order_acquire);
        uint32_t begin = (uint32_t)ticket, end;

        if (ticket_job(ticket) != job || begin >= n_items)
            return; /* CLOSED is beyond every number of items */
        end = n_items - begin > grain ? begin + grain : n_items;
        if (!atomic_compare_exchange_weak_explicit(&t->ticket, &ticket, (uint64_t)job << 32 | end,
                                                   memory_order_acq_rel, memory_order_acquire))
            continue; /* ticket is now what it was found to be */
        fn(arg, begin, end, thread);
        atomic_fetch_add_explicit(&t->n_done, end - begin, memory_order_acq_rel);
        ticket = atomic_load_explicit(&t->ticket, memory_order_acquire);
    }
}

static void sleep_until_job(struct cpu_threads *t, uint32_t seen)
{
    pthread_mutex_lock(&t->mu);
    /* Sequentially consistent on both sides: either we see the job or its caller sees us. */
    atomic_fetch_add(&t->n_asleep, 1);
    while (ticket_job(atomic_load(&t->ticket)) == seen)
        pthread_cond_wait(&t->wake, &t->mu);
    atomic_fetch_sub(&t->n_asleep, 1);
    pthread_mutex_unlock(&t->mu);
}

/* The number of a job other than `seen`. */
static uint32_t wait_for_job(struct cpu_threads *t, uint32_t seen)
{
    int64_t until = clock_ns() + SPIN_NS;
    uint32_t job;

    do {
        for (int i = 0; i < SPIN_BURST; i++) {
            job = ticket_job(atomic_load_explicit(&t->ticket, memory_order_acquire));
            if (job != seen)
                return job;
            cpu_pause();
        }
    } while (clock_ns() < until);
    sleep_until_job(t, seen);
    return ticket_job(atomic_load_explicit(&t->ticket, memory_order_acquire));
}

static void *worker_main(void *arg)
{
    struct worker *w = arg;
    struct cpu_threads *t = w->pool;
    uint32_t job = 0;

    if (t->pin)
        pin_self(t->cores[w->index]);
    for (;;) {
        job = wait_for_job(t, job);
        if (atomic_load(&t->stop))
            return NULL;
        work_on_job(t, job, w->index);
    }
}

/* Opens the next job, whose fields are written. Returns its number. */
static uint32_t announce_job(struct cpu_threads *t)
{
    uint32_t job = ticket_job(atomic_load_explicit(&t->ticket, memory_order_relaxed)) + 1;

    atomic_store(&t->ticket, (uint64_t)job << 32);
    if (atomic_load(&t->n_asleep) > 0) {
        pthread_mutex_lock(&t->mu);
        pthread_cond_broadcast(&t->wake);
        pthread_mutex_unlock(&t->mu);
    }
    return job;
}

/* Waits until all items are finished, and closes the ticket. */
static void join_job(struct cpu_threads *t, uint32_t job, uint32_t n_items)
{
    int64_t yield_after = 0;

    while (atomic_load_explicit(&t->n_done, memory_order_acquire) != n_items) {
        for (int i = 0; i < SPIN_BURST; i++)
            cpu_pause();
        if (yield_after == 0)
            yield_after = clock_ns() + YIELD_NS;
        else if (clock_ns() > yield_after)
            sched_yield();
    }
    atomic_store(&t->ticket, (uint64_t)job << 32 | CLOSED);
}

void cpu_threads_run(struct cpu_threads *t, int64_t n_items, int64_t grain, cpu_threads_fn *fn,
                     void *arg)
{
    uint32_t job;

    if (n_items <= 0)
        return;
    CHECK(grain > 0);
    CHECK(n_items < CLOSED);
    if (t->pin && (!t->caller_is_pinned || !pthread_equal(t->pinned_caller, pthread_self()))) {
        pin_self(t->cores[0]);
        t->pinned_caller = pthread_self();
        t->caller_is_pinned = true;
    }
    if (t->n_threads == 1 || n_items <= grain) {
        fn(arg, 0, n_items, 0);
        return;
    }
    atomic_store_explicit(&t->fn, fn, memory_order_release);
    atomic_store_explicit(&t->arg, arg, memory_order_release);
    atomic_store_explicit(&t->n_items, (uint32_t)n_items, memory_order_release);
    atomic_store_explicit(&t->grain, (uint32_t)(grain < n_items ? grain : n_items),
                          memory_order_release);
    atomic_store_explicit(&t->n_done, 0, memory_order_release);
    job = announce_job(t);
    work_on_job(t, job, 0);
    join_job(t, job, (uint32_t)n_items);
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
    atomic_init(&t->ticket, CLOSED);
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
