/*
 * bench_kernels - the CPU backend's ops at the shapes of a 1.1 B Llama (16 layers, 2048 wide, FFN
 * 8192, 32 heads on 8 KV heads of 64, vocabulary 32000), against the memory's speed of the same
 * run.
 *
 * Several layers' weights take turns, so that no cache holds them. Times are medians; the read
 * bandwidth is measured before and after and the better one counts, which makes the percentages
 * the harder ones.
 */
#include "tests/bench/bench.h"

#include "base/clock.h"
#include "base/rng.h"
#include "engine/backend.h"
#include "tests/bench/read_speed.h"

#include <errno.h>
#include <getopt.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define DIM        2048
#define FFN_DIM    8192
#define N_HEADS    32
#define N_KV_HEADS 8
#define HEAD_DIM   64
#define VOCAB      32000
#define VOCAB_BIG  128256
#define N_LAYERS   16 /* of the model; fewer are held in memory */
#define QKV_WIDTH  ((N_HEADS + 2 * N_KV_HEADS) * HEAD_DIM)
#define MAX_ROWS   512
#define CONTEXT    4096
#define MAX_REPS   400

struct layer {
    struct weight gain, wqkv, wo, w_in, w_down;
};

struct bench_state {
    struct backend *be;
    struct read_speed *read;
    int n_held;
    struct layer layer[N_LAYERS];
    struct weight head;
    enum dtype dtype;
    float inv_freq[HEAD_DIM / 2];
    float *x, *q, *out, *logits;
    char *k, *v;
    struct kv_view kv;
    double read_bw, seconds;
    FILE *csv;
    /* Of the step being timed. */
    struct step_batch batch;
    struct step_chunk chunk;
    int32_t pos[MAX_ROWS], slot[MAX_ROWS], logit_row[MAX_ROWS];
    int turn;
};

static void die(const struct err *err)
{
    fprintf(stderr, "spand-bench kernels: %s\n", err->msg);
    exit(1);
}

/* ---- one line of the table ---- */

typedef void bench_op_fn(struct bench_state *s);

struct measured {
    double us, bytes, flops;
};

static double cost_of(const struct backend *be, bool flops)
{
    double sum = 0.0;

    for (int i = 0; i < OP_COUNT; i++)
        sum += flops ? be->cost[i].flops : be->cost[i].bytes;
    return sum;
}

static struct measured measure(struct bench_state *s, bench_op_fn *op)
{
    static double us[MAX_REPS];
    double bytes, flops;
    int64_t start;
    int n = 0;

    op(s); /* warm-up */
    bytes = cost_of(s->be, false);
    flops = cost_of(s->be, true);
    start = clock_ns();
    while (n < MAX_REPS && (n < 5 || (double)(clock_ns() - start) < s->seconds * 1e9)) {
        int64_t t0 = clock_ns();

        op(s);
        us[n++] = (double)(clock_ns() - t0) * 1e-3;
    }
    bytes = (cost_of(s->be, false) - bytes) / n;
    flops = (cost_of(s->be, true) - flops) / n;
    return (struct measured){.us = bench_median(us, n), .bytes = bytes, .flops = flops};
}

static struct measured report(struct bench_state *s, const char *name, const char *shape,
                              bench_op_fn *op)
{
    struct measured m = measure(s, op);
    double gbs = m.bytes / m.us * 1e-3, gflops = m.flops / m.us * 1e-3;

    printf("%-14s %-26s %11.1f %8.2f %6.1f %10.1f\n", name, shape, m.us, gbs,
           100.0 * gbs / s->read_bw, gflops);
    fflush(stdout);
    if (s->csv)
        fprintf(s->csv, "%s,%s,%.3f,%.0f,%.4f,%.2f,%.0f,%.2f\n", name, shape, m.us, m.bytes, gbs,
                100.0 * gbs / s->read_bw, m.flops, gflops);
    return m;
}

