/*
 * bench_http - `spand-bench http`: load on a server that speaks the OpenAI API, seen from a client.
 *
 * It measures any such server; nothing of spand is linked into the path but base/. Flags, table and
 * CSV are here, the load is http_load, the server's name and vocabulary come from http_target.
 */
#include "base/clock.h"
#include "base/err.h"
#include "tests/bench/bench.h"
#include "tests/bench/http_load.h"
#include "tests/bench/http_target.h"

#include <errno.h>
#include <getopt.h>
#include <math.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>
#include <time.h>
#include <unistd.h>

#define EXIT_FAILED 1
#define EXIT_USAGE  2

#define QUIET_NS      2000000000ll  /* shorter runs need no progress line */
#define LINE_EVERY_NS 10000000000ll /* where the line cannot be overwritten */
#define CPU_DOUBTFUL  0.8           /* of a core: the one thread of the client may be the limit */

static const char usage[] =
    "spand-bench http --url http://127.0.0.1:8000 [flags]\n"
    "\n"
    "  --url URL             the server\n"
    "  --model NAME          else the first that /v1/models lists\n"
    "  --streams N           clients, each with one request at a time (8)\n"
    "  --requests N          in all (64)\n"
    "  --warmup N            requests before, which do not count (as many as streams)\n"
    "  --prompt-tokens N     random ids in each prompt (128)\n"
    "  --vocab N             their bound, when the server does not tell it\n"
    "  --prompt TEXT         this text instead, behind a number that makes each distinct\n"
    "  --max-tokens N        tokens in each answer; ignore_eos is sent (64)\n"
    "  --temperature X       (0)\n"
    "  --seed N              of the prompts; another one when caches must not help (1)\n"
    "  --no-stream           whole answers: no ttft, no itl\n"
    "  --timeout-ms N        without a byte, then the request has failed (120000)\n"
    "  --csv FILE            append a line there\n"
    "\n"
    "Exit code 0, 1 when a request failed, 2 for wrong usage.\n";

struct options {
    struct http_load_params load;
    const char *url, *csv;
};

/* ---- flags ---- */

enum flag {
    FLAG_URL = 256,
    FLAG_MODEL,
    FLAG_STREAMS,
    FLAG_REQUESTS,
    FLAG_WARMUP,
    FLAG_PROMPT_TOKENS,
    FLAG_VOCAB,
    FLAG_PROMPT,
    FLAG_MAX_TOKENS,
    FLAG_TEMPERATURE,
    FLAG_SEED,
    FLAG_NO_STREAM,
    FLAG_TIMEOUT_MS,
    FLAG_CSV,
    FLAG_HELP
};

static const struct option flags[] = {
    {"url", required_argument, NULL, FLAG_URL},
    {"model", required_argument, NULL, FLAG_MODEL},
    {"streams", required_argument, NULL, FLAG_STREAMS},
    {"requests", required_argument, NULL, FLAG_REQUESTS},
    {"warmup", required_argument, NULL, FLAG_WARMUP},
    {"prompt-tokens", required_argument, NULL, FLAG_PROMPT_TOKENS},
    {"vocab", required_argument, NULL, FLAG_VOCAB},
    {"prompt", required_argument, NULL, FLAG_PROMPT},
    {"max-tokens", required_argument, NULL, FLAG_MAX_TOKENS},
    {"temperature", required_argument, NULL, FLAG_TEMPERATURE},
    {"seed", required_argument, NULL, FLAG_SEED},
    {"no-stream", no_argument, NULL, FLAG_NO_STREAM},
    {"timeout-ms", required_argument, NULL, FLAG_TIMEOUT_MS},
    {"csv", required_argument, NULL, FLAG_CSV},
    {"help", no_argument, NULL, FLAG_HELP},
    {0},
};

static const char *flag_name(int flag)
{
    for (const struct option *f = flags; f->name; f++) {
        if (f->val == flag)
            return f->name;
    }
    return "?";
}

static int read_number(double *out, int flag, double min, double max, struct err *err)
{
    char *end;

    errno = 0;
    *out = strtod(optarg, &end);
    if (end == optarg || *end || errno || !(*out >= min && *out <= max))
        return err_set(err, ERR_INVALID, "--%s %s: want a number from %.15g to %.15g",
                       flag_name(flag), optarg, min, max);
    return 0;
}

static int read_int(int *out, int flag, int min, int max, struct err *err)
{
    double v = 0;
    int rc = read_number(&v, flag, min, max, err);

    if (rc == 0 && v != floor(v))
        rc = err_set(err, ERR_INVALID, "--%s %s: want an integer", flag_name(flag), optarg);
    if (rc == 0)
        *out = (int)v;
    return rc;
}

