/*
 * check - assertions that stay in release builds. See check.h.
 */
#include "base/check.h"

#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <unistd.h>

static void (*failed_hook)(const char *cond, const char *file, int line);
static atomic_flag failing = ATOMIC_FLAG_INIT;

void check_set_hook(void (*hook)(const char *cond, const char *file, int line))
{
    failed_hook = hook;
}

void check_failed(const char *cond, const char *file, int line)
{
    char text[512];
    int len = snprintf(text, sizeof(text), "CHECK failed: %s at %s:%d\n", cond, file, line);

    if (len > (int)sizeof(text) - 1)
        len = sizeof(text) - 1;
    /* write, not stdio: the broken state may be one that holds stderr's lock. */
    if (write(STDERR_FILENO, text, len) < 0)
        abort();
    /* A check that fails inside the hook, or in a second thread, must not report again. */
    if (failed_hook && !atomic_flag_test_and_set(&failing))
        failed_hook(cond, file, line);
    abort();
}
