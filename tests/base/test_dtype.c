/*
 * Tests of base/dtype.c: every 16-bit pattern, the rounding rule against its definition, and the
 * vector loops against the scalar functions.
 */
#include "tests/lib/test.h"

#include "base/dtype.h"
#include "base/rng.h"

#include <math.h>
#include <stdlib.h>

#define N_RANDOM 200000
#define N_LONG   5000 /* more than one staging chunk, and no multiple of a block */

static uint32_t bits_of(float f)
{
    uint32_t u;

    memcpy(&u, &f, sizeof(u));
    return u;
}

static float float_of(uint32_t u)
{
    float f;

    memcpy(&f, &u, sizeof(f));
    return f;
}

/* A random pattern: any exponent, NaNs and infinities among them. */
static float random_float(uint64_t i)
{
    return float_of((uint32_t)rng_u64(1, 0, i));
}

/* The value that a 16-bit float with the given fields stands for, straight from IEEE 754. */
static double half_value(uint16_t h, int frac_bits, int bias)
{
    int frac = h & ((1 << frac_bits) - 1);
    int exp = (h & 0x7fff) >> frac_bits;
    double sign = h & 0x8000 ? -1.0 : 1.0;

    if (exp == (0x7fff >> frac_bits))
        return frac ? NAN : sign * INFINITY;
    if (exp == 0)
        return sign * ldexp(frac, 1 - bias - frac_bits);
    return sign * ldexp(frac + (1 << frac_bits), exp - bias - frac_bits);
}

/* Every pattern means what IEEE 754 says, and comes back as itself; NaNs come back as NaNs. */
START_TEST(dtype__round_trips_every_f16)
{
    for (uint32_t h = 0; h < 65536; h++) {
        float f = f16_to_f32((uint16_t)h);
        double want = half_value((uint16_t)h, 10, 15);

        if (isnan(want)) {
            ck_assert(isnan(f));
            ck_assert_uint_eq(f32_to_f16(f), h | 0x200);
            continue;
        }
        ck_assert(f == want);
        ck_assert_uint_eq(f32_to_f16(f), h);
    }
}
END_TEST

/* The same for bf16. */
START_TEST(dtype__round_trips_every_bf16)
{
    for (uint32_t h = 0; h < 65536; h++) {
        float f = bf16_to_f32((uint16_t)h);
        double want = half_value((uint16_t)h, 7, 127);

        if (isnan(want)) {
            ck_assert(isnan(f));
            ck_assert_uint_eq(f32_to_bf16(f), h | 0x40);
            continue;
        }
        ck_assert(f == want);
        ck_assert_uint_eq(f32_to_bf16(f), h);
    }
}
END_TEST

/* Between each two neighbours: the tie goes to the even one, either side of it to the nearer. */
START_TEST(dtype__rounds_to_nearest_even)
{
    for (uint32_t h = 0; h < 0x7bff; h++) {
        double a = f16_to_f32((uint16_t)h), b = f16_to_f32((uint16_t)(h + 1));
        float mid = (float)((a + b) / 2);
        uint32_t even = h & 1 ? h + 1 : h;

        ck_assert_uint_eq(f32_to_f16(mid), even);
        ck_assert_uint_eq(f32_to_f16(-mid), even | 0x8000);
        ck_assert_uint_eq(f32_to_f16(nextafterf(mid, 0.0f)), h);
        ck_assert_uint_eq(f32_to_f16(nextafterf(mid, INFINITY)), h + 1);
    }
    for (uint32_t h = 0; h < 0x7f7f; h++) {
        float mid = float_of(h << 16 | 0x8000);

        ck_assert_uint_eq(f32_to_bf16(mid), h & 1 ? h + 1 : h);
        ck_assert_uint_eq(f32_to_bf16(float_of(h << 16 | 0x7fff)), h);
        ck_assert_uint_eq(f32_to_bf16(float_of(h << 16 | 0x8001)), h + 1);
    }
}
END_TEST

/* Beyond the largest value, rounding goes to infinity exactly from the tie on. */
START_TEST(dtype__overflows_to_infinity)
{
    ck_assert_uint_eq(f32_to_f16(65504.0f), 0x7bff);
    ck_assert_uint_eq(f32_to_f16(nextafterf(65520.0f, 0.0f)), 0x7bff);
    ck_assert_uint_eq(f32_to_f16(65520.0f), 0x7c00);
    ck_assert_uint_eq(f32_to_f16(-1e30f), 0xfc00);
    ck_assert_uint_eq(f32_to_f16(0x1p-25f), 0);
    ck_assert_uint_eq(f32_to_f16(nextafterf(0x1p-25f, 1.0f)), 1);
    ck_assert_uint_eq(f32_to_bf16(float_of(0x7f7f7fff)), 0x7f7f);
    ck_assert_uint_eq(f32_to_bf16(float_of(0x7f7f8000)), 0x7f80);
}
END_TEST

