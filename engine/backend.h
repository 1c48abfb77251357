/*
 * backend - the operations a model is made of, as fused ops with args structs.
 *
 * Two implementations: engine/cpu (always built, the reference) and cuda. The engine thread alone
 * calls them. Every pointer named "device" is memory from ops->alloc; on the CPU that is plain
 * memory. Activations have the element type backend->act_dtype, logits are always f32.
 *
 * A step has n_rows rows (a row is one token): first n_decode decode rows, at most one per slot,
 * then the prompt rows, cut into chunks of consecutive positions, at most one chunk per slot. On a
 * slab (kv_view.is_slab) several decode rows of a slot may come in one batch: each sees the keys up
 * to its own position.
 * The result of a row depends on its own sequence only, never on what else is in the step: not on
 * the number of rows, nor, for prompt rows, on where the chunks are cut.
 *
 * All that a backend is asked to do happens in the order of asking: uploads, ops, fetches. It may
 * happen later than the call: a device goes on with a step while the host prepares the next one.
 * So two steps may be queued, the second before the first one's results are known. Its embed takes
 * the tokens that the first one samples from device memory (step_batch.slot_token), and it may
 * write pages that the first one still reads.
 */
#ifndef BACKEND_H
#define BACKEND_H

#include "base/dtype.h"
#include "base/err.h"
#include "engine/backend_kv.h"

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif

struct backend;

/* A matrix [n_out, n_in] row-major (x W^T is what a linear layer computes) or a vector (n_in 1). */
struct weight {
    void *data;   /* device; NULL when the model has no such weight */
    void *packed; /* the backend's private layout of the same numbers, or NULL */
    enum dtype dtype;
    int n_out, n_in;
    bool borrowed; /* private: data points into the caller's mapping */
};

/* One piece of a weight as a file has it: [n_out, n_in] in host memory. */
struct weight_part {
    const void *host; /* borrowed until the backend is closed (file mappings stay) */
    enum dtype dtype;
    int n_out, n_in;
};

#define BACKEND_STEPS 2 /* steps that may be queued and not yet waited for */

/* The rows of one step. All arrays are device memory, all are int32. */
struct step_chunk {
    int32_t slot, row0, n_rows, pos0; /* rows row0.. hold positions pos0.. of the slot */
};

/* Rows whose hidden states are added up: those of one sequence, in `slot`, in order. */
struct step_pool {
    int32_t slot, row0, n_rows, is_first; /* is_first: what the slot has summed is forgotten */
};

struct step_batch {
    int n_rows, n_decode, n_chunks, n_logits, n_pools;
    const int32_t *token;            /* [n_rows]; < 0: slot_token[slot of the row * slot_stride] */
    const int32_t *pos;              /* [n_rows] */
    const int32_t *rope_pos;         /* [n_rows] what rope turns by; NULL: pos */
    const int32_t *slot;             /* [n_rows] */
    const struct step_chunk *chunks; /* [n_chunks], ascending row0, covering n_decode..n_rows */
    const int32_t *logit_row;        /* [n_logits] rows whose logits are wanted */
    const struct step_pool *pools;   /* [n_pools] at most one a slot */
    const int32_t *slot_token;       /* [n_slots, slot_stride] the tokens that sample drew last for
                                        each slot; NULL when all of `token` is known */
    int slot_stride;                 /* 0: 1 */
    double kv_bytes; /* that attention reads in all layers, where the backend asks; else 0 */
};

/* All KV memory, and where each slot's heads have their pages. */
struct kv_view {
    void *pages; /* device [n_pages, page_bytes]; a page is K [page_entries, head_dim], V alike */
    size_t page_bytes;
    int page_entries; /* 64 for token models */
    int head_dim, n_layers, n_heads, n_kv_heads;
    enum dtype dtype;
    bool is_slab; /* a slot has one page a head, which holds all keys it ever has; decode rows */
    const int32_t *page_table; /* device; page ids */
    const int32_t
        *head_base; /* device [n_slots, n_layers, n_kv_heads]: first entry in page_table */
    const struct kv_geom *geom; /* device [n_slots, n_layers, n_kv_heads] */
    const int32_t *window;      /* device [n_slots, n_layers, n_heads] */
};

enum norm_kind { NORM_RMS = 0, NORM_LAYER = 1 };
enum act_kind { ACT_SILU = 0, ACT_GELU_TANH = 1, ACT_GELU_ERF = 2 };

