/*
 * exchange - one HTTP request and its answer.
 *
 * Loop thread only. It collects the body, calls the route's handler, and answers at once or later:
 * until there is something to send, the connection is suspended. The same thread fills the buffer,
 * suspends and resumes, so "nothing to send" cannot change between the look and the suspension.
 * It lives from the first call of libmicrohttpd's handler to the report of the request's end.
 */
#ifndef EXCHANGE_H
#define EXCHANGE_H

#include "base/strbuf.h"
#include "server/http_head.h"
#include "server/router.h"

#include <microhttpd.h>

struct api_error;
struct api_key;
struct client_watch;
struct generation;
struct http_client;
struct http_server;
struct request_trace;

#define EXCHANGE_MAGIC 0x45584348u
#define EXCHANGE_GAP   10 /* bytes in front of a stream's events, for the length of their chunk */

enum exchange_state {
    EXCHANGE_READING,  /* the body is coming in */
    EXCHANGE_WAITING,  /* the handler was called and has not answered */
    EXCHANGE_ANSWERED, /* the answer is there and not yet queued */
    EXCHANGE_SENDING   /* queued; a stream may still grow */
};

struct request_line {
    const char *method, *target, *version;
};

struct exchange {
    unsigned magic;
    struct exchange *prev, *next;
    struct exchange *next_dirty; /* in the server's list of streams with news */
    struct http_server *server;
    struct http_client *client;
    struct MHD_Connection *conn;
    struct generation *generation; /* that will answer; NULL when none does */
    struct client_watch *watch;
    struct request_trace *trace; /* or NULL */
    struct route_match match;
    struct http_head head;
    enum exchange_state state;
    bool is_suspended, is_stream, has_ended, has_left, is_http_1_0;
    bool counts_for_key, has_settled, is_dirty;
    struct api_key *key;   /* it came with; NULL where none are wanted */
    struct strbuf body;    /* of the request */
    struct strbuf out;     /* the answer, or the part of a stream that is not sent */
    size_t out_at;         /* bytes of out that are sent, or that are a stream's gap */
    struct strbuf rest;    /* a chunk of a stream, whose beginning is sent beside the library */
    size_t rest_at;        /* sent bytes of rest */
    int64_t n_out, n_sent; /* bytes of the answer so far; those that left for the kernel */
    int64_t mark, mark_ns; /* n_out at some time, which n_sent must reach before its deadline */
    int64_t mark_bytes;    /* that were unsent then */
    const char *content_type;
    int status, retry_after_s;
    char id[HTTP_REQUEST_ID_BYTES];
    char method[16], *target; /* owned */
    int64_t began_ns, last_out_ns;
    int64_t prompt_tokens, completion_tokens, ttft_us; /* for the log */
    const char *finish;                                /* the first choice's reason, static */
};

/* The three callbacks of libmicrohttpd, with the exchange they are about. NULL: out of memory. */
struct exchange *exchange_new(struct http_server *server, struct http_client *client,
                              struct MHD_Connection *conn, const char *method, const char *target);
/* *line: the pointers that the library passed, which are not copies. */
enum MHD_Result exchange_begin(struct exchange *ex, const struct request_line *line);
void exchange_add_body(struct exchange *ex, const char *data, size_t len);
enum MHD_Result exchange_continue(struct exchange *ex);

/* The request has ended, one way or another. Cancels what still works for it. */
void exchange_free(struct exchange *ex);

/* Answers with a whole body; *body is emptied. At most one answer an exchange. */
void exchange_reply(struct exchange *ex, int status, const char *content_type, struct strbuf *body);
void exchange_reply_json(struct exchange *ex, int status, struct strbuf *body);
void exchange_reply_error(struct exchange *ex, const struct api_error *e);

/*
 * The buffer of a stream, whose 200 goes out with the first bytes. After appending call
 * exchange_stream_flush(), and exchange_stream_end() behind the last ones.
 */
struct strbuf *exchange_stream(struct exchange *ex);
void exchange_stream_flush(struct exchange *ex);
void exchange_stream_end(struct exchange *ex);

/* Watches for the client to leave, while a generation works for it. */
void exchange_watch(struct exchange *ex, bool for_stream);

/* exchange_send.c: hands the answer to the library. */
enum MHD_Result exchange_send(struct exchange *ex);

/* The library looks at a suspended exchange again, in its next run. */
void exchange_wake(struct exchange *ex);

/* The client cannot be told anything any more: cancels what works for it. */
void exchange_leave(struct exchange *ex);

/*
 * exchange_direct.c: what a stream has to say goes out, by the library or beside it: at once, or
 * between begin and end of a batch with all others at its end. No exchange ends within a batch.
 */
void exchange_flush(struct exchange *ex);
void exchange_begin_batch(struct http_server *s);
void exchange_end_batch(struct http_server *s);

/* Bytes of the answer that wait for the client. */
int64_t exchange_unsent(const struct exchange *ex);

/* Has the client taken too long to accept what was ready for it? To be asked regularly. */
bool exchange_is_late(struct exchange *ex, int64_t now_ns);

/* Regular look at a waiting or streaming exchange: pings, and clients that fall behind. */
void exchange_sweep(struct exchange *ex, int64_t now_ns);

#endif
