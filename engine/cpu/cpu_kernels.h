/*
 * cpu_kernels - the inner loops, one table of them per instruction set.
 *
 * cpu_kernels_impl.h is their one source, compiled three times (plain, AVX2, AVX-512); products of
 * prompt rows with bf16 weights have two more forms of their own (AVX-512 bf16, AMX).
 * Every sum has an order that depends on its own row and output only: never on how many rows or
 * outputs are computed beside it. That is what makes a row's bits independent of its company.
 */
#ifndef CPU_KERNELS_H
#define CPU_KERNELS_H

#include "engine/backend.h"
#include "engine/cpu/cpu_isa.h"

#include <stdatomic.h>

/* y[row][o] = w[o] . x[row] for o in a range: decode rows, f32 activations, weights of any type. */
struct dot_args {
    const void *w; /* [n_out, n_in] */
    enum dtype dtype;
    int n_in, n_rows;
    const float *x; /* [n_rows, n_in] as dot_prepare leaves it, row stride ldx */
    int64_t ldx;
    float *y; /* [n_rows, n_out], row stride ldy */
    int64_t ldy;
};

#define GEMM_MAX_ROWS 512 /* rows of one product; longer chunks are cut, which changes no bits */

#define DOT_ROUND 32 /* the longest step of k that any dot takes */

enum gemm_epilogue {
    GEMM_STORE,   /* y = product + bias */
    GEMM_ADD,     /* y += product + bias */
    GEMM_ACT_PACK /* h = act(gate) * up, or act(up): packed as the next product's rows */
};

/*
 * The product of packed prompt rows with a weight. Packed rows come in groups of `lanes`: f32
 * [n_groups, n_in, lanes], or bf16 pairs [n_groups, k_pad/2, lanes, 2]. Rows beyond n_rows are 0.
 */
struct gemm_args {
    const void *w, *w_up; /* [n_out, n_in]; w_up NULL unless gated, w is the gate then */
    enum dtype dtype;
    int n_in, n_rows;
    const void *packed;
    enum gemm_epilogue epilogue;
    enum act_kind act;
    const float *bias, *bias_up; /* [n_out] or NULL */
    float *y;                    /* [n_rows, n_out], row stride ldy */
    int64_t ldy;
    void *h;   /* packed [n_groups, h_dim, lanes] */
    int h_dim; /* h's inner size, padded as gemm->k_pad says */
};

/* The outputs of a product, handed out in order to whichever thread asks. */
struct gemm_queue {
    _Atomic int next;
    int n_out, grain;
};

/* The next outputs, a whole grain but for the last ones; false: none are left. */
static inline bool gemm_queue_take(struct gemm_queue *q, int *out0, int *n_out)
{
    *out0 = atomic_fetch_add_explicit(&q->next, q->grain, memory_order_relaxed);
    *n_out = q->n_out - *out0 < q->grain ? q->n_out - *out0 : q->grain;
    return *n_out > 0;
}

/* One way to compute the products of prompt rows. */
struct cpu_gemm {
    const char *name;
    int lanes;      /* rows in a group */
    int k_multiple; /* inner sizes are padded to it */
    bool bf16;      /* packed rows are bf16, else f32 */
    /* Outputs of one work item, at most and when gated; halved down to the least for balance. */
    int grain, grain_gated, grain_least;
    /* Bytes of scratch one thread needs for inner size n_in. */
    size_t (*scratch_bytes)(int n_in);
    /* x [n_rows <= lanes, n_in] with row stride ldx to one group. */
    void (*pack)(void *group, const float *x, int64_t ldx, int n_rows, int n_in);
    /* One thread's share: takes outputs, of every row, until the queue is empty. */
    void (*run)(const struct gemm_args *a, struct gemm_queue *q, void *scratch);
};

/* Where one KV head of one slot has its keys. */
struct kv_head {
    const char *pages; /* the pool's first byte */
    size_t page_bytes;
    int page_entries, head_dim;
    enum dtype dtype;
    const int32_t *table; /* this head's page ids */
    struct kv_geom geom;
};

/* Softmax state of one row and head over some keys: weights relative to max, o not yet divided. */
struct attn_state {
    float max, sum;
};

