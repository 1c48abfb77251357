/*
 * test_runner - runs every suite that a linked test file registered.
 */
#include "tests/lib/test.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define MAX_SUITES     256
#define CASE_TIMEOUT_S 60

static struct {
    const char *name;
    test_suite_fn *fn;
} suites[MAX_SUITES];
static int n_suites;

void test_register(const char *name, test_suite_fn *fn)
{
    if (n_suites == MAX_SUITES)
        abort();
    suites[n_suites].name = name;
    suites[n_suites].fn = fn;
    n_suites++;
}

TCase *test_case(Suite *suite, const char *name)
{
    TCase *tc = tcase_create(name);

    tcase_set_timeout(tc, CASE_TIMEOUT_S);
    suite_add_tcase(suite, tc);
    return tc;
}

const char *test_path(const char *relative)
{
    static char path[4096];
    const char *root = getenv("SPAND_TEST_ROOT");

    snprintf(path, sizeof(path), "%s/%s", root ? root : ".", relative);
    return path;
}

static int by_name(const void *a, const void *b)
{
    return strcmp(*(const char *const *)a, *(const char *const *)b);
}

int main(void)
{
    SRunner *runner;
    int n_failed;

    if (n_suites == 0) {
        fprintf(stderr, "no suite is linked in\n");
        return 1;
    }
    if (test_before_suites)
        test_before_suites();
    runner = srunner_create(NULL);
    qsort(suites, n_suites, sizeof(suites[0]), by_name);
    for (int i = 0; i < n_suites; i++) {
        Suite *suite = suite_create(suites[i].name);

        suites[i].fn(suite);
        srunner_add_suite(runner, suite);
    }
    srunner_run_all(runner, CK_ENV);
    n_failed = srunner_ntests_failed(runner);
    srunner_free(runner);
    return n_failed ? 1 : 0;
}