static int read_flag(struct options *o, int flag, struct err *err)
{
    struct http_load_params *p = &o->load;
    double seed = 0;
    int rc;

    switch (flag) {
    case FLAG_URL:
        o->url = optarg;
        return 0;
    case FLAG_MODEL:
        p->model = optarg;
        return 0;
    case FLAG_STREAMS:
        return read_int(&p->n_streams, flag, 1, 16384, err);
    case FLAG_REQUESTS:
        return read_int(&p->n_requests, flag, 1, 10000000, err);
    case FLAG_WARMUP:
        return read_int(&p->n_warmup, flag, 0, 10000000, err);
    case FLAG_PROMPT_TOKENS:
        return read_int(&p->prompt_tokens, flag, 1, 10000000, err);
    case FLAG_VOCAB:
        return read_int(&p->vocab_size, flag, 1, 100000000, err);
    case FLAG_PROMPT:
        p->prompt = optarg;
        return 0;
    case FLAG_MAX_TOKENS:
        return read_int(&p->max_tokens, flag, 1, 10000000, err);
    case FLAG_TEMPERATURE:
        return read_number(&p->temperature, flag, 0, 2, err);
    case FLAG_SEED:
        rc = read_number(&seed, flag, 0, 4294967295.0, err);
        p->seed = (uint64_t)seed;
        return rc;
    case FLAG_NO_STREAM:
        p->stream = false;
        return 0;
    case FLAG_TIMEOUT_MS:
        return read_int(&p->timeout_ms, flag, 1, 86400000, err);
    default:
        o->csv = optarg;
        return 0;
    }
}

/* False: *rc is the exit code. */
static bool read_flags(struct options *o, int argc, char **argv, int *rc, struct err *err)
{
    struct http_load_params *p = &o->load;
    int flag;

    optind = 1;
    opterr = 0;
    while ((flag = getopt_long(argc, argv, "", flags, NULL)) != -1) {
        if (flag == FLAG_HELP) {
            fputs(usage, stdout);
            *rc = 0;
            return false;
        }
        if (flag == '?')
            err_set(err, ERR_INVALID, "%s: unknown, or its value is missing", argv[optind - 1]);
        else
            read_flag(o, flag, err);
    }
    if (optind < argc)
        err_set(err, ERR_INVALID, "%s: not a flag", argv[optind]);
    if (!o->url)
        err_set(err, ERR_INVALID, "--url is missing");
    if (p->prompt && p->prompt_tokens > 0)
        err_set(err, ERR_INVALID, "--prompt and --prompt-tokens exclude each other");
    *rc = EXIT_USAGE;
    if (err->code)
        return false;
    if (!p->prompt && p->prompt_tokens == 0)
        p->prompt_tokens = 128;
    if (p->n_streams > p->n_requests)
        p->n_streams = p->n_requests;
    if (p->n_warmup < 0)
        p->n_warmup = p->n_streams;
    return true;
}

/* ---- figures ---- */

static int compare_ns(const void *a, const void *b)
{
    int64_t x = *(const int64_t *)a, y = *(const int64_t *)b;

    return (x > y) - (x < y);
}

struct summary { /* milliseconds; NAN without samples */
    double mean, p50, p90, p99, max;
};

/* Nearest rank: the smallest sample that is not below p percent of them. */
static double rank_ms(const struct http_samples *s, int p)
{
    return s->ns[(s->n * p + 99) / 100 - 1] / 1e6;
}

static struct summary summarise(struct http_samples *s)
{
    struct summary m = {NAN, NAN, NAN, NAN, NAN};
    double sum = 0;

    if (s->n == 0)
        return m;
    qsort(s->ns, s->n, sizeof(*s->ns), compare_ns);
    for (size_t i = 0; i < s->n; i++)
        sum += s->ns[i] / 1e6;
    m.mean = sum / s->n;
    m.p50 = rank_ms(s, 50);
    m.p90 = rank_ms(s, 90);
    m.p99 = rank_ms(s, 99);
    m.max = rank_ms(s, 100);
    return m;
}

static double per_second(double n, const struct http_load_result *r)
{
    return r->wall_ns > 0 ? n * 1e9 / r->wall_ns : 0;
}

static void print_row(const char *name, const struct http_samples *s, const struct summary *m)
{
    if (s->n == 0)
        return;
    printf("  %-8s %10.2f %10.2f %10.2f %10.2f %10.2f   %zu%s\n", name, m->p50, m->p90, m->p99,
           m->max, m->mean, s->n, s->failed ? " (memory was out)" : "");
}

