/*
 * Plans and trained windows through the whole engine: what is kept shows in what is generated.
 */
#include "base/json_file.h"
#include "engine/engine_state.h"
#include "tests/engine/engine_fixture.h"
#include "tests/lib/test.h"

#include <jansson.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#define N_PROMPT  200
#define N_NEW     200
#define MAX_FLAGS 48

static struct engine *open_plan(const char *plan, const char *plan_length, const char *chunk)
{
    const char *const flags[] = {"--model",
                                 test_path("tests/fixtures/engine/tiny"),
                                 "--weights",
                                 "random",
                                 "--device",
                                 "cpu",
                                 "--dtype",
                                 "f32",
                                 "--kv-memory",
                                 "32MiB",
                                 "--max-batch",
                                 "4",
                                 "--chunk-tokens",
                                 chunk,
                                 "--threads",
                                 "1",
                                 "--no-pin-threads",
                                 "--plan",
                                 plan,
                                 "--plan-length",
                                 plan_length,
                                 NULL};
    struct engine *e = engine_fixture_open(flags, NULL);

    ck_assert_ptr_nonnull(e);
    return e;
}

static struct engine_request long_request(void)
{
    static int32_t prompt[N_PROMPT];
    struct engine_request req = {.prompt = prompt, .n_prompt = N_PROMPT};

    for (int i = 0; i < N_PROMPT; i++)
        prompt[i] = 3 + i * 37 % 250;
    sampling_params_init(&req.sampling);
    req.sampling.temperature = 1;
    req.sampling.seed = 5;
    req.sampling.max_tokens = N_NEW;
    req.sampling.ignore_eos = true;
    req.sampling.n_logprobs = 1;
    req.sampling.n_prompt_logprobs = 1;
    return req;
}

static void run_chunks(const char *plan, const char *plan_length, const char *chunk,
                       struct collected *c)
{
    struct engine *e = open_plan(plan, plan_length, chunk);
    struct engine_request req = long_request();
    struct engine_stats stats;

    ck_assert(engine_fixture_run(e, &req, c));
    ck_assert(!c->broken);
    ck_assert_int_eq(c->finish, FINISH_LENGTH);
    ck_assert_int_eq(c->n_tokens, N_NEW);
    for (int i = 0; i < 5000; i++) {
        engine_get_stats(e, &stats);
        if (stats.pages_used == 0)
            break;
        usleep(1000);
    }
    ck_assert_int_eq(stats.pages_used, 0);
    engine_close(e);
}

static void run_plan(const char *plan, const char *plan_length, struct collected *c)
{
    run_chunks(plan, plan_length, "48", c);
}

/* A plan file for the tiny model's 3 layers of 4 heads, all of one rule. */
static const char *write_plan(double alpha, double beta)
{
    static char path[64];
    json_t *alphas = json_array(), *betas = json_array(), *root = json_object();

    for (int layer = 0; layer < 3; layer++) {
        json_t *a = json_array(), *b = json_array();

        for (int head = 0; head < 4; head++) {
            json_array_append_new(a, json_real(alpha));
            json_array_append_new(b, json_real(beta));
        }
        json_array_append_new(alphas, a);
        json_array_append_new(betas, b);
    }
    json_object_set_new(root, "alphas", alphas);
    json_object_set_new(root, "betas", betas);
    snprintf(path, sizeof(path), "/tmp/spand-plan-%d.json", (int)getpid());
    ck_assert_int_eq(json_dump_file(root, path, 0), 0);
    json_decref(root);
    return path;
}

/* How text under a plan compares with that of a dense cache. */
enum likeness {
    SAME_BITS, /* logprobs and all */
    SAME_TEXT, /* its sink ends inside a tile, so sums are cut elsewhere and round otherwise */
    OTHER_TEXT
};

