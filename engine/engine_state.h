/*
 * engine_state - what struct engine holds, for engine.c and engine_loop.c alone.
 */
#ifndef ENGINE_STATE_H
#define ENGINE_STATE_H

#include "base/ring_queue.h"
#include "base/strbuf.h"
#include "engine/batch.h"
#include "engine/engine.h"
#include "engine/kv/kv_memory.h"
#include "engine/model/model.h"
#include "engine/outbox.h"
#include "engine/plan/plan.h"
#include "engine/request.h"
#include "engine/sampler.h"
#include "engine/scheduler.h"
#include "engine/stats.h"
#include "engine/step_trace.h"

#include <pthread.h>
#include <stdatomic.h>

#define ENGINE_PROMPT_LOGITS                                                                       \
    32                        /* logit rows a step spends on prompt logprobs, beside max_batch     \
                               */
#define ENGINE_MAX_FAILURES 3 /* failed steps in a row before the engine calls itself unhealthy */

struct chat_template;
struct grammar_cache;
struct tokenizer;

/* Who is alive, by the low bits of the id: from submit until the final event was handed out. */
struct live_table {
    pthread_mutex_t mu;      /* guards all fields */
    struct request **by_idx; /* [n_max] */
    int32_t *free_idx;       /* [n_free] a stack */
    int n_max, n_free;
    uint64_t n_ever;
    int64_t n_bytes, max_bytes; /* of all of them */
};

/* A step on its way: queued, its results not yet taken. See engine_step.h. */
struct engine_step {
    struct sched_item *items; /* [n_items]; seq is NULL where nobody waits for the results */
    int n_items, n_rows, n_decode, n_prompt;
    int phase;
    int n_phases; /* of its blocks, where it has all of them; else 1 */
    struct sampler_results results;
    double *pooled;   /* host [max_batch, embedding_dim] by slot, or NULL */
    bool blocks_next; /* it must be taken before another is planned */
    bool ends_blocks; /* the last phase of a Block Transformer's blocks; of other models any step */
    int64_t number;   /* the backend's */
    int64_t serial;   /* of all steps ever queued, from 1 on */
    int64_t start_ns;
    int rc; /* < 0: it could not be queued, err says why */
    struct err err;
};

struct engine {
    /* Fixed after boot: any thread. */
    struct engine_hooks hooks;
    struct engine_info info;
    char served_name[256], fingerprint[32];
    struct model_config model_config;
    struct plan *plan;
    struct strbuf plan_json;
    struct tokenizer *tokenizer;
    struct chat_template *chat_template; /* NULL: template_err says why */
    struct err template_err;
    struct grammar_cache *grammars; /* has its own lock; NULL without a tokenizer */
    struct request_env env;
    pthread_t thread;
    bool thread_started;
    int64_t queue_timeout_ns;   /* 0: none */
    int64_t max_waiting_tokens; /* 0: no limit */

    /* Shared, each with its own lock. */
    struct ring_queue inbox; /* of struct request * */
    struct live_table live;
    struct outbox outbox;
    struct stats stats;
    atomic_bool cancel_pending, closing;
    atomic_llong waiting_tokens; /* prompts that were never seated, those in the inbox too */

    /* The engine thread's; `mu` is held while they change outside of a forward pass, so that
     * engine_dump() may read them. */
    pthread_mutex_t mu;
    struct backend *be;
    struct model *model;
    struct kv_slots kv;
    struct prefix_cache cache; /* unused when sched.cache is NULL */
    int32_t *cache_refs;       /* [n_pages] for engine_cache_refs() */
    struct kv_memory kv_memory;
    struct scheduler sched;
    struct batch batch;
    struct sampler sampler;
    struct engine_step steps[BACKEND_STEPS]; /* a ring of */
    int first_step, n_queued;                /* those on their way */
    int run_ahead;                           /* how many may be when one is to be taken */
    bool use_graphs;
    int64_t n_serials;   /* steps ever queued */
    int64_t step_end_ns; /* when the last one was taken */
    int64_t pages_ns;    /* when `pages` were counted */
    struct engine_pages pages;
    bool news_is_due; /* the outbox has what must not wait for the end of a block */
    struct step_trace *trace;
    struct request **drained; /* [live.n_max] */
    int n_failures;           /* steps in a row */
    int sweep_steps;          /* kv_sweep after so many steps; 0: never */
    char failure[ERR_MSG_BYTES];
};

/* The cache's references to each page, for kv_sweep_slots(); NULL without a cache. With e->mu. */
const int32_t *engine_cache_refs(const struct engine *e);

/* The engine thread's function; arg is the engine. */
void *engine_loop(void *arg);

/* Who holds the pages, as the scheduler's lists say. With e->mu held. */
struct engine_pages engine_count_pages(const struct engine *e);

#endif
