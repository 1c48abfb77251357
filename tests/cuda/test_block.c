/*
 * Block Transformers on both backends: random weights, one sequence through blocks and phases.
 */
#include "base/err.h"
#include "tests/lib/test.h"
#include "tests/lib/test_block_run.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#define LENGTH 61
#define PROMPT 22
#define VOCAB  131

/* Sizes are multiples of 8, as the CUDA backend wants them, and of nothing more. */
static const char *const configs[] = {
    /* As published: GPT-NeoX's layers, two prefixes, rows of the table side by side. */
    "{\"model_type\": \"block_transformer\", \"vocab_size\": 131, \"max_position_embeddings\": 256,"
    "\"block_length\": 4, \"n_prefix\": 2, \"embedder\": {\"hidden_size\": 24},"
    "\"block_decoder\": {\"model_type\": \"gpt_neox\", \"hidden_size\": 96, \"rotary_pct\": 0.25,"
    "\"num_hidden_layers\": 2, \"num_attention_heads\": 3, \"intermediate_size\": 200},"
    "\"token_decoder\": {\"model_type\": \"gpt_neox\", \"hidden_size\": 120, \"rotary_pct\": 0.25,"
    "\"num_hidden_layers\": 2, \"num_attention_heads\": 3, \"intermediate_size\": 104}}",
    /* Llama's, grouped heads, a projection, three prefixes at one place. */
    "{\"model_type\": \"block_transformer\", \"vocab_size\": 131, \"max_position_embeddings\": 256,"
    "\"block_length\": 4, \"n_prefix\": 3, \"token_positions\": \"generate\","
    "\"embedder\": {\"hidden_size\": 40, \"projection\": \"projection\"},"
    "\"block_decoder\": {\"model_type\": \"llama\", \"hidden_size\": 64, \"num_hidden_layers\": 2,"
    "\"num_attention_heads\": 4, \"num_key_value_heads\": 2, \"head_dim\": 64,"
    "\"intermediate_size\": 88},"
    "\"token_decoder\": {\"model_type\": \"llama\", \"hidden_size\": 72, \"num_hidden_layers\": 2,"
    "\"num_attention_heads\": 4, \"num_key_value_heads\": 1, \"head_dim\": 128,"
    "\"intermediate_size\": 56}}",
    /* The longest blocks, the most prefixes, heads of all of a warp, one prompt block. */
    "{\"model_type\": \"block_transformer\", \"vocab_size\": 131, \"max_position_embeddings\": 256,"
    "\"block_length\": 8, \"n_prefix\": 4, \"embedder\": {\"hidden_size\": 8},"
    "\"block_decoder\": {\"model_type\": \"llama\", \"hidden_size\": 64, \"num_hidden_layers\": 1,"
    "\"num_attention_heads\": 2, \"num_key_value_heads\": 2, \"intermediate_size\": 88},"
    "\"token_decoder\": {\"model_type\": \"llama\", \"hidden_size\": 64, \"num_hidden_layers\": 1,"
    "\"num_attention_heads\": 2, \"num_key_value_heads\": 2, \"head_dim\": 256,"
    "\"intermediate_size\": 56}}",
};
#define N_CONFIGS (int)(sizeof(configs) / sizeof(configs[0]))

static float *run(const char *dir, const char *device, enum dtype dtype)
{
    struct test_model t;
    struct err err = {0};
    struct test_model_params p = {.dir = dir,
                                  .device = device,
                                  .dtype = dtype,
                                  .random_weights = true,
                                  .n_slots = 1,
                                  .max_positions = 64,
                                  .max_rows = 128,
                                  .max_items = 24};
    float *logits = calloc((LENGTH + 1) * VOCAB, sizeof(*logits));
    int32_t tokens[LENGTH];

    for (int i = 0; i < LENGTH; i++)
        tokens[i] = (i * 37 + 11) % VOCAB;
    ck_assert_msg(test_model_open(&t, &p, &err) == 0, "%s", err.msg);
    ck_assert_msg(test_block_sequence(&t, tokens, LENGTH, PROMPT, logits, &err) == 0, "%s",
                  err.msg);
    test_model_close(&t);
    return logits;
}

static void compare(int which, enum dtype dtype, double tolerance)
{
    char dir[] = "/tmp/spand-test-cuda-block-XXXXXX", path[64];
    float *want, *got;
    double worst = 0, square = 0;
    FILE *f;

    ck_assert_ptr_nonnull(mkdtemp(dir));
    snprintf(path, sizeof(path), "%s/config.json", dir);
    f = fopen(path, "w");
    ck_assert_ptr_nonnull(f);
    fputs(configs[which], f);
    fclose(f);
    want = run(dir, "cpu", dtype);
    got = run(dir, "cuda", dtype);
    unlink(path);
    rmdir(dir);
    for (int i = 0; i < LENGTH * VOCAB; i++) {
        double off = fabs((double)got[i] - want[i]);

        square += (double)want[i] * want[i];
        if (!(off <= worst))
            worst = off;
    }
    square = sqrt(square / (LENGTH * VOCAB));
    fprintf(stderr, "block model %d in %s: logits differ by %.3g at most, rms %.3g\n", which,
            dtype_name(dtype), worst, square);
    ck_assert_double_gt(square, 0.5);
    ck_assert_msg(worst <= tolerance * square, "block model %d in %s: logits differ by %g, rms %g",
                  which, dtype_name(dtype), worst, square);
    free(want);
    free(got);
}

/* f32 throughout: only the order of sums differs. */
START_TEST(block__is_the_cpus_in_f32)
{
    compare(_i, DTYPE_F32, 1e-4);
}
END_TEST

/* In 16 bits the GPU also rounds activations, on their way through two decoders. */
START_TEST(block__is_near_the_cpus_in_16_bits)
{
    compare(_i, DTYPE_BF16, 0.2);
    compare(_i, DTYPE_F16, 0.02);
}
END_TEST

TEST_SUITE(cuda_block)
{
    TCase *tc = test_case(suite, "core");

    tcase_add_loop_test(tc, block__is_the_cpus_in_f32, 0, N_CONFIGS);
    tcase_add_loop_test(tc, block__is_near_the_cpus_in_16_bits, 0, N_CONFIGS);
}
