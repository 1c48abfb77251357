/*
 * bare_send - what the kernel alone takes: the bytes of one event to each of n clients in turn, for
 * as long as it is let, and nothing else. No server that makes one send an event can be faster.
 *
 *     bare_send N    prints the port; on SIGTERM the events and its processor time, user and system
 */
#include <arpa/inet.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <unistd.h>

static const char event[] =
    "cb\r\ndata: "
    "{\"id\":\"cmpl-0123456789abcdef01234567\",\"object\":\"text_completion\",\"created\":"
    "1700000000,\"model\":\"null\",\"system_fingerprint\":\"null\",\"choices\":[{\"index\":0,"
    "\"text\":\"x\","
    "\"finish_reason\":null,\"logprobs\":null}]}\n\n\r\n";
static const char head[] = "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n";
static volatile sig_atomic_t stopped;

static void on_term(int signo)
{
    (void)signo;
    stopped = 1;
}

int main(int argc, char **argv)
{
    struct sockaddr_in addr = {.sin_family = AF_INET, .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
    struct sigaction sa = {.sa_handler = on_term};
    socklen_t len = sizeof(addr);
    int n = argc > 1 ? atoi(argv[1]) : 1, on = 1, fd = socket(AF_INET, SOCK_STREAM, 0);
    int *clients = calloc((size_t)n, sizeof(*clients));
    struct rusage before, after;
    long n_events = 0;
    char request[4096];

    if (!clients || bind(fd, (struct sockaddr *)&addr, len) < 0 || listen(fd, 1024) < 0 ||
        getsockname(fd, (struct sockaddr *)&addr, &len) < 0)
        return 1;
    sigaction(SIGTERM, &sa, NULL);
    signal(SIGPIPE, SIG_IGN);
    printf("listening on http://127.0.0.1:%d\n", ntohs(addr.sin_port));
    fflush(stdout);
    for (int i = 0; i < n; i++) {
        clients[i] = accept(fd, NULL, NULL);
        if (clients[i] < 0 || recv(clients[i], request, sizeof(request), 0) <= 0)
            return 1;
        setsockopt(clients[i], IPPROTO_TCP, TCP_NODELAY, &on, sizeof(on));
        if (send(clients[i], head, sizeof(head) - 1, 0) < 0)
            return 1;
    }
    getrusage(RUSAGE_SELF, &before);
    while (!stopped) {
        for (int i = 0; i < n && !stopped; i++)
            n_events += send(clients[i], event, sizeof(event) - 1, MSG_DONTWAIT | MSG_NOSIGNAL) > 0;
    }
    getrusage(RUSAGE_SELF, &after);
    printf("%ld %.3f %.3f\n", n_events,
           (double)(after.ru_utime.tv_sec - before.ru_utime.tv_sec) +
               1e-6 * (double)(after.ru_utime.tv_usec - before.ru_utime.tv_usec),
           (double)(after.ru_stime.tv_sec - before.ru_stime.tv_sec) +
               1e-6 * (double)(after.ru_stime.tv_usec - before.ru_stime.tv_usec));
    free(clients);
    return 0;
}
