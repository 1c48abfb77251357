/*
 * model_impl - the inside of struct model, shared by loading (model.c, weight_list.c) and the
 * forward passes. Outside this folder only the plan search's backward pass includes it.
 */
#ifndef MODEL_IMPL_H
#define MODEL_IMPL_H

#include "engine/backend.h"
#include "engine/model/model.h"

#include <stdbool.h>
#include <stdint.h>

struct weights_dir;

/* One decoder layer. A weight whose data is NULL is one that the architecture does not have. */
struct llama_layer {
    struct weight attn_norm;      /* [dim] */
    struct weight wqkv, bqkv;     /* [(n_heads + 2 n_kv_heads) head_dim, dim]: q, k, v stacked */
    struct weight q_norm, k_norm; /* [head_dim] */
    struct weight wo, bo;         /* [dim, n_heads head_dim] */
    struct weight ffn_norm;       /* [dim] */
    struct weight w_in, b_in;     /* [2 ffn_dim, dim]: gate, up stacked */
    struct weight w_down, b_down; /* [dim, ffn_dim] */
};

struct model {
    struct model_config cfg;
    struct backend *be; /* borrowed */
    int max_rows, max_logits;

    struct weight embed;        /* [vocab_size, dim] */
    struct weight head;         /* [vocab_size, dim]; data NULL when tied */
    struct weight norm;         /* [dim] */
    struct llama_layer *layers; /* [n_layers] */

    struct weights_dir *files; /* NULL for random weights; the backend may borrow from them */
    void **aligned; /* [n_aligned] copies of tensors that a file holds at odd addresses */
    int n_aligned;
    int n_unused;       /* tensors of the files that no weight took */
    const char *unused; /* one of them, borrowed from files */
    size_t weight_bytes, buffer_bytes;

    /* Activations, device memory, reused by every layer. */
    void *x;              /* [max_rows, dim] */
    void *q;              /* [max_rows, n_heads, head_dim] */
    void *k_chunk;        /* [max_rows, n_kv_heads, head_dim], room for any kv dtype */
    void *v_chunk;        /* the same */
    void *attn_out;       /* [max_rows, n_heads, head_dim] */
    float *logits;        /* [max_logits, vocab_size] */
    float *inv_freq;      /* [head_dim/2]; dynamic rope: [max_rows, head_dim/2] */
    float *inv_freq_host; /* the same shape, host; uploaded before a step of dynamic rope */
    float rope_scale;
};

/* Fills in embed, head, norm and layers. On error model_close() frees what is there. */
int weight_list_load(struct model *m, const struct model_params *params, struct err *err);

/* The args of a layer's ops on the model's buffers, for llama_forward() and the backward pass. */
struct attn_in_args llama_attn_in(const struct model *m, int layer, const struct step_batch *batch,
                                  const struct kv_view *kv);
struct attn_args llama_attn(const struct model *m, int layer, const struct step_batch *batch,
                            const struct kv_view *kv);
struct attn_out_args llama_attn_out(const struct model *m, int layer,
                                    const struct step_batch *batch);
struct ffn_args llama_ffn(const struct model *m, int layer, const struct step_batch *batch);

/* Dynamic rope: each row's frequencies by rope_len [n_rows], before its step's first op. */
int llama_upload_rope(struct model *m, int n_rows, const int32_t *rope_len, struct err *err);

/* The forward pass of the Llama family: see model_forward(). */
int llama_forward(struct model *m, const struct step_batch *batch, const struct kv_view *kv,
                  const int32_t *rope_len, struct err *err);

#endif
