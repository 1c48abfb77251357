/*
 * lost_device - linked into a daemon of its own (build/spand-lost), whose device can be lost: while
 * the file that FAULT_DEVICE names is there, every step fails as on a GPU that fell off the bus.
 */
#include "base/err.h"
#include "engine/backend.h"

#include <stdlib.h>
#include <unistd.h>

int __real_backend_open(struct backend **out, const struct backend_params *params, struct err *err);
int __wrap_backend_open(struct backend **out, const struct backend_params *params, struct err *err);

static struct backend_ops ops;
static int (*real_step_wait)(struct backend *be, int64_t step, struct err *err);

static int step_wait(struct backend *be, int64_t step, struct err *err)
{
    const char *path = getenv("FAULT_DEVICE");

    if (path && access(path, F_OK) == 0)
        return err_set(err, ERR_DEVICE, "the device is lost");
    return real_step_wait(be, step, err);
}

int __wrap_backend_open(struct backend **out, const struct backend_params *params, struct err *err)
{
    int rc = __real_backend_open(out, params, err);

    if (rc < 0)
        return rc;
    ops = *(*out)->ops;
    real_step_wait = ops.step_wait;
    ops.step_wait = step_wait;
    (*out)->ops = &ops;
    return 0;
}
