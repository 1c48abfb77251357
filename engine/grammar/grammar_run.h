/*
 * grammar_run - where one text stands in a grammar, and which tokens may follow.
 *
 * The state is a set of stacks: one for each way to parse what is written so far. A stack's top is
 * a state with bytes to go on with; below it lie the states that its calls return to.
 *
 *   mask   a state's own tokens are found once, by a walk over the vocabulary that stops where the
 *          state's rule ends, and are kept with the grammar. What lies behind those ends depends on
 *          the stack, and is walked each time: few nodes, since rules end at few tokens
 *   end    the text may stop where some stack is empty. Where every stack is, it must
 *
 * Engine thread only, but for init. What goes wrong (too many stacks, too deep) narrows the choice
 * and never widens it.
 */
#ifndef GRAMMAR_RUN_H
#define GRAMMAR_RUN_H

#include "engine/grammar/grammar_dfa.h"
#include "engine/grammar/grammar_vocab.h"

#define GRAMMAR_MAX_STACKS 64
#define GRAMMAR_MAX_FRAMES 256 /* of one stack: how deeply a text may nest */
#define GRAMMAR_NODES      8192

/* The tokens of a state, up to where its rule ends. */
struct state_mask {
    uint32_t *bits;   /* [mask words], NULL: not yet known */
    int32_t *pending; /* [n_pending] nodes where the rule may end in the middle of a token */
    int32_t n_pending;
};

/* The masks of a grammar's states. The engine thread's, whoever made the grammar. */
struct grammar_masks {
    const struct grammar_dfa *dfa;
    const struct grammar_vocab *vocab;
    struct state_mask *states; /* [n_states] */
    size_t n_bytes, max_bytes;
};

int grammar_masks_init(struct grammar_masks *m, const struct grammar_dfa *dfa,
                       const struct grammar_vocab *vocab, size_t max_bytes, struct err *err);
void grammar_masks_release(struct grammar_masks *m);

struct stack_top {
    int32_t state, below; /* below: a node, or STACK_BOTTOM */
};

struct stack_node {
    int32_t state, below;
    int32_t depth;
};

struct stack_set {
    int n;
    bool can_end;    /* one more stack is empty */
    bool has_popped; /* in a walk of one state: its rule may end here */
    struct stack_top tops[GRAMMAR_MAX_STACKS];
};

/* Working memory of all runs, one at a time. */
struct grammar_scratch;
int grammar_scratch_new(struct grammar_scratch **out, const struct grammar_vocab *vocab,
                        struct err *err);
void grammar_scratch_free(struct grammar_scratch *s);

struct grammar_run { /* fields are private */
    struct grammar_masks *masks;
    struct stack_set now;
    struct stack_node *nodes; /* [n_nodes] what the tops stand on */
    int n_nodes, n_nodes_room;
    bool is_lost; /* a token did not fit, or memory ran out: nothing may follow */
};

/* The beginning of a text. */
int grammar_run_init(struct grammar_run *r, struct grammar_masks *masks, struct err *err);
void grammar_run_release(struct grammar_run *r);

/* Takes a token that the mask allowed. */
void grammar_run_take(struct grammar_run *r, struct grammar_scratch *s, int32_t token);

/* May the text end here; must it? */
static inline bool grammar_run_can_end(const struct grammar_run *r)
{
    return r->now.can_end && !r->is_lost;
}

static inline bool grammar_run_must_end(const struct grammar_run *r)
{
    return grammar_run_can_end(r) && r->now.n == 0;
}

/* Clears the bits of tokens that may not follow. mask [SAMPLE_MASK_WORDS(vocab_size)]. */
void grammar_run_mask(struct grammar_run *r, struct grammar_scratch *s, uint32_t *mask);

#endif
