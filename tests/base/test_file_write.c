/*
 * Files that are there whole or not at all.
 */
#include "base/err.h"
#include "base/file_map.h"
#include "base/file_write.h"
#include "tests/lib/test.h"

#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>
#include <unistd.h>

START_TEST(file_write__replaces_whole)
{
    char dir[] = "/tmp/spand-test-XXXXXX", path[64], *text;
    struct err err = {0};

    ck_assert_ptr_nonnull(mkdtemp(dir));
    snprintf(path, sizeof(path), "%s/a", dir);
    ck_assert_int_eq(file_write_whole(path, "one", 3, &err), 0);
    ck_assert_int_eq(file_write_whole(path, "second", 6, &err), 0);
    ck_assert_int_eq(file_read_text(&text, NULL, path, 100, &err), 0);
    ck_assert_str_eq(text, "second");
    free(text);
    unlink(path);
    rmdir(dir);
}
END_TEST

/* As on a full disk: the old file stays, and nothing lies beside it. */
START_TEST(file_write__keeps_the_old_file_when_it_cannot_write)
{
    char dir[] = "/tmp/spand-test-XXXXXX", path[64], *text, *big = calloc(1, 100000);
    struct rlimit limit = {.rlim_cur = 4096, .rlim_max = RLIM_INFINITY};
    struct err err = {0};

    ck_assert_ptr_nonnull(mkdtemp(dir));
    snprintf(path, sizeof(path), "%s/a", dir);
    ck_assert_int_eq(file_write_whole(path, "old", 3, &err), 0);
    signal(SIGXFSZ, SIG_IGN);
    ck_assert_int_eq(setrlimit(RLIMIT_FSIZE, &limit), 0);
    ck_assert_int_eq(file_write_whole(path, big, 100000, &err), ERR_IO);
    ck_assert_ptr_nonnull(strstr(err.msg, path));
    err = (struct err){0};
    ck_assert_int_eq(file_read_text(&text, NULL, path, 100, &err), 0);
    ck_assert_str_eq(text, "old");
    free(text);
    free(big);
    unlink(path);
    ck_assert_int_eq(rmdir(dir), 0); /* it is empty */
}
END_TEST

START_TEST(file_write__names_a_folder_that_is_not_there)
{
    struct err err = {0};

    ck_assert_int_eq(file_write_whole("/nowhere/at/all", "x", 1, &err), ERR_IO);
    ck_assert_ptr_nonnull(strstr(err.msg, "/nowhere/at/all"));
}
END_TEST

TEST_SUITE(file_write)
{
    TCase *tc = test_case(suite, "core");

    tcase_add_test(tc, file_write__replaces_whole);
    tcase_add_test(tc, file_write__keeps_the_old_file_when_it_cannot_write);
    tcase_add_test(tc, file_write__names_a_folder_that_is_not_there);
}
