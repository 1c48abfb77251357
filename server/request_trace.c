/*
 * request_trace - spans in OTLP's JSON. See request_trace.h.
 */
#include "server/request_trace.h"

#include "base/clock.h"
#include "base/strbuf.h"
#include "config/config.h"
#include "server/exchange.h"
#include "server/generation.h"
#include "server/http_server.h"
#include "server/otlp_export.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <strings.h>

#define MAX_CHOICES 16 /* with spans of their own; a request may have hundreds */

enum span_kind { SPAN_INTERNAL = 1, SPAN_SERVER = 2 };

struct request_trace {
    struct otlp_export *to; /* borrowed */
    struct trace_context context;
    int n_refs, n_spans, n_choices, n_parents;
    int64_t began_ns, wall_ns; /* wall_ns: to be added to the monotonic clock */
    struct strbuf spans, attributes;
};

/* Attributes: each begins with a comma, but for the first. */

static void begin_attribute(struct strbuf *out, const char *key)
{
    if (out->len > 0 && out->buf[out->len - 1] == '}')
        strbuf_addch(out, ',');
    strbuf_addf(out, "{\"key\":\"%s\",\"value\":", key);
}

static void add_string(struct strbuf *out, const char *key, const char *value)
{
    begin_attribute(out, key);
    strbuf_addstr(out, "{\"stringValue\":");
    strbuf_add_json(out, value, strlen(value));
    strbuf_addstr(out, "}}");
}

static void add_int(struct strbuf *out, const char *key, int64_t value)
{
    begin_attribute(out, key);
    strbuf_addf(out, "{\"intValue\":\"%lld\"}}", (long long)value);
}

static void add_double(struct strbuf *out, const char *key, double value)
{
    begin_attribute(out, key);
    strbuf_addf(out, "{\"doubleValue\":%.9g}}", value);
}

/* Spans */

struct span {
    const char *name;
    enum span_kind kind;
    const uint8_t *id, *parent_id; /* parent_id: NULL for none */
    int64_t begin_ns, end_ns;      /* clock_ns() */
    const char *error;             /* NULL: none */
};

static void begin_span(struct request_trace *t, const struct span *s)
{
    char trace[2 * TRACE_ID_BYTES + 1], id[2 * TRACE_SPAN_BYTES + 1];
    struct strbuf *out = &t->spans;

    trace_context_hex(t->context.trace_id, TRACE_ID_BYTES, trace);
    trace_context_hex(s->id, TRACE_SPAN_BYTES, id);
    if (t->n_spans++ > 0)
        strbuf_addch(out, ',');
    strbuf_addf(out, "{\"traceId\":\"%s\",\"spanId\":\"%s\",", trace, id);
    if (s->parent_id) {
        trace_context_hex(s->parent_id, TRACE_SPAN_BYTES, id);
        strbuf_addf(out, "\"parentSpanId\":\"%s\",", id);
    }
    if (t->context.state[0]) {
        strbuf_addstr(out, "\"traceState\":");
        strbuf_add_json(out, t->context.state, strlen(t->context.state));
        strbuf_addch(out, ',');
    }
    strbuf_addstr(out, "\"flags\":1,\"name\":");
    strbuf_add_json(out, s->name, strlen(s->name));
    strbuf_addf(out, ",\"kind\":%d,\"startTimeUnixNano\":\"%lld\",\"endTimeUnixNano\":\"%lld\",",
                s->kind, (long long)(s->begin_ns + t->wall_ns),
                (long long)(s->end_ns + t->wall_ns));
    if (s->error) {
        strbuf_addstr(out, "\"status\":{\"code\":2,\"message\":");
        strbuf_add_json(out, s->error, strlen(s->error));
        strbuf_addstr(out, "},");
    }
    strbuf_addstr(out, "\"attributes\":[");
}

static void end_span(struct request_trace *t)
{
    strbuf_addstr(&t->spans, "]}");
}

/* Life */

static enum MHD_Result collect(void *cls, enum MHD_ValueKind kind, const char *name,
                               const char *value)
{
    struct request_trace *t = cls;

    (void)kind;
    if (!value)
        return MHD_YES;
    if (!strcasecmp(name, "traceparent")) {
        if (++t->n_parents > 1 || !trace_context_take_parent(&t->context, value))
            t->context.has_parent = false;
    } else if (!strcasecmp(name, "tracestate")) {
        trace_context_add_state(&t->context, value);
    }
    return MHD_YES;
}

