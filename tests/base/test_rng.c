/*
 * Tests of base/rng.h: the known answers of Random123, and the layout that sampling relies on.
 */
#include "tests/lib/test.h"

#include "base/rng.h"

#include <math.h>

/* Known-answer vectors of philox4x32-10 from Random123's kat_vectors: counter, key, result. */
static const struct {
    uint32_t ctr[4], key[2], want[4];
} kat[] = {
    {{0, 0, 0, 0}, {0, 0}, {0x6627e8d5, 0xe169c58d, 0xbc57ac4c, 0x9b00dbd8}},
    {{0xffffffff, 0xffffffff, 0xffffffff, 0xffffffff},
     {0xffffffff, 0xffffffff},
     {0x408f276d, 0x41c83b0e, 0xa20bc7c6, 0x6d5451fd}},
    {{0x243f6a88, 0x85a308d3, 0x13198a2e, 0x03707344},
     {0xa4093822, 0x299f31d0},
     {0xd16cfe09, 0x94fdcceb, 0x5001e420, 0x24126ea1}},
};

START_TEST(rng__gives_the_known_answers)
{
    uint32_t ctr[4];

    for (int i = 0; i < 4; i++)
        ctr[i] = kat[_i].ctr[i];
    rng_philox(ctr, kat[_i].key[0], kat[_i].key[1]);
    for (int i = 0; i < 4; i++)
        ck_assert_uint_eq(ctr[i], kat[_i].want[i]);
}
END_TEST

/* Seed is the key, position the low counter words, sample the third: a change would alter tokens.
 */
START_TEST(rng__lays_out_its_counter)
{
    uint32_t ctr[4] = {0x89abcdefu, 0x01234567u, 42, 0};

    rng_philox(ctr, 0x9abcdef0u, 0x12345678u);
    ck_assert_uint_eq(rng_u64(0x123456789abcdef0u, 42, 0x0123456789abcdefu),
                      (uint64_t)ctr[1] << 32 | ctr[0]);
    ck_assert_uint_eq(rng_u64(0, 0, 0), 0xe169c58d6627e8d5u);
}
END_TEST

/* Uniform floats stay in [0, 1) and have the mean and variance of such. */
START_TEST(rng__gives_uniform_floats)
{
    double sum = 0, squares = 0;
    int n = 100000;

    for (int i = 0; i < n; i++) {
        float f = rng_f32(7, 3, i);

        ck_assert(f >= 0.0f);
        ck_assert(f < 1.0f);
        sum += f;
        squares += (double)f * f;
    }
    /* Five standard deviations of the mean of n uniforms; the seed is fixed anyway. */
    ck_assert(fabs(sum / n - 0.5) < 5 * sqrt(1.0 / 12 / n));
    ck_assert(fabs(squares / n - 1.0 / 3) < 5 * sqrt(4.0 / 45 / n));
}
END_TEST

TEST_SUITE(rng)
{
    TCase *tc = test_case(suite, "core");

    tcase_add_loop_test(tc, rng__gives_the_known_answers, 0, sizeof(kat) / sizeof(kat[0]));
    tcase_add_test(tc, rng__lays_out_its_counter);
    tcase_add_test(tc, rng__gives_uniform_floats);
}
