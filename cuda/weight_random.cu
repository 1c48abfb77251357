/*
 * weight_random.cu - random weights drawn where they will live, the CPU backend's numbers to the bit.
 *
 *   data  any dtype [n]; element i = (rng_f32(seed, stream, i) * 2 - 1) * scale + offset
 *
 * Work     one thread per 8 elements, grid stride
 * Bound    integer arithmetic: 20 wide products an element
 * Checked  against cpu, exactly, in tests/cuda/test_mem.c
 */
#include "base/rng.h"
#include "cuda/cuda_backend.h"
#include "cuda/device.cuh"

#define RANDOM_THREADS 256

template <typename T> struct weight_random_args {
    T *data; /* [n] */
    int64_t n;
    uint64_t seed;
    uint32_t stream;
    float scale, offset;
};

/* thread -> elements at, at + 1 warp, ...; products and sums are rounded apart, as on the CPU */
template <typename T>
static __global__ void __launch_bounds__(RANDOM_THREADS)
weight_random_kernel(const __grid_constant__ weight_random_args<T> a)
{
    int64_t step = (int64_t)gridDim.x * RANDOM_THREADS;

    for (int64_t i = (int64_t)blockIdx.x * RANDOM_THREADS + threadIdx.x; i < a.n; i += step) {
        float u = rng_f32(a.seed, a.stream, (uint64_t)i);
        float v = __fadd_rn(__fmul_rn(__fadd_rn(__fmul_rn(u, 2.0f), -1.0f), a.scale), a.offset);

        a.data[i] = from_f32<T>(v);
    }
}

template <typename T>
static void random_start(struct cuda_backend *cb, void *data, int64_t n, uint64_t seed,
                         uint32_t stream, float scale, float offset)
{
    struct weight_random_args<T> k = {};
    int64_t ctas = (n + RANDOM_THREADS - 1) / RANDOM_THREADS;

    k.data = (T *)data;
    k.n = n;
    k.seed = seed;
    k.stream = stream;
    k.scale = scale;
    k.offset = offset;
    if (ctas > cb->n_sms * 16)
        ctas = cb->n_sms * 16;
    weight_random_kernel<T><<<(int)ctas, RANDOM_THREADS, 0, cb->stream>>>(k);
}

int weight_random_launch(struct cuda_backend *cb, void *data, int64_t n, enum dtype dtype,
                         uint64_t seed, uint32_t stream, float scale, float offset,
                         struct err *err)
{
    if (n == 0)
        return 0;
    switch (dtype) {
    case DTYPE_F32:
        random_start<float>(cb, data, n, seed, stream, scale, offset);
        break;
    case DTYPE_BF16:
        random_start<__nv_bfloat16>(cb, data, n, seed, stream, scale, offset);
        break;
    case DTYPE_F16:
        random_start<__half>(cb, data, n, seed, stream, scale, offset);
        break;
    }
    return cuda_launched(cb, "weight_random", err);
}
