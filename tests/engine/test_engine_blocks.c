/*
 * Block Transformers through the whole engine: the golden continuations alone and in a crowd, ends
 * inside of a block, logprobs of prompts, pages that run out, prompts that share them.
 */
#include "base/err.h"
#include "base/file_map.h"
#include "base/json_file.h"
#include "base/rng.h"
#include "tests/engine/block_dir.h"
#include "tests/engine/engine_fixture.h"
#include "tests/lib/test.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define MAX_TOKENS 300
#define TIMEOUT_S  60

static const char *const variants[] = {
    "neox_concat", "neox_nostart", "neox_leftpad", "neox_generate", "neox_project",
    "neox_p1",     "neox_seq",     "llama_concat", "llama_project", "llama_len8"};
#define N_VARIANTS (int)(sizeof(variants) / sizeof(variants[0]))

static char dir[BLOCK_DIR_LEN];
static bool by_tokens; /* steps of one token instead of whole blocks */

static struct engine *open_hooked(const char *variant, const char *const *more,
                                  const struct engine_hooks *hooks)
{
    const char *flags[40] = {"--model",   dir, "--device",         "cpu", "--dtype", "f32",
                             "--threads", "1", "--kv-sweep-steps", "1"};
    int n = 10;
    struct engine *e;

    if (by_tokens)
        flags[n++] = "--no-whole-blocks";
    block_dir_make(dir, variant);
    for (; more && *more; more++)
        flags[n++] = *more;
    e = engine_fixture_open(flags, hooks);
    ck_assert_ptr_nonnull(e);
    return e;
}

static struct engine *open_engine(const char *variant, const char *const *more)
{
    return open_hooked(variant, more, NULL);
}

static void close_engine(struct engine *e)
{
    engine_close(e);
    block_dir_remove(dir);
}

static int read_ids(int32_t *out, const json_t *list)
{
    for (size_t i = 0; i < json_array_size(list); i++)
        out[i] = (int32_t)json_integer_value(json_array_get(list, i));
    return (int)json_array_size(list);
}

static json_t *open_golden(const char *variant)
{
    struct err err = {0};
    char path[512];
    json_t *doc = NULL;

    snprintf(path, sizeof(path), "%s/%s/golden.json", test_path("tests/golden/block"), variant);
    ck_assert_msg(json_file_load(&doc, path, 1 << 20, &err) == 0, "%s", err.msg);
    return doc;
}

/* One prompt of a golden folder and what follows it. */
struct golden {
    int32_t prompt[MAX_TOKENS], want[MAX_TOKENS];
    int n_prompt, n_want;
};

#define N_GREEDY 11

static void read_greedy(struct golden g[N_GREEDY], const char *variant)
{
    json_t *doc = open_golden(variant), *list = json_object_get(doc, "greedy");

    ck_assert_uint_eq(json_array_size(list), N_GREEDY);
    for (int i = 0; i < N_GREEDY; i++) {
        const json_t *entry = json_array_get(list, (size_t)i);

        g[i].n_prompt = read_ids(g[i].prompt, json_object_get(entry, "prompt"));
        g[i].n_want = read_ids(g[i].want, json_object_get(entry, "continuation"));
    }
    json_decref(doc);
}

static struct engine_request greedy(const struct golden *g, int max_tokens)
{
    struct engine_request req = {.prompt = g->prompt, .n_prompt = g->n_prompt};

    sampling_params_init(&req.sampling);
    req.sampling.temperature = 0;
    req.sampling.max_tokens = max_tokens;
    req.sampling.ignore_eos = true;
    return req;
}

static void check_tokens(const char *variant, const struct golden *g, const struct collected *c,
                         int n)
{
    ck_assert(!c->broken);
    ck_assert_int_eq(c->n_final, 1);
    ck_assert_msg(c->n_tokens == n, "%s: prompt of %d: %d tokens, want %d", variant, g->n_prompt,
                  c->n_tokens, n);
    for (int i = 0; i < n; i++)
        ck_assert_msg(c->tokens[i].id == g->want[i], "%s: prompt of %d, token %d: %d, want %d",
                      variant, g->n_prompt, i, (int)c->tokens[i].id, (int)g->want[i]);
}

