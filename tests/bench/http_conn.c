/*
 * http_conn - connect, write, read, close. See http_conn.h.
 */
#include "tests/bench/http_conn.h"

#include "base/check.h"
#include "base/clock.h"

#define MAGIC      0x68747470636f6e6eull
#define READ_BYTES (64 << 10)

enum state { CONN_CLOSED, CONN_CONNECTING, CONN_OPEN, CONN_CLOSING };

/* libuv asks for memory right before each read and hands it back in the callback, so that one
 * buffer serves all connections of the one thread. */
static char read_buf[READ_BYTES];

static void start_connect(struct http_conn *c);

static struct http_conn *conn_of(void *data)
{
    struct http_conn *c = data;

    CHECK(c->magic == MAGIC);
    return c;
}

static void on_closed(uv_handle_t *handle)
{
    struct http_conn *c = conn_of(handle->data);

    CHECK(c->state == CONN_CLOSING);
    c->state = CONN_CLOSED;
    c->is_writing = false;
    if (c->is_busy)
        start_connect(c);
}

static void close_tcp(struct http_conn *c)
{
    if (c->state == CONN_CONNECTING || c->state == CONN_OPEN) {
        c->state = CONN_CLOSING;
        uv_close((uv_handle_t *)&c->tcp, on_closed);
    }
}

static void fail(struct http_conn *c)
{
    struct err err = c->err;

    close_tcp(c);
    c->is_busy = false;
    c->handler->on_end(c->arg, c->response.status, clock_ns(), &err);
}

/* The connection broke off under a request; err may already hold the reason. */
static void lose(struct http_conn *c, int uv_status)
{
    if (c->is_reused && !c->has_answer) {
        /* A server may close an idle connection just when a request is on its way to it. Generating
         * twice harms nobody, so it is repeated (RFC 9112 9.3.1), on a new connection and once. */
        c->n_repeats++;
        c->is_reused = false;
        c->err = (struct err){0};
        close_tcp(c);
        return;
    }
    err_set(&c->err, ERR_IO, "connection lost: %s", uv_strerror(uv_status));
    fail(c);
}

static void finish(struct http_conn *c, bool may_reuse, int64_t now_ns)
{
    if (!may_reuse || !c->response.keep_alive || c->is_writing)
        close_tcp(c);
    c->is_busy = false;
    c->handler->on_end(c->arg, c->response.status, now_ns, NULL);
}

struct body_args {
    struct http_conn *conn;
    int64_t now_ns;
};

static void on_body(void *arg, const char *data, size_t len)
{
    const struct body_args *a = arg;
    struct http_conn *c = a->conn;

    c->handler->on_body(c->arg, c->response.status, data, len, a->now_ns);
}

static void on_alloc(uv_handle_t *handle, size_t suggested, uv_buf_t *buf)
{
    (void)handle;
    (void)suggested;
    *buf = uv_buf_init(read_buf, sizeof(read_buf));
}

static void on_read(uv_stream_t *stream, ssize_t n_read, const uv_buf_t *buf)
{
    struct http_conn *c = conn_of(stream->data);
    struct body_args args = {.conn = c, .now_ns = clock_ns()};
    ssize_t taken;

    if (n_read == 0)
        return;
    if (!c->is_busy) {
        close_tcp(c); /* the server's idle close, or bytes that nobody asked for */
        return;
    }
    if (n_read < 0) {
        if (n_read == UV_EOF && http_response_eof(&c->response, &c->err) == 0)
            finish(c, false, args.now_ns);
        else
            lose(c, (int)n_read);
        return;
    }
    c->active_ns = args.now_ns;
    c->has_answer = true;
    taken = http_response_feed(&c->response, buf->base, n_read, on_body, &args, &c->err);
    if (taken < 0)
        fail(c);
    else if (c->response.is_done)
        finish(c, taken == n_read, args.now_ns);
}

static void on_written(uv_write_t *write, int status)
{
    struct http_conn *c = conn_of(write->data);

    c->is_writing = false;
    c->active_ns = clock_ns();
    /* Behind the first bytes of an answer the reader decides: it may be a refusal, then a close. */
    if (status < 0 && c->state == CONN_OPEN && c->is_busy && !c->has_answer)
        lose(c, status);
}

static void start_write(struct http_conn *c)
{
    uv_buf_t buf = uv_buf_init(c->out.buf, (unsigned)c->out.len);
    int rc;

    c->has_answer = false;
    http_response_init(&c->response);
    c->active_ns = clock_ns();
    c->handler->on_sent(c->arg, c->active_ns);
    c->write.data = c;
    c->is_writing = true;
    rc = uv_write(&c->write, (uv_stream_t *)&c->tcp, &buf, 1, on_written);
    if (rc < 0) {
        c->is_writing = false;
        lose(c, rc);
    }
}

static void on_connected(uv_connect_t *connect, int status)
{
    struct http_conn *c = conn_of(connect->data);

    if (c->state == CONN_CLOSING)
        return;
    if (status == 0)
        status = uv_read_start((uv_stream_t *)&c->tcp, on_alloc, on_read);
    if (status < 0) {
        err_set(&c->err, ERR_IO, "connect: %s", uv_strerror(status));
        fail(c);
        return;
    }
    c->state = CONN_OPEN;
    c->n_connects++;
    uv_tcp_nodelay(&c->tcp, 1);
    start_write(c);
}

static void start_connect(struct http_conn *c)
{
    int rc = uv_tcp_init(c->loop, &c->tcp);

    CHECK(rc == 0); /* it makes no socket yet */
    c->tcp.data = c;
    c->connect.data = c;
    c->is_reused = false;
    c->active_ns = clock_ns();
    c->state = CONN_CONNECTING;
    rc = uv_tcp_connect(&c->connect, &c->tcp, (const struct sockaddr *)&c->addr, on_connected);
    if (rc < 0) {
        err_set(&c->err, ERR_IO, "connect: %s", uv_strerror(rc));
        fail(c);
    }
}

void http_conn_init(struct http_conn *c, uv_loop_t *loop, const struct sockaddr_storage *addr,
                    const struct http_conn_handler *handler, void *arg)
{
    *c = (struct http_conn){
        .magic = MAGIC, .loop = loop, .addr = *addr, .handler = handler, .arg = arg};
    strbuf_init(&c->out);
    http_response_init(&c->response);
}

int http_conn_send(struct http_conn *c, const char *bytes, size_t len, struct err *err)
{
    CHECK(!c->is_busy);
    strbuf_reset(&c->out);
    strbuf_add(&c->out, bytes, len);
    if (c->out.failed)
        return err_set(err, ERR_NO_ROOM, "a request of %zu bytes: out of memory", len);
    c->is_busy = true;
    c->err = (struct err){0};
    c->active_ns = clock_ns();
    http_response_init(&c->response);
    if (c->state == CONN_OPEN) {
        c->is_reused = true;
        start_write(c);
    } else if (c->state == CONN_CLOSED) {
        start_connect(c);
    } /* else on_closed() connects */
    return 0;
}

void http_conn_abort(struct http_conn *c, const char *why)
{
    if (!c->is_busy)
        return;
    err_set(&c->err, ERR_IO, "%s", why);
    fail(c);
}

int64_t http_conn_idle_ns(const struct http_conn *c, int64_t now_ns)
{
    return c->is_busy ? now_ns - c->active_ns : 0;
}

void http_conn_close(struct http_conn *c)
{
    c->is_busy = false;
    close_tcp(c);
}

void http_conn_release(struct http_conn *c)
{
    CHECK(c->state == CONN_CLOSED);
    strbuf_release(&c->out);
    c->magic = 0;
}
