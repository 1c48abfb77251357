/*
 * read_speed - the backend's own way to read: its threads, its widest loads, its large pages. A
 * plainer loop reads slower and would flatter what is compared with it.
 */
#include "tests/bench/read_speed.h"

#include "base/clock.h"
#include "base/err.h"
#include "engine/cpu/cpu_backend.h"
#include "engine/cpu/cpu_kernels.h"
#include "engine/cpu/cpu_threads.h"
#include "tests/bench/bench.h"

#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#define READ_BYTES  ((size_t)1 << 30) /* well past every cache */
#define READ_GRAIN  ((size_t)1 << 21)
#define READ_PASSES 9

struct read_speed {
    const struct cpu_kernels *kern;
    struct cpu_threads *threads;
    char *data;
    uint64_t *sum; /* [n_threads], so that no read is left out */
};

static void read_items(void *arg, int64_t begin, int64_t end, int thread)
{
    struct read_speed *r = arg;

    r->sum[thread] += r->kern->stream_read(r->data + (size_t)begin * READ_GRAIN,
                                           (size_t)(end - begin) * READ_GRAIN);
}

static double read_once(struct read_speed *r)
{
    int64_t t0 = clock_ns();

    cpu_threads_run(r->threads, (int64_t)(READ_BYTES / READ_GRAIN), 1, read_items, r);
    return (double)READ_BYTES / (double)(clock_ns() - t0);
}

int read_speed_open(struct read_speed **out, int n_threads, bool pin, struct err *err)
{
    struct read_speed *r = calloc(1, sizeof(*r));
    enum cpu_isa isa;
    int rc;

    if (!r)
        return err_set(err, ERR_NO_ROOM, "read speed: out of memory");
    rc = cpu_isa_choose(&isa, err);
    if (rc < 0)
        goto out;
    r->kern = cpu_kernels_for(isa);
    rc = cpu_threads_open(&r->threads, n_threads, pin, err);
    if (rc < 0)
        goto out;
    r->sum = calloc((size_t)cpu_threads_count(r->threads), sizeof(*r->sum));
    r->data = cpu_memory_new(READ_BYTES);
    if (!r->sum || !r->data) {
        rc = err_set(err, ERR_NO_ROOM, "read speed: no room for %zu bytes", READ_BYTES);
        goto out;
    }
    memset(r->data, 1, READ_BYTES);
    *out = r;
    r = NULL;
out:
    read_speed_close(r);
    return rc;
}

void read_speed_close(struct read_speed *r)
{
    if (!r)
        return;
    cpu_threads_close(r->threads);
    cpu_memory_free(r->data);
    free(r->sum);
    free(r);
}

int read_speed_threads(const struct read_speed *r)
{
    return cpu_threads_count(r->threads);
}

double read_speed_measure(struct read_speed *r)
{
    double rate[READ_PASSES];

    read_once(r); /* warm-up */
    for (int i = 0; i < READ_PASSES; i++)
        rate[i] = read_once(r);
    return bench_median(rate, READ_PASSES);
}
