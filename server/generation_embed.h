/*
 * generation_embed - the answer of /v1/embeddings.
 */
#ifndef GENERATION_EMBED_H
#define GENERATION_EMBED_H

struct choice;
struct generation;
struct strbuf;

/*
 * The choice's text becomes its embedding v [dim] as JSON. Numbers that are not finite set the
 * generation's error.
 */
void generation_add_embedding(struct choice *c, const float *v, int dim);

/* The whole answer; every choice has its embedding. */
void generation_write_embeddings(const struct generation *g, struct strbuf *out);

#endif
