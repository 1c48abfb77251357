/*
 * client_watch - UV_DISCONNECT on a duplicated descriptor, and the probe that tells a half-closed
 * client from one that has left.
 */
#include "server/client_watch.h"

#include <fcntl.h>
#include <poll.h>
#include <stdlib.h>
#include <sys/socket.h>
#include <unistd.h>

#define PROBE_AFTER_MS 50  /* short answers go out before; still noticed within 100 ms */
#define CHECK_AFTER_MS 5   /* a local peer's reset is there by then */
#define CHECK_EVERY_MS 100 /* a remote peer's takes a round trip */

struct client_watch {
    uv_poll_t poll;
    uv_timer_t timer;
    int fd, n_open; /* handles not yet closed */
    enum client_fin fin;
    bool has_probed;
    void (*gone)(void *arg);
    void (*writable)(void *arg); /* NULL: nobody waits for room */
    void *arg;
};

static void tell(struct client_watch *w)
{
    void (*gone)(void *arg) = w->gone;

    uv_poll_stop(&w->poll);
    uv_timer_stop(&w->timer);
    w->gone = NULL;
    if (gone)
        gone(w->arg);
}

static bool was_reset(struct client_watch *w)
{
    struct pollfd p = {.fd = w->fd};

    return poll(&p, 1, 0) == 1 && (p.revents & (POLLERR | POLLHUP));
}

static void on_timer(uv_timer_t *timer)
{
    static const char probe[] = "HTTP/1.1 100 Continue\r\n\r\n";
    struct client_watch *w = timer->data;

    if (was_reset(w)) {
        tell(w);
    } else if (w->fin == CLIENT_FIN_PROBE && !w->has_probed) {
        w->has_probed = true;
        if (send(w->fd, probe, sizeof(probe) - 1, MSG_NOSIGNAL | MSG_DONTWAIT) < 0)
            tell(w);
        else
            uv_timer_start(timer, on_timer, CHECK_AFTER_MS, CHECK_EVERY_MS);
    }
}

static void on_poll(uv_poll_t *poll, int status, int events);

/* May free the watch. */
static void tell_room(struct client_watch *w)
{
    void (*writable)(void *arg) = w->writable;

    w->writable = NULL;
    uv_poll_start(&w->poll, UV_DISCONNECT, on_poll);
    writable(w->arg);
}

static void on_poll(uv_poll_t *poll, int status, int events)
{
    struct client_watch *w = poll->data;

    uv_poll_stop(poll); /* level-triggered: it would fire for ever */
    if (status < 0 || was_reset(w)) {
        tell(w);
    } else if (events & UV_DISCONNECT) {
        if (w->fin == CLIENT_FIN_LEAVES)
            tell(w);
        else
            uv_timer_start(&w->timer, on_timer,
                           w->fin == CLIENT_FIN_PROBE ? PROBE_AFTER_MS : CHECK_EVERY_MS,
                           CHECK_EVERY_MS);
    } else if (w->writable) {
        tell_room(w);
    }
}

static void on_close(uv_handle_t *handle)
{
    struct client_watch *w = handle->data;

    if (--w->n_open == 0)
        free(w);
}

struct client_watch *client_watch_new(uv_loop_t *uv, int fd, enum client_fin fin,
                                      void (*gone)(void *arg), void *arg)
{
    struct client_watch *w = calloc(1, sizeof(*w));

    if (!w)
        return NULL;
    w->fin = fin;
    w->gone = gone;
    w->arg = arg;
    w->fd = fcntl(fd, F_DUPFD_CLOEXEC, 0);
    if (w->fd < 0 || uv_poll_init(uv, &w->poll, w->fd) < 0) {
        if (w->fd >= 0)
            close(w->fd);
        free(w);
        return NULL;
    }
    uv_timer_init(uv, &w->timer);
    w->poll.data = w->timer.data = w;
    w->n_open = 2;
    uv_poll_start(&w->poll, UV_DISCONNECT, on_poll);
    return w;
}

void client_watch_room(struct client_watch *w, void (*writable)(void *arg))
{
    w->writable = writable;
    uv_poll_start(&w->poll, UV_DISCONNECT | UV_WRITABLE, on_poll);
}

void client_watch_free(struct client_watch *w)
{
    if (!w)
        return;
    w->gone = w->writable = NULL;
    uv_close((uv_handle_t *)&w->poll, on_close);
    uv_close((uv_handle_t *)&w->timer, on_close);
    close(w->fd); /* allowed at once after uv_close() */
}
