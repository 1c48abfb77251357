/*
 * grad_rows.cu - the way back through what is done row by row: norms, activations, rope, the loss.
 *
 *   x, low           act [*, dim]
 *   dx, dy           f32 [*, dim]
 *   wide, dh, dq ..  act
 *
 * Work     norm, loss: one CTA per row; activation, rounding: one thread per 8 columns; rope: one
 *          warp per (row, head), which waits in shared memory for its rotation
 * Bound    HBM; all of it is some 3 % of a layer's products
 * Limits   dim and ffn_dim multiples of 8, head_dim at most 256; f32 and bf16
 * Checked  against cpu in tests/cuda/test_cuda_grad.c
 */
#include "cuda/device.cuh"
#include "cuda/grad_cuda.h"

#define ROW_THREADS 256
#define ROW_WARPS   (ROW_THREADS / WARP_LANES)

template <typename T> struct round_args {
    const float *x;
    T *out;
    int64_t n;
};

/* thread -> 8 elements */
template <typename T>
static __global__ void __launch_bounds__(ROW_THREADS)
    grad_round(const __grid_constant__ round_args<T> a)
{
    int64_t at = ((int64_t)blockIdx.x * ROW_THREADS + threadIdx.x) * 8;
    float v[8];

    if (at >= a.n)
        return;
    load8(v, a.x + at);
    store8(a.out + at, v);
}

int grad_round_launch(struct cuda_backend *cb, const float *x, int64_t n, void *out,
                      struct err *err)
{
    round_args<__nv_bfloat16> k = {};

    k.x = x;
    k.out = (__nv_bfloat16 *)out;
    k.n = n;
    grad_round<__nv_bfloat16>
        <<<(unsigned)((n / 8 + ROW_THREADS - 1) / ROW_THREADS), ROW_THREADS, 0, cb->stream>>>(k);
    return cuda_launched(cb, "grad_round", err);
}

/* ---- norm ---- */

template <typename T> struct norm_back_args {
    const T *x;
    const float *gain, *dy;
    const int32_t *rows; /* or NULL */
    float *dx;
    T *low; /* or NULL */
    int dim;
    bool centre, add;
    float eps;
};

/*
 * CTA -> row. y = x r g with r = (mean x^2 + eps)^-1/2, so dx = r (g dy - x r^2 mean(x g dy));
 * LayerNorm has the means of x and of g dy taken off as well.
 */
template <typename T>
static __global__ void __launch_bounds__(ROW_THREADS)
    grad_norm(const __grid_constant__ norm_back_args<T> a)
{
    __shared__ float sums[ROW_WARPS];
    int64_t row = a.rows ? a.rows[blockIdx.x] : blockIdx.x;
    const T *x = a.x + row * a.dim;
    const float *dy = a.dy + (int64_t)blockIdx.x * a.dim;
    float mean = 0, square = 0, dot = 0, mean_dy = 0, v[8], g[8], d[8], r;

    if (a.centre) {
        for (int i = threadIdx.x * 8; i < a.dim; i += ROW_THREADS * 8) {
            load8(v, x + i);
            for (int j = 0; j < 8; j++)
                mean += v[j];
        }
        mean = cta_sum(mean, sums, ROW_WARPS) / (float)a.dim;
    }
    for (int i = threadIdx.x * 8; i < a.dim; i += ROW_THREADS * 8) {
        load8(v, x + i);
        load8(g, a.gain + i);
        load8(d, dy + i);
        for (int j = 0; j < 8; j++) {
            float c = v[j] - mean, gdy = g[j] * d[j];

            square += c * c;
            dot += c * gdy;
            mean_dy += gdy;
        }
    }
    square = cta_sum(square, sums, ROW_WARPS);
    dot = cta_sum(dot, sums, ROW_WARPS);
    mean_dy = a.centre ? cta_sum(mean_dy, sums, ROW_WARPS) / (float)a.dim : 0.0f;
    r = rsqrtf(square / (float)a.dim + a.eps);
    dot *= r * r / (float)a.dim;
    for (int i = threadIdx.x * 8; i < a.dim; i += ROW_THREADS * 8) {
        float *dx = a.dx + row * a.dim + i, old[8];

        load8(v, x + i);
        load8(g, a.gain + i);
        load8(d, dy + i);
        if (a.add)
            load8(old, dx);
        for (int j = 0; j < 8; j++) {
            d[j] = r * (d[j] * g[j] - mean_dy - (v[j] - mean) * dot);
            d[j] = a.add ? old[j] + d[j] : d[j];
        }
        store8(dx, d);
        if (a.low)
            store8(a.low + row * a.dim + i, d);
    }
}

