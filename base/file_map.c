/*
 * file_map - a whole file, read-only, mapped; and small text files read whole. See file_map.h.
 */
#include "base/file_map.h"

#include "base/err.h"

#include <errno.h>
#include <fcntl.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#define READ_STEP_BYTES 65536

static const unsigned char no_bytes[1];

static int open_to_read(int *fd, struct stat *st, const char *path, struct err *err)
{
    int rc = 0;

    *fd = open(path, O_RDONLY | O_CLOEXEC);
    if (*fd < 0)
        return err_set_errno(err, errno == ENOENT || errno == ENOTDIR ? ERR_NOT_FOUND : ERR_IO,
                             errno, "%s", path);
    if (fstat(*fd, st) < 0)
        rc = err_set_errno(err, ERR_IO, errno, "%s", path);
    else if (S_ISDIR(st->st_mode))
        rc = err_set(err, ERR_IO, "%s: is a directory, want a file", path);
    if (rc < 0)
        close(*fd);
    return rc;
}

int file_map_open(struct file_map *m, const char *path, struct err *err)
{
    struct stat st;
    void *data;
    int fd, rc;

    *m = (struct file_map){0};
    rc = open_to_read(&fd, &st, path, err);
    if (rc < 0)
        return rc;
    if (!S_ISREG(st.st_mode)) {
        rc = err_set(err, ERR_IO, "%s: not a regular file, cannot be mapped", path);
    } else if (st.st_size == 0) {
        m->data = no_bytes; /* mmap refuses an empty range */
    } else {
        data = mmap(NULL, st.st_size, PROT_READ, MAP_SHARED, fd, 0);
        if (data == MAP_FAILED) {
            rc = err_set_errno(err, ERR_IO, errno, "%s: cannot map %lld bytes", path,
                               (long long)st.st_size);
        } else {
            m->data = data;
            m->len = st.st_size;
        }
    }
    close(fd); /* the mapping holds the file */
    return rc;
}

void file_map_close(struct file_map *m)
{
    if (!m)
        return;
    if (m->len)
        munmap((void *)m->data, m->len);
    *m = (struct file_map){0};
}

/* Reads to the end of the file: sizes of pipes and of /proc are not known before. */
static int read_all(int fd, char **buf, size_t *len, const char *path, size_t max_bytes,
                    struct err *err)
{
    size_t room = 0;

    *len = 0;
    for (;;) {
        ssize_t n;

        if (*len + 1 >= room) {
            size_t want = room + room / 2 + READ_STEP_BYTES;
            char *bigger = realloc(*buf, want);

            if (!bigger)
                return err_set(err, ERR_NO_ROOM, "%s: out of memory at %zu bytes", path, *len);
            *buf = bigger;
            room = want;
        }
        n = read(fd, *buf + *len, room - *len - 1);
        if (n < 0 && errno == EINTR)
            continue;
        if (n < 0)
            return err_set_errno(err, ERR_IO, errno, "%s", path);
        if (n == 0)
            break;
        *len += n;
        if (*len > max_bytes)
            return err_set(err, ERR_INVALID, "%s: larger than %zu bytes, the limit for this file",
                           path, max_bytes);
    }
    (*buf)[*len] = '\0';
    return 0;
}

int file_read_text(char **out, size_t *len, const char *path, size_t max_bytes, struct err *err)
{
    struct stat st;
    char *buf = NULL;
    size_t n;
    int fd, rc;

    rc = open_to_read(&fd, &st, path, err);
    if (rc < 0)
        return rc;
    rc = read_all(fd, &buf, &n, path, max_bytes, err);
    close(fd);
    if (rc == 0) {
        *out = buf;
        if (len)
            *len = n;
        buf = NULL; /* the caller owns it now */
    }
    free(buf);
    return rc;
}
