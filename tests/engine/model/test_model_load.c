/*
 * Good directories: what reaches the backend is what the files hold.
 */
#include "base/err.h"
#include "base/file_map.h"
#include "engine/model/model.h"
#include "engine/model/model_impl.h"
#include "engine/model/safetensors.h"
#include "engine/model/weights_dir.h"
#include "tests/lib/test.h"
#include "tests/lib/test_weights_backend.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

struct loaded {
    struct test_weights_backend tb;
    struct model_config cfg;
    struct model *m;
    size_t last_done, total;
    int n_reports;
};

static void on_progress(void *arg, size_t done, size_t total)
{
    struct loaded *l = arg;

    ck_assert_uint_gt(done, l->last_done);
    ck_assert_uint_le(done, total);
    l->last_done = done;
    l->total = total;
    l->n_reports++;
}

static void open_model(struct loaded *l, const char *name, enum dtype dtype, bool random)
{
    struct err err = {0};
    char dir[512];
    struct model_params params = {.dir = dir,
                                  .random_weights = random,
                                  .seed = 5,
                                  .dtype = dtype,
                                  .max_rows = 4,
                                  .max_logits = 2,
                                  .progress = on_progress,
                                  .progress_arg = l};

    memset(l, 0, sizeof(*l));
    snprintf(dir, sizeof(dir), "%s/%s", test_path("tests/golden/models"), name);
    test_weights_backend_init(&l->tb);
    ck_assert_msg(model_config_load(&l->cfg, dir, &err) == 0, "%s", err.msg);
    ck_assert_msg(model_open(&l->m, &l->cfg, &l->tb.be, &params, &err) == 0, "%s", err.msg);
}

static void close_model(struct loaded *l)
{
    model_close(l->m);
    ck_assert_int_eq(l->tb.n_live, 0);
}

static void write_file(const char *path, const void *data, size_t len)
{
    FILE *f = fopen(path, "w");

    ck_assert_ptr_nonnull(f);
    ck_assert_uint_eq(fwrite(data, 1, len, f), len);
    fclose(f);
}

/* q, k and v are stacked in that order, gate before up, across shards. */
START_TEST(model_load__stacks_parts_in_order)
{
    struct loaded l;
    struct weights_dir *wd;
    const struct safetensors_tensor *k, *up;
    const struct stack_layer *y;
    char dir[512];

    open_model(&l, "llama-bias-sharded", DTYPE_F32, false);
    y = &l.m->stack.layers[1];
    snprintf(dir, sizeof(dir), "%s/llama-bias-sharded", test_path("tests/golden/models"));
    ck_assert_int_eq(weights_dir_open(&wd, dir, NULL), 0);
    k = weights_dir_find(wd, "model.layers.1.self_attn.k_proj.weight");
    up = weights_dir_find(wd, "model.layers.1.mlp.up_proj.bias");
    ck_assert_int_eq(y->wqkv.n_out, 3 * 48);
    ck_assert_int_eq(y->wqkv.n_in, 48);
    ck_assert_mem_eq((float *)y->wqkv.data + 48 * 48, k->data, k->bytes);
    ck_assert_int_eq(y->b_in.n_out, 2 * 64);
    ck_assert_mem_eq((float *)y->b_in.data + 64, up->data, up->bytes);
    ck_assert_ptr_nonnull(y->bo.data);
    ck_assert_ptr_nonnull(y->b_down.data);
    weights_dir_close(wd);
    close_model(&l);
}
END_TEST

/* GPT-NeoX's rows come as q, k, v of one head after the other; all q, all k, all v are wanted. */
START_TEST(model_load__splits_heads_of_fused_rows)
{
    enum { HEADS = 2, DIM = 32, HEAD = DIM / HEADS };
    struct loaded l;
    struct weights_dir *wd;
    const struct safetensors_tensor *w, *b;
    const struct stack_layer *y;
    size_t bytes = sizeof(uint16_t) * HEAD * DIM;
    float bias;
    char dir[512];

    open_model(&l, "neox-pythia", DTYPE_F16, false);
    y = &l.m->stack.layers[1];
    snprintf(dir, sizeof(dir), "%s/neox-pythia", test_path("tests/golden/models"));
    ck_assert_int_eq(weights_dir_open(&wd, dir, NULL), 0);
    w = weights_dir_find(wd, "gpt_neox.layers.1.attention.query_key_value.weight");
    b = weights_dir_find(wd, "gpt_neox.layers.1.attention.query_key_value.bias");
    ck_assert_int_eq(y->wqkv.n_out, 3 * DIM);
    for (int which = 0; which < 3; which++) {
        for (int head = 0; head < HEADS; head++) {
            int to = which * HEADS + head, from = head * 3 + which;

            ck_assert_mem_eq((char *)y->wqkv.data + to * bytes, (char *)w->data + from * bytes,
                             bytes);
            dtype_convert(&bias, DTYPE_F32, (const uint16_t *)b->data + from * HEAD, DTYPE_F16, 1);
            ck_assert_float_eq(((float *)y->bqkv.data)[to * HEAD], bias);
        }
    }
    ck_assert_ptr_nonnull(y->attn_norm_bias.data);
    ck_assert_ptr_nonnull(l.m->stack.norm_bias.data);
    ck_assert_uint_eq(model_weight_bytes(l.m), model_config_weight_bytes(&l.cfg, DTYPE_F16));
    ck_assert_int_eq(model_unused(l.m, NULL), 0);
    weights_dir_close(wd);
    close_model(&l);
}
END_TEST

