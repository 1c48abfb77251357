/*
 * http_head - the request's head, judged before its body is read.
 *
 * libmicrohttpd 0.9.75 takes requests that proxies in front of it may read in another way: a
 * repeated Content-Length, Content-Length beside Transfer-Encoding, codings other than chunked.
 * Those are refused here. Pure functions, fed with one header after the other.
 */
#ifndef HTTP_HEAD_H
#define HTTP_HEAD_H

#include <stdbool.h>
#include <stdint.h>

struct api_error;

#define HTTP_REQUEST_ID_BYTES 72

struct http_head {
    int n_headers, n_host, n_length, n_transfer, n_authorization, n_type;
    int64_t content_length; /* -1: none, or none that can be read */
    bool bad_name, bad_length, bad_transfer, bad_host, is_encoded;
    bool expects_continue, expects_other;
    char request_id[HTTP_REQUEST_ID_BYTES]; /* the client's own, if it is harmless; else "" */
};

void http_head_init(struct http_head *h);
void http_head_add(struct http_head *h, const char *name, const char *value);

/*
 * After the last header. ERR_INVALID with *e filled; *unsafe then says that the end of the message
 * is in doubt, so that nothing after the head may be read.
 */
int http_head_check(const struct http_head *h, const char *version, struct api_error *e,
                    bool *unsafe);

bool http_head_has_body(const struct http_head *h);

#endif
