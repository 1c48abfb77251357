/*
 * ptx_hopper - instructions that only sm_90a has: wgmma on shared memory, tensor-map copies.
 *
 * Included by files named *_wgmma.cu alone. Operands of wgmma lie in shared memory in the 128-byte
 * swizzle that tensor-map copies write: rows of 64 16-bit elements (128 bytes), eight rows to a
 * kilobyte, 16-byte pieces of row r exchanged by r % 8.
 */
#ifndef PTX_HOPPER_CUH
#define PTX_HOPPER_CUH

#include "cuda/ptx.cuh"

#include <cuda.h>

#define WGMMA_K 16 /* depth of one instruction in 16-bit elements */

/* Descriptor of a tile of rows of 64 elements, 128-byte swizzle, 1,024-byte aligned, K-major. */
__device__ __forceinline__ uint64_t wgmma_desc(smem_ref addr)
{
    constexpr uint64_t SWIZZLE_128 = 1ull << 62, EIGHT_ROWS = 1024 >> 4;

    return SWIZZLE_128 | EIGHT_ROWS << 32 | 1ull << 16 | (addr & 0x3ffff) >> 4;
}

/* Orders register writes before the first wgmma that reads or adds to them. */
__device__ __forceinline__ void wgmma_fence()
{
    asm volatile("wgmma.fence.sync.aligned;" ::: "memory");
}

__device__ __forceinline__ void wgmma_commit()
{
    asm volatile("wgmma.commit_group.sync.aligned;" ::: "memory");
}

/* Waits until at most N committed groups are unfinished. */
template <int N> __device__ __forceinline__ void wgmma_wait()
{
    asm volatile("wgmma.wait_group.sync.aligned %0;" ::"n"(N) : "memory");
}

/*
 * d[64, N] (+)= a[64, 16] b[N, 16]^T, both from shared memory. Warp w of the group, lane 4 g + t:
 * d[4 j + 2 i + e] is row 16 w + g + 8 i, column 8 j + 2 t + e. !accumulate starts from zero.
 */
template <typename T, int N> struct wgmma_ss;

template <> struct wgmma_ss<__nv_bfloat16, 8> {
    static __device__ __forceinline__ void run(float d[4], uint64_t a, uint64_t b, int accumulate)
    {
        asm volatile("{ .reg .pred p; setp.ne.b32 p, %6, 0;"
                     " wgmma.mma_async.sync.aligned.m64n8k16.f32.bf16.bf16 {"
                     "%0, %1, %2, %3}"
                     ", %4, %5, p, 1, 1, 0, 0; }"
                     : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
                     : "l"(a), "l"(b), "r"(accumulate));
    }
};

template <> struct wgmma_ss<__nv_bfloat16, 16> {
    static __device__ __forceinline__ void run(float d[8], uint64_t a, uint64_t b, int accumulate)
    {
        asm volatile("{ .reg .pred p; setp.ne.b32 p, %10, 0;"
                     " wgmma.mma_async.sync.aligned.m64n16k16.f32.bf16.bf16 {"
                     "%0, %1, %2, %3, %4, %5, %6, %7}"
                     ", %8, %9, p, 1, 1, 0, 0; }"
                     : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3]), "+f"(d[4]), "+f"(d[5]),
                       "+f"(d[6]), "+f"(d[7])
                     : "l"(a), "l"(b), "r"(accumulate));
    }
};

template <> struct wgmma_ss<__nv_bfloat16, 32> {
    static __device__ __forceinline__ void run(float d[16], uint64_t a, uint64_t b, int accumulate)
    {
        asm volatile("{ .reg .pred p; setp.ne.b32 p, %18, 0;"
                     " wgmma.mma_async.sync.aligned.m64n32k16.f32.bf16.bf16 {"
                     "%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11, %12, %13, %14, %15}"
                     ", %16, %17, p, 1, 1, 0, 0; }"
                     : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3]), "+f"(d[4]), "+f"(d[5]),
                       "+f"(d[6]), "+f"(d[7]), "+f"(d[8]), "+f"(d[9]), "+f"(d[10]), "+f"(d[11]),
                       "+f"(d[12]), "+f"(d[13]), "+f"(d[14]), "+f"(d[15])
                     : "l"(a), "l"(b), "r"(accumulate));
    }
};

