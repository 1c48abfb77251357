/*
 * emu - runs CUDA kernels on a CPU, to check their logic where there is no GPU.
 *
 * Forced in front of every .cu, which a C++ compiler then takes as it is, but for launches and
 * dynamic shared memory, which emu.awk rewrites. A CTA's threads are fibers that run until they
 * must wait: for a barrier, for the other lanes of a shuffle, for a copy. CTAs run one after the
 * other. What is asynchronous on a GPU happens here as late as the program allows (cp.async, at the
 * wait) so that a missing wait shows; deadlocks, misaligned copies and surplus arrivals end the
 * program. What it cannot show: races between CTAs, and anything about speed.
 */
#ifndef EMU_H
#define EMU_H

#include <cuda_runtime.h>

#include <math.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <functional>

#undef __shared__
#define __shared__ static
#undef __global__
#define __global__
#undef __device__
#define __device__
#undef __host__
#define __host__
#undef __launch_bounds__
#define __launch_bounds__(...)
#undef __grid_constant__
#define __grid_constant__
#undef __forceinline__
#define __forceinline__ inline

struct emu_thread {
    uint3 thread_idx;
    int lane, warp;
};
extern emu_thread *emu_self;
extern uint3 emu_block_idx;
extern dim3 emu_block_dim, emu_grid_dim;
extern void *emu_dynamic;

#define threadIdx (emu_self->thread_idx)
#define blockIdx  emu_block_idx
#define blockDim  emu_block_dim
#define gridDim   emu_grid_dim

template <typename R, typename... A>
static inline cudaError_t cudaFuncSetAttribute(R (*kernel)(A...), cudaFuncAttribute attr, int value)
{
    return cudaFuncSetAttribute((const void *)kernel, attr, value);
}
template <typename R, typename... A>
static inline cudaError_t cudaFuncGetAttributes(cudaFuncAttributes *attr, R (*kernel)(A...))
{
    return cudaFuncGetAttributes(attr, (const void *)kernel);
}

struct emu_grid {
    dim3 grid, block;
    size_t smem;

    emu_grid(dim3 g, dim3 b, size_t s = 0, cudaStream_t = 0) : grid(g), block(b), smem(s)
    {
    }
};
void emu_launch(const char *name, emu_grid grid, const std::function<void()> &kernel);

/* The kernel with a copy of its arguments, which a graph launches again when they are long gone. */
template <typename... P, typename... A>
static inline std::function<void()> emu_bind(void (*kernel)(P...), A... args)
{
    return [=]() { kernel(args...); };
}

void emu_syncthreads();
void emu_named_barrier(int id, int n_threads);
/* Every lane's `bytes` bytes at `mine` to all lanes of the warp; valid until the next call but one.
 */
const unsigned char (*emu_exchange(const void *mine, size_t bytes))[32];
void emu_yield(const char *why);
[[noreturn]] void emu_die(const char *why);

static inline void __syncthreads()
{
    emu_syncthreads();
}
static inline void __syncwarp(unsigned = ~0u)
{
    int nothing = 0;

    emu_exchange(&nothing, sizeof(nothing));
}
static inline void __threadfence()
{
}

template <typename T> static inline T emu_lane_value(T v, int lane)
{
    T out;

    memcpy(&out, emu_exchange(&v, sizeof(v))[lane], sizeof(out));
    return out;
}
template <typename T> static inline T __shfl_sync(unsigned, T v, int lane)
{
    return emu_lane_value(v, lane & 31);
}
template <typename T> static inline T __shfl_xor_sync(unsigned, T v, int mask)
{
    return emu_lane_value(v, emu_self->lane ^ mask);
}
template <typename T> static inline T __shfl_up_sync(unsigned, T v, int by)
{
    return emu_lane_value(v, emu_self->lane >= by ? emu_self->lane - by : emu_self->lane);
}
static inline unsigned __ballot_sync(unsigned, int pred)
{
    const unsigned char(*all)[32];
    unsigned bits = 0;

    pred = pred != 0;
    all = emu_exchange(&pred, sizeof(pred));
    for (int i = 0; i < 32; i++)
        bits |= (unsigned)all[i][0] << i;
    return bits;
}
static inline int __all_sync(unsigned mask, int pred)
{
    return __ballot_sync(mask, pred) == ~0u;
}

static inline int atomicAdd(int *p, int v)
{
    int old = *p;

    *p += v;
    return old;
}
static inline unsigned long long atomicAdd(unsigned long long *p, unsigned long long v)
{
    unsigned long long old = *p;

    *p += v;
    return old;
}

template <typename T> static inline T __ldcg(const T *p)
{
    return *p;
}
template <typename T> static inline T __ldcs(const T *p)
{
    return *p;
}
template <typename T> static inline void __stcg(T *p, T v)
{
    *p = v;
}

/* The file is compiled with -ffp-contract=off: these are what plain operators do. */
static inline float __fmul_rn(float a, float b)
{
    return a * b;
}
static inline float __fadd_rn(float a, float b)
{
    return a + b;
}
static inline float __fsub_rn(float a, float b)
{
    return a - b;
}
static inline float __fdiv_rn(float a, float b)
{
    return a / b;
}
static inline float __fdividef(float a, float b)
{
    return a / b;
}
static inline float rsqrtf(float x)
{
    return 1.0f / sqrtf(x);
}
static inline uint64_t __umul64hi(uint64_t a, uint64_t b)
{
    return (uint64_t)((unsigned __int128)a * b >> 64);
}
static inline int __popc(unsigned x)
{
    return __builtin_popcount(x);
}
static inline int __ffs(int x)
{
    return __builtin_ffs(x);
}
static inline uint32_t __float_as_uint(float f)
{
    uint32_t u;

    memcpy(&u, &f, 4);
    return u;
}
static inline float __uint_as_float(uint32_t u)
{
    float f;

    memcpy(&f, &u, 4);
    return f;
}
static inline uint32_t __byte_perm(uint32_t a, uint32_t b, uint32_t pick)
{
    uint64_t both = (uint64_t)b << 32 | a;
    uint32_t out = 0;

    for (int i = 0; i < 4; i++)
        out |= (uint32_t)(both >> ((pick >> 4 * i & 7) * 8) & 255) << 8 * i;
    return out;
}

#endif
