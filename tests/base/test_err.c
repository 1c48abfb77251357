/*
 * Tests of base/err.c: the first message wins, and no length overruns the buffer.
 */
#include "tests/lib/test.h"

#include "base/err.h"

#include <errno.h>
#include <string.h>

/* The deepest cause is the one reported. */
START_TEST(err__keeps_the_first_message)
{
    struct err err = {0};

    ck_assert_int_eq(err_set(&err, ERR_PARSE, "line %d", 7), ERR_PARSE);
    ck_assert_int_eq(err_set(&err, ERR_IO, "later"), ERR_IO);
    ck_assert_int_eq(err_set_errno(&err, ERR_IO, ENOENT, "later still"), ERR_IO);
    ck_assert_int_eq(err.code, ERR_PARSE);
    ck_assert_str_eq(err.msg, "line 7");
}
END_TEST

/* A caller that does not want the message passes NULL and still gets the code. */
START_TEST(err__accepts_null)
{
    ck_assert_int_eq(err_set(NULL, ERR_LIMIT, "x"), ERR_LIMIT);
    ck_assert_int_eq(err_set_errno(NULL, ERR_IO, EPERM, "x"), ERR_IO);
    err_prefix(NULL, "x");
}
END_TEST

/* The system's own words stand behind the message. */
START_TEST(err__appends_what_errno_means)
{
    struct err err = {0};

    err_set_errno(&err, ERR_IO, ENOENT, "open %s", "x.json");
    ck_assert_str_eq(err.msg, "open x.json: No such file or directory");
}
END_TEST

/* Outer context goes in front; without a message there is nothing to put it before. */
START_TEST(err__prefixes_an_existing_message_only)
{
    struct err err = {0};

    err_prefix(&err, "model dir %s", "m");
    ck_assert_int_eq(err.code, 0);
    ck_assert_str_eq(err.msg, "");
    err_set(&err, ERR_PARSE, "no layers");
    err_prefix(&err, "model dir %s", "m");
    ck_assert_str_eq(err.msg, "model dir m: no layers");
    ck_assert_int_eq(err.code, ERR_PARSE);
}
END_TEST

/* A message of any length is cut, with its NUL in place. */
START_TEST(err__cuts_long_messages)
{
    struct err err = {0};
    char text[3 * ERR_MSG_BYTES];

    memset(text, 'a', sizeof(text) - 1);
    text[sizeof(text) - 1] = '\0';
    err_set(&err, ERR_PARSE, "%s", text);
    ck_assert_uint_eq(strlen(err.msg), ERR_MSG_BYTES - 1);
    err_prefix(&err, "%s", text);
    ck_assert_uint_eq(strlen(err.msg), ERR_MSG_BYTES - 1);
    err.code = 0;
    err_set_errno(&err, ERR_IO, ENOENT, "%s", text);
    ck_assert_uint_eq(strlen(err.msg), ERR_MSG_BYTES - 1);
}
END_TEST

/* Every code has a word of its own, and an unknown one does not crash the log. */
START_TEST(err__names_every_code)
{
    for (int a = ERR_CLOSED; a <= 0; a++) {
        ck_assert_str_ne(err_code_name(a), "unknown");
        for (int b = ERR_CLOSED; b < a; b++)
            ck_assert_str_ne(err_code_name(a), err_code_name(b));
    }
    ck_assert_str_eq(err_code_name(-1000), "unknown");
    ck_assert_str_eq(err_code_name(1), "unknown");
}
END_TEST

TEST_SUITE(err)
{
    TCase *tc = test_case(suite, "core");

    tcase_add_test(tc, err__keeps_the_first_message);
    tcase_add_test(tc, err__accepts_null);
    tcase_add_test(tc, err__appends_what_errno_means);
    tcase_add_test(tc, err__prefixes_an_existing_message_only);
    tcase_add_test(tc, err__cuts_long_messages);
    tcase_add_test(tc, err__names_every_code);
}
