/*
 * exchange - a request from its first byte to the log line.
 *
 * Errors found in the head are told after the body has been read and thrown away: a client that is
 * still sending would otherwise lose the answer to a connection reset. Exceptions are heads that
 * leave the end of the body in doubt, clients that wait for "100 Continue", and bodies too long to
 * read for nothing.
 */
#include "server/exchange.h"

#include "base/build_info.h"
#include "base/check.h"
#include "base/clock.h"
#include "base/log.h"
#include "config/config.h"
#include "server/access.h"
#include "server/api_error.h"
#include "server/client_watch.h"
#include "server/generation.h"
#include "server/http_framing.h"
#include "server/http_server.h"
#include "server/request_trace.h"
#include "server/sse.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/random.h>

#define DISCARD_MAX_BYTES (64 << 20) /* read for the sake of a readable answer, not more */
#define LOGGED_BODY_BYTES 2048
#define UNSENT_MAX_BYTES  (32 << 20) /* a client this far behind will not catch up */

static void make_id(char *out, size_t size)
{
    unsigned char r[12] = {0};
    int n = snprintf(out, size, "req-");

    if (getrandom(r, sizeof(r), GRND_NONBLOCK) < 0)
        memset(r, 0, sizeof(r));
    for (size_t i = 0; i < sizeof(r); i++)
        n += snprintf(out + n, size - n, "%02x", r[i]);
}

struct exchange *exchange_new(struct http_server *server, struct http_client *client,
                              struct MHD_Connection *conn, const char *method, const char *target)
{
    struct exchange *ex = calloc(1, sizeof(*ex));

    if (!ex)
        return NULL;
    ex->target = strdup(target);
    if (!ex->target) {
        free(ex);
        return NULL;
    }
    ex->magic = EXCHANGE_MAGIC;
    ex->server = server;
    ex->client = client;
    ex->conn = conn;
    ex->began_ns = ex->last_out_ns = clock_ns();
    snprintf(ex->method, sizeof(ex->method), "%s", method);
    strbuf_init(&ex->body);
    strbuf_init(&ex->out);
    strbuf_init(&ex->rest);
    http_head_init(&ex->head);
    ex->next = server->exchanges;
    if (ex->next)
        ex->next->prev = ex;
    server->exchanges = ex;
    server->metrics.n_exchanges++;
    return ex;
}

static void log_exchange(const struct exchange *ex)
{
    double ms = (clock_ns() - ex->began_ns) * 1e-6;
    char trace[TRACE_PARENT_SIZE];
    struct log_field fields[] = {
        {.key = "id", .str = ex->id},
        {.key = "client", .str = ex->client->addr},
        {.key = "key", .str = ex->key ? ex->key->id : "-"},
        {.key = "method", .str = ex->method},
        {.key = "path", .str = ex->target},
        {.key = "status", .num = ex->status},
        {.key = "ms", .num = (double)(int64_t)(ms * 1000) / 1000},
        {.key = "finish", .str = ex->finish ? ex->finish : "-"},
        {.key = "ttft_ms", .num = ex->ttft_us / 1000.0},
        {.key = "prompt_tokens", .num = ex->prompt_tokens},
        {.key = "completion_tokens", .num = ex->completion_tokens},
        {.key = "traceparent", .str = trace},
    };
    int n = sizeof(fields) / sizeof(fields[0]) - !ex->trace;

    request_trace_parent(ex->trace, trace);
    if (!ex->generation && !ex->prompt_tokens && !ex->trace)
        n -= 4;
    if (ex->server->config->log_requests)
        log_event(LOG_INFO, "request", fields, n);
}

