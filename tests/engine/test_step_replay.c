/*
 * A run is recorded, and the scheduler decides the same again without the model; and what is no
 * trace is refused.
 */
#include "base/clock.h"
#include "base/file_map.h"
#include "base/rng.h"
#include "engine/engine.h"
#include "tests/engine/block_dir.h"
#include "tests/engine/engine_fixture.h"
#include "tests/lib/test.h"

#include <limits.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#define N_REQUESTS 60
#define TIMEOUT_NS (INT64_C(120) * 1000000000)

static char path[64];
static bool blocks;      /* a Block Transformer runs */
static const char *pool; /* its memory for keys and values: 16 pages */

static void setup(void)
{
    int fd;

    snprintf(path, sizeof(path), "/tmp/spand-replay-XXXXXX");
    fd = mkstemp(path);
    ck_assert_int_ge(fd, 0);
    close(fd);
}

static void teardown(void)
{
    unlink(path);
}

static void on_event(void *arg, const struct engine_event *event)
{
    *(int *)arg -= event->finish != FINISH_NONE;
}

/* Three beginnings of two pages, so that prompts share them; many outgrow the pool together. */
static void submit_one(struct engine *e, int i, int *n_live)
{
    const struct engine_info *info = engine_get_info(e);
    int vocab = info->vocab_size - 3 < 200 ? info->vocab_size - 3 : 200;
    int32_t prompt[256];
    struct engine_request req = {.prompt = prompt, .n_prompt = info->max_seq_len / 3 - i % 40};
    struct err err = {0};
    uint64_t id;

    for (int k = 0; k < req.n_prompt; k++)
        prompt[k] = 3 + (k < 140 ? (k + i % 3 * 7) % vocab : (int32_t)(rng_u64(i, 1, k) % vocab));
    sampling_params_init(&req.sampling);
    req.sampling.max_tokens = 1 + (int)(rng_u64(2, i, 0) % (uint64_t)(info->max_seq_len / 4));
    req.sampling.seed = (uint64_t)i;
    req.sampling.ignore_eos = i % 4 > 0;
    req.sampling.repetition_penalty = i % 5 ? 1 : 1.1f;
    req.sampling.n_prompt_logprobs = i % 7 ? -1 : 0;
    req.priority = i % 3;
    if (i % 11 == 4 && !blocks) {
        req.pooling = i % 2 ? POOLING_MEAN : POOLING_LAST;
        req.sampling.max_tokens = 0;
    }
    ck_assert_msg(engine_submit(e, &req, &id, &err) == 0, "%s", err.msg);
    ++*n_live;
    if (i % 6 == 5)
        engine_cancel(e, id);
}

static void record_model(const char *model, const char *plan, const char *run_ahead)
{
    const char *length = blocks ? "256" : "512", *memory = blocks ? pool : "256KiB";
    const char *const flags[] = {"--model",
                                 model,
                                 "--weights",
                                 "random",
                                 "--max-seq-len",
                                 length,
                                 "--page-entries",
                                 blocks ? "16" : "64",
                                 "--device",
                                 "cpu",
                                 "--kv-memory",
                                 memory,
                                 "--max-batch",
                                 "8",
                                 "--threads",
                                 "1",
                                 "--scheduling",
                                 "priority",
                                 "--chunk-tokens",
                                 "64",
                                 "--plan",
                                 plan,
                                 "--run-ahead",
                                 run_ahead,
                                 "--trace",
                                 path,
                                 NULL};
    struct engine *e = engine_fixture_open(flags, NULL);
    int64_t end_ns = clock_ns() + TIMEOUT_NS;
    int n_live = 0;

    ck_assert_ptr_nonnull(e);
    for (int i = 0; i < N_REQUESTS || n_live > 0;) {
        ck_assert_int_lt(clock_ns(), end_ns);
        while (i < N_REQUESTS && n_live < 24)
            submit_one(e, i++, &n_live);
        engine_wait(e, 100000000);
        engine_poll(e, on_event, &n_live);
    }
    engine_close(e);
}

static void record(const char *plan, const char *run_ahead)
{
    record_model(test_path("tests/fixtures/engine/tiny"), plan, run_ahead);
}

static char *read_trace(void)
{
    struct err err = {0};
    char *text;

    ck_assert_msg(file_read_text(&text, NULL, path, 64 << 20, &err) == 0, "%s", err.msg);
    return text;
}

