/*
 * cpu_attn - attention dealt out to the threads, and the moves of keys and values.
 *
 * An item of decode work is a (row, KV head), or one ATTN_CHUNK of it when there are few; merging
 * chunks in ascending order gives the same bits either way. An item of prompt work is up to
 * ATTN_LANES pairs of (row, query head) of one chunk and KV head.
 */
#include "engine/cpu/cpu_backend.h"

#include "base/check.h"
#include "base/clock.h"
#include "base/exp_poly.h"

#include <math.h>
#include <string.h>

#define SPLIT_BELOW 4 /* items a thread: with fewer, decode rows are split over keys */

struct kv_head cpu_kv_head(const struct kv_view *kv, int slot, int layer, int head)
{
    int64_t at = ((int64_t)slot * kv->n_layers + layer) * kv->n_kv_heads + head;

    return (struct kv_head){.pages = kv->pages,
                            .page_bytes = kv->page_bytes,
                            .page_entries = kv->page_entries,
                            .head_dim = kv->head_dim,
                            .dtype = kv->dtype,
                            .table = kv->page_table + kv->head_base[at],
                            .geom = kv->geom[at]};
}

static const int32_t *windows_of(const struct kv_view *kv, int slot, int layer, int head)
{
    return kv->window + ((int64_t)slot * kv->n_layers + layer) * kv->n_heads + head;
}

/* One past the last cache index that a decode row at pos may look at. */
static int index_end(struct kv_geom g, int32_t pos)
{
    int base = (g.n_sink + KV_TILE - 1) / KV_TILE * KV_TILE;
    int n = pos - g.n_sink + 1;

    if (n <= 0)
        return pos + 1;
    return base + (n < g.ring ? n : g.ring);
}

/* ---- decode ---- */

struct decode_job {
    struct cpu_backend *cb;
    const struct attn_args *a;
    int group;
    int n_splits;     /* chunks a (row, KV head) has room for in cb->split; 0: not split */
    size_t state_len; /* floats of one chunk's state: group * (2 + head_dim) */
};

/* Puts src, some later keys, into dst. */
static void state_merge(struct attn_state *dst, float *o, const struct attn_state *src,
                        const float *src_o, int group, int dim)
{
    for (int g = 0; g < group; g++) {
        float max = dst[g].max > src[g].max ? dst[g].max : src[g].max;
        float keep = exp_poly(dst[g].max - max), take = exp_poly(src[g].max - max);

        dst[g].max = max;
        dst[g].sum = dst[g].sum * keep + src[g].sum * take;
        for (int d = 0; d < dim; d++)
            o[g * dim + d] = o[g * dim + d] * keep + src_o[g * dim + d] * take;
    }
}

static void state_finish(const struct attn_state *s, float *o, int group, int dim)
{
    for (int g = 0; g < group; g++) {
        float f = s[g].sum > 0.0f ? 1.0f / s[g].sum : 0.0f;

        for (int d = 0; d < dim; d++)
            o[g * dim + d] *= f;
    }
}

static struct attn_decode_args decode_args(const struct decode_job *j, int row, int head)
{
    const struct attn_args *a = j->a;
    int slot = a->batch->slot[row], first = head * j->group;

    return (struct attn_decode_args){.kv = cpu_kv_head(a->kv, slot, a->layer, head),
                                     .q = (const float *)a->q +
                                          ((int64_t)row * a->n_heads + first) * a->head_dim,
                                     .group = j->group,
                                     .scale = a->scale,
                                     .window = windows_of(a->kv, slot, a->layer, first),
                                     .pos = a->batch->pos[row]};
}

static float *decode_out(const struct decode_job *j, int row, int head)
{
    return (float *)j->a->out + ((int64_t)row * j->a->n_heads + head * j->group) * j->a->head_dim;
}

/* Items are (row, KV head): all chunks one after the other. */
static void decode_items(void *arg, int64_t begin, int64_t end, int thread)
{
    const struct decode_job *j = arg;
    int dim = j->a->head_dim;
    float *o = thread_scratch(j->cb, thread);
    struct attn_state total[ATTN_MAX_GROUP], state[ATTN_MAX_GROUP];

    for (int64_t i = begin; i < end; i++) {
        int row = (int)(i / j->a->n_kv_heads), head = (int)(i % j->a->n_kv_heads);
        struct attn_decode_args d = decode_args(j, row, head);
        float *out = decode_out(j, row, head);
        int stop = index_end(d.kv.geom, d.pos);

        d.stop = stop;
        for (d.begin = 0; d.begin < stop; d.begin += ATTN_CHUNK) {
            bool first = d.begin == 0;

            d.end = stop - d.begin < ATTN_CHUNK ? stop : d.begin + ATTN_CHUNK;
            d.state = first ? total : state;
            d.o = first ? out : o;
            j->cb->kern->attn_decode(&d);
            if (!first)
                state_merge(total, out, state, o, j->group, dim);
        }
        state_finish(total, out, j->group, dim);
    }
}

