/*
 * openai_params - the body of a POST request, checked, as plain data.
 *
 * One table (openai_params.c) holds every scalar field with its type and bounds; fields with a
 * shape of their own have a reader each; a third table lists what is refused because ignoring it
 * would change the answer. Other unknown fields are ignored, and null always means the default.
 * Pure functions of the body and the limits: no engine, no connection.
 */
#ifndef OPENAI_PARAMS_H
#define OPENAI_PARAMS_H

#include "engine/engine.h"

#include <jansson.h>

struct api_error;
struct arena;

#define OPENAI_MAX_STOPS      4
#define OPENAI_MAX_STOP_BYTES 4096 /* longer ones would only hold output back */
#define OPENAI_MAX_BIAS       1024
#define OPENAI_MAX_N          128
#define OPENAI_MAX_BAD_WORDS  64
#define OPENAI_MAX_WORD_BYTES 256
#define OPENAI_MAX_MESSAGES   4096

enum openai_api {
    API_COMPLETIONS = 1,
    API_CHAT = 2,
    API_TOKENIZE = 4,
    API_DETOKENIZE = 8,
    API_EMBEDDINGS = 16
};

/* What the model and the operator allow; filled once at start. */
struct openai_limits {
    const char *model_id;
    int vocab_size, max_seq_len;
    int64_t max_prompt_bytes; /* text beyond it cannot fit the context */
    int max_prompts, max_inputs, max_choices, max_logprobs, json_depth;
    int embedding_dim;                            /* 0: no embeddings */
    bool normalize;                               /* them, by default */
    bool has_priorities;                          /* the scheduler heeds them */
    float temperature, top_p, repetition_penalty; /* defaults, by sampling_defaults */
    int top_k;
};

/* One prompt: text, or token ids when text is NULL. */
struct openai_prompt {
    const char *text;
    size_t text_len;
    int32_t *ids; /* [n_ids] */
    int n_ids;
};

enum openai_tool_choice {
    TOOL_CHOICE_ABSENT = 0,
    TOOL_CHOICE_NONE,
    TOOL_CHOICE_AUTO,
    TOOL_CHOICE_REQUIRED,
    TOOL_CHOICE_NAMED
};

/* What the answer must look like. */
struct openai_grammar {
    const char *field; /* the field that asked for it; NULL: none did */
    enum engine_grammar_kind kind;
    const char *text; /* [len] as engine_grammar_new() takes it */
    size_t len;
};

struct openai_params {
    struct openai_prompt *prompts; /* [n_prompts] */
    int n_prompts;
    struct engine_message *messages; /* [n_messages]; chat, or /tokenize with messages */
    int n_messages;
    int32_t *tokens; /* [n_tokens]; /detokenize */
    int n_tokens;

    struct sampling_params sampling; /* but for seed, sample_idx and max_tokens */
    int max_tokens;                  /* -1: absent */
    int n, best_of;
    int n_samples;       /* of each prompt: the greater of the two */
    int truncate_prompt; /* tokens kept, from the end; -1: what fits; -2: absent */
    int priority;
    const char **bad_words; /* [n_bad_words] */
    int n_bad_words;
    const char *cache_salt; /* or NULL */
    struct openai_grammar grammar;
    const json_t *tools; /* array, or NULL: the model is told of none */
    enum openai_tool_choice tool_choice;
    const char *tool_name; /* TOOL_CHOICE_NAMED */
    bool parallel_tools;
    int64_t seed;
    bool has_seed;
    bool stream, has_stream_options, include_usage, continuous_usage;
    bool echo;
    bool return_token_ids, tokens_as_ids;
    int add_special; /* -1: absent */
    bool add_generation_prompt;
    bool return_token_strs;
    bool normalize, as_base64; /* embeddings */

    /* As sent; sampling.n_logprobs is what they come to. */
    int n_logprobs, n_top_logprobs, n_prompt_logprobs; /* -1: absent */
    int max_completion_tokens, legacy_max_tokens;
    int top_k;
    bool wants_logprobs;
};

/*
 * Checks body, an object from json_in_parse() that must outlive *out: strings are borrowed from it,
 * arrays come from the arena. On failure *e has status, param and message.
 */
int openai_params_read(struct openai_params *out, enum openai_api api, const json_t *body,
                       const struct openai_limits *limits, struct arena *arena,
                       struct api_error *e);

/* For openai_prompt.c and openai_params.c: the state of one reading. */
struct openai_reader {
    struct openai_params *out;
    const struct openai_limits *limits;
    struct arena *arena;
    struct api_error *e;
    enum openai_api api;
};

int openai_read_prompt(struct openai_reader *r, const char *name, const json_t *v);
int openai_read_messages(struct openai_reader *r, const char *name, const json_t *v);
int openai_read_tokens(struct openai_reader *r, const char *name, const json_t *v);

/* An array of token ids below vocab_size, into the arena. Messages name the field. */
int openai_read_ids(struct openai_reader *r, const char *name, const json_t *v, int32_t **ids,
                    int *n_ids);

/* openai_tools.c */
int openai_read_tools(struct openai_reader *r, const char *name, const json_t *v);
int openai_read_tool_choice(struct openai_reader *r, const char *name, const json_t *v);
int openai_read_calls(struct openai_reader *r, size_t i, const json_t *message,
                      struct engine_message *out);
int openai_check_tools(struct openai_reader *r); /* all fields are read */

/* openai_grammar.c */
int openai_set_schema(struct openai_reader *r, const char *name, const json_t *schema);
int openai_read_schema(struct openai_reader *r, const char *name, const json_t *v);
int openai_read_regex(struct openai_reader *r, const char *name, const json_t *v);
int openai_read_ebnf(struct openai_reader *r, const char *name, const json_t *v);
int openai_read_choice(struct openai_reader *r, const char *name, const json_t *v);
int openai_read_response_format(struct openai_reader *r, const char *name, const json_t *v);
int openai_read_structured(struct openai_reader *r, const char *name, const json_t *v);

int openai_refuse_no_room(struct api_error *e);
int openai_refuse_nul(struct api_error *e, const char *name);

#endif
