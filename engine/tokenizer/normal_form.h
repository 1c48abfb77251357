/*
 * normal_form - Unicode normalisation, in time O(n log n) whatever the text.
 *
 * utf8proc's own ordering of combining marks is quadratic, which a client could use; so marks are
 * sorted here, and utf8proc only decomposes and composes. As the `tokenizers` library does it:
 * Unicode 9.0, later characters stay as they are.
 */
#ifndef NORMAL_FORM_H
#define NORMAL_FORM_H

#include <stddef.h>

struct strbuf;

enum normal_form { NORMAL_NFC, NORMAL_NFD, NORMAL_NFKC, NORMAL_NFKD };

/* Appends the normal form of a valid text. ERR_NO_ROOM when memory is out. */
int normal_form_add(struct strbuf *out, const char *text, size_t len, enum normal_form form);

#endif