static struct attn_state *split_state(const struct decode_job *j, int64_t item, int chunk)
{
    return (struct attn_state *)(j->cb->split +
                                 ((size_t)item * (size_t)j->n_splits + (size_t)chunk) *
                                     j->state_len);
}

/* Items are chunks of (row, KV head). */
static void decode_split_items(void *arg, int64_t begin, int64_t end, int thread)
{
    const struct decode_job *j = arg;

    (void)thread;
    for (int64_t i = begin; i < end; i++) {
        int64_t item = i / j->n_splits;
        int chunk = (int)(i % j->n_splits);
        struct attn_decode_args d =
            decode_args(j, (int)(item / j->a->n_kv_heads), (int)(item % j->a->n_kv_heads));
        int stop = index_end(d.kv.geom, d.pos);

        d.begin = chunk * ATTN_CHUNK;
        if (d.begin >= stop)
            continue;
        d.end = stop - d.begin < ATTN_CHUNK ? stop : d.begin + ATTN_CHUNK;
        d.stop = stop;
        d.state = split_state(j, item, chunk);
        d.o = (float *)(d.state + j->group);
        j->cb->kern->attn_decode(&d);
    }
}

static void decode_merge_items(void *arg, int64_t begin, int64_t end, int thread)
{
    const struct decode_job *j = arg;
    int dim = j->a->head_dim;

    (void)thread;
    for (int64_t item = begin; item < end; item++) {
        int row = (int)(item / j->a->n_kv_heads), head = (int)(item % j->a->n_kv_heads);
        struct attn_decode_args d = decode_args(j, row, head);
        int stop = index_end(d.kv.geom, d.pos);
        struct attn_state *total = split_state(j, item, 0);
        float *out = decode_out(j, row, head);

        memcpy(out, total + j->group, sizeof(float) * (size_t)j->group * (size_t)dim);
        for (int chunk = 1; chunk * ATTN_CHUNK < stop; chunk++) {
            struct attn_state *s = split_state(j, item, chunk);

            state_merge(total, out, s, (float *)(s + j->group), j->group, dim);
        }
        state_finish(total, out, j->group, dim);
    }
}

/* Chunks of the longest row, or 0 when splitting brings nothing or finds no room. */
static int decode_splits(const struct cpu_backend *cb, const struct attn_args *a, size_t state_len)
{
    int64_t n_items = (int64_t)a->batch->n_decode * a->n_kv_heads;
    int longest = 0, n_splits;

    if (cpu_threads_count(cb->threads) == 1 ||
        n_items >= SPLIT_BELOW * cpu_threads_count(cb->threads))
        return 0;
    for (int row = 0; row < a->batch->n_decode; row++) {
        for (int head = 0; head < a->n_kv_heads; head++) {
            struct kv_head h = cpu_kv_head(a->kv, a->batch->slot[row], a->layer, head);
            int stop = index_end(h.geom, a->batch->pos[row]);

            longest = stop > longest ? stop : longest;
        }
    }
    n_splits = (longest + ATTN_CHUNK - 1) / ATTN_CHUNK;
    if (n_splits < 2 || (size_t)n_items * (size_t)n_splits * state_len > cb->split_len)
        return 0;
    return n_splits;
}

static void attn_decode_rows(struct cpu_backend *cb, const struct attn_args *a)
{
    int group = a->n_heads / a->n_kv_heads;
    struct decode_job job = {
        .cb = cb, .a = a, .group = group, .state_len = (size_t)group * (size_t)(2 + a->head_dim)};
    int64_t n_items = (int64_t)a->batch->n_decode * a->n_kv_heads;

    job.n_splits = decode_splits(cb, a, job.state_len);
    if (job.n_splits == 0) {
        cpu_threads_run(cb->threads, n_items, 1, decode_items, &job);
        return;
    }
    cpu_threads_run(cb->threads, n_items * job.n_splits, 1, decode_split_items, &job);
    cpu_threads_run(cb->threads, n_items, 1, decode_merge_items, &job);
}

/* ---- prompt ---- */

struct prompt_job {
    struct cpu_backend *cb;
    const struct attn_args *a;
    int group;
    int64_t n_items; /* of all chunks */
};

