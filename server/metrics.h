/*
 * metrics - what the loop thread counts, and the page that Prometheus reads.
 *
 * Loop thread only: plain numbers, no atomics. What the engine counts is added from its snapshot
 * when the page is written.
 */
#ifndef METRICS_H
#define METRICS_H

#include <stdbool.h>
#include <stdint.h>

struct engine_event;
struct engine_info;
struct engine_stats;
struct strbuf;

#define METRICS_MAX_EDGES  32
#define METRICS_MAX_ROUTES 48
#define METRICS_N_STATUS   24

struct histogram {
    int64_t counts[METRICS_MAX_EDGES + 1]; /* not cumulative; the last one is above every edge */
    int64_t n;
    double sum;
};

struct metrics {
#define COUNTER(member, name, alias, help)          int64_t member;
#define HISTOGRAM(member, name, alias, help, edges) struct histogram member;
#include "server/metrics_table.h"
    int64_t n_parked, n_connections, n_exchanges; /* gauges */
    int64_t n_streams, backlog_bytes;             /* gauges, filled in before the page is written */
    int64_t n_tests_passed, n_tests_failed;       /* likewise */
    int64_t n_spans_sent, n_spans_dropped, n_posts_failed;
    double kv_density;
    bool has_prefix_cache;
    int64_t responses[METRICS_MAX_ROUTES][METRICS_N_STATUS];
};

/* An answer of the route with that index (router.h) was sent, or given up. */
void metrics_count_response(struct metrics *m, int route_idx, int status);

/* A request's exchange has ended after that many seconds. */
void metrics_count_duration(struct metrics *m, double seconds);

/* A generation has begun: n answers a prompt, each of at most max_tokens. */
void metrics_count_params(struct metrics *m, int n, int max_tokens);

/* It has ended well: the most tokens that one of its answers has. */
void metrics_count_longest(struct metrics *m, int n_tokens);

/* News of a sequence. prev_token_ns: the time of its last token before this event, 0 if none. */
void metrics_count_event(struct metrics *m, const struct engine_event *ev, int64_t prev_token_ns);

/* The whole page, in the text format 0.0.4. */
void metrics_write(const struct metrics *m, const struct engine_stats *s,
                   const struct engine_info *i, struct strbuf *out);

/* Every series with its type and help, as METRICS.md has it. */
void metrics_print_markdown(struct strbuf *out);

#endif
