/*
 * cpu_backend - what the files of the CPU backend share. Engine thread only, beside the pool's
 * workers inside a job.
 */
#ifndef CPU_BACKEND_H
#define CPU_BACKEND_H

#include "engine/backend.h"
#include "engine/cpu/cpu_isa.h"
#include "engine/cpu/cpu_kernels.h"
#include "engine/cpu/cpu_threads.h"

struct cpu_backend {
    struct backend base;
    enum cpu_isa isa;
    const struct cpu_kernels *kern;
    const struct cpu_gemm *gemm_bf16; /* for bf16 weights; NULL: kern->gemm does them too */
    struct cpu_threads *threads;
    struct backend_params params;

    /* Scratch, sized at open. Products are cut into blocks of block_rows rows. */
    int block_rows;
    float *rows;          /* [block_rows, max_dim] normed rows */
    float *wide;          /* [block_rows, max_dim] products before their epilogue */
    float *dot_rows;      /* [block_rows, max_dim + DOT_ROUND] decode rows as dot wants them */
    void *packed;         /* one block of packed rows, inner size up to max_dim */
    void *packed_h;       /* likewise */
    char *thread_scratch; /* [n_threads, thread_bytes] */
    size_t thread_bytes;

    float *rope;                /* [max_rows, rope_dim/2, 2] cos and sin, scaled */
    int rope_cap;               /* pairs the table holds a row */
    const float *rope_inv_freq; /* what the table was made from; NULL: not yet in this step */
    const int32_t *rope_pos;
    int rope_dim, rope_stride, rope_rows;
    float rope_scale;

    float *split; /* decode attention's states before they are merged */
    size_t split_len;

    char *sample_scratch; /* [n_sample_threads, sample_bytes] */
    size_t sample_bytes;
    int n_sample_threads;
};

static inline struct cpu_backend *cpu_of(struct backend *be)
{
    return (struct cpu_backend *)be;
}

static inline void *thread_scratch(const struct cpu_backend *cb, int thread)
{
    return cb->thread_scratch + (size_t)thread * cb->thread_bytes;
}

/* cpu_memory.c: 64-byte aligned, large blocks on 2 MiB pages; NULL when there is none. */
void *cpu_memory_new(size_t bytes);
void cpu_memory_free(void *ptr);
/* What the system and the cgroup would still give; 0 when unknown. */
size_t cpu_memory_available(void);

/* cpu_weight.c */
int cpu_weight_load(struct backend *be, struct weight *w, const struct weight_part *parts,
                    int n_parts, enum dtype dtype, bool is_matrix, struct err *err);
int cpu_weight_random(struct backend *be, struct weight *w, int n_out, int n_in, enum dtype dtype,
                      bool is_matrix, uint64_t seed, uint32_t stream, float scale, float offset,
                      struct err *err);
void cpu_weight_free(struct backend *be, struct weight *w);
/* A vector's numbers as f32, NULL for no weight. */
const float *cpu_weight_vector(const struct weight *w);

/* cpu_layer.c, cpu_attn.c, cpu_sample.c */
int cpu_embed(struct backend *be, const struct embed_args *a, struct err *err);
int cpu_attn_in(struct backend *be, const struct attn_in_args *a, struct err *err);
int cpu_attn(struct backend *be, const struct attn_args *a, struct err *err);
int cpu_kv_append(struct backend *be, const struct kv_append_args *a, struct err *err);
int cpu_attn_out(struct backend *be, const struct attn_out_args *a, struct err *err);
int cpu_ffn(struct backend *be, const struct ffn_args *a, struct err *err);
int cpu_logits(struct backend *be, const struct logits_args *a, struct err *err);
int cpu_pool(struct backend *be, const struct pool_args *a, struct err *err);
int cpu_sample(struct backend *be, const struct sample_args *a, struct err *err);
int cpu_kv_copy(struct backend *be, const struct kv_copy_args *a, struct err *err);

/* cpu_block.c */
int cpu_block_embed(struct backend *be, const struct block_embed_args *a, struct err *err);
int cpu_block_to_prefix(struct backend *be, const struct block_to_prefix_args *a, struct err *err);

/* Bytes of scratch one sampling thread needs. */
size_t cpu_sample_scratch(int max_vocab);

/* One KV head of one slot in one layer. */
struct kv_head cpu_kv_head(const struct kv_view *kv, int slot, int layer, int head);

/* Adds one call to an op's account; t0 is clock_ns() when it began. */
void cpu_cost_add(struct cpu_backend *cb, enum backend_op op, int64_t t0, double bytes,
                  double flops);

#endif
