/*
 * engine - the narrow face: a loaded model that runs many requests at once on its own thread.
 *
 * The caller (HTTP server, CLI, benches, plan search) never sees a tensor. It submits requests and
 * cancels them from any thread; the engine thread schedules, computes, samples and detokenizes;
 * results wait in one outbox record a request until the caller collects them with engine_poll().
 * After each step that produced something the engine calls `wake` once, from its own thread.
 *
 * Every accepted request gets exactly one event with a finish reason, cancelled or not.
 */
#ifndef ENGINE_H
#define ENGINE_H

#include "base/err.h"

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

struct config;
struct engine;
struct strbuf;

#define ENGINE_MAX_STOPS    16 /* stop strings of a request; the API allows 4, chat templates add */
#define ENGINE_MAX_STOP_IDS 64
#define ENGINE_MAX_TOP      20  /* alternatives reported for a token */
#define ENGINE_MAX_WORDS    256 /* bad words of a request, each spelling counted */

enum finish_reason {
    FINISH_NONE = 0,
    FINISH_STOP,     /* EOS, a stop string or a stop token */
    FINISH_LENGTH,   /* max_tokens or the context */
    FINISH_CANCELED, /* engine_cancel() or shutdown */
    FINISH_ERROR     /* the step failed; event->error tells */
};

struct engine_hooks {
    void (*wake)(void *arg); /* engine thread; must only signal */
    void *arg;
    void (*progress)(void *arg, const char *what, size_t done, size_t total); /* while opening */
    void *progress_arg;
};

/* Loads config->model and starts the thread. hooks is copied; NULL is allowed. */
int engine_open(struct engine **out, const struct config *config, const struct engine_hooks *hooks,
                struct err *err);

/* Cancels what runs, joins the thread, frees everything. NULL is allowed. */
void engine_close(struct engine *e);

/* What the model is, fixed after open. Strings are borrowed from the engine. */
struct engine_info {
    const char *model_id, *model_type, *plan, *device, *dtype, *fingerprint;
    const char *plan_json; /* kind, convention and density of the plan, at the context's length */
    int vocab_size, max_seq_len, n_layers, n_heads, n_kv_heads, head_dim;
    int max_batch, bos_id; /* bos_id -1: the tokenizer adds none */
    bool takes_empty_prompts;
    int embedding_dim; /* 0: requests with pooling are refused */
    int64_t n_params, weight_bytes, kv_bytes, created_unix;
    int64_t n_pages, page_bytes;
    int page_tokens;    /* of one head */
    bool has_tokenizer; /* false with random weights only: numbers are then all there is */
    bool has_chat_template;
    const char *chat_template;                                            /* its source, or NULL */
    float default_temperature, default_top_p, default_repetition_penalty; /* by sampling_defaults */
    int default_top_k;
};
const struct engine_info *engine_get_info(const struct engine *e);

struct engine_bias {
    int32_t token;
    float value;
};

/* What a request may write: see engine_grammar_new(). */
struct grammar;

/* A sequence of tokens. */
struct engine_word {
    const int32_t *ids; /* [n_ids] */
    int n_ids;
};

struct sampling_params {
    float temperature, top_p, min_p; /* 1, 1, 0 turn them off; temperature 0 is greedy */
    int top_k;                       /* 0: off */
    float repetition_penalty, presence_penalty, frequency_penalty; /* 1, 0, 0 */
    uint64_t seed;
    uint32_t sample_idx; /* which of the n samples of one prompt */
    int max_tokens, min_tokens;
    bool ignore_eos, include_stop, skip_special;
    int n_logprobs;          /* -1: none; 0: the sampled token's; k: k alternatives too */
    int n_prompt_logprobs;   /* the same for the prompt's tokens, computed in its prefill */
    int prompt_logprobs_at;  /* the first prompt token that gets them; 0: all that can */
    const char *const *stop; /* [n_stop] borrowed during submit; UTF-8, not empty */
    int n_stop;
    const int32_t *stop_ids; /* [n_stop_ids] */
    int n_stop_ids;
    const struct engine_bias *bias; /* [n_bias] unique tokens */
    int n_bias;
    const int32_t *allowed; /* [n_allowed] the only tokens that may be drawn; n_allowed 0: all */
    int n_allowed;
    const struct engine_word *bad_words; /* [n_bad_words] never completed among the generated */
    int n_bad_words;
    struct grammar
        *grammar; /* what the answer must be, or NULL; the request keeps its own reference */
};

/* Fills in the values that change nothing: temperature 1, penalties off, max_tokens 16. */
void sampling_params_init(struct sampling_params *p);

/* What an embedding is made of: the hidden states behind the last norm. */
enum engine_pooling {
    POOLING_NONE = 0, /* no embedding is wanted */
    POOLING_MEAN,     /* of all tokens */
    POOLING_LAST      /* of the last token */
};

