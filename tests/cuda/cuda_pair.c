/*
 * cuda_pair - the CPU and the CUDA backend side by side. See cuda_pair.h.
 */
#include "tests/cuda/cuda_pair.h"

#include "base/rng.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define EXIT_SKIP 77 /* automake's code for a test that cannot run here */

/* A CUDA context does not survive fork; and without a GPU there is nothing to run. Not as a
 * constructor: those that register the kernels may not have run yet. */
void test_before_suites(void)
{
    struct backend_params params = {.device = "cuda",
                                    .dtype = DTYPE_F32,
                                    .max_rows = 8,
                                    .max_dim = 64,
                                    .max_vocab = 64,
                                    .max_logits = 8,
                                    .max_positions = 64};
    struct backend *be;
    struct err err = {0};

    setenv("CK_FORK", "no", 1);
    if (cuda_backend_open(&be, &params, &err) < 0) {
        fprintf(stderr, "SKIP: %s\n", err.msg);
        exit(EXIT_SKIP);
    }
    fprintf(stderr, "%s\n", be->description);
    be->ops->close(be);
}

static void must(int rc, const struct err *err)
{
    ck_assert_msg(rc == 0, "%s", err->msg);
}

void pair_open(struct cuda_pair *p, enum dtype dtype)
{
    static struct cuda_pair opened[3];
    struct backend_params params = {.device = "cuda",
                                    .dtype = dtype,
                                    .max_rows = PAIR_MAX_ROWS,
                                    .max_dim = PAIR_MAX_DIM,
                                    .max_vocab = PAIR_MAX_VOCAB,
                                    .max_logits = PAIR_MAX_ROWS,
                                    .max_positions = PAIR_MAX_POS};
    struct cuda_pair *o = &opened[dtype];
    struct err err = {0};

    if (!o->gpu) {
        o->dtype = dtype;
        must(cuda_backend_open(&o->gpu, &params, &err), &err);
        params.device = "cpu";
        must(cpu_backend_open(&o->cpu, &params, &err), &err);
    }
    *p = *o;
}

static void *put(struct backend *be, const void *host, size_t bytes)
{
    struct err err = {0};
    void *out = NULL;

    must(be->ops->alloc(be, &out, bytes + 64, &err), &err);
    must(be->ops->upload(be, out, host, bytes, &err), &err);
    return out;
}

static struct pair_buf put_both(struct cuda_pair *p, const float *values, size_t n,
                                enum dtype cpu_dtype, enum dtype gpu_dtype)
{
    struct pair_buf b = {.cpu_dtype = cpu_dtype, .gpu_dtype = gpu_dtype, .n = n};
    void *tmp = malloc(n * 4 + 64);

    dtype_convert(tmp, gpu_dtype, values, DTYPE_F32, n);
    b.gpu = put(p->gpu, tmp, n * dtype_bytes(gpu_dtype));
    dtype_convert(tmp, cpu_dtype, values, DTYPE_F32, n);
    b.cpu = put(p->cpu, tmp, n * dtype_bytes(cpu_dtype));
    free(tmp);
    return b;
}

static float *random_values(enum dtype round_to, size_t n, float scale, uint32_t seed)
{
    float *v = malloc(n * sizeof(*v) + 64);
    void *rounded = malloc(n * 4 + 64);

    for (size_t i = 0; i < n; i++)
        v[i] = (rng_f32(1234, seed, i) * 2 - 1) * scale;
    dtype_convert(rounded, round_to, v, DTYPE_F32, n);
    dtype_convert(v, DTYPE_F32, rounded, round_to, n);
    free(rounded);
    return v;
}

struct pair_buf pair_random(struct cuda_pair *p, size_t n, float scale, uint32_t seed)
{
    float *v = random_values(p->dtype, n, scale, seed);
    struct pair_buf b = put_both(p, v, n, DTYPE_F32, p->dtype);

    free(v);
    return b;
}

struct pair_buf pair_random_kv(struct cuda_pair *p, size_t n, float scale, uint32_t seed)
{
    float *v = random_values(p->dtype, n, scale, seed);
    struct pair_buf b = put_both(p, v, n, p->dtype, p->dtype);

    free(v);
    return b;
}

struct pair_buf pair_f32(struct cuda_pair *p, const float *values, size_t n)
{
    return put_both(p, values, n, DTYPE_F32, DTYPE_F32);
}

struct pair_buf pair_i32(struct cuda_pair *p, const int32_t *values, size_t n)
{
    return (struct pair_buf){.cpu = put(p->cpu, values, n * 4),
                             .gpu = put(p->gpu, values, n * 4),
                             .cpu_dtype = DTYPE_F32,
                             .gpu_dtype = DTYPE_F32,
                             .n = n};
}

void pair_free(struct cuda_pair *p, struct pair_buf *b)
{
    p->cpu->ops->free(p->cpu, b->cpu);
    p->gpu->ops->free(p->gpu, b->gpu);
    memset(b, 0, sizeof(*b));
}

