/*
 * bench_cuda - the kernels that a decode step consists of, in GB/s and percent of a streaming read.
 *
 * Each figure is the median of graph replays; weights and pages are many times the L2. Bytes are
 * what must be read: keys and values, or weights. Run with names (attn gemm prefill step grad) or
 * all. grad is what the plan search's way back through a layer consists of, in TFLOP/s.
 */
#include "cuda/cuda_backend.h"
#include "cuda/grad_cuda.h"
#include "engine/model/model.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define N_REPLAYS 11
#define MAX_BATCH 256

static struct cuda_backend *cb;
static double ceiling; /* bytes a second */

static void die(const char *what, const struct err *err)
{
    fprintf(stderr, "%s: %s\n", what, err->msg);
    exit(1);
}

static void check(cudaError_t rc, const char *what)
{
    if (rc != cudaSuccess) {
        fprintf(stderr, "%s: %s\n", what, cudaGetErrorString(rc));
        exit(1);
    }
}

static void *device_alloc(size_t bytes)
{
    struct err err = {0};
    void *p;

    if (cb->base.ops->alloc(&cb->base, &p, bytes, &err) < 0)
        die("alloc", &err);
    return p;
}

static void *device_copy(const void *host, size_t bytes)
{
    struct err err = {0};
    void *p = device_alloc(bytes);

    if (cb->base.ops->upload(&cb->base, p, host, bytes, &err) < 0)
        die("upload", &err);
    return p;
}

/* Random numbers: zeros would let the chip run cooler than it does on real data. */
static void *device_random(size_t n, uint32_t stream, float scale)
{
    struct err err = {0};
    void *p = device_alloc(n * 2);

    if (weight_random_launch(cb, p, (int64_t)n, DTYPE_BF16, 1, stream, scale, 0, &err) < 0)
        die("random", &err);
    return p;
}

typedef int work_fn(void *arg, struct err *err);

static int by_size(const void *a, const void *b)
{
    float x = *(const float *)a, y = *(const float *)b;

    return x < y ? -1 : x > y;
}

/* Median seconds of one replay of what `fn` queues. */
static double time_graph(work_fn *fn, void *arg)
{
    cudaGraph_t graph;
    cudaGraphExec_t exec;
    cudaEvent_t begin, end;
    float ms[N_REPLAYS];
    struct err err = {0};

    check(cudaDeviceSynchronize(), "setting up");
    if (fn(arg, &err) < 0) /* warm-up; takes what is taken at first use */
        die("bench", &err);
    check(cudaStreamSynchronize(cb->stream), "warm-up");
    check(cudaStreamBeginCapture(cb->stream, cudaStreamCaptureModeRelaxed), "capture");
    if (fn(arg, &err) < 0)
        die("bench", &err);
    check(cudaStreamEndCapture(cb->stream, &graph), "capture");
    check(cudaGraphInstantiate(&exec, graph, 0), "graph");
    check(cudaEventCreate(&begin), "event");
    check(cudaEventCreate(&end), "event");
    for (int i = 0; i < N_REPLAYS; i++) {
        check(cudaEventRecord(begin, cb->stream), "event");
        check(cudaGraphLaunch(exec, cb->stream), "launch");
        check(cudaEventRecord(end, cb->stream), "event");
        check(cudaEventSynchronize(end), "run");
        check(cudaEventElapsedTime(&ms[i], begin, end), "event");
    }
    cudaGraphExecDestroy(exec);
    cudaGraphDestroy(graph);
    cudaEventDestroy(begin);
    cudaEventDestroy(end);
    qsort(ms, N_REPLAYS, sizeof(ms[0]), by_size);
    return ms[N_REPLAYS / 2] * 1e-3;
}

static void report(const char *name, double bytes, double seconds)
{
    printf("%-44s %9.1f us %8.1f GB/s %6.1f %%\n", name, seconds * 1e6, bytes / seconds * 1e-9,
           bytes / seconds / ceiling * 100);
    fflush(stdout);
}

/* A KV pool for n sequences of `len` positions, dense heads; pages in order or scattered at random.
 */