template <> struct wgmma_ss<__nv_bfloat16, 64> {
    static __device__ __forceinline__ void run(float d[32], uint64_t a, uint64_t b, int accumulate)
    {
        asm volatile(
            "{ .reg .pred p; setp.ne.b32 p, %34, 0;"
            " wgmma.mma_async.sync.aligned.m64n64k16.f32.bf16.bf16 {"
            "%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11, %12, %13, %14, %15,"
            "%16, %17, %18, %19, %20, %21, %22, %23, %24, %25, %26, %27, %28, %29, %30, %31}"
            ", %32, %33, p, 1, 1, 0, 0; }"
            : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3]), "+f"(d[4]), "+f"(d[5]), "+f"(d[6]),
              "+f"(d[7]), "+f"(d[8]), "+f"(d[9]), "+f"(d[10]), "+f"(d[11]), "+f"(d[12]),
              "+f"(d[13]), "+f"(d[14]), "+f"(d[15]), "+f"(d[16]), "+f"(d[17]), "+f"(d[18]),
              "+f"(d[19]), "+f"(d[20]), "+f"(d[21]), "+f"(d[22]), "+f"(d[23]), "+f"(d[24]),
              "+f"(d[25]), "+f"(d[26]), "+f"(d[27]), "+f"(d[28]), "+f"(d[29]), "+f"(d[30]),
              "+f"(d[31])
            : "l"(a), "l"(b), "r"(accumulate));
    }
};

template <> struct wgmma_ss<__nv_bfloat16, 128> {
    static __device__ __forceinline__ void run(float d[64], uint64_t a, uint64_t b, int accumulate)
    {
        asm volatile(
            "{ .reg .pred p; setp.ne.b32 p, %66, 0;"
            " wgmma.mma_async.sync.aligned.m64n128k16.f32.bf16.bf16 {"
            "%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11, %12, %13, %14, %15,"
            "%16, %17, %18, %19, %20, %21, %22, %23, %24, %25, %26, %27, %28, %29, %30, %31,"
            "%32, %33, %34, %35, %36, %37, %38, %39, %40, %41, %42, %43, %44, %45, %46, %47,"
            "%48, %49, %50, %51, %52, %53, %54, %55, %56, %57, %58, %59, %60, %61, %62, %63}"
            ", %64, %65, p, 1, 1, 0, 0; }"
            : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3]), "+f"(d[4]), "+f"(d[5]), "+f"(d[6]),
              "+f"(d[7]), "+f"(d[8]), "+f"(d[9]), "+f"(d[10]), "+f"(d[11]), "+f"(d[12]),
              "+f"(d[13]), "+f"(d[14]), "+f"(d[15]), "+f"(d[16]), "+f"(d[17]), "+f"(d[18]),
              "+f"(d[19]), "+f"(d[20]), "+f"(d[21]), "+f"(d[22]), "+f"(d[23]), "+f"(d[24]),
              "+f"(d[25]), "+f"(d[26]), "+f"(d[27]), "+f"(d[28]), "+f"(d[29]), "+f"(d[30]),
              "+f"(d[31]), "+f"(d[32]), "+f"(d[33]), "+f"(d[34]), "+f"(d[35]), "+f"(d[36]),
              "+f"(d[37]), "+f"(d[38]), "+f"(d[39]), "+f"(d[40]), "+f"(d[41]), "+f"(d[42]),
              "+f"(d[43]), "+f"(d[44]), "+f"(d[45]), "+f"(d[46]), "+f"(d[47]), "+f"(d[48]),
              "+f"(d[49]), "+f"(d[50]), "+f"(d[51]), "+f"(d[52]), "+f"(d[53]), "+f"(d[54]),
              "+f"(d[55]), "+f"(d[56]), "+f"(d[57]), "+f"(d[58]), "+f"(d[59]), "+f"(d[60]),
              "+f"(d[61]), "+f"(d[62]), "+f"(d[63])
            : "l"(a), "l"(b), "r"(accumulate));
    }
};

