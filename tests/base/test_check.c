/*
 * Tests of base/check.c: what holds costs nothing, what fails reports and aborts. The failing
 * ones run in a child of their own, so that the suite also passes unforked.
 */
#include "tests/lib/test.h"

#include "base/check.h"

#include <fcntl.h>
#include <signal.h>
#include <string.h>
#include <sys/wait.h>
#include <unistd.h>

/* Runs fn in a child whose stderr is captured; returns its wait status. */
static int run_child(void (*fn)(void), char *text, size_t size)
{
    int fds[2], status;
    size_t len = 0;
    ssize_t n;
    pid_t pid;

    ck_assert_int_eq(pipe(fds), 0);
    pid = fork();
    ck_assert_int_ge(pid, 0);
    if (pid == 0) {
        dup2(fds[1], STDERR_FILENO);
        close(fds[0]);
        fn();
        _exit(0);
    }
    close(fds[1]);
    while (len < size - 1 && (n = read(fds[0], text + len, size - 1 - len)) > 0)
        len += n;
    text[len] = '\0';
    close(fds[0]);
    ck_assert_int_eq(waitpid(pid, &status, 0), pid);
    return status;
}

static void fail_plainly(void)
{
    int pos = 3, len = 2;

    CHECK(pos < len);
}

static void say_hook(const char *cond, const char *file, int line)
{
    char text[64] = "hook: ";

    (void)file;
    (void)line;
    strncat(text, cond, sizeof(text) - 10);
    strcat(text, "\n");
    if (write(STDERR_FILENO, text, strlen(text)) < 0)
        _exit(9);
}

static void failing_hook(const char *cond, const char *file, int line)
{
    say_hook(cond, file, line);
    CHECK(cond == NULL);
}

static void fail_with_hook(void)
{
    check_set_hook(say_hook);
    fail_plainly();
}

static void fail_with_failing_hook(void)
{
    check_set_hook(failing_hook);
    fail_plainly();
}

static void fail_without_hook_again(void)
{
    check_set_hook(say_hook);
    check_set_hook(NULL);
    fail_plainly();
}

/* The condition is evaluated once and a true one does nothing. */
START_TEST(check__passes_what_holds)
{
    int n = 0;

    CHECK(++n == 1);
    ck_assert_int_eq(n, 1);
}
END_TEST

/* The report names condition, file and line, and the process ends by SIGABRT. */
START_TEST(check__reports_and_aborts)
{
    char text[512];
    int status = run_child(fail_plainly, text, sizeof(text));

    ck_assert(WIFSIGNALED(status));
    ck_assert_int_eq(WTERMSIG(status), SIGABRT);
    ck_assert_ptr_nonnull(strstr(text, "CHECK failed: pos < len at "));
    ck_assert_ptr_nonnull(strstr(text, "test_check.c:"));
}
END_TEST

/* The crash report gets its turn before the abort. */
START_TEST(check__calls_the_hook)
{
    char text[512];
    int status = run_child(fail_with_hook, text, sizeof(text));

    ck_assert_int_eq(WTERMSIG(status), SIGABRT);
    ck_assert_ptr_nonnull(strstr(text, "hook: pos < len"));
}
END_TEST

/* A check that fails inside the hook ends the process instead of calling the hook again. */
START_TEST(check__calls_the_hook_once)
{
    char text[1024];
    char *first;
    int status = run_child(fail_with_failing_hook, text, sizeof(text));

    ck_assert_int_eq(WTERMSIG(status), SIGABRT);
    first = strstr(text, "hook: ");
    ck_assert_ptr_nonnull(first);
    ck_assert_ptr_null(strstr(first + 1, "hook: "));
}
END_TEST

/* NULL takes the hook away. */
START_TEST(check__forgets_the_hook)
{
    char text[512];

    run_child(fail_without_hook_again, text, sizeof(text));
    ck_assert_ptr_null(strstr(text, "hook: "));
}
END_TEST

TEST_SUITE(check)
{
    TCase *tc = test_case(suite, "core");

    tcase_add_test(tc, check__passes_what_holds);
    tcase_add_test(tc, check__reports_and_aborts);
    tcase_add_test(tc, check__calls_the_hook);
    tcase_add_test(tc, check__calls_the_hook_once);
    tcase_add_test(tc, check__forgets_the_hook);
}
