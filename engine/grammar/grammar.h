/*
 * grammar - a compiled constraint on what a request may write, and the cache of such.
 *
 * Compiling takes bounded memory and time and runs on whichever thread asks. A grammar is then
 * shared by all requests that want it; each has its own grammar_run. Only the engine thread touches
 * masks and scratch.
 */
#ifndef GRAMMAR_H
#define GRAMMAR_H

#include "engine/engine.h"
#include "engine/grammar/grammar_run.h"

#include <pthread.h>
#include <stdatomic.h>

struct tokenizer;

struct grammar {
    atomic_int n_refs;
    struct grammar_dfa dfa;
    struct grammar_masks masks;      /* the engine thread's */
    struct grammar_scratch *scratch; /* likewise; borrowed from the cache */
};

struct grammar_cache_params {
    const struct tokenizer *tokenizer;
    int vocab_size;
    const int *eos_ids;
    int n_eos;
    int n_max;          /* grammars that are kept */
    int64_t max_bytes;  /* memory of a compilation */
    int64_t timeout_ns; /* time of one */
};

struct grammar_cache;
int grammar_cache_new(struct grammar_cache **out, const struct grammar_cache_params *params,
                      struct err *err);
void grammar_cache_free(struct grammar_cache *c); /* when no grammar is left elsewhere */

/*
 * The grammar of a text, from the cache or compiled. The caller owns a reference to *out.
 * ERR_INVALID: the text is at fault; ERR_LIMIT: it takes more than the budget; any thread.
 */
int grammar_cache_get(struct grammar_cache *c, enum engine_grammar_kind kind, const char *text,
                      size_t len, struct grammar **out, struct err *err);

struct grammar *grammar_ref(struct grammar *g);
void grammar_unref(struct grammar *g); /* NULL is allowed */

#endif
