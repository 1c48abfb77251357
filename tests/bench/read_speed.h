/*
 * read_speed - how fast the host's threads read memory: the limit that decoding is held against.
 */
#ifndef READ_SPEED_H
#define READ_SPEED_H

#include <stdbool.h>

struct err;
struct read_speed;

/* n_threads 0 takes every core of the process. ERR_NO_ROOM, ERR_IO, ERR_INVALID (SPAND_ISA). */
int read_speed_open(struct read_speed **out, int n_threads, bool pin, struct err *err);

/* Accepts NULL. */
void read_speed_close(struct read_speed *r);

int read_speed_threads(const struct read_speed *r);

/* GB/s of a streaming read, the median of a few passes. */
double read_speed_measure(struct read_speed *r);

#endif
