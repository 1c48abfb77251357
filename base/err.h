/*
 * err - the error convention of the whole tree.
 *
 * A function that can fail returns int: 0 is success, a negative value is an enum err_code, and
 * the message goes to the struct err that the caller passed last. The first message wins, so the
 * deepest cause is the one reported. Callers start from `struct err err = {0}`.
 */
#ifndef ERR_H
#define ERR_H

#ifdef __cplusplus
extern "C" {
#endif

enum err_code {
    ERR_INVALID = -1,     /* the caller or the client asked for something that makes no sense */
    ERR_PARSE = -2,       /* a file or a text is not what its format demands */
    ERR_IO = -3,          /* the operating system refused: open, read, map, listen */
    ERR_NO_ROOM = -4,     /* memory, pages, an arena's cap: now or for good, the message says */
    ERR_LIMIT = -5,       /* a bounded queue is full: try again later */
    ERR_UNSUPPORTED = -6, /* well-formed, and not built */
    ERR_NOT_FOUND = -7,
    ERR_CONTEXT = -8, /* prompt + max_tokens exceed the context or the pool for good */
    ERR_DEVICE = -9,  /* the accelerator or its driver failed */
    ERR_CLOSED = -10  /* the thing is shutting down */
};

#define ERR_MSG_BYTES 512

struct err {
    int code; /* 0 until the first err_set */
    char msg[ERR_MSG_BYTES];
};

/* Records code and message unless err already holds one; err may be NULL. Returns code. */
int err_set(struct err *err, int code, const char *fmt, ...) __attribute__((format(printf, 3, 4)));

/* As err_set, with ": strerror(errno_value)" behind the message. */
int err_set_errno(struct err *err, int code, int errno_value, const char *fmt, ...)
    __attribute__((format(printf, 4, 5)));

/* Puts "context: " in front of a message that is already there; for outer context, once. */
void err_prefix(struct err *err, const char *fmt, ...) __attribute__((format(printf, 2, 3)));

/* "parse", "io", ...: a stable word for logs. */
const char *err_code_name(int code);

#ifdef __cplusplus
}
#endif
#endif