/* What a reader would else take the figures for. */
static void print_doubts(const struct options *o, const struct http_load_result *r)
{
    const struct http_load_params *p = &o->load;
    int n_silent = p->stream ? r->n_ok - (int)r->ttft.n : 0;

    if (r->n_short > 0)
        printf("note: %d answers have fewer than %d tokens\n", r->n_short, p->max_tokens);
    if (n_silent > 0)
        printf("note: %d answers have no text, so no ttft\n", n_silent);
    if (r->n_events > 0 && r->n_events * 2 < r->completion_tokens)
        printf("note: an event carries %.1f tokens, so itl is not the time of one; tpot is\n",
               (double)r->completion_tokens / r->n_events);
    if (r->n_repeats > 0)
        printf("note: %lld requests were sent again, their idle connection having been closed\n",
               (long long)r->n_repeats);
    if (r->client_cpu > CPU_DOUBTFUL)
        printf("note: the client's one thread is busy; it may be what limits the rate\n");
    if (r->interrupted)
        printf("note: interrupted after %d of %d requests\n", r->n_ok + r->n_errors, p->n_requests);
    if (r->n_errors > 0)
        printf("%d requests failed; the first: %s\n", r->n_errors, r->first_error.msg);
}

static void print_report(const struct options *o, const struct http_load_result *r,
                         const struct summary all[4])
{
    const struct http_load_params *p = &o->load;
    char prompt[48] = "text prompts";

    if (!p->prompt)
        snprintf(prompt, sizeof(prompt), "%d prompt tokens", p->prompt_tokens);
    printf("%s  %s\n%d streams, %d requests (and %d to warm up), %s, %d max tokens, %s\n\n", o->url,
           p->model ? p->model : "", p->n_streams, p->n_requests, p->n_warmup, prompt,
           p->max_tokens, p->stream ? "streamed" : "not streamed");
    printf("  requests %10d    errors %6d    %10.2f requests/s    %.2f s\n", r->n_ok, r->n_errors,
           per_second(r->n_ok, r), r->wall_ns / 1e9);
    printf("  tokens   %10lld    prompt %8lld  %9.1f tok/s         %.1f tok/s with prompts\n",
           (long long)r->completion_tokens, (long long)r->prompt_tokens,
           per_second(r->completion_tokens, r),
           per_second(r->completion_tokens + r->prompt_tokens, r));
    printf("  client   %9.0f%% of a core    %lld connections\n\n", r->client_cpu * 100,
           (long long)r->n_connects);
    if (r->n_ok > 0)
        printf("  %-8s %10s %10s %10s %10s %10s   samples\n", "ms", "p50", "p90", "p99", "max",
               "mean");
    print_row("ttft", &r->ttft, &all[0]);
    print_row("itl", &r->itl, &all[1]);
    print_row("tpot", &r->tpot, &all[2]);
    print_row("total", &r->total, &all[3]);
    print_doubts(o, r);
}

/* ---- the file ---- */

/* Quoted where the format demands it (RFC 4180). */
static void put_text(FILE *f, const char *s)
{
    if (!strpbrk(s, ",\"\r\n")) {
        fputs(s, f);
        return;
    }
    fputc('"', f);
    for (; *s; s++) {
        if (*s == '"')
            fputc('"', f);
        fputc(*s, f);
    }
    fputc('"', f);
}

static void put_ms(FILE *f, double ms)
{
    if (isnan(ms))
        fputc(',', f);
    else
        fprintf(f, ",%.4f", ms);
}

static void put_row(FILE *f, const struct options *o, const struct http_load_result *r,
                    const struct summary all[4])
{
    const struct http_load_params *p = &o->load;
    char when[32];
    time_t now = clock_unix_ms() / 1000;
    struct tm tm;

    gmtime_r(&now, &tm);
    strftime(when, sizeof(when), "%Y-%m-%dT%H:%M:%SZ", &tm);
    fprintf(f, "%s,", when);
    put_text(f, o->url);
    fputc(',', f);
    put_text(f, p->model ? p->model : "");
    fprintf(f, ",%d,%d,%d,%d,%d,%d,%lld,%lld,%.4f,%.3f,%.2f,%.3f", p->stream, p->n_streams,
            p->n_requests, p->prompt_tokens, p->max_tokens, r->n_errors,
            (long long)r->prompt_tokens, (long long)r->completion_tokens, r->wall_ns / 1e9,
            per_second(r->n_ok, r), per_second(r->completion_tokens, r), r->client_cpu);
    for (int i = 0; i < 4; i++) {
        put_ms(f, all[i].p50);
        put_ms(f, all[i].p90);
        put_ms(f, all[i].p99);
        put_ms(f, all[i].max);
    }
    fputc('\n', f);
}