#define ATTN_CHUNK        512 /* cache indices in one split of decode attention, on every machine */
#define ATTN_MAX_GROUP    128 /* most query heads on one KV head */
#define ATTN_MAX_HEAD_DIM 256

/* One decode row, one KV head: its query heads against indices begin .. end - 1 of the cache. */
struct attn_decode_args {
    struct kv_head kv;
    const float *q; /* [group, head_dim] */
    int group;
    float scale;
    const int32_t *window;    /* [group] */
    int32_t pos;              /* of the row; its own key is in the cache */
    int begin, end;           /* at most ATTN_CHUNK, begin a multiple of it */
    int stop;                 /* where the row's keys end: what is read after this chunk */
    struct attn_state *state; /* out [group] */
    float *o;                 /* out [group, head_dim] */
};

#define ATTN_LANES 64 /* pairs of prompt row and query head that share the keys of a tile */

/* Up to ATTN_LANES lanes of one chunk and KV head; lane i is row i / group, head i % group. */
struct attn_prompt_args {
    struct kv_head kv;
    const float *q; /* of the chunk's first row and the group's first head */
    float *out;     /* alike */
    int64_t ldq;    /* elements from row to row, of q and out */
    int group;
    float scale;
    const int32_t *window;         /* [group] */
    int32_t pos0, n_rows;          /* the chunk */
    const char *k_chunk, *v_chunk; /* of the chunk's first row and this KV head */
    size_t chunk_stride;           /* bytes from row to row */
    int lane0, n_lanes;            /* of n_rows * group */
};

/* A token that sampling may still take. */
struct sample_cand {
    uint64_t weight;
    float logit;
    int32_t token;
};

struct cpu_kernels {
    const char *name;
    const struct cpu_gemm *gemm; /* f32 arithmetic, any weight type */

    void (*dot)(const struct dot_args *a, int out0, int n_out);
    /* One row for dot with weights of dtype; out has room for n_in rounded up to DOT_ROUND. */
    void (*dot_prepare)(float *out, const float *x, int n_in, enum dtype dtype);
    /* gain, bias [dim] f32, bias or NULL. out may be x. */
    void (*norm)(float *out, const float *x, int dim, enum norm_kind kind, float eps,
                 const float *gain, const float *bias);
    /* gate[i] = act(gate[i]) * up[i], or act(gate[i]) when up is NULL. */
    void (*act)(float *gate, const float *up, int n, enum act_kind kind);

    void (*attn_decode)(const struct attn_decode_args *a);
    void (*attn_prompt)(const struct attn_prompt_args *a, float *scratch);
    size_t (*attn_prompt_scratch)(int head_dim); /* bytes */

    /* out[i] = x[i], NaN as -infinity, +infinity as FLT_MAX. Returns the greatest. */
    float (*logits_clean)(float *out, const float *x, int n);
    /* x[i] *= f, +infinity as FLT_MAX. Returns the greatest. */
    float (*logits_scale)(float *x, int n, float f);
    /* Sum of exp_weight(x[i] - max) over x[i] >= cut. */
    uint64_t (*weight_sum)(const float *x, int n, float max, float cut);
    int (*count_ge)(const float *x, int n, float cut);
    /* Tokens with x[i] >= cut in the order of their id, weights filled in. Returns how many. */
    int (*collect_ge)(struct sample_cand *out, const float *x, int n, float max, float cut);
    /* Bytes read at full speed, for the bench: returns a checksum. */
    uint64_t (*stream_read)(const void *p, size_t bytes);
};

extern const struct cpu_kernels cpu_kernels_plain;
#if defined(__x86_64__)
extern const struct cpu_kernels cpu_kernels_avx2, cpu_kernels_avx512;
extern const struct cpu_gemm cpu_gemm_avx512bf16, cpu_gemm_amx;
#endif

/* The table for isa, and the product for bf16 weights or NULL when gemm of the table is best. */
const struct cpu_kernels *cpu_kernels_for(enum cpu_isa isa);
const struct cpu_gemm *cpu_gemm_bf16_for(enum cpu_isa isa);

#endif
