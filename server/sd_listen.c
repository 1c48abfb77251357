/*
 * sd_listen - the descriptors are checked here, once: whatever else was passed under those numbers
 * would only show as a server that nobody can connect to.
 */
#include "server/sd_listen.h"

#include "base/err.h"

#include <fcntl.h>
#include <stdlib.h>
#include <sys/socket.h>
#include <unistd.h>

#define MAX_FDS 64 /* more is no number of addresses that anybody listens on */

static int check_fd(int fd, struct err *err)
{
    int type = 0, listens = 0;
    socklen_t len = sizeof(int);

    if (getsockopt(fd, SOL_SOCKET, SO_TYPE, &type, &len) < 0 || type != SOCK_STREAM ||
        getsockopt(fd, SOL_SOCKET, SO_ACCEPTCONN, &listens, &len) < 0 || !listens)
        return err_set(err, ERR_INVALID,
                       "LISTEN_FDS: descriptor %d is no listening stream socket (Accept=no is "
                       "needed in the socket unit)",
                       fd);
    fcntl(fd, F_SETFD, FD_CLOEXEC);
    fcntl(fd, F_SETFL, fcntl(fd, F_GETFL) | O_NONBLOCK);
    return 0;
}

int sd_listen_take(struct err *err)
{
    const char *pid = getenv("LISTEN_PID");
    const char *fds = getenv("LISTEN_FDS");
    long n = fds ? strtol(fds, NULL, 10) : 0;
    int rc = 0;

    if (!pid || strtol(pid, NULL, 10) != getpid() || n == 0)
        return 0;
    if (n < 0 || n > MAX_FDS)
        return err_set(err, ERR_INVALID, "LISTEN_FDS is %s, want 1 to %d", fds, MAX_FDS);
    for (int i = 0; i < n && rc == 0; i++)
        rc = check_fd(SD_LISTEN_FIRST + i, err);
    unsetenv("LISTEN_PID");
    unsetenv("LISTEN_FDS");
    unsetenv("LISTEN_FDNAMES");
    return rc < 0 ? rc : (int)n;
}
