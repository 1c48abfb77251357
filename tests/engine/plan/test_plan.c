/*
 * Plans: the published ones give the published totals, and bad ones are refused by name.
 */
#include "base/err.h"
#include "base/strbuf.h"
#include "engine/kv/kv_slot.h"
#include "engine/plan/plan.h"
#include "tests/lib/test.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

struct published {
    const char *dir;
    int n_layers, n_heads, n_kv_heads, n_distinct;
    int64_t query_slots[3], kv_slots[3]; /* at 4096, 8192, 16384 */
    double kv_density_8k, kv_density_128k;
};

static const int lengths[3] = {4096, 8192, 16384};

/* The totals of query heads follow from the published runtime's rounding, worked out in Python. */
static const struct published published[] = {
    {.dir = "lmsys--vicuna-7b-v1.5-16k",
     .n_layers = 32,
     .n_heads = 32,
     .n_kv_heads = 32,
     .n_distinct = 9,
     .query_slots = {2031616, 4128768, 8323072},
     .kv_slots = {2031616, 4128768, 8323072},
     .kv_density_8k = .492,
     .kv_density_128k = .4995},
    {.dir = "lmsys--vicuna-13b-v1.5-16k",
     .n_layers = 40,
     .n_heads = 40,
     .n_kv_heads = 40,
     .n_distinct = 15,
     .query_slots = {3174400, 6345728, 12688384},
     .kv_slots = {3174400, 6345728, 12688384},
     .kv_density_8k = .484,
     .kv_density_128k = .484},
    {.dir = "gradientai--Llama-3-8B-Instruct-262k",
     .n_layers = 32,
     .n_heads = 32,
     .n_kv_heads = 8,
     .n_distinct = 11,
     .query_slots = {2032128, 4125696, 8296448},
     .kv_slots = {645632, 1373184, 2821120},
     .kv_density_8k = .655,
     .kv_density_128k = .688},
    {.dir = "gradientai--Llama-3-70B-Instruct-262k",
     .n_layers = 80,
     .n_heads = 64,
     .n_kv_heads = 8,
     .n_distinct = 17,
     .query_slots = {10231808, 20612096, 40516608},
     .kv_slots = {1735168, 3464192, 6729728},
     .kv_density_8k = .661,
     .kv_density_128k = .626},
    {.dir = "meta-llama--Llama-3.2-1B-Instruct",
     .n_layers = 16,
     .n_heads = 32,
     .n_kv_heads = 8,
     .n_distinct = 11,
     .query_slots = {1018880, 2028544, 3892224},
     .kv_slots = {345088, 691200, 1327104},
     .kv_density_8k = .659,
     .kv_density_128k = .612},
    {.dir = "meta-llama--Llama-3.2-3B-Instruct",
     .n_layers = 28,
     .n_heads = 24,
     .n_kv_heads = 8,
     .n_distinct = 15,
     .query_slots = {1339392, 2574336, 4914176},
     .kv_slots = {527360, 1010688, 1927168},
     .kv_density_8k = .551,
     .kv_density_128k = .5065},
};

static struct kv_shape shape_of(int n_layers, int n_heads, int n_kv_heads)
{
    return (struct kv_shape){.n_layers = n_layers,
                             .n_heads = n_heads,
                             .n_kv_heads = n_kv_heads,
                             .head_dim = 128,
                             .page_entries = 64,
                             .dtype = DTYPE_F16};
}

static struct plan *open_spec(const char *spec, int n_layers, int n_heads, int n_kv_heads)
{
    struct kv_shape shape = shape_of(n_layers, n_heads, n_kv_heads);
    struct err err = {0};
    struct plan *p = NULL;

    ck_assert_msg(plan_open(&p, spec, &shape, PLAN_SPAN_AUTO, &err) == 0, "%s", err.msg);
    return p;
}

static struct plan *open_published(const struct published *pub, const char *name)
{
    char path[512];

