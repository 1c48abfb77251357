/*
 * step_trace - what the scheduler is told and what it decides, as JSON lines, for those who ask why
 * and for step_replay, which runs it again without a model.
 *
 *   {"trace":1,"max_batch":8, ...}                               once: sizes of scheduler and pool
 *   {"geom":0,"heads":[[32,0,1073741824,0]]}                     [times, sink, ring, mask], when
 * new
 *   {"add":5,"prompt":39,"limit":103,"geom":0, ...,"pages":[..]} a sequence; the pages are hashes
 *   {"tokens":[3,4],"end":[4]}                                   news between two plans
 *   {"step":7,"us":1234,"rows":41,"decode":[3,4],"prefill":[[5,0,39]],"admit":[5],"preempt":[],
 *    "stalled":0,"waiting":2,"free_pages":118}                   a plan, in the order of the calls
 *       Block Transformers' have "phase" and "token" too: [id, position, seat] of the token
 * decoder; "phases" where a step has all of a block's
 *   {"clear":true}                                               the prefix cache was emptied
 *
 * Numbers in the lists are request ids; a prefill entry is [id, first position, rows]. No tokens of
 * prompts: their whole pages, or blocks, are hashed with all before them and with a secret that is
 * not kept. Engine thread only. Lines are buffered and written when the engine idles, so a trace
 * costs little.
 */
#ifndef STEP_TRACE_H
#define STEP_TRACE_H

#include "engine/scheduler.h"

struct err;
struct step_trace;
struct strbuf;

#define STEP_TRACE_VERSION 1

typedef uint64_t step_trace_id_fn(const struct sched_seq *seq);

/* An empty path gives NULL, which the other functions accept and ignore. */
int step_trace_open(struct step_trace **out, const char *path, step_trace_id_fn *id_of,
                    const struct scheduler *s, struct err *err);
void step_trace_close(struct step_trace *t);
void step_trace_flush(struct step_trace *t);

/* Each in the order of the scheduler's calls: before scheduler_add(), ... */
void step_trace_add(struct step_trace *t, const struct scheduler *s, const struct sched_seq *seq);

/* ... behind scheduler_plan(), ... */
void step_trace_write(struct step_trace *t, const struct scheduler *s);

/* ... with scheduler_push_token(), at the end of a sequence whatever its state, ... */
void step_trace_token(struct step_trace *t, const struct sched_seq *seq);
void step_trace_end(struct step_trace *t, const struct sched_seq *seq);

/* ... and with prefix_cache_clear(). */
void step_trace_clear(struct step_trace *t);

/* What was decided, as a step's line has it from "rows" on, without braces. */
void step_trace_format(const struct scheduler *s, step_trace_id_fn *id_of, struct strbuf *out);

#endif