template <typename T>
static void norm_start(struct cuda_backend *cb, const struct grad_norm_args *p)
{
    norm_back_args<T> k = {};

    k.x = (const T *)p->x;
    k.gain = (const float *)p->norm->gain->data;
    k.dy = p->dy;
    k.rows = p->rows;
    k.dx = p->dx;
    k.low = (T *)p->low;
    k.dim = p->dim;
    k.centre = p->norm->kind == NORM_LAYER;
    k.add = p->add;
    k.eps = p->norm->eps;
    grad_norm<T><<<p->n_rows, ROW_THREADS, 0, cb->stream>>>(k);
}

int grad_norm_launch(struct cuda_backend *cb, const struct grad_norm_args *p, struct err *err)
{
    if (p->n_rows == 0)
        return 0;
    if (p->dim % 8)
        return err_set(err, ERR_UNSUPPORTED, "norm: dim %d, want a multiple of 8", p->dim);
    if (cb->base.act_dtype == DTYPE_F32)
        norm_start<float>(cb, p);
    else
        norm_start<__nv_bfloat16>(cb, p);
    return cuda_launched(cb, "grad_norm", err);
}

/* ---- the activation ---- */

template <typename T> struct act_back_args {
    T *wide;           /* [n_rows, ffn_dim, twice that if gated] */
    const T *dh;       /* [n_rows, ffn_dim] */
    const float *bias; /* or NULL */
    int ffn_dim, act;
    bool gated;
};

/* act(x) and its slope, as enum act_kind says. */
static __device__ __forceinline__ float act_slope(int kind, float x, float *slope)
{
    if (kind == ACT_SILU) {
        float s = 1.0f / (1.0f + expf(-x));

        *slope = s * (1.0f + x * (1.0f - s));
        return x * s;
    }
    if (kind == ACT_GELU_TANH) {
        float c = 0.7978845608028654f, t = tanhf(c * (x + 0.044715f * x * x * x));

        *slope =
            0.5f * (1.0f + t) + 0.5f * x * (1.0f - t * t) * c * (1.0f + 3.0f * 0.044715f * x * x);
        return 0.5f * x * (1.0f + t);
    }
    *slope = 0.5f * (1.0f + erff(x * 0.7071067811865476f)) +
             x * 0.3989422804014327f * expf(-0.5f * x * x);
    return 0.5f * x * (1.0f + erff(x * 0.7071067811865476f));
}

/* thread -> 8 columns of a row; grid = (columns / 2048, n_rows) */
template <typename T>
static __global__ void __launch_bounds__(ROW_THREADS)
    grad_act(const __grid_constant__ act_back_args<T> a)
{
    int col = (blockIdx.x * ROW_THREADS + threadIdx.x) * 8;
    int64_t row = blockIdx.y;
    T *gate = a.wide + row * a.ffn_dim * (a.gated ? 2 : 1) + col;
    float v[8], u[8], d[8];

    if (col >= a.ffn_dim)
        return;
    load8(v, gate);
    load8(d, a.dh + row * a.ffn_dim + col);
    if (a.gated)
        load8(u, gate + a.ffn_dim);
    for (int j = 0; j < 8; j++) {
        float slope, h = act_slope(a.act, v[j] + (a.bias ? a.bias[col + j] : 0.0f), &slope);

        v[j] = d[j] * slope;
        if (a.gated) {
            v[j] *= u[j] + (a.bias ? a.bias[a.ffn_dim + col + j] : 0.0f);
            u[j] = d[j] * h;
        }
    }
    store8(gate, v);
    if (a.gated)
        store8(gate + a.ffn_dim, u);
}

template <typename T>
static void act_start(struct cuda_backend *cb, const struct grad_ffn_args *f, void *wide,
                      const void *dh)
{
    dim3 grid((f->ffn_dim + ROW_THREADS * 8 - 1) / (ROW_THREADS * 8), f->n_rows);
    act_back_args<T> k = {};

    k.wide = (T *)wide;
    k.dh = (const T *)dh;
    k.bias = f->b_in ? (const float *)f->b_in->data : NULL;
    k.ffn_dim = f->ffn_dim;
    k.act = f->act;
    k.gated = f->gated;
    grad_act<T><<<grid, ROW_THREADS, 0, cb->stream>>>(k);
}

int grad_act_launch(struct cuda_backend *cb, const struct grad_ffn_args *f, void *wide,
                    const void *dh, struct err *err)
{
    if (f->ffn_dim % 8)
        return err_set(err, ERR_UNSUPPORTED, "ffn: ffn_dim %d, want a multiple of 8", f->ffn_dim);
    if (cb->base.act_dtype == DTYPE_F32)
        act_start<float>(cb, f, wide, dh);
    else
        act_start<__nv_bfloat16>(cb, f, wide, dh);
    return cuda_launched(cb, "grad_act", err);
}

