/*
 * step_trace - every decision of the scheduler as a JSON line, for those who ask why.
 *
 *   {"step":7,"us":1234,"rows":41,"decode":[3,4],"prefill":[[5,0,39]],"admit":[5],"preempt":[],
 *    "stalled":0,"waiting":2,"free_pages":118}
 *
 * Numbers in the lists are request ids; a prefill entry is [id, first position, rows]. Engine
 * thread only. Lines are buffered and written when the engine idles, so a trace costs little.
 */
#ifndef STEP_TRACE_H
#define STEP_TRACE_H

#include "engine/scheduler.h"

struct err;
struct step_trace;

/* An empty path gives NULL, which the other functions accept and ignore. */
int step_trace_open(struct step_trace **out, const char *path, struct err *err);
void step_trace_close(struct step_trace *t);
void step_trace_write(struct step_trace *t, const struct scheduler *s);
void step_trace_flush(struct step_trace *t);

#endif
