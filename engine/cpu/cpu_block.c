/*
 * cpu_block - what a Block Transformer has around its two decoders: the embedding of blocks and the
 * way from a block's context to the next one's prefixes.
 *
 * Products go the way of decode rows throughout, prompt or not: they are two of many, and a row's
 * bits stay its own.
 */
#include "engine/cpu/cpu_linear.h"

#include "base/check.h"
#include "base/clock.h"

static int min_int(int a, int b)
{
    return a < b ? a : b;
}

/* Items are blocks. */
static void gather_items(void *arg, int64_t begin, int64_t end, int thread)
{
    const struct block_embed_args *a = arg;
    const struct weight *t = a->table;
    size_t row_bytes = (size_t)t->n_in * dtype_bytes(t->dtype);
    float *out = a->w ? a->gathered : a->x;

    (void)thread;
    for (int64_t i = begin * a->block_len; i < end * a->block_len; i++) {
        int token = a->token[i];

        if (token < 0)
            token = a->batch->slot_token[(int64_t)a->batch->slot[i / a->block_len] * a->block_len +
                                         i % a->block_len];
        CHECK(token >= 0);
        CHECK(token < t->n_out);
        dtype_convert(out + i * t->n_in, DTYPE_F32,
                      (const char *)t->data + (size_t)token * row_bytes, t->dtype, (size_t)t->n_in);
    }
}

int cpu_block_embed(struct backend *be, const struct block_embed_args *a, struct err *err)
{
    struct cpu_backend *cb = cpu_of(be);
    int64_t t0 = clock_ns();
    int n = a->batch->n_rows, width = a->block_len * a->table->n_in;
    double bytes = (double)n * width * (double)(dtype_bytes(a->table->dtype) + sizeof(float));
    double flops = 0.0;

    (void)err;
    cpu_threads_run(cb->threads, n, 4, gather_items, (void *)(uintptr_t)a);
    if (a->w) {
        CHECK(a->w->n_in == width);
        for (int row = 0; row < n; row += cb->block_rows) {
            struct linear_args lin = {.x = (const float *)a->gathered + (int64_t)row * width,
                                      .ldx = width,
                                      .n_rows = min_int(n - row, cb->block_rows),
                                      .w = a->w,
                                      .bias = a->b,
                                      .y = (float *)a->x + (int64_t)row * a->w->n_out,
                                      .ldy = a->w->n_out};

            cpu_linear_decode(cb, &lin);
        }
        bytes += n ? weight_bytes(a->w) : 0.0;
        flops = 2.0 * n * width * a->w->n_out;
    }
    cpu_cost_add(cb, OP_BLOCK_EMBED, t0, bytes, flops);
    return 0;
}

int cpu_block_to_prefix(struct backend *be, const struct block_to_prefix_args *a, struct err *err)
{
    struct cpu_backend *cb = cpu_of(be);
    int64_t t0 = clock_ns();
    int n = a->n_items, wide = a->w->n_out;

    (void)err;
    for (int i = 0; i < n; i += cb->block_rows) {
        struct linear_args lin = {.x = cb->rows,
                                  .ldx = a->dim,
                                  .n_rows = min_int(n - i, cb->block_rows),
                                  .w = a->w,
                                  .bias = a->b,
                                  .y = (float *)a->out + (int64_t)i * wide,
                                  .ldy = wide};

        cpu_norm_rows(cb, cb->rows, a->dim, a->x, a->dim, a->row + i, lin.n_rows, a->dim, &a->norm);
        cpu_linear_decode(cb, &lin);
    }
    cpu_cost_add(cb, OP_BLOCK_TO_PREFIX, t0, n ? weight_bytes(a->w) : 0.0, 2.0 * n * wide * a->dim);
    return 0;
}
