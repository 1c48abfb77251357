/*
 * device - what every kernel shares: element types, vector loads, reductions, activations.
 */
#ifndef DEVICE_CUH
#define DEVICE_CUH

#include "base/dtype.h"
#include "cuda/ptx.cuh"

#include <cuda_bf16.h>
#include <cuda_fp16.h>
#include <stdint.h>

#define WARP_LANES 32

__device__ __forceinline__ float to_f32(float v)
{
    return v;
}
__device__ __forceinline__ float to_f32(__nv_bfloat16 v)
{
    return __bfloat162float(v);
}
__device__ __forceinline__ float to_f32(__half v)
{
    return __half2float(v);
}

template <typename T> __device__ __forceinline__ T from_f32(float v);
template <> __device__ __forceinline__ float from_f32<float>(float v)
{
    return v;
}
template <> __device__ __forceinline__ __nv_bfloat16 from_f32<__nv_bfloat16>(float v)
{
    return __float2bfloat16_rn(v);
}
template <> __device__ __forceinline__ __half from_f32<__half>(float v)
{
    return __float2half_rn(v);
}

/* A ring of barriers: index and parity of the turn that comes next. */
struct turn {
    int at, parity;

    __device__ __forceinline__ void advance(int n)
    {
        if (++at == n) {
            at = 0;
            parity ^= 1;
        }
    }
};

/* Two 16-bit elements of one register as floats; the lower address is x. */
template <typename T> __device__ __forceinline__ float2 unpack2(uint32_t u);
template <> __device__ __forceinline__ float2 unpack2<__nv_bfloat16>(uint32_t u)
{
    return make_float2(__uint_as_float(u << 16), __uint_as_float(u & 0xffff0000u));
}
template <> __device__ __forceinline__ float2 unpack2<__half>(uint32_t u)
{
    __half2 h;

    memcpy(&h, &u, sizeof(h));
    return __half22float2(h);
}

template <typename T> __device__ __forceinline__ uint32_t pack2(float lo, float hi);
template <> __device__ __forceinline__ uint32_t pack2<__nv_bfloat16>(float lo, float hi)
{
    __nv_bfloat162 b = __floats2bfloat162_rn(lo, hi);
    uint32_t u;

    memcpy(&u, &b, sizeof(u));
    return u;
}
template <> __device__ __forceinline__ uint32_t pack2<__half>(float lo, float hi)
{
    __half2 b = __floats2half2_rn(lo, hi);
    uint32_t u;

    memcpy(&u, &b, sizeof(u));
    return u;
}

/* Eight consecutive elements, 16-byte aligned, as floats. */
template <typename T> __device__ __forceinline__ void load8(float out[8], const T *p)
{
    uint4 u = *reinterpret_cast<const uint4 *>(p);
    float2 a = unpack2<T>(u.x), b = unpack2<T>(u.y), c = unpack2<T>(u.z), d = unpack2<T>(u.w);

    out[0] = a.x, out[1] = a.y, out[2] = b.x, out[3] = b.y;
    out[4] = c.x, out[5] = c.y, out[6] = d.x, out[7] = d.y;
}
template <> __device__ __forceinline__ void load8<float>(float out[8], const float *p)
{
    float4 a = reinterpret_cast<const float4 *>(p)[0];
    float4 b = reinterpret_cast<const float4 *>(p)[1];

    out[0] = a.x, out[1] = a.y, out[2] = a.z, out[3] = a.w;
    out[4] = b.x, out[5] = b.y, out[6] = b.z, out[7] = b.w;
}

template <typename T> __device__ __forceinline__ void store8(T *p, const float v[8])
{
    uint4 u;

    u.x = pack2<T>(v[0], v[1]);
    u.y = pack2<T>(v[2], v[3]);
    u.z = pack2<T>(v[4], v[5]);
    u.w = pack2<T>(v[6], v[7]);
    *reinterpret_cast<uint4 *>(p) = u;
}
template <> __device__ __forceinline__ void store8<float>(float *p, const float v[8])
{
    reinterpret_cast<float4 *>(p)[0] = make_float4(v[0], v[1], v[2], v[3]);
    reinterpret_cast<float4 *>(p)[1] = make_float4(v[4], v[5], v[6], v[7]);
}

__device__ __forceinline__ float warp_sum(float v)
{
    for (int m = 16; m > 0; m >>= 1)
        v += __shfl_xor_sync(0xffffffffu, v, m);
    return v;
}

__device__ __forceinline__ float warp_max(float v)
{
    for (int m = 16; m > 0; m >>= 1)
        v = fmaxf(v, __shfl_xor_sync(0xffffffffu, v, m));
    return v;
}

/* The sum over a CTA of n_warps warps, for every thread; sums is shared, [n_warps]. */
__device__ __forceinline__ float cta_sum(float v, float *sums, int n_warps)
{
    float total = 0;

    v = warp_sum(v);
    __syncthreads(); /* sums may still be read from an earlier call */
    if (threadIdx.x % WARP_LANES == 0)
        sums[threadIdx.x / WARP_LANES] = v;
    __syncthreads(); /* every warp's sum is there */
    for (int i = 0; i < n_warps; i++)
        total += sums[i];
    return total;
}

/* act(x) as enum act_kind says, in f32. */
__device__ __forceinline__ float act_f32(int kind, float x)
{
    if (kind == 0) /* ACT_SILU */
        return x / (1.0f + expf(-x));
    if (kind == 1) { /* ACT_GELU_TANH */
        float u = 0.7978845608028654f * (x + 0.044715f * x * x * x);

        return 0.5f * x * (1.0f + tanhf(u));
    }
    return 0.5f * x * (1.0f + erff(x * 0.7071067811865476f));
}

#endif
