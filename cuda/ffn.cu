/*
 * ffn.cu - the elementwise part of the feed-forward layer of prompt rows, and bias adds.
 *
 *   in    act  [n_rows, 2 ffn_dim] gate columns then up columns, ungated [n_rows, ffn_dim]
 *   out   act  [n_rows, ffn_dim]
 *
 * Work     one thread per 8 columns; decode rows do this in the epilogue of gemm.cu
 * Bound    HBM: 6 bytes an inner element in bf16, against 2 * dim FLOP of the products around it
 * Limits   ffn_dim and dim multiples of 8
 * Checked  against cpu in tests/cuda/test_ops.c
 */
#include "cuda/cuda_backend.h"
#include "cuda/device.cuh"

#define FFN_THREADS 256

template <typename T> struct ffn_act_args {
    const T *in;
    const float *bias; /* [2 ffn_dim], ungated [ffn_dim], or NULL */
    T *out;
    int ffn_dim, act;
    bool gated;
};

/* thread -> 8 columns of a row; grid = (columns / 2048, n_rows) */
template <typename T>
static __global__ void __launch_bounds__(FFN_THREADS)
    ffn_act_kernel(const __grid_constant__ ffn_act_args<T> a)
{
    int col = (blockIdx.x * FFN_THREADS + threadIdx.x) * 8;
    int64_t row = blockIdx.y;
    const T *in = a.in + row * a.ffn_dim * (a.gated ? 2 : 1);
    float v[8], u[8];

    if (col >= a.ffn_dim)
        return;
    load8(v, in + col);
    if (a.bias) {
        for (int j = 0; j < 8; j++)
            v[j] += a.bias[col + j];
    }
    for (int j = 0; j < 8; j++)
        v[j] = act_f32(a.act, v[j]);
    if (a.gated) {
        load8(u, in + a.ffn_dim + col);
        for (int j = 0; j < 8; j++)
            v[j] *= u[j] + (a.bias ? a.bias[a.ffn_dim + col + j] : 0.0f);
    }
    store8(a.out + row * a.ffn_dim + col, v);
}

template <typename T> struct add_bias_args {
    T *x;              /* [n_rows, dim] */
    const float *bias; /* [dim] */
    int dim;
};

/* thread -> 8 columns of a row; grid as above */
template <typename T>
static __global__ void __launch_bounds__(FFN_THREADS)
    add_bias_kernel(const __grid_constant__ add_bias_args<T> a)
{
    int col = (blockIdx.x * FFN_THREADS + threadIdx.x) * 8;
    float v[8];

    if (col >= a.dim)
        return;
    load8(v, a.x + (int64_t)blockIdx.y * a.dim + col);
    for (int j = 0; j < 8; j++)
        v[j] += a.bias[col + j];
    store8(a.x + (int64_t)blockIdx.y * a.dim + col, v);
}

static dim3 grid_of(int n_cols, int n_rows)
{
    return dim3((n_cols + FFN_THREADS * 8 - 1) / (FFN_THREADS * 8), n_rows);
}

template <typename T>
static void act_start(struct cuda_backend *cb, const struct ffn_args *f, const void *in, int n_rows,
                      void *out)
{
    struct ffn_act_args<T> k = {
    };

    k.in = (const T *)in;
    k.bias = f->b_in ? (const float *)f->b_in->data : NULL;
    k.out = (T *)out;
    k.ffn_dim = f->ffn_dim;
    k.act = f->act;
    k.gated = f->gated;
    ffn_act_kernel<T><<<grid_of(f->ffn_dim, n_rows), FFN_THREADS, 0, cb->stream>>>(k);
}

template <typename T>
static void bias_start(struct cuda_backend *cb, void *x, int n_rows, int dim, const void *bias)
{
    struct add_bias_args<T> k = {
    };

    k.x = (T *)x;
    k.bias = (const float *)bias;
    k.dim = dim;
    add_bias_kernel<T><<<grid_of(dim, n_rows), FFN_THREADS, 0, cb->stream>>>(k);
}

int ffn_act_launch(struct cuda_backend *cb, const struct ffn_args *f, const void *in, int n_rows,
                   void *out, struct err *err)
{
    if (n_rows == 0)
        return 0;
    if (f->ffn_dim % 8)
        return err_set(err, ERR_UNSUPPORTED, "ffn: ffn_dim %d, want a multiple of 8", f->ffn_dim);
    switch (cb->base.act_dtype) {
    case DTYPE_F32:
        act_start<float>(cb, f, in, n_rows, out);
        break;
    case DTYPE_BF16:
        act_start<__nv_bfloat16>(cb, f, in, n_rows, out);
        break;
    case DTYPE_F16:
        act_start<__half>(cb, f, in, n_rows, out);
        break;
    }
    return cuda_launched(cb, "ffn_act", err);
}

int add_bias_launch(struct cuda_backend *cb, void *x, int n_rows, int dim,
                    const struct weight *bias, struct err *err)
{
    if (n_rows == 0 || !bias)
        return 0;
    if (dim % 8)
        return err_set(err, ERR_UNSUPPORTED, "bias: dim %d, want a multiple of 8", dim);
    switch (cb->base.act_dtype) {
    case DTYPE_F32:
        bias_start<float>(cb, x, n_rows, dim, bias->data);
        break;
    case DTYPE_BF16:
        bias_start<__nv_bfloat16>(cb, x, n_rows, dim, bias->data);
        break;
    case DTYPE_F16:
        bias_start<__half>(cb, x, n_rows, dim, bias->data);
        break;
    }
    return cuda_launched(cb, "add_bias", err);
}
