/*
 * metrics - histograms and the Prometheus page. Edges are those of vLLM so that dashboards fit,
 * with finer ones below: a small model on a fast device takes far less than 10 ms a token.
 */
#include "server/metrics.h"

#include "base/build_info.h"
#include "base/strbuf.h"
#include "engine/engine.h"
#include "server/router.h"

#include <dirent.h>
#include <stdio.h>
#include <string.h>
#include <sys/resource.h>
#include <unistd.h>

static const double ttft_edges[] = {0.0005, 0.001, 0.002, 0.005, 0.01, 0.02, 0.04, 0.06, 0.08,
                                    0.1,    0.25,  0.5,   0.75,  1,    2.5,  5,    7.5,  10,
                                    20,     40,    80,    160,   640,  2560, 0};
static const double itl_edges[] = {
    0.0005, 0.001, 0.0015, 0.002, 0.003, 0.004, 0.005, 0.0075, 0.01, 0.025, 0.05, 0.075, 0.1, 0.15,
    0.2,    0.3,   0.4,    0.5,   0.75,  1,     2.5,   5,      7.5,  10,    20,   40,    80,  0};
static const double e2e_edges[] = {0.005, 0.02, 0.1, 0.3, 0.5,  0.8,  1,  1.5, 2,
                                   2.5,   5,    10,  15,  20,   30,   40, 50,  60,
                                   120,   240,  480, 960, 1920, 7680, 0};
static const double count_edges[] = {1,     2,      5,      10,     20,   50,    100,
                                     200,   500,    1000,   2000,   5000, 10000, 20000,
                                     50000, 100000, 200000, 500000, 1e6,  0};

static const double n_edges[] = {1, 2, 5, 10, 20, 0};
static const double http_edges[] = {0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.075,
                                    0.1,   0.25,   0.5,   0.75, 1,     2.5,  5,
                                    7.5,   10,     30,    60,   120,   600,  0};
static const double rows_edges[ENGINE_N_ROWS_EDGES + 1] = {1,   8,    16,   32,   64,   128,   256,
                                                           512, 1024, 2048, 4096, 8192, 16384, 0};

static const int statuses[METRICS_N_STATUS] = {200, 204, 400, 401, 403, 404, 405, 408, 413, 415,
                                               417, 429, 431, 499, 500, 501, 503, 505, 0};

static void observe(struct histogram *h, const double *edges, double value, int64_t times)
{
    int i = 0;

    while (edges[i] > 0 && value > edges[i])
        i++;
    h->counts[edges[i] > 0 ? i : METRICS_MAX_EDGES] += times;
    h->n += times;
    h->sum += value * times;
}

void metrics_count_response(struct metrics *m, int route_idx, int status)
{
    int i = 0;

    while (i < METRICS_N_STATUS - 1 && statuses[i] != status)
        i++;
    m->responses[route_idx][i]++;
}

void metrics_count_duration(struct metrics *m, double seconds)
{
    observe(&m->http_duration, http_edges, seconds, 1);
}

void metrics_count_params(struct metrics *m, int n, int max_tokens)
{
    observe(&m->params_n, n_edges, n, 1);
    observe(&m->params_max_tokens, count_edges, max_tokens, n);
}

void metrics_count_longest(struct metrics *m, int n_tokens)
{
    observe(&m->longest_output, count_edges, n_tokens, 1);
}

/* Times of a sequence that ended by itself. */
static void count_times(struct metrics *m, const struct engine_event *ev)
{
    if (!ev->start_ns || !ev->first_token_ns)
        return;
    observe(&m->prefill, e2e_edges, (ev->first_token_ns - ev->start_ns) * 1e-9, 1);
    observe(&m->decode, e2e_edges, (ev->last_token_ns - ev->first_token_ns) * 1e-9, 1);
    observe(&m->inference, e2e_edges, (ev->last_token_ns - ev->start_ns) * 1e-9, 1);
    if (ev->n_completion_tokens > 1)
        observe(&m->per_token, itl_edges,
                (ev->last_token_ns - ev->first_token_ns) * 1e-9 / (ev->n_completion_tokens - 1), 1);
}