void exchange_free(struct exchange *ex)
{
    struct http_server *s = ex->server;

    CHECK(ex->magic == EXCHANGE_MAGIC);
    CHECK(!ex->is_dirty);
    client_watch_free(ex->watch);
    if (ex->generation && !ex->has_left)
        s->metrics.n_clients_left++;
    if (ex->generation || ex->has_left)
        ex->status = 499; /* nginx's word for "the client closed the connection" */
    metrics_count_response(&s->metrics, ex->match.idx, ex->status);
    metrics_count_duration(&s->metrics, (clock_ns() - ex->began_ns) * 1e-9);
    log_exchange(ex);
    request_trace_end(ex->trace, ex);
    access_end(ex);
    if (ex->generation)
        generation_abandon(ex->generation);
    request_trace_unref(ex->trace);
    if (ex->prev)
        ex->prev->next = ex->next;
    else
        s->exchanges = ex->next;
    if (ex->next)
        ex->next->prev = ex->prev;
    s->metrics.n_exchanges--;
    strbuf_release(&ex->body);
    strbuf_release(&ex->out);
    strbuf_release(&ex->rest);
    free(ex->target);
    ex->magic = 0;
    free(ex);
}

/* Answers, from now on */

static void unwatch(struct exchange *ex)
{
    client_watch_free(ex->watch);
    ex->watch = NULL;
}

void exchange_wake(struct exchange *ex)
{
    if (ex->has_ended)
        unwatch(ex); /* its probe must not fall into the answer */
    if (!ex->is_suspended)
        return;
    ex->is_suspended = false;
    MHD_resume_connection(ex->conn);
}

void exchange_leave(struct exchange *ex)
{
    if (ex->has_left)
        return;
    ex->has_left = true;
    ex->server->metrics.n_clients_left++;
    if (ex->generation)
        generation_abandon(ex->generation);
    exchange_wake(ex);
}

void exchange_reply(struct exchange *ex, int status, const char *content_type, struct strbuf *body)
{
    CHECK(ex->state <= EXCHANGE_WAITING);
    if (body->failed) {
        strbuf_reset(body);
        strbuf_addstr(body, "{\"error\":{\"message\":\"out of memory\",\"type\":\"server_error\","
                            "\"param\":null,\"code\":null}}");
        status = 500;
    }
    strbuf_release(&ex->out);
    ex->out = *body;
    strbuf_init(body);
    ex->status = status;
    ex->content_type = content_type;
    ex->state = EXCHANGE_ANSWERED;
    ex->has_ended = true;
    exchange_wake(ex);
}

void exchange_reply_json(struct exchange *ex, int status, struct strbuf *body)
{
    exchange_reply(ex, status, "application/json", body);
}

void exchange_reply_error(struct exchange *ex, const struct api_error *e)
{
    struct strbuf body = STRBUF_INIT;

    ex->retry_after_s = e->retry_after_s;
    api_error_write(e, &body);
    exchange_reply_json(ex, e->status, &body);
}

struct strbuf *exchange_stream(struct exchange *ex)
{
    static const char gap[EXCHANGE_GAP];

    if (ex->state <= EXCHANGE_WAITING) {
        ex->state = EXCHANGE_ANSWERED;
        ex->status = 200;
        ex->is_stream = true;
        ex->content_type = "text/event-stream";
    }
    if (ex->out.len == 0) {
        strbuf_add(&ex->out, gap, EXCHANGE_GAP);
        ex->out_at = ex->out.len;
    }
    return &ex->out;
}

void exchange_stream_flush(struct exchange *ex)
{
    ex->last_out_ns = clock_ns();
    exchange_flush(ex);
}

void exchange_stream_end(struct exchange *ex)
{
    ex->has_ended = true;
    exchange_stream_flush(ex);
}

/* The request, until then */

static enum MHD_Result collect_header(void *cls, enum MHD_ValueKind kind, const char *name,
                                      const char *value)
{
    (void)kind;
    http_head_add(cls, name, value);
    return MHD_YES;
}

