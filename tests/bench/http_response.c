/*
 * http_response - a state machine over lines and counted bytes. See http_response.h.
 */
#include "tests/bench/http_response.h"

#include "base/check.h"
#include "base/err.h"

#include <string.h>
#include <strings.h>

enum state {
    STATUS_LINE,
    HEADER_LINE,
    CHUNK_SIZE_LINE,
    CHUNK_END_LINE, /* the empty rest of the line behind a chunk's data */
    TRAILER_LINE,
    BODY_LENGTH,
    BODY_CHUNK,
    BODY_TO_EOF,
    ENDED,
    REFUSED
};

void http_response_init(struct http_response *r)
{
    r->status = 0;
    r->has_head = r->is_done = r->keep_alive = false;
    r->state = STATUS_LINE;
    r->is_chunked = r->has_length = false;
    r->length = r->body_left = 0;
    r->head_bytes = r->line_len = 0;
}

static void end(struct http_response *r)
{
    r->state = ENDED;
    r->is_done = true;
}

static bool is_digit(char c)
{
    return c >= '0' && c <= '9';
}

/* `HTTP/1.1 200 OK`; the reason may be missing. */
static int read_status(struct http_response *r, struct err *err)
{
    const char *s = r->line;

    if (strncmp(s, "HTTP/1.", 7) || (s[7] != '0' && s[7] != '1') || s[8] != ' ' ||
        !is_digit(s[9]) || !is_digit(s[10]) || !is_digit(s[11]) || (s[12] && s[12] != ' '))
        return err_set(err, ERR_PARSE, "not an HTTP/1 status line: %.60s", s);
    r->status = (s[9] - '0') * 100 + (s[10] - '0') * 10 + (s[11] - '0');
    r->keep_alive = s[7] == '1';
    r->is_chunked = r->has_length = false;
    r->state = HEADER_LINE;
    return 0;
}

static int read_length(struct http_response *r, const char *s, struct err *err)
{
    int64_t v = 0;
    size_t n = strlen(s);

    for (size_t i = 0; i < n; i++) {
        if (!is_digit(s[i]) || i >= 18)
            n = 0;
        else
            v = v * 10 + (s[i] - '0');
    }
    if (n == 0 || (r->has_length && r->length != v))
        return err_set(err, ERR_PARSE, "Content-Length: %.60s", s);
    r->has_length = true;
    r->length = v;
    return 0;
}

/* Whether a comma-separated header value holds the word. */
static bool has_word(const char *list, const char *word)
{
    size_t len = strlen(word);

    while (*list) {
        size_t n;

        list += strspn(list, " \t,");
        n = strcspn(list, " \t,");
        if (n == len && !strncasecmp(list, word, len))
            return true;
        list += n;
    }
    return false;
}

static int read_header(struct http_response *r, struct err *err)
{
    char *value = strchr(r->line, ':');

    if (!value || value == r->line)
        return err_set(err, ERR_PARSE, "not a header: %.60s", r->line);
    *value++ = '\0';
    value += strspn(value, " \t");
    for (size_t n = strlen(value); n > 0 && (value[n - 1] == ' ' || value[n - 1] == '\t'); n--)
        value[n - 1] = '\0';
    if (!strcasecmp(r->line, "content-length"))
        return read_length(r, value, err);
    if (!strcasecmp(r->line, "transfer-encoding")) {
        if (strcasecmp(value, "chunked"))
            return err_set(err, ERR_UNSUPPORTED, "Transfer-Encoding: %.60s", value);
        r->is_chunked = true;
    } else if (!strcasecmp(r->line, "content-encoding") && strcasecmp(value, "identity")) {
        return err_set(err, ERR_UNSUPPORTED, "Content-Encoding: %.60s", value);
    } else if (!strcasecmp(r->line, "connection")) {
        if (has_word(value, "close"))
            r->keep_alive = false;
        else if (has_word(value, "keep-alive"))
            r->keep_alive = true;
    }
    return 0;
}

/* The empty line behind the headers: which kind of body follows. */
static int end_head(struct http_response *r, struct err *err)
{
    if (r->status == 101)
        return err_set(err, ERR_UNSUPPORTED, "the server switches protocols");
    r->head_bytes = 0;
    if (r->status / 100 == 1) {
        r->status = 0;
        r->state = STATUS_LINE;
        return 0;
    }
    r->has_head = true;
    r->body_left = r->length;
    if (r->status == 204 || r->status == 304) {
        end(r);
    } else if (r->is_chunked) {
        r->state = CHUNK_SIZE_LINE; /* RFC 9112 6.3: it overrides Content-Length */
    } else if (!r->has_length) {
        r->state = BODY_TO_EOF;
        r->keep_alive = false;
    } else if (r->body_left == 0) {
        end(r);
    } else {
        r->state = BODY_LENGTH;
    }
    return 0;
}

