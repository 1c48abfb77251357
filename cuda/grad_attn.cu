/*
 * grad_attn.cu - the way back through attention, and the influence of keys on the way.
 *
 *   q, da, dq      bf16 [n_rows, n_heads, head_dim]
 *   k, v, dk, dv   bf16 [n_rows, n_kv_heads, head_dim]
 *   cells          f32  [n_heads, n_blocks, n_blocks] influence by row block and key block
 *
 * Work     grad_attn_rows: one CTA per (64 rows, query head) goes over its keys twice: for the sum
 *          of each row's weights and da . a, then for influence and dq. grad_attn_keys: one CTA per
 *          (64 keys, KV head) goes over the rows that see them, of all query heads of the group,
 *          for dk and dv. Neither adds to what another CTA adds to: sums have one order.
 * Tile     64 x 64, the blocks of influence; 4 warps of 16 rows (keys). da . a is the sum of the
 *          weights times da . v, in f32 as they are used: a that was rounded is not.
 * Overlap  two stages of the tiles that are gone over
 * Bound    tensor cores: (4 + 6 + 8) head_dim FLOP a visible pair, where 10 would do if rows' sums
 *          were known and dq was added to from many CTAs
 * Measured see SPEED.md
 * Limits   head_dim 32, 64, 80, 96, 128; on sm_90 grad_attn_wgmma.cu has 64 and 128
 * Checked  against cpu in tests/cuda/test_cuda_grad.c
 */
#include "cuda/grad_attn.cuh"
#include "cuda/grad_attn_wgmma.h"

/* Tiles by mma.sync: rows of DIM and 8 elements, an odd number of 16-byte pieces. */
template <typename T, int D> struct tiles_mma {
    typedef T elem;
    static constexpr int DIM = D, STRIDE = D + 8, TILE_BYTES = TILE * STRIDE * (int)sizeof(T);

    static __device__ __forceinline__ void load(unsigned char *dst, const void *src, int tile,
                                                int n_rows, int n_heads, int head)
    {
        pieces_load<T, D>(src, tile, n_rows, n_heads, head, [&](int r, int piece) {
            return smem_addr((T *)dst + r * STRIDE + piece * 8);
        });
    }

    static __device__ __forceinline__ void landed()
    {
    }

    template <int N, int COUNT> static __device__ __forceinline__ void ready(float (&)[COUNT])
    {
    }

    static __device__ __forceinline__ void
    queue_scores(float (&s)[N_SCORES], const unsigned char *rows, const unsigned char *cols)
    {
        int warp = threadIdx.x / WARP_LANES, lane = threadIdx.x % WARP_LANES;
        int matrix = lane / 8, in_matrix = lane % 8; /* the row this lane gives to ldmatrix */
        const T *r =
            (const T *)rows + (warp * 16 + in_matrix + matrix % 2 * 8) * STRIDE + matrix / 2 * 8;
        const T *c = (const T *)cols + (in_matrix + matrix / 2 * 8) * STRIDE + matrix % 2 * 8;

#pragma unroll
        for (int n = 0; n < N_SCORES; n++)
            s[n] = 0;
#pragma unroll
        for (int k = 0; k < D / 16; k++) {
            uint32_t rf[4];

            load_matrix4(rf, smem_addr(r + k * 16));
#pragma unroll
            for (int n = 0; n < TILE / 16; n++) {
                uint32_t cf[4];

                load_matrix4(cf, smem_addr(c + n * 16 * STRIDE + k * 16));
                mma16816<T>(s + 8 * n, rf, cf[0], cf[1]);
                mma16816<T>(s + 8 * n + 4, rf, cf[2], cf[3]);
            }
        }
    }

    static __device__ __forceinline__ void queue_spread(float (&out)[D / 2],
                                                        const uint32_t (&packed)[N_SCORES / 2],
                                                        const unsigned char *rows)
    {
        int lane = threadIdx.x % WARP_LANES, matrix = lane / 8, in_matrix = lane % 8;
        const T *r = (const T *)rows + (in_matrix + matrix % 2 * 8) * STRIDE + matrix / 2 * 8;

#pragma unroll
        for (int k = 0; k < TILE / 16; k++) {
#pragma unroll
            for (int n = 0; n < D / 16; n++) {
                uint32_t rf[4];

                load_matrix4_trans(rf, smem_addr(r + k * 16 * STRIDE + n * 16));
                mma16816<T>(out + 8 * n, packed + 4 * k, rf[0], rf[1]);
                mma16816<T>(out + 8 * n + 4, packed + 4 * k, rf[2], rf[3]);
            }
        }
    }
};

template <typename T, int D>
static __global__ void __launch_bounds__(N_THREADS, 2)
    grad_attn_rows(const __grid_constant__ grad_attn_kernel_args a)
{
    extern __shared__ __align__(16) unsigned char smem[];
    __shared__ float parts[2][N_WARPS]; /* influence of a tile by warp, of two tiles in turn */

    attn_rows<tiles_mma<T, D>>(a, smem, parts);
}

