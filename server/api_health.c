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

/* 200 means that the engine makes progress, not that the process exists. */
void api_health(struct exchange *ex)
{
    struct http_server *s = ex->server;
    struct strbuf body = STRBUF_INIT;
    struct api_error e = {0};
    struct engine_stats stats;

    engine_get_stats(s->engine, &stats);
    if (s->draining)
        api_error_set(&e, 503, NULL, "shutting_down", "The server is shutting down.");
    else if (!engine_bridge_is_alive(s->bridge, &stats))
        api_error_set(&e, 503, NULL, "engine_stalled", "The engine makes no progress.");
    if (e.status) {
        exchange_reply_error(ex, &e);
        return;
    }
    strbuf_addstr(&body, "{\"status\":\"ok\"}");
    exchange_reply_json(ex, 200, &body);
}

void api_version(struct exchange *ex)
{
    struct strbuf body = STRBUF_INIT;

    strbuf_addf(&body, "{\"version\":\"%s\",\"commit\":\"%s\"}", build_version(), build_commit());
    exchange_reply_json(ex, 200, &body);
}

void api_metrics(struct exchange *ex)
{
    struct strbuf body = STRBUF_INIT;
    struct engine_stats stats;

    engine_get_stats(ex->server->engine, &stats);
    stats.healthy = engine_bridge_is_alive(ex->server->bridge, &stats);
    metrics_write(&ex->server->metrics, &stats, ex->server->info, &body);
    exchange_reply(ex, 200, "text/plain; version=0.0.4; charset=utf-8", &body);
}
