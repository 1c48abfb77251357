/*
 * http_load - requests out, events in, times kept. See http_load.h.
 *
 * Events are searched for the few keys that matter, not parsed: at 100 thousand tokens a second a
 * JSON parser would measure itself. In a JSON text a quoted key cannot occur inside a string, whose
 * quotes are escaped, so the search does not err. Only the event with the usage is parsed.
 */
#include "tests/bench/http_load.h"

#include "base/check.h"
#include "base/clock.h"
#include "base/rng.h"
#include "tests/bench/http_conn.h"
#include "tests/bench/sse_reader.h"

#include <jansson.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>
#include <uv.h>

#define TICK_MS       500
#define BODY_MAX      ((size_t)64 << 20) /* of an answer that is not streamed */
#define ERROR_EXCERPT 200                /* bytes of a refusal that is not the JSON we know */

struct load;

struct stream { /* one client */
    struct load *load;
    struct http_conn conn;
    struct sse_reader sse;
    struct strbuf body; /* not streamed, or a refusal */
    int64_t sent_ns, first_ns, last_ns;
    int64_t n_events;
    int64_t prompt_tokens, completion_tokens; /* -1 until the usage is there */
    bool has_done;
    struct http_samples gaps;
    struct err err; /* what is wrong with the response */
};

struct load {
    const struct http_load_params *params;
    struct http_load_result *out;
    http_load_progress_fn *on_progress;
    void *progress_arg;
    uv_loop_t uv;
    uv_timer_t timer;
    uv_signal_t sigint;
    struct stream *streams; /* [n_streams] */
    struct strbuf request, request_body;
    bool is_warmup;
    int next, limit; /* requests of this phase, the warm-up or the rest: begun, and in all */
    int n_running;   /* streams that are not through with it */
    int64_t start_ns;
    struct rusage start_usage;
    struct err err; /* what ends the run */
};

static void samples_add(struct http_samples *s, int64_t ns)
{
    if (s->n == s->alloc) {
        size_t alloc = s->alloc ? s->alloc * 2 : 64;
        int64_t *grown = realloc(s->ns, alloc * sizeof(*grown));

        if (!grown) {
            s->failed = true;
            return;
        }
        s->ns = grown;
        s->alloc = alloc;
    }
    s->ns[s->n++] = ns;
}

/* ---- what is sent ---- */

static void write_prompt(struct strbuf *out, const struct http_load_params *p, uint32_t number)
{
    struct strbuf text = STRBUF_INIT;

    if (p->prompt) {
        /* In front, so that no two requests share a prefix that a server could have cached. */
        strbuf_addf(&text, "%llu-%u. %s", (unsigned long long)p->seed, number, p->prompt);
        strbuf_add_json(out, text.buf, text.len);
        out->failed |= text.failed;
        strbuf_release(&text);
        return;
    }
    strbuf_addch(out, '[');
    for (int i = 0; i < p->prompt_tokens; i++) {
        unsigned id = (unsigned)(rng_u64(p->seed, number, i) % (uint64_t)p->vocab_size);

        strbuf_addf(out, i ? ",%u" : "%u", id);
    }
    strbuf_addch(out, ']');
}

/* `number` counts the warm-up too, so that it leaves nothing behind that the rest could reuse. */
static void write_request(struct load *l, uint32_t number)
{
    const struct http_load_params *p = l->params;
    struct strbuf *body = &l->request_body, *out = &l->request;

    strbuf_reset(body);
    strbuf_addch(body, '{');
    if (p->model) {
        strbuf_addstr(body, "\"model\":");
        strbuf_add_json(body, p->model, strlen(p->model));
        strbuf_addch(body, ',');
    }
    strbuf_addstr(body, "\"prompt\":");
    write_prompt(body, p, number);
    strbuf_addf(body, ",\"max_tokens\":%d,\"temperature\":%g,\"seed\":%u,\"ignore_eos\":true",
                p->max_tokens, p->temperature, number);
    if (p->stream)
        strbuf_addstr(body, ",\"stream\":true,\"stream_options\":{\"include_usage\":true}");
    strbuf_addch(body, '}');

    strbuf_reset(out);
    strbuf_addf(out, "POST %s/v1/completions HTTP/1.1\r\nHost: %s\r\n", p->prefix, p->host);
    strbuf_addf(out, "Content-Type: application/json\r\nContent-Length: %zu\r\n", body->len);
    strbuf_addstr(out, "\r\n");
    strbuf_add(out, body->buf, body->len);
    out->failed |= body->failed;
}