/* Files of the bare decoder, and the masks that old ones carry. */
START_TEST(model_load__old_neox_files)
{
    struct loaded l;

    open_model(&l, "neox-bare-buffers", DTYPE_F32, false);
    ck_assert_int_eq(model_unused(l.m, NULL), 0);
    ck_assert_ptr_null(l.m->head.data);
    close_model(&l);
}
END_TEST

/* Matrices take the dtype asked for, gains and biases stay f32; the byte count is the formula's. */
START_TEST(model_load__vectors_stay_f32)
{
    static const enum dtype dtypes[] = {DTYPE_F32, DTYPE_BF16, DTYPE_F16};
    struct loaded l;

    open_model(&l, "qwen2", dtypes[_i], false);
    ck_assert_int_eq(l.m->stack.layers[0].wqkv.dtype, dtypes[_i]);
    ck_assert_int_eq(l.m->embed.dtype, dtypes[_i]);
    ck_assert_int_eq(l.m->stack.layers[0].bqkv.dtype, DTYPE_F32);
    ck_assert_int_eq(l.m->stack.norm.dtype, DTYPE_F32);
    ck_assert_int_eq(l.m->stack.norm.n_in, 1);
    ck_assert_uint_eq(model_weight_bytes(l.m), model_config_weight_bytes(&l.cfg, dtypes[_i]));
    close_model(&l);
}
END_TEST

/* Progress grows to the whole. */
START_TEST(model_load__reports_progress)
{
    struct loaded l;

    open_model(&l, "qwen3", DTYPE_BF16, false);
    ck_assert_int_gt(l.n_reports, 10);
    ck_assert_uint_eq(l.last_done, l.total);
    ck_assert_uint_eq(l.total, model_weight_bytes(l.m));
    close_model(&l);
}
END_TEST

/* A tied head is no weight of its own; a differing one in the file unties, as transformers does. */
START_TEST(model_load__tie_follows_the_files)
{
    struct loaded l;

    open_model(&l, "llama-gqa-tied", DTYPE_F32, false);
    ck_assert_ptr_null(l.m->head.data);
    ck_assert(model_get_config(l.m)->tie_embeddings);
    close_model(&l);
    open_model(&l, "llama-tied-other-head", DTYPE_F32, false);
    ck_assert(l.cfg.tie_embeddings);
    ck_assert_ptr_nonnull(l.m->head.data);
    ck_assert(!model_get_config(l.m)->tie_embeddings);
    close_model(&l);
    open_model(&l, "llama-tied-head-only", DTYPE_F32, false);
    ck_assert_ptr_null(l.m->head.data);
    close_model(&l);
}
END_TEST

/* inv_freq buffers of old files are no surprise, and odd addresses are read through a copy. */
START_TEST(model_load__old_files)
{
    struct loaded l;
    const char *example = NULL;

    open_model(&l, "vicuna-odd-address", DTYPE_F32, false);
    ck_assert_int_eq(model_unused(l.m, &example), 0);
    ck_assert_int_eq(l.tb.n_misaligned, 0);
    ck_assert_int_gt(l.m->n_aligned, 0);
    close_model(&l);
}
END_TEST

/* A tied head that a file spells out, equal to the table, is neither loaded nor a surprise. */
START_TEST(model_load__equal_head_stays_tied)
{
    char dir[] = "/tmp/spand-test-tied-XXXXXX", path[256], from[512];
    struct file_map map;
    struct loaded l = {0};
    struct model_params params = {.dir = dir, .max_rows = 1, .max_logits = 1};
    struct safetensors *st;
    const struct safetensors_tensor *head, *embed;
    unsigned char *copy;

    /* The differing head of this variant becomes a copy of the table; both have [300, 48]. */
    snprintf(from, sizeof(from), "%s/llama-tied-other-head/model.safetensors",
             test_path("tests/golden/models"));
    ck_assert_int_eq(file_map_open(&map, from, NULL), 0);
    copy = malloc(map.len);
    memcpy(copy, map.data, map.len);
    ck_assert_int_eq(safetensors_parse(&st, copy, map.len, "copy", NULL), 0);
    head = safetensors_find(st, "lm_head.weight");
    embed = safetensors_find(st, "model.embed_tokens.weight");
    memcpy(copy + ((const unsigned char *)head->data - copy), embed->data, head->bytes);
    safetensors_close(st);
    ck_assert_ptr_nonnull(mkdtemp(dir));
    snprintf(path, sizeof(path), "%s/model.safetensors", dir);
    write_file(path, copy, map.len);
    snprintf(from, sizeof(from), "%s/llama-tied-other-head", test_path("tests/golden/models"));
    test_weights_backend_init(&l.tb);
    ck_assert_int_eq(model_config_load(&l.cfg, from, NULL), 0);
    ck_assert_int_eq(model_open(&l.m, &l.cfg, &l.tb.be, &params, NULL), 0);
    ck_assert_ptr_null(l.m->head.data);
    ck_assert(model_get_config(l.m)->tie_embeddings);
    ck_assert_int_eq(model_unused(l.m, NULL), 0);
    close_model(&l);
    free(copy);
    file_map_close(&map);
    unlink(path);
    rmdir(dir);
}
END_TEST

