/*
 * serve - start, signals, drain, stop.
 *
 * Start: the model is loaded before the port is opened, so whoever can connect can be served. Stop:
 * the first SIGTERM or SIGINT stops listening and lets running requests finish for
 * drain_timeout_ms; a second one, or the end of that time, cancels them. libmicrohttpd must not be
 * stopped while a connection is suspended, so the loop turns until the last exchange has ended.
 */
#include "server/serve.h"

#include "base/build_info.h"
#include "base/clock.h"
#include "base/log.h"
#include "config/config.h"
#include "engine/engine.h"
#include "server/config_reload.h"
#include "server/crash.h"
#include "server/engine_bridge.h"
#include "server/exchange.h"
#include "server/http_server.h"
#include "server/otlp_export.h"
#include "server/sd_notify.h"

#include <jansson.h>
#include <signal.h>
#include <stdio.h>
#include <string.h>

#define DRAIN_CHECK_MS 20
#define NORMALIZE_MAX  4 /* some normalisers shorten a text: its tokens may stand for more bytes */
#define PROGRESS_MS    INT64_C(1000)
#define CUT_AFTER_MS   2000 /* for clients to take the error; then their connections are cut */

enum stop_phase { STOP_NOT, STOP_DRAINING, STOP_CANCELED, STOP_CUT };

struct serve {
    struct config *config;
    const struct config_sources *from; /* NULL: nothing to read again */
    uv_loop_t uv;
    struct engine *engine;
    struct engine_bridge bridge;
    struct http_server http;
    uv_signal_t signals[3];
    uv_timer_t drain, watchdog;
    enum stop_phase phase;
    int64_t phase_since_ns;
    int64_t load_since_ns, load_told_ns; /* progress is told once a PROGRESS_MS */
};

static void enter(struct serve *s, enum stop_phase phase)
{
    s->phase = phase;
    s->phase_since_ns = clock_ns();
    if (phase == STOP_CANCELED)
        engine_bridge_stop_all(&s->bridge);
    if (phase == STOP_CUT)
        http_server_cut(&s->http);
}

static void on_drain(uv_timer_t *timer)
{
    struct serve *s = timer->data;
    int64_t ms = (clock_ns() - s->phase_since_ns) / 1000000;

    if (!s->http.exchanges && s->bridge.n_generations == 0) {
        uv_stop(&s->uv);
        return;
    }
    if (s->phase == STOP_DRAINING && ms >= s->config->drain_timeout_ms) {
        log_warn("%d requests are still running after %d ms; cancelling them",
                 s->bridge.n_generations, s->config->drain_timeout_ms);
        enter(s, STOP_CANCELED);
    } else if (s->phase == STOP_CANCELED && ms >= CUT_AFTER_MS) {
        enter(s, STOP_CUT);
    }
    http_loop_run(&s->http.loop);
}

static void on_signal(uv_signal_t *handle, int signo)
{
    struct serve *s = handle->data;

    if (s->phase == STOP_NOT) {
        log_info("%s: finishing %d requests", signo == SIGINT ? "SIGINT" : "SIGTERM",
                 s->bridge.n_generations);
        sd_notify_send(SD_NOTIFY_MUST_ARRIVE, "STOPPING=1\nSTATUS=finishing %d requests",
                       s->bridge.n_generations);
        http_server_drain(&s->http);
        enter(s, STOP_DRAINING);
        uv_timer_start(&s->drain, on_drain, 0, DRAIN_CHECK_MS);
    } else if (s->phase == STOP_DRAINING) {
        log_info("a second signal: cancelling %d requests", s->bridge.n_generations);
        enter(s, STOP_CANCELED);
    }
}

/* What is wrong in the new settings is logged; the daemon goes on with the old ones. */
static void on_hup(uv_signal_t *handle, int signo)
{
    struct serve *s = handle->data;
    struct err err = {0};
    int rc = 0;

    (void)signo;
    if (s->phase != STOP_NOT)
        return;
    sd_notify_send(SD_NOTIFY_MUST_ARRIVE, "RELOADING=1\nMONOTONIC_USEC=%lld",
                   (long long)(clock_ns() / 1000));
    if (s->from)
        rc = config_reload(s->config, s->from, &err);
    if (rc == 0)
        rc = http_server_load_access(&s->http, &err);
    log_configure(s->config->log_level, s->config->log_format);
    if (rc < 0)
        log_error("reload failed, the old settings stay: %s", err.msg);
    else
        log_info("reloaded settings, keys and certificates");
    sd_notify_send(SD_NOTIFY_MUST_ARRIVE, "READY=1\nSTATUS=%s%s",
                   rc < 0 ? "reload failed: " : "reloaded", rc < 0 ? err.msg : "");
}

