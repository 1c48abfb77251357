/*
 * http_listen - binding, and accepting without starving the rest of the loop.
 */
#include "server/http_listen.h"

#include "base/err.h"
#include "base/log.h"
#include "config/config.h"
#include "server/sd_listen.h"

#include <errno.h>
#include <netdb.h>
#include <netinet/in.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/un.h>
#include <unistd.h>

#define BACKLOG     1024 /* bursts of clients; the kernel cuts it to its own limit */
#define ACCEPT_TURN 64   /* clients taken before running requests get their turn */

static int bind_socket(int family, const struct sockaddr *addr, socklen_t len, struct err *err)
{
    int fd = socket(family, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);
    int on = 1;

    if (fd < 0)
        return err_set_errno(err, ERR_IO, errno, "socket");
    setsockopt(fd, SOL_SOCKET, SO_REUSEADDR, &on, sizeof(on));
    if (bind(fd, addr, len) < 0 || listen(fd, BACKLOG) < 0) {
        int errno_value = errno;

        close(fd);
        return err_set_errno(err, ERR_IO, errno_value, "cannot listen");
    }
    return fd;
}

static void read_address(struct http_listen *l, bool is_tls)
{
    struct sockaddr_storage ss;
    socklen_t len = sizeof(ss);
    char host[INET6_ADDRSTRLEN] = "", port[8] = "0";

    memset(&ss, 0, sizeof(ss));
    getsockname(l->fds[0], (struct sockaddr *)&ss, &len);
    if (ss.ss_family == AF_UNIX) {
        snprintf(l->address, sizeof(l->address), "unix:%s", ((struct sockaddr_un *)&ss)->sun_path);
        return;
    }
    getnameinfo((struct sockaddr *)&ss, len, host, sizeof(host), port, sizeof(port),
                NI_NUMERICHOST | NI_NUMERICSERV);
    l->port = atoi(port);
    snprintf(l->address, sizeof(l->address), strchr(host, ':') ? "%s://[%s]:%s" : "%s://%s:%s",
             is_tls ? "https" : "http", host, port);
}

static int listen_tcp(const struct config *c, struct err *err)
{
    struct addrinfo hints = {.ai_socktype = SOCK_STREAM, .ai_flags = AI_PASSIVE};
    struct addrinfo *list;
    char port[8];
    int rc;

    snprintf(port, sizeof(port), "%d", c->port);
    rc = getaddrinfo(c->host, port, &hints, &list);
    if (rc != 0)
        return err_set(err, ERR_IO, "host %s: %s", c->host, gai_strerror(rc));
    rc = bind_socket(list->ai_family, list->ai_addr, list->ai_addrlen, err);
    freeaddrinfo(list);
    if (rc < 0)
        err_prefix(err, "%s port %d", c->host, c->port);
    return rc;
}

/* A socket file outlives its process; one that still answers belongs to somebody. */
static bool is_stale(const struct sockaddr_un *addr)
{
    struct stat st;
    int fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);
    bool refused = fd >= 0 && connect(fd, (const struct sockaddr *)addr, sizeof(*addr)) < 0 &&
                   errno == ECONNREFUSED;

    if (fd >= 0)
        close(fd);
    return refused && lstat(addr->sun_path, &st) == 0 && S_ISSOCK(st.st_mode);
}

static int listen_unix(struct http_listen *l, const struct config *c, struct err *err)
{
    struct sockaddr_un addr = {.sun_family = AF_UNIX};
    char *end;
    unsigned long mode = strtoul(c->unix_socket_mode, &end, 8);
    mode_t mask;
    int rc;

    if (*end || mode > 0777)
        return err_set(err, ERR_INVALID, "unix_socket_mode %s: want octal digits up to 0777",
                       c->unix_socket_mode);
    memcpy(addr.sun_path, c->unix_socket, strlen(c->unix_socket) + 1);
    if (is_stale(&addr))
        unlink(addr.sun_path);
    mask = umask(0777); /* nobody gets in before the mode is set */
    rc = bind_socket(AF_UNIX, (struct sockaddr *)&addr, sizeof(addr), err);
    umask(mask);
    if (rc < 0) {
        err_prefix(err, "unix_socket %s", c->unix_socket);
        return rc;
    }
    memcpy(l->unix_path, addr.sun_path, sizeof(l->unix_path));
    if (chmod(addr.sun_path, (mode_t)mode) < 0) {
        close(rc);
        return err_set_errno(err, ERR_IO, errno, "unix_socket %s: mode", c->unix_socket);
    }
    return rc;
}