/* Everything that can be refused without the body. */
static int check_head(struct exchange *ex, const struct request_line *line, struct api_error *e,
                      bool *unsafe)
{
    const struct config *config = ex->server->config;
    const struct route *route = ex->match.route;

    if (http_head_check(&ex->head, line->version, e, unsafe) < 0)
        return ERR_INVALID;
    *unsafe = true;
    if (!http_framing_is_plain(ex->conn, line->method, line->target, line->version))
        return api_error_set(
            e, 400, NULL, NULL,
            "The head has a folded header, or a line that is not plain text with CR LF "
            "behind it.");
    if (ex->head.n_headers > config->max_headers)
        return api_error_set(e, 431, NULL, NULL,
                             "The request has %d headers; at most %d are taken.",
                             ex->head.n_headers, config->max_headers);
    *unsafe = false;
    if (access_answer_preflight(ex))
        return 0;
    if (access_check_key(ex, e) < 0)
        return ERR_INVALID;
    if ((ex->match.gate == ROUTE_IF_METRICS && !config->metrics) ||
        (ex->match.gate == ROUTE_IF_DEBUG && !config->debug_endpoints)) {
        ex->match.allow = NULL;
        route = NULL;
    }
    if (!route && ex->match.allow)
        return api_error_set(e, 405, NULL, NULL, "%s does not allow %s; it allows %s.", ex->target,
                             ex->method, ex->match.allow);
    if (!route)
        return api_error_set(e, 404, NULL, NULL, "Nothing is served at %.200s.", ex->target);
    if (ex->server->draining && route->method == ROUTE_POST)
        return api_error_set(e, 503, NULL, "shutting_down", "The server is shutting down.");
    if (ex->head.content_length > config->max_body_bytes)
        return api_error_set(e, 413, NULL, NULL,
                             "The body has %lld bytes; at most %lld are accepted.",
                             (long long)ex->head.content_length, (long long)config->max_body_bytes);
    return 0;
}

enum MHD_Result exchange_begin(struct exchange *ex, const struct request_line *line)
{
    struct api_error e = {0};
    bool unsafe = false;

    MHD_get_connection_values(ex->conn, MHD_HEADER_KIND, collect_header, &ex->head);
    if (ex->head.request_id[0])
        memcpy(ex->id, ex->head.request_id, sizeof(ex->id));
    else
        make_id(ex->id, sizeof(ex->id));
    ex->is_http_1_0 = !strcmp(line->version, "HTTP/1.0");
    ex->match = router_find(ex->method, ex->target);
    ex->client->n_body = 0;
    http_client_enter(ex->client, CLIENT_BODY);
    if (check_head(ex, line, &e, &unsafe) == 0) {
        if (ex->head.content_length > 0)
            strbuf_grow(&ex->body, ex->head.content_length);
        return MHD_YES;
    }
    exchange_reply_error(ex, &e);
    if (unsafe || ex->head.expects_continue || ex->head.content_length > DISCARD_MAX_BYTES)
        return exchange_send(ex);
    return MHD_YES;
}

void exchange_add_body(struct exchange *ex, const char *data, size_t len)
{
    struct api_error e = {0};

    ex->client->n_body += (int64_t)len;
    if (ex->state != EXCHANGE_READING)
        return; /* refused; the rest is read for the sake of the answer */
    strbuf_add(&ex->body, data, len);
    if ((int64_t)ex->body.len <= ex->server->config->max_body_bytes && !ex->body.failed)
        return;
    api_error_set(&e, 413, NULL, NULL, "The body is longer than the %lld bytes that are accepted.",
                  (long long)ex->server->config->max_body_bytes);
    strbuf_release(&ex->body);
    exchange_reply_error(ex, &e);
}

/* What was asked, for operators who want that; control characters are escaped by the log. */
static void log_body(const struct exchange *ex)
{
    size_t n = ex->body.len < LOGGED_BODY_BYTES ? ex->body.len : LOGGED_BODY_BYTES;
    char text[LOGGED_BODY_BYTES + 1];
    struct log_field fields[] = {{.key = "id", .str = ex->id}, {.key = "body", .str = text}};

    if (!ex->server->config->log_prompts || n == 0)
        return;
    while (n > 0 && n < ex->body.len && ((unsigned char)ex->body.buf[n] & 0xc0) == 0x80)
        n--; /* whole characters */
    memcpy(text, ex->body.buf, n);
    text[n] = '\0';
    log_event(LOG_INFO, "asked", fields, 2);
}

