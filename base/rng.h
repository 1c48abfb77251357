/*
 * rng - a counter-based random generator: a pure function of its key, equal on host and device.
 *
 * Philox4x32-10 (Salmon, Moraes, Dror, Shaw: Parallel random numbers: as easy as 1, 2, 3; SC'11).
 * Sampling keys it (seed, sample, position), so a token depends on nothing but its request.
 * Plain integer code: a .cu file may include it.
 */
#ifndef RNG_H
#define RNG_H

#include <stdint.h>

#ifdef __CUDACC__
#define RNG_FN static __host__ __device__ inline
#else
#define RNG_FN static inline
#endif

RNG_FN void rng_philox(uint32_t ctr[4], uint32_t k0, uint32_t k1)
{
    for (int round = 0; round < 10; round++) {
        uint64_t p0 = (uint64_t)0xD2511F53u * ctr[0];
        uint64_t p1 = (uint64_t)0xCD9E8D57u * ctr[2];
        uint32_t c0 = (uint32_t)(p1 >> 32) ^ ctr[1] ^ k0;
        uint32_t c2 = (uint32_t)(p0 >> 32) ^ ctr[3] ^ k1;

        ctr[1] = (uint32_t)p1;
        ctr[3] = (uint32_t)p0;
        ctr[0] = c0;
        ctr[2] = c2;
        k0 += 0x9E3779B9u;
        k1 += 0xBB67AE85u;
    }
}

/* 64 uniform bits for (seed, sample, position). */
RNG_FN uint64_t rng_u64(uint64_t seed, uint32_t sample, uint64_t position)
{
    uint32_t ctr[4] = {(uint32_t)position, (uint32_t)(position >> 32), sample, 0};

    rng_philox(ctr, (uint32_t)seed, (uint32_t)(seed >> 32));
    return (uint64_t)ctr[1] << 32 | ctr[0];
}

/* Uniform in [0, 1), 24 bits: for random weights. */
RNG_FN float rng_f32(uint64_t seed, uint32_t stream, uint64_t index)
{
    return (float)(rng_u64(seed, stream, index) >> 40) * (1.0f / 16777216.0f);
}

#endif
