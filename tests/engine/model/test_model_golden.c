/*
 * Every golden variant against transformers: tests/golden/model_golden.py made the folders.
 *
 * Tolerance: |diff| <= 1e-4 on logits with a standard deviation of 3, both sides in fp32; what is
 * left is the order of sums. The script keeps greedy margins far above it, so continuations must be
 * equal. SPAND_TEST_VERBOSE=1 prints the largest difference of each variant.
 */
#include "base/err.h"
#include "base/file_map.h"
#include "base/json_file.h"
#include "tests/lib/test.h"
#include "tests/lib/test_model_run.h"

#include <dirent.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define TOLERANCE 1e-4f
/* bf16 rounds to 1 in 512, logits reach 12: 0.02 a rounding at the end, and some tens before it. */
#define TOLERANCE_BF16 0.4f
#define MAX_VARIANTS   64

static char *variants[MAX_VARIANTS];
static int n_variants;

struct golden {
    char dir[256];
    int32_t tokens[512]; /* prompt, then continuation */
    int n_prompt, n;
    int positions[16], n_positions;
    float *logits; /* [n_positions, vocab_size] */
    size_t logit_bytes;
};

static int read_ids(int32_t *out, const json_t *list)
{
    for (size_t i = 0; i < json_array_size(list); i++)
        out[i] = (int32_t)json_integer_value(json_array_get(list, i));
    return (int)json_array_size(list);
}

static void golden_open(struct golden *g, const char *name)
{
    struct err err = {0};
    char path[512];
    json_t *doc = NULL;

    memset(g, 0, sizeof(*g));
    snprintf(g->dir, sizeof(g->dir), "%s/%s", test_path("tests/golden/models"), name);
    snprintf(path, sizeof(path), "%s/golden.json", g->dir);
    ck_assert_msg(json_file_load(&doc, path, 1 << 20, &err) == 0, "%s", err.msg);
    ck_assert_uint_le(json_array_size(json_object_get(doc, "prompt")), 256);
    ck_assert_uint_le(json_array_size(json_object_get(doc, "continuation")), 256);
    g->n_prompt = read_ids(g->tokens, json_object_get(doc, "prompt"));
    g->n = g->n_prompt + read_ids(g->tokens + g->n_prompt, json_object_get(doc, "continuation"));
    g->n_positions = read_ids(g->positions, json_object_get(doc, "positions"));
    json_decref(doc);
    snprintf(path, sizeof(path), "%s/logits.f32", g->dir);
    ck_assert_msg(file_read_text((char **)&g->logits, &g->logit_bytes, path, 1 << 20, &err) == 0,
                  "%s", err.msg);
}

/* SPAND_TEST_DEVICE=cuda runs the same vectors there; add CK_FORK=no, no context survives a fork.
 */
static struct test_model_params params_of(const struct golden *g)
{
    return (struct test_model_params){.dir = g->dir,
                                      .device = getenv("SPAND_TEST_DEVICE"),
                                      .dtype = DTYPE_F32,
                                      .n_slots = 1,
                                      .max_positions = 320,
                                      .max_rows = 128};
}

static void open_or_fail(struct test_model *t, const struct test_model_params *p)
{
    struct err err = {0};

    ck_assert_msg(test_model_open(t, p, &err) == 0, "%s: %s", p->dir, err.msg);
}

static float *logits_of(const struct test_model *t, int n)
{
    float *p = calloc((size_t)n * t->cfg.vocab_size, sizeof(float));

    ck_assert_ptr_nonnull(p);
    return p;
}

/* Compares the recorded rows; returns the largest difference. */
static float compare(const struct golden *g, const struct test_model *t, const float *logits,
                     float tolerance)
{
    int vocab = t->cfg.vocab_size;
    float worst = 0;

    ck_assert_uint_eq(g->logit_bytes, (size_t)g->n_positions * vocab * sizeof(float));
    for (int i = 0; i < g->n_positions; i++) {
        const float *got = logits + (size_t)g->positions[i] * vocab;
        const float *want = g->logits + (size_t)i * vocab;

        for (int v = 0; v < vocab; v++) {
            float diff = fabsf(got[v] - want[v]);

            ck_assert_msg(diff <= tolerance, "%s: position %d token %d: %.7g, want %.7g", g->dir,
                          g->positions[i], v, got[v], want[v]);
            worst = diff > worst ? diff : worst;
        }
    }
    return worst;
}

