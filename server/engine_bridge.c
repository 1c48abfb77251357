/*
 * engine_bridge - the wake-up, and the list of running generations.
 */
#include "server/engine_bridge.h"

#include "base/check.h"
#include "base/clock.h"
#include "config/config.h"
#include "server/generation.h"
#include "server/http_server.h"

#define TEST_TICK_MS  100
#define RETEST_MS     1000 /* after a failure: so often is asked whether it is over */
#define FIRST_WAIT_NS 100000000

static void on_event(void *arg, const struct engine_event *ev)
{
    struct engine_bridge *b = arg;

    if (self_test_owns(&b->self_test, ev))
        self_test_take_event(&b->self_test, ev);
    else
        generation_take_event(ev);
}

/* Oldest first, and before new requests are read: who came first is served first. */
static void unpark_all(struct engine_bridge *b)
{
    struct generation *next;

    for (struct generation *g = b->generations; g; g = next) {
        next = g->next;
        generation_unpark(g);
    }
}

static void on_async(uv_async_t *async)
{
    struct engine_bridge *b = async->data;

    if (!b->engine)
        return; /* a step before the server was ready */
    exchange_begin_batch(b->server);
    engine_poll(b->engine, on_event, b);
    exchange_end_batch(b->server);
    if (b->server->metrics.n_parked > 0)
        unpark_all(b);
    http_loop_run(&b->server->loop);
}

static void wake(void *arg)
{
    uv_async_send(arg);
}

int engine_bridge_open(struct engine_bridge *b, uv_loop_t *uv, struct http_server *server,
                       struct err *err)
{
    int rc = uv_async_init(uv, &b->async, on_async);

    if (rc < 0)
        return err_set(err, ERR_IO, "the engine's wake-up: %s", uv_strerror(rc));
    uv_timer_init(uv, &b->timer);
    b->async.data = b->timer.data = b;
    b->server = server;
    return 0;
}

struct engine_hooks engine_bridge_hooks(struct engine_bridge *b)
{
    return (struct engine_hooks){.wake = wake, .arg = &b->async};
}

/* Due when the engine has had nothing to do for long, or when it is said to be broken. */
static void on_test_tick(uv_timer_t *timer)
{
    struct engine_bridge *b = timer->data;
    int64_t every_ms = b->server->config->self_test_ms;
    struct engine_stats stats;
    struct err err = {0};
    int64_t last_ns;

    if (every_ms == 0 || b->n_generations > 0)
        return;
    engine_get_stats(b->engine, &stats);
    if (b->self_test.has_failed || !stats.healthy)
        every_ms = every_ms < RETEST_MS ? every_ms : RETEST_MS;
    last_ns = stats.last_step_ns > b->attached_ns ? stats.last_step_ns : b->attached_ns;
    if (clock_ns() - last_ns >= every_ms * 1000000)
        self_test_start(&b->self_test, b->engine, &err);
}

int engine_bridge_attach(struct engine_bridge *b, struct engine *engine, int timeout_ms,
                         struct err *err)
{
    int64_t until_ns = clock_ns() + timeout_ms * INT64_C(1000000);
    int rc;

    b->engine = engine;
    rc = self_test_start(&b->self_test, engine, err);
    while (rc == 0 && b->self_test.since_ns && clock_ns() < until_ns) {
        engine_wait(engine, FIRST_WAIT_NS);
        engine_poll(engine, on_event, b);
    }
    if (rc == 0 && (b->self_test.since_ns || b->self_test.has_failed))
        rc = err_set(err, ERR_DEVICE, "the model was loaded, but it generates no token");
    if (rc < 0)
        return rc;
    b->attached_ns = clock_ns();
    uv_timer_start(&b->timer, on_test_tick, TEST_TICK_MS, TEST_TICK_MS);
    return 0;
}

void engine_bridge_close(struct engine_bridge *b)
{
    if (!b->server)
        return;
    b->server = NULL;
    uv_close((uv_handle_t *)&b->async, NULL);
    uv_close((uv_handle_t *)&b->timer, NULL);
}

void engine_bridge_add(struct engine_bridge *b, struct generation *g)
{
    g->prev = b->last;
    g->next = NULL;
    if (g->prev)
        g->prev->next = g;
    else
        b->generations = g;
    b->last = g;
    if (b->n_generations++ == 0)
        b->busy_since_ns = clock_ns();
}

void engine_bridge_remove(struct engine_bridge *b, struct generation *g)
{
    CHECK(b->n_generations > 0);
    if (g->prev)
        g->prev->next = g->next;
    else
        b->generations = g->next;
    if (g->next)
        g->next->prev = g->prev;
    else
        b->last = g->prev;
    if (--b->n_generations == 0)
        b->busy_since_ns = 0;
}

void engine_bridge_stop_all(struct engine_bridge *b)
{
    struct generation *next;

    for (struct generation *g = b->generations; g; g = next) {
        next = g->next;
        generation_stop(g);
    }
}

bool engine_bridge_is_alive(const struct engine_bridge *b, const struct engine_stats *s,
                            const char **why)
{
    int64_t stall_ns = b->server->config->stall_timeout_ms * INT64_C(1000000);
    int64_t busy_ns = b->busy_since_ns ? b->busy_since_ns : b->self_test.since_ns;
    int64_t since_ns = s->last_step_ns > busy_ns ? s->last_step_ns : busy_ns;
    const char *reason = NULL;

    if (busy_ns && clock_ns() - since_ns >= stall_ns)
        reason = "The engine has work and makes no progress.";
    else if (!s->healthy)
        reason = "The engine's steps fail.";
    else if (b->self_test.has_failed)
        reason = "The last self-test generated no token.";
    if (why)
        *why = reason;
    return !reason;
}
