/*
 * test_attn - decode and prompt attention, kv_append and kv_copy against the CPU backend.
 */
#include "cuda/cuda_backend.h"
#include "tests/cuda/cuda_pair.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define MAX_SLOTS 28
#define N_LAYERS  2
#define LAYER     1
#define MAX_HEADS 40

/* One model shape and the lengths of its sequences. */
struct attn_case {
    enum dtype dtype;
    int n_heads, n_kv_heads, head_dim, page_entries;
    int kind; /* of geometry: 0 dense, 1 sink and ring, 2 BLOCK rings of many lengths, 3 mixed
                 windows, 4 odd sinks and windows shorter than a tile, 5 BLOCK with sinks of two
                 tiles and of none */
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
        } else if (c->kind == 4) {
            g.n_sink = (const int[]){70, 130, 0}[head % 3];
            g.ring = (const int[]){128, 192, 64}[head % 3];
            w = (const int[]){100, 50, 33}[head % 3];
        } else if (c->kind == 2 || c->kind == 5) {
            g.n_sink = c->kind == 2 ? 64 : 128 * (head % 2);
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
    static const int32_t lens[] = {1,    2,    63,   64,   65,   4,    5,    127, 128, 129,
                                   191,  192,  193,  197,  255,  256,  257,  300, 511, 513,
                                   1023, 1025, 1279, 1280, 1281, 2049, 2304, 2305};
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
    int dim = c->n_heads * c->head_dim, kv_dim = c->n_kv_heads * c->head_dim;
    size_t bytes = (size_t)n * dim * dtype_bytes(c->dtype);
    struct pair_kv kv;
    struct pair_buf q, k, v, out;
    char *whole, *parts, what[128];

    pair_open(&p, c->dtype);
    snprintf(what, sizeof(what), "prompt heads %d/%d dim %d pages of %d kind %d, %d rows from %d",
             c->n_heads, c->n_kv_heads, c->head_dim, c->page_entries, c->kind, n, pos0);
    kv = make_kv(&p, c, 2, len, max_len);
    q = pair_random(&p, (size_t)(n + 9) * dim, 2, 21);
    k = pair_random_kv(&p, (size_t)(n + 9) * kv_dim, 1, 22);
    v = pair_random_kv(&p, (size_t)(n + 9) * kv_dim, 1, 23);
    out = pair_random(&p, (size_t)(n + 9) * dim, 1, 24);
    run_prompt(&p, c, &kv, &q, &k, &v, &out, 0, pos0, n, 9);
    pair_compare(&p, &out, what, 2);
    compare_pages(&p, &kv, what);
    whole = pair_get_bytes(&p, &out);

    /* Cut into several steps, the bits stay the same. */
    for (int step = (n + 2) / 3; n > 1 && step > 0; step = step > 64 ? 64 : 0) {
        struct pair_kv again = make_kv(&p, c, 2, len, max_len);

        for (int at = 0; at < n; at += step)
            run_prompt(&p, c, &again, &q, &k, &v, &out, at, pos0 + at,
                       n - at < step ? n - at : step, 0);
        parts = pair_get_bytes(&p, &out);
        for (size_t i = 0; i < bytes; i++) {
            if (whole[i] != parts[i])
                ck_abort_msg("%s: in steps of %d, row %zu differs", what, step,
                             i / (dim * dtype_bytes(c->dtype)));
        }
        free(parts);
        pair_kv_free(&p, &again);
    }
    free(whole);
    pair_kv_free(&p, &kv);
    pair_free(&p, &q);
    pair_free(&p, &k);
    pair_free(&p, &v);
    pair_free(&p, &out);
}

#define N_DECODE 2
#define N_CHUNKS 4

/* The chunks of a mixed step: borders inside tiles, one row, several tiles. */
static const struct step_chunk mixed_chunks[N_CHUNKS] = {
    {0, N_DECODE, 70, 0},
    {1, N_DECODE + 70, 1, 130},
    {2, N_DECODE + 71, 200, 63},
    {3, N_DECODE + 271, 129, 400},
};

