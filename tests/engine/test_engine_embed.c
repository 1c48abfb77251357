/*
 * Embeddings: the hidden states of transformers, by tests/golden/embedding_golden.py, for every
 * small model; the same bits alone and among others, in chunks of any size, behind cached pages,
 * after a preemption; and what is refused.
 *
 * SPAND_TEST_DEVICE=cuda (with CK_FORK=no) holds the GPU against the same numbers, as far as it has
 * kernels for the model's head size.
 */
#include "base/file_map.h"
#include "base/json_file.h"
#include "base/rng.h"
#include "engine/engine.h"
#include "tests/engine/engine_fixture.h"
#include "tests/lib/test.h"

#include <dirent.h>
#include <jansson.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#define TOLERANCE    1e-4f
#define MAX_VARIANTS 64
#define MAX_PROMPT   256
#define N_LENGTHS    3
#define N_MANY       12 /* requests at once */

static const char tiny[] = "tests/fixtures/engine/tiny";
static const int lengths[N_LENGTHS] = {1, 7, 0}; /* as in the script; 0: the whole prompt */

static char *variants[MAX_VARIANTS];
static int n_variants;
static char dir[64];

static const char *device(void)
{
    const char *name = getenv("SPAND_TEST_DEVICE");

    return name && *name ? name : "cpu";
}

static bool is_for_device(const char *variant)
{
    return strcmp(device(), "cpu") == 0 || strncmp(variant, "llama-head128", 13) == 0 ||
           strncmp(variant, "llama-head256", 13) == 0;
}

static void link_file(const char *folder, const char *name)
{
    char from[512], to[512], *whole;

    snprintf(from, sizeof(from), "%s/%s", folder, name);
    snprintf(to, sizeof(to), "%s/%s", dir, name);
    whole = realpath(from, NULL);
    ck_assert_msg(whole != NULL, "%s", from);
    ck_assert_int_eq(symlink(whole, to), 0);
    free(whole);
}

/* Calls fn for every file of a folder. */
static void for_files(const char *folder, void (*fn)(const char *folder, const char *name))
{
    DIR *d = opendir(folder);
    struct dirent *de;

    ck_assert_ptr_nonnull(d);
    while ((de = readdir(d))) {
        if (de->d_name[0] != '.')
            fn(folder, de->d_name);
    }
    closedir(d);
}

static void remove_file(const char *folder, const char *name)
{
    char path[512];

    snprintf(path, sizeof(path), "%s/%s", folder, name);
    unlink(path);
}

/* The variant with a tokenizer beside it: any will do, only ids are used. */
static void make_dir(const char *variant)
{
    char folder[512];

    snprintf(dir, sizeof(dir), "/tmp/spand-embed-XXXXXX");
    ck_assert_ptr_nonnull(mkdtemp(dir));
    snprintf(folder, sizeof(folder), "%s/%s", test_path("tests/golden/models"), variant);
    for_files(folder, link_file);
    link_file(test_path(tiny), "tokenizer.json");
}

static void remove_dir(void)
{
    for_files(dir, remove_file);
    rmdir(dir);
}

static struct engine *open_engine(const char *model, const char *weights, const char *chunk,
                                  const char *memory)
{
    const char *const flags[] = {
        "--model",        model, "--weights",   weights, "--device",         device(),
        "--dtype",        "f32", "--max-batch", "6",     "--page-entries",   "16",
        "--threads",      "2",   "--kv-memory", memory,  "--kv-sweep-steps", "1",
        "--chunk-tokens", chunk, NULL};
    struct engine *e = engine_fixture_open(flags, NULL);

    ck_assert_ptr_nonnull(e);
    return e;
}

static struct engine_request request_of(const int32_t *prompt, int n, enum engine_pooling pooling)
{
    struct engine_request req = {.prompt = prompt, .n_prompt = n, .pooling = pooling};

    sampling_params_init(&req.sampling);
    req.sampling.max_tokens = 0;
    return req;
}

static void run(struct engine *e, const int32_t *prompt, int n, enum engine_pooling pooling,
                struct collected *c)
{
    struct engine_request req = request_of(prompt, n, pooling);

    ck_assert(engine_fixture_run(e, &req, c));
    ck_assert_int_eq(c->finish, FINISH_LENGTH);
    ck_assert_int_eq(c->n_tokens, 0);
    ck_assert_int_eq(c->n_embedding, engine_get_info(e)->embedding_dim);
    ck_assert(!c->broken);
}

struct golden {
    int32_t prompt[MAX_PROMPT];
    int n_prompt;
    float *hidden; /* [N_LENGTHS, 2, dim] */
    size_t n_bytes;
};

