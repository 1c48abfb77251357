/*
 * otlp_export - the queue, the batches and the posts. See otlp_export.h.
 */
#include "server/otlp_export.h"

#include "base/build_info.h"
#include "base/clock.h"
#include "base/err.h"
#include "base/log.h"
#include "base/strbuf.h"
#include "config/config.h"

#include <curl/curl.h>
#include <errno.h>
#include <jansson.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#define QUEUE_SPANS   8192
#define QUEUE_BYTES   (8 << 20)
#define BATCH_SPANS   512
#define BATCH_WAIT_NS INT64_C(1000000000) /* so that a batch is worth its post */
#define POST_MS       10000L
#define CONNECT_MS    3000L
#define MAX_TRIES     5
#define RETRY_MAX_S   30
#define CLOSE_NS      INT64_C(2000000000)
#define ANSWER_BYTES  65536 /* of the collector's answer; the rest is not read */
#define HEADER_BYTES  8192

/* The spans of one request. */
struct record {
    struct record *next;
    char *json;
    size_t len;
    int n_spans;
};

struct otlp_export {
    pthread_t thread;
    pthread_mutex_t mu; /* guards the queue, counts and closing */
    pthread_cond_t news;
    struct record *first, **last;
    int n_queued;
    size_t queued_bytes;
    struct otlp_counts counts;
    bool closing;
    int64_t close_ns; /* when all must be over */

    /* The thread's own. */
    CURL *curl;
    struct curl_slist *headers;
    struct strbuf body, answer;
    const char *url, *service; /* borrowed from the config */
    bool is_failing;
};

/* The loop's side */

void otlp_export_add(struct otlp_export *x, struct strbuf *spans, int n_spans)
{
    struct record *r = x ? malloc(sizeof(*r)) : NULL;
    bool taken = false;

    if (!x)
        return;
    if (r) {
        *r = (struct record){.n_spans = n_spans};
        r->json = strbuf_detach(spans, &r->len);
    }
    pthread_mutex_lock(&x->mu);
    if (r && r->json && !x->closing && x->n_queued + n_spans <= QUEUE_SPANS &&
        x->queued_bytes + r->len <= QUEUE_BYTES) {
        *x->last = r;
        x->last = &r->next;
        x->n_queued += n_spans;
        x->queued_bytes += r->len;
        taken = true;
        if (x->n_queued == n_spans || x->n_queued >= BATCH_SPANS)
            pthread_cond_signal(&x->news);
    } else {
        x->counts.n_dropped += n_spans;
    }
    pthread_mutex_unlock(&x->mu);
    if (!taken && r) {
        free(r->json);
        free(r);
    }
    strbuf_release(spans);
}

void otlp_export_counts(struct otlp_export *x, struct otlp_counts *out)
{
    *out = (struct otlp_counts){0};
    if (!x)
        return;
    pthread_mutex_lock(&x->mu);
    *out = x->counts;
    pthread_mutex_unlock(&x->mu);
}

/* The thread's side */

static void wait_until(struct otlp_export *x, int64_t ns)
{
    struct timespec until = {.tv_sec = ns / 1000000000, .tv_nsec = ns % 1000000000};

    pthread_cond_timedwait(&x->news, &x->mu, &until);
}

static void free_records(struct record *r)
{
    while (r) {
        struct record *next = r->next;

        free(r->json);
        free(r);
        r = next;
    }
}

/* Waits for a batch and takes it out; NULL at the end. */
static struct record *take_batch(struct otlp_export *x, int *n_spans)
{
    struct record *batch, *r;
    int64_t until;

    *n_spans = 0;
    pthread_mutex_lock(&x->mu);
    while (!x->first && !x->closing)
        pthread_cond_wait(&x->news, &x->mu);
    until = clock_ns() + BATCH_WAIT_NS;
    while (x->n_queued < BATCH_SPANS && !x->closing && clock_ns() < until)
        wait_until(x, until);
    batch = x->first;
    for (r = batch; r; r = r->next) {
        *n_spans += r->n_spans;
        x->queued_bytes -= r->len;
        if (*n_spans >= BATCH_SPANS)
            break;
    }
    x->n_queued -= *n_spans;
    x->first = r ? r->next : NULL;
    if (!x->first)
        x->last = &x->first;
    if (r)
        r->next = NULL;
    pthread_mutex_unlock(&x->mu);
    return batch;
}

