/*
 * err - the error convention of the whole tree. See err.h.
 */
#include "base/err.h"

#include <stdarg.h>
#include <stdio.h>
#include <string.h>

int err_set(struct err *err, int code, const char *fmt, ...)
{
    va_list ap;

    if (!err || err->code)
        return code;
    err->code = code;
    va_start(ap, fmt);
    vsnprintf(err->msg, sizeof(err->msg), fmt, ap);
    va_end(ap);
    return code;
}

int err_set_errno(struct err *err, int code, int errno_value, const char *fmt, ...)
{
    va_list ap;
    size_t len;
    char text[128];

    if (!err || err->code)
        return code;
    err->code = code;
    va_start(ap, fmt);
    vsnprintf(err->msg, sizeof(err->msg), fmt, ap);
    va_end(ap);
    len = strlen(err->msg);
    /* The GNU strerror_r: thread-safe, and it returns the text, not a status. */
    snprintf(err->msg + len, sizeof(err->msg) - len, ": %s",
             strerror_r(errno_value, text, sizeof(text)));
    return code;
}

void err_prefix(struct err *err, const char *fmt, ...)
{
    va_list ap;
    char old[ERR_MSG_BYTES];
    size_t len;

    if (!err || !err->code)
        return;
    memcpy(old, err->msg, sizeof(old));
    va_start(ap, fmt);
    vsnprintf(err->msg, sizeof(err->msg), fmt, ap);
    va_end(ap);
    len = strlen(err->msg);
    snprintf(err->msg + len, sizeof(err->msg) - len, ": %s", old);
}

const char *err_code_name(int code)
{
    switch (code) {
    case 0:
        return "ok";
    case ERR_INVALID:
        return "invalid";
    case ERR_PARSE:
        return "parse";
    case ERR_IO:
        return "io";
    case ERR_NO_ROOM:
        return "no_room";
    case ERR_LIMIT:
        return "limit";
    case ERR_UNSUPPORTED:
        return "unsupported";
    case ERR_NOT_FOUND:
        return "not_found";
    case ERR_CONTEXT:
        return "context";
    case ERR_DEVICE:
        return "device";
    case ERR_CLOSED:
        return "closed";
    }
    return "unknown";
}
