/*
 * The engine at its limits: the least of everything, and the most that a client may ask for.
 */
#include "engine/engine_state.h"
#include "tests/engine/engine_fixture.h"
#include "tests/lib/test.h"

#include <limits.h>
#include <malloc.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#define MAX_FLAGS 48
#define N_CROWD   6

static struct engine *open_with(const char *const *more)
{
    const char *flags[MAX_FLAGS] = {"--model",         test_path("tests/fixtures/engine/tiny"),
                                    "--weights",       "random",
                                    "--device",        "cpu",
                                    "--no-pin-threads"};
    int n = 7;
    struct engine *e;

    for (int i = 0; more && more[i]; i++)
        flags[n++] = more[i];
    e = engine_fixture_open(flags, NULL);
    ck_assert_ptr_nonnull(e);
    return e;
}

static struct engine_request seeded(int i)
{
    static const int32_t prompt[] = {40, 71, 79, 79, 82, 259, 12, 70, 64, 83};
    struct engine_request req = {.prompt = prompt, .n_prompt = 10 - i};

    sampling_params_init(&req.sampling);
    req.sampling.seed = (uint64_t)i;
    req.sampling.max_tokens = 70;
    req.sampling.ignore_eos = true;
    req.sampling.n_logprobs = 2;
    req.sampling.n_prompt_logprobs = i % 2;
    return req;
}

static void run_crowd(struct engine *e, struct collected *c)
{
    for (int i = 0; i < N_CROWD; i++) {
        struct engine_request req = seeded(i);
        struct err err = {0};
        uint64_t id;

        collected_init(&c[i]);
        req.user = &c[i];
        ck_assert_int_eq(engine_submit(e, &req, &id, &err), 0);
    }
    for (int i = 0; i < N_CROWD; i++) {
        ck_assert(engine_fixture_wait(e, &c[i], 50));
        ck_assert_int_eq(c[i].finish, FINISH_LENGTH);
    }
}

/* 80 tokens of 6 heads are 12 pages of 64 entries or 30 of 16; the pools below hold just those. */
static const char *const corners[][MAX_FLAGS] = {
    {"--max-batch", "1", "--kv-memory", "8MiB"},
    {"--chunk-tokens", "1", "--kv-memory", "8MiB"},
    {"--chunk-tokens", "1", "--max-batch", "1", "--kv-memory", "8MiB"},
    {"--page-entries", "16", "--kv-memory", "8MiB"},
    {"--page-entries", "8", "--chunk-tokens", "3", "--kv-memory", "8MiB"},
    {"--threads", "7", "--kv-memory", "8MiB"},
    {"--kv-memory", "48KiB"},
    {"--kv-memory", "30KiB", "--page-entries", "16"},
    {"--kv-memory", "40KiB", "--page-entries", "16", "--chunk-tokens", "2"},
};

/* Whatever is scarce, the tokens and their logprobs stay the same. The size of pages is the one
 * thing that changes the order of sums, so it is the same in both engines. */
START_TEST(engine_limits__least_of_everything)
{
    static const char *roomy[] = {"--kv-memory", "8MiB",           "--threads", "1",
                                  NULL,          "--page-entries", NULL};
    static struct collected want[N_CROWD], got[N_CROWD];
    struct engine *e;

    for (int i = 0; corners[_i][i]; i += 2) {
        if (strcmp(corners[_i][i], "--page-entries") == 0) {
            roomy[4] = corners[_i][i];
            roomy[5] = corners[_i][i + 1];
        }
    }
    e = open_with(roomy);
    run_crowd(e, want);
    engine_close(e);
    e = open_with(corners[_i]);
    run_crowd(e, got);
    engine_close(e);
    for (int i = 0; i < N_CROWD; i++) {
        ck_assert_msg(collected_same(&want[i], &got[i]), "request %d differs", i);
        collected_release(&want[i]);
        collected_release(&got[i]);
    }
}
END_TEST

