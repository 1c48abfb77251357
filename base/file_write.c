/*
 * file_write - a file that is there whole or not at all. See file_write.h.
 */
#include "base/file_write.h"

#include "base/err.h"

#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <unistd.h>

static int write_all(int fd, const char *data, size_t len)
{
    while (len > 0) {
        ssize_t n = write(fd, data, len);

        if (n < 0 && errno == EINTR)
            continue;
        if (n < 0)
            return -1;
        data += n;
        len -= (size_t)n;
    }
    return 0;
}

int file_write_whole(const char *path, const void *data, size_t len, struct err *err)
{
    char tmp[4400];
    int fd, rc = 0, n = snprintf(tmp, sizeof(tmp), "%s.tmp", path);

    if (n < 0 || n >= (int)sizeof(tmp))
        return err_set(err, ERR_IO, "%.80s...: the path is too long", path);
    fd = open(tmp, O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0644);
    if (fd < 0)
        return err_set_errno(err, ERR_IO, errno, "%s: cannot create", tmp);
    if (write_all(fd, data, len) < 0 || fsync(fd) < 0)
        rc = err_set_errno(err, ERR_IO, errno, "%s: cannot write %zu bytes", path, len);
    if (close(fd) < 0 && rc == 0)
        rc = err_set_errno(err, ERR_IO, errno, "%s: cannot write", path);
    if (rc == 0 && rename(tmp, path) < 0)
        rc = err_set_errno(err, ERR_IO, errno, "%s: cannot rename to it", path);
    if (rc < 0)
        unlink(tmp);
    return rc;
}
