/*
 * dtype - conversions between the element types. See dtype.h.
 *
 * Whole weight files pass through dtype_convert(), so its loops work on blocks of fixed length,
 * which gcc vectorises at -O2, and f16 uses the F16C instructions where the CPU has them.
 */
#include "base/dtype.h"

#include <stdbool.h>

#if defined(__x86_64__)
#include <immintrin.h>
/* Every CPU with AVX2 has F16C, and clang 14 does not know "f16c" as a question. */
#define HAVE_F16C() __builtin_cpu_supports("avx2")
#else
#define HAVE_F16C() 0
#endif

#define BLOCK 16   /* elements: one AVX-512 or four SSE registers of f32 */
#define CHUNK 1024 /* elements staged on the stack between two 16-bit types */

static float bits_f32(uint32_t u)
{
    float f;

    memcpy(&f, &u, sizeof(f));
    return f;
}

static uint32_t f32_bits(float f)
{
    uint32_t u;

    memcpy(&u, &f, sizeof(u));
    return u;
}

float f16_to_f32(uint16_t h)
{
    uint32_t sign = (uint32_t)(h & 0x8000) << 16;
    uint32_t exp = (h >> 10) & 31;
    uint32_t frac = h & 0x3ff;

    if (exp == 31) /* a NaN becomes quiet, as F16C does it */
        return bits_f32(sign | 0x7f800000u | frac << 13 | (frac ? 0x400000u : 0));
    if (exp == 0) /* zero and subnormals: frac * 2^-24, exact in f32 */
        return bits_f32(sign | f32_bits((float)frac * 0x1p-24f));
    return bits_f32(sign | (exp + 112) << 23 | frac << 13);
}

uint16_t f32_to_f16(float f)
{
    uint32_t u = f32_bits(f);
    uint16_t sign = (uint16_t)(u >> 16 & 0x8000);
    uint32_t mag = u & 0x7fffffffu;

    if (mag > 0x7f800000u)
        return sign | 0x7e00 | (uint16_t)(mag >> 13 & 0x3ff);
    if (mag >= 0x477ff000u) /* 65520, the tie above the largest f16, and all beyond it */
        return sign | 0x7c00;
    if (mag < 0x38800000u) /* under 2^-14: adding 0.5 rounds at 2^-24, the f16 subnormal step */
        return sign | (uint16_t)(f32_bits(bits_f32(mag) + 0.5f) - 0x3f000000u);
    mag += 0xfff + (mag >> 13 & 1);
    return sign | (uint16_t)((mag - 0x38000000u) >> 13);
}

/* f32_to_bf16() without a branch, which the vectoriser needs. */
static inline uint16_t round_bf16(uint32_t u)
{
    uint32_t rounded = u + 0x7fffu + ((u >> 16) & 1);
    uint32_t quiet = u | 0x400000u;

    return (uint16_t)(((u & 0x7fffffffu) > 0x7f800000u ? quiet : rounded) >> 16);
}

static void bf16_from_f32(uint16_t *dst, const float *src, size_t n)
{
    size_t i = 0;

    for (; i + BLOCK <= n; i += BLOCK) {
        uint32_t u[BLOCK];

        memcpy(u, src + i, sizeof(u));
        for (int k = 0; k < BLOCK; k++)
            dst[i + k] = round_bf16(u[k]);
    }
    for (; i < n; i++)
        dst[i] = f32_to_bf16(src[i]);
}

static void f32_from_bf16(float *dst, const uint16_t *src, size_t n)
{
    size_t i = 0;

    for (; i + BLOCK <= n; i += BLOCK) {
        uint32_t u[BLOCK];

        for (int k = 0; k < BLOCK; k++)
            u[k] = (uint32_t)src[i + k] << 16;
        memcpy(dst + i, u, sizeof(u));
    }
    for (; i < n; i++)
        dst[i] = bf16_to_f32(src[i]);
}

#if defined(__x86_64__)
__attribute__((target("avx,f16c"))) static size_t f16_from_f32_f16c(uint16_t *dst, const float *src,
                                                                    size_t n)
{
    size_t i = 0;

    for (; i + 8 <= n; i += 8) {
        __m128i h = _mm256_cvtps_ph(_mm256_loadu_ps(src + i), _MM_FROUND_TO_NEAREST_INT);

        _mm_storeu_si128((__m128i *)(dst + i), h);
    }
    return i;
}

__attribute__((target("avx,f16c"))) static size_t f32_from_f16_f16c(float *dst, const uint16_t *src,
                                                                    size_t n)
{
    size_t i = 0;

    for (; i + 8 <= n; i += 8)
        _mm256_storeu_ps(dst + i, _mm256_cvtph_ps(_mm_loadu_si128((const __m128i *)(src + i))));
    return i;
}
#endif

static void f16_from_f32(uint16_t *dst, const float *src, size_t n)
{
    size_t i = 0;

#if defined(__x86_64__)
    if (HAVE_F16C())
        i = f16_from_f32_f16c(dst, src, n);
#endif
    for (; i < n; i++)
        dst[i] = f32_to_f16(src[i]);
}

static void f32_from_f16(float *dst, const uint16_t *src, size_t n)
{
    size_t i = 0;

#if defined(__x86_64__)
    if (HAVE_F16C())
        i = f32_from_f16_f16c(dst, src, n);
#endif
    for (; i < n; i++)
        dst[i] = f16_to_f32(src[i]);
}

static void to_f32(float *dst, const void *src, enum dtype src_dt, size_t n)
{
    if (src_dt == DTYPE_BF16)
        f32_from_bf16(dst, src, n);
    else if (src_dt == DTYPE_F16)
        f32_from_f16(dst, src, n);
    else
        memcpy(dst, src, n * sizeof(float));
}

static void from_f32(void *dst, enum dtype dst_dt, const float *src, size_t n)
{
    if (dst_dt == DTYPE_BF16)
        bf16_from_f32(dst, src, n);
    else if (dst_dt == DTYPE_F16)
        f16_from_f32(dst, src, n);
    else
        memcpy(dst, src, n * sizeof(float));
}

/*
 * Chunk by chunk through the stack: between two 16-bit types, and in place. In place a wider
 * type is written from the back, so that no element is overwritten before it is read.
 */
static void convert_staged(unsigned char *dst, enum dtype dst_dt, const unsigned char *src,
                           enum dtype src_dt, size_t n)
{
    bool backwards = dst == src && dtype_bytes(dst_dt) > dtype_bytes(src_dt);
    float stage[CHUNK];

    for (size_t done = 0; done < n;) {
        size_t len = n - done < CHUNK ? n - done : CHUNK;
        size_t at = backwards ? n - done - len : done;

        to_f32(stage, src + at * dtype_bytes(src_dt), src_dt, len);
        from_f32(dst + at * dtype_bytes(dst_dt), dst_dt, stage, len);
        done += len;
    }
}

void dtype_convert(void *dst, enum dtype dst_dt, const void *src, enum dtype src_dt, size_t n)
{
    if (n == 0)
        return;
    if (dst_dt == src_dt)
        memmove(dst, src, n * dtype_bytes(src_dt));
    else if (dst == src || (dst_dt != DTYPE_F32 && src_dt != DTYPE_F32))
        convert_staged(dst, dst_dt, src, src_dt, n);
    else if (dst_dt == DTYPE_F32)
        to_f32(dst, src, src_dt, n);
    else
        from_f32(dst, dst_dt, src, n);
}