static void write_trace(const char *text)
{
    FILE *f = fopen(path, "w");

    ck_assert_ptr_nonnull(f);
    fputs(text, f);
    ck_assert_int_eq(fclose(f), 0);
}

START_TEST(step_replay__decides_the_same)
{
    static const char *const runs[][2] = {
        {"dense", "off"}, {"dense", "on"}, {"streaming:4,60", "on"}, {"uniform:0.5", "off"}};
    struct engine_replay told;
    struct err err = {0};

    record(runs[_i][0], runs[_i][1]);
    ck_assert_msg(engine_replay(path, &told, &err) == 0, "%s", err.msg);
    ck_assert_int_eq(told.n_sequences, N_REQUESTS);
    ck_assert_int_gt(told.n_steps, N_REQUESTS);
    ck_assert_int_eq(told.n_open, 0);
    ck_assert(!told.is_cut && !told.differs);
    if (_i < 2)
        ck_assert_int_gt(told.n_preemptions, 0);
}
END_TEST

/* Blocks, the phases inside of one, and prompts in front of which a start block lies. */
START_TEST(step_replay__decides_the_same_of_blocks)
{
    const char *model = _i / 2 ? "neox_project" : "llama_project";
    char dir[BLOCK_DIR_LEN];
    struct engine_replay told;
    struct err err = {0};

    blocks = true;
    pool = _i / 2 ? "8KiB" : "4KiB";
    block_dir_make(dir, model);
    record_model(dir, "dense", _i % 2 ? "on" : "off");
    block_dir_remove(dir);
    blocks = false;
    ck_assert_msg(engine_replay(path, &told, &err) == 0, "%s", err.msg);
    ck_assert_int_eq(told.n_sequences, N_REQUESTS);
    ck_assert_int_eq(told.n_open, 0);
    ck_assert(!told.is_cut && !told.differs);
}
END_TEST

/* Prompts cannot be read from it. */
START_TEST(step_replay__holds_no_tokens_of_prompts)
{
    char *text, *found;

    record("dense", "off");
    text = read_trace();
    found = strstr(text, "\"pages\":[");
    ck_assert_ptr_nonnull(found);
    ck_assert_msg(strtoll(found + 9, NULL, 10) > 1000000, "%.60s", found);
    free(text);
}
END_TEST

/* A scheduler that would decide otherwise is found: here it has another chunk, or pool. */
START_TEST(step_replay__finds_other_decisions)
{
    static const char *const changes[][2] = {{"\"chunk_tokens\":64", "\"chunk_tokens\":65"},
                                             {"\"max_batch\":8", "\"max_batch\":7"},
                                             {"\"prefix_cache\":true", "\"prefix_cache\":null"},
                                             {"\"admit\":[", "\"admit\":[99,"}};
    const char *was = changes[_i][0], *now = changes[_i][1];
    struct engine_replay told;
    struct err err = {0};
    char *text, *changed, *found;
    size_t at;

    record("dense", "off");
    text = read_trace();
    found = strstr(text, was);
    ck_assert_ptr_nonnull(found);
    at = (size_t)(found - text);
    changed = malloc(strlen(text) + strlen(now) + 1);
    sprintf(changed, "%.*s%s%s", (int)at, text, now, found + strlen(was));
    write_trace(changed);
    ck_assert_int_eq(engine_replay(path, &told, &err), ERR_INVALID);
    ck_assert(told.differs);
    ck_assert_ptr_nonnull(strstr(err.msg, "the trace has"));
    free(changed);
    free(text);
}
END_TEST

/* The daemon was killed while it wrote: what is there is replayed. */
START_TEST(step_replay__takes_a_trace_that_was_cut)
{
    struct engine_replay told;
    struct err err = {0};
    char *text;
    size_t len;

    record("dense", "off");
    text = read_trace();
    len = strlen(text) / 2;
    while (text[len - 1] == '\n' || text[len - 1] == '}')
        len--;
    text[len] = '\0';
    write_trace(text);
    ck_assert_msg(engine_replay(path, &told, &err) == 0, "%s", err.msg);
    ck_assert(told.is_cut);
    ck_assert_int_gt(told.n_open, 0);
    free(text);
}
END_TEST