/* Prompts of 0 to 9 and 21 tokens, one after the other. */
START_TEST(engine_blocks__continues_as_the_reference)
{
    struct engine *e = open_engine(variants[_i], NULL);
    struct golden g[N_GREEDY];

    read_greedy(g, variants[_i]);
    for (int i = 0; i < N_GREEDY; i++) {
        struct engine_request req = greedy(&g[i], g[i].n_want);
        struct collected c;

        ck_assert(engine_fixture_run(e, &req, &c));
        ck_assert_int_eq(c.finish, FINISH_LENGTH);
        check_tokens(variants[_i], &g[i], &c, g[i].n_want);
        collected_release(&c);
    }
    close_engine(e);
}
END_TEST

/*
 * All of them at once over fewer seats, so that some come in mid-run, in chunks of two blocks, each
 * with a length of its own; with one step on its way and with two.
 */
START_TEST(engine_blocks__a_crowd_changes_nothing)
{
    const char *more[] = {"--max-batch",         "5", "--chunk-tokens", "2", "--run-ahead",
                          _i % 2 ? "on" : "off", NULL};
    const char *variant = variants[_i / 2];
    struct engine *e = open_engine(variant, more);
    struct golden g[N_GREEDY];
    struct collected c[N_GREEDY];
    uint64_t id;

    read_greedy(g, variant);
    for (int i = 0; i < N_GREEDY; i++) {
        struct engine_request req = greedy(&g[i], g[i].n_want - 3 * i);

        req.user = &c[i];
        collected_init(&c[i]);
        ck_assert_int_eq(engine_submit(e, &req, &id, NULL), 0);
    }
    for (int i = 0; i < N_GREEDY; i++) {
        ck_assert(engine_fixture_wait(e, &c[i], TIMEOUT_S));
        check_tokens(variant, &g[i], &c[i], g[i].n_want - 3 * i);
        collected_release(&c[i]);
    }
    close_engine(e);
}
END_TEST

/* Any max_tokens, whatever place in its block the last token has; 0 too. */
START_TEST(engine_blocks__stops_anywhere_in_a_block)
{
    const char *more[] = {"--run-ahead", _i ? "on" : "off", NULL};
    struct engine *e = open_engine("llama_concat", more);
    struct golden g[N_GREEDY];

    read_greedy(g, "llama_concat");
    for (int i = 0; i < N_GREEDY; i++) {
        for (int n = 0; n < 11; n++) {
            struct engine_request req = greedy(&g[i], n);
            struct collected c;

            ck_assert(engine_fixture_run(e, &req, &c));
            ck_assert_int_eq(c.finish, FINISH_LENGTH);
            check_tokens("llama_concat", &g[i], &c, n);
            collected_release(&c);
        }
    }
    close_engine(e);
}
END_TEST

/* A stop token ends the answer at its own place, alone and beside others. */
START_TEST(engine_blocks__ends_inside_of_a_block)
{
    const char *more[] = {"--run-ahead", _i ? "on" : "off", "--max-batch", "4", NULL};
    struct engine *e = open_engine("neox_concat", more);
    struct golden g[N_GREEDY];
    int n_inside = 0;

    read_greedy(g, "neox_concat");
    for (int i = 0; i < N_GREEDY; i++) {
        for (int at = 0; at < 12; at++) {
            struct engine_request req = greedy(&g[i], 20),
                                  other = greedy(&g[(i + 1) % N_GREEDY], 9);
            struct collected c, d;
            uint64_t id;
            int first = 0;

            while (g[i].want[first] != g[i].want[at])
                first++;
            n_inside += (g[i].n_prompt + first) % 4 != 3;
            req.sampling.stop_ids = &g[i].want[at];
            req.sampling.n_stop_ids = 1;
            collected_init(&d);
            other.user = &d;
            ck_assert_int_eq(engine_submit(e, &other, &id, NULL), 0);
            ck_assert(engine_fixture_run(e, &req, &c));
            ck_assert_int_eq(c.finish, FINISH_STOP);
            ck_assert_int_eq(c.stop_token, g[i].want[at]);
            check_tokens("neox_concat", &g[i], &c, first + 1);
            ck_assert(engine_fixture_wait(e, &d, TIMEOUT_S));
            check_tokens("neox_concat", &g[(i + 1) % N_GREEDY], &d, 9);
            collected_release(&c);
            collected_release(&d);
        }
    }
    ck_assert_int_gt(n_inside, 50);
    close_engine(e);
}
END_TEST