/* ---- the ops ---- */

static void rows_set(struct bench_state *s, int n_rows, bool decode, int pos)
{
    for (int i = 0; i < n_rows; i++) {
        s->pos[i] = decode ? pos : pos + i;
        s->slot[i] = decode ? i % 16 : 0;
        s->logit_row[i] = i;
    }
    s->chunk = (struct step_chunk){.slot = 0, .n_rows = n_rows, .pos0 = pos};
    s->batch = (struct step_batch){.n_rows = n_rows,
                                   .n_decode = decode ? n_rows : 0,
                                   .n_chunks = decode ? 0 : 1,
                                   .n_logits = n_rows,
                                   .pos = s->pos,
                                   .slot = s->slot,
                                   .chunks = &s->chunk,
                                   .logit_row = s->logit_row};
}

static void run_attn_in(struct bench_state *s)
{
    struct layer *l = &s->layer[s->turn++ % s->n_held];
    struct err err = {0};

    s->be->ops->step_begin(s->be, &s->batch, &err);
    s->be->ops->attn_in(s->be,
                        &(struct attn_in_args){.batch = &s->batch,
                                               .kv = &s->kv,
                                               .dim = DIM,
                                               .n_heads = N_HEADS,
                                               .n_kv_heads = N_KV_HEADS,
                                               .head_dim = HEAD_DIM,
                                               .x = s->x,
                                               .norm = {.gain = &l->gain, .eps = 1e-5f},
                                               .wqkv = &l->wqkv,
                                               .rope_dim = HEAD_DIM,
                                               .inv_freq = s->inv_freq,
                                               .rope_scale = 1.0f,
                                               .q = s->q,
                                               .k_chunk = s->k,
                                               .v_chunk = s->v},
                        &err);
}

static void run_attn_out(struct bench_state *s)
{
    struct layer *l = &s->layer[s->turn++ % s->n_held];
    struct err err = {0};

    s->be->ops->attn_out(s->be,
                         &(struct attn_out_args){.batch = &s->batch,
                                                 .dim = DIM,
                                                 .n_in = N_HEADS * HEAD_DIM,
                                                 .a = s->q,
                                                 .wo = &l->wo,
                                                 .x = s->x},
                         &err);
}

static void run_ffn(struct bench_state *s)
{
    struct layer *l = &s->layer[s->turn++ % s->n_held];
    struct err err = {0};

    s->be->ops->ffn(s->be,
                    &(struct ffn_args){.batch = &s->batch,
                                       .dim = DIM,
                                       .ffn_dim = FFN_DIM,
                                       .norm = {.gain = &l->gain, .eps = 1e-5f},
                                       .gated = true,
                                       .w_in = &l->w_in,
                                       .w_down = &l->w_down,
                                       .x = s->x},
                    &err);
}

static void run_logits(struct bench_state *s)
{
    struct err err = {0};

    s->be->ops->logits(s->be,
                       &(struct logits_args){.batch = &s->batch,
                                             .dim = DIM,
                                             .vocab_size = VOCAB,
                                             .norm = {.gain = &s->layer[0].gain, .eps = 1e-5f},
                                             .head = &s->head,
                                             .x = s->x,
                                             .out = s->logits},
                       &err);
}

static void run_attn(struct bench_state *s)
{
    struct err err = {0};

    s->be->ops->attn(s->be,
                     &(struct attn_args){.batch = &s->batch,
                                         .kv = &s->kv,
                                         .n_heads = N_HEADS,
                                         .n_kv_heads = N_KV_HEADS,
                                         .head_dim = HEAD_DIM,
                                         .scale = 0.125f,
                                         .q = s->q,
                                         .k_chunk = s->k,
                                         .v_chunk = s->v,
                                         .out = s->out},
                     &err);
}

/* All of one layer: attn_in, attn, attn_out, ffn. */
static void run_layer(struct bench_state *s)
{
    run_attn_in(s);
    s->turn--;
    run_attn(s);
    run_attn_out(s);
    s->turn--;
    run_ffn(s);
}