    snprintf(path, sizeof(path), "tests/fixtures/moa-plans/%s/%s", pub->dir, name);
    return open_spec(test_path(path), pub->n_layers, pub->n_heads, pub->n_kv_heads);
}

/* Slots over query heads and over KV heads, for all six shipped plans at three lengths. */
START_TEST(plan__gives_the_published_totals)
{
    const struct published *pub = &published[_i];
    struct plan *p = open_published(pub, "moa_alpha_beta.json");

    ck_assert_int_eq(p->n_distinct, pub->n_distinct);
    for (int i = 0; i < 3; i++) {
        ck_assert_int_eq(plan_query_slots(p, lengths[i]), pub->query_slots[i]);
        ck_assert_int_eq(plan_kv_slots(p, lengths[i]), pub->kv_slots[i]);
    }
    ck_assert_double_eq_tol(plan_kv_density(p, 8192), pub->kv_density_8k, .0005);
    ck_assert_double_eq_tol(plan_kv_density(p, 131072), pub->kv_density_128k, .0006);
    plan_free(p);
}
END_TEST

/* A pool of just the totals' pages seats one sequence of that length, to the page, and no two. */
START_TEST(plan__fills_the_pool_to_the_page)
{
    const struct published *pub = &published[_i];
    struct plan *p = open_published(pub, "moa_alpha_beta.json");
    int n_heads = kv_shape_heads(&p->shape);
    struct kv_geom *geom = calloc((size_t)n_heads, sizeof(*geom));
    int32_t *window = calloc((size_t)pub->n_layers * pub->n_heads, sizeof(*window));

    for (int i = 0; i < 3; i++) {
        int32_t n_pages = (int32_t)(pub->kv_slots[i] / 64);
        struct err err = {0};
        struct kv_need need;
        struct kv_slots ks;

        ck_assert_int_eq(kv_slots_init(&ks, &p->shape, 2, n_pages, 2 * n_pages, &err), 0);
        plan_geometry(p, lengths[i], geom, window);
        kv_need_init(&need, &p->shape, geom, window, lengths[i]);
        ck_assert_int_eq(need.n_pages_limit, n_pages);
        ck_assert_int_eq(kv_slot_take(&ks, &need, 1, 0), 0);
        ck_assert_int_eq(ks.pool.n_free, 0);
        ck_assert_int_eq(kv_slot_take(&ks, &need, 1, 0), ERR_NO_ROOM);
        kv_slots_release(&ks);
    }
    free(geom);
    free(window);
    plan_free(p);
}
END_TEST

/* The uniform baseline file equals the spec uniform:0.5. */
START_TEST(plan__reads_the_uniform_baseline)
{
    const struct published *pub = &published[_i];
    struct plan *file = open_published(pub, "streamingllm_alpha_beta.json");
    struct plan *spec = open_spec("uniform:0.5", pub->n_layers, pub->n_heads, pub->n_kv_heads);

    ck_assert_int_eq(file->n_distinct, 1);
    ck_assert_int_eq(
        memcmp(file->rules, spec->rules, sizeof(*spec->rules) * pub->n_layers * pub->n_heads), 0);
    plan_free(file);
    plan_free(spec);
}
END_TEST

/* The optimiser's convention keeps 64 tokens more; the 7B plan's mean span is then half of all. */
START_TEST(plan__can_charge_the_sink_on_top)
{
    const struct published *pub = &published[0];
    struct kv_shape shape = shape_of(pub->n_layers, pub->n_heads, pub->n_kv_heads);
    struct err err = {0};
    struct plan *p = NULL;
    char path[512];

    snprintf(path, sizeof(path), "tests/fixtures/moa-plans/%s/moa_alpha_beta.json", pub->dir);
    ck_assert_int_eq(plan_open(&p, test_path(path), &shape, PLAN_SPAN_EXCLUDES_SINK, &err), 0);
    for (int i = 0; i < 3; i++)
        ck_assert_int_eq(plan_query_slots(p, lengths[i]), 1024 * lengths[i] / 2);
    plan_free(p);
}
END_TEST

