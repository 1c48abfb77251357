/*
 * backend - the choice between the CPU and CUDA, and names for ops.
 *
 * cuda_backend_open is a weak reference: it is there when cuda/ is linked in, and asking for CUDA
 * without it is an error, never a quiet change of device.
 */
#include "engine/backend.h"

#include "base/log.h"

#include <string.h>

#ifdef SPAND_CUDA
extern int cuda_backend_open(struct backend **out, const struct backend_params *params,
                             struct err *err) __attribute__((weak));
#endif

static const char *const op_names[OP_COUNT] = {[OP_EMBED] = "embed",
                                               [OP_ATTN_IN] = "attn_in",
                                               [OP_ATTN] = "attn",
                                               [OP_KV_APPEND] = "kv_append",
                                               [OP_ATTN_OUT] = "attn_out",
                                               [OP_FFN] = "ffn",
                                               [OP_LOGITS] = "logits",
                                               [OP_POOL] = "pool",
                                               [OP_SAMPLE] = "sample",
                                               [OP_KV_COPY] = "kv_copy",
                                               [OP_BLOCK_EMBED] = "block_embed",
                                               [OP_BLOCK_TO_PREFIX] = "block_to_prefix"};

const char *backend_op_name(enum backend_op op)
{
    return (unsigned)op < OP_COUNT ? op_names[op] : "unknown";
}

static int open_cuda(struct backend **out, const struct backend_params *params, struct err *err)
{
#ifdef SPAND_CUDA
    if (cuda_backend_open)
        return cuda_backend_open(out, params, err);
#endif
    (void)out;
    return err_set(err, ERR_UNSUPPORTED, "device %s: this binary was built without CUDA",
                   params->device);
}

/* "auto": CUDA where it works; why it did not is no error, but it is told. */
static int open_auto(struct backend **out, const struct backend_params *params, struct err *err)
{
    struct err why_not_cuda = {0};

    if (open_cuda(out, params, &why_not_cuda) == 0)
        return 0;
    log_info("no GPU is used: %s", why_not_cuda.msg);
    return cpu_backend_open(out, params, err);
}

int backend_open(struct backend **out, const struct backend_params *params, struct err *err)
{
    const char *device = params->device ? params->device : "auto";

    if (strcmp(device, "cpu") == 0)
        return cpu_backend_open(out, params, err);
    if (strcmp(device, "cuda") == 0 || strncmp(device, "cuda:", 5) == 0)
        return open_cuda(out, params, err);
    if (strcmp(device, "auto") == 0)
        return open_auto(out, params, err);
    return err_set(err, ERR_INVALID, "device \"%s\": want auto, cpu, cuda or cuda:N", device);
}