struct bench_kv {
    struct kv_view view;
    struct step_batch batch;
    double bytes; /* of one layer's keys and values */
};

static struct bench_kv kv_new(int n, int len, int n_layers, int n_heads, int n_kv, int dim,
                              bool ragged, bool scattered)
{
    struct bench_kv b = {0};
    int per_head = (len + 63) / 64, heads = n * n_layers * n_kv;
    size_t n_pages = (size_t)heads * per_head, page_bytes = 2u * 64 * dim * 2;
    int32_t *table = malloc(n_pages * 4), *base = malloc((size_t)heads * 4);
    struct kv_geom *geom = malloc(sizeof(*geom) * heads);
    int32_t *window = malloc(4u * n * n_layers * n_heads), pos[MAX_BATCH], slot[MAX_BATCH];
    uint64_t state = 88172645463325252ull;

    for (size_t i = 0; i < n_pages; i++)
        table[i] = (int32_t)i;
    for (size_t i = n_pages; i > 1 && scattered; i--) {
        int32_t t = table[i - 1];
        size_t j;

        state ^= state << 13, state ^= state >> 7, state ^= state << 17;
        j = state % i;
        table[i - 1] = table[j];
        table[j] = t;
    }
    for (int i = 0; i < heads; i++) {
        base[i] = i * per_head;
        geom[i] = (struct kv_geom){0, KV_RING_DENSE, KV_MASK_TOKEN};
    }
    for (int i = 0; i < n * n_layers * n_heads; i++)
        window[i] = KV_WINDOW_ALL;
    for (int i = 0; i < n; i++) {
        slot[i] = i;
        pos[i] = ragged ? len / 2 + i * (len / 2 - 1) / n : len - 1;
        b.bytes += 4.0 * dim * n_kv * (pos[i] + 1);
    }
    b.view = (struct kv_view){.pages = device_random(n_pages * page_bytes / 2, 99, 1.0f),
                              .page_bytes = page_bytes,
                              .page_entries = 64,
                              .head_dim = dim,
                              .n_layers = n_layers,
                              .n_heads = n_heads,
                              .n_kv_heads = n_kv,
                              .dtype = DTYPE_BF16,
                              .page_table = device_copy(table, n_pages * 4),
                              .head_base = device_copy(base, (size_t)heads * 4),
                              .geom = device_copy(geom, sizeof(*geom) * heads),
                              .window = device_copy(window, 4u * n * n_layers * n_heads)};
    b.batch = (struct step_batch){.n_rows = n,
                                  .n_decode = n,
                                  .pos = device_copy(pos, 4u * n),
                                  .slot = device_copy(slot, 4u * n)};
    free(table);
    free(base);
    free(geom);
    free(window);
    return b;
}

static void kv_free(struct bench_kv *b)
{
    const void *all[] = {b->view.pages,  b->view.page_table, b->view.head_base, b->view.geom,
                         b->view.window, b->batch.pos,       b->batch.slot};

    for (size_t i = 0; i < sizeof(all) / sizeof(all[0]); i++)
        cudaFree((void *)all[i]);
}

struct attn_work {
    struct attn_args a;
    int n_calls;
};

static int run_attn(void *arg, struct err *err)
{
    struct attn_work *w = arg;
    int rc = 0;

    cb->base.ops->step_begin(&cb->base, w->a.batch, err);
    for (int i = 0; i < w->n_calls && rc == 0; i++)
        rc = cb->base.ops->attn(&cb->base, &w->a, err);
    cb->in_step = false; /* step_end() would wait, which a capture must not */
    return rc;
}