struct engine_request {
    const int32_t *prompt;       /* [n_prompt] borrowed during submit */
    int n_prompt;                /* 0 only where engine_info.takes_empty_prompts */
    enum engine_pooling pooling; /* other than NONE: sampling.max_tokens is 0 */
    struct sampling_params sampling;
    const char *cache_salt; /* prompts share pages only where it is equal; NULL is ""; borrowed */
    int priority;           /* lower is served sooner; equal ones in the order of arrival */
    void *user;             /* comes back in every event */
};

/*
 * Queues a request. ERR_INVALID: out of range, the message says what (a client's fault);
 * ERR_CONTEXT: prompt + max_tokens exceed the context, or the pool could never hold them;
 * ERR_LIMIT: the queue or the memory for requests is full; ERR_CLOSED. *id is never 0 and never
 * reused.
 */
int engine_submit(struct engine *e, const struct engine_request *req, uint64_t *id,
                  struct err *err);

/* The request's final event follows soon, with what was generated until then. */
void engine_cancel(struct engine *e, uint64_t id);

/* One token with its logprobs, as far as they were asked for. */
struct engine_token {
    int32_t id;
    float logprob; /* NAN when none was asked for, or for the first prompt token */
    int n_top;
    int text_at, text_len;          /* bytes of event->text that this token completed; a token whose
                                       characters are still incomplete has text_len 0 */
    int32_t top_id[ENGINE_MAX_TOP]; /* [n_top], as top_logprob: the rest of both is void */
    float top_logprob[ENGINE_MAX_TOP];
};

/* News of one request since the last poll; everything is borrowed until the callback returns. */
struct engine_event {
    uint64_t id;
    void *user;
    const char *text; /* whole UTF-8 characters, stop strings held back and cut */
    size_t text_len;
    const struct engine_token *tokens; /* [n_tokens] generated since the last event */
    int n_tokens;
    const struct engine_token
        *prompt_tokens;      /* [n_prompt_logprobs_done] once, if asked for; else NULL */
    int n_prompt_tokens;     /* of the request, always */
    int n_completion_tokens; /* so far */
    int n_cached_tokens;
    const float *embedding;    /* [n_embedding] with FINISH_LENGTH of a request with pooling */
    int n_embedding;           /* the model's embedding_dim; 0: none */
    enum finish_reason finish; /* FINISH_NONE: more will come */
    int32_t stop_token;        /* the stop token id that ended it, else -1 */
    const char *stop_string;   /* the stop string that ended it, else NULL */
    const char *error;         /* with FINISH_ERROR */
    int64_t submit_ns, start_ns, first_token_ns, last_token_ns; /* clock_ns(); 0: not yet */
};

typedef void engine_event_fn(void *arg, const struct engine_event *event);

/*
 * Hands out every record that has news. One thread at a time. The callback may call
 * engine_cancel() and engine_submit(). Returns how many events were handed out.
 */
int engine_poll(struct engine *e, engine_event_fn *fn, void *arg);

/* Waits until there is something to poll or timeout_ns has passed: for callers without a loop. */
bool engine_wait(struct engine *e, int64_t timeout_ns);

/* Text. Any thread; the tokenizer is immutable. ids is malloc'ed, the caller frees it. */
int engine_tokenize(const struct engine *e, const char *text, size_t len, bool add_special,
                    bool parse_special, int32_t **ids, int *n_ids, struct err *err);
int engine_detokenize(const struct engine *e, const int32_t *ids, int n_ids, bool skip_special,
                      struct strbuf *out, struct err *err);

/* The raw bytes of one token in the middle of a text (may be half a character). */
int engine_token_bytes(const struct engine *e, int32_t id, struct strbuf *out);

/* How the text of a grammar is to be read. */
enum engine_grammar_kind {
    ENGINE_GRAMMAR_JSON_SCHEMA,
    ENGINE_GRAMMAR_JSON_OBJECT, /* any object; the text does not matter */
    ENGINE_GRAMMAR_REGEX,       /* of the whole answer */
    ENGINE_GRAMMAR_CHOICE,      /* a JSON array of strings */
    ENGINE_GRAMMAR_EBNF
};

/*
 * Compiles a grammar, or finds it among those that were used lately. Any thread; takes up to
 * grammar_timeout_ms. ERR_INVALID: the text is at fault; ERR_LIMIT: it asks for too much;
 * ERR_UNSUPPORTED: this device or model can do without only.
 */
int engine_grammar_new(struct engine *e, enum engine_grammar_kind kind, const char *text,
                       size_t len, struct grammar **out, struct err *err);
void engine_grammar_free(struct grammar *g); /* NULL is allowed; requests keep what they use */

struct engine_message {
    const char *role, *content; /* UTF-8 */
    size_t content_len;
    const char *extra; /* a JSON object of further members, or NULL */
};

/*
 * The model's chat template over messages, as token ids; special tokens inside contents stay
 * text. tools_json is an array as the API has it, or NULL. *prompt_text (may be NULL) gets the
 * rendered text. ERR_UNSUPPORTED without a template, ERR_INVALID with what the template raised.
 */
