/*
 * grad_attn_f32.cu - the way back through attention in f32, by CUDA cores: for parity, not for
 * speed.
 *
 * Work     as grad_attn.cu, whose shapes these are: a warp takes a row (a key) at a time and its
 *          lanes 32 keys (rows), then dims. Sums have one order.
 * Limits   head_dim at most 256
 * Checked  against cpu in tests/cuda/test_cuda_grad.c
 */
#include "cuda/device.cuh"
#include "cuda/grad_cuda.h"

#define TILE      GRAD_BLOCK
#define N_WARPS   4
#define N_THREADS (N_WARPS * WARP_LANES)
#define MAX_DIM   256
#define LANE_DIMS (MAX_DIM / WARP_LANES)

struct pair_rows {
    const float *q, *da, *k, *v; /* of one row and one key */
};

/* The score and da . v of one pair. */
static __device__ __forceinline__ void pair_dots(const pair_rows &p, int dim, float *score,
                                                 float *g)
{
    float s = 0, d = 0;

    for (int i = 0; i < dim; i++) {
        s += p.q[i] * p.k[i];
        d += p.da[i] * p.v[i];
    }
    *score = s;
    *g = d;
}

static __device__ __forceinline__ const float *row_of(const void *x, int row, int n_heads, int head,
                                                      int dim)
{
    return (const float *)x + ((int64_t)row * n_heads + head) * dim;
}

/* A row's sum of weights, as a log, and da . a. */
static __device__ void row_sums(const grad_attn_kernel_args &a, int head, int kv_head, int row,
                                float *lse, float *dot)
{
    int lane = threadIdx.x % WARP_LANES, lo = row - a.window + 1 > 0 ? row - a.window + 1 : 0;
    float m = -INFINITY, d = 0, weighted = 0;
    pair_rows p = {row_of(a.q, row, a.n_heads, head, a.head_dim),
                   row_of(a.da, row, a.n_heads, head, a.head_dim), NULL, NULL};

    for (int key0 = lo; key0 <= row; key0 += WARP_LANES) {
        int key = key0 + lane;
        float s = -INFINITY, g = 0, top, w;

        if (key <= row) {
            p.k = row_of(a.k, key, a.n_kv_heads, kv_head, a.head_dim);
            p.v = row_of(a.v, key, a.n_kv_heads, kv_head, a.head_dim);
            pair_dots(p, a.head_dim, &s, &g);
            s *= a.scale;
        }
        top = fmaxf(m, warp_max(s));
        w = expf(s - top);
        d = d * expf(m - top) + warp_sum(w);
        weighted = weighted * expf(m - top) + warp_sum(w * g);
        m = top;
    }
    *lse = m + logf(d);
    *dot = weighted / d;
}

/* CTA -> (query head, 64 rows); warp -> rows in turn */
static __global__ void __launch_bounds__(N_THREADS)
    grad_attn_rows_f32(const __grid_constant__ grad_attn_kernel_args a)
{
    extern __shared__ float dq[]; /* [64, head_dim] */
    __shared__ float parts[N_WARPS], lse[TILE], dot[TILE];
    int head = blockIdx.x, kv_head = head / (a.n_heads / a.n_kv_heads), i = blockIdx.y;
    int warp = threadIdx.x / WARP_LANES, lane = threadIdx.x % WARP_LANES;
    int last = (i + 1) * TILE < a.n_rows ? (i + 1) * TILE : a.n_rows;
    int lo = i * TILE - a.window + 1 > 0 ? i * TILE - a.window + 1 : 0;

    for (int row = i * TILE + warp; row < last; row += N_WARPS) {
        row_sums(a, head, kv_head, row, &lse[row % TILE], &dot[row % TILE]);
        if (lane == 0) {
            a.lse[(int64_t)head * a.n_pad + row] = lse[row % TILE];
            a.dot[(int64_t)head * a.n_pad + row] = dot[row % TILE];
        }
        for (int d = lane; d < a.head_dim; d += WARP_LANES)
            dq[row % TILE * a.head_dim + d] = 0;
    }
    __syncwarp(); /* every lane's dims are zero, and the warp's rows have their sums */
    for (int j = lo / TILE; j <= i; j++) {
        float sum = 0;

        for (int row = i * TILE + warp; row < last; row += N_WARPS) {
            int first = row - a.window + 1 > 0 ? row - a.window + 1 : 0;
            float of_row = 0;
            pair_rows p = {row_of(a.q, row, a.n_heads, head, a.head_dim),
                           row_of(a.da, row, a.n_heads, head, a.head_dim), NULL, NULL};

            for (int key0 = j * TILE; key0 < (j + 1) * TILE; key0 += WARP_LANES) {
                int key = key0 + lane;
                float s = 0, g = 0, w, e, change = 0;

                if (key >= first && key <= row) {
                    p.k = row_of(a.k, key, a.n_kv_heads, kv_head, a.head_dim);
                    p.v = row_of(a.v, key, a.n_kv_heads, kv_head, a.head_dim);
                    pair_dots(p, a.head_dim, &s, &g);
                    w = expf(s * a.scale - lse[row % TILE]);
                    change = w * (g - dot[row % TILE]);
                    /* Alone: nothing is left to take over the weight. */
                    e = first == row ? w * g : -change / fmaxf(1.0f - w, GRAD_MIN_REST);
                    of_row += a.sum == GRAD_SUM_ABS ? fabsf(e) : e;
                    change *= a.scale;
                }
                for (int k = 0; k < WARP_LANES; k++) {
                    float c = __shfl_sync(0xffffffffu, change, k);

                    if (c == 0) /* also keys that are not there */
                        continue;
                    for (int d = lane; d < a.head_dim; d += WARP_LANES)
                        dq[row % TILE * a.head_dim + d] +=
                            c * row_of(a.k, key0 + k, a.n_kv_heads, kv_head, a.head_dim)[d];
                }
            }
            of_row = warp_sum(of_row);
            sum += a.sum == GRAD_SUM_SIGNED ? of_row : fabsf(of_row);
        }
        __syncthreads(); /* the parts of the tile before have been read */
        if (lane == 0)
            parts[warp] = sum;
        __syncthreads(); /* all warps' parts are there */
        if (threadIdx.x == 0)
            a.cells[((int64_t)head * a.n_blocks + i) * a.n_blocks + j] =
                parts[0] + parts[1] + parts[2] + parts[3];
    }
    for (int row = i * TILE + warp; row < last; row += N_WARPS) {
        float *to = (float *)a.dq + ((int64_t)row * a.n_heads + head) * a.head_dim;

        for (int d = lane; d < a.head_dim; d += WARP_LANES)
            to[d] = dq[row % TILE * a.head_dim + d];
    }
}

