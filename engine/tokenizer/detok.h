/*
 * detok - ids back to text, one at a time, never half a character.
 *
 * One state a running request; the engine thread owns it. For a detok that starts at the start
 * of a text, the pushed pieces and the flush together equal tokenizer_decode() of the same ids.
 *
 * A completion behind a prompt is not the start of a text: decoders of the Llama-2 kind drop one
 * leading space there, and a completion must keep its own. Reset with at_start false then, or
 * prime with the prompt's last tokens, which also completes a character that the prompt cut.
 *
 * Byte tokens (<0x41>): the library spells a whole run of them as U+FFFD, one a byte, unless the
 * run as a whole is valid UTF-8. So a run is held until it ends, but not beyond
 * DETOK_HOLD_BYTES: then what is complete goes out, and streaming may differ from the whole.
 */
#ifndef DETOK_H
#define DETOK_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "base/strbuf.h"

#define DETOK_HOLD_BYTES 256 /* 64 four-byte emoji: longer runs must reach the reader */
#define DETOK_MAX_STEPS  8   /* stages of a decoder */

struct tokenizer;

struct detok { /* fields are private */
    const struct tokenizer *tok;
    struct strbuf bytes; /* of a character that is not complete, or of a run of byte tokens */
    size_t n_valid;      /* first bytes of them that are complete characters */
    struct strbuf held;  /* text that a later token decides about */
    struct strbuf scratch[DETOK_MAX_STEPS];
    int state[DETOK_MAX_STEPS]; /* by step: whether, or how much of, the beginning is over */
    bool skip_special, run_is_bad, unbounded;
};

void detok_init(struct detok *d, const struct tokenizer *t, bool skip_special, bool at_start);
void detok_reset(struct detok *d, bool skip_special, bool at_start);
void detok_release(struct detok *d);

/* Pushes the last tokens of a prompt, without their text: ids [n]. */
void detok_prime(struct detok *d, const int32_t *ids, size_t n);

/* Appends the characters that id completes, possibly none. */
void detok_push(struct detok *d, int32_t id, struct strbuf *out);

/* Flushes: bytes that never became a character go out as U+FFFD. Reset before reuse. */
void detok_finish(struct detok *d, struct strbuf *out);

#endif
