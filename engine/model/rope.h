/*
 * rope - the inverse frequencies of a rotary embedding, as transformers computes them.
 *
 * Powers are taken in f32 like there, not in double and rounded: at position 100000 one bit of a
 * frequency is an angle of 0.006. Pure functions.
 */
#ifndef ROPE_H
#define ROPE_H

struct rope_config;

/*
 * Writes rope->dim / 2 frequencies. seq_len decides the base of ROPE_DYNAMIC: up to
 * rope->original_max_seq_len it stays what it is, and the other kinds never look at it.
 */
void rope_inv_freq(float *out, const struct rope_config *rope, int seq_len);

/* What cos and sin are multiplied by: 1 but for yarn. */
float rope_scale(const struct rope_config *rope);

#endif