struct norm_args {
    enum norm_kind kind;
    const struct weight *gain, *bias; /* [dim]; bias NULL for RMSNorm */
    float eps;
};

static inline int step_batch_stride(const struct step_batch *batch)
{
    return batch->slot_stride > 0 ? batch->slot_stride : 1;
}

/* x[r] = table[token[r] >= 0 ? token[r] : slot_token[slot[r] * slot_stride]] */
struct embed_args {
    const struct step_batch *batch;
    const struct weight *table; /* [vocab_size, dim] */
    void *x;                    /* [n_rows, dim] */
};

/*
 * xn = norm(x); qkv = xn wqkv^T + bias; q, k normed per head if asked; rope; k and v of decode
 * rows go to their pages at once, those of prompt rows to the chunk buffers.
 */
struct attn_in_args {
    const struct step_batch *batch;
    const struct kv_view *kv;
    int layer, dim, n_heads, n_kv_heads, head_dim;
    const void *x; /* [n_rows, dim] */
    struct norm_args norm;
    const struct weight *wqkv; /* [(n_heads + 2 n_kv_heads) head_dim, dim]: q, k, v stacked */
    const struct weight *bqkv; /* the same n_out, or NULL */
    const struct weight *q_norm, *k_norm; /* [head_dim] RMSNorm gains (Qwen3), or NULL */
    float qk_norm_eps;
    int rope_dim; /* rotated leading dims of a head, halves paired (i, i + rope_dim/2); 0: none */
    const float
        *inv_freq; /* [rope_dim/2], or [n_rows, rope_dim/2]; angle = (float)pos * inv_freq in f32 */
    int inv_freq_stride;     /* elements from row to row: 0 or rope_dim/2 */
    float rope_scale;        /* cos and sin are multiplied by it (yarn); 1 otherwise */
    void *q;                 /* out [n_rows, n_heads, head_dim] */
    void *k_chunk, *v_chunk; /* out, kv dtype [n_rows - n_decode, n_kv_heads, head_dim] */
};

/*
 * softmax(q k^T * scale) v. Decode rows: against pages. Prompt rows: against pages as they were
 * before this step plus the chunk buffers.
 */
struct attn_args {
    const struct step_batch *batch;
    const struct kv_view *kv;
    int layer, n_heads, n_kv_heads, head_dim;
    float scale;
    const void *q;                 /* [n_rows, n_heads, head_dim] */
    const void *k_chunk, *v_chunk; /* as attn_in wrote them */
    void *out;                     /* [n_rows, n_heads, head_dim] */
};

/* Moves the chunk buffers into pages: sink positions and each chunk's last `ring` positions. */
struct kv_append_args {
    const struct step_batch *batch;
    const struct kv_view *kv;
    int layer, n_kv_heads, head_dim;
    const void *k_chunk, *v_chunk;
};

/* x += a wo^T + bias */
struct attn_out_args {
    const struct step_batch *batch;
    int dim, n_in;                /* n_in = n_heads * head_dim */
    const void *a;                /* [n_rows, n_in] */
    const struct weight *wo, *bo; /* [dim, n_in]; bo or NULL */
    void *x;                      /* in and out [n_rows, dim] */
    struct norm_args next_norm;   /* that the next op applies to x, as a hint; gain NULL: none */
};

/* x += down(act(gate(norm x)) * up(norm x)), or without gate: x += down(act(up(norm x))) */
struct ffn_args {
    const struct step_batch *batch;
    int dim, ffn_dim;
    struct norm_args norm;
    enum act_kind act;
    bool gated;
    const struct weight *w_in, *b_in;     /* gated: [2 ffn_dim, dim], gate rows then up rows */
    const struct weight *w_down, *b_down; /* [dim, ffn_dim] */
    void *x;
    struct norm_args next_norm; /* as in attn_out_args */
};

/* out[i] = norm(x[logit_row[i]]) head^T */
struct logits_args {
    const struct step_batch *batch;
    int dim, vocab_size;
    struct norm_args norm;
    const struct weight *head; /* [vocab_size, dim] */
    const void *x;
    float *out; /* device f32 [n_logits, vocab_size] */
};

/*
 * For each of batch->pools: sums[slot] += norm(x[row]), from 0 where it is the first. One row after
 * the other in double precision, so that where chunks are cut changes no bit.
 */
struct pool_args {
    const struct step_batch *batch;
    int dim;
    struct norm_args norm;
    const void *x;
    double *sums; /* device in and out [n_slots, dim] */
};

