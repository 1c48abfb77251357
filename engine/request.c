/*
 * request - one generation. See request.h.
 */
#include "engine/request.h"

#include "base/check.h"
#include "base/clock.h"
#include "engine/tokenizer/tokenizer.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

#define PRIME_TOKENS    16 /* of the prompt: the longest character that a token border can cut */
#define HELD_TOKENS     32 /* at first: as many as the letters of a usual stop string */
#define ARENA_EXTRA     (16u << 20)
#define ARENA_CHUNK     4096
#define FIXED_BYTES     (24 * 1024) /* of what can still grow: held tokens, texts, the outbox */
#define BYTES_PER_TOKEN 40 /* of the arena: a token, its count and its place in the index */

void sampling_params_init(struct sampling_params *p)
{
    *p = (struct sampling_params){.temperature = 1.0f,
                                  .top_p = 1.0f,
                                  .repetition_penalty = 1.0f,
                                  .max_tokens = 16,
                                  .skip_special = true,
                                  .n_logprobs = -1,
                                  .n_prompt_logprobs = -1};
}

/* Written so that NaN fails. */
static int check_range(const char *name, double value, double lo, double hi, struct err *err)
{
    if (value >= lo && value <= hi)
        return 0;
    return err_set(err, ERR_INVALID, "%s is %g, must be in %g..%g", name, value, lo, hi);
}

static int check_numbers(const struct sampling_params *p, struct err *err)
{
    const struct {
        const char *name;
        double value, lo, hi;
    } bounds[] = {
        {"temperature", (double)p->temperature, 0, 1e6},
        {"top_p", (double)p->top_p, 0, 1},
        {"min_p", (double)p->min_p, 0, 1},
        {"top_k", p->top_k, 0, INT32_MAX},
        {"repetition_penalty", (double)p->repetition_penalty, 1e-6, 1e6},
        {"presence_penalty", (double)p->presence_penalty, -2, 2},
        {"frequency_penalty", (double)p->frequency_penalty, -2, 2},
        {"max_tokens", p->max_tokens, 0, INT32_MAX},
        {"min_tokens", p->min_tokens, 0, p->max_tokens},
        {"logprobs", p->n_logprobs, -1, ENGINE_MAX_TOP},
        {"prompt_logprobs", p->n_prompt_logprobs, -1, ENGINE_MAX_TOP},
        {"prompt_logprobs_at", p->prompt_logprobs_at, 0, INT32_MAX},
        {"number of stop strings", p->n_stop, 0, ENGINE_MAX_STOPS},
        {"number of stop token ids", p->n_stop_ids, 0, ENGINE_MAX_STOP_IDS},
        {"number of logit_bias entries", p->n_bias, 0, REQUEST_MAX_BIAS},
        {"number of allowed_token_ids", p->n_allowed, 0, INT32_MAX},
        {"number of bad_words", p->n_bad_words, 0, ENGINE_MAX_WORDS},
    };

    for (size_t i = 0; i < sizeof(bounds) / sizeof(bounds[0]); i++) {
        int rc = check_range(bounds[i].name, bounds[i].value, bounds[i].lo, bounds[i].hi, err);

        if (rc < 0)
            return rc;
    }
    return 0;
}

static int check_lists(const struct sampling_params *p, const struct request_env *env,
                       struct err *err)
{
    for (int i = 0; i < p->n_stop; i++) {
        if (!p->stop[i] || !*p->stop[i])
            return err_set(err, ERR_INVALID, "stop[%d] is empty", i);
    }
    for (int i = 0; i < p->n_stop_ids; i++) {
        if (p->stop_ids[i] < 0 || p->stop_ids[i] >= env->vocab_size)
            return err_set(err, ERR_INVALID, "stop_token_ids[%d] is %d, must be in 0..%d", i,
                           (int)p->stop_ids[i], env->vocab_size - 1);
    }
    for (int i = 0; i < p->n_bias; i++) {
        int rc;

        if (p->bias[i].token < 0 || p->bias[i].token >= env->vocab_size)
            return err_set(err, ERR_INVALID, "logit_bias names token %d, must be in 0..%d",
                           (int)p->bias[i].token, env->vocab_size - 1);
        rc = check_range("logit_bias value", (double)p->bias[i].value, -100, 100, err);
        if (rc < 0)
            return rc;
    }
    return 0;
}

