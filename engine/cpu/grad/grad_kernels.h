/*
 * grad_kernels - the inner loops of the backward ops, one table an instruction set, as
 * cpu_kernels.
 */
#ifndef GRAD_KERNELS_H
#define GRAD_KERNELS_H

#include "engine/cpu/cpu_isa.h"

#include <stdbool.h>
#include <stdint.h>

/* c[i][j] = or += sum over k of a[i * a_row + k * a_col] * b[k * ldb + j]; all f32. */
struct grad_product {
    int m, n, k;
    const float *a;
    int64_t a_row, a_col;
    const float *b;
    int64_t ldb;
    float *c;
    int64_t ldc;
    bool add;
};

struct grad_kernels {
    void (*product)(const struct grad_product *p);
    /* s[lo .. hi - 1] = softmax of scale * s, the rest of s[0 .. n - 1] = 0. */
    void (*softmax)(float *s, int lo, int hi, int n, float scale);
    /*
     * For n keys of one row with weights a and ga = da . v: returns the sum of
     * a / max(1 - a, least) * (d - ga), or of its absolute values, and turns ga into
     * a * (ga - d) * scale.
     */
    float (*influence)(const float *a, float *ga, int n, float d, float least, float scale,
                       bool absolute);
};

extern const struct grad_kernels grad_kernels_plain;
#if defined(__x86_64__)
extern const struct grad_kernels grad_kernels_avx2, grad_kernels_avx512;
#endif

const struct grad_kernels *grad_kernels_for(enum cpu_isa isa);

#endif
