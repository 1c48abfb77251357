/*
 * test_cuda_engine - a Block Transformer served on the GPU: whole blocks as graphs, as launches and
 * token by token give the same answers, to the bit of every logprob; greedy ones are the CPU's,
 * with many decode rows' products too. Prompts that begin with copies of what earlier ones computed
 * are answered as without them.
 *
 * The emulator makes no graphs where EMU_NO_GRAPHS is set, which a GPU does not know of.
 */
#include "base/rng.h"
#include "tests/engine/engine_fixture.h"
#include "tests/lib/test.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#define N_REQUESTS 67 /* more than the batches that have a graph of their own size */
#define N_GREEDY   9
#define VOCAB      96
#define LENGTH     18 /* of most: graphs are made and replayed within */
#define MAX_PROMPT 24
#define TIMEOUT_S  1800

/* A layer for each decoder; a small vocabulary, for what is emulated is slow. */
static const char config[] =
    "{\"model_type\": \"block_transformer\", \"vocab_size\": 96, \"max_position_embeddings\": 128,"
    "\"block_length\": 4, \"n_prefix\": 2, \"start_block\": true, \"tie_word_embeddings\": false,"
    "\"eos_token_id\": 0, \"dtype\": \"float32\","
    "\"embedder\": {\"type\": \"lookup\", \"hidden_size\": 16, \"projection\": \"projection\"},"
    "\"block_decoder\": {\"model_type\": \"gpt_neox\", \"hidden_size\": 64, \"num_hidden_layers\": "
    "1,"
    "\"num_attention_heads\": 2, \"intermediate_size\": 96, \"hidden_act\": \"gelu\","
    "\"rotary_pct\": 0.25, \"layer_norm_eps\": 1e-5, \"use_parallel_residual\": true},"
    "\"token_decoder\": {\"model_type\": \"gpt_neox\", \"hidden_size\": 32, \"num_hidden_layers\": "
    "1,"
    "\"num_attention_heads\": 1, \"intermediate_size\": 64, \"hidden_act\": \"gelu\","
    "\"rotary_pct\": 0.25, \"layer_norm_eps\": 1e-5, \"use_parallel_residual\": true}}";
/* The same for a model of tokens. */
static const char llama_config[] =
    "{\"model_type\": \"llama\", \"vocab_size\": 96, \"max_position_embeddings\": 128,"
    "\"hidden_size\": 64, \"num_hidden_layers\": 2, \"num_attention_heads\": 2,"
    "\"num_key_value_heads\": 1, \"intermediate_size\": 96, \"hidden_act\": \"silu\","
    "\"rms_norm_eps\": 1e-5, \"rope_theta\": 10000.0, \"tie_word_embeddings\": false,"
    "\"eos_token_id\": 0, \"torch_dtype\": \"float32\"}";
static char dir[64];
static struct engine_stats stats; /* of the last run, at its end */

static void make_dir(const char *text)
{
    char path[96];
    FILE *f;

    strcpy(dir, "/tmp/spand-test-cuda-engine-XXXXXX");
    ck_assert_ptr_nonnull(mkdtemp(dir));
    snprintf(path, sizeof(path), "%s/config.json", dir);
    f = fopen(path, "w");
    ck_assert_ptr_nonnull(f);
    ck_assert_int_ge(fputs(text, f), 0);
    ck_assert_int_eq(fclose(f), 0);
}

static void remove_dir(void)
{
    char path[96];

    snprintf(path, sizeof(path), "%s/config.json", dir);
    unlink(path);
    rmdir(dir);
}

static int draw(int i, int what, int below)
{
    return (int)(rng_u64(7, (uint32_t)what, i) % (uint64_t)below);
}

/* Most are equally long, so that their steps come again; some end early, in a block or by a stop.
 */
static void make_request(struct engine_request *req, int32_t *prompt, int i)
{
    static const struct engine_bias bias[] = {{7, 1.5f}, {9, -100.0f}};
    static int32_t stops[12];

    for (int k = 0; k < 12; k++)
        stops[k] = 10 + k;
    *req = (struct engine_request){.prompt = prompt, .n_prompt = draw(i, 0, MAX_PROMPT)};
    for (int k = 0; k < req->n_prompt; k++)
        prompt[k] = draw(i * MAX_PROMPT + k, 1, VOCAB);
    sampling_params_init(&req->sampling);
    req->sampling.temperature = i < N_GREEDY ? 0.0f : 0.9f;
    req->sampling.seed = (uint64_t)i;
    req->sampling.ignore_eos = true;
    req->sampling.max_tokens = i % 9 == 4 ? draw(i, 2, LENGTH) : LENGTH;
    req->sampling.n_logprobs = i % 3 == 0 ? 0 : -1;
    if (i == 20 || i == 21) {
        req->sampling.n_logprobs = 3;
        req->sampling.max_tokens = 3;
    }
    if (i % 7 == 3) {
        req->sampling.stop_ids = stops;
        req->sampling.n_stop_ids = 12;
        req->sampling.min_tokens = req->sampling.max_tokens < 6 ? 0 : draw(i, 3, 7);
        req->sampling.bias = bias;
        req->sampling.n_bias = 2;
    }
    if (i % 11 == 5)
        req->sampling.top_p = 0.8f;
}