static int check_request(const struct engine_request *req, const struct request_env *env,
                         struct err *err)
{
    const struct sampling_params *p = &req->sampling;
    int rc = check_numbers(p, err);

    if (rc == 0)
        rc = check_lists(p, env, err);
    if (rc < 0)
        return rc;
    if (req->pooling && !env->embedding_dim)
        return err_set(err, ERR_UNSUPPORTED, "this server gives no embeddings");
    if (req->pooling && p->max_tokens > 0)
        return err_set(err, ERR_INVALID, "max_tokens is %d, must be 0 for an embedding",
                       p->max_tokens);
    if (req->n_prompt < (env->block ? 0 : 1))
        return err_set(err, ERR_INVALID, "the prompt is empty");
    if ((int64_t)req->n_prompt + p->max_tokens > env->max_seq_len)
        return err_set(err, ERR_CONTEXT,
                       "the context is %d tokens, but %lld were asked for: %d in the prompt and "
                       "%d for the completion",
                       env->max_seq_len, (long long)req->n_prompt + p->max_tokens, req->n_prompt,
                       p->max_tokens);
    for (int i = 0; i < req->n_prompt; i++) {
        if (req->prompt[i] < 0 || req->prompt[i] >= env->vocab_size)
            return err_set(err, ERR_INVALID, "prompt token %d is %d, must be in 0..%d", i,
                           (int)req->prompt[i], env->vocab_size - 1);
    }
    return 0;
}

static int no_room(struct err *err)
{
    return err_set(err, ERR_NO_ROOM, "no memory for the request");
}

static void counts_add(struct token_counts *c, int32_t token, bool generated)
{
    uint32_t mask, at;

    if (!c->n_index)
        return;
    mask = (uint32_t)c->n_index - 1;
    for (at = (uint32_t)token * 2654435761u & mask; c->index[at]; at = (at + 1) & mask) {
        if (c->rows[c->index[at] - 1].token == token) {
            c->rows[c->index[at] - 1].n_generated += generated;
            return;
        }
    }
    c->rows[c->n_rows++] = (struct sample_seen){.token = token, .n_generated = generated};
    c->index[at] = c->n_rows;
}

static int counts_init(struct request *r, struct err *err)
{
    const struct sampling_params *p = &r->sampling;
    struct token_counts *c = &r->counts;
    int n_max = r->seq.n_limit < r->env->vocab_size ? r->seq.n_limit : r->env->vocab_size;

    if (p->repetition_penalty == 1.0f && p->presence_penalty == 0.0f &&
        p->frequency_penalty == 0.0f)
        return 0;
    c->n_index = 16;
    while (c->n_index < 2 * n_max)
        c->n_index *= 2;
    c->rows = arena_array(&r->arena, (size_t)n_max, sizeof(*c->rows));
    c->index = arena_array(&r->arena, (size_t)c->n_index, sizeof(*c->index));
    if (!c->rows || !c->index)
        return no_room(err);
    for (int i = 0; i < r->seq.n_prompt; i++)
        counts_add(c, r->tokens[i], false);
    r->seq.n_seen_max = n_max;
    return 0;
}

static bool ends_with(const struct request *r, int32_t token)
{
    for (int i = 0; !r->sampling.ignore_eos && i < r->env->n_eos; i++) {
        if (r->env->eos_ids[i] == token)
            return true;
    }
    for (int i = 0; i < r->sampling.n_stop_ids; i++) {
        if (r->sampling.stop_ids[i] == token)
            return true;
    }
    return false;
}

