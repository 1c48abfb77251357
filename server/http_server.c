/*
 * http_server - libmicrohttpd without threads of its own, driven by http_loop.
 *
 * Deadlines are checked by one sweep over the connections, since the library only knows inactivity
 * and one byte in time would keep a slow client for ever. An expired connection is shut down at its
 * socket; the library then finds it closed and cleans up as always.
 */
#include "server/http_server.h"

#include "base/build_info.h"
#include "base/check.h"
#include "base/clock.h"
#include "base/log.h"
#include "config/config.h"
#include "server/exchange.h"

#include <arpa/inet.h>
#include <errno.h>
#include <netdb.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <unistd.h>

#define SWEEP_MS  100
#define IDLE_MS   75000 /* as nginx: longer than the pools of clients keep a connection */
#define BACKLOG   1024  /* bursts of clients; the kernel cuts it to its own limit */
#define SPARE_FDS 64    /* model files, logs, epoll sets */

/* The socket */

static int open_socket(const struct addrinfo *ai, struct err *err)
{
    int fd = socket(ai->ai_family, ai->ai_socktype | SOCK_CLOEXEC | SOCK_NONBLOCK, ai->ai_protocol);
    int on = 1;

    if (fd < 0)
        return err_set_errno(err, ERR_IO, errno, "socket");
    setsockopt(fd, SOL_SOCKET, SO_REUSEADDR, &on, sizeof(on));
    if (bind(fd, ai->ai_addr, ai->ai_addrlen) < 0 || listen(fd, BACKLOG) < 0) {
        int errno_value = errno;

        close(fd);
        return err_set_errno(err, ERR_IO, errno_value, "cannot listen");
    }
    return fd;
}

static void read_address(struct http_server *s)
{
    struct sockaddr_storage ss;
    socklen_t len = sizeof(ss);
    char host[INET6_ADDRSTRLEN] = "", port[8] = "0";

    getsockname(s->listen_fd, (struct sockaddr *)&ss, &len);
    getnameinfo((struct sockaddr *)&ss, len, host, sizeof(host), port, sizeof(port),
                NI_NUMERICHOST | NI_NUMERICSERV);
    s->port = atoi(port);
    snprintf(s->address, sizeof(s->address), strchr(host, ':') ? "http://[%s]:%s" : "http://%s:%s",
             host, port);
}

static int listen_on(struct http_server *s, struct err *err)
{
    const struct config *c = s->config;
    struct addrinfo hints = {.ai_socktype = SOCK_STREAM, .ai_flags = AI_PASSIVE};
    struct addrinfo *list;
    char port[8];
    int rc;

    snprintf(port, sizeof(port), "%d", c->port);
    rc = getaddrinfo(c->host, port, &hints, &list);
    if (rc != 0)
        return err_set(err, ERR_IO, "host %s: %s", c->host, gai_strerror(rc));
    rc = open_socket(list, err);
    freeaddrinfo(list);
    if (rc < 0) {
        err_prefix(err, "%s port %d", c->host, c->port);
        return rc;
    }
    s->listen_fd = rc;
    read_address(s);
    return 0;
}

/* A descriptor for each connection and one for its watch. */
static void raise_fd_limit(const struct config *c)
{
    struct rlimit lim;
    rlim_t want = 2 * (rlim_t)c->max_connections + SPARE_FDS;

    if (getrlimit(RLIMIT_NOFILE, &lim) < 0 || lim.rlim_cur >= want)
        return;
    lim.rlim_cur = want < lim.rlim_max ? want : lim.rlim_max;
    if (setrlimit(RLIMIT_NOFILE, &lim) < 0 || lim.rlim_cur < want)
        log_warn("%llu descriptors are allowed, max_connections %d may need %llu",
                 (unsigned long long)lim.rlim_cur, c->max_connections, (unsigned long long)want);
}

/* Connections */

void http_client_enter(struct http_client *c, enum client_phase phase)
{
    if (c->phase == phase)
        return;
    c->phase = phase;
    c->since_ns = clock_ns();
}