static void bench_attn(void)
{
    static const struct {
        int heads, kv, dim, batch, len;
        bool ragged;
    } shapes[] = {
        {32, 32, 128, 16, 4096, false}, {32, 32, 128, 32, 4096, false},
        {32, 32, 128, 64, 4096, false}, {32, 32, 128, 16, 8192, false},
        {32, 32, 128, 8, 16384, false}, {32, 32, 128, 1, 32768, false},
        {32, 32, 128, 1, 4096, false},  {32, 32, 128, 32, 4096, true},
        {32, 8, 128, 16, 4096, false},  {32, 8, 128, 32, 4096, false},
        {32, 8, 128, 64, 8192, false},  {32, 8, 128, 8, 16384, false},
        {32, 8, 128, 1, 32768, false},  {32, 16, 128, 32, 4096, false},
        {64, 8, 128, 32, 4096, false},  {32, 8, 64, 64, 4096, false},
        {12, 12, 64, 64, 4096, false},
    };

    for (size_t n = 0; n < 2 * sizeof(shapes) / sizeof(shapes[0]); n++) {
        size_t i = n / 2;
        bool scattered = n % 2;
        int dim = shapes[i].dim, heads = shapes[i].heads, batch = shapes[i].batch;
        struct bench_kv kv =
            kv_new(batch, shapes[i].len, 1, heads, shapes[i].kv, dim, shapes[i].ragged, scattered);
        size_t q_bytes = (size_t)batch * heads * dim * 2;
        struct attn_work one = {.a = {.batch = &kv.batch,
                                      .kv = &kv.view,
                                      .n_heads = heads,
                                      .n_kv_heads = shapes[i].kv,
                                      .head_dim = dim,
                                      .scale = 0.088f,
                                      .q = device_random(q_bytes / 2, 98, 1.0f),
                                      .out = device_alloc(q_bytes)},
                                .n_calls = 2};
        struct attn_work many = one;
        char name[96];
        double few_s, many_s;

        many.n_calls = 10; /* the difference leaves out the plan and the graph's own start */
        few_s = time_graph(run_attn, &one);
        many_s = time_graph(run_attn, &many);
        snprintf(name, sizeof(name), "attn_decode %d/%d d%d %d x %d%s%s", heads, shapes[i].kv, dim,
                 batch, shapes[i].len, shapes[i].ragged ? " ragged" : "",
                 scattered ? " scattered" : "");
        report(name, kv.bytes, (many_s - few_s) / 8);
        cudaFree((void *)one.a.q);
        cudaFree(one.a.out);
        kv_free(&kv);
    }
}

#define GEMM_LAYERS 8

struct gemm_work {
    struct gemm_args a[4 * GEMM_LAYERS];
    int n;
};

static int run_gemm(void *arg, struct err *err)
{
    struct gemm_work *w = arg;
    int rc = 0;

    for (int i = 0; i < w->n && rc == 0; i++)
        rc = cb->gemm_hopper ? cb->gemm_hopper(cb, &w->a[i], err)
                             : gemm_stream_launch(cb, &w->a[i], err);
    return rc;
}

static void bench_gemm(void)
{
    static const struct {
        const char *name;
        int n_out, n_in;
        enum gemm_epilogue epilogue;
    } kinds[] = {{"qkv", 12288, 4096, GEMM_STORE},
                 {"o", 4096, 4096, GEMM_RESIDUAL},
                 {"gate_up", 22016, 4096, GEMM_GATED},
                 {"down", 4096, 11008, GEMM_RESIDUAL},
                 {"head", 128256, 4096, GEMM_STORE}};
    static const int batches[] = {1, 8, 16, 32, 64, 128, 256};
    struct weight w[GEMM_LAYERS][5];
    void *x = device_random((size_t)MAX_BATCH * 22016, 97, 1.0f),
         *out = device_alloc((size_t)MAX_BATCH * 128256 * 2);
    struct err err = {0};

    for (int l = 0; l < GEMM_LAYERS; l++) {
        for (int k = 0; k < 5; k++) {
            if (cb->base.ops->weight_random(&cb->base, &w[l][k], kinds[k].n_out, kinds[k].n_in,
                                            DTYPE_BF16, true, 1, l * 4 + k, 0.02f, 0, &err) < 0)
                die("weights", &err);
        }
    }
    for (size_t b = 0; b < sizeof(batches) / sizeof(batches[0]); b++) {
        struct gemm_work all = {.n = 0};
        double all_bytes = 0;
        char name[96];

        for (int k = 0; k < 5; k++) {
            struct gemm_work one = {.n = GEMM_LAYERS};
            double bytes = 2.0 * kinds[k].n_out * kinds[k].n_in * GEMM_LAYERS;

            for (int l = 0; l < GEMM_LAYERS; l++)
                one.a[l] = (struct gemm_args){.x = x,
                                              .n_rows = batches[b],
                                              .w = &w[l][k],
                                              .out = out,
                                              .epilogue = kinds[k].epilogue};
            snprintf(name, sizeof(name), "gemm %s [%d,%d] batch %d", kinds[k].name, kinds[k].n_out,
                     kinds[k].n_in, batches[b]);
            report(name, bytes, time_graph(run_gemm, &one));
            all_bytes += k < 4 ? bytes : 0;
        }
        for (int l = 0; l < GEMM_LAYERS; l++) {
            for (int k = 0; k < 4; k++)
                all.a[all.n++] = (struct gemm_args){.x = x,
                                                    .n_rows = batches[b],
                                                    .w = &w[l][k],
                                                    .out = out,
                                                    .epilogue = kinds[k].epilogue};
        }
        snprintf(name, sizeof(name), "gemm qkv, o, gate_up, down batch %d", batches[b]);
        report(name, all_bytes, time_graph(run_gemm, &all));
    }
    for (int l = 0; l < GEMM_LAYERS; l++) {
        for (int k = 0; k < 5; k++)
            cb->base.ops->weight_free(&cb->base, &w[l][k]);
    }
    cudaFree(x);
    cudaFree(out);
}

