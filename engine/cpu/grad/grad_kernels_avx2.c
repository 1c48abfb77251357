/*
 * grad_kernels_avx2 - the inner loops of the backward ops for AVX2.
 */
#if defined(__x86_64__)
#define GRAD_KERNELS_NAME grad_kernels_avx2
#include "engine/cpu/grad/grad_kernels_impl.h"
#endif
