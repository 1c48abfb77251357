/*
 * stats - the engine's counters. See stats.h.
 */
#include "engine/stats.h"

#include "base/clock.h"
#include "base/strbuf.h"

#include <assert.h>

static_assert(OP_COUNT <= sizeof(((struct engine_stats *)0)->ops) /
                              sizeof(((struct engine_stats *)0)->ops[0]),
              "every op has its line");

void stats_init(struct stats *s, int64_t pages_total, double memory_bytes_per_s)
{
    *s = (struct stats){0};
    pthread_mutex_init(&s->mu, NULL);
    s->now.pages_total = pages_total;
    s->now.memory_bytes_per_s = memory_bytes_per_s;
    s->now.healthy = true;
    s->now.n_ops = OP_COUNT;
    for (int i = 0; i < OP_COUNT; i++)
        s->now.ops[i].name = backend_op_name((enum backend_op)i);
}

void stats_release(struct stats *s)
{
    pthread_mutex_destroy(&s->mu);
}

void stats_submitted(struct stats *s)
{
    pthread_mutex_lock(&s->mu);
    s->now.n_submitted++;
    pthread_mutex_unlock(&s->mu);
}

void stats_rejected(struct stats *s, enum engine_refusal why)
{
    pthread_mutex_lock(&s->mu);
    s->now.n_rejected++;
    if (why < REFUSED_COUNT)
        s->now.n_refused[why]++;
    pthread_mutex_unlock(&s->mu);
}

void stats_finished(struct stats *s, enum finish_reason reason)
{
    pthread_mutex_lock(&s->mu);
    s->now.n_finished[reason]++;
    pthread_mutex_unlock(&s->mu);
}

void stats_idle(struct stats *s, int64_t n_waiting, int64_t n_running, int64_t pages_used,
                const struct engine_pages *pages)
{
    pthread_mutex_lock(&s->mu);
    s->now.n_waiting = n_waiting;
    s->now.n_running = n_running;
    s->now.pages_used = pages_used;
    s->now.pages = *pages;
    if (n_waiting == 0)
        s->now.waiting_tokens = 0;
    pthread_mutex_unlock(&s->mu);
}

/* 0 up to one row, 1 up to 8, then by doubling. */
static int rows_idx(int n_rows)
{
    int i = 1;

    if (n_rows <= 1)
        return 0;
    for (int edge = 8; i < ENGINE_N_ROWS_EDGES && n_rows > edge; edge *= 2)
        i++;
    return i;
}

void stats_add_step(struct stats *s, const struct stats_step *step, const struct backend *be)
{
    int n_rows = step->n_prompt_rows + step->n_decode_rows;
    /* Both kinds of rows share the step's passes over the weights; time is split by rows. */
    int64_t prefill_ns =
        n_rows ? (int64_t)((double)step->step_ns * step->n_prompt_rows / n_rows) : 0;

    pthread_mutex_lock(&s->mu);
    s->recent[s->now.n_steps % STATS_N_RECENT] =
        (struct stats_recent){.end_ns = step->end_ns,
                              .step_ns = step->step_ns,
                              .n_prompt_rows = step->n_prompt_rows,
                              .n_decode_rows = step->n_decode_rows,
                              .n_new_tokens = step->n_new_tokens,
                              .n_waiting = (int)step->n_waiting,
                              .n_running = (int)step->n_running};
    s->now.n_steps++;
    s->now.n_rows += n_rows;
    s->now.rows_counts[rows_idx(n_rows)]++;
    s->now.step_ns += step->step_ns;
    s->now.mask_ns += step->mask_ns;
    s->now.prefill_ns += prefill_ns;
    s->now.decode_ns += step->step_ns - prefill_ns;
    s->now.prompt_tokens += step->n_prompt_rows;
    s->now.generation_tokens += step->n_new_tokens;
    s->now.n_waiting = step->n_waiting;
    s->now.n_running = step->n_running;
    s->now.n_preemptions = step->n_preemptions;
    s->now.n_prefix_asked = step->n_prefix_asked;
    s->now.n_prefix_found = step->n_prefix_found;
    s->now.waiting_tokens = step->waiting_tokens;
    s->now.pages_used = step->pages_used;
    s->now.pages = step->pages;
    s->now.last_step_ns = step->end_ns;
    s->now.device_ns = be->steps_ns;
    s->now.healthy = step->healthy;
    for (int i = 0; i < OP_COUNT; i++) {
        s->now.ops[i].n_calls = be->cost[i].n_calls;
        s->now.ops[i].ns = be->cost[i].ns;
        s->now.ops[i].bytes = be->cost[i].bytes;
        s->now.ops[i].timed_bytes = be->cost[i].timed_bytes;
        s->now.ops[i].flops = be->cost[i].flops;
    }
    pthread_mutex_unlock(&s->mu);
}

void stats_get(struct stats *s, struct engine_stats *out)
{
    pthread_mutex_lock(&s->mu);
    *out = s->now;
    pthread_mutex_unlock(&s->mu);
}

void stats_dump_recent(struct stats *s, struct strbuf *out)
{
    int64_t now_ns = clock_ns();

    strbuf_addch(out, '[');
    if (pthread_mutex_trylock(&s->mu) == 0) {
        int64_t n = s->now.n_steps, first = n > STATS_N_RECENT ? n - STATS_N_RECENT : 0;

        for (int64_t i = first; i < n; i++) {
            const struct stats_recent *r = &s->recent[i % STATS_N_RECENT];

            strbuf_addf(out,
                        "%s{\"step\":%lld,\"ms_ago\":%lld,\"us\":%lld,\"prompt_rows\":%d,"
                        "\"decode_rows\":%d,\"new_tokens\":%d,\"waiting\":%d,\"running\":%d}",
                        i > first ? "," : "", (long long)i,
                        (long long)((now_ns - r->end_ns) / 1000000), (long long)(r->step_ns / 1000),
                        r->n_prompt_rows, r->n_decode_rows, r->n_new_tokens, r->n_waiting,
                        r->n_running);
        }
        pthread_mutex_unlock(&s->mu);
    }
    strbuf_addch(out, ']');
}