/* A chunk of a mixed step again, alone, must leave the same bits. */
static void check_alone(struct cuda_pair *p, const struct attn_case *c, struct pair_kv *kv,
                        struct step_chunk chunk, const struct pair_buf *q, const struct pair_buf *k,
                        const struct pair_buf *v, const char *whole, const char *what)
{
    size_t act = dtype_bytes(c->dtype), row = (size_t)c->n_heads * c->head_dim * act;
    size_t kv_row = (size_t)c->n_kv_heads * c->head_dim * act;
    struct pair_buf out = pair_random(p, (size_t)chunk.n_rows * row / act, 1, 44);
    int row0 = chunk.row0;
    int32_t pos[MAX_PROMPT], slot[MAX_PROMPT];
    struct pair_batch b;
    char *alone;

    for (int i = 0; i < chunk.n_rows; i++) {
        pos[i] = chunk.pos0 + i;
        slot[i] = chunk.slot;
    }
    chunk.row0 = 0;
    b = pair_batch_new(p, chunk.n_rows, 0, 1, 0, NULL, pos, slot, &chunk, NULL);
    PAIR_RUN(p, &b, attn, attn_args, .batch = SIDE_REF(b), .kv = SIDE_REF(*kv), .layer = LAYER,
             .n_heads = c->n_heads, .n_kv_heads = c->n_kv_heads, .head_dim = c->head_dim,
             .scale = 1 / sqrtf((float)c->head_dim),
             .q = (char *)SIDE(*q) + row0 * (on_gpu ? row : row / act * 4),
             .k_chunk = (char *)SIDE(*k) + (row0 - N_DECODE) * kv_row,
             .v_chunk = (char *)SIDE(*v) + (row0 - N_DECODE) * kv_row, .out = SIDE(out));
    alone = pair_get_bytes(p, &out);
    ck_assert_msg(memcmp(alone, whole + row0 * row, chunk.n_rows * row) == 0,
                  "%s: the chunk of slot %d alone differs", what, chunk.slot);
    free(alone);
    pair_batch_free(p, &b);
    pair_free(p, &out);
}

/* Decode rows and chunks of four slots in one step; what is NaN in one slot stays there. */
static void check_mixed(const struct attn_case *c)
{
    enum { N = N_DECODE + 400, N_SLOTS = N_CHUNKS + N_DECODE };
    static const int32_t len[N_SLOTS] = {0, 130, 63, 400, 100, 333};
    static const int32_t max_len[N_SLOTS] = {70, 131, 263, 529, 100, 333};
    struct cuda_pair p;
    int32_t pos[N], slot[N];
    int dim = c->n_heads * c->head_dim, kv_dim = c->n_kv_heads * c->head_dim;
    size_t kv_row = (size_t)kv_dim * dtype_bytes(c->dtype);
    struct pair_kv kv;
    struct pair_buf q, k, v, out;
    struct pair_batch b;
    struct err err = {0};
    char *whole, what[128], *nan = malloc(kv_row);

    pair_open(&p, c->dtype);
    snprintf(what, sizeof(what), "mixed step heads %d/%d dim %d pages of %d kind %d", c->n_heads,
             c->n_kv_heads, c->head_dim, c->page_entries, c->kind);
    kv = make_kv(&p, c, N_SLOTS, len, max_len);
    for (int i = 0; i < N_DECODE; i++) {
        slot[i] = N_CHUNKS + i;
        pos[i] = len[slot[i]] - 1;
    }
    for (int i = 0; i < N_CHUNKS; i++) {
        for (int r = 0; r < mixed_chunks[i].n_rows; r++) {
            slot[mixed_chunks[i].row0 + r] = mixed_chunks[i].slot;
            pos[mixed_chunks[i].row0 + r] = mixed_chunks[i].pos0 + r;
        }
    }
    q = pair_random(&p, (size_t)N * dim, 2, 41);
    k = pair_random_kv(&p, (size_t)(N - N_DECODE) * kv_dim, 1, 42);
    v = pair_random_kv(&p, (size_t)(N - N_DECODE) * kv_dim, 1, 43);
    out = pair_random(&p, (size_t)N * dim, 1, 44);
    b = pair_batch_new(&p, N, N_DECODE, N_CHUNKS, 0, NULL, pos, slot, mixed_chunks, NULL);
    for (int poisoned = 0; poisoned < 2; poisoned++) {
        PAIR_RUN(&p, &b, attn, attn_args, .batch = SIDE_REF(b), .kv = SIDE_REF(kv), .layer = LAYER,
                 .n_heads = c->n_heads, .n_kv_heads = c->n_kv_heads, .head_dim = c->head_dim,
                 .scale = 1 / sqrtf((float)c->head_dim), .q = SIDE(q), .k_chunk = SIDE(k),
                 .v_chunk = SIDE(v), .out = SIDE(out));
        if (!poisoned)
            pair_compare(&p, &out, what, 2);
        whole = pair_get_bytes(&p, &out);
        for (int i = 0; i < N_CHUNKS; i++) {
            if (!poisoned || i != 1)
                check_alone(&p, c, &kv, mixed_chunks[i], &q, &k, &v, whole, what);
        }
        free(whole);
        /* The one row of slot 1 lies between the last of slot 0 and the first of slot 2. */
        memset(nan, 0xff, kv_row);
        ck_assert_int_eq(p.gpu->ops->upload(p.gpu, (char *)k.gpu + 70 * kv_row, nan, kv_row, &err),
                         0);
        ck_assert_int_eq(p.gpu->ops->upload(p.gpu, (char *)v.gpu + 70 * kv_row, nan, kv_row, &err),
                         0);
    }
    free(nan);
    pair_batch_free(&p, &b);
    pair_kv_free(&p, &kv);
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
    {DTYPE_BF16, 8, 1, 128, 64, 4}, {DTYPE_BF16, 16, 2, 64, 64, 1}, {DTYPE_BF16, 4, 4, 64, 64, 0},
    {DTYPE_BF16, 3, 3, 128, 64, 4}, {DTYPE_BF16, 8, 2, 128, 64, 5}, {DTYPE_BF16, 4, 2, 128, 16, 2},
    {DTYPE_F16, 8, 1, 128, 64, 1},  {DTYPE_F16, 4, 4, 64, 64, 3},   {DTYPE_F16, 12, 3, 64, 64, 4},
    {DTYPE_F16, 8, 2, 128, 64, 0},
};