float *pair_get(struct cuda_pair *p, const struct pair_buf *b, bool gpu)
{
    struct backend *be = gpu ? p->gpu : p->cpu;
    enum dtype dt = gpu ? b->gpu_dtype : b->cpu_dtype;
    void *raw = malloc(b->n * 4 + 64);
    float *out = malloc(b->n * 4 + 64);
    struct err err = {0};

    must(be->ops->download(be, raw, gpu ? b->gpu : b->cpu, b->n * dtype_bytes(dt), &err), &err);
    dtype_convert(out, DTYPE_F32, raw, dt, b->n);
    free(raw);
    return out;
}

void *pair_get_bytes(struct cuda_pair *p, const struct pair_buf *b)
{
    size_t bytes = b->n * dtype_bytes(b->gpu_dtype);
    void *raw = malloc(bytes + 64);
    struct err err = {0};

    must(p->gpu->ops->download(p->gpu, raw, b->gpu, bytes, &err), &err);
    return raw;
}

void pair_compare(struct cuda_pair *p, const struct pair_buf *b, const char *what, float factor)
{
    float *ref = pair_get(p, b, false), *got = pair_get(p, b, true);
    float rtol = p->dtype == DTYPE_F32 ? 1e-5f : p->dtype == DTYPE_F16 ? 0x1p-10f : 0x1p-7f;
    float atol = p->dtype == DTYPE_F32 ? 2e-5f : p->dtype == DTYPE_F16 ? 0x1p-9f : 0x1p-6f;
    double square = 0, worst = -1;
    size_t worst_at = 0;
    float rms;

    for (size_t i = 0; i < b->n; i++)
        square += (double)ref[i] * ref[i];
    rms = b->n ? (float)sqrt(square / (double)b->n) : 0;
    for (size_t i = 0; i < b->n; i++) {
        double room = factor * (rtol * fabsf(ref[i]) + atol * rms) + 1e-30;
        double off = fabs((double)got[i] - ref[i]) / room;

        if (!(off <= worst)) { /* also NaN */
            worst = off;
            worst_at = i;
            if (isnan(off))
                break;
        }
    }
    if (getenv("PAIR_VERBOSE"))
        fprintf(stderr, "%s (%s): %.2f of the tolerance\n", what, dtype_name(p->dtype), worst);
    ck_assert_msg(b->n == 0 || worst <= 1,
                  "%s (%s): element %zu of %zu is %g, want %g (rms %g): "
                  "%.2f times the tolerance",
                  what, dtype_name(p->dtype), worst_at, b->n, (double)got[worst_at],
                  (double)ref[worst_at], (double)rms, worst);
    free(ref);
    free(got);
}

struct pair_weight pair_weight_random(struct cuda_pair *p, int n_out, int n_in, bool is_matrix,
                                      float scale, float offset, uint32_t seed)
{
    struct pair_weight w;
    struct err err = {0};
    enum dtype dt = is_matrix ? p->dtype : DTYPE_F32;

    must(p->cpu->ops->weight_random(p->cpu, &w.cpu, n_out, n_in, dt, is_matrix, 99, seed, scale,
                                    offset, &err),
         &err);
    must(p->gpu->ops->weight_random(p->gpu, &w.gpu, n_out, n_in, dt, is_matrix, 99, seed, scale,
                                    offset, &err),
         &err);
    return w;
}

void pair_weight_free(struct cuda_pair *p, struct pair_weight *w)
{
    p->cpu->ops->weight_free(p->cpu, &w->cpu);
    p->gpu->ops->weight_free(p->gpu, &w->gpu);
}

struct pair_batch pair_batch_new(struct cuda_pair *p, int n_rows, int n_decode, int n_chunks,
                                 int n_logits, const int32_t *token, const int32_t *pos,
                                 const int32_t *slot, const struct step_chunk *chunks,
                                 const int32_t *logit_row)
{
    static const int32_t none[4];
    struct pair_batch b = {0};

    b.token = pair_i32(p, token ? token : none, token ? n_rows : 1);
    b.pos = pair_i32(p, pos ? pos : none, pos ? n_rows : 1);
    b.slot = pair_i32(p, slot ? slot : none, slot ? n_rows : 1);
    b.chunks = pair_i32(p, chunks ? (const int32_t *)chunks : none, chunks ? 4 * n_chunks : 1);
    b.logit_row = pair_i32(p, logit_row ? logit_row : none, logit_row ? n_logits : 1);
    b.cpu = (struct step_batch){
        .n_rows = n_rows, .n_decode = n_decode, .n_chunks = n_chunks, .n_logits = n_logits};
    b.gpu = b.cpu;
    b.cpu.token = b.token.cpu, b.gpu.token = b.token.gpu;
    b.cpu.pos = b.pos.cpu, b.gpu.pos = b.pos.gpu;
    b.cpu.slot = b.slot.cpu, b.gpu.slot = b.slot.gpu;
    b.cpu.chunks = b.chunks.cpu, b.gpu.chunks = b.chunks.gpu;
    b.cpu.logit_row = b.logit_row.cpu, b.gpu.logit_row = b.logit_row.gpu;
    return b;
}

