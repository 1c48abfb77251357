/*
 * grad_kernels_plain - the inner loops of the backward ops for any processor.
 */
#define GRAD_KERNELS_NAME grad_kernels_plain
#include "engine/cpu/grad/grad_kernels_impl.h"

const struct grad_kernels *grad_kernels_for(enum cpu_isa isa)
{
#if defined(__x86_64__)
    if (isa >= CPU_ISA_AVX512)
        return &grad_kernels_avx512;
    if (isa >= CPU_ISA_AVX2)
        return &grad_kernels_avx2;
#endif
    (void)isa;
    return &grad_kernels_plain;
}
