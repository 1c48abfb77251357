/*
 * strbuf - the one growable byte buffer. See strbuf.h.
 */
#include "base/strbuf.h"

#include "base/check.h"
#include "base/text.h"

#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define MIN_ALLOC 64

/* Never written: every write is behind strbuf_grow(), which moves an empty buffer to the heap. */
char strbuf_empty[1];

void strbuf_init(struct strbuf *sb)
{
    *sb = (struct strbuf)STRBUF_INIT;
}

void strbuf_release(struct strbuf *sb)
{
    if (sb->alloc)
        free(sb->buf);
    strbuf_init(sb);
}

void strbuf_reset(struct strbuf *sb)
{
    sb->len = 0;
    sb->failed = false;
    if (sb->alloc)
        sb->buf[0] = '\0';
}

bool strbuf_grow(struct strbuf *sb, size_t extra)
{
    size_t need, alloc;
    char *buf;

    if (sb->failed)
        return false;
    if (extra >= SIZE_MAX / 2 || sb->len >= SIZE_MAX / 2 - extra) {
        sb->failed = true;
        return false;
    }
    need = sb->len + extra + 1;
    if (need <= sb->alloc)
        return true;
    /* Half as much again: amortised constant cost without doubling large bodies. */
    alloc = sb->alloc + sb->alloc / 2;
    if (alloc < need)
        alloc = need;
    if (alloc < MIN_ALLOC)
        alloc = MIN_ALLOC;
    buf = realloc(sb->alloc ? sb->buf : NULL, alloc);
    if (!buf) {
        sb->failed = true;
        return false;
    }
    if (!sb->alloc)
        buf[0] = '\0';
    sb->buf = buf;
    sb->alloc = alloc;
    return true;
}

void strbuf_add(struct strbuf *sb, const void *data, size_t len)
{
    if (len == 0 || !strbuf_grow(sb, len))
        return;
    memcpy(sb->buf + sb->len, data, len);
    sb->len += len;
    sb->buf[sb->len] = '\0';
}

void strbuf_addstr(struct strbuf *sb, const char *s)
{
    strbuf_add(sb, s, strlen(s));
}

void strbuf_addch(struct strbuf *sb, int c)
{
    if (!strbuf_grow(sb, 1))
        return;
    sb->buf[sb->len++] = (char)c;
    sb->buf[sb->len] = '\0';
}

void strbuf_vaddf(struct strbuf *sb, const char *fmt, va_list ap)
{
    va_list again;
    int len;
    size_t room;

    if (sb->failed)
        return;
    va_copy(again, ap);
    room = sb->alloc ? sb->alloc - sb->len : 0;
    len = vsnprintf(room ? sb->buf + sb->len : NULL, room, fmt, ap);
    if (len < 0) {
        sb->failed = true;
        if (room)
            sb->buf[sb->len] = '\0';
    } else if ((size_t)len < room) {
        sb->len += len;
    } else {
        if (room)
            sb->buf[sb->len] = '\0';
        if (strbuf_grow(sb, len)) {
            vsnprintf(sb->buf + sb->len, (size_t)len + 1, fmt, again);
            sb->len += len;
        }
    }
    va_end(again);
}

void strbuf_addf(struct strbuf *sb, const char *fmt, ...)
{
    va_list ap;

    va_start(ap, fmt);
    strbuf_vaddf(sb, fmt, ap);
    va_end(ap);
}

void strbuf_drop(struct strbuf *sb, size_t n)
{
    CHECK(n <= sb->len);
    if (n == 0)
        return;
    sb->len -= n;
    memmove(sb->buf, sb->buf + n, sb->len + 1);
}

void strbuf_truncate(struct strbuf *sb, size_t n)
{
    CHECK(n <= sb->len);
    if (n == sb->len)
        return;
    sb->len = n;
    sb->buf[n] = '\0';
}

char *strbuf_detach(struct strbuf *sb, size_t *len)
{
    char *s;

    /* An empty result is still the caller's to free, so it must come from the heap. */
    if (!strbuf_grow(sb, 0)) {
        strbuf_release(sb);
        return NULL;
    }
    s = sb->buf;
    if (len)
        *len = sb->len;
    strbuf_init(sb);
    return s;
}

static void add_json_ascii(struct strbuf *sb, unsigned char c)
{
    switch (c) {
    case '"':
        strbuf_add(sb, "\\\"", 2);
        break;
    case '\\':
        strbuf_add(sb, "\\\\", 2);
        break;
    case '\n':
        strbuf_add(sb, "\\n", 2);
        break;
    case '\r':
        strbuf_add(sb, "\\r", 2);
        break;
    case '\t':
        strbuf_add(sb, "\\t", 2);
        break;
    case '\b':
        strbuf_add(sb, "\\b", 2);
        break;
    case '\f':
        strbuf_add(sb, "\\f", 2);
        break;
    default:
        strbuf_addf(sb, "\\u%04x", c);
    }
}

static bool is_json_plain(unsigned char c)
{
    return c >= 0x20 && c < 0x7f && c != '"' && c != '\\';
}

void strbuf_add_json(struct strbuf *sb, const char *s, size_t len)
{
    const unsigned char *p = (const unsigned char *)s;
    const unsigned char *end = p + len;

    strbuf_addch(sb, '"');
    while (p < end) {
        const unsigned char *run = p;
        size_t skip, n;

        while (p < end && is_json_plain(*p))
            p++;
        strbuf_add(sb, run, p - run);
        if (p == end)
            break;
        if (*p < 0x80) {
            add_json_ascii(sb, *p++);
            continue;
        }
        n = text_char_len((const char *)p, end - p, &skip);
        if (n) {
            strbuf_add(sb, p, n);
            p += n;
        } else {
            strbuf_add(sb, "\xef\xbf\xbd", 3);
            p += skip;
        }
    }
    strbuf_addch(sb, '"');
}