template <typename T, int D>
static __global__ void __launch_bounds__(N_THREADS, 2)
    grad_attn_keys(const __grid_constant__ grad_attn_kernel_args a)
{
    extern __shared__ __align__(16) unsigned char smem[];

    attn_keys<tiles_mma<T, D>>(a, smem);
}

#define CELL_THREADS 128

/* thread -> one sum of a head: the distances of band, then the row blocks of sink */
static __global__ void __launch_bounds__(CELL_THREADS)
    grad_cells(const __grid_constant__ grad_attn_kernel_args a)
{
    int at = blockIdx.y * CELL_THREADS + threadIdx.x, n = a.n_blocks;
    const float *cells = a.cells + (int64_t)blockIdx.x * n * n;
    double sum = 0;

    if (at >= 2 * n)
        return;
    if (at >= n) {
        sum = first_key_tile(a, at - n) == 0 ? (double)cells[(int64_t)(at - n) * n] : 0.0;
    } else {
        for (int i = at + 1; i < n; i++) { /* key block 0 is the sink's */
            if (first_key_tile(a, i) <= i - at)
                sum += (double)cells[(int64_t)i * n + i - at];
        }
    }
    a.sums[(int64_t)blockIdx.x * 2 * n + at] = sum;
}

template <typename T, int D>
static int rows_start(struct cuda_backend *cb, const struct grad_attn_kernel_args *k,
                      struct err *err)
{
    int smem = 6 * tiles_mma<T, D>::TILE_BYTES;

    CUDA_TRY(err, cudaFuncSetAttribute(grad_attn_rows<T, D>,
                                       cudaFuncAttributeMaxDynamicSharedMemorySize, smem));
    grad_attn_rows<T, D><<<dim3(k->n_heads, k->n_blocks), N_THREADS, smem, cb->stream>>>(*k);
    return cuda_launched(cb, "grad_attn_rows", err);
}

template <typename T, int D>
static int keys_start(struct cuda_backend *cb, const struct grad_attn_kernel_args *k,
                      struct err *err)
{
    int smem = 6 * tiles_mma<T, D>::TILE_BYTES + 4 * TILE * (int)sizeof(float);

    CUDA_TRY(err, cudaFuncSetAttribute(grad_attn_keys<T, D>,
                                       cudaFuncAttributeMaxDynamicSharedMemorySize, smem));
    grad_attn_keys<T, D><<<dim3(k->n_kv_heads, k->n_blocks), N_THREADS, smem, cb->stream>>>(*k);
    return cuda_launched(cb, "grad_attn_keys", err);
}

static int bad_dim(int head_dim, struct err *err)
{
    return err_set(err, ERR_UNSUPPORTED,
                   "the way back through attention: head_dim %d, built are 32, 64, 80, 96 and 128",
                   head_dim);
}

int grad_attn_rows_launch(struct cuda_backend *cb, const struct grad_attn_kernel_args *k,
                          struct err *err)
{
    if (grad_attn_wgmma_takes(cb, k))
        return grad_attn_rows_wgmma_launch(cb, k, err);
    switch (k->head_dim) {
    case 32:
        return rows_start<__nv_bfloat16, 32>(cb, k, err);
    case 64:
        return rows_start<__nv_bfloat16, 64>(cb, k, err);
    case 80:
        return rows_start<__nv_bfloat16, 80>(cb, k, err);
    case 96:
        return rows_start<__nv_bfloat16, 96>(cb, k, err);
    case 128:
        return rows_start<__nv_bfloat16, 128>(cb, k, err);
    }
    return bad_dim(k->head_dim, err);
}

int grad_attn_keys_launch(struct cuda_backend *cb, const struct grad_attn_kernel_args *k,
                          struct err *err)
{
    if (grad_attn_wgmma_takes(cb, k))
        return grad_attn_keys_wgmma_launch(cb, k, err);
    switch (k->head_dim) {
    case 32:
        return keys_start<__nv_bfloat16, 32>(cb, k, err);
    case 64:
        return keys_start<__nv_bfloat16, 64>(cb, k, err);
    case 80:
        return keys_start<__nv_bfloat16, 80>(cb, k, err);
    case 96:
        return keys_start<__nv_bfloat16, 96>(cb, k, err);
    case 128:
        return keys_start<__nv_bfloat16, 128>(cb, k, err);
    }
    return bad_dim(k->head_dim, err);
}

int grad_cells_launch(struct cuda_backend *cb, const struct grad_attn_kernel_args *k,
                      struct err *err)
{
    dim3 grid(k->n_heads, (2 * k->n_blocks + CELL_THREADS - 1) / CELL_THREADS);

    grad_cells<<<grid, CELL_THREADS, 0, cb->stream>>>(*k);
    return cuda_launched(cb, "grad_cells", err);
}
