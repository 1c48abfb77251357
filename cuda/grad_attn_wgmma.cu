/*
 * grad_attn_wgmma.cu - grad_attn.cu for head_dim 64 and 128 on sm_90's warpgroup products.
 *
 * Work     as grad_attn.cu: a CTA is one warpgroup, two are on an SM, so that the products of one
 *          run during the elementwise work of the other
 * Tile     64 x 64; a tile of 64 rows lies in boxes of 64 elements in the 128-byte swizzle, written
 *          by cp.async: as [rows, depth] for scores, read the other way for gradients
 * Overlap  da . v is multiplied during the weights' exponentials, dv during what dk needs
 * Measured see SPEED.md
 * Limits   head_dim 64, 128; bf16
 * Checked  against cpu in tests/cuda/test_cuda_grad.c, its products emulated where there is no GPU
 */
#include "cuda/grad_attn_wgmma.h"

#include "cuda/grad_attn.cuh"
#include "cuda/ptx_hopper_rs.cuh"

#define BOX_BYTES (TILE * 128) /* 64 rows of 64 elements */
#define ALIGN     1024         /* of boxes */

/* Tiles by wgmma: boxes of 64 columns, one behind the other. */
template <typename T, int D> struct tiles_wgmma {
    typedef T elem;
    static constexpr int DIM = D, TILE_BYTES = D / 64 * BOX_BYTES;

    static __device__ __forceinline__ void load(unsigned char *dst, const void *src, int tile,
                                                int n_rows, int n_heads, int head)
    {
        pieces_load<T, D>(src, tile, n_rows, n_heads, head, [&](int r, int piece) {
            return smem_addr(dst + piece / 8 * BOX_BYTES + r * 128 + (piece % 8 ^ r % 8) * 16);
        });
    }

    /* wgmma reads shared memory as the copy engine does, not as cp.async writes it. */
    static __device__ __forceinline__ void landed()
    {
        async_proxy_fence();
    }

    template <int N, int COUNT> static __device__ __forceinline__ void ready(float (&x)[COUNT])
    {
        wgmma_wait<N>();
        wgmma_pin(x);
    }

    static __device__ __forceinline__ void
    queue_scores(float (&s)[N_SCORES], const unsigned char *rows, const unsigned char *cols)
    {
        uint64_t r = wgmma_desc(smem_addr(rows)), c = wgmma_desc(smem_addr(cols));

        wgmma_fence();
#pragma unroll
        for (int k = 0; k < D / WGMMA_K; k++) {
            int at = (k / 4 * BOX_BYTES + k % 4 * 32) / 16;

            wgmma_ss<T, TILE>::run(s, r + at, c + at, k > 0);
        }
        wgmma_commit();
    }

    /* packed must stay as it is until out is ready. */
    static __device__ __forceinline__ void queue_spread(float (&out)[D / 2],
                                                        const uint32_t (&packed)[N_SCORES / 2],
                                                        const unsigned char *rows)
    {
        uint64_t r = wgmma_desc_t(smem_addr(rows), BOX_BYTES);

        wgmma_fence();
#pragma unroll
        for (int k = 0; k < TILE / WGMMA_K; k++)
            wgmma_rs_t<T, D>::run(out, packed + 4 * k, r + k * WGMMA_K * 128 / 16);
        wgmma_commit();
    }
};

static __device__ __forceinline__ unsigned char *aligned(unsigned char *smem)
{
    return smem + (ALIGN - smem_addr(smem) % ALIGN) % ALIGN;
}

template <typename T, int D>
static __global__ void __launch_bounds__(N_THREADS, 2)
    grad_attn_rows_wgmma(const __grid_constant__ grad_attn_kernel_args a)
{
    extern __shared__ __align__(16) unsigned char smem[];
    __shared__ float parts[2][N_WARPS]; /* influence of a tile by warp, of two tiles in turn */

    attn_rows<tiles_wgmma<T, D>>(a, aligned(smem), parts);
}

template <typename T, int D>
static __global__ void __launch_bounds__(N_THREADS, 2)
    grad_attn_keys_wgmma(const __grid_constant__ grad_attn_kernel_args a)
{
    extern __shared__ __align__(16) unsigned char smem[];

    attn_keys<tiles_wgmma<T, D>>(a, aligned(smem));
}

template <typename T, int D>
static int rows_start(struct cuda_backend *cb, const struct grad_attn_kernel_args *k,
                      struct err *err)
{
    int smem = 6 * tiles_wgmma<T, D>::TILE_BYTES + ALIGN;

    CUDA_TRY(err, cudaFuncSetAttribute(grad_attn_rows_wgmma<T, D>,
                                       cudaFuncAttributeMaxDynamicSharedMemorySize, smem));
    grad_attn_rows_wgmma<T, D><<<dim3(k->n_heads, k->n_blocks), N_THREADS, smem, cb->stream>>>(*k);
    return cuda_launched(cb, "grad_attn_rows_wgmma", err);
}

template <typename T, int D>
static int keys_start(struct cuda_backend *cb, const struct grad_attn_kernel_args *k,
                      struct err *err)
{
    int smem = 6 * tiles_wgmma<T, D>::TILE_BYTES + 4 * TILE * (int)sizeof(float) + ALIGN;

    CUDA_TRY(err, cudaFuncSetAttribute(grad_attn_keys_wgmma<T, D>,
                                       cudaFuncAttributeMaxDynamicSharedMemorySize, smem));
    grad_attn_keys_wgmma<T, D>
        <<<dim3(k->n_kv_heads, k->n_blocks), N_THREADS, smem, cb->stream>>>(*k);
    return cuda_launched(cb, "grad_attn_keys_wgmma", err);
}

int grad_attn_rows_wgmma_launch(struct cuda_backend *cb, const struct grad_attn_kernel_args *k,
                                struct err *err)
{
    return k->head_dim == 64 ? rows_start<__nv_bfloat16, 64>(cb, k, err)
                             : rows_start<__nv_bfloat16, 128>(cb, k, err);
}

int grad_attn_keys_wgmma_launch(struct cuda_backend *cb, const struct grad_attn_kernel_args *k,
                                struct err *err)
{
    return k->head_dim == 64 ? keys_start<__nv_bfloat16, 64>(cb, k, err)
                             : keys_start<__nv_bfloat16, 128>(cb, k, err);
}
