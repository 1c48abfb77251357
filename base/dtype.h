/*
 * dtype - the element types of weights, activations and KV, and their conversions.
 *
 * bf16 and f16 travel as uint16_t bit patterns. Rounding is to nearest, ties to even.
 */
#ifndef DTYPE_H
#define DTYPE_H

#include <stddef.h>
#include <stdint.h>
#include <string.h>

enum dtype { DTYPE_F32 = 0, DTYPE_BF16 = 1, DTYPE_F16 = 2 };

static inline size_t dtype_bytes(enum dtype dt)
{
    return dt == DTYPE_F32 ? 4 : 2;
}

static inline const char *dtype_name(enum dtype dt)
{
    return dt == DTYPE_F32 ? "f32" : dt == DTYPE_BF16 ? "bf16" : "f16";
}

static inline float bf16_to_f32(uint16_t h)
{
    uint32_t u = (uint32_t)h << 16;
    float f;

    memcpy(&f, &u, sizeof(f));
    return f;
}

static inline uint16_t f32_to_bf16(float f)
{
    uint32_t u;

    memcpy(&u, &f, sizeof(u));
    if ((u & 0x7fffffffu) > 0x7f800000u)
        return (uint16_t)((u >> 16) | 0x40); /* a NaN stays a quiet NaN */
    return (uint16_t)((u + 0x7fffu + ((u >> 16) & 1)) >> 16);
}

float f16_to_f32(uint16_t h);
uint16_t f32_to_f16(float f);

/* n elements between any two types; src and dst do not overlap unless they are equal. */
void dtype_convert(void *dst, enum dtype dst_dt, const void *src, enum dtype src_dt, size_t n);

#endif
