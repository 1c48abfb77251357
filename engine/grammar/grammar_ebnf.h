/*
 * grammar_ebnf - grammars in the notation of llama.cpp and vLLM: `name ::= alternatives`, with
 * "text", [classes], (groups), |, *, +, ?, {n,m}, # comments. The text is what `root` describes.
 */
#ifndef GRAMMAR_EBNF_H
#define GRAMMAR_EBNF_H

#include "engine/grammar/grammar_expr.h"

/* Adds the rules to b and sets b->root. */
void grammar_ebnf(struct grammar_build *b, const char *text, size_t len);

#endif