/* CTA -> (KV head, 64 keys); warp -> keys in turn, over the rows of all query heads of the group */
static __global__ void __launch_bounds__(N_THREADS)
    grad_attn_keys_f32(const __grid_constant__ grad_attn_kernel_args a)
{
    int kv_head = blockIdx.x, group = a.n_heads / a.n_kv_heads;
    int warp = threadIdx.x / WARP_LANES, lane = threadIdx.x % WARP_LANES;

    for (int key = blockIdx.y * TILE + warp; key < (int)(blockIdx.y + 1) * TILE && key < a.n_rows;
         key += N_WARPS) {
        int64_t behind = (int64_t)key + a.window;
        int end = behind < a.n_rows ? (int)behind : a.n_rows;
        float dk[LANE_DIMS] = {}, dv[LANE_DIMS] = {};
        pair_rows p = {NULL, NULL, row_of(a.k, key, a.n_kv_heads, kv_head, a.head_dim),
                       row_of(a.v, key, a.n_kv_heads, kv_head, a.head_dim)};
        int64_t to = ((int64_t)key * a.n_kv_heads + kv_head) * a.head_dim;

        for (int head = kv_head * group; head < (kv_head + 1) * group; head++) {
            for (int row0 = key; row0 < end; row0 += WARP_LANES) {
                int row = row0 + lane, n = end - row0 < WARP_LANES ? end - row0 : WARP_LANES;
                float s = 0, g = 0, w = 0, change = 0;

                if (row < end) {
                    p.q = row_of(a.q, row, a.n_heads, head, a.head_dim);
                    p.da = row_of(a.da, row, a.n_heads, head, a.head_dim);
                    pair_dots(p, a.head_dim, &s, &g);
                    w = expf(s * a.scale - a.lse[(int64_t)head * a.n_pad + row]);
                    change = w * (g - a.dot[(int64_t)head * a.n_pad + row]) * a.scale;
                }
                for (int k = 0; k < n; k++) {
                    float wk = __shfl_sync(0xffffffffu, w, k),
                          ck = __shfl_sync(0xffffffffu, change, k);
                    const float *q = row_of(a.q, row0 + k, a.n_heads, head, a.head_dim);
                    const float *da = row_of(a.da, row0 + k, a.n_heads, head, a.head_dim);

                    for (int i = 0; i < LANE_DIMS; i++) {
                        int d = i * WARP_LANES + lane;

                        if (d < a.head_dim) {
                            dk[i] += ck * q[d];
                            dv[i] += wk * da[d];
                        }
                    }
                }
            }
        }
        for (int i = 0; i < LANE_DIMS; i++) {
            if (i * WARP_LANES + lane < a.head_dim) {
                ((float *)a.dk)[to + i * WARP_LANES + lane] = dk[i];
                ((float *)a.dv)[to + i * WARP_LANES + lane] = dv[i];
            }
        }
    }
}

int grad_attn_f32_launch(struct cuda_backend *cb, const struct grad_attn_kernel_args *k,
                         struct err *err)
{
    int smem = TILE * k->head_dim * (int)sizeof(float), rc;

    if (k->head_dim > MAX_DIM)
        return err_set(err, ERR_UNSUPPORTED,
                       "the way back through attention: head_dim %d, at most %d is built",
                       k->head_dim, MAX_DIM);
    CUDA_TRY(err, cudaFuncSetAttribute(grad_attn_rows_f32,
                                       cudaFuncAttributeMaxDynamicSharedMemorySize, smem));
    grad_attn_rows_f32<<<dim3(k->n_heads, k->n_blocks), N_THREADS, smem, cb->stream>>>(*k);
    rc = cuda_launched(cb, "grad_attn_rows_f32", err);
    if (rc < 0)
        return rc;
    grad_attn_keys_f32<<<dim3(k->n_kv_heads, k->n_blocks), N_THREADS, 0, cb->stream>>>(*k);
    return cuda_launched(cb, "grad_attn_keys_f32", err);
}
