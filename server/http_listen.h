/*
 * http_listen - the listening sockets: one TCP address, one UNIX socket, or what a service manager
 * has opened. Loop thread only.
 *
 * Accepting is done here and not in libmicrohttpd: several sockets can share a daemon, and at the
 * limit of connections or descriptors new clients wait in the kernel's queue.
 */
#ifndef HTTP_LISTEN_H
#define HTTP_LISTEN_H

#include <stdbool.h>
#include <sys/socket.h>
#include <uv.h>

struct config;
struct err;

#define HTTP_LISTEN_MAX 64

/* A client is there; fd is the callee's. False: no more for now, until http_listen_resume(). */
typedef bool http_accept_fn(void *arg, int fd, const struct sockaddr *addr, socklen_t len);

struct http_listen { /* fields are private, but for port and address */
    uv_poll_t polls[HTTP_LISTEN_MAX];
    int fds[HTTP_LISTEN_MAX];
    int n;
    bool is_started, is_paused, is_inherited;
    bool is_short; /* the last client could not be taken for want of a descriptor or memory */
    http_accept_fn *accept;
    void *arg;
    char unix_path[108]; /* made by us, removed at the end; "" when there is none */
    int port;            /* 0 for a UNIX socket */
    char address[160];   /* as in a URL: http://127.0.0.1:8000, unix:/run/spand.sock */
};

/* Binds. ERR_IO when the address cannot be had; *l is then closed. */
int http_listen_open(struct http_listen *l, const struct config *config, struct err *err);

/* Hands out clients from now on. */
int http_listen_start(struct http_listen *l, uv_loop_t *uv, http_accept_fn *fn, void *arg,
                      struct err *err);

/* Accepts again after the callback said no. Cheap when nothing was paused. */
void http_listen_resume(struct http_listen *l);

/* Stops listening. The loop must turn once more. Accepts a zeroed struct, and may be repeated. */
void http_listen_close(struct http_listen *l);

#endif