/* A tensor that the architecture does not have is counted and named. */
START_TEST(model_load__names_unused_tensors)
{
    struct loaded l;
    const char *example = NULL;
    struct model_params params = {.max_rows = 1, .max_logits = 1};
    char dir[512];

    open_model(&l, "qwen2", DTYPE_F32, false);
    close_model(&l);
    snprintf(dir, sizeof(dir), "%s/qwen2", test_path("tests/golden/models"));
    params.dir = dir;
    l.cfg.stack.qkv_bias = false;
    ck_assert_int_eq(model_open(&l.m, &l.cfg, &l.tb.be, &params, NULL), 0);
    ck_assert_int_eq(model_unused(l.m, &example), 3 * l.cfg.stack.n_layers);
    ck_assert_ptr_nonnull(strstr(example, "_proj.bias"));
    close_model(&l);
}
END_TEST

/* Random weights need config.json alone, are the same for a seed, and have gains of one. */
START_TEST(model_load__random_weights)
{
    struct loaded a, b;
    const float *w, *gain;
    double sum = 0;

    open_model(&a, "llama-head128-gelu", DTYPE_F32, true);
    open_model(&b, "llama-head128-gelu", DTYPE_F32, true);
    w = a.m->stack.layers[0].w_in.data;
    gain = a.m->stack.layers[0].ffn_norm.data;
    ck_assert_mem_eq(w, b.m->stack.layers[0].w_in.data, 2 * 64 * 32 * sizeof(float));
    ck_assert_float_ne(w[0], ((float *)a.m->stack.layers[1].w_in.data)[0]);
    ck_assert_float_eq(gain[31], 1.0f);
    for (int i = 0; i < 2 * 64 * 32; i++)
        sum += (double)w[i] * w[i];
    ck_assert_double_eq_tol(sum / (2 * 64 * 32) * 32, 1.0, 0.1); /* variance 1/n_in */
    close_model(&a);
    close_model(&b);
}
END_TEST

/* A directory with tokenizer.model alone is refused by that name; with tokenizer.json it is not. */
START_TEST(model_load__tokenizer_is_found_or_named)
{
    char dir[] = "/tmp/spand-test-dir-XXXXXX", path[256], old[64], new[64];
    struct err err = {0};

    ck_assert_ptr_nonnull(mkdtemp(dir));
    ck_assert_int_eq(model_tokenizer_path(path, sizeof(path), dir, NULL), ERR_NOT_FOUND);
    snprintf(old, sizeof(old), "%s/model-q4.gguf", dir);
    fclose(fopen(old, "w"));
    ck_assert_int_eq(model_tokenizer_path(path, sizeof(path), dir, &err), ERR_UNSUPPORTED);
    ck_assert_ptr_nonnull(strstr(err.msg, "found model-q4.gguf"));
    unlink(old);
    err = (struct err){0};
    snprintf(old, sizeof(old), "%s/tokenizer.model", dir);
    snprintf(new, sizeof(new), "%s/tokenizer.json", dir);
    fclose(fopen(old, "w"));
    ck_assert_int_eq(model_tokenizer_path(path, sizeof(path), dir, &err), ERR_UNSUPPORTED);
    ck_assert_ptr_nonnull(strstr(err.msg, "the tokenizer is in tokenizer.model"));
    fclose(fopen(new, "w"));
    ck_assert_int_eq(model_tokenizer_path(path, sizeof(path), dir, NULL), 0);
    ck_assert_str_eq(path, new);
    unlink(old);
    unlink(new);
    rmdir(dir);
}
END_TEST

TEST_SUITE(model_load)
{
    TCase *tc = test_case(suite, "load");

    tcase_add_test(tc, model_load__stacks_parts_in_order);
    tcase_add_test(tc, model_load__splits_heads_of_fused_rows);
    tcase_add_test(tc, model_load__old_neox_files);
    tcase_add_loop_test(tc, model_load__vectors_stay_f32, 0, 3);
    tcase_add_test(tc, model_load__reports_progress);
    tcase_add_test(tc, model_load__tie_follows_the_files);
    tcase_add_test(tc, model_load__equal_head_stays_tied);
    tcase_add_test(tc, model_load__old_files);
    tcase_add_test(tc, model_load__names_unused_tensors);
    tcase_add_test(tc, model_load__random_weights);
    tcase_add_test(tc, model_load__tokenizer_is_found_or_named);
}