static const struct {
    const char *plan, *length;
    double alpha, beta; /* of a file where plan is NULL */
    enum likeness likeness;
} plans[] = {
    {"streaming:4,396", "request", 0, 0, SAME_TEXT},
    {"streaming:0,400", "request", 0, 0, SAME_BITS},
    {"streaming:500,1", "request", 0, 0, SAME_BITS},
    {"uniform:1", "request", 0, 0, SAME_BITS},
    {"uniform:0.5", "800", 0, 0, SAME_BITS},
    {NULL, "request", 400, 0, SAME_BITS},
    {NULL, "request", -100, 1, OTHER_TEXT},
    {NULL, "900", -100, 0.6, SAME_BITS},
    {"streaming:4,60", "request", 0, 0, OTHER_TEXT},
    {"uniform:0.5", "request", 0, 0, OTHER_TEXT},
    {"uniform:0.5", "400", 0, 0, OTHER_TEXT},
};

/* The same tokens, their logprobs apart by no more than rounding. */
static bool same_text(const struct collected *a, const struct collected *b)
{
    for (int i = 0; i < N_NEW; i++) {
        if (a->tokens[i].id != b->tokens[i].id ||
            fabsf(a->tokens[i].logprob - b->tokens[i].logprob) > 1e-5f)
            return false;
    }
    return true;
}

/*
 * Spans that hold the whole sequence give what a dense cache gives, to the last bit of every
 * logprob; shorter ones give something else.
 */
START_TEST(engine_plans__change_nothing_while_spans_hold_all)
{
    const char *plan = plans[_i].plan;
    struct collected dense, planned;

    if (!plan)
        plan = write_plan(plans[_i].alpha, plans[_i].beta);
    run_plan("dense", "request", &dense);
    run_plan(plan, plans[_i].length, &planned);
    ck_assert_int_eq(collected_same(&dense, &planned), plans[_i].likeness == SAME_BITS);
    ck_assert_int_eq(same_text(&dense, &planned), plans[_i].likeness != OTHER_TEXT);
    if (!plans[_i].plan)
        unlink(plan);
    collected_release(&dense);
    collected_release(&planned);
}
END_TEST

#define MIXED "tests/fixtures/engine/mixed-spans.json" /* a span of its own for each head */

static const char *const chunked_plans[] = {MIXED, "uniform:0.4", "streaming:10,70", "dense"};

/* Whole and chunked prefill have the same mask: the same bits at any chunk size, none a divisor. */
START_TEST(engine_plans__do_not_depend_on_chunks)
{
    static const char *const chunks[] = {"1", "7", "64", "65", "128", "199"};
    struct collected whole, cut;
    char plan[512];

    /* The path's buffer is static, and opening the engine asks for another path. */
    snprintf(plan, sizeof(plan), "%s",
             strchr(chunked_plans[_i], '/') ? test_path(chunked_plans[_i]) : chunked_plans[_i]);

    run_chunks(plan, "request", "512", &whole);
    for (size_t i = 0; i < sizeof(chunks) / sizeof(chunks[0]); i++) {
        run_chunks(plan, "request", chunks[i], &cut);
        ck_assert_msg(collected_same(&whole, &cut), "chunks of %s differ", chunks[i]);
        collected_release(&cut);
    }
    collected_release(&whole);
}
END_TEST

/* plan_length 256 at a density of a half is 128 tokens for everybody, whatever the request. */
START_TEST(engine_plans__obey_plan_length)
{
    const char *path = write_plan(128, 0);
    struct collected by_length, by_file;

    run_plan("uniform:0.5", "256", &by_length);
    run_plan(path, "request", &by_file);
    ck_assert(collected_same(&by_length, &by_file));
    unlink(path);
    collected_release(&by_length);
    collected_release(&by_file);
}
END_TEST

