/*
 * cpu_vec - one vector of floats, as wide as the instruction set of the including file has it.
 *
 * Included by the _avx2, _avx512, ... files and by the plain one, where the compiler's own vectors
 * become SSE2 on x86-64 and whatever there is elsewhere. The operators + - * work on all of them.
 */
#ifndef CPU_VEC_H
#define CPU_VEC_H

#include "base/dtype.h"
#include "base/exp_poly.h"

#include <float.h>
#include <stdint.h>
#include <string.h>

#if defined(__AVX2__)
#include <immintrin.h>
#endif

#define VEC_FN static inline __attribute__((always_inline, unused))

#if defined(__AVX512F__)

#define VW 16 /* floats in a vector */
typedef __m512 vf;
typedef __m512i vi;

VEC_FN vf v_load(const float *p)
{
    return _mm512_loadu_ps(p);
}
VEC_FN void v_store(float *p, vf x)
{
    _mm512_storeu_ps(p, x);
}
VEC_FN vf v_set1(float x)
{
    return _mm512_set1_ps(x);
}
VEC_FN vf v_fma(vf a, vf b, vf c)
{
    return _mm512_fmadd_ps(a, b, c);
}
VEC_FN vf v_max(vf a, vf b)
{
    return _mm512_max_ps(a, b);
} /* b where either is NaN */
VEC_FN vf v_min(vf a, vf b)
{
    return _mm512_min_ps(a, b);
}
VEC_FN vf v_abs(vf a)
{
    return _mm512_abs_ps(a);
}
VEC_FN vf v_div(vf a, vf b)
{
    return _mm512_div_ps(a, b);
}
VEC_FN vf v_load_bf16(const uint16_t *p)
{
    __m512i w = _mm512_cvtepu16_epi32(_mm256_loadu_si256((const __m256i *)p));

    return _mm512_castsi512_ps(_mm512_slli_epi32(w, 16));
}
VEC_FN vf v_load_f16(const uint16_t *p)
{
    return _mm512_cvtph_ps(_mm256_loadu_si256((const __m256i *)p));
}
VEC_FN vi vi_load(const int32_t *p)
{
    return _mm512_loadu_si512(p);
}
VEC_FN vi vi_set1(int32_t x)
{
    return _mm512_set1_epi32(x);
}
/* x where lo <= j <= hi or j < sink, else -infinity: the mask of attention. */
VEC_FN vf v_mask_span(vf x, vi j, vi sink, vi lo, vi hi)
{
    __mmask16 seen = (__mmask16)(_mm512_cmp_epi32_mask(j, lo, _MM_CMPINT_NLT) |
                                 _mm512_cmp_epi32_mask(j, sink, _MM_CMPINT_LT));

    seen &= _mm512_cmp_epi32_mask(j, hi, _MM_CMPINT_LE);
    return _mm512_mask_mov_ps(_mm512_set1_ps(-INFINITY), seen, x);
}
VEC_FN uint32_t v_ge_bits(vf a, vf b)
{
    return _mm512_cmp_ps_mask(a, b, _CMP_GE_OQ);
}
VEC_FN vf v_select_ge(vf a, vf b, vf yes, vf no)
{
    return _mm512_mask_blend_ps(_mm512_cmp_ps_mask(a, b, _CMP_GE_OQ), no, yes);
}
VEC_FN vf v_round(vf x)
{
    return _mm512_roundscale_ps(x, _MM_FROUND_TO_NEAREST_INT);
}
VEC_FN vf v_exp2i(vf n) /* 2^n for integral n in -126..127 */
{
    __m512i e = _mm512_add_epi32(_mm512_cvtps_epi32(n), _mm512_set1_epi32(127));

    return _mm512_castsi512_ps(_mm512_slli_epi32(e, 23));
}
VEC_FN vf v_where_gt(vf a, vf b, vf x) /* x where a > b, else 0 */
{
    return _mm512_maskz_mov_ps(_mm512_cmp_ps_mask(a, b, _CMP_GT_OQ), x);
}