static void add_attribute(struct strbuf *out, const char *key, const char *value)
{
    strbuf_addf(out, "{\"key\":\"%s\",\"value\":{\"stringValue\":", key);
    strbuf_add_json(out, value, strlen(value));
    strbuf_addstr(out, "}}");
}

static void write_body(struct otlp_export *x, const struct record *batch)
{
    char host[256] = "";

    gethostname(host, sizeof(host) - 1);
    strbuf_reset(&x->body);
    strbuf_addstr(&x->body, "{\"resourceSpans\":[{\"resource\":{\"attributes\":[");
    add_attribute(&x->body, "service.name", x->service);
    strbuf_addch(&x->body, ',');
    add_attribute(&x->body, "service.version", build_version());
    strbuf_addch(&x->body, ',');
    add_attribute(&x->body, "host.name", host);
    strbuf_addf(&x->body, ",{\"key\":\"process.pid\",\"value\":{\"intValue\":\"%d\"}}",
                (int)getpid());
    strbuf_addf(&x->body,
                "]},\"scopeSpans\":[{\"scope\":{\"name\":\"spand\",\"version\":\"%s\"},\"spans\":[",
                build_version());
    for (const struct record *r = batch; r; r = r->next) {
        if (r != batch)
            strbuf_addch(&x->body, ',');
        strbuf_add(&x->body, r->json, r->len);
    }
    strbuf_addstr(&x->body, "]}]}]}");
}

static size_t on_answer(char *data, size_t size, size_t n, void *arg)
{
    struct otlp_export *x = arg;
    size_t len = size * n, room = ANSWER_BYTES - x->answer.len;

    strbuf_add(&x->answer, data, len < room ? len : room);
    return len;
}

static int on_progress(void *arg, curl_off_t dl, curl_off_t dl_now, curl_off_t ul,
                       curl_off_t ul_now)
{
    struct otlp_export *x = arg;
    bool over;

    (void)dl, (void)dl_now, (void)ul, (void)ul_now;
    pthread_mutex_lock(&x->mu);
    over = x->closing && clock_ns() >= x->close_ns;
    pthread_mutex_unlock(&x->mu);
    return over;
}

/* What the collector would not have of a batch it took. */
static int64_t rejected_spans(const struct otlp_export *x)
{
    json_t *answer = json_loadb(x->answer.buf, x->answer.len, 0, NULL);
    const json_t *n = json_object_get(json_object_get(answer, "partialSuccess"), "rejectedSpans");
    int64_t v = json_is_string(n) ? atoll(json_string_value(n)) : json_integer_value(n);

    json_decref(answer);
    return v > 0 ? v : 0;
}

/* 0: taken; > 0: seconds until it is worth another try; -1: it never will be. */
static int post(struct otlp_export *x, int n_try, char why[CURL_ERROR_SIZE])
{
    curl_off_t wait_s = 0;
    long status = 0;
    CURLcode rc;

    why[0] = '\0';
    strbuf_reset(&x->answer);
    curl_easy_setopt(x->curl, CURLOPT_ERRORBUFFER, why);
    curl_easy_setopt(x->curl, CURLOPT_POSTFIELDS, x->body.buf);
    curl_easy_setopt(x->curl, CURLOPT_POSTFIELDSIZE_LARGE, (curl_off_t)x->body.len);
    rc = curl_easy_perform(x->curl);
    curl_easy_getinfo(x->curl, CURLINFO_RESPONSE_CODE, &status);
    curl_easy_getinfo(x->curl, CURLINFO_RETRY_AFTER, &wait_s);
    if (rc == CURLE_OK && status >= 200 && status < 300)
        return 0;
    if (rc != CURLE_OK && !why[0])
        snprintf(why, CURL_ERROR_SIZE, "%s", curl_easy_strerror(rc));
    else if (rc == CURLE_OK)
        snprintf(why, CURL_ERROR_SIZE, "status %ld", status);
    if (rc == CURLE_OK && status != 429 && status != 502 && status != 503 && status != 504)
        return -1;
    if (wait_s <= 0)
        wait_s = (curl_off_t)1 << n_try;
    return wait_s < RETRY_MAX_S ? (int)wait_s : RETRY_MAX_S;
}

