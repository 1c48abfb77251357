/*
 * http_loop - libmicrohttpd inside a libuv loop: one uv_poll on its epoll descriptor and one timer.
 *
 * Loop thread only. The library registers connections edge-triggered inside its epoll set, so its
 * descriptor alone does not say that work is left: MHD_get_timeout() must be asked after each run.
 */
#ifndef HTTP_LOOP_H
#define HTTP_LOOP_H

#include <stdbool.h>
#include <uv.h>

struct err;
struct MHD_Daemon;

struct http_loop { /* fields are private */
    struct MHD_Daemon *daemon;
    uv_poll_t poll;
    uv_timer_t timer;
    uv_idle_t idle;
    bool is_open, is_running;
};

int http_loop_open(struct http_loop *l, uv_loop_t *uv, struct MHD_Daemon *daemon, struct err *err);

/* Stops watching, before MHD_stop_daemon() closes the descriptor. The loop must turn once more. */
void http_loop_close(struct http_loop *l);

/* Lets the library do what is ready, resumed connections included. Never from inside its callbacks.
 */
void http_loop_run(struct http_loop *l);

#endif
