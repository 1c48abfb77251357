/*
 * stack_config - reads what a config.json says of its layers; counts their numbers.
 */
#ifndef STACK_CONFIG_H
#define STACK_CONFIG_H

#include "engine/model/model_family.h"

#include <stdint.h>

struct json_fields;

/*
 * Fills *s, and *max_seq_len with max_position_embeddings, stretched where rope scaling stretches
 * it. Failure is left in f->rc.
 */
void stack_config_read(struct stack_config *s, int *max_seq_len, struct json_fields *f,
                       const struct model_family *fam);

/* Elements of the layers' matrices and vectors (gains and biases), the last norm's too. */
void stack_config_params(const struct stack_config *s, int64_t *matrices, int64_t *vectors);

/* The widest activation row of an op. */
int stack_config_max_dim(const struct stack_config *s);

#endif
