/*
 * grammar_dfa - rules as automata over bytes that may call each other.
 *
 * Each rule is a deterministic automaton; all share one numbering of states and one partition of
 * the bytes into classes. Besides bytes a state may have calls: run another rule, then go on at
 * `after`. So a text's parse is a stack of states, and only calls make more than one stack
 * possible.
 *
 * Every state can reach the end of its rule: a text that the automaton can follow so far can always
 * be completed. Immutable once compiled.
 */
#ifndef GRAMMAR_DFA_H
#define GRAMMAR_DFA_H

#include "engine/grammar/grammar_expr.h"

struct dfa_call {
    int32_t start; /* the called rule's first state */
    int32_t after;
};

struct dfa_state {
    bool accepts;   /* the rule may end here */
    bool has_bytes; /* at least one byte leads on */
    bool is_last;   /* nothing but the end: a return to it is a return to its caller */
    int32_t call_at, n_calls;
};

struct grammar_dfa {
    int32_t n_states, n_classes, n_calls, start;
    uint8_t class_of[256];
    int32_t *next;            /* [n_states, n_classes], -1: nowhere */
    struct dfa_state *states; /* [n_states] */
    struct dfa_call *calls;   /* [n_calls] */
};

static inline int32_t dfa_next(const struct grammar_dfa *d, int32_t state, unsigned char byte)
{
    return d->next[(int64_t)state * d->n_classes + d->class_of[byte]];
}

/*
 * Compiles b's rules from b->root on. ERR_INVALID when no text belongs to the language or a rule
 * calls itself before it has read a byte, ERR_LIMIT when the budget does not do. Errors stick to b.
 */
int grammar_dfa_init(struct grammar_dfa *d, struct grammar_build *b);
void grammar_dfa_release(struct grammar_dfa *d);
size_t grammar_dfa_bytes(const struct grammar_dfa *d);

#endif