void metrics_count_event(struct metrics *m, const struct engine_event *ev, int64_t prev_token_ns)
{
    int n_gaps = prev_token_ns ? ev->n_tokens : ev->n_tokens - 1;
    int64_t since = prev_token_ns ? prev_token_ns : ev->first_token_ns;

    if (!prev_token_ns && ev->n_tokens > 0 && ev->first_token_ns)
        observe(&m->ttft, ttft_edges, (ev->first_token_ns - ev->submit_ns) * 1e-9, 1);
    if (n_gaps > 0 && ev->last_token_ns > since)
        observe(&m->itl, itl_edges, (ev->last_token_ns - since) * 1e-9 / n_gaps, n_gaps);
    if (ev->finish != FINISH_STOP && ev->finish != FINISH_LENGTH)
        return;
    if (ev->last_token_ns)
        observe(&m->e2e, e2e_edges, (ev->last_token_ns - ev->submit_ns) * 1e-9, 1);
    if (ev->start_ns)
        observe(&m->queue, e2e_edges, (ev->start_ns - ev->submit_ns) * 1e-9, 1);
    count_times(m, ev);
    observe(&m->prompt_len, count_edges, ev->n_prompt_tokens, 1);
    observe(&m->output_len, count_edges, ev->n_completion_tokens, 1);
}

/* A label value: backslash, quote and newline are escaped, other bytes go as they are. */
static void add_label_value(struct strbuf *out, const char *s)
{
    strbuf_addch(out, '"');
    for (; *s; s++) {
        if (*s == '\\' || *s == '"')
            strbuf_addch(out, '\\');
        if (*s == '\n')
            strbuf_addstr(out, "\\n");
        else
            strbuf_addch(out, *s);
    }
    strbuf_addch(out, '"');
}

static void begin_family(struct strbuf *out, const char *name, const char *kind, const char *help)
{
    strbuf_addf(out, "# HELP %s %s\n# TYPE %s %s\n", name, help, name, kind);
}

static void write_value(struct strbuf *out, const char *name, const char *kind, const char *help,
                        const char *labels, double value)
{
    begin_family(out, name, kind, help);
    strbuf_addf(out, "%s{%s} %.15g\n", name, labels, value);
}

static void write_histogram(struct strbuf *out, const char *name, const char *help,
                            const char *labels, const struct histogram *h, const double *edges)
{
    int64_t n = 0;

    begin_family(out, name, "histogram", help);
    for (int i = 0; edges[i] > 0; i++) {
        n += h->counts[i];
        strbuf_addf(out, "%s_bucket{%s,le=\"%.10g\"} %lld\n", name, labels, edges[i], (long long)n);
    }
    strbuf_addf(out, "%s_bucket{%s,le=\"+Inf\"} %lld\n", name, labels, (long long)h->n);
    strbuf_addf(out, "%s_sum{%s} %.15g\n", name, labels, h->sum);
    strbuf_addf(out, "%s_count{%s} %lld\n", name, labels, (long long)h->n);
}

/* Each series under its own name and, where vLLM has it too, under that one. */
static void write_table(struct strbuf *out, const struct metrics *m, const struct engine_stats *s,
                        const struct engine_info *i, const char *own, const char *vllm)
{
    const char *alias;

#define METRIC(kind, name, alias_name, help, value)                                                \
    write_value(out, name, kind, help, own, (double)(value));                                      \
    alias = alias_name;                                                                            \
    if (alias)                                                                                     \
        write_value(out, alias, kind, "Alias of " name ".", vllm, (double)(value));
#define COUNTER(member, name, alias_name, help) METRIC("counter", name, alias_name, help, m->member)
#define HISTOGRAM(member, name, alias_name, help, edges)                                           \
    write_histogram(out, name, help, own, &m->member, edges);                                      \
    alias = alias_name;                                                                            \
    if (alias)                                                                                     \
        write_histogram(out, alias, "Alias of " name ".", vllm, &m->member, edges);
#include "server/metrics_table.h"
}

