/*
 * bpe - the `model` member of tokenizer.json: byte-pair encoding of one piece of text.
 *
 * Immutable once built. Encoding needs a scratch, one a thread.
 */
#ifndef BPE_H
#define BPE_H

#include <jansson.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

struct bpe;
struct err;
struct token_ids;

/* Other models than BPE, dropout and broken merges are refused. */
int bpe_new(struct bpe **out, const json_t *json, struct err *err);
void bpe_free(struct bpe *b);

/*
 * Says that pieces will come as raw bytes which the vocabulary spells in the byte alphabet. False
 * when the vocabulary lacks a byte, or joins prefixes or suffixes to characters: pieces must then
 * come spelled. Call it before bpe_index_words().
 */
bool bpe_use_raw_bytes(struct bpe *b);

/* Finds the tokens that their own text encodes to; a word among them needs no merging later. */
int bpe_index_words(struct bpe *b, struct err *err);

size_t bpe_vocab_size(const struct bpe *b);                        /* spellings, not ids */
int32_t bpe_n_ids(const struct bpe *b);                            /* highest id + 1 */
int32_t bpe_id(const struct bpe *b, const char *text, size_t len); /* -1: unknown */

/* Borrowed from b, NUL-terminated; NULL for an id that is not there. */
const char *bpe_text(const struct bpe *b, int32_t id, size_t *len);

/* Zero-initialised is valid and empty. */
struct bpe_scratch {
    void *memory; /* private */
    size_t n_bytes;
};

void bpe_scratch_release(struct bpe_scratch *s);

/* Appends the ids of a piece that is not empty. O(len log len). */
int bpe_encode(const struct bpe *b, struct bpe_scratch *s, const char *piece, size_t len,
               struct token_ids *out, struct err *err);

#endif
