/*
 * test_ops - the layer ops and the products against the CPU backend, at odd sizes.
 */
#include "tests/cuda/cuda_pair.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static const enum dtype dtypes[] = {DTYPE_F32, DTYPE_BF16, DTYPE_F16};

#define N_DTYPES 3

/* A step of n rows, the first n_decode of them decode rows, in slots of their own. */
static struct pair_batch rows_batch(struct cuda_pair *p, int n, int n_decode, int n_logits)
{
    static int32_t token[PAIR_MAX_ROWS], pos[PAIR_MAX_ROWS], slot[PAIR_MAX_ROWS];
    static int32_t logit_row[PAIR_MAX_ROWS];
    struct step_chunk chunk = {n_decode, n_decode, n - n_decode, 3};

    for (int i = 0; i < n; i++) {
        token[i] = (i * 37 + 5) % 100;
        pos[i] = i < n_decode ? i * 13 % 90 : 3 + i - n_decode;
        slot[i] = i < n_decode ? i : n_decode;
        logit_row[i] = n - 1 - i;
    }
    return pair_batch_new(p, n, n_decode, n > n_decode, n_logits, token, pos, slot, &chunk,
                          logit_row);
}

/* Rows of the table arrive as they are. */
START_TEST(embed__copies_rows)
{
    for (int d = 0; d < N_DTYPES; d++) {
        struct cuda_pair p;
        struct pair_weight table;
        struct pair_buf x;
        struct pair_batch b;

        pair_open(&p, dtypes[d]);
        table = pair_weight_random(&p, 100, 72, true, 1, 0, 1);
        x = pair_random(&p, 33 * 72, 1, 2);
        b = rows_batch(&p, 33, 5, 0);
        PAIR_RUN(&p, &b, embed, embed_args, .batch = SIDE_REF(b), .table = SIDE_REF(table),
                 .x = SIDE(x));
        pair_compare(&p, &x, "embed", 0.01f);
        pair_batch_free(&p, &b);
        pair_free(&p, &x);
        pair_weight_free(&p, &table);
    }
}
END_TEST

/* Rows without a token take their slot's, which an earlier step left on the device. */
START_TEST(embed__takes_the_slots_token)
{
    enum { N = 19, N_SLOTS = 23, DIM = 72 };
    int32_t token[N], slot[N], slot_token[N_SLOTS];

    for (int i = 0; i < N; i++) {
        token[i] = i % 4 ? -1 : i;
        slot[i] = (i * 5 + 3) % N_SLOTS;
    }
    for (int i = 0; i < N_SLOTS; i++)
        slot_token[i] = 99 - i;
    for (int d = 0; d < N_DTYPES; d++) {
        struct cuda_pair p;
        struct pair_weight table;
        struct pair_buf x, known;
        struct pair_batch b;

        pair_open(&p, dtypes[d]);
        table = pair_weight_random(&p, 100, DIM, true, 1, 0, 1);
        x = pair_random(&p, N * DIM, 1, 2);
        known = pair_i32(&p, slot_token, N_SLOTS);
        b = pair_batch_new(&p, N, N, 0, 0, token, token, slot, NULL, NULL);
        b.cpu.slot_token = known.cpu;
        b.gpu.slot_token = known.gpu;
        PAIR_RUN(&p, &b, embed, embed_args, .batch = SIDE_REF(b), .table = SIDE_REF(table),
                 .x = SIDE(x));
        pair_compare(&p, &x, "embed", 0.01f);
        pair_batch_free(&p, &b);
        pair_free(&p, &x);
        pair_free(&p, &known);
        pair_weight_free(&p, &table);
    }
}
END_TEST

/* Shapes of products: one row, a tile of 8 and of 64 rows and one off; outputs and inputs likewise.
 */
static const struct product {
    int n, n_decode, n_in, n_out;
} products[] = {
    {1, 1, 64, 32},
    {1, 0, 64, 32},
    {7, 7, 40, 31 * 8},
    {8, 8, 512, 33 * 8},
    {9, 9, 520, 96},
    {16, 16, 4096, 64},
    {17, 9, 264, 264},
    {31, 31, 1024, 128},
    {33, 32, 136, 72},
    {64, 63, 2048, 256},
    {65, 65, 512, 512},
    {130, 65, 88, 152},
    {200, 1, 768, 2304},
    {63, 0, 256, 512},
    {129, 0, 11008, 64},
    /* Outputs enough for tiles that three CTAs share, and for whole ones. */
    {5, 5, 264, 4104},
    {40, 33, 200, 4096},
    {66, 66, 192, 4096},
    {128, 128, 136, 4104},
    {9, 9, 64, 12040},
    {65, 65, 72, 12040},
};

