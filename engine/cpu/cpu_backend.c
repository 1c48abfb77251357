/*
 * cpu_backend - the CPU as a device: memory is plain memory, every op is done when it returns.
 *
 * The reference of the CUDA backend and the embedded default. The engine thread calls it and works
 * as thread 0 of its pool.
 */
#include "engine/cpu/cpu_backend.h"

#include "base/check.h"
#include "base/clock.h"
#include "engine/cpu/cpu_linear.h"

#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define MAX_HEAD_DIM 256
#define READ_BYTES   ((size_t)512 << 20) /* past most caches; twice that is nowhere slower */
#define READ_GRAIN   ((size_t)2 << 20)
#define READ_PASSES  5
#define SPLIT_BYTES  ((size_t)16 << 20) /* what does not fit is not split, with the same bits */

void cpu_cost_add(struct cpu_backend *cb, enum backend_op op, int64_t t0, double bytes,
                  double flops)
{
    struct op_cost *c = &cb->base.cost[op];
    int64_t ns = clock_ns() - t0;

    c->n_calls++;
    c->ns += ns;
    cb->base.steps_ns += ns;
    c->bytes += bytes;
    c->timed_bytes += bytes;
    c->flops += flops;
}

static void cpu_close(struct backend *be)
{
    struct cpu_backend *cb = cpu_of(be);

    if (!cb)
        return;
    cpu_threads_close(cb->threads);
    cpu_memory_free(cb->rows);
    cpu_memory_free(cb->wide);
    cpu_memory_free(cb->dot_rows);
    cpu_memory_free(cb->packed);
    cpu_memory_free(cb->packed_h);
    cpu_memory_free(cb->thread_scratch);
    cpu_memory_free(cb->rope);
    cpu_memory_free(cb->split);
    cpu_memory_free(cb->sample_scratch);
    free(cb);
}

static int cpu_alloc(struct backend *be, void **out, size_t bytes, struct err *err)
{
    (void)be;
    *out = cpu_memory_new(bytes);
    if (!*out)
        return err_set(err, ERR_NO_ROOM, "cpu: no memory for %zu bytes", bytes);
    return 0;
}

static void cpu_free(struct backend *be, void *ptr)
{
    (void)be;
    cpu_memory_free(ptr);
}

static int cpu_copy(struct backend *be, void *dst, const void *src, size_t bytes, struct err *err)
{
    (void)be;
    (void)err;
    if (bytes > 0)
        memcpy(dst, src, bytes);
    return 0;
}

static size_t cpu_mem_free(struct backend *be)
{
    (void)be;
    return cpu_memory_available();
}

struct reading {
    const struct cpu_kernels *kern;
    const char *data;
    atomic_ullong sum; /* so that no read is left out */
};

static void read_items(void *arg, int64_t begin, int64_t end, int thread)
{
    struct reading *r = arg;

    (void)thread;
    r->sum += r->kern->stream_read(r->data + (size_t)begin * READ_GRAIN,
                                   (size_t)(end - begin) * READ_GRAIN);
}

/* The fastest of a few passes: others may use the machine, and nothing makes it faster than it is.
 */
static int cpu_read_bandwidth(struct backend *be, double *bytes_per_s, struct err *err)
{
    struct cpu_backend *cb = cpu_of(be);
    struct reading r = {.kern = cb->kern};
    char *data = cpu_memory_new(READ_BYTES);

    if (!data)
        return err_set(err, ERR_NO_ROOM, "cpu: no memory for %zu bytes to read", READ_BYTES);
    memset(data, 1, READ_BYTES);
    r.data = data;
    *bytes_per_s = 0;
    for (int i = 0; i < READ_PASSES; i++) {
        int64_t t0 = clock_ns();
        double now;

        cpu_threads_run(cb->threads, (int64_t)(READ_BYTES / READ_GRAIN), 1, read_items, &r);
        now = (double)READ_BYTES * 1e9 / (double)(clock_ns() - t0);
        *bytes_per_s = now > *bytes_per_s ? now : *bytes_per_s;
    }
    cpu_memory_free(data);
    return 0;
}

