/*
 * http_target - before the run, so blocking calls and a second for each. See http_target.h.
 */
#include "tests/bench/http_target.h"

#include "base/err.h"
#include "base/strbuf.h"
#include "tests/bench/http_response.h"

#include <errno.h>
#include <jansson.h>
#include <netdb.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

#define WAIT_S   10        /* a loaded server still answers /v1/models within that */
#define BODY_MAX (1 << 20) /* of the list of models */

static int connect_to(const struct addrinfo *ai)
{
    struct timeval limit = {.tv_sec = WAIT_S};
    int saved, fd = socket(ai->ai_family, SOCK_STREAM | SOCK_CLOEXEC, 0);

    if (fd < 0)
        return -1;
    setsockopt(fd, SOL_SOCKET, SO_RCVTIMEO, &limit, sizeof(limit));
    setsockopt(fd, SOL_SOCKET, SO_SNDTIMEO, &limit, sizeof(limit));
    if (connect(fd, ai->ai_addr, ai->ai_addrlen) == 0)
        return fd;
    saved = errno;
    close(fd);
    errno = saved;
    return -1;
}

/* `localhost` has two addresses and a server may listen on one: the first that answers is taken. */
static int resolve(struct http_target *t, const char *name, const char *port, struct err *err)
{
    struct addrinfo hints = {.ai_socktype = SOCK_STREAM}, *list = NULL;
    int fd = -1, saved = 0, rc = getaddrinfo(name, port, &hints, &list);

    if (rc != 0)
        return err_set(err, ERR_IO, "%s port %s: %s", name, port, gai_strerror(rc));
    for (struct addrinfo *ai = list; ai && fd < 0; ai = ai->ai_next) {
        fd = connect_to(ai);
        saved = errno;
        if (fd >= 0)
            memcpy(&t->addr, ai->ai_addr, ai->ai_addrlen);
    }
    freeaddrinfo(list);
    if (fd < 0)
        return err_set_errno(err, ERR_IO, saved, "connect to %s port %s", name, port);
    close(fd);
    return 0;
}

int http_target_open(struct http_target *t, const char *url, struct err *err)
{
    const char *host, *path, *name_end, *port;
    char *name = NULL, *port_text = NULL;
    size_t host_len, prefix_len;
    int rc;

    *t = (struct http_target){0};
    if (strncmp(url, "http://", 7))
        return err_set(err, ERR_INVALID, "%s: want http://HOST:PORT", url);
    host = url + 7;
    host_len = strcspn(host, "/");
    path = host + host_len;
    prefix_len = strlen(path);
    while (prefix_len > 0 && path[prefix_len - 1] == '/')
        prefix_len--;
    if (prefix_len >= 3 && !strncmp(path + prefix_len - 3, "/v1", 3))
        prefix_len -= 3;
    name_end = host[0] == '[' ? memchr(host, ']', host_len) : memchr(host, ':', host_len);
    if (!name_end)
        name_end = host + host_len;
    port = host[0] == '[' && *name_end == ']' ? name_end + 1 : name_end;
    if (host[0] == '[')
        name = strndup(host + 1, name_end - host - 1);
    else
        name = strndup(host, name_end - host);
    port_text = *port == ':' ? strndup(port + 1, host + host_len - port - 1) : strdup("80");
    t->host = strndup(host, host_len);
    t->prefix = strndup(path, prefix_len);
    if (!name || !port_text || !t->host || !t->prefix)
        rc = err_set(err, ERR_NO_ROOM, "%s: out of memory", url);
    else if (!*name || !*port_text)
        rc = err_set(err, ERR_INVALID, "%s: want http://HOST:PORT", url);
    else
        rc = resolve(t, name, port_text, err);
    free(name);
    free(port_text);
    return rc;
}

static void add_body(void *arg, const char *data, size_t len)
{
    strbuf_add(arg, data, len);
}

static int read_response(int fd, struct http_response *r, struct strbuf *body, struct err *err)
{
    char buf[4096];

    http_response_init(r);
    while (!r->is_done) {
        ssize_t n = read(fd, buf, sizeof(buf));
        ssize_t rc;

        if (n < 0)
            return err_set_errno(err, ERR_IO, errno, "read");
        if (n > 0)
            rc = http_response_feed(r, buf, n, add_body, body, err);
        else
            rc = http_response_eof(r, err);
        if (rc < 0)
            return (int)rc;
        if (body->len > BODY_MAX || body->failed)
            return err_set(err, ERR_LIMIT, "an answer of more than %d bytes", BODY_MAX);
    }
    return 0;
}

static int get(struct http_target *t, const char *path, struct strbuf *body, struct err *err)
{
    struct addrinfo ai = {.ai_family = t->addr.ss_family,
                          .ai_addr = (struct sockaddr *)&t->addr,
                          .ai_addrlen = t->addr.ss_family == AF_INET6 ? sizeof(struct sockaddr_in6)
                                                                      : sizeof(struct sockaddr_in)};
    struct strbuf request = STRBUF_INIT;
    struct http_response response;
    int rc, fd = connect_to(&ai);

    if (fd < 0)
        return err_set_errno(err, ERR_IO, errno, "connect");
    strbuf_addf(&request, "GET %s%s HTTP/1.1\r\nHost: %s\r\nConnection: close\r\n\r\n", t->prefix,
                path, t->host);
    if (send(fd, request.buf, request.len, MSG_NOSIGNAL) != (ssize_t)request.len)
        rc = err_set_errno(err, ERR_IO, errno, "write");
    else
        rc = read_response(fd, &response, body, err);
    if (rc == 0 && response.status != 200)
        rc = err_set(err, ERR_IO, "HTTP %d", response.status);
    strbuf_release(&request);
    close(fd);
    return rc;
}

int http_target_ask_model(struct http_target *t, struct err *err)
{
    struct strbuf body = STRBUF_INIT;
    json_error_t je;
    json_t *root = NULL, *model, *id, *n_vocab;
    int rc = get(t, "/v1/models", &body, err);

    if (rc < 0)
        goto out;
    root = json_loadb(body.buf, body.len, 0, &je);
    model = json_array_get(json_object_get(root, "data"), 0);
    id = json_object_get(model, "id");
    n_vocab = json_object_get(json_object_get(model, "meta"), "n_vocab");
    if (!json_is_string(id)) {
        rc = err_set(err, ERR_PARSE, "no data[0].id in the answer");
        goto out;
    }
    free(t->model);
    t->model = strdup(json_string_value(id));
    if (!t->model)
        rc = err_set(err, ERR_NO_ROOM, "out of memory");
    if (json_integer_value(n_vocab) > 0 && json_integer_value(n_vocab) <= INT32_MAX)
        t->vocab_size = (int)json_integer_value(n_vocab);
out:
    err_prefix(err, "GET /v1/models");
    strbuf_release(&body);
    json_decref(root);
    return rc;
}

void http_target_release(struct http_target *t)
{
    free(t->host);
    free(t->prefix);
    free(t->model);
}