/* An additive change of one token's logit: logit_bias, or -INFINITY for a banned token. */
struct sample_bias {
    int32_t token;
    float value;
};

/* A token that the sequence holds already, for the penalties. */
struct sample_seen {
    int32_t token;
    int32_t n_generated; /* occurrences among the generated tokens; 0: only in the prompt */
};

#define SAMPLE_MASK_WORDS(vocab_size) (((vocab_size) + 31) / 32)

/*
 * How one logit row is turned into a token. The rows of a block's steps share one: step `phase` of
 * args draws for position + phase, and does nothing before first_phase and from end_phase on, not
 * even a result.
 */
struct sample_row {
    float temperature; /* 0: greedy */
    float top_p, min_p;
    float repetition_penalty, presence_penalty, frequency_penalty;
    int32_t top_k; /* 0: off */
    uint64_t seed;
    uint32_t sample_idx;            /* which of n */
    int64_t position;               /* of the token to be drawn, in phase 0 */
    int32_t first_phase, end_phase; /* end_phase 0: it has no end */
    int32_t forced_token;           /* >= 0: nothing is drawn, this token's logprob is reported */
    int32_t n_top; /* how many best tokens to report, at most max_top; -1: not even a logprob */
    int32_t bias_at, n_bias;         /* range in args->bias */
    int32_t bias_min_at, n_bias_min; /* what takes its place for positions below min_end */
    int64_t min_end;
    int32_t seen_at, n_seen; /* range in args->seen, tokens unique */
    int32_t mask;            /* 0: every token may be drawn; k: those of row k - 1 of args->mask */
    int32_t slot; /* >= 0: the token goes to args->slot_token[slot * slot_stride] too; -1: not */
};

struct sample_result {
    int32_t token;
    float logprob; /* log softmax of the raw logits: before penalties, bias and temperature; 0 where
                      nobody wants it */
};

/*
 * Sampling, equal to the bit on every backend for equal logits. All arithmetic is f32 without
 * contraction unless said otherwise:
 *
 *   clean    NaN counts as -infinity, +infinity as FLT_MAX; again after bias and temperature
 *   penalty  seen: l > 0 ? l / repetition : l * repetition; generated: then l - n * frequency,
 *            then l - presence
 *   bias     l + value, in the order of the list
 *   mask     tokens whose bit is 0 get -infinity
 *   greedy   temperature < 1e-5: the greatest, ties: lowest id; if all are -infinity, token 0
 *   scale    l * (1 / temperature), w = exp_weight(l - max) (base/exp_poly.h)
 *   top_k    the first k by (l descending, id ascending); 0.0 and -0.0 are equal
 *   top_p    < 1: the shortest prefix of those with sum w >= max(1, floor((double)top_p *
 *            (double)total)), total being the sum that top_k left
 *   min_p    of those, (double)w >= (double)min_p * 2^40; tokens equal to the maximum always stay
 *   draw     u = rng_u64(seed, sample_idx, position) scaled by a 64 x 64 high multiply to
 *            [0, sum); the first token in id order whose running sum exceeds it
 *
 * logprob is (float)((double)(l - max) - log(sum * 2^-40)) of raw cleaned logits, sum that of all
 * their weights; the logs of two maths libraries may differ in the last bit.
 */
struct sample_args {
    int n_rows, vocab_size, max_top;
    const float *logits;            /* device [n_rows, vocab_size]; may be changed by the op */
    const struct sample_row *rows;  /* device [n_rows] */
    const struct sample_bias *bias; /* device */
    const struct sample_seen *seen; /* device */
    const uint32_t
        *mask; /* device [n_masks, SAMPLE_MASK_WORDS(vocab_size)] bit t % 32 of word t / 32 */
    int phase;
    struct sample_result *result; /* device out [n_rows] */
    int32_t *slot_token; /* device out [n_slots, slot_stride], or NULL: no row has a slot */
    int slot_stride;     /* 0: 1 */
    int32_t *top_token;  /* device out [n_rows, max_top], best first; -1 behind the end */
    float *top_logprob;  /* device out [n_rows, max_top], raw as above */
};

/*
 * Rows are blocks of block_len tokens: x[r] = w (e[0], e[1], ..) + bias, with e[j] the table's row
 * of token j, side by side; without w they are x[r].
 */
