/*
 * http_server - libmicrohttpd without threads of its own, driven by http_loop.
 *
 * Deadlines are checked by one sweep over the connections, since the library only knows inactivity
 * and one byte in time would keep a slow client for ever. An expired connection is shut down at its
 * socket; the library then finds it closed and cleans up as always.
 */
#include "server/http_server.h"

#include "base/check.h"
#include "base/clock.h"
#include "base/log.h"
#include "config/config.h"
#include "server/exchange.h"

#include <arpa/inet.h>
#include <netdb.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/resource.h>
#include <sys/socket.h>

#define SWEEP_MS     100
#define SPARE_FDS    64 /* model files, logs, epoll sets */
#define STUCK_SWEEPS 3

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

void http_client_cut(struct http_client *c)
{
    if (c->fd >= 0 && !c->is_cut)
        shutdown(c->fd, SHUT_RDWR);
    c->is_cut = true;
}

static void name_address(struct http_client *c, const struct sockaddr *addr)
{
    socklen_t len = sizeof(struct sockaddr_in);

    if (addr && addr->sa_family == AF_INET6)
        len = sizeof(struct sockaddr_in6);
    if (!addr || addr->sa_family == AF_UNIX)
        snprintf(c->addr, sizeof(c->addr), "unix");
    else
        getnameinfo(addr, len, c->addr, sizeof(c->addr), NULL, 0, NI_NUMERICHOST);
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
    name_address(c, addr ? addr->client_addr : NULL);
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

static bool has_room(const struct http_server *s)
{
    return s->metrics.n_connections < s->config->max_connections;
}

static bool on_accept(void *arg, int fd, const struct sockaddr *addr, socklen_t len)
{
    struct http_server *s = arg;

    /* It closes the socket itself when it refuses: the address has too many, or memory is out. */
    if (MHD_add_connection(s->daemon, fd, addr, len) != MHD_YES)
        s->metrics.n_refused_connections++;
    http_loop_run(&s->loop);
    return has_room(s);
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
    struct request_line line = {.method = method, .target = url, .version = version};

    if (!c)
        return MHD_NO;
    if (!ex) {
        ex = *ctx = exchange_new(cls, c, conn, method, url);
        return ex ? exchange_begin(ex, &line) : MHD_NO;
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
    struct http_client *c = client_of(conn);

    (void)cls;
    (void)code;
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

int64_t http_server_patience_ms(const struct config *config, int timeout_ms, int64_t n_bytes)
{
    return timeout_ms + (config->min_rate ? n_bytes * 1000 / config->min_rate : 0);
}

static int64_t deadline_ms(const struct http_server *s, const struct http_client *c)
{
    switch (c->phase) {
    case CLIENT_IDLE:
        return s->config->idle_timeout_ms;
    case CLIENT_HEAD:
        return s->config->header_timeout_ms;
    case CLIENT_BODY:
        return http_server_patience_ms(s->config, s->config->body_timeout_ms, c->n_body);
    default:
        return INT64_MAX / 1000000; /* answers have their own: exchange_sweep() */
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

/*
 * 0.9.75 rescans its full buffer for ever when a chunk's extension does not fit into it, and keeps
 * the loop busy with it. Its mark: bytes wait in the kernel, and sweep after sweep none come in.
 */
static bool is_stuck(struct http_client *c)
{
    int n_waiting = 0;

    if (c->phase != CLIENT_BODY || c->n_body != c->n_body_seen ||
        ioctl(c->fd, FIONREAD, &n_waiting) < 0 || n_waiting == 0)
        c->n_stuck = 0;
    else
        c->n_stuck++;
    c->n_body_seen = c->n_body;
    return c->n_stuck >= STUCK_SWEEPS;
}

static void sweep_client(struct http_server *s, struct http_client *c, int64_t now)
{
    bool is_late = now - c->since_ns >= deadline_ms(s, c) * 1000000;

    if (c->is_cut || (!is_late && !has_closed(c) && !is_stuck(c)))
        return;
    if (is_late && c->phase != CLIENT_IDLE)
        s->metrics.n_timeouts++;
    http_client_cut(c);
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
    if (has_room(s))
        http_listen_resume(&s->listen);
}

/* Life */

/* What the two lines of the library call differently. */
#if MHD_VERSION >= 0x01000000
#define STRICTNESS MHD_OPTION_CLIENT_DISCIPLINE_LVL, 1 /* no bare CR or LF, no folded headers */
#else
#define STRICTNESS                                                                                 \
    MHD_OPTION_STRICT_FOR_CLIENT, 1 /* the rest is http_head's and http_framing's                  \
                                     */
#endif

static struct MHD_Daemon *start_daemon(struct http_server *s)
{
    const struct config *c = s->config;
    bool is_tls = c->tls_cert_file[0] != '\0';
    unsigned flags = MHD_USE_EPOLL | MHD_ALLOW_SUSPEND_RESUME | MHD_USE_ERROR_LOG |
                     MHD_USE_NO_LISTEN_SOCKET | (is_tls ? MHD_USE_TLS : 0);
    struct MHD_OptionItem tls[] = {
        {MHD_OPTION_HTTPS_CERT_CALLBACK, 0, (void *)(uintptr_t)tls_store_retrieve},
        {MHD_OPTION_HTTPS_PRIORITIES, 0, (void *)TLS_STORE_PRIORITIES},
        {MHD_OPTION_END, 0, NULL}};
    struct MHD_OptionItem none[] = {{MHD_OPTION_END, 0, NULL}};

    MHD_set_panic_func(on_panic, NULL);
    return MHD_start_daemon(
        flags, 0, NULL, NULL, on_request, s, MHD_OPTION_EXTERNAL_LOGGER, on_log, NULL,
        MHD_OPTION_NOTIFY_CONNECTION, on_connection, s, MHD_OPTION_NOTIFY_COMPLETED, on_completed,
        s, MHD_OPTION_URI_LOG_CALLBACK, on_uri, s, MHD_OPTION_UNESCAPE_CALLBACK, keep_escapes, s,
        STRICTNESS, MHD_OPTION_CONNECTION_LIMIT, (unsigned)c->max_connections,
        MHD_OPTION_PER_IP_CONNECTION_LIMIT, (unsigned)c->max_connections_per_address,
        MHD_OPTION_CONNECTION_MEMORY_LIMIT, (size_t)c->connection_memory_bytes, MHD_OPTION_ARRAY,
        is_tls ? tls : none, MHD_OPTION_END);
}

static int load_tls(struct http_server *s, struct err *err)
{
    const struct config *c = s->config;

    if (!c->tls_cert_file[0] != !c->tls_key_file[0])
        return err_set(err, ERR_INVALID, "tls_cert_file and tls_key_file go together");
    if (!c->tls_cert_file[0])
        return 0;
    if (MHD_is_feature_supported(MHD_FEATURE_HTTPS_CERT_CALLBACK) != MHD_YES)
        return err_set(err, ERR_UNSUPPORTED, "this libmicrohttpd was built without TLS");
    tls_store_use(&s->tls);
    return tls_store_load(&s->tls, c->tls_cert_file, c->tls_key_file, err);
}

int http_server_load_access(struct http_server *s, struct err *err)
{
    int rc = load_tls(s, err);

    if (rc == 0 && s->config->api_keys_file[0])
        rc = api_keys_load(&s->keys, s->config->api_keys_file, err);
    return rc;
}

int http_server_open(struct http_server *s, struct err *err)
{
    int rc;

    s->metrics.has_prefix_cache = s->config->prefix_cache;
    raise_fd_limit(s->config);
    rc = http_server_load_access(s, err);
    if (rc == 0)
        rc = http_listen_open(&s->listen, s->config, err);
    if (rc < 0)
        return rc;
    s->daemon = start_daemon(s);
    if (!s->daemon)
        return err_set(err, ERR_IO, "libmicrohttpd does not start on %s", s->listen.address);
    rc = http_loop_open(&s->loop, s->uv, s->daemon, err);
    if (rc == 0)
        rc = http_listen_start(&s->listen, s->uv, on_accept, s, err);
    if (rc < 0)
        return rc;
    uv_timer_init(s->uv, &s->sweep);
    s->sweep.data = s;
    uv_timer_start(&s->sweep, on_sweep, SWEEP_MS, SWEEP_MS);
    return 0;
}

void http_server_drain(struct http_server *s)
{
    s->draining = true;
    http_listen_close(&s->listen);
}

void http_server_cut(struct http_server *s)
{
    for (struct http_client *c = s->clients; c; c = c->next)
        http_client_cut(c);
    http_loop_run(&s->loop);
}

void http_server_close(struct http_server *s)
{
    if (s->sweep.data)
        uv_close((uv_handle_t *)&s->sweep, NULL);
    s->sweep.data = NULL;
    http_listen_close(&s->listen);
    http_loop_close(&s->loop);
    if (s->daemon)
        MHD_stop_daemon(s->daemon);
    s->daemon = NULL;
    api_keys_release(&s->keys);
    tls_store_release(&s->tls);
}
