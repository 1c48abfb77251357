/*
 * engine_open - builds and tears down the parts of an engine, for engine.c alone.
 */
#ifndef ENGINE_OPEN_H
#define ENGINE_OPEN_H

#include "engine/engine_state.h"

/* e is zeroed but for its hooks. What was opened on failure is closed by engine_parts_close(). */
int engine_parts_open(struct engine *e, const struct config *config, struct err *err);

/* The thread has ended. Frees all requests that nobody collected. Accepts half-built engines. */
void engine_parts_close(struct engine *e);

#endif