static void write_finished(struct strbuf *out, const struct engine_stats *s, const char *own,
                           const char *vllm)
{
    static const struct {
        enum finish_reason reason;
        const char *word;
    } reasons[] = {{FINISH_STOP, "stop"},
                   {FINISH_LENGTH, "length"},
                   {FINISH_CANCELED, "abort"},
                   {FINISH_ERROR, "error"}};
    static const char *const names[] = {"spand_request_success_total",
                                        "vllm:request_success_total"};

    for (int k = 0; k < 2; k++) {
        begin_family(out, names[k], "counter",
                     k ? "Alias of spand_request_success_total."
                       : "Sequences that ended, by reason.");
        for (int i = 0; i < 4; i++)
            strbuf_addf(out, "%s{%s,finished_reason=\"%s\"} %lld\n", names[k], k ? vllm : own,
                        reasons[i].word, (long long)s->n_finished[reasons[i].reason]);
    }
}

/* A family of its own and vLLM's, with a label that tells the parts apart. */
struct labelled {
    const char *name, *vllm, *kind, *help, *label;
    struct {
        const char *word, *vllm_word; /* vllm_word NULL: vLLM has no such part */
        int64_t n;
    } parts[5];
    int n_parts;
};

static void write_labelled(struct strbuf *out, const struct labelled *f, const char *own,
                           const char *vllm)
{
    begin_family(out, f->name, f->kind, f->help);
    for (int i = 0; i < f->n_parts; i++)
        strbuf_addf(out, "%s{%s,%s=\"%s\"} %lld\n", f->name, own, f->label, f->parts[i].word,
                    (long long)f->parts[i].n);
    strbuf_addf(out, "# HELP %s Alias of %s.\n# TYPE %s %s\n", f->vllm, f->name, f->vllm, f->kind);
    for (int i = 0; i < f->n_parts; i++) {
        if (f->parts[i].vllm_word)
            strbuf_addf(out, "%s{%s,%s=\"%s\"} %lld\n", f->vllm, vllm, f->label,
                        f->parts[i].vllm_word, (long long)f->parts[i].n);
    }
}

static void write_all_labelled(struct strbuf *out, const struct metrics *m,
                               const struct engine_stats *s, const char *own, const char *vllm)
{
    const struct labelled families[] = {
        {"spand_requests_waiting_by_reason",
         "vllm:num_requests_waiting_by_reason",
         "gauge",
         "Requests that wait: for a seat, or for a place in the queue.",
         "reason",
         {{"seat", "capacity", s->n_waiting}, {"queue", "deferred", m->n_parked}},
         2},
        {"spand_prompt_tokens_by_source_total",
         "vllm:prompt_tokens_by_source_total",
         "counter",
         "Prompt tokens by where their keys and values came from.",
         "source",
         {{"computed", "local_compute", s->prompt_tokens},
          {"cache", "local_cache_hit", s->n_prefix_found}},
         2},
        {"spand_admission_rejections_total",
         "vllm:admission_rejections_total",
         "counter",
         "Requests refused with status 429, by what was full.",
         "reason",
         {{"queue", "max_num_queued_reqs", s->n_refused[REFUSED_QUEUE] + m->n_refused_parked},
          {"tokens", "max_num_queued_tokens", s->n_refused[REFUSED_TOKENS]},
          {"memory", NULL, s->n_refused[REFUSED_MEMORY]},
          {"key", NULL, m->n_refused_key}},
         4},
    };

    for (size_t i = 0; i < sizeof(families) / sizeof(families[0]); i++)
        write_labelled(out, &families[i], own, vllm);
}

static void write_pages(struct strbuf *out, const struct engine_stats *s, const char *own)
{
    const struct {
        const char *word;
        int64_t n;
    } states[] = {{"free", s->pages_total - s->pages_used - s->pages.cached},
                  {"cached", s->pages.cached},
                  {"prefill", s->pages.prefill},
                  {"decode", s->pages.decode},
                  {"shared", s->pages.shared}};

    begin_family(
        out, "spand_kv_pages_by_state", "gauge",
        "Pages of the key-value pool: free, cached, or by what the sequence does that took them.");
    for (int i = 0; i < 5; i++)
        strbuf_addf(out, "spand_kv_pages_by_state{%s,state=\"%s\"} %lld\n", own, states[i].word,
                    (long long)states[i].n);
}

