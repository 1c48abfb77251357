/*
 * grad_kernels_avx512 - the inner loops of the backward ops for AVX-512.
 */
#if defined(__x86_64__)
#define GRAD_KERNELS_NAME grad_kernels_avx512
#include "engine/cpu/grad/grad_kernels_impl.h"
#endif
