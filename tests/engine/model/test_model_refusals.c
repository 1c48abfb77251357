/*
 * Directories that must be refused: one test for each folder tests/fixtures/models/bad-*, with
 * expect.txt beside the input; and a good file cut at every byte, with every allocation failing
 * once. Nothing may leak, which the sanitizer build watches too.
 */
#include "base/err.h"
#include "base/file_map.h"
#include "engine/model/model.h"
#include "engine/model/safetensors.h"
#include "tests/lib/test.h"
#include "tests/lib/test_weights_backend.h"

#include <dirent.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define MAX_CASES 256

static char *cases[MAX_CASES];
static int n_cases;

/* What the daemon does with --model DIR, as far as this layer goes. */
static int load(const char *dir, struct test_weights_backend *tb, bool random, struct err *err)
{
    struct model_config cfg;
    struct model *m = NULL;
    struct model_params params = {
        .dir = dir, .random_weights = random, .dtype = DTYPE_F32, .max_rows = 4, .max_logits = 2};
    int rc = model_config_load(&cfg, dir, err);

    if (rc == 0)
        rc = model_open(&m, &cfg, &tb->be, &params, err);
    model_close(m);
    return rc;
}

/* The folder is refused with the code and the words of its expect.txt, and nothing stays behind. */
START_TEST(model_refusals__folder_is_refused_as_expected)
{
    struct test_weights_backend tb;
    struct err err = {0};
    char dir[512], path[600], *expect = NULL, *code, *message;
    int rc;

    snprintf(dir, sizeof(dir), "%s/%s", test_path("tests/fixtures/models"), cases[_i]);
    snprintf(path, sizeof(path), "%s/expect.txt", dir);
    ck_assert_msg(file_read_text(&expect, NULL, path, 4096, &err) == 0, "%s", err.msg);
    code = strtok(expect, "\n");
    message = strtok(NULL, "\n");
    ck_assert_ptr_nonnull(message);
    test_weights_backend_init(&tb);
    rc = load(dir, &tb, false, &err);
    ck_assert_msg(rc < 0, "%s: loaded, want: %s", cases[_i], message);
    ck_assert_msg(strstr(err.msg, message), "%s: \"%s\", want: %s", cases[_i], err.msg, message);
    ck_assert_msg(strcmp(err_code_name(rc), code) == 0, "%s: code %s, want %s (%s)", cases[_i],
                  err_code_name(rc), code, err.msg);
    ck_assert_int_eq(err.code, rc);
    ck_assert_int_eq(tb.n_live, 0);
    free(expect);
}
END_TEST

static const char good_dir[] = "tests/golden/models/llama-head4";

/* A file cut at any byte is refused, and so is one with any byte too many. */
START_TEST(model_refusals__every_truncation_is_refused)
{
    struct file_map map;
    struct err err = {0};
    char path[512];
    unsigned char *copy;

    snprintf(path, sizeof(path), "%s/model.safetensors", test_path(good_dir));
    ck_assert_int_eq(file_map_open(&map, path, &err), 0);
    for (size_t len = 0; len <= map.len + 1; len++) {
        struct safetensors *st = NULL;
        struct err why = {0};
        int rc;

        if (len == map.len)
            continue;
        /* Exactly len bytes, so that the sanitizer sees a read behind them. */
        copy = calloc(1, len ? len : 1);
        memcpy(copy, map.data, len < map.len ? len : map.len);
        rc = safetensors_parse(&st, copy, len, "cut", &why);
        ck_assert_msg(rc == ERR_PARSE, "%zu of %zu bytes: %d", len, map.len, rc);
        ck_assert_ptr_null(st);
        free(copy);
    }
    file_map_close(&map);
}
END_TEST

/* Any allocation on the backend may fail: an error, and everything is given back. */
START_TEST(model_refusals__every_failed_allocation_leaves_nothing)
{
    struct test_weights_backend tb;
    int n_calls;

    test_weights_backend_init(&tb);
    ck_assert_int_eq(load(test_path(good_dir), &tb, _i == 1, NULL), 0);
    ck_assert_int_eq(tb.n_live, 0);
    n_calls = tb.n_calls;
    ck_assert_int_gt(n_calls, 10);
    for (int fail_at = 0; fail_at < n_calls; fail_at++) {
        struct err err = {0};

        test_weights_backend_init(&tb);
        tb.fail_at = fail_at;
        ck_assert_int_eq(load(test_path(good_dir), &tb, _i == 1, &err), ERR_NO_ROOM);
        ck_assert_ptr_nonnull(strstr(err.msg, "refused by the test"));
        ck_assert_int_eq(tb.n_live, 0);
    }
}
END_TEST

/* A directory that is not there is told apart from a bad one. */
START_TEST(model_refusals__missing_directory_is_not_found)
{
    struct model_config cfg;
    struct err err = {0};

    ck_assert_int_eq(model_config_load(&cfg, "tests/fixtures/models/no-such-dir", &err),
                     ERR_NOT_FOUND);
    ck_assert_ptr_nonnull(strstr(err.msg, "no-such-dir/config.json"));
}
END_TEST

static int by_name(const void *a, const void *b)
{
    return strcmp(*(char *const *)a, *(char *const *)b);
}

static void find_cases(void)
{
    DIR *d = opendir(test_path("tests/fixtures/models"));
    struct dirent *de;

    while (d && (de = readdir(d)) && n_cases < MAX_CASES) {
        if (strncmp(de->d_name, "bad-", 4) == 0)
            cases[n_cases++] = strdup(de->d_name);
    }
    if (d)
        closedir(d);
    qsort(cases, n_cases, sizeof(cases[0]), by_name);
}

TEST_SUITE(model_refusals)
{
    TCase *tc = test_case(suite, "refusals");

    find_cases();
    tcase_add_loop_test(tc, model_refusals__folder_is_refused_as_expected, 0, n_cases);
    tcase_add_test(tc, model_refusals__every_truncation_is_refused);
    tcase_add_loop_test(tc, model_refusals__every_failed_allocation_leaves_nothing, 0, 2);
    tcase_add_test(tc, model_refusals__missing_directory_is_not_found);
}
