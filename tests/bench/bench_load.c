/*
 * bench_load - generated tokens per second of many requests that are all there from the start.
 *
 * Seats are taken as they become free, so prompts are computed beside answers all the time but at
 * the very beginning; that is the published way to tell the throughput of a Block Transformer, and
 * it needs no equal lengths. The middle half, between a quarter and three quarters of all tokens,
 * has neither the filling of the seats nor their emptying in it.
 */
#include "tests/bench/bench.h"

#include "base/clock.h"
#include "base/rng.h"
#include "config/config.h"
#include "tests/bench/step_limit.h"

#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>

#define TIMEOUT_NS (3600 * (int64_t)1000000000)

struct options {
    int n_in, n_out, n_requests;
    double ragged, temperature, top_p, read_bw, tflops;
    const char *csv;
};

/* Written by the engine thread after each step that told something. */
struct progress {
    struct engine *e;
    pthread_mutex_t mu;              /* guards all that follows */
    int64_t quarter, three_quarters; /* tokens */
    int64_t quarter_ns, three_quarters_ns, quarter_at, three_quarters_at;
};

struct request_state {
    bool done;
    enum finish_reason finish;
    int64_t submit_ns, first_token_ns, last_token_ns;
};

static void on_wake(void *arg)
{
    struct progress *p = arg;
    struct engine_stats now;

    pthread_mutex_lock(&p->mu);
    if (p->e) {
        engine_get_stats(p->e, &now);
        if (!p->quarter_ns && now.generation_tokens >= p->quarter) {
            p->quarter_ns = clock_ns();
            p->quarter_at = now.generation_tokens;
        }
        if (!p->three_quarters_ns && now.generation_tokens >= p->three_quarters) {
            p->three_quarters_ns = clock_ns();
            p->three_quarters_at = now.generation_tokens;
        }
    }
    pthread_mutex_unlock(&p->mu);
}

static void on_event(void *arg, const struct engine_event *event)
{
    struct request_state *s = event->user;

    if (event->finish == FINISH_NONE)
        return;
    *s = (struct request_state){.done = true,
                                .finish = event->finish,
                                .submit_ns = event->submit_ns,
                                .first_token_ns = event->first_token_ns,
                                .last_token_ns = event->last_token_ns};
    --*(int *)arg;
}

/* n, or less of it by up to the share `ragged`. */
static int length_of(int n, double ragged, uint64_t request, uint32_t which)
{
    double u = (double)(rng_u64(17, which, (int64_t)request) >> 11) * 0x1p-53;
    int len = (int)(n * (1.0 - ragged * u));

    return len > 0 ? len : 1;
}

static int submit(struct engine *e, const struct options *o, int i, struct request_state *state,
                  int64_t *n_in, int64_t *n_out, struct err *err)
{
    int n_prompt = length_of(o->n_in, o->ragged, (uint64_t)i, 1);
    struct engine_request req = {.n_prompt = n_prompt, .user = state};
    int32_t *prompt = malloc((size_t)n_prompt * sizeof(*prompt));
    uint64_t id;
    int rc;

    if (!prompt)
        return err_set(err, ERR_NO_ROOM, "out of memory");
    for (int k = 0; k < n_prompt; k++)
        prompt[k] =
            (int32_t)(rng_u64(5, (uint32_t)i, k) % (uint64_t)engine_get_info(e)->vocab_size);
    sampling_params_init(&req.sampling);
    req.prompt = prompt;
    req.sampling.temperature = (float)o->temperature;
    req.sampling.top_p = (float)o->top_p;
    req.sampling.seed = (uint64_t)i;
    req.sampling.ignore_eos = true;
    req.sampling.max_tokens = length_of(o->n_out, o->ragged, (uint64_t)i, 2);
    *n_in += n_prompt;
    *n_out += req.sampling.max_tokens;
    rc = engine_submit(e, &req, &id, err);
    free(prompt);
    return rc;
}

/* Tokens a second that bandwidth and FLOP rate allow in the middle of the run. */
struct load_limit {
    double read_bw;         /* GB/s */
    double overlap, serial; /* memory beside products, or one after the other */
};

/*
 * A sequence half generated stands for all: seats are full, and each token brings its share of the
 * prefill of a newcomer. As many seats as the pool holds of whole sequences.
 */
static struct load_limit find_limit(struct engine *e, const struct options *o, struct err *err)
{
    struct load_limit l = {.read_bw = o->read_bw};
    int n_in = (int)(o->n_in * (1 - o->ragged / 2)), n_out = (int)(o->n_out * (1 - o->ragged / 2));
    double batch = step_limit_batch(e, n_in + n_out), bytes_per_s, memory, products;