void pair_batch_free(struct cuda_pair *p, struct pair_batch *b)
{
    pair_free(p, &b->token);
    pair_free(p, &b->pos);
    pair_free(p, &b->slot);
    pair_free(p, &b->chunks);
    pair_free(p, &b->logit_row);
}

/* Cache indices that a head needs for positions 0 .. max_len - 1. */
static int indices_needed(struct kv_geom g, int max_len)
{
    int base = (g.n_sink + KV_TILE - 1) / KV_TILE * KV_TILE, rest = max_len - g.n_sink;

    return rest <= 0 ? max_len : base + (rest < g.ring ? rest : g.ring);
}

/* Fills the entries that positions 0 .. len - 1 have left in one head's pages. */
static void fill_head(float *pages, const int32_t *table, const struct pair_kv_shape *s,
                      struct kv_geom g, int len, uint32_t seed)
{
    size_t page = 2 * (size_t)s->page_entries * s->head_dim;

    for (int pos = 0; pos < len; pos++) {
        int index = kv_index_of(g, pos);
        float *k = pages + table[index / s->page_entries] * page +
                   (size_t)(index % s->page_entries) * s->head_dim;

        for (int d = 0; d < s->head_dim; d++) {
            uint64_t at = ((uint64_t)pos * s->head_dim + d) * 2;

            k[d] = rng_f32(77, seed, at) * 2 - 1;
            k[d + (size_t)s->page_entries * s->head_dim] = rng_f32(77, seed, at + 1) * 2 - 1;
        }
    }
}

struct pair_kv pair_kv_new(struct cuda_pair *p, const struct pair_kv_shape *s, uint32_t seed)
{
    int n_heads_all = s->n_slots * s->n_layers * s->n_kv_heads;
    int32_t *base = malloc(sizeof(*base) * n_heads_all), *table;
    struct pair_kv kv = {0};
    size_t page = 2 * (size_t)s->page_entries * s->head_dim, n = 0;
    float *pages;

    for (int h = 0; h < n_heads_all; h++) {
        int max_len = s->max_len[h / (s->n_layers * s->n_kv_heads)];

        base[h] = (int32_t)n;
        n += (indices_needed(s->geom[h], max_len) + s->page_entries - 1) / s->page_entries;
    }
    table = malloc(sizeof(*table) * (n + 1));
    for (size_t i = 0; i < n; i++)
        table[i] = (int32_t)i;
    for (size_t i = n; i > 1; i--) {
        size_t j = rng_u64(5, seed, i) % i;
        int32_t t = table[i - 1];

        table[i - 1] = table[j];
        table[j] = t;
    }
    pages = malloc((n + 1) * page * sizeof(float));
    for (size_t i = 0; i < n * page; i++)
        pages[i] = NAN;
    for (int h = 0; h < n_heads_all; h++)
        fill_head(pages, table + base[h], s, s->geom[h], s->len[h / (s->n_layers * s->n_kv_heads)],
                  seed + (uint32_t)h * 7 + 1);
    kv.n_pages = n;
    kv.pages = put_both(p, pages, n * page, p->dtype, p->dtype);
    kv.page_table = pair_i32(p, table, n);
    kv.head_base = pair_i32(p, base, n_heads_all);
    kv.geom = pair_i32(p, (const int32_t *)s->geom, 3 * (size_t)n_heads_all);
    kv.window = pair_i32(p, s->window, (size_t)s->n_slots * s->n_layers * s->n_heads);
    kv.cpu = (struct kv_view){.page_bytes = page * dtype_bytes(p->dtype),
                              .page_entries = s->page_entries,
                              .head_dim = s->head_dim,
                              .n_layers = s->n_layers,
                              .n_heads = s->n_heads,
                              .n_kv_heads = s->n_kv_heads,
                              .dtype = p->dtype};
    kv.gpu = kv.cpu;
    kv.cpu.pages = kv.pages.cpu, kv.gpu.pages = kv.pages.gpu;
    kv.cpu.page_table = kv.page_table.cpu, kv.gpu.page_table = kv.page_table.gpu;
    kv.cpu.head_base = kv.head_base.cpu, kv.gpu.head_base = kv.head_base.gpu;
    kv.cpu.geom = kv.geom.cpu, kv.gpu.geom = kv.geom.gpu;
    kv.cpu.window = kv.window.cpu, kv.gpu.window = kv.window.gpu;
    free(base);
    free(table);
    free(pages);
    return kv;
}

void pair_kv_free(struct cuda_pair *p, struct pair_kv *kv)
{
    pair_free(p, &kv->pages);
    pair_free(p, &kv->page_table);
    pair_free(p, &kv->head_base);
    pair_free(p, &kv->geom);
    pair_free(p, &kv->window);
}
