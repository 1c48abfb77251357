/*
 * Plans: the published ones give the published totals, and bad ones are refused by name.
 */
#include "base/err.h"
#include "engine/plan/plan.h"
#include "tests/lib/test.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

struct published {
    const char *dir;
    int n_layers, n_heads, n_kv_heads, n_distinct;
    int64_t query_slots[3]; /* at 4096, 8192, 16384; 0: not published */
    int64_t kv_slots[3];
};

static const int lengths[3] = {4096, 8192, 16384};

static const struct published published[] = {
    {"lmsys--vicuna-7b-v1.5-16k",
     32,
     32,
     32,
     9,
     {2031616, 4128768, 8323072},
     {2031616, 4128768, 8323072}},
    {"lmsys--vicuna-13b-v1.5-16k",
     40,
     40,
     40,
     15,
     {3174400, 6345728, 12688384},
     {3174400, 6345728, 12688384}},
    {"gradientai--Llama-3-8B-Instruct-262k",
     32,
     32,
     8,
     11,
     {2032128, 4125696, 8296448},
     {645632, 1373184, 2821120}},
    {"gradientai--Llama-3-70B-Instruct-262k",
     80,
     64,
     8,
     17,
     {0, 0, 0},
     {1735168, 3464192, 6729728}},
    {"meta-llama--Llama-3.2-1B-Instruct", 16, 32, 8, 11, {0, 0, 0}, {345088, 691200, 1327104}},
    {"meta-llama--Llama-3.2-3B-Instruct", 28, 24, 8, 15, {0, 0, 0}, {527360, 1010688, 1927168}},
};

static struct plan *open_published(const struct published *pub, const char *name)
{
    struct err err = {0};
    struct plan *p = NULL;
    char path[512];

    snprintf(path, sizeof(path), "tests/fixtures/moa-plans/%s/%s", pub->dir, name);
    ck_assert_msg(plan_open(&p, test_path(path), pub->n_layers, pub->n_heads, KV_SPAN_INCLUDES_SINK,
                            &err) == 0,
                  "%s", err.msg);
    return p;
}

/* Slots over query heads and over KV heads, for all six shipped plans at three lengths. */
START_TEST(plan__gives_the_published_totals)
{
    const struct published *pub = &published[_i];
    struct plan *p = open_published(pub, "moa_alpha_beta.json");
    struct kv_shape shape = {.n_layers = pub->n_layers,
                             .n_heads = pub->n_heads,
                             .n_kv_heads = pub->n_kv_heads,
                             .head_dim = 128,
                             .page_entries = 64,
                             .dtype = DTYPE_F16};

    ck_assert_int_eq(p->n_distinct, pub->n_distinct);
    for (int i = 0; i < 3; i++) {
        if (pub->query_slots[i])
            ck_assert_int_eq(
                kv_layout_query_slots(&shape, p->rules, lengths[i], KV_SPAN_INCLUDES_SINK),
                pub->query_slots[i]);
        ck_assert_int_eq(kv_layout_kv_slots(&shape, p->rules, lengths[i], KV_SPAN_INCLUDES_SINK),
                         pub->kv_slots[i]);
    }
    plan_free(p);
}
END_TEST

/* The uniform baseline file equals the spec uniform:0.5. */
START_TEST(plan__reads_the_uniform_baseline)
{
    const struct published *pub = &published[_i];
    struct plan *file = open_published(pub, "streamingllm_alpha_beta.json"), *spec = NULL;
    struct err err = {0};

    ck_assert_int_eq(
        plan_open(&spec, "uniform:0.5", pub->n_layers, pub->n_heads, KV_SPAN_INCLUDES_SINK, &err),
        0);
    ck_assert_int_eq(file->n_distinct, 1);
    ck_assert_int_eq(
        memcmp(file->rules, spec->rules, sizeof(*spec->rules) * pub->n_layers * pub->n_heads), 0);
    plan_free(file);
    plan_free(spec);
}
END_TEST

START_TEST(plan__parses_streaming)
{
    struct err err = {0};
    struct plan *p = NULL;

    ck_assert_int_eq(plan_open(&p, "streaming:4,1020", 2, 3, KV_SPAN_INCLUDES_SINK, &err), 0);
    ck_assert_int_eq(p->rules[5].kind, KV_RULE_STREAM);
    ck_assert_int_eq(p->rules[5].n_sink, 4);
    ck_assert_int_eq(p->rules[5].n_recent, 1020);
    plan_free(p);
}
END_TEST

/* A trained window wins over the plan, on its layer only. */
START_TEST(plan__puts_trained_windows_in_force)
{
    struct err err = {0};
    struct plan *p = NULL;

    ck_assert_int_eq(plan_open(&p, "dense", 2, 2, KV_SPAN_INCLUDES_SINK, &err), 0);
    plan_set_window(p, 1, 4096);
    ck_assert_int_eq(p->rules[1].kind, KV_RULE_DENSE);
    ck_assert_int_eq(p->rules[2].kind, KV_RULE_STREAM);
    ck_assert_int_eq(p->rules[3].n_recent, 4096);
    ck_assert_int_eq(p->n_distinct, 2);
    plan_free(p);
}
END_TEST

