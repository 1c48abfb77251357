/*
 * grammar_vocab - the bytes of all tokens as a trie, in the order of a walk that visits every node
 * before its children: what a text may go on with is found by one pass that skips what it cannot.
 *
 *     node      0    1    2    3    4       tokens: "a", "ab", "ac", "b"
 *     byte      a    b    c    b
 *     depth     1    2    2    1
 *     end       3    2    3    4            first node that is not below this one
 *
 * Special tokens are not in it: no grammar can ask for them. Immutable, any thread.
 */
#ifndef GRAMMAR_VOCAB_H
#define GRAMMAR_VOCAB_H

#include "base/err.h"

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

struct tokenizer;

#define GRAMMAR_MAX_TOKEN 255 /* bytes; longer tokens are never drawn under a grammar */

struct grammar_vocab {
    int vocab_size, n_nodes, max_depth;
    uint8_t *byte;     /* [n_nodes] */
    uint8_t *depth;    /* [n_nodes] bytes from the root, this node's included */
    int32_t *end;      /* [n_nodes] */
    int32_t *token_at; /* [n_nodes + 1] into tokens: those that end here */
    int32_t *tokens;
    int32_t *text_at; /* [vocab_size + 1] into text: each token's bytes, none for those left out */
    uint8_t *text;
    int32_t eos_ids[64]; /* [n_eos] */
    int n_eos;
};

/* Tokens of vocab_size ids; eos_ids end a text and spell nothing. */
int grammar_vocab_new(struct grammar_vocab **out, const struct tokenizer *t, int vocab_size,
                      const int *eos_ids, int n_eos, struct err *err);
void grammar_vocab_free(struct grammar_vocab *v);

#endif
