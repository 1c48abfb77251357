/*
 * test_model - a whole small model with random weights: the logits of both backends.
 */
#include "tests/cuda/cuda_pair.h"

#include "engine/model/model.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define VOCAB      1003
#define N_LAYERS   3
#define LENGTH     230
#define N_VARIANTS 5

static void make_config(struct model_config *c, int variant)
{
    memset(c, 0, sizeof(*c));
    strcpy(c->model_type, "llama");
    c->vocab_size = VOCAB;
    c->stack.dim = 256;
    c->stack.n_layers = N_LAYERS;
    c->stack.n_heads = 8;
    c->stack.n_kv_heads = variant == 0 ? 8 : variant == 1 ? 2 : 1;
    c->stack.head_dim = variant == 2 ? 64 : 32;
    c->stack.ffn_dim = 696;
    c->max_seq_len = 512;
    c->stack.norm_eps = 1e-5f;
    c->stack.act = ACT_SILU;
    c->stack.is_gated = true;
    c->stack.rope.kind = ROPE_DEFAULT;
    c->stack.rope.theta = 10000;
    c->stack.rope.factor = 1;
    c->stack.rope.dim = c->stack.head_dim;
    c->stack.qkv_bias = variant == 1;
    c->stack.qk_norm = variant == 2;
    c->tie_embeddings = variant == 2;
    if (variant >= 3) { /* GPT-NeoX, with a parallel residual and without */
        c->stack.kind = STACK_NEOX;
        c->stack.norm = NORM_LAYER;
        c->stack.act = variant == 3 ? ACT_GELU_ERF : ACT_GELU_TANH;
        c->stack.is_gated = false;
        c->stack.is_parallel = variant == 3;
        c->stack.n_kv_heads = 8;
        c->stack.qkv_bias = c->stack.o_bias = c->stack.ffn_bias = true;
        c->stack.rope.dim = variant == 3 ? 8 : 32;
    }
    for (int i = 0; i < N_LAYERS; i++)
        c->window[i] = KV_WINDOW_ALL;
}

struct run {
    struct cuda_pair p;
    struct model *cpu, *gpu;
    struct pair_kv kv;
    double worst, rms; /* over all logits so far */
    int n_replayed;
};

/* One step on both, the GPU's under a graph's key if it is not 0; all logits are compared. */
static void run_both(struct run *r, const struct pair_batch *b, int key)
{
    const struct backend_ops *cpu = r->p.cpu->ops, *gpu = r->p.gpu->ops;
    int all = b->cpu.n_rows, replayed;
    struct err err = {0};
    size_t bytes = sizeof(float) * VOCAB * all;
    float *want = malloc(bytes), *got = malloc(bytes);
    double square = 0;

    ck_assert_int_eq(cpu->step_begin(r->p.cpu, &b->cpu, &err), 0);
    ck_assert_msg(model_forward(r->cpu, &b->cpu, &r->kv.cpu, NULL, &err) == 0, "%s", err.msg);
    ck_assert_int_eq(cpu->step_end(r->p.cpu, &err), 0);
    ck_assert_int_eq(gpu->step_begin(r->p.gpu, &b->gpu, &err), 0);
    replayed = key ? gpu->graph_begin(r->p.gpu, key, &err) : 0;
    ck_assert_msg(replayed >= 0, "%s", err.msg);
    r->n_replayed += replayed;
    if (!replayed)
        ck_assert_msg(model_forward(r->gpu, &b->gpu, &r->kv.gpu, NULL, &err) == 0, "%s", err.msg);
    if (key && !replayed)
        ck_assert_msg(gpu->graph_end(r->p.gpu, true, &err) == 0, "%s", err.msg);
    ck_assert_msg(gpu->step_end(r->p.gpu, &err) == 0, "%s", err.msg);
    ck_assert_msg(gpu->step_wait(r->p.gpu, r->p.gpu->n_steps, &err) == 0, "%s", err.msg);
    cpu->download(r->p.cpu, want, model_logits(r->cpu), bytes, &err);
    gpu->download(r->p.gpu, got, model_logits(r->gpu), bytes, &err);
    for (int i = 0; i < all * VOCAB; i++) {
        double off = fabs((double)got[i] - want[i]);

        square += (double)want[i] * want[i];
        if (!(off <= r->worst))
            r->worst = off;
    }
    r->rms = sqrt(square / (all * VOCAB));
    free(want);
    free(got);
}

/* A step in which slot 0 has n rows from pos, slot 1 likewise when n1 > 0. */
static void step(struct run *r, int n, int pos, int n1, int pos1, bool decode)
{
    int32_t token[LENGTH * 2], at[LENGTH * 2], slot[LENGTH * 2], rows[LENGTH * 2];
    struct step_chunk chunks[2] = {{0, 0, n, pos}, {1, n, n1, pos1}};
    int all = n + n1;
    struct pair_batch b;

    for (int i = 0; i < all; i++) {
        slot[i] = i >= n;
        at[i] = i < n ? pos + i : pos1 + i - n;
        token[i] = (at[i] * 31 + slot[i] * 7) % VOCAB;
        rows[i] = i;
    }
    b = pair_batch_new(&r->p, all, decode ? all : 0, decode ? 0 : 1 + (n1 > 0), all, token, at,
                       slot, chunks, rows);
    run_both(r, &b, 0);
    pair_batch_free(&r->p, &b);
}

