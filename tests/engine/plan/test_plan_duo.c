/*
 * DuoAttention's gates: the table's shape, the threshold, the share, and what is wrong with a
 * folder.
 */
#include "base/err.h"
#include "engine/plan/plan.h"
#include "tests/lib/test.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

static char dir[64];

static void write_part(const char *name, const char *text)
{
    char path[128];
    FILE *f;

    snprintf(path, sizeof(path), "%s/%s", dir, name);
    unlink(path);
    if (!text)
        return;
    f = fopen(path, "w");
    ck_assert_ptr_nonnull(f);
    fputs(text, f);
    fclose(f);
}

/* Two layers of two KV heads of two query heads, written as numpy writes them. */
static const char gates[] = "1.000000000000000000e+00\t2.499999999999999861e-01\n"
                            "5.000000000000000000e-01\t4.990000000000000000e-01\n";
static const char sizes[] = "{\"sink_size\": 128, \"recent_size\": 250, \"lr\": 0.02}";

static void setup(void)
{
    snprintf(dir, sizeof(dir), "/tmp/spand-duo-XXXXXX");
    ck_assert_ptr_nonnull(mkdtemp(dir));
    write_part("full_attention_heads.tsv", gates);
    write_part("config.json", sizes);
}

static void teardown(void)
{
    write_part("full_attention_heads.tsv", NULL);
    write_part("config.json", NULL);
    rmdir(dir);
}

static int open_duo(struct plan **p, const char *behind, struct err *err)
{
    struct kv_shape shape = {.n_layers = 2, .n_heads = 4, .n_kv_heads = 2, .head_dim = 8};
    char spec[128];

    snprintf(spec, sizeof(spec), "duo:%s%s", dir, behind);
    return plan_open(p, spec, &shape, PLAN_SPAN_AUTO, err);
}

/* Which query heads keep everything, as a string of 0 and 1. */
static const char *open_heads(const char *behind)
{
    static char text[9];
    struct plan *p = NULL;
    struct err err = {0};

    ck_assert_msg(open_duo(&p, behind, &err) == 0, "%s", err.msg);
    ck_assert_int_eq(p->kind, PLAN_DUO);
    for (int i = 0; i < 8; i++) {
        text[i] = p->rules[i].kind == KV_RULE_DENSE ? '1' : '0';
        if (text[i] == '0') {
            ck_assert_int_eq(p->rules[i].kind, KV_RULE_STREAM);
            ck_assert_int_eq(p->rules[i].n_sink, 128);
            ck_assert_int_eq(p->rules[i].n_recent, 250);
        }
    }
    plan_free(p);
    return text;
}

/* Gates of a half and more are open, each for its group of query heads. */
START_TEST(plan_duo__opens_gates_by_threshold)
{
    ck_assert_str_eq(open_heads(""), "11001100");
}
END_TEST

/* A share takes the largest gates, whatever they are; of equal ones the first. */
START_TEST(plan_duo__opens_a_share)
{
    ck_assert_str_eq(open_heads(",0"), "00000000");
    ck_assert_str_eq(open_heads(",0.25"), "11000000");
    ck_assert_str_eq(open_heads(",0.75"), "11001111");
    ck_assert_str_eq(open_heads(",1"), "11111111");
    write_part("full_attention_heads.tsv", "0.5 0.5\r\n0.5 0.5");
    ck_assert_str_eq(open_heads(",0.5"), "11110000");
}
END_TEST

/* Memory at 4096 tokens: an open head keeps all, a closed one 2 pages of sink and 4 of ring. */
START_TEST(plan_duo__counts_memory)
{
    struct plan *p = NULL;
    struct err err = {0};

    ck_assert_int_eq(open_duo(&p, "", &err), 0);
    ck_assert_int_eq(plan_kv_slots(p, 4096), 2 * 4096 + 2 * (128 + 256));
    plan_free(p);
}
END_TEST

static const struct {
    const char *behind, *gates, *sizes, *wants;
} bad[] = {
    {"", "1\t0\n", sizes, "1 lines of gates, the model has 2 layers"},
    {"", "1\t0\n1\t0\n1\t1\n", sizes, "3 lines of gates"},
    {"", "1\t0\n1\t0\t1\n", sizes, ":2: 3 gates, the model has 2 key-value heads"},
    {"", "1\t0\n1\n", sizes, ":2: 1 gates"},
    {"", "1\t0\n1\tx\n", sizes, ":2: gate 2 is x, want a number"},
    {"", "1\tnan\n1\t1\n", sizes, ":1: gate 2 is nan"},
    {"", "1\tinf\n1\t1\n", sizes, ":1: gate 2 is inf"},
    {"", "", sizes, "0 lines of gates"},
    {"", NULL, sizes, "full_attention_heads.tsv"},
    {"", gates, NULL, "config.json"},
    {"", gates, "{}", "sink_size"},
    {"", gates, "[]", "want an object"},
    {"", gates, "{\"sink_size\": 4}", "recent_size"},
    {"", gates, "{\"sink_size\": 4, \"recent_size\": 0}", "recent_size"},
    {",1.5", gates, sizes, "SHARE in 0..1"},
    {",", gates, sizes, "SHARE in 0..1"},
    {",nan", gates, sizes, "SHARE in 0..1"},
};

START_TEST(plan_duo__names_what_is_wrong)
{
    struct plan *p = NULL;
    struct err err = {0};

    write_part("full_attention_heads.tsv", bad[_i].gates);
    write_part("config.json", bad[_i].sizes);
    ck_assert_int_lt(open_duo(&p, bad[_i].behind, &err), 0);
    ck_assert_ptr_null(p);
    ck_assert_msg(strstr(err.msg, bad[_i].wants) != NULL, "message: %s", err.msg);
}
END_TEST

#define COUNT(a) ((int)(sizeof(a) / sizeof((a)[0])))

TEST_SUITE(plan_duo)
{
    TCase *tc = test_case(suite, "core");

    tcase_add_checked_fixture(tc, setup, teardown);
    tcase_add_test(tc, plan_duo__opens_gates_by_threshold);
    tcase_add_test(tc, plan_duo__opens_a_share);
    tcase_add_test(tc, plan_duo__counts_memory);
    tcase_add_loop_test(tc, plan_duo__names_what_is_wrong, 0, COUNT(bad));
}