static void client_open(struct http_server *s, struct MHD_Connection *conn, void **ctx)
{
    struct http_client *c = calloc(1, sizeof(*c));
    const union MHD_ConnectionInfo *fd, *addr;
    int on = 1;

    *ctx = c;
    if (!c)
        return; /* requests on it are then refused */
    fd = MHD_get_connection_info(conn, MHD_CONNECTION_INFO_CONNECTION_FD);
    addr = MHD_get_connection_info(conn, MHD_CONNECTION_INFO_CLIENT_ADDRESS);
    c->fd = fd ? fd->connect_fd : -1;
    c->phase = CLIENT_HEAD;
    c->since_ns = clock_ns();
    if (addr && addr->client_addr)
        getnameinfo(addr->client_addr,
                    addr->client_addr->sa_family == AF_INET6 ? sizeof(struct sockaddr_in6)
                                                             : sizeof(struct sockaddr_in),
                    c->addr, sizeof(c->addr), NULL, 0, NI_NUMERICHOST);
    setsockopt(c->fd, IPPROTO_TCP, TCP_NODELAY, &on, sizeof(on));
    c->next = s->clients;
    if (c->next)
        c->next->prev = c;
    s->clients = c;
    s->metrics.n_connections++;
}

static void client_close(struct http_server *s, struct http_client *c)
{
    if (!c)
        return;
    if (c->prev)
        c->prev->next = c->next;
    else
        s->clients = c->next;
    if (c->next)
        c->next->prev = c->prev;
    s->metrics.n_connections--;
    free(c);
}

static void on_connection(void *cls, struct MHD_Connection *conn, void **ctx,
                          enum MHD_ConnectionNotificationCode code)
{
    if (code == MHD_CONNECTION_NOTIFY_STARTED)
        client_open(cls, conn, ctx);
    else
        client_close(cls, *ctx);
}

/* Requests */

static struct http_client *client_of(struct MHD_Connection *conn)
{
    const union MHD_ConnectionInfo *info =
        MHD_get_connection_info(conn, MHD_CONNECTION_INFO_SOCKET_CONTEXT);

    return info ? info->socket_context : NULL;
}

/* The request line is there: from here on the headers have their deadline. */
static void *on_uri(void *cls, const char *uri, struct MHD_Connection *conn)
{
    struct http_client *c = client_of(conn);

    (void)cls;
    (void)uri;
    if (c)
        http_client_enter(c, CLIENT_HEAD);
    return NULL;
}

/* Targets are matched as they were sent; only the models' handler decodes. */
static size_t keep_escapes(void *cls, struct MHD_Connection *conn, char *s)
{
    (void)cls;
    (void)conn;
    return strlen(s);
}

static enum MHD_Result on_request(void *cls, struct MHD_Connection *conn, const char *url,
                                  const char *method, const char *version, const char *data,
                                  size_t *data_len, void **ctx)
{
    struct http_client *c = client_of(conn);
    struct exchange *ex = *ctx;

    if (!c)
        return MHD_NO;
    if (!ex) {
        ex = *ctx = exchange_new(cls, c, conn, method, url);
        return ex ? exchange_begin(ex, version) : MHD_NO;
    }
    if (*data_len > 0) {
        exchange_add_body(ex, data, *data_len);
        *data_len = 0;
        return MHD_YES;
    }
    return exchange_continue(ex);
}

static void on_completed(void *cls, struct MHD_Connection *conn, void **ctx,
                         enum MHD_RequestTerminationCode code)
{
    struct http_server *s = cls;
    struct http_client *c = client_of(conn);

    if (code == MHD_REQUEST_TERMINATED_TIMEOUT_REACHED)
        s->metrics.n_timeouts++;
    if (*ctx)
        exchange_free(*ctx);
    *ctx = NULL;
    if (c)
        http_client_enter(c, CLIENT_IDLE);
}

static void on_log(void *cls, const char *fmt, va_list ap)
{
    char text[256];

    (void)cls;
    vsnprintf(text, sizeof(text), fmt, ap);
    text[strcspn(text, "\r\n")] = '\0';
    log_debug("http: %s", text);
}

static void on_panic(void *cls, const char *file, unsigned int line, const char *reason)
{
    (void)cls;
    log_error("libmicrohttpd gave up at %s:%u: %s", file, line, reason ? reason : "no reason");
    check_failed("libmicrohttpd is in a sane state", file, (int)line);
}

/* Deadlines */

static int64_t deadline_ms(const struct http_server *s, enum client_phase phase)
{
    switch (phase) {
    case CLIENT_IDLE:
        return IDLE_MS;
    case CLIENT_HEAD:
        return s->config->header_timeout_ms;
    case CLIENT_BODY:
        return s->config->body_timeout_ms;
    default:
        return INT64_MAX / 1000000; /* writing has the library's own timeout */
    }
}

