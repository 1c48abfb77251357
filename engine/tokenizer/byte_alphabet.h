/*
 * byte_alphabet - the 256 printable characters by which byte-level vocabularies spell bytes.
 *
 * Printable Latin-1 stands for itself; the other 68 bytes take U+0100 and up in order. So a space
 * is U+0120 and a newline U+010A.
 */
#ifndef BYTE_ALPHABET_H
#define BYTE_ALPHABET_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

struct strbuf;

uint32_t byte_alphabet_char(unsigned char byte);

/* The byte of a character of the alphabet, -1 for others. */
int byte_alphabet_byte(uint32_t cp);

/* Appends bytes spelled in the alphabet. */
void byte_alphabet_spell(struct strbuf *out, const char *bytes, size_t len);

/* Appends the bytes that text spells; false, and nothing added, if it has another character. */
bool byte_alphabet_read(struct strbuf *out, const char *text, size_t len);

#endif
