/*
 * file_write - a file that is there whole or not at all.
 */
#ifndef FILE_WRITE_H
#define FILE_WRITE_H

#include <stddef.h>

struct err;

/*
 * Writes data to PATH.tmp, flushes it to the disk and renames it. On failure, a full disk included,
 * PATH is what it was and nothing is left beside it. ERR_IO.
 */
int file_write_whole(const char *path, const void *data, size_t len, struct err *err);

#endif
