/*
 * bench_engine - prefill and decode rates at context frontiers, through the scheduler.
 *
 * For each context: one prompt alone, for prefill tokens per second and the time to first token.
 * For each context and batch: so many sequences prefilled and then decoded together; only steps
 * that hold one decode row of every sequence count. Prompts are cut so that all sequences reach
 * the context at the same time although they start one behind the other.
 *
 * The limit of a decode step is the time to read the weights once and every sequence's keys and
 * values once, as many as the plan lets its key-value heads keep and no query head's window hides,
 * at the read bandwidth, which is measured right before and right after the step's sequences; the
 * better one counts, since other programs' load only ever takes from it. gap is the share of the
 * time between steps' ends in which the device works at none: on a GPU by events at a step's two
 * ends, on the CPU what no op accounts for.
 *
 * A Block Transformer's step here is a token of every sequence, the fourth part of a macro step;
 * its bytes are the mean over a block's: the block decoder's weights and keys once a block, the
 * token decoder's weights and slab every time.
 */
#include "tests/bench/bench.h"

#include "base/clock.h"
#include "base/rng.h"
#include "config/config.h"
#include "tests/bench/read_speed.h"
#include "tests/bench/step_limit.h"

#include <errno.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#define MAX_LIST        32
#define MAX_BATCH       16384
#define BATCH_MAX_SEATS 256 /* seats opened for --batch max */
#define TIMEOUT_NS      (3600 * (int64_t)1000000000)

struct options {
    const char *batch, *context, *csv;
    int steps;
    double ragged, read_bw, tflops, temperature;
    bool shuffle_pages, no_prefill, ops, no_ops;
    struct read_speed *read; /* NULL when read_bw is given */
};

/* What the engine thread notes after each step. */
struct step_log {
    struct engine *e;
    pthread_mutex_t mu; /* guards all that follows */
    struct engine_stats last;
    int batch;   /* sequences that a counted step must have */
    int per;     /* steps between two looks: a Block Transformer tells whole blocks */
    int n_steps; /* counted */
    int64_t wall_ns, device_ns, pages;
    int64_t cpu_ns, last_cpu_ns; /* the engine thread's */
};

struct result {
    int batch, context, n_steps;
    int64_t pages; /* the most that were taken during counted steps */
    double density, kv_bytes, weight_bytes;
    double step_ms, tok_s, bytes, read_bw, limit_ms, pct, gap_pct;
    double cpu_us;   /* of the engine thread, a row */
    double flops_ms; /* of the step's products at --tflops; 0 without */
};

struct request_state {
    bool done;
    enum finish_reason finish;
    int64_t submit_ns, first_token_ns;
};

/* Engine thread, after each step. */
static void on_wake(void *arg)
{
    struct step_log *log = arg;
    struct engine_stats now;
    struct timespec cpu;
    int64_t cpu_ns;

    clock_gettime(CLOCK_THREAD_CPUTIME_ID, &cpu);
    cpu_ns = cpu.tv_sec * (int64_t)1000000000 + cpu.tv_nsec;

    pthread_mutex_lock(&log->mu);
    if (!log->e) {
        pthread_mutex_unlock(&log->mu);
        return;
    }
    engine_get_stats(log->e, &now);
    if (log->batch && now.prompt_tokens == log->last.prompt_tokens &&
        now.generation_tokens - log->last.generation_tokens == (int64_t)log->batch * log->per &&
        log->last.n_steps) {
        log->n_steps += log->per;
        log->wall_ns += now.last_step_ns - log->last.last_step_ns;
        log->device_ns += now.device_ns - log->last.device_ns;
        log->cpu_ns += cpu_ns - log->last_cpu_ns;
        /* Who ends with a step has given its pages back by now; earlier ones show them all. */
        log->pages = now.pages_used > log->pages ? now.pages_used : log->pages;
    }
    log->last = now;
    log->last_cpu_ns = cpu_ns;
    pthread_mutex_unlock(&log->mu);
}