struct request_trace *request_trace_new(struct exchange *ex)
{
    struct http_server *s = ex->server;
    struct request_trace *t = s->traces ? calloc(1, sizeof(*t)) : NULL;

    if (!t)
        return NULL;
    MHD_get_connection_values(ex->conn, MHD_HEADER_KIND, collect, t);
    trace_context_start(&t->context, s->config->otlp_traces_ratio);
    if (!t->context.is_sampled) {
        free(t);
        return NULL;
    }
    t->to = s->traces;
    t->n_refs = 1;
    t->began_ns = ex->began_ns;
    t->wall_ns = clock_unix_ms() * 1000000 - clock_ns();
    strbuf_init(&t->spans);
    strbuf_init(&t->attributes);
    return t;
}

struct request_trace *request_trace_ref(struct request_trace *t)
{
    if (t)
        t->n_refs++;
    return t;
}

void request_trace_unref(struct request_trace *t)
{
    if (!t || --t->n_refs > 0)
        return;
    if (t->n_spans > 0)
        otlp_export_add(t->to, &t->spans, t->n_spans);
    strbuf_release(&t->spans);
    strbuf_release(&t->attributes);
    free(t);
}

/* What happened */

static const char *finish_word(enum finish_reason reason)
{
    static const char *const words[] = {"abort", "stop", "length", "abort", "error"};

    return words[reason];
}

/* vLLM gives the times of a request's sequence in seconds. */
static void add_latencies(struct request_trace *t, const struct engine_event *ev, int64_t end_ns)
{
    struct strbuf *out = &t->attributes;

    if (ev->start_ns)
        add_double(out, "gen_ai.latency.time_in_queue", (ev->start_ns - ev->submit_ns) * 1e-9);
    if (ev->first_token_ns) {
        add_double(out, "gen_ai.latency.time_to_first_token",
                   (ev->first_token_ns - t->began_ns) * 1e-9);
        add_double(out, "gen_ai.latency.time_in_model_prefill",
                   (ev->first_token_ns - ev->start_ns) * 1e-9);
        add_double(out, "gen_ai.latency.time_in_model_decode",
                   (ev->last_token_ns - ev->first_token_ns) * 1e-9);
        add_double(out, "gen_ai.latency.time_in_model_inference",
                   (ev->last_token_ns - ev->start_ns) * 1e-9);
    }
    add_double(out, "gen_ai.latency.e2e", (end_ns - t->began_ns) * 1e-9);
}

static void add_phase(struct request_trace *t, const char *name, int idx, int64_t begin_ns,
                      int64_t end_ns, const char *error)
{
    uint8_t id[TRACE_SPAN_BYTES];

    trace_context_new_span(id);
    begin_span(t, &(struct span){.name = name,
                                 .kind = SPAN_INTERNAL,
                                 .id = id,
                                 .parent_id = t->context.span_id,
                                 .begin_ns = begin_ns,
                                 .end_ns = end_ns,
                                 .error = error});
    add_int(&t->spans, "spand.choice.index", idx);
}

void request_trace_add_choice(struct request_trace *t, const struct choice *c,
                              const struct engine_event *ev)
{
    int64_t now_ns = clock_ns();
    int64_t end_ns = ev->last_token_ns ? ev->last_token_ns : now_ns;
    const char *error = ev->finish != FINISH_ERROR ? NULL : ev->error ? ev->error : "error";

    if (!t || t->n_choices >= MAX_CHOICES)
        return;
    if (t->n_choices++ == 0)
        add_latencies(t, ev, end_ns);
    add_phase(t, "queue", c->index, ev->submit_ns, ev->start_ns ? ev->start_ns : now_ns,
              ev->start_ns ? NULL : error);
    end_span(t);
    if (!ev->start_ns)
        return;
    add_phase(t, "prefill", c->index, ev->start_ns,
              ev->first_token_ns ? ev->first_token_ns : now_ns, ev->first_token_ns ? NULL : error);
    add_int(&t->spans, "gen_ai.usage.prompt_tokens", ev->n_prompt_tokens);
    add_int(&t->spans, "spand.cached_tokens", ev->n_cached_tokens);
    end_span(t);
    if (!ev->first_token_ns)
        return;
    add_phase(t, "decode", c->index, ev->first_token_ns, end_ns, error);
    add_int(&t->spans, "gen_ai.usage.completion_tokens", ev->n_completion_tokens);
    add_string(&t->spans, "spand.finish_reason", finish_word(ev->finish));
    end_span(t);
}

