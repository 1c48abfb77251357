/*
 * pre_tokenizer - the `pre_tokenizer` member of tokenizer.json: text to pieces that never merge.
 *
 * Built: ByteLevel, Split, Metaspace, Digits, Punctuation, Whitespace, WhitespaceSplit,
 * CharDelimiterSplit, BertPreTokenizer, Sequence. Immutable once built.
 */
#ifndef PRE_TOKENIZER_H
#define PRE_TOKENIZER_H

#include <jansson.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "base/strbuf.h"

struct err;
struct pre_tokenizer;
struct split_matcher;

struct piece {
    uint32_t at, len;
    uint32_t n_origin; /* its first bytes that stem from the first character of the whole text */
};

struct piece_list {
    struct piece *v; /* [n] */
    size_t n, alloc;
};

/* What one thread needs to pre-tokenize. Zero-initialised is valid but for the matcher. */
struct pre_scratch {
    struct split_matcher *matcher; /* borrowed */
    struct strbuf text[2];
    struct piece_list pieces[2];
};

void pre_scratch_init(struct pre_scratch *s, struct split_matcher *matcher);
void pre_scratch_release(struct pre_scratch *s);

/* json may be NULL or null: *out is then NULL, which leaves a text in one piece. */
int pre_tokenizer_new(struct pre_tokenizer **out, const json_t *json, struct err *err);
void pre_tokenizer_free(struct pre_tokenizer *pt);

/* True when its last step spells the text in the byte alphabet. */
bool pre_tokenizer_ends_in_bytes(const struct pre_tokenizer *pt);

struct pre_result { /* borrowed from the scratch and the text */
    const char *text;
    const struct piece_list *pieces; /* none is empty */
};

/*
 * keep_bytes: a last ByteLevel step splits only, and the pieces stay raw bytes.
 * ERR_LIMIT as split_regex_next(), ERR_NO_ROOM when memory is out.
 */
int pre_tokenizer_apply(const struct pre_tokenizer *pt, struct pre_scratch *scratch,
                        const char *text, size_t len, size_t n_origin, bool keep_bytes,
                        struct pre_result *out, struct err *err);

#endif
