/*
 * trace_context - which trace a request belongs to, by W3C Trace Context. Pure functions.
 */
#ifndef TRACE_CONTEXT_H
#define TRACE_CONTEXT_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#define TRACE_ID_BYTES    16
#define TRACE_SPAN_BYTES  8
#define TRACE_PARENT_SIZE 56  /* of a traceparent with its NUL */
#define TRACE_STATE_SIZE  513 /* of a tracestate with its NUL; who passes it on must take 512 */

/* Begins as zeroes. */
struct trace_context {
    uint8_t trace_id[TRACE_ID_BYTES], span_id[TRACE_SPAN_BYTES], parent_id[TRACE_SPAN_BYTES];
    bool has_parent, is_sampled;
    char state[TRACE_STATE_SIZE]; /* what other systems keep with the trace */
};

/* Takes the caller's traceparent; false and nothing taken when it is malformed. */
bool trace_context_take_parent(struct trace_context *c, const char *traceparent);

/* Adds a tracestate header; what makes it longer than 512 bytes falls off at its end. */
void trace_context_add_state(struct trace_context *c, const char *tracestate);

/*
 * Draws the id of this request's span, and those of a new trace where there is no parent; ratio is
 * the share of new traces that are sampled. A parent has decided for all behind it.
 */
void trace_context_start(struct trace_context *c, double ratio);

void trace_context_new_span(uint8_t id[TRACE_SPAN_BYTES]);

/* This request as the parent of what comes behind it. */
void trace_context_format(const struct trace_context *c, char out[TRACE_PARENT_SIZE]);

/* n bytes as 2 * n hexadecimal digits and a NUL. */
void trace_context_hex(const uint8_t *bytes, size_t n, char *out);

#endif