static void ban(struct request *r, int32_t token)
{
    for (int i = 0; i < r->n_bias_min; i++) {
        if (r->bias_min[i].token == token) {
            r->bias_min[i].value = -INFINITY;
            return;
        }
    }
    r->bias_min[r->n_bias_min++] = (struct sample_bias){.token = token, .value = -INFINITY};
}

static int bias_init(struct request *r, const struct engine_bias *bias, struct err *err)
{
    const struct request_env *env = r->env;
    int n = r->sampling.n_bias;
    int n_all = n + env->n_eos + r->sampling.n_stop_ids;

    r->bias = arena_array(&r->arena, (size_t)n, sizeof(*r->bias));
    r->bias_min = arena_array(&r->arena, (size_t)n_all, sizeof(*r->bias_min));
    if (!r->bias || !r->bias_min)
        return no_room(err);
    for (int i = 0; i < n; i++)
        r->bias[i] = (struct sample_bias){.token = bias[i].token, .value = bias[i].value};
    r->n_bias = r->n_bias_min = n;
    memcpy(r->bias_min, r->bias, (size_t)n * sizeof(*r->bias));
    for (int i = 0; !r->sampling.ignore_eos && i < env->n_eos; i++)
        ban(r, env->eos_ids[i]);
    for (int i = 0; i < r->sampling.n_stop_ids; i++)
        ban(r, r->sampling.stop_ids[i]);
    return 0;
}

static int geometry_init(struct request *r, struct err *err)
{
    const struct request_env *env = r->env;
    const struct kv_shape *shape = &env->shape;
    int n_limit = env->block ? block_config_entries(env->block, r->seq.n_prompt, r->seq.n_limit)
                             : r->seq.n_limit;
    struct kv_geom *geom = arena_array(&r->arena, (size_t)kv_shape_heads(shape), sizeof(*geom));
    int32_t *window =
        arena_array(&r->arena, (size_t)shape->n_layers * shape->n_heads, sizeof(*window));

    if (!geom || !window)
        return no_room(err);
    plan_geometry(env->plan, n_limit, geom, window);
    kv_need_init(&r->seq.need, shape, geom, window, n_limit);
    return 0;
}

static struct prefix_key mix(struct prefix_key k, const void *data, size_t len)
{
    const unsigned char *p = data;

    for (size_t i = 0; i < len; i++) {
        k.a = (k.a ^ p[i]) * 0x100000001b3u;
        k.b = (k.b + p[i]) * 0x9e3779b97f4a7c15u ^ k.b >> 32;
    }
    return k;
}

/*
 * What decides the keys and values of a prompt besides its tokens: which of them each head sees,
 * and with a dynamic rope the prompt's length. Heads that see all are alike whatever the length. Of
 * a sequence that drops tokens the heads must be the same ones, since their pages are.
 */
static void prefix_init(struct request *r, const char *salt)
{
    const struct request_env *env = r->env;
    const struct kv_shape *shape = &env->shape;
    const struct kv_need *need = &r->seq.need;
    int n_group = shape->n_heads / shape->n_kv_heads;
    struct prefix_key key = {env->cache_secret[0], env->cache_secret[1]};

    r->seq.shares_prefix = prefix_cache_suits(shape, need);
    for (int i = 0; i < shape->n_layers * shape->n_heads && r->seq.shares_prefix; i++) {
        struct kv_geom g = need->geom[i / n_group];
        int32_t seen[4] = {i, need->window[i], g.n_sink, g.mask};

        if (!need->growable || need->window[i] < need->n_limit)
            key = mix(key, seen, sizeof(seen));
    }
    if (env->rope_by_prompt)
        key = mix(key, &r->seq.n_prompt, sizeof(r->seq.n_prompt));
    if (salt)
        key = mix(key, salt, strlen(salt));
    r->seq.key = key;
}

static int filter_init(struct request *r, const struct sampling_params *p, struct err *err)
{
    int rc = token_filter_init(&r->filter, &r->arena, p, r->env->vocab_size, err);

    r->has_choice = true;
    if (rc == 0 && token_filter_is_active(&r->filter) && !r->env->has_masks)
        return err_set(err, ERR_INVALID, "this device cannot restrict the tokens that are drawn");
    return rc;
}

