/*
 * exp_poly - the one exponential that sampling uses, bit-equal on host and device.
 *
 * exp_poly(x) for x <= 0, by range reduction to 2^n * 2^f and a polynomial in f evaluated with
 * explicit fused multiply-adds, so that no compiler may round it differently. Relative error
 * under 3e-7. exp_weight() turns it into the integer weight that makes sums order-free.
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
    float t, n, f, p;
    union {
        float f;
        uint32_t u;
    } scale;

    if (!(x > -87.0f)) /* also NaN: such a token is never drawn */
        return 0.0f;
    if (x > 0.0f)
        x = 0.0f;
    t = x * 1.44269504f;
    n = floorf(t);
    /* f = x*log2(e) - n with the low part of log2(e) added back. */
    f = fmaf(x, 1.44269504f, -n);
    f = fmaf(x, 1.92596299e-8f, f);
    p = 1.5403530e-4f;
    p = fmaf(p, f, 1.3333558e-3f);
    p = fmaf(p, f, 9.6181291e-3f);
    p = fmaf(p, f, 5.5504109e-2f);
    p = fmaf(p, f, 2.4022651e-1f);
    p = fmaf(p, f, 6.9314718e-1f);
    p = fmaf(p, f, 1.0f);
    scale.u = (uint32_t)((int)n + 127) << 23;
    return p * scale.f;
}

/* exp(x) in units of 2^-40, x <= 0: sums of up to 2^23 of them stay below 2^63. */
EXP_POLY_FN uint64_t exp_weight(float x)
{
    return (uint64_t)((double)exp_poly(x) * 1099511627776.0);
}

#endif
