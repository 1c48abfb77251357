/*
 * utf8 - code points in byte strings. Inside the tokenizer every text is valid UTF-8: what comes
 * from outside passes utf8_sanitise() first.
 */
#ifndef UTF8_H
#define UTF8_H

#include <stddef.h>
#include <stdint.h>

struct strbuf;

#define UTF8_REPLACEMENT "\xef\xbf\xbd" /* U+FFFD */

/* The code point at s of a valid text; *len is its bytes. */
static inline uint32_t utf8_get(const char *s, int *len)
{
    const unsigned char *u = (const unsigned char *)s;

    if (u[0] < 0x80) {
        *len = 1;
        return u[0];
    }
    if (u[0] < 0xe0) {
        *len = 2;
        return (uint32_t)(u[0] & 0x1f) << 6 | (u[1] & 0x3f);
    }
    if (u[0] < 0xf0) {
        *len = 3;
        return (uint32_t)(u[0] & 0x0f) << 12 | (uint32_t)(u[1] & 0x3f) << 6 | (u[2] & 0x3f);
    }
    *len = 4;
    return (uint32_t)(u[0] & 0x07) << 18 | (uint32_t)(u[1] & 0x3f) << 12 |
           (uint32_t)(u[2] & 0x3f) << 6 | (u[3] & 0x3f);
}

/* Bytes of the character that starts with this byte of a valid text. */
static inline int utf8_len(unsigned char lead)
{
    return lead < 0x80 ? 1 : lead < 0xe0 ? 2 : lead < 0xf0 ? 3 : 4;
}

/* The code point that ends before s + at, at > 0, of a valid text. */
static inline uint32_t utf8_before(const char *s, size_t at)
{
    int len;

    do
        at--;
    while (((unsigned char)s[at] & 0xc0) == 0x80);
    return utf8_get(s + at, &len);
}

/* Writes up to 4 bytes, returns how many. */
int utf8_put(char *out, uint32_t cp);
void utf8_add(struct strbuf *sb, uint32_t cp);

/*
 * How s begins: a valid character of n > 0 bytes; an ill-formed part of -n bytes that becomes one
 * U+FFFD; or 0 when the len bytes may be the start of a character that continues.
 */
int utf8_check(const char *s, size_t len);

/* The length of the valid text at the start of s. */
size_t utf8_valid_len(const char *s, size_t len);

/* Appends s with each maximal ill-formed part as U+FFFD, like decode('utf-8', 'replace'). */
void utf8_sanitise(struct strbuf *out, const char *s, size_t len);

/* Characters in a valid text. */
size_t utf8_count(const char *s, size_t len);

#endif
