/*
 * file_map - a whole file, read-only, mapped. Pages come in as they are touched. A file that is cut
 * short while it is mapped ends the process with SIGBUS: replace model files, never truncate them.
 */
#ifndef FILE_MAP_H
#define FILE_MAP_H

#include <stddef.h>

struct err;

struct file_map {
    const unsigned char *data; /* [len]; a valid pointer even when len is 0 */
    size_t len;
};

/* ERR_NOT_FOUND when there is no such file, ERR_IO otherwise. Directories are refused. */
int file_map_open(struct file_map *m, const char *path, struct err *err);

/* Accepts NULL and what file_map_open() left behind when it failed. */
void file_map_close(struct file_map *m);

/*
 * Reads a text file of at most max_bytes into malloc'ed memory with a NUL behind it; the caller
 * frees *out. len may be NULL. ERR_INVALID when the file is larger.
 */
int file_read_text(char **out, size_t *len, const char *path, size_t max_bytes, struct err *err);

#endif
