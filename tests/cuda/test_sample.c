/*
 * test_sample - the GPU draws the token that the CPU draws, always.
 */
#include "tests/cuda/cuda_pair.h"

#include "base/rng.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

#define N_ROWS  160 /* at most; more than the CTAs of the kernel */
#define N_MASKS 3
#define MAX_TOP 20

/* Logits of one kind: peaked, flat, all ties, integers (many ties), with infinities and NaN. */
static void fill_logits(float *x, int n_rows, int vocab, int kind)
{
    for (size_t i = 0; i < (size_t)n_rows * vocab; i++) {
        float u = rng_f32(3, kind, i);

        switch (kind) {
        case 0:
            x[i] = -12 * logf(u + 1e-9f) / 3;
            break;
        case 1:
            x[i] = u * 0.01f;
            break;
        case 2:
            x[i] = 1.5f;
            break;
        case 3:
            x[i] = floorf(u * 12) - 6;
            break;
        case 4:
            x[i] = u < 0.3f ? -INFINITY : u < 0.3001f ? NAN : u < 0.30011f ? INFINITY : u * 8;
            break;
        default:
            x[i] = u * 60 - 30;
            break;
        }
    }
}

static float pick(uint64_t key, const float *choices, int n)
{
    return choices[rng_u64(17, 0, key) % n];
}

/* Rows with every mix of settings; seen tokens and biases share two arrays. */
static void fill_rows(struct sample_row *rows, struct sample_bias *bias, struct sample_seen *seen,
                      int n_rows, int vocab, int kind)
{
    static const float temperatures[] = {0, 1, 0.7f, 1.3f, 0.01f, 5};
    static const float top_ps[] = {1, 0.9f, 0.5f, 0.1f, 0, 0.999f};
    static const float min_ps[] = {0, 0, 0.05f, 0.5f, 1};
    static const float top_ks[] = {0, 0, 1, 2, 40, 1000, 1e9f};
    static const float penalties[] = {0, 0, 0.5f, -1};

    for (int i = 0; i < n_rows; i++) {
        uint64_t k = (uint64_t)i * 16 + (uint64_t)kind * 100000;
        bool plain = i % 3 == 0;

        rows[i] = (struct sample_row){.temperature = pick(k, temperatures, 6),
                                      .top_p = pick(k + 1, top_ps, 6),
                                      .min_p = pick(k + 2, min_ps, 5),
                                      .top_k = (int32_t)pick(k + 3, top_ks, 7),
                                      .repetition_penalty = plain ? 1 : 1.2f,
                                      .presence_penalty = pick(k + 4, penalties, 4),
                                      .frequency_penalty = pick(k + 5, penalties, 4),
                                      .seed = 1000 + (uint64_t)i,
                                      .sample_idx = i % 4,
                                      .position = 17 + i,
                                      .forced_token = i % 13 == 5 ? i % vocab : -1,
                                      .n_top = i % 5 == 0 ? MAX_TOP : i % 4 - 1,
                                      .first_phase = i % 7 == 3 ? 2 : 0,
                                      .end_phase = i % 11 == 6 ? 2 : 0,
                                      .bias_min_at = i * 8 + 3,
                                      .n_bias_min = i % 4 == 2 ? 5 : 0,
                                      .min_end = 17 + i + i % 3,
                                      .bias_at = i * 8,
                                      .n_bias = plain ? 0 : 8,
                                      .slot = i % 6 == 4 ? -1 : i,
                                      .seen_at = i * 16,
                                      .mask = i % 4 == 1 ? 1 + i % N_MASKS : 0,
                                      .n_seen = plain        ? 0
                                                : vocab < 16 ? vocab
                                                             : 16};
        for (int j = 0; j < 8; j++) /* with a token twice, and one banned */
            bias[i * 8 + j] =
                (struct sample_bias){.token = (int32_t)((i * 31 + (j == 7 ? 3 : j) * 97) % vocab),
                                     .value = j == 2 ? -INFINITY : (float)j * 0.77f - 2};
        for (int j = 0; j < 16; j++)
            seen[i * 16 + j] =
                (struct sample_seen){.token = (i * 7 + j * 5) % vocab, .n_generated = j % 3};
    }
}

/* Log-probabilities come from equal integers through log(), whose last bit differs by library. */
static bool nearly(float a, float b)
{
    return a == b || fabsf(a - b) <= 1e-6f * fabsf(b);
}

#define STRIDE 3 /* of slot_token */