enum MHD_Result exchange_continue(struct exchange *ex)
{
    CHECK(ex->magic == EXCHANGE_MAGIC);
#if MHD_VERSION < 0x01000000
    /*
     * A connection that was suspended while the library wanted to read reads again when it is
     * resumed, and then drops the answer for a client that has closed its sending side. After one
     * more turn without an answer it no longer wants to.
     */
    if (!ex->has_settled) {
        ex->has_settled = true;
        http_client_enter(ex->client, CLIENT_BUSY); /* its FIN is no offence any more */
        return MHD_YES;
    }
#endif
    if (ex->state == EXCHANGE_READING) {
        http_client_enter(ex->client, CLIENT_BUSY);
        ex->state = EXCHANGE_WAITING;
        log_body(ex);
        ex->match.route->handle(ex);
    }
    if (ex->has_left)
        return MHD_NO;
    if (ex->state == EXCHANGE_ANSWERED) {
        http_client_enter(ex->client, CLIENT_BUSY);
        return exchange_send(ex);
    }
    ex->is_suspended = true;
    MHD_suspend_connection(ex->conn);
    return MHD_YES;
}

static void on_client_gone(void *arg)
{
    struct exchange *ex = arg;

    CHECK(ex->magic == EXCHANGE_MAGIC);
    if (ex->generation || ex->rest.len > ex->rest_at)
        exchange_leave(ex);
}

void exchange_watch(struct exchange *ex, bool for_stream)
{
    bool is_tls = ex->server->config->tls_cert_file[0] != '\0'; /* no plain bytes into that */
    enum client_fin fin = for_stream || is_tls ? CLIENT_FIN_LEAVES
                          : ex->is_http_1_0    ? CLIENT_FIN_STAYS
                                               : CLIENT_FIN_PROBE;

    if (ex->watch || ex->client->fd < 0)
        return;
    ex->watch = client_watch_new(ex->server->uv, ex->client->fd, fin, on_client_gone, ex);
    if (!ex->watch)
        log_warn("%s: no descriptor left to watch the client with", ex->id);
}

/* The whole request has its time too. */
static void expire(struct exchange *ex, int64_t now_ns)
{
    int64_t most_ms = ex->server->config->request_timeout_ms;
    struct api_error e = {0};

    if (most_ms == 0 || !ex->generation || now_ns - ex->began_ns < most_ms * 1000000)
        return;
    api_error_set(&e, 408, NULL, "request_timeout", "The request took longer than %lld ms.",
                  (long long)most_ms);
    generation_refuse(ex->generation, &e);
}

void exchange_sweep(struct exchange *ex, int64_t now_ns)
{
    int64_t every_ns = ex->server->config->sse_ping_ms * INT64_C(1000000);

    if (exchange_is_late(ex, now_ns)) {
        log_warn("%s: the client does not take its answer, the connection is closed", ex->id);
        ex->server->metrics.n_timeouts++;
        on_client_gone(ex);
        http_client_cut(ex->client);
    }
    expire(ex, now_ns);

    if (ex->is_stream && exchange_unsent(ex) > UNSENT_MAX_BYTES) {
        log_warn("%s: the client reads too slowly, its stream is cut", ex->id);
        on_client_gone(ex);
    }
    if (every_ns == 0 || !ex->generation || ex->has_ended || now_ns - ex->last_out_ns < every_ns)
        return;
    if (ex->state == EXCHANGE_WAITING && !generation_streams(ex->generation))
        return;
    if (exchange_unsent(ex) > 0)
        return; /* it is the client that is silent */
    sse_ping(exchange_stream(ex));
    exchange_stream_flush(ex);
}
