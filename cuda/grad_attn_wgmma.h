/*
 * grad_attn_wgmma - the way back through attention on sm_90's own tensor core instructions.
 */
#ifndef GRAD_ATTN_WGMMA_H
#define GRAD_ATTN_WGMMA_H

#include "cuda/grad_cuda.h"

/* Is this what grad_attn_wgmma.cu is built for? Else grad_attn.cu computes it. */
static inline bool grad_attn_wgmma_takes(const struct cuda_backend *cb,
                                         const struct grad_attn_kernel_args *a)
{
    return cb->arch == 90 && (a->head_dim == 64 || a->head_dim == 128);
}

#ifdef __cplusplus
extern "C" {
#endif

int grad_attn_rows_wgmma_launch(struct cuda_backend *cb, const struct grad_attn_kernel_args *a,
                                struct err *err);
int grad_attn_keys_wgmma_launch(struct cuda_backend *cb, const struct grad_attn_kernel_args *a,
                                struct err *err);

#ifdef __cplusplus
}
#endif
#endif
