/*
 * grad_pass - one sequence through a model forward and backward: its loss, and how much every
 * head's attention matters to it.
 *
 * Layer inputs are kept where memory allows; otherwise every stride-th one is, and the layers
 * between are run forward again. With more memory what lies within a layer is kept as well, which
 * else is computed once more on the way back. Weights get no gradients.
 */
#ifndef GRAD_PASS_H
#define GRAD_PASS_H

#include "engine/backend_grad.h"
#include "engine/model/model.h"

struct grad_pass;

/* What is kept of every layer. */
enum grad_keep {
    KEEP_INPUT = 0, /* of every stride-th one */
    KEEP_ATTN,      /* and q, k, v, what attention gives and what goes into the feed-forward part */
    KEEP_WIDE       /* and the first product of the feed-forward part, where the backend can */
};

struct grad_pass_params {
    int max_rows;
    size_t max_bytes; /* for the pass's own buffers; 0: what the backend has free */
    int stride;       /* 0: the smallest that fits */
    /* At most this, of half of the memory where max_bytes is 0; with stride 0 or 1 only. */
    enum grad_keep keep;
};

/* Bytes of a pass of n rows when every stride-th layer input is kept, scratch of ops included. */
size_t grad_pass_bytes(const struct model_config *cfg, const struct backend *be, int n_rows,
                       int stride, enum grad_keep keep);

/*
 * m and be are borrowed, opened for max_rows rows. ERR_NO_ROOM says how long a sequence fits.
 */
int grad_pass_open(struct grad_pass **out, struct model *m, struct backend *be,
                   const struct grad_pass_params *params, struct err *err);
void grad_pass_close(struct grad_pass *p); /* accepts NULL */

/* Every how many layers an input is kept, and what else of each. */
int grad_pass_stride(const struct grad_pass *p);
enum grad_keep grad_pass_keep(const struct grad_pass *p);

/* FLOPs of all runs so far. */
struct grad_pass_flops {
    double done;   /* of products and attention, what is computed twice included */
    double needed; /* without: forward once, and backward to the activations */
};
struct grad_pass_flops grad_pass_flops(const struct grad_pass *p);

/*
 * FLOP/s of the model's largest product alone, measured now, after a run; 0 where the backend has
 * no measure.
 */
int grad_pass_product_rate(struct grad_pass *p, double *flops_per_s, struct err *err);

struct grad_pass_args {
    const int32_t *tokens; /* [n_rows] */
    int n_rows;
    const int32_t *row, *target; /* [n_targets] rows ascending, and the tokens behind them */
    int n_targets;
    enum grad_loss kind;
    enum grad_sum sum;
    /* Out: the mean loss of the targets; influence, added to: [n_layers, n_heads, n_blocks]. */
    double loss;
    double *band, *sink;
    float *row_loss; /* [n_targets] or NULL */
    /* Called with the gradient of each layer's input, host [n_rows, dim], last first; or NULL. */
    void (*on_layer)(void *arg, int layer, const float *dx);
    void *on_layer_arg;
};
int grad_pass_run(struct grad_pass *p, struct grad_pass_args *args, struct err *err);

#endif
