/*
 * cuda_pair - the CPU and the CUDA backend side by side, fed with the same numbers.
 *
 * The CPU computes in f32, so values that go in are first rounded to the GPU's type: what then
 * differs is the arithmetic. The program leaves with code 77 and a message where there is no GPU.
 */
#ifndef CUDA_PAIR_H
#define CUDA_PAIR_H

#include "engine/backend.h"
#include "tests/lib/test.h"

struct cuda_pair {
    struct backend *cpu, *gpu;
    enum dtype dtype;
};

#define PAIR_MAX_ROWS  1024
#define PAIR_MAX_DIM   32768
#define PAIR_MAX_VOCAB 160000
#define PAIR_MAX_POS   8192

/* The two backends of a dtype, opened once a program with the caps above. */
void pair_open(struct cuda_pair *p, enum dtype dtype);

/* An activation on both devices: f32 on the CPU, dtype on the GPU. */
struct pair_buf {
    void *cpu, *gpu;
    enum dtype cpu_dtype, gpu_dtype;
    size_t n;
};

/* Uniform in (-scale, scale), rounded to the GPU's type. */
struct pair_buf pair_random(struct cuda_pair *p, size_t n, float scale, uint32_t seed);
/* Both sides in the KV type, filled likewise. */
struct pair_buf pair_random_kv(struct cuda_pair *p, size_t n, float scale, uint32_t seed);
struct pair_buf pair_f32(struct cuda_pair *p, const float *values, size_t n);
struct pair_buf pair_i32(struct cuda_pair *p, const int32_t *values, size_t n);
void pair_free(struct cuda_pair *p, struct pair_buf *b);

/* Elements as f32, malloc'ed. */
float *pair_get(struct cuda_pair *p, const struct pair_buf *b, bool gpu);
/* Raw bytes of the GPU's side, malloc'ed. */
void *pair_get_bytes(struct cuda_pair *p, const struct pair_buf *b);

/*
 * Fails unless |gpu - cpu| <= rtol |cpu| + atol rms(cpu) everywhere; prints worst index and values.
 * The tolerances of a dtype follow from its rounding, at most 2^-8 (bf16) or 2^-11 (f16) of a
 * value: once for the result and, averaged over a sum, once for each operand that was rounded on
 * the way.
 */
void pair_compare(struct cuda_pair *p, const struct pair_buf *b, const char *what, float factor);

/* The same weights on both sides; dtype of the pair for matrices. */
struct pair_weight {
    struct weight cpu, gpu;
};
struct pair_weight pair_weight_random(struct cuda_pair *p, int n_out, int n_in, bool is_matrix,
                                      float scale, float offset, uint32_t seed);
void pair_weight_free(struct cuda_pair *p, struct pair_weight *w);

/* A step on both sides, without slot_token. Arrays may be NULL when they are empty. */
struct pair_batch {
    struct step_batch cpu, gpu;
    struct pair_buf token, pos, slot, chunks, logit_row;
};
struct pair_batch pair_batch_new(struct cuda_pair *p, int n_rows, int n_decode, int n_chunks,
                                 int n_logits, const int32_t *token, const int32_t *pos,
                                 const int32_t *slot, const struct step_chunk *chunks,
                                 const int32_t *logit_row);
void pair_batch_free(struct cuda_pair *p, struct pair_batch *b);

/* The same KV memory on both sides. */
struct pair_kv_shape {
    int n_slots, n_layers, n_heads, n_kv_heads, head_dim, page_entries;
    const struct kv_geom *geom; /* [n_slots, n_layers, n_kv_heads] */
    const int32_t *window;      /* [n_slots, n_layers, n_heads] */
    const int32_t *len;         /* [n_slots] positions that are filled in with random numbers */
    const int32_t *max_len;     /* [n_slots] positions that there is room for */
};
struct pair_kv {
    struct kv_view cpu, gpu;
    struct pair_buf pages, page_table, head_base, geom, window;
    size_t n_pages;
};
/* Pages lie in a scrambled order; everything that holds no position is NaN. */
struct pair_kv pair_kv_new(struct cuda_pair *p, const struct pair_kv_shape *s, uint32_t seed);
void pair_kv_free(struct cuda_pair *p, struct pair_kv *kv);

/* Runs `call` on both backends inside one step; ck_asserts that both succeed. */
#define PAIR_RUN(p, batch_, op, field, ...)                                                        \
    do {                                                                                           \
        struct err pair_err_ = {0};                                                                \
        struct backend *be_ = (p)->cpu;                                                            \
        ck_assert_msg(be_->ops->step_begin(be_, &(batch_)->cpu, &pair_err_) == 0, "%s",            \
                      pair_err_.msg);                                                              \
        {                                                                                          \
            enum { on_gpu = 0 };                                                                   \
            struct field pair_args_ = {__VA_ARGS__};                                               \
            ck_assert_msg(be_->ops->op(be_, &pair_args_, &pair_err_) == 0, "%s", pair_err_.msg);   \
        }                                                                                          \
        ck_assert_msg(be_->ops->step_end(be_, &pair_err_) == 0, "%s", pair_err_.msg);              \
        ck_assert_msg(be_->ops->step_wait(be_, be_->n_steps, &pair_err_) == 0, "%s",               \
                      pair_err_.msg);                                                              \
        be_ = (p)->gpu;                                                                            \
        ck_assert_msg(be_->ops->step_begin(be_, &(batch_)->gpu, &pair_err_) == 0, "%s",            \
                      pair_err_.msg);                                                              \
        {                                                                                          \
            enum { on_gpu = 1 };                                                                   \
            struct field pair_args_ = {__VA_ARGS__};                                               \
            ck_assert_msg(be_->ops->op(be_, &pair_args_, &pair_err_) == 0, "%s", pair_err_.msg);   \
        }                                                                                          \
        ck_assert_msg(be_->ops->step_end(be_, &pair_err_) == 0, "%s", pair_err_.msg);              \
        ck_assert_msg(be_->ops->step_wait(be_, be_->n_steps, &pair_err_) == 0, "%s",               \
                      pair_err_.msg);                                                              \
    } while (0)

/* Inside PAIR_RUN: the side that runs. */
#define SIDE(x)     (on_gpu ? (x).gpu : (x).cpu)
#define SIDE_REF(x) (on_gpu ? &(x).gpu : &(x).cpu)

#endif
