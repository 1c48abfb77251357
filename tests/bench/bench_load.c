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
#include "engine/engine.h"

#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>

#define TIMEOUT_NS (3600 * (int64_t)1000000000)

struct options {
    int n_in, n_out, n_requests;
    double ragged;
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
    req.sampling.temperature = 0;
    req.sampling.ignore_eos = true;
    req.sampling.max_tokens = length_of(o->n_out, o->ragged, (uint64_t)i, 2);
    *n_in += n_prompt;
    *n_out += req.sampling.max_tokens;
    rc = engine_submit(e, &req, &id, err);
    free(prompt);
    return rc;
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
    if (csv)
        fprintf(csv,
                "device,model,batch,in,out,ragged,requests,seconds,prompt_tok_s,tok_s,middle_tok_s,"
                "ttft_ms_p50,preemptions\n\"%s\",\"%s\",%d,%d,%d,%.3f,%d,%.3f,%.2f,%.2f,%.2f,%.2f,"
                "%lld\n",
                engine_get_info(e)->device, engine_get_info(e)->model_id,
                engine_get_info(e)->max_batch, o->n_in, o->n_out, o->ragged, o->n_requests, seconds,
                (double)n_in / seconds, (double)n_out / seconds, middle, ttft_ms,
                (long long)stats.n_preemptions);
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
    "Tokens per second of many requests, prompts and answers together; greedy.\n";

int bench_load(int argc, char **argv)
{
    struct options o = {.n_in = 128, .n_out = 128, .n_requests = 64, .csv = ""};
    const struct config_extra extras[] = {
        {"in", CONFIG_INT, &o.n_in, "Tokens of a prompt.", 1, 1 << 24},
        {"out", CONFIG_INT, &o.n_out, "Tokens of an answer.", 1, 1 << 24},
        {"requests", CONFIG_INT, &o.n_requests, "How many requests.", 1, 1000000},
        {"ragged", CONFIG_DOUBLE, &o.ragged,
         "Both lengths are drawn for each request, shorter by up to this share.", 0, 0.99},
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