/* Prompt rows and what they leave in the pages are the CPU's, however the prompt is cut. */
START_TEST(attn_prompt__is_the_cpus)
{
    static const int shapes[][2] = {{0, 1},     {0, 63},    {0, 64},  {0, 65},  {0, 127},
                                    {0, 129},   {0, 191},   {0, 192}, {0, 193}, {0, 300},
                                    {64, 64},   {63, 2},    {127, 2}, {129, 1}, {191, 2},
                                    {300, 130}, {512, 150}, {70, 700}};

    for (size_t i = 0; i < sizeof(shapes) / sizeof(shapes[0]); i++)
        check_prompt(&prompt_cases[_i], shapes[i][0], shapes[i][1]);
}
END_TEST

/* In a step with decode rows and other slots' chunks, a chunk's bits are what they are alone. */
START_TEST(attn_prompt__knows_its_own_slot_only)
{
    check_mixed(&prompt_cases[_i]);
}
END_TEST

/* What is computed without wgmma on older GPUs is the CPU's too. */
START_TEST(attn_prompt__is_the_cpus_before_hopper)
{
    static const struct attn_case cases[] = {{DTYPE_BF16, 8, 2, 128, 64, 2},
                                             {DTYPE_F16, 4, 4, 64, 64, 4}};
    static const int shapes[][2] = {{0, 65}, {300, 130}, {70, 300}};
    struct cuda_pair p;
    struct cuda_backend *cb;
    int arch;

    pair_open(&p, cases[_i].dtype);
    cb = (struct cuda_backend *)p.gpu;
    arch = cb->arch;
    cb->arch = 80;
    for (size_t i = 0; i < sizeof(shapes) / sizeof(shapes[0]); i++)
        check_prompt(&cases[_i], shapes[i][0], shapes[i][1]);
    check_mixed(&cases[_i]);
    cb->arch = arch;
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
    tcase_add_loop_test(tc, attn_prompt__knows_its_own_slot_only, 0,
                        sizeof(prompt_cases) / sizeof(prompt_cases[0]));
    tcase_add_loop_test(tc, attn_prompt__is_the_cpus_before_hopper, 0, 2);
    tcase_add_test(tc, kv_copy__moves_whole_pages);
}