/* A sign of life only while the engine lives: a stalled one is for systemd to restart. */
static void on_watchdog(uv_timer_t *timer)
{
    struct serve *s = timer->data;
    struct engine_stats stats;

    engine_get_stats(s->engine, &stats);
    if (engine_bridge_is_alive(&s->bridge, &stats, NULL))
        sd_notify_send(SD_NOTIFY_MAY_DROP, "WATCHDOG=1\nSTATUS=serving: %lld running, %lld waiting",
                       (long long)stats.n_running, (long long)stats.n_waiting);
}

static void on_progress(void *arg, const char *what, size_t done, size_t total)
{
    struct serve *s = arg;
    int pct = total ? (int)(100.0 * done / total) : 0;
    int64_t now_ns = clock_ns();

    if (!s->load_since_ns)
        s->load_since_ns = s->load_told_ns = now_ns;
    if (now_ns - s->load_told_ns < PROGRESS_MS * 1000000)
        return;
    s->load_told_ns = now_ns;
    /* A large model loads for longer than systemd's default patience. */
    sd_notify_send(SD_NOTIFY_MAY_DROP, "STATUS=loading: %s %d%%\nEXTEND_TIMEOUT_USEC=60000000",
                   what, pct);
    log_info("loading: %s %d%% after %.1f s", what, pct, (now_ns - s->load_since_ns) * 1e-9);
}

/*
 * A text that is too long for the context even if all its tokens were the longest one. Tokenizing
 * it would keep a core busy for nothing, for many seconds at the largest body.
 */
static int64_t most_prompt_bytes(const struct serve *s, const struct engine_info *i)
{
    struct strbuf bytes = STRBUF_INIT;
    size_t longest = 1;

    for (int32_t id = 0; id < i->vocab_size; id++) {
        strbuf_reset(&bytes);
        engine_token_bytes(s->engine, id, &bytes);
        longest = bytes.len > longest ? bytes.len : longest;
    }
    strbuf_release(&bytes);
    return (int64_t)longest * i->max_seq_len * NORMALIZE_MAX;
}

static void fill_limits(struct serve *s)
{
    const struct engine_info *i = engine_get_info(s->engine);

    s->http.limits = (struct openai_limits){
        .model_id = i->model_id,
        .vocab_size = i->vocab_size,
        .max_seq_len = i->max_seq_len,
        .max_prompt_bytes = most_prompt_bytes(s, i),
        .max_prompts = s->config->max_prompts,
        .max_inputs = s->config->max_inputs,
        .max_choices = s->config->max_choices,
        .embedding_dim = i->embedding_dim,
        .normalize = s->config->embedding_normalize,
        .max_logprobs = s->config->max_logprobs,
        .json_depth = s->config->json_depth,
        .has_priorities = s->config->scheduling == CONFIG_SCHEDULING_PRIORITY,
        .temperature = i->default_temperature,
        .top_p = i->default_top_p,
        .top_k = i->default_top_k,
        .repetition_penalty = i->default_repetition_penalty,
    };
}

/* Of the plan, as the engine describes it; 0 when it does not. */
static double plan_density(const struct engine_info *i)
{
    json_t *plan = i->plan_json ? json_loads(i->plan_json, 0, NULL) : NULL;
    double density = json_number_value(json_object_get(plan, "density_kv"));

    json_decref(plan);
    return density;
}

/* On stdout, for people and scripts; everything else goes to the log. */
static void print_welcome(const struct serve *s)
{
    const struct engine_info *i = s->http.info;
    struct strbuf body = STRBUF_INIT;

    strbuf_addstr(&body, "{\"model\":");
    strbuf_add_json(&body, i->model_id, strlen(i->model_id));
    strbuf_addstr(&body, ",\"prompt\":\"Once upon a time\",\"max_tokens\":32}");
    printf("spand %s serves %s on %s, %s, plan %s\n", build_version(), i->model_id,
           i->device ? i->device : "cpu", i->dtype ? i->dtype : "", i->plan ? i->plan : "dense");
    printf("listening on %s\n", s->http.listen.address);
    printf("try: curl %s/v1/completions -H 'Content-Type: application/json' -d '%s'\n",
           s->http.listen.address, body.buf);
    if (fflush(stdout) != 0)
        clearerr(stdout); /* a full disk: clients are served all the same */
    strbuf_release(&body);
}

