/*
 * grad_open - the backward ops that belong to a backend. See grad_open.h.
 *
 * As in backend.c those of CUDA are weak references: they are there when cuda/ is linked in.
 */
#include "engine/plan/search/grad_open.h"

#include <string.h>

#ifdef SPAND_CUDA
extern size_t cuda_grad_bytes(const struct backend *be, const struct grad_params *params)
    __attribute__((weak));
extern int cuda_grad_open(struct grad **out, struct backend *be, const struct grad_params *params,
                          struct err *err) __attribute__((weak));
#endif

size_t grad_bytes(const struct backend *be, const struct grad_params *params)
{
#ifdef SPAND_CUDA
    if (strcmp(be->ops->name, "cuda") == 0 && cuda_grad_bytes)
        return cuda_grad_bytes(be, params);
#endif
    return cpu_grad_bytes(be, params);
}

int grad_open(struct grad **out, struct backend *be, const struct grad_params *params,
              struct err *err)
{
    if (strcmp(be->ops->name, "cpu") == 0)
        return cpu_grad_open(out, be, params, err);
#ifdef SPAND_CUDA
    if (strcmp(be->ops->name, "cuda") == 0 && cuda_grad_open)
        return cuda_grad_open(out, be, params, err);
#endif
    return err_set(err, ERR_UNSUPPORTED, "no backward pass is built for the backend %s",
                   be->ops->name);
}
