/*
 * grammar_nfa - a rule's tree as states and edges: the half-way house to grammar_dfa.
 */
#ifndef GRAMMAR_NFA_H
#define GRAMMAR_NFA_H

#include "engine/grammar/grammar_expr.h"

enum nfa_edge_kind { NFA_EPSILON, NFA_BYTES, NFA_CALL };

struct nfa_edge {
    enum nfa_edge_kind kind;
    int32_t from, to;
    int32_t rule;          /* NFA_CALL */
    const uint32_t *bytes; /* NFA_BYTES, [8] borrowed from the tree */
};

struct grammar_nfa {
    int32_t n_states, n_edges, n_edges_room;
    int32_t first, last;    /* where a text begins, where it ends */
    struct nfa_edge *edges; /* [n_edges] ordered by `from` once built */
    int32_t *edge_at;       /* [n_states + 1] */
};

int grammar_nfa_init(struct grammar_nfa *n, struct grammar_build *b, const struct expr *body);
void grammar_nfa_release(struct grammar_nfa *n);

#endif