static int text_init(struct request *r, const struct sampling_params *p, struct err *err)
{
    int n_prime = r->seq.n_prompt < PRIME_TOKENS ? r->seq.n_prompt : PRIME_TOKENS;
    int rc = stop_match_init(&r->stops, &r->arena, p->stop, p->n_stop, err);

    if (rc < 0)
        return rc;
    r->n_held_room = HELD_TOKENS;
    r->held = calloc(HELD_TOKENS, sizeof(*r->held));
    if (!r->held || !strbuf_grow(&r->pending, 256))
        return no_room(err);
    if (r->env->tokenizer) {
        detok_init(&r->detok, r->env->tokenizer, p->skip_special, n_prime == r->seq.n_prompt);
        detok_prime(&r->detok, &r->tokens[r->seq.n_prompt - n_prime], (size_t)n_prime);
    }
    return 0;
}

static int record_init(struct request *r, const struct engine_request *req, struct err *err)
{
    int rc;

    if (req->sampling.n_prompt_logprobs >= 0) {
        r->prompt_tokens = calloc((size_t)req->n_prompt, sizeof(*r->prompt_tokens));
        if (!r->prompt_tokens)
            return no_room(err);
        for (int i = 0; i < req->n_prompt; i++)
            r->prompt_tokens[i] = (struct engine_token){.id = req->prompt[i], .logprob = NAN};
    }
    if (req->pooling) {
        r->embedding = calloc((size_t)r->env->embedding_dim, sizeof(*r->embedding));
        if (!r->embedding)
            return no_room(err);
    }
    rc = outbox_record_init(&r->out, r->id, req->user, req->n_prompt, req->sampling.max_tokens,
                            r->prompt_tokens, err);
    r->out.head.submit_ns = r->submit_ns;
    return rc;
}

int request_new(struct request **out, const struct request_env *env,
                const struct engine_request *req, uint64_t id, struct err *err)
{
    int64_t n_limit = (int64_t)req->n_prompt + req->sampling.max_tokens;
    struct request *r;
    int32_t *stop_ids, *tokens;
    int lead, rc = check_request(req, env, err);

    if (rc < 0)
        return rc;
    lead = env->block ? block_config_lead(env->block, req->n_prompt) : 0;
    r = calloc(1, sizeof(*r));
    if (!r)
        return no_room(err);
    strbuf_init(&r->pending);
    atomic_init(&r->cancel, false);
    r->env = env;
    r->id = id;
    r->submit_ns = clock_ns();
    r->sampling = req->sampling;
    /* What is not a token's is heads and stop strings. */
    arena_init(&r->arena, (size_t)n_limit * BYTES_PER_TOKEN + ARENA_EXTRA, ARENA_CHUNK);
    tokens = arena_array(&r->arena, (size_t)(lead + n_limit), sizeof(*tokens));
    stop_ids = arena_array(&r->arena, (size_t)req->sampling.n_stop_ids, sizeof(*stop_ids));
    if (!tokens || !stop_ids) {
        rc = no_room(err);
        goto out;
    }
    for (int i = 0; i < lead; i++)
        tokens[i] = env->block->start_id;
    r->tokens = tokens + lead;
    if (req->n_prompt)
        memcpy(r->tokens, req->prompt, (size_t)req->n_prompt * sizeof(*r->tokens));
    if (req->sampling.n_stop_ids)
        memcpy(stop_ids, req->sampling.stop_ids,
               (size_t)req->sampling.n_stop_ids * sizeof(*stop_ids));
    r->sampling.stop_ids = stop_ids;
    r->sampling.stop = NULL; /* the matcher has its own copy */
    r->sampling.bias = NULL; /* so has r->bias, and r->filter of the rest */
    r->sampling.allowed = NULL;
    r->sampling.bad_words = NULL;
    r->sampling.grammar = NULL;
    r->seq.owner = r;
    r->seq.tokens = r->tokens;
    r->seq.lead = lead;
    r->seq.n_prompt = r->seq.n_tokens = req->n_prompt;
    r->seq.n_limit = (int32_t)n_limit;
    r->seq.priority = req->priority;
    r->seq.pooling = req->pooling;
    r->seq.wants_prompt_logits = req->sampling.n_prompt_logprobs >= 0;
    if (env->block)
        r->seq.first_logits_row = req->sampling.prompt_logprobs_at;
    else if (req->sampling.prompt_logprobs_at > 0) /* a token's logits stand in the row before it */
        r->seq.first_logits_row = req->sampling.prompt_logprobs_at - 1;
    r->seq.slot = -1;
    r->stop_token = -1;
    rc = geometry_init(r, err);
    if (rc == 0)
        prefix_init(r, req->cache_salt);
    if (rc == 0)
        rc = counts_init(r, err);
    if (rc == 0)
        rc = bias_init(r, req->sampling.bias, err);
    if (rc == 0)
        rc = filter_init(r, &req->sampling, err);
    r->seq.needs_tokens = request_needs_token_on_host(r);
    if (rc == 0)
        rc = text_init(r, &req->sampling, err);
    if (rc == 0)
        rc = record_init(r, req, err);
    if (rc < 0)
        goto out;
    r->n_bytes = (int64_t)(sizeof(*r) + arena_used(&r->arena)) + FIXED_BYTES;
    if (r->prompt_tokens)
        r->n_bytes += req->n_prompt * (int64_t)sizeof(*r->prompt_tokens);
    if (r->embedding)
        r->n_bytes += env->embedding_dim * (int64_t)sizeof(*r->embedding);
    *out = r;
    r = NULL;
out:
    request_free(r);
    return rc;
}