static struct sample_row sample_setting;
static int sample_vocab;

static void run_sample(struct bench_state *s)
{
    struct sample_result res;
    struct err err = {0};

    sample_setting.position++;
    s->be->ops->sample(s->be,
                       &(struct sample_args){.n_rows = 1,
                                             .vocab_size = sample_vocab,
                                             .logits = s->logits,
                                             .rows = &sample_setting,
                                             .result = &res},
                       &err);
}

/* ---- set-up ---- */

static void weight_make(struct bench_state *s, struct weight *w, int n_out, int n_in, int stream)
{
    struct err err = {0};

    if (s->be->ops->weight_random(s->be, w, n_out, n_in, s->dtype, n_in > 1, 1, (uint32_t)stream,
                                  n_in > 1 ? 0.03f : 0.5f, n_in > 1 ? 0.0f : 1.0f, &err) < 0)
        die(&err);
}

static void *memory(struct bench_state *s, size_t bytes)
{
    struct err err = {0};
    void *p = NULL;

    if (s->be->ops->alloc(s->be, &p, bytes, &err) < 0)
        die(&err);
    memset(p, 0, bytes);
    return p;
}

/* 16 slots of CONTEXT positions for one layer, pages shuffled among slots and heads. */
static void kv_make(struct bench_state *s)
{
    int per_head = CONTEXT / 64 + 1, n_lists = 16 * N_KV_HEADS, n_pages = n_lists * per_head;
    int32_t *table = memory(s, sizeof(int32_t) * (size_t)n_pages);
    int32_t *base = memory(s, sizeof(int32_t) * (size_t)n_lists);
    int32_t *window = memory(s, sizeof(int32_t) * 16 * N_HEADS);
    struct kv_geom *geom = memory(s, sizeof(*geom) * (size_t)n_lists);
    size_t page_bytes = 2 * 64 * HEAD_DIM * dtype_bytes(DTYPE_BF16);
    uint16_t *pages = memory(s, (size_t)n_pages * page_bytes);

    for (int i = 0; i < n_pages; i++)
        table[i] = (int32_t)((int64_t)i * 7919 % n_pages);
    for (int i = 0; i < n_lists; i++) {
        base[i] = i * per_head;
        geom[i] = (struct kv_geom){.ring = KV_RING_DENSE};
    }
    for (int i = 0; i < 16 * N_HEADS; i++)
        window[i] = KV_WINDOW_ALL;
    for (size_t i = 0; i < (size_t)n_pages * page_bytes / 2; i++)
        pages[i] = f32_to_bf16((float)(i * 2654435761u % 1000) * 0.002f - 1.0f);
    s->kv = (struct kv_view){.pages = pages,
                             .page_bytes = page_bytes,
                             .page_entries = 64,
                             .head_dim = HEAD_DIM,
                             .n_layers = 1,
                             .n_heads = N_HEADS,
                             .n_kv_heads = N_KV_HEADS,
                             .dtype = DTYPE_BF16,
                             .page_table = table,
                             .head_base = base,
                             .geom = geom,
                             .window = window};
}

