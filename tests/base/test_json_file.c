/*
 * Tests of base/json_file.c: what is loaded, and the place that an error names.
 */
#include "tests/lib/test.h"

#include "base/err.h"
#include "base/json_file.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#define MAX_BYTES 1024

static char path[64];

static void setup(void)
{
    int fd;

    strcpy(path, "/tmp/spand-test-XXXXXX");
    fd = mkstemp(path);
    ck_assert_int_ge(fd, 0);
    close(fd);
}

static void teardown(void)
{
    unlink(path);
}

static int load(json_t **doc, const char *text, struct err *err)
{
    FILE *f = fopen(path, "wb");

    ck_assert_ptr_nonnull(f);
    fputs(text, f);
    fclose(f);
    return json_file_load(doc, path, MAX_BYTES, err);
}

/* A document is the caller's. */
START_TEST(json_file__loads)
{
    json_t *doc;

    ck_assert_int_eq(load(&doc, " {\"a\": [1, 2.5, \"\\u00e4\"]}\n", NULL), 0);
    ck_assert_uint_eq(json_array_size(json_object_get(doc, "a")), 3);
    json_decref(doc);
}
END_TEST

static const struct {
    const char *text;
    const char *place;
} bad_cases[] = {
    {"", ":1:0: "},
    {"{\"a\": 1,\n \"b\": }", ":2:"},
    {"{\"a\": 1} x", ":1:10: "},
    {"{\"a\": 1, \"a\": 2}", "duplicate object key"},
    {"\"text\"", ":1:"},
    {"{\"a\": \"\xff\"}", "decode byte 0xff"},
    {"{\"a\": \"\\u0000\"}", "NUL"},
    {"[1e999]", "overflow"},
};

/* Each malformed text is a parse error that names file, line and column. */
START_TEST(json_file__says_where_it_is_wrong)
{
    struct err err = {0};
    json_t *doc = NULL;

    ck_assert_int_eq(load(&doc, bad_cases[_i].text, &err), ERR_PARSE);
    ck_assert_ptr_null(doc);
    ck_assert_ptr_nonnull(strstr(err.msg, path));
    ck_assert_msg(strstr(err.msg, bad_cases[_i].place), "%s", err.msg);
}
END_TEST

/* Nesting as deep as the file is long must not overflow the stack. */
START_TEST(json_file__refuses_deep_nesting)
{
    static char text[100001];
    struct err err = {0};
    json_t *doc = NULL;
    FILE *f = fopen(path, "wb");

    memset(text, '[', sizeof(text) - 1);
    fputs(text, f);
    fclose(f);
    ck_assert_int_eq(json_file_load(&doc, path, sizeof(text), &err), ERR_PARSE);
    ck_assert_ptr_null(doc);
}
END_TEST

/* The limit and a missing file keep the codes of file_map. */
START_TEST(json_file__passes_on_file_errors)
{
    json_t *doc = NULL;

    load(&doc, "[1]", NULL);
    json_decref(doc);
    doc = NULL;
    ck_assert_int_eq(json_file_load(&doc, path, 2, NULL), ERR_INVALID);
    unlink(path);
    ck_assert_int_eq(json_file_load(&doc, path, MAX_BYTES, NULL), ERR_NOT_FOUND);
    ck_assert_ptr_null(doc);
}
END_TEST

TEST_SUITE(json_file)
{
    TCase *tc = test_case(suite, "core");

    tcase_add_checked_fixture(tc, setup, teardown);
    tcase_add_test(tc, json_file__loads);
    tcase_add_loop_test(tc, json_file__says_where_it_is_wrong, 0,
                        sizeof(bad_cases) / sizeof(bad_cases[0]));
    tcase_add_test(tc, json_file__refuses_deep_nesting);
    tcase_add_test(tc, json_file__passes_on_file_errors);
}
