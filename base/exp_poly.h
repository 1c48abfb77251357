/*
 * exp_poly - the one exponential that sampling uses, bit-equal on host and device.
 *
 * exp_poly(x) for x <= 0, by range reduction to 2^n * 2^f and a polynomial in f. Every product
 * that meets a sum is an explicit fmaf(), so no compiler has anything left to contract, and both
 * compilers round alike. Relative error under 1e-7 on (-87, 0], measured over all floats there;
 * 0 below, where floats stop being normal. exp_weight() turns it into the integer
 * weight that makes sums order-free.
 *
 * In files built without -mfma, fmaf() and rintf() are calls into libm: right, and some ten times
 * slower. A loop over a vocabulary belongs in an _avx2.c file.
 */
#ifndef EXP_POLY_H
#define EXP_POLY_H

#include <math.h>
#include <stdint.h>
#include <string.h>

#ifdef __CUDACC__
#define EXP_POLY_FN static __host__ __device__ inline
#else
#define EXP_POLY_FN static inline
#endif

EXP_POLY_FN float exp_poly(float x)
{
    float n, f, p;
    union {
        float value;
        uint32_t bits;
    } scale;

    if (!(x > -87.0f)) /* also NaN: such a token is never drawn */
        return 0.0f;
    if (x > 0.0f)
        x = 0.0f;
    n = rintf(x * 1.44269504f);
    /* f = x*log2(e) - n in [-0.5, 0.5], with the low part of log2(e) added back. */
    f = fmaf(x, 1.44269504f, -n);
    f = fmaf(x, 1.92596299e-8f, f);
    /* Minimax for 2^f with p(0) = 1: 2e-9 off before rounding, so rounding is all that is left. */
    p = 1.53543020e-4f;
    p = fmaf(p, f, 1.33991486e-3f);
    p = fmaf(p, f, 9.61843599e-3f);
    p = fmaf(p, f, 5.55033162e-2f);
    p = fmaf(p, f, 2.40226477e-1f);
    p = fmaf(p, f, 6.93147182e-1f);
    p = fmaf(p, f, 1.0f);
    scale.bits = (uint32_t)((int)n + 127) << 23;
#ifdef __CUDA_ARCH__
    return __fmul_rn(p, scale.value); /* nvcc would fuse a plain product with the caller's sum */
#else
    return p * scale.value;
#endif
}

/* exp(x) in units of 2^-40, x <= 0: sums of up to 2^23 of them stay below 2^63. */
EXP_POLY_FN uint64_t exp_weight(float x)
{
    return (uint64_t)((double)exp_poly(x) * 1099511627776.0);
}

#endif
