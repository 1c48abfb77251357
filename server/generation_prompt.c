/*
 * generation_prompt - parsing, tokenizing, and the arithmetic of the context.
 */
#include "server/generation_prompt.h"

#include "base/clock.h"
#include "config/config.h"
#include "engine/engine.h"
#include "server/generation.h"
#include "server/generation_write.h"
#include "server/http_server.h"
#include "server/json_in.h"

#include <stdlib.h>
#include <string.h>
#include <sys/random.h>

#define DEFAULT_COMPLETION 16 /* what the API prescribes for completions without max_tokens */

const char *generation_input_name(const struct generation *g)
{
    if (g->params.messages)
        return "messages";
    return g->api == API_DETOKENIZE ? "tokens" : g->api == API_EMBEDDINGS ? "input" : "prompt";
}

static int tokenize_text(struct generation *g, struct generation_prompt *p,
                         const struct openai_prompt *in, struct err *err)
{
    struct engine *e = g->server->engine;
    int rc;

    if (in->text) {
        rc = engine_tokenize(e, in->text, in->text_len, g->params.add_special != 0, true, &p->ids,
                             &p->n_ids, err);
        if (rc < 0)
            return rc;
        p->is_malloced = true;
        if (g->params.echo)
            strbuf_add(&p->echo, in->text, in->text_len);
        return 0;
    }
    p->ids = in->ids;
    p->n_ids = in->n_ids;
    if (!g->params.echo)
        return 0;
    return engine_detokenize(e, p->ids, p->n_ids, g->params.sampling.skip_special, &p->echo, err);
}

static int tokenize_one(struct generation *g, int i, struct err *err)
{
    struct generation_prompt *p = &g->prompts[i];
    struct engine *e = g->server->engine;
    char *tools;
    int rc;

    if (g->api == API_DETOKENIZE)
        return engine_detokenize(e, g->params.tokens, g->params.n_tokens, false, &p->echo, err);
    if (!g->params.messages)
        return tokenize_text(g, p, &g->params.prompts[i], err);
    tools = g->params.tools ? json_dumps(g->params.tools, JSON_COMPACT) : NULL;
    rc = engine_chat_tokenize(e, g->params.messages, g->params.n_messages, tools,
                              g->params.add_generation_prompt, &p->ids, &p->n_ids, NULL, err);
    free(tools);
    p->is_malloced = rc == 0;
    return rc;
}

/* Keeps the end of a prompt that is longer than was asked for. */
static int truncate_prompt(struct generation *g, struct generation_prompt *p, struct err *err)
{
    int answer = g->params.max_tokens >= 0 ? g->params.max_tokens : 1;
    int most = g->params.truncate_prompt;

    if (most == -1)
        most = g->server->limits.max_seq_len - answer;
    if (g->params.truncate_prompt == -2 || p->n_ids <= most)
        return 0;
    if (most < 0)
        return 0; /* the answer alone is too long: fit_context() says so */
    memmove(p->ids, p->ids + p->n_ids - most, (size_t)most * sizeof(*p->ids));
    p->n_ids = most;
    p->is_truncated = true;
    if (!g->params.echo)
        return 0;
    strbuf_reset(&p->echo); /* of what is left */
    return engine_detokenize(g->server->engine, p->ids, p->n_ids, g->params.sampling.skip_special,
                             &p->echo, err);
}

/* One spelling of a bad word; *is_new is false when it has the tokens of the one before. */
static int add_spelling(struct generation *g, const char *word, bool with_space, struct err *err)
{
    struct strbuf text = STRBUF_INIT;
    struct engine_word *out = &g->bad_words[g->n_bad_words];
    const struct engine_word *before = out - 1;
    int32_t *ids = NULL;
    int n_ids = 0, rc;

    if (with_space)
        strbuf_addch(&text, ' ');
    strbuf_addstr(&text, word + strspn(word, " "));
    rc = engine_tokenize(g->server->engine, text.buf, text.len, false, false, &ids, &n_ids, err);
    strbuf_release(&text);
    if (rc < 0)
        return rc;
    if (n_ids == 0 || (with_space && before->n_ids == n_ids &&
                       !memcmp(before->ids, ids, (size_t)n_ids * sizeof(*ids)))) {
        free(ids);
        return 0;
    }
    *out = (struct engine_word){.ids = ids, .n_ids = n_ids};
    g->n_bad_words++;
    return 0;
}

/* A word is banned as it stands behind another word and as it begins a text. */
static int tokenize_bad_words(struct generation *g)
{
    int n = g->params.n_bad_words;

    if (n == 0)
        return 0;
    g->bad_words = arena_array(&g->arena, 2 * (size_t)n, sizeof(*g->bad_words));
    if (!g->bad_words)
        return openai_refuse_no_room(&g->error);
    for (int i = 0; i < n; i++) {
        const char *word = g->params.bad_words[i];
        struct err err = {0};
        int had = g->n_bad_words;
        int rc = add_spelling(g, word, false, &err);

        if (rc == 0 && g->n_bad_words > had)
            rc = add_spelling(g, word, true, &err);
        if (rc < 0)
            return api_error_from_err(&g->error, &err, "bad_words");
        if (g->n_bad_words == had)
            return api_error_set(&g->error, 400, "bad_words", NULL, "Word %d has no tokens.", i);
    }
    return 0;
}

