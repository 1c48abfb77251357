/*
 * Tests of base/exp_poly.h: the promised error, the borders, and the exact bits, so that a change
 * of compiler or flags that would change sampled tokens fails here.
 */
#include "tests/lib/test.h"

#include "base/exp_poly.h"

#define FLOAT_STEP 1009 /* every 1009th float: a million points */

/* 1e-7 against libm's double exp, over floats of every size in (-87, 0]. */
START_TEST(exp_poly__keeps_its_error)
{
    double worst = 0;
    float at = 0, end = -87.0f;
    uint32_t end_bits;

    memcpy(&end_bits, &end, sizeof(end_bits));
    for (uint32_t u = 0x80000000u; u < end_bits; u += FLOAT_STEP) {
        double error;
        float x;

        memcpy(&x, &u, sizeof(x));
        error = fabs(exp_poly(x) / exp((double)x) - 1.0);
        if (error > worst) {
            worst = error;
            at = x;
        }
    }
    ck_assert_msg(worst < 1e-7, "relative error %g at %.9g", worst, at);
}
END_TEST

/* The result's bits, all mixed together: equal for every compiler, with and without FMA code. */
START_TEST(exp_poly__gives_the_same_bits_everywhere)
{
    uint64_t hash = 0;
    float end = -87.0f;
    uint32_t end_bits;

    memcpy(&end_bits, &end, sizeof(end_bits));
    for (uint32_t u = 0x80000000u; u < end_bits; u += 1001) {
        float x, y;
        uint32_t bits;

        memcpy(&x, &u, sizeof(x));
        y = exp_poly(x);
        memcpy(&bits, &y, sizeof(bits));
        hash = hash * 31 + bits;
    }
    ck_assert_uint_eq(hash, 0x488640b9ab7007fcu);
}
END_TEST

/* 1 at 0 and above, 0 from -87 down and for NaN. */
START_TEST(exp_poly__is_exact_at_its_borders)
{
    ck_assert(exp_poly(0.0f) == 1.0f);
    ck_assert(exp_poly(-0.0f) == 1.0f);
    ck_assert(exp_poly(5.0f) == 1.0f);
    ck_assert(exp_poly(INFINITY) == 1.0f);
    ck_assert(exp_poly(-87.0f) == 0.0f);
    ck_assert(exp_poly(-INFINITY) == 0.0f);
    ck_assert(exp_poly(NAN) == 0.0f);
    ck_assert(exp_poly(nextafterf(-87.0f, 0.0f)) > 1e-38f);
}
END_TEST

/* 2^40 at 0; at the low end one unit, then nothing. */
START_TEST(exp_weight__counts_in_units_of_2_to_the_minus_40)
{
    ck_assert_uint_eq(exp_weight(0.0f), 1ull << 40);
    ck_assert_uint_eq(exp_weight(-27.7f), 1);
    ck_assert_uint_eq(exp_weight(-27.8f), 0);
    ck_assert_uint_eq(exp_weight(-INFINITY), 0);
    ck_assert_uint_eq(exp_weight(NAN), 0);
}
END_TEST

TEST_SUITE(exp_poly)
{
    TCase *tc = test_case(suite, "core");

    tcase_add_test(tc, exp_poly__keeps_its_error);
    tcase_add_test(tc, exp_poly__gives_the_same_bits_everywhere);
    tcase_add_test(tc, exp_poly__is_exact_at_its_borders);
    tcase_add_test(tc, exp_weight__counts_in_units_of_2_to_the_minus_40);
}