static float log_softmax(const float *row, int n, int token)
{
    double max = row[0], sum = 0;

    for (int i = 1; i < n; i++)
        max = row[i] > max ? row[i] : max;
    for (int i = 0; i < n; i++)
        sum += exp(row[i] - max);
    return (float)(row[token] - max - log(sum));
}

/* Every prompt token that something predicts, against the reference's logits. */
START_TEST(engine_blocks__tells_logprobs_of_prompts)
{
    static const char *const names[] = {"neox_concat", "neox_nostart", "llama_project",
                                        "llama_len8", "neox_seq"};
    const char *variant = names[_i / 3], *chunks[] = {"512", "3", "1"};
    const char *more[] = {"--chunk-tokens", chunks[_i % 3], "--max-batch", "2", NULL};
    struct engine *e = open_engine(variant, more);
    json_t *doc = open_golden(variant);
    struct golden g = {.n_want = 0};
    int32_t positions[64];
    int n_positions = read_ids(positions, json_object_get(doc, "positions"));
    int vocab = engine_get_info(e)->vocab_size, n_none = 0;
    struct engine_request req;
    struct collected c;
    float *logits = NULL;
    size_t n_bytes;
    struct err err = {0};
    char path[512];

    g.n_prompt = read_ids(g.prompt, json_object_get(doc, "sequence"));
    snprintf(path, sizeof(path), "%s/%s/logits.f32", test_path("tests/golden/block"), variant);
    ck_assert_int_eq(file_read_text((char **)&logits, &n_bytes, path, 1 << 20, &err), 0);
    for (int max_tokens = 0; max_tokens < 3; max_tokens += 2) {
        req = greedy(&g, max_tokens);
        req.sampling.n_prompt_logprobs = 2;
        ck_assert(engine_fixture_run(e, &req, &c));
        ck_assert(!c.broken);
        ck_assert_int_eq(c.n_prompt, g.n_prompt);
        ck_assert_int_eq(c.n_tokens, max_tokens);
        for (int i = 0; i < g.n_prompt; i++)
            n_none += isnan(c.prompt[i].logprob);
        for (int k = 0; k < n_positions; k++) {
            float want = log_softmax(logits + (size_t)k * vocab, vocab, g.prompt[positions[k]]);
            float got = c.prompt[positions[k]].logprob;

            ck_assert_msg(fabsf(got - want) <= 2e-4f, "%s: token %d: %g, want %g", variant,
                          (int)positions[k], got, want);
        }
        collected_release(&c);
    }
    /* With a start block every token has one, else those of the first block have none. */
    ck_assert_int_eq(n_none,
                     strstr(variant, "nostart") || strstr(variant, "llama_project") ? 8 : 0);
    free(logits);
    json_decref(doc);
    close_engine(e);
}
END_TEST

