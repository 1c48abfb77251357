/*
 * http_loop - the junction of the two libraries. "Run again at once" goes through a timer of 0 ms
 * instead of an inner loop, so that signals and the engine's news get their turn in between.
 */
#include "server/http_loop.h"

#include "base/check.h"
#include "base/err.h"

#include <microhttpd.h>

static void on_timer(uv_timer_t *timer)
{
    http_loop_run(timer->data);
}

void http_loop_run(struct http_loop *l)
{
    MHD_UNSIGNED_LONG_LONG ms;

    CHECK(!l->is_running);
    if (!l->is_open)
        return;
    l->is_running = true;
    MHD_run(l->daemon);
    l->is_running = false;
    if (MHD_get_timeout(l->daemon, &ms) == MHD_YES)
        uv_timer_start(&l->timer, on_timer, ms, 0);
    else
        uv_timer_stop(&l->timer);
}

static void on_readable(uv_poll_t *poll, int status, int events)
{
    (void)status; /* an error is read by the library's own epoll_wait */
    (void)events;
    http_loop_run(poll->data);
}

int http_loop_open(struct http_loop *l, uv_loop_t *uv, struct MHD_Daemon *daemon, struct err *err)
{
    const union MHD_DaemonInfo *info = MHD_get_daemon_info(daemon, MHD_DAEMON_INFO_EPOLL_FD);
    int rc;

    if (!info)
        return err_set(err, ERR_IO, "libmicrohttpd has no epoll descriptor");
    rc = uv_poll_init(uv, &l->poll, info->epoll_fd);
    if (rc < 0)
        return err_set(err, ERR_IO, "watching the HTTP daemon: %s", uv_strerror(rc));
    uv_timer_init(uv, &l->timer);
    l->daemon = daemon;
    l->poll.data = l;
    l->timer.data = l;
    l->is_open = true;
    uv_poll_start(&l->poll, UV_READABLE, on_readable);
    http_loop_run(l);
    return 0;
}

void http_loop_close(struct http_loop *l)
{
    if (!l->is_open)
        return;
    l->is_open = false;
    uv_close((uv_handle_t *)&l->poll, NULL);
    uv_close((uv_handle_t *)&l->timer, NULL);
}
