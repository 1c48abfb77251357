/*
 * http_server - the libmicrohttpd daemon, its connections and their deadlines, and who may use it.
 *
 * Loop thread only. It owns every connection's struct http_client; the exchanges on them own
 * themselves until libmicrohttpd reports their end.
 */
#ifndef HTTP_SERVER_H
#define HTTP_SERVER_H

#include "server/api_keys.h"
#include "server/http_listen.h"
#include "server/http_loop.h"
#include "server/metrics.h"
#include "server/openai_params.h"
#include "server/tls_store.h"

struct config;
struct engine;
struct engine_bridge;
struct exchange;
struct generation;
struct otlp_export;

enum client_phase {
    CLIENT_IDLE, /* between two requests */
    CLIENT_HEAD,
    CLIENT_BODY,
    CLIENT_BUSY /* being answered: deadlines of its own */
};

/* One connection. */
struct http_client {
    struct http_client *prev, *next;
    int fd;
    enum client_phase phase;
    int64_t since_ns;    /* when the phase began */
    int64_t n_body;      /* bytes of the present request's body that have come */
    int64_t n_body_seen; /* n_body at the last sweep; n_stuck of them found it unchanged */
    int n_stuck;
    bool is_cut;
    char addr[64];
};

struct http_server {
    const struct config *config;
    struct engine *engine;
    const struct engine_info *info;
    struct engine_bridge *bridge;
    struct otlp_export *traces; /* NULL: spans are not exported */
    struct openai_limits limits;
    struct metrics metrics;
    uv_loop_t *uv;
    struct http_loop loop;
    struct MHD_Daemon *daemon;
    uv_timer_t sweep;
    struct http_listen listen;
    struct api_keys keys;
    struct tls_store tls;
    bool draining; /* new requests are refused */
    struct http_client *clients;
    struct exchange *exchanges;
    struct exchange *dirty, *last_dirty; /* streams with news, in the order they came */
    bool collects;                       /* a batch has begun and not ended */
};

/*
 * Listens and starts serving. s->config, engine, info, bridge, traces and uv are set by the caller
 * and borrowed. ERR_IO when the address cannot be had.
 */
int http_server_open(struct http_server *s, struct err *err);

/* Reads keys and certificates, at start and again on SIGHUP; on failure the old ones stay. */
int http_server_load_access(struct http_server *s, struct err *err);

/* Stops listening; running exchanges go on, new requests on open connections get 503. */
void http_server_drain(struct http_server *s);

/* Cuts every connection that is still open; their exchanges end within a turn of the loop. */
void http_server_cut(struct http_server *s);

/* After the last exchange has ended. The loop must turn once more. Accepts a zeroed server. */
void http_server_close(struct http_server *s);

void http_client_enter(struct http_client *c, enum client_phase phase);

/* Closes the connection at its socket: the library finds it closed and cleans up as always. */
void http_client_cut(struct http_client *c);

/* How long a client gets for n_bytes: the timeout, and what min_rate adds. */
int64_t http_server_patience_ms(const struct config *config, int timeout_ms, int64_t n_bytes);

#endif