struct block_embed_args {
    const struct step_batch *batch;
    int block_len;
    const int32_t *token;       /* device [n_rows, block_len]; < 0 for the k-th of a block:
                                   batch->slot_token[slot of the row * block_len + k] */
    const struct weight *table; /* [vocab_size, embed_dim] */
    const struct weight *w, *b; /* [dim, block_len embed_dim] and [dim], or NULL */
    void *gathered;             /* scratch [n_rows, block_len embed_dim]; with w */
    void *x;                    /* out [n_rows, dim] */
};

/* out[i] = w norm(x[row[i]]) + bias: the context of a block as prefixes of the next one. */
struct block_to_prefix_args {
    int n_items, dim;
    const int32_t *row; /* device [n_items] */
    struct norm_args norm;
    const struct weight *w, *b; /* [n_prefix token_dim, dim] and [n_prefix token_dim] */
    const void *x;              /* [n_rows, dim] */
    void *out;                  /* [n_items, n_prefix, token_dim] */
};

/* Copies whole pages: dst[i] = src[i]. */
struct kv_copy_args {
    const struct kv_view *kv;
    int n_pages;
    const int32_t *src, *dst; /* host [n_pages] */
};

enum backend_op {
    OP_EMBED,
    OP_ATTN_IN,
    OP_ATTN,
    OP_KV_APPEND,
    OP_ATTN_OUT,
    OP_FFN,
    OP_LOGITS,
    OP_POOL,
    OP_SAMPLE,
    OP_KV_COPY,
    OP_BLOCK_EMBED,
    OP_BLOCK_TO_PREFIX,
    OP_COUNT
};

/* What an op had to move and compute since open: for benches and /metrics. */
struct op_cost {
    int64_t n_calls, ns; /* ns: of the calls that are timed: on the CPU all */
    double bytes, flops;
    double timed_bytes; /* of those calls */
};

/* One backend's functions. All but close return 0 or an error code. */
struct backend_ops {
    const char *name; /* "cpu", "cuda" */
    bool has_masks;   /* sample honours masks; a request that needs them is refused otherwise */
    void (*close)(struct backend *be);
    /* ERR_UNSUPPORTED when attention is not built for such heads or pages; NULL: for any. */
    int (*supports)(int head_dim, int page_entries, struct err *err);

    /* Device memory, 64-byte aligned, not cleared. free accepts NULL. */
    int (*alloc)(struct backend *be, void **out, size_t bytes, struct err *err);
    void (*free)(struct backend *be, void *ptr);
    /* host may change as soon as the call returns, dst does in its turn. */
    int (*upload)(struct backend *be, void *dst, const void *host, size_t bytes, struct err *err);
    /* Waits for everything queued. */
    int (*download)(struct backend *be, void *host, const void *src, size_t bytes, struct err *err);

    /* Host memory, 64-byte aligned, that the device writes by itself. host_free accepts NULL. */
    int (*host_alloc)(struct backend *be, void **out, size_t bytes, struct err *err);
    void (*host_free)(struct backend *be, void *ptr);
    /* Queues a copy to such memory, which holds it when the step was waited for. */
    int (*fetch)(struct backend *be, void *host, const void *src, size_t bytes, struct err *err);

    /*
     * Makes *w of parts stacked along n_out, converted to dtype. `is_matrix` weights are operands
     * of a product and may be packed; data stays plain rows (a tied table is embedded from). The
     * others, gains and biases, always have dtype DTYPE_F32. On error *w is as weight_free leaves
     * it.
     */
    int (*weight_load)(struct backend *be, struct weight *w, const struct weight_part *parts,
                       int n_parts, enum dtype dtype, bool is_matrix, struct err *err);
    /*
     * Element i is (2 h - 65535) / 65536 * scale + offset, two f32 roundings and then dtype's. h is
     * 16 of the 128 bits of rng_philox({c, c >> 32, stream, 1}, seed, seed >> 32), c = i / 8: the
     * low half of word (i % 8) / 2 for even i, its high half for odd i.
     */
    int (*weight_random)(struct backend *be, struct weight *w, int n_out, int n_in,
                         enum dtype dtype, bool is_matrix, uint64_t seed, uint32_t stream,
                         float scale, float offset, struct err *err);
    void (*weight_free)(struct backend *be, struct weight *w);

    /* Bytes that alloc can still give; 0 when unknown. */
    size_t (*mem_free)(struct backend *be);

