/*
 * otlp_export - spans on their way to an OpenTelemetry collector: OTLP/HTTP with JSON bodies.
 *
 * A thread of its own, which is the only one that talks to the network: the loop only appends to a
 * bounded queue, and what does not fit is dropped and counted. Batches that the collector refuses
 * for the moment are sent again a few times.
 */
#ifndef OTLP_EXPORT_H
#define OTLP_EXPORT_H

#include <stdint.h>

struct config;
struct err;
struct otlp_export;
struct strbuf;

/* Spans, but for the failed posts: tries that did not get through. */
struct otlp_counts {
    int64_t n_sent, n_dropped, n_failed_posts;
};

/* Without otlp_traces_endpoint *out is NULL, which the other functions accept and ignore. */
int otlp_export_open(struct otlp_export **out, const struct config *config, struct err *err);

/* Sends what is queued for up to two seconds, drops the rest. */
void otlp_export_close(struct otlp_export *x);

/* n_spans JSON objects of OTLP, separated by commas. *spans is emptied. Any thread. */
void otlp_export_add(struct otlp_export *x, struct strbuf *spans, int n_spans);

void otlp_export_counts(struct otlp_export *x, struct otlp_counts *out);

#endif