/* attn_out is a product with bias and residual, for decode and prompt rows alike. */
START_TEST(attn_out__is_the_cpus)
{
    const struct product *s = &products[_i];

    for (int d = 0; d < N_DTYPES; d++) {
        for (int with_bias = 0; with_bias < 2; with_bias++) {
            struct cuda_pair p;
            struct pair_weight w, bias;
            struct pair_buf a, x;
            struct pair_batch b;
            char what[96];

            pair_open(&p, dtypes[d]);
            w = pair_weight_random(&p, s->n_out, s->n_in, true, 0.05f, 0, 3);
            bias = pair_weight_random(&p, s->n_out, 1, false, 0.5f, 0, 4);
            a = pair_random(&p, (size_t)s->n * s->n_in, 1, 5);
            x = pair_random(&p, (size_t)s->n * s->n_out, 1, 6);
            b = rows_batch(&p, s->n, s->n_decode, 0);
            PAIR_RUN(&p, &b, attn_out, attn_out_args, .batch = SIDE_REF(b), .dim = s->n_out,
                     .n_in = s->n_in, .a = SIDE(a), .wo = SIDE_REF(w),
                     .bo = with_bias ? SIDE_REF(bias) : NULL, .x = SIDE(x));
            snprintf(what, sizeof(what), "attn_out [%d,%d] %d rows, %d decode, bias %d", s->n_out,
                     s->n_in, s->n, s->n_decode, with_bias);
            pair_compare(&p, &x, what, 1);
            pair_batch_free(&p, &b);
            pair_free(&p, &a);
            pair_free(&p, &x);
            pair_weight_free(&p, &w);
            pair_weight_free(&p, &bias);
        }
    }
}
END_TEST

/* Every activation, gated and plain, RMSNorm and LayerNorm, with and without bias. */
START_TEST(ffn__is_the_cpus)
{
    static const int sizes[][4] = {{1, 1, 64, 40},    {9, 9, 136, 264}, {70, 66, 128, 136},
                                   {40, 3, 256, 688}, {1, 0, 72, 24},   {33, 33, 72, 6408}};
    const int *s = sizes[_i];

    for (int v = 0; v < N_DTYPES * 12; v++) {
        enum act_kind act = v / N_DTYPES % 3;
        bool gated = v / N_DTYPES / 3 % 2, layer_norm = v / N_DTYPES / 6;
        struct cuda_pair p;
        struct pair_weight gain, nb, w_in, b_in, w_down, b_down;
        struct pair_buf x;
        struct pair_batch b;
        char what[96];

        pair_open(&p, dtypes[v % N_DTYPES]);
        gain = pair_weight_random(&p, s[2], 1, false, 0.3f, 1, 7);
        nb = pair_weight_random(&p, s[2], 1, false, 0.3f, 0, 8);
        w_in = pair_weight_random(&p, gated ? 2 * s[3] : s[3], s[2], true, 0.15f, 0, 9);
        b_in = pair_weight_random(&p, gated ? 2 * s[3] : s[3], 1, false, 0.3f, 0, 10);
        w_down = pair_weight_random(&p, s[2], s[3], true, 0.15f, 0, 11);
        b_down = pair_weight_random(&p, s[2], 1, false, 0.3f, 0, 12);
        x = pair_random(&p, (size_t)s[0] * s[2], 2, 13);
        b = rows_batch(&p, s[0], s[1], 0);
        PAIR_RUN(&p, &b, ffn, ffn_args, .batch = SIDE_REF(b), .dim = s[2], .ffn_dim = s[3],
                 .norm = {.kind = layer_norm ? NORM_LAYER : NORM_RMS,
                          .gain = SIDE_REF(gain),
                          .bias = layer_norm ? SIDE_REF(nb) : NULL,
                          .eps = 1e-5f},
                 .act = act, .gated = gated, .w_in = SIDE_REF(w_in),
                 .b_in = layer_norm ? SIDE_REF(b_in) : NULL, .w_down = SIDE_REF(w_down),
                 .b_down = layer_norm ? SIDE_REF(b_down) : NULL, .x = SIDE(x));
        snprintf(what, sizeof(what),
                 "ffn %d rows %d decode dim %d inner %d act %d gated %d norm %d", s[0], s[1], s[2],
                 s[3], act, gated, layer_norm);
        pair_compare(&p, &x, what, 2);
        pair_batch_free(&p, &b);
        pair_free(&p, &x);
        pair_weight_free(&p, &gain);
        pair_weight_free(&p, &nb);
        pair_weight_free(&p, &w_in);
        pair_weight_free(&p, &b_in);
        pair_weight_free(&p, &w_down);
        pair_weight_free(&p, &b_down);
    }
}
END_TEST

