/*
 * cpu_gemm_impl - what the forms of the prompt product share: from a tile of sums to its place.
 *
 * A tile is [n_out, ld] floats, row r of the batch in column r: a vector is one output of many
 * rows. Included by the files of one instruction set each.
 */
#ifndef CPU_GEMM_IMPL_H
#define CPU_GEMM_IMPL_H

#include "engine/cpu/cpu_kernels.h"
#include "engine/cpu/cpu_vec.h"

/* Where a tile belongs: outputs out0 .., rows row0 .. */
struct gemm_tile {
    const float *sum, *sum_up; /* sum_up NULL unless gated */
    int ld;                    /* floats between two outputs, a multiple of VW */
    int out0, n_out, row0;
};

VEC_FN vf act_vec(vf x, enum act_kind kind)
{
    if (kind == ACT_SILU)
        return x * v_sigmoid(x);
    if (kind == ACT_GELU_TANH) {
        /* 0.5 (1 + tanh u) = sigmoid(2u) */
        vf u = v_set1(0.7978845608f) * (x + v_set1(0.044715f) * x * x * x);

        return x * v_sigmoid(u + u);
    }
    return v_set1(0.5f) * x * (v_set1(1.0f) + v_erf(x * v_set1(0.70710678f)));
}

/* Output i of the rows at column c, after bias and activation. */
VEC_FN vf tile_act(const struct gemm_args *a, const struct gemm_tile *t, int i, int c)
{
    int o = t->out0 + i;
    vf x = v_load(t->sum + (int64_t)i * t->ld + c);

    if (a->bias)
        x = x + v_set1(a->bias[o]);
    x = act_vec(x, a->act);
    if (t->sum_up) {
        vf up = v_load(t->sum_up + (int64_t)i * t->ld + c);

        if (a->bias_up)
            up = up + v_set1(a->bias_up[o]);
        x = x * up;
    }
    return x;
}

/* VW vectors become their columns. */
#if defined(__AVX512F__)
VEC_FN void v_transpose(vf r[VW])
{
    __m512 t[VW];

#pragma GCC unroll 8
    for (int i = 0; i < 8; i++) {
        t[2 * i] = _mm512_unpacklo_ps(r[2 * i], r[2 * i + 1]);
        t[2 * i + 1] = _mm512_unpackhi_ps(r[2 * i], r[2 * i + 1]);
    }
#pragma GCC unroll 4
    for (int i = 0; i < 4; i++) {
        __m512d a = _mm512_castps_pd(t[4 * i]), b = _mm512_castps_pd(t[4 * i + 1]);
        __m512d c = _mm512_castps_pd(t[4 * i + 2]), d = _mm512_castps_pd(t[4 * i + 3]);

        r[4 * i] = _mm512_castpd_ps(_mm512_unpacklo_pd(a, c));
        r[4 * i + 1] = _mm512_castpd_ps(_mm512_unpackhi_pd(a, c));
        r[4 * i + 2] = _mm512_castpd_ps(_mm512_unpacklo_pd(b, d));
        r[4 * i + 3] = _mm512_castpd_ps(_mm512_unpackhi_pd(b, d));
    }
#pragma GCC unroll 4
    for (int i = 0; i < 4; i++) {
        t[i] = _mm512_shuffle_f32x4(r[i], r[4 + i], 0x88);
        t[4 + i] = _mm512_shuffle_f32x4(r[i], r[4 + i], 0xdd);
        t[8 + i] = _mm512_shuffle_f32x4(r[8 + i], r[12 + i], 0x88);
        t[12 + i] = _mm512_shuffle_f32x4(r[8 + i], r[12 + i], 0xdd);
    }
#pragma GCC unroll 4
    for (int i = 0; i < 4; i++) {
        r[i] = _mm512_shuffle_f32x4(t[i], t[8 + i], 0x88);
        r[8 + i] = _mm512_shuffle_f32x4(t[i], t[8 + i], 0xdd);
        r[4 + i] = _mm512_shuffle_f32x4(t[4 + i], t[12 + i], 0x88);
        r[12 + i] = _mm512_shuffle_f32x4(t[4 + i], t[12 + i], 0xdd);
    }
}

#elif defined(__AVX2__)
VEC_FN void v_transpose(vf r[VW])
{
    __m256 t[VW];

#pragma GCC unroll 4
    for (int i = 0; i < 4; i++) {
        t[2 * i] = _mm256_unpacklo_ps(r[2 * i], r[2 * i + 1]);
        t[2 * i + 1] = _mm256_unpackhi_ps(r[2 * i], r[2 * i + 1]);
    }
#pragma GCC unroll 2
    for (int i = 0; i < 2; i++) {
        r[4 * i] = _mm256_shuffle_ps(t[4 * i], t[4 * i + 2], 0x44);
        r[4 * i + 1] = _mm256_shuffle_ps(t[4 * i], t[4 * i + 2], 0xee);
        r[4 * i + 2] = _mm256_shuffle_ps(t[4 * i + 1], t[4 * i + 3], 0x44);
        r[4 * i + 3] = _mm256_shuffle_ps(t[4 * i + 1], t[4 * i + 3], 0xee);
    }
#pragma GCC unroll 4
    for (int i = 0; i < 4; i++) {
        t[i] = _mm256_permute2f128_ps(r[i], r[4 + i], 0x20);
        t[4 + i] = _mm256_permute2f128_ps(r[i], r[4 + i], 0x31);
    }
#pragma GCC unroll 8
    for (int i = 0; i < VW; i++)
        r[i] = t[i];
}
#else
VEC_FN void v_transpose(vf r[VW])
{
    vf a = r[0], b = r[1], c = r[2], d = r[3];

    for (int i = 0; i < VW; i++)
        r[i] = (vf){a[i], b[i], c[i], d[i]};
}
#endif

/* VW outputs of up to VW rows at column c. */
VEC_FN void tile_store_square(const struct gemm_args *a, const struct gemm_tile *t, int i, int c,
                              int n_rows)
{
    int o = t->out0 + i;
    float *y = a->y + (int64_t)(t->row0 + c) * a->ldy + o;
    vf r[VW], bias = a->bias ? v_load(a->bias + o) : v_zero();

#pragma GCC unroll 16
    for (int j = 0; j < VW; j++)
        r[j] = v_load(t->sum + (int64_t)(i + j) * t->ld + c);
    v_transpose(r);
#pragma GCC unroll 16
    for (int j = 0; j < VW; j++) {
        if (j < n_rows) {
            vf x = r[j] + bias;

            v_store(y + j * a->ldy, a->epilogue == GEMM_ADD ? (vf)(v_load(y + j * a->ldy) + x) : x);
        }
    }
}

/* Stores or adds n_cols columns of a tile; rows beyond the batch are left out. */
VEC_FN void tile_store(const struct gemm_args *a, const struct gemm_tile *t, int n_cols)
{
    int n_rows = a->n_rows - t->row0 < n_cols ? a->n_rows - t->row0 : n_cols;
    int i = 0;

    for (; i + VW <= t->n_out; i += VW) {
        for (int c = 0; c < n_rows; c += VW)
            tile_store_square(a, t, i, c, n_rows - c < VW ? n_rows - c : VW);
    }
    for (int r = 0; r < n_rows; r++) {
        float *y = a->y + (int64_t)(t->row0 + r) * a->ldy + t->out0;

        for (int j = i; j < t->n_out; j++) {
            float x = t->sum[(int64_t)j * t->ld + r];

            if (a->bias)
                x += a->bias[t->out0 + j];
            y[j] = a->epilogue == GEMM_ADD ? y[j] + x : x;
        }
    }
}

#endif
