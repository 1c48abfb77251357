/*
 * outbox - what the engine thread has to tell. See outbox.h.
 */
#include "engine/outbox.h"

#include "base/check.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

/* What a side holds without asking for memory: a poller is seldom further behind. */
#define FIRST_TOKENS    32
#define BYTES_PER_TOKEN 8

void outbox_init(struct outbox *o)
{
    pthread_condattr_t attr;

    *o = (struct outbox){0};
    pthread_mutex_init(&o->mu, NULL);
    pthread_condattr_init(&attr);
    pthread_condattr_setclock(&attr, CLOCK_MONOTONIC);
    pthread_cond_init(&o->has_news, &attr);
    pthread_condattr_destroy(&attr);
}

void outbox_release(struct outbox *o)
{
    pthread_cond_destroy(&o->has_news);
    pthread_mutex_destroy(&o->mu);
}

int outbox_record_init(struct outbox_record *r, uint64_t id, void *user, int n_prompt,
                       int max_tokens, struct engine_token *prompt_tokens, struct err *err)
{
    int n_room = max_tokens < FIRST_TOKENS ? max_tokens : FIRST_TOKENS;
    bool ok = true;

    *r = (struct outbox_record){.max_tokens = max_tokens, .prompt_tokens = prompt_tokens};
    r->head = (struct engine_event){
        .id = id, .user = user, .n_prompt_tokens = n_prompt, .stop_token = -1};
    for (int i = 0; i < 2; i++) {
        strbuf_init(&r->side[i].text);
        ok = ok && strbuf_grow(&r->side[i].text, FIRST_TOKENS * BYTES_PER_TOKEN);
        r->side[i].tokens = calloc((size_t)n_room + 1, sizeof(*r->side[i].tokens));
        r->side[i].n_room = n_room;
        ok = ok && r->side[i].tokens;
    }
    if (!ok) {
        outbox_record_release(r);
        return err_set(err, ERR_NO_ROOM, "no memory for the events of %d tokens", max_tokens);
    }
    return 0;
}

void outbox_record_release(struct outbox_record *r)
{
    for (int i = 0; i < 2; i++) {
        strbuf_release(&r->side[i].text);
        free(r->side[i].tokens);
    }
    free(r->prompt_tokens);
    *r = (struct outbox_record){0};
}

static void list_record(struct outbox *o, struct outbox_record *r)
{
    if (r->listed)
        return;
    r->listed = true;
    r->next = NULL;
    if (o->last)
        o->last->next = r;
    else
        o->first = r;
    o->last = r;
    o->n_listed++;
}

/* Room for n more tokens; max_tokens bounds them all. */
static bool side_grow(struct outbox_side *side, int n, int max_tokens)
{
    int64_t n_room = side->n_room;
    struct engine_token *tokens;

    CHECK(n <= max_tokens - side->n_tokens);
    if (n <= side->n_room - side->n_tokens)
        return true;
    while (n_room < side->n_tokens + n)
        n_room *= 2;
    if (n_room > max_tokens)
        n_room = max_tokens;
    tokens = realloc(side->tokens, (size_t)n_room * sizeof(*tokens));
    if (!tokens)
        return false;
    side->tokens = tokens;
    side->n_room = (int)n_room;
    return true;
}

/* Text and tokens go together: what is left out of one is left out of the other. */
static bool side_add(struct outbox_side *side, const struct outbox_news *news, int max_tokens)
{
    size_t base = side->text.len;

    if (!side_grow(side, news->n_tokens, max_tokens))
        return false;
    if (news->text_len)
        strbuf_add(&side->text, news->text, news->text_len);
    if (side->text.failed)
        return false;
    for (int i = 0; i < news->n_tokens; i++) {
        engine_token_copy(&side->tokens[side->n_tokens], &news->tokens[i]);
        side->tokens[side->n_tokens++].text_at += (int)base;
    }
    return true;
}