template <> struct wgmma_ss<__half, 8> {
    static __device__ __forceinline__ void run(float d[4], uint64_t a, uint64_t b, int accumulate)
    {
        asm volatile("{ .reg .pred p; setp.ne.b32 p, %6, 0;"
                     " wgmma.mma_async.sync.aligned.m64n8k16.f32.f16.f16 {"
                     "%0, %1, %2, %3}"
                     ", %4, %5, p, 1, 1, 0, 0; }"
                     : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
                     : "l"(a), "l"(b), "r"(accumulate));
    }
};

template <> struct wgmma_ss<__half, 16> {
    static __device__ __forceinline__ void run(float d[8], uint64_t a, uint64_t b, int accumulate)
    {
        asm volatile("{ .reg .pred p; setp.ne.b32 p, %10, 0;"
                     " wgmma.mma_async.sync.aligned.m64n16k16.f32.f16.f16 {"
                     "%0, %1, %2, %3, %4, %5, %6, %7}"
                     ", %8, %9, p, 1, 1, 0, 0; }"
                     : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3]), "+f"(d[4]), "+f"(d[5]),
                       "+f"(d[6]), "+f"(d[7])
                     : "l"(a), "l"(b), "r"(accumulate));
    }
};

template <> struct wgmma_ss<__half, 32> {
    static __device__ __forceinline__ void run(float d[16], uint64_t a, uint64_t b, int accumulate)
    {
        asm volatile("{ .reg .pred p; setp.ne.b32 p, %18, 0;"
                     " wgmma.mma_async.sync.aligned.m64n32k16.f32.f16.f16 {"
                     "%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11, %12, %13, %14, %15}"
                     ", %16, %17, p, 1, 1, 0, 0; }"
                     : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3]), "+f"(d[4]), "+f"(d[5]),
                       "+f"(d[6]), "+f"(d[7]), "+f"(d[8]), "+f"(d[9]), "+f"(d[10]), "+f"(d[11]),
                       "+f"(d[12]), "+f"(d[13]), "+f"(d[14]), "+f"(d[15])
                     : "l"(a), "l"(b), "r"(accumulate));
    }
};

template <> struct wgmma_ss<__half, 64> {
    static __device__ __forceinline__ void run(float d[32], uint64_t a, uint64_t b, int accumulate)
    {
        asm volatile(
            "{ .reg .pred p; setp.ne.b32 p, %34, 0;"
            " wgmma.mma_async.sync.aligned.m64n64k16.f32.f16.f16 {"
            "%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11, %12, %13, %14, %15,"
            "%16, %17, %18, %19, %20, %21, %22, %23, %24, %25, %26, %27, %28, %29, %30, %31}"
            ", %32, %33, p, 1, 1, 0, 0; }"
            : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3]), "+f"(d[4]), "+f"(d[5]), "+f"(d[6]),
              "+f"(d[7]), "+f"(d[8]), "+f"(d[9]), "+f"(d[10]), "+f"(d[11]), "+f"(d[12]),
              "+f"(d[13]), "+f"(d[14]), "+f"(d[15]), "+f"(d[16]), "+f"(d[17]), "+f"(d[18]),
              "+f"(d[19]), "+f"(d[20]), "+f"(d[21]), "+f"(d[22]), "+f"(d[23]), "+f"(d[24]),
              "+f"(d[25]), "+f"(d[26]), "+f"(d[27]), "+f"(d[28]), "+f"(d[29]), "+f"(d[30]),
              "+f"(d[31])
            : "l"(a), "l"(b), "r"(accumulate));
    }
};

