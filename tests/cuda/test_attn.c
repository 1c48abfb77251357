/*
 * test_attn - decode and prompt attention, kv_append and kv_copy against the CPU backend.
 */
#include "tests/cuda/cuda_pair.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define MAX_SLOTS 24
#define N_LAYERS  2
#define LAYER     1
#define MAX_HEADS 40

/* One model shape and the lengths of its sequences. */
struct attn_case {
    enum dtype dtype;
    int n_heads, n_kv_heads, head_dim, page_entries;
    int kind; /* of geometry: 0 dense, 1 sink and ring, 2 BLOCK rings of many lengths, 3 mixed
                 windows */
};

static struct kv_geom geom[MAX_SLOTS * N_LAYERS * MAX_HEADS];
static int32_t window[MAX_SLOTS * N_LAYERS * MAX_HEADS];

/* Geometries and windows that differ by head; a head's window never exceeds its ring. */
static void make_geometry(const struct attn_case *c, int n_slots)
{
    int group = c->n_heads / c->n_kv_heads;

    for (int i = 0; i < n_slots * N_LAYERS * c->n_kv_heads; i++) {
        int head = i % c->n_kv_heads;
        struct kv_geom g = {.n_sink = 0, .ring = KV_RING_DENSE, .mask = KV_MASK_TOKEN};
        int w = KV_WINDOW_ALL;

        if (c->kind == 1 || (c->kind == 3 && head % 2)) {
            g.n_sink = 4;
            g.ring = 128 + 64 * (head % 3);
            w = g.ring - (head % 2 ? 0 : 37);
        } else if (c->kind == 2) {
            g.n_sink = 64;
            g.ring = 64 * (1 + head % 5);
            g.mask = KV_MASK_BLOCK;
            w = g.ring;
        }
        geom[i] = g;
        for (int h = 0; h < group; h++) {
            int less = h % 3 * 5;

            if (g.mask == KV_MASK_BLOCK)
                less = h % 2 ? 0 : (g.ring > 64 ? 64 : 0);
            window[i * group + h] = w == KV_WINDOW_ALL && c->kind != 3 ? w
                                    : w == KV_WINDOW_ALL               ? 200 + h
                                                                       : w - less;
        }
    }
}

static struct pair_kv make_kv(struct cuda_pair *p, const struct attn_case *c, int n_slots,
                              const int32_t *len, const int32_t *max_len)
{
    struct pair_kv_shape s = {.n_slots = n_slots,
                              .n_layers = N_LAYERS,
                              .n_heads = c->n_heads,
                              .n_kv_heads = c->n_kv_heads,
                              .head_dim = c->head_dim,
                              .page_entries = c->page_entries,
                              .geom = geom,
                              .window = window,
                              .len = len,
                              .max_len = max_len};

    make_geometry(c, n_slots);
    return pair_kv_new(p, &s, 3);
}

/* Decode rows of every length around a tile, a chunk and a full ring; then each row alone. */
static void check_decode(const struct attn_case *c)
{
    static const int32_t lens[] = {1,   2,   63,  64,  65,  4,   5,   127, 128,  129,  191,  192,
                                   193, 197, 255, 256, 257, 300, 511, 513, 1023, 1025, 2049, 2100};
    enum { N = sizeof(lens) / sizeof(lens[0]) };
    struct cuda_pair p;
    int32_t pos[N], slot[N];
    int dim = c->n_heads * c->head_dim;
    struct pair_kv kv;
    struct pair_buf q, out;
    struct pair_batch b;
    char *together, *alone, what[128];
    size_t row = dim * dtype_bytes(c->dtype);

    pair_open(&p, c->dtype);
    kv = make_kv(&p, c, N, lens, lens);
    for (int i = 0; i < N; i++) {
        slot[i] = N - 1 - i;
        pos[i] = lens[slot[i]] - 1;
    }
    q = pair_random(&p, (size_t)N * dim, 2, 11);
    out = pair_random(&p, (size_t)N * dim, 1, 12);
    b = pair_batch_new(&p, N, N, 0, 0, NULL, pos, slot, NULL, NULL);
    PAIR_RUN(&p, &b, attn, attn_args, .batch = SIDE_REF(b), .kv = SIDE_REF(kv), .layer = LAYER,
             .n_heads = c->n_heads, .n_kv_heads = c->n_kv_heads, .head_dim = c->head_dim,
             .scale = 1 / sqrtf((float)c->head_dim), .q = SIDE(q), .out = SIDE(out));
    snprintf(what, sizeof(what), "decode heads %d/%d dim %d pages of %d kind %d", c->n_heads,
             c->n_kv_heads, c->head_dim, c->page_entries, c->kind);
    pair_compare(&p, &out, what, 2);

    /* The same bits alone as together. */
    together = pair_get_bytes(&p, &out);
    for (int i = 0; i < N; i += 5) {
        struct pair_batch one = pair_batch_new(&p, 1, 1, 0, 0, NULL, &pos[i], &slot[i], NULL, NULL);

        PAIR_RUN(&p, &one, attn, attn_args, .batch = SIDE_REF(one), .kv = SIDE_REF(kv),
                 .layer = LAYER, .n_heads = c->n_heads, .n_kv_heads = c->n_kv_heads,
                 .head_dim = c->head_dim, .scale = 1 / sqrtf((float)c->head_dim),
                 .q = (char *)SIDE(q) + (on_gpu ? i * row : i * (size_t)dim * 4), .out = SIDE(out));
        alone = pair_get_bytes(&p, &out);
        ck_assert_msg(memcmp(alone, together + i * row, row) == 0,
                      "%s: row %d alone differs from the batch", what, i);
        free(alone);
        pair_batch_free(&p, &one);
    }
    free(together);
    pair_batch_free(&p, &b);
    pair_free(&p, &q);
    pair_free(&p, &out);
    pair_kv_free(&p, &kv);
}

