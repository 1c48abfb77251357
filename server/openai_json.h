/*
 * openai_json - the answers of the API as bytes, written straight into a strbuf.
 *
 * A piece is what one choice says at once: a whole answer, or one chunk of a stream. Streaming and
 * not streaming share everything but how often a piece is written.
 */
#ifndef OPENAI_JSON_H
#define OPENAI_JSON_H

#include "base/strbuf.h"

#include <stdbool.h>
#include <stdint.h>

struct engine_token;

#define OPENAI_LOGPROB_MIN (-9999.0) /* stands for minus infinity, which JSON cannot say */

/* How a token is written: its text, "bytes:\xe2" when it is half a character, or "token_id:7". */
struct token_speller {
    int (*bytes)(void *arg, int32_t id, struct strbuf *out);
    void *arg;
    bool as_ids;
};

enum logprob_style { LOGPROBS_COMPLETIONS, LOGPROBS_CHAT };

/* The logprobs of a choice that are not yet written, as JSON lists without their brackets. */
struct logprob_list {
    enum logprob_style style;
    struct strbuf tokens, values, tops, offsets; /* chat uses tokens alone */
    int64_t text_at; /* code points before the next token; below 0: the text lacks its beginning */
    int n;           /* entries since the last write */
};

void logprob_list_init(struct logprob_list *l, enum logprob_style style);
void logprob_list_release(struct logprob_list *l);

/*
 * n_top: alternatives asked for; the sampled token always is one of the completions' map.
 * is_silent: the token is no part of the text (BOS, a special token that is skipped).
 */
void logprob_list_add(struct logprob_list *l, const struct engine_token *t, int n_top,
                      bool is_silent, const struct token_speller *speller);

/* Writes the logprobs object and empties the list. */
void logprob_list_write(struct logprob_list *l, struct strbuf *out);

/* Appends the token to vLLM's prompt_logprobs list: null, or {"id": {logprob, rank, text}}. */
void openai_add_prompt_logprob(struct strbuf *list, const struct engine_token *t, int n_top,
                               const struct token_speller *speller);

struct openai_piece {
    int index;
    const char *text; /* NULL: an empty delta */
    size_t text_len;
    struct logprob_list *logprobs;   /* NULL: null */
    const struct strbuf *token_ids;  /* lists without brackets; NULL: no such key */
    const struct strbuf *prompt_ids; /* these two only in the choices of completions, as in vLLM; */
    const struct strbuf *prompt_logprobs; /* a chat answer has both beside its choices */
    const char *finish_reason;            /* NULL: null */
    const char *stop_string;              /* what stopped it: a string, or a token */
    int32_t stop_token;                   /* -1: none */
    const struct strbuf *tool_calls;      /* entries without brackets, or NULL */
    bool with_role;                       /* a delta that opens the message */
};

void openai_write_text_choice(struct strbuf *out, const struct openai_piece *p);
void openai_write_message_choice(struct strbuf *out, const struct openai_piece *p);
void openai_write_delta_choice(struct strbuf *out, const struct openai_piece *p);

struct openai_usage {
    int64_t prompt_tokens, completion_tokens, cached_tokens;
};
void openai_write_usage(struct strbuf *out, const struct openai_usage *u);

/* `{"id":...,"object":...,"created":...,"model":...,"system_fingerprint":...,"choices":[` */
struct openai_head {
    const char *id, *object, *model, *fingerprint; /* fingerprint NULL: null */
    int64_t created;
};
void openai_write_head(struct strbuf *out, const struct openai_head *h);

void openai_add_id(struct strbuf *list, int32_t id);

/* `,"key":[...]` around a list without brackets; nothing for NULL. */
void openai_write_list(struct strbuf *out, const char *key, const struct strbuf *list);

#endif
