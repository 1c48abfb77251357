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

/* A step's results, in memory of the backend's host_alloc(). */
struct sampler_results {
    int n_rows, max_top;
    struct sample_result *result; /* [max_logits] */
    int32_t *top_token;           /* [max_logits, ENGINE_MAX_TOP], rows max_top wide */
    float *top_logprob;           /* likewise */
    struct backend *be;           /* private */
};

int sampler_init(struct sampler *s, struct backend *be, const struct sampler_params *params,
                 struct err *err);
void sampler_release(struct sampler *s);

int sampler_results_init(struct sampler_results *r, struct backend *be, int max_logits,
                         struct err *err);
void sampler_results_release(struct sampler_results *r);

void sampler_begin(struct sampler *s);

/* A row that draws r's next token; r must stay until sampler_fill_masks(). */
void sampler_add_draw(struct sampler *s, struct request *r);

/* A row that only reports the logprob of r's prompt token at position pos. */
void sampler_add_prompt(struct sampler *s, const struct request *r, int32_t pos);

/*
 * Works out which tokens may be drawn, where that is limited, and sets r->has_choice. Needs nothing
 * of the step's results, so it belongs behind the queueing of the forward pass.
 */
void sampler_fill_masks(struct sampler *s);

/*
 * Queues the op on the step's logits; the tokens drawn go to slot_token too. *out is complete when
 * the step was waited for.
 */
int sampler_run(struct sampler *s, float *logits, int32_t *slot_token, struct sampler_results *out,
                struct err *err);

/* Row i as a token, with n_top alternatives; -1: no logprob at all. text fields are 0. */
struct engine_token sampler_token(const struct sampler_results *r, int i, int n_top);

#endif
