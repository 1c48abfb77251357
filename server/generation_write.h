/*
 * generation_write - a generation's events as the bytes of its answer, streamed or whole.
 */
#ifndef GENERATION_WRITE_H
#define GENERATION_WRITE_H

#include <stdbool.h>

struct api_error;
struct choice;
struct engine_event;
struct generation;
struct strbuf;

/* The id, the creation time and all that chunks have in common, once. */
void generation_write_head(struct generation *g);

/* Adds the event's text, ids and logprobs to what the choice has not written yet. */
void generation_add_event(struct choice *c, const struct engine_event *ev);

/* Is there anything to stream? Held back text, or half a character, is not. */
bool generation_has_chunk(const struct choice *c);

/* Writes it as chunks and empties it. */
void generation_write_chunks(struct choice *c, struct strbuf *out);

/* The usage chunk, if asked for, and the end marker. */
void generation_write_stream_end(struct generation *g, struct strbuf *out);

/* An error in the middle of a stream, and the end marker. */
void generation_write_error(struct strbuf *out, const struct api_error *e);

/* The answer that is not streamed. */
void generation_write_body(struct generation *g, struct strbuf *out);

/* The answers of /tokenize and /detokenize. */
void generation_write_tokens(struct generation *g, struct strbuf *out);

#endif
