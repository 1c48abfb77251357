/*
 * launch - cuda/launch.cuh for the emulator, where kernels run one after the other. See emu.h.
 */
#ifndef LAUNCH_CUH
#define LAUNCH_CUH

#include "cuda/cuda_backend.h"

template <typename... A>
static inline int launch_kernel(struct cuda_backend *cb, bool, const char *name,
                                void (*kernel)(A...), dim3 grid, dim3 block, size_t smem,
                                struct err *err, const A &...args)
{
    emu_launch(name, emu_grid(grid, block, smem), [=]() { kernel(args...); });
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
