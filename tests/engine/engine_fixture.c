/*
 * engine_fixture - an engine for tests. See engine_fixture.h.
 */
#include "tests/engine/engine_fixture.h"

#include "base/clock.h"
#include "config/config.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define MAX_FLAGS 64

struct engine *engine_fixture_open(const char *const *flags, const struct engine_hooks *hooks)
{
    struct config config = {0};
    struct err err = {0};
    struct engine *e = NULL;
    char *argv[MAX_FLAGS];
    int argc = 0;

    while (flags[argc] && argc < MAX_FLAGS) {
        argv[argc] = (char *)flags[argc];
        argc++;
    }
    if (config_load(&config, &(struct config_sources){.argc = argc, .argv = argv}, &err) < 0 ||
        engine_open(&e, &config, hooks, &err) < 0)
        fprintf(stderr, "engine: %s\n", err.msg);
    config_release(&config);
    return e;
}

void collected_init(struct collected *c)
{
    *c = (struct collected){.stop_token = -1};
    strbuf_init(&c->text);
}

void collected_release(struct collected *c)
{
    strbuf_release(&c->text);
    free(c->tokens);
    free(c->prompt);
    free(c->embedding);
    collected_init(c);
}

void collected_add(void *arg, const struct engine_event *event)
{
    struct collected *c = event->user;
    int base = (int)c->text.len, at = 0;

    (void)arg;
    c->n_events++;
    c->id = event->id;
    strbuf_add(&c->text, event->text, event->text_len);
    if (c->n_tokens + event->n_tokens > c->n_alloc) {
        c->n_alloc = 2 * (c->n_tokens + event->n_tokens);
        c->tokens = realloc(c->tokens, (size_t)c->n_alloc * sizeof(*c->tokens));
        if (!c->tokens)
            abort();
    }
    for (int i = 0; i < event->n_tokens; i++) {
        struct engine_token t = event->tokens[i];

        /* The tokens' shares of an event's text lie side by side. */
        c->broken = c->broken || t.text_at != at || t.text_len < 0;
        at = t.text_at + t.text_len;
        t.text_at += base;
        c->tokens[c->n_tokens++] = t;
    }
    c->broken = c->broken || at != (int)event->text_len;
    c->broken = c->broken || event->n_completion_tokens < c->n_completion_tokens;
    c->n_completion_tokens = event->n_completion_tokens;
    c->n_cached_tokens = event->n_cached_tokens;
    if (event->prompt_tokens) {
        c->broken = c->broken || c->prompt;
        c->n_prompt = event->n_prompt_tokens;
        c->prompt = malloc((size_t)c->n_prompt * sizeof(*c->prompt));
        if (!c->prompt)
            abort();
        memcpy(c->prompt, event->prompt_tokens, (size_t)c->n_prompt * sizeof(*c->prompt));
    }
    if (event->embedding) {
        c->broken = c->broken || c->embedding;
        c->n_embedding = event->n_embedding;
        c->embedding = malloc((size_t)c->n_embedding * sizeof(*c->embedding));
        if (!c->embedding)
            abort();
        memcpy(c->embedding, event->embedding, (size_t)c->n_embedding * sizeof(*c->embedding));
    }
    c->n_final += event->finish != FINISH_NONE;
    c->finish = event->finish;
    c->stop_token = event->stop_token;
    snprintf(c->stop_string, sizeof(c->stop_string), "%s",
             event->stop_string ? event->stop_string : "");
    snprintf(c->error, sizeof(c->error), "%s", event->error ? event->error : "");
    c->submit_ns = event->submit_ns;
    c->start_ns = event->start_ns;
    c->first_token_ns = event->first_token_ns;
    c->last_token_ns = event->last_token_ns;
    if (event->finish)
        c->broken = c->broken || c->n_tokens != c->n_completion_tokens;
}

bool engine_fixture_wait(struct engine *e, const struct collected *c, int timeout_s)
{
    int64_t end_ns = clock_ns() + timeout_s * (int64_t)1000000000;

    while (!c->n_final) {
        if (clock_ns() > end_ns)
            return false;
        engine_wait(e, 100000000);
        engine_poll(e, collected_add, NULL);
    }
    return true;
}

bool engine_fixture_run(struct engine *e, const struct engine_request *req, struct collected *c)
{
    struct engine_request mine = *req;
    struct err err = {0};
    uint64_t id;

    collected_init(c);
    mine.user = c;
    if (engine_submit(e, &mine, &id, &err) < 0) {
        fprintf(stderr, "submit: %s\n", err.msg);
        return false;
    }
    return engine_fixture_wait(e, c, 50);
}

static bool same_token(const struct engine_token *a, const struct engine_token *b)
{
    if (a->id != b->id || a->text_at != b->text_at || a->text_len != b->text_len ||
        a->n_top != b->n_top || memcmp(&a->logprob, &b->logprob, sizeof(float)) != 0)
        return false;
    for (int i = 0; i < a->n_top; i++) {
        if (a->top_id[i] != b->top_id[i] || a->top_logprob[i] != b->top_logprob[i])
            return false;
    }
    return true;
}

bool collected_same(const struct collected *a, const struct collected *b)
{
    if (a->n_tokens != b->n_tokens || a->n_prompt != b->n_prompt || a->finish != b->finish ||
        a->stop_token != b->stop_token || strcmp(a->stop_string, b->stop_string) != 0 ||
        a->text.len != b->text.len || memcmp(a->text.buf, b->text.buf, a->text.len) != 0)
        return false;
    for (int i = 0; i < a->n_tokens; i++) {
        if (!same_token(&a->tokens[i], &b->tokens[i]))
            return false;
    }
    for (int i = 0; i < a->n_prompt; i++) {
        if (!same_token(&a->prompt[i], &b->prompt[i]))
            return false;
    }
    return true;
}