static void state_make(struct bench_state *s)
{
    for (int i = 0; i < s->n_held; i++) {
        struct layer *l = &s->layer[i];

        weight_make(s, &l->gain, DIM, 1, 10 * i);
        weight_make(s, &l->wqkv, QKV_WIDTH, DIM, 10 * i + 1);
        weight_make(s, &l->wo, DIM, N_HEADS * HEAD_DIM, 10 * i + 2);
        weight_make(s, &l->w_in, 2 * FFN_DIM, DIM, 10 * i + 3);
        weight_make(s, &l->w_down, DIM, FFN_DIM, 10 * i + 4);
    }
    weight_make(s, &s->head, VOCAB, DIM, 1000);
    for (int i = 0; i < HEAD_DIM / 2; i++)
        s->inv_freq[i] = powf(10000.0f, -2.0f * (float)i / HEAD_DIM);
    s->x = memory(s, sizeof(float) * MAX_ROWS * DIM);
    s->q = memory(s, sizeof(float) * MAX_ROWS * DIM);
    s->out = memory(s, sizeof(float) * MAX_ROWS * DIM);
    s->logits = memory(s, sizeof(float) * 32 * VOCAB_BIG);
    s->k = memory(s, 4 * MAX_ROWS * N_KV_HEADS * HEAD_DIM);
    s->v = memory(s, 4 * MAX_ROWS * N_KV_HEADS * HEAD_DIM);
    for (int i = 0; i < MAX_ROWS * DIM; i++) {
        s->x[i] = rng_f32(3, 0, (uint64_t)i) - 0.5f;
        s->q[i] = rng_f32(3, 1, (uint64_t)i) - 0.5f;
    }
    kv_make(s);
}

/* ---- the run ---- */

static void bench_decode(struct bench_state *s)
{
    static const int rows[] = {1, 2, 4, 8, 16};
    char shape[64];

    for (size_t i = 0; i < sizeof(rows) / sizeof(rows[0]); i++) {
        struct measured layer, head;

        snprintf(shape, sizeof(shape), "decode %d", rows[i]);
        rows_set(s, rows[i], true, 64);
        report(s, "attn_in", shape, run_attn_in);
        report(s, "attn_out", shape, run_attn_out);
        report(s, "ffn", shape, run_ffn);
        head = report(s, "logits", shape, run_logits);
        layer = report(s, "layer", shape, run_layer);
        layer.us = N_LAYERS * layer.us + head.us;
        layer.bytes = N_LAYERS * layer.bytes + head.bytes;
        printf("%-14s %-26s %11.1f %8.2f %6.1f %10.1f tok/s\n", "model", shape, layer.us,
               layer.bytes / layer.us * 1e-3, 100.0 * layer.bytes / layer.us * 1e-3 / s->read_bw,
               rows[i] / layer.us * 1e6);
    }
}

static void bench_attention(struct bench_state *s)
{
    static const int rows[] = {1, 4, 16};
    char shape[64];

    for (size_t i = 0; i < sizeof(rows) / sizeof(rows[0]); i++) {
        snprintf(shape, sizeof(shape), "decode %d, context %d", rows[i], CONTEXT);
        rows_set(s, rows[i], true, CONTEXT - 1);
        report(s, "attn", shape, run_attn);
    }
    rows_set(s, MAX_ROWS, false, 0);
    report(s, "attn", "prompt 512 at 0", run_attn);
    rows_set(s, MAX_ROWS, false, CONTEXT - MAX_ROWS);
    report(s, "attn", "prompt 512 at 3584", run_attn);
}

static void bench_prompt(struct bench_state *s)
{
    static const int rows[] = {17, 128, 512};
    char shape[64];

    for (size_t i = 0; i < sizeof(rows) / sizeof(rows[0]); i++) {
        struct measured layer;

        snprintf(shape, sizeof(shape), "prompt %d", rows[i]);
        rows_set(s, rows[i], false, 0);
        report(s, "attn_in", shape, run_attn_in);
        report(s, "attn_out", shape, run_attn_out);
        report(s, "ffn", shape, run_ffn);
        layer = report(s, "layer", shape, run_layer);
        printf("%-14s %-26s %11.1f %8s %6s %10.1f tok/s\n", "model", shape, N_LAYERS * layer.us, "",
               "", rows[i] / (N_LAYERS * layer.us) * 1e6);
    }
}