/* Pages of another size give the same tokens, and logprobs that differ by rounding alone. */
START_TEST(engine_limits__pages_of_any_size)
{
    static const char *const sizes[] = {"64", "32", "16", "8"};
    static struct collected c[4][N_CROWD];

    for (int k = 0; k < 4; k++) {
        const char *more[] = {"--page-entries", sizes[k], "--kv-memory", "8MiB",
                              "--dtype",        "f32",    NULL};
        struct engine *e = open_with(more);

        run_crowd(e, c[k]);
        engine_close(e);
        for (int i = 0; i < N_CROWD; i++) {
            ck_assert_int_eq(c[k][i].n_tokens, c[0][i].n_tokens);
            for (int t = 0; t < c[k][i].n_tokens; t++) {
                ck_assert_int_eq(c[k][i].tokens[t].id, c[0][i].tokens[t].id);
                ck_assert_float_eq_tol(c[k][i].tokens[t].logprob, c[0][i].tokens[t].logprob, 1e-5f);
            }
        }
    }
    for (int k = 0; k < 4; k++) {
        for (int i = 0; i < N_CROWD; i++)
            collected_release(&c[k][i]);
    }
}
END_TEST

/* The largest numbers are refused before anything is reckoned or allocated with them. */
START_TEST(engine_limits__refuse_extremes)
{
    static const char *const more[] = {"--kv-memory", "8MiB", NULL};
    struct engine *e = open_with(more);
    struct engine_request req = seeded(0);
    struct err err = {0};
    uint64_t id;

    req.sampling.max_tokens = INT_MAX;
    ck_assert_int_eq(engine_submit(e, &req, &id, &err), ERR_CONTEXT);
    ck_assert_ptr_nonnull(strstr(err.msg, "2147483657"));
    err = (struct err){0};
    req.n_prompt = INT_MAX; /* must be refused before it is read */
    ck_assert_int_eq(engine_submit(e, &req, &id, &err), ERR_CONTEXT);
    err = (struct err){0};
    req.n_prompt = 1000000;
    req.sampling.max_tokens = 0;
    ck_assert_int_eq(engine_submit(e, &req, &id, &err), ERR_CONTEXT);
    err = (struct err){0};
    req = seeded(0);
    req.sampling.top_k = INT_MAX;
    req.sampling.min_tokens = INT_MAX;
    ck_assert_int_eq(engine_submit(e, &req, &id, &err), ERR_INVALID);
    engine_close(e);
}
END_TEST

/* Prompts with logprobs take 180 bytes a token: a few fill what is meant for all requests, and
 * when they are gone there is room again. */
START_TEST(engine_limits__bound_the_memory_of_requests)
{
    static const char *const more[] = {
        "--kv-memory", "8MiB", "--request-memory-bytes", "1MiB", "--chunk-tokens", "64", NULL};
    static int32_t prompt[1000];
    static struct collected c[16];
    struct engine *e = open_with(more);
    struct engine_request req = {.prompt = prompt, .n_prompt = 1000};
    struct err err = {0};
    uint64_t id;
    int n = 0;

    sampling_params_init(&req.sampling);
    req.sampling.max_tokens = 1;
    req.sampling.n_prompt_logprobs = 0;
    for (; n < 16; n++) {
        collected_init(&c[n]);
        req.user = &c[n];
        if (engine_submit(e, &req, &id, &err) < 0)
            break;
    }
    ck_assert_int_ge(n, 3);
    ck_assert_int_le(n, 5);
    ck_assert_int_eq(err.code, ERR_LIMIT);
    for (int i = 0; i < n; i++)
        ck_assert(engine_fixture_wait(e, &c[i], 50));
    err = (struct err){0};
    for (int i = 0; i < n; i++) {
        collected_release(&c[i]);
        req.user = &c[i];
        ck_assert_int_eq(engine_submit(e, &req, &id, &err), 0);
    }
    for (int i = 0; i < n; i++) {
        ck_assert(engine_fixture_wait(e, &c[i], 50));
        collected_release(&c[i]);
    }
    ck_assert_int_eq(e->live.n_bytes, 0);
    engine_close(e);
}
END_TEST

/* A request that could never be held is the client's fault: a stop string of 100 kB takes 1 MB. */
START_TEST(engine_limits__refuse_what_exceeds_all_memory)
{
    static const char *const more[] = {"--kv-memory", "8MiB", "--request-memory-bytes", "1MiB",
                                       NULL};
    struct engine *e = open_with(more);
    struct engine_request req = seeded(0);
    char *stop = malloc(150001);
    struct err err = {0};
    uint64_t id;

    memset(stop, 'x', 150000);
    stop[150000] = '\0';
    req.sampling.stop = (const char *const *)&stop;
    req.sampling.n_stop = 1;
    ck_assert_int_eq(engine_submit(e, &req, &id, &err), ERR_INVALID);
    ck_assert_int_eq(e->live.n_bytes, 0);
    ck_assert_int_eq(e->live.n_free, e->live.n_max);
    free(stop);
    engine_close(e);
}
END_TEST

