/*
 * stack - decoder layers with their weights and buffers, and the forward pass through them.
 *
 * Layers are Llama's or GPT-NeoX's: what they differ in is data, weights that are NULL, kinds of
 * norms and the order of two ops. Inside of engine/model and of the plan search only. Engine thread
 * only; the forward pass allocates nothing.
 */
#ifndef STACK_H
#define STACK_H

#include "engine/backend.h"
#include "engine/model/model_config.h"

/* One decoder layer. A weight whose data is NULL is one that the architecture does not have. */
struct stack_layer {
    struct weight attn_norm, attn_norm_bias; /* [dim] */
    struct weight wqkv, bqkv;     /* [(n_heads + 2 n_kv_heads) head_dim, dim]: q, k, v stacked */
    struct weight q_norm, k_norm; /* [head_dim] */
    struct weight wo, bo;         /* [dim, n_heads head_dim] */
    struct weight ffn_norm, ffn_norm_bias; /* [dim] */
    struct weight w_in, b_in;              /* [2 ffn_dim, dim]: gate, up stacked; or up alone */
    struct weight w_down, b_down;          /* [dim, ffn_dim] */
};

struct stack {
    struct stack_config cfg;
    struct backend *be; /* borrowed */
    int max_rows;

    struct stack_layer *layers;    /* [n_layers] */
    struct weight norm, norm_bias; /* [dim] behind the last layer; applied by whoever reads x */

    /* Activations, device memory, reused by every layer. */
    void *x;              /* [max_rows, dim] what goes in, and what comes out */
    void *q;              /* [max_rows, n_heads, head_dim] */
    void *k_chunk;        /* [max_rows, n_kv_heads, head_dim], room for any kv dtype */
    void *v_chunk;        /* the same */
    void *attn_out;       /* [max_rows, n_heads, head_dim] */
    float *inv_freq;      /* [rope.dim/2]; dynamic rope: [max_rows, rope.dim/2] */
    float *inv_freq_host; /* the same shape, host; uploaded before a step of dynamic rope */
    float rope_scale;
    size_t buffer_bytes; /* of all of them */
};

/* Room for the layers' weights. On error, and in the end, stack_release(). */
int stack_init(struct stack *s, const struct stack_config *cfg, struct backend *be, int max_rows,
               struct err *err);
int stack_open_buffers(struct stack *s, struct err *err);
void stack_release(struct stack *s); /* accepts zeroed and half-built ones */

/* The args of a layer's ops on the stack's buffers, for stack_forward() and the backward pass. */
struct attn_in_args stack_attn_in(const struct stack *s, int layer, const struct step_batch *batch,
                                  const struct kv_view *kv);
struct attn_args stack_attn(const struct stack *s, int layer, const struct step_batch *batch,
                            const struct kv_view *kv);
struct attn_out_args stack_attn_out(const struct stack *s, int layer,
                                    const struct step_batch *batch);
struct ffn_args stack_ffn(const struct stack *s, int layer, const struct step_batch *batch);

/* The norm behind the last layer. */
struct norm_args stack_norm(const struct stack *s);

/*
 * Runs x through every layer. rope_len [n_rows] is what a dynamic rope's base depends on, NULL
 * unless it is dynamic: see model_forward().
 */
int stack_forward(struct stack *s, const struct step_batch *batch, const struct kv_view *kv,
                  const int32_t *rope_len, struct err *err);

/* Dynamic rope: each row's frequencies by rope_len [n_rows]; before the first layer. */
int stack_upload_rope(struct stack *s, int n_rows, const int32_t *rope_len, struct err *err);

#endif
