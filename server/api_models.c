/*
 * api_models - the one model that is served, alone or as a list.
 */
#include "server/api.h"

#include "server/api_error.h"
#include "server/exchange.h"
#include "server/http_server.h"

#include <string.h>

static void write_model(const struct http_server *s, struct strbuf *out)
{
    const struct engine_info *i = s->info;

    strbuf_addstr(out, "{\"id\":");
    strbuf_add_json(out, i->model_id, strlen(i->model_id));
    strbuf_addf(out, ",\"object\":\"model\",\"created\":%lld,\"owned_by\":\"spand\",\"root\":",
                (long long)i->created_unix);
    strbuf_add_json(out, i->model_id, strlen(i->model_id));
    strbuf_addf(out, ",\"parent\":null,\"max_model_len\":%d,\"permission\":[],\"meta\":{",
                s->limits.max_seq_len);
    strbuf_addf(out, "\"n_vocab\":%d,\"n_params\":%lld,\"size\":%lld,\"plan\":", i->vocab_size,
                (long long)i->n_params, (long long)i->weight_bytes);
    strbuf_add_json(out, i->plan ? i->plan : "", i->plan ? strlen(i->plan) : 0);
    strbuf_addf(out, ",\"spans\":%s}}", i->plan_json ? i->plan_json : "null");
}

void api_models(struct exchange *ex)
{
    struct strbuf body = STRBUF_INIT;

    strbuf_addstr(&body, "{\"object\":\"list\",\"data\":[");
    write_model(ex->server, &body);
    strbuf_addstr(&body, "]}");
    exchange_reply_json(ex, 200, &body);
}

void api_model(struct exchange *ex)
{
    struct strbuf body = STRBUF_INIT;
    struct strbuf name = STRBUF_INIT;
    struct api_error e = {0};

    strbuf_addstr(&name, ex->match.rest); /* never empty: the router sees to that */
    if (!name.failed && router_percent_decode(name.buf) &&
        !strcmp(name.buf, ex->server->info->model_id)) {
        write_model(ex->server, &body);
        exchange_reply_json(ex, 200, &body);
    } else {
        api_error_set(&e, 404, "model", "model_not_found",
                      "The model '%.100s' does not exist; this server has '%s'.", ex->match.rest,
                      ex->server->info->model_id);
        exchange_reply_error(ex, &e);
    }
    strbuf_release(&name);
}