static int run_prefill(void *arg, struct err *err)
{
    return attn_prefill_launch(cb, arg, err);
}

static int run_blas(void *arg, struct err *err)
{
    return cuda_blas_gemm(cb, arg, err);
}

static void *random_bf16(int64_t n, uint32_t stream)
{
    struct err err = {0};
    void *p = device_alloc((size_t)n * 2);

    if (weight_random_launch(cb, p, n, DTYPE_BF16, 1, stream, 1.0f, 0, &err) < 0)
        die("random", &err);
    return p;
}

/* A chunk of a prompt: n rows from pos0 on, before them a dense head or a sink and a ring. */
struct prefill_shape {
    int heads, kv, dim, n, pos0, n_sink, ring; /* ring 0: dense */
    enum kv_mask mask;
};

static void bench_prefill_attn(const struct prefill_shape *s)
{
    struct bench_kv kv = kv_new(1, s->pos0 + s->n, 1, s->heads, s->kv, s->dim, false, true);
    struct step_chunk chunk = {0, 0, s->n, s->pos0};
    struct kv_geom geom[MAX_BATCH];
    int32_t window[MAX_BATCH];
    int arch = cb->arch;
    int64_t n_pages = (int64_t)s->kv * ((s->pos0 + s->n + 63) / 64), pairs = 0;
    int64_t page = 2 * 64 * s->dim;
    struct attn_args a;
    struct err err = {0};
    char name[96];

    for (int i = 0; i < s->heads; i++) {
        geom[i] = (struct kv_geom){s->n_sink, s->ring ? s->ring : KV_RING_DENSE, s->mask};
        window[i] = s->ring ? s->ring : KV_WINDOW_ALL;
    }
    for (int i = s->pos0; i < s->pos0 + s->n; i++) {
        int lo = kv_window_start_prompt(geom[0], window[0], i);

        pairs += i + 1 - lo + (lo < s->n_sink ? lo : s->n_sink);
    }
    if (cb->base.ops->upload(&cb->base, (void *)kv.view.geom, geom, sizeof(*geom) * s->kv, &err) <
            0 ||
        cb->base.ops->upload(&cb->base, (void *)kv.view.window, window, 4u * s->heads, &err) < 0)
        die("upload", &err);
    if (weight_random_launch(cb, kv.view.pages, n_pages * page, DTYPE_BF16, 1, 5, 1.0f, 0, &err) <
        0)
        die("random", &err);
    kv.batch.n_rows = s->n;
    kv.batch.n_decode = 0;
    kv.batch.n_chunks = 1;
    kv.batch.chunks = device_copy(&chunk, sizeof(chunk));
    a = (struct attn_args){.batch = &kv.batch,
                           .kv = &kv.view,
                           .n_heads = s->heads,
                           .n_kv_heads = s->kv,
                           .head_dim = s->dim,
                           .scale = 0.088f,
                           .q = random_bf16((int64_t)s->n * s->heads * s->dim, 2),
                           .k_chunk = random_bf16((int64_t)s->n * s->kv * s->dim, 3),
                           .v_chunk = random_bf16((int64_t)s->n * s->kv * s->dim, 4),
                           .out = device_alloc((size_t)s->n * s->heads * s->dim * 2)};
    for (int old = 0; old < 2; old++) {
        double seconds;

        cb->arch = old ? 80 : arch;
        seconds = time_graph(run_prefill, &a);
        snprintf(name, sizeof(name), "attn_prefill%s %d/%d d%d, %d rows from %d",
                 old ? " mma.sync" : "", s->heads, s->kv, s->dim, s->n, s->pos0);
        if (s->ring)
            snprintf(name + strlen(name), sizeof(name) - strlen(name), ", %s %d + %d",
                     s->mask == KV_MASK_BLOCK ? "block" : "token", s->n_sink, s->ring);
        printf("%-64s %9.1f us %8.1f TFLOP/s\n", name, seconds * 1e6,
               4.0 * (double)pairs * s->heads * s->dim / seconds * 1e-12);
        fflush(stdout);
    }
    cb->arch = arch;
    cudaFree((void *)a.q);
    cudaFree((void *)a.k_chunk);
    cudaFree((void *)a.v_chunk);
    cudaFree(a.out);
    cudaFree((void *)kv.batch.chunks);
    kv_free(&kv);
}

