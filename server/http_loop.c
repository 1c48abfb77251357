/*
 * http_loop - the junction of the two libraries. "Run again at once" goes through an idle handle
 * instead of an inner loop, so that signals and the engine's news get their turn in between. A
 * timer of 0 ms would not do: libuv 1.44 fires a timer that is due again without leaving its
 * timers.
 */
#include "server/http_loop.h"

#include "base/check.h"
#include "base/err.h"

#include <microhttpd.h>

static void on_timer(uv_timer_t *timer)
{
    http_loop_run(timer->data);
}

static void on_idle(uv_idle_t *idle)
{
    uv_idle_stop(idle);
    http_loop_run(idle->data);
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
    uv_timer_stop(&l->timer);
    uv_idle_stop(&l->idle);
    if (MHD_get_timeout(l->daemon, &ms) != MHD_YES)
        return;
    if (ms == 0)
        uv_idle_start(&l->idle, on_idle);
    else
        uv_timer_start(&l->timer, on_timer, ms, 0);
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
    uv_idle_init(uv, &l->idle);
    l->daemon = daemon;
    l->poll.data = l;
    l->timer.data = l;
    l->idle.data = l;
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
    uv_close((uv_handle_t *)&l->idle, NULL);
}