/* --no-ops: a device that takes no time and draws token 1. */

static int do_nothing(void)
{
    return 0;
}

static int draw_one(struct backend *be, const struct sample_args *a, struct err *err)
{
    (void)be;
    (void)err;
    for (int i = 0; i < a->n_rows; i++)
        a->result[i] = (struct sample_result){.token = 1};
    return 0;
}

/* Takes the work out of every op that a step asks for; the engine has no step yet. */
static void remove_ops(struct engine *e)
{
    static struct backend_ops ops;

    ops = *e->be->ops;
#define NO_OP(op, args)                                                                            \
    ops.op = (int (*)(struct backend *, const struct args *, struct err *))(void *)do_nothing
    NO_OP(embed, embed_args);
    NO_OP(attn_in, attn_in_args);
    NO_OP(attn, attn_args);
    NO_OP(kv_append, kv_append_args);
    NO_OP(attn_out, attn_out_args);
    NO_OP(ffn, ffn_args);
    NO_OP(logits, logits_args);
    NO_OP(block_embed, block_embed_args);
    NO_OP(block_to_prefix, block_to_prefix_args);
#undef NO_OP
    ops.sample = draw_one;
    e->be->ops = &ops;
}

static void on_event(void *arg, const struct engine_event *event)
{
    struct request_state *s = event->user;

    (void)arg;
    s->first_token_ns = event->first_token_ns;
    s->submit_ns = event->submit_ns;
    s->finish = event->finish;
    s->done = event->finish != FINISH_NONE;
}

static int parse_list(const char *text, int *out, int most)
{
    int n = 0;

    while (*text && n < MAX_LIST) {
        char *end;
        long v;

        errno = 0;
        v = strtol(text, &end, 10);
        if (errno || end == text || v < 1 || v > most || (*end && *end != ','))
            return -1;
        out[n++] = (int)v;
        text = *end ? end + 1 : end;
    }
    return n;
}

static int submit(struct engine *e, int n_prompt, int max_tokens, struct request_state *state,
                  double temperature, uint64_t seed)
{
    struct engine_request req = {.n_prompt = n_prompt, .user = state};
    int32_t *prompt = malloc((size_t)n_prompt * sizeof(*prompt));
    struct err err = {0};
    uint64_t id;
    int rc;

    if (!prompt)
        return ERR_NO_ROOM;
    for (int i = 0; i < n_prompt; i++)
        prompt[i] =
            (int32_t)(rng_u64(seed, 0, (uint64_t)i) % (uint64_t)engine_get_info(e)->vocab_size);
    sampling_params_init(&req.sampling);
    req.prompt = prompt;
    req.sampling.max_tokens = max_tokens;
    req.sampling.temperature = (float)temperature;
    req.sampling.seed = seed;
    req.sampling.ignore_eos = true;
    *state = (struct request_state){.done = false};
    rc = engine_submit(e, &req, &id, &err);
    if (rc < 0)
        fprintf(stderr, "spand-bench engine: %s\n", err.msg);
    free(prompt);
    return rc;
}

static bool wait_all(struct engine *e, const struct request_state *states, int n)
{
    int64_t end_ns = clock_ns() + TIMEOUT_NS;

    for (int i = 0; i < n; i++) {
        while (!states[i].done) {
            engine_wait(e, 1000000000);
            engine_poll(e, on_event, NULL);
            if (clock_ns() > end_ns)
                return false;
        }
        if (states[i].finish != FINISH_LENGTH)
            return false;
    }
    return true;
}

/* The length that sequence i is given: context, or less of it by up to `ragged`. */
static int length_of(const struct options *opt, int i, int batch, int context)
{
    double share = batch > 1 ? (double)i / (batch - 1) : 0;

    return (int)(context * (1.0 - opt->ragged * share));
}

