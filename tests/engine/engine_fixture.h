/*
 * engine_fixture - an engine on a tiny model with random weights, and a collector of its events.
 */
#ifndef ENGINE_FIXTURE_H
#define ENGINE_FIXTURE_H

#include "base/strbuf.h"
#include "engine/engine.h"

#include <stdbool.h>

/* Opens an engine by flags as on the command line, NULL-terminated; "--model DIR" and so on.
 * Prints the error and returns NULL when it cannot. */
struct engine *engine_fixture_open(const char *const *flags, const struct engine_hooks *hooks);

/* All that was told of one request. Zero-initialise but for `text`. */
struct collected {
    struct strbuf text;
    struct engine_token *tokens; /* [n_tokens] text_at counts from the start of all text */
    int n_tokens, n_alloc;
    struct engine_token *prompt; /* [n_prompt] or NULL */
    int n_prompt, n_events, n_final;
    float *embedding; /* [n_embedding] or NULL */
    int n_embedding;
    enum finish_reason finish;
    int32_t stop_token;
    char stop_string[64], error[128];
    uint64_t id;
    int64_t submit_ns, start_ns, first_token_ns, last_token_ns;
    int n_completion_tokens, n_cached_tokens;
    bool broken; /* an event contradicted itself or an earlier one */
};

void collected_init(struct collected *c);
void collected_release(struct collected *c);

/* An engine_event_fn for requests whose `user` is a struct collected. */
void collected_add(void *arg, const struct engine_event *event);

/* Polls until *c has its final event. False after timeout_s. */
bool engine_fixture_wait(struct engine *e, const struct collected *c, int timeout_s);

/* Submits and waits. */
bool engine_fixture_run(struct engine *e, const struct engine_request *req, struct collected *c);

bool collected_same(const struct collected *a, const struct collected *b);

#endif
