/*
 * cuda_backend - the private face of the CUDA backend: its state and one launcher per op.
 *
 * Engine thread only. Everything is queued on one stream; step_wait() and download() wait for it.
 * All scratch memory is taken at open from the caps of backend_params, but for the small work lists
 * of attention, whose size needs the kv_view: they are taken by the first step.
 */
#ifndef CUDA_BACKEND_H
#define CUDA_BACKEND_H

#include "base/err.h"
#include "engine/backend.h"

#include <cuda_runtime_api.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif

struct cuda_blas;
struct cuda_graph;
struct cuda_prof;
struct gemm_args;

#define CUDA_STAGING_BYTES                                                                         \
    ((size_t)32 << 20)                       /* of each of two pinned buffers: 1 ms of PCIe 4 x16 */
#define ATTN_STATE_BYTES ((size_t)128 << 20) /* partial results of split attention */

#define GEMM_MAX_CLUSTER 8 /* CTAs that share a tile and each other's memory */

/* The work of one step's decode attention, for all layers; see attn_decode.cu. */
struct attn_plan {
    int32_t *first;   /* device [n_layers, max_pairs + 1] running count of chunks */
    int32_t *arrived; /* device [max_pairs] chunks done, zero between launches */
    int n_layers, max_pairs;
    bool valid; /* planned for the step that is running */
};

struct cuda_backend {
    struct backend base;
    int device, n_sms, arch; /* arch: 80, 90, ...: of the code that runs, at most the device's */
    size_t smem_max;         /* dynamic shared memory that one CTA may have */
    cudaStream_t stream;
    struct backend_params params;
    void *scratch_norm; /* [max_rows, max_dim] normed rows, inner FFN rows of prompts */
    void *scratch_wide; /* [max_rows, max_dim] outputs of qkv and gate/up */
    float *sample_rows; /* [n_sample_ctas, max_vocab] logits with penalties and bias */
    int n_sample_ctas;
    float *attn_state;  /* ATTN_STATE_BYTES */
    int32_t *attn_next; /* [2] counters of the attention kernel, zero between launches */
    struct attn_plan plan;
    struct cuda_blas *blas;
    /* Hopper's products of few rows; NULL elsewhere and in f32. See gemm_wgmma.cu. */
    int (*gemm_hopper)(struct cuda_backend *cb, const struct gemm_args *a, struct err *err);
    void *tensor_map_encode;                 /* cuTensorMapEncodeTiled */
    int gemm_clusters[GEMM_MAX_CLUSTER + 1]; /* of each size that the GPU runs at once */
    float *gemm_parts;                       /* sums of tiles that several CTAs share */
    int32_t *gemm_arrived;                   /* [GEMM_MAX_TILES, 2] zero between launches */
    void *gained;   /* [max_decode, max_dim] residual rows times the next norm's gain */
    float *sum_sq;  /* [max_dim / 128, max_decode] their sums of squares */
    int max_decode; /* decode rows of a step */
    int many_rows;  /* from so many decode rows on their products are cuBLASLt's */
    const struct weight *gained_by; /* the gain that `gained` was made with; NULL: there is none */
    void *staging[2];               /* pinned, CUDA_STAGING_BYTES each */
    cudaEvent_t staging_free[2];
    int staging_turn;  /* the buffer that is being filled, */
    size_t staging_at; /* so far */
    cudaEvent_t step_begun[BACKEND_STEPS], step_ended[BACKEND_STEPS]; /* by number */
    int64_t n_waited;                                                 /* steps */
    struct cuda_graph *graphs;                                        /* [n_graphs] by key */
    int n_graphs;
    struct cuda_graph *graph; /* the one that is being captured, or NULL */
    bool in_step;
    bool is_timed;          /* the step that is being queued, op by op */
    struct cuda_prof *prof; /* NULL: none ever is */
    bool sync_launches;     /* SPAND_CUDA_SYNC=1: a fault names its kernel */
};

/* Puts "what: name of the CUDA error: its text" into err. */
int cuda_fail(struct err *err, cudaError_t code, const char *what);

