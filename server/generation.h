/*
 * generation - what one POST makes the engine do: prompts x n choices, or only tokenizing.
 *
 * Loop thread only, but for the parsing and tokenizing of long bodies, which runs on libuv's pool
 * while nobody else touches the generation. It survives its exchange: a client that leaves only
 * cancels, and the engine's final events still find their choices here. A generation has at most
 * max_batch choices inside the engine at once, so one body can fill the batch but not the queue.
 */
#ifndef GENERATION_H
#define GENERATION_H

#include "base/arena.h"
#include "server/api_error.h"
#include "server/openai_json.h"
#include "server/openai_params.h"
#include "server/tool_calls.h"

#include <uv.h>

struct engine_event;
struct exchange;
struct http_server;
struct request_trace;

/* One of the prompts x n answers. */
struct choice {
    struct generation *generation;
    int index, prompt_idx, sample_idx;
    uint64_t engine_id;
    bool has_echoed, has_begun, is_done; /* has_begun: its first chunk is written */
    enum finish_reason finish;
    int32_t stop_token;
    char *stop_string; /* owned by the arena */
    int n_tokens;
    double logprob_sum; /* of its tokens, where best_of needs it */
    int64_t last_token_ns;
    struct strbuf text;      /* not yet written: a chunk's, or the whole answer's */
    struct strbuf token_ids; /* likewise, "1,2,3" */
    struct strbuf prompt_logprobs;
    struct logprob_list logprobs;
    struct tool_calls tools;
};

struct generation_prompt {
    int32_t *ids; /* [n_ids] owned when is_malloced, else by the arena */
    int n_ids, max_tokens, n_cached;
    bool is_malloced, is_truncated;
    struct strbuf echo;     /* the prompt's text, if it is wanted */
    struct strbuf ids_text; /* "1,2,3", if they are wanted */
};

struct generation {
    unsigned magic;
    struct generation *prev, *next; /* in the server's bridge */
    struct http_server *server;
    struct exchange *exchange;   /* NULL once nobody waits for the answer */
    struct request_trace *trace; /* or NULL */
    enum openai_api api;
    struct arena arena;
    struct strbuf raw; /* the request's body, until it is parsed */
    json_t *body;      /* strings of params point into it */
    struct openai_params params;
    struct openai_usage usage;
    struct api_error error;
    const char *cache_salt;        /* NULL: prompts are shared with everybody */
    struct grammar *grammar;       /* owned, or NULL */
    struct engine_word *bad_words; /* each word with its spellings; ids are malloc'ed */
    int n_bad_words;
    struct generation_prompt *prompts; /* [params.n_prompts], or one for chat */
    int n_prompts;
    struct choice *choices;
    int n_choices, n_submitted, n_done, n_parked_choices;
    bool is_parked, is_working; /* waiting for the queue; on the pool */
    struct strbuf head;         /* the beginning that all chunks share */
    uv_work_t work;
};

/* Takes the exchange's body and starts; the exchange is answered sooner or later. */
void generation_start(struct exchange *ex, enum openai_api api);

/* News from the engine about the choice in ev->user. */
void generation_take_event(const struct engine_event *ev);

/* Submits what the full queue refused before. */
void generation_unpark(struct generation *g);

/* Nobody waits any more: cancels, and frees as soon as the engine has let go. */
void generation_abandon(struct generation *g);

/* Cancels everything and tells the client why. */
void generation_refuse(struct generation *g, const struct api_error *e);

/* The server stops. */
void generation_stop(struct generation *g);

/* Will the answer be a stream? False as long as that is not known. */
bool generation_streams(const struct generation *g);

#endif
