/*
 * What config.json and generation_config.json mean: defaults, both spellings, precedence.
 */
#include "base/err.h"
#include "engine/model/model.h"
#include "tests/lib/test.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#define SHAPE                                                                                      \
    "\"vocab_size\": 100, \"hidden_size\": 64, \"num_hidden_layers\": 4, "                         \
    "\"intermediate_size\": 96, \"num_attention_heads\": 8"

static char dir[64];

static void setup(void)
{
    strcpy(dir, "/tmp/spand-test-config-XXXXXX");
    ck_assert_ptr_nonnull(mkdtemp(dir));
}

static void put(const char *name, const char *text)
{
    char path[128];
    FILE *f;

    snprintf(path, sizeof(path), "%s/%s", dir, name);
    f = fopen(path, "w");
    ck_assert_ptr_nonnull(f);
    fputs(text, f);
    fclose(f);
}

static void teardown(void)
{
    char path[128];

    snprintf(path, sizeof(path), "%s/config.json", dir);
    unlink(path);
    snprintf(path, sizeof(path), "%s/generation_config.json", dir);
    unlink(path);
    rmdir(dir);
}

/* {"model_type": type, SHAPE, more} */
static struct model_config load(const char *type, const char *more)
{
    struct model_config cfg;
    struct err err = {0};
    char text[2048];

    snprintf(text, sizeof(text), "{\"model_type\": \"%s\", " SHAPE "%s%s}", type,
             more[0] ? ", " : "", more);
    put("config.json", text);
    ck_assert_msg(model_config_load(&cfg, dir, &err) == 0, "%s", err.msg);
    return cfg;
}

/* An absent key has the default of the family's configuration class. */
START_TEST(model_config__llama_defaults)
{
    struct model_config c = load("llama", "");

    ck_assert_int_eq(c.stack.n_kv_heads, 8);
    ck_assert_int_eq(c.stack.head_dim, 8);
    ck_assert_int_eq(c.max_seq_len, 2048);
    ck_assert_float_eq(c.stack.norm_eps, 1e-6f);
    ck_assert_double_eq(c.stack.rope.theta, 10000);
    ck_assert_int_eq(c.stack.rope.kind, ROPE_DEFAULT);
    ck_assert_int_eq(c.stack.rope.dim, 8);
    ck_assert_int_eq(c.stack.act, ACT_SILU);
    ck_assert(!c.tie_embeddings);
    ck_assert(!c.stack.qkv_bias);
    ck_assert_int_eq(c.window[3], KV_WINDOW_ALL);
    ck_assert_int_eq(c.bos_id, 1);
    ck_assert_int_eq(c.n_eos, 1);
    ck_assert_int_eq(c.eos_ids[0], 2);
}
END_TEST

/* Mistral's window is 4096 unless the file says null; its KV heads 8 unless it says null. */
START_TEST(model_config__mistral_absent_is_not_null)
{
    struct model_config c = load("mistral", "");

    ck_assert_int_eq(c.window[0], 4096);
    ck_assert_int_eq(c.stack.n_kv_heads, 8);
    ck_assert_int_eq(c.max_seq_len, 131072);
    c = load("mistral", "\"sliding_window\": null, \"attention_bias\": true");
    ck_assert_int_eq(c.window[0], KV_WINDOW_ALL);
    ck_assert(!c.stack.qkv_bias);
    c = load("qwen2", "\"num_key_value_heads\": null"); /* absent it would be 32 */
    ck_assert_int_eq(c.stack.n_kv_heads, 8);
}
END_TEST

