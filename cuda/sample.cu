#include "cuda/cuda_backend.h"
int sample_launch(struct cuda_backend *cb, const struct sample_args *p, struct err *err)
{
    return err_set(err, ERR_UNSUPPORTED, "sample");
}