/* Requests whose keys fit may be preempted, those whose rings wrap are not; all end the same. */
START_TEST(engine_plans__mix_growing_and_reserved_sequences)
{
    static struct collected alone[8], crowd[8];
    static const char *const flags[] = {"--model",
                                        "",
                                        "--weights",
                                        "random",
                                        "--device",
                                        "cpu",
                                        "--dtype",
                                        "f32",
                                        "--max-batch",
                                        "4",
                                        "--chunk-tokens",
                                        "17",
                                        "--threads",
                                        "1",
                                        "--no-pin-threads",
                                        "--plan",
                                        "uniform:0.5",
                                        "--plan-length",
                                        "512",
                                        "--kv-memory",
                                        "",
                                        NULL};
    const char *copy[MAX_FLAGS];
    struct engine_stats stats;

    memcpy(copy, flags, sizeof(flags));
    copy[1] = test_path("tests/fixtures/engine/tiny");
    for (int pass = 0; pass < 2; pass++) {
        struct collected *c = pass ? crowd : alone;
        struct engine *e;
        struct err err = {0};

        copy[20] = pass ? "400KiB" : "32MiB"; /* 50 pages; 256 tokens of a span are 24 */
        e = engine_fixture_open(copy, NULL);
        ck_assert_ptr_nonnull(e);
        for (int i = 0; i < 8; i++) {
            struct engine_request req = long_request();
            uint64_t id;

            req.n_prompt = i % 2 ? 150 : 20; /* and with 200 more: past the span, or within */
            req.sampling.seed = (uint64_t)i;
            collected_init(&c[i]);
            req.user = &c[i];
            ck_assert_int_eq(engine_submit(e, &req, &id, &err), 0);
            if (!pass)
                ck_assert(engine_fixture_wait(e, &c[i], 50));
        }
        for (int i = 0; i < 8; i++)
            ck_assert(engine_fixture_wait(e, &c[i], 50));
        engine_get_stats(e, &stats);
        engine_close(e);
    }
    ck_assert_int_gt(stats.n_preemptions, 0);
    for (int i = 0; i < 8; i++) {
        ck_assert(collected_same(&alone[i], &crowd[i]));
        collected_release(&alone[i]);
        collected_release(&crowd[i]);
    }
}
END_TEST

/* target NULL: removes the link. */
static void link_into(const char *dir, const char *name, const char *target)
{
    char path[512];
    char *whole = NULL;

    snprintf(path, sizeof(path), "%s/%s", dir, name);
    if (!target) {
        unlink(path);
        return;
    }
    whole = realpath(target, NULL);
    ck_assert_ptr_nonnull(whole);
    ck_assert_int_eq(symlink(whole, path), 0);
    free(whole);
}

static const char *const windowed[] = {"mistral-window",    "ministral-mixed",
                                       "ministral-sliding", "qwen2-window",
                                       "qwen3-bias-window", "mistral-yarn-window"};

/* A window that the model was trained with is served exactly: the tokens are transformers'. */
START_TEST(engine_plans__serve_trained_windows)
{
    char dir[] = "/tmp/spand-window-XXXXXX", golden_dir[512], path[600];
    const char *const flags[] = {
        "--model",        dir,     "--device",       "cpu", "--dtype",          "f32",
        "--chunk-tokens", "17",    "--page-entries", "16",  "--max-batch",      "2",
        "--kv-memory",    "16MiB", "--threads",      "1",   "--no-pin-threads", NULL};
    struct err err = {0};
    struct collected c;
    struct engine_request req = {0};
    json_t *golden = NULL, *ids, *want;
    struct engine *e;
    int32_t *prompt;

    ck_assert_ptr_nonnull(mkdtemp(dir));
    snprintf(golden_dir, sizeof(golden_dir), "%s/%s", test_path("tests/golden/models"),
             windowed[_i]);
    snprintf(path, sizeof(path), "%s/golden.json", golden_dir);
    ck_assert_int_eq(json_file_load(&golden, path, 1 << 20, &err), 0);
    snprintf(path, sizeof(path), "%s/config.json", golden_dir);
    link_into(dir, "config.json", path);
    snprintf(path, sizeof(path), "%s/model.safetensors", golden_dir);
    link_into(dir, "model.safetensors", path);
    /* Any will do: only ids are compared. */
    link_into(dir, "tokenizer.json", test_path("tests/fixtures/engine/tiny/tokenizer.json"));
    e = engine_fixture_open(flags, NULL);
    ck_assert_ptr_nonnull(e);

    ids = json_object_get(golden, "prompt");
    want = json_object_get(golden, "continuation");
    req.n_prompt = (int)json_array_size(ids);
    prompt = calloc((size_t)req.n_prompt, sizeof(*prompt));
    for (int i = 0; i < req.n_prompt; i++)
        prompt[i] = (int32_t)json_integer_value(json_array_get(ids, (size_t)i));
    req.prompt = prompt;
    sampling_params_init(&req.sampling);
    req.sampling.temperature = 0;
    req.sampling.ignore_eos = true;
    req.sampling.max_tokens = (int)json_array_size(want);
    ck_assert(engine_fixture_run(e, &req, &c));
    ck_assert_int_eq(c.n_tokens, req.sampling.max_tokens);
    for (int i = 0; i < c.n_tokens; i++)
        ck_assert_int_eq(c.tokens[i].id, json_integer_value(json_array_get(want, (size_t)i)));
    engine_close(e);
    collected_release(&c);
    free(prompt);
    json_decref(golden);
    link_into(dir, "config.json", NULL);
    link_into(dir, "model.safetensors", NULL);
    link_into(dir, "tokenizer.json", NULL);
    rmdir(dir);
}
END_TEST

