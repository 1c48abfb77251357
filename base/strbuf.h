/*
 * strbuf - the one growable byte buffer.
 *
 * Always: buf[len] == 0, also when empty. A failed allocation sets `failed` and leaves what is
 * there; later additions do nothing, so a writer may add freely and ask once at the end.
 * Initialise with STRBUF_INIT or strbuf_init(); release with strbuf_release().
 */
#ifndef STRBUF_H
#define STRBUF_H

#include <stdarg.h>
#include <stdbool.h>
#include <stddef.h>

struct strbuf {
    char *buf;    /* NUL-terminated, never NULL; the empty buffer points to static memory */
    size_t len;   /* bytes before the NUL */
    size_t alloc; /* private */
    bool failed;
};

extern char strbuf_empty[];
#define STRBUF_INIT                                                                                \
    {                                                                                              \
        .buf = strbuf_empty                                                                        \
    }

void strbuf_init(struct strbuf *sb);
void strbuf_release(struct strbuf *sb);

/* len becomes 0, memory and `failed` stay as they are except that `failed` is cleared. */
void strbuf_reset(struct strbuf *sb);

void strbuf_add(struct strbuf *sb, const void *data, size_t len);
void strbuf_addstr(struct strbuf *sb, const char *s);
void strbuf_addch(struct strbuf *sb, int c);
void strbuf_addf(struct strbuf *sb, const char *fmt, ...) __attribute__((format(printf, 2, 3)));
void strbuf_vaddf(struct strbuf *sb, const char *fmt, va_list ap);

/* Removes the first n bytes (n <= len). */
void strbuf_drop(struct strbuf *sb, size_t n);

/* Cuts to n bytes (n <= len). */
void strbuf_truncate(struct strbuf *sb, size_t n);

/* Room for extra more bytes. False on failure. */
bool strbuf_grow(struct strbuf *sb, size_t extra);

/* Gives the malloc'ed string to the caller, who frees it; sb is then empty. NULL if failed. */
char *strbuf_detach(struct strbuf *sb, size_t *len);

/* Appends s as a JSON string with its quotes; invalid UTF-8 becomes U+FFFD. */
void strbuf_add_json(struct strbuf *sb, const char *s, size_t len);

#endif