/*
 * Data and FIN in one go: 0.9.75 takes a short read for an empty socket, and the edge-triggered set
 * never tells it again. A client that is in the middle of a request and has closed is cut by hand.
 */
static bool has_closed(const struct http_client *c)
{
    char byte;

    return (c->phase == CLIENT_HEAD || c->phase == CLIENT_BODY) &&
           recv(c->fd, &byte, 1, MSG_PEEK | MSG_DONTWAIT) == 0;
}

static void sweep_client(struct http_server *s, struct http_client *c, int64_t now)
{
    bool is_late = now - c->since_ns >= deadline_ms(s, c->phase) * 1000000;

    if (c->fd < 0 || c->is_cut || (!is_late && !has_closed(c)))
        return;
    if (is_late && c->phase != CLIENT_IDLE)
        s->metrics.n_timeouts++;
    c->is_cut = true;
    shutdown(c->fd, SHUT_RDWR);
}

static void on_sweep(uv_timer_t *timer)
{
    struct http_server *s = timer->data;
    int64_t now = clock_ns();
    struct exchange *next;

    for (struct http_client *c = s->clients; c; c = c->next)
        sweep_client(s, c, now);
    for (struct exchange *ex = s->exchanges; ex; ex = next) {
        next = ex->next;
        exchange_sweep(ex, now);
    }
    http_loop_run(&s->loop);
}

/* Life */

static struct MHD_Daemon *start_daemon(struct http_server *s)
{
    const struct config *c = s->config;
    struct sockaddr_storage ss;
    socklen_t len = sizeof(ss);
    unsigned flags = MHD_USE_EPOLL | MHD_ALLOW_SUSPEND_RESUME | MHD_USE_ERROR_LOG;

    if (getsockname(s->listen_fd, (struct sockaddr *)&ss, &len) == 0 && ss.ss_family == AF_INET6)
        flags |= MHD_USE_IPv6;
    MHD_set_panic_func(on_panic, NULL);
    return MHD_start_daemon(
        flags, 0, NULL, NULL, on_request, s, MHD_OPTION_EXTERNAL_LOGGER, on_log, NULL,
        MHD_OPTION_LISTEN_SOCKET, s->listen_fd, MHD_OPTION_NOTIFY_CONNECTION, on_connection, s,
        MHD_OPTION_NOTIFY_COMPLETED, on_completed, s, MHD_OPTION_URI_LOG_CALLBACK, on_uri, s,
        MHD_OPTION_UNESCAPE_CALLBACK, keep_escapes, s, MHD_OPTION_CONNECTION_LIMIT,
        (unsigned)c->max_connections, MHD_OPTION_CONNECTION_MEMORY_LIMIT,
        (size_t)c->connection_memory_bytes, MHD_OPTION_CONNECTION_TIMEOUT,
        (unsigned)(IDLE_MS / 1000), MHD_OPTION_END);
}

int http_server_open(struct http_server *s, struct err *err)
{
    int rc;

    s->listen_fd = -1;
    s->metrics.page_entries = s->config->page_entries;
    raise_fd_limit(s->config);
    rc = listen_on(s, err);
    if (rc < 0)
        return rc;
    s->daemon = start_daemon(s);
    if (!s->daemon)
        return err_set(err, ERR_IO, "libmicrohttpd does not start on %s", s->address);
    rc = http_loop_open(&s->loop, s->uv, s->daemon, err);
    if (rc < 0)
        return rc;
    uv_timer_init(s->uv, &s->sweep);
    s->sweep.data = s;
    uv_timer_start(&s->sweep, on_sweep, SWEEP_MS, SWEEP_MS);
    return 0;
}

void http_server_drain(struct http_server *s)
{
    int fd;

    if (s->draining)
        return;
    s->draining = true;
    fd = MHD_quiesce_daemon(s->daemon);
    if (fd >= 0)
        close(fd);
    s->listen_fd = -1;
}

void http_server_cut(struct http_server *s)
{
    for (struct http_client *c = s->clients; c; c = c->next) {
        if (c->fd >= 0)
            shutdown(c->fd, SHUT_RDWR);
    }
    http_loop_run(&s->loop);
}

void http_server_close(struct http_server *s)
{
    if (s->sweep.data)
        uv_close((uv_handle_t *)&s->sweep, NULL);
    s->sweep.data = NULL;
    http_loop_close(&s->loop);
    if (s->daemon)
        MHD_stop_daemon(s->daemon);
    else if (s->listen_fd > 0)
        close(s->listen_fd);
    s->daemon = NULL;
    s->listen_fd = -1;
}
