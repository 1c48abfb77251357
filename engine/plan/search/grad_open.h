/*
 * grad_open - the backward ops that belong to a backend.
 */
#ifndef GRAD_OPEN_H
#define GRAD_OPEN_H

#include "engine/backend_grad.h"

/* Bytes that open and its ops take beside the caller's buffers. */
size_t grad_bytes(const struct backend *be, const struct grad_params *params);
/* Closed by (*out)->ops->close(). be is borrowed. */
int grad_open(struct grad **out, struct backend *be, const struct grad_params *params,
              struct err *err);

#endif
