/*
 * added_tokens - the tokens that are cut out of a text before the model sees it.
 *
 * Two sets: those matched in the text as it came, and those matched behind the normaliser. At the
 * leftmost place where any of a set matches, the longest one counts. Ids are given as the
 * `tokenizers` library gives them: by the vocabulary, else counted on from its end; the file's
 * own id member has no say. Immutable once built.
 */
#ifndef ADDED_TOKENS_H
#define ADDED_TOKENS_H

#include <jansson.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

struct added_tokens;
struct bpe;
struct err;
struct normalizer;
struct text_span;

struct added_token {
    char *content;
    size_t content_len;
    char *spelling; /* as the normaliser leaves it, if normalized: what decoding starts from */
    size_t spelling_len;
    int32_t id;
    bool single_word, lstrip, rstrip, normalized, special;
    bool skipped; /* special, and the spelling is a special token's content: not decoded */
    bool marker;  /* special, or of the form <|...: not for what clients write */
};

/* json: the array "added_tokens", or NULL. */
int added_tokens_new(struct added_tokens **out, const json_t *json, const struct bpe *model,
                     const struct normalizer *n, struct err *err);
void added_tokens_free(struct added_tokens *a);

size_t added_tokens_count(const struct added_tokens *a);
const struct added_token *added_tokens_at(const struct added_tokens *a, size_t i);

/* NULL when there is none. Borrowed from a. */
const struct added_token *added_tokens_by_text(const struct added_tokens *a, const char *text,
                                               size_t len);
const struct added_token *added_tokens_by_id(const struct added_tokens *a, int32_t id);

/* A walk through one text. Start from {0} with text, len, normalized and parse_markers set. */
struct added_walk {
    const char *text;
    size_t len;
    bool normalized;                /* which of the two sets */
    bool parse_markers;             /* false: markers stay text */
    const struct text_span *client; /* [n_client] where markers stay text all the same */
    size_t n_client, client_at;     /* client_at is private */
    size_t search;                  /* private: where the next search begins */
    size_t done;                    /* private: end of the last token */
};

/*
 * The next token of the walk; NULL at the end. In both cases [*start, *end) is the plain text in
 * front of it, possibly empty.
 */
const struct added_token *added_tokens_next(const struct added_tokens *a, struct added_walk *w,
                                            size_t *start, size_t *end);

#endif