/* prompt_logprobs_at leaves the tokens before it without. */
START_TEST(engine_blocks__tells_logprobs_from_a_token_on)
{
    struct engine *e = open_engine("neox_concat", NULL);
    struct golden g[N_GREEDY];
    struct collected all;

    read_greedy(g, "neox_concat");
    for (int at = 0; at <= 21; at++) {
        struct engine_request req = greedy(&g[10], 1);
        struct collected c;

        req.sampling.n_prompt_logprobs = 0;
        req.sampling.prompt_logprobs_at = at;
        ck_assert(engine_fixture_run(e, &req, &c));
        ck_assert_int_eq(c.n_prompt, 21);
        check_tokens("neox_concat", &g[10], &c, 1);
        for (int i = 0; i < 21; i++) {
            ck_assert_msg(isnan(c.prompt[i].logprob) == (i < at), "from %d on: token %d", at, i);
            if (at > 0 && i >= at)
                ck_assert_float_eq(c.prompt[i].logprob, all.prompt[i].logprob);
        }
        if (at == 0)
            all = c;
        else
            collected_release(&c);
    }
    collected_release(&all);
    close_engine(e);
}
END_TEST

/* What was drawn has the logprob that it has as a prompt: the same rows, but for the contexts'. */
START_TEST(engine_blocks__drawn_and_forced_tokens_agree)
{
    struct engine *e = open_engine("llama_concat", NULL);
    struct golden g[N_GREEDY], whole;
    struct engine_request req;
    struct collected c, d;

    read_greedy(g, "llama_concat");
    req = greedy(&g[6], 40);
    req.sampling.n_logprobs = 3;
    ck_assert(engine_fixture_run(e, &req, &c));
    whole = g[6];
    memcpy(whole.prompt + whole.n_prompt, whole.want, 40 * sizeof(*whole.want));
    whole.n_prompt += 40;
    req = greedy(&whole, 0);
    req.sampling.n_prompt_logprobs = 3;
    ck_assert(engine_fixture_run(e, &req, &d));
    for (int i = 0; i < 40; i++) {
        const struct engine_token *a = &c.tokens[i], *b = &d.prompt[6 + i];

        ck_assert_int_eq(a->id, b->id);
        ck_assert_float_eq_tol(a->logprob, b->logprob, 1e-4f);
        ck_assert_int_eq(a->n_top, 3);
        ck_assert_int_eq(a->top_id[0], b->top_id[0]);
        ck_assert_float_eq_tol(a->top_logprob[2], b->top_logprob[2], 1e-4f);
    }
    collected_release(&c);
    collected_release(&d);
    close_engine(e);
}
END_TEST

#define N_CROWD 40

/* Random prompts, some of which begin alike, lengths, temperatures, penalties. */
static void draw_request(struct engine_request *req, struct golden *g, int i, bool penalties)
{
    static const struct engine_bias bias[] = {{7, 1.5f}, {9, -100.0f}, {30, 2.0f}};
    static const int32_t stops[] = {3, 30, 31, 32, 33};
    uint64_t draw = 0;

#define DRAW(n) ((int)(rng_u64(9, (uint32_t)i, (int64_t)draw++) % (uint64_t)(n)))
    g->n_prompt = DRAW(3) ? DRAW(40) : DRAW(150);
    for (int k = 0; k < g->n_prompt; k++)
        g->prompt[k] = k < 48 && i % 3 == 0 ? k * 7 % 61 : DRAW(61);
    *req = greedy(g, DRAW(60));
    req->sampling.temperature = i % 4 ? 0.9f : 0.0f;
    req->sampling.seed = (uint64_t)i;
    req->sampling.ignore_eos = i % 2 == 0;
    req->sampling.n_logprobs = i % 5 == 0 ? 2 : -1;
    req->sampling.n_prompt_logprobs = i % 7 == 0 ? 1 : -1;
    if (i % 6 == 1 && penalties)
        req->sampling.frequency_penalty = 0.5f;
    if (i % 6 == 2) { /* ends somewhere behind, mostly inside of a block */
        req->sampling.min_tokens = DRAW(req->sampling.max_tokens + 1);
        req->sampling.bias = bias;
        req->sampling.n_bias = 3;
        req->sampling.stop_ids = stops;
        req->sampling.n_stop_ids = 5;
    }
#undef DRAW
}

