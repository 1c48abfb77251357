/*
 * engine_bridge - where the engine thread and the loop thread meet.
 *
 * The engine's wake-up is one uv_async_send() a step; its callback collects every event, lets the
 * generations write, and then runs the HTTP daemon once, so that all the events of a step leave
 * in one send a connection. Loop thread only, but for the wake-up itself.
 */
#ifndef ENGINE_BRIDGE_H
#define ENGINE_BRIDGE_H

#include "engine/engine.h"
#include "server/self_test.h"

#include <uv.h>

struct generation;
struct http_server;

struct engine_bridge { /* fields are private */
    uv_async_t async;
    struct http_server *server;
    struct engine *engine;
    struct generation *generations, *last; /* in the order they came */
    int n_generations;
    int64_t busy_since_ns; /* 0: nothing to do */
    int64_t attached_ns;
    struct self_test self_test;
    uv_timer_t timer; /* when to test */
};

/* Before the engine is opened: the hooks need a handle to signal. server is filled in later. */
int engine_bridge_open(struct engine_bridge *b, uv_loop_t *uv, struct http_server *server,
                       struct err *err);
struct engine_hooks engine_bridge_hooks(struct engine_bridge *b);

/* The engine is open: generates one token, and negative with its error when none comes in time. */
int engine_bridge_attach(struct engine_bridge *b, struct engine *engine, int timeout_ms,
                         struct err *err);

/* After engine_close(): nobody can signal any more. The loop must turn once more. */
void engine_bridge_close(struct engine_bridge *b);

/* Called by generations, about themselves. */
void engine_bridge_add(struct engine_bridge *b, struct generation *g);
void engine_bridge_remove(struct engine_bridge *b, struct generation *g);

/* Tells every client that the server stops, and cancels what runs. */
void engine_bridge_stop_all(struct engine_bridge *b);

/*
 * False when the engine has work and has finished no step for stall_timeout_ms, when its steps
 * fail, or when it could not even generate the last self-test's token. *why (may be NULL) then says
 * which.
 */
bool engine_bridge_is_alive(const struct engine_bridge *b, const struct engine_stats *s,
                            const char **why);

#endif
