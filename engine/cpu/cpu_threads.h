/*
 * cpu_threads - the CPU backend's own threads: fork, share items, join.
 *
 * One thread calls run; it works as thread 0 beside the workers. Workers spin for a moment after
 * a job, then sleep, so that a step's ops follow each other within a microsecond and an idle
 * daemon burns nothing. Nothing is allocated after open.
 */
#ifndef CPU_THREADS_H
#define CPU_THREADS_H

#include <stdbool.h>
#include <stdint.h>

struct err;
struct cpu_threads;

/* Works on items begin <= i < end; thread < cpu_threads_count(), for scratch of its own. */
typedef void cpu_threads_fn(void *arg, int64_t begin, int64_t end, int thread);

/* Physical cores this process may use: its affinity mask without SMT siblings, and its quota. */
int cpu_threads_available(void);

/*
 * n_threads 0 takes cpu_threads_available(). With pin each thread stays on one core, the calling
 * thread from its first run on. ERR_NO_ROOM, ERR_IO.
 */
int cpu_threads_open(struct cpu_threads **out, int n_threads, bool pin, struct err *err);

/* Ends the workers. Accepts NULL. */
void cpu_threads_close(struct cpu_threads *t);

int cpu_threads_count(const struct cpu_threads *t);

/*
 * Deals n_items out in runs of at most grain, first come first served, and returns when all are
 * done. Which thread gets what differs from call to call: results may not depend on it.
 */
void cpu_threads_run(struct cpu_threads *t, int64_t n_items, int64_t grain, cpu_threads_fn *fn,
                     void *arg);

#endif