static void run(struct collected *out, int n, const char *const *more)
{
    const char *flags[40] = {
        "--model",     dir,  "--weights",   "random", "--dtype",        "f32", "--threads", "1",
        "--max-batch", "70", "--kv-memory", "16MiB",  "--chunk-tokens", "512"};
    static int32_t prompts[N_REQUESTS][MAX_PROMPT];
    struct engine_request req;
    struct engine *e;
    uint64_t id;
    int n_flags = 14;

    for (; *more; more++)
        flags[n_flags++] = *more;
    e = engine_fixture_open(flags, NULL);
    ck_assert_ptr_nonnull(e);
    for (int i = 0; i < n; i++) {
        make_request(&req, prompts[i], i);
        collected_init(&out[i]);
        if (req.n_prompt == 0 && !engine_get_info(e)->takes_empty_prompts)
            req.n_prompt = 1;
        req.user = &out[i];
        ck_assert_int_eq(engine_submit(e, &req, &id, NULL), 0);
    }
    for (int i = 0; i < n; i++)
        ck_assert(engine_fixture_wait(e, &out[i], TIMEOUT_S));
    engine_get_stats(e, &stats);
    engine_close(e);
}

static void compare(const struct collected *a, const struct collected *b, int n, const char *what)
{
    for (int i = 0; i < n; i++)
        ck_assert_msg(collected_same(&a[i], &b[i]), "%s: request %d differs", what, i);
}

/* Sums in another order: the same greedy tokens in f32. */
static void compare_greedy(const struct collected *want, struct collected *got)
{
    for (int i = 0; i < N_GREEDY; i++) {
        ck_assert_int_eq(got[i].n_tokens, want[i].n_tokens);
        for (int k = 0; k < got[i].n_tokens; k++)
            ck_assert_int_eq(got[i].tokens[k].id, want[i].tokens[k].id);
        collected_release(&got[i]);
    }
}

START_TEST(cuda_engine__whole_blocks_are_blocks_of_tokens)
{
    static const struct {
        const char *name, *flags[4];
    } ways[] = {{"graphs", {"--device", "cuda"}},
                {"launches", {"--device", "cuda", "--no-cuda-graphs"}},
                {"no capture", {"--device", "cuda"}},
                {"timed", {"--device", "cuda", "--op-timing-steps", "5"}}};
    const char *by_token[] = {"--device", "cuda", "--no-whole-blocks", "--no-cuda-graphs", NULL};
    const char *many[] = {"--device", "cuda", "--no-batch-invariant", NULL};
    const char *cpu[] = {"--device", "cpu", NULL};
    static struct collected want[N_REQUESTS], got[N_REQUESTS];
    int n_stopped = 0;

    make_dir(config);
    run(want, N_REQUESTS, by_token);
    for (int w = 0; w < 4; w++) {
        const char *more[5] = {NULL};

        memcpy(more, ways[w].flags, sizeof(ways[w].flags));
        if (w == 2)
            setenv("EMU_NO_GRAPHS", "1", 1);
        run(got, N_REQUESTS, more);
        unsetenv("EMU_NO_GRAPHS");
        compare(want, got, N_REQUESTS, ways[w].name);
        for (int i = 0; i < N_REQUESTS; i++)
            collected_release(&got[i]);
    }
    run(got, N_GREEDY, cpu);
    compare_greedy(want, got);
    setenv("SPAND_CUDA_MANY_ROWS", "1", 1);
    run(got, N_GREEDY, many);
    unsetenv("SPAND_CUDA_MANY_ROWS");
    compare_greedy(want, got);
    for (int i = 0; i < N_REQUESTS; i++) {
        n_stopped += want[i].finish == FINISH_STOP;
        collected_release(&want[i]);
    }
    ck_assert_int_gt(n_stopped, 3);
    remove_dir();
}
END_TEST

static int op_idx(const char *name)
{
    for (int i = 0; i < stats.n_ops; i++) {
        if (!strcmp(stats.ops[i].name, name))
            return i;
    }
    ck_abort_msg("no op is called %s", name);
    return -1;
}

