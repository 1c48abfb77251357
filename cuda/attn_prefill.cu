#include "cuda/cuda_backend.h"
int attn_prefill_launch(struct cuda_backend *cb, const struct attn_args *p, struct err *err)
{
    return p->batch->n_rows == p->batch->n_decode ? 0 : err_set(err, ERR_UNSUPPORTED, "attn: prompt rows");
}