/* Logits of chosen rows, for vocabularies that are no multiple of anything. */
START_TEST(logits__are_the_cpus)
{
    static const int sizes[][3] = {{1, 64, 50}, {9, 128, 1001}, {70, 256, 333}, {40, 512, 8009}};
    const int *s = sizes[_i];

    for (int d = 0; d < N_DTYPES; d++) {
        struct cuda_pair p;
        struct pair_weight gain, head;
        struct pair_buf x, out;
        struct pair_batch b;
        float zero = 0;
        float *many = calloc((size_t)s[0] * s[2], sizeof(zero));

        pair_open(&p, dtypes[d]);
        gain = pair_weight_random(&p, s[1], 1, false, 0.3f, 1, 7);
        head = pair_weight_random(&p, s[2], s[1], true, 0.15f, 0, 9);
        x = pair_random(&p, (size_t)s[0] * s[1], 2, 13);
        out = pair_f32(&p, many, (size_t)s[0] * s[2]);
        b = rows_batch(&p, s[0], s[0] / 2, s[0]);
        PAIR_RUN(&p, &b, logits, logits_args, .batch = SIDE_REF(b), .dim = s[1], .vocab_size = s[2],
                 .norm = {.kind = NORM_RMS, .gain = SIDE_REF(gain), .eps = 1e-5f},
                 .head = SIDE_REF(head), .x = SIDE(x), .out = SIDE(out));
        pair_compare(&p, &out, "logits", 1);
        free(many);
        pair_batch_free(&p, &b);
        pair_free(&p, &x);
        pair_free(&p, &out);
        pair_weight_free(&p, &gain);
        pair_weight_free(&p, &head);
    }
}
END_TEST

/* Sums that begin, sums that go on, and a slot that none of the rows belongs to. */
START_TEST(pool__is_the_cpus)
{
    enum { N = 37, DIM = 72, N_SLOTS = 4 };
    static const struct step_pool pools[] = {{2, 3, 30, 1}, {0, 33, 1, 1}, {3, 34, 3, 0}};
    static const float tolerance[N_DTYPES] = {1e-6f, 1.0f / 128, 1.0f / 1024};

    for (int d = 0; d < N_DTYPES; d++) {
        struct cuda_pair p;
        struct pair_weight gain;
        struct pair_buf x, sums, list;
        struct pair_batch b;
        double start[N_SLOTS * DIM], *got;
        const double *want;

        for (int i = 0; i < N_SLOTS * DIM; i++)
            start[i] = i * 0.25;
        pair_open(&p, dtypes[d]);
        gain = pair_weight_random(&p, DIM, 1, false, 0.3f, 1, 7);
        x = pair_random(&p, N * DIM, 2, 13);
        sums = pair_i32(&p, (const int32_t *)start, 2 * N_SLOTS * DIM);
        list = pair_i32(&p, (const int32_t *)pools, 4 * 3);
        b = rows_batch(&p, N, 3, 0);
        b.cpu.n_pools = b.gpu.n_pools = 3;
        b.cpu.pools = list.cpu, b.gpu.pools = list.gpu;
        PAIR_RUN(&p, &b, pool, pool_args, .batch = SIDE_REF(b), .dim = DIM,
                 .norm = {.kind = NORM_RMS, .gain = SIDE_REF(gain), .eps = 1e-5f}, .x = SIDE(x),
                 .sums = SIDE(sums));
        want = sums.cpu;
        got = pair_get_bytes(&p, &sums);
        for (int i = 0; i < N_SLOTS * DIM; i++) {
            double n = i / DIM == 2 ? 30 : i / DIM == 3 ? 3 : 1;

            if (i / DIM == 1)
                ck_assert_double_eq(got[i], start[i]);
            ck_assert_msg(fabs(got[i] - want[i]) <= 6 * n * (double)tolerance[d],
                          "%s, sum %d: %g, want %g", dtype_name(dtypes[d]), i, got[i], want[i]);
        }
        free(got);
        pair_batch_free(&p, &b);
        pair_free(&p, &x);
        pair_free(&p, &sums);
        pair_free(&p, &list);
        pair_weight_free(&p, &gain);
    }
}
END_TEST