static const struct attn_case decode_cases[] = {
    {DTYPE_F32, 4, 4, 64, 64, 0},   {DTYPE_F32, 8, 2, 128, 64, 1},   {DTYPE_F32, 4, 4, 32, 64, 2},
    {DTYPE_F32, 6, 2, 80, 64, 3},   {DTYPE_F32, 2, 1, 96, 16, 2},    {DTYPE_F32, 2, 2, 256, 64, 3},
    {DTYPE_BF16, 4, 4, 128, 64, 0}, {DTYPE_BF16, 4, 4, 128, 64, 1},  {DTYPE_BF16, 5, 5, 128, 64, 2},
    {DTYPE_BF16, 4, 4, 128, 64, 3}, {DTYPE_BF16, 8, 4, 128, 64, 2},  {DTYPE_BF16, 6, 2, 128, 64, 3},
    {DTYPE_BF16, 8, 2, 128, 64, 2}, {DTYPE_BF16, 10, 2, 128, 64, 1}, {DTYPE_BF16, 12, 2, 64, 64, 3},
    {DTYPE_BF16, 7, 1, 80, 64, 2},  {DTYPE_BF16, 16, 2, 128, 64, 0}, {DTYPE_BF16, 32, 1, 64, 64, 3},
    {DTYPE_BF16, 4, 4, 32, 16, 2},  {DTYPE_BF16, 8, 2, 32, 64, 1},   {DTYPE_BF16, 4, 4, 64, 16, 1},
    {DTYPE_BF16, 3, 3, 80, 64, 1},  {DTYPE_BF16, 3, 3, 96, 64, 2},   {DTYPE_BF16, 9, 3, 96, 64, 1},
    {DTYPE_BF16, 2, 2, 256, 64, 2}, {DTYPE_BF16, 8, 2, 256, 64, 3},  {DTYPE_BF16, 4, 2, 256, 16, 1},
    {DTYPE_F16, 4, 4, 128, 64, 2},  {DTYPE_F16, 8, 2, 128, 64, 3},   {DTYPE_F16, 8, 4, 64, 64, 1},
    {DTYPE_F16, 8, 2, 80, 16, 2},
};

/* Decode rows give what the CPU gives, in any batch, for all shapes and masks. */
START_TEST(attn_decode__is_the_cpus)
{
    check_decode(&decode_cases[_i]);
}
END_TEST

#define MAX_PROMPT 700

