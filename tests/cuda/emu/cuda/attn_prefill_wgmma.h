/*
 * attn_prefill_wgmma - the emulator's: it has no wgmma, attn_prefill.cu computes everything.
 */
#ifndef ATTN_PREFILL_WGMMA_H
#define ATTN_PREFILL_WGMMA_H

#include "cuda/cuda_backend.h"

static inline bool attn_prefill_wgmma_takes(const struct cuda_backend *, const struct attn_args *)
{
    return false;
}

static inline int attn_prefill_wgmma_launch(struct cuda_backend *, const struct attn_args *,
                                            struct err *err)
{
    return err_set(err, ERR_UNSUPPORTED, "attn: wgmma is not emulated");
}

#endif
