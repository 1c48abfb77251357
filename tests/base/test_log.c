/*
 * Tests of base/log.c: what a line looks like, and that nothing a client sends can forge one.
 */
#include "tests/lib/test.h"

#include "base/log.h"

#include <jansson.h>
#include <math.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

static int pipe_fds[2], old_stderr;
static char text[65536];

static void setup(void)
{
    ck_assert_int_eq(pipe(pipe_fds), 0);
    old_stderr = dup(STDERR_FILENO);
    dup2(pipe_fds[1], STDERR_FILENO);
}

static void teardown(void)
{
    dup2(old_stderr, STDERR_FILENO);
    close(old_stderr);
    close(pipe_fds[0]);
    close(pipe_fds[1]);
    log_configure(LOG_INFO, LOG_TEXT);
}

/* What was logged so far; the pipe gets an end mark first, so that reading never waits. */
static const char *logged(void)
{
    ssize_t n;
    size_t len = 0;

    ck_assert_int_eq(write(pipe_fds[1], "\1", 1), 1);
    do {
        n = read(pipe_fds[0], text + len, sizeof(text) - len);
        ck_assert_int_gt(n, 0);
        len += n;
    } while (text[len - 1] != '\1');
    text[len - 1] = '\0';
    return text;
}

/* A text line: time, level, message, one newline. */
START_TEST(log__writes_a_text_line)
{
    int year, ms, end = 0;

    log_configure(LOG_INFO, LOG_TEXT);
    log_info("listening on %s:%d", "host", 80);
    sscanf(logged(), "%4d-%*2d-%*2dT%*2d:%*2d:%*2d.%3dZ info %n", &year, &ms, &end);
    ck_assert_int_ge(year, 2024);
    ck_assert_str_eq(text + end, "listening on host:80\n");
}
END_TEST

/* Levels above the configured one write nothing. */
START_TEST(log__keeps_quiet_above_its_level)
{
    log_configure(LOG_WARN, LOG_TEXT);
    ck_assert(log_wants(LOG_ERROR));
    ck_assert(log_wants(LOG_WARN));
    ck_assert(!log_wants(LOG_INFO));
    log_info("no");
    log_debug("no");
    log_event(LOG_INFO, "no", NULL, 0);
    ck_assert_str_eq(logged(), "");
}
END_TEST

/* Control characters of any kind are escaped: one call is one line. */
START_TEST(log__cannot_be_forged)
{
    struct log_field field = {.key = "path", .str = "/x\n2026 error fake \x1b[31m\xc2\x9b"};
    const char *line;

    log_configure(LOG_INFO, LOG_TEXT);
    log_info("%s", "a\nb\r\x1b[0m\x7f\xc2\x85z");
    line = logged();
    ck_assert_ptr_eq(strchr(line, '\n'), line + strlen(line) - 1);
    ck_assert_ptr_nonnull(strstr(line, "a\\x0ab\\x0d\\x1b[0m\\x7f\\x85z\n"));
    log_event(LOG_INFO, "request", &field, 1);
    line = logged();
    ck_assert_ptr_eq(strchr(line, '\n'), line + strlen(line) - 1);
    ck_assert_ptr_null(strchr(line, '\x1b'));
}
END_TEST

/* Fields of a text event: bare words stay bare, the rest is quoted, numbers are short. */
START_TEST(log__writes_events_as_text)
{
    struct log_field fields[] = {
        {.key = "id", .str = "cmpl-1"},    {.key = "empty", .str = ""},
        {.key = "ua", .str = "a \"b\"=c"}, {.key = "n", .num = 12345678},
        {.key = "ms", .num = 1.25},        {.key = "bad", .num = NAN},
    };

    log_configure(LOG_INFO, LOG_TEXT);
    log_event(LOG_WARN, "request", fields, 6);
    ck_assert_ptr_nonnull(strstr(logged(), " warn  request id=cmpl-1 empty=\"\" "
                                           "ua=\"a \\\"b\\\"=c\" n=12345678 ms=1.25 bad=nan\n"));
}
END_TEST