static void start_handles(struct serve *s)
{
    static const int signos[3] = {SIGTERM, SIGINT, SIGHUP};
    int64_t watchdog_ms = sd_notify_watchdog_ms();

    signal(SIGPIPE, SIG_IGN);
    for (int i = 0; i < 3; i++) {
        uv_signal_init(&s->uv, &s->signals[i]);
        s->signals[i].data = s;
        uv_signal_start(&s->signals[i], signos[i] == SIGHUP ? on_hup : on_signal, signos[i]);
    }
    uv_timer_init(&s->uv, &s->drain);
    uv_timer_init(&s->uv, &s->watchdog);
    s->drain.data = s->watchdog.data = s;
    if (watchdog_ms > 0)
        uv_timer_start(&s->watchdog, on_watchdog, 0, (watchdog_ms + 1) / 2);
}

static int open_all(struct serve *s, struct err *err)
{
    struct engine_hooks hooks;
    int rc = engine_bridge_open(&s->bridge, &s->uv, &s->http, err);

    if (rc < 0)
        return rc;
    hooks = engine_bridge_hooks(&s->bridge);
    hooks.progress = on_progress;
    hooks.progress_arg = s;
    rc = engine_open(&s->engine, s->config, &hooks, err);
    if (rc < 0)
        return rc;
    crash_set_engine(s->engine);
    s->http.config = s->config;
    rc = engine_bridge_attach(&s->bridge, s->engine, s->config->stall_timeout_ms, err);
    if (rc < 0)
        return rc;
    start_handles(s); /* until here a signal simply ends the process */
    rc = otlp_export_open(&s->http.traces, s->config, err);
    if (rc < 0)
        return rc;
    fill_limits(s);
    s->http.engine = s->engine;
    s->http.info = engine_get_info(s->engine);
    s->http.metrics.kv_density = plan_density(s->http.info);
    s->http.bridge = &s->bridge;
    s->http.uv = &s->uv;
    return http_server_open(&s->http, err);
}

static void close_handle(uv_handle_t *handle, void *arg)
{
    (void)arg;
    if (!uv_is_closing(handle))
        uv_close(handle, NULL);
}

static void close_all(struct serve *s)
{
    crash_set_engine(NULL);
    http_server_close(&s->http);
    otlp_export_close(s->http.traces);
    engine_close(s->engine);
    engine_bridge_close(&s->bridge);
    uv_walk(&s->uv, close_handle, NULL);
    uv_run(&s->uv, UV_RUN_DEFAULT);
    uv_loop_close(&s->uv);
}

/* A stop is clean only if the engine worked until then: whoever restarts on failure should know. */
static int how_it_ended(const struct serve *s, struct err *err)
{
    struct engine_stats stats;
    const char *why;

    engine_get_stats(s->engine, &stats);
    if (!engine_bridge_is_alive(&s->bridge, &stats, &why))
        return err_set(err, ERR_DEVICE, "stopped in a bad state: %s", why);
    log_info("stopped");
    return 0;
}

int serve_run(struct config *config, const struct config_sources *from, struct err *err)
{
    struct serve s = {.config = config, .from = from};
    int rc = uv_loop_init(&s.uv);

    if (rc < 0)
        return err_set(err, ERR_IO, "the event loop: %s", uv_strerror(rc));
    crash_install(config);
    rc = config_find_credentials(config, err);
    if (rc == 0)
        rc = open_all(&s, err);
    if (rc == 0) {
        print_welcome(&s);
        sd_notify_send(SD_NOTIFY_MUST_ARRIVE, "READY=1\nSTATUS=serving %s on %s",
                       s.http.info->model_id, s.http.listen.address);
        uv_run(&s.uv, UV_RUN_DEFAULT);
        rc = how_it_ended(&s, err);
    }
    close_all(&s);
    return rc;
}
