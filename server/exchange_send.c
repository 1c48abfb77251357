/*
 * exchange_send - the answer on its way out.
 *
 * The library's own timeout counts the time without any progress, so a client that takes one byte
 * in time would keep its connection for ever. Here everything that is ready at some moment must
 * have left for the kernel by a deadline.
 */
#include "server/exchange.h"

#include "base/check.h"
#include "config/config.h"
#include "server/access.h"
#include "server/http_server.h"
#include "server/request_trace.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define SEND_BLOCK 16384 /* handed to the library at a time */
/* The page brings its own style and script, calls this server, and nobody may frame it. */
#define PAGE_POLICY                                                                                \
    "default-src 'none'; style-src 'unsafe-inline'; script-src 'unsafe-inline'; "                  \
    "connect-src 'self'; img-src data:; frame-ancestors 'none'; base-uri 'none'; form-action "     \
    "'none'"
#define SENT_KEEP_BYTES (1 << 20) /* moved together when more of the buffer is already sent */

static ssize_t read_answer(void *cls, uint64_t pos, char *buf, size_t max)
{
    struct exchange *ex = cls;
    size_t n = ex->out.len - ex->out_at;

    (void)pos;
    ex->n_sent = ex->n_out; /* it asks for more when all of the last block has left */
    CHECK(ex->magic == EXCHANGE_MAGIC);
    if (ex->has_left || ex->out.failed)
        return MHD_CONTENT_READER_END_WITH_ERROR;
    if (n == 0 && ex->has_ended)
        return MHD_CONTENT_READER_END_OF_STREAM;
    if (n == 0) {
        ex->is_suspended = true;
        MHD_suspend_connection(ex->conn);
        return 0;
    }
    if (n > max)
        n = max;
    memcpy(buf, ex->out.buf + ex->out_at, n);
    ex->out_at += n;
    ex->n_out += (int64_t)n;
    if (ex->out_at == ex->out.len) {
        strbuf_reset(&ex->out);
        ex->out_at = 0;
    } else if (ex->out_at > SENT_KEEP_BYTES && ex->out_at > ex->out.len / 2) {
        strbuf_drop(&ex->out, ex->out_at - EXCHANGE_GAP);
        ex->out_at = EXCHANGE_GAP;
    }
    return (ssize_t)n;
}

static void add_headers(struct exchange *ex, struct MHD_Response *r)
{
    char text[TRACE_PARENT_SIZE];

    if (ex->content_type)
        MHD_add_response_header(r, "Content-Type", ex->content_type);
    MHD_add_response_header(r, "x-request-id", ex->id);
    MHD_add_response_header(r, "X-Content-Type-Options", "nosniff");
    request_trace_parent(ex->trace, text);
    if (text[0])
        MHD_add_response_header(r, "traceparent", text);
    if (ex->match.gate == ROUTE_PAGE) {
        MHD_add_response_header(r, "Content-Security-Policy", PAGE_POLICY);
        MHD_add_response_header(r, "Referrer-Policy", "no-referrer");
        MHD_add_response_header(r, "Cache-Control", "no-cache");
    }
    if (ex->is_stream) {
        MHD_add_response_header(r, "Cache-Control", "no-cache");
        MHD_add_response_header(r, "X-Accel-Buffering", "no");
    }
    if (ex->retry_after_s > 0) {
        snprintf(text, sizeof(text), "%d", ex->retry_after_s);
        MHD_add_response_header(r, "Retry-After", text);
    }
    if (ex->status == 405 && ex->match.allow)
        MHD_add_response_header(r, "Allow", ex->match.allow);
    if (ex->status == 408) /* it would take as long again */
        MHD_add_response_header(r, "x-should-retry", "false");
    access_add_headers(ex, r);
    if (ex->server->draining)
        MHD_add_response_header(r, "Connection", "close");
}

enum MHD_Result exchange_send(struct exchange *ex)
{
    struct MHD_Response *r;
    enum MHD_Result rc;
    size_t len = ex->out.len;
    char *buf = NULL;

    ex->state = EXCHANGE_SENDING;
    if (ex->is_stream || len > SEND_BLOCK) {
        r = MHD_create_response_from_callback(ex->is_stream ? MHD_SIZE_UNKNOWN : len, SEND_BLOCK,
                                              read_answer, ex, NULL);
    } else {
        ex->n_out = (int64_t)len;
        buf = strbuf_detach(&ex->out, &len);
        r = buf ? MHD_create_response_from_buffer(len, buf, MHD_RESPMEM_MUST_FREE) : NULL;
    }
    if (!r) {
        free(buf);
        return MHD_NO;
    }
    add_headers(ex, r);
    rc = MHD_queue_response(ex->conn, (unsigned)ex->status, r);
    MHD_destroy_response(r);
    return rc;
}

bool exchange_is_late(struct exchange *ex, int64_t now_ns)
{
    const struct config *config = ex->server->config;
    int64_t ready = ex->n_out + (int64_t)(ex->out.len - ex->out_at);
    bool is_idle = ex->is_suspended && exchange_unsent(ex) == 0;
    int64_t most_ms;

    if (ex->state != EXCHANGE_SENDING || is_idle) {
        ex->mark_ns = 0; /* nothing to send */
        return false;
    }
    if (!ex->mark_ns || (ex->n_sent >= ex->mark && ready > ex->mark)) {
        ex->mark = ready;
        ex->mark_bytes = ready - ex->n_sent;
        ex->mark_ns = now_ns;
        return false;
    }
    most_ms = http_server_patience_ms(config, config->write_timeout_ms, ex->mark_bytes);
    return now_ns - ex->mark_ns > most_ms * 1000000;
}