static const struct {
    const char *spec;
    const char *wants; /* what the message must say */
} bad_specs[] = {
    {"streaming:", "SINK"},
    {"streaming:4", "SINK"},
    {"streaming:4,", "RECENT"},
    {"streaming:4,0", "RECENT"},
    {"streaming:-1,5", "SINK"},
    {"streaming:1,2,3", "RECENT"},
    {"uniform:", "DENSITY"},
    {"uniform:1.5", "DENSITY"},
    {"uniform:nan", "DENSITY"},
    {"uniform:-0.1", "DENSITY"},
    {"uniform:0.5x", "DENSITY"},
    {"no-such-plan", "no-such-plan"},
    {"streaming:99999999999999999999,4", "SINK"},
};

START_TEST(plan__refuses_a_bad_spec)
{
    struct err err = {0};
    struct plan *p = NULL;

    ck_assert_int_lt(plan_open(&p, bad_specs[_i].spec, 2, 2, KV_SPAN_INCLUDES_SINK, &err), 0);
    ck_assert_ptr_null(p);
    ck_assert_msg(strstr(err.msg, bad_specs[_i].wants) != NULL, "message: %s", err.msg);
}
END_TEST

static const struct {
    const char *json;
    const char *wants;
} bad_files[] = {
    {"[]", "object"},
    {"{}", "alphas"},
    {"{\"alphas\": [[0,0],[0,0]]}", "betas"},
    {"{\"alphas\": [[0,0]], \"betas\": [[0,0],[0,0]]}", "1 layers"},
    {"{\"alphas\": [[0,0],[0]], \"betas\": [[0,0],[0,0]]}", "alphas[1] has 1 heads"},
    {"{\"alphas\": [[0,0],[0,\"1\"]], \"betas\": [[0,0],[0,0]]}", "alphas[1][1]"},
    {"{\"alphas\": [[0,0],[0,0]], \"betas\": [[0,0],[0,1.25]]}", "betas[1][1] is 1.25"},
    {"{\"alphas\": [[0,0],[0,0]], \"betas\": [[-0.5,0],[0,0]]}", "betas[0][0] is -0.5"},
    {"{\"alphas\": [[1e20,0],[0,0]], \"betas\": [[0,0],[0,0]]}", "alphas[0][0]"},
    {"{\"alphas\": [[NaN,0],[0,0]], \"betas\": [[0,0],[0,0]]}", ""},
    {"{\"alphas\": {}, \"betas\": []}", "alphas"},
};

START_TEST(plan__refuses_a_bad_file)
{
    struct err err = {0};
    struct plan *p = NULL;
    char path[] = "/tmp/spand-plan-XXXXXX";
    int fd = mkstemp(path);
    size_t len = strlen(bad_files[_i].json);

    ck_assert_int_ge(fd, 0);
    ck_assert_int_eq(write(fd, bad_files[_i].json, len), (long)len);
    close(fd);
    ck_assert_int_lt(plan_open(&p, path, 2, 2, KV_SPAN_INCLUDES_SINK, &err), 0);
    unlink(path);
    ck_assert_msg(strstr(err.msg, bad_files[_i].wants) != NULL, "message: %s", err.msg);
}
END_TEST

/* Integers for floats, and members that are not ours, are accepted. */
START_TEST(plan__accepts_integers_and_metadata)
{
    static const char text[] =
        "{\"model\": \"x\", \"alphas\": [[0, 1024]], \"betas\": [[1, 0]], \"density\": 0.5}";
    struct err err = {0};
    struct plan *p = NULL;
    char path[] = "/tmp/spand-plan-XXXXXX";
    int fd = mkstemp(path);

    ck_assert_int_ge(fd, 0);
    ck_assert_int_eq(write(fd, text, strlen(text)), (long)strlen(text));
    close(fd);
    ck_assert_int_eq(plan_open(&p, path, 1, 2, KV_SPAN_INCLUDES_SINK, &err), 0);
    unlink(path);
    ck_assert_double_eq(p->rules[1].alpha, 1024);
    ck_assert_double_eq(p->rules[0].beta, 1);
    plan_free(p);
}
END_TEST

#define COUNT(a) ((int)(sizeof(a) / sizeof((a)[0])))

TEST_SUITE(plan)
{
    TCase *tc = test_case(suite, "core");

    tcase_add_loop_test(tc, plan__gives_the_published_totals, 0, COUNT(published));
    tcase_add_loop_test(tc, plan__reads_the_uniform_baseline, 0, COUNT(published));
    tcase_add_test(tc, plan__parses_streaming);
    tcase_add_test(tc, plan__puts_trained_windows_in_force);
    tcase_add_loop_test(tc, plan__refuses_a_bad_spec, 0, COUNT(bad_specs));
    tcase_add_loop_test(tc, plan__refuses_a_bad_file, 0, COUNT(bad_files));
    tcase_add_test(tc, plan__accepts_integers_and_metadata);
}
