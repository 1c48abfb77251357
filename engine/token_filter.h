/*
 * token_filter - which tokens a request may draw next: its allowed ids, bad words, grammar.
 *
 * Everything comes down to one bit a token, which the backend's sample op takes as a mask. A
 * request without any of them has no filter and costs nothing. Engine thread, but for init.
 */
#ifndef TOKEN_FILTER_H
#define TOKEN_FILTER_H

#include "engine/engine.h"
#include "engine/grammar/grammar_run.h"

struct arena;

struct token_filter { /* fields are private */
    int vocab_size;
    const uint32_t *allowed; /* [mask words] or NULL: all */
    const struct engine_word *words;
    int n_words;
    struct grammar *grammar; /* owned reference, or NULL */
    struct grammar_run run;
    int64_t take_ns; /* spent in token_filter_take(); the caller takes it away */
};

/* Copies what p asks for into the arena. ERR_INVALID names the parameter, ERR_NO_ROOM. f may be
 * released in any case. */
int token_filter_init(struct token_filter *f, struct arena *arena, const struct sampling_params *p,
                      int vocab_size, struct err *err);

void token_filter_release(struct token_filter *f);

static inline bool token_filter_is_active(const struct token_filter *f)
{
    return f->allowed || f->n_words > 0 || f->grammar;
}

/* Does the mask follow from the tokens generated so far? */
static inline bool token_filter_needs_tokens(const struct token_filter *f)
{
    return f->n_words > 0 || f->grammar;
}

/*
 * Writes the mask for the token behind the n generated ones. False when no token is left: whatever
 * is drawn then must not be used.
 */
bool token_filter_fill(struct token_filter *f, const int32_t *generated, int n, uint32_t *mask);

/* A token was drawn. True when the answer is complete: nothing may follow it. */
bool token_filter_take(struct token_filter *f, int32_t token);

#endif