/* One length for all: a short text is held whole, a long one by the spans of that length. */
START_TEST(plan__obeys_a_fixed_length)
{
    struct plan *p = open_spec("uniform:0.25", 1, 2, 1);

    plan_set_length(p, 4096);
    ck_assert_int_eq(plan_head_tokens(p, 0, 0, 50),
                     128); /* the floor, as published totals have it */
    ck_assert_int_eq(plan_head_tokens(p, 0, 0, 500), 512);
    ck_assert_int_eq(plan_head_tokens(p, 0, 0, 1024), 1024);
    ck_assert_int_eq(plan_head_tokens(p, 0, 0, 20000), 1024);
    plan_free(p);
}
END_TEST

START_TEST(plan__parses_streaming)
{
    struct plan *p = open_spec("streaming:4,1020", 2, 3, 1);

    ck_assert_int_eq(p->rules[5].kind, KV_RULE_STREAM);
    ck_assert_int_eq(p->rules[5].n_sink, 4);
    ck_assert_int_eq(p->rules[5].n_recent, 1020);
    plan_free(p);
}
END_TEST

/*
 * Beyond a trained window a layer keeps the plan's share of it, without the sink that training
 * never showed; up to the window the plan holds as it is.
 */
START_TEST(plan__combines_with_trained_windows)
{
    static const struct {
        const char *spec;
        int n, n_sink, ring, window;
    } cases[] = {
        {"dense", 500, 0, KV_RING_DENSE, KV_WINDOW_ALL},
        {"dense", 501, 0, 512, 500},
        {"streaming:4,100", 500, 4, 128, 100},
        {"streaming:4,100", 501, 0, 128, 104},
        {"streaming:4,900", 501, 0, 512, 500},
        {"uniform:0.5", 500, 64, 192, 192},
        {"uniform:0.5", 512, 0, 256, 256},
        {"uniform:0.5", 4000, 0, 512, 500},
        {"uniform:0", 4000, 0, 128, 128},
    };

    for (size_t i = 0; i < sizeof(cases) / sizeof(cases[0]); i++) {
        struct plan *p = open_spec(cases[i].spec, 2, 2, 1);
        struct kv_geom geom[2];
        int32_t window[4];

        plan_set_window(p, 1, 500);
        plan_geometry(p, cases[i].n, geom, window);
        ck_assert_int_eq(geom[1].n_sink, cases[i].n_sink);
        ck_assert_int_eq(geom[1].ring, cases[i].ring);
        ck_assert_int_eq(window[2], cases[i].window);
        ck_assert_int_eq(window[3], cases[i].window);
        ck_assert(geom[1].mask == KV_MASK_TOKEN || cases[i].n_sink == 64);
        /* The layer without a window is the plan's alone. */
        ck_assert_int_eq(window[0], kv_rule_span(&p->rules[0], cases[i].n, p->convention).window);
        plan_free(p);
    }
}
END_TEST

