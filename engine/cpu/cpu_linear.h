/*
 * cpu_linear - products with a weight, dealt out to the threads over outputs, never over k.
 */
#ifndef CPU_LINEAR_H
#define CPU_LINEAR_H

#include "engine/cpu/cpu_backend.h"

/*
 * Decode rows: y = x w^T + bias, or added to y. n_rows <= block_rows. Uses cb->dot_rows, and
 * cb->wide if it adds.
 */
struct linear_args {
    const float *x; /* [n_rows, n_in], row stride ldx */
    int64_t ldx;
    int n_rows;
    const struct weight *w, *bias; /* bias NULL or without data: none */
    float *y;                      /* [n_rows, n_out], row stride ldy */
    int64_t ldy;
    bool add;
};
void cpu_linear_decode(struct cpu_backend *cb, const struct linear_args *a);

/* The rows of x as dot wants them for w, in cb->dot_rows; returns their stride. */
int64_t cpu_dot_prepare(struct cpu_backend *cb, const float *x, int64_t ldx, int n_rows,
                        const struct weight *w);

/* The form of the product that prompt rows take with this weight. */
const struct cpu_gemm *cpu_gemm_for(const struct cpu_backend *cb, const struct weight *w);

/* Rows, normed if norm is not NULL, into cb->packed for gemm. */
void cpu_linear_pack(struct cpu_backend *cb, const struct cpu_gemm *gemm, const float *x,
                     int64_t ldx, int n_rows, int n_in, const struct norm_args *norm);

/* Prompt rows: as cpu_linear_decode for the n_rows <= block_rows rows in cb->packed. */
void cpu_linear_prompt(struct cpu_backend *cb, const struct linear_args *a);

/* Runs gemm over n_out outputs. */
void cpu_gemm_run(struct cpu_backend *cb, const struct cpu_gemm *gemm, const struct gemm_args *a,
                  int n_out);

/* out[r] = norm(x[r]) for rows with strides ldo and ldx; index picks rows of x, or NULL. */
void cpu_norm_rows(struct cpu_backend *cb, float *out, int64_t ldo, const float *x, int64_t ldx,
                   const int32_t *index, int n_rows, int dim, const struct norm_args *norm);

/* Inner sizes of packed rows. */
static inline int gemm_k_pad(const struct cpu_gemm *gemm, int n_in)
{
    return (n_in + gemm->k_multiple - 1) / gemm->k_multiple * gemm->k_multiple;
}

static inline size_t gemm_group_bytes(const struct cpu_gemm *gemm, int n_in)
{
    return (size_t)gemm_k_pad(gemm, n_in) * (size_t)gemm->lanes * (gemm->bf16 ? 2 : 4);
}

static inline double weight_bytes(const struct weight *w)
{
    return (double)w->n_out * w->n_in * (double)dtype_bytes(w->dtype);
}

#endif
