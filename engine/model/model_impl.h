/*
 * model_impl - the inside of struct model, shared by loading (model.c, weight_list.c) and the
 * forward pass. Outside this folder only the plan search's backward pass includes it.
 */
#ifndef MODEL_IMPL_H
#define MODEL_IMPL_H

#include "engine/backend.h"
#include "engine/model/model.h"
#include "engine/model/stack.h"

#include <stdbool.h>
#include <stdint.h>

struct weights_dir;

/* What a Block Transformer has besides embedder, block decoder and head. */
struct block_parts {
    struct weight proj, proj_bias;     /* [dim, block_len embed_dim], [dim]; if it projects */
    struct weight expand, expand_bias; /* [n_prefix token.dim, dim], [n_prefix token.dim] */
    struct weight token_embed;         /* [vocab_size, token.dim] */
    struct stack token;                /* the token decoder */
    void *gathered;                    /* device [max_rows, block_len embed_dim]; if it projects */
    /* Keys and values of the blocks being decoded: one page a head, of all that a block needs. */
    struct kv_view slab;
    void *pages, *page_table, *geom, *window;
    size_t buffer_bytes;
};

struct model {
    struct model_config cfg;
    struct backend *be; /* borrowed */
    int max_rows, max_logits, n_pool_slots;

    struct weight embed; /* [vocab_size, dim]; the embedder's [vocab_size, embed_dim] */
    struct weight head;  /* [vocab_size, dim]; data NULL when tied */
    struct stack stack;  /* the layers; a Block Transformer's block decoder */
    struct block_parts block;

    struct weights_dir *files; /* NULL for random weights; the backend may borrow from them */
    void **aligned; /* [n_aligned] copies of tensors that a file holds at odd addresses */
    int n_aligned;
    int n_unused;       /* tensors of the files that no weight took */
    const char *unused; /* one of them, borrowed from files */
    size_t weight_bytes, buffer_bytes;

    int n_logit_rows;
    float *logits;  /* device [n_logit_rows, vocab_size] */
    double *pooled; /* device [n_pool_slots, dim], or NULL */
};

/* Buffers of the token decoder for n_items blocks at a time. */
int block_parts_open(struct model *m, int n_items, struct err *err);
void block_parts_release(struct model *m); /* accepts half-built ones */

/* Fills in embed, head, the stack's weights and the block parts'. On error model_close() frees what
 * is there. */
int weight_list_load(struct model *m, const struct model_params *params, struct err *err);

#endif