/* With one length for all, a sequence shorter than the window has the spans of the others. */
START_TEST(plan__keeps_windows_under_a_fixed_length)
{
    struct plan *p = open_spec("streaming:4,100", 1, 1, 1);
    struct kv_geom a, b;
    int32_t wa, wb;

    plan_set_window(p, 0, 500);
    plan_set_length(p, 300);
    plan_geometry(p, 200, &a, &wa);
    plan_geometry(p, 2000, &b, &wb);
    ck_assert_int_eq(wa, 104);
    ck_assert_int_eq(wa, wb);
    ck_assert_int_eq(memcmp(&a, &b, sizeof(a)), 0);
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

static void check_refused(const char *spec, const char *wants)
{
    struct kv_shape shape = shape_of(2, 2, 1);
    struct err err = {0};
    struct plan *p = NULL;

    ck_assert_int_lt(plan_open(&p, spec, &shape, PLAN_SPAN_AUTO, &err), 0);
    ck_assert_ptr_null(p);
    ck_assert_msg(strstr(err.msg, wants) != NULL, "message: %s", err.msg);
}

START_TEST(plan__refuses_a_bad_spec)
{
    check_refused(bad_specs[_i].spec, bad_specs[_i].wants);
}
END_TEST

/* 0.125 * N and 0.625 * N in both layers of one KV head. */
#define TABLES "\"alphas\": [[0,0],[0,0]], \"betas\": [[0.125,0.625],[0.625,0.125]], "

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
    {"{\"alphas\": [[NaN,0],[0,0]], \"betas\": [[0,0],[0,0]]}", ":1:16:"},
    {"{\"alphas\":\n[[0,0],[0,-Infinity]], \"betas\": [[0,0],[0,0]]}", ":2:"},
    {"{\"alphas\": [[1e999,0],[0,0]], \"betas\": [[0,0],[0,0]]}", "overflow"},
    {"{\"alphas\": {}, \"betas\": []}", "alphas"},
    {"{\"alphas\": [[0,0],[0,0]], \"betas\": [[0,0],[0,", ":1:45:"},
    {"", ":1:"},
    {"{\"alphas\": [0,[0,0]], \"betas\": [[0,0],[0,0]]}", "alphas[0] is no list of 2 heads"},
    {"{\"alphas\": [[0,null],[0,0]], \"betas\": [[0,0],[0,0]]}", "alphas[0][1] is null"},
    {"{\"alphas\": [[0,0],[0,0]], \"betas\": [[0,[]],[0,0]]}", "betas[0][1] is an array"},
    {"{\"alphas\": [[0,0],[0,0]], \"alphas\": [], \"betas\": [[0,0],[0,0]]}", "duplicate"},
    {"{" TABLES "\"spand\": 5}", "spand is no object"},
    {"{" TABLES "\"spand\": {\"n_layers\": 32}}", "spand: n_layers is 32, the model has 2"},
    {"{" TABLES "\"spand\": {\"n_heads\": 4}}", "n_heads is 4, the model has 2"},
    {"{" TABLES "\"spand\": {\"n_kv_heads\": 2}}", "n_kv_heads is 2, the model has 1"},
    {"{" TABLES "\"spand\": {\"head_dim\": 64}}", "head_dim is 64, the model has 128"},
    {"{" TABLES "\"spand\": {\"sink\": 4}}", "sink is 4, this version can do 64"},
    {"{" TABLES "\"spand\": {\"block\": 16}}", "block is 16, this version can do 64"},
    {"{" TABLES "\"spand\": {\"block\": \"64\"}}", "block"},
    {"{" TABLES "\"spand\": {\"span\": \"maybe\"}}", "span is \"maybe\", want includes_sink"},
    {"{" TABLES "\"spand\": {\"span\": 1}}", "span"},
    {"{" TABLES "\"spand\": {\"density\": {\"8192\": 0.5}}}", "the rules give 0.6250"},
    {"{" TABLES "\"spand\": {\"density\": {\"8192\": null}}}", "density at 8192 is null"},
    {"{" TABLES "\"spand\": {\"density\": {\"8k\": 0.5}}}", "\"8k\", want a length"},
    {"{" TABLES "\"spand\": {\"density\": 0.5}}", "density"},
    {"{" TABLES "\"spand\": {\"densty\": {}}}", "\"densty\" that is not known"},
};

static const char *write_temp(const char *text)
{
    static char path[32];
    int fd;

    snprintf(path, sizeof(path), "/tmp/spand-plan-XXXXXX");
    fd = mkstemp(path);
    ck_assert_int_ge(fd, 0);
    ck_assert_int_eq(write(fd, text, strlen(text)), (long)strlen(text));
    close(fd);
    return path;
}

START_TEST(plan__refuses_a_bad_file)
{
    const char *path = write_temp(bad_files[_i].json);

    check_refused(path, bad_files[_i].wants);
    unlink(path);
}
END_TEST