/* The vector loops give what the scalar functions give, NaN bits included, at every length. */
START_TEST(dtype__converts_arrays_like_single_values)
{
    float *src = malloc(N_RANDOM * sizeof(float));
    uint16_t *bf = malloc(N_RANDOM * 2), *fp = malloc(N_RANDOM * 2);

    for (int i = 0; i < N_RANDOM; i++)
        src[i] = random_float(i);
    dtype_convert(bf, DTYPE_BF16, src, DTYPE_F32, N_RANDOM);
    dtype_convert(fp, DTYPE_F16, src, DTYPE_F32, N_RANDOM);
    for (int i = 0; i < N_RANDOM; i++) {
        ck_assert_uint_eq(bf[i], f32_to_bf16(src[i]));
        ck_assert_uint_eq(fp[i], f32_to_f16(src[i]));
    }
    for (size_t n = 0; n < 70; n++) {
        uint16_t out[72];

        memset(out, 0xee, sizeof(out));
        dtype_convert(out, DTYPE_F16, src, DTYPE_F32, n);
        ck_assert_mem_eq(out, fp, n * 2);
        ck_assert_uint_eq(out[n], 0xeeee);
        dtype_convert(out, DTYPE_BF16, src, DTYPE_F32, n);
        ck_assert_mem_eq(out, bf, n * 2);
        ck_assert_uint_eq(out[n], 0xeeee);
    }
    free(src);
    free(bf);
    free(fp);
}
END_TEST

/* Widening arrays gives the bits that the scalar functions give, for every pattern. */
START_TEST(dtype__widens_every_pattern)
{
    uint16_t *src = malloc(65536 * 2);
    float *out = malloc(65536 * sizeof(float));

    for (int i = 0; i < 65536; i++)
        src[i] = (uint16_t)i;
    dtype_convert(out, DTYPE_F32, src, DTYPE_F16, 65536);
    for (int i = 0; i < 65536; i++)
        ck_assert_uint_eq(bits_of(out[i]), bits_of(f16_to_f32((uint16_t)i)));
    dtype_convert(out, DTYPE_F32, src, DTYPE_BF16, 65536);
    for (int i = 0; i < 65536; i++)
        ck_assert_uint_eq(bits_of(out[i]), (uint32_t)i << 16);
    free(src);
    free(out);
}
END_TEST

static const enum dtype all[] = {DTYPE_F32, DTYPE_BF16, DTYPE_F16};

/* Any type to any other, in place and apart, gives the same: nothing is read after it is written.
 */
START_TEST(dtype__converts_in_place)
{
    enum dtype from = all[_i / 3], to = all[_i % 3];
    float *values = malloc(N_LONG * sizeof(float));
    unsigned char *apart = malloc(N_LONG * sizeof(float));
    unsigned char *place = malloc(N_LONG * sizeof(float));

    for (int i = 0; i < N_LONG; i++)
        values[i] = rng_f32(2, 0, i) - 0.5f;
    dtype_convert(place, from, values, DTYPE_F32, N_LONG);
    dtype_convert(apart, to, place, from, N_LONG);
    dtype_convert(place, to, place, from, N_LONG);
    ck_assert_mem_eq(place, apart, N_LONG * dtype_bytes(to));
    free(values);
    free(apart);
    free(place);
}
END_TEST

/* Sizes and names, which file formats and logs rely on. */
START_TEST(dtype__names_and_sizes)
{
    ck_assert_uint_eq(dtype_bytes(DTYPE_F32), 4);
    ck_assert_uint_eq(dtype_bytes(DTYPE_BF16), 2);
    ck_assert_uint_eq(dtype_bytes(DTYPE_F16), 2);
    ck_assert_str_eq(dtype_name(DTYPE_F32), "f32");
    ck_assert_str_eq(dtype_name(DTYPE_BF16), "bf16");
    ck_assert_str_eq(dtype_name(DTYPE_F16), "f16");
}
END_TEST

TEST_SUITE(dtype)
{
    TCase *tc = test_case(suite, "core");

    tcase_add_test(tc, dtype__round_trips_every_f16);
    tcase_add_test(tc, dtype__round_trips_every_bf16);
    tcase_add_test(tc, dtype__rounds_to_nearest_even);
    tcase_add_test(tc, dtype__overflows_to_infinity);
    tcase_add_test(tc, dtype__converts_arrays_like_single_values);
    tcase_add_test(tc, dtype__widens_every_pattern);
    tcase_add_loop_test(tc, dtype__converts_in_place, 0, 9);
    tcase_add_test(tc, dtype__names_and_sizes);
}
