/*
 * cpu_isa - which instruction sets the CPU backend may use, found once at open.
 */
#ifndef CPU_ISA_H
#define CPU_ISA_H

struct err;

/* Each one includes those before it. */
enum cpu_isa {
    CPU_ISA_SCALAR = 0,
    CPU_ISA_AVX2,   /* with FMA and F16C */
    CPU_ISA_AVX512, /* F, BW, DQ, VL */
    CPU_ISA_AVX512BF16,
    CPU_ISA_AMX /* tiles of bf16 */
};

/* "scalar", "avx2", "avx512", "avx512bf16", "amx": what SPAND_ISA holds. */
const char *cpu_isa_name(enum cpu_isa isa);

/* What processor and operating system offer; asks the kernel for the AMX tiles where they exist. */
enum cpu_isa cpu_isa_detect(void);

/* cpu_isa_detect(), capped by the environment's SPAND_ISA. ERR_INVALID for an unknown name. */
int cpu_isa_choose(enum cpu_isa *out, struct err *err);

#endif
