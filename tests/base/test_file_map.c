/*
 * Tests of base/file_map.c: files of any size, and everything that is not a readable file.
 */
#include "tests/lib/test.h"

#include "base/err.h"
#include "base/file_map.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

static char dir[64];
static char path[128];

static void setup(void)
{
    strcpy(dir, "/tmp/spand-test-XXXXXX");
    ck_assert_ptr_nonnull(mkdtemp(dir));
    snprintf(path, sizeof(path), "%s/file", dir);
}

static void teardown(void)
{
    unlink(path);
    rmdir(dir);
}

static void write_file(const void *data, size_t len)
{
    FILE *f = fopen(path, "wb");

    ck_assert_ptr_nonnull(f);
    ck_assert_uint_eq(fwrite(data, 1, len, f), len);
    fclose(f);
}

/* The mapping holds the bytes of the file, all of them. */
START_TEST(file_map__shows_the_whole_file)
{
    struct file_map m;
    char data[10000];

    for (size_t i = 0; i < sizeof(data); i++)
        data[i] = (char)(i * 31);
    write_file(data, sizeof(data));
    ck_assert_int_eq(file_map_open(&m, path, NULL), 0);
    ck_assert_uint_eq(m.len, sizeof(data));
    ck_assert_mem_eq(m.data, data, sizeof(data));
    file_map_close(&m);
    file_map_close(&m);
}
END_TEST

/* The file may go away under its name; the mapping stays. */
START_TEST(file_map__outlives_the_name)
{
    struct file_map m;

    write_file("abc", 3);
    ck_assert_int_eq(file_map_open(&m, path, NULL), 0);
    unlink(path);
    ck_assert_mem_eq(m.data, "abc", 3);
    file_map_close(&m);
}
END_TEST

/* An empty file maps to no bytes behind a valid pointer. */
START_TEST(file_map__maps_an_empty_file)
{
    struct file_map m;

    write_file("", 0);
    ck_assert_int_eq(file_map_open(&m, path, NULL), 0);
    ck_assert_uint_eq(m.len, 0);
    ck_assert_ptr_nonnull(m.data);
    file_map_close(&m);
}
END_TEST

/* A missing file has its own code, and the message names it. */
START_TEST(file_map__reports_a_missing_file)
{
    struct file_map m;
    struct err err = {0};

    ck_assert_int_eq(file_map_open(&m, path, &err), ERR_NOT_FOUND);
    ck_assert_ptr_nonnull(strstr(err.msg, path));
    ck_assert_ptr_nonnull(strstr(err.msg, "No such file"));
    file_map_close(&m);
    file_map_close(NULL);
}
END_TEST

/* Directories and devices are not files to map. */
START_TEST(file_map__refuses_what_is_no_file)
{
    struct file_map m;
    struct err err = {0};

    ck_assert_int_eq(file_map_open(&m, dir, &err), ERR_IO);
    ck_assert_ptr_nonnull(strstr(err.msg, "directory"));
    ck_assert_int_eq(file_map_open(&m, "/dev/null", NULL), ERR_IO);
}
END_TEST

/* Text comes back whole and NUL-terminated, from sizes around the read buffer's. */
START_TEST(file_read_text__reads_any_size)
{
    static const size_t sizes[] = {0, 1, 65534, 65535, 65536, 65537, 300000};
    static char data[300000];
    char *text;
    size_t len;

    memset(data, 'x', sizeof(data));
    for (size_t i = 0; i < sizeof(sizes) / sizeof(sizes[0]); i++) {
        write_file(data, sizes[i]);
        ck_assert_int_eq(file_read_text(&text, &len, path, 300000, NULL), 0);
        ck_assert_uint_eq(len, sizes[i]);
        ck_assert_uint_eq(strlen(text), sizes[i]);
        free(text);
    }
}
END_TEST

/* A file of exactly the limit is read, one byte more is refused with the limit in the message. */
START_TEST(file_read_text__stops_at_the_limit)
{
    struct err err = {0};
    char *text = NULL;

    write_file("12345", 5);
    ck_assert_int_eq(file_read_text(&text, NULL, path, 4, &err), ERR_INVALID);
    ck_assert_ptr_nonnull(strstr(err.msg, "4 bytes"));
    ck_assert_ptr_null(text);
    ck_assert_int_eq(file_read_text(&text, NULL, path, 5, NULL), 0);
    free(text);
}
END_TEST

/* Files without a size of their own are read to their end. */
START_TEST(file_read_text__reads_proc)
{
    char *text;
    size_t len;

    ck_assert_int_eq(file_read_text(&text, &len, "/proc/self/status", 1 << 20, NULL), 0);
    ck_assert_uint_gt(len, 0);
    free(text);
}
END_TEST

/* Missing files, directories and endless devices are errors, not crashes. */
START_TEST(file_read_text__refuses_what_it_cannot_read)
{
    char *text = NULL;

    ck_assert_int_eq(file_read_text(&text, NULL, path, 10, NULL), ERR_NOT_FOUND);
    ck_assert_int_eq(file_read_text(&text, NULL, dir, 10, NULL), ERR_IO);
    ck_assert_int_eq(file_read_text(&text, NULL, "/dev/zero", 100000, NULL), ERR_INVALID);
    ck_assert_ptr_null(text);
}
END_TEST

TEST_SUITE(file_map)
{
    TCase *tc = test_case(suite, "core");

    tcase_add_checked_fixture(tc, setup, teardown);
    tcase_add_test(tc, file_map__shows_the_whole_file);
    tcase_add_test(tc, file_map__outlives_the_name);
    tcase_add_test(tc, file_map__maps_an_empty_file);
    tcase_add_test(tc, file_map__reports_a_missing_file);
    tcase_add_test(tc, file_map__refuses_what_is_no_file);
    tcase_add_test(tc, file_read_text__reads_any_size);
    tcase_add_test(tc, file_read_text__stops_at_the_limit);
    tcase_add_test(tc, file_read_text__reads_proc);
    tcase_add_test(tc, file_read_text__refuses_what_it_cannot_read);
}