static int64_t chunk_items(const struct attn_args *a, const struct step_chunk *c, int group)
{
    return ((int64_t)c->n_rows * group + ATTN_LANES - 1) / ATTN_LANES * a->n_kv_heads;
}

static void prompt_items(void *arg, int64_t begin, int64_t end, int thread)
{
    const struct prompt_job *j = arg;
    const struct attn_args *a = j->a;
    size_t row_bytes = (size_t)a->head_dim * dtype_bytes(a->kv->dtype);

    for (int64_t i = begin; i < end; i++) {
        int64_t item = j->n_items - 1 - i; /* late rows see most: begin with them */
        const struct step_chunk *c = a->batch->chunks;
        int head, first, block;
        int64_t at;

        for (; item >= chunk_items(a, c, j->group); c++)
            item -= chunk_items(a, c, j->group);
        head = (int)(item % a->n_kv_heads);
        block = (int)(item / a->n_kv_heads);
        first = head * j->group;
        at = ((int64_t)(c->row0 - a->batch->n_decode) * a->n_kv_heads + head) * (int64_t)row_bytes;
        j->cb->kern->attn_prompt(
            &(struct attn_prompt_args){
                .kv = cpu_kv_head(a->kv, c->slot, a->layer, head),
                .q = (const float *)a->q + ((int64_t)c->row0 * a->n_heads + first) * a->head_dim,
                .out = (float *)a->out + ((int64_t)c->row0 * a->n_heads + first) * a->head_dim,
                .ldq = (int64_t)a->n_heads * a->head_dim,
                .group = j->group,
                .scale = a->scale,
                .window = windows_of(a->kv, c->slot, a->layer, first),
                .pos0 = c->pos0,
                .n_rows = c->n_rows,
                .k_chunk = (const char *)a->k_chunk + at,
                .v_chunk = (const char *)a->v_chunk + at,
                .chunk_stride = (size_t)a->n_kv_heads * row_bytes,
                .lane0 = block * ATTN_LANES,
                .n_lanes = c->n_rows * j->group - block * ATTN_LANES < ATTN_LANES
                               ? c->n_rows * j->group - block * ATTN_LANES
                               : ATTN_LANES},
            thread_scratch(j->cb, thread));
    }
}

static void attn_prompt_rows(struct cpu_backend *cb, const struct attn_args *a)
{
    struct prompt_job job = {.cb = cb, .a = a, .group = a->n_heads / a->n_kv_heads};

    for (int i = 0; i < a->batch->n_chunks; i++)
        job.n_items += chunk_items(a, &a->batch->chunks[i], job.group);
    cpu_threads_run(cb->threads, job.n_items, 1, prompt_items, &job);
}

/* ---- the account ---- */

/* Keys that a row at position i sees, and the products of its pairs, over the heads of a layer. */
static void attn_work(const struct attn_args *a, int row, bool decode, double *keys, double *pairs)
{
    int group = a->n_heads / a->n_kv_heads, slot = a->batch->slot[row];
    int32_t i = a->batch->pos[row];

    for (int head = 0; head < a->n_kv_heads; head++) {
        struct kv_geom g = cpu_kv_head(a->kv, slot, a->layer, head).geom;
        const int32_t *window = windows_of(a->kv, slot, a->layer, head * group);
        int64_t most = 0;

        for (int h = 0; h < group; h++) {
            int32_t lo, sink = g.n_sink, n;

            if (decode || g.mask == KV_MASK_TOKEN) {
                lo = i - window[h] + 1 < 0 ? 0 : i - window[h] + 1;
            } else {
                lo = kv_window_start_prompt(g, window[h], i);
                sink = g.n_sink / KV_TILE * KV_TILE;
            }
            n = i - lo + 1 + (sink < lo ? sink : lo);
            *pairs += n;
            most = n > most ? n : most;
        }
        *keys += (double)most;
    }
}

static void attn_cost(struct cpu_backend *cb, const struct attn_args *a, int64_t t0)
{
    double key_bytes = 2.0 * a->head_dim * (double)dtype_bytes(a->kv->dtype);
    double keys = 0.0, pairs = 0.0;

    for (int row = 0; row < a->batch->n_decode; row++)
        attn_work(a, row, true, &keys, &pairs);
    for (int c = 0; c < a->batch->n_chunks; c++) {
        const struct step_chunk *ch = &a->batch->chunks[c];
        double last = 0.0, unused = 0.0;

        for (int r = 0; r < ch->n_rows; r++) {
            last = 0.0; /* a chunk's keys are read once for all its rows: count the last row's */
            attn_work(a, ch->row0 + r, false, &last, &pairs);
        }
        keys += last;
        (void)unused;
    }
    cpu_cost_add(cb, OP_ATTN, t0, keys * key_bytes, 4.0 * a->head_dim * pairs);
}

