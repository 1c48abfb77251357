/*
 * fault - preloaded into the daemon by the tests, so that the daemon itself has no test code.
 *
 *     SIGRTMIN     sent to one thread: it hangs for ever, as in a kernel that never ends
 *     SIGRTMIN + 1 sent to one thread: it ends, as if it had been killed
 *     FAULT_FILE   names a file; while it holds a number, that many more allocations work and the
 *                  rest fail; read when main() begins, since what libraries do before it is theirs,
 *                  and again whenever SIGRTMIN + 2 arrives
 */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <stdatomic.h>
#include <stdlib.h>
#include <string.h>
#include <sys/syscall.h>
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
