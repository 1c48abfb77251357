/*
 * outbox - what the engine thread has to tell, one record a request.
 *
 * The engine thread appends; one poller at a time collects. Each record has two sides: the engine
 * writes one while the poller reads the other, so neither waits for the other and a poller that
 * stays away finds one long event later. The lock `mu` guards the list and every field of a record
 * but the side that is being read.
 *
 * A side starts small and doubles when the poller falls behind, so what a record takes follows what
 * was generated and not collected, never what was asked for: the most is its request's max_tokens.
 */
#ifndef OUTBOX_H
#define OUTBOX_H

#include "base/strbuf.h"
#include "engine/engine.h"

#include <pthread.h>
#include <stddef.h>
#include <string.h>

struct outbox_side {
    struct strbuf text;
    struct engine_token *tokens; /* [n_room] */
    int n_tokens, n_room;
};

struct outbox_record { /* fields are private */
    struct outbox_side side[2];
    int write_side, max_tokens;
    struct engine_token *prompt_tokens; /* [n_prompt_tokens] until handed out */
    bool listed, prompt_ready, news_lost;
    struct engine_event head; /* what is not in a side */
    struct outbox_record *next;
};

struct outbox { /* fields are private */
    pthread_mutex_t mu;
    pthread_cond_t has_news;
    struct outbox_record *first, *last;
    int n_listed;
};

void outbox_init(struct outbox *o);
void outbox_release(struct outbox *o);

/* max_tokens will ever be added. prompt_tokens is malloc'ed and consumed, or NULL. */
int outbox_record_init(struct outbox_record *r, uint64_t id, void *user, int n_prompt,
                       int max_tokens, struct engine_token *prompt_tokens, struct err *err);
void outbox_record_release(struct outbox_record *r);

/* What a step added to a request. Times of 0 leave what was there. */
/* *to = *from without what is void: alternatives are most of a token, and most tokens have none. */
static inline void engine_token_copy(struct engine_token *to, const struct engine_token *from)
{
    size_t n = (size_t)from->n_top * sizeof(from->top_id[0]);

    memcpy(to, from, offsetof(struct engine_token, top_id));
    if (n) {
        memcpy(to->top_id, from->top_id, n);
        memcpy(to->top_logprob, from->top_logprob, n);
    }
}

struct outbox_news {
    const char *text; /* borrowed; the tokens' text_at count from its start */
    size_t text_len;
    const struct engine_token *tokens;
    int n_tokens, n_completion_tokens, n_cached_tokens;
    bool prompt_ready;
    enum finish_reason finish;
    int32_t stop_token;      /* with FINISH_STOP; else -1 */
    const char *stop_string; /* borrowed, lives as long as the record */
    const char *error;       /* likewise */
    const float *embedding;  /* [n_embedding] likewise */
    int n_embedding;
    int64_t start_ns, first_token_ns, last_token_ns;
};

/*
 * Engine thread. After the news with a finish reason the record belongs to the poller. News that
 * there is no memory for are lost, and the record then ends with FINISH_ERROR.
 */
void outbox_add(struct outbox *o, struct outbox_record *r, const struct outbox_news *news);

/* Wakes outbox_wait(). */
void outbox_signal(struct outbox *o);

/*
 * Takes the next record with news: *event is valid until outbox_taken(). NULL when there is none.
 */
struct outbox_record *outbox_take(struct outbox *o, struct engine_event *event);

/* The event was handled: its side may be written again. */
void outbox_taken(struct outbox *o, struct outbox_record *r);

int outbox_n_listed(struct outbox *o);
bool outbox_wait(struct outbox *o, int64_t timeout_ns);

#endif