static void write_responses(struct strbuf *out, const struct metrics *m)
{
    begin_family(out, "spand_http_responses_total", "counter", "Answers by route and status.");
    for (int r = 0; r < router_count() && r < METRICS_MAX_ROUTES; r++) {
        for (int i = 0; i < METRICS_N_STATUS; i++) {
            if (m->responses[r][i] == 0)
                continue;
            strbuf_addf(out, "spand_http_responses_total{route=\"%s\",code=\"%d\"} %lld\n",
                        router_name(r), statuses[i], (long long)m->responses[r][i]);
        }
    }
}

static void write_ops(struct strbuf *out, const struct engine_stats *s)
{
    static const char *const names[] = {"spand_op_calls_total", "spand_op_seconds_total",
                                        "spand_op_timed_bytes_total", "spand_op_bytes_total",
                                        "spand_op_flops_total"};
    static const char *const helps[] = {
        "Calls of a backend op.",
        "Time spent in it in the steps whose ops are timed: on the CPU all, on a GPU one in "
        "op_timing_steps.",
        "Bytes it had to move in those steps.",
        "Bytes it had to move; those of attention on a GPU are estimated from those steps.",
        "Operations it had to do."};

    for (int k = 0; k < 5 && s->n_ops > 0; k++) {
        begin_family(out, names[k], "counter", helps[k]);
        for (int i = 0; i < s->n_ops; i++) {
            double v[] = {s->ops[i].n_calls, s->ops[i].ns * 1e-9, s->ops[i].timed_bytes,
                          s->ops[i].bytes, s->ops[i].flops};

            strbuf_addf(out, "%s{op=\"%s\"} %.15g\n", names[k], s->ops[i].name, v[k]);
        }
    }
}

/* Of the time that the memory's speed leaves: 1 is as fast as the bytes can be read. */
static void write_limit_ratios(struct strbuf *out, const struct engine_stats *s)
{
    double bytes = 0;

    if (s->memory_bytes_per_s == 0)
        return;
    begin_family(
        out, "spand_op_memory_limit_ratio", "gauge",
        "Share of the memory's speed that an op reached, mean; with measure_memory. Ops that "
        "compute a lot, those of prompts, are bound by arithmetic instead.");
    for (int i = 0; i < s->n_ops; i++) {
        bytes += s->ops[i].bytes;
        if (s->ops[i].ns > 0)
            strbuf_addf(out, "spand_op_memory_limit_ratio{op=\"%s\"} %.6g\n", s->ops[i].name,
                        s->ops[i].timed_bytes / (s->ops[i].ns * 1e-9) / s->memory_bytes_per_s);
    }
    write_value(out, "spand_memory_limit_ratio", "gauge",
                "The same for all that the device did, mean; with measure_memory.", "device=\"0\"",
                s->device_ns ? bytes / (s->device_ns * 1e-9) / s->memory_bytes_per_s : 0);
}

/* Means since start; rates over a window are rate(timed_bytes) / rate(seconds). */
static void write_op_rates(struct strbuf *out, const struct engine_stats *s)
{
    begin_family(out, "spand_op_bytes_per_second", "gauge",
                 "Memory that an op moved a second, mean.");
    for (int i = 0; i < s->n_ops; i++)
        strbuf_addf(out, "spand_op_bytes_per_second{op=\"%s\"} %.15g\n", s->ops[i].name,
                    s->ops[i].ns ? s->ops[i].timed_bytes / (s->ops[i].ns * 1e-9) : 0);
}

/*
 * The picker takes the cache's size from these labels, in vLLM's words: its block serves all heads
 * of all layers, ours one head, so one of its blocks is as many of our pages as there are heads.
 */
