/*
 * test_sse_reader - events by the rules of the HTML standard, cut at every place.
 */
#include "base/err.h"
#include "tests/bench/sse_reader.h"
#include "tests/lib/test.h"

#include <string.h>

static void add_event(void *arg, const char *data, size_t len)
{
    ck_assert_int_eq(strlen(data), len);
    strbuf_addch(arg, '[');
    strbuf_add(arg, data, len);
    strbuf_addch(arg, ']');
}

struct sse_case {
    const char *text, *events;
};

static const struct sse_case cases[] = {
    {"data: a\n\n", "[a]"},
    {"data: a\n\ndata: b\n\n", "[a][b]"},
    {"data: a\r\n\r\ndata: b\r\n\r\n", "[a][b]"},
    {"data: a\r\rdata: b\r\r", "[a][b]"},
    {"data:a\n\ndata:  b\n\n", "[a][ b]"},
    {"data: a\ndata: b\n\n", "[a\nb]"},
    {"data\n\n", "[]"},
    {"data:\ndata:\n\n", "[\n]"},
    {": ping\n\ndata: a\n\n", "[a]"},
    {"event: x\nid: 7\ndata: a\nretry: 1\n\n", "[a]"},
    {"event: x\n\n\n\n", ""},
    {"database: a\n\n", ""},
    {"data: a\n", ""},
    {"data: [DONE]\n\n", "[[DONE]]"},
    {"", ""},
};

/* Every cut gives the same events. */
START_TEST(sse_reader__splits_what_is_cut_anywhere)
{
    const struct sse_case *c = &cases[_i];
    size_t len = strlen(c->text);
    struct strbuf events = STRBUF_INIT;
    struct sse_reader s;

    sse_reader_init(&s);
    for (size_t step = 1; step <= len; step++) {
        struct err err = {0};

        strbuf_reset(&events);
        sse_reader_reset(&s);
        for (size_t at = 0; at < len; at += step) {
            size_t n = len - at < step ? len - at : step;

            ck_assert_int_eq(sse_reader_feed(&s, c->text + at, n, add_event, &events, &err), 0);
        }
        ck_assert_str_eq(events.buf, c->events);
    }
    sse_reader_release(&s);
    strbuf_release(&events);
}
END_TEST

/* A half-read event does not reach into the next response. */
START_TEST(sse_reader__reset_forgets)
{
    struct strbuf events = STRBUF_INIT;
    struct err err = {0};
    struct sse_reader s;

    sse_reader_init(&s);
    ck_assert_int_eq(sse_reader_feed(&s, "data: old\ndata: mor", 19, add_event, &events, &err), 0);
    sse_reader_reset(&s);
    ck_assert_int_eq(sse_reader_feed(&s, "\n\ndata: new\n\n", 13, add_event, &events, &err), 0);
    ck_assert_str_eq(events.buf, "[new]");
    sse_reader_release(&s);
    strbuf_release(&events);
}
END_TEST

/* A line that never ends is refused, and so are data lines without end. */
START_TEST(sse_reader__bounds_an_event)
{
    static const char *const pieces[] = {
        "data: aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa",
        "data: aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa\n"};
    struct strbuf events = STRBUF_INIT;

    for (int i = 0; i < 2; i++) {
        struct err err = {0};
        struct sse_reader s;
        int rc = 0;

        sse_reader_init(&s);
        for (int n = 0; n < SSE_EVENT_MAX && rc == 0; n += 32)
            rc = sse_reader_feed(&s, pieces[i], strlen(pieces[i]), add_event, &events, &err);
        ck_assert_int_eq(rc, ERR_LIMIT);
        sse_reader_release(&s);
    }
    ck_assert_int_eq(events.len, 0);
}
END_TEST

TEST_SUITE(sse_reader)
{
    TCase *tc = test_case(suite, "core");

    tcase_add_loop_test(tc, sse_reader__splits_what_is_cut_anywhere, 0,
                        sizeof(cases) / sizeof(cases[0]));
    tcase_add_test(tc, sse_reader__reset_forgets);
    tcase_add_test(tc, sse_reader__bounds_an_event);
}
