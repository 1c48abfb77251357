/*
 * ref_ops - every operation of a model once more, naively and in double: what backends are tested
 * against. One row at a time, explicit masks over all positions, no tiles, no rings.
 */
#ifndef REF_OPS_H
#define REF_OPS_H

#include "engine/backend.h"

/* out [dim] = norm of x; bias may be NULL. */
void ref_norm(double *out, const double *x, int dim, enum norm_kind kind, double eps,
              const float *gain, const float *bias);

/* y [n_out] = w x + bias; w [n_out, n_in]; bias may be NULL. */
void ref_linear(double *y, const double *x, const float *w, const float *bias, int n_out, int n_in);

double ref_act(double x, enum act_kind kind);

/* Rotates one head in place; the angle is a float product, as the contract says. */
void ref_rope(double *x, int rope_dim, int32_t pos, const float *inv_freq, double scale);

/* One query head at position i over keys 0 .. n - 1 [n, head_dim]; sees[j] says which count. */
void ref_attend(double *out, const double *q, const float *k, const float *v, const bool *sees,
                int n, int head_dim, double scale);

/*
 * One row, as struct sample_args specifies it, by a full sort. logits are not changed.
 * weights, if not NULL, gets the weight each token was drawn with [vocab_size].
 */
struct sample_result ref_sample(const float *logits, int vocab_size, const struct sample_row *row,
                                const struct sample_bias *bias, const struct sample_seen *seen,
                                uint64_t *weights);

/* The n best tokens by raw logit, ties by id; and the logprob of a token. */
void ref_top(const float *logits, int vocab_size, int n, int32_t *token);
double ref_logprob(const float *logits, int vocab_size, int token);

#endif
