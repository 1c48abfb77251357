/*
 * Attention and kv_append against an explicit mask over all positions, through whole sequences:
 * prompt chunks, then decode rows, on dense heads, rings that wrap, sinks and windows of any size.
 */
#include "engine/cpu/cpu_isa.h"
#include "tests/engine/cpu/cpu_fixture.h"
#include "tests/ref/ref_ops.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

/* One sequence's run. Query heads of a group see windows window, window - step, ... */
struct attn_case {
    const char *name;
    int n_heads, n_kv_heads, head_dim, page_entries;
    struct kv_geom geom;
    int window, window_step;
    int n_prompt, n_decode, chunk;
};

static const struct attn_case cases[] = {
    {"one token", 1, 1, 8, 64, {0, KV_RING_DENSE, 0}, KV_WINDOW_ALL, 0, 1, 1, 1},
    {"a tile less one", 2, 1, 16, 64, {0, KV_RING_DENSE, 0}, KV_WINDOW_ALL, 0, 63, 3, 63},
    {"a tile and one", 4, 4, 64, 64, {0, KV_RING_DENSE, 0}, KV_WINDOW_ALL, 0, 65, 2, 17},
    {"groups of eight", 8, 1, 24, 64, {0, KV_RING_DENSE, 0}, KV_WINDOW_ALL, 0, 130, 2, 100},
    {"a group of 71", 71, 1, 64, 64, {0, KV_RING_DENSE, 0}, KV_WINDOW_ALL, 0, 20, 1, 9},
    {"head_dim 128", 4, 2, 128, 64, {0, KV_RING_DENSE, 0}, KV_WINDOW_ALL, 0, 200, 1, 64},
    {"head_dim 256", 2, 1, 256, 64, {0, KV_RING_DENSE, 0}, KV_WINDOW_ALL, 0, 70, 1, 33},
    {"head_dim 40", 3, 1, 40, 64, {0, KV_RING_DENSE, 0}, KV_WINDOW_ALL, 0, 70, 2, 70},
    {"pages of 16", 4, 2, 32, 16, {0, KV_RING_DENSE, 0}, KV_WINDOW_ALL, 0, 100, 20, 41},
    {"ring just wrapped", 4, 2, 32, 64, {0, 128, 0}, 128, 0, 128, 2, 128},
    {"ring wrapped often", 4, 2, 32, 64, {0, 64, 0}, 64, 0, 300, 70, 37},
    {"sink and ring", 4, 1, 32, 64, {64, 64, 0}, 64, 0, 333, 66, 50},
    {"sink of 5", 4, 2, 32, 64, {5, 128, 0}, 100, 7, 290, 140, 64},
    {"sink of 70", 2, 1, 16, 64, {70, 64, 0}, 61, 0, 250, 70, 250},
    {"window under chunk", 2, 2, 32, 64, {4, 64, 0}, 10, 0, 200, 5, 200},
    {"window of 1", 2, 1, 16, 64, {0, 64, 0}, 1, 0, 90, 3, 50},
    {"sink past the end", 2, 1, 16, 64, {100, 64, 0}, 64, 0, 50, 10, 20},
    {"windows on a dense head", 6, 2, 32, 64, {0, KV_RING_DENSE, 0}, 90, 30, 260, 4, 77},
    {"block mask", 4, 2, 32, 64, {64, 128, KV_MASK_BLOCK}, 128, 64, 400, 130, 90},
    {"block mask, whole", 4, 2, 32, 64, {64, 64, KV_MASK_BLOCK}, 64, 0, 333, 3, 333},
    {"block mask, chunk 17", 2, 1, 32, 64, {64, 192, KV_MASK_BLOCK}, 192, 64, 300, 3, 17},
    {"long decode", 4, 2, 64, 64, {0, KV_RING_DENSE, 0}, KV_WINDOW_ALL, 0, 1100, 2, 512},
    {"long ring", 8, 2, 16, 64, {64, 1024, KV_MASK_BLOCK}, 1024, 64, 1500, 3, 256},
    {"3000 tokens", 2, 2, 32, 64, {64, 896, KV_MASK_BLOCK}, 896, 0, 3000, 70, 512},
    {"3000 tokens, groups", 4, 1, 16, 64, {64, 2048, KV_MASK_BLOCK}, 2048, 640, 3000, 70, 700},
    {"3000 tokens, all kept", 2, 1, 16, 64, {64, 3072, KV_MASK_BLOCK}, 3072, 1024, 3000, 70, 999},
};

