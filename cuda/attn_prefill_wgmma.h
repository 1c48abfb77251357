/*
 * attn_prefill_wgmma - prompt attention on sm_90's own tensor core instructions.
 *
 * Apart from cuda_backend.h so that the emulator, which has no such instructions, can replace it.
 */
#ifndef ATTN_PREFILL_WGMMA_H
#define ATTN_PREFILL_WGMMA_H

#include "cuda/cuda_backend.h"

/* Is this what attn_prefill_wgmma_launch() is built for? Else attn_prefill.cu computes it. */
static inline bool attn_prefill_wgmma_takes(const struct cuda_backend *cb,
                                            const struct attn_args *p)
{
    return cb->arch == 90 && cb->base.act_dtype != DTYPE_F32 && p->kv->page_entries == KV_TILE &&
           (p->head_dim == 64 || p->head_dim == 128);
}

#ifdef __cplusplus
extern "C" {
#endif

int attn_prefill_wgmma_launch(struct cuda_backend *cb, const struct attn_args *p, struct err *err);

#ifdef __cplusplus
}
#endif
#endif
