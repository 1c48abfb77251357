/*
 * unicode - the properties of characters as the `tokenizers` library sees them.
 *
 * The library mixes Unicode versions (see unicode_tables.inc). Here the answer is the library's,
 * whatever the versions of utf8proc and PCRE2 that this program is linked to, as long as they are
 * at least 14.0. Characters newer than Unicode 16.0 follow the linked libraries.
 */
#ifndef UNICODE_H
#define UNICODE_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

struct unicode_range {
    uint32_t first, last;
    int32_t value; /* category or step, where the table has one */
};

/* General category, a utf8proc_category_t: Unicode 16.0. */
int unicode_category(uint32_t cp);

bool unicode_is_space(uint32_t cp);       /* White_Space */
bool unicode_is_numeric(uint32_t cp);     /* Nd, Nl, No */
bool unicode_is_word(uint32_t cp);        /* \w of a Rust regular expression */
bool unicode_is_punctuation(uint32_t cp); /* as the Punctuation pre-tokenizer */
bool unicode_is_accent(uint32_t cp);      /* a mark that StripAccents takes away */

/* One to three characters; returns how many. */
int unicode_lower(uint32_t cp, uint32_t out[3]);
int unicode_upper(uint32_t cp, uint32_t out[3]);

/* Combining class and whether a decomposition is known: both as of Unicode 9.0. */
int unicode_combining_class(uint32_t cp);
bool unicode_may_decompose(uint32_t cp);

/* The ranges by which Unicode 16.0 exceeds 14.0 in one category; *n is their number. */
const struct unicode_range *unicode_new_in_16(size_t *n);

/* All ranges of the script Han; characters of \w that no category gives. */
const struct unicode_range *unicode_han(size_t *n);
const struct unicode_range *unicode_word_other(size_t *n);

#endif
