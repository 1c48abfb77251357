/*
 * --weights random: config.json alone is enough to run, at any depth, in any dtype.
 */
#include "base/err.h"
#include "tests/lib/test.h"
#include "tests/lib/test_model_run.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#define N_PROMPT 20
#define N_NEW    40

static const char config[] =
    "{\"model_type\": \"%s\", \"vocab_size\": 200, \"hidden_size\": 32, \"num_hidden_layers\": %d,"
    "\"intermediate_size\": 64, \"num_attention_heads\": 4, \"num_key_value_heads\": 2,"
    "\"head_dim\": 16, \"tie_word_embeddings\": %s}";

/* Greedy decoding; checks that each row is finite and spread. Returns the distinct tokens. */
static int decode(struct test_model *t)
{
    static int32_t tokens[N_PROMPT + N_NEW];
    float *logits = calloc((size_t)N_PROMPT * t->cfg.vocab_size, sizeof(float));
    bool seen[200] = {false};
    int n_distinct = 0;

    for (int i = 0; i < N_PROMPT; i++)
        tokens[i] = 3 + i * 7;
    ck_assert_int_eq(test_model_sequence(t, tokens, N_PROMPT, N_PROMPT, 0, logits, NULL), 0);
    memmove(logits, logits + (size_t)(N_PROMPT - 1) * t->cfg.vocab_size,
            t->cfg.vocab_size * sizeof(float));
    for (int i = N_PROMPT; i < N_PROMPT + N_NEW; i++) {
        struct test_rows r = {
            .pos0 = i, .n = 1, .tokens = &tokens[i], .decode = true, .rope_len = i + 1};
        double sum = 0;

        for (int v = 0; v < t->cfg.vocab_size; v++) {
            ck_assert_msg(isfinite(logits[v]), "token %d logit %d is %f", i, v, logits[v]);
            sum += (double)logits[v] * logits[v];
        }
        ck_assert_double_gt(sum / t->cfg.vocab_size, 0.05);
        ck_assert_double_lt(sum / t->cfg.vocab_size, 50);
        tokens[i] = test_argmax(logits, t->cfg.vocab_size);
        n_distinct += !seen[tokens[i]];
        seen[tokens[i]] = true;
        ck_assert_int_eq(test_model_step(t, &r, 1, logits, NULL), 0);
    }
    free(logits);
    return n_distinct;
}

/* A deep random model decodes: every logit finite and of a sensible size, tokens that vary. */
START_TEST(model_random__deep_models_decode)
{
    static const struct {
        const char *type, *tied;
        int n_layers;
        enum dtype dtype;
    } cases[] = {
        {"llama", "false", 2, DTYPE_F32},
        {"llama", "true", 100, DTYPE_F32},
        {"qwen2", "false", 100, DTYPE_BF16},
        {"qwen3", "true", 60, DTYPE_BF16},
    };
    char dir[] = "/tmp/spand-test-random-XXXXXX", path[64];
    struct test_model_params p = {.dir = dir,
                                  .dtype = cases[_i].dtype,
                                  .random_weights = true,
                                  .n_slots = 1,
                                  .max_positions = 128,
                                  .max_rows = 32};
    struct test_model t;
    struct err err = {0};
    FILE *f;

    ck_assert_ptr_nonnull(mkdtemp(dir));
    snprintf(path, sizeof(path), "%s/config.json", dir);
    f = fopen(path, "w");
    fprintf(f, config, cases[_i].type, cases[_i].n_layers, cases[_i].tied);
    fclose(f);
    ck_assert_msg(test_model_open(&t, &p, &err) == 0, "%s", err.msg);
    ck_assert_int_gt(decode(&t), 1);
    test_model_close(&t);
    unlink(path);
    rmdir(dir);
}
END_TEST

TEST_SUITE(model_random)
{
    TCase *tc = test_case(suite, "random");

    tcase_add_loop_test(tc, model_random__deep_models_decode, 0, 4);
}