int http_listen_open(struct http_listen *l, const struct config *config, struct err *err)
{
    int n = sd_listen_take(err);
    int fd;

    *l = (struct http_listen){0};
    if (n < 0)
        return n;
    for (int i = 0; i < n; i++)
        l->fds[l->n++] = SD_LISTEN_FIRST + i;
    l->is_inherited = n > 0;
    if (n == 0) {
        fd = config->unix_socket[0] ? listen_unix(l, config, err) : listen_tcp(config, err);
        if (fd < 0) {
            http_listen_close(l);
            return fd;
        }
        l->fds[l->n++] = fd;
    }
    read_address(l, config->tls_cert_file[0] != '\0');
    return 0;
}

static void pause_all(struct http_listen *l)
{
    l->is_paused = true;
    for (int i = 0; i < l->n; i++)
        uv_poll_stop(&l->polls[i]);
}

static void on_readable(uv_poll_t *poll, int status, int events)
{
    struct http_listen *l = poll->data;
    int listen_fd = l->fds[poll - l->polls];

    (void)status;
    (void)events;
    for (int i = 0; i < ACCEPT_TURN && !l->is_paused; i++) {
        struct sockaddr_storage addr;
        socklen_t len = sizeof(addr);
        int fd = accept4(listen_fd, (struct sockaddr *)&addr, &len, SOCK_CLOEXEC | SOCK_NONBLOCK);

        if (fd >= 0) {
            l->is_short = false;
            if (!l->accept(l->arg, fd, (struct sockaddr *)&addr, len))
                pause_all(l);
        } else if (errno == EMFILE || errno == ENFILE || errno == ENOBUFS || errno == ENOMEM) {
            if (!l->is_short) /* it goes on a while: once is enough */
                log_warn("cannot accept a client: %s", strerror(errno));
            l->is_short = true;
            pause_all(l); /* level-triggered: it would fire for ever */
        } else if (errno != EINTR && errno != ECONNABORTED) {
            return;
        }
    }
}

int http_listen_start(struct http_listen *l, uv_loop_t *uv, http_accept_fn *fn, void *arg,
                      struct err *err)
{
    l->accept = fn;
    l->arg = arg;
    for (int i = 0; i < l->n; i++) {
        int rc = uv_poll_init(uv, &l->polls[i], l->fds[i]);

        if (rc < 0) {
            while (--i >= 0)
                uv_close((uv_handle_t *)&l->polls[i], NULL);
            return err_set(err, ERR_IO, "watching the listening socket: %s", uv_strerror(rc));
        }
        l->polls[i].data = l;
    }
    l->is_started = l->is_paused = true;
    http_listen_resume(l);
    return 0;
}

void http_listen_resume(struct http_listen *l)
{
    if (!l->is_paused)
        return;
    l->is_paused = false;
    for (int i = 0; i < l->n; i++)
        uv_poll_start(&l->polls[i], UV_READABLE, on_readable);
}

void http_listen_close(struct http_listen *l)
{
    for (int i = 0; i < l->n; i++) {
        if (l->is_started)
            uv_close((uv_handle_t *)&l->polls[i], NULL);
        close(l->fds[i]);
    }
    if (l->unix_path[0])
        unlink(l->unix_path);
    l->unix_path[0] = '\0';
    l->n = 0;
    l->is_paused = false;
}
