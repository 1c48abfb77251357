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

struct model {
    struct model_config cfg;
    struct backend *be; /* borrowed */
    int max_rows, max_logits;

    struct weight embed; /* [vocab_size, dim] */
    struct weight head;  /* [vocab_size, dim]; data NULL when tied */
    struct stack stack;

    struct weights_dir *files; /* NULL for random weights; the backend may borrow from them */
    void **aligned; /* [n_aligned] copies of tensors that a file holds at odd addresses */
    int n_aligned;
    int n_unused;       /* tensors of the files that no weight took */
    const char *unused; /* one of them, borrowed from files */
    size_t weight_bytes, buffer_bytes;

    float *logits; /* device [max_logits, vocab_size] */
};

/* Fills in embed, head and the stack's weights. On error model_close() frees what is there. */
int weight_list_load(struct model *m, const struct model_params *params, struct err *err);

#endif
