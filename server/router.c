/*
 * router - the table of endpoints.
 */
#include "server/router.h"

#include "server/api.h"
#include "server/metrics.h"

#include <assert.h>
#include <string.h>
#include <strings.h>

static const struct route routes[] = {
    {"/v1/completions", ROUTE_POST, ROUTE_ALWAYS, api_completions},
    {"/v1/chat/completions", ROUTE_POST, ROUTE_ALWAYS, api_chat},
    {"/v1/embeddings", ROUTE_POST, ROUTE_ALWAYS, api_embeddings},
    {"/v1/models", ROUTE_GET, ROUTE_ALWAYS, api_models},
    {"/v1/models/", ROUTE_GET, ROUTE_ALWAYS, api_model},
    {"/tokenize", ROUTE_POST, ROUTE_ALWAYS, api_tokenize},
    {"/detokenize", ROUTE_POST, ROUTE_ALWAYS, api_detokenize},
    {"/health", ROUTE_GET, ROUTE_OPEN, api_health},
    {"/health/live", ROUTE_GET, ROUTE_OPEN, api_health_live},
    {"/health/ready", ROUTE_GET, ROUTE_OPEN, api_health},
    {"/v1/health", ROUTE_GET, ROUTE_OPEN, api_health},
    {"/ping", ROUTE_GET, ROUTE_OPEN, api_health},
    {"/version", ROUTE_GET, ROUTE_ALWAYS, api_version},
    {"/openapi.json", ROUTE_GET, ROUTE_ALWAYS, api_openapi},
    {"/", ROUTE_GET, ROUTE_PAGE, api_page},
    {"/ui/plan", ROUTE_GET, ROUTE_PAGE, api_page_plan},
    {"/metrics", ROUTE_GET, ROUTE_IF_METRICS, api_metrics},
    {"/debug/state", ROUTE_GET, ROUTE_IF_DEBUG, api_debug_state},
    {"/debug/kv", ROUTE_GET, ROUTE_IF_DEBUG, api_debug_kv},
    {"/debug/kv/", ROUTE_GET, ROUTE_IF_DEBUG, api_debug_kv_slot},
    {"/debug/plan", ROUTE_GET, ROUTE_IF_DEBUG, api_debug_plan},
    {"/debug/plan/", ROUTE_GET, ROUTE_IF_DEBUG, api_debug_plan},
};

#define N_ROUTES ((int)(sizeof(routes) / sizeof(routes[0])))

static_assert(N_ROUTES < METRICS_MAX_ROUTES, "every route has its row, and so have unknown paths");

int router_count(void)
{
    return N_ROUTES + 1;
}

const char *router_name(int idx)
{
    return idx < N_ROUTES ? routes[idx].path : "other";
}

/* RFC 9112 has servers accept http://host/path; the authority says nothing to us. */
static const char *skip_authority(const char *target)
{
    const char *path;

    if (strncasecmp(target, "http://", 7) && strncasecmp(target, "https://", 8))
        return target;
    path = strchr(strchr(target, ':') + 3, '/');
    return path ? path : "/";
}

static bool path_matches(const struct route *r, const char *path, const char **rest)
{
    size_t len = strlen(r->path);

    *rest = "";
    if (r->path[len - 1] != '/' || len == 1)
        return !strcmp(r->path, path);
    if (strncmp(r->path, path, len) || !path[len])
        return false;
    *rest = path + len;
    return true;
}

static bool method_matches(const struct route *r, const char *method)
{
    if (r->method == ROUTE_GET)
        return !strcmp(method, "GET") || !strcmp(method, "HEAD");
    return !strcmp(method, "POST");
}

struct route_match router_find(const char *method, const char *target)
{
    struct route_match m = {.idx = N_ROUTES, .rest = ""};
    const char *path = skip_authority(target);

    for (int i = 0; i < N_ROUTES; i++) {
        if (!path_matches(&routes[i], path, &m.rest))
            continue;
        m.idx = i;
        m.gate = routes[i].gate;
        m.allow = routes[i].method == ROUTE_GET ? "GET, HEAD" : "POST";
        m.route = method_matches(&routes[i], method) ? &routes[i] : NULL;
        break;
    }
    return m;
}

static int hex_value(char c)
{
    if (c >= '0' && c <= '9')
        return c - '0';
    if (c >= 'a' && c <= 'f')
        return c - 'a' + 10;
    if (c >= 'A' && c <= 'F')
        return c - 'A' + 10;
    return -1;
}

bool router_percent_decode(char *s)
{
    char *to = s;

    for (; *s; s++) {
        if (*s == '%') {
            int hi = hex_value(s[1]);
            int lo = hi < 0 ? -1 : hex_value(s[2]);

            if (lo < 0 || hi * 16 + lo == 0)
                return false;
            *to++ = (char)(hi * 16 + lo);
            s += 2;
        } else {
            *to++ = *s;
        }
    }
    *to = '\0';
    return true;
}
