/*
 * engine_loop - the engine thread: drain the inbox, queue a step, take the results of the oldest
 * one, tell.
 *
 * It holds e->mu but while a step is handed to the backend or waited for. With nothing to run it
 * sleeps on the inbox: a cancel needs no wake-up, since whoever could be cancelled keeps the thread
 * busy or lies in the inbox.
 */
#include "base/check.h"
#include "base/clock.h"
#include "base/log.h"
#include "engine/engine_step.h"
#include "engine/kv/kv_sweep.h"

static struct request *request_of(const struct sched_seq *seq)
{
    return seq->owner;
}

static void drain_inbox(struct engine *e)
{
    size_t n = ring_queue_pop_many(&e->inbox, e->drained, (size_t)e->live.n_max);

    for (size_t i = 0; i < n; i++) {
        step_trace_add(e->trace, &e->sched, &e->drained[i]->seq);
        scheduler_add(&e->sched, &e->drained[i]->seq);
        /* Its cancel may have been looked for before it could be found. */
        if (atomic_load(&e->drained[i]->cancel))
            atomic_store(&e->cancel_pending, true);
    }
}

static bool cancel_in(struct engine *e, struct sched_list *list, bool all)
{
    bool any = false;

    for (struct sched_seq *seq = list->head, *next; seq; seq = next) {
        struct request *r = request_of(seq);

        next = seq->next;
        if (!all && !atomic_load(&r->cancel))
            continue;
        engine_step_end_request(e, r, FINISH_CANCELED, NULL);
        any = true;
    }
    return any;
}

/* True when somebody was. */
static bool cancel_flagged(struct engine *e, bool all)
{
    bool any = cancel_in(e, &e->sched.running, all);

    return cancel_in(e, &e->sched.waiting, all) || any;
}

/* Ends who waited too long for a first seat. */
static bool expire_waiting(struct engine *e)
{
    int64_t now_ns = e->queue_timeout_ns ? clock_ns() : 0;
    bool any = false;

    for (struct sched_seq *seq = e->sched.waiting.head, *next; now_ns && seq; seq = next) {
        struct request *r = request_of(seq);

        next = seq->next;
        if (r->start_ns)
            continue; /* preempted: it has its promise */
        if (now_ns - r->submit_ns < e->queue_timeout_ns)
            continue;
        engine_step_end_request(e, r, FINISH_ERROR, "no seat became free within queue_timeout_ms");
        any = true;
    }
    return any;
}

/* kv_sweep_steps: ends the process when a page has two owners or none. */
static void sweep_pages(struct engine *e)
{
    struct err err = {0};
    struct kv_sweep sweep;
    int rc = kv_sweep_slots(&sweep, &e->kv, engine_cache_refs(e), &err);

    if (rc < 0)
        log_error("key-value pool: %s", err.msg);
    CHECK(rc == 0 || rc == ERR_NO_ROOM);
}

static void tell_outside(struct engine *e)
{
    e->news_is_due = false;
    outbox_signal(&e->outbox);
    if (e->hooks.wake)
        e->hooks.wake(e->hooks.arg);
}

/* Queues a step and takes the results of those that need not run on meanwhile. */
static bool turn(struct engine *e, bool *taken)
{
    bool queued = engine_step_queue(e);

    *taken = e->n_queued > (queued ? e->run_ahead : 0);
    if (*taken)
        engine_step_take(e);
    return queued || *taken;
}

void *engine_loop(void *arg)
{
    struct engine *e = arg;
    int n_unswept = 0; /* steps */

    pthread_setname_np(pthread_self(), "spand-engine");
    pthread_mutex_lock(&e->mu);
    for (;;) {
        struct engine_pages pages;
        bool ended, ran, taken;

        drain_inbox(e);
        ended = atomic_exchange(&e->cancel_pending, false) && cancel_flagged(e, false);
        ended = expire_waiting(e) || ended;
        if (atomic_load(&e->closing))
            break;
        ran = turn(e, &taken);
        n_unswept += taken;
        if (e->sweep_steps && (n_unswept >= e->sweep_steps || !ran)) {
            sweep_pages(e);
            n_unswept = 0;
        }
        /* Tokens of a block are told together. */
        if ((taken || ended) && e->news_is_due && outbox_n_listed(&e->outbox) > 0)
            tell_outside(e);
        if (ran)
            continue;
        CHECK(e->sched.running.n == 0);
        CHECK(e->sched.waiting.n == 0);
        pages = engine_count_pages(e);
        stats_idle(&e->stats, e->sched.waiting.n, e->sched.running.n, kv_pool_used(&e->kv.pool),
                   &pages);
        step_trace_flush(e->trace);
        pthread_mutex_unlock(&e->mu);
        ring_queue_wait(&e->inbox, -1);
        pthread_mutex_lock(&e->mu);
    }
    while (e->n_queued > 0)
        engine_step_take(e);
    drain_inbox(e);
    cancel_flagged(e, true);
    tell_outside(e);
    pthread_mutex_unlock(&e->mu);
    return NULL;
}
