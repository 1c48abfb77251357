/*
 * text - where characters begin and end in bytes that may or may not be UTF-8.
 *
 * Well-formed as Unicode defines it (section 3.9): no overlong forms, no surrogates, nothing above
 * U+10FFFF.
 */
#ifndef TEXT_H
#define TEXT_H

#include <stdbool.h>
#include <stddef.h>

/*
 * Bytes of the character at s, of which n > 0 are there; 0 when it is malformed or cut off.
 * *skip is then how many bytes one U+FFFD stands for: the longest prefix of a character, at
 * least 1.
 */
size_t text_char_len(const char *s, size_t n, size_t *skip);

bool text_is_utf8(const char *s, size_t len);

#endif
