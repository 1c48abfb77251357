/*
 * cpu_kernels - from an instruction set to its table.
 */
#include "engine/cpu/cpu_kernels.h"

const struct cpu_kernels *cpu_kernels_for(enum cpu_isa isa)
{
#if defined(__x86_64__)
    if (isa >= CPU_ISA_AVX512)
        return &cpu_kernels_avx512;
    if (isa >= CPU_ISA_AVX2)
        return &cpu_kernels_avx2;
#endif
    (void)isa;
    return &cpu_kernels_plain;
}

const struct cpu_gemm *cpu_gemm_bf16_for(enum cpu_isa isa)
{
#if defined(__x86_64__)
    if (isa >= CPU_ISA_AMX)
        return &cpu_gemm_amx;
    if (isa >= CPU_ISA_AVX512BF16)
        return &cpu_gemm_avx512bf16;
#endif
    (void)isa;
    return NULL;
}
