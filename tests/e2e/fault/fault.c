/*
 * fault - preloaded into the daemon by the tests, so that the daemon itself has no test code.
 *
 *     SIGRTMIN     sent to one thread: it hangs for ever, as in a kernel that never ends
 *     SIGRTMIN + 1 sent to one thread: it ends, as if it had been killed
 *     FAULT_FILE   names a file; while it holds a number, that many more allocations work and the
 *                  rest fail; read when main() begins, since what libraries do before it is theirs,
 *                  and again whenever SIGRTMIN + 2 arrives
 *     FAULT_SHORT  a number: files give and take that many bytes at a time
 *     FAULT_ROOM   a number: so many bytes may be written to files, then the disk is full
 *     FAULT_CLOCK  names a file with seconds that the wall clock is wrong by, read each time
 */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <stdatomic.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/time.h>
#include <time.h>
#include <unistd.h>

static atomic_long n_left = -1; /* -1: all work */

static void on_hang(int signo)
{
    (void)signo;
    for (;;)
        pause();
}

static void on_end(int signo)
{
    (void)signo;
    syscall(SYS_exit, 0); /* the thread alone */
}

static void read_file(void)
{
    const char *path = getenv("FAULT_FILE");
    char text[32] = "";
    int fd = path ? open(path, O_RDONLY | O_CLOEXEC) : -1;
    long v = -1;

    if (fd < 0)
        return;
    if (read(fd, text, sizeof(text) - 1) > 0)
        v = atol(text);
    close(fd);
    atomic_store(&n_left, v);
}

static void on_allocations(int signo)
{
    (void)signo;
    read_file();
}

static void handle(int signo, void (*fn)(int))
{
    struct sigaction sa = {.sa_handler = fn, .sa_flags = SA_RESTART};

    sigaction(signo, &sa, NULL);
}

__attribute__((constructor)) static void start(void)
{
    handle(SIGRTMIN, on_hang);
    handle(SIGRTMIN + 1, on_end);
    handle(SIGRTMIN + 2, on_allocations);
}

typedef int main_fn(int argc, char **argv, char **env);

static main_fn *program_main;

static int fault_main(int argc, char **argv, char **env)
{
    read_file();
    return program_main(argc, argv, env);
}

int __libc_start_main(main_fn *fn, int argc, char **argv, void (*init)(void), void (*fini)(void),
                      void (*rtld_fini)(void), void *stack_end);

int __libc_start_main(main_fn *fn, int argc, char **argv, void (*init)(void), void (*fini)(void),
                      void (*rtld_fini)(void), void *stack_end)
{
    int (*real)(main_fn *, int, char **, void (*)(void), void (*)(void), void (*)(void), void *) =
        dlsym(RTLD_NEXT, "__libc_start_main");

    program_main = fn;
    return real(fault_main, argc, argv, init, fini, rtld_fini, stack_end);
}

static int fails(void)
{
    long n = atomic_load(&n_left);

    while (n >= 0) {
        if (n == 0) {
            errno = ENOMEM;
            return 1;
        }
        if (atomic_compare_exchange_weak(&n_left, &n, n - 1))
            return 0;
    }
    return 0;
}

extern void *__libc_malloc(size_t size);
extern void *__libc_calloc(size_t n, size_t size);
extern void *__libc_realloc(void *p, size_t size);

void *malloc(size_t size)
{
    return fails() ? NULL : __libc_malloc(size);
}

void *calloc(size_t n, size_t size)
{
    return fails() ? NULL : __libc_calloc(n, size);
}

void *realloc(void *p, size_t size)
{
    return fails() ? NULL : __libc_realloc(p, size);
}

/* Short and failing reads and writes */

static size_t n_short;          /* 0: no limit */
static atomic_long n_room = -1; /* -1: no limit */
static const char *clock_path;

__attribute__((constructor)) static void start_io(void)
{
    const char *at_a_time = getenv("FAULT_SHORT"), *room = getenv("FAULT_ROOM");

    n_short = at_a_time ? (size_t)atol(at_a_time) : 0;
    atomic_store(&n_room, room ? atol(room) : -1);
    clock_path = getenv("FAULT_CLOCK");
}

/*
 * Files alone: of a socket libmicrohttpd takes a short read for an empty one, as it always is where
 * the kernel moves the bytes, and would wait for ever.
 */
static size_t cut(int fd, size_t len)
{
    struct stat st;

    if (n_short == 0 || len <= n_short || fstat(fd, &st) < 0 || !S_ISREG(st.st_mode))
        return len;
    return n_short;
}

/* How much of len the disk still takes; 0: it is full. */
static size_t take_room(int fd, size_t len)
{
    struct stat st;
    long left = atomic_load(&n_room);

    if (left < 0 || fstat(fd, &st) < 0 || !S_ISREG(st.st_mode))
        return len;
    if (len > (size_t)left)
        len = (size_t)left;
    atomic_fetch_sub(&n_room, (long)len);
    return len;
}

ssize_t read(int fd, void *buf, size_t len)
{
    return syscall(SYS_read, fd, buf, cut(fd, len));
}

ssize_t pread(int fd, void *buf, size_t len, off_t at)
{
    return syscall(SYS_pread64, fd, buf, cut(fd, len), at);
}

ssize_t write(int fd, const void *buf, size_t len)
{
    size_t n = take_room(fd, cut(fd, len));

    if (n == 0 && len > 0) {
        errno = ENOSPC;
        return -1;
    }
    return syscall(SYS_write, fd, buf, n);
}

/* The wall clock; nobody may rely on it for how long something takes. */

static long wrong_by(void)
{
    char text[32] = "";
    int fd = clock_path ? (int)syscall(SYS_open, clock_path, O_RDONLY | O_CLOEXEC) : -1;

    if (fd < 0)
        return 0;
    syscall(SYS_read, fd, text, sizeof(text) - 1);
    syscall(SYS_close, fd);
    return atol(text);
}

int clock_gettime(clockid_t id, struct timespec *ts)
{
    int rc = (int)syscall(SYS_clock_gettime, id, ts);

    if (rc == 0 && id == CLOCK_REALTIME)
        ts->tv_sec += wrong_by();
    return rc;
}

int gettimeofday(struct timeval *restrict tv, void *restrict zone)
{
    int rc = (int)syscall(SYS_gettimeofday, tv, zone);

    if (rc == 0)
        tv->tv_sec += wrong_by();
    return rc;
}

time_t time(time_t *out)
{
    struct timespec ts;

    clock_gettime(CLOCK_REALTIME, &ts);
    if (out)
        *out = ts.tv_sec;
    return ts.tv_sec;
}
