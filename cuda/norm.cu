/*
 * norm.cu - RMSNorm or LayerNorm of rows, of all of them or of a list.
 *
 *   x     act  [n_rows, dim]
 *   gain  f32  [dim]; bias likewise or NULL
 *   out   act  [n_rows, dim]
 *
 * Work     one CTA per row; the row is read twice or three times, from L1 after the first
 * Bound    launch latency: a decode step's rows are kilobytes
 * Limits   dim a multiple of 8
 * Checked  against cpu in tests/cuda/test_ops.c
 */
#include "cuda/cuda_backend.h"
#include "cuda/device.cuh"
#include "cuda/launch.cuh"

#define NORM_THREADS 256
#define NORM_WARPS   (NORM_THREADS / WARP_LANES)

template <typename T> struct norm_kernel_args {
    const T *x;          /* [*, dim] */
    const int32_t *rows; /* [n_rows] or NULL */
    const float *gain, *bias;
    T *out; /* [n_rows, dim] */
    int dim;
    bool centre; /* LayerNorm */
    float eps;
};

/* CTA -> row; each thread takes every 256th vector of 8. Sums depend on dim alone. */
template <typename T>
static __global__ void __launch_bounds__(NORM_THREADS)
    norm_kernel(const __grid_constant__ norm_kernel_args<T> a)
{
    __shared__ float sums[NORM_WARPS];
    T *out = a.out + (int64_t)blockIdx.x * a.dim;
    float mean = 0, sum = 0, scale, v[8], g[8];
    int64_t row;
    const T *x;

    grid_wait();
    grid_launch_next();
    row = a.rows ? a.rows[blockIdx.x] : blockIdx.x;
    x = a.x + row * a.dim;

    if (a.centre) {
        for (int i = threadIdx.x * 8; i < a.dim; i += NORM_THREADS * 8) {
            load8(v, x + i);
            for (int j = 0; j < 8; j++)
                sum += v[j];
        }
        mean = cta_sum(sum, sums, NORM_WARPS) / (float)a.dim;
        sum = 0;
    }
    for (int i = threadIdx.x * 8; i < a.dim; i += NORM_THREADS * 8) {
        load8(v, x + i);
        for (int j = 0; j < 8; j++)
            sum += (v[j] - mean) * (v[j] - mean);
    }
    scale = rsqrtf(cta_sum(sum, sums, NORM_WARPS) / (float)a.dim + a.eps);
    for (int i = threadIdx.x * 8; i < a.dim; i += NORM_THREADS * 8) {
        load8(v, x + i);
        load8(g, a.gain + i);
        for (int j = 0; j < 8; j++)
            v[j] = (v[j] - mean) * scale * g[j];
        if (a.bias) {
            load8(g, a.bias + i);
            for (int j = 0; j < 8; j++)
                v[j] += g[j];
        }
        store8(out + i, v);
    }
}

template <typename T>
static int norm_start(struct cuda_backend *cb, const struct norm_args *norm, int dim, const void *x,
                      const int32_t *rows, int n_rows, void *out, struct err *err)
{
    struct norm_kernel_args<T> k = {
    };

    k.x = (const T *)x;
    k.rows = rows;
    k.gain = (const float *)norm->gain->data;
    k.bias = norm->bias ? (const float *)norm->bias->data : NULL;
    k.out = (T *)out;
    k.dim = dim;
    k.centre = norm->kind == NORM_LAYER;
    k.eps = norm->eps;
    return launch_overlapped(cb, "norm", norm_kernel<T>, dim3(n_rows), dim3(NORM_THREADS), 0, err,
                             k);
}

int norm_launch(struct cuda_backend *cb, const struct norm_args *norm, int dim, const void *x,
                const int32_t *rows, int n_rows, void *out, struct err *err)
{
    if (n_rows == 0)
        return 0;
    if (dim % 8)
        return err_set(err, ERR_UNSUPPORTED, "norm: dim %d, want a multiple of 8", dim);
    if (norm->gain->dtype != DTYPE_F32 || (norm->bias && norm->bias->dtype != DTYPE_F32))
        return err_set(err, ERR_UNSUPPORTED, "norm: gain and bias must be f32");
    switch (cb->base.act_dtype) {
    case DTYPE_F32:
        return norm_start<float>(cb, norm, dim, x, rows, n_rows, out, err);
    case DTYPE_BF16:
        return norm_start<__nv_bfloat16>(cb, norm, dim, x, rows, n_rows, out, err);
    case DTYPE_F16:
        return norm_start<__half>(cb, norm, dim, x, rows, n_rows, out, err);
    }
    return 0;
}
