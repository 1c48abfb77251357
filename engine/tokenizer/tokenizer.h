/*
 * tokenizer - text to token ids and back, as a tokenizer.json describes it.
 *
 * Gives the ids that the `tokenizers` library gives for byte-pair-encoding models: normalisers,
 * added tokens, pre-tokenizers, merges, post-processor, decoder. Other model types are refused
 * by name. A `struct tokenizer` never changes after tokenizer_open(), so any number of threads
 * may use one at once.
 *
 * The file's `truncation` and `padding` entries are training leftovers (gpt2's own file says 50
 * tokens); a server that obeyed them would cut prompts silently. tokenizer_encode() ignores them;
 * tokenizer_file_limits() applies them for those who want exactly what Tokenizer.encode() gives.
 */
#ifndef TOKENIZER_H
#define TOKENIZER_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

struct err;
struct strbuf;
struct tokenizer;

/* ERR_PARSE: not a tokenizer.json. ERR_UNSUPPORTED: a component that is not built, named. */
int tokenizer_open(struct tokenizer **out, const char *path, struct err *err);

/* The same from memory; name stands for the path in messages. */
int tokenizer_open_text(struct tokenizer **out, const char *json, size_t len, const char *name,
                        struct err *err);
void tokenizer_free(struct tokenizer *t);

/* A growable array of ids. Zero-initialised is valid and empty. */
struct token_ids {
    int32_t *ids;    /* [n] */
    size_t n, alloc; /* alloc is private */
};

void token_ids_init(struct token_ids *v);
void token_ids_release(struct token_ids *v);

/* False when memory is out; v is then unchanged. */
bool token_ids_add(struct token_ids *v, int32_t id);

/*
 * Appends the ids of text to out; on failure out is as it was. Invalid UTF-8 counts as U+FFFD,
 * one for each maximal ill-formed part, as bytes.decode('utf-8', 'replace') does it.
 *
 * add_special: with the tokens that the post-processor puts around (BOS, EOS).
 * parse_special: the text's special added tokens become their ids. When false they stay plain
 * text: for whatever a client wrote. Then tokens of the form <|...|> that the file does not flag
 * as special stay text too, since chat templates use them as markers.
 */
int tokenizer_encode(const struct tokenizer *t, const char *text, size_t len, bool add_special,
                     bool parse_special, struct token_ids *out, struct err *err);

/* A stretch of a text that a client wrote. */
struct text_span {
    size_t at, len;
};

/*
 * Appends the ids of a rendered chat prompt, valid UTF-8, without the post-processor's. Special
 * tokens count where no client wrote a part of them; client [n_client] are in order and apart.
 */
int tokenizer_encode_prompt(const struct tokenizer *t, const char *text, size_t len,
                            const struct text_span *client, size_t n_client, struct token_ids *out,
                            struct err *err);

/*
 * Cuts and pads ids, the whole result of one tokenizer_encode(), as the file's truncation and
 * padding entries say. Without such entries it does nothing.
 */
int tokenizer_file_limits(const struct tokenizer *t, bool add_special, struct token_ids *ids,
                          struct err *err);

/* Appends what Tokenizer.decode(ids, skip_special_tokens=skip_special) gives. */
int tokenizer_decode(const struct tokenizer *t, const int32_t *ids, size_t n, bool skip_special,
                     struct strbuf *out);

/*
 * The bytes of one token as it stands in the middle of a text: half characters are possible.
 * False for an id that the tokenizer does not have.
 */
bool tokenizer_token_bytes(const struct tokenizer *t, int32_t id, struct strbuf *out);

/* The token as the vocabulary spells it, borrowed from t; NULL for an unknown id. */
const char *tokenizer_token_text(const struct tokenizer *t, int32_t id);

/* Distinct tokens, added ones included; and the highest id plus one. */
int tokenizer_vocab_size(const struct tokenizer *t);
int tokenizer_n_ids(const struct tokenizer *t);

/* The id of a token by its spelling in the vocabulary, added tokens first; -1 when unknown. */
int32_t tokenizer_id(const struct tokenizer *t, const char *token);
bool tokenizer_is_special(const struct tokenizer *t, int32_t id);

/* The first id that the post-processor puts before a text; -1 when it puts none. */
int32_t tokenizer_bos(const struct tokenizer *t);
bool tokenizer_adds_bos(const struct tokenizer *t);

#endif