static void bench_prefill(void)
{
    static const struct prefill_shape shapes[] = {
        {32, 32, 128, 4096, 0, 0, 0, KV_MASK_TOKEN},
        {32, 32, 128, 8192, 0, 0, 0, KV_MASK_TOKEN},
        {32, 32, 128, 2048, 0, 0, 0, KV_MASK_TOKEN},
        {32, 8, 128, 4096, 0, 0, 0, KV_MASK_TOKEN},
        {32, 8, 128, 8192, 0, 0, 0, KV_MASK_TOKEN},
        {32, 32, 128, 2048, 2048, 0, 0, KV_MASK_TOKEN},
        {32, 8, 128, 2048, 6144, 0, 0, KV_MASK_TOKEN},
        {32, 8, 128, 512, 7680, 0, 0, KV_MASK_TOKEN},
        {32, 8, 128, 2000, 6100, 0, 0, KV_MASK_TOKEN},
        {32, 32, 128, 2048, 6144, 64, 1984, KV_MASK_BLOCK},
        {32, 32, 128, 2048, 6144, 4, 2048, KV_MASK_TOKEN},
        {32, 8, 64, 4096, 0, 0, 0, KV_MASK_TOKEN},
        {32, 32, 64, 8192, 0, 0, 0, KV_MASK_TOKEN},
    };
    struct weight w;
    struct gemm_args g;
    struct err err = {0};
    double s;

    for (size_t i = 0; i < sizeof(shapes) / sizeof(shapes[0]); i++)
        bench_prefill_attn(&shapes[i]);
    if (cb->base.ops->weight_random(&cb->base, &w, 11008, 4096, DTYPE_BF16, true, 1, 1, 0.02f, 0,
                                    &err) < 0)
        die("weights", &err);
    g = (struct gemm_args){.x = random_bf16(2048 * 4096, 6),
                           .n_rows = 2048,
                           .w = &w,
                           .out = device_alloc((size_t)2048 * 11008 * 2),
                           .epilogue = GEMM_STORE};
    s = time_graph(run_blas, &g);
    printf("%-64s %9.1f us %8.1f TFLOP/s\n", "cublasLt [11008,4096] 2048 rows", s * 1e6,
           2.0 * 2048 * 11008 * 4096 / s * 1e-12);
    fflush(stdout);
    cudaFree((void *)g.x);
    cudaFree(g.out);
    cb->base.ops->weight_free(&cb->base, &w);
}

struct step_work {
    struct model *model;
    struct bench_kv kv;
};