void request_trace_add_generation(struct request_trace *t, const struct generation *g)
{
    const struct openai_params *p = &g->params;
    struct strbuf *out = t ? &t->attributes : NULL;
    int n = g->n_choices < MAX_CHOICES ? g->n_choices : MAX_CHOICES;

    if (!t || n == 0) /* refused before anything was known of it */
        return;
    add_int(out, "gen_ai.request.max_tokens", g->prompts[0].max_tokens);
    add_double(out, "gen_ai.request.temperature", (double)p->sampling.temperature);
    add_double(out, "gen_ai.request.top_p", (double)p->sampling.top_p);
    if (p->sampling.top_k > 0)
        add_int(out, "gen_ai.request.top_k", p->sampling.top_k);
    if (p->has_seed)
        add_int(out, "gen_ai.request.seed", p->seed);
    add_int(out, "gen_ai.request.n", p->n);
    add_int(out, "gen_ai.request.choice.count", p->n);
    add_int(out, "gen_ai.usage.num_sequences", g->n_choices);
    /* vLLM's names, and those of the conventions. */
    add_int(out, "gen_ai.usage.prompt_tokens", g->usage.prompt_tokens);
    add_int(out, "gen_ai.usage.completion_tokens", g->usage.completion_tokens);
    add_int(out, "gen_ai.usage.input_tokens", g->usage.prompt_tokens);
    add_int(out, "gen_ai.usage.output_tokens", g->usage.completion_tokens);
    begin_attribute(out, "gen_ai.response.finish_reasons");
    strbuf_addstr(out, "{\"arrayValue\":{\"values\":[");
    for (int i = 0; i < n; i++)
        strbuf_addf(out, "%s{\"stringValue\":\"%s\"}", i ? "," : "",
                    finish_word(g->choices[i].finish));
    strbuf_addstr(out, "]}}}");
}

void request_trace_end(struct request_trace *t, const struct exchange *ex)
{
    struct strbuf name = STRBUF_INIT;
    const char *model, *operation;
    char status[16];

    if (!t)
        return;
    model = ex->server->info->model_id;
    operation = strstr(ex->match.route->path, "/chat/") ? "chat" : "text_completion";
    strbuf_addf(&name, "%s %s", operation, model);
    snprintf(status, sizeof(status), "%d", ex->status);
    begin_span(t, &(struct span){.name = name.buf,
                                 .kind = SPAN_SERVER,
                                 .id = t->context.span_id,
                                 .parent_id = t->context.has_parent ? t->context.parent_id : NULL,
                                 .begin_ns = t->began_ns,
                                 .end_ns = clock_ns(),
                                 .error = ex->status >= 500 ? status : NULL});
    add_string(&t->spans, "gen_ai.operation.name", operation);
    add_string(&t->spans, "gen_ai.provider.name", "spand");
    add_string(&t->spans, "gen_ai.request.model", model);
    add_string(&t->spans, "gen_ai.response.model", model);
    add_string(&t->spans, "gen_ai.request.id", ex->id);
    add_string(&t->spans, "http.request.method", ex->method);
    add_string(&t->spans, "http.route", ex->match.route->path);
    add_int(&t->spans, "http.response.status_code", ex->status);
    if (ex->status >= 400)
        add_string(&t->spans, "error.type", status);
    if (t->attributes.len > 0) {
        strbuf_addch(&t->spans, ',');
        strbuf_add(&t->spans, t->attributes.buf, t->attributes.len);
    }
    t->spans.failed |= t->attributes.failed;
    end_span(t);
    strbuf_release(&name);
}

void request_trace_parent(const struct request_trace *t, char out[TRACE_PARENT_SIZE])
{
    out[0] = '\0';
    if (t)
        trace_context_format(&t->context, out);
}