#define CUDA_TRY(err, call)                                                                        \
    do {                                                                                           \
        cudaError_t cuda_try_rc_ = (call);                                                         \
        if (cuda_try_rc_ != cudaSuccess)                                                           \
            return cuda_fail(err, cuda_try_rc_, #call);                                            \
    } while (0)

/* To be returned after every launch. */
int cuda_launched(struct cuda_backend *cb, const char *kernel, struct err *err);

/* The act_dtype's weights only: mixed products are not built. */
int cuda_check_matrix(const struct cuda_backend *cb, const struct weight *w, const char *name,
                      struct err *err);

/* cuda_mem.c */
int cuda_mem_alloc(struct backend *be, void **out, size_t bytes, struct err *err);
void cuda_mem_free(struct backend *be, void *ptr);
int cuda_mem_upload(struct backend *be, void *dst, const void *host, size_t bytes, struct err *err);
int cuda_mem_download(struct backend *be, void *host, const void *src, size_t bytes,
                      struct err *err);
int cuda_mem_host_alloc(struct backend *be, void **out, size_t bytes, struct err *err);
void cuda_mem_host_free(struct backend *be, void *ptr);
int cuda_mem_fetch(struct backend *be, void *host, const void *src, size_t bytes, struct err *err);
size_t cuda_mem_room(struct backend *be);
int cuda_mem_weight_load(struct backend *be, struct weight *w, const struct weight_part *parts,
                         int n_parts, enum dtype dtype, bool is_matrix, struct err *err);
int cuda_mem_weight_random(struct backend *be, struct weight *w, int n_out, int n_in,
                           enum dtype dtype, bool is_matrix, uint64_t seed, uint32_t stream,
                           float scale, float offset, struct err *err);
void cuda_mem_weight_free(struct backend *be, struct weight *w);

/* cuda_graph.c */
int cuda_graphs_open(struct cuda_backend *cb, struct err *err);
void cuda_graphs_close(struct cuda_backend *cb);
int cuda_graph_begin(struct backend *be, int key, struct err *err);
int cuda_graph_end(struct backend *be, bool keep, struct err *err);

/* cuda_prof.c: begin, mark (at the beginning of each op of a timed step) and end queue events. */
int cuda_prof_open(struct cuda_backend *cb, struct err *err);
void cuda_prof_close(struct cuda_backend *cb);
void cuda_prof_begin(struct cuda_backend *cb, const struct step_batch *batch);
void cuda_prof_mark(struct cuda_backend *cb, enum backend_op op);
void cuda_prof_end(struct cuda_backend *cb);
/* The step has ended on the device: adds what its events say to the ops' costs. */
void cuda_prof_take(struct cuda_backend *cb, int64_t step);

/* cuda_blas.c: cuBLASLt, opened at run time so that the daemon starts without it. */
int cuda_blas_open(struct cuda_blas **out, struct cuda_backend *cb, struct err *err);
void cuda_blas_close(struct cuda_blas *blas);

enum gemm_epilogue {
    GEMM_STORE,    /* out = acc + bias */
    GEMM_RESIDUAL, /* out += acc + bias */
    GEMM_ACT,      /* out = act(acc + bias) */
    GEMM_GATED,    /* out = act(gate) * up; w holds gate rows, then as many up rows */
    GEMM_F32,      /* out is f32: acc + bias */
    GEMM_ROPE      /* gemm_hopper: what rope_launch() does with a decode row */
};

#define GEMM_MAX_ROWS  128    /* of one gemm_hopper launch; more rows are several */
#define GEMM_MAX_TILES 4096   /* of 128 outputs: a vocabulary of half a million */
#define GEMM_MAX_K     131072 /* inputs */

/* out[r, o] = sum_i x[r, i] w[o, i], then the epilogue. */
struct gemm_args {
    const void *x; /* [n_rows, n_in] */
    int n_rows;
    const struct weight *w;    /* [n_out, n_in] */
    const struct weight *bias; /* f32 [n_out] or NULL */
    void *out;                 /* [n_rows, n_out], GEMM_GATED [n_rows, n_out / 2] */
    enum gemm_epilogue epilogue;
    enum act_kind act;
    /* gemm_hopper only, each may be NULL. */
    const struct norm_args *norm_in;    /* x is cb->gained: rows are scaled as sum_sq says */
    const struct norm_args *norm_out;   /* GEMM_RESIDUAL leaves gained and sum_sq for this norm */
    const struct attn_in_args *attn_in; /* GEMM_ROPE */
};

/* Prompt rows, and many decode rows: GEMM_STORE, GEMM_RESIDUAL and GEMM_F32 without bias. One
 * algorithm a shape, no split-K. */
int cuda_blas_gemm(struct cuda_backend *cb, const struct gemm_args *a, struct err *err);
/*
 * The way back, out[r, i] = sum_o x[r, o] w[o, i], with GEMM_STORE or GEMM_F32: x is [n_rows,
 * n_out] with ldx elements from row to row, a multiple of 8, out [n_rows, n_in].
 */
int cuda_blas_gemm_back(struct cuda_backend *cb, const struct gemm_args *a, int ldx,
                        struct err *err);
/* Decode and logit rows: K is cut by the shape alone, so a row's bits do not depend on n_rows. */
int gemm_stream_launch(struct cuda_backend *cb, const struct gemm_args *a, struct err *err);

/* 80, 90: what the kernels were compiled for; 0 where that is not known. */
int cuda_code_arch(int *arch, struct err *err);
/* Sets gemm_hopper and its memory, where the GPU has what it takes. */
int cuda_hopper_open(struct cuda_backend *cb, struct err *err);

/* out[r] = norm(x[rows ? rows[r] : r]) */
int norm_launch(struct cuda_backend *cb, const struct norm_args *norm, int dim, const void *x,
                const int32_t *rows, int n_rows, void *out, struct err *err);
int embed_launch(struct cuda_backend *cb, const struct embed_args *a, struct err *err);
/* Rows row0.. of qkv [n_rows, (n_heads + 2 n_kv_heads) head_dim] to q, pages and chunk buffers. */
int rope_launch(struct cuda_backend *cb, const struct attn_in_args *a, const void *qkv, int row0,
                struct err *err);
/* out[r, i] = act(in[r, i] + b) * (in[r, ffn_dim + i] + b), ungated: act(in[r, i] + b) */
int ffn_act_launch(struct cuda_backend *cb, const struct ffn_args *a, const void *in, int n_rows,
                   void *out, struct err *err);
/* x[r] += bias */
int add_bias_launch(struct cuda_backend *cb, void *x, int n_rows, int dim,
                    const struct weight *bias, struct err *err);
int kv_append_launch(struct cuda_backend *cb, const struct kv_append_args *a, struct err *err);
int kv_copy_launch(struct cuda_backend *cb, const struct kv_copy_args *a, struct err *err);
/* The work list of all layers, once a step, at least two kernels ahead of the first attention. */
int attn_plan_launch(struct cuda_backend *cb, const struct kv_view *kv,
                     const struct step_batch *batch, int layer, struct err *err);
/* ERR_UNSUPPORTED where attention is not built for such heads or pages. */
int attn_supports(int head_dim, int page_entries, struct err *err);
int attn_decode_launch(struct cuda_backend *cb, const struct attn_args *a, struct err *err);
int attn_prefill_launch(struct cuda_backend *cb, const struct attn_args *a, struct err *err);
/* rows [n_rows, dim]: the step's, normed */
int pool_launch(struct cuda_backend *cb, const struct pool_args *a, const void *rows,
                struct err *err);
int sample_launch(struct cuda_backend *cb, const struct sample_args *a, struct err *err);
/* Bytes a second of a streaming read, through registers and by bulk copies (0 before sm_90). */
int cuda_read_bandwidth(struct cuda_backend *cb, size_t bytes, double *registers, double *bulk,
                        struct err *err);
int weight_random_launch(struct cuda_backend *cb, void *data, int64_t n, enum dtype dtype,
                         uint64_t seed, uint32_t stream, float scale, float offset,
                         struct err *err);

#ifdef __cplusplus
}
#endif
#endif
