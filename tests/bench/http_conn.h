/*
 * http_conn - one keep-alive client connection on a libuv loop, one request at a time.
 *
 * It connects when there is something to send, reconnects when the server has closed in between,
 * and sends a request once more if it was the connection's idle close that met it. Everything runs
 * on the loop's thread.
 */
#ifndef HTTP_CONN_H
#define HTTP_CONN_H

#include "base/err.h"
#include "base/strbuf.h"
#include "tests/bench/http_response.h"

#include <netinet/in.h>
#include <stdbool.h>
#include <stdint.h>
#include <uv.h>

/* Called for one request in this order; no callback may be NULL. */
struct http_conn_handler {
    void (*on_sent)(void *arg, int64_t now_ns); /* the request is handed to the kernel; again on a
                                                   repetition */
    /* Bytes of the body, with the time at which they were read. */
    void (*on_body)(void *arg, int status, const char *data, size_t len, int64_t now_ns);
    /* The response is complete, or *err says why not. From here on http_conn_send() is allowed. */
    void (*on_end)(void *arg, int status, int64_t now_ns, const struct err *err);
};

struct http_conn { /* fields are private but for the counts */
    uint64_t magic;
    int64_t n_connects;
    int64_t n_repeats; /* requests that were sent once more */
    uv_loop_t *loop;
    struct sockaddr_storage addr;
    const struct http_conn_handler *handler;
    void *arg;
    uv_tcp_t tcp;
    uv_connect_t connect;
    uv_write_t write;
    int state;
    bool is_busy;    /* between http_conn_send() and on_end */
    bool is_writing; /* libuv still reads `out` */
    bool is_reused, has_answer;
    int64_t active_ns; /* when a byte last moved */
    struct strbuf out;
    struct http_response response;
    struct err err;
};

/* handler and loop are borrowed and outlive the connection. Opens nothing yet. */
void http_conn_init(struct http_conn *c, uv_loop_t *loop, const struct sockaddr_storage *addr,
                    const struct http_conn_handler *handler, void *arg);

/*
 * Sends a request, head and body, which is copied. The connection must not be busy. Callbacks may
 * come before this returns. ERR_NO_ROOM when memory is out: then none comes.
 */
int http_conn_send(struct http_conn *c, const char *bytes, size_t len, struct err *err);

/* Ends a busy connection's request with on_end and the given message; else does nothing. */
void http_conn_abort(struct http_conn *c, const char *why);

/* Nanoseconds since a byte last moved for the current request; 0 when not busy. */
int64_t http_conn_idle_ns(const struct http_conn *c, int64_t now_ns);

/* Closes without callbacks; run the loop until it ends, then http_conn_release(). */
void http_conn_close(struct http_conn *c);

/* Frees buffers of a closed connection. */
void http_conn_release(struct http_conn *c);

#endif