/* A collector that is gone is told of once, not with every batch. */
static void note(struct otlp_export *x, bool failed, const char *why)
{
    if (failed && !x->is_failing)
        log_warn("traces: %s does not take them: %s", x->url, why);
    else if (!failed && x->is_failing)
        log_info("traces: %s takes them again", x->url);
    x->is_failing = failed;
}

/* Waits before the next try; false when there is no time for one. */
static bool pause_s(struct otlp_export *x, int s)
{
    int64_t until = clock_ns() + s * INT64_C(1000000000);
    bool on;

    pthread_mutex_lock(&x->mu);
    while (!x->closing && clock_ns() < until)
        wait_until(x, until);
    on = !x->closing;
    pthread_mutex_unlock(&x->mu);
    return on;
}

static void send_batch(struct otlp_export *x, const struct record *batch, int n_spans)
{
    char why[CURL_ERROR_SIZE] = "out of memory";
    int64_t n_sent = 0, n_failed = 0;

    write_body(x, batch);
    for (int n_try = 0; n_try < MAX_TRIES && !x->body.failed; n_try++) {
        int rc = post(x, n_try, why);

        if (rc == 0) {
            n_sent = n_spans - rejected_spans(x);
            break;
        }
        n_failed++;
        note(x, true, why);
        if (rc < 0 || !pause_s(x, rc))
            break;
    }
    if (n_sent > 0)
        note(x, false, why);
    n_sent = n_sent > 0 ? n_sent : 0;
    pthread_mutex_lock(&x->mu);
    x->counts.n_sent += n_sent;
    x->counts.n_dropped += n_spans - n_sent;
    x->counts.n_failed_posts += n_failed;
    pthread_mutex_unlock(&x->mu);
}

static void *run(void *arg)
{
    struct otlp_export *x = arg;
    struct record *batch;
    int n_spans;

    pthread_setname_np(pthread_self(), "spand-traces");
    while ((batch = take_batch(x, &n_spans))) {
        send_batch(x, batch, n_spans);
        free_records(batch);
    }
    return NULL;
}

/* Life */

static int add_header(struct otlp_export *x, const char *line, struct err *err)
{
    struct curl_slist *more = curl_slist_append(x->headers, line);

    if (!more)
        return err_set(err, ERR_NO_ROOM, "traces: out of memory");
    x->headers = more;
    return 0;
}

/* Lines of "Name: value", such as a collector's key; blank ones and those behind # are left out. */
static int read_headers(struct otlp_export *x, const char *path, struct err *err)
{
    char line[HEADER_BYTES];
    FILE *f = fopen(path, "re");
    int rc = 0, n = 0;

    if (!f)
        return err_set_errno(err, ERR_IO, errno, "otlp_headers_file %s", path);
    while (rc == 0 && fgets(line, sizeof(line), f)) {
        n++;
        if (!strchr(line, '\n') && !feof(f))
            rc = err_set(err, ERR_INVALID, "otlp_headers_file %s: line %d is too long", path, n);
        line[strcspn(line, "\r\n")] = '\0';
        if (rc < 0 || !line[0] || line[0] == '#')
            continue;
        if (!strchr(line, ':') || line[0] == ':')
            rc = err_set(err, ERR_INVALID, "otlp_headers_file %s: line %d is not Name: value", path,
                         n);
        else
            rc = add_header(x, line, err);
    }
    if (rc == 0 && ferror(f))
        rc = err_set_errno(err, ERR_IO, errno, "otlp_headers_file %s", path);
    fclose(f);
    return rc;
}

