/*
 * cpu_kernels_avx2 - the inner loops for AVX2.
 */
#if defined(__x86_64__)
#define KERNELS_NAME  cpu_kernels_avx2
#define KERNELS_LABEL "avx2"
#include "engine/cpu/cpu_kernels_impl.h"
#endif