static void golden_open(struct golden *g)
{
    struct err err = {0};
    char path[512];
    json_t *doc = NULL, *ids;

    snprintf(path, sizeof(path), "%s/golden.json", dir);
    ck_assert_msg(json_file_load(&doc, path, 1 << 20, &err) == 0, "%s", err.msg);
    ids = json_object_get(doc, "prompt");
    g->n_prompt = (int)json_array_size(ids);
    ck_assert_int_le(g->n_prompt, MAX_PROMPT);
    for (int i = 0; i < g->n_prompt; i++)
        g->prompt[i] = (int32_t)json_integer_value(json_array_get(ids, (size_t)i));
    json_decref(doc);
    snprintf(path, sizeof(path), "%s/hidden.f32", dir);
    ck_assert_msg(file_read_text((char **)&g->hidden, &g->n_bytes, path, 1 << 20, &err) == 0, "%s",
                  err.msg);
}

/* Mean and last row, of one token, of some and of the whole prompt, whatever the chunk. */
START_TEST(engine_embed__is_the_hidden_states_of_transformers)
{
    static const char *const chunks[] = {"512", "17", "1"};
    struct golden g = {0};
    float worst = 0;

    if (!is_for_device(variants[_i]))
        return;
    make_dir(variants[_i]);
    golden_open(&g);
    for (int k = 0; k < 3; k++) {
        struct engine *e = open_engine(dir, "file", chunks[k], "16MiB");
        int dim = engine_get_info(e)->embedding_dim;

        ck_assert_uint_eq(g.n_bytes, (size_t)(N_LENGTHS * 2 * dim) * sizeof(float));
        for (int i = 0; i < N_LENGTHS * 2; i++) {
            const float *want = g.hidden + (ptrdiff_t)i * dim;
            int n = lengths[i / 2] ? lengths[i / 2] : g.n_prompt;
            struct collected c;

            run(e, g.prompt, n, i % 2 ? POOLING_LAST : POOLING_MEAN, &c);
            for (int d = 0; d < dim; d++) {
                float diff = fabsf(c.embedding[d] - want[d]);

                ck_assert_msg(diff <= TOLERANCE, "%s: %s of %d tokens, dim %d: %.7g, want %.7g",
                              variants[_i], i % 2 ? "last" : "mean", n, d, (double)c.embedding[d],
                              (double)want[d]);
                worst = diff > worst ? diff : worst;
            }
            collected_release(&c);
        }
        engine_close(e);
    }
    if (getenv("SPAND_TEST_VERBOSE"))
        fprintf(stderr, "  %-24s max |diff| %.2e\n", variants[_i], (double)worst);
    free(g.hidden);
    remove_dir();
}
END_TEST

/* Prompts of many lengths that begin alike, so that pages are shared where they may be. */
static void make_prompts(int32_t (*prompts)[MAX_PROMPT], int *n, int vocab_size)
{
    for (int i = 0; i < N_MANY; i++) {
        n[i] = 1 + (int)(rng_u64(7, 1, (uint64_t)i) % (MAX_PROMPT - 1));
        for (int k = 0; k < n[i]; k++)
            prompts[i][k] = 10 + (int32_t)(rng_u64(k < 40 ? 1 : (uint64_t)i, 2, (uint64_t)k) %
                                           (uint64_t)(vocab_size - 10));
    }
}

static enum engine_pooling pooling_of(int i)
{
    return i % 2 ? POOLING_LAST : POOLING_MEAN;
}