/* Runs attn and kv_append for rows pos0 .. pos0 + n of slot 0 and a short chunk of slot 1. */
static void run_prompt(struct cuda_pair *p, const struct attn_case *c, struct pair_kv *kv,
                       const struct pair_buf *q, const struct pair_buf *k, const struct pair_buf *v,
                       const struct pair_buf *out, int src0, int pos0, int n, int n_extra)
{
    int q_dim = c->n_heads * c->head_dim, kv_dim = c->n_kv_heads * c->head_dim;
    int32_t pos[MAX_PROMPT + 64], slot[MAX_PROMPT + 64];
    struct step_chunk chunks[2] = {{0, 0, n, pos0}, {1, n, n_extra, 5}};
    struct pair_batch b;
    size_t act = dtype_bytes(c->dtype);

    for (int i = 0; i < n + n_extra; i++) {
        pos[i] = i < n ? pos0 + i : 5 + i - n;
        slot[i] = i >= n;
    }
    b = pair_batch_new(p, n + n_extra, 0, n_extra ? 2 : 1, 0, NULL, pos, slot, chunks, NULL);
    PAIR_RUN(p, &b, attn, attn_args, .batch = SIDE_REF(b), .kv = SIDE_REF(*kv), .layer = LAYER,
             .n_heads = c->n_heads, .n_kv_heads = c->n_kv_heads, .head_dim = c->head_dim,
             .scale = 1 / sqrtf((float)c->head_dim),
             .q = (char *)SIDE(*q) + (size_t)src0 * q_dim * (on_gpu ? act : 4),
             .k_chunk = (char *)SIDE(*k) + (size_t)src0 * kv_dim * act,
             .v_chunk = (char *)SIDE(*v) + (size_t)src0 * kv_dim * act,
             .out = (char *)SIDE(*out) + (size_t)src0 * q_dim * (on_gpu ? act : 4));
    PAIR_RUN(p, &b, kv_append, kv_append_args, .batch = SIDE_REF(b), .kv = SIDE_REF(*kv),
             .layer = LAYER, .n_kv_heads = c->n_kv_heads, .head_dim = c->head_dim,
             .k_chunk = (char *)SIDE(*k) + (size_t)src0 * kv_dim * act,
             .v_chunk = (char *)SIDE(*v) + (size_t)src0 * kv_dim * act);
    pair_batch_free(p, &b);
}

static void compare_pages(struct cuda_pair *p, const struct pair_kv *kv, const char *what)
{
    char *gpu = pair_get_bytes(p, &kv->pages);
    size_t bytes = kv->pages.n * dtype_bytes(p->dtype);

    for (size_t i = 0; i < bytes; i++) {
        if (gpu[i] != ((const char *)kv->pages.cpu)[i])
            ck_abort_msg("%s: pages differ at byte %zu of %zu (page %zu of %zu)", what, i, bytes,
                         i / kv->gpu.page_bytes, kv->n_pages);
    }
    free(gpu);
}

static void check_prompt(const struct attn_case *c, int pos0, int n)
{
    struct cuda_pair p;
    int32_t len[2] = {pos0, 5}, max_len[2] = {pos0 + n, 5 + 9};
    int dim = c->n_heads * c->head_dim, kv_dim = c->n_kv_heads * c->head_dim, cut = n / 3;
    size_t bytes = (size_t)n * dim * dtype_bytes(c->dtype);
    struct pair_kv kv, again;
    struct pair_buf q, k, v, out;
    char *whole, *parts, what[128];

    pair_open(&p, c->dtype);
    snprintf(what, sizeof(what), "prompt heads %d/%d dim %d pages of %d kind %d, %d rows from %d",
             c->n_heads, c->n_kv_heads, c->head_dim, c->page_entries, c->kind, n, pos0);
    kv = make_kv(&p, c, 2, len, max_len);
    again = make_kv(&p, c, 2, len, max_len);
    q = pair_random(&p, (size_t)(n + 9) * dim, 2, 21);
    k = pair_random_kv(&p, (size_t)(n + 9) * kv_dim, 1, 22);
    v = pair_random_kv(&p, (size_t)(n + 9) * kv_dim, 1, 23);
    out = pair_random(&p, (size_t)(n + 9) * dim, 1, 24);
    run_prompt(&p, c, &kv, &q, &k, &v, &out, 0, pos0, n, 9);
    pair_compare(&p, &out, what, 2);
    compare_pages(&p, &kv, what);
    whole = pair_get_bytes(&p, &out);

    /* Cut into two steps, the bits stay the same. */
    if (cut > 0) {
        run_prompt(&p, c, &again, &q, &k, &v, &out, 0, pos0, cut, 0);
        run_prompt(&p, c, &again, &q, &k, &v, &out, cut, pos0 + cut, n - cut, 0);
        parts = pair_get_bytes(&p, &out);
        for (size_t i = 0; i < bytes; i++) {
            if (whole[i] != parts[i])
                ck_abort_msg("%s: cut at %d, row %zu differs", what, cut,
                             i / (dim * dtype_bytes(c->dtype)));
        }
        free(parts);
    }
    free(whole);
    pair_kv_free(&p, &kv);
    pair_kv_free(&p, &again);
    pair_free(&p, &q);
    pair_free(&p, &k);
    pair_free(&p, &v);
    pair_free(&p, &out);
}

