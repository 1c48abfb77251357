/*
 * code_arch.cu - which architecture the kernels that will run were written for.
 *
 * A newer GPU runs sm_80's code from its PTX, as any does under CUDA_FORCE_PTX_JIT=1. That code has
 * no bulk copies and does not wait for the kernels before it, so it must be launched as on sm_80.
 */
#include "cuda/cuda_backend.h"

static __global__ void probe_kernel()
{
}

int cuda_code_arch(int *arch, struct err *err)
{
    cudaFuncAttributes attr;

    CUDA_TRY(err, cudaFuncGetAttributes(&attr, probe_kernel));
    *arch = attr.ptxVersion;
    return 0;
}