/* Many at once, mixed with answers that run on, in a pool that makes them yield: the same bits. */
START_TEST(engine_embed__depends_on_nothing_else)
{
    static const struct {
        const char *chunk, *memory;
    } ways[] = {{"512", "16MiB"}, {"23", "16MiB"}, {"64", "1MiB"}};
    static int32_t prompts[N_MANY][MAX_PROMPT];
    struct engine *e = open_engine(test_path(tiny), "random", "512", "16MiB");
    int vocab_size = engine_get_info(e)->vocab_size, n[N_MANY];
    struct collected alone[N_MANY], got[N_MANY], answers[N_MANY];

    make_prompts(prompts, n, vocab_size);
    for (int i = 0; i < N_MANY; i++)
        run(e, prompts[i], n[i], pooling_of(i), &alone[i]);
    engine_close(e);
    for (int w = 0; w < 3; w++) {
        e = open_engine(test_path(tiny), "random", ways[w].chunk, ways[w].memory);
        for (int i = 0; i < N_MANY; i++) {
            struct engine_request answer = request_of(prompts[i], n[i], POOLING_NONE);
            struct engine_request embed = request_of(prompts[i], n[i], pooling_of(i));
            struct err err = {0};
            uint64_t id;

            collected_init(&answers[i]);
            collected_init(&got[i]);
            answer.sampling.max_tokens = 20;
            answer.user = &answers[i];
            embed.user = &got[i];
            ck_assert_msg(engine_submit(e, &answer, &id, &err) == 0, "%s", err.msg);
            ck_assert_msg(engine_submit(e, &embed, &id, &err) == 0, "%s", err.msg);
        }
        for (int i = 0; i < N_MANY; i++) {
            ck_assert(engine_fixture_wait(e, &answers[i], 60));
            ck_assert(engine_fixture_wait(e, &got[i], 60));
            ck_assert_int_eq(got[i].n_embedding, alone[i].n_embedding);
            ck_assert_ptr_null(answers[i].embedding);
            ck_assert_msg(memcmp(got[i].embedding, alone[i].embedding,
                                 (size_t)got[i].n_embedding * sizeof(float)) == 0,
                          "way %d, prompt %d of %d tokens", w, i, n[i]);
            /* A mean takes every row; the last row alone may stand on pages of others. */
            if (pooling_of(i) == POOLING_MEAN)
                ck_assert_int_eq(got[i].n_cached_tokens, 0);
            collected_release(&answers[i]);
            collected_release(&got[i]);
        }
        engine_close(e);
    }
    for (int i = 0; i < N_MANY; i++)
        collected_release(&alone[i]);
}
END_TEST

/* A last row behind cached pages is the row behind computed ones. */
START_TEST(engine_embed__last_row_stands_on_cached_pages)
{
    static int32_t prompts[N_MANY][MAX_PROMPT];
    struct engine *e = open_engine(test_path(tiny), "random", "512", "16MiB");
    int n[N_MANY];
    struct collected first, again;

    make_prompts(prompts, n, engine_get_info(e)->vocab_size);
    run(e, prompts[0], 100, POOLING_LAST, &first);
    run(e, prompts[0], 100, POOLING_LAST, &again);
    ck_assert_int_eq(first.n_cached_tokens, 0);
    ck_assert_int_eq(again.n_cached_tokens, 96);
    ck_assert_int_eq(
        memcmp(first.embedding, again.embedding, (size_t)first.n_embedding * sizeof(float)), 0);
    collected_release(&first);
    collected_release(&again);
    engine_close(e);
}
END_TEST

/* Tokens to generate, and engines without pooling. */
START_TEST(engine_embed__refuses_what_it_cannot)
{
    static const int32_t prompt[] = {11, 12, 13};
    const char *const flags[] = {
        "--model",     test_path(tiny), "--weights", "random", "--threads",           "1",
        "--kv-memory", "1MiB",          "--device",  device(), "--embedding-pooling", "off",
        NULL};
    struct engine_request req = request_of(prompt, 3, POOLING_MEAN);
    struct engine *e = open_engine(test_path(tiny), "random", "512", "1MiB");
    struct err err = {0};
    uint64_t id;

    req.sampling.max_tokens = 1;
    ck_assert_int_eq(engine_submit(e, &req, &id, &err), ERR_INVALID);
    engine_close(e);
    err = (struct err){0};
    e = engine_fixture_open(flags, NULL);
    ck_assert_ptr_nonnull(e);
    ck_assert_int_eq(engine_get_info(e)->embedding_dim, 0);
    req.sampling.max_tokens = 0;
    ck_assert_int_eq(engine_submit(e, &req, &id, &err), ERR_UNSUPPORTED);
    engine_close(e);
}
END_TEST

static int by_name(const void *a, const void *b)
{
    return strcmp(*(char *const *)a, *(char *const *)b);
}

static void find_variants(void)
{
    DIR *d = opendir(test_path("tests/golden/models"));
    struct dirent *de;

    while (d && (de = readdir(d)) && n_variants < MAX_VARIANTS) {
        if (de->d_name[0] != '.')
            variants[n_variants++] = strdup(de->d_name);
    }
    if (d)
        closedir(d);
    qsort(variants, (size_t)n_variants, sizeof(variants[0]), by_name);
}

TEST_SUITE(engine_embed)
{
    TCase *tc = test_case(suite, "core");

    find_variants();
    tcase_set_timeout(tc, 120);
    tcase_add_loop_test(tc, engine_embed__is_the_hidden_states_of_transformers, 0, n_variants);
    tcase_add_test(tc, engine_embed__depends_on_nothing_else);
    tcase_add_test(tc, engine_embed__last_row_stands_on_cached_pages);
    tcase_add_test(tc, engine_embed__refuses_what_it_cannot);
}