/* ---- rope and the norms of heads ---- */

#define ROPE_WARPS    4
#define ROPE_MAX_HEAD 256

template <typename T> struct rope_back_args {
    const T *dq, *dk, *dv;
    const T *qkv;                 /* the product once more; only with norms */
    const float *bias;            /* of it, or NULL */
    const float *q_norm, *k_norm; /* [head_dim] or NULL */
    const float *inv_freq;        /* row stride inv_freq_stride */
    T *out;                       /* [n_rows, n_heads + 2 n_kv_heads, head_dim] */
    int64_t n_units;              /* (row, head) pairs */
    int n_heads, n_kv_heads, head_dim, rope_dim, inv_freq_stride;
    float qk_norm_eps, rope_scale;
};

/* warp -> (row, head of q, k or v) */
template <typename T>
static __global__ void __launch_bounds__(ROPE_WARPS *WARP_LANES)
    grad_rope(const __grid_constant__ rope_back_args<T> a)
{
    __shared__ float heads[ROPE_WARPS][ROPE_MAX_HEAD];
    int warp = threadIdx.x / WARP_LANES, lane = threadIdx.x % WARP_LANES;
    int64_t unit = (int64_t)blockIdx.x * ROPE_WARPS + warp;
    int n_all = a.n_heads + 2 * a.n_kv_heads, half = a.rope_dim / 2;
    int row = (int)(unit / n_all), head = (int)(unit % n_all);
    bool is_q = head < a.n_heads, is_v = head >= a.n_heads + a.n_kv_heads;
    const float *gain = is_q ? a.q_norm : is_v ? NULL : a.k_norm;
    float *buf = heads[warp], square = 0, dot = 0, r;
    const T *from;

    if (unit >= a.n_units)
        return;
    if (is_q)
        from = a.dq + ((int64_t)row * a.n_heads + head) * a.head_dim;
    else
        from = (is_v ? a.dv : a.dk) +
               ((int64_t)row * a.n_kv_heads + (head - a.n_heads) % a.n_kv_heads) * a.head_dim;
    for (int d = lane; d < a.head_dim; d += WARP_LANES)
        buf[d] = to_f32(from[d]);
    __syncwarp(); /* the rotation reads other lanes' dims */
    for (int i = lane; i < half && !is_v; i += WARP_LANES) {
        float angle = (float)row * a.inv_freq[(int64_t)row * a.inv_freq_stride + i], s, c;
        float d0 = buf[i], d1 = buf[i + half];

        sincosf(angle, &s, &c);
        s *= a.rope_scale;
        c *= a.rope_scale;
        buf[i] = d0 * c + d1 * s;
        buf[i + half] = d1 * c - d0 * s;
    }
    __syncwarp(); /* all dims are turned back */
    if (gain) {
        const T *qkv = a.qkv + unit * a.head_dim;
        const float *bias = a.bias ? a.bias + head * a.head_dim : NULL;

        for (int d = lane; d < a.head_dim; d += WARP_LANES) {
            float x = to_f32(qkv[d]) + (bias ? bias[d] : 0.0f);

            square += x * x;
            dot += x * buf[d] * gain[d];
        }
        r = rsqrtf(warp_sum(square) / (float)a.head_dim + a.qk_norm_eps);
        dot = warp_sum(dot) * r * r / (float)a.head_dim;
        for (int d = lane; d < a.head_dim; d += WARP_LANES) {
            float x = to_f32(qkv[d]) + (bias ? bias[d] : 0.0f);

            buf[d] = r * (buf[d] * gain[d] - x * dot);
        }
    }
    for (int d = lane; d < a.head_dim; d += WARP_LANES)
        a.out[unit * a.head_dim + d] = from_f32<T>(buf[d]);
}

template <typename T>
static void rope_start(struct cuda_backend *cb, const struct grad_attn_in_args *p, const void *qkv,
                       void *out)
{
    rope_back_args<T> k = {};

    k.dq = (const T *)p->dq;
    k.dk = (const T *)p->dk;
    k.dv = (const T *)p->dv;
    k.qkv = (const T *)qkv;
    k.bias = p->bqkv ? (const float *)p->bqkv->data : NULL;
    k.q_norm = p->q_norm ? (const float *)p->q_norm->data : NULL;
    k.k_norm = p->k_norm ? (const float *)p->k_norm->data : NULL;
    k.inv_freq = p->inv_freq;
    k.out = (T *)out;
    k.n_units = (int64_t)p->n_rows * (p->n_heads + 2 * p->n_kv_heads);
    k.n_heads = p->n_heads;
    k.n_kv_heads = p->n_kv_heads;
    k.head_dim = p->head_dim;
    k.rope_dim = p->rope_dim;
    k.inv_freq_stride = p->inv_freq_stride;
    k.qk_norm_eps = p->qk_norm_eps;
    k.rope_scale = p->rope_scale;
    grad_rope<T><<<(unsigned)((k.n_units + ROPE_WARPS - 1) / ROPE_WARPS), ROPE_WARPS * WARP_LANES,
                   0, cb->stream>>>(k);
}

