/*
 * api_health - what probes and monitors ask for.
 */
#include "server/api.h"

#include "base/build_info.h"
#include "engine/engine.h"
#include "server/api_error.h"
#include "server/engine_bridge.h"
#include "server/exchange.h"
#include "server/http_server.h"
#include "server/otlp_export.h"

static void answer(struct exchange *ex, bool live_only)
{
    struct http_server *s = ex->server;
    struct strbuf body = STRBUF_INIT;
    struct api_error e = {0};
    struct engine_stats stats;
    const char *why;

    engine_get_stats(s->engine, &stats);
    if (!engine_bridge_is_alive(s->bridge, &stats, &why))
        api_error_set(&e, 503, NULL, "engine_stalled", "%s", why);
    else if (s->draining && !live_only)
        api_error_set(&e, 503, NULL, "shutting_down", "The server is shutting down.");
    if (e.status) {
        exchange_reply_error(ex, &e);
        return;
    }
    strbuf_addstr(&body, "{\"status\":\"ok\"}");
    exchange_reply_json(ex, 200, &body);
}

/* Ready: send requests here. 200 means that the engine generates, not that the process exists. */
void api_health(struct exchange *ex)
{
    answer(ex, false);
}

/* Live: do not restart it. A server that drains is. */
void api_health_live(struct exchange *ex)
{
    answer(ex, true);
}

void api_version(struct exchange *ex)
{
    struct strbuf body = STRBUF_INIT;

    strbuf_addf(&body, "{\"version\":\"%s\",\"commit\":\"%s\"}", build_version(), build_commit());
    exchange_reply_json(ex, 200, &body);
}

/* What is only looked at when somebody asks. */
static void fill_gauges(struct http_server *s)
{
    struct metrics *m = &s->metrics;
    struct otlp_counts traces;

    m->n_streams = m->backlog_bytes = 0;
    for (const struct exchange *ex = s->exchanges; ex; ex = ex->next) {
        m->n_streams += ex->is_stream;
        m->backlog_bytes += ex->is_stream ? exchange_unsent(ex) : 0;
    }
    m->n_tests_passed = s->bridge->self_test.n_passed;
    m->n_tests_failed = s->bridge->self_test.n_failed;
    otlp_export_counts(s->traces, &traces);
    m->n_spans_sent = traces.n_sent;
    m->n_spans_dropped = traces.n_dropped;
    m->n_posts_failed = traces.n_failed_posts;
}

void api_metrics(struct exchange *ex)
{
    struct strbuf body = STRBUF_INIT;
    struct engine_stats stats;

    engine_get_stats(ex->server->engine, &stats);
    stats.healthy = engine_bridge_is_alive(ex->server->bridge, &stats, NULL);
    self_test_hide(&ex->server->bridge->self_test, &stats);
    fill_gauges(ex->server);
    metrics_write(&ex->server->metrics, &stats, ex->server->info, &body);
    exchange_reply(ex, 200, "text/plain; version=0.0.4; charset=utf-8", &body);
}