void outbox_add(struct outbox *o, struct outbox_record *r, const struct outbox_news *news)
{
    pthread_mutex_lock(&o->mu);
    CHECK(r->head.finish == FINISH_NONE);
    if (!r->news_lost)
        r->news_lost = !side_add(&r->side[r->write_side], news, r->max_tokens);
    r->head.n_completion_tokens = news->n_completion_tokens;
    r->head.n_cached_tokens = news->n_cached_tokens;
    r->prompt_ready = r->prompt_ready || news->prompt_ready;
    r->head.finish = news->finish;
    r->head.stop_token = news->finish ? news->stop_token : -1;
    r->head.stop_string = news->stop_string;
    r->head.error = news->error;
    r->head.embedding = news->embedding;
    r->head.n_embedding = news->n_embedding;
    if (news->start_ns)
        r->head.start_ns = news->start_ns;
    if (news->first_token_ns)
        r->head.first_token_ns = news->first_token_ns;
    if (news->last_token_ns)
        r->head.last_token_ns = news->last_token_ns;
    list_record(o, r);
    pthread_mutex_unlock(&o->mu);
}

void outbox_signal(struct outbox *o)
{
    pthread_mutex_lock(&o->mu);
    pthread_cond_broadcast(&o->has_news);
    pthread_mutex_unlock(&o->mu);
}

struct outbox_record *outbox_take(struct outbox *o, struct engine_event *event)
{
    struct outbox_record *r;
    struct outbox_side *side;

    pthread_mutex_lock(&o->mu);
    r = o->first;
    if (!r) {
        pthread_mutex_unlock(&o->mu);
        return NULL;
    }
    o->first = r->next;
    if (!o->first)
        o->last = NULL;
    o->n_listed--;
    r->listed = false;
    side = &r->side[r->write_side];
    r->write_side = 1 - r->write_side;
    *event = r->head;
    event->text = side->text.buf;
    event->text_len = side->text.len;
    event->tokens = side->tokens;
    event->n_tokens = side->n_tokens;
    if (r->prompt_ready)
        event->prompt_tokens = r->prompt_tokens;
    r->prompt_ready = false;
    /* A stream with a hole would be worse than an error. */
    if (r->news_lost && event->finish) {
        event->finish = FINISH_ERROR;
        event->error = "out of memory for what was generated";
    }
    pthread_mutex_unlock(&o->mu);
    return r;
}

void outbox_taken(struct outbox *o, struct outbox_record *r)
{
    struct outbox_side *side;

    pthread_mutex_lock(&o->mu);
    side = &r->side[1 - r->write_side];
    strbuf_reset(&side->text);
    side->n_tokens = 0;
    pthread_mutex_unlock(&o->mu);
}

int outbox_n_listed(struct outbox *o)
{
    int n;

    pthread_mutex_lock(&o->mu);
    n = o->n_listed;
    pthread_mutex_unlock(&o->mu);
    return n;
}

bool outbox_wait(struct outbox *o, int64_t timeout_ns)
{
    struct timespec until;
    bool has_news;
    int rc = 0;

    clock_gettime(CLOCK_MONOTONIC, &until);
    if (timeout_ns > 0) {
        until.tv_sec += timeout_ns / 1000000000;
        until.tv_nsec += timeout_ns % 1000000000;
        if (until.tv_nsec >= 1000000000) {
            until.tv_sec++;
            until.tv_nsec -= 1000000000;
        }
    }
    pthread_mutex_lock(&o->mu);
    while (!o->n_listed && rc != ETIMEDOUT) {
        if (timeout_ns < 0)
            rc = pthread_cond_wait(&o->has_news, &o->mu);
        else
            rc = pthread_cond_timedwait(&o->has_news, &o->mu, &until);
    }
    has_news = o->n_listed > 0;
    pthread_mutex_unlock(&o->mu);
    return has_news;
}
