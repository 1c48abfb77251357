/*
 * http_head - the rules of RFC 9110 and 9112 that keep two readers of one message of one mind.
 */
#include "server/http_head.h"

#include "server/api_error.h"

#include <string.h>
#include <strings.h>

void http_head_init(struct http_head *h)
{
    memset(h, 0, sizeof(*h));
    h->content_length = -1;
}

/* RFC 9110 5.6.2. A space before the colon arrives here as part of the name. */
static bool is_token(const char *s)
{
    static const char others[] = "!#$%&'*+-.^_`|~";

    if (!*s)
        return false;
    for (; *s; s++) {
        bool alnum =
            (*s >= '0' && *s <= '9') || (*s >= 'a' && *s <= 'z') || (*s >= 'A' && *s <= 'Z');

        if (!alnum && !strchr(others, *s))
            return false;
    }
    return true;
}

static void read_length(struct http_head *h, const char *s)
{
    int64_t v = 0;

    h->n_length++;
    if (!*s || strlen(s) > 18)
        h->bad_length = true;
    for (; *s && !h->bad_length; s++) {
        if (*s < '0' || *s > '9')
            h->bad_length = true;
        else
            v = v * 10 + (*s - '0');
    }
    h->content_length = h->bad_length ? -1 : v;
}

/* A host that could change how somebody else reads the URL. */
static bool is_bad_host(const char *s)
{
    for (; *s; s++) {
        if ((unsigned char)*s <= 0x20 || *s == 0x7f || strchr("/?#@\\", *s))
            return true;
    }
    return false;
}

/* Echoed in headers and logs, so only characters that mean nothing there. */
static void read_request_id(struct http_head *h, const char *s)
{
    if (!*s || strlen(s) >= sizeof(h->request_id))
        return;
    for (const char *p = s; *p; p++) {
        bool alnum =
            (*p >= '0' && *p <= '9') || (*p >= 'a' && *p <= 'z') || (*p >= 'A' && *p <= 'Z');

        if (!alnum && !strchr("-_.:", *p))
            return;
    }
    memcpy(h->request_id, s, strlen(s) + 1);
}

void http_head_add(struct http_head *h, const char *name, const char *value)
{
    h->n_headers++;
    if (!value)
        value = "";
    if (!is_token(name)) {
        h->bad_name = true;
    } else if (!strcasecmp(name, "content-length")) {
        read_length(h, value);
    } else if (!strcasecmp(name, "transfer-encoding")) {
        h->n_transfer++;
        h->bad_transfer |= strcasecmp(value, "chunked") != 0;
    } else if (!strcasecmp(name, "host")) {
        h->n_host++;
        h->bad_host |= is_bad_host(value);
    } else if (!strcasecmp(name, "authorization")) {
        h->n_authorization++;
    } else if (!strcasecmp(name, "content-type")) {
        h->n_type++;
    } else if (!strcasecmp(name, "content-encoding")) {
        h->is_encoded |= *value && strcasecmp(value, "identity") != 0;
    } else if (!strcasecmp(name, "expect")) {
        if (!strcasecmp(value, "100-continue"))
            h->expects_continue = true;
        else
            h->expects_other = true;
    } else if (!strcasecmp(name, "x-request-id")) {
        read_request_id(h, value);
    }
}

bool http_head_has_body(const struct http_head *h)
{
    return h->n_transfer > 0 || h->content_length > 0;
}

int http_head_check(const struct http_head *h, const char *version, struct api_error *e,
                    bool *unsafe)
{
    bool is_1_1 = !strcmp(version, "HTTP/1.1");

    *unsafe = true;
    if (!is_1_1 && strcmp(version, "HTTP/1.0"))
        return api_error_set(e, 505, NULL, NULL, "This server speaks HTTP/1.1 and HTTP/1.0.");
    if (h->bad_name)
        return api_error_set(e, 400, NULL, NULL, "A header name holds a forbidden character.");
    if (h->n_length > 1 || h->bad_length)
        return api_error_set(e, 400, NULL, NULL, "Content-Length must be one number, given once.");
    if (h->n_transfer > 0 && h->n_length > 0)
        return api_error_set(e, 400, NULL, NULL,
                             "Content-Length and Transfer-Encoding exclude each other.");
    if (h->n_transfer > 1 || (h->n_transfer > 0 && !is_1_1))
        return api_error_set(e, 400, NULL, NULL, "Transfer-Encoding is given in a forbidden way.");
    if (h->bad_transfer)
        return api_error_set(e, 501, NULL, NULL, "The only transfer coding supported is chunked.");
    if (h->n_host > 1 || h->bad_host || (is_1_1 && h->n_host == 0))
        return api_error_set(e, 400, NULL, NULL, "A request needs one valid Host header.");
    *unsafe = false;
    if (h->n_authorization > 1 || h->n_type > 1)
        return api_error_set(e, 400, NULL, NULL,
                             "Authorization and Content-Type may be given once.");
    if (h->expects_other)
        return api_error_set(e, 417, NULL, NULL, "The only expectation supported is 100-continue.");
    if (h->is_encoded)
        return api_error_set(e, 415, NULL, NULL, "Compressed request bodies are not supported.");
    return 0;
}
