/*
 * request_trace - the spans of one generation, as it is told to otlp_export.
 *
 * One span for the request, with the attributes that vLLM and OpenTelemetry's conventions give it,
 * and behind it for each choice one for the queue, the prefill and the decoding. No words of
 * prompts or answers. The exchange and the generation hold it; it leaves when both have let go.
 * Loop thread only. All functions accept NULL, which is the trace of a request that has none.
 */
#ifndef REQUEST_TRACE_H
#define REQUEST_TRACE_H

#include "server/trace_context.h"

struct choice;
struct engine_event;
struct exchange;
struct generation;
struct request_trace;

/* With one reference, the exchange's. NULL: tracing is off, the trace not sampled, or no memory. */
struct request_trace *request_trace_new(struct exchange *ex);

struct request_trace *request_trace_ref(struct request_trace *t);
void request_trace_unref(struct request_trace *t);

/* The last event of a choice. */
void request_trace_add_choice(struct request_trace *t, const struct choice *c,
                              const struct engine_event *ev);

/* What was asked for and what became of it, when the answer is complete or given up. */
void request_trace_add_generation(struct request_trace *t, const struct generation *g);

/* The exchange has ended with its status. */
void request_trace_end(struct request_trace *t, const struct exchange *ex);

/* "" for NULL. */
void request_trace_parent(const struct request_trace *t, char out[TRACE_PARENT_SIZE]);

#endif
