/*
 * file_map - a whole file, read-only, mapped. The mapping is private to nobody: do not write.
 */
#ifndef FILE_MAP_H
#define FILE_MAP_H

#include <stddef.h>

struct err;

struct file_map {
    const unsigned char *data; /* [len]; a valid pointer even when len is 0 */
    size_t len;
    int fd; /* private */
};

/* ERR_NOT_FOUND when there is no such file, ERR_IO otherwise. Directories are refused. */
int file_map_open(struct file_map *m, const char *path, struct err *err);
void file_map_close(struct file_map *m);

/* Reads a text file of at most max_bytes into malloc'ed memory with a NUL behind it. */
int file_read_text(char **out, size_t *len, const char *path, size_t max_bytes, struct err *err);

#endif