static void put(struct cuda_pair *p, struct pair_buf *b, const int32_t *values, int n)
{
    struct err err = {0};

    memcpy(b->cpu, values, n * sizeof(*values));
    ck_assert_int_eq(p->gpu->ops->upload(p->gpu, b->gpu, values, n * sizeof(*values), &err), 0);
}

/* Decode steps of both slots in arrays that stay: launched, captured, then replayed. */
static void decode_by_graph(struct run *r, int n_steps, int pos, int pos1)
{
    static int key; /* the backend outlives the model */
    const int32_t slot[2] = {0, 1};
    struct pair_batch b = pair_batch_new(&r->p, 2, 2, 0, 2, slot, slot, slot, NULL, slot);
    double flops = 0, before;

    key++;
    r->n_replayed = 0;
    for (int i = 0; i < n_steps; i++) {
        const int32_t at[2] = {pos + i, pos1 + i}, token[2] = {at[0] * 5 % VOCAB, at[1] % VOCAB};

        put(&r->p, &b.pos, at, 2);
        put(&r->p, &b.token, token, 2);
        before = r->p.gpu->cost[OP_FFN].flops;
        run_both(r, &b, key);
        ck_assert(r->p.gpu->cost[OP_FFN].flops > before);
        if (i > 0)
            ck_assert(r->p.gpu->cost[OP_FFN].flops - before == flops);
        flops = r->p.gpu->cost[OP_FFN].flops - before;
    }
    ck_assert_int_eq(r->n_replayed, n_steps - 2);
    pair_batch_free(&r->p, &b);
}

/* Prompts in odd chunks, then decoding, launch by launch and by graph, over dense and ring heads
 * side by side. */
static void check_model(enum dtype dtype, int variant, double tolerance)
{
    struct model_config c;
    struct model_params params = {.random_weights = true,
                                  .seed = 7,
                                  .dtype = dtype,
                                  .max_rows = 2 * LENGTH,
                                  .max_logits = 2 * LENGTH};
    int32_t len[2] = {0, 0}, max_len[2] = {LENGTH, LENGTH};
    struct kv_geom geom[2 * N_LAYERS * 8];
    int32_t window[2 * N_LAYERS * 8];
    struct run r = {0};
    struct err err = {0};

    make_config(&c, variant);
    pair_open(&r.p, dtype);
    ck_assert_msg(model_open(&r.cpu, &c, r.p.cpu, &params, &err) == 0, "%s", err.msg);
    ck_assert_msg(model_open(&r.gpu, &c, r.p.gpu, &params, &err) == 0, "%s", err.msg);
    for (int i = 0; i < 2 * N_LAYERS * 8; i++) {
        bool ring = i % 3 == 1;

        geom[i] = (struct kv_geom){ring ? 64 : 0, ring ? 64 : KV_RING_DENSE, KV_MASK_BLOCK * ring};
    }
    for (int i = 0; i < 2 * N_LAYERS * c.stack.n_heads; i++) {
        int kv_head = i / (c.stack.n_heads / c.stack.n_kv_heads);

        window[i] = kv_head % 3 == 1 ? 64 : KV_WINDOW_ALL;
    }
    r.kv = pair_kv_new(&r.p,
                       &(struct pair_kv_shape){2, N_LAYERS, c.stack.n_heads, c.stack.n_kv_heads,
                                               c.stack.head_dim, 64, geom, window, len, max_len},
                       9);
    step(&r, 150, 0, 37, 0, false);
    step(&r, 1, 150, 1, 37, true);
    step(&r, 70, 151, 3, 38, false);
    step(&r, 1, 221, 1, 41, true);
    decode_by_graph(&r, 5, 222, 42);
    fprintf(stderr, "model %d in %s: logits differ by %.3g at most, rms %.3g\n", variant,
            dtype_name(dtype), r.worst, r.rms);
    ck_assert_msg(r.worst <= tolerance * r.rms, "model %d in %s: logits differ by %g, rms %g",
                  variant, dtype_name(dtype), r.worst, r.rms);
    pair_kv_free(&r.p, &r.kv);
    model_close(r.cpu);
    model_close(r.gpu);
}

/* f32 throughout: only the order of sums differs, over three layers. */
START_TEST(model__is_the_cpus_in_f32)
{
    check_model(DTYPE_F32, _i, 1e-4);
}
END_TEST

/* In 16 bits the GPU also rounds activations: a dozen roundings of 2^-9 (bf16) add up in a logit.
 */
START_TEST(model__is_near_the_cpus_in_16_bits)
{
    check_model(DTYPE_BF16, _i, 0.15);
    check_model(DTYPE_F16, _i, 0.02);
}
END_TEST

TEST_SUITE(cuda_model)
{
    TCase *tc = test_case(suite, "core");

    tcase_add_loop_test(tc, model__is_the_cpus_in_f32, 0, N_VARIANTS);
    tcase_add_loop_test(tc, model__is_near_the_cpus_in_16_bits, 0, N_VARIANTS);
}