static int run_decode(struct engine *e, struct step_log *log, const struct options *opt, int batch,
                      int context, struct result *out)
{
    /* Prompt tokens that pass while who is done with his own gives `per` tokens. */
    int per = step_limit_entry_tokens(e), chunk = e->sched.params.chunk_tokens * per;
    struct request_state *states = calloc((size_t)batch, sizeof(*states));
    int64_t rows_before = 0, total = 0;
    double kv_bytes = 0;
    int n_steps, rc = 0, n_prefill;

    if (!states)
        return ERR_NO_ROOM;
    for (int i = 0; i < batch; i++)
        total += length_of(opt, i, batch, context);
    /* An eighth more than the arithmetic: chunk borders at whole tiles leave some budget unused. */
    n_prefill = (int)(total / chunk + total / chunk / 8 + 4);
    pthread_mutex_lock(&log->mu);
    log->batch = batch;
    log->per = per;
    log->n_steps = 0;
    log->wall_ns = log->device_ns = log->pages = log->cpu_ns = 0;
    pthread_mutex_unlock(&log->mu);
    if (opt->shuffle_pages) {
        pthread_mutex_lock(&e->mu);
        kv_pool_shuffle(&e->kv.pool, 1);
        pthread_mutex_unlock(&e->mu);
    }
    for (int i = 0; i < batch && rc == 0; i++) {
        int length = length_of(opt, i, batch, context);
        int n_prompt = length - opt->steps - per * (n_prefill - (int)(rows_before / chunk));

        if (n_prompt < 1) {
            fprintf(stderr,
                    "spand-bench engine: batch %d at context %d needs %d prefill steps and %d "
                    "decode steps; use a larger --chunk-tokens or fewer --steps\n",
                    batch, length, n_prefill, opt->steps);
            rc = ERR_INVALID;
            break;
        }
        rows_before += n_prompt;
        kv_bytes += step_limit_kv_bytes(e, length, length - opt->steps / 2 - 1);
        rc = submit(e, n_prompt, length - n_prompt, &states[i], opt->temperature, (uint64_t)i + 1);
    }
    if (rc == 0 && !wait_all(e, states, batch))
        rc = ERR_IO;
    pthread_mutex_lock(&log->mu);
    n_steps = log->n_steps;
    if (rc == 0 && n_steps > 0) {
        double wall_ms = (double)log->wall_ns * 1e-6 / n_steps;

        *out = (struct result){.batch = batch, .context = context, .n_steps = n_steps};
        out->step_ms = wall_ms;
        out->tok_s = batch * 1000.0 / wall_ms;
        out->pages = log->pages;
        out->cpu_us = (double)log->cpu_ns * 1e-3 / n_steps / batch;
        out->density = plan_kv_density(e->plan, step_limit_entries(e, context));
        out->kv_bytes = kv_bytes;
        out->weight_bytes = step_limit_weight_bytes(e);
        out->bytes = out->weight_bytes + kv_bytes;
        out->gap_pct = 100.0 * (1.0 - (double)log->device_ns / (double)log->wall_ns);
    }
    log->batch = 0;
    pthread_mutex_unlock(&log->mu);
    if (rc == 0 && n_steps == 0) {
        fprintf(stderr, "spand-bench engine: the pool never held all %d sequences of %d tokens\n",
                batch, context);
        rc = ERR_NO_ROOM;
    }
    free(states);
    return rc;
}

static double read_bw_now(const struct options *opt, struct backend *be)
{
    double bytes_per_s;
    struct err err = {0};

    if (!opt->read)
        return opt->read_bw;
    if (!be->is_async) /* threads of its own, and a median */
        return read_speed_measure(opt->read);
    if (be->ops->read_bandwidth(be, &bytes_per_s, &err) < 0) {
        fprintf(stderr, "spand-bench engine: read bandwidth: %s\n", err.msg);
        return 0;
    }
    return bytes_per_s * 1e-9;
}

