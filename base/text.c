/*
 * text - where characters begin and end. See text.h.
 */
#include "base/text.h"

size_t text_char_len(const char *text, size_t n, size_t *skip)
{
    const unsigned char *s = (const unsigned char *)text;
    unsigned char lo = 0x80, hi = 0xbf;
    size_t want;

    *skip = 1;
    if (s[0] < 0x80)
        return 1;
    if (s[0] >= 0xc2 && s[0] <= 0xdf)
        want = 2;
    else if (s[0] >= 0xe0 && s[0] <= 0xef)
        want = 3;
    else if (s[0] >= 0xf0 && s[0] <= 0xf4)
        want = 4;
    else
        return 0;
    /* No overlong forms, no surrogates, nothing above U+10FFFF. */
    if (s[0] == 0xe0)
        lo = 0xa0;
    else if (s[0] == 0xed)
        hi = 0x9f;
    else if (s[0] == 0xf0)
        lo = 0x90;
    else if (s[0] == 0xf4)
        hi = 0x8f;
    for (size_t i = 1; i < want; i++) {
        if (i >= n || s[i] < lo || s[i] > hi)
            return 0;
        *skip = i + 1;
        lo = 0x80;
        hi = 0xbf;
    }
    return want;
}

bool text_is_utf8(const char *s, size_t len)
{
    size_t skip;

    while (len > 0) {
        size_t n = text_char_len(s, len, &skip);

        if (n == 0)
            return false;
        s += n;
        len -= n;
    }
    return true;
}
