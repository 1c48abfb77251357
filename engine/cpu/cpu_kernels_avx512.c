/*
 * cpu_kernels_avx512 - the inner loops for AVX512.
 */
#if defined(__x86_64__)
#define KERNELS_NAME  cpu_kernels_avx512
#define KERNELS_LABEL "avx512"
#include "engine/cpu/cpu_kernels_impl.h"
#endif
