/*
 * What inspect says of well-known shapes: parameters as published, totals of the published plans.
 */
#include "base/strbuf.h"
#include "config/config.h"
#include "engine/engine.h"
#include "tests/lib/test.h"

#include <jansson.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#define LLAMA "\"architectures\":[\"LlamaForCausalLM\"],\"model_type\":\"llama\","
#define QWEN2 "\"architectures\":[\"Qwen2ForCausalLM\"],\"model_type\":\"qwen2\","

static const char *const llama2_7b =
    LLAMA "\"vocab_size\":32000,\"hidden_size\":4096,\"intermediate_size\":11008,"
          "\"num_hidden_layers\":32,\"num_attention_heads\":32,\"num_key_value_heads\":32,"
          "\"max_position_embeddings\":16384,\"rms_norm_eps\":1e-5";
static const char *const llama3_8b =
    LLAMA "\"vocab_size\":128256,\"hidden_size\":4096,\"intermediate_size\":14336,"
          "\"num_hidden_layers\":32,\"num_attention_heads\":32,\"num_key_value_heads\":8,"
          "\"max_position_embeddings\":262144,\"rms_norm_eps\":1e-5,\"rope_theta\":283461213.0";
static const char *const llama32_1b =
    LLAMA "\"vocab_size\":128256,\"hidden_size\":2048,\"intermediate_size\":8192,"
          "\"num_hidden_layers\":16,\"num_attention_heads\":32,\"num_key_value_heads\":8,"
          "\"head_dim\":64,\"max_position_embeddings\":131072,\"rms_norm_eps\":1e-5,"
          "\"tie_word_embeddings\":true";
static const char *const qwen25_7b =
    QWEN2 "\"vocab_size\":152064,\"hidden_size\":3584,\"intermediate_size\":18944,"
          "\"num_hidden_layers\":28,\"num_attention_heads\":28,\"num_key_value_heads\":4,"
          "\"max_position_embeddings\":32768,\"rms_norm_eps\":1e-6,\"use_sliding_window\":false,"
          "\"sliding_window\":131072";
static const char *const qwen25_05b =
    QWEN2 "\"vocab_size\":151936,\"hidden_size\":896,\"intermediate_size\":4864,"
          "\"num_hidden_layers\":24,\"num_attention_heads\":14,\"num_key_value_heads\":2,"
          "\"max_position_embeddings\":32768,\"rms_norm_eps\":1e-6,\"tie_word_embeddings\":true";

static char dir[64];

static void write_config(const char *members)
{
    char path[128];
    FILE *f;

    snprintf(dir, sizeof(dir), "/tmp/spand-inspect-XXXXXX");
    ck_assert_ptr_nonnull(mkdtemp(dir));
    snprintf(path, sizeof(path), "%s/config.json", dir);
    f = fopen(path, "w");
    ck_assert_ptr_nonnull(f);
    fprintf(f, "{%s,\"hidden_act\":\"silu\",\"torch_dtype\":\"bfloat16\"}", members);
    fclose(f);
}

static void remove_config(void)
{
    char path[128];

    snprintf(path, sizeof(path), "%s/config.json", dir);
    unlink(path);
    rmdir(dir);
}

static int inspect(const char *flag, const char *value, int n_tokens, struct strbuf *out,
                   struct err *err)
{
    char *argv[] = {"--model", dir, "--kv-memory", "64GiB", (char *)flag, (char *)value};
    struct config config = {0};
    int rc =
        config_load(&config, &(struct config_sources){.argc = flag ? 6 : 4, .argv = argv}, err);

    if (rc == 0)
        rc = engine_inspect(&config,
                            &(struct engine_inspect){.form = INSPECT_JSON, .n_tokens = n_tokens},
                            out, err);
    config_release(&config);
    return rc;
}

static json_t *inspect_json(const char *flag, const char *value, int n_tokens)
{
    struct strbuf out = STRBUF_INIT;
    struct err err = {0};
    json_t *root;

    ck_assert_msg(inspect(flag, value, n_tokens, &out, &err) == 0, "%s", err.msg);
    root = json_loads(out.buf, 0, NULL);
    ck_assert_ptr_nonnull(root);
    strbuf_release(&out);
    return root;
}

static long long number(const json_t *root, const char *key)
{
    const json_t *v = json_object_get(root, key);

    ck_assert_msg(json_is_integer(v), "%s is no integer", key);
    return json_integer_value(v);
}

static const struct {
    const char *const *config;
    long long params, kv_bytes_per_token;
} shapes[] = {
    {&llama2_7b, 6738415616, 524288}, {&llama3_8b, 8030261248, 131072},
    {&llama32_1b, 1235814400, 32768}, {&qwen25_7b, 7615616512, 57344},
    {&qwen25_05b, 494032768, 12288},
};

