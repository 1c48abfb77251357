/*
 * sampler - turns what requests asked for into the arrays of the backend's sample op.
 *
 * The math is the backend's. Rows are added in the order of the step's logit rows. The arrays are
 * sized at boot: max_logits rows, every running request's biases, max_seen penalty entries. What
 * comes back has memory of its own for each step that can be queued.
 * Engine thread only.
 */
#ifndef SAMPLER_H
#define SAMPLER_H

#include "engine/backend.h"
#include "engine/engine.h"

struct request;

struct sampler_params {
    int max_logits, max_batch, max_bias, max_seen; /* max_bias, max_seen: entries of a step */
    int vocab_size;
    int n_phases; /* that rows may draw in; 0: 1 */
};

struct sampler {
    struct sampler_params params;
    struct backend *be;
    int n_rows, n_bias, n_seen, max_top; /* of this step */
    struct sample_row *rows;             /* host [max_logits] */
    struct sample_bias *bias;            /* host [max_bias] */
    struct sample_seen *seen;            /* host [max_seen] */
    uint32_t *mask;                      /* host [max_batch, SAMPLE_MASK_WORDS(vocab_size)] */
    struct request **masked;             /* [n_masks] whose row of the mask it is */
    int n_masks;
    int64_t mask_ns; /* time spent on masks since the caller last took it */
    void *device[7]; /* private: the four arrays above, then those of the results */
};

/*
 * A step's results, in memory of the backend's host_alloc(): n_rows of each phase, one phase behind
 * the other. A row that drew nothing in a phase has none there.
 */
struct sampler_results {
    int n_rows, n_phases, max_top;
    struct sample_result *result; /* [n_phases, max_logits] */
    int32_t *top_token;           /* [n_phases, max_logits, ENGINE_MAX_TOP], rows max_top wide */
    float *top_logprob;           /* likewise */
    struct backend *be;           /* private */
};

int sampler_init(struct sampler *s, struct backend *be, const struct sampler_params *params,
                 struct err *err);
void sampler_release(struct sampler *s);

/* n: rows times phases. */
int sampler_results_init(struct sampler_results *r, struct backend *be, int n, struct err *err);
void sampler_results_release(struct sampler_results *r);

void sampler_begin(struct sampler *s);

/* A row that draws r's next token; r must stay until sampler_fill_masks(). */
void sampler_add_draw(struct sampler *s, struct request *r);

/*
 * A row that draws r's tokens of a whole block: in phases first to end - 1 those for position +
 * phase. The tokens before must be of no consequence, as request_needs_token_on_host() says.
 */
void sampler_add_block(struct sampler *s, struct request *r, int64_t position, int first, int end);

/* Rows that draw nothing, so that there are n. */
void sampler_pad(struct sampler *s, int n);

/* A row that only reports the logprob of r's prompt token at position pos. */
void sampler_add_prompt(struct sampler *s, const struct request *r, int32_t pos);

/*
 * Works out which tokens may be drawn, where that is limited, and sets r->has_choice. Needs nothing
 * of the step's results, so it belongs behind the queueing of the forward pass.
 */
void sampler_fill_masks(struct sampler *s);

/* Queues the copies of the arrays, which may change then. */
int sampler_upload(struct sampler *s, struct err *err);

/* Some of the rows, in one phase; what they draw goes to slot_token too. */
struct sampler_part {
    int first, n, phase;
    const float *logits; /* [n, vocab_size] */
    int32_t *slot_token; /* as in sample_args */
    int slot_stride;
};

/* Queues the op on them. */
int sampler_draw(struct sampler *s, const struct sampler_part *part, struct err *err);

/* Queues the copies of what n_phases drew: *out is complete when the step was waited for. */
int sampler_fetch(struct sampler *s, int n_phases, struct sampler_results *out, struct err *err);

/* All of that, of all rows in one phase. */
int sampler_run(struct sampler *s, float *logits, int32_t *slot_token, struct sampler_results *out,
                struct err *err);

/* Row i of a phase as a token, with n_top alternatives; -1: no logprob at all. text fields are 0.
 */
void sampler_token(const struct sampler_results *r, int phase, int i, int n_top,
                   struct engine_token *out);

#endif