struct attn_in_case {
    int n_heads, n_kv_heads, head_dim, rope_dim;
    bool bias, qk_norm;
};

static const struct attn_in_case attn_in_cases[] = {
    {4, 4, 64, 64, false, false}, {6, 2, 80, 32, true, false},    {8, 1, 128, 128, false, true},
    {3, 3, 32, 0, true, true},    {2, 2, 256, 256, false, false}, {4, 2, 96, 96, true, false},
};

/* q, the chunk buffers, and the decode rows' places in the pages. */
START_TEST(attn_in__is_the_cpus)
{
    const struct attn_in_case *c = &attn_in_cases[_i];
    enum { N = 21, N_DECODE = 9, DIM = 136, N_LAYERS = 2 };

    for (int d = 0; d < N_DTYPES; d++) {
        struct cuda_pair p;
        struct kv_geom geom[(N_DECODE + 1) * N_LAYERS * 8];
        int32_t window[(N_DECODE + 1) * N_LAYERS * 8], len[N_DECODE + 1], max_len[N_DECODE + 1];
        struct pair_kv_shape shape = {N_DECODE + 1, N_LAYERS, c->n_heads, c->n_kv_heads,
                                      c->head_dim,  64,       geom,       window,
                                      len,          max_len};
        int all = (c->n_heads + 2 * c->n_kv_heads) * c->head_dim;
        size_t kv_elems = (size_t)(N - N_DECODE) * c->n_kv_heads * c->head_dim;
        struct pair_weight gain, w, bias, qn, kn;
        struct pair_buf x, q, k, v, freq;
        struct pair_batch b;
        struct pair_kv kv;
        float inv_freq[128];

        for (int i = 0; i < (N_DECODE + 1) * N_LAYERS * 8; i++) {
            geom[i] = (struct kv_geom){i % 2 * 64, i % 2 ? 64 : KV_RING_DENSE, KV_MASK_TOKEN};
            window[i] = 64;
        }
        for (int i = 0; i <= N_DECODE; i++) {
            len[i] = 0;
            max_len[i] = 128;
        }
        for (int i = 0; i < 128; i++)
            inv_freq[i] = 1.0f / (1 + 0.7f * (float)i);
        pair_open(&p, dtypes[d]);
        gain = pair_weight_random(&p, DIM, 1, false, 0.3f, 1, 7);
        w = pair_weight_random(&p, all, DIM, true, 0.15f, 0, 9);
        bias = pair_weight_random(&p, all, 1, false, 0.3f, 0, 10);
        qn = pair_weight_random(&p, c->head_dim, 1, false, 0.3f, 1, 11);
        kn = pair_weight_random(&p, c->head_dim, 1, false, 0.3f, 1, 12);
        x = pair_random(&p, (size_t)N * DIM, 2, 13);
        q = pair_random(&p, (size_t)N * c->n_heads * c->head_dim, 1, 14);
        k = pair_random_kv(&p, kv_elems, 1, 15);
        v = pair_random_kv(&p, kv_elems, 1, 16);
        freq = pair_f32(&p, inv_freq, 128);
        kv = pair_kv_new(&p, &shape, 17);
        /* NaN would hide what was not written: start from zeros. */
        memset(kv.pages.cpu, 0, kv.pages.n * dtype_bytes(p.dtype));
        ck_assert_int_eq(p.gpu->ops->upload(p.gpu, kv.pages.gpu, kv.pages.cpu,
                                            kv.pages.n * dtype_bytes(p.dtype), NULL),
                         0);
        b = rows_batch(&p, N, N_DECODE, 0);
        PAIR_RUN(
            &p, &b, attn_in, attn_in_args, .batch = SIDE_REF(b), .kv = SIDE_REF(kv), .layer = 1,
            .dim = DIM, .n_heads = c->n_heads, .n_kv_heads = c->n_kv_heads, .head_dim = c->head_dim,
            .x = SIDE(x), .norm = {.kind = NORM_RMS, .gain = SIDE_REF(gain), .eps = 1e-5f},
            .wqkv = SIDE_REF(w), .bqkv = c->bias ? SIDE_REF(bias) : NULL,
            .q_norm = c->qk_norm ? SIDE_REF(qn) : NULL, .k_norm = c->qk_norm ? SIDE_REF(kn) : NULL,
            .qk_norm_eps = 1e-6f, .rope_dim = c->rope_dim, .inv_freq = SIDE(freq),
            .rope_scale = 1.1f, .q = SIDE(q), .k_chunk = SIDE(k), .v_chunk = SIDE(v));
        pair_compare(&p, &q, "attn_in q", 2);
        pair_compare(&p, &k, "attn_in k_chunk", 2);
        pair_compare(&p, &v, "attn_in v_chunk", 2);
        pair_compare(&p, &kv.pages, "attn_in pages", 16); /* rms is that of mostly zeros */
        pair_batch_free(&p, &b);
        pair_kv_free(&p, &kv);
        pair_free(&p, &x);
        pair_free(&p, &q);
        pair_free(&p, &k);
        pair_free(&p, &v);
        pair_free(&p, &freq);
        pair_weight_free(&p, &gain);
        pair_weight_free(&p, &w);
        pair_weight_free(&p, &bias);
        pair_weight_free(&p, &qn);
        pair_weight_free(&p, &kn);
    }
}
END_TEST