/* The parameters are those that the models' cards give, to the last one. */
START_TEST(engine_inspect__counts_published_models)
{
    json_t *root;

    write_config(*shapes[_i].config);
    root = inspect_json(NULL, NULL, 4096);
    ck_assert_int_eq(number(root, "params"), shapes[_i].params);
    /* bf16, but for the gains of the norms. */
    ck_assert_int_ge(number(root, "weights_bytes"), 2 * shapes[_i].params);
    ck_assert_int_lt(number(root, "weights_bytes"), 2 * shapes[_i].params * 1.001);
    ck_assert_int_eq(number(root, "kv_bytes_per_token"), shapes[_i].kv_bytes_per_token);
    ck_assert_int_eq(number(root, "kv_bytes_per_seq"), 4096 * shapes[_i].kv_bytes_per_token);
    ck_assert_int_eq(number(root, "max_batch"),
                     (64LL << 30) / (4096 * shapes[_i].kv_bytes_per_token));
    json_decref(root);
    remove_config();
}
END_TEST

#define PLANS "tests/fixtures/moa-plans/"

static const struct {
    const char *const *config, *plan;
    int n;
    long long slots_query, slots_kv;
} plans[] = {
    {&llama2_7b, PLANS "lmsys--vicuna-7b-v1.5-16k/moa_alpha_beta.json", 4096, 2031616, 2031616},
    {&llama2_7b, PLANS "lmsys--vicuna-7b-v1.5-16k/moa_alpha_beta.json", 8192, 4128768, 4128768},
    {&llama2_7b, PLANS "lmsys--vicuna-7b-v1.5-16k/moa_alpha_beta.json", 16384, 8323072, 8323072},
    {&llama3_8b, PLANS "gradientai--Llama-3-8B-Instruct-262k/moa_alpha_beta.json", 4096, 2032128,
     645632},
    {&llama3_8b, PLANS "gradientai--Llama-3-8B-Instruct-262k/moa_alpha_beta.json", 8192, 4125696,
     1373184},
    {&llama3_8b, PLANS "gradientai--Llama-3-8B-Instruct-262k/moa_alpha_beta.json", 16384, 8296448,
     2821120},
    {&llama2_7b, "uniform:0.5", 4096, 2097152, 2097152},
    {&llama3_8b, "uniform:0.5", 4096, 2097152, 524288},
    /* 4 sink tokens take a tile of 64, 508 recent ones eight. */
    {&llama2_7b, "streaming:4,508", 16384, 1024 * 576, 1024 * 576},
};

/* The query heads' totals are those of the published runtime's rounding. */
START_TEST(engine_inspect__totals_plans)
{
    char path[512];
    const char *plan = plans[_i].plan;
    json_t *root;

    if (strncmp(plan, PLANS, sizeof(PLANS) - 1) == 0) {
        snprintf(path, sizeof(path), "%s", test_path(plan));
        plan = path;
    }
    write_config(*plans[_i].config);
    root = inspect_json("--plan", plan, plans[_i].n);
    ck_assert_int_eq(number(root, "n"), plans[_i].n);
    ck_assert_int_eq(number(root, "slots_query_heads"), plans[_i].slots_query);
    ck_assert_int_eq(number(root, "slots_kv_heads"), plans[_i].slots_kv);
    /* 128 numbers of 2 bytes, K and V. */
    ck_assert_int_eq(number(root, "kv_bytes_per_seq"), plans[_i].slots_kv * 512);
    json_decref(root);
    remove_config();
}
END_TEST

static const char *const fixture_plans[][2] = {
    {"vicuna-7b", "lmsys--vicuna-7b-v1.5-16k"},
    {"vicuna-13b", "lmsys--vicuna-13b-v1.5-16k"},
    {"llama-3-8b", "gradientai--Llama-3-8B-Instruct-262k"},
    {"llama-3-70b", "gradientai--Llama-3-70B-Instruct-262k"},
    {"llama-3.2-1b", "meta-llama--Llama-3.2-1B-Instruct"},
    {"llama-3.2-3b", "meta-llama--Llama-3.2-3B-Instruct"},
};

static int inspect_fixture(int which, struct engine_inspect how, struct strbuf *out,
                           struct err *err)
{
    char model[512], plan[512];
    char *argv[] = {"--model", model, "--plan", plan, "--kv-memory", "64GiB"};
    struct config config = {0};
    int rc;

    snprintf(plan, sizeof(plan), PLANS "%s/moa_alpha_beta.json", fixture_plans[which][1]);
    snprintf(plan, sizeof(plan), "%s", test_path(plan));
    snprintf(model, sizeof(model), "tests/fixtures/shapes/%s", fixture_plans[which][0]);
    snprintf(model, sizeof(model), "%s", test_path(model));
    rc = config_load(&config, &(struct config_sources){.argc = 6, .argv = argv}, err);
    if (rc == 0)
        rc = engine_inspect(&config, &how, out, err);
    config_release(&config);
    return rc;
}