#define HEAD                                                                                       \
    "{\"trace\":1,\"max_batch\":4,\"chunk_tokens\":64,\"max_logits\":8,\"max_seen\":100,\"block_"  \
    "len\":0,\"n_prefix\":0,"                                                                      \
    "\"n_layers\":2,\"n_heads\":2,\"n_kv_heads\":1,\"head_dim\":8,\"page_entries\":64,"            \
    "\"n_pages\":8,\"table_len\":64,\"prefix_cache\":true}\n"
#define GEOM "{\"geom\":0,\"heads\":[[2,0,1073741824,0]]}\n"
#define ADD(id, prompt, limit, geom, more)                                                         \
    "{\"add\":" #id ",\"prompt\":" #prompt ",\"lead\":0,\"limit\":" #limit ",\"entries\":" #limit  \
    ",\"geom\":" #geom                                                                             \
    ",\"seen\":0,\"priority\":0,\"prompt_logits\":false,\"first_logits\":0,\"pooling\":0,"         \
    "\"shares\":" more "}\n"

START_TEST(step_replay__refuses_what_is_no_trace)
{
    static const char *const texts[] = {
        "",
        "x\n",
        "[]\n",
        "{}\n",
        "{\"trace\":2}\n",
        HEAD "x\n",
        HEAD "{}\n",
        HEAD "{\"geom\":1,\"heads\":[]}\n",
        HEAD "{\"geom\":0,\"heads\":[[2,0,64,0],[1,0,64,0]]}\n",
        HEAD "{\"geom\":0,\"heads\":[[1,0,64,0]]}\n",
        HEAD "{\"geom\":0,\"heads\":[[2,0,0,0]]}\n",
        HEAD "{\"geom\":0,\"heads\":[[2,0,65,0]]}\n",
        HEAD "{\"geom\":0,\"heads\":[[2,-1,64,0]]}\n",
        HEAD "{\"geom\":0,\"heads\":[[2,0,64,2]]}\n",
        HEAD "{\"geom\":0,\"heads\":[[2,0,64]]}\n",
        HEAD ADD(1, 3, 5, 0, "false"), /* no geometry */
        HEAD GEOM ADD(0, 3, 5, 0, "false"),
        HEAD GEOM ADD(1, 0, 5, 0, "false"),
        HEAD GEOM ADD(1, 6, 5, 0, "false"),
        HEAD GEOM ADD(1, 3, 1000, 0, "false"), /* 16 pages a head */
        HEAD GEOM ADD(1, 3, 5, 1, "false"),
        HEAD GEOM ADD(1, 70, 80, 0, "true"), /* whose pages? */
        HEAD GEOM ADD(1, 3, 5, 0, "false") ADD(1, 3, 5, 0, "false"),
        HEAD GEOM ADD(1, 3, 5, 0, "false") "{\"tokens\":[1],\"end\":[]}\n",
        HEAD GEOM ADD(1, 3, 5, 0, "false") "{\"tokens\":[],\"end\":[2]}\n",
    };
    struct engine_replay told;

    for (size_t i = 0; i < sizeof(texts) / sizeof(texts[0]); i++) {
        struct err err = {0};

        write_trace(texts[i]);
        ck_assert_msg(engine_replay(path, &told, &err) == ERR_PARSE, "%s", texts[i]);
        ck_assert_msg(err.msg[0] && !told.differs, "%s", texts[i]);
    }
}
END_TEST

START_TEST(step_replay__needs_the_file)
{
    struct engine_replay told;
    struct err err = {0};

    ck_assert_int_eq(engine_replay("/no/such/trace", &told, &err), ERR_IO);
}
END_TEST

TEST_SUITE(step_replay)
{
    TCase *tc = test_case(suite, "replay");

    tcase_add_checked_fixture(tc, setup, teardown);
    tcase_set_timeout(tc, 300);
    tcase_add_loop_test(tc, step_replay__decides_the_same, 0, 4);
    tcase_add_loop_test(tc, step_replay__decides_the_same_of_blocks, 0, 4);
    tcase_add_test(tc, step_replay__holds_no_tokens_of_prompts);
    tcase_add_loop_test(tc, step_replay__finds_other_decisions, 0, 4);
    tcase_add_test(tc, step_replay__takes_a_trace_that_was_cut);
    tcase_add_test(tc, step_replay__refuses_what_is_no_trace);
    tcase_add_test(tc, step_replay__needs_the_file);
}
