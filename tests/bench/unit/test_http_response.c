/*
 * test_http_response - responses as servers and proxies send them, cut at every place.
 */
#include "base/err.h"
#include "base/strbuf.h"
#include "tests/bench/http_response.h"
#include "tests/lib/test.h"

#include <string.h>

static struct http_response response;
static struct strbuf body = STRBUF_INIT;

static void add_body(void *arg, const char *data, size_t len)
{
    strbuf_add(arg, data, len);
}

/* Feeds text in pieces of at most `step` bytes until it is refused or has ended. */
static ssize_t feed(const char *text, size_t step, struct err *err)
{
    size_t len = strlen(text), at = 0;

    http_response_init(&response);
    strbuf_reset(&body);
    while (at < len && !response.is_done) {
        size_t n = len - at < step ? len - at : step;
        ssize_t taken = http_response_feed(&response, text + at, n, add_body, &body, err);

        if (taken < 0)
            return taken;
        ck_assert(response.is_done || (size_t)taken == n);
        at += taken;
    }
    return at;
}

struct good_case {
    const char *text;
    int status;
    const char *body;
    bool keep_alive, is_done;
    size_t n_left; /* bytes behind the response */
};

static const struct good_case good[] = {
    {"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nhello", 200, "hello", true, true, 0},
    {"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nhelloHTTP", 200, "hello", true, true, 4},
    {"HTTP/1.1 200\r\ncontent-length:0\r\n\r\n", 200, "", true, true, 0},
    {"HTTP/1.1 404 Not Found\nContent-Length: 2 \n\nno", 404, "no", true, true, 0},
    {"HTTP/1.1 200 OK\r\nConnection: x, Close\r\nContent-Length: 1\r\n\r\na", 200, "a", false, true,
     0},
    {"HTTP/1.0 200 OK\r\nContent-Length: 1\r\n\r\na", 200, "a", false, true, 0},
    {"HTTP/1.0 200 OK\r\nConnection: keep-alive\r\nContent-Length: 1\r\n\r\na", 200, "a", true,
     true, 0},
    {"HTTP/1.1 204 No Content\r\n\r\n", 204, "", true, true, 0},
    {"HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 200 OK\r\nContent-Length: 1\r\n\r\na", 200, "a", true,
     true, 0},
    {"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n0\r\n\r\n", 200, "hello",
     true, true, 0},
    {"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n2;x=\"y\"\r\nhe\r\n0003 "
     "\r\nllo\r\n00\r\n"
     "Trailer: t\r\n\r\nX",
     200, "hello", true, true, 1},
    {"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\nContent-Length: 1\r\n\r\nA\r\n0123456789\r\n"
     "0\r\n\r\n",
     200, "0123456789", true, true, 0},
    {"HTTP/1.1 200 OK\r\n\r\nall of it", 200, "all of it", false, false, 0},
};

/* Every cut gives the same status, body and end. */
START_TEST(http_response__reads_what_is_cut_anywhere)
{
    const struct good_case *c = &good[_i];
    size_t len = strlen(c->text);

    for (size_t step = 1; step <= len; step++) {
        struct err err = {0};
        ssize_t taken = feed(c->text, step, &err);

        ck_assert_msg(taken >= 0, "%s", err.msg);
        ck_assert_int_eq(taken, len - c->n_left);
        ck_assert_int_eq(response.is_done, c->is_done);
        ck_assert_int_eq(http_response_eof(&response, &err), 0);
        ck_assert(response.is_done);
        ck_assert_int_eq(response.status, c->status);
        ck_assert_int_eq(response.keep_alive, c->keep_alive);
        ck_assert_str_eq(body.buf, c->body);
    }
    strbuf_release(&body);
}
END_TEST

struct bad_case {
    const char *text;
    int code;
};

