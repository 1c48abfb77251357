/*
 * generation_prompt - from a request's bytes to checked parameters and token ids.
 */
#ifndef GENERATION_PROMPT_H
#define GENERATION_PROMPT_H

struct generation;

/*
 * Parses g->raw and fills params and prompts, or g->error. Touches nothing but g and what never
 * changes (limits, tokenizer), so it may run on the pool.
 */
void generation_prepare(struct generation *g);

/* Compiles the grammar that the parameters ask for, if any. May run on the pool, and should. */
void generation_compile(struct generation *g);

/* The field that holds the model's input, for messages. */
const char *generation_input_name(const struct generation *g);

#endif
