/*
 * normalizer - the `normalizer` member of tokenizer.json: text to text.
 *
 * Built: NFC, NFD, NFKC, NFKD, Prepend, Replace, Lowercase, Strip, StripAccents, Sequence.
 * Others are refused by name. Immutable once built.
 */
#ifndef NORMALIZER_H
#define NORMALIZER_H

#include <jansson.h>
#include <stdbool.h>
#include <stddef.h>

struct err;
struct normalizer;
struct split_matcher;
struct strbuf;

/* json may be NULL or null: *out is then NULL, which changes nothing. */
int normalizer_new(struct normalizer **out, const json_t *json, struct err *err);
void normalizer_free(struct normalizer *n);

/*
 * Appends the normalised text to out. *n_origin becomes the number of its first bytes that stem
 * from the first character of the text; Metaspace's "first" asks for it.
 */
int normalizer_apply(const struct normalizer *n, struct split_matcher *m, const char *text,
                     size_t len, struct strbuf *out, size_t *n_origin, struct err *err);

#endif