static void bench_sampling(struct bench_state *s)
{
    static const int vocabs[] = {VOCAB, VOCAB_BIG};
    char shape[64];

    for (int v = 0; v < 2; v++) {
        sample_vocab = vocabs[v];
        for (int i = 0; i < sample_vocab; i++) { /* roughly normal, with a few tokens far out */
            float z = 0.0f;

            for (int j = 0; j < 4; j++)
                z += rng_f32(5, (uint32_t)j, (uint64_t)i) - 0.5f;
            s->logits[i] = 4.0f * z + (i % 5000 == 17 ? 9.0f : 0.0f);
        }
        for (int kind = 0; kind < 4; kind++) {
            static const char *const names[] = {"greedy", "temperature", "top_p 0.95", "top_k 50"};

            sample_setting = (struct sample_row){.temperature = kind == 0   ? 0.0f
                                                                : kind == 1 ? 1.0f
                                                                            : 0.8f,
                                                 .top_p = kind == 2 ? 0.95f : 1.0f,
                                                 .top_k = kind == 3 ? 50 : 0,
                                                 .repetition_penalty = 1.0f,
                                                 .forced_token = -1};
            snprintf(shape, sizeof(shape), "%d %s", sample_vocab, names[kind]);
            report(s, "sample", shape, run_sample);
        }
    }
}

/* ---- flags ---- */

struct options {
    int n_threads, n_layers;
    bool pin;
    double seconds;
    enum dtype dtype;
    const char *only, *csv;
};

static const char usage[] =
    "usage: spand-bench kernels [--threads N] [--dtype bf16|f16|f32] [--layers N]\n"
    "       [--pin true|false] [--seconds S] [--only read|decode|attn|prompt|sample]\n"
    "       [--csv FILE]\n";

/* The index of text in a list that NULL ends, or -1. */
static int word_of(const char *text, const char *const *words)
{
    for (int i = 0; words[i]; i++) {
        if (strcmp(text, words[i]) == 0)
            return i;
    }
    return -1;
}

static bool parse_number(const char *text, double min, double max, double *out)
{
    char *end;

    errno = 0;
    *out = strtod(text, &end);
    return !errno && end != text && !*end && *out >= min && *out <= max;
}

static bool parse_int(const char *text, int min, int max, int *out)
{
    double v;

    if (!parse_number(text, min, max, &v) || v != floor(v))
        return false;
    *out = (int)v;
    return true;
}

static bool option_set(struct options *opt, const char *name, const char *value)
{
    static const char *const dtypes[] = {"f32", "bf16", "f16", NULL}; /* as enum dtype */
    static const char *const bools[] = {"false", "true", NULL};
    static const char *const parts[] = {"read", "decode", "attn", "prompt", "sample", NULL};
    int word;

    if (strcmp(name, "threads") == 0)
        return parse_int(value, 0, 1024, &opt->n_threads);
    if (strcmp(name, "layers") == 0)
        return parse_int(value, 1, N_LAYERS, &opt->n_layers);
    if (strcmp(name, "seconds") == 0)
        return parse_number(value, 0, 3600, &opt->seconds);
    if (strcmp(name, "csv") == 0)
        return *(opt->csv = value) != '\0';
    if (strcmp(name, "only") == 0)
        return word_of(opt->only = value, parts) >= 0;
    word = word_of(value, strcmp(name, "pin") == 0 ? bools : dtypes);
    if (word < 0)
        return false;
    if (strcmp(name, "pin") == 0)
        opt->pin = word == 1;
    else
        opt->dtype = (enum dtype)word;
    return true;
}

