/*
 * launch - starts kernels that may overlap the end of the one before them.
 *
 * A kernel started here may run while its predecessor on the stream still does (programmatic
 * dependent launch, sm_90). The rules that keep this safe:
 *
 *   - it calls grid_wait() in every thread that touches memory which an earlier kernel of the chain
 *     writes or reads, before it does. Before that it may read weights, and what the kernel two
 *     places ahead of it, or an earlier one, has written;
 *   - it calls grid_launch_next() only behind grid_wait(), and as late as its loads are queued, so
 *     that its successor's early loads fill the gap at its end and no other.
 *
 * Apart from ptx.cuh so that the emulator can replace it.
 */
#ifndef LAUNCH_CUH
#define LAUNCH_CUH

#include "cuda/cuda_backend.h"

template <typename... A>
static inline int launch_kernel(struct cuda_backend *cb, bool overlapped, const char *name,
                                void (*kernel)(A...), dim3 grid, dim3 block, size_t smem,
                                struct err *err, const A &...args)
{
    cudaLaunchAttribute overlap = {};
    cudaLaunchConfig_t config = {};

    overlap.id = cudaLaunchAttributeProgrammaticStreamSerialization;
    overlap.val.programmaticStreamSerializationAllowed = 1;
    config.gridDim = grid;
    config.blockDim = block;
    config.dynamicSmemBytes = smem;
    config.stream = cb->stream;
    config.attrs = &overlap;
    config.numAttrs = overlapped && cb->arch >= 90;
    cudaLaunchKernelEx(&config, kernel, args...); /* reported by cuda_launched() */
    return cuda_launched(cb, name, err);
}

/* Overlapped, in clusters of n CTAs. */
template <typename... A>
static inline int launch_clusters(struct cuda_backend *cb, const char *name, void (*kernel)(A...),
                                  int n, dim3 grid, dim3 block, size_t smem, struct err *err,
                                  const A &...args)
{
    cudaLaunchAttribute attrs[2] = {};
    cudaLaunchConfig_t config = {};

    attrs[0].id = cudaLaunchAttributeProgrammaticStreamSerialization;
    attrs[0].val.programmaticStreamSerializationAllowed = 1;
    attrs[1].id = cudaLaunchAttributeClusterDimension;
    attrs[1].val.clusterDim.x = (unsigned)n;
    attrs[1].val.clusterDim.y = 1;
    attrs[1].val.clusterDim.z = 1;
    config.gridDim = grid;
    config.blockDim = block;
    config.dynamicSmemBytes = smem;
    config.stream = cb->stream;
    config.attrs = attrs;
    config.numAttrs = n > 1 ? 2 : 1;
    cudaLaunchKernelEx(&config, kernel, args...); /* reported by cuda_launched() */
    return cuda_launched(cb, name, err);
}

template <typename... A>
static inline int launch_overlapped(struct cuda_backend *cb, const char *name, void (*kernel)(A...),
                                    dim3 grid, dim3 block, size_t smem, struct err *err,
                                    const A &...args)
{
    return launch_kernel(cb, true, name, kernel, grid, block, smem, err, args...);
}

#endif
