/*
 * sd_notify - the datagrams. A name that starts with @ is an abstract socket. A message that
 * cannot be sent in time is lost on purpose: the daemon must not stop because nobody listens. But a
 * lost READY=1 would make the service manager kill a healthy daemon, so that one waits.
 */
#include "server/sd_notify.h"

#include <stdarg.h>
#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/time.h>
#include <sys/un.h>
#include <unistd.h>

#define PATIENCE_S 5

void sd_notify_send(enum sd_notify_kind kind, const char *fmt, ...)
{
    const char *name = getenv("NOTIFY_SOCKET");
    struct sockaddr_un addr = {.sun_family = AF_UNIX};
    struct timeval patience = {.tv_sec = PATIENCE_S};
    char text[512];
    socklen_t len;
    va_list ap;
    int fd;

    if (!name || (name[0] != '/' && name[0] != '@') || strlen(name) >= sizeof(addr.sun_path))
        return;
    va_start(ap, fmt);
    vsnprintf(text, sizeof(text), fmt, ap);
    va_end(ap);
    memcpy(addr.sun_path, name, strlen(name));
    len = (socklen_t)(offsetof(struct sockaddr_un, sun_path) + strlen(name));
    if (name[0] == '@')
        addr.sun_path[0] = '\0';
    else
        len++; /* a path is counted with its NUL */
    fd = socket(AF_UNIX, SOCK_DGRAM | SOCK_CLOEXEC, 0);
    if (fd < 0)
        return;
    setsockopt(fd, SOL_SOCKET, SO_SNDTIMEO, &patience, sizeof(patience));
    sendto(fd, text, strlen(text), MSG_NOSIGNAL | (kind == SD_NOTIFY_MAY_DROP ? MSG_DONTWAIT : 0),
           (struct sockaddr *)&addr, len);
    close(fd);
}

int64_t sd_notify_watchdog_ms(void)
{
    const char *us = getenv("WATCHDOG_USEC");
    const char *pid = getenv("WATCHDOG_PID");
    long long v = us ? strtoll(us, NULL, 10) : 0;

    if (v <= 0 || (pid && strtoll(pid, NULL, 10) != getpid()))
        return 0;
    return v / 1000 > 0 ? v / 1000 : 1;
}
