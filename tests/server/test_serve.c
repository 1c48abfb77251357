/*
 * Tests of the daemon as a whole: serve_run() in a child process, and clients on loopback sockets.
 *
 * One daemon serves the suite; the last case stops it. A sanitizer's report shows in its exit code.
 */
#include "tests/lib/test.h"

#include "base/err.h"
#include "base/log.h"
#include "base/strbuf.h"
#include "config/config.h"
#include "server/serve.h"

#include <arpa/inet.h>
#include <netinet/in.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/time.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#define ANSWER_LIMIT_S 50
#define MAX_BODY_TEXT  "65536"
#define LONG_ANSWER    "{\"model\":\"demo\",\"prompt\":\"x\",\"max_tokens\":8000,\"ignore_eos\":true"

static pid_t daemon_pid;
static int daemon_port;
static struct strbuf answer;

/* Runs in the child; what it prints goes to fd. */
static void serve_in_child(int fd, const char *port)
{
    char model[4096];
    struct config config;
    struct err err = {0};
    int rc;

    snprintf(model, sizeof(model), "%s", test_path("models/demo-llama"));
    {
        char *argv[] = {"--model",
                        model,
                        "--served-model-name",
                        "demo",
                        "--weights",
                        "random",
                        "--port",
                        (char *)port,
                        "--device",
                        "cpu",
                        "--dtype",
                        "f32",
                        "--kv-memory",
                        "256MiB",
                        "--max-batch",
                        "4",
                        "--threads",
                        "1",
                        "--no-pin-threads",
                        "--max-body-bytes",
                        MAX_BODY_TEXT,
                        "--log-level",
                        "error",
                        "--drain-timeout-ms",
                        "500",
                        "--header-timeout-ms",
                        "1000",
                        "--sse-ping-ms",
                        "0"};
        struct config_sources from = {.argc = sizeof(argv) / sizeof(argv[0]), .argv = argv};

        dup2(fd, STDOUT_FILENO);
        rc = config_load(&config, &from, &err);
    }
    if (rc == 0) {
        log_configure(config.log_level, config.log_format);
        rc = serve_run(&config, NULL, &err);
        config_release(&config);
    }
    if (rc < 0)
        fprintf(stderr, "%s\n", err.msg);
    exit(rc < 0 ? 1 : 0);
}

static void start_daemon(void)
{
    int fds[2];
    char line[512];
    FILE *f;

    ck_assert_int_eq(pipe(fds), 0);
    fflush(NULL);
    daemon_pid = fork();
    if (daemon_pid == 0) {
        close(fds[0]);
        serve_in_child(fds[1], "0");
    }
    close(fds[1]);
    f = fdopen(fds[0], "r");
    daemon_port = 0;
    while (daemon_port == 0 && fgets(line, sizeof(line), f))
        sscanf(line, "listening on http://127.0.0.1:%d", &daemon_port);
    ck_assert_int_gt(daemon_port, 0);
    fclose(f); /* the daemon writes no more to it */
}

static void kill_daemon(void)
{
    if (daemon_pid > 0) {
        kill(daemon_pid, SIGKILL);
        waitpid(daemon_pid, NULL, 0);
    }
    daemon_pid = 0;
}

static void setup(void)
{
    strbuf_init(&answer);
}

static void teardown(void)
{
    strbuf_release(&answer);
}