/* 0, 1 when help was asked for, negative for wrong usage. */
static int options_parse(struct options *opt, int argc, char **argv)
{
    static const struct option flags[] = {{"threads", required_argument, NULL, 'v'},
                                          {"dtype", required_argument, NULL, 'v'},
                                          {"layers", required_argument, NULL, 'v'},
                                          {"pin", required_argument, NULL, 'v'},
                                          {"seconds", required_argument, NULL, 'v'},
                                          {"only", required_argument, NULL, 'v'},
                                          {"csv", required_argument, NULL, 'v'},
                                          {"help", no_argument, NULL, 'h'},
                                          {NULL, 0, NULL, 0}};
    int flag, at;

    *opt =
        (struct options){.n_layers = 4, .seconds = 1, .dtype = DTYPE_BF16, .only = "", .csv = NULL};
    while ((flag = getopt_long(argc, argv, "", flags, &at)) != -1) {
        if (flag == 'h')
            return 1;
        if (flag != 'v')
            return -1;
        if (!option_set(opt, flags[at].name, optarg)) {
            fprintf(stderr, "spand-bench kernels: --%s does not take \"%s\"\n", flags[at].name,
                    optarg);
            return -1;
        }
    }
    if (optind < argc)
        fprintf(stderr, "spand-bench kernels: \"%s\" is no flag\n", argv[optind]);
    return optind < argc ? -1 : 0;
}

/* ---- the bench ---- */

static void bench_bandwidth(struct bench_state *s, const char *when)
{
    struct err err = {0};
    struct read_speed *one = NULL;
    double bw1, bw;

    if (read_speed_open(&one, 1, false, &err) < 0)
        die(&err);
    bw1 = read_speed_measure(one);
    read_speed_close(one);
    bw = read_speed_measure(s->read);
    printf("read bandwidth %s: %.2f GB/s on 1 thread, %.2f on %d\n", when, bw1, bw,
           read_speed_threads(s->read));
    if (s->csv)
        fprintf(s->csv, "read,%s,,,%.4f,,,\n", when, bw);
    if (bw > s->read_bw)
        s->read_bw = bw;
}

static void bench_parts(struct bench_state *s, const char *only)
{
    if (!*only || strcmp(only, "decode") == 0)
        bench_decode(s);
    if (!*only || strcmp(only, "attn") == 0)
        bench_attention(s);
    if (!*only || strcmp(only, "prompt") == 0)
        bench_prompt(s);
    if (!*only || strcmp(only, "sample") == 0)
        bench_sampling(s);
}

int bench_kernels(int argc, char **argv)
{
    static struct bench_state s;
    struct options opt;
    struct backend_params p = {.device = "cpu",
                               .max_rows = MAX_ROWS,
                               .max_dim = 2 * FFN_DIM,
                               .max_vocab = VOCAB_BIG,
                               .max_logits = 32};
    struct err err = {0};
    int rc = options_parse(&opt, argc, argv);

    if (rc) {
        fputs(usage, rc < 0 ? stderr : stdout);
        return rc < 0 ? 2 : 0;
    }
    s.dtype = p.dtype = opt.dtype;
    s.seconds = opt.seconds;
    s.n_held = opt.n_layers;
    p.n_threads = opt.n_threads;
    p.pin_threads = opt.pin;
    if (opt.csv && !(s.csv = fopen(opt.csv, "w"))) {
        perror(opt.csv);
        return 1;
    }
    if (s.csv)
        fprintf(s.csv, "op,shape,us,bytes,gb_s,pct_read,flops,gflop_s\n");
    if (backend_open(&s.be, &p, &err) < 0 ||
        read_speed_open(&s.read, opt.n_threads, opt.pin, &err) < 0)
        die(&err);
    printf("%s; weights %s, %d layers in turns\n", s.be->description, dtype_name(s.dtype),
           s.n_held);
    bench_bandwidth(&s, "before");
    if (strcmp(opt.only, "read") != 0) {
        state_make(&s);
        printf("%-14s %-26s %11s %8s %6s %10s\n", "op", "shape", "us", "GB/s", "% read", "GFLOP/s");
        bench_parts(&s, opt.only);
    }
    bench_bandwidth(&s, "after");
    rc = s.csv && fclose(s.csv) != 0 ? 1 : 0;
    if (rc)
        perror(opt.csv);
    read_speed_close(s.read);
    s.be->ops->close(s.be);
    return rc;
}
