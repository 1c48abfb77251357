/*
 * api_debug - the inside of the daemon on request. It is served only where the config says
 * debug_endpoints: what is shown tells of other clients' requests, though never their words.
 */
#include "server/api.h"

#include "engine/engine.h"
#include "server/api_error.h"
#include "server/exchange.h"
#include "server/http_server.h"

#include <errno.h>
#include <stdlib.h>

/* What the engine printed, or a 404 with its error. */
static void reply(struct exchange *ex, int rc, struct strbuf *body, const struct err *err)
{
    struct api_error e = {0};

    if (rc == 0) {
        exchange_reply_json(ex, 200, body);
        return;
    }
    api_error_set(&e, 404, NULL, NULL, "Nothing to show: %s.", err->msg);
    exchange_reply_error(ex, &e);
    strbuf_release(body);
}

/* The number that ends the path, 0 <= n <= INT32_MAX; -1 when it is none. */
static int number_behind(const struct exchange *ex)
{
    char *end;
    long n;

    errno = 0;
    n = strtol(ex->match.rest, &end, 10);
    if (errno || end == ex->match.rest || *end || n < 0 || n > INT32_MAX)
        return -1;
    return (int)n;
}

void api_debug_state(struct exchange *ex)
{
    struct strbuf body = STRBUF_INIT;

    engine_dump(ex->server->engine, &body);
    reply(ex, 0, &body, NULL);
}

void api_debug_kv(struct exchange *ex)
{
    struct strbuf body = STRBUF_INIT;
    struct err err = {0};

    reply(ex, engine_dump_kv(ex->server->engine, -1, &body, &err), &body, &err);
}

void api_debug_plan(struct exchange *ex)
{
    struct strbuf body = STRBUF_INIT;
    struct err err = {0};
    int n_tokens = *ex->match.rest ? number_behind(ex) : 0;
    int rc = engine_dump_plan(ex->server->engine, n_tokens, &body, &err);

    reply(ex, rc, &body, &err);
}

void api_debug_kv_slot(struct exchange *ex)
{
    struct strbuf body = STRBUF_INIT;
    struct err err = {0};
    int slot = number_behind(ex);
    int rc = slot < 0 ? err_set(&err, ERR_NOT_FOUND, "%.40s is no slot", ex->match.rest)
                      : engine_dump_kv(ex->server->engine, slot, &body, &err);

    reply(ex, rc, &body, &err);
}
