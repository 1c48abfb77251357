/*
 * weight_random.cu - random weights drawn where they will live, the CPU backend's numbers to the
 * bit.
 *
 *   data  any dtype [n]; elements 8c .. 8c + 7 from counter c of the stream, 16 bits h each, lowest
 *         first: (2h - 65535) / 65536 * scale + offset
 *
 * Work     one thread per 8 elements, grid stride
 * Bound    HBM writes; 20 wide products for 8 elements
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

/* thread -> counters at, at + grid, ...; products and sums are rounded apart, as on the CPU */
template <typename T>
static __global__ void __launch_bounds__(RANDOM_THREADS)
    weight_random_kernel(const __grid_constant__ weight_random_args<T> a)
{
    int64_t step = (int64_t)gridDim.x * RANDOM_THREADS, n_counters = (a.n + 7) / 8;

    for (int64_t c = (int64_t)blockIdx.x * RANDOM_THREADS + threadIdx.x; c < n_counters;
         c += step) {
        uint32_t ctr[4] = {(uint32_t)c, (uint32_t)((uint64_t)c >> 32), a.stream, 1};
        float v[8];

        rng_philox(ctr, (uint32_t)a.seed, (uint32_t)(a.seed >> 32));
        for (int i = 0; i < 8; i++) {
            int h = (int)(ctr[i / 2] >> (i % 2 * 16) & 0xffff);
            float u = __fmul_rn((float)(2 * h - 65535), 1.0f / 65536.0f);

            v[i] = __fadd_rn(__fmul_rn(u, a.scale), a.offset);
        }
        if (8 * c + 8 <= a.n) {
            store8(a.data + 8 * c, v);
        } else {
            for (int i = 0; 8 * c + i < a.n; i++)
                a.data[8 * c + i] = from_f32<T>(v[i]);
        }
    }
}

template <typename T>
static void random_start(struct cuda_backend *cb, void *data, int64_t n, uint64_t seed,
                         uint32_t stream, float scale, float offset)
{
    struct weight_random_args<T> k = {
    };
    int64_t ctas = (n + 8 * RANDOM_THREADS - 1) / (8 * RANDOM_THREADS);

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
                         uint64_t seed, uint32_t stream, float scale, float offset, struct err *err)
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
