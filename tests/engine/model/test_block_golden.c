/*
 * Block Transformers against an independent forward pass in PyTorch: tests/golden/block_golden.py
 * made the folders.
 *
 * Tolerance: |diff| <= 1e-4 on logits with a standard deviation of 3, both sides in fp32. The
 * script keeps greedy margins far above it, so continuations must be equal. SPAND_TEST_VERBOSE=1
 * prints the largest difference of each variant.
 */
#include "base/err.h"
#include "base/file_map.h"
#include "base/json_file.h"
#include "tests/lib/test.h"
#include "tests/lib/test_block_run.h"

#include <dirent.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define TOLERANCE    1e-4f
#define MAX_VARIANTS 32
#define MAX_ITEMS    24
#define MAX_TOKENS   128

static char *variants[MAX_VARIANTS];
static int n_variants;

static int read_ids(int32_t *out, const json_t *list)
{
    ck_assert_uint_le(json_array_size(list), MAX_TOKENS);
    for (size_t i = 0; i < json_array_size(list); i++)
        out[i] = (int32_t)json_integer_value(json_array_get(list, i));
    return (int)json_array_size(list);
}

static json_t *open_golden(char dir[256], const char *name)
{
    struct err err = {0};
    char path[512];
    json_t *doc = NULL;

    snprintf(dir, 256, "%s/%s", test_path("tests/golden/block"), name);
    snprintf(path, sizeof(path), "%s/golden.json", dir);
    ck_assert_msg(json_file_load(&doc, path, 1 << 20, &err) == 0, "%s", err.msg);
    return doc;
}

static void open_model(struct test_model *t, const char *dir)
{
    struct err err = {0};
    struct test_model_params p = {.dir = dir,
                                  .device = getenv("SPAND_TEST_DEVICE"),
                                  .dtype = DTYPE_F32,
                                  .n_slots = 1,
                                  .max_positions = 64,
                                  .max_rows = 128,
                                  .max_items = MAX_ITEMS};

    ck_assert_msg(test_model_open(t, &p, &err) == 0, "%s: %s", dir, err.msg);
}

/* Every recorded position's logits. */
START_TEST(block_golden__logits_match_the_reference)
{
    struct err err = {0};
    char dir[256], path[512];
    json_t *doc = open_golden(dir, variants[_i]);
    int32_t tokens[MAX_TOKENS], positions[MAX_TOKENS];
    int n = read_ids(tokens, json_object_get(doc, "sequence"));
    int n_positions = read_ids(positions, json_object_get(doc, "positions"));
    int n_prompt = (int)json_integer_value(json_object_get(doc, "n_prompt"));
    struct test_model t;
    float *logits, *want = NULL, worst = 0;
    size_t n_bytes;

    open_model(&t, dir);
    logits = calloc((size_t)(n + 1) * t.cfg.vocab_size, sizeof(*logits));
    snprintf(path, sizeof(path), "%s/logits.f32", dir);
    ck_assert_msg(file_read_text((char **)&want, &n_bytes, path, 1 << 20, &err) == 0, "%s",
                  err.msg);
    ck_assert_int_gt(n_positions, 8);
    ck_assert_uint_eq(n_bytes, (size_t)n_positions * t.cfg.vocab_size * sizeof(float));
    ck_assert_msg(test_block_sequence(&t, tokens, n, n_prompt, logits, &err) == 0, "%s: %s", dir,
                  err.msg);
    for (int i = 0; i < n_positions * t.cfg.vocab_size; i++) {
        int at = positions[i / t.cfg.vocab_size], v = i % t.cfg.vocab_size;
        float got = logits[(size_t)at * t.cfg.vocab_size + v], diff = fabsf(got - want[i]);

        ck_assert_msg(diff <= TOLERANCE, "%s: position %d token %d: %.7g, want %.7g", dir, at, v,
                      got, want[i]);
        worst = diff > worst ? diff : worst;
    }
    if (getenv("SPAND_TEST_VERBOSE"))
        fprintf(stderr, "  %-24s max |diff| %.2e\n", variants[_i], worst);
    free(logits);
    free(want);
    json_decref(doc);
    test_model_close(&t);
}
END_TEST

/* Greedy tokens of every prompt, the empty one too, teacher forced: each is the best of its row. */
START_TEST(block_golden__greedy_tokens_are_the_best_of_their_rows)
{
    struct err err = {0};
    char dir[256];
    json_t *doc = open_golden(dir, variants[_i]), *entry;
    struct test_model t;
    float *logits;
    size_t k;

    open_model(&t, dir);
    logits = calloc((size_t)MAX_TOKENS * t.cfg.vocab_size, sizeof(*logits));
    ck_assert_uint_ge(json_array_size(json_object_get(doc, "greedy")), 11);
    json_array_foreach(json_object_get(doc, "greedy"), k, entry)
    {
        int32_t tokens[2 * MAX_TOKENS];
        int n_prompt = read_ids(tokens, json_object_get(entry, "prompt"));
        int n = n_prompt + read_ids(tokens + n_prompt, json_object_get(entry, "continuation"));

        ck_assert_int_eq(n - n_prompt, 64);
        ck_assert_int_eq(test_block_sequence(&t, tokens, n, n_prompt, logits, &err), 0);
        for (int i = n_prompt; i < n; i++) {
            int best = test_argmax(logits + (size_t)i * t.cfg.vocab_size, t.cfg.vocab_size);

            ck_assert_msg(best == tokens[i], "%s: prompt of %d, token %d: %d, want %d", dir,
                          n_prompt, i - n_prompt, best, (int)tokens[i]);
        }
    }
    free(logits);
    json_decref(doc);
    test_model_close(&t);
}
END_TEST

static int by_name(const void *a, const void *b)
{
    return strcmp(*(char *const *)a, *(char *const *)b);
}

static void find_variants(void)
{
    DIR *d = opendir(test_path("tests/golden/block"));
    struct dirent *de;

    while (d && (de = readdir(d)) && n_variants < MAX_VARIANTS) {
        if (de->d_name[0] != '.')
            variants[n_variants++] = strdup(de->d_name);
    }
    if (d)
        closedir(d);
    qsort(variants, n_variants, sizeof(variants[0]), by_name);
}

TEST_SUITE(block_golden)
{
    TCase *tc = test_case(suite, "golden");

    find_variants();
    tcase_add_loop_test(tc, block_golden__logits_match_the_reference, 0, n_variants);
    tcase_add_loop_test(tc, block_golden__greedy_tokens_are_the_best_of_their_rows, 0, n_variants);
}