#define N_CASES ((int)(sizeof(cases) / sizeof(cases[0])))

/* A sequence's numbers, rounded to the KV type, and the results of every position. */
struct attn_run {
    const struct attn_case *c;
    enum dtype dtype;
    float *q, *k, *v; /* [n, n_heads, head_dim], [n, n_kv_heads, head_dim] */
    float *out;       /* [n, n_heads, head_dim] */
    int n;
};

static void run_init(struct attn_run *r, const struct attn_case *c, enum dtype dtype)
{
    int n = c->n_prompt + c->n_decode, d = c->head_dim;

    *r = (struct attn_run){.c = c, .dtype = dtype, .n = n};
    r->q = fixture_random(1, (int64_t)n * c->n_heads * d, 2.0f);
    r->k = fixture_random(2, (int64_t)n * c->n_kv_heads * d, 2.0f);
    r->v = fixture_random(3, (int64_t)n * c->n_kv_heads * d, 2.0f);
    r->out = fixture_random(4, (int64_t)n * c->n_heads * d, 1e9f);
    fixture_round(r->k, (int64_t)n * c->n_kv_heads * d, dtype);
    fixture_round(r->v, (int64_t)n * c->n_kv_heads * d, dtype);
}

static void run_release(struct attn_run *r)
{
    free(r->q);
    free(r->k);
    free(r->v);
    free(r->out);
}

static void world_for(struct kv_world *w, const struct attn_case *c, enum dtype dtype, int n_slots)
{
    struct kv_shape s = {.n_slots = n_slots,
                         .n_heads = c->n_heads,
                         .n_kv_heads = c->n_kv_heads,
                         .head_dim = c->head_dim,
                         .page_entries = c->page_entries,
                         .max_tokens = c->n_prompt + c->n_decode,
                         .dtype = dtype};
    int group = c->n_heads / c->n_kv_heads;

    kv_world_init(w, &s);
    for (int slot = 0; slot < n_slots; slot++) {
        for (int h = 0; h < c->n_kv_heads; h++)
            kv_world_rule(w, slot, h, c->geom, c->window);
        for (int h = 0; h < c->n_heads; h++)
            w->window[slot * c->n_heads + h] = c->window - h % group * c->window_step;
    }
}

/*
 * The rows of one step: rows pos0 .. of slot 0 (a chunk or one decode row), and if `company`, the
 * same rows once more for slot 1, before and behind them where the order of a step allows.
 */
static void step(struct backend *be, struct kv_world *w, struct attn_run *r, int pos0, int n,
                 bool decode, bool company)
{
    const struct attn_case *c = r->c;
    int d = c->head_dim, copies = company ? 2 : 1, n_rows = n * copies;
    int64_t qn = (int64_t)c->n_heads * d, kn = (int64_t)c->n_kv_heads * d;
    float *q = calloc((size_t)(n_rows * qn), 4), *out = calloc((size_t)(n_rows * qn), 4);
    char *k = calloc((size_t)(n_rows * kn), 4), *v = calloc((size_t)(n_rows * kn), 4);
    int32_t *pos = calloc((size_t)n_rows, 4), *slot = calloc((size_t)n_rows, 4);
    struct step_chunk chunks[2];
    size_t es = dtype_bytes(r->dtype);
    struct step_batch b = {.n_rows = n_rows,
                           .n_decode = decode ? n_rows : 0,
                           .n_chunks = decode ? 0 : copies,
                           .pos = pos,
                           .slot = slot,
                           .chunks = chunks};
    struct err err = {0};

    for (int copy = 0; copy < copies; copy++) {
        int s = company ? 1 - copy : 0; /* slot 0 comes last */
        int row0 = copy * n;

        chunks[copy] = (struct step_chunk){.slot = s, .row0 = row0, .n_rows = n, .pos0 = pos0};
        memcpy(q + row0 * qn, r->q + pos0 * qn, sizeof(float) * (size_t)(n * qn));
        dtype_convert(k + (size_t)(row0 * kn) * es, r->dtype, r->k + pos0 * kn, DTYPE_F32,
                      (size_t)(n * kn));
        dtype_convert(v + (size_t)(row0 * kn) * es, r->dtype, r->v + pos0 * kn, DTYPE_F32,
                      (size_t)(n * kn));
        for (int i = 0; i < n; i++) {
            pos[row0 + i] = pos0 + i;
            slot[row0 + i] = s;
        }
        for (int h = 0; decode && h < c->n_kv_heads; h++) {
            size_t from = ((size_t)row0 * (size_t)c->n_kv_heads + (size_t)h) * (size_t)d * es;

            memcpy(kv_world_at(w, s, h, pos0, false), k + from, (size_t)d * es);
            memcpy(kv_world_at(w, s, h, pos0, true), v + from, (size_t)d * es);
        }
    }
    ck_assert_int_eq(be->ops->step_begin(be, &b, &err), 0);
    ck_assert_int_eq(be->ops->attn(be,
                                   &(struct attn_args){.batch = &b,
                                                       .kv = &w->kv,
                                                       .n_heads = c->n_heads,
                                                       .n_kv_heads = c->n_kv_heads,
                                                       .head_dim = d,
                                                       .scale = 1.0f / sqrtf((float)d),
                                                       .q = q,
                                                       .k_chunk = k,
                                                       .v_chunk = v,
                                                       .out = out},
                                   &err),
                     0);
    ck_assert_int_eq(be->ops->kv_append(be,
                                        &(struct kv_append_args){.batch = &b,
                                                                 .kv = &w->kv,
                                                                 .n_kv_heads = c->n_kv_heads,
                                                                 .head_dim = d,
                                                                 .k_chunk = k,
                                                                 .v_chunk = v},
                                        &err),
                     0);
    memcpy(r->out + pos0 * qn, out + (int64_t)(copies - 1) * n * qn,
           sizeof(float) * (size_t)(n * qn));
    free(q);
    free(out);
    free(k);
    free(v);
    free(pos);
    free(slot);
}

