/* What a request may draw next, as bits. */
#include "base/arena.h"
#include "engine/token_filter.h"
#include "tests/lib/test.h"

#define VOCAB 70

static struct arena arena;
static struct token_filter filter;

static void setup(void)
{
    arena_init(&arena, 1 << 20, 0);
}

static void teardown(void)
{
    arena_release(&arena);
}

static int init(const struct sampling_params *p)
{
    struct err err = {0};

    return token_filter_init(&filter, &arena, p, VOCAB, &err);
}

static bool has(const uint32_t *mask, int token)
{
    return mask[token / 32] >> (token % 32) & 1;
}

/* Nothing asked for, nothing to do. */
START_TEST(token_filter__is_idle_by_default)
{
    struct sampling_params p;

    sampling_params_init(&p);
    ck_assert_int_eq(init(&p), 0);
    ck_assert(!token_filter_is_active(&filter));
}
END_TEST

/* Allowed ids are the only bits, up to the last of the vocabulary. */
START_TEST(token_filter__allows_only_what_is_named)
{
    static const int32_t ids[] = {3, 69, 3};
    struct sampling_params p;
    uint32_t mask[3];

    sampling_params_init(&p);
    p.allowed = ids;
    p.n_allowed = 3;
    ck_assert_int_eq(init(&p), 0);
    ck_assert(token_filter_fill(&filter, NULL, 0, mask));
    for (int t = 0; t < 96; t++)
        ck_assert_int_eq(has(mask, t), t == 3 || t == 69);
}
END_TEST

/* A word's last token is banned exactly where the tokens before it were generated. */
START_TEST(token_filter__never_completes_a_bad_word)
{
    static const int32_t one[] = {5}, three[] = {7, 8, 9};
    static const struct engine_word words[] = {{one, 1}, {three, 3}};
    static const int32_t text[] = {1, 7, 8};
    struct sampling_params p;
    uint32_t mask[3];

    sampling_params_init(&p);
    p.bad_words = words;
    p.n_bad_words = 2;
    ck_assert_int_eq(init(&p), 0);
    for (int n = 0; n <= 3; n++) {
        ck_assert(token_filter_fill(&filter, text, n, mask));
        for (int t = 0; t < VOCAB; t++)
            ck_assert_int_eq(has(mask, t), t != 5 && !(t == 9 && n == 3));
        ck_assert(!has(mask, VOCAB));
    }
}
END_TEST

/* When nothing is left, it says so. */
START_TEST(token_filter__tells_that_no_token_is_left)
{
    static const int32_t one[] = {5};
    static const struct engine_word words[] = {{one, 1}};
    struct sampling_params p;
    uint32_t mask[3];

    sampling_params_init(&p);
    p.allowed = one;
    p.n_allowed = 1;
    p.bad_words = words;
    p.n_bad_words = 1;
    ck_assert_int_eq(init(&p), 0);
    ck_assert(!token_filter_fill(&filter, NULL, 0, mask));
}
END_TEST

/* Ids outside the vocabulary are the caller's mistake. */
START_TEST(token_filter__refuses_unknown_ids)
{
    static const int32_t ids[] = {VOCAB};
    static const struct engine_word words[] = {{ids, 1}, {ids, 0}};
    struct sampling_params p;

    sampling_params_init(&p);
    p.allowed = ids;
    p.n_allowed = 1;
    ck_assert_int_eq(init(&p), ERR_INVALID);
    p.n_allowed = 0;
    p.bad_words = words;
    p.n_bad_words = 1;
    ck_assert_int_eq(init(&p), ERR_INVALID);
    p.bad_words = words + 1;
    ck_assert_int_eq(init(&p), ERR_INVALID);
}
END_TEST

TEST_SUITE(token_filter)
{
    TCase *tc = test_case(suite, "core");

    tcase_add_checked_fixture(tc, setup, teardown);
    tcase_add_test(tc, token_filter__is_idle_by_default);
    tcase_add_test(tc, token_filter__allows_only_what_is_named);
    tcase_add_test(tc, token_filter__never_completes_a_bad_word);
    tcase_add_test(tc, token_filter__tells_that_no_token_is_left);
    tcase_add_test(tc, token_filter__refuses_unknown_ids);
}
