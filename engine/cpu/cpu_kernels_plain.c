/*
 * cpu_kernels_plain - the inner loops for any processor.
 */

#define KERNELS_NAME  cpu_kernels_plain
#define KERNELS_LABEL "plain"
#include "engine/cpu/cpu_kernels_impl.h"
