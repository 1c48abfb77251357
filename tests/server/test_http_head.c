/*
 * Tests of server/http_head.c: heads that two readers could read in two ways are refused.
 */
#include "tests/lib/test.h"

#include "server/api_error.h"
#include "server/http_head.h"

#include <string.h>

#define MAX_HEADERS 4

struct head_case {
    const char *version;
    const char *headers[MAX_HEADERS][2];
    int status; /* 0: accepted */
    bool is_unsafe;
};

static void check_case(const struct head_case *c, int idx)
{
    struct http_head h;
    struct api_error e = {0};
    bool is_unsafe = false;

    http_head_init(&h);
    for (int i = 0; i < MAX_HEADERS && c->headers[i][0]; i++)
        http_head_add(&h, c->headers[i][0], c->headers[i][1]);
    http_head_check(&h, c->version, &e, &is_unsafe);
    ck_assert_msg(e.status == c->status, "case %d: %d %s", idx, e.status, e.message);
    ck_assert_msg(is_unsafe == c->is_unsafe, "case %d: unsafe %d", idx, is_unsafe);
}

START_TEST(http_head__judges_heads)
{
    static const struct head_case cases[] = {
        {"HTTP/1.1", {{"Host", "x"}}, 0, false},
        {"HTTP/1.0", {{NULL}}, 0, false},
        {"HTTP/1.1", {{"Host", "x"}, {"Content-Length", "5"}}, 0, false},
        {"HTTP/1.1", {{"Host", "[::1]:80"}, {"Transfer-Encoding", "Chunked"}}, 0, false},
        {"HTTP/1.1", {{"Host", "x"}, {"Content-Encoding", "identity"}}, 0, false},
        {"HTTP/1.1", {{"Host", "x"}, {"Expect", "100-Continue"}}, 0, false},
        {"HTTP/1.1", {{NULL}}, 400, true},
        {"HTTP/1.2", {{"Host", "x"}}, 505, true},
        {"", {{"Host", "x"}}, 505, true},
        {"HTTP/1.1", {{"Host", "x"}, {"Host", "x"}}, 400, true},
        {"HTTP/1.1", {{"Host", "a/?x="}}, 400, true},
        {"HTTP/1.1", {{"Host", "user@h"}}, 400, true},
        {"HTTP/1.1", {{"Host", "a b"}}, 400, true},
        {"HTTP/1.1", {{"Host", "x"}, {"Content-Length", "5"}, {"content-length", "5"}}, 400, true},
        {"HTTP/1.1", {{"Host", "x"}, {"Content-Length", "+5"}}, 400, true},
        {"HTTP/1.1", {{"Host", "x"}, {"Content-Length", "0x5"}}, 400, true},
        {"HTTP/1.1", {{"Host", "x"}, {"Content-Length", "5,5"}}, 400, true},
        {"HTTP/1.1", {{"Host", "x"}, {"Content-Length", "-1"}}, 400, true},
        {"HTTP/1.1", {{"Host", "x"}, {"Content-Length", ""}}, 400, true},
        {"HTTP/1.1", {{"Host", "x"}, {"Content-Length", "9223372036854775808"}}, 400, true},
        {"HTTP/1.1", {{"Host", "x"}, {"Content-Length ", "5"}}, 400, true},
        {"HTTP/1.1",
         {{"Host", "x"}, {"Content-Length", "5"}, {"Transfer-Encoding", "chunked"}},
         400,
         true},
        {"HTTP/1.1", {{"Host", "x"}, {"Transfer-Encoding", "xchunked"}}, 501, true},
        {"HTTP/1.1", {{"Host", "x"}, {"Transfer-Encoding", "chunked, identity"}}, 501, true},
        {"HTTP/1.1",
         {{"Host", "x"}, {"Transfer-Encoding", "chunked"}, {"Transfer-Encoding", "chunked"}},
         400,
         true},
        {"HTTP/1.0", {{"Transfer-Encoding", "chunked"}}, 400, true},
        {"HTTP/1.1", {{"Host", "x"}, {"Authorization", "a"}, {"Authorization", "b"}}, 400, false},
        {"HTTP/1.1", {{"Host", "x"}, {"Content-Encoding", "gzip"}}, 415, false},
        {"HTTP/1.1", {{"Host", "x"}, {"Expect", "200-ok"}}, 417, false},
    };

    for (size_t i = 0; i < sizeof(cases) / sizeof(cases[0]); i++)
        check_case(&cases[i], (int)i);
}
END_TEST

/* Only an id that means nothing in a header or a log line is taken over. */
START_TEST(http_head__takes_harmless_request_ids)
{
    static const char *const bad[] = {"", "a b", "a\"b", "a\nb", "\xc3\xa9", "a;b"};
    struct http_head h;
    char text[2 * HTTP_REQUEST_ID_BYTES];

    http_head_init(&h);
    http_head_add(&h, "X-Request-Id", "Ab-1_2.3:4");
    ck_assert_str_eq(h.request_id, "Ab-1_2.3:4");
    for (size_t i = 0; i < sizeof(bad) / sizeof(bad[0]); i++) {
        http_head_init(&h);
        http_head_add(&h, "x-request-id", bad[i]);
        ck_assert_str_eq(h.request_id, "");
    }
    memset(text, 'a', sizeof(text));
    text[HTTP_REQUEST_ID_BYTES] = '\0';
    http_head_add(&h, "x-request-id", text);
    ck_assert_str_eq(h.request_id, "");
    text[HTTP_REQUEST_ID_BYTES - 1] = '\0';
    http_head_add(&h, "x-request-id", text);
    ck_assert_str_eq(h.request_id, text);
}
END_TEST

START_TEST(http_head__knows_whether_a_body_comes)
{
    struct http_head h;

    http_head_init(&h);
    ck_assert(!http_head_has_body(&h));
    http_head_add(&h, "Content-Length", "0");
    ck_assert(!http_head_has_body(&h));
    http_head_init(&h);
    http_head_add(&h, "Content-Length", "12");
    ck_assert(http_head_has_body(&h));
    ck_assert_int_eq(h.content_length, 12);
    http_head_init(&h);
    http_head_add(&h, "Transfer-Encoding", "chunked");
    ck_assert(http_head_has_body(&h));
}
END_TEST

TEST_SUITE(http_head)
{
    TCase *tc = test_case(suite, "heads");

    tcase_add_test(tc, http_head__judges_heads);
    tcase_add_test(tc, http_head__takes_harmless_request_ids);
    tcase_add_test(tc, http_head__knows_whether_a_body_comes);
}