#elif defined(__AVX2__)

#define VW 8
typedef __m256 vf;
typedef __m256i vi;

VEC_FN vf v_load(const float *p)
{
    return _mm256_loadu_ps(p);
}
VEC_FN void v_store(float *p, vf x)
{
    _mm256_storeu_ps(p, x);
}
VEC_FN vf v_set1(float x)
{
    return _mm256_set1_ps(x);
}
VEC_FN vf v_fma(vf a, vf b, vf c)
{
    return _mm256_fmadd_ps(a, b, c);
}
VEC_FN vf v_max(vf a, vf b)
{
    return _mm256_max_ps(a, b);
}
VEC_FN vf v_min(vf a, vf b)
{
    return _mm256_min_ps(a, b);
}
VEC_FN vf v_abs(vf a)
{
    return _mm256_andnot_ps(_mm256_set1_ps(-0.0f), a);
}
VEC_FN vf v_div(vf a, vf b)
{
    return _mm256_div_ps(a, b);
}
VEC_FN vf v_load_bf16(const uint16_t *p)
{
    __m256i w = _mm256_cvtepu16_epi32(_mm_loadu_si128((const __m128i *)p));

    return _mm256_castsi256_ps(_mm256_slli_epi32(w, 16));
}
VEC_FN vf v_load_f16(const uint16_t *p)
{
    return _mm256_cvtph_ps(_mm_loadu_si128((const __m128i *)p));
}
VEC_FN vi vi_load(const int32_t *p)
{
    return _mm256_loadu_si256((const __m256i *)p);
}
VEC_FN vi vi_set1(int32_t x)
{
    return _mm256_set1_epi32(x);
}
VEC_FN vf v_mask_span(vf x, vi j, vi sink, vi lo, vi hi)
{
    __m256i unseen = _mm256_andnot_si256(_mm256_cmpgt_epi32(sink, j), _mm256_cmpgt_epi32(lo, j));

    unseen = _mm256_or_si256(unseen, _mm256_cmpgt_epi32(j, hi));
    return _mm256_blendv_ps(x, _mm256_set1_ps(-INFINITY), _mm256_castsi256_ps(unseen));
}
VEC_FN uint32_t v_ge_bits(vf a, vf b)
{
    return (uint32_t)_mm256_movemask_ps(_mm256_cmp_ps(a, b, _CMP_GE_OQ));
}
VEC_FN vf v_select_ge(vf a, vf b, vf yes, vf no)
{
    return _mm256_blendv_ps(no, yes, _mm256_cmp_ps(a, b, _CMP_GE_OQ));
}
VEC_FN vf v_round(vf x)
{
    return _mm256_round_ps(x, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
}
VEC_FN vf v_exp2i(vf n)
{
    __m256i e = _mm256_add_epi32(_mm256_cvtps_epi32(n), _mm256_set1_epi32(127));

    return _mm256_castsi256_ps(_mm256_slli_epi32(e, 23));
}
VEC_FN vf v_where_gt(vf a, vf b, vf x)
{
    return _mm256_and_ps(_mm256_cmp_ps(a, b, _CMP_GT_OQ), x);
}

#else

#define VW 4
typedef float vf __attribute__((vector_size(16)));
typedef int32_t vi __attribute__((vector_size(16)));

VEC_FN vf v_load(const float *p)
{
    vf x;

    memcpy(&x, p, sizeof(x));
    return x;
}
VEC_FN void v_store(float *p, vf x)
{
    memcpy(p, &x, sizeof(x));
}
VEC_FN vf v_set1(float x)
{
    return (vf){x, x, x, x};
}
VEC_FN vf v_fma(vf a, vf b, vf c)
{
    return a * b + c;
} /* two roundings: no fused one to be had */
VEC_FN vf v_pick(vi mask, vf yes, vf no)
{
    return (vf)((mask & (vi)yes) | (~mask & (vi)no));
}
VEC_FN vf v_max(vf a, vf b)
{
    return v_pick(a > b, a, b);
}
VEC_FN vf v_min(vf a, vf b)
{
    return v_pick(a < b, a, b);
}
VEC_FN vf v_abs(vf a)
{
    return (vf)((vi)a & 0x7fffffff);
}
VEC_FN vf v_div(vf a, vf b)
{
    return a / b;
}
VEC_FN vf v_load_bf16(const uint16_t *p)
{
    return (vf)((vi){p[0], p[1], p[2], p[3]} << 16);
}
VEC_FN vf v_load_f16(const uint16_t *p)
{
    return (vf){f16_to_f32(p[0]), f16_to_f32(p[1]), f16_to_f32(p[2]), f16_to_f32(p[3])};
}
VEC_FN vi vi_load(const int32_t *p)
{
    vi x;

    memcpy(&x, p, sizeof(x));
    return x;
}
VEC_FN vi vi_set1(int32_t x)
{
    return (vi){x, x, x, x};
}
VEC_FN vf v_mask_span(vf x, vi j, vi sink, vi lo, vi hi)
{
    return v_pick(((j >= lo) | (j < sink)) & (j <= hi), x, v_set1(-INFINITY));
}
VEC_FN uint32_t v_ge_bits(vf a, vf b)
{
    vi m = a >= b;

    return (m[0] & 1u) | (m[1] & 2u) | (m[2] & 4u) | (m[3] & 8u);
}
VEC_FN vf v_select_ge(vf a, vf b, vf yes, vf no)
{
    return v_pick(a >= b, yes, no);
}
VEC_FN vf v_round(vf x) /* |x| < 2^22 */
{
    vf magic = v_set1(12582912.0f); /* 1.5 * 2^23 */

    return (x + magic) - magic;
}
VEC_FN vf v_exp2i(vf n)
{
    return (vf)((__builtin_convertvector(n, vi) + 127) << 23);
}
VEC_FN vf v_where_gt(vf a, vf b, vf x)
{
    return (vf)((a > b) & (vi)x);
}

#endif

/*
 * 2 VW bf16 values as two vectors, those of even and those of odd index: two cheap operations where
 * widening in order takes four. What they are multiplied with must lie in that order too.
 */
VEC_FN void v_load_bf16_split(const uint16_t *p, vf *even, vf *odd)
{
#if defined(__AVX512F__)
    __m512i w = _mm512_loadu_si512(p);

    *even = _mm512_castsi512_ps(_mm512_slli_epi32(w, 16));
    *odd = _mm512_castsi512_ps(_mm512_and_si512(w, _mm512_set1_epi32((int)0xffff0000u)));
#elif defined(__AVX2__)
    __m256i w = _mm256_loadu_si256((const __m256i *)p);

    *even = _mm256_castsi256_ps(_mm256_slli_epi32(w, 16));
    *odd = _mm256_castsi256_ps(_mm256_and_si256(w, _mm256_set1_epi32((int)0xffff0000u)));
#else
    vi w;

    memcpy(&w, p, sizeof(w));
    *even = (vf)(w << 16);
    *odd = (vf)(w & (int32_t)0xffff0000u);
#endif
}

VEC_FN vf v_zero(void)
{
    return v_set1(0.0f);
}

/* The upper half added to the lower, again and again: one tree, however it is spelled. */
VEC_FN float v_sum(vf x)
{
#if defined(__AVX2__)
#if defined(__AVX512F__)
    __m256 y = _mm256_add_ps(_mm512_castps512_ps256(x), _mm512_extractf32x8_ps(x, 1));
#else
    __m256 y = x;
#endif
    __m128 z = _mm_add_ps(_mm256_castps256_ps128(y), _mm256_extractf128_ps(y, 1));

    z = _mm_add_ps(z, _mm_movehl_ps(z, z));
    return _mm_cvtss_f32(_mm_add_ss(z, _mm_movehdup_ps(z)));
#else
    return (x[0] + x[2]) + (x[1] + x[3]);
#endif
}

/* out[0..3] = v_sum() of a, b, c, d up to the order of the tree: one order for all four. */
VEC_FN void v_store_sums(float *out, vf a, vf b, vf c, vf d)
{
#if defined(__AVX512F__)
    __m512 ab = _mm512_add_ps(_mm512_unpacklo_ps(a, b), _mm512_unpackhi_ps(a, b));
    __m512 cd = _mm512_add_ps(_mm512_unpacklo_ps(c, d), _mm512_unpackhi_ps(c, d));
    __m512 w = _mm512_add_ps(_mm512_shuffle_ps(ab, cd, 0x44), _mm512_shuffle_ps(ab, cd, 0xee));
    __m256 y = _mm256_add_ps(_mm512_castps512_ps256(w), _mm512_extractf32x8_ps(w, 1));
#elif defined(__AVX2__)
    __m256 ab = _mm256_add_ps(_mm256_unpacklo_ps(a, b), _mm256_unpackhi_ps(a, b));
    __m256 cd = _mm256_add_ps(_mm256_unpacklo_ps(c, d), _mm256_unpackhi_ps(c, d));
    __m256 y = _mm256_add_ps(_mm256_shuffle_ps(ab, cd, 0x44), _mm256_shuffle_ps(ab, cd, 0xee));
#endif
#if defined(__AVX2__)
    _mm_storeu_ps(out, _mm_add_ps(_mm256_castps256_ps128(y), _mm256_extractf128_ps(y, 1)));
#else
    vf ab = (vf){a[0], b[0], a[1], b[1]} + (vf){a[2], b[2], a[3], b[3]};
    vf cd = (vf){c[0], d[0], c[1], d[1]} + (vf){c[2], d[2], c[3], d[3]};

    v_store(out, (vf){ab[0], ab[1], cd[0], cd[1]} + (vf){ab[2], ab[3], cd[2], cd[3]});
#endif
}

/* Of 2 VW elements in order: the even ones in a, the odd ones in b. */
VEC_FN void v_unzip(vf *a, vf *b)
{
    vf x = *a, y = *b;

#if defined(__AVX512F__)
    __m512i even = _mm512_set_epi32(30, 28, 26, 24, 22, 20, 18, 16, 14, 12, 10, 8, 6, 4, 2, 0);

    *a = _mm512_permutex2var_ps(x, even, y);
    *b = _mm512_permutex2var_ps(x, _mm512_or_si512(even, _mm512_set1_epi32(1)), y);
#elif defined(__AVX2__)
    __m256d even = _mm256_castps_pd(_mm256_shuffle_ps(x, y, 0x88));
    __m256d odd = _mm256_castps_pd(_mm256_shuffle_ps(x, y, 0xdd));

    *a = _mm256_castpd_ps(_mm256_permute4x64_pd(even, 0xd8));
    *b = _mm256_castpd_ps(_mm256_permute4x64_pd(odd, 0xd8));
#else
    *a = (vf){x[0], x[2], y[0], y[2]};
    *b = (vf){x[1], x[3], y[1], y[3]};
#endif
}

/* Undoes v_unzip(). */
VEC_FN void v_zip(vf *a, vf *b)
{
    vf x = *a, y = *b;

#if defined(__AVX512F__)
    __m512i lo = _mm512_set_epi32(23, 7, 22, 6, 21, 5, 20, 4, 19, 3, 18, 2, 17, 1, 16, 0);

    *a = _mm512_permutex2var_ps(x, lo, y);
    *b = _mm512_permutex2var_ps(x, _mm512_add_epi32(lo, _mm512_set1_epi32(8)), y);
#elif defined(__AVX2__)
    __m256 lo = _mm256_unpacklo_ps(x, y), hi = _mm256_unpackhi_ps(x, y);

    *a = _mm256_permute2f128_ps(lo, hi, 0x20);
    *b = _mm256_permute2f128_ps(lo, hi, 0x31);
#else
    *a = (vf){x[0], y[0], x[1], y[1]};
    *b = (vf){x[2], y[2], x[3], y[3]};
#endif
}

/* Nothing of x is NaN. */
VEC_FN float v_max_lane(vf x)
{
#if defined(__AVX512F__)
    return _mm512_reduce_max_ps(x);
#else
    float lane[VW], m;

    v_store(lane, x);
    m = lane[0];
    for (int i = 1; i < VW; i++)
        m = lane[i] > m ? lane[i] : m;
    return m;
#endif
}

/* VW elements of type dt; dt is a constant wherever this is called. */
VEC_FN vf v_load_as(const void *p, enum dtype dt)
{
    if (dt == DTYPE_F32)
        return v_load(p);
    return dt == DTYPE_BF16 ? v_load_bf16(p) : v_load_f16(p);
}

/* The first n < VW elements; the other lanes are 0. */
VEC_FN vf v_load_tail(const void *p, enum dtype dt, int n)
{
    uint32_t room[VW];

    memset(room, 0, sizeof(room));
    memcpy(room, p, (size_t)n * dtype_bytes(dt));
    return v_load_as(room, dt);
}

/*
 * 2 VW elements as two vectors: bf16 split as v_load_bf16_split() does, the others in order. What
 * they are multiplied with lies in that order too.
 */
VEC_FN void v_load_pair(const char *p, enum dtype dt, vf *a, vf *b)
{
    if (dt == DTYPE_BF16) {
        v_load_bf16_split((const uint16_t *)p, a, b);
    } else {
        *a = v_load_as(p, dt);
        *b = v_load_as(p + VW * dtype_bytes(dt), dt);
    }
}

/* exp_poly() of base/exp_poly.h in lanes; with a fused multiply-add the bits are the same. */
VEC_FN vf v_exp(vf x)
{
    vf n, f, p;
    vf in = x;

    x = v_min(v_max(x, v_set1(-88.0f)), v_zero());
    n = v_round(x * v_set1(1.44269504f));
    f = v_fma(x, v_set1(1.44269504f), v_zero() - n);
    f = v_fma(x, v_set1(1.92596299e-8f), f);
    p = v_set1(1.53543020e-4f);
    p = v_fma(p, f, v_set1(1.33991486e-3f));
    p = v_fma(p, f, v_set1(9.61843599e-3f));
    p = v_fma(p, f, v_set1(5.55033162e-2f));
    p = v_fma(p, f, v_set1(2.40226477e-1f));
    p = v_fma(p, f, v_set1(6.93147182e-1f));
    p = v_fma(p, f, v_set1(1.0f));
    n = v_max(n, v_set1(-126.0f));
    return v_where_gt(in, v_set1(-87.0f), p * v_exp2i(n));
}

/* 1 / (1 + exp(-x)) from the exponential that cannot overflow. */
VEC_FN vf v_sigmoid(vf x)
{
    vf e = v_exp(v_zero() - v_abs(x));
    vf one = v_set1(1.0f);

    return v_div(v_select_ge(x, v_zero(), one, e), one + e);
}

/* erf by Abramowitz and Stegun 7.1.26: 1.5e-7 off at most, a rounding of the values around it. */
VEC_FN vf v_erf(vf x)
{
    vf a = v_abs(x), one = v_set1(1.0f);
    vf t = v_div(one, v_fma(v_set1(0.3275911f), a, one));
    vf p = v_set1(1.061405429f);
    vf y;

    p = v_fma(p, t, v_set1(-1.453152027f));
    p = v_fma(p, t, v_set1(1.421413741f));
    p = v_fma(p, t, v_set1(-0.284496736f));
    p = v_fma(p, t, v_set1(0.254829592f));
    y = one - p * t * v_exp(v_zero() - a * a);
    return v_select_ge(x, v_zero(), y, v_zero() - y);
}

#endif