/* run_decode between two looks at the memory's speed, and what share of it the steps reached. */
static int run_row(struct engine *e, struct step_log *log, const struct options *opt, int batch,
                   int context, struct result *out)
{
    double before = read_bw_now(opt, e->be), after;
    int rc = run_decode(e, log, opt, batch, context, out);

    if (rc < 0)
        return rc;
    after = read_bw_now(opt, e->be);
    out->read_bw = before > after ? before : after;
    out->limit_ms = out->bytes / (out->read_bw * 1e6);
    if (opt->tflops > 0)
        out->flops_ms = step_limit_flops(e) * batch / (opt->tflops * 1e9);
    out->pct = 100.0 * out->limit_ms / out->step_ms;
    return 0;
}

/* Where a prompt's time went: each op between two looks at the account. */
static void print_ops(const struct engine_stats *from, const struct engine_stats *to, int n_tokens,
                      double ttft_ms)
{
    double left = ttft_ms;

    printf("prompt of %d, %.2f ms:\n", n_tokens, ttft_ms);
    for (int i = 0; i < to->n_ops; i++) {
        double ms = (double)(to->ops[i].ns - from->ops[i].ns) * 1e-6;
        double bytes = to->ops[i].timed_bytes - from->ops[i].timed_bytes;
        double flops = to->ops[i].flops - from->ops[i].flops;

        left -= ms;
        if (to->ops[i].n_calls > from->ops[i].n_calls)
            printf("    %-14s %9.3f ms %9.1f GFLOP/s %8.2f GB/s\n", to->ops[i].name, ms,
                   flops * 1e-6 / ms, bytes * 1e-6 / ms);
    }
    printf("    %-14s %9.3f ms\n", "no op", left);
}

/* Prefill tokens per second and time to first token of one prompt on an idle engine: the second of
 * two, for the first one finds products not chosen and memory not touched. */
static int run_prefill(struct engine *e, int context, bool ops, double *tok_s, double *ttft_ms)
{
    struct request_state state;
    struct engine_stats before, after;
    int rc;

    for (int i = 0; i < 2; i++) {
        engine_get_stats(e, &before);
        rc = submit(e, context - 1, 1, &state, 0, 99);
        if (rc < 0)
            return rc;
        if (!wait_all(e, &state, 1))
            return ERR_IO;
        engine_get_stats(e, &after);
    }
    *ttft_ms = (double)(state.first_token_ns - state.submit_ns) * 1e-6;
    *tok_s = (context - 1) * 1000.0 / *ttft_ms;
    if (ops)
        print_ops(&before, &after, context - 1, *ttft_ms);
    return 0;
}

static const char header[] =
    "device,shape,plan,batch,context,prefill_tok_s,ttft_ms,step_ms,tok_s,"
    "bytes,read_bw,limit_ms,pct,gap_pct,steps,"
    "density_kv,weight_bytes,kv_bytes,pages,page_bytes,flops_ms,temperature\n";

static void print_row(const struct engine *e, const struct options *opt, const struct result *r,
                      double prefill_tok_s, double ttft_ms, FILE *csv)
{
    const struct engine_info *info = engine_get_info(e);
    char shape[128];

    snprintf(shape, sizeof(shape), "%s l%d d%d h%d/%dx%d v%d %s", info->model_type, info->n_layers,
             e->model_config.stack.dim, info->n_heads, info->n_kv_heads, info->head_dim,
             info->vocab_size, info->dtype);
    printf("%6d %8d %13.1f %10.1f %9.3f %10.1f %9.1f %8.2f %9.3f %6.1f %6.1f %7.2f %9lld\n",
           r->batch, r->context, prefill_tok_s, ttft_ms, r->step_ms, r->tok_s, r->bytes * 1e-6,
           r->read_bw, r->limit_ms, r->pct, r->gap_pct, 100 * r->density, (long long)r->pages);
    if (opt->no_ops)
        printf("%15s the host's part: %.3f us of the engine thread a token\n", "", r->cpu_us);
    if (r->flops_ms > 0) {
        double overlap = r->flops_ms > r->limit_ms ? r->flops_ms : r->limit_ms;

        printf(
            "%15s products %.3f ms: %.2f %% of the limit if memory and products overlap, %.2f %% "
            "one after the other\n",
            "", r->flops_ms, 100 * overlap / r->step_ms,
            100 * (r->flops_ms + r->limit_ms) / r->step_ms);
    }
    fflush(stdout);
    if (csv)
        fprintf(csv,
                "\"%s\",\"%s\",\"%s\",%d,%d,%.2f,%.3f,%.4f,%.2f,%.0f,%.3f,%.4f,%.2f,%.2f,%d,"
                "%.6f,%.0f,%.0f,%lld,%lld,%.4f,%g\n",
                info->device, shape, info->plan, r->batch, r->context, prefill_tok_s, ttft_ms,
                r->step_ms, r->tok_s, r->bytes, r->read_bw, r->limit_ms, r->pct, r->gap_pct,
                r->n_steps, r->density, r->weight_bytes, r->kv_bytes, (long long)r->pages,
                (long long)info->page_bytes, r->flops_ms, opt->temperature);
}

