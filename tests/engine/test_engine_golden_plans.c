/*
 * Whole models under plans against tests/golden/plans.json: a reference in double precision that
 * computes dense attention and masks it. MHA and GQA, prompts of 1 to 3,000 tokens, a span of its
 * own for each head from the floor to beyond the text, chunks of several sizes.
 *
 * SPAND_TEST_DEVICE=cuda (with CK_FORK=no) holds the GPU against the same numbers, as far as it has
 * kernels for the model's head size.
 */
#include "base/json_file.h"
#include "engine/engine.h"
#include "tests/engine/engine_fixture.h"
#include "tests/lib/test.h"

#include <jansson.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#define N_CASES 17
#define TOLERANCE                                                                                  \
    1e-4 /* logits that are each off by what f32 sums of a few thousand terms lose                 \
          */

static json_t *cases;
static char dir[64];

static json_t *load(const char *path)
{
    struct err err = {0};
    json_t *root = NULL;

    ck_assert_msg(json_file_load(&root, path, 1 << 24, &err) == 0, "%s", err.msg);
    return root;
}

static long number(const json_t *obj, const char *key)
{
    const json_t *v = json_object_get(obj, key);

    ck_assert_msg(json_is_integer(v), "%s is no integer", key);
    return (long)json_integer_value(v);
}

static const char *in_dir(const char *name)
{
    static char path[2][128];
    static int turn;

    turn = !turn;
    snprintf(path[turn], sizeof(path[turn]), "%s/%s", dir, name);
    return path[turn];
}

static void link_to(const char *name, const char *target)
{
    char *whole = realpath(target, NULL);

    ck_assert_msg(whole != NULL, "%s", target);
    ck_assert_int_eq(symlink(whole, in_dir(name)), 0);
    free(whole);
}

/* The case's model with room for long texts, and its plan, in a folder of its own. */
static void make_dir(const json_t *c)
{
    const char *model = json_string_value(json_object_get(c, "model"));
    char path[512];
    json_t *config, *plan = json_object();

    snprintf(dir, sizeof(dir), "/tmp/spand-golden-XXXXXX");
    ck_assert_ptr_nonnull(mkdtemp(dir));
    snprintf(path, sizeof(path), "tests/golden/models/%s/config.json", model);
    config = load(test_path(path));
    json_object_set_new(config, "max_position_embeddings", json_integer(4096));
    ck_assert_int_eq(json_dump_file(config, in_dir("config.json"), 0), 0);
    snprintf(path, sizeof(path), "tests/golden/models/%s/model.safetensors", model);
    link_to("model.safetensors", test_path(path));
    /* Any will do: only ids are compared. */
    link_to("tokenizer.json", test_path("tests/fixtures/engine/tiny/tokenizer.json"));
    json_object_set(plan, "alphas", json_object_get(c, "alphas"));
    json_object_set(plan, "betas", json_object_get(c, "betas"));
    ck_assert_int_eq(json_dump_file(plan, in_dir("plan.json"), 0), 0);
    json_decref(config);
    json_decref(plan);
}

static void remove_dir(void)
{
    static const char *const names[] = {"config.json", "model.safetensors", "tokenizer.json",
                                        "plan.json"};

    for (size_t i = 0; i < 4; i++)
        unlink(in_dir(names[i]));
    rmdir(dir);
}

/* As prompt_of() of plan_golden.py. */
static int32_t *prompt_of(long seed, int n, int vocab_size)
{
    int32_t *ids = calloc((size_t)n, sizeof(*ids));
    uint32_t x = (uint32_t)seed;

    for (int i = 0; i < n; i++) {
        x = (x * 1103515245u + 12345u) & 0x7fffffffu;
        ids[i] = 3 + (int32_t)((x >> 8) % (uint32_t)(vocab_size - 3));
    }
    return ids;
}

static const char *device(void)
{
    const char *name = getenv("SPAND_TEST_DEVICE");

    return name && *name ? name : "cpu";
}

/* The CUDA backend has no kernels for heads as small as those of most test models. */
static bool is_for_device(const json_t *c)
{
    const char *model = json_string_value(json_object_get(c, "model"));

    return strcmp(device(), "cpu") == 0 || strncmp(model, "llama-head", 10) == 0;
}

