/*
 * send_pool - many small sends at once, shared among threads.
 *
 * A decode step of a large batch has one event for each stream, and the kernel takes as long for a
 * send as everything before it: the last stream would wait for all others. The loop thread hands
 * the whole step over, takes part, and goes on when all is sent. The threads see descriptors and
 * bytes, never an exchange, and are asleep otherwise.
 */
#ifndef SEND_POOL_H
#define SEND_POOL_H

#include <sys/types.h>

struct err;
struct send_pool;

struct send_job {
    int fd;
    const char *buf; /* [len] borrowed */
    size_t len;
    ssize_t n_sent; /* result: bytes that the kernel took, or -1 with error */
    int error;      /* an errno, or 0 */
    void *owner;    /* the caller's own */
};

/* n_threads beside the caller's. ERR_IO when a thread does not start. */
int send_pool_open(struct send_pool **out, int n_threads, struct err *err);

/* Never blocks on a socket. One caller at a time; pool NULL: the caller sends alone. */
void send_pool_run(struct send_pool *pool, struct send_job *jobs, int n_jobs);

/* Accepts NULL. */
void send_pool_close(struct send_pool *pool);

#endif