/* JSON lines parse, whatever bytes the values hold. */
START_TEST(log__writes_json_lines)
{
    struct log_field fields[] = {{.key = "path", .str = "/\xff\n\""},
                                 {.key = "n", .num = 3},
                                 {.key = "bad", .num = INFINITY}};
    json_t *line;

    log_configure(LOG_INFO, LOG_JSON);
    log_event(LOG_ERROR, "request", fields, 3);
    line = json_loads(logged(), 0, NULL);
    ck_assert_ptr_nonnull(line);
    ck_assert_str_eq(json_string_value(json_object_get(line, "level")), "error");
    ck_assert_str_eq(json_string_value(json_object_get(line, "event")), "request");
    ck_assert_str_eq(json_string_value(json_object_get(line, "path")), "/\xef\xbf\xbd\n\"");
    ck_assert_int_eq(json_integer_value(json_object_get(line, "n")), 3);
    ck_assert(json_is_null(json_object_get(line, "bad")));
    json_decref(line);
    log_info("100%% \"sure\"");
    line = json_loads(logged(), 0, NULL);
    ck_assert_ptr_nonnull(line);
    ck_assert_str_eq(json_string_value(json_object_get(line, "message")), "100% \"sure\"");
    json_decref(line);
}
END_TEST

/* A message longer than any fixed buffer arrives whole. */
START_TEST(log__does_not_cut_long_lines)
{
    static char big[20001];

    memset(big, 'x', sizeof(big) - 1);
    log_configure(LOG_INFO, LOG_TEXT);
    log_info("%s", big);
    ck_assert_ptr_nonnull(strstr(logged(), big));
}
END_TEST

static void *log_some(void *arg)
{
    (void)arg;
    for (int i = 0; i < 50; i++)
        log_info("%s", "abcdefghijklmnopqrstuvwxyz");
    return NULL;
}

/* Lines of several threads do not mix. */
START_TEST(log__keeps_lines_of_threads_apart)
{
    pthread_t threads[4];
    int n_lines = 0;

    log_configure(LOG_INFO, LOG_TEXT);
    for (int i = 0; i < 4; i++)
        ck_assert_int_eq(pthread_create(&threads[i], NULL, log_some, NULL), 0);
    for (int i = 0; i < 4; i++)
        pthread_join(threads[i], NULL);
    logged();
    for (char *line = strtok(text, "\n"); line; line = strtok(NULL, "\n")) {
        ck_assert_str_eq(line + strlen("2026-01-01T00:00:00.000Z info  "),
                         "abcdefghijklmnopqrstuvwxyz");
        n_lines++;
    }
    ck_assert_int_eq(n_lines, 200);
}
END_TEST

/* The journal gets priorities and no time of ours; another stream does not. */
START_TEST(log__speaks_to_the_journal)
{
    char stream[64];
    struct stat st;

    ck_assert_int_eq(fstat(STDERR_FILENO, &st), 0);
    snprintf(stream, sizeof(stream), "%llu:%llu", (unsigned long long)st.st_dev,
             (unsigned long long)st.st_ino);
    setenv("JOURNAL_STREAM", stream, 1);
    log_configure(LOG_DEBUG, LOG_TEXT);
    log_error("e\n<0>forged");
    log_warn("w");
    log_info("i");
    log_debug("d");
    ck_assert_str_eq(logged(), "<3>e\\x0a<0>forged\n<4>w\n<6>i\n<7>d\n");
    log_configure(LOG_INFO, LOG_JSON);
    log_info("i");
    ck_assert_int_eq(strncmp(logged(), "<6>{\"time\":", 11), 0);
    setenv("JOURNAL_STREAM", "1:1", 1);
    log_configure(LOG_INFO, LOG_TEXT);
    log_info("i");
    ck_assert_ptr_nonnull(strstr(logged(), "Z info  i\n"));
    unsetenv("JOURNAL_STREAM");
}
END_TEST

TEST_SUITE(log)
{
    TCase *tc = test_case(suite, "core");

    tcase_add_checked_fixture(tc, setup, teardown);
    tcase_add_test(tc, log__writes_a_text_line);
    tcase_add_test(tc, log__keeps_quiet_above_its_level);
    tcase_add_test(tc, log__cannot_be_forged);
    tcase_add_test(tc, log__writes_events_as_text);
    tcase_add_test(tc, log__writes_json_lines);
    tcase_add_test(tc, log__does_not_cut_long_lines);
    tcase_add_test(tc, log__keeps_lines_of_threads_apart);
    tcase_add_test(tc, log__speaks_to_the_journal);
}
