/*
 * cpu_grad - what the files of the CPU's backward ops share. One thread calls them.
 */
#ifndef CPU_GRAD_H
#define CPU_GRAD_H

#include "engine/backend_grad.h"
#include "engine/cpu/cpu_linear.h"
#include "engine/cpu/grad/grad_kernels.h"

struct cpu_grad {
    struct grad base;
    struct cpu_backend *cb;
    const struct grad_kernels *kern;
    struct grad_params params;
    int block_rows; /* rows of one block of elementwise work, at most the backend's */

    float *d_out, *d_in; /* [block_rows, max_dim] gradients of a product's two sides */
    float *wide;         /* [block_rows, max_dim] the forward product once more */

    /* One thread's: a chunk of a weight as f32, or the tiles of attention. */
    char *thread_scratch;
    size_t thread_bytes;
};

static inline struct cpu_grad *cpu_grad_of(struct grad *g)
{
    return (struct cpu_grad *)g;
}

/*
 * dx[r] = or += dy[r] w for rows with strides: the way back through y = x w^T. Deals rows out to
 * the threads.
 */
struct grad_back_args {
    int n_rows;
    const float *dy;
    int64_t ldy;
    const struct weight *w;
    float *dx;
    int64_t ldx;
    bool add;
};
void cpu_grad_back(struct cpu_grad *g, const struct grad_back_args *a);

/* dx[r] += the way back through norm(x[r]); rows with stride dim, or picked by index from x, dx. */
void cpu_grad_norm(struct cpu_grad *g, const struct norm_args *norm, const float *x, float *dx,
                   const float *dy, int n_rows, int dim, const int32_t *index, bool add);

int cpu_grad_logits(struct grad *g, const struct grad_logits_args *a, struct err *err);
int cpu_grad_ffn(struct grad *g, const struct grad_ffn_args *a, struct err *err);
int cpu_grad_attn_out(struct grad *g, const struct grad_attn_out_args *a, struct err *err);
int cpu_grad_attn(struct grad *g, const struct grad_attn_args *a, struct err *err);
int cpu_grad_attn_in(struct grad *g, const struct grad_attn_in_args *a, struct err *err);

/* Scratch of one thread in cpu_grad_attn(). */
size_t cpu_grad_attn_scratch(const struct grad_params *params);

#endif
