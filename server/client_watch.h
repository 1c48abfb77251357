/*
 * client_watch - notices that the client of a running request has left.
 *
 * libmicrohttpd does not look at suspended connections. A watch is a uv_poll for UV_DISCONNECT on a
 * duplicate of the connection's descriptor. A FIN alone may be a client that only closed its
 * sending side: where that must be told apart, the watch sends an interim "100 Continue" 50 ms
 * later, which every HTTP/1.1 client skips, and which the kernel of one that has left answers with
 * a reset.
 */
#ifndef CLIENT_WATCH_H
#define CLIENT_WATCH_H

#include <stdbool.h>
#include <uv.h>

struct client_watch;

enum client_fin {
    CLIENT_FIN_LEAVES, /* streams: nobody reads on */
    CLIENT_FIN_PROBE,  /* ask with an interim response; only while no answer has begun */
    CLIENT_FIN_STAYS   /* HTTP/1.0 knows no interim responses: only a reset counts */
};

/*
 * Calls gone(arg) once, from the loop, when the client is found to have left. NULL when descriptors
 * or memory are out: the connection is then noticed by its first failing write.
 */
struct client_watch *client_watch_new(uv_loop_t *uv, int fd, enum client_fin fin,
                                      void (*gone)(void *arg), void *arg);

/* Calls writable(arg) once, from the loop, when the socket takes bytes again. */
void client_watch_room(struct client_watch *w, void (*writable)(void *arg));

/* Accepts NULL. Neither function is called any more. */
void client_watch_free(struct client_watch *w);

#endif