/* GPT-NeoX has keys of its own, and does not read Llama's. */
START_TEST(model_config__neox_keys)
{
    struct model_config c = load("gpt_neox", "\"num_key_value_heads\": 2, \"rope_theta\": 5");

    ck_assert_int_eq(c.stack.kind, STACK_NEOX);
    ck_assert_int_eq(c.stack.norm, NORM_LAYER);
    ck_assert_int_eq(c.stack.act, ACT_GELU_ERF);
    ck_assert_int_eq(c.stack.n_kv_heads, 8);
    ck_assert_int_eq(c.stack.rope.dim, 2); /* a quarter of 8 */
    ck_assert_double_eq(c.stack.rope.theta, 10000);
    ck_assert_float_eq(c.stack.norm_eps, 1e-5f);
    ck_assert(c.stack.is_parallel);
    ck_assert(!c.stack.is_gated);
    ck_assert(c.stack.qkv_bias && c.stack.o_bias && c.stack.ffn_bias);
    ck_assert_int_eq(c.bos_id, 0);
    ck_assert_int_eq(c.eos_ids[0], 2);
    c = load("gpt_neox", "\"attention_bias\": false, \"use_parallel_residual\": false,"
                         "\"rotary_pct\": 0.5, \"rotary_emb_base\": 500, \"layer_norm_eps\": 0.01");
    ck_assert(!c.stack.qkv_bias && !c.stack.o_bias && c.stack.ffn_bias);
    ck_assert(!c.stack.is_parallel);
    ck_assert_int_eq(c.stack.rope.dim, 4);
    ck_assert_double_eq(c.stack.rope.theta, 500);
    ck_assert_float_eq(c.stack.norm_eps, 0.01f);
    /* What is inside of rope_parameters wins. */
    c = load("gpt_neox", "\"rotary_pct\": 0.5, \"rope_parameters\": {\"rope_theta\": 7,"
                         "\"partial_rotary_factor\": 1.0}");
    ck_assert_int_eq(c.stack.rope.dim, 8);
    ck_assert_double_eq(c.stack.rope.theta, 7);
}
END_TEST

#define BLOCK                                                                                      \
    "{\"model_type\": \"block_transformer\", \"vocab_size\": 100,"                                 \
    "\"max_position_embeddings\": 64, \"block_length\": 4, \"n_prefix\": 2, \"embedder\":"         \
    "{\"hidden_size\": 16}, \"block_decoder\": {\"model_type\": \"gpt_neox\", " SHAPE              \
    "}, \"token_decoder\": {\"model_type\": \"gpt_neox\", \"hidden_size\": 32,"                    \
    "\"num_hidden_layers\": 2, \"num_attention_heads\": 4, \"intermediate_size\": 40}"

/* A Block Transformer's two decoders, and the defaults of what is our own. */
START_TEST(model_config__block_transformer)
{
    struct model_config c;
    struct err err = {0};

    put("config.json", BLOCK "}");
    ck_assert_msg(model_config_load(&c, dir, &err) == 0, "%s", err.msg);
    ck_assert_int_eq(c.block.block_len, 4);
    ck_assert_int_eq(c.stack.dim, 64);
    ck_assert_int_eq(c.stack.kind, STACK_NEOX);
    ck_assert_int_eq(c.block.token.dim, 32);
    ck_assert_int_eq(c.block.token.rope.dim, 2);
    ck_assert(c.block.has_start_block && !c.block.pads_left && !c.block.shares_prefix_pos);
    ck_assert(!c.block.projects);
    ck_assert_int_eq(c.eos_ids[0], 0);
    ck_assert_int_eq(c.max_seq_len, 64);
    put("config.json",
        BLOCK ", \"alignment\": \"left_pad\", \"start_block\": false, \"start_id\": 7,"
              "\"token_positions\": \"generate\"}");
    ck_assert_int_eq(model_config_load(&c, dir, &err), 0);
    ck_assert(c.block.pads_left && !c.block.has_start_block && c.block.shares_prefix_pos);
    ck_assert_int_eq(c.block.start_id, 7);
}
END_TEST