static const struct bad_case bad[] = {
    {"HTTP/2 200 OK\r\n\r\n", ERR_PARSE},
    {"SSH-2.0-x\r\n", ERR_PARSE},
    {"HTTP/1.1 20 OK\r\n\r\n", ERR_PARSE},
    {"HTTP/1.1 2000 OK\r\n\r\n", ERR_PARSE},
    {"HTTP/1.1 200 OK\r\nno colon\r\n\r\n", ERR_PARSE},
    {"HTTP/1.1 200 OK\r\n: no name\r\n\r\n", ERR_PARSE},
    {"HTTP/1.1 200 OK\r\nContent-Length: -1\r\n\r\n", ERR_PARSE},
    {"HTTP/1.1 200 OK\r\nContent-Length: \r\n\r\n", ERR_PARSE},
    {"HTTP/1.1 200 OK\r\nContent-Length: 1x\r\n\r\n", ERR_PARSE},
    {"HTTP/1.1 200 OK\r\nContent-Length: 9999999999999999999\r\n\r\n", ERR_PARSE},
    {"HTTP/1.1 200 OK\r\nContent-Length: 1\r\nContent-Length: 2\r\n\r\n", ERR_PARSE},
    {"HTTP/1.1 200 OK\r\nTransfer-Encoding: gzip, chunked\r\n\r\n", ERR_UNSUPPORTED},
    {"HTTP/1.1 200 OK\r\nContent-Encoding: gzip\r\n\r\n", ERR_UNSUPPORTED},
    {"HTTP/1.1 101 Switching Protocols\r\n\r\n", ERR_UNSUPPORTED},
    {"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n\r\n", ERR_PARSE},
    {"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n0x5\r\n", ERR_PARSE},
    {"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n-5\r\n", ERR_PARSE},
    {"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n1000000000000000\r\n", ERR_PARSE},
    {"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nabc\r\n", ERR_PARSE},
};

/* What is no response is refused with a message, wherever it is cut. */
START_TEST(http_response__refuses_nonsense)
{
    const struct bad_case *c = &bad[_i];

    for (size_t step = 1; step <= strlen(c->text); step++) {
        struct err err = {0};

        ck_assert_int_eq(feed(c->text, step, &err), c->code);
        ck_assert_str_ne(err.msg, "");
    }
    strbuf_release(&body);
}
END_TEST

/* A head without an end is cut off at a bound. */
START_TEST(http_response__bounds_the_head)
{
    struct err err = {0};
    const char *line = "X-Filler: 0123456789\r\n";
    ssize_t rc;

    http_response_init(&response);
    rc = http_response_feed(&response, "HTTP/1.1 200 OK\r\n", 17, add_body, &body, &err);
    for (int i = 0; i < HTTP_RESPONSE_HEAD_MAX && rc >= 0; i++)
        rc = http_response_feed(&response, line, strlen(line), add_body, &body, &err);
    ck_assert_int_eq(rc, ERR_PARSE);

    err = (struct err){0};
    http_response_init(&response);
    rc = 0;
    for (int i = 0; i <= HTTP_RESPONSE_LINE_MAX && rc >= 0; i++)
        rc = http_response_feed(&response, "x", 1, add_body, &body, &err);
    ck_assert_int_eq(rc, ERR_PARSE);
}
END_TEST

/* A close before the end is told from a close that is the end. */
START_TEST(http_response__tells_a_truncated_body)
{
    static const char *const cut[] = {
        "", "HTTP/1.1 200 OK\r\n", "HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nhell",
        "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n",
        "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n0\r\n"};

    for (size_t i = 0; i < sizeof(cut) / sizeof(cut[0]); i++) {
        struct err err = {0};

        ck_assert_int_eq(feed(cut[i], 1, &err), strlen(cut[i]));
        ck_assert_int_eq(http_response_eof(&response, &err), ERR_PARSE);
        ck_assert(!response.is_done);
    }
    strbuf_release(&body);
}
END_TEST

/* An object that has read one response reads the next after init. */
START_TEST(http_response__starts_over)
{
    struct err err = {0};

    ck_assert_int_gt(feed(good[9].text, 3, &err), 0);
    ck_assert(response.is_done);
    ck_assert_int_gt(feed(good[0].text, 3, &err), 0);
    ck_assert_str_eq(body.buf, "hello");
    strbuf_release(&body);
}
END_TEST

TEST_SUITE(http_response)
{
    TCase *tc = test_case(suite, "core");

    tcase_add_loop_test(tc, http_response__reads_what_is_cut_anywhere, 0,
                        sizeof(good) / sizeof(good[0]));
    tcase_add_loop_test(tc, http_response__refuses_nonsense, 0, sizeof(bad) / sizeof(bad[0]));
    tcase_add_test(tc, http_response__bounds_the_head);
    tcase_add_test(tc, http_response__tells_a_truncated_body);
    tcase_add_test(tc, http_response__starts_over);
}