static void write_infos(struct strbuf *out, const struct metrics *m, const struct engine_stats *s,
                        const struct engine_info *i, const char *vllm)
{
    int64_t n_heads = (int64_t)i->n_layers * i->n_kv_heads;

    begin_family(out, "spand_build_info", "gauge", "Which build serves which model.");
    strbuf_addf(out, "spand_build_info{version=\"%s\",commit=\"%s\",model_name=", build_version(),
                build_commit());
    add_label_value(out, i->model_id);
    strbuf_addstr(out, ",plan=");
    add_label_value(out, i->plan ? i->plan : "");
    strbuf_addstr(out, ",device=");
    add_label_value(out, i->device ? i->device : "");
    strbuf_addf(out, ",dtype=\"%s\"} 1\n", i->dtype ? i->dtype : "");
    begin_family(out, "vllm:cache_config_info", "gauge", "Size of the key-value cache.");
    strbuf_addf(out,
                "vllm:cache_config_info{%s,block_size=\"%d\",num_gpu_blocks=\"%lld\","
                "cache_dtype=\"auto\",enable_prefix_caching=\"%s\"} 1\n",
                vllm, i->page_tokens, (long long)(n_heads ? s->pages_total / n_heads : 0),
                m->has_prefix_cache ? "True" : "False");
}

static void write_iterations(struct strbuf *out, const struct engine_stats *s, const char *own,
                             const char *vllm)
{
    struct histogram h = {.n = s->n_steps, .sum = (double)s->n_rows};

    memcpy(h.counts, s->rows_counts, sizeof(s->rows_counts));
    h.counts[METRICS_MAX_EDGES] = s->rows_counts[ENGINE_N_ROWS_EDGES];
    write_histogram(out, "spand_iteration_tokens", "Rows of a step: prompt and decode.", own, &h,
                    rows_edges);
    write_histogram(out, "vllm:iteration_tokens_total", "Alias of spand_iteration_tokens.", vllm,
                    &h, rows_edges);
}

/* The names that Prometheus' own client libraries give. */
static void write_process(struct strbuf *out)
{
    static const char label[] = "process=\"spand\"";
    struct rusage usage;
    struct rlimit fds;
    long long total = 0, resident = 0;
    FILE *f = fopen("/proc/self/statm", "r");
    DIR *dir = opendir("/proc/self/fd");
    int n_fds = 0;

    if (f && fscanf(f, "%lld %lld", &total, &resident) == 2) {
        write_value(out, "process_resident_memory_bytes", "gauge", "Resident memory.", label,
                    (double)resident * sysconf(_SC_PAGESIZE));
        write_value(out, "process_virtual_memory_bytes", "gauge", "Virtual memory.", label,
                    (double)total * sysconf(_SC_PAGESIZE));
    }
    if (f)
        fclose(f);
    while (dir && readdir(dir))
        n_fds++;
    if (dir) {
        closedir(dir);
        write_value(out, "process_open_fds", "gauge", "Open descriptors.", label, n_fds - 3);
    }
    if (getrlimit(RLIMIT_NOFILE, &fds) == 0)
        write_value(out, "process_max_fds", "gauge", "Descriptors that may be open.", label,
                    (double)fds.rlim_cur);
    if (getrusage(RUSAGE_SELF, &usage) == 0)
        write_value(out, "process_cpu_seconds_total", "counter", "Processor time.", label,
                    usage.ru_utime.tv_sec + usage.ru_stime.tv_sec +
                        1e-6 * (usage.ru_utime.tv_usec + usage.ru_stime.tv_usec));
}

void metrics_write(const struct metrics *m, const struct engine_stats *s,
                   const struct engine_info *i, struct strbuf *out)
{
    struct strbuf own = STRBUF_INIT;
    struct strbuf vllm = STRBUF_INIT;

    strbuf_addstr(&own, "model_name=");
    add_label_value(&own, i->model_id);
    strbuf_addf(&vllm, "engine=\"0\",%s", own.buf);
    write_table(out, m, s, i, own.buf, vllm.buf);
    write_finished(out, s, own.buf, vllm.buf);
    write_all_labelled(out, m, s, own.buf, vllm.buf);
    write_pages(out, s, own.buf);
    write_responses(out, m);
    write_iterations(out, s, own.buf, vllm.buf);
    write_ops(out, s);
    write_op_rates(out, s);
    write_limit_ratios(out, s);
    write_infos(out, m, s, i, vllm.buf);
    write_process(out);
    out->failed |= own.failed | vllm.failed;
    strbuf_release(&own);
    strbuf_release(&vllm);
}