/* What a request asks for costs nothing until it is generated. */
START_TEST(engine_limits__pay_for_no_tokens_in_advance)
{
    static const char *const more[] = {"--kv-memory", "8MiB", "--max-batch", "1", NULL};
    struct engine *e = open_with(more);
    struct engine_request req = seeded(0);
    static const char *const stops[] = {"never this"};
    struct mallinfo2 before, after;
    struct err err = {0};
    uint64_t id;

    req.sampling.max_tokens = 1000;
    req.sampling.n_logprobs = ENGINE_MAX_TOP;
    req.sampling.n_prompt_logprobs = -1;
    req.sampling.stop = stops;
    req.sampling.n_stop = 1;
    req.user = NULL;
    before = mallinfo2();
    for (int i = 0; i < 100; i++)
        ck_assert_int_eq(engine_submit(e, &req, &id, &err), 0);
    after = mallinfo2();
    ck_assert_int_lt((after.uordblks + after.hblkhd - before.uordblks - before.hblkhd) / 100,
                     64 * 1024);
    engine_close(e);
}
END_TEST

#define COUNT(a) ((int)(sizeof(a) / sizeof((a)[0])))

/* Waiting prompt tokens are bounded, the queue's first request is not, and ends give them back. */
START_TEST(engine_limits__bound_the_tokens_that_wait)
{
    const char *flags[] = {"--max-batch", "1", "--max-waiting-tokens", "16", NULL};
    struct engine *e = open_with(flags);
    struct collected c[4];
    uint64_t id[4];
    int n_refused = 0;
    struct err err = {0};

    for (int i = 0; i < 4; i++) {
        struct engine_request req = seeded(0); /* 10 tokens */

        collected_init(&c[i]);
        req.user = &c[i];
        err = (struct err){0};
        id[i] = 0;
        if (engine_submit(e, &req, &id[i], &err) < 0) {
            ck_assert_int_eq(err.code, ERR_LIMIT);
            ck_assert_ptr_nonnull(strstr(err.msg, "prompt tokens are waiting"));
            n_refused++;
        }
    }
    ck_assert_int_ge(n_refused, 2); /* one runs or waits, perhaps one waits behind it */
    for (int i = 0; i < 4; i++) {
        if (id[i])
            ck_assert(engine_fixture_wait(e, &c[i], 50));
        collected_release(&c[i]);
    }
    ck_assert_int_eq(atomic_load(&e->waiting_tokens), 0);
    engine_close(e);
}
END_TEST

static const struct {
    const char *flags[5];
} bad_configs[] = {
    {{"--page-entries", "48"}},          {{"--max-seq-len", "4096"}},
    {{"--plan-length", "soon"}},         {{"--plan", "uniform:7"}},
    {{"--kv-memory", "20000"}},          {{"--model", "no/such/model"}},
    {{"--trace", "/no/such/dir/trace"}}, {{"--weights", "file"}},
};

/* A wrong setting is an error of open, not a crash. */
START_TEST(engine_limits__refuse_a_bad_config)
{
    const char *flags[MAX_FLAGS] = {"--model",   test_path("tests/fixtures/engine/tiny"),
                                    "--weights", "random",
                                    "--device",  "cpu"};

    for (int i = 0; i < 5 && bad_configs[_i].flags[i]; i++)
        flags[6 + i] = bad_configs[_i].flags[i];
    ck_assert_ptr_null(engine_fixture_open(flags, NULL));
}
END_TEST

TEST_SUITE(engine_limits)
{
    TCase *tc = test_case(suite, "core");

    tcase_add_loop_test(tc, engine_limits__least_of_everything, 0, COUNT(corners));
    tcase_add_test(tc, engine_limits__pages_of_any_size);
    tcase_add_test(tc, engine_limits__refuse_extremes);
    tcase_add_test(tc, engine_limits__bound_the_memory_of_requests);
    tcase_add_test(tc, engine_limits__refuse_what_exceeds_all_memory);
    tcase_add_test(tc, engine_limits__pay_for_no_tokens_in_advance);
    tcase_add_test(tc, engine_limits__bound_the_tokens_that_wait);
    tcase_add_loop_test(tc, engine_limits__refuse_a_bad_config, 0, COUNT(bad_configs));
}