/* Two million heads are refused for their number, and a file past all reason unread. */
START_TEST(plan__refuses_millions_of_heads)
{
    struct strbuf text = STRBUF_INIT;
    const char *path;

    strbuf_addstr(&text, "{\"alphas\":[[0");
    for (int i = 1; i < 2000000; i++)
        strbuf_addstr(&text, ",0");
    strbuf_addstr(&text, "],[0,0]],\"betas\":[[0,0],[0,0]]}");
    path = write_temp(text.buf);
    check_refused(path, "alphas[0] has 2000000 heads, the model has 2");
    unlink(path);
    for (int i = 0; i < (17 << 20); i++)
        strbuf_addch(&text, ' ');
    path = write_temp(text.buf);
    check_refused(path, "bytes");
    unlink(path);
    strbuf_release(&text);
}
END_TEST

/* Integers for floats, and members that are not ours, are accepted. */
START_TEST(plan__accepts_integers_and_metadata)
{
    const char *path = write_temp(
        "{\"model\": \"x\", \"alphas\": [[0, 1024]], \"betas\": [[1, 0]], \"density\": 0.5}");
    struct plan *p = open_spec(path, 1, 2, 1);

    unlink(path);
    ck_assert_double_eq(p->rules[1].alpha, 1024);
    ck_assert_double_eq(p->rules[0].beta, 1);
    plan_free(p);
}
END_TEST

/* True metadata is accepted, and its convention is in force; the config may insist on it. */
START_TEST(plan__obeys_true_metadata)
{
    const char *path = write_temp(
        "{" TABLES "\"spand\": {\"n_layers\": 2, \"n_heads\": 2, \"n_kv_heads\": 1, "
        "\"head_dim\": 128, \"sink\": 64, \"block\": 64, \"span\": \"excludes_sink\", "
        "\"density\": {\"4096\": 0.6406, \"8192\": 0.63281}, \"about\": {\"loss\": [1]}}}");
    struct kv_shape shape = shape_of(2, 2, 1);
    struct err err = {0};
    struct plan *p = open_spec(path, 2, 2, 1);

    ck_assert_int_eq(p->convention, KV_SPAN_EXCLUDES_SINK);
    ck_assert_int_eq(plan_head_tokens(p, 0, 0, 4096), 512 + 64);
    plan_free(p);
    ck_assert_int_eq(plan_open(&p, path, &shape, PLAN_SPAN_EXCLUDES_SINK, &err), 0);
    plan_free(p);
    ck_assert_int_eq(plan_open(&p, path, &shape, PLAN_SPAN_INCLUDES_SINK, &err), ERR_PARSE);
    ck_assert_msg(strstr(err.msg, "span is excludes_sink, the config's span_convention is "
                                  "includes_sink") != NULL,
                  "%s", err.msg);
    unlink(path);
}
END_TEST

#define COUNT(a) ((int)(sizeof(a) / sizeof((a)[0])))

TEST_SUITE(plan)
{
    TCase *tc = test_case(suite, "core");

    tcase_add_loop_test(tc, plan__gives_the_published_totals, 0, COUNT(published));
    tcase_add_loop_test(tc, plan__fills_the_pool_to_the_page, 0, COUNT(published));
    tcase_add_loop_test(tc, plan__reads_the_uniform_baseline, 0, COUNT(published));
    tcase_add_test(tc, plan__can_charge_the_sink_on_top);
    tcase_add_test(tc, plan__obeys_a_fixed_length);
    tcase_add_test(tc, plan__parses_streaming);
    tcase_add_test(tc, plan__combines_with_trained_windows);
    tcase_add_test(tc, plan__keeps_windows_under_a_fixed_length);
    tcase_add_loop_test(tc, plan__refuses_a_bad_spec, 0, COUNT(bad_specs));
    tcase_add_loop_test(tc, plan__refuses_a_bad_file, 0, COUNT(bad_files));
    tcase_add_test(tc, plan__refuses_millions_of_heads);
    tcase_add_test(tc, plan__accepts_integers_and_metadata);
    tcase_add_test(tc, plan__obeys_true_metadata);
}