/* ---- what comes back ---- */

/* Behind `"key":`, or NULL. */
static const char *find_value(const char *json, const char *key)
{
    size_t len = strlen(key);

    for (const char *at = json; (at = strstr(at, key)); at += len) {
        const char *value = at + len + strspn(at + len, " ");

        if (*value == ':')
            return value + 1 + strspn(value + 1, " ");
    }
    return NULL;
}

static bool has_text(const char *json)
{
    const char *value = find_value(json, "\"text\"");

    return value && value[0] == '"' && value[1] != '"';
}

/* The message of {"error": {"message": ...}} or the beginning of whatever it is. */
static void read_error(struct err *err, const char *what, const char *body, size_t len)
{
    json_t *root = json_loadb(body, len, 0, NULL);
    json_t *message = json_object_get(json_object_get(root, "error"), "message");

    if (json_is_string(message))
        err_set(err, ERR_INVALID, "%s: %s", what, json_string_value(message));
    else
        err_set(err, ERR_INVALID, "%s: %.*s", what, len > ERROR_EXCERPT ? ERROR_EXCERPT : (int)len,
                body);
    json_decref(root);
}

static void read_usage(struct stream *s, const char *body, size_t len)
{
    json_error_t je;
    json_t *root = json_loadb(body, len, 0, &je);
    json_t *usage = json_object_get(root, "usage");
    json_t *prompt = json_object_get(usage, "prompt_tokens");
    json_t *completion = json_object_get(usage, "completion_tokens");

    if (!root) {
        err_set(&s->err, ERR_PARSE, "the answer is not JSON: %s", je.text);
    } else if (json_is_integer(prompt) && json_is_integer(completion)) {
        s->prompt_tokens = json_integer_value(prompt);
        s->completion_tokens = json_integer_value(completion);
    }
    json_decref(root);
}

struct event_args {
    struct stream *stream;
    int64_t now_ns;
};

static void on_event(void *arg, const char *data, size_t len)
{
    const struct event_args *a = arg;
    struct stream *s = a->stream;
    const char *usage;

    if (s->has_done || s->err.code)
        return;
    if (!strcmp(data, "[DONE]")) {
        s->has_done = true;
        return;
    }
    if (has_text(data)) {
        if (s->n_events++ == 0)
            s->first_ns = a->now_ns;
        else
            samples_add(&s->gaps, a->now_ns - s->last_ns);
        s->last_ns = a->now_ns;
    }
    usage = find_value(data, "\"usage\"");
    if (usage && *usage == '{')
        read_usage(s, data, len);
    else if (!usage && find_value(data, "\"error\""))
        read_error(&s->err, "error in the stream", data, len);
}

static void on_sent(void *arg, int64_t now_ns)
{
    struct stream *s = arg;

    s->sent_ns = now_ns;
}

static void on_body(void *arg, int status, const char *data, size_t len, int64_t now_ns)
{
    struct stream *s = arg;
    struct event_args args = {.stream = s, .now_ns = now_ns};

    if (s->err.code)
        return; /* on_tick() ends the request if the server does not */
    if (status == 200 && s->load->params->stream)
        sse_reader_feed(&s->sse, data, len, on_event, &args, &s->err);
    else if (s->body.len + len > BODY_MAX)
        err_set(&s->err, ERR_LIMIT, "an answer of more than %zu bytes", BODY_MAX);
    else
        strbuf_add(&s->body, data, len);
}

/* Judges a response that has arrived completely: what is wrong goes to s->err. */
static void check_answer(struct stream *s, int status)
{
    bool is_stream = s->load->params->stream;
    char what[32];

    if (s->body.failed)
        err_set(&s->err, ERR_NO_ROOM, "out of memory");
    if (status != 200) {
        snprintf(what, sizeof(what), "HTTP %d", status);
        read_error(&s->err, what, s->body.buf, s->body.len);
    } else if (!is_stream && !s->err.code) {
        read_usage(s, s->body.buf, s->body.len);
    }
    if (is_stream && !s->has_done)
        err_set(&s->err, ERR_PARSE, "the stream ended without [DONE]");
    if (s->completion_tokens < 0)
        err_set(&s->err, ERR_PARSE, "the answer has no usage");
}

