/*
 * request - one generation: what was asked for, what was generated, and what may be told of it.
 *
 * Made on the caller's thread by request_new(), which checks everything a client can get wrong and
 * takes the memory that the request needs; only text and tokens that wait to be told can grow, with
 * a stop string that is half there or a poller that stays away. From then on the engine thread owns
 * it, but for `cancel`; with the final event it passes to whoever polls.
 *
 *   text     token -> detokenizer -> pending -> outbox. Text that a stop string might begin with
 *            stays pending, and with it the tokens it came from: a token is told together with its
 *            text, so what was streamed is always a prefix of the whole.
 */
#ifndef REQUEST_H
#define REQUEST_H

#include "base/arena.h"
#include "engine/backend.h"
#include "engine/engine.h"
#include "engine/model/model.h"
#include "engine/outbox.h"
#include "engine/plan/plan.h"
#include "engine/scheduler.h"
#include "engine/stop_match.h"
#include "engine/token_filter.h"
#include "engine/tokenizer/detok.h"

#include <stdatomic.h>

struct tokenizer;

#define REQUEST_MAX_BIAS 1024 /* logit_bias entries: more than any client library sends */

/* What all requests of an engine share; fixed after boot. */
struct request_env {
    const struct tokenizer *tokenizer; /* NULL: there is no text */
    const struct plan *plan;
    const struct block_config *block; /* NULL: the model is no Block Transformer */
    struct kv_shape shape;
    int vocab_size, max_seq_len;
    const int *eos_ids; /* [n_eos] */
    int n_eos;
    int embedding_dim;        /* 0: no pooling */
    bool has_masks;           /* of the backend */
    bool rope_by_prompt;      /* keys depend on the prompt's length */
    uint64_t cache_secret[2]; /* so that nobody can make two salts collide */
};

/* Tokens held so far, each once, for the penalties. Open addressing over `rows`. */
struct token_counts {
    struct sample_seen *rows; /* [n_rows] */
    int32_t *index;           /* [n_index] row + 1, a power of two */
    int n_rows, n_index;
};

struct request {
    struct sched_seq seq; /* seq.owner is the request */
    struct outbox_record out;
    struct arena arena;
    struct sampling_params sampling; /* its pointers lead into the arena */
    const struct request_env *env;
    uint64_t id;
    int64_t n_bytes; /* memory that it was made with, for request_memory_bytes */
    atomic_bool cancel;
    int32_t *tokens;              /* [n_prompt + max_tokens], seq.lead more in front */
    struct sample_bias *bias;     /* [n_bias] the client's */
    struct sample_bias *bias_min; /* [n_bias_min] the same, and what min_tokens bans */
    int n_bias, n_bias_min;
    struct token_filter filter;
    bool has_choice;                    /* did the filter leave a token for this step's draw? */
    struct token_counts counts;         /* empty without penalties */
    struct engine_token *prompt_tokens; /* [n_prompt] or NULL; owned by `out` */
    bool prompt_ready, prompt_told;     /* complete and not yet told; complete */
    float *embedding;                   /* [env->embedding_dim] with pooling, else NULL */
    struct detok detok;
    struct stop_match stops;
    struct strbuf pending;     /* text not yet told */
    struct engine_token *held; /* [n_held] tokens not yet told; text_at counts in pending */
    int n_held, n_held_room;
    enum finish_reason finish;
    int32_t stop_token;
    const char *stop_string, *error;
    int64_t submit_ns, start_ns, first_token_ns, last_token_ns;
    struct {
        int64_t serial;     /* of the step that `last` is of */
        int32_t last;       /* its last item of this request */
    } items[BACKEND_STEPS]; /* the engine's: by place in its ring of steps */
};

/*
 * ERR_INVALID names the parameter, its value and its range; ERR_CONTEXT has the arithmetic. The
 * caller owns *out: request_free().
 */
int request_new(struct request **out, const struct request_env *env,
                const struct engine_request *req, uint64_t id, struct err *err);
void request_free(struct request *r);

static inline int request_n_generated(const struct request *r)
{
    return r->seq.n_tokens - r->seq.n_prompt;
}

/*
 * Does drawing a token take the tokens before it on the host? Then a step that samples one must be
 * taken before the request's next row can be planned. min_tokens and logit_bias are known without.
 */
static inline bool request_needs_token_on_host(const struct request *r)
{
    return r->counts.n_index > 0 || token_filter_needs_tokens(&r->filter);
}

/*
 * Takes a sampled token, whose id, logprob and top fields are set: appends it, works out its text
 * and whether it ends the request. Nothing is told yet.
 */
enum finish_reason request_push_token(struct request *r, const struct engine_token *token,
                                      int64_t now_ns);

/* The sums of the request's pooled rows [env->embedding_dim] become its embedding. */
void request_take_pooled(struct request *r, const double *sums);

/*
 * Ends the request for another reason. Half a character is dropped, held-back text is told. error
 * is borrowed for good.
 */
void request_end(struct request *r, enum finish_reason reason, const char *error);

/*
 * Puts into the outbox what may be told by now: everything once the request has ended. It must
 * then have left the scheduler, since the poller may free it at any moment.
 */
void request_tell(struct request *r, struct outbox *o);

#endif
