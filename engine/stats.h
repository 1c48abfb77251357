/*
 * stats - the engine's counters, written by the engine thread after each step and by submitters,
 * read as a consistent snapshot by any thread. The lock guards everything.
 */
#ifndef STATS_H
#define STATS_H

#include "engine/backend.h"
#include "engine/engine.h"

#include <pthread.h>

#define STATS_N_RECENT 32 /* steps kept for /debug/state and the crash report */

struct stats_recent {
    int64_t end_ns, step_ns;
    int n_prompt_rows, n_decode_rows, n_new_tokens, n_waiting, n_running;
};

struct stats { /* fields are private */
    pthread_mutex_t mu;
    struct engine_stats now;
    struct stats_recent recent[STATS_N_RECENT]; /* a ring: step n lies at n % STATS_N_RECENT */
};

/* What one step adds. */
struct stats_step {
    int64_t step_ns, end_ns, mask_ns, n_prefix_asked, n_prefix_found;
    int n_prompt_rows, n_decode_rows, n_new_tokens;
    int64_t n_waiting, n_running, n_preemptions, waiting_tokens, pages_used;
    struct engine_pages pages;
    bool healthy;
};

void stats_init(struct stats *s, int64_t pages_total, double memory_bytes_per_s);
void stats_release(struct stats *s);

void stats_submitted(struct stats *s);
/* why: what was full; REFUSED_COUNT when the request itself was at fault. */
void stats_rejected(struct stats *s, enum engine_refusal why);
void stats_finished(struct stats *s, enum finish_reason reason);

/* Called with what the scheduler holds when no step runs, so that an idle engine reads idle. */
void stats_idle(struct stats *s, int64_t n_waiting, int64_t n_running, int64_t pages_used,
                const struct engine_pages *pages);
void stats_add_step(struct stats *s, const struct stats_step *step, const struct backend *be);

void stats_get(struct stats *s, struct engine_stats *out);

/* The last steps, oldest first, as a JSON array; [] when the lock is not to be had at once. */
void stats_dump_recent(struct stats *s, struct strbuf *out);

#endif