/* How many tokens stand in front of a prompt, and how many blocks its sequence stores. */
START_TEST(model_config__block_leads)
{
    struct block_config start = {.block_len = 4, .has_start_block = true};
    struct block_config plain = {.block_len = 4};
    struct block_config pads = {.block_len = 4, .pads_left = true};
    static const int pad[] = {4, 3, 2, 1, 0, 3, 2, 1, 0};

    for (int n = 0; n <= 8; n++) {
        ck_assert_int_eq(block_config_lead(&start, n), 4);
        ck_assert_int_eq(block_config_lead(&plain, n), n < 4 ? 4 : 0);
        ck_assert_int_eq(block_config_lead(&pads, n), pad[n]);
    }
    /* The block that the last token lies in is not stored. */
    ck_assert_int_eq(block_config_entries(&start, 5, 5), 2);
    ck_assert_int_eq(block_config_entries(&start, 5, 8), 2);
    ck_assert_int_eq(block_config_entries(&start, 5, 9), 3);
    ck_assert_int_eq(block_config_entries(&plain, 4, 4), 1);
    ck_assert_int_eq(block_config_entries(&plain, 4, 9), 2);
}
END_TEST

/* Qwen2 always has q, k, v biases and slides only where use_sliding_window and the layer say so. */
START_TEST(model_config__qwen2_windows)
{
    struct model_config c = load("qwen2", "\"num_key_value_heads\": 2, \"sliding_window\": 0");

    ck_assert(c.stack.qkv_bias);
    ck_assert(!c.stack.o_bias);
    ck_assert_int_eq(c.n_eos, 0);
    ck_assert_int_eq(c.bos_id, -1);
    ck_assert_int_eq(c.window[3], KV_WINDOW_ALL);
    c = load("qwen2", "\"num_key_value_heads\": 2, \"use_sliding_window\": true,"
                      "\"sliding_window\": 32, \"max_window_layers\": 3");
    ck_assert_int_eq(c.window[2], KV_WINDOW_ALL);
    ck_assert_int_eq(c.window[3], 32);
    c = load("qwen2", "\"num_key_value_heads\": 2, \"use_sliding_window\": true,"
                      "\"sliding_window\": 32, \"layer_types\": [\"sliding_attention\","
                      "\"full_attention\", \"full_attention\", \"sliding_attention\"]");
    ck_assert_int_eq(c.window[0], 32);
    ck_assert_int_eq(c.window[1], KV_WINDOW_ALL);
    ck_assert_int_eq(c.window[3], 32);
}
END_TEST

/* Qwen3 norms q and k, and its head_dim is 128 unless the file says otherwise. */
START_TEST(model_config__qwen3_defaults)
{
    struct model_config c = load("qwen3", "\"num_key_value_heads\": 4, \"attention_bias\": true");

    ck_assert_int_eq(c.stack.head_dim, 128);
    ck_assert(c.stack.qk_norm);
    ck_assert(c.stack.qkv_bias);
    ck_assert(c.stack.o_bias);
    c = load("qwen3", "\"num_key_value_heads\": 4, \"head_dim\": null");
    ck_assert_int_eq(c.stack.head_dim, 8);
}
END_TEST

/* rope_scaling wins over rope_parameters, a theta inside over one beside. */
START_TEST(model_config__rope_precedence)
{
    struct model_config c = load("llama", "\"rope_theta\": 5, \"rope_parameters\":"
                                          "{\"rope_type\": \"linear\", \"factor\": 2,"
                                          "\"rope_theta\": 7}");

    ck_assert_int_eq(c.stack.rope.kind, ROPE_LINEAR);
    ck_assert_double_eq(c.stack.rope.theta, 7);
    c = load("llama", "\"rope_theta\": 5, \"rope_scaling\": {\"type\": \"dynamic\","
                      "\"factor\": 3}, \"rope_parameters\": {\"rope_type\": \"linear\","
                      "\"factor\": 2, \"rope_theta\": 7}");
    ck_assert_int_eq(c.stack.rope.kind, ROPE_DYNAMIC);
    ck_assert_double_eq(c.stack.rope.factor, 3);
    ck_assert_double_eq(c.stack.rope.theta, 5);
    c = load("llama", "\"rope_scaling\": {}, \"rope_parameters\": {\"rope_type\": \"linear\","
                      "\"factor\": 2}");
    ck_assert_int_eq(c.stack.rope.kind, ROPE_LINEAR);
    c = load("llama", "\"rope_scaling\": {\"rope_type\": \"linear\", \"type\": \"yarn\","
                      "\"factor\": 2}");
    ck_assert_int_eq(c.stack.rope.kind, ROPE_LINEAR);
}
END_TEST