static void run_all(struct backend *be, struct attn_run *r, int chunk, bool company)
{
    const struct attn_case *c = r->c;
    struct kv_world w;

    world_for(&w, c, r->dtype, company ? 2 : 1);
    for (int pos = 0; pos < c->n_prompt; pos += chunk)
        step(be, &w, r, pos, c->n_prompt - pos < chunk ? c->n_prompt - pos : chunk, false, company);
    for (int pos = c->n_prompt; pos < r->n; pos++)
        step(be, &w, r, pos, 1, true, company);
    kv_world_release(&w);
}

static void check_against_ref(const struct attn_run *r, const char *name)
{
    const struct attn_case *c = r->c;
    int d = c->head_dim, group = c->n_heads / c->n_kv_heads;
    float *k = malloc(sizeof(float) * (size_t)(r->n * d)),
          *v = malloc(sizeof(float) * (size_t)(r->n * d));
    double *ref = malloc(sizeof(double) * (size_t)d), *q = malloc(sizeof(double) * (size_t)d);
    bool *sees = malloc((size_t)r->n);

    for (int h = 0; h < c->n_heads; h++) {
        int window = c->window - h % group * c->window_step;

        for (int j = 0; j < r->n; j++) {
            int64_t from = ((int64_t)j * c->n_kv_heads + h / group) * d;

            memcpy(k + j * d, r->k + from, sizeof(float) * (size_t)d);
            memcpy(v + j * d, r->v + from, sizeof(float) * (size_t)d);
        }
        /* Every row near borders, some of the others: the reference is slow. */
        for (int i = 0; i < r->n; i += i % 64 < 2 || i > r->n - 80 ? 1 : 7) {
            const float *qi = r->q + ((int64_t)i * c->n_heads + h) * d;

            for (int j = 0; j < r->n; j++)
                sees[j] = i < c->n_prompt ? kv_sees_prompt(c->geom, window, i, j)
                                          : kv_sees_decode(c->geom, window, i, j);
            for (int e = 0; e < d; e++)
                q[e] = qi[e];
            ref_attend(ref, q, k, v, sees, r->n, d, 1.0f / sqrtf((float)d));
            /* f32 sums of up to 1500 weights of values up to 2. */
            fixture_close_to(r->out + ((int64_t)i * c->n_heads + h) * d, ref, d, 4e-5, 1e-5, name);
        }
    }
    free(k);
    free(v);
    free(ref);
    free(q);
    free(sees);
}

/* Every case and KV type agrees with the explicit mask; NaN in unwritten pages never shows. */
START_TEST(cpu_attn__agrees_with_an_explicit_mask)
{
    struct backend *be = fixture_open(_i, DTYPE_F32, 2, 2048);

    for (int i = 0; i < N_CASES; i++) {
        for (int dt = DTYPE_F32; dt <= DTYPE_F16; dt++) {
            struct attn_run r;

            run_init(&r, &cases[i], (enum dtype)dt);
            run_all(be, &r, cases[i].chunk, false);
            check_against_ref(&r, cases[i].name);
            run_release(&r);
        }
    }
    be->ops->close(be);
}
END_TEST