static int cpu_step_begin(struct backend *be, const struct step_batch *batch, struct err *err)
{
    struct cpu_backend *cb = cpu_of(be);

    (void)err;
    CHECK(batch->n_rows <= cb->params.max_rows);
    CHECK(batch->n_decode <= batch->n_rows);
    cb->rope_inv_freq = NULL;
    return 0;
}

static int cpu_step_end(struct backend *be, struct err *err)
{
    (void)err;
    be->n_steps++;
    return 0;
}

/* Each op has done its work when it returns. */
static int cpu_step_wait(struct backend *be, int64_t step, struct err *err)
{
    (void)err;
    CHECK(step <= be->n_steps);
    return 0;
}

/* A call costs next to nothing here: no graphs are kept. */
static int cpu_graph_begin(struct backend *be, int key, struct err *err)
{
    (void)be;
    (void)key;
    (void)err;
    return 0;
}

static int cpu_graph_end(struct backend *be, bool keep, struct err *err)
{
    (void)be;
    (void)keep;
    (void)err;
    return 0;
}

static const struct backend_ops cpu_ops = {
    .name = "cpu",
    .has_masks = true,
    .close = cpu_close,
    .alloc = cpu_alloc,
    .free = cpu_free,
    .upload = cpu_copy,
    .download = cpu_copy,
    .host_alloc = cpu_alloc,
    .host_free = cpu_free,
    .fetch = cpu_copy,
    .weight_load = cpu_weight_load,
    .weight_random = cpu_weight_random,
    .weight_free = cpu_weight_free,
    .mem_free = cpu_mem_free,
    .read_bandwidth = cpu_read_bandwidth,
    .step_begin = cpu_step_begin,
    .step_end = cpu_step_end,
    .step_wait = cpu_step_wait,
    .graph_begin = cpu_graph_begin,
    .graph_end = cpu_graph_end,
    .embed = cpu_embed,
    .attn_in = cpu_attn_in,
    .attn = cpu_attn,
    .kv_append = cpu_kv_append,
    .attn_out = cpu_attn_out,
    .ffn = cpu_ffn,
    .logits = cpu_logits,
    .pool = cpu_pool,
    .sample = cpu_sample,
    .kv_copy = cpu_kv_copy,
    .block_embed = cpu_block_embed,
    .block_to_prefix = cpu_block_to_prefix,
};

static size_t max_size(size_t a, size_t b)
{
    return a > b ? a : b;
}

/* What one thread needs in any job: products, normed rows before packing, attention. */
static size_t thread_bytes(const struct cpu_backend *cb)
{
    int dim = cb->params.max_dim;
    size_t n = cb->kern->gemm->scratch_bytes(dim);

    if (cb->gemm_bf16)
        n = max_size(n, cb->gemm_bf16->scratch_bytes(dim));
    n = max_size(n, sizeof(float) * 16 * (size_t)dim);
    n = max_size(n, cb->kern->attn_prompt_scratch(MAX_HEAD_DIM));
    n = max_size(n, sizeof(float) * ATTN_MAX_GROUP * MAX_HEAD_DIM);
    return (n + 4095) / 4096 * 4096;
}

/* Bytes of block_rows packed rows of inner size max_dim, in the form that takes most. */
static size_t packed_bytes(const struct cpu_backend *cb)
{
    size_t rows = (size_t)(cb->block_rows + 16); /* the last group may be part empty */
    size_t dim = (size_t)cb->params.max_dim + 32;

    return rows * dim * sizeof(float);
}