/* Every published plan fits the shape it was made for, length by length as asked one by one. */
START_TEST(engine_inspect__lists_all_lengths)
{
    struct strbuf out = STRBUF_INIT;
    struct err err = {0};
    json_t *root, *list, *row;
    size_t i;

    ck_assert_msg(inspect_fixture(_i, (struct engine_inspect){.form = INSPECT_JSON}, &out, &err) ==
                      0,
                  "%s", err.msg);
    root = json_loads(out.buf, 0, NULL);
    list = json_object_get(root, "by_length");
    ck_assert_int_ge(json_array_size(list), 5);
    json_array_foreach(list, i, row)
    {
        struct strbuf one_out = STRBUF_INIT;
        json_t *one;

        ck_assert_int_eq(number(row, "n"), 1024 << i);
        inspect_fixture(
            _i, (struct engine_inspect){.form = INSPECT_JSON, .n_tokens = (int)number(row, "n")},
            &one_out, &err);
        one = json_loads(one_out.buf, 0, NULL);
        ck_assert_int_eq(number(row, "slots_kv_heads"), number(one, "slots_kv_heads"));
        ck_assert_int_eq(number(row, "slots_query_heads"), number(one, "slots_query_heads"));
        ck_assert_int_eq(number(row, "max_batch"), number(one, "max_batch"));
        ck_assert_int_eq(number(row, "kv_bytes_per_seq") * number(row, "max_batch") <= 64LL << 30,
                         1);
        json_decref(one);
        strbuf_release(&one_out);
    }
    json_decref(root);
    strbuf_release(&out);
}
END_TEST

/* A device's memory less the weights, by the bytes of a sequence. */
START_TEST(engine_inspect__fits_batches_into_a_memory_size)
{
    struct strbuf out = STRBUF_INIT;
    struct err err = {0};
    struct engine_inspect how = {
        .form = INSPECT_JSON, .n_tokens = 8192, .memory = INT64_C(80) << 30};
    json_t *root;

    ck_assert_int_eq(inspect_fixture(2, how, &out, &err), 0);
    root = json_loads(out.buf, 0, NULL);
    ck_assert_int_eq(number(root, "kv_memory_bytes"), (80LL << 30) - number(root, "weights_bytes"));
    ck_assert_int_eq(number(root, "kv_bytes_per_seq"), 1373184LL * 512);
    ck_assert_int_eq(number(root, "max_batch"),
                     number(root, "kv_memory_bytes") / (1373184LL * 512));
    json_decref(root);
    strbuf_reset(&out);
    how.memory = 1 << 30; /* less than the weights */
    ck_assert_int_eq(inspect_fixture(2, how, &out, &err), 0);
    root = json_loads(out.buf, 0, NULL);
    ck_assert_int_eq(number(root, "max_batch"), 0);
    json_decref(root);
    strbuf_release(&out);
}
END_TEST

/* For people: the asked length among the others, in order, and the map below. */
START_TEST(engine_inspect__writes_text_with_a_map)
{
    struct strbuf out = STRBUF_INIT;
    struct err err = {0};
    const char *before, *asked, *behind, *map;

    ck_assert_int_eq(inspect_fixture(0, (struct engine_inspect){.n_tokens = 5000}, &out, &err), 0);
    before = strstr(out.buf, "\n      4096        2031616        2031616    48.44 %    48.44 %");
    asked = strstr(out.buf, "\n      5000 ");
    behind = strstr(out.buf, "\n      8192        4128768 ");
    map = strstr(out.buf, "\n      0  6688");
    ck_assert_ptr_nonnull(before);
    ck_assert_ptr_nonnull(asked);
    ck_assert_ptr_nonnull(behind);
    ck_assert_ptr_nonnull(map);
    ck_assert(before < asked && asked < behind && behind < map);
    strbuf_release(&out);
}
END_TEST

/* What the daemon would refuse is refused here with the same words. */
START_TEST(engine_inspect__refuses_odd_pages)
{
    struct strbuf out = STRBUF_INIT;
    struct err err = {0};

    write_config(llama2_7b);
    ck_assert_int_eq(inspect("--page-entries", "100", 4096, &out, &err), ERR_INVALID);
    ck_assert_str_eq(err.msg, "page_entries is 100, must divide 64");
    strbuf_release(&out);
    remove_config();
}
END_TEST

#define COUNT(a) ((int)(sizeof(a) / sizeof((a)[0])))

TEST_SUITE(engine_inspect)
{
    TCase *tc = test_case(suite, "core");

    tcase_add_loop_test(tc, engine_inspect__counts_published_models, 0, COUNT(shapes));
    tcase_add_loop_test(tc, engine_inspect__totals_plans, 0, COUNT(plans));
    tcase_add_loop_test(tc, engine_inspect__lists_all_lengths, 0, COUNT(fixture_plans));
    tcase_add_test(tc, engine_inspect__fits_batches_into_a_memory_size);
    tcase_add_test(tc, engine_inspect__writes_text_with_a_map);
    tcase_add_test(tc, engine_inspect__refuses_odd_pages);
}
