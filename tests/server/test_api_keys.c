/*
 * Tests of server/api_keys.c: files, what is found, and what a reload leaves alone.
 */
#include "tests/lib/test.h"

#include "base/err.h"
#include "server/access.h"
#include "server/api_keys.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

static char path[] = "/tmp/spand-keys-XXXXXX";
static struct api_keys keys;

static void setup(void)
{
    int fd;

    snprintf(path, sizeof(path), "/tmp/spand-keys-XXXXXX");
    fd = mkstemp(path);
    ck_assert_int_ge(fd, 0);
    close(fd);
    keys = (struct api_keys){0};
}

static void teardown(void)
{
    api_keys_release(&keys);
    unlink(path);
}

static int load(const char *text, struct err *err)
{
    FILE *f = fopen(path, "w");

    fputs(text, f);
    fclose(f);
    *err = (struct err){0};
    return api_keys_load(&keys, path, err);
}

START_TEST(api_keys__finds_a_key_in_each_header)
{
    struct err err;
    struct api_key *alice;

    ck_assert_int_eq(load("# keys\n\nalice sk-alice-123\r\nsk-nameless-1\n", &err), 0);
    ck_assert(api_keys_are_required(&keys));
    alice = api_keys_find(&keys, "Bearer sk-alice-123", NULL);
    ck_assert_ptr_nonnull(alice);
    ck_assert_str_eq(alice->id, "alice");
    ck_assert_ptr_eq(api_keys_find(&keys, "bearer  sk-alice-123", NULL), alice);
    ck_assert_ptr_eq(api_keys_find(&keys, NULL, "sk-alice-123"), alice);
    /* "x:sk-alice-123" */
    ck_assert_ptr_eq(api_keys_find(&keys, "Basic eDpzay1hbGljZS0xMjM=", NULL), alice);
    ck_assert_int_eq(strncmp(api_keys_find(&keys, NULL, "sk-nameless-1")->id, "k-", 2), 0);
}
END_TEST

START_TEST(api_keys__finds_nothing_else)
{
    static const char *const wrong[] = {"",
                                        "Bearer",
                                        "Bearer ",
                                        "Bearer sk-alice-12",
                                        "Bearer sk-alice-1234",
                                        "Basic ",
                                        "Basic !!!!",
                                        "Basic eDpz",
                                        "sk-alice-123",
                                        "Bearer alice",
                                        "Digest sk-alice-123",
                                        "Bearer SK-ALICE-123"};
    struct err err;

    ck_assert_int_eq(load("alice sk-alice-123\n", &err), 0);
    for (size_t i = 0; i < sizeof(wrong) / sizeof(wrong[0]); i++)
        ck_assert_msg(!api_keys_find(&keys, wrong[i], NULL), "%s", wrong[i]);
    ck_assert_ptr_null(api_keys_find(&keys, NULL, NULL));
    ck_assert_ptr_null(api_keys_find(&keys, NULL, ""));
}
END_TEST

START_TEST(api_keys__refuses_bad_files_and_keeps_the_old_keys)
{
    static const char *const bad[] = {"",        "# none\n",          "short\n",
                                      "a b c\n", "na/me key-12345\n", "key-12345\nkey-12345\n"};
    struct err err;

    ck_assert_int_eq(load("old key-of-old\n", &err), 0);
    for (size_t i = 0; i < sizeof(bad) / sizeof(bad[0]); i++) {
        ck_assert_msg(load(bad[i], &err) == ERR_INVALID, "%s: %s", bad[i], err.msg);
        ck_assert_ptr_nonnull(api_keys_find(&keys, NULL, "key-of-old"));
    }
    ck_assert_int_lt(api_keys_load(&keys, "/no/such/file", &err), 0);
}
END_TEST

/* A key that was taken out of the file is refused at once, and lives until its request ends. */
START_TEST(api_keys__reloads_under_running_requests)
{
    struct err err;
    struct api_key *a, *b;

    ck_assert_int_eq(load("a key-number-a\nb key-number-b\n", &err), 0);
    a = api_keys_find(&keys, NULL, "key-number-a");
    b = api_keys_find(&keys, NULL, "key-number-b");
    api_key_take(a);
    api_key_take(b);
    ck_assert_int_eq(load("renamed key-number-b\nc key-number-c\n", &err), 0);
    ck_assert_ptr_null(api_keys_find(&keys, NULL, "key-number-a"));
    ck_assert_ptr_eq(api_keys_find(&keys, NULL, "key-number-b"), b);
    ck_assert_str_eq(b->id, "renamed");
    ck_assert_int_eq(b->n_active, 1);
    ck_assert_ptr_nonnull(api_keys_find(&keys, NULL, "key-number-c"));
    api_key_give(&keys, a);
    api_key_give(&keys, b);
    ck_assert_ptr_eq(api_keys_find(&keys, NULL, "key-number-b"), b);
}
END_TEST

START_TEST(access__knows_its_origins)
{
    ck_assert(access_allows_origin("https://a.org, https://b.org:8443", "https://b.org:8443"));
    ck_assert(access_allows_origin("*", "null"));
    ck_assert(!access_allows_origin("", "https://a.org"));
    ck_assert(!access_allows_origin("https://a.org", "https://a.org.evil.org"));
    ck_assert(!access_allows_origin("https://a.org", "https://a.or"));
    ck_assert(!access_allows_origin("https://a.org", ""));
}
END_TEST

TEST_SUITE(api_keys)
{
    TCase *tc = test_case(suite, "keys");

    tcase_add_checked_fixture(tc, setup, teardown);
    tcase_add_test(tc, api_keys__finds_a_key_in_each_header);
    tcase_add_test(tc, api_keys__finds_nothing_else);
    tcase_add_test(tc, api_keys__refuses_bad_files_and_keeps_the_old_keys);
    tcase_add_test(tc, api_keys__reloads_under_running_requests);
    tcase_add_test(tc, access__knows_its_origins);
}