/* A row's bits are the same alone and among any number of others, as decode row and as prompt row.
 */
START_TEST(products__do_not_depend_on_the_batch)
{
    static const int counts[] = {1, 2, 8, 9, 16, 17, 32, 33, 64, 65, 150};
    enum { N_IN = 1000, N_OUT = 264, MAX = 150 };

    for (int v = 0; v < 2 * N_DTYPES; v++) {
        struct cuda_pair p;
        struct pair_weight w;
        struct pair_buf a, x;
        void *first = NULL;
        bool decode = v / N_DTYPES;
        size_t row;

        pair_open(&p, dtypes[v % N_DTYPES]);
        row = N_OUT * dtype_bytes(p.dtype);
        w = pair_weight_random(&p, N_OUT, N_IN, true, 0.05f, 0, 3);
        a = pair_random(&p, (size_t)MAX * N_IN, 1, 5);
        for (size_t i = 0; i < sizeof(counts) / sizeof(counts[0]); i++) {
            struct pair_batch b = rows_batch(&p, counts[i], decode ? counts[i] : 0, 0);
            void *got;

            x = pair_random(&p, (size_t)MAX * N_OUT, 1, 6);
            PAIR_RUN(&p, &b, attn_out, attn_out_args, .batch = SIDE_REF(b), .dim = N_OUT,
                     .n_in = N_IN, .a = SIDE(a), .wo = SIDE_REF(w), .x = SIDE(x));
            got = pair_get_bytes(&p, &x);
            if (first)
                ck_assert_msg(memcmp(first, got, row) == 0, "%s, decode %d: row 0 of %d differs",
                              dtype_name(p.dtype), decode, counts[i]);
            else
                first = got;
            if (first != got)
                free(got);
            pair_free(&p, &x);
            pair_batch_free(&p, &b);
        }
        free(first);
        pair_free(&p, &a);
        pair_weight_free(&p, &w);
    }
}
END_TEST

TEST_SUITE(cuda_ops)
{
    TCase *tc = test_case(suite, "core");

    tcase_add_test(tc, embed__copies_rows);
    tcase_add_test(tc, embed__takes_the_slots_token);
    tcase_add_loop_test(tc, attn_out__is_the_cpus, 0, sizeof(products) / sizeof(products[0]));
    tcase_add_loop_test(tc, ffn__is_the_cpus, 0, 6);
    tcase_add_loop_test(tc, logits__are_the_cpus, 0, 4);
    tcase_add_test(tc, pool__is_the_cpus);
    tcase_add_loop_test(tc, attn_in__is_the_cpus, 0,
                        sizeof(attn_in_cases) / sizeof(attn_in_cases[0]));
}

TEST_SUITE(cuda_invariance)
{
    tcase_add_test(test_case(suite, "core"), products__do_not_depend_on_the_batch);
}