static int scratch_alloc(struct cpu_backend *cb, struct err *err)
{
    const struct backend_params *p = &cb->params;
    int n_threads = cpu_threads_count(cb->threads);
    size_t row_bytes = sizeof(float) * (size_t)p->max_dim;

    cb->block_rows = p->max_rows < GEMM_MAX_ROWS ? p->max_rows : GEMM_MAX_ROWS;
    if (p->max_logits > cb->block_rows && cb->block_rows < 16)
        cb->block_rows = 16;
    cb->rope_cap = MAX_HEAD_DIM / 2;
    cb->thread_bytes = thread_bytes(cb);
    cb->split_len = SPLIT_BYTES / sizeof(float);
    cb->n_sample_threads = n_threads;
    cb->sample_bytes = cpu_sample_scratch(p->max_vocab);

    cb->rows = cpu_memory_new((size_t)cb->block_rows * row_bytes);
    cb->wide = cpu_memory_new((size_t)cb->block_rows * row_bytes);
    cb->dot_rows = cpu_memory_new((size_t)cb->block_rows * (row_bytes + sizeof(float) * DOT_ROUND));
    cb->packed = cpu_memory_new(packed_bytes(cb));
    cb->packed_h = cpu_memory_new(packed_bytes(cb));
    cb->thread_scratch = cpu_memory_new((size_t)n_threads * cb->thread_bytes);
    cb->rope = cpu_memory_new(sizeof(float) * 2 * (size_t)cb->rope_cap * (size_t)p->max_rows);
    cb->split = cpu_memory_new(SPLIT_BYTES);
    cb->sample_scratch = cpu_memory_new((size_t)n_threads * cb->sample_bytes);
    if (!cb->rows || !cb->wide || !cb->dot_rows || !cb->packed || !cb->packed_h ||
        !cb->thread_scratch || !cb->rope || !cb->split || !cb->sample_scratch)
        return err_set(err, ERR_NO_ROOM, "cpu: no memory for scratch of %d rows of %d", p->max_rows,
                       p->max_dim);
    return 0;
}

static int params_check(const struct backend_params *p, struct err *err)
{
    if (p->max_rows < 1 || p->max_dim < 1 || p->max_vocab < 1 || p->max_logits < 0)
        return err_set(err, ERR_INVALID,
                       "cpu: max_rows %d, max_dim %d, max_vocab %d: want at least 1", p->max_rows,
                       p->max_dim, p->max_vocab);
    return 0;
}

static void describe(struct cpu_backend *cb)
{
    snprintf(cb->base.description, sizeof(cb->base.description),
             "cpu, %s, %s product for prompts of bf16 weights, %d thread%s%s",
             cpu_isa_name(cb->isa), cb->gemm_bf16 ? cb->gemm_bf16->name : "f32",
             cpu_threads_count(cb->threads), cpu_threads_count(cb->threads) == 1 ? "" : "s",
             cb->params.pin_threads ? " pinned" : "");
}

int cpu_backend_open(struct backend **out, const struct backend_params *params, struct err *err)
{
    int rc = params_check(params, err);
    struct cpu_backend *cb;

    if (rc < 0)
        return rc;
    cb = calloc(1, sizeof(*cb));
    if (!cb)
        return err_set(err, ERR_NO_ROOM, "cpu: out of memory");
    cb->base.ops = &cpu_ops;
    cb->base.act_dtype = DTYPE_F32;
    cb->params = *params;
    cb->params.device = "cpu";
    rc = cpu_isa_choose(&cb->isa, err);
    if (rc < 0)
        goto out;
    cb->kern = cpu_kernels_for(cb->isa);
    cb->gemm_bf16 = cpu_gemm_bf16_for(cb->isa);
    rc = cpu_threads_open(&cb->threads, params->n_threads, params->pin_threads, err);
    if (rc < 0)
        goto out;
    rc = scratch_alloc(cb, err);
    if (rc < 0)
        goto out;
    describe(cb);
    *out = &cb->base;
    cb = NULL; /* the caller owns it now */
out:
    cpu_close(cb ? &cb->base : NULL);
    return rc;
}
