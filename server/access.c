/*
 * access - keys and origins of one request.
 */
#include "server/access.h"

#include "base/strbuf.h"
#include "config/config.h"
#include "server/api_error.h"
#include "server/exchange.h"
#include "server/http_server.h"

#include <string.h>

static const char *header(const struct exchange *ex, const char *name)
{
    return MHD_lookup_connection_value(ex->conn, MHD_HEADER_KIND, name);
}

static bool is_open(const struct exchange *ex)
{
    return ex->match.gate == ROUTE_OPEN ||
           (ex->match.gate == ROUTE_IF_METRICS && ex->server->config->metrics_without_key);
}

int access_check_key(struct exchange *ex, struct api_error *e)
{
    const char *authorization = header(ex, "Authorization");
    const char *bare = header(ex, "X-Api-Key");

    if (!api_keys_are_required(&ex->server->keys) || is_open(ex))
        return 0;
    ex->key = api_keys_find(&ex->server->keys, authorization, bare);
    if (ex->key) {
        api_key_take(ex->key);
        return 0;
    }
    return api_error_set(e, 401, NULL, "invalid_api_key",
                         authorization || bare
                             ? "The API key is not one of this server's."
                             : "This server wants an API key: Authorization: Bearer KEY.");
}

int access_begin_generation(struct exchange *ex, struct api_error *e)
{
    int most = ex->server->config->max_requests_per_key;

    if (!ex->key || most == 0)
        return 0;
    if (ex->key->n_generations >= most) {
        ex->server->metrics.n_refused_key++;
        return api_error_set(e, 429, NULL, "rate_limit_exceeded",
                             "The API key has %d requests running; no more are taken.", most);
    }
    ex->key->n_generations++;
    ex->counts_for_key = true;
    return 0;
}

void access_end(struct exchange *ex)
{
    if (!ex->key)
        return;
    if (ex->counts_for_key)
        ex->key->n_generations--;
    api_key_give(&ex->server->keys, ex->key);
    ex->key = NULL;
}

bool access_allows_origin(const char *list, const char *origin)
{
    size_t len = strlen(origin);

    while (*list) {
        size_t n;

        list += strspn(list, " ,");
        n = strcspn(list, " ,");
        if ((n == 1 && *list == '*') || (n > 0 && n == len && !memcmp(list, origin, n)))
            return true;
        list += n;
    }
    return false;
}

static const char *allowed_origin(const struct exchange *ex)
{
    const char *origin = header(ex, "Origin");

    if (!origin || !access_allows_origin(ex->server->config->cors_origins, origin))
        return NULL;
    return origin;
}

bool access_answer_preflight(struct exchange *ex)
{
    struct strbuf empty = STRBUF_INIT;

    if (strcmp(ex->method, "OPTIONS") || !header(ex, "Access-Control-Request-Method") ||
        !allowed_origin(ex) || !ex->match.allow)
        return false;
    exchange_reply(ex, 204, NULL, &empty);
    return true;
}

void access_add_headers(const struct exchange *ex, struct MHD_Response *r)
{
    const char *origin = allowed_origin(ex);
    const char *wanted = header(ex, "Access-Control-Request-Headers");

    if (ex->status == 401)
        MHD_add_response_header(r, "WWW-Authenticate",
                                ex->match.gate == ROUTE_PAGE ? "Basic realm=\"spand\"" : "Bearer");
    if (ex->server->config->cors_origins[0])
        MHD_add_response_header(r, "Vary", "Origin");
    if (!origin)
        return;
    MHD_add_response_header(r, "Access-Control-Allow-Origin", origin);
    MHD_add_response_header(r, "Access-Control-Expose-Headers", "x-request-id, retry-after");
    if (ex->status != 204)
        return;
    MHD_add_response_header(r, "Access-Control-Allow-Methods", ex->match.allow);
    if (wanted)
        MHD_add_response_header(r, "Access-Control-Allow-Headers", wanted);
    MHD_add_response_header(r, "Access-Control-Max-Age", "600");
}