/* An empty prompt is BOS, where the tokenizer has one to add, or stays what it is. */
static int fill_empty(struct generation *g, struct generation_prompt *p)
{
    int bos_id = g->server->info->bos_id;
    int32_t *ids;

    if (p->n_ids > 0 || (bos_id < 0 && g->server->info->takes_empty_prompts))
        return 0;
    if (bos_id < 0)
        return api_error_set(&g->error, 400, generation_input_name(g), NULL,
                             "The prompt is empty, and this model has no token to begin with.");
    ids = arena_array(&g->arena, 1, sizeof(*ids));
    if (!ids)
        return openai_refuse_no_room(&g->error);
    if (p->is_malloced)
        free(p->ids);
    ids[0] = bos_id;
    p->ids = ids;
    p->n_ids = 1;
    p->is_malloced = false;
    return 0;
}

/* Fixes max_tokens, and with it N, the length that the request's memory is planned for. */
static int fit_context(struct generation *g, struct generation_prompt *p)
{
    int most = g->server->limits.max_seq_len;
    int asked = g->params.max_tokens;
    int room = most - p->n_ids;
    int fallback = g->api == API_CHAT ? g->server->config->default_max_tokens : DEFAULT_COMPLETION;

    if (asked < 0 && room < 1)
        return api_error_set(&g->error, 400, generation_input_name(g), "context_length_exceeded",
                             "This model's maximum context length is %d tokens, but the prompt has "
                             "%d tokens and leaves no room for an answer.",
                             most, p->n_ids);
    if (asked >= 0 && asked > room)
        return api_error_set(&g->error, 400, generation_input_name(g), "context_length_exceeded",
                             "This model's maximum context length is %d tokens, but %lld were "
                             "requested: %d in the prompt and %d for the answer.",
                             most, (long long)p->n_ids + asked, p->n_ids, asked);
    p->max_tokens = asked >= 0 ? asked : fallback < room ? fallback : room;
    return 0;
}

/* Refuses text that is too long to be worth a tokenizer's while. */
static int check_bytes(struct generation *g, int i)
{
    int64_t most = g->server->limits.max_prompt_bytes, n = 0;

    if (g->params.messages) {
        for (int k = 0; k < g->params.n_messages; k++)
            n += (int64_t)g->params.messages[k].content_len;
    } else {
        n = (int64_t)g->params.prompts[i].text_len;
    }
    if (n <= most)
        return 0;
    return api_error_set(&g->error, 400, generation_input_name(g), "context_length_exceeded",
                         "This model's maximum context length is %d tokens, but the prompt has "
                         "%lld bytes; more than %lld cannot fit.",
                         g->server->limits.max_seq_len, (long long)n, (long long)most);
}

static int tokenize(struct generation *g)
{
    bool generates = g->api & (API_COMPLETIONS | API_CHAT | API_EMBEDDINGS);

    for (int i = 0; i < g->n_prompts; i++) {
        struct generation_prompt *p = &g->prompts[i];
        struct err err = {0};

        if (generates && g->params.truncate_prompt == -2 && check_bytes(g, i) < 0)
            return ERR_INVALID;
        if (tokenize_one(g, i, &err) < 0)
            return api_error_from_err(&g->error, &err, generation_input_name(g));
        if (!generates)
            continue;
        if (truncate_prompt(g, p, &err) < 0)
            return api_error_from_err(&g->error, &err, generation_input_name(g));
        if (fill_empty(g, p) < 0 || fit_context(g, p) < 0)
            return ERR_INVALID;
        for (int k = 0; g->params.return_token_ids && k < p->n_ids; k++)
            openai_add_id(&p->ids_text, p->ids[k]);
    }
    return 0;
}

static int parse(struct generation *g)
{
    struct http_server *s = g->server;

    if (json_in_parse(&g->body, g->raw.buf, g->raw.len, s->limits.json_depth, &g->error) < 0)
        return ERR_INVALID;
    strbuf_release(&g->raw);
    if (openai_params_read(&g->params, g->api, g->body, &s->limits, &g->arena, &g->error) < 0)
        return ERR_INVALID;
    g->n_prompts = g->params.n_prompts > 0 ? g->params.n_prompts : 1;
    g->prompts = arena_array(&g->arena, g->n_prompts, sizeof(*g->prompts));
    if (!g->prompts)
        return openai_refuse_no_room(&g->error);
    for (int i = 0; i < g->n_prompts; i++) {
        strbuf_init(&g->prompts[i].echo);
        strbuf_init(&g->prompts[i].ids_text);
    }
    if (!g->params.has_seed &&
        getrandom(&g->params.seed, sizeof(g->params.seed), GRND_NONBLOCK) < 0)
        g->params.seed = clock_ns();
    return 0;
}

void generation_compile(struct generation *g)
{
    const struct openai_grammar *asked = &g->params.grammar;
    struct err err = {0};

    if (!asked->field || g->error.status)
        return;
    if (engine_grammar_new(g->server->engine, asked->kind, asked->text, asked->len, &g->grammar,
                           &err) < 0)
        api_error_set(&g->error, 400, asked->field, NULL, "%s", err.msg);
}

void generation_prepare(struct generation *g)
{
    if (parse(g) < 0)
        return;
    generation_write_head(g);
    if (tokenize_bad_words(g) == 0)
        tokenize(g);
}