void request_free(struct request *r)
{
    if (!r)
        return;
    if (r->detok.tok)
        detok_release(&r->detok);
    token_filter_release(&r->filter);
    outbox_record_release(&r->out);
    strbuf_release(&r->pending);
    free(r->held);
    free(r->embedding);
    arena_release(&r->arena);
    free(r);
}

/* Cuts the pending text, and the tokens' shares of it, to n bytes. */
static void cut_pending(struct request *r, size_t n)
{
    strbuf_truncate(&r->pending, n);
    for (int i = 0; i < r->n_held; i++) {
        struct engine_token *t = &r->held[i];

        if ((size_t)t->text_at > n)
            t->text_at = (int)n;
        if ((size_t)(t->text_at + t->text_len) > n)
            t->text_len = (int)(n - (size_t)t->text_at);
    }
}

/* Looks for stop strings in pending text from `at` on. True when one ended the text. */
static bool match_stops(struct request *r, size_t at)
{
    bool honour = request_n_generated(r) > r->sampling.min_tokens;
    struct stop_hit hit;
    size_t end;

    if (!stop_match_feed(&r->stops, r->pending.buf + at, r->pending.len - at, honour, &hit))
        return false;
    end = at + hit.end;
    cut_pending(r, r->sampling.include_stop ? end : end - hit.len);
    r->finish = FINISH_STOP;
    r->stop_string = stop_match_string(&r->stops, hit.which);
    return true;
}

/* Text that never became whole characters belongs to the last token. */
static bool flush_text(struct request *r)
{
    size_t at = r->pending.len;

    if (!r->env->tokenizer)
        return false;
    detok_finish(&r->detok, &r->pending);
    CHECK(r->n_held > 0);
    r->held[r->n_held - 1].text_len += (int)(r->pending.len - at);
    return match_stops(r, at);
}

/* Room for one more held token. */
static bool held_grow(struct request *r)
{
    struct engine_token *held;

    if (r->n_held < r->n_held_room)
        return true;
    held = realloc(r->held, 2 * (size_t)r->n_held_room * sizeof(*held));
    if (!held)
        return false;
    r->held = held;
    r->n_held_room *= 2;
    return true;
}