static const struct attn_case prompt_cases[] = {
    {DTYPE_F32, 4, 2, 64, 64, 0},   {DTYPE_F32, 4, 4, 80, 64, 1},   {DTYPE_F32, 6, 2, 32, 64, 2},
    {DTYPE_F32, 4, 2, 128, 64, 3},  {DTYPE_BF16, 4, 4, 128, 64, 0}, {DTYPE_BF16, 4, 2, 128, 64, 1},
    {DTYPE_BF16, 8, 2, 128, 64, 2}, {DTYPE_BF16, 6, 3, 128, 64, 3}, {DTYPE_BF16, 5, 5, 64, 64, 2},
    {DTYPE_BF16, 4, 1, 32, 16, 1},  {DTYPE_BF16, 3, 3, 80, 64, 2},  {DTYPE_BF16, 4, 2, 96, 64, 3},
    {DTYPE_BF16, 2, 1, 256, 64, 2}, {DTYPE_F16, 4, 4, 128, 64, 2},  {DTYPE_F16, 4, 2, 80, 16, 3},
};

/* Prompt rows and what they leave in the pages are the CPU's, however the prompt is cut. */
START_TEST(attn_prompt__is_the_cpus)
{
    static const int shapes[][2] = {{0, 1},  {0, 63},  {0, 64},    {0, 65},    {0, 300}, {64, 64},
                                    {63, 2}, {129, 1}, {300, 130}, {512, 150}, {70, 700}};

    for (size_t i = 0; i < sizeof(shapes) / sizeof(shapes[0]); i++)
        check_prompt(&prompt_cases[_i], shapes[i][0], shapes[i][1]);
}
END_TEST

/* Pages arrive whole, and the others stay as they were; more of them than one launch carries. */
START_TEST(kv_copy__moves_whole_pages)
{
    struct attn_case c = {DTYPE_BF16, 2, 2, 64, 64, 0};
    int32_t len[1] = {100}, max_len[1] = {64 * 160}, src[300], dst[300];
    struct cuda_pair p;
    struct pair_kv kv;
    struct pair_batch b;

    pair_open(&p, c.dtype);
    kv = make_kv(&p, &c, 1, len, max_len);
    ck_assert_int_ge(kv.n_pages, 600);
    for (int i = 0; i < 300; i++) {
        src[i] = i;
        dst[i] = 599 - i;
    }
    b = pair_batch_new(&p, 0, 0, 0, 0, NULL, NULL, NULL, NULL, NULL);
    PAIR_RUN(&p, &b, kv_copy, kv_copy_args, .kv = SIDE_REF(kv), .n_pages = 300, .src = src,
             .dst = dst);
    compare_pages(&p, &kv, "kv_copy");
    pair_batch_free(&p, &b);
    pair_kv_free(&p, &kv);
}
END_TEST

/* A head_dim or page size that is not built is refused, not computed some other way. */
START_TEST(attn__refuses_what_is_not_built)
{
    struct attn_case c = {DTYPE_BF16, 2, 2, 48, 64, 0};
    int32_t len[1] = {10}, pos[1] = {9}, slot[1] = {0};
    struct cuda_pair p;
    struct pair_kv kv;
    struct pair_buf q;
    struct pair_batch b;
    struct err err = {0};

    pair_open(&p, c.dtype);
    kv = make_kv(&p, &c, 1, len, len);
    q = pair_random(&p, 96, 1, 1);
    b = pair_batch_new(&p, 1, 1, 0, 0, NULL, pos, slot, NULL, NULL);
    struct attn_args a = {.batch = &b.gpu,
                          .kv = &kv.gpu,
                          .layer = LAYER,
                          .n_heads = 2,
                          .n_kv_heads = 2,
                          .head_dim = 48,
                          .scale = 1,
                          .q = q.gpu,
                          .out = q.gpu};
    ck_assert_int_eq(p.gpu->ops->attn(p.gpu, &a, &err), ERR_UNSUPPORTED);
    ck_assert_ptr_nonnull(strstr(err.msg, "48"));
    pair_batch_free(&p, &b);
    pair_free(&p, &q);
    pair_kv_free(&p, &kv);
}
END_TEST

TEST_SUITE(cuda_attn_decode)
{
    TCase *tc = test_case(suite, "core");

    tcase_add_loop_test(tc, attn_decode__is_the_cpus, 0,
                        sizeof(decode_cases) / sizeof(decode_cases[0]));
    tcase_add_test(tc, attn__refuses_what_is_not_built);
}

TEST_SUITE(cuda_attn_prompt)
{
    TCase *tc = test_case(suite, "core");

    tcase_add_loop_test(tc, attn_prompt__is_the_cpus, 0,
                        sizeof(prompt_cases) / sizeof(prompt_cases[0]));
    tcase_add_test(tc, kv_copy__moves_whole_pages);
}