/* Ops of one step in 8 are timed, which changes no token; without it none has a time. */
START_TEST(cuda_engine__times_the_ops_of_some_steps)
{
    static const char *const ops[] = {"attn_in", "attn", "attn_out", "ffn", "logits", "sample"};
    const char *timed[] = {"--device", "cuda", "--op-timing-steps", "8", NULL};
    const char *untimed[] = {"--device", "cuda", "--op-timing-steps", "0", NULL};
    static struct collected want[N_GREEDY], got[N_GREEDY];
    int attn;

    make_dir(llama_config);
    run(want, N_GREEDY, untimed);
    for (int i = 0; i < stats.n_ops; i++) {
        ck_assert_int_eq(stats.ops[i].ns, 0);
        ck_assert_double_eq(stats.ops[i].timed_bytes, 0);
    }
    run(got, N_GREEDY, timed);
    compare(want, got, N_GREEDY, "timed");
    ck_assert_int_gt(stats.n_steps, 8);
    for (int i = 0; i < 6; i++) {
        int op = op_idx(ops[i]);

        ck_assert_msg(stats.ops[op].ns > 0, "%s has no time", ops[i]);
        ck_assert_msg(stats.ops[op].timed_bytes > 0, "%s has no bytes", ops[i]);
        ck_assert_msg(stats.ops[op].timed_bytes <= stats.ops[op].bytes, "%s: too many", ops[i]);
    }
    attn = op_idx("attn");
    ck_assert_double_eq_tol(stats.ops[attn].bytes, 8 * stats.ops[attn].timed_bytes, 1e-3);
    /* At most all steps, all rows, all their keys: f32 of 32 in each of 2 layers, K and V. */
    ck_assert_double_le(stats.ops[attn].timed_bytes,
                        (double)(stats.n_steps / 8) * N_GREEDY * 128 * 2 * 2 * 32 * 4);
    for (int i = 0; i < N_GREEDY; i++) {
        collected_release(&want[i]);
        collected_release(&got[i]);
    }
    remove_dir();
}
END_TEST

#define N_SHARED   8
#define MAX_SHARED 90

/* Each is the beginning of an earlier one, cut anywhere, and something new. */
static int make_shared(int32_t prompts[][MAX_SHARED], int n[], int i)
{
    int from = i ? draw(i, 20, i) : 0, keep = i ? draw(i, 21, n[from] + 1) : 0, known = 0;

    n[i] = keep + 1 + draw(i, 22, MAX_SHARED - 1 - keep > 0 ? MAX_SHARED - 1 - keep : 1);
    n[i] = n[i] < MAX_SHARED ? n[i] : MAX_SHARED;
    memcpy(prompts[i], prompts[from], (size_t)keep * sizeof(prompts[i][0]));
    for (int k = keep; k < n[i]; k++)
        prompts[i][k] = 1 + draw(i * MAX_SHARED + k, 23, VOCAB - 1);
    for (int e = 0; e < i; e++) {
        /* The start block is in front; a prompt's last whole block is computed. */
        int most = n[e] / 4 < n[i] / 4 - 1 ? n[e] / 4 * 4 : n[i] / 4 * 4 - 4, same = 0;

        while (same < most && prompts[e][same] == prompts[i][same])
            same++;
        known = same / 4 * 4 > known ? same / 4 * 4 : known;
    }
    return known;
}

/* Parts of pages are copied, and the rows behind them are those of prompts computed in one go. */
START_TEST(cuda_engine__prompts_share_blocks)
{
    const char *flags[] = {"--model",
                           dir,
                           "--weights",
                           "random",
                           "--dtype",
                           "f32",
                           "--threads",
                           "1",
                           "--kv-memory",
                           "1MiB",
                           "--page-entries",
                           "16",
                           "--kv-sweep-steps",
                           "1",
                           "--device",
                           "cuda",
                           NULL,
                           NULL};
    static int32_t prompts[N_SHARED][MAX_SHARED];
    struct engine *plain, *cached;
    int n[N_SHARED], n_parts = 0;

    make_dir(config);
    flags[16] = "--no-prefix-cache";
    plain = engine_fixture_open(flags, NULL);
    flags[16] = "--prefix-cache";
    cached = engine_fixture_open(flags, NULL);
    ck_assert_ptr_nonnull(plain);
    ck_assert_ptr_nonnull(cached);
    for (int i = 0; i < N_SHARED; i++) {
        struct engine_request req;
        struct collected want, got;
        int known;

        make_request(&req, prompts[i], i);
        known = make_shared(prompts, n, i); /* other tokens than that gave it */
        req.n_prompt = n[i];
        req.sampling.max_tokens = 5;
        req.sampling.min_tokens = 0;
        req.sampling.n_logprobs = 2;
        ck_assert(engine_fixture_run(plain, &req, &want));
        ck_assert(engine_fixture_run(cached, &req, &got));
        ck_assert_msg(collected_same(&want, &got), "prompt %d of %d tokens, %d cached", i, n[i],
                      got.n_cached_tokens);
        ck_assert_msg(got.n_cached_tokens == known, "prompt %d of %d tokens: %d cached, want %d", i,
                      n[i], got.n_cached_tokens, known);
        n_parts += known > 0 && (known + 4) % 64 != 0;
        collected_release(&want);
        collected_release(&got);
    }
    ck_assert_int_gt(n_parts, 3);
    engine_close(plain);
    engine_close(cached);
    remove_dir();
}
END_TEST

TEST_SUITE(cuda_engine)
{
    TCase *tc = test_case(suite, "core");
    TCase *times = test_case(suite, "times");
    TCase *prefixes = test_case(suite, "prefixes");

    tcase_set_timeout(tc, 3600);
    tcase_add_test(tc, cuda_engine__whole_blocks_are_blocks_of_tokens);
    tcase_set_timeout(times, 600);
    tcase_add_test(times, cuda_engine__times_the_ops_of_some_steps);
    tcase_set_timeout(prefixes, 600);
    tcase_add_test(prefixes, cuda_engine__prompts_share_blocks);
}