/* Hexadecimal, and extensions behind a semicolon that say nothing to us. */
static int read_chunk_size(struct http_response *r, struct err *err)
{
    size_t n = strspn(r->line, "0123456789abcdefABCDEF");
    const char *rest = r->line + n + strspn(r->line + n, " \t");
    int64_t v = 0;

    if (n == 0 || n > 15 || (*rest && *rest != ';'))
        return err_set(err, ERR_PARSE, "not a chunk size: %.60s", r->line);
    for (size_t i = 0; i < n; i++) {
        char c = r->line[i];

        v = v * 16 + (is_digit(c) ? c - '0' : (c | 0x20) - 'a' + 10);
    }
    r->head_bytes = 0;
    r->body_left = v;
    r->state = v > 0 ? BODY_CHUNK : TRAILER_LINE;
    return 0;
}

static int read_line(struct http_response *r, struct err *err)
{
    bool is_empty = r->line_len == 0;

    switch (r->state) {
    case STATUS_LINE:
        return is_empty ? 0 : read_status(r, err); /* an empty line in front is forgiven */
    case HEADER_LINE:
        return is_empty ? end_head(r, err) : read_header(r, err);
    case CHUNK_SIZE_LINE:
        return read_chunk_size(r, err);
    case CHUNK_END_LINE:
        if (!is_empty)
            return err_set(err, ERR_PARSE, "a chunk is longer than its size: %.60s", r->line);
        r->state = CHUNK_SIZE_LINE;
        return 0;
    default:
        CHECK(r->state == TRAILER_LINE);
        if (is_empty)
            end(r);
        return 0;
    }
}

/* Up to and with the line feed, or all there is of the line. Returns how many bytes were taken. */
static ssize_t take_line(struct http_response *r, const char *data, size_t len, struct err *err)
{
    const char *lf = memchr(data, '\n', len);
    size_t taken = lf ? (size_t)(lf - data) + 1 : len;
    size_t text = lf ? taken - 1 : len;

    r->head_bytes += taken;
    if (text >= sizeof(r->line) - r->line_len || r->head_bytes > HTTP_RESPONSE_HEAD_MAX)
        return err_set(err, ERR_PARSE, "a response head of more than %zu bytes", r->head_bytes);
    memcpy(r->line + r->line_len, data, text);
    r->line_len += text;
    if (lf) {
        int rc;

        if (r->line_len > 0 && r->line[r->line_len - 1] == '\r')
            r->line_len--;
        r->line[r->line_len] = '\0';
        if (strlen(r->line) != r->line_len)
            return err_set(err, ERR_PARSE, "a NUL in a response head");
        rc = read_line(r, err);
        r->line_len = 0;
        if (rc < 0)
            return rc;
    }
    return taken;
}

static ssize_t take_body(struct http_response *r, const char *data, size_t len,
                         http_body_fn *on_body, void *arg)
{
    size_t taken = len;

    if (r->state != BODY_TO_EOF) {
        if ((int64_t)taken > r->body_left)
            taken = r->body_left;
        r->body_left -= taken;
        if (r->body_left == 0 && r->state == BODY_CHUNK)
            r->state = CHUNK_END_LINE;
        else if (r->body_left == 0)
            end(r);
    }
    on_body(arg, data, taken);
    return taken;
}

ssize_t http_response_feed(struct http_response *r, const char *data, size_t len,
                           http_body_fn *on_body, void *arg, struct err *err)
{
    size_t at = 0;

    CHECK(r->state != REFUSED);
    while (at < len && r->state != ENDED) {
        ssize_t n;

        if (r->state == BODY_LENGTH || r->state == BODY_CHUNK || r->state == BODY_TO_EOF)
            n = take_body(r, data + at, len - at, on_body, arg);
        else
            n = take_line(r, data + at, len - at, err);
        if (n < 0) {
            r->state = REFUSED;
            return n;
        }
        at += n;
    }
    return at;
}

int http_response_eof(struct http_response *r, struct err *err)
{
    if (r->state == BODY_TO_EOF)
        end(r);
    if (r->state == ENDED)
        return 0;
    if (r->has_head)
        return err_set(err, ERR_PARSE, "the connection closed in the middle of the body");
    return err_set(err, ERR_PARSE, "the connection closed before the response was complete");
}