static int run_all(struct engine *e, struct step_log *log, const struct options *opt, FILE *csv)
{
    int contexts[MAX_LIST], batches[MAX_LIST] = {0};
    int n_contexts = parse_list(opt->context, contexts, 1 << 24), n_batches = 1, rc = 0;
    bool is_max = strcmp(opt->batch, "max") == 0;

    if (!is_max)
        n_batches = parse_list(opt->batch, batches, MAX_BATCH);
    printf("%s; plan %s; temperature %g\n", e->info.device, e->info.plan, opt->temperature);
    printf("%6s %8s %13s %10s %9s %10s %9s %8s %9s %6s %6s %7s %9s\n", "batch", "context",
           "prefill_tok/s", "ttft_ms", "step_ms", "tok/s", "MB/step", "GB/s", "limit_ms", "pct",
           "gap", "density", "pages");
    if (csv)
        fputs(header, csv);
    for (int c = 0; c < n_contexts && rc == 0; c++) {
        double prefill_tok_s = 0, ttft_ms = 0;

        if (!opt->no_prefill)
            rc = run_prefill(e, contexts[c], opt->ops, &prefill_tok_s, &ttft_ms);
        for (int b = 0; b < n_batches && rc == 0; b++) {
            struct result r = {0};

            int batch = is_max ? step_limit_batch(e, contexts[c]) : batches[b];

            if (batch < 1) {
                fprintf(stderr, "spand-bench engine: the pool holds no sequence of %d tokens\n",
                        contexts[c]);
                return ERR_NO_ROOM;
            }
            rc = run_row(e, log, opt, batch, contexts[c], &r);
            if (rc == 0)
                print_row(e, opt, &r, prefill_tok_s, ttft_ms, csv);
        }
    }
    return rc;
}

static const char help[] =
    "spand-bench engine --model DIR --batch N,N...|max --context N,N... [flags]\n"
    "Decode and prefill rates at context frontiers.\n";

/* Seats for the largest batch; a chunk large enough that prefill takes few steps. */
static int fit_config(struct config *config, const struct options *opt)
{
    int contexts[MAX_LIST], batches[MAX_LIST], most = 0;
    int n_contexts = parse_list(opt->context, contexts, 1 << 24);
    int n_batches = strcmp(opt->batch, "max") ? parse_list(opt->batch, batches, MAX_BATCH) : 0;

    if (n_contexts < 1 || n_batches < 0 || (n_batches == 0 && strcmp(opt->batch, "max")))
        return ERR_INVALID;
    for (int i = 0; i < n_batches; i++)
        most = batches[i] > most ? batches[i] : most;
    config->max_batch = most ? most : BATCH_MAX_SEATS;
    config->prefix_cache = false; /* the same prompts come again */
    most = 0;
    for (int i = 0; i < n_contexts; i++)
        most = contexts[i] > most ? contexts[i] : most;
    if (!config->max_seq_len)
        config->max_seq_len = most;
    return 0;
}