static int run_step(void *arg, struct err *err)
{
    struct step_work *w = arg;
    int rc;

    cb->base.ops->step_begin(&cb->base, &w->kv.batch, err);
    rc = model_forward(w->model, &w->kv.batch, &w->kv.view, NULL, err);
    cb->in_step = false;
    return rc;
}

/* A whole decode step of a Llama-2-7B shape: weights and KV over the ceiling is the limit. */
static void bench_step(void)
{
    static const int shapes[][2] = {{1, 1024}, {8, 4096}, {16, 4096}, {32, 4096}};
    struct model_config c = {.model_type = "llama",
                             .vocab_size = 32000,
                             .max_seq_len = 4096,
                             .stack = {.dim = 4096,
                                       .n_layers = 32,
                                       .n_heads = 32,
                                       .n_kv_heads = 32,
                                       .head_dim = 128,
                                       .ffn_dim = 11008,
                                       .norm_eps = 1e-5f,
                                       .act = ACT_SILU}};
    struct model_params params = {.random_weights = true,
                                  .seed = 1,
                                  .dtype = DTYPE_BF16,
                                  .max_rows = MAX_BATCH,
                                  .max_logits = MAX_BATCH};
    struct step_work w = {0};
    struct err err = {0};
    int32_t rows[MAX_BATCH], tokens[MAX_BATCH];
    double weights;

    c.stack.rope.kind = ROPE_DEFAULT;
    c.stack.rope.theta = 10000;
    c.stack.rope.factor = 1;
    c.stack.rope.dim = 128;
    for (int i = 0; i < MAX_BATCH; i++)
        rows[i] = tokens[i] = i;
    for (int i = 0; i < c.stack.n_layers; i++)
        c.window[i] = KV_WINDOW_ALL;
    if (model_open(&w.model, &c, &cb->base, &params, &err) < 0)
        die("model", &err);
    weights = (double)model_weight_bytes(w.model) - 2.0 * c.vocab_size * c.stack.dim;
    for (size_t n = 0; n < 2 * sizeof(shapes) / sizeof(shapes[0]); n++) {
        size_t i = n / 2;
        char name[96];

        w.kv = kv_new(shapes[i][0], shapes[i][1], c.stack.n_layers, 32, 32, 128, false, n % 2);
        w.kv.batch.n_logits = shapes[i][0];
        w.kv.batch.logit_row = device_copy(rows, sizeof(rows));
        w.kv.batch.token = device_copy(tokens, sizeof(tokens));
        snprintf(name, sizeof(name), "step 7B %d x %d%s", shapes[i][0], shapes[i][1],
                 n % 2 ? " scattered" : "");
        report(name, weights + w.kv.bytes * c.stack.n_layers, time_graph(run_step, &w));
        kv_free(&w.kv);
    }
    model_close(w.model);
}

/* ---- the way back ---- */

#define GRAD_ROWS  8192
#define GRAD_DIM   4096
#define GRAD_FFN   11008
#define GRAD_HEADS 32

/* A layer of a Llama-2-7B shape, and one of its ops. */
struct grad_work {
    struct grad *g;
    struct grad_attn_kernel_args attn;
    struct grad_ffn_args ffn;
    struct grad_attn_out_args out;
    struct grad_attn_in_args in;
    enum { GRAD_ROWS_OP, GRAD_KEYS_OP, GRAD_FFN_OP, GRAD_OUT_OP, GRAD_IN_OP } op;
};

static int run_grad(void *arg, struct err *err)
{
    struct grad_work *w = arg;

    switch (w->op) {
    case GRAD_ROWS_OP:
        return grad_attn_rows_launch(cb, &w->attn, err);
    case GRAD_KEYS_OP:
        return grad_attn_keys_launch(cb, &w->attn, err);
    case GRAD_FFN_OP:
        return w->g->ops->ffn(w->g, &w->ffn, err);
    case GRAD_OUT_OP:
        return w->g->ops->attn_out(w->g, &w->out, err);
    case GRAD_IN_OP:
        break;
    }
    return w->g->ops->attn_in(w->g, &w->in, err);
}