static void count_answer(struct stream *s, int64_t now_ns)
{
    struct http_load_result *out = s->load->out;

    out->n_ok++;
    out->n_short += s->completion_tokens < s->load->params->max_tokens;
    out->prompt_tokens += s->prompt_tokens;
    out->completion_tokens += s->completion_tokens;
    out->n_events += s->n_events;
    samples_add(&out->total, now_ns - s->sent_ns);
    if (s->n_events > 0)
        samples_add(&out->ttft, s->first_ns - s->sent_ns);
    if (s->n_events > 1 && s->completion_tokens > 1)
        samples_add(&out->tpot, (s->last_ns - s->first_ns) / (s->completion_tokens - 1));
    for (size_t i = 0; i < s->gaps.n; i++)
        samples_add(&out->itl, s->gaps.ns[i]);
    out->itl.failed |= s->gaps.failed;
}

/* ---- the run ---- */

static void start_phase(struct load *l, bool is_warmup);

static void end_run(struct load *l)
{
    struct http_load_result *out = l->out;
    struct rusage now;
    int64_t cpu_us;

    getrusage(RUSAGE_SELF, &now);
    cpu_us = (int64_t)(now.ru_utime.tv_sec - l->start_usage.ru_utime.tv_sec + now.ru_stime.tv_sec -
                       l->start_usage.ru_stime.tv_sec) *
                 1000000 +
             (now.ru_utime.tv_usec - l->start_usage.ru_utime.tv_usec) +
             (now.ru_stime.tv_usec - l->start_usage.ru_stime.tv_usec);
    out->wall_ns = clock_ns() - l->start_ns;
    out->client_cpu = out->wall_ns > 0 ? cpu_us * 1e3 / out->wall_ns : 0;
    for (int i = 0; i < l->params->n_streams; i++) {
        out->n_connects += l->streams[i].conn.n_connects;
        out->n_repeats += l->streams[i].conn.n_repeats;
        http_conn_close(&l->streams[i].conn);
    }
    uv_close((uv_handle_t *)&l->timer, NULL);
    uv_close((uv_handle_t *)&l->sigint, NULL);
}

static void next_request(struct stream *s)
{
    struct load *l = s->load;
    struct err *err = &l->err;
    uint32_t number = (uint32_t)(l->is_warmup ? l->next : l->params->n_warmup + l->next);

    if (l->next < l->limit && !l->out->interrupted && !err->code) {
        l->next++;
        write_request(l, number);
        sse_reader_reset(&s->sse);
        strbuf_reset(&s->body);
        s->n_events = 0;
        s->gaps.n = 0;
        s->prompt_tokens = s->completion_tokens = -1;
        s->has_done = false;
        s->err = (struct err){0};
        if (l->request.failed)
            err_set(err, ERR_NO_ROOM, "a request's text: out of memory");
        else if (http_conn_send(&s->conn, l->request.buf, l->request.len, err) == 0)
            return;
    }
    if (--l->n_running > 0)
        return;
    if (l->is_warmup && !l->out->interrupted && !err->code)
        start_phase(l, false);
    else
        end_run(l);
}

/* Ends what is under way, after the reason was noted in out->interrupted or err. */
static void stop_all(struct load *l, const char *why)
{
    for (int i = 0; i < l->params->n_streams; i++)
        http_conn_abort(&l->streams[i].conn, why);
}

static void on_end(void *arg, int status, int64_t now_ns, const struct err *err)
{
    struct stream *s = arg;
    struct load *l = s->load;

    if (!l->out->interrupted && !l->err.code) {
        if (err)
            err_set(&s->err, err->code, "%s", err->msg);
        else
            check_answer(s, status);
        if (s->err.code && l->is_warmup) {
            err_set(&l->err, s->err.code, "warm-up: %s", s->err.msg);
            stop_all(l, "stopped");
        } else if (s->err.code) {
            l->out->n_errors++;
            err_set(&l->out->first_error, s->err.code, "%s", s->err.msg);
        } else if (!l->is_warmup) {
            count_answer(s, now_ns);
        }
    }
    next_request(s);
}

