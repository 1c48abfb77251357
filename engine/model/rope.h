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
 * Writes rope->dim / 2 frequencies. seq_len decides the base of ROPE_DYNAMIC: at most max_seq_len,
 * and the others always, give the frequencies that the model starts with.
 */
void rope_inv_freq(float *out, const struct rope_config *rope, int max_seq_len, int seq_len);

/* What cos and sin are multiplied by: 1 but for yarn. */
float rope_scale(const struct rope_config *rope);

#endif
