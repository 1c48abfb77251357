/*
 * grad_kernels_impl - the inner loops in terms of cpu_vec.h. The including file defines
 * GRAD_KERNELS_NAME.
 */
#include "engine/cpu/cpu_vec.h"
#include "engine/cpu/grad/grad_kernels.h"

#if defined(__AVX512F__)
#define PRODUCT_ROWS 12
#else
#define PRODUCT_ROWS 6
#endif
#define PRODUCT_COLS (2 * VW)
#define PRODUCT_K    256 /* a panel of b, k by two vectors, stays in the nearest cache */

/* R rows by two vectors of columns. */
VEC_FN void product_tile(const struct grad_product *p, int i, int j, int k0, int k1, bool add,
                         const int R)
{
    vf acc[PRODUCT_ROWS][2];
    const float *a = p->a + i * p->a_row;

#pragma GCC unroll 12
    for (int r = 0; r < R; r++) {
        acc[r][0] = add ? v_load(p->c + (i + r) * p->ldc + j) : v_zero();
        acc[r][1] = add ? v_load(p->c + (i + r) * p->ldc + j + VW) : v_zero();
    }
    for (int k = k0; k < k1; k++) {
        vf b0 = v_load(p->b + k * p->ldb + j), b1 = v_load(p->b + k * p->ldb + j + VW);

#pragma GCC unroll 12
        for (int r = 0; r < R; r++) {
            vf x = v_set1(a[r * p->a_row + k * p->a_col]);

            acc[r][0] = v_fma(x, b0, acc[r][0]);
            acc[r][1] = v_fma(x, b1, acc[r][1]);
        }
    }
#pragma GCC unroll 12
    for (int r = 0; r < R; r++) {
        v_store(p->c + (i + r) * p->ldc + j, acc[r][0]);
        v_store(p->c + (i + r) * p->ldc + j + VW, acc[r][1]);
    }
}

static void product_rest(const struct grad_product *p, int j0, int k0, int k1, bool add)
{
    for (int i = 0; i < p->m; i++) {
        for (int j = j0; j < p->n; j++) {
            float sum = add ? p->c[i * p->ldc + j] : 0.0f;

            for (int k = k0; k < k1; k++)
                sum += p->a[i * p->a_row + k * p->a_col] * p->b[k * p->ldb + j];
            p->c[i * p->ldc + j] = sum;
        }
    }
}

static void product(const struct grad_product *p)
{
    int n_full = p->n / PRODUCT_COLS * PRODUCT_COLS;

    for (int k0 = 0; k0 < p->k; k0 += PRODUCT_K) {
        int k1 = k0 + PRODUCT_K < p->k ? k0 + PRODUCT_K : p->k;
        bool add = p->add || k0 > 0;

        for (int j = 0; j < n_full; j += PRODUCT_COLS) {
            int i = 0;

            for (; i + PRODUCT_ROWS <= p->m; i += PRODUCT_ROWS)
                product_tile(p, i, j, k0, k1, add, PRODUCT_ROWS);
            for (; i + 2 <= p->m; i += 2)
                product_tile(p, i, j, k0, k1, add, 2);
            for (; i < p->m; i++)
                product_tile(p, i, j, k0, k1, add, 1);
        }
        if (n_full < p->n)
            product_rest(p, n_full, k0, k1, add);
    }
}

static void softmax(float *s, int lo, int hi, int n, float scale)
{
    float max = -INFINITY, sum = 0.0f;
    vf total = v_zero();
    int j;

    memset(s, 0, sizeof(*s) * (size_t)lo);
    memset(s + hi, 0, sizeof(*s) * (size_t)(n - hi));
    for (j = lo; j < hi; j++)
        max = s[j] * scale > max ? s[j] * scale : max;
    for (j = lo; j + VW <= hi; j += VW) {
        vf e = v_exp(v_load(s + j) * v_set1(scale) - v_set1(max));

        v_store(s + j, e);
        total = total + e;
    }
    for (; j < hi; j++) {
        s[j] = exp_poly(s[j] * scale - max);
        sum += s[j];
    }
    sum += v_sum(total);
    for (j = lo; j + VW <= hi; j += VW)
        v_store(s + j, v_load(s + j) * v_set1(1.0f / sum));
    for (; j < hi; j++)
        s[j] *= 1.0f / sum;
}

VEC_FN float influence_sum(const float *a, float *ga, int n, float d, float least, float scale,
                           const bool absolute)
{
    vf total = v_zero(), one = v_set1(1.0f), vd = v_set1(d);
    float sum = 0.0f;
    int j;

    for (j = 0; j + VW <= n; j += VW) {
        vf w = v_load(a + j), diff = v_load(ga + j) - vd;
        vf e = v_div(w * diff, v_max(one - w, v_set1(least)));

        total = absolute ? total + v_abs(e) : total - e;
        v_store(ga + j, w * diff * v_set1(scale));
    }
    for (; j < n; j++) {
        float diff = ga[j] - d, rest = 1.0f - a[j] > least ? 1.0f - a[j] : least;
        float e = a[j] * diff / rest;

        sum += absolute && e > 0 ? e : -e;
        ga[j] = a[j] * diff * scale;
    }
    return sum + v_sum(total);
}

static float influence(const float *a, float *ga, int n, float d, float least, float scale,
                       bool absolute)
{
    return absolute ? influence_sum(a, ga, n, d, least, scale, true)
                    : influence_sum(a, ga, n, d, least, scale, false);
}

const struct grad_kernels GRAD_KERNELS_NAME = {
    .product = product, .softmax = softmax, .influence = influence};