template <> struct wgmma_ss<__half, 128> {
    static __device__ __forceinline__ void run(float d[64], uint64_t a, uint64_t b, int accumulate)
    {
        asm volatile(
            "{ .reg .pred p; setp.ne.b32 p, %66, 0;"
            " wgmma.mma_async.sync.aligned.m64n128k16.f32.f16.f16 {"
            "%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11, %12, %13, %14, %15,"
            "%16, %17, %18, %19, %20, %21, %22, %23, %24, %25, %26, %27, %28, %29, %30, %31,"
            "%32, %33, %34, %35, %36, %37, %38, %39, %40, %41, %42, %43, %44, %45, %46, %47,"
            "%48, %49, %50, %51, %52, %53, %54, %55, %56, %57, %58, %59, %60, %61, %62, %63}"
            ", %64, %65, p, 1, 1, 0, 0; }"
            : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3]), "+f"(d[4]), "+f"(d[5]), "+f"(d[6]),
              "+f"(d[7]), "+f"(d[8]), "+f"(d[9]), "+f"(d[10]), "+f"(d[11]), "+f"(d[12]),
              "+f"(d[13]), "+f"(d[14]), "+f"(d[15]), "+f"(d[16]), "+f"(d[17]), "+f"(d[18]),
              "+f"(d[19]), "+f"(d[20]), "+f"(d[21]), "+f"(d[22]), "+f"(d[23]), "+f"(d[24]),
              "+f"(d[25]), "+f"(d[26]), "+f"(d[27]), "+f"(d[28]), "+f"(d[29]), "+f"(d[30]),
              "+f"(d[31]), "+f"(d[32]), "+f"(d[33]), "+f"(d[34]), "+f"(d[35]), "+f"(d[36]),
              "+f"(d[37]), "+f"(d[38]), "+f"(d[39]), "+f"(d[40]), "+f"(d[41]), "+f"(d[42]),
              "+f"(d[43]), "+f"(d[44]), "+f"(d[45]), "+f"(d[46]), "+f"(d[47]), "+f"(d[48]),
              "+f"(d[49]), "+f"(d[50]), "+f"(d[51]), "+f"(d[52]), "+f"(d[53]), "+f"(d[54]),
              "+f"(d[55]), "+f"(d[56]), "+f"(d[57]), "+f"(d[58]), "+f"(d[59]), "+f"(d[60]),
              "+f"(d[61]), "+f"(d[62]), "+f"(d[63])
            : "l"(a), "l"(b), "r"(accumulate));
    }
};

/* One box of a two-dimensional tensor map, at element (col, row), into shared memory. */
__device__ __forceinline__ void copy_tensor_2d(smem_ref dst, const CUtensorMap *map, int col,
                                               int row, uint64_t *bar, uint64_t policy)
{
    asm volatile("cp.async.bulk.tensor.2d.shared::cluster.global.mbarrier::complete_tx::bytes"
                 ".L2::cache_hint [%0], [%1, {%2, %3}], [%4], %5;" ::"r"(dst),
                 "l"(map), "r"(col), "r"(row), "r"(smem_addr(bar)), "l"(policy)
                 : "memory");
}

/* Writes v where CTA `rank` of the cluster has what this one has at p. */
__device__ __forceinline__ void store_at(const float4 *p, int rank, float4 v)
{
    asm volatile("{ .reg .b32 at; mapa.shared::cluster.u32 at, %0, %1;"
                 " st.shared::cluster.v4.f32 [at], {%2, %3, %4, %5}; }" ::"r"(smem_addr(p)),
                 "r"(rank), "f"(v.x), "f"(v.y), "f"(v.z), "f"(v.w)
                 : "memory");
}

/* All threads of the cluster that have not ended: what they have written is there behind the wait.
 */
__device__ __forceinline__ void cluster_arrive()
{
    asm volatile("barrier.cluster.arrive.release;" ::: "memory");
}

__device__ __forceinline__ void cluster_wait()
{
    asm volatile("barrier.cluster.wait.acquire;" ::: "memory");
}

__device__ __forceinline__ void cluster_sync()
{
    cluster_arrive();
    cluster_wait();
}

/* Fetches the descriptor itself ahead of its first use. */
__device__ __forceinline__ void tensor_map_prefetch(const CUtensorMap *map)
{
    asm volatile("prefetch.tensormap [%0];" ::"l"(map) : "memory");
}

#endif