/* Logits of prompt and decode rows are those of transformers. */
START_TEST(model_golden__logits_match_transformers)
{
    struct err err = {0};
    struct golden g;
    struct test_model t;
    struct test_model_params p;
    float *logits, worst;

    golden_open(&g, variants[_i]);
    p = params_of(&g);
    open_or_fail(&t, &p);
    logits = logits_of(&t, g.n);
    ck_assert_msg(test_model_sequence(&t, g.tokens, g.n, g.n_prompt, 0, logits, &err) == 0,
                  "%s: %s", g.dir, err.msg);
    worst = compare(&g, &t, logits, TOLERANCE);
    if (getenv("SPAND_TEST_VERBOSE"))
        fprintf(stderr, "  %-24s max |diff| %.2e\n", variants[_i], worst);
    free(logits);
    free(g.logits);
    test_model_close(&t);
}
END_TEST

/* Left to itself, greedy decoding finds the same 128 tokens. */
START_TEST(model_golden__greedy_continuation_is_identical)
{
    struct err err = {0};
    struct golden g;
    struct test_model t;
    struct test_model_params p;
    float *logits;
    int32_t token;

    golden_open(&g, variants[_i]);
    ck_assert_int_eq(g.n - g.n_prompt, 128);
    p = params_of(&g);
    open_or_fail(&t, &p);
    logits = logits_of(&t, g.n_prompt);
    ck_assert_int_eq(test_model_sequence(&t, g.tokens, g.n_prompt, g.n_prompt, 0, logits, &err), 0);
    token = test_argmax(logits + (size_t)(g.n_prompt - 1) * t.cfg.vocab_size, t.cfg.vocab_size);
    for (int i = g.n_prompt; i < g.n; i++) {
        struct test_rows r = {
            .pos0 = i, .n = 1, .tokens = &token, .decode = true, .rope_len = i + 1};

        ck_assert_msg(token == g.tokens[i], "%s: token %d: %d, want %d", g.dir, i - g.n_prompt,
                      token, g.tokens[i]);
        ck_assert_int_eq(test_model_step(&t, &r, 1, logits, &err), 0);
        token = test_argmax(logits, t.cfg.vocab_size);
    }
    free(logits);
    free(g.logits);
    test_model_close(&t);
}
END_TEST

/* A prompt in chunks of any size gives the bits of the prompt in one piece, decode rows included.
 */
START_TEST(model_golden__chunked_prefill_equals_whole)
{
    static const int chunk_lens[] = {1, 7, 16, 64};
    struct golden g;
    struct test_model t;
    struct test_model_params p;
    float *whole, *chunked;
    size_t bytes;

    golden_open(&g, variants[_i]);
    p = params_of(&g);
    open_or_fail(&t, &p);
    whole = logits_of(&t, g.n);
    chunked = logits_of(&t, g.n);
    bytes = (size_t)(g.n_prompt + 8) * t.cfg.vocab_size * sizeof(float);
    ck_assert_int_eq(test_model_sequence(&t, g.tokens, g.n_prompt + 8, g.n_prompt, 0, whole, NULL),
                     0);
    test_model_close(&t);
    for (int i = 0; i < 4; i++) {
        open_or_fail(&t, &p);
        ck_assert_int_eq(test_model_sequence(&t, g.tokens, g.n_prompt + 8, g.n_prompt,
                                             chunk_lens[i], chunked, NULL),
                         0);
        ck_assert_msg(memcmp(whole, chunked, bytes) == 0, "%s: chunks of %d differ", g.dir,
                      chunk_lens[i]);
        test_model_close(&t);
    }
    free(whole);
    free(chunked);
    free(g.logits);
}
END_TEST

/* Layers with a window give the same from a ring of the window's size as from all pages. */
START_TEST(model_golden__rings_match_transformers)
{
    struct err err = {0};
    struct golden g;
    struct test_model t;
    struct test_model_params p;
    float *logits;

    golden_open(&g, variants[_i]);
    p = params_of(&g);
    p.rings = true;
    open_or_fail(&t, &p);
    logits = logits_of(&t, g.n);
    ck_assert_msg(test_model_sequence(&t, g.tokens, g.n, g.n_prompt, 19, logits, &err) == 0,
                  "%s: %s", g.dir, err.msg);
    compare(&g, &t, logits, TOLERANCE);
    free(logits);
    free(g.logits);
    test_model_close(&t);
}
END_TEST

/* In bf16 the same model is still recognisable: nothing but rounding is lost. */
START_TEST(model_golden__bf16_stays_close)
{
    struct err err = {0};
    struct golden g;
    struct test_model t;
    struct test_model_params p;
    float *logits;

    golden_open(&g, variants[_i]);
    p = params_of(&g);
    p.dtype = DTYPE_BF16;
    open_or_fail(&t, &p);
    logits = logits_of(&t, g.n);
    ck_assert_msg(test_model_sequence(&t, g.tokens, g.n, g.n_prompt, 0, logits, &err) == 0,
                  "%s: %s", g.dir, err.msg);
    compare(&g, &t, logits, TOLERANCE_BF16);
    free(logits);
    free(g.logits);
    test_model_close(&t);
}
END_TEST

#define N_RAGGED 4

