/*
 * engine_open - builds and tears down the parts of an engine, for engine.c and engine_inspect.c.
 */
#ifndef ENGINE_OPEN_H
#define ENGINE_OPEN_H

#include "engine/engine_state.h"

/* e is zeroed but for its hooks. What was opened on failure is closed by engine_parts_close(). */
int engine_parts_open(struct engine *e, const struct config *config, struct err *err);

/* What a model is computed in: dtype, or what its weights' file holds. */
enum dtype engine_dtype(const struct config *config, const struct model_config *mc);

/* MemAvailable of /proc/meminfo; 0 when it cannot be read. */
int64_t engine_host_bytes_free(void);

/* served_model_name, else the last part of the model's path, whatever slashes end it. */
void engine_model_name(char *out, size_t out_bytes, const struct config *config);

/* The plan of a config for a model: with trained windows, and plan_length. */
int engine_plan_open(struct plan **out, const struct config *config, const struct model_config *mc,
                     const struct kv_shape *shape, int max_seq_len, struct err *err);

/* The thread has ended. Frees all requests that nobody collected. Accepts half-built engines. */
void engine_parts_close(struct engine *e);

#endif
