/*
 * api_error - what a client is told when its request is refused: a status and the four keys of
 * {"error": {"message", "type", "param", "code"}}.
 *
 * Plain data, filled by the parsers and handlers, written by reply.c or as an event of a stream.
 */
#ifndef API_ERROR_H
#define API_ERROR_H

#include "base/err.h"

struct strbuf;

#define API_PARAM_BYTES 64

struct api_error {
    int status;                  /* 0: nothing went wrong */
    const char *code;            /* static string; NULL is null */
    char param[API_PARAM_BYTES]; /* the field at fault; "" is null */
    char message[ERR_MSG_BYTES];
    int retry_after_s; /* 0: no such header */
};

/* Records the first error only. param and code may be NULL. Returns ERR_INVALID. */
int api_error_set(struct api_error *e, int status, const char *param, const char *code,
                  const char *fmt, ...) __attribute__((format(printf, 5, 6)));

/* Translates an engine's refusal: the client's fault, try again later, or ours. */
int api_error_from_err(struct api_error *e, const struct err *err, const char *param);

/* "invalid_request_error" and the like, by status. */
const char *api_error_type(int status);

/* Appends the error object as one line of JSON. */
void api_error_write(const struct api_error *e, struct strbuf *out);

#endif