    if (l.read_bw == 0 && e->be->is_async &&
        e->be->ops->read_bandwidth(e->be, &bytes_per_s, err) == 0)
        l.read_bw = bytes_per_s * 1e-9;
    if (l.read_bw == 0 || batch == 0)
        return l;
    memory =
        step_limit_weight_bytes(e) / batch + step_limit_kv_bytes(e, n_in + n_out, n_in + n_out / 2);
    memory /= l.read_bw * 1e9;
    products = o->tflops > 0 ? (step_limit_flops(e) + step_limit_prompt_flops(e) * n_in / n_out) /
                                   (o->tflops * 1e12)
                             : 0;
    l.overlap = 1 / (memory > products ? memory : products);
    l.serial = 1 / (memory + products);
    return l;
}

static void print_limit(const struct engine *e, const struct options *o, const struct load_limit *l,
                        double tok_s)
{
    struct step_limit_sample sample = step_limit_sample(e, o->n_in + o->n_out);

    printf("    a sequence of %d tokens has %.3f MB of pages, %.3f MB of keys and values\n",
           o->n_in + o->n_out, sample.page_bytes * 1e-6, sample.exact_bytes * 1e-6);
    printf("    temperature %g, top_p %g\n", o->temperature, o->top_p);
    if (l->overlap > 0)
        printf("    limit at %.0f GB/s and %s%g TFLOP/s: %.0f tok/s if memory and products "
               "overlap, reached %.1f %%; %.0f one after the other, %.1f %%\n",
               l->read_bw, o->tflops > 0 ? "" : "uncounted ", o->tflops, l->overlap,
               100 * tok_s / l->overlap, l->serial, 100 * tok_s / l->serial);
}

static int run(struct engine *e, struct progress *p, const struct options *o, FILE *csv,
               struct err *err)
{
    struct request_state *states = calloc((size_t)o->n_requests, sizeof(*states));
    double *ttft = calloc((size_t)o->n_requests, sizeof(*ttft));
    int64_t n_in = 0, n_out = 0, begin = clock_ns(), last = begin;
    int n_left = o->n_requests, rc = 0;
    struct engine_stats stats;
    double seconds, middle, ttft_ms;
    struct load_limit limit = find_limit(e, o, err);

    begin = last = clock_ns();
    if (err->code < 0)
        rc = err->code;
    if (!states || !ttft)
        rc = err_set(err, ERR_NO_ROOM, "out of memory");
    for (int i = 0; i < o->n_requests; i++) /* before the first token is counted */
        n_out += length_of(o->n_out, o->ragged, (uint64_t)i, 2);
    pthread_mutex_lock(&p->mu);
    p->quarter = n_out / 4;
    p->three_quarters = n_out * 3 / 4;
    p->e = e;
    pthread_mutex_unlock(&p->mu);
    n_out = 0;
    for (int i = 0; i < o->n_requests && rc == 0; i++)
        rc = submit(e, o, i, &states[i], &n_in, &n_out, err);
    while (rc == 0 && n_left > 0) {
        engine_wait(e, 1000000000);
        engine_poll(e, on_event, &n_left);
        if (clock_ns() - begin > TIMEOUT_NS)
            rc = err_set(err, ERR_LIMIT, "an hour was not enough");
    }
    for (int i = 0; i < o->n_requests && rc == 0; i++) {
        if (states[i].finish != FINISH_LENGTH)
            rc = err_set(err, ERR_IO, "request %d did not end by its length", i);
        last = states[i].last_token_ns > last ? states[i].last_token_ns : last;
        ttft[i] = (double)(states[i].first_token_ns - states[i].submit_ns) * 1e-6;
    }
    if (rc < 0)
        goto out;
    engine_get_stats(e, &stats);
    pthread_mutex_lock(&p->mu);
    seconds = (double)(last - begin) * 1e-9;
    middle = (double)(p->three_quarters_at - p->quarter_at) * 1e9 /
             (double)(p->three_quarters_ns - p->quarter_ns);
    pthread_mutex_unlock(&p->mu);
    ttft_ms = bench_median(ttft, o->n_requests);
    printf("%s\n%9s %6s %6s %9s %9s %12s %12s %12s %11s %8s\n", engine_get_info(e)->device, "batch",
           "in", "out", "requests", "seconds", "prompt_tok/s", "tok/s", "middle_tok/s",
           "ttft_ms_p50", "preempt");
    printf("%9d %6d %6d %9d %9.2f %12.1f %12.1f %12.1f %11.1f %8lld\n",
           engine_get_info(e)->max_batch, o->n_in, o->n_out, o->n_requests, seconds,
           (double)n_in / seconds, (double)n_out / seconds, middle, ttft_ms,
           (long long)stats.n_preemptions);
    print_limit(e, o, &limit, middle);
    if (csv)
        fprintf(csv,
                "device,model,batch,in,out,ragged,requests,seconds,prompt_tok_s,tok_s,middle_tok_s,"
                "ttft_ms_p50,preemptions,limit_overlap,limit_serial,temperature,top_p\n\"%s\",\"%"
                "s\",%d,%d,%d,%.3f,%d,%.3f,%.2f,%.2f,%.2f,%.2f,"
                "%lld,%.1f,%.1f,%g,%g\n",
                engine_get_info(e)->device, engine_get_info(e)->model_id,
                engine_get_info(e)->max_batch, o->n_in, o->n_out, o->ragged, o->n_requests, seconds,
                (double)n_in / seconds, (double)n_out / seconds, middle, ttft_ms,
                (long long)stats.n_preemptions, limit.overlap, limit.serial, o->temperature,
                o->top_p);
out:
    pthread_mutex_lock(&p->mu);
    p->e = NULL;
    pthread_mutex_unlock(&p->mu);
    free(states);
    free(ttft);
    return rc;
}