int cpu_attn(struct backend *be, const struct attn_args *a, struct err *err)
{
    struct cpu_backend *cb = cpu_of(be);
    int64_t t0 = clock_ns();

    if (a->n_heads % a->n_kv_heads != 0 || a->n_heads / a->n_kv_heads > ATTN_MAX_GROUP)
        return err_set(err, ERR_UNSUPPORTED, "attention: %d heads on %d KV heads", a->n_heads,
                       a->n_kv_heads);
    CHECK(a->kv->head_dim == a->head_dim);
    CHECK(a->head_dim <= ATTN_MAX_HEAD_DIM);
    CHECK(a->kv->page_entries <= KV_TILE);
    CHECK(KV_TILE % a->kv->page_entries == 0 || a->kv->is_slab);
    CHECK(!a->kv->is_slab || a->batch->n_chunks == 0);
    attn_decode_rows(cb, a);
    attn_prompt_rows(cb, a);
    attn_cost(cb, a, t0);
    return 0;
}

/* ---- kv_append ---- */

struct append_job {
    const struct kv_append_args *a;
    const struct step_chunk *chunk;
};

static void append_items(void *arg, int64_t begin, int64_t end, int thread)
{
    const struct append_job *j = arg;
    const struct kv_append_args *a = j->a;
    const struct step_chunk *c = j->chunk;
    int entries = a->kv->page_entries;
    size_t row_bytes = (size_t)a->head_dim * dtype_bytes(a->kv->dtype);

    (void)thread;
    for (int head = 0; head < a->n_kv_heads; head++) {
        struct kv_head h = cpu_kv_head(a->kv, c->slot, a->layer, head);

        for (int64_t r = begin; r < end; r++) {
            int32_t pos = c->pos0 + (int32_t)r;
            size_t from = ((size_t)(c->row0 - a->batch->n_decode + r) * (size_t)a->n_kv_heads +
                           (size_t)head) *
                          row_bytes;
            int index;
            char *to;

            if (pos >= h.geom.n_sink && pos < c->pos0 + c->n_rows - h.geom.ring)
                continue; /* a later row of this chunk takes its place */
            index = kv_index_of(h.geom, pos);
            to = (char *)a->kv->pages + (size_t)h.table[index / entries] * h.page_bytes +
                 (size_t)(index % entries) * row_bytes;
            memcpy(to, (const char *)a->k_chunk + from, row_bytes);
            memcpy(to + (size_t)entries * row_bytes, (const char *)a->v_chunk + from, row_bytes);
        }
    }
}

int cpu_kv_append(struct backend *be, const struct kv_append_args *a, struct err *err)
{
    struct cpu_backend *cb = cpu_of(be);
    int64_t t0 = clock_ns();
    double rows = 0.0;

    (void)err;
    for (int i = 0; i < a->batch->n_chunks; i++) {
        struct append_job job = {.a = a, .chunk = &a->batch->chunks[i]};

        cpu_threads_run(cb->threads, job.chunk->n_rows, 32, append_items, &job);
        rows += job.chunk->n_rows;
    }
    cpu_cost_add(cb, OP_KV_APPEND, t0,
                 rows * 4.0 * a->n_kv_heads * a->head_dim * (double)dtype_bytes(a->kv->dtype), 0.0);
    return 0;
}

/* ---- kv_copy ---- */

static void copy_items(void *arg, int64_t begin, int64_t end, int thread)
{
    const struct kv_copy_args *a = arg;
    char *pages = a->kv->pages;

    (void)thread;
    for (int64_t i = begin; i < end; i++)
        memcpy(pages + (size_t)a->dst[i] * a->kv->page_bytes,
               pages + (size_t)a->src[i] * a->kv->page_bytes, a->kv->page_bytes);
}

int cpu_kv_copy(struct backend *be, const struct kv_copy_args *a, struct err *err)
{
    struct cpu_backend *cb = cpu_of(be);
    int64_t t0 = clock_ns();

    (void)err;
    cpu_threads_run(cb->threads, a->n_pages, 4, copy_items, (void *)(uintptr_t)a);
    cpu_cost_add(cb, OP_KV_COPY, t0, 2.0 * a->n_pages * (double)a->kv->page_bytes, 0.0);
    return 0;
}