int grad_rope_launch(struct cuda_backend *cb, const struct grad_attn_in_args *p, const void *qkv,
                     void *out, struct err *err)
{
    if (p->head_dim > ROPE_MAX_HEAD)
        return err_set(err, ERR_UNSUPPORTED, "attn_in: head_dim %d, at most %d is built",
                       p->head_dim, ROPE_MAX_HEAD);
    if (cb->base.act_dtype == DTYPE_F32)
        rope_start<float>(cb, p, qkv, out);
    else
        rope_start<__nv_bfloat16>(cb, p, qkv, out);
    return cuda_launched(cb, "grad_rope", err);
}

/* ---- the loss ---- */

template <typename T> struct loss_args {
    const float *logits;
    const int32_t *target;
    T *out;
    float *loss;
    int vocab_size, ld;
    float scale;
    bool odds; /* GRAD_LOSS_LOG_ODDS */
};

/* The greatest over a CTA, for every thread; tops is shared, [ROW_WARPS]. */
static __device__ __forceinline__ float cta_max(float v, float *tops)
{
    v = warp_max(v);
    __syncthreads(); /* tops may still be read from an earlier call */
    if (threadIdx.x % WARP_LANES == 0)
        tops[threadIdx.x / WARP_LANES] = v;
    __syncthreads(); /* every warp's is there */
    v = tops[0];
    for (int i = 1; i < ROW_WARPS; i++)
        v = fmaxf(v, tops[i]);
    return v;
}

/* CTA -> row. The target's logit against the sum of the others', so that neither drowns. */
template <typename T>
static __global__ void __launch_bounds__(ROW_THREADS)
    grad_loss(const __grid_constant__ loss_args<T> a)
{
    __shared__ float sums[ROW_WARPS];
    const float *l = a.logits + (int64_t)blockIdx.x * a.vocab_size;
    T *out = a.out + (int64_t)blockIdx.x * a.ld;
    int target = a.target[blockIdx.x];
    float top = -INFINITY, sum = 0, inverse;
    double own, all;

    for (int i = threadIdx.x; i < a.vocab_size; i += ROW_THREADS)
        top = i == target ? top : fmaxf(top, l[i]);
    top = cta_max(top, sums);
    for (int i = threadIdx.x; i < a.vocab_size; i += ROW_THREADS)
        sum += i == target ? 0.0f : expf(l[i] - top);
    sum = cta_sum(sum, sums, ROW_WARPS);
    own = (double)l[target] - (double)top;
    all = a.odds ? (double)sum : (double)sum + exp(own);
    inverse = (float)((double)a.scale / all);
    if (threadIdx.x == 0) /* -log p with the larger of both taken out */
        a.loss[blockIdx.x] = (float)(own > log((double)sum)
                                         ? log1p((double)sum * exp(-own))
                                         : log((double)sum) - own + log1p(exp(own) / (double)sum));
    for (int i = threadIdx.x; i < a.ld; i += ROW_THREADS) {
        float d = 0;

        if (i == target)
            d = a.odds ? -a.scale : -inverse * sum;
        else if (i < a.vocab_size)
            d = inverse * expf(l[i] - top);
        out[i] = from_f32<T>(d);
    }
}

template <typename T>
static void loss_start(struct cuda_backend *cb, const struct grad_loss_args *p)
{
    loss_args<T> k = {};

    k.logits = p->logits;
    k.target = p->target;
    k.out = (T *)p->out;
    k.loss = p->loss;
    k.vocab_size = p->vocab_size;
    k.ld = p->ld;
    k.scale = p->scale;
    k.odds = p->kind == GRAD_LOSS_LOG_ODDS;
    grad_loss<T><<<p->n_rows, ROW_THREADS, 0, cb->stream>>>(k);
}

int grad_loss_launch(struct cuda_backend *cb, const struct grad_loss_args *p, struct err *err)
{
    if (cb->base.act_dtype == DTYPE_F32)
        loss_start<float>(cb, p);
    else
        loss_start<__nv_bfloat16>(cb, p);
    return cuda_launched(cb, "grad_loss", err);
}