/* Alone with all the room there is, and all at once where pages run out: the same tokens, and
 * logprobs to the bit. Alone it is a token a step. Without penalties all steps of the crowd that no
 * logits of prompts are wanted of have whole blocks. */
static void crowd(const char *variant, const char *memory, const char *run_ahead, bool penalties)
{
    const char *roomy[] = {"--page-entries", "8", "--no-prefix-cache", "--no-whole-blocks", NULL};
    const char *tight[] = {"--page-entries", "8", "--kv-memory", memory,    "--max-batch", "9",
                           "--chunk-tokens", "7", "--run-ahead", run_ahead, NULL};
    static struct golden g[N_CROWD];
    static struct collected alone[N_CROWD], together[N_CROWD];
    struct engine_request req;
    struct engine_stats stats;
    struct engine *e = open_engine(variant, roomy);
    uint64_t id;

    for (int i = 0; i < N_CROWD; i++) {
        draw_request(&req, &g[i], i, penalties);
        ck_assert(engine_fixture_run(e, &req, &alone[i]));
    }
    close_engine(e);
    e = open_engine(variant, tight);
    for (int i = 0; i < N_CROWD; i++) {
        draw_request(&req, &g[i], i, penalties);
        collected_init(&together[i]);
        req.user = &together[i];
        ck_assert_int_eq(engine_submit(e, &req, &id, NULL), 0);
        if (i % 9 == 8)
            engine_cancel(e, id);
    }
    for (int i = 0; i < N_CROWD; i++) {
        ck_assert(engine_fixture_wait(e, &together[i], TIMEOUT_S));
        if (i % 9 != 8)
            ck_assert_msg(collected_same(&alone[i], &together[i]), "%s: request %d differs",
                          variant, i);
        collected_release(&alone[i]);
        collected_release(&together[i]);
    }
    engine_get_stats(e, &stats);
    ck_assert_int_gt(stats.n_preemptions, 0);
    ck_assert_int_gt(stats.n_prefix_found, 0);
    close_engine(e);
}

START_TEST(engine_blocks__scarce_pages_change_nothing)
{
    static const char *const names[] = {"neox_concat", "llama_concat"};

    static const char *const memory[] = {"20KiB", "10KiB"}; /* 40 pages; the longest takes 28 */

    crowd(names[_i / 2 % 2], memory[_i / 2 % 2], _i % 2 ? "on" : "off", _i < 4);
}
END_TEST

/* Blocks are found again, the start block with them; answers stay what they are. */
START_TEST(engine_blocks__prompts_share_blocks)
{
    const char *more[] = {"--page-entries", "8", NULL};
    struct engine *e = open_engine("neox_concat", more);
    struct golden g = {.n_prompt = 120};
    struct engine_request req;
    struct collected first, second;

    for (int i = 0; i < g.n_prompt; i++)
        g.prompt[i] = 1 + i * 5 % 60;
    req = greedy(&g, 12);
    ck_assert(engine_fixture_run(e, &req, &first));
    ck_assert_int_eq(first.n_cached_tokens, 0);
    ck_assert(engine_fixture_run(e, &req, &second));
    /* 31 blocks with the first, whose last one must be computed. */
    ck_assert_int_eq(second.n_cached_tokens, 29 * 4);
    ck_assert(collected_same(&first, &second));
    collected_release(&second);
    g.prompt[71] = 0; /* the last token of block 18, the third of the third page */
    ck_assert(engine_fixture_run(e, &req, &second));
    ck_assert_int_eq(second.n_cached_tokens, 17 * 4);
    collected_release(&first);
    collected_release(&second);
    close_engine(e);
}
END_TEST

static void count_wake(void *arg)
{
    ++*(int *)arg;
}

