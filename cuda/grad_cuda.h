/*
 * grad_cuda - what the files of the GPU's backward ops share. Engine thread only, on the backend's
 * stream. spand-plan alone links them.
 */
#ifndef GRAD_CUDA_H
#define GRAD_CUDA_H

#include "cuda/cuda_backend.h"
#include "engine/backend_grad.h"

#ifdef __cplusplus
extern "C" {
#endif

/* Influence of one layer on its way to the caller. */
struct grad_pending {
    double *band, *sink; /* the caller's */
    int n_blocks, n_heads;
};

struct cuda_grad {
    struct grad base;
    struct cuda_backend *cb;
    struct grad_params params;
    int n_blocks; /* of max_rows */

    void *low;           /* [max_rows, dim] dx as products take it; NULL in f32 */
    const float *low_of; /* the dx that low is the rounding of, or NULL */
    void *inner;         /* [max_rows, max(ffn_dim, qkv)] gradients within a layer */
    float *d_in;         /* [max_rows, dim] what comes out of the way back through a product */

    float *lse, *dot; /* [n_heads, n_pad] log2 of a row's sum of weights; its da . a */
    float *cells;     /* [n_heads, n_blocks, n_blocks] influence by row block and key block */
    double *sums;     /* [n_layers, n_heads, 2, n_blocks] band and sink */
    double *host_sums;
    struct grad_pending *pending; /* [n_layers] */
    int n_pending;

    float *logits;               /* [logit_rows, vocab_size] */
    void *d_logits;              /* [logit_rows, vocab_size rounded up to 8] */
    int32_t *targets;            /* [2, max_rows] rows, then tokens */
    float *row_loss, *host_loss; /* [max_rows] */
    int logit_rows, n_losses;
    double *loss_sum; /* the caller's */
    float *loss_to;
};

struct grad_attn_kernel_args {
    const void *q, *k, *v, *da;
    void *dq, *dk, *dv;
    float *lse, *dot, *cells; /* of this many rows and blocks */
    double *sums;             /* [n_heads, 2, n_blocks] */
    int n_rows, n_pad, n_blocks, n_heads, n_kv_heads, head_dim, window, sum;
    float scale;
};

/*
 * grad_attn.cu: bf16; head_dim 32, 64, 80, 96 or 128. First rows, which gives lse, dot, cells and
 * dq, then keys, which gives dk and dv.
 */
int grad_attn_rows_launch(struct cuda_backend *cb, const struct grad_attn_kernel_args *a,
                          struct err *err);
int grad_attn_keys_launch(struct cuda_backend *cb, const struct grad_attn_kernel_args *a,
                          struct err *err);
/* grad_attn_f32.cu: both, f32, head_dim up to 256. */
int grad_attn_f32_launch(struct cuda_backend *cb, const struct grad_attn_kernel_args *a,
                         struct err *err);
/* Cells to sums. */
int grad_cells_launch(struct cuda_backend *cb, const struct grad_attn_kernel_args *a,
                      struct err *err);

/* out = x in act_dtype */
int grad_round_launch(struct cuda_backend *cb, const float *x, int64_t n, void *out,
                      struct err *err);

/* dx[row] = or += the way back through norm(x[row]); low, where there is one, = dx in act_dtype. */
struct grad_norm_args {
    const struct norm_args *norm;
    int n_rows, dim;
    const int32_t *rows; /* device [n_rows], or NULL: all, in order */
    const void *x;       /* act [*, dim] */
    const float *dy;     /* [n_rows, dim] */
    float *dx;           /* [*, dim] */
    void *low;           /* act [*, dim] or NULL */
    bool add;
};
int grad_norm_launch(struct cuda_backend *cb, const struct grad_norm_args *a, struct err *err);

/* wide: in gate and up, [n_rows, 2 ffn_dim] (or what the activation is of), out their gradients. */
int grad_act_launch(struct cuda_backend *cb, const struct grad_ffn_args *f, void *wide,
                    const void *dh, struct err *err);

/* dq, dk, dv as the product's output [n_rows, width], rope and norms undone; qkv: it, if normed. */
int grad_rope_launch(struct cuda_backend *cb, const struct grad_attn_in_args *p, const void *qkv,
                     void *out, struct err *err);

/* From logits [n_rows, vocab_size] to the loss of each row and its gradient [n_rows, ld]. */
struct grad_loss_args {
    const float *logits;
    const int32_t *target; /* device [n_rows] */
    void *out;             /* act */
    float *loss;           /* device [n_rows] */
    int n_rows, vocab_size, ld;
    float scale;
    enum grad_loss kind;
};
int grad_loss_launch(struct cuda_backend *cb, const struct grad_loss_args *a, struct err *err);

#ifdef __cplusplus
}
#endif
#endif
