/*
 * text_decoder - the `decoder` member of tokenizer.json, as a list of steps from tokens to text.
 *
 * Built: ByteLevel, Metaspace, Replace, ByteFallback, Fuse, Strip, BPEDecoder, Sequence. The steps
 * run in detok.c; this file reads them and knows what each does to one token.
 */
#ifndef TEXT_DECODER_H
#define TEXT_DECODER_H

#include <jansson.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#define TEXT_DECODER_MAX_STEPS 8

struct err;
struct split_regex;
struct strbuf;

enum decode_kind {
    DECODE_BYTES,     /* the byte alphabet to bytes; all tokens become one text */
    DECODE_METASPACE, /* a mark to a space; the first token loses its marks */
    DECODE_REPLACE,
    DECODE_FALLBACK, /* runs of <0xXX> to text */
    DECODE_FUSE,     /* all tokens become one text */
    DECODE_STRIP,
    DECODE_SUFFIX, /* an end-of-word mark to a space, but not at the end */
    DECODE_JOIN    /* no decoder: spaces between tokens */
};

struct decode_step {
    enum decode_kind kind;
    bool on_text;        /* behind BYTES or FUSE: there is one token, the text so far */
    uint32_t mark;       /* METASPACE, STRIP: the character */
    bool drops_first;    /* METASPACE */
    int n_start, n_stop; /* STRIP: how many at either end */
    char *content;       /* REPLACE, SUFFIX: owned */
    size_t content_len;
    struct split_regex *pattern; /* REPLACE, SUFFIX: owned */
};

struct text_decoder {
    int n_steps;
    struct decode_step steps[TEXT_DECODER_MAX_STEPS];
};

/* json may be NULL or null. On failure *td can be released. */
int text_decoder_load(struct text_decoder *td, const json_t *json, struct err *err);
void text_decoder_release(struct text_decoder *td);

/* The byte that <0xXX> spells, -1 for any other token. */
int text_decoder_fallback_byte(const char *token, size_t len);

/* Appends token with every mark as a space, or without them. */
void text_decoder_marks(const struct decode_step *step, const char *token, size_t len, bool drop,
                        struct strbuf *out);

/* Appends token with every match of the pattern replaced. */
void text_decoder_replace(const struct decode_step *step, const char *token, size_t len,
                          struct strbuf *out);

#endif