int engine_chat_tokenize(const struct engine *e, const struct engine_message *messages,
                         int n_messages, const char *tools_json, bool add_generation_prompt,
                         int32_t **ids, int *n_ids, struct strbuf *prompt_text, struct err *err);

/* Who holds the pages that are taken. */
struct engine_pages {
    int64_t prefill, decode; /* by the state of the sequence that took them */
    int64_t shared;          /* sequences hold them, but whoever took them has ended */
    int64_t cached;          /* no sequence holds them: room, though not empty */
    int64_t fixed;           /* of those held: by sequences that took all of theirs when admitted */
};

/* What the others had taken when a request was refused with ERR_LIMIT. */
enum engine_refusal { REFUSED_QUEUE = 0, REFUSED_TOKENS, REFUSED_MEMORY, REFUSED_COUNT };

#define ENGINE_N_ROWS_EDGES 13 /* 1, 8, 16, 32 ... 16384: steps by their number of rows */

/* A snapshot for /metrics and /health, from any thread. */
struct engine_stats {
    int64_t n_waiting, n_running, n_steps, n_preemptions, n_submitted, n_rejected;
    int64_t n_finished[FINISH_ERROR + 1], n_refused[REFUSED_COUNT]; /* n_rejected has these too */
    int64_t prompt_tokens, generation_tokens, prefill_ns, decode_ns, step_ns, mask_ns;
    int64_t n_prefix_asked, n_prefix_found; /* prompt tokens that the cache could give, and gave */
    int64_t pages_total, pages_used;
    struct engine_pages pages; /* the used ones */
    int64_t last_step_ns;      /* clock_ns() when the last step ended; 0: none yet */
    int64_t device_ns;         /* of step_ns, while the device worked */
    double memory_bytes_per_s; /* how fast the device reads its memory; 0: not measured */
    int64_t waiting_tokens;
    int64_t n_rows, rows_counts[ENGINE_N_ROWS_EDGES + 1]; /* not cumulative; the last is the rest */
    bool healthy;
    struct {
        const char *name;
        int64_t n_calls, ns; /* ns and timed_bytes: of the calls that were timed */
        double bytes, flops, timed_bytes;
    } ops[16];
    int n_ops;
};
void engine_get_stats(const struct engine *e, struct engine_stats *out);

/* Scheduler, slots, pool and plan as JSON text, for /debug and the crash report. */
void engine_dump(struct engine *e, struct strbuf *out);

/*
 * The pool, a check that every page has one owner, and the slots in use, as JSON; or with slot >= 0
 * that slot's heads with their pages. ERR_NOT_FOUND: nobody sits there.
 */
int engine_dump_kv(struct engine *e, int slot, struct strbuf *out, struct err *err);

/* The plan with every head's rule and what it keeps of n_tokens; 0: of the context. */
int engine_dump_plan(const struct engine *e, int n_tokens, struct strbuf *out, struct err *err);

enum inspect_form { INSPECT_TEXT = 0, INSPECT_JSON, INSPECT_SVG };
enum inspect_colours { INSPECT_COLOURS_NONE = 0, INSPECT_COLOURS_256, INSPECT_COLOURS_RGB };

struct engine_inspect {
    enum inspect_form form;
    enum inspect_colours colours; /* of the text's map: escape sequences for terminals */
    int n_tokens;                 /* the length that is looked at; 0: the context */
    int64_t memory;               /* bytes for weights, keys and values; 0: as the daemon would */
};

/*
 * Shapes, parameters and memory of config->model under config->plan, and the plan's map; the SVG is
 * the map alone. config.json is all it reads.
 */
int engine_inspect(const struct config *config, const struct engine_inspect *how,
                   struct strbuf *out, struct err *err);

/* What a recorded run came to. */
struct engine_replay {
    int64_t n_sequences, n_steps, n_rows, n_preemptions;
    int n_open;   /* sequences that had not ended */
    bool is_cut;  /* the trace ends in the middle of a line */
    bool differs; /* the scheduler decided otherwise */
};

/*
 * Runs the scheduler again on what the setting `trace` recorded, without a model. ERR_INVALID at
 * the first decision that is not the recorded one, with both in the message and `differs` set;
 * ERR_PARSE when the file is no trace.
 */
int engine_replay(const char *path, struct engine_replay *out, struct err *err);

/* A tokenizer.json without a model. ids is malloc'ed, the caller frees it. */
struct engine_tokenizer;
int engine_tokenizer_open(struct engine_tokenizer **out, const char *path, struct err *err);
int engine_tokenizer_encode(const struct engine_tokenizer *t, const char *text, size_t len,
                            bool add_special, int32_t **ids, int *n_ids, struct err *err);
void engine_tokenizer_close(struct engine_tokenizer *t); /* accepts NULL */

#endif