static void run_case(const json_t *c, const char *chunk, const char *threads, struct collected *out)
{
    bool excludes = json_is_true(json_object_get(c, "excludes_sink"));
    const char *const flags[] = {"--model",
                                 dir,
                                 "--device",
                                 device(),
                                 "--dtype",
                                 "f32",
                                 "--max-batch",
                                 "1",
                                 "--kv-memory",
                                 "64MiB",
                                 "--threads",
                                 threads,
                                 "--chunk-tokens",
                                 chunk,
                                 "--kv-sweep-steps",
                                 "1",
                                 "--plan",
                                 in_dir("plan.json"),
                                 "--span-convention",
                                 excludes ? "excludes_sink" : "includes_sink",
                                 NULL};
    struct engine_request req = {.n_prompt = (int)number(c, "n_prompt")};
    struct engine *e = engine_fixture_open(flags, NULL);
    int32_t *prompt;

    ck_assert_ptr_nonnull(e);
    prompt = prompt_of(number(c, "seed"), req.n_prompt, engine_get_info(e)->vocab_size);
    req.prompt = prompt;
    sampling_params_init(&req.sampling);
    req.sampling.temperature = 0;
    req.sampling.ignore_eos = true;
    req.sampling.n_logprobs = 0;
    req.sampling.n_prompt_logprobs = 0;
    req.sampling.max_tokens = (int)json_array_size(json_object_get(c, "tokens"));
    ck_assert(engine_fixture_run(e, &req, out));
    ck_assert_int_eq(out->finish, FINISH_LENGTH);
    engine_close(e);
    free(prompt);
}

static void check_case(const json_t *c, const struct collected *got)
{
    const json_t *tokens = json_object_get(c, "tokens"), *pair;
    const json_t *logprobs = json_object_get(c, "logprobs");
    size_t i;

    ck_assert_int_eq(got->n_tokens, json_array_size(tokens));
    for (int t = 0; t < got->n_tokens; t++) {
        double want = json_real_value(json_array_get(logprobs, (size_t)t));

        ck_assert_msg(got->tokens[t].id == json_integer_value(json_array_get(tokens, (size_t)t)),
                      "token %d is %d", t, (int)got->tokens[t].id);
        ck_assert_msg(fabs((double)got->tokens[t].logprob - want) <= TOLERANCE,
                      "token %d: logprob %.6f, want %.6f", t, (double)got->tokens[t].logprob, want);
    }
    json_array_foreach((json_t *)json_object_get(c, "prompt_logprobs"), i, pair)
    {
        int pos = (int)json_integer_value(json_array_get(pair, 0));
        double want = json_real_value(json_array_get(pair, 1));

        ck_assert_msg(fabs((double)got->prompt[pos].logprob - want) <= TOLERANCE,
                      "prompt token %d: logprob %.6f, want %.6f", pos,
                      (double)got->prompt[pos].logprob, want);
    }
}

/* Tokens and logprobs of prompt and answer are the reference's, whatever the chunk. */
START_TEST(engine_golden_plans__agree_with_masked_dense_attention)
{
    static const struct {
        const char *chunk, *threads;
    } ways[] = {{"4096", "1"}, {"100", "2"}, {"17", "1"}};
    const json_t *c = json_array_get(cases, (size_t)_i);

    if (!is_for_device(c))
        return;
    make_dir(c);
    for (size_t i = 0; i < sizeof(ways) / sizeof(ways[0]); i++) {
        struct collected got;

        run_case(c, ways[i].chunk, ways[i].threads, &got);
        check_case(c, &got);
        collected_release(&got);
    }
    remove_dir();
}
END_TEST

static void setup(void)
{
    cases = load(test_path("tests/golden/plans.json"));
    ck_assert_int_eq(json_array_size(cases), N_CASES);
}

static void teardown(void)
{
    json_decref(cases);
}

TEST_SUITE(engine_golden_plans)
{
    TCase *tc = test_case(suite, "core");

    tcase_set_timeout(tc, 300);
    tcase_add_checked_fixture(tc, setup, teardown);
    tcase_add_loop_test(tc, engine_golden_plans__agree_with_masked_dense_attention, 0, N_CASES);
}
