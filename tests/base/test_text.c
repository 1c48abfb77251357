/*
 * Tests of base/text.c against the definition: every code point, and every kind of malformed byte.
 */
#include "tests/lib/test.h"

#include "base/text.h"

#include <stdint.h>
#include <string.h>

static size_t encode(uint32_t cp, char *out)
{
    if (cp < 0x80) {
        out[0] = (char)cp;
        return 1;
    }
    if (cp < 0x800) {
        out[0] = (char)(0xc0 | cp >> 6);
        out[1] = (char)(0x80 | (cp & 63));
        return 2;
    }
    if (cp < 0x10000) {
        out[0] = (char)(0xe0 | cp >> 12);
        out[1] = (char)(0x80 | (cp >> 6 & 63));
        out[2] = (char)(0x80 | (cp & 63));
        return 3;
    }
    out[0] = (char)(0xf0 | cp >> 18);
    out[1] = (char)(0x80 | (cp >> 12 & 63));
    out[2] = (char)(0x80 | (cp >> 6 & 63));
    out[3] = (char)(0x80 | (cp & 63));
    return 4;
}

/* Every code point has its length, but the surrogates and what lies above U+10FFFF. */
START_TEST(text__knows_every_code_point)
{
    char text[4];
    size_t skip;

    for (uint32_t cp = 0; cp < 0x140000; cp++) {
        size_t len = encode(cp, text);
        bool valid = cp <= 0x10ffff && (cp < 0xd800 || cp > 0xdfff);

        ck_assert_uint_eq(text_char_len(text, len, &skip), valid ? len : 0);
    }
}
END_TEST

/* A character that is cut off is skipped as a whole, one byte of it or more. */
START_TEST(text__skips_what_was_cut_off)
{
    static const char *const texts[] = {"\xc3\xa4", "\xe2\x82\xac", "\xf0\x9f\x99\x82"};
    size_t skip;

    for (int i = 0; i < 3; i++) {
        for (size_t n = 1; n < strlen(texts[i]); n++) {
            ck_assert_uint_eq(text_char_len(texts[i], n, &skip), 0);
            ck_assert_uint_eq(skip, n);
        }
        ck_assert_uint_eq(text_char_len(texts[i], 10, &skip), strlen(texts[i]));
    }
}
END_TEST

static const struct {
    const char *text;
    size_t skip;
} malformed[] = {
    {"\x80", 1},
    {"\xbf", 1},
    {"\xc0\x80", 1},
    {"\xc1\xbf", 1},
    {"\xe0\x9f\xbf", 1},
    {"\xed\xa0\x80", 1},
    {"\xf0\x8f\xbf\xbf", 1},
    {"\xf4\x90\x80\x80", 1},
    {"\xf5\x80", 1},
    {"\xff", 1},
    {"\xc3x", 1},
    {"\xe2\x82x", 2},
    {"\xf0\x9f\x99x", 3},
};

/* Malformed bytes are no character, and the skip never swallows a good byte behind them. */
START_TEST(text__refuses_malformed_bytes)
{
    size_t skip;

    ck_assert_uint_eq(text_char_len(malformed[_i].text, strlen(malformed[_i].text), &skip), 0);
    ck_assert_uint_eq(skip, malformed[_i].skip);
    ck_assert(!text_is_utf8(malformed[_i].text, strlen(malformed[_i].text)));
}
END_TEST

/* Whole texts: the empty one, NULs, and a good text with a bad end. */
START_TEST(text__judges_texts)
{
    ck_assert(text_is_utf8("", 0));
    ck_assert(text_is_utf8("a\0b", 3));
    ck_assert(text_is_utf8("gr\xc3\xbc\xc3\x9f", 6));
    ck_assert(!text_is_utf8("gr\xc3\xbc\xc3", 5));
}
END_TEST

TEST_SUITE(text)
{
    TCase *tc = test_case(suite, "core");

    tcase_add_test(tc, text__knows_every_code_point);
    tcase_add_test(tc, text__skips_what_was_cut_off);
    tcase_add_loop_test(tc, text__refuses_malformed_bytes, 0,
                        sizeof(malformed) / sizeof(malformed[0]));
    tcase_add_test(tc, text__judges_texts);
}