/* Yarn: what is absent is the paper's; a factor of null is the ratio of the two lengths. */
START_TEST(model_config__yarn_defaults)
{
    struct model_config c = load("llama", "\"max_position_embeddings\": 400, \"rope_scaling\":"
                                          "{\"type\": \"yarn\", \"factor\": 4}");

    ck_assert_double_eq(c.stack.rope.beta_fast, 32);
    ck_assert_double_eq(c.stack.rope.beta_slow, 1);
    ck_assert(c.stack.rope.truncate);
    ck_assert_int_eq(c.stack.rope.original_max_seq_len, 400);
    c = load("llama", "\"max_position_embeddings\": 400, \"rope_scaling\": {\"type\": \"yarn\","
                      "\"factor\": null, \"original_max_position_embeddings\": 50,"
                      "\"truncate\": false}");
    ck_assert_double_eq(c.stack.rope.factor, 8);
    ck_assert(!c.stack.rope.truncate);
}
END_TEST

/* The context is what the rotation was stretched to, whether or not the file multiplied it out. */
START_TEST(model_config__stretched_context)
{
    static const struct {
        const char *more;
        int want;
    } cases[] = {
        {"\"rope_scaling\": {\"type\": \"linear\", \"factor\": 4}", 4096 * 4},
        {"\"rope_scaling\": {\"type\": \"dynamic\", \"factor\": 4}", 4096 * 4},
        {"\"rope_scaling\": {\"type\": \"yarn\", \"factor\": 4}", 4096 * 4},
        {"\"rope_scaling\": {\"type\": \"yarn\", \"factor\": 4,"
         "\"original_max_position_embeddings\": 1024}",
         4096},
        {"\"rope_scaling\": {\"type\": \"llama3\", \"factor\": 8, \"low_freq_factor\": 1,"
         "\"high_freq_factor\": 4, \"original_max_position_embeddings\": 512}",
         4096},
        {"\"rope_theta\": 500000", 4096},
    };

    for (size_t i = 0; i < sizeof(cases) / sizeof(cases[0]); i++) {
        char more[512];

        snprintf(more, sizeof(more), "\"max_position_embeddings\": 4096, %s", cases[i].more);
        ck_assert_int_eq(load("llama", more).max_seq_len, cases[i].want);
    }
}
END_TEST

/* dtype wins over torch_dtype; without either and without weights it is bf16. */
START_TEST(model_config__dtype_spellings)
{
    ck_assert_int_eq(load("llama", "\"torch_dtype\": \"float16\"").dtype, DTYPE_F16);
    ck_assert_int_eq(load("llama", "\"dtype\": \"float32\", \"torch_dtype\": \"float16\"").dtype,
                     DTYPE_F32);
    ck_assert_int_eq(load("llama", "\"torch_dtype\": null").dtype, DTYPE_BF16);
}
END_TEST