/* The windowed model with another window in its config, under a plan. */
static void run_windowed(int window, const char *plan, struct collected *c)
{
    char dir[] = "/tmp/spand-window-XXXXXX", path[600];
    const char *const flags[] = {
        "--model",     dir,     "--device",       "cpu", "--dtype",     "f32",
        "--plan",      plan,    "--chunk-tokens", "17",  "--max-batch", "1",
        "--kv-memory", "16MiB", "--threads",      "1",   NULL};
    struct engine_request req = long_request();
    struct err err = {0};
    json_t *config = NULL;
    struct engine *e;

    ck_assert_ptr_nonnull(mkdtemp(dir));
    snprintf(path, sizeof(path), "%s/config.json", test_path("tests/golden/models/mistral-window"));
    ck_assert_int_eq(json_file_load(&config, path, 1 << 20, &err), 0);
    json_object_set_new(config, "sliding_window", json_integer(window));
    snprintf(path, sizeof(path), "%s/config.json", dir);
    ck_assert_int_eq(json_dump_file(config, path, 0), 0);
    json_decref(config);
    link_into(dir, "model.safetensors",
              test_path("tests/golden/models/mistral-window/model.safetensors"));
    link_into(dir, "tokenizer.json", test_path("tests/fixtures/engine/tiny/tokenizer.json"));
    e = engine_fixture_open(flags, NULL);
    ck_assert_ptr_nonnull(e);
    ck_assert(engine_fixture_run(e, &req, c));
    engine_close(e);
    link_into(dir, "config.json", NULL);
    link_into(dir, "model.safetensors", NULL);
    link_into(dir, "tokenizer.json", NULL);
    rmdir(dir);
}

/*
 * A plan narrower than a trained window is a narrower window, a wider one changes nothing, and a
 * window longer than the context leaves the plan alone.
 */
START_TEST(engine_plans__combine_with_trained_windows)
{
    static const struct {
        int window;
        const char *plan;
        int same_window;
        const char *same_plan;
    } pairs[] = {{24, "streaming:2,10", 12, "dense"},
                 {24, "uniform:0.5", 24, "dense"},
                 {300, "uniform:0", 128, "dense"},
                 {600, "uniform:0.3", 700, "uniform:0.3"}};
    struct collected a, b;

    run_windowed(pairs[_i].window, pairs[_i].plan, &a);
    run_windowed(pairs[_i].same_window, pairs[_i].same_plan, &b);
    ck_assert_int_eq(a.n_tokens, N_NEW);
    ck_assert(collected_same(&a, &b));
    collected_release(&a);
    run_windowed(pairs[_i].window + 1000, "dense", &a);
    ck_assert(!collected_same(&a, &b));
    collected_release(&a);
    collected_release(&b);
}
END_TEST

#define COUNT(a) ((int)(sizeof(a) / sizeof((a)[0])))

TEST_SUITE(engine_plans)
{
    TCase *tc = test_case(suite, "core");

    tcase_add_loop_test(tc, engine_plans__change_nothing_while_spans_hold_all, 0, COUNT(plans));
    tcase_add_loop_test(tc, engine_plans__do_not_depend_on_chunks, 0, COUNT(chunked_plans));
    tcase_add_test(tc, engine_plans__obey_plan_length);
    tcase_add_test(tc, engine_plans__mix_growing_and_reserved_sequences);
    tcase_add_loop_test(tc, engine_plans__serve_trained_windows, 0, COUNT(windowed));
    tcase_add_loop_test(tc, engine_plans__combine_with_trained_windows, 0, 4);
}