static int append_csv(const struct options *o, const struct http_load_result *r,
                      const struct summary all[4], struct err *err)
{
    static const char *const names[] = {"ttft", "itl", "tpot", "total"};
    FILE *f = fopen(o->csv, "ae");

    if (!f)
        return err_set_errno(err, ERR_IO, errno, "%s", o->csv);
    fseek(f, 0, SEEK_END);
    if (ftell(f) <= 0) {
        fputs("time,url,model,stream,streams,requests,prompt_tokens_each,max_tokens,errors,"
              "prompt_tokens,completion_tokens,wall_s,requests_s,tok_s,client_cpu",
              f);
        for (int i = 0; i < 4; i++)
            fprintf(f, ",%s_p50_ms,%s_p90_ms,%s_p99_ms,%s_max_ms", names[i], names[i], names[i],
                    names[i]);
        fputc('\n', f);
    }
    put_row(f, o, r, all);
    if (fclose(f) != 0)
        return err_set_errno(err, ERR_IO, errno, "%s", o->csv);
    return 0;
}

/* ---- the run ---- */

struct progress {
    const struct options *options;
    bool is_terminal, is_shown;
    int64_t shown_ns; /* of the run */
};

static void on_progress(void *arg, const struct http_load_result *r)
{
    struct progress *g = arg;

    if (r->wall_ns < QUIET_NS)
        return;
    if (!g->is_terminal && g->is_shown && r->wall_ns - g->shown_ns < LINE_EVERY_NS)
        return;
    fprintf(stderr, "%s%6.1f s  %d of %d requests, %d errors, %.1f tok/s%s",
            g->is_terminal ? "\r" : "", r->wall_ns / 1e9, r->n_ok + r->n_errors,
            g->options->load.n_requests, r->n_errors, per_second(r->completion_tokens, r),
            g->is_terminal ? "  " : "\n");
    g->is_shown = true;
    g->shown_ns = r->wall_ns;
}

/* One descriptor a stream and a few besides; the soft limit is often 1024. */
static void raise_fd_limit(void)
{
    struct rlimit limit;

    if (getrlimit(RLIMIT_NOFILE, &limit) == 0 && limit.rlim_cur < limit.rlim_max) {
        limit.rlim_cur = limit.rlim_max;
        setrlimit(RLIMIT_NOFILE, &limit);
    }
}

/* Fills in what only the server knows, as far as the flags leave it open. */
static int ask_server(struct options *o, struct http_target *t, struct err *err)
{
    struct http_load_params *p = &o->load;
    int rc = http_target_open(t, o->url, err);

    if (rc == 0 && (!p->model || (!p->prompt && p->vocab_size == 0)))
        rc = http_target_ask_model(t, err);
    if (rc < 0)
        return rc;
    p->addr = t->addr;
    p->host = t->host;
    p->prefix = t->prefix;
    if (!p->model)
        p->model = t->model;
    if (p->vocab_size == 0)
        p->vocab_size = t->vocab_size;
    if (!p->prompt && p->vocab_size == 0)
        return err_set(err, ERR_UNSUPPORTED,
                       "the server does not tell its vocabulary: give --vocab N or --prompt TEXT");
    return 0;
}

static int run(struct options *o, struct err *err)
{
    struct progress progress = {.options = o, .is_terminal = isatty(STDERR_FILENO)};
    struct http_load_result r = {0};
    struct summary all[4];
    int rc = http_load_run(&r, &o->load, on_progress, &progress, err);

    if (progress.is_shown && progress.is_terminal)
        fputc('\n', stderr);
    if (rc < 0)
        goto out;
    all[0] = summarise(&r.ttft);
    all[1] = summarise(&r.itl);
    all[2] = summarise(&r.tpot);
    all[3] = summarise(&r.total);
    print_report(o, &r, all);
    if (o->csv && !r.interrupted)
        rc = append_csv(o, &r, all, err);
    if (rc == 0 && (r.n_errors > 0 || r.interrupted))
        rc = EXIT_FAILED;
out:
    http_load_result_release(&r);
    return rc;
}

int bench_http(int argc, char **argv)
{
    struct options o = {.load = {.n_streams = 8,
                                 .n_requests = 64,
                                 .n_warmup = -1,
                                 .max_tokens = 64,
                                 .seed = 1,
                                 .stream = true,
                                 .timeout_ms = 120000}};
    struct http_target target = {0};
    struct err err = {0};
    bool is_usage;
    int rc;

    if (!read_flags(&o, argc, argv, &rc, &err)) {
        if (err.code)
            fprintf(stderr, "spand-bench http: %s; --help lists the flags\n", err.msg);
        return rc;
    }
    signal(SIGPIPE, SIG_IGN); /* a server that closes under a write is an error to count */
    raise_fd_limit();
    rc = ask_server(&o, &target, &err);
    is_usage = rc == ERR_INVALID;
    if (rc == 0)
        rc = run(&o, &err);
    if (rc < 0) {
        fprintf(stderr, "spand-bench http: %s\n", err.msg);
        rc = is_usage ? EXIT_USAGE : EXIT_FAILED;
    }
    http_target_release(&target);
    return rc;
}