static void report_flops(const char *name, double flops, double seconds)
{
    printf("%-48s %9.3f ms %8.1f TFLOP/s\n", name, seconds * 1e3, flops / seconds * 1e-12);
}

static struct weight random_weight(int n_out, int n_in, bool is_matrix, uint32_t stream)
{
    struct weight w;
    struct err err = {0};

    if (cb->base.ops->weight_random(&cb->base, &w, n_out, n_in, is_matrix ? DTYPE_BF16 : DTYPE_F32,
                                    is_matrix, 1, stream, is_matrix ? 0.02f : 0.1f,
                                    is_matrix ? 0.0f : 1.0f, &err) < 0)
        die("weights", &err);
    return w;
}

/* FLOPs are those that gradients need: products that are done twice count once. */
static void time_grad(struct grad_work *w, int n)
{
    double pairs = 0.5 * n * (n + 1.0) * GRAD_HEADS * 128;
    double wide = (double)n * GRAD_DIM * GRAD_FFN, square = (double)n * GRAD_DIM * GRAD_DIM;
    char name[96];
    struct {
        const char *name;
        double flops;
    } const ops[] = {{"grad_attn_rows", 10 * pairs},
                     {"grad_attn_keys", 8 * pairs},
                     {"grad ffn", 6 * wide},
                     {"grad attn_out", 2 * square},
                     {"grad attn_in", 6 * square}};

    w->attn.n_rows = w->ffn.n_rows = w->out.n_rows = w->in.n_rows = n;
    w->attn.n_blocks = (n + GRAD_BLOCK - 1) / GRAD_BLOCK;
    w->attn.n_pad = w->attn.n_blocks * GRAD_BLOCK;
    for (int op = GRAD_ROWS_OP; op <= GRAD_IN_OP; op++) {
        w->op = op;
        snprintf(name, sizeof(name), "%s, %d rows", ops[op].name, n);
        report_flops(name, ops[op].flops, time_graph(run_grad, w));
    }
    w->ffn.wide = NULL;
    w->op = GRAD_FFN_OP;
    snprintf(name, sizeof(name), "grad ffn, its product once more, %d rows", n);
    report_flops(name, 6 * wide, time_graph(run_grad, w));
}

