/*
 * block_config - reads what a config.json says of a Block Transformer; counts its numbers.
 *
 * The file is our own: the published checkpoints have none. MODEL.md describes it.
 */
#ifndef BLOCK_CONFIG_H
#define BLOCK_CONFIG_H

#include "engine/model/model_config.h"

struct json_fields;

/*
 * Fills cfg->block, and cfg->stack and cfg->max_seq_len too; cfg->vocab_size is known. Failure is
 * left in f->rc.
 */
void block_config_read(struct model_config *cfg, struct json_fields *f);

/* Adds the elements of all but the block decoder's layers. */
void block_config_params(const struct model_config *cfg, int64_t *matrices, int64_t *vectors);

/* The widest activation row outside of the block decoder's layers. */
int block_config_max_dim(const struct block_config *b);

#endif