/* The tokens of a block are told at once, but for the first token of an answer and its end. */
START_TEST(engine_blocks__tells_whole_blocks)
{
    int n_wakes = 0;
    struct engine_hooks hooks = {.wake = count_wake, .arg = &n_wakes};
    struct engine *e = open_hooked("neox_concat", NULL, &hooks);
    struct golden g[N_GREEDY];
    struct engine_request req;
    struct collected c;

    read_greedy(g, "neox_concat");
    req = greedy(&g[5], 40);
    ck_assert(engine_fixture_run(e, &req, &c));
    check_tokens("neox_concat", &g[5], &c, 40);
    collected_release(&c);
    close_engine(e); /* joins the thread, and wakes once more */
    /* A forced token and three drawn ones, 9 whole blocks, one token that ends it. */
    ck_assert_int_eq(n_wakes, (by_tokens ? 2 : 1) + 9 + 1 + 1);
}
END_TEST

/* The context is counted in tokens, and can be filled to the last one. */
START_TEST(engine_blocks__fills_the_context)
{
    static const int n_prompts[] = {0, 1, 3, 4, 5, 252, 253, 255, 256};
    struct engine *e = open_engine("neox_concat", NULL);
    struct golden g = {.n_prompt = 0};
    struct err err = {0};
    uint64_t id;

    for (int i = 0; i < 257; i++)
        g.prompt[i] = i % 64;
    for (size_t i = 0; i < sizeof(n_prompts) / sizeof(n_prompts[0]); i++) {
        struct engine_request req;
        struct collected c;

        g.n_prompt = n_prompts[i];
        req = greedy(&g, 256 - g.n_prompt);
        ck_assert(engine_fixture_run(e, &req, &c));
        ck_assert_int_eq(c.finish, FINISH_LENGTH);
        ck_assert_int_eq(c.n_tokens, 256 - g.n_prompt);
        collected_release(&c);
        req.sampling.max_tokens++;
        ck_assert_int_eq(engine_submit(e, &req, &id, &err), ERR_CONTEXT);
    }
    close_engine(e);
}
END_TEST

/* What is not built for these models says so. */
START_TEST(engine_blocks__refuses_what_is_not_built)
{
    const char *all[] = {"--model", dir, "--device", "cpu", "--plan", "streaming:4,60", NULL};

    block_dir_make(dir, "neox_concat");
    ck_assert_ptr_null(engine_fixture_open(all, NULL));
    block_dir_remove(dir);
}
END_TEST

static void by_tokens_setup(void)
{
    by_tokens = true;
}

static void add_tests(TCase *tc)
{
    tcase_set_timeout(tc, 120);
    tcase_add_loop_test(tc, engine_blocks__continues_as_the_reference, 0, N_VARIANTS);
    tcase_add_loop_test(tc, engine_blocks__a_crowd_changes_nothing, 0, 2 * N_VARIANTS);
    tcase_add_loop_test(tc, engine_blocks__stops_anywhere_in_a_block, 0, 2);
    tcase_add_loop_test(tc, engine_blocks__ends_inside_of_a_block, 0, 2);
    tcase_add_test(tc, engine_blocks__drawn_and_forced_tokens_agree);
    tcase_add_test(tc, engine_blocks__tells_whole_blocks);
    tcase_add_test(tc, engine_blocks__fills_the_context);
}

TEST_SUITE(engine_blocks)
{
    TCase *tc = test_case(suite, "core"), *tokens = test_case(suite, "by_tokens");

    add_tests(tc);
    tcase_add_loop_test(tc, engine_blocks__tells_logprobs_of_prompts, 0, 15);
    tcase_add_test(tc, engine_blocks__tells_logprobs_from_a_token_on);
    tcase_add_loop_test(tc, engine_blocks__scarce_pages_change_nothing, 0, 8);
    tcase_add_test(tc, engine_blocks__prompts_share_blocks);
    tcase_add_test(tc, engine_blocks__refuses_what_is_not_built);
    tcase_add_checked_fixture(tokens, by_tokens_setup, NULL);
    add_tests(tokens);
}