int bench_engine(int argc, char **argv)
{
    struct options opt = {.batch = "1", .context = "1024", .csv = "", .steps = 32};
    const struct config_extra extras[] = {
        {"batch", CONFIG_STRING, &opt.batch, "Batch sizes, separated by commas, or max.", 0, 0},
        {"context", CONFIG_STRING, &opt.context, "Context lengths, separated by commas.", 0, 0},
        {"steps", CONFIG_INT, &opt.steps, "Decode steps to measure.", 1, 100000},
        {"ragged", CONFIG_DOUBLE, &opt.ragged,
         "Spreads the lengths: the shortest sequence is shorter by this share.", 0, 0.99},
        {"shuffle_pages", CONFIG_BOOL, &opt.shuffle_pages, "Scatters the pages at random.", 0, 0},
        {"no_prefill", CONFIG_BOOL, &opt.no_prefill, "Leaves out the single prompts.", 0, 0},
        {"ops", CONFIG_BOOL, &opt.ops, "Prints each op's share of the single prompts.", 0, 0},
        {"no_ops", CONFIG_BOOL, &opt.no_ops,
         "On the CPU, leaves out all computing: what remains is the host's part of a step.", 0, 0},
        {"read_bw", CONFIG_DOUBLE, &opt.read_bw,
         "The memory's read bandwidth in GB/s; 0 measures the host's.", 0, 1e6},
        {"tflops", CONFIG_DOUBLE, &opt.tflops,
         "The device's TFLOP/s in products: then the limit counts them too. 0 leaves them out.", 0,
         1e6},
        {"temperature", CONFIG_DOUBLE, &opt.temperature, "Of all draws; 0 is greedy.", 0, 100},
        {"csv", CONFIG_PATH, &opt.csv, "Writes the table to this file.", 0, 0},
    };
    const int n_extras = (int)(sizeof(extras) / sizeof(extras[0]));
    struct step_log log = {.batch = 0};
    struct engine_hooks hooks = {.wake = on_wake, .arg = &log};
    struct config config = {0};
    struct err err = {0};
    struct engine *e = NULL;
    FILE *csv = NULL;
    int rc = bench_read_flags(&config, argc, argv, extras, n_extras, help, &err);

    if (rc > 0)
        return 0;
    if (rc == 0 && fit_config(&config, &opt) < 0)
        rc = err_set(&err, ERR_INVALID, "want --batch N,N...|max and --context N,N...");
    if (rc < 0) {
        fprintf(stderr, "spand-bench engine: %s; --help lists the flags\n", err.msg);
        config_release(&config);
        return 2;
    }
    pthread_mutex_init(&log.mu, NULL);
    rc = opt.read_bw > 0 ? 0 : read_speed_open(&opt.read, config.threads, config.pin_threads, &err);
    if (rc == 0)
        rc = engine_open(&e, &config, &hooks, &err);
    if (rc < 0) {
        fprintf(stderr, "spand-bench engine: %s\n", err.msg);
        goto out;
    }
    if (opt.no_ops && e->be->is_async) {
        fprintf(stderr, "spand-bench engine: --no-ops is for device cpu\n");
        rc = ERR_INVALID;
        goto out;
    }
    if (opt.no_ops)
        remove_ops(e);
    pthread_mutex_lock(&log.mu);
    log.e = e;
    pthread_mutex_unlock(&log.mu);
    if (*opt.csv) {
        csv = fopen(opt.csv, "w");
        if (!csv) {
            fprintf(stderr, "spand-bench engine: %s: %s\n", opt.csv, strerror(errno));
            rc = ERR_IO;
            goto out;
        }
    }
    rc = run_all(e, &log, &opt, csv);
out:
    if (csv && fclose(csv) != 0)
        rc = ERR_IO;
    engine_close(e);
    read_speed_close(opt.read);
    pthread_mutex_destroy(&log.mu);
    config_release(&config);
    return rc < 0 ? 1 : 0;
}