static const char help[] =
    "spand-bench load --model DIR --in N --out N --requests N --max-batch N [flags]\n"
    "Tokens per second of many requests, prompts and answers together.\n";

int bench_load(int argc, char **argv)
{
    struct options o = {.n_in = 128, .n_out = 128, .n_requests = 64, .top_p = 1, .csv = ""};
    const struct config_extra extras[] = {
        {"in", CONFIG_INT, &o.n_in, "Tokens of a prompt.", 1, 1 << 24},
        {"out", CONFIG_INT, &o.n_out, "Tokens of an answer.", 1, 1 << 24},
        {"requests", CONFIG_INT, &o.n_requests, "How many requests.", 1, 1000000},
        {"ragged", CONFIG_DOUBLE, &o.ragged,
         "Both lengths are drawn for each request, shorter by up to this share.", 0, 0.99},
        {"temperature", CONFIG_DOUBLE, &o.temperature, "Of all draws; 0 is greedy.", 0, 100},
        {"top_p", CONFIG_DOUBLE, &o.top_p, "Of all draws.", 0.001, 1},
        {"read_bw", CONFIG_DOUBLE, &o.read_bw,
         "GB/s of the memory, for the limit; 0 measures a GPU's.", 0, 1e6},
        {"tflops", CONFIG_DOUBLE, &o.tflops,
         "TFLOP/s of the device in products, for the limit; 0 leaves them out.", 0, 1e6},
        {"csv", CONFIG_PATH, &o.csv, "Writes the result to this file.", 0, 0},
    };
    const int n_extras = (int)(sizeof(extras) / sizeof(extras[0]));
    struct progress p = {.e = NULL};
    struct engine_hooks hooks = {.wake = on_wake, .arg = &p};
    struct config config = {0};
    struct err err = {0};
    struct engine *e = NULL;
    FILE *csv = NULL;
    int rc = bench_read_flags(&config, argc, argv, extras, n_extras, help, &err);

    if (rc > 0)
        return 0;
    if (rc < 0) {
        fprintf(stderr, "spand-bench load: %s; --help lists the flags\n", err.msg);
        config_release(&config);
        return 2;
    }
    config.prefix_cache = false;
    config.max_waiting_tokens = 0;
    config.request_memory_bytes = INT64_MAX;
    if (config.max_waiting < o.n_requests)
        config.max_waiting = o.n_requests;
    if (!config.max_seq_len)
        config.max_seq_len = o.n_in + o.n_out;
    pthread_mutex_init(&p.mu, NULL);
    if (*o.csv && !(csv = fopen(o.csv, "w")))
        rc = err_set(&err, ERR_IO, "cannot write %s", o.csv);
    if (rc == 0)
        rc = engine_open(&e, &config, &hooks, &err);
    if (rc == 0)
        rc = run(e, &p, &o, csv, &err);
    engine_close(e);
    if (csv && fclose(csv) != 0 && rc == 0)
        rc = err_set(&err, ERR_IO, "%s: not written to its end", o.csv);
    if (rc < 0)
        fprintf(stderr, "spand-bench load: %s\n", err.msg);
    pthread_mutex_destroy(&p.mu);
    config_release(&config);
    return rc < 0;
}