/*
 * Rows of one sequence as step `step` takes them: the prompt in two chunks, then decode rows. Each
 * sequence has a prompt length of its own, so steps mix decode rows and chunks.
 */
static bool ragged_rows(struct test_rows *r, const struct golden *g, int seq, int step)
{
    static const int prompt_lens[N_RAGGED] = {1, 3, 9, 20};
    int n_prompt = prompt_lens[seq], cut = n_prompt > 3 ? n_prompt / 2 : n_prompt;

    if (step == 0)
        *r = (struct test_rows){.n = cut};
    else if (step == 1 && cut < n_prompt)
        *r = (struct test_rows){.pos0 = cut, .n = n_prompt - cut};
    else
        *r = (struct test_rows){
            .pos0 = n_prompt + step - (cut < n_prompt ? 2 : 1), .n = 1, .decode = true};
    r->slot = seq;
    r->tokens = g->tokens + seq + r->pos0; /* shifted, so that sequences differ */
    r->rope_len = r->decode ? r->pos0 + 1 : n_prompt;
    return true;
}

/* Several sequences in one batch give the bits that each gives alone. */
START_TEST(model_golden__ragged_batch_equals_one_at_a_time)
{
    enum { N_STEPS = 12 };
    struct golden g;
    struct test_model together, alone;
    struct test_model_params p;
    struct err err = {0};
    float *a, *b;

    golden_open(&g, variants[_i]);
    p = params_of(&g);
    p.n_slots = N_RAGGED;
    open_or_fail(&together, &p);
    open_or_fail(&alone, &p);
    a = logits_of(&alone, 128);
    b = logits_of(&alone, 128);
    for (int step = 0; step < N_STEPS; step++) {
        struct test_rows rows[N_RAGGED], r;
        size_t row_floats = together.cfg.vocab_size;
        int n = 0, at = 0;

        for (int decode = 1; decode >= 0; decode--) {
            for (int seq = 0; seq < N_RAGGED; seq++) {
                if (ragged_rows(&r, &g, seq, step) && r.decode == (decode == 1))
                    rows[n++] = r;
            }
        }
        ck_assert_msg(test_model_step(&together, rows, n, a, &err) == 0, "%s: %s", g.dir, err.msg);
        for (int i = 0; i < n; i++) {
            ck_assert_int_eq(test_model_step(&alone, &rows[i], 1, b, NULL), 0);
            ck_assert_msg(memcmp(a + at * row_floats, b, rows[i].n * row_floats * sizeof(float)) ==
                              0,
                          "%s: step %d sequence %d differs", g.dir, step, rows[i].slot);
            at += rows[i].n;
        }
    }
    free(a);
    free(b);
    free(g.logits);
    test_model_close(&together);
    test_model_close(&alone);
}
END_TEST

static int by_name(const void *a, const void *b)
{
    return strcmp(*(char *const *)a, *(char *const *)b);
}

/* CUDA has attention for these dimensions; the CPU for all. */
static bool is_built(const char *name)
{
    static const int dims[] = {32, 64, 80, 96, 128, 256};
    const char *device = getenv("SPAND_TEST_DEVICE");
    struct model_config cfg;
    struct err err = {0};
    char dir[512];

    if (!device || strncmp(device, "cuda", 4) != 0)
        return true;
    snprintf(dir, sizeof(dir), "%s/%s", test_path("tests/golden/models"), name);
    if (model_config_load(&cfg, dir, &err) < 0)
        return true; /* the tests will say so */
    for (size_t i = 0; i < sizeof(dims) / sizeof(dims[0]); i++)
        if (dims[i] == cfg.stack.head_dim)
            return true;
    return false;
}

static void find_variants(void)
{
    DIR *d = opendir(test_path("tests/golden/models"));
    struct dirent *de;

    while (d && (de = readdir(d)) && n_variants < MAX_VARIANTS) {
        if (de->d_name[0] != '.' && is_built(de->d_name))
            variants[n_variants++] = strdup(de->d_name);
    }
    if (d)
        closedir(d);
    qsort(variants, n_variants, sizeof(variants[0]), by_name);
}

TEST_SUITE(model_golden)
{
    TCase *tc = test_case(suite, "golden");

    find_variants();
    tcase_add_loop_test(tc, model_golden__logits_match_transformers, 0, n_variants);
    tcase_add_loop_test(tc, model_golden__greedy_continuation_is_identical, 0, n_variants);
    tcase_add_loop_test(tc, model_golden__chunked_prefill_equals_whole, 0, n_variants);
    tcase_add_loop_test(tc, model_golden__rings_match_transformers, 0, n_variants);
    tcase_add_loop_test(tc, model_golden__bf16_stays_close, 0, n_variants);
    tcase_add_loop_test(tc, model_golden__ragged_batch_equals_one_at_a_time, 0, n_variants);
}