    /*
     * Bytes a second of a streaming read of device memory, measured now; takes what it reads from
     * what is free. Between steps only.
     */
    int (*read_bandwidth)(struct backend *be, double *bytes_per_s, struct err *err);

    /*
     * A step is what is asked for between begin and end. step_end() counts it in be->n_steps, and
     * returns while it may still run; that is so even on failure, once begin has succeeded.
     * step_wait() returns when step number `step`, and with it all before, has finished: 0, or why
     * it failed. begin waits for the step BACKEND_STEPS before it.
     */
    int (*step_begin)(struct backend *be, const struct step_batch *batch, struct err *err);
    int (*step_end)(struct backend *be, struct err *err);
    int (*step_wait)(struct backend *be, int64_t step, struct err *err);

    /*
     * Ops that come again with the same args, down to every number and address in them, are asked
     * for between graph_begin() and graph_end(), under a key 1..max_graphs that stands for those
     * args. graph_begin() returns 1 when that has asked for them all, and graph_end() must not be
     * called; 0 when they are to be called, then graph_end() with whether all succeeded. That
     * returns 1 when none of them has run, since no graph could be made of them: they are to be
     * asked for once more, without a graph, and whatever they reported is void. Only what lies in
     * device memory may change from one time to the next: no uploads in between, and no prompt
     * rows.
     */
    int (*graph_begin)(struct backend *be, int key, struct err *err);
    int (*graph_end)(struct backend *be, bool keep, struct err *err);

    int (*embed)(struct backend *be, const struct embed_args *a, struct err *err);
    int (*attn_in)(struct backend *be, const struct attn_in_args *a, struct err *err);
    int (*attn)(struct backend *be, const struct attn_args *a, struct err *err);
    int (*kv_append)(struct backend *be, const struct kv_append_args *a, struct err *err);
    int (*attn_out)(struct backend *be, const struct attn_out_args *a, struct err *err);
    int (*ffn)(struct backend *be, const struct ffn_args *a, struct err *err);
    int (*logits)(struct backend *be, const struct logits_args *a, struct err *err);
    int (*pool)(struct backend *be, const struct pool_args *a, struct err *err);
    int (*sample)(struct backend *be, const struct sample_args *a, struct err *err);
    int (*kv_copy)(struct backend *be, const struct kv_copy_args *a, struct err *err);

    /* Both NULL: the backend runs no Block Transformers. */
    int (*block_embed)(struct backend *be, const struct block_embed_args *a, struct err *err);
    int (*block_to_prefix)(struct backend *be, const struct block_to_prefix_args *a,
                           struct err *err);
};

/* The common head of every backend; implementations embed it first. */
struct backend {
    const struct backend_ops *ops;
    enum dtype act_dtype;
    bool is_async;    /* steps run while the host goes on */
    int64_t n_steps;  /* ended since open: the number of the last one */
    bool times_next;  /* the next step's ops are timed: batch->kv_bytes is wanted */
    int64_t steps_ns; /* the device's time for the steps known to have finished */
    struct op_cost cost[OP_COUNT];
    char description[256]; /* device, instruction sets or architecture, threads: for people */
};

struct backend_params {
    const char *device; /* "auto", "cpu", "cuda", "cuda:1" */
    enum dtype dtype;   /* of weights; f32 asks for f32 arithmetic throughout */
    int n_threads;      /* CPU: 0 is every core this process may use */
    bool pin_threads;
    int max_rows; /* most rows of a step: sizes the scratch memory */
    int max_dim;  /* widest activation row, fused outputs included: likewise */
    int max_vocab;
    int max_logits;    /* most logit rows of a step */
    int max_decode;    /* most decode rows of a batch; 0: max_logits */
    int max_positions; /* longest sequence, for attention scratch */
    int max_graphs;    /* keys of graphs; 0: max_rows */
    int time_every;    /* where timing ops has its price: so many steps for one; 0: none */
    /* Many decode rows may be summed in another order than few, so that their results depend on how
     * many there are. */
    bool batch_variant;
};

/* Opens what params->device names. "auto": CUDA where it is built in and usable, else the CPU. */
int backend_open(struct backend **out, const struct backend_params *params, struct err *err);
int cpu_backend_open(struct backend **out, const struct backend_params *params, struct err *err);
int cuda_backend_open(struct backend **out, const struct backend_params *params, struct err *err);

/* "embed", "attn_in", ... */
const char *backend_op_name(enum backend_op op);

#ifdef __cplusplus
}
#endif
#endif
