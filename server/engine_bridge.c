/*
 * engine_bridge - the wake-up, and the list of running generations.
 */
#include "server/engine_bridge.h"

#include "base/check.h"
#include "base/clock.h"
#include "server/generation.h"
#include "server/http_server.h"

/* Longer than any step: a CPU may chew on a chunk of a large model for many seconds. */
#define STALLED_NS (INT64_C(120) * 1000000000)

static void on_event(void *arg, const struct engine_event *ev)
{
    (void)arg;
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
    engine_poll(b->engine, on_event, b);
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
    b->async.data = b;
    b->server = server;
    return 0;
}

struct engine_hooks engine_bridge_hooks(struct engine_bridge *b)
{
    return (struct engine_hooks){.wake = wake, .arg = &b->async};
}

void engine_bridge_attach(struct engine_bridge *b, struct engine *engine)
{
    b->engine = engine;
}

void engine_bridge_close(struct engine_bridge *b)
{
    if (!b->server)
        return;
    b->server = NULL;
    uv_close((uv_handle_t *)&b->async, NULL);
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

bool engine_bridge_is_alive(const struct engine_bridge *b, const struct engine_stats *s)
{
    int64_t since = s->last_step_ns > b->busy_since_ns ? s->last_step_ns : b->busy_since_ns;

    if (!s->healthy)
        return false;
    return b->busy_since_ns == 0 || clock_ns() - since < STALLED_NS;
}
