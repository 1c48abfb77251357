/*
 * http_response - reads one HTTP/1.1 response as it arrives, cut anywhere.
 *
 * A body ends by Content-Length, by the last chunk or with the connection; interim (1xx) responses
 * are skipped. No I/O and no allocation: bytes go in, bytes of the body come out. A refusal is
 * final: the reader takes nothing more until http_response_init().
 */
#ifndef HTTP_RESPONSE_H
#define HTTP_RESPONSE_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <sys/types.h>

struct err;

#define HTTP_RESPONSE_LINE_MAX 8192       /* a header or a chunk's size line */
#define HTTP_RESPONSE_HEAD_MAX (64 << 10) /* all lines of a head; of all trailers */

typedef void http_body_fn(void *arg, const char *data, size_t len);

struct http_response {
    int status;      /* 0 until the status line is there */
    bool has_head;   /* status and headers are complete */
    bool is_done;    /* so is the body */
    bool keep_alive; /* with is_done: the connection may carry another request */

    /* The rest is private. */
    int state;
    bool is_chunked, has_length;
    int64_t length;    /* what Content-Length says */
    int64_t body_left; /* of the body, or of the chunk */
    size_t head_bytes, line_len;
    char line[HTTP_RESPONSE_LINE_MAX];
};

void http_response_init(struct http_response *r);

/*
 * Takes bytes as they came; the body's are handed to on_body in order, in as many pieces as they
 * happen to have. Returns how many were taken: less than len only when the response has ended
 * before them. ERR_PARSE when this is no response, ERR_UNSUPPORTED for codings other than chunked.
 */
ssize_t http_response_feed(struct http_response *r, const char *data, size_t len,
                           http_body_fn *on_body, void *arg, struct err *err);

/* The peer has closed: 0 when that is how the body ends (or it had), else ERR_PARSE. */
int http_response_eof(struct http_response *r, struct err *err);

#endif
