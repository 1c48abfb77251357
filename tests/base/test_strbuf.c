/*
 * Tests of base/strbuf.c: always NUL-terminated, failure sticks until reset, JSON strings are
 * valid.
 */
#include "tests/lib/test.h"

#include "base/strbuf.h"

#include <jansson.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

static struct strbuf sb;

static void setup(void)
{
    strbuf_init(&sb);
}

static void teardown(void)
{
    strbuf_release(&sb);
}

/* The empty buffer is a string, before and after it held something. */
START_TEST(strbuf__is_a_string_when_empty)
{
    struct strbuf fresh = STRBUF_INIT;

    ck_assert_str_eq(fresh.buf, "");
    ck_assert_str_eq(sb.buf, "");
    strbuf_addstr(&sb, "x");
    strbuf_reset(&sb);
    ck_assert_str_eq(sb.buf, "");
    strbuf_release(&sb);
    ck_assert_str_eq(sb.buf, "");
    strbuf_release(&sb);
}
END_TEST

/* Every way to add leaves length, bytes and NUL right, NUL bytes inside included. */
START_TEST(strbuf__adds)
{
    strbuf_add(&sb, "a\0b", 3);
    strbuf_addch(&sb, 'c');
    strbuf_addstr(&sb, "de");
    strbuf_addf(&sb, "%d-%s", 42, "f");
    ck_assert_uint_eq(sb.len, 10);
    ck_assert_mem_eq(sb.buf, "a\0bcde42-f", 11);
}
END_TEST

/* Growth over many sizes loses no byte. */
START_TEST(strbuf__grows_without_loss)
{
    for (int i = 0; i < 5000; i++)
        strbuf_addf(&sb, "%04d", i);
    ck_assert_uint_eq(sb.len, 20000);
    for (int i = 0; i < 5000; i++)
        ck_assert_int_eq(atoi((char[]){sb.buf[4 * i], sb.buf[4 * i + 1], sb.buf[4 * i + 2],
                                       sb.buf[4 * i + 3], '\0'}),
                         i);
}
END_TEST

/* A formatted text that exactly fills the room, and one byte more, come out whole. */
START_TEST(strbuf__formats_at_the_border_of_its_room)
{
    for (int width = 60; width < 70; width++) {
        struct strbuf one = STRBUF_INIT;

        strbuf_addch(&one, '>');
        strbuf_addf(&one, "%*d", width, 7);
        ck_assert_uint_eq(one.len, (size_t)width + 1);
        ck_assert_int_eq(one.buf[width], '7');
        ck_assert_int_eq(one.buf[width + 1], '\0');
        strbuf_release(&one);
    }
}
END_TEST

/* Bytes leave from the front and from the end. */
START_TEST(strbuf__drops_and_truncates)
{
    strbuf_drop(&sb, 0);
    strbuf_truncate(&sb, 0);
    strbuf_addstr(&sb, "abcdef");
    strbuf_drop(&sb, 2);
    ck_assert_str_eq(sb.buf, "cdef");
    strbuf_truncate(&sb, 1);
    ck_assert_str_eq(sb.buf, "c");
    strbuf_drop(&sb, 1);
    ck_assert_str_eq(sb.buf, "");
    ck_assert_uint_eq(sb.len, 0);
}
END_TEST

/* After a failure the content stays, later additions do nothing, and reset starts over. */
START_TEST(strbuf__fails_once_and_keeps_what_is_there)
{
    strbuf_addstr(&sb, "kept");
    ck_assert(!strbuf_grow(&sb, SIZE_MAX));
    ck_assert(!strbuf_grow(&sb, SIZE_MAX / 2 - 1));
    strbuf_addstr(&sb, "lost");
    strbuf_addch(&sb, 'x');
    strbuf_addf(&sb, "%d", 1);
    ck_assert(sb.failed);
    ck_assert_str_eq(sb.buf, "kept");
    strbuf_reset(&sb);
    strbuf_addstr(&sb, "again");
    ck_assert(!sb.failed);
    ck_assert_str_eq(sb.buf, "again");
}
END_TEST

/* A detached string belongs to the caller, also when it is empty. */
START_TEST(strbuf__detaches)
{
    size_t len = 99;
    char *s = strbuf_detach(&sb, &len);

    ck_assert_str_eq(s, "");
    ck_assert_uint_eq(len, 0);
    free(s);
    strbuf_addstr(&sb, "mine");
    s = strbuf_detach(&sb, NULL);
    ck_assert_str_eq(s, "mine");
    ck_assert_str_eq(sb.buf, "");
    free(s);
}
END_TEST

