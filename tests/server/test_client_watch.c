/*
 * Tests of server/client_watch.c and sd_notify.c over loopback sockets.
 */
#include "tests/lib/test.h"

#include "server/client_watch.h"
#include "server/sd_notify.h"

#include <arpa/inet.h>
#include <netinet/in.h>
#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <unistd.h>

#define LIMIT_MS 2000 /* of a turn of the loop; nothing waits for it when all is well */

static uv_loop_t uv;
static int server_fd, client_fd;
static struct client_watch *watch;
static int n_gone, n_room;
static uint64_t gone_at_ms;

static void setup(void)
{
    struct sockaddr_in addr = {.sin_family = AF_INET, .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
    socklen_t len = sizeof(addr);
    int listener = socket(AF_INET, SOCK_STREAM, 0);

    ck_assert_int_eq(bind(listener, (struct sockaddr *)&addr, len), 0);
    ck_assert_int_eq(listen(listener, 1), 0);
    getsockname(listener, (struct sockaddr *)&addr, &len);
    client_fd = socket(AF_INET, SOCK_STREAM, 0);
    ck_assert_int_eq(connect(client_fd, (struct sockaddr *)&addr, len), 0);
    server_fd = accept(listener, NULL, NULL);
    close(listener);
    uv_loop_init(&uv);
    n_gone = n_room = 0;
    watch = NULL;
}

static void teardown(void)
{
    client_watch_free(watch);
    uv_run(&uv, UV_RUN_DEFAULT);
    ck_assert_int_eq(uv_loop_close(&uv), 0);
    close(server_fd);
    if (client_fd >= 0)
        close(client_fd);
}

static void on_gone(void *arg)
{
    (void)arg;
    n_gone++;
    gone_at_ms = uv_now(&uv);
    uv_stop(&uv);
}

static void on_limit(uv_timer_t *timer)
{
    uv_stop(timer->loop);
}

/* Turns the loop until somebody has left or ms have passed. */
static void turn(int ms)
{
    uv_timer_t timer;

    uv_timer_init(&uv, &timer);
    uv_timer_start(&timer, on_limit, ms, 0);
    uv_run(&uv, UV_RUN_DEFAULT);
    uv_close((uv_handle_t *)&timer, NULL);
    uv_run(&uv, UV_RUN_NOWAIT);
}

static void start(enum client_fin fin)
{
    watch = client_watch_new(&uv, server_fd, fin, on_gone, NULL);
    ck_assert_ptr_nonnull(watch);
}

/* The reader of a stream that closes has left. */
START_TEST(client_watch__takes_a_fin_for_leaving)
{
    start(CLIENT_FIN_LEAVES);
    close(client_fd);
    client_fd = -1;
    turn(LIMIT_MS);
    ck_assert_int_eq(n_gone, 1);
}
END_TEST

/* A client that has closed both directions answers the probe with a reset. */
START_TEST(client_watch__finds_a_closed_client_by_its_reset)
{
    uint64_t began;

    start(CLIENT_FIN_PROBE);
    uv_update_time(&uv);
    began = uv_now(&uv);
    close(client_fd);
    client_fd = -1;
    turn(LIMIT_MS);
    ck_assert_int_eq(n_gone, 1);
    ck_assert_uint_lt(gone_at_ms - began, 100);
}
END_TEST

/* A client that closed only its sending side stays, and gets the interim response. */
START_TEST(client_watch__lets_a_half_closed_client_stay)
{
    char text[64] = "";

    start(CLIENT_FIN_PROBE);
    shutdown(client_fd, SHUT_WR);
    turn(200);
    ck_assert_int_eq(n_gone, 0);
    ck_assert_int_gt(recv(client_fd, text, sizeof(text) - 1, MSG_DONTWAIT), 0);
    ck_assert_str_eq(text, "HTTP/1.1 100 Continue\r\n\r\n");
}
END_TEST

/* HTTP/1.0: nothing is sent. */
START_TEST(client_watch__sends_nothing_to_old_clients)
{
    char byte;

    start(CLIENT_FIN_STAYS);
    shutdown(client_fd, SHUT_WR);
    turn(200);
    ck_assert_int_eq(n_gone, 0);
    ck_assert_int_lt(recv(client_fd, &byte, 1, MSG_DONTWAIT), 0);
}
END_TEST

START_TEST(client_watch__notices_a_reset)
{
    struct linger now = {.l_onoff = 1};

    start(CLIENT_FIN_STAYS);
    setsockopt(client_fd, SOL_SOCKET, SO_LINGER, &now, sizeof(now));
    close(client_fd);
    client_fd = -1;
    turn(LIMIT_MS);
    ck_assert_int_eq(n_gone, 1);
}
END_TEST

/* More data is not leaving. */
START_TEST(client_watch__ignores_data)
{
    start(CLIENT_FIN_LEAVES);
    ck_assert_int_eq(send(client_fd, "x", 1, 0), 1);
    turn(50);
    ck_assert_int_eq(n_gone, 0);
}
END_TEST

static int notify_socket(char *path, size_t size)
{
    struct sockaddr_un addr = {.sun_family = AF_UNIX};
    int fd = socket(AF_UNIX, SOCK_DGRAM, 0);

    snprintf(path, size, "/tmp/spand-test-notify-%d", (int)getpid());
    snprintf(addr.sun_path, sizeof(addr.sun_path), "%s", path);
    unlink(path);
    ck_assert_int_eq(bind(fd, (struct sockaddr *)&addr, sizeof(addr)), 0);
    return fd;
}

START_TEST(sd_notify__sends_a_datagram)
{
    char path[64], text[64] = "";
    int fd = notify_socket(path, sizeof(path));

    setenv("NOTIFY_SOCKET", path, 1);
    sd_notify_send(SD_NOTIFY_MUST_ARRIVE, "READY=1\nSTATUS=%d", 5);
    ck_assert_int_gt(recv(fd, text, sizeof(text) - 1, MSG_DONTWAIT), 0);
    ck_assert_str_eq(text, "READY=1\nSTATUS=5");
    close(fd);
    unlink(path);
    sd_notify_send(SD_NOTIFY_MUST_ARRIVE, "READY=1"); /* nobody listens: nothing happens */
    unsetenv("NOTIFY_SOCKET");
    sd_notify_send(SD_NOTIFY_MUST_ARRIVE, "READY=1");
}
END_TEST

START_TEST(sd_notify__reads_the_watchdog)
{
    char pid[16];

    unsetenv("WATCHDOG_USEC");
    ck_assert_int_eq(sd_notify_watchdog_ms(), 0);
    setenv("WATCHDOG_USEC", "30000000", 1);
    ck_assert_int_eq(sd_notify_watchdog_ms(), 30000);
    setenv("WATCHDOG_PID", "1", 1);
    ck_assert_int_eq(sd_notify_watchdog_ms(), 0);
    snprintf(pid, sizeof(pid), "%d", (int)getpid());
    setenv("WATCHDOG_PID", pid, 1);
    ck_assert_int_eq(sd_notify_watchdog_ms(), 30000);
}
END_TEST

static void on_room(void *arg)
{
    (void)arg;
    n_room++;
    uv_stop(&uv);
}

static void fill_socket(void)
{
    static const char bytes[65536];

    while (send(server_fd, bytes, sizeof(bytes), MSG_DONTWAIT | MSG_NOSIGNAL) > 0)
        ;
}

static void empty_socket(void)
{
    static char bytes[65536];

    while (recv(client_fd, bytes, sizeof(bytes), MSG_DONTWAIT) > 0)
        ;
}

/* Room is told once, when the client has read; the watch then goes on. */
START_TEST(client_watch__tells_of_room_once)
{
    start(CLIENT_FIN_LEAVES);
    fill_socket();
    client_watch_room(watch, on_room);
    turn(30);
    ck_assert_int_eq(n_room, 0);
    empty_socket();
    turn(LIMIT_MS);
    ck_assert_int_eq(n_room, 1);
    turn(30);
    ck_assert_int_eq(n_room, 1);
    close(client_fd);
    client_fd = -1;
    turn(LIMIT_MS);
    ck_assert_int_eq(n_gone, 1);
}
END_TEST

/* A client that closes a full socket has left: there will be no room. */
START_TEST(client_watch__tells_who_left_with_a_full_socket)
{
    start(CLIENT_FIN_LEAVES);
    fill_socket();
    client_watch_room(watch, on_room);
    close(client_fd);
    client_fd = -1;
    turn(LIMIT_MS);
    ck_assert_int_eq(n_gone, 1);
    ck_assert_int_eq(n_room, 0);
}
END_TEST

TEST_SUITE(client_watch)
{
    TCase *tc = test_case(suite, "sockets");
    TCase *notify = test_case(suite, "notify");

    tcase_add_checked_fixture(tc, setup, teardown);
    tcase_add_test(tc, client_watch__takes_a_fin_for_leaving);
    tcase_add_test(tc, client_watch__finds_a_closed_client_by_its_reset);
    tcase_add_test(tc, client_watch__lets_a_half_closed_client_stay);
    tcase_add_test(tc, client_watch__sends_nothing_to_old_clients);
    tcase_add_test(tc, client_watch__notices_a_reset);
    tcase_add_test(tc, client_watch__ignores_data);
    tcase_add_test(tc, client_watch__tells_of_room_once);
    tcase_add_test(tc, client_watch__tells_who_left_with_a_full_socket);
    tcase_add_test(notify, sd_notify__sends_a_datagram);
    tcase_add_test(notify, sd_notify__reads_the_watchdog);
}