static void bench_grad(void)
{
    struct cuda_backend *others = cb;
    struct backend_params params = {.device = "cuda",
                                    .dtype = DTYPE_BF16,
                                    .max_rows = GRAD_ROWS,
                                    .max_dim = 2 * GRAD_FFN,
                                    .max_vocab = 32000,
                                    .max_logits = 64,
                                    .max_positions = GRAD_ROWS};
    struct grad_params grad = {.max_rows = GRAD_ROWS,
                               .max_dim = 2 * GRAD_FFN,
                               .n_heads = GRAD_HEADS,
                               .n_kv_heads = GRAD_HEADS,
                               .head_dim = 128,
                               .n_layers = 64,
                               .dim = GRAD_DIM,
                               .ffn_dim = GRAD_FFN,
                               .vocab_size = 32000};
    struct backend *be;
    struct grad_work w = {0};
    struct weight gain, wqkv, wo, w_in, w_down;
    struct cuda_grad *g;
    size_t x = (size_t)GRAD_ROWS * GRAD_DIM;
    void *act[8], *wide;
    float *dx, inv_freq[64];
    struct err err = {0};

    if (cuda_backend_open(&be, &params, &err) < 0)
        die("backend", &err);
    cb = (struct cuda_backend *)be;
    if (cuda_grad_open(&w.g, be, &grad, &err) < 0)
        die("grad", &err);
    g = (struct cuda_grad *)w.g;
    for (int i = 0; i < 8; i++)
        act[i] = device_random(x, (uint32_t)i, i < 2 ? 2.0f : 1.0f);
    wide = device_random((size_t)GRAD_ROWS * 2 * GRAD_FFN, 9, 1.0f);
    dx = device_alloc(x * sizeof(float));
    check(cudaMemset(dx, 0, x * sizeof(float)), "dx");
    for (int i = 0; i < 64; i++)
        inv_freq[i] = powf(10000.0f, -(float)i / 64);
    gain = random_weight(GRAD_DIM, 1, false, 20);
    wqkv = random_weight(3 * GRAD_DIM, GRAD_DIM, true, 21);
    wo = random_weight(GRAD_DIM, GRAD_DIM, true, 22);
    w_in = random_weight(2 * GRAD_FFN, GRAD_DIM, true, 23);
    w_down = random_weight(GRAD_DIM, GRAD_FFN, true, 24);
    w.attn = (struct grad_attn_kernel_args){.q = act[0],
                                            .k = act[1],
                                            .v = act[2],
                                            .da = act[3],
                                            .dq = act[4],
                                            .dk = act[5],
                                            .dv = act[6],
                                            .lse = g->lse,
                                            .dot = g->dot,
                                            .cells = g->cells,
                                            .sums = g->sums,
                                            .n_heads = GRAD_HEADS,
                                            .n_kv_heads = GRAD_HEADS,
                                            .head_dim = 128,
                                            .window = KV_WINDOW_ALL,
                                            .scale = 0.0883883f};
    w.ffn = (struct grad_ffn_args){.dim = GRAD_DIM,
                                   .ffn_dim = GRAD_FFN,
                                   .norm = {.gain = &gain, .eps = 1e-5f},
                                   .act = ACT_SILU,
                                   .gated = true,
                                   .w_in = &w_in,
                                   .w_down = &w_down,
                                   .x = act[7],
                                   .dx = dx};
    w.out = (struct grad_attn_out_args){
        .dim = GRAD_DIM, .n_in = GRAD_DIM, .wo = &wo, .dx = dx, .da = act[3]};
    w.in = (struct grad_attn_in_args){.dim = GRAD_DIM,
                                      .n_heads = GRAD_HEADS,
                                      .n_kv_heads = GRAD_HEADS,
                                      .head_dim = 128,
                                      .norm = {.gain = &gain, .eps = 1e-5f},
                                      .wqkv = &wqkv,
                                      .rope_dim = 128,
                                      .inv_freq = device_copy(inv_freq, sizeof(inv_freq)),
                                      .rope_scale = 1,
                                      .x = act[7],
                                      .dq = act[4],
                                      .dk = act[5],
                                      .dv = act[6],
                                      .dx = dx};
    for (int n = 2048; n <= GRAD_ROWS; n *= 2) {
        w.ffn.wide = wide;
        time_grad(&w, n);
    }
    w.g->ops->close(w.g);
    be->ops->close(be);
    cb = others;
}

int main(int argc, char **argv)
{
    static const struct {
        const char *name;
        void (*fn)(void);
    } all[] = {{"attn", bench_attn},
               {"gemm", bench_gemm},
               {"prefill", bench_prefill},
               {"step", bench_step},
               {"grad", bench_grad}};
    struct backend_params params = {.device = "cuda",
                                    .dtype = DTYPE_BF16,
                                    .max_rows = 4096,
                                    .max_dim = 22016,
                                    .max_vocab = 32000,
                                    .max_logits = MAX_BATCH,
                                    .max_positions = 32768};
    struct backend *be;
    struct err err = {0};
    double registers, bulk;

    if (cuda_backend_open(&be, &params, &err) < 0) {
        fprintf(stderr, "SKIP: %s\n", err.msg);
        return 77;
    }
    cb = (struct cuda_backend *)be;
    printf("%s\n", be->description);
    if (cuda_read_bandwidth(cb, (size_t)4 << 30, &registers, &bulk, &err) < 0)
        die("read", &err);
    ceiling = registers > bulk ? registers : bulk;
    printf("streaming read: %.1f GB/s through registers, %.1f by bulk copies\n", registers * 1e-9,
           bulk * 1e-9);
    for (size_t i = 0; i < sizeof(all) / sizeof(all[0]); i++) {
        bool wanted = argc < 2;

        for (int j = 1; j < argc; j++)
            wanted = wanted || strcmp(argv[j], all[i].name) == 0;
        if (wanted)
            all[i].fn();
    }
    be->ops->close(be);
    return 0;
}
