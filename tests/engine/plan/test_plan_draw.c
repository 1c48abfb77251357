/*
 * The map of spans: every head is drawn, colours only when asked for, and the SVG is whole.
 */
#include "base/strbuf.h"
#include "engine/plan/plan_draw.h"
#include "tests/lib/test.h"

#include <stdio.h>
#include <string.h>

static struct plan *p;
static struct strbuf out;

static void setup(void)
{
    struct kv_shape shape = {.n_layers = 3, .n_heads = 6, .n_kv_heads = 2, .head_dim = 8};
    struct err *none = NULL;

    strbuf_init(&out);
    ck_assert_int_eq(plan_open(&p, "uniform:0.25", &shape, PLAN_SPAN_AUTO, none), 0);
    p->rules[4].beta = 1; /* layer 0, the second KV head's group */
    p->rules[17] = (struct kv_rule){.kind = KV_RULE_DENSE};
    p->rules[12] = (struct kv_rule){.kind = KV_RULE_STREAM, .n_sink = 4, .n_recent = 60};
}

static void teardown(void)
{
    plan_free(p);
    strbuf_release(&out);
}

static int count(const char *what)
{
    int n = 0;

    for (const char *at = out.buf; (at = strstr(at, what)) != NULL; at += strlen(what))
        n++;
    return n;
}

/* One digit a head, groups apart, and the layer's share of a dense cache by its KV heads. */
START_TEST(plan_draw__draws_digits)
{
    plan_draw_text(p, 4096, PLAN_COLOURS_NONE, &out);
    ck_assert_ptr_nonnull(strstr(out.buf, "  0  222 2#2  62.5 %"));
    ck_assert_ptr_nonnull(strstr(out.buf, "  1  222 222  25.0 %"));
    ck_assert_ptr_nonnull(strstr(out.buf, "  2  022 22#  62.5 %"));
    ck_assert_ptr_null(strchr(out.buf, '\033'));
}
END_TEST

/* Every cell has its colour, and every line gives the terminal back as it was. */
START_TEST(plan_draw__draws_colours)
{
    plan_draw_text(p, 4096, PLAN_COLOURS_256, &out);
    ck_assert_int_eq(count(";48;5;"), 18);
    ck_assert_int_ge(count("\033[0m"), 3);
    strbuf_reset(&out);
    plan_draw_text(p, 4096, PLAN_COLOURS_RGB, &out);
    ck_assert_int_eq(count(";48;2;"), 18);
    ck_assert_int_eq(count(";48;2;242;239;169m#"), 2);
}
END_TEST

/* A cell with a tip for each query and each KV head; names are escaped. */
START_TEST(plan_draw__draws_svg)
{
    snprintf(p->name, sizeof(p->name), "a/b/<c>&d");
    plan_draw_svg(p, "m<\"&", 4096, &out);
    ck_assert_int_eq(strncmp(out.buf, "<svg ", 5), 0);
    ck_assert_str_eq(out.buf + out.len - 7, "</svg>\n");
    ck_assert_int_eq(count("tokens</title>"), 3 * 6 + 3 * 2);
    ck_assert_int_eq(count("<title>layer 2, head 1: 4096 tokens</title>"), 1);
    ck_assert_int_eq(count("<title>layer 0, head 4: 4096 tokens</title>"), 1);
    ck_assert_int_eq(count("m&lt;\"&amp;"), 1);
    ck_assert_int_eq(count("Plan b/&lt;c>&amp;d."), 1);
    ck_assert_int_eq(count("<title>"), count("</title>"));
}
END_TEST

TEST_SUITE(plan_draw)
{
    TCase *tc = test_case(suite, "core");

    tcase_add_checked_fixture(tc, setup, teardown);
    tcase_add_test(tc, plan_draw__draws_digits);
    tcase_add_test(tc, plan_draw__draws_colours);
    tcase_add_test(tc, plan_draw__draws_svg);
}
