/*
 * api_generate - the POST endpoints. All five parse a body, and tokenize or detokenize, in the same
 * way; what they do with the tokens is decided in generation.c.
 */
#include "server/api.h"

#include "server/generation.h"

void api_completions(struct exchange *ex)
{
    generation_start(ex, API_COMPLETIONS);
}

void api_chat(struct exchange *ex)
{
    generation_start(ex, API_CHAT);
}

void api_embeddings(struct exchange *ex)
{
    generation_start(ex, API_EMBEDDINGS);
}

void api_tokenize(struct exchange *ex)
{
    generation_start(ex, API_TOKENIZE);
}

void api_detokenize(struct exchange *ex)
{
    generation_start(ex, API_DETOKENIZE);
}
