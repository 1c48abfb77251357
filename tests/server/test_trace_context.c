/*
 * Tests of server/trace_context.c: what callers send of their traces, well-formed or not.
 */
#include "tests/lib/test.h"

#include "server/trace_context.h"

#include <stdio.h>
#include <string.h>

#define TRACE "4bf92f3577b34da6a3ce929d0e0e4736"
#define SPAN  "00f067aa0ba902b7"

START_TEST(trace_context__judges_parents)
{
    static const struct {
        const char *text;
        int sampled; /* -1: refused */
    } cases[] = {
        {"00-" TRACE "-" SPAN "-01", 1},
        {"00-" TRACE "-" SPAN "-00", 0},
        {"00-" TRACE "-" SPAN "-ff", 1}, /* bits to come */
        {"00-" TRACE "-" SPAN "-02", 0},
        {"cc-" TRACE "-" SPAN "-01", 1}, /* versions to come */
        {"cc-" TRACE "-" SPAN "-01-what-the-future", 1},
        {"cc-" TRACE "-" SPAN "-01.what-the-future", -1},
        {"00-" TRACE "-" SPAN "-01-more", -1},
        {"ff-" TRACE "-" SPAN "-01", -1},
        {"00-00000000000000000000000000000000-" SPAN "-01", -1},
        {"00-" TRACE "-0000000000000000-01", -1},
        {"00-4BF92F3577B34DA6A3CE929D0E0E4736-" SPAN "-01", -1},
        {"00-" TRACE "-" SPAN "-1", -1},
        {"00-" TRACE "-" SPAN "-0x", -1},
        {"0x-" TRACE "-" SPAN "-01", -1},
        {"00_" TRACE "-" SPAN "-01", -1},
        {"00-" TRACE "_" SPAN "-01", -1},
        {"00-" TRACE "-" SPAN "_01", -1},
        {"00-" TRACE "-" SPAN, -1},
        {"", -1},
    };

    for (size_t i = 0; i < sizeof(cases) / sizeof(cases[0]); i++) {
        struct trace_context c = {0};
        bool taken = trace_context_take_parent(&c, cases[i].text);

        ck_assert_msg(taken == (cases[i].sampled >= 0), "%s", cases[i].text);
        ck_assert_msg(c.has_parent == taken, "%s", cases[i].text);
        ck_assert_msg(!taken || c.is_sampled == cases[i].sampled, "%s", cases[i].text);
        ck_assert_msg(taken || c.trace_id[0] == 0, "%s: half of it was taken", cases[i].text);
    }
}
END_TEST

/* What goes on has the caller's trace and a span of its own. */
START_TEST(trace_context__goes_on_under_a_new_span)
{
    struct trace_context c = {0};
    char text[TRACE_PARENT_SIZE], again[TRACE_PARENT_SIZE];

    ck_assert(trace_context_take_parent(&c, "00-" TRACE "-" SPAN "-01"));
    trace_context_start(&c, 0);
    ck_assert(c.is_sampled);
    trace_context_format(&c, text);
    ck_assert_uint_eq(strlen(text), TRACE_PARENT_SIZE - 1);
    ck_assert(!memcmp(text, "00-" TRACE "-", 36));
    ck_assert(memcmp(text + 36, SPAN, 16));
    ck_assert_str_eq(text + 52, "-01");
    ck_assert(trace_context_take_parent(&c, text));
    trace_context_start(&c, 0);
    trace_context_format(&c, again);
    ck_assert(!memcmp(text, again, 36));
    ck_assert(memcmp(text + 36, again + 36, 16));
}
END_TEST

START_TEST(trace_context__samples_new_traces_by_the_ratio)
{
    int n = 0;

    for (int i = 0; i < 4000; i++) {
        struct trace_context all = {0}, none = {0}, some = {0};

        trace_context_start(&all, 1);
        trace_context_start(&none, 0);
        trace_context_start(&some, 0.25);
        ck_assert(all.is_sampled);
        ck_assert(!none.is_sampled);
        n += some.is_sampled;
    }
    ck_assert_int_gt(n, 800); /* 1000 is expected; one in a billion is this far off */
    ck_assert_int_lt(n, 1200);
}
END_TEST

START_TEST(trace_context__keeps_the_state)
{
    struct trace_context c = {.has_parent = true};
    char longer[600];

    trace_context_add_state(&c, " a=1 ,, b=2\t");
    trace_context_add_state(&c, "c=3");
    ck_assert_str_eq(c.state, "a=1,b=2,c=3");
    trace_context_add_state(&c, "d=\x01,e=5"); /* the rest is in doubt too */
    ck_assert_str_eq(c.state, "a=1,b=2,c=3");
    memset(longer, 'x', sizeof(longer) - 1);
    longer[0] = 'k';
    longer[1] = '=';
    longer[sizeof(longer) - 1] = '\0';
    trace_context_add_state(&c, longer);
    ck_assert_str_eq(c.state, "a=1,b=2,c=3");
    longer[TRACE_STATE_SIZE - 1 - strlen(",a=1,b=2,c=3")] = '\0';
    trace_context_add_state(&c, longer);
    ck_assert_uint_eq(strlen(c.state), TRACE_STATE_SIZE - 1);
    memset(&c, 0, sizeof(c));
    for (int i = 0; i < 40; i++)
        trace_context_add_state(&c, "k=v");
    ck_assert_uint_eq(strlen(c.state), 32 * 4 - 1);
    trace_context_start(&c, 1); /* no parent: it belongs to nobody */
    ck_assert_str_eq(c.state, "");
}
END_TEST

TEST_SUITE(trace_context)
{
    TCase *tc = test_case(suite, "w3c");

    tcase_add_test(tc, trace_context__judges_parents);
    tcase_add_test(tc, trace_context__goes_on_under_a_new_span);
    tcase_add_test(tc, trace_context__samples_new_traces_by_the_ratio);
    tcase_add_test(tc, trace_context__keeps_the_state);
}
