/*
 * exchange_direct - the events of a stream, sent beside the library.
 *
 * libmicrohttpd sends the head and the first events. Once its reader has nothing more, it suspends
 * the connection with nothing of its own unsent, and knows nothing of the socket until it is
 * resumed. From then on each batch of events is one chunk and one send() here, without resuming,
 * reading, sending and suspending in between. What the kernel does not take waits in `rest` until
 * the socket has room. The library is resumed for the end: it sends the last chunk and goes on with
 * the next request. TLS, and clients for whose watch there was no descriptor, go through it always.
 */
#include "server/exchange.h"

#include "base/check.h"
#include "config/config.h"
#include "server/client_watch.h"
#include "server/http_server.h"

#include <errno.h>
#include <stdio.h>
#include <string.h>
#include <sys/socket.h>

static bool goes_directly(const struct exchange *ex)
{
    return ex->state == EXCHANGE_SENDING && ex->is_stream && ex->is_suspended && ex->watch &&
           !ex->out.failed && !ex->server->config->tls_cert_file[0];
}

static bool is_blocked(const struct exchange *ex)
{
    return ex->rest.len > ex->rest_at;
}

int64_t exchange_unsent(const struct exchange *ex)
{
    return (int64_t)(ex->out.len - ex->out_at + ex->rest.len - ex->rest_at);
}

/* What the kernel takes of it, 0 while it has no room; -1: the connection is broken. */
static ssize_t send_some(const struct exchange *ex, const char *buf, size_t len)
{
    ssize_t n;

    do
        n = send(ex->client->fd, buf, len, MSG_DONTWAIT | MSG_NOSIGNAL);
    while (n < 0 && errno == EINTR);
    return n < 0 && errno == EAGAIN ? 0 : n;
}

/* All events that wait, as one chunk; its two ends go around them in the same buffer. */
static bool frame(struct exchange *ex)
{
    size_t n = ex->out.len - ex->out_at;
    char head[EXCHANGE_GAP + 1];
    size_t head_len;

    if (!ex->is_http_1_0) {
        head_len = (size_t)snprintf(head, sizeof(head), "%zx\r\n", n);
        CHECK(head_len <= ex->out_at);
        strbuf_add(&ex->out, "\r\n", 2);
        if (ex->out.failed)
            return false;
        ex->out_at -= head_len;
        memcpy(ex->out.buf + ex->out_at, head, head_len);
    }
    ex->n_out += (int64_t)n;
    return true;
}

/* Nothing more will come, or it cannot be told: the library ends the answer. */
static void settle(struct exchange *ex)
{
    if (!is_blocked(ex) && (ex->has_ended || ex->out.failed))
        exchange_wake(ex);
}

static void on_room(void *arg);

/* Sends what is framed, and keeps what the kernel does not take. */
static void send_framed(struct exchange *ex)
{
    size_t len = ex->out.len - ex->out_at;
    ssize_t n = send_some(ex, ex->out.buf + ex->out_at, len);
    struct strbuf emptied = ex->rest;

    if (n < 0) {
        exchange_leave(ex);
        return;
    }
    if ((size_t)n < len) {
        ex->rest = ex->out;
        ex->rest_at = ex->out_at + (size_t)n;
        ex->out = emptied;
        client_watch_room(ex->watch, on_room);
    }
    strbuf_reset(&ex->out);
    ex->out_at = 0;
    ex->n_sent = ex->n_out - (int64_t)(ex->rest.len - ex->rest_at);
    settle(ex);
}

static void push(struct exchange *ex)
{
    if (!goes_directly(ex))
        exchange_wake(ex);
    else if (!ex->has_left && !is_blocked(ex) && ex->out.len > ex->out_at && frame(ex))
        send_framed(ex);
    else
        settle(ex);
}

static void on_room(void *arg)
{
    struct exchange *ex = arg;
    struct http_server *s = ex->server;
    ssize_t n = send_some(ex, ex->rest.buf + ex->rest_at, ex->rest.len - ex->rest_at);

    CHECK(ex->magic == EXCHANGE_MAGIC);
    if (n < 0) {
        exchange_leave(ex);
    } else {
        ex->rest_at += (size_t)n;
        ex->n_sent = ex->n_out - (int64_t)(ex->rest.len - ex->rest_at);
        if (is_blocked(ex)) {
            client_watch_room(ex->watch, on_room);
        } else {
            strbuf_reset(&ex->rest);
            ex->rest_at = 0;
            push(ex);
        }
    }
    http_loop_run(&s->loop);
}

void exchange_flush(struct exchange *ex)
{
    struct http_server *s = ex->server;

    if (!s->collects) {
        push(ex);
    } else if (!ex->is_dirty) {
        ex->is_dirty = true;
        ex->next_dirty = NULL;
        if (s->last_dirty)
            s->last_dirty->next_dirty = ex;
        else
            s->dirty = ex;
        s->last_dirty = ex;
    }
}

void exchange_begin_batch(struct http_server *s)
{
    s->collects = true;
}

void exchange_end_batch(struct http_server *s)
{
    s->collects = false;
    while (s->dirty) {
        struct exchange *ex = s->dirty;

        s->dirty = ex->next_dirty;
        if (!s->dirty)
            s->last_dirty = NULL;
        ex->is_dirty = false;
        push(ex);
    }
}
