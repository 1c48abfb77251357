/*
 * cuda_prof - how long each op takes, in one step of many.
 *
 * A step that is replayed from a graph tells nothing about its ops. In every N-th step they are
 * launched one by one instead, with an event at each one's beginning; an op lasts until the next
 * begins. The host runs ahead of the device, so launches cost no time there unless ops are shorter
 * than they take to launch, as in very small models: their times then are the host's. What fails
 * here switches the timing off, with a warning, and no step. Engine thread only.
 */
#include "base/check.h"
#include "base/log.h"
#include "cuda/cuda_backend.h"

#include <stdlib.h>
#include <string.h>

#define MAX_MARKS 4096 /* ops of a step: 128 layers of 32 */

struct cuda_prof {
    int every;
    int64_t step; /* whose events are not read yet; 0: none */
    int n_marks, n_events;
    cudaEvent_t events[MAX_MARKS + 1]; /* [n_events] made when they are first needed */
    enum backend_op op[MAX_MARKS];
    double kv_bytes;
    struct op_cost cost[OP_COUNT]; /* of the step */
};

int cuda_prof_open(struct cuda_backend *cb, struct err *err)
{
    if (cb->params.time_every == 0)
        return 0;
    cb->prof = calloc(1, sizeof(*cb->prof));
    if (!cb->prof)
        return err_set(err, ERR_NO_ROOM, "cuda backend: no memory for %d events", MAX_MARKS);
    /* No two timed steps are under way at once. */
    cb->prof->every =
        cb->params.time_every > BACKEND_STEPS ? cb->params.time_every : BACKEND_STEPS + 1;
    return 0;
}

void cuda_prof_close(struct cuda_backend *cb)
{
    for (int i = 0; cb->prof && i < cb->prof->n_events; i++)
        cudaEventDestroy(cb->prof->events[i]);
    free(cb->prof);
    cb->prof = NULL;
}

static void give_up(struct cuda_backend *cb, const char *why)
{
    log_warn("ops are not timed any more: %s", why);
    cuda_prof_close(cb);
    cb->base.times_next = cb->is_timed = false;
}

static void give_up_on(struct cuda_backend *cb, cudaError_t code)
{
    cudaGetLastError(); /* it is told here, and must not be taken for the next op's */
    give_up(cb, cudaGetErrorString(code));
}

static void record(struct cuda_backend *cb)
{
    struct cuda_prof *p = cb->prof;
    cudaError_t rc;

    if (p->n_marks == p->n_events) {
        rc = cudaEventCreate(&p->events[p->n_events]);
        if (rc != cudaSuccess) {
            give_up_on(cb, rc);
            return;
        }
        p->n_events++;
    }
    rc = cudaEventRecord(p->events[p->n_marks], cb->stream);
    if (rc != cudaSuccess)
        give_up_on(cb, rc);
}

void cuda_prof_begin(struct cuda_backend *cb, const struct step_batch *batch)
{
    cb->is_timed = cb->base.times_next;
    if (!cb->is_timed)
        return;
    CHECK(cb->prof->step == 0);
    cb->prof->n_marks = 0;
    cb->prof->kv_bytes = batch->kv_bytes;
    memcpy(cb->prof->cost, cb->base.cost, sizeof(cb->prof->cost));
}

void cuda_prof_mark(struct cuda_backend *cb, enum backend_op op)
{
    struct cuda_prof *p = cb->prof;

    if (p->n_marks == MAX_MARKS) {
        give_up(cb, "a step has too many");
        return;
    }
    record(cb);
    if (cb->prof)
        p->op[p->n_marks++] = op;
}

void cuda_prof_end(struct cuda_backend *cb)
{
    struct cuda_prof *p = cb->prof;

    if (!p)
        return;
    if (cb->is_timed) {
        record(cb);
        if (!cb->prof)
            return;
        for (int i = 0; i < OP_COUNT; i++) {
            p->cost[i].n_calls = cb->base.cost[i].n_calls - p->cost[i].n_calls;
            p->cost[i].bytes = cb->base.cost[i].bytes - p->cost[i].bytes;
        }
        p->step = cb->base.n_steps;
    }
    cb->is_timed = false;
    cb->base.times_next = p->step == 0 && (cb->base.n_steps + 1) % p->every == 0;
}

void cuda_prof_take(struct cuda_backend *cb, int64_t step)
{
    struct cuda_prof *p = cb->prof;
    struct op_cost *cost = cb->base.cost;
    float ms;

    if (!p || p->step != step)
        return;
    p->step = 0;
    for (int i = 0; i < p->n_marks; i++) {
        cudaError_t rc = cudaEventElapsedTime(&ms, p->events[i], p->events[i + 1]);

        if (rc != cudaSuccess) {
            give_up_on(cb, rc);
            return;
        }
        cost[p->op[i]].ns += (int64_t)((double)ms * 1e6);
    }
    for (int i = 0; i < OP_COUNT; i++)
        cost[i].timed_bytes += p->cost[i].bytes;
    /* Attention's bytes are known of timed steps alone: each stands for all since the last one. */
    cost[OP_ATTN].timed_bytes += p->kv_bytes;
    cost[OP_ATTN].bytes += p->kv_bytes * p->every;
}