/* A row's bits do not change with the size of chunks, with company, or with the thread count. */
START_TEST(cpu_attn__gives_the_same_bits_in_any_company)
{
    static const int chunks[] = {1, 17, 64, 1 << 20};
    struct backend *one = fixture_open(_i, DTYPE_F32, 1, 4096);
    struct backend *three = fixture_open(_i, DTYPE_F32, 3, 4096);

    for (int i = 0; i < N_CASES; i++) {
        struct attn_run want, got;
        size_t bytes;

        if (cases[i].n_prompt > 420)
            continue; /* chunks of 1 take too long */
        run_init(&want, &cases[i], DTYPE_BF16);
        run_init(&got, &cases[i], DTYPE_BF16);
        bytes =
            sizeof(float) * (size_t)want.n * (size_t)cases[i].n_heads * (size_t)cases[i].head_dim;
        run_all(one, &want, cases[i].chunk, false);
        for (int j = 0; j < 4; j++) {
            run_all(j % 2 ? one : three, &got, chunks[j], j >= 1);
            ck_assert_msg(memcmp(want.out, got.out, bytes) == 0, "%s: chunk %d differs",
                          cases[i].name, chunks[j]);
        }
        run_release(&want);
        run_release(&got);
    }
    one->ops->close(one);
    three->ops->close(three);
}
END_TEST

/* Decode rows that are split over keys give the bits of those that are not. */
START_TEST(cpu_attn__splits_long_rows_without_changing_bits)
{
    struct backend *one = fixture_open(_i, DTYPE_F32, 1, 4096);
    struct backend *many = fixture_open(_i, DTYPE_F32, 4, 4096);

    for (int i = 0; i < N_CASES; i++) {
        struct attn_run want, got;

        if (cases[i].n_prompt < 1000)
            continue;
        run_init(&want, &cases[i], DTYPE_BF16);
        run_init(&got, &cases[i], DTYPE_BF16);
        run_all(one, &want, 512, false);
        run_all(many, &got, 512, false);
        ck_assert_int_eq(memcmp(want.out, got.out,
                                sizeof(float) * (size_t)want.n * (size_t)cases[i].n_heads *
                                    (size_t)cases[i].head_dim),
                         0);
        run_release(&want);
        run_release(&got);
    }
    one->ops->close(one);
    many->ops->close(many);
}
END_TEST

/* kv_copy moves whole pages and nothing else. */
START_TEST(cpu_attn__copies_pages)
{
    struct backend *be = fixture_open(CPU_ISA_SCALAR, DTYPE_F32, 2, 64);
    struct kv_shape s = {.n_slots = 1,
                         .n_heads = 1,
                         .n_kv_heads = 1,
                         .head_dim = 8,
                         .page_entries = 16,
                         .max_tokens = 64,
                         .dtype = DTYPE_BF16};
    struct kv_world w;
    int32_t src[2] = {0, 3}, dst[2] = {5, 1};
    struct err err = {0};

    kv_world_init(&w, &s);
    for (int p = 0; p < w.n_pages; p++)
        memset(w.pages + (size_t)p * w.kv.page_bytes, p, w.kv.page_bytes);
    ck_assert_int_eq(
        be->ops->kv_copy(
            be, &(struct kv_copy_args){.kv = &w.kv, .n_pages = 2, .src = src, .dst = dst}, &err),
        0);
    for (int p = 0; p < w.n_pages; p++) {
        char want = (char)(p == 5 ? 0 : p == 1 ? 3 : p);

        ck_assert_int_eq(w.pages[(size_t)p * w.kv.page_bytes], want);
        ck_assert_int_eq(w.pages[(size_t)(p + 1) * w.kv.page_bytes - 1], want);
    }
    kv_world_release(&w);
    be->ops->close(be);
}
END_TEST

TEST_SUITE(cpu_attn)
{
    TCase *tc = test_case(suite, "core");

    tcase_set_timeout(tc, 300);
    tcase_add_loop_test(tc, cpu_attn__agrees_with_an_explicit_mask, 0, fixture_n_isas());
    tcase_add_loop_test(tc, cpu_attn__gives_the_same_bits_in_any_company, 0, fixture_n_isas());
    tcase_add_loop_test(tc, cpu_attn__splits_long_rows_without_changing_bits, 0, fixture_n_isas());
    tcase_add_test(tc, cpu_attn__copies_pages);
}