static int connect_client(void)
{
    struct sockaddr_in addr = {.sin_family = AF_INET,
                               .sin_port = htons((uint16_t)daemon_port),
                               .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
    struct timeval limit = {.tv_sec = ANSWER_LIMIT_S};
    int fd = socket(AF_INET, SOCK_STREAM, 0);

    ck_assert_int_eq(connect(fd, (struct sockaddr *)&addr, sizeof(addr)), 0);
    setsockopt(fd, SOL_SOCKET, SO_RCVTIMEO, &limit, sizeof(limit));
    return fd;
}

static void send_text(int fd, const char *text, size_t len)
{
    while (len > 0) {
        ssize_t n = send(fd, text, len, MSG_NOSIGNAL);

        ck_assert_int_gt(n, 0);
        text += n;
        len -= n;
    }
}

/* Everything until the server closes. */
static void read_all(int fd)
{
    char part[4096];
    ssize_t n;

    strbuf_reset(&answer);
    while ((n = recv(fd, part, sizeof(part), 0)) > 0)
        strbuf_add(&answer, part, n);
    close(fd);
}

static void request(const char *text)
{
    int fd = connect_client();

    send_text(fd, text, strlen(text));
    read_all(fd);
}

static int begin_post(const char *path, const char *body, const char *header)
{
    struct strbuf text = STRBUF_INIT;
    int fd = connect_client();

    strbuf_addf(&text, "POST %s HTTP/1.1\r\nHost: x\r\nContent-Length: %zu\r\n%s\r\n%s", path,
                strlen(body), header, body);
    send_text(fd, text.buf, text.len);
    strbuf_release(&text);
    return fd;
}

static void post(const char *path, const char *body)
{
    read_all(begin_post(path, body, "Connection: close\r\n"));
}

static void expect_status(int status)
{
    char want[32];

    snprintf(want, sizeof(want), "HTTP/1.1 %d ", status);
    ck_assert_msg(!strncmp(answer.buf, want, strlen(want)), "want %d: %.300s", status, answer.buf);
}

static void expect_text(const char *text)
{
    ck_assert_msg(strstr(answer.buf, text) != NULL, "no %s in: %.600s", text, answer.buf);
}

static double gauge(const char *name)
{
    const char *at;

    request("GET /metrics HTTP/1.0\r\n\r\n");
    at = strstr(answer.buf, name);
    while (at && at[strlen(name)] != '{')
        at = strstr(at + 1, name);
    ck_assert_ptr_nonnull(at);
    return atof(strchr(at, '}') + 2);
}

static void pause_ms(int ms)
{
    struct timespec ts = {.tv_nsec = ms * 1000000L};

    nanosleep(&ts, NULL);
}

/* Polls until the gauge has the value; there is no other sign to wait for. */
static void wait_gauge(const char *name, double value)
{
    for (int i = 0; i < 2000; i++) {
        if (gauge(name) == value)
            return;
        pause_ms(5);
    }
    ck_abort_msg("%s never became %g", name, value);
}

START_TEST(serve__answers_the_simple_endpoints)
{
    request("GET /health HTTP/1.0\r\n\r\n");
    expect_status(200);
    request("GET /v1/models/demo HTTP/1.0\r\n\r\n");
    expect_text("\"id\":\"demo\"");
    request("HEAD /v1/models HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n");
    expect_status(200);
    ck_assert_str_eq(strstr(answer.buf, "\r\n\r\n"), "\r\n\r\n");
    request("GET /debug/state HTTP/1.0\r\n\r\n");
    expect_status(404);
    post("/health", "{}");
    expect_status(405);
    expect_text("Allow: GET, HEAD\r\n");
}
END_TEST

/* Every answer has an id, and the client's own comes back. */
START_TEST(serve__sends_request_ids)
{
    request("GET /nope HTTP/1.0\r\n\r\n");
    expect_text("x-request-id: req-");
    request("GET /nope HTTP/1.0\r\nX-Request-Id: mine-1\r\n\r\n");
    expect_text("x-request-id: mine-1\r\n");
}
END_TEST

/* The text of the chunks of a stream, appended to out. */
static void join_chunks(struct strbuf *out)
{
    const char *at = answer.buf;

    while ((at = strstr(at, "\"text\":\""))) {
        const char *end = strstr(at += 8, "\",\"logprobs\"");

        strbuf_add(out, at, end - at);
    }
}

START_TEST(serve__streams_what_it_would_send_whole)
{
    static const char body[] =
        "{\"model\":\"demo\",\"prompt\":\"Once\",\"max_tokens\":30,\"seed\":5";
    struct strbuf text = STRBUF_INIT, whole = STRBUF_INIT, parts = STRBUF_INIT;

    strbuf_addf(&text, "%s}", body);
    post("/v1/completions", text.buf);
    expect_status(200);
    join_chunks(&whole);
    strbuf_reset(&text);
    strbuf_addf(&text, "%s,\"stream\":true,\"stream_options\":{\"include_usage\":true}}", body);
    post("/v1/completions", text.buf);
    join_chunks(&parts);
    ck_assert_uint_gt(whole.len, 0);
    ck_assert_str_eq(parts.buf, whole.buf);
    expect_text("\"choices\":[],\"usage\":{\"prompt_tokens\":");
    expect_text("data: [DONE]\n\n\r\n0\r\n\r\n");
    strbuf_release(&text);
    strbuf_release(&whole);
    strbuf_release(&parts);
}
END_TEST

/* Two prompts times two samples, in the order of prompt and sample; more than the batch waits. */
START_TEST(serve__answers_every_choice)
{
    post("/v1/completions",
         "{\"model\":\"demo\",\"prompt\":[[5],[6]],\"n\":2,\"max_tokens\":2,\"echo\":true,"
         "\"logprobs\":1,\"return_token_ids\":true}");
    expect_status(200);
    expect_text("\"index\":3,");
    expect_text("\"prompt_token_ids\":[6]");
    expect_text("\"usage\":{\"prompt_tokens\":2,\"completion_tokens\":8,");
    post("/v1/completions", "{\"model\":\"demo\",\"prompt\":[5],\"n\":40,\"max_tokens\":2}");
    expect_status(200);
    expect_text("\"index\":39,");
}
END_TEST

START_TEST(serve__refuses_what_does_not_fit)
{
    post("/v1/completions", "{\"model\":\"demo\",\"prompt\":\"x\",\"max_tokens\":9000}");
    expect_status(400);
    expect_text("\"code\":\"context_length_exceeded\"");
    post("/v1/completions", "{\"model\":\"demo\",\"prompt\":[]}");
    expect_status(400);
    post("/v1/completions", "{");
    expect_status(400);
    post("/v1/completions", "{\"model\":\"other\",\"prompt\":\"x\"}");
    expect_status(404);
    expect_text("\"code\":\"model_not_found\"");
}
END_TEST

/* Too long by its header, and too long as counted; the client that sends it all can read why. */
START_TEST(serve__refuses_long_bodies)
{
    struct strbuf body = STRBUF_INIT;

    for (int i = 0; i < 70000; i++)
        strbuf_addch(&body, 'x');
    post("/v1/completions", body.buf);
    expect_status(413);
    strbuf_reset(&body);
    strbuf_addstr(&body, "POST /v1/completions HTTP/1.1\r\nHost: x\r\nConnection: close\r\n"
                         "Transfer-Encoding: chunked\r\n\r\n");
    for (int i = 0; i < 70; i++) {
        strbuf_addstr(&body, "400\r\n");
        for (int k = 0; k < 1024; k++)
            strbuf_addch(&body, 'x');
        strbuf_addstr(&body, "\r\n");
    }
    strbuf_addstr(&body, "0\r\n\r\n");
    request(body.buf);
    expect_status(413);
    request("POST /v1/completions HTTP/1.1\r\nHost: x\r\nExpect: 100-continue\r\n"
            "Content-Length: 70000\r\n\r\n");
    expect_status(413);
    strbuf_release(&body);
}
END_TEST

/* The second request hides in the first one's body for whoever reads the other length. */
START_TEST(serve__closes_after_doubtful_heads)
{
    request("POST /v1/completions HTTP/1.1\r\nHost: x\r\nContent-Length: 2\r\n"
            "Content-Length: 40\r\n\r\n{}GET /health HTTP/1.1\r\nHost: x\r\n\r\n");
    expect_status(400);
    ck_assert_ptr_null(strstr(answer.buf + 1, "HTTP/1.1 "));
    request("POST /v1/completions HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n"
            "Content-Length: 5\r\n\r\n0\r\n\r\nGET /health HTTP/1.1\r\nHost: x\r\n\r\n");
    expect_status(400);
    ck_assert_ptr_null(strstr(answer.buf + 1, "HTTP/1.1 "));
}
END_TEST

START_TEST(serve__keeps_connections_over_pipelined_requests)
{
    request("GET /health HTTP/1.1\r\nHost: x\r\n\r\n"
            "POST /nope HTTP/1.1\r\nHost: x\r\nContent-Length: 3\r\n\r\nabc"
            "POST /v1/completions HTTP/1.1\r\nHost: x\r\nContent-Length: 46\r\n\r\n"
            "{\"model\":\"demo\",\"prompt\":\"x\", \"max_tokens\": 2}"
            "GET /version HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n");
    expect_status(200);
    expect_text("HTTP/1.1 404 ");
    expect_text("text_completion");
    expect_text("{\"version\":");
}
END_TEST

/* Reader of a stream, waiter for a whole answer: both seats come back. */
START_TEST(serve__frees_the_seat_of_a_client_that_left)
{
    int stream = begin_post("/v1/completions", LONG_ANSWER ",\"stream\":true}", "");
    int whole = begin_post("/v1/completions", LONG_ANSWER "}", "");

    wait_gauge("spand_requests_running", 2);
    close(stream);
    wait_gauge("spand_requests_running", 1);
    close(whole);
    wait_gauge("spand_requests_running", 0);
    ck_assert_double_eq(gauge("spand_kv_pages_used"), 0);
    ck_assert_double_eq(gauge("spand_exchanges"), 1); /* the one that asks */
}
END_TEST

/* A client that only closed its sending side gets its answer; a stream counts it as leaving. */
START_TEST(serve__answers_half_closed_clients)
{
    int fd = begin_post("/v1/completions", "{\"model\":\"demo\",\"prompt\":\"x\",\"max_tokens\":3}",
                        "Connection: close\r\n");

    shutdown(fd, SHUT_WR);
    read_all(fd);
    expect_text("text_completion");
    fd = begin_post("/v1/completions", LONG_ANSWER ",\"stream\":true}", "");
    shutdown(fd, SHUT_WR);
    read_all(fd);
    ck_assert_ptr_null(strstr(answer.buf, "[DONE]"));
    wait_gauge("spand_requests_running", 0);
}
END_TEST

/* Closing at any byte leaves nothing behind. */
START_TEST(serve__survives_a_close_at_each_byte)
{
    static const char text[] =
        "POST /v1/completions HTTP/1.1\r\nHost: x\r\nContent-Length: 46\r\n\r\n"
        "{\"model\":\"demo\",\"prompt\":\"x\", \"max_tokens\": 2}";

    for (size_t len = 0; len < sizeof(text); len += 3) {
        int fd = connect_client();

        send_text(fd, text, len);
        close(fd);
    }
    wait_gauge("spand_connections", 1);
    ck_assert_double_eq(gauge("spand_exchanges"), 1);
}
END_TEST

/* Half a head is given header_timeout_ms, whether or not more bytes trickle in. */
START_TEST(serve__closes_slow_heads)
{
    int fd = connect_client();
    char byte;
    bool open = true;

    send_text(fd, "GET /health HTTP/1.1\r\nA: ", 25);
    for (int i = 0; i < 100 && open; i++) {
        send(fd, "a", 1, MSG_NOSIGNAL);
        pause_ms(50);
        open = recv(fd, &byte, 1, MSG_DONTWAIT) < 0;
    }
    ck_assert(!open);
    close(fd);
}
END_TEST

/* A port that is taken is an error that names it. */
START_TEST(serve__refuses_a_taken_port)
{
    char port[8];
    int status, fds[2];
    pid_t pid;

    snprintf(port, sizeof(port), "%d", daemon_port);
    ck_assert_int_eq(pipe(fds), 0);
    pid = fork();
    if (pid == 0)
        serve_in_child(fds[1], port);
    waitpid(pid, &status, 0);
    ck_assert(WIFEXITED(status));
    ck_assert_int_eq(WEXITSTATUS(status), 1);
    close(fds[0]);
    close(fds[1]);
}
END_TEST

/* SIGTERM in the middle of a stream: the client is told, and the exit is clean. */
START_TEST(serve__stops_cleanly_during_a_stream)
{
    int fd, status;

    start_daemon();
    fd = begin_post("/v1/completions", LONG_ANSWER ",\"stream\":true}", "");
    wait_gauge("spand_requests_running", 1);
    kill(daemon_pid, SIGTERM);
    read_all(fd);
    expect_text("\"code\":\"shutting_down\"");
    expect_text("data: [DONE]\n\n");
    ck_assert_int_eq(waitpid(daemon_pid, &status, 0), daemon_pid);
    daemon_pid = 0;
    ck_assert(WIFEXITED(status));
    ck_assert_int_eq(WEXITSTATUS(status), 0);
}
END_TEST

TEST_SUITE(serve)
{
    TCase *tc = test_case(suite, "clients");
    TCase *stop = test_case(suite, "stop");

    tcase_add_unchecked_fixture(tc, start_daemon, kill_daemon);
    tcase_add_checked_fixture(tc, setup, teardown);
    tcase_add_test(tc, serve__answers_the_simple_endpoints);
    tcase_add_test(tc, serve__sends_request_ids);
    tcase_add_test(tc, serve__streams_what_it_would_send_whole);
    tcase_add_test(tc, serve__answers_every_choice);
    tcase_add_test(tc, serve__refuses_what_does_not_fit);
    tcase_add_test(tc, serve__refuses_long_bodies);
    tcase_add_test(tc, serve__closes_after_doubtful_heads);
    tcase_add_test(tc, serve__keeps_connections_over_pipelined_requests);
    tcase_add_test(tc, serve__frees_the_seat_of_a_client_that_left);
    tcase_add_test(tc, serve__answers_half_closed_clients);
    tcase_add_test(tc, serve__survives_a_close_at_each_byte);
    tcase_add_test(tc, serve__closes_slow_heads);
    tcase_add_test(tc, serve__refuses_a_taken_port);
    tcase_add_checked_fixture(stop, setup, teardown);
    tcase_add_test(stop, serve__stops_cleanly_during_a_stream);
}