/* A buffer that failed has no string to give, and is usable again afterwards. */
START_TEST(strbuf__detaches_null_after_a_failure)
{
    strbuf_addstr(&sb, "half");
    strbuf_grow(&sb, SIZE_MAX);
    ck_assert_ptr_null(strbuf_detach(&sb, NULL));
    strbuf_addstr(&sb, "new");
    ck_assert_str_eq(sb.buf, "new");
}
END_TEST

static const struct {
    const char *in;
    size_t len;
    const char *out;
} json_cases[] = {
    {"", 0, "\"\""},
    {"plain", 5, "\"plain\""},
    {"a\"b\\c/", 6, "\"a\\\"b\\\\c/\""},
    {"\n\r\t\b\f", 5, "\"\\n\\r\\t\\b\\f\""},
    {"\0\x1f\x7f", 3, "\"\\u0000\\u001f\\u007f\""},
    {"\xc3\xa4\xe2\x82\xac\xf0\x9f\x99\x82", 9, "\"\xc3\xa4\xe2\x82\xac\xf0\x9f\x99\x82\""},
    {"\xed\x9f\xbf\xf4\x8f\xbf\xbf", 7, "\"\xed\x9f\xbf\xf4\x8f\xbf\xbf\""},
    /* What follows is invalid: one U+FFFD for each longest prefix of a sequence. */
    {"\x80", 1, "\"\xef\xbf\xbd\""},
    {"a\xffz", 3, "\"a\xef\xbf\xbdz\""},
    {"\xe2\x82", 2, "\"\xef\xbf\xbd\""},
    {"\xe2\x82x", 3, "\"\xef\xbf\xbdx\""},
    {"\xf0\x9f\x99", 3, "\"\xef\xbf\xbd\""},
    {"\xc0\xaf", 2, "\"\xef\xbf\xbd\xef\xbf\xbd\""},
    {"\xed\xa0\x80", 3, "\"\xef\xbf\xbd\xef\xbf\xbd\xef\xbf\xbd\""},
    {"\xf4\x90\x80\x80", 4, "\"\xef\xbf\xbd\xef\xbf\xbd\xef\xbf\xbd\xef\xbf\xbd\""},
    {"\xe0\x80\x80", 3, "\"\xef\xbf\xbd\xef\xbf\xbd\xef\xbf\xbd\""},
    {"\xf0\x80\x80", 3, "\"\xef\xbf\xbd\xef\xbf\xbd\xef\xbf\xbd\""},
};

/* Escapes, multi-byte characters and every kind of malformed UTF-8 give the expected text. */
START_TEST(strbuf__writes_json_strings)
{
    strbuf_add_json(&sb, json_cases[_i].in, json_cases[_i].len);
    ck_assert_str_eq(sb.buf, json_cases[_i].out);
}
END_TEST

/* Any two bytes give a document that a JSON parser accepts. */
START_TEST(strbuf__writes_json_that_parses)
{
    for (int n = 0; n < 65536; n++) {
        char two[2] = {(char)(n >> 8), (char)n};
        json_t *value;

        strbuf_reset(&sb);
        strbuf_add_json(&sb, two, 2);
        value = json_loadb(sb.buf, sb.len, JSON_DECODE_ANY | JSON_ALLOW_NUL, NULL);
        ck_assert_msg(value, "bytes %02x %02x", n >> 8, n & 255);
        json_decref(value);
    }
}
END_TEST

TEST_SUITE(strbuf)
{
    TCase *tc = test_case(suite, "core");

    tcase_add_checked_fixture(tc, setup, teardown);
    tcase_add_test(tc, strbuf__is_a_string_when_empty);
    tcase_add_test(tc, strbuf__adds);
    tcase_add_test(tc, strbuf__grows_without_loss);
    tcase_add_test(tc, strbuf__formats_at_the_border_of_its_room);
    tcase_add_test(tc, strbuf__drops_and_truncates);
    tcase_add_test(tc, strbuf__fails_once_and_keeps_what_is_there);
    tcase_add_test(tc, strbuf__detaches);
    tcase_add_test(tc, strbuf__detaches_null_after_a_failure);
    tcase_add_loop_test(tc, strbuf__writes_json_strings, 0,
                        sizeof(json_cases) / sizeof(json_cases[0]));
    tcase_add_test(tc, strbuf__writes_json_that_parses);
}
