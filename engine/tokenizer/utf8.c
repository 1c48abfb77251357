/*
 * utf8 - code points in byte strings. See utf8.h.
 */
#include "engine/tokenizer/utf8.h"

#include "base/strbuf.h"

#include <string.h>

int utf8_put(char *out, uint32_t cp)
{
    if (cp < 0x80) {
        out[0] = (char)cp;
        return 1;
    }
    if (cp < 0x800) {
        out[0] = (char)(0xc0 | cp >> 6);
        out[1] = (char)(0x80 | (cp & 0x3f));
        return 2;
    }
    if (cp < 0x10000) {
        out[0] = (char)(0xe0 | cp >> 12);
        out[1] = (char)(0x80 | (cp >> 6 & 0x3f));
        out[2] = (char)(0x80 | (cp & 0x3f));
        return 3;
    }
    out[0] = (char)(0xf0 | cp >> 18);
    out[1] = (char)(0x80 | (cp >> 12 & 0x3f));
    out[2] = (char)(0x80 | (cp >> 6 & 0x3f));
    out[3] = (char)(0x80 | (cp & 0x3f));
    return 4;
}

void utf8_add(struct strbuf *sb, uint32_t cp)
{
    char c[4];

    strbuf_add(sb, c, (size_t)utf8_put(c, cp));
}

int utf8_check(const char *s, size_t len)
{
    const unsigned char *u = (const unsigned char *)s;
    unsigned char low = 0x80, high = 0xbf; /* bounds of the second byte */
    int need;

    if (len == 0)
        return 0;
    if (u[0] < 0x80)
        return 1;
    if (u[0] < 0xc2 || u[0] > 0xf4)
        return -1;
    need = utf8_len(u[0]);
    if (u[0] == 0xe0)
        low = 0xa0; /* below: overlong */
    if (u[0] == 0xed)
        high = 0x9f; /* above: surrogates */
    if (u[0] == 0xf0)
        low = 0x90;
    if (u[0] == 0xf4)
        high = 0x8f; /* above: beyond U+10FFFF */
    for (int i = 1; i < need; i++) {
        if ((size_t)i == len)
            return 0;
        if (u[i] < low || u[i] > high)
            return -i;
        low = 0x80;
        high = 0xbf;
    }
    return need;
}

size_t utf8_valid_len(const char *s, size_t len)
{
    size_t at = 0;
    uint64_t word;
    int n;

    while (at < len) {
        if (len - at >= 8) {
            memcpy(&word, s + at, 8);
            if (!(word & 0x8080808080808080u)) {
                at += 8;
                continue;
            }
        }
        n = utf8_check(s + at, len - at);
        if (n <= 0)
            break;
        at += (size_t)n;
    }
    return at;
}

void utf8_sanitise(struct strbuf *out, const char *s, size_t len)
{
    while (len) {
        size_t valid = utf8_valid_len(s, len);
        int bad;

        strbuf_add(out, s, valid);
        s += valid;
        len -= valid;
        if (!len)
            break;
        bad = utf8_check(s, len);
        strbuf_add(out, UTF8_REPLACEMENT, 3);
        if (bad == 0)
            break; /* a character cut off by the end counts once */
        s -= bad;
        len -= (size_t)-bad;
    }
}

size_t utf8_count(const char *s, size_t len)
{
    size_t n = 0;

    for (size_t i = 0; i < len; i++)
        n += ((unsigned char)s[i] & 0xc0) != 0x80;
    return n;
}