enum finish_reason request_push_token(struct request *r, const struct engine_token *token,
                                      int64_t now_ns)
{
    bool is_end = ends_with(r, token->id), is_complete;
    struct engine_token *held;
    size_t at = r->pending.len;

    CHECK(r->finish == FINISH_NONE);
    CHECK(r->seq.n_tokens < r->seq.n_limit);
    if (!held_grow(r)) {
        r->error = "out of memory for held-back tokens";
        r->finish = FINISH_ERROR;
        return r->finish;
    }
    r->tokens[r->seq.n_tokens] = token->id;
    scheduler_push_token(&r->seq);
    counts_add(&r->counts, token->id, true);
    if (!r->first_token_ns)
        r->first_token_ns = now_ns;
    r->last_token_ns = now_ns;
    held = &r->held[r->n_held++];
    engine_token_copy(held, token);
    if (r->env->tokenizer && (!is_end || r->sampling.include_stop))
        detok_push(&r->detok, token->id, &r->pending);
    held->text_at = (int)at;
    held->text_len = (int)(r->pending.len - at);
    is_complete = token_filter_take(&r->filter, token->id);
    if (match_stops(r, at)) {
        /* A stop string that this token completed counts before the token itself. */
    } else if (is_end && !flush_text(r)) {
        r->finish = FINISH_STOP;
        r->stop_token = token->id;
    } else if (!is_end && is_complete && !flush_text(r)) {
        r->finish = FINISH_STOP; /* its grammar leaves nothing to add */
    } else if (!is_end && r->seq.n_tokens == r->seq.n_limit && !flush_text(r)) {
        r->finish = FINISH_LENGTH;
    }
    return r->finish;
}

void request_take_pooled(struct request *r, const double *sums)
{
    double n_rows = r->seq.pooling == POOLING_MEAN ? r->seq.n_prompt : 1;

    for (int i = 0; i < r->env->embedding_dim; i++)
        r->embedding[i] = (float)(sums[i] / n_rows);
}

void request_end(struct request *r, enum finish_reason reason, const char *error)
{
    CHECK(reason != FINISH_NONE);
    CHECK(r->finish == FINISH_NONE);
    r->finish = reason;
    r->error = error;
}

void request_tell(struct request *r, struct outbox *o)
{
    size_t n_free = r->pending.len - (r->finish ? 0 : stop_match_held(&r->stops));
    struct outbox_news news;
    size_t n_bytes = 0;
    int n = 0;

    while (n < r->n_held && (size_t)(r->held[n].text_at + r->held[n].text_len) <= n_free) {
        n_bytes = (size_t)(r->held[n].text_at + r->held[n].text_len);
        n++;
    }
    if (r->finish) {
        CHECK(n == r->n_held);
        n_bytes = r->pending.len;
    }
    if (n == 0 && !r->finish && !r->prompt_ready)
        return;
    news = (struct outbox_news){.text = r->pending.buf,
                                .text_len = n_bytes,
                                .tokens = r->held,
                                .n_tokens = n,
                                .n_completion_tokens = request_n_generated(r),
                                .n_cached_tokens = r->seq.n_cached,
                                .prompt_ready = r->prompt_ready,
                                .finish = r->finish,
                                .stop_token = r->stop_token,
                                .stop_string = r->stop_string,
                                .error = r->error,
                                .start_ns = r->start_ns,
                                .first_token_ns = r->first_token_ns,
                                .last_token_ns = r->last_token_ns};
    if (r->embedding && r->finish == FINISH_LENGTH) {
        news.embedding = r->embedding;
        news.n_embedding = r->env->embedding_dim;
    }
    if (r->finish) {
        outbox_add(o, &r->out, &news); /* the poller may free r from here on */
        return;
    }
    outbox_add(o, &r->out, &news);
    r->prompt_ready = false;
    strbuf_drop(&r->pending, n_bytes);
    r->n_held -= n;
    memmove(r->held, r->held + n, (size_t)r->n_held * sizeof(*r->held));
    for (int i = 0; i < r->n_held; i++)
        r->held[i].text_at -= (int)n_bytes;
}