static int open_curl(struct otlp_export *x, const struct config *c, struct err *err)
{
    int rc;

    if (strncmp(x->url, "http://", 7) && strncmp(x->url, "https://", 8))
        return err_set(err, ERR_INVALID, "otlp_traces_endpoint %s: want http:// or https://",
                       x->url);
    x->curl = curl_easy_init();
    if (!x->curl || curl_easy_setopt(x->curl, CURLOPT_URL, x->url) != CURLE_OK)
        return err_set(err, ERR_NO_ROOM, "traces: libcurl does not start");
    rc = add_header(x, "Content-Type: application/json", err);
    if (rc == 0)
        rc = add_header(x, "Expect:", err); /* a second round trip for nothing */
    if (rc == 0 && c->otlp_headers_file[0])
        rc = read_headers(x, c->otlp_headers_file, err);
    curl_easy_setopt(x->curl, CURLOPT_HTTPHEADER, x->headers);
    curl_easy_setopt(x->curl, CURLOPT_POST, 1L);
    curl_easy_setopt(x->curl, CURLOPT_USERAGENT, "spand");
    curl_easy_setopt(x->curl, CURLOPT_NOSIGNAL, 1L);
    curl_easy_setopt(x->curl, CURLOPT_TIMEOUT_MS, POST_MS);
    curl_easy_setopt(x->curl, CURLOPT_CONNECTTIMEOUT_MS, CONNECT_MS);
    curl_easy_setopt(x->curl, CURLOPT_WRITEFUNCTION, on_answer);
    curl_easy_setopt(x->curl, CURLOPT_WRITEDATA, x);
    curl_easy_setopt(x->curl, CURLOPT_XFERINFOFUNCTION, on_progress);
    curl_easy_setopt(x->curl, CURLOPT_XFERINFODATA, x);
    curl_easy_setopt(x->curl, CURLOPT_NOPROGRESS, 0L);
    return rc;
}

static void free_export(struct otlp_export *x)
{
    free_records(x->first);
    curl_easy_cleanup(x->curl);
    curl_slist_free_all(x->headers);
    strbuf_release(&x->body);
    strbuf_release(&x->answer);
    pthread_cond_destroy(&x->news);
    pthread_mutex_destroy(&x->mu);
    free(x);
    curl_global_cleanup();
}

int otlp_export_open(struct otlp_export **out, const struct config *config, struct err *err)
{
    pthread_condattr_t attr;
    struct otlp_export *x;
    int rc;

    *out = NULL;
    if (!config->otlp_traces_endpoint[0])
        return 0;
    if (curl_global_init(CURL_GLOBAL_DEFAULT) != CURLE_OK)
        return err_set(err, ERR_NO_ROOM, "traces: libcurl does not start");
    x = calloc(1, sizeof(*x));
    if (!x) {
        curl_global_cleanup();
        return err_set(err, ERR_NO_ROOM, "traces: out of memory");
    }
    pthread_mutex_init(&x->mu, NULL);
    pthread_condattr_init(&attr);
    pthread_condattr_setclock(&attr, CLOCK_MONOTONIC);
    pthread_cond_init(&x->news, &attr);
    pthread_condattr_destroy(&attr);
    x->last = &x->first;
    x->url = config->otlp_traces_endpoint;
    x->service = config->otlp_service_name;
    strbuf_init(&x->body);
    strbuf_init(&x->answer);
    rc = open_curl(x, config, err);
    if (rc == 0 && pthread_create(&x->thread, NULL, run, x) != 0)
        rc = err_set(err, ERR_NO_ROOM, "traces: no thread");
    if (rc < 0) {
        free_export(x);
        return rc;
    }
    *out = x;
    return 0;
}

void otlp_export_close(struct otlp_export *x)
{
    if (!x)
        return;
    pthread_mutex_lock(&x->mu);
    x->closing = true;
    x->close_ns = clock_ns() + CLOSE_NS;
    pthread_cond_signal(&x->news);
    pthread_mutex_unlock(&x->mu);
    pthread_join(x->thread, NULL);
    free_export(x);
}
