/*
 * tokenizer_impl - what tokenizer.c and detok.c share. Nobody else includes it.
 */
#ifndef TOKENIZER_IMPL_H
#define TOKENIZER_IMPL_H

#include "engine/tokenizer/added_tokens.h"
#include "engine/tokenizer/bpe.h"
#include "engine/tokenizer/normalizer.h"
#include "engine/tokenizer/post_processor.h"
#include "engine/tokenizer/pre_tokenizer.h"
#include "engine/tokenizer/text_decoder.h"

struct detok;

/* The file's truncation and padding entries. */
struct file_limits {
    bool truncates, cuts_left;
    bool refuses; /* the strategy only_second: the library fails for a single text */
    int64_t max_length;
    bool pads, pads_left;
    int64_t pad_to, pad_multiple; /* 0: no */
    int32_t pad_id;
};

struct tokenizer {
    struct bpe *model;
    struct normalizer *normalizer; /* NULL: none */
    struct added_tokens *added;
    struct pre_tokenizer *pre; /* NULL: none */
    struct post_processor post;
    struct text_decoder decoder;
    struct file_limits limits;
    bool keep_bytes; /* pieces reach the model as raw bytes */
    int32_t n_ids;
};

/* The spelling of a token, added ones first; NULL for an unknown id. */
const char *tokenizer_spelling(const struct tokenizer *t, int32_t id, size_t *len);

/* Lets a detok hold runs of byte tokens without bound: it then equals the whole decode. */
void detok_unbound(struct detok *d);

#endif
