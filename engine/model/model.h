/*
 * model - a loaded decoder: its configuration, its weights on a backend, and its forward pass.
 *
 * Engine thread only. The forward pass is a straight list of backend ops; it allocates nothing.
 */
#ifndef MODEL_H
#define MODEL_H

#include "base/err.h"
#include "engine/backend.h"
#include "engine/model/model_config.h"

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

struct model;

struct model_params {
    const char *dir;
    bool random_weights; /* config.json alone is enough */
    uint64_t seed;
    enum dtype dtype;         /* of weights on the backend */
    int max_rows, max_logits; /* of a step: sizes the activation buffers */
    int max_items;            /* blocks that a Block Transformer decodes at a time */
    int n_pool_slots;         /* slots that hidden states can be pooled for; 0: none */
    /* Called while loading with bytes done and in all; may be NULL. */
    void (*progress)(void *arg, size_t done, size_t total);
    void *progress_arg;
};

/*
 * Loads the weights onto be, which must outlive the model. Every tensor is checked for name, type
 * and shape before the first one is loaded; messages name file and tensor. Tensors that the
 * architecture does not have are left alone: see model_unused().
 */
int model_open(struct model **out, const struct model_config *cfg, struct backend *be,
               const struct model_params *params, struct err *err);
void model_close(struct model *m);

/* As given to model_open, but for tie_embeddings when the files hold a head that differs. */
const struct model_config *model_get_config(const struct model *m);

/*
 * How many tensors of the files were not used, inv_freq buffers aside, and one of their names
 * (borrowed from m): worth a line in the log, transformers ignores them too.
 */
int model_unused(const struct model *m, const char **example);

/* Bytes of weights and of activation buffers on the backend. */
size_t model_weight_bytes(const struct model *m);
size_t model_buffer_bytes(const struct model *m);

/*
 * One step, called between ops->step_begin and ops->step_end, which are the caller's since sampling
 * belongs to the step too. Embeds the rows, runs every layer, and leaves f32 [n_logits, vocab_size]
 * in the buffer that model_logits() names. rope_len[row] is the length that decides a dynamic rope
 * base (the prompt's for prompt rows, pos + 1 for decode rows); host memory, NULL unless
 * model_wants_rope_len(). batch and kv are read only; the windows in kv are the caller's copy of
 * config->window.
 */
int model_forward(struct model *m, const struct step_batch *batch, const struct kv_view *kv,
                  const int32_t *rope_len, struct err *err);
bool model_wants_rope_len(const struct model *m);

/*
 * A step of a Block Transformer. First the block decoder's rows, if there are any. Then the token
 * decoder's, all decode rows: with from_context, n_items blocks begin, item i with n_prefix rows
 * from i * n_prefix on, whose x are the prefixes that row context_row[i] of `blocks` leaves behind;
 * else each row is the token before the one that is wanted. Row r's slot in `tokens` is the item's
 * place in the slab, its pos counts the block's keys: prefixes, then tokens.
 */
struct block_step {
    struct step_batch blocks;   /* pos counts blocks; token is not read */
    const int32_t *block_token; /* device [blocks.n_rows, block_len], as block_embed_args.token */
    bool from_context;
    int n_items;
    const int32_t *context_row; /* device [n_items] */
    struct step_batch tokens;
};

/* As model_forward(), with kv the block decoder's; at most model_logit_rows() of them. */
int model_forward_blocks(struct model *m, const struct block_step *step, const struct kv_view *kv,
                         struct err *err);

/* The same in two parts: all but the logits, then those of logit_row[first ..] of the step's tokens
 * as often as is asked for, n rows at a time, each time at the front of model_logits(). */
int model_decode_blocks(struct model *m, const struct block_step *step, const struct kv_view *kv,
                        struct err *err);
int model_block_logits(struct model *m, const struct step_batch *tokens, int first, int n,
                       struct err *err);

float *model_logits(struct model *m);

/* Rows that model_logits() has room for: max_logits, or fewer of a Block Transformer with many. */
int model_logit_rows(const struct model *m);

/* Device f64 [n_pool_slots, dim]: what batch->pools asked to add up of the hidden states. */
double *model_pooled(struct model *m);

#endif