static void check_sampling(int vocab, int kind)
{
    int n_rows = vocab < 2000 ? N_ROWS : 24;
    struct cuda_pair p;
    struct pair_buf logits, rows, bias, seen, masks, result, slot_token, top_token, top_logprob;
    size_t n_words = (size_t)N_MASKS * SAMPLE_MASK_WORDS(vocab);
    int32_t *words = malloc(n_words * 4);
    struct pair_batch b;
    float *x = malloc(sizeof(*x) * (size_t)n_rows * vocab);
    struct sample_row *r = calloc(N_ROWS, sizeof(*r));
    struct sample_bias *bs = calloc(N_ROWS * 8, sizeof(*bs));
    struct sample_seen *sn = calloc(N_ROWS * 16, sizeof(*sn));
    struct sample_result *got;
    const struct sample_result *want;
    int n_drawn;
    int32_t *zeros = calloc(N_ROWS * MAX_TOP, 4), *got_top, *got_slot;
    int32_t none[N_ROWS * STRIDE];
    float *got_logprob;

    pair_open(&p, DTYPE_F32);
    fill_logits(x, n_rows, vocab, kind);
    fill_rows(r, bs, sn, n_rows, vocab, kind);
    logits = pair_i32(&p, (const int32_t *)x, (size_t)n_rows * vocab);
    rows = pair_i32(&p, (const int32_t *)r, N_ROWS * sizeof(*r) / 4);
    bias = pair_i32(&p, (const int32_t *)bs, N_ROWS * 8 * sizeof(*bs) / 4);
    for (size_t i = 0; i < n_words; i++) /* the last mask lets nothing through */
        words[i] = i / SAMPLE_MASK_WORDS(vocab) == N_MASKS - 1
                       ? 0
                       : (int32_t)((uint32_t)(i + 1) * 2654435761u);
    masks = pair_i32(&p, words, n_words);
    seen = pair_i32(&p, (const int32_t *)sn, N_ROWS * 16 * sizeof(*sn) / 4);
    result = pair_i32(&p, zeros, N_ROWS * 2);
    for (int i = 0; i < N_ROWS * STRIDE; i++)
        none[i] = -7;
    slot_token = pair_i32(&p, none, N_ROWS * STRIDE);
    top_token = pair_i32(&p, zeros, N_ROWS * MAX_TOP);
    top_logprob = pair_i32(&p, zeros, N_ROWS * MAX_TOP);
    b = pair_batch_new(&p, 0, 0, 0, 0, NULL, NULL, NULL, NULL, NULL);
    PAIR_RUN(&p, &b, sample, sample_args, .n_rows = n_rows, .vocab_size = vocab, .max_top = MAX_TOP,
             .logits = SIDE(logits), .rows = SIDE(rows), .bias = SIDE(bias), .seen = SIDE(seen),
             .mask = SIDE(masks), .result = SIDE(result), .slot_token = SIDE(slot_token),
             .slot_stride = STRIDE, .phase = kind % 3, .top_token = SIDE(top_token),
             .top_logprob = SIDE(top_logprob));
    got = pair_get_bytes(&p, &result);
    got_slot = pair_get_bytes(&p, &slot_token);
    got_top = pair_get_bytes(&p, &top_token);
    got_logprob = pair_get_bytes(&p, &top_logprob);
    want = result.cpu;
    n_drawn = 0;
    for (int i = 0; i < n_rows; i++) {
        ck_assert_msg(got[i].token == want[i].token && nearly(got[i].logprob, want[i].logprob),
                      "vocab %d kind %d row %d (t %g k %d p %g min %g forced %d bias %d): token %d "
                      "logprob %g, want %d %g",
                      vocab, kind, i, (double)r[i].temperature, r[i].top_k, (double)r[i].top_p,
                      (double)r[i].min_p, r[i].forced_token, r[i].n_bias, got[i].token,
                      (double)got[i].logprob, want[i].token, (double)want[i].logprob);
        for (int j = i * STRIDE; j < (i + 1) * STRIDE; j++)
            ck_assert_int_eq(got_slot[j], ((int32_t *)slot_token.cpu)[j]);
        n_drawn += ((int32_t *)slot_token.cpu)[i * STRIDE] >= 0;
        for (int j = i * MAX_TOP; j < (i + 1) * MAX_TOP; j++)
            ck_assert_msg(got_top[j] == ((int32_t *)top_token.cpu)[j] &&
                              nearly(got_logprob[j], ((float *)top_logprob.cpu)[j]),
                          "vocab %d kind %d row %d top %d: %d %g, want %d %g", vocab, kind, i,
                          j - i * MAX_TOP, got_top[j], (double)got_logprob[j],
                          ((int32_t *)top_token.cpu)[j], (double)((float *)top_logprob.cpu)[j]);
    }
    ck_assert_int_gt(n_drawn, n_rows / 2);
    free(words);
    free(x);
    free(r);
    free(bs);
    free(sn);
    free(zeros);
    free(got);
    free(got_slot);
    free(got_top);
    free(got_logprob);
    pair_batch_free(&p, &b);
    pair_free(&p, &logits);
    pair_free(&p, &rows);
    pair_free(&p, &bias);
    pair_free(&p, &seen);
    pair_free(&p, &masks);
    pair_free(&p, &result);
    pair_free(&p, &slot_token);
    pair_free(&p, &top_token);
    pair_free(&p, &top_logprob);
}

/* Every filter alone and together, with ties at every border, for small and odd vocabularies. */
START_TEST(sample__is_the_cpus)
{
    static const int vocabs[] = {1, 2, 31, 33, 1023, 1025, 32000, 50257, 128256};

    for (int kind = 0; kind < 6; kind++)
        check_sampling(vocabs[_i], kind);
}
END_TEST

TEST_SUITE(cuda_sample)
{
    tcase_add_loop_test(test_case(suite, "core"), sample__is_the_cpus, 0, 9);
}
