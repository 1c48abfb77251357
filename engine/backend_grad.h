/*
 * backend_grad - the backward ops of the plan search: gradients with respect to activations, and
 * the influence of attention. The daemon links none of it.
 *
 * A pass is one sequence from position 0 in one chunk, so forward ops need no pages. The caller
 * keeps every layer's input and runs the layer forward again before going back through it; weights
 * get no gradients. The residual's gradient dx is f32 and adds up in place; da, dq, dk and dv have
 * the backend's act_dtype, which is f32 on the CPU. Pointers named as in backend.h are device
 * memory of the same backend. What goes to host memory is there behind finish(), and on the CPU
 * before.
 */
#ifndef BACKEND_GRAD_H
#define BACKEND_GRAD_H

#include "engine/backend.h"

#ifdef __cplusplus
extern "C" {
#endif

#define GRAD_BLOCK KV_TILE /* rows and keys of one cell of influence */

/*
 * E divides by 1 - A. Below this the numerator, a difference of nearly equal numbers, is mostly
 * rounding in f32.
 */
#define GRAD_MIN_REST 1e-4f

struct grad;

/*
 * What is minimised in a row whose target has probability p. Where a model is sure, the gradient of
 * -log p all but vanishes, as it carries the factor 1 - p; that of the log odds does not.
 */
enum grad_loss {
    GRAD_LOSS_CROSS_ENTROPY = 0, /* -log p */
    GRAD_LOSS_LOG_ODDS           /* log((1 - p) / p) */
};

/*
 * Cross entropy of chosen rows, and a gradient: loss_sum += -log p(target), dx[row] of these rows
 * is set (not added) to scale * d loss / dx. Other rows are left alone.
 */
struct grad_logits_args {
    int dim, vocab_size, n_targets;
    const int32_t *row, *target; /* host [n_targets], rows ascending */
    float scale;
    enum grad_loss loss;
    struct norm_args norm;
    const struct weight *head; /* [vocab_size, dim] */
    const void *x;             /* [n_rows, dim] behind the last layer */
    float *dx;                 /* [n_rows, dim] */
    double *loss_sum;          /* host */
    float *row_loss;           /* host [n_targets], or NULL */
};

/*
 * dx += (d ffn / d x)^T dx, where x is what went into the feed-forward part. wide is what
 * ffn_keep() left, and is changed; NULL: its product is computed once more.
 */
struct grad_ffn_args {
    int n_rows, dim, ffn_dim;
    struct norm_args norm;
    enum act_kind act;
    bool gated;
    const struct weight *w_in, *b_in, *w_down;
    const void *x;
    void *wide; /* [n_rows, w_in->n_out] or NULL */
    float *dx;
};

/* da = dx wo */
struct grad_attn_out_args {
    int n_rows, dim, n_in;
    const struct weight *wo;
    const float *dx; /* [n_rows, dim] */
    void *da;        /* [n_rows, n_in] */
};

/* How influence adds up. */
enum grad_sum {
    GRAD_SUM_ABS = 0, /* the absolute value of every key's, as the reference has it */
    GRAD_SUM_BLOCK,   /* a row's keys of one block first, since they are hidden together */
    GRAD_SUM_SIGNED   /* no absolute value at all: what all rows lose and gain cancels */
};

/*
 * From da to dq, dk, dv, and the influence |A / (1 - A) * (da.o - da.v)| of every key on every row,
 * summed in blocks of GRAD_BLOCK: key blocks >= 1 by the distance of row block and key block, key
 * block 0 by row block. A row that sees a single key has |da.v * A| instead. Added to band, sink.
 */
struct grad_attn_args {
    int n_rows, n_heads, n_kv_heads, head_dim;
    float scale;
    enum grad_sum sum;
    int window;          /* a row sees the last `window` keys; KV_WINDOW_ALL */
    const void *q;       /* [n_rows, n_heads, head_dim] behind rope */
    const void *k, *v;   /* act_dtype [n_rows, n_kv_heads, head_dim] */
    const void *a;       /* [n_rows, n_heads, head_dim] what attention gave */
    const void *da;      /* the same shape */
    void *dq, *dk, *dv;  /* out, shapes of q, k, v */
    double *band, *sink; /* host [n_heads, n_blocks], n_blocks = ceil(n_rows / GRAD_BLOCK) */
};

/* dx += what flows back through q, k, v, rope, their norms and the norm in front. */
struct grad_attn_in_args {
    int n_rows, dim, n_heads, n_kv_heads, head_dim;
    struct norm_args norm;
    const struct weight *wqkv, *bqkv, *q_norm, *k_norm;
    float qk_norm_eps;
    int rope_dim;
    const float *inv_freq; /* as attn_in */
    int inv_freq_stride;
    float rope_scale;
    const void *x;      /* [n_rows, dim] */
    void *dq, *dk, *dv; /* in; changed */
    float *dx;
};

struct grad_ops {
    void (*close)(struct grad *g);
    int (*copy)(struct grad *g, void *dst, const void *src, size_t bytes, struct err *err);
    int (*zero)(struct grad *g, void *dst, size_t bytes, struct err *err);
    int (*logits)(struct grad *g, const struct grad_logits_args *a, struct err *err);
    int (*ffn)(struct grad *g, const struct grad_ffn_args *a, struct err *err);
    int (*attn_out)(struct grad *g, const struct grad_attn_out_args *a, struct err *err);
    int (*attn)(struct grad *g, const struct grad_attn_args *a, struct err *err);
    int (*attn_in)(struct grad *g, const struct grad_attn_in_args *a, struct err *err);
    /*
     * The backend's ffn of prompt rows, which leaves the product of norm(x) and w_in in wide. NULL
     * where that is not built, and wide of grad_ffn_args is to be NULL.
     */
    int (*ffn_keep)(struct grad *g, const struct ffn_args *a, void *wide, struct err *err);
    /*
     * FLOP/s of x w^T alone, of n_rows of what the rows of the last ffn were: what a pass, whose
     * work is mostly such, is measured by. NULL where there is no need for it.
     */
    int (*product_rate)(struct grad *g, const struct weight *w, int n_rows, double *flops_per_s,
                        struct err *err);
    /* Waits for everything queued; sums and losses that were asked for are then in host memory. */
    int (*finish)(struct grad *g, struct err *err);
};

/* The common head of every implementation. */
struct grad {
    const struct grad_ops *ops;
    struct backend *be; /* borrowed */
    double flops;       /* of all ops so far */
};

struct grad_params {
    int max_rows, max_dim; /* as backend_params */
    int n_heads, head_dim;
    /* The rest may be 0 on the CPU. */
    int n_kv_heads, n_layers, dim, ffn_dim, vocab_size;
};

/*
 * Bytes that open and its ops take beside the caller's buffers. be is of the named kind. On a GPU
 * ERR_UNSUPPORTED for f16, whose range gradients leave: bf16 and f32 are built.
 */
size_t cpu_grad_bytes(const struct backend *be, const struct grad_params *params);
int cpu_grad_open(struct grad **out, struct backend *be, const struct grad_params *params,
                  struct err *err);
size_t cuda_grad_bytes(const struct backend *be, const struct grad_params *params);
int cuda_grad_open(struct grad **out, struct backend *be, const struct grad_params *params,
                   struct err *err);

#ifdef __cplusplus
}
#endif
#endif
