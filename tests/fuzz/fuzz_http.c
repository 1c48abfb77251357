/*
 * fuzz_http - any bytes through a socket into the real server, with the null engine behind it.
 *
 * The server runs on a thread of this process, so that its coverage guides the fuzzer. After each
 * input our sending side is closed; the server must end the connection, whatever it was told.
 */
#include "base/check.h"
#include "base/err.h"
#include "base/log.h"
#include "config/config.h"
#include "server/serve.h"

#include <pthread.h>
#include <poll.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <unistd.h>

#define ANSWER_MS 10000

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

static struct sockaddr_un addr = {.sun_family = AF_UNIX};

static void *serve(void *arg)
{
    char *argv[] = {"--unix-socket",
                    addr.sun_path,
                    "--log-level",
                    "error",
                    "--no-log-requests",
                    "--max-batch",
                    "8",
                    "--header-timeout-ms",
                    "500",
                    "--body-timeout-ms",
                    "500",
                    "--self-test-ms",
                    "0",
                    "--request-timeout-ms",
                    "2000"};
    struct config_sources from = {.argc = sizeof(argv) / sizeof(argv[0]), .argv = argv};
    struct config config;
    struct err err = {0};

    (void)arg;
    CHECK(config_load(&config, &from, &err) == 0);
    log_configure(config.log_level, config.log_format);
    if (serve_run(&config, NULL, &err) < 0)
        fprintf(stderr, "%s\n", err.msg);
    return NULL;
}

static int connect_server(void)
{
    int fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);

    for (int i = 0; i < 1000; i++) {
        if (connect(fd, (struct sockaddr *)&addr, sizeof(addr)) == 0)
            return fd;
        usleep(10000);
    }
    CHECK(!"the server takes connections");
    return -1;
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    static pthread_t thread;
    char answer[65536];
    ssize_t n;
    int fd;

    if (!thread) {
        snprintf(addr.sun_path, sizeof(addr.sun_path), "/tmp/spand-fuzz-%d", (int)getpid());
        CHECK(pthread_create(&thread, NULL, serve, NULL) == 0);
    }
    fd = connect_server();
    for (size_t at = 0; at < size;) {
        n = send(fd, data + at, size - at, MSG_NOSIGNAL);
        if (n <= 0)
            break; /* it has heard enough */
        at += (size_t)n;
    }
    shutdown(fd, SHUT_WR);
    do {
        struct pollfd p = {.fd = fd, .events = POLLIN};

        CHECK(poll(&p, 1, ANSWER_MS) == 1); /* the connection must end */
        n = recv(fd, answer, sizeof(answer), 0);
    } while (n > 0);
    close(fd);
    return 0;
}
