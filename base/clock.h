/*
 * clock - monotonic time for intervals, wall time for `created` and logs.
 */
#ifndef CLOCK_H
#define CLOCK_H

#include <stdint.h>

int64_t clock_ns(void);      /* monotonic */
int64_t clock_unix_ms(void); /* wall clock */

#endif