/* EOS ids of both files count, once each; ids that no token has are dropped. */
START_TEST(model_config__eos_of_both_files)
{
    struct model_config c;

    put("generation_config.json", "{\"eos_token_id\": [5, 7, 100, -1], \"bos_token_id\": 3}");
    c = load("llama", "\"eos_token_id\": 7");
    ck_assert_int_eq(c.n_eos, 2);
    ck_assert_int_eq(c.eos_ids[0], 7);
    ck_assert_int_eq(c.eos_ids[1], 5);
    c = load("llama", "\"bos_token_id\": null");
    ck_assert_int_eq(c.n_eos, 2);
    ck_assert_int_eq(c.bos_id, 3);
    c = load("llama", "\"eos_token_id\": null");
    ck_assert_int_eq(c.n_eos, 2);
}
END_TEST

/* Sampling values of generation_config.json; NAN and 0 say that it has none. */
START_TEST(model_config__sampling_defaults)
{
    struct model_config c = load("llama", "");

    ck_assert(isnan(c.default_temperature));
    ck_assert_int_eq(c.default_top_k, 0);
    put("generation_config.json",
        "{\"temperature\": 0.7, \"top_p\": 0.8, \"top_k\": 20, \"repetition_penalty\": 1.05}");
    c = load("llama", "");
    ck_assert_float_eq(c.default_temperature, 0.7f);
    ck_assert_float_eq(c.default_top_p, 0.8f);
    ck_assert_int_eq(c.default_top_k, 20);
    ck_assert_float_eq(c.default_repetition_penalty, 1.05f);
}
END_TEST

/* The family may be named by the architecture alone, in the spelling of early files too. */
START_TEST(model_config__architecture_without_model_type)
{
    struct model_config c;

    put("config.json", "{\"architectures\": [\"LLaMAForCausalLM\"], " SHAPE "}");
    ck_assert_int_eq(model_config_load(&c, dir, NULL), 0);
    ck_assert_str_eq(c.model_type, "llama");
}
END_TEST

/* Counts by the formula: Llama-2-7B and Qwen2.5-0.5B as published. */
START_TEST(model_config__counts_parameters)
{
    struct model_config c = load("llama", "");

    c.vocab_size = 32000;
    c.stack.dim = 4096;
    c.stack.n_layers = c.stack.n_heads = c.stack.n_kv_heads = 32;
    c.stack.head_dim = 128;
    c.stack.ffn_dim = 11008;
    ck_assert_int_eq(model_config_params(&c), 6738415616);
    ck_assert_int_eq(model_config_weight_bytes(&c, DTYPE_BF16),
                     2 * INT64_C(6738415616) + 2 * INT64_C(65) * 4096);
    ck_assert_int_eq(model_config_max_dim(&c), 22016);
    c = load("qwen2", "\"num_key_value_heads\": 2, \"tie_word_embeddings\": true");
    c.vocab_size = 151936;
    c.stack.dim = 896;
    c.stack.n_layers = 24;
    c.stack.n_heads = 14;
    c.stack.head_dim = 64;
    c.stack.ffn_dim = 4864;
    ck_assert_int_eq(model_config_params(&c), 494032768);
}
END_TEST

TEST_SUITE(model_config)
{
    TCase *tc = test_case(suite, "config");

    tcase_add_checked_fixture(tc, setup, teardown);
    tcase_add_test(tc, model_config__llama_defaults);
    tcase_add_test(tc, model_config__neox_keys);
    tcase_add_test(tc, model_config__block_transformer);
    tcase_add_test(tc, model_config__block_leads);
    tcase_add_test(tc, model_config__mistral_absent_is_not_null);
    tcase_add_test(tc, model_config__qwen2_windows);
    tcase_add_test(tc, model_config__qwen3_defaults);
    tcase_add_test(tc, model_config__rope_precedence);
    tcase_add_test(tc, model_config__yarn_defaults);
    tcase_add_test(tc, model_config__stretched_context);
    tcase_add_test(tc, model_config__dtype_spellings);
    tcase_add_test(tc, model_config__eos_of_both_files);
    tcase_add_test(tc, model_config__sampling_defaults);
    tcase_add_test(tc, model_config__architecture_without_model_type);
    tcase_add_test(tc, model_config__counts_parameters);
}