static void start_phase(struct load *l, bool is_warmup)
{
    l->is_warmup = is_warmup;
    l->next = 0;
    l->limit = is_warmup ? l->params->n_warmup : l->params->n_requests;
    l->n_running = l->params->n_streams;
    l->start_ns = clock_ns();
    getrusage(RUSAGE_SELF, &l->start_usage);
    for (int i = 0; i < l->params->n_streams; i++)
        next_request(&l->streams[i]);
}

static void on_tick(uv_timer_t *timer)
{
    struct load *l = timer->data;
    int64_t now_ns = clock_ns();
    int64_t limit_ns = (int64_t)l->params->timeout_ms * 1000000;

    for (int i = 0; i < l->params->n_streams; i++) {
        struct stream *s = &l->streams[i];

        if (s->err.code)
            http_conn_abort(&s->conn, s->err.msg);
        else if (http_conn_idle_ns(&s->conn, now_ns) > limit_ns)
            http_conn_abort(&s->conn, "timed out: no byte moved");
    }
    if (l->on_progress && !l->is_warmup && l->n_running > 0) {
        l->out->wall_ns = now_ns - l->start_ns;
        l->on_progress(l->progress_arg, l->out);
    }
}

static void on_sigint(uv_signal_t *signal, int number)
{
    struct load *l = signal->data;

    (void)number;
    l->out->interrupted = true;
    stop_all(l, "interrupted");
}

static const struct http_conn_handler handler = {
    .on_sent = on_sent,
    .on_body = on_body,
    .on_end = on_end,
};

int http_load_run(struct http_load_result *out, const struct http_load_params *params,
                  http_load_progress_fn *on_progress, void *arg, struct err *err)
{
    struct load l = {.params = params,
                     .out = out,
                     .on_progress = on_progress,
                     .progress_arg = arg,
                     .request = STRBUF_INIT,
                     .request_body = STRBUF_INIT};
    int rc;

    *out = (struct http_load_result){0};
    l.streams = calloc(params->n_streams, sizeof(*l.streams));
    if (!l.streams)
        return err_set(err, ERR_NO_ROOM, "%d streams: out of memory", params->n_streams);
    rc = uv_loop_init(&l.uv);
    if (rc < 0) {
        free(l.streams);
        return err_set(err, ERR_IO, "event loop: %s", uv_strerror(rc));
    }
    for (int i = 0; i < params->n_streams; i++) {
        l.streams[i].load = &l;
        sse_reader_init(&l.streams[i].sse);
        strbuf_init(&l.streams[i].body);
        http_conn_init(&l.streams[i].conn, &l.uv, &params->addr, &handler, &l.streams[i]);
    }
    uv_timer_init(&l.uv, &l.timer);
    uv_signal_init(&l.uv, &l.sigint);
    l.timer.data = l.sigint.data = &l;
    uv_timer_start(&l.timer, on_tick, TICK_MS, TICK_MS);
    uv_signal_start(&l.sigint, on_sigint, SIGINT);

    start_phase(&l, params->n_warmup > 0);
    uv_run(&l.uv, UV_RUN_DEFAULT);
    rc = uv_loop_close(&l.uv);
    CHECK(rc == 0);

    for (int i = 0; i < params->n_streams; i++) {
        http_conn_release(&l.streams[i].conn);
        sse_reader_release(&l.streams[i].sse);
        strbuf_release(&l.streams[i].body);
        free(l.streams[i].gaps.ns);
    }
    free(l.streams);
    strbuf_release(&l.request);
    strbuf_release(&l.request_body);
    return l.err.code ? err_set(err, l.err.code, "%s", l.err.msg) : 0;
}

void http_load_result_release(struct http_load_result *r)
{
    struct http_samples *all[] = {&r->ttft, &r->itl, &r->tpot, &r->total};

    for (size_t i = 0; i < sizeof(all) / sizeof(all[0]); i++)
        free(all[i]->ns);
}
