/*
 * generation_write - choices to JSON. A chunk is a whole answer's choice, only smaller; what is
 * added by an event and what is written is decided here, how it is spelt in openai_json.c.
 */
#include "server/generation_write.h"

#include "base/clock.h"
#include "base/err.h"
#include "engine/engine.h"
#include "server/generation.h"
#include "server/http_server.h"
#include "server/sse.h"

#include <stdio.h>
#include <string.h>
#include <sys/random.h>

static void make_id(char *out, size_t size, const char *prefix)
{
    unsigned char r[12] = {0};
    int n = snprintf(out, size, "%s-", prefix);

    if (getrandom(r, sizeof(r), GRND_NONBLOCK) < 0)
        memset(r, 0, sizeof(r));
    for (size_t i = 0; i < sizeof(r); i++)
        n += snprintf(out + n, size - n, "%02x", r[i]);
}

void generation_write_head(struct generation *g)
{
    bool is_chat = g->api == API_CHAT;
    char id[48];
    struct openai_head head = {
        .id = id,
        .model = g->server->info->model_id,
        .fingerprint = g->server->info->fingerprint,
        .created = clock_unix_ms() / 1000,
    };

    make_id(id, sizeof(id), is_chat ? "chatcmpl" : "cmpl");
    if (!is_chat)
        head.object = "text_completion";
    else
        head.object = g->params.stream ? "chat.completion.chunk" : "chat.completion";
    openai_write_head(&g->head, &head);
}

static int token_bytes(void *arg, int32_t id, struct strbuf *out)
{
    return engine_token_bytes(arg, id, out);
}

/* Does decoding leave the token out? It then counts neither in offsets nor in bytes. */
static bool is_skipped(const struct generation *g, int32_t id)
{
    struct strbuf without = STRBUF_INIT;
    struct strbuf with = STRBUF_INIT;
    struct err err = {0};
    bool skipped = false;

    if (g->params.sampling.skip_special &&
        engine_detokenize(g->server->engine, &id, 1, true, &without, &err) == 0 &&
        without.len == 0 && engine_detokenize(g->server->engine, &id, 1, false, &with, &err) == 0)
        skipped = with.len > 0;
    strbuf_release(&without);
    strbuf_release(&with);
    return skipped;
}

/* Is prompt token i no part of the echo? Text is echoed as it came, so all but an added BOS is. */
static bool is_unechoed(const struct generation *g, int prompt_idx, int i, int32_t id)
{
    const struct openai_prompt *in = &g->params.prompts[prompt_idx];

    if (in->ids || g->prompts[prompt_idx].is_truncated)
        return is_skipped(g, id);
    return i == 0 && id == g->server->info->bos_id &&
           (in->text_len == 0 || g->params.add_special != 0);
}

static int64_t leading_spaces(const struct strbuf *s)
{
    int64_t n = 0;

    while (n < (int64_t)s->len && s->buf[n] == ' ')
        n++;
    return n;
}

/* Spaces that the first tokens have and the echo lacks: Llama 2 puts one in front of every text. */
static int64_t stripped_spaces(const struct choice *c, const struct engine_event *ev,
                               const struct token_speller *speller)
{
    const struct generation *g = c->generation;
    struct strbuf bytes = STRBUF_INIT;
    int64_t n = -leading_spaces(&g->prompts[c->prompt_idx].echo);

    for (int i = 0; i < ev->n_prompt_tokens; i++) {
        int32_t id = ev->prompt_tokens[i].id;

        if (is_unechoed(g, c->prompt_idx, i, id))
            continue;
        strbuf_reset(&bytes);
        speller->bytes(speller->arg, id, &bytes);
        n += leading_spaces(&bytes);
        if (leading_spaces(&bytes) < (int64_t)bytes.len)
            break;
    }
    strbuf_release(&bytes);
    return n > 0 ? n : 0;
}

static void add_prompt(struct choice *c, const struct engine_event *ev,
                       const struct token_speller *speller)
{
    const struct generation *g = c->generation;
    const struct openai_params *p = &g->params;
    bool wants_echo = p->echo && p->n_logprobs >= 0;

    if (wants_echo)
        c->logprobs.text_at = -stripped_spaces(c, ev, speller);
    for (int i = 0; i < ev->n_prompt_tokens; i++) {
        const struct engine_token *t = &ev->prompt_tokens[i];

        if (wants_echo)
            logprob_list_add(&c->logprobs, t, p->n_logprobs,
                             is_unechoed(g, c->prompt_idx, i, t->id), speller);
        if (p->n_prompt_logprobs >= 0)
            openai_add_prompt_logprob(&c->prompt_logprobs, t, p->n_prompt_logprobs, speller);
    }
}

/* The bytes of a chat answer's tokens spell its text, which the stop token may be no part of. */
static void add_logprob(struct choice *c, const struct engine_token *t, bool is_end,
                        const struct token_speller *speller)
{
    const struct generation *g = c->generation;
    const struct sampling_params *s = &g->params.sampling;
    bool is_silent = (is_end && !s->include_stop) || is_skipped(g, t->id);

    if (!(is_end && is_silent && g->api == API_CHAT))
        logprob_list_add(&c->logprobs, t, s->n_logprobs, is_silent, speller);
}

void generation_add_event(struct choice *c, const struct engine_event *ev)
{
    struct generation *g = c->generation;
    const struct openai_params *p = &g->params;
    struct token_speller speller = {
        .bytes = token_bytes, .arg = g->server->engine, .as_ids = p->tokens_as_ids};

    if (!c->has_echoed && p->echo)
        strbuf_add(&c->text, g->prompts[c->prompt_idx].echo.buf,
                   g->prompts[c->prompt_idx].echo.len);
    c->has_echoed = true;
    if (ev->prompt_tokens)
        add_prompt(c, ev, &speller);
    if (!tool_calls_feed(&c->tools, ev->text, ev->text_len, &c->text) ||
        (ev->finish && !tool_calls_finish(&c->tools, &c->text)))
        c->text.failed = true;
    for (int i = 0; i < ev->n_tokens; i++) {
        const struct engine_token *t = &ev->tokens[i];

        c->logprob_sum += (double)t->logprob;
        bool is_end = ev->finish == FINISH_STOP && i + 1 == ev->n_tokens && t->id == ev->stop_token;

        if (p->sampling.n_logprobs >= 0)
            add_logprob(c, t, is_end, &speller);
        if (p->return_token_ids)
            openai_add_id(&c->token_ids, t->id);
    }
    c->finish = ev->finish;
    for (int i = 0; i < p->sampling.n_stop_ids; i++) {
        if (p->sampling.stop_ids[i] == ev->stop_token)
            c->stop_token = ev->stop_token; /* one that the client named; EOS needs no naming */
    }
    if (ev->stop_string)
        c->stop_string = arena_strndup(&g->arena, ev->stop_string, strlen(ev->stop_string));
}

static const char *finish_word(const struct choice *c)
{
    if (c->finish == FINISH_NONE)
        return NULL;
    if (c->finish != FINISH_STOP)
        return "length";
    /* A call that was asked for by name is no news. */
    return tool_calls_count(&c->tools) > 0 && c->tools.format != TOOLS_ARGUMENTS ? "tool_calls"
                                                                                 : "stop";
}

/* What the choice has to say; the finish reason and the prompt's ids are the caller's to add. */
static struct openai_piece piece_of(struct choice *c)
{
    const struct openai_params *p = &c->generation->params;

    return (struct openai_piece){
        .index = c->index,
        .text = c->text.buf,
        .text_len = c->text.len,
        .logprobs = p->sampling.n_logprobs >= 0 ? &c->logprobs : NULL,
        .token_ids = p->return_token_ids ? &c->token_ids : NULL,
        .stop_string = c->stop_string,
        .stop_token = c->stop_token,
    };
}

static void write_chunk(struct choice *c, const struct openai_piece *piece, struct strbuf *out)
{
    struct generation *g = c->generation;

    sse_begin(out);
    strbuf_add(out, g->head.buf, g->head.len);
    if (g->api == API_CHAT)
        openai_write_delta_choice(out, piece);
    else
        openai_write_text_choice(out, piece);
    strbuf_addch(out, ']');
    if (g->api == API_CHAT)
        openai_write_list(out, "prompt_token_ids", piece->prompt_ids);
    if (g->params.continuous_usage) {
        strbuf_addstr(out, ",\"usage\":");
        openai_write_usage(out, &g->usage);
        strbuf_addch(out, '}');
    } else {
        strbuf_addstr(out, g->params.include_usage ? ",\"usage\":null}" : "}");
    }
    sse_end(out);
}

/* The first delta of a message: its role and nothing said yet. */
static void write_role(struct choice *c, struct strbuf *out)
{
    struct generation *g = c->generation;
    struct openai_piece piece = {
        .index = c->index, .text = "", .with_role = true, .stop_token = -1};

    if (g->params.return_token_ids)
        piece.prompt_ids = &g->prompts[c->prompt_idx].ids_text;
    write_chunk(c, &piece, out);
}

static bool has_news(const struct choice *c)
{
    return c->text.len > 0 || c->logprobs.n > 0 || c->token_ids.len > 0 ||
           tool_calls_has_delta(&c->tools);
}

bool generation_has_chunk(const struct choice *c)
{
    return has_news(c) || c->finish != FINISH_NONE;
}

static void write_chat_chunks(struct choice *c, struct strbuf *out)
{
    struct openai_piece piece = piece_of(c);
    struct openai_piece last = {.index = c->index,
                                .finish_reason = finish_word(c),
                                .stop_string = c->stop_string,
                                .stop_token = c->stop_token};

    if (!c->has_begun)
        write_role(c, out);
    if (has_news(c)) {
        struct strbuf calls = STRBUF_INIT;

        tool_calls_write_delta(&c->tools, &calls);
        if (calls.len > 0) {
            piece.tool_calls = &calls;
            piece.text = c->text.len ? piece.text : NULL;
        }
        write_chunk(c, &piece, out);
        strbuf_release(&calls);
    }
    if (last.finish_reason)
        write_chunk(c, &last, out);
}

void generation_write_chunks(struct choice *c, struct strbuf *out)
{
    struct generation *g = c->generation;
    struct openai_piece piece;

    if (g->api == API_CHAT) {
        write_chat_chunks(c, out);
    } else {
        piece = piece_of(c);
        piece.finish_reason = finish_word(c);
        if (g->params.return_token_ids && !c->has_begun)
            piece.prompt_ids = &g->prompts[c->prompt_idx].ids_text;
        write_chunk(c, &piece, out);
    }
    c->has_begun = true;
    strbuf_reset(&c->text);
    strbuf_reset(&c->token_ids);
}

void generation_write_stream_end(struct generation *g, struct strbuf *out)
{
    if (g->params.include_usage) {
        sse_begin(out);
        strbuf_add(out, g->head.buf, g->head.len);
        strbuf_addstr(out, "],\"usage\":");
        openai_write_usage(out, &g->usage);
        strbuf_addch(out, '}');
        sse_end(out);
    }
    sse_done(out);
}

void generation_write_error(struct strbuf *out, const struct api_error *e)
{
    sse_begin(out);
    api_error_write(e, out);
    sse_end(out);
    sse_done(out);
}

static void write_choice(const struct generation *g, const struct choice *c,
                         struct openai_piece *piece, struct strbuf *out)
{
    struct strbuf calls = STRBUF_INIT;

    if (g->api == API_CHAT) {
        tool_calls_write(&c->tools, &calls);
        if (calls.len > 0) {
            piece->tool_calls = &calls;
            piece->text = c->text.len ? piece->text : NULL;
        }
        openai_write_message_choice(out, piece);
    } else {
        openai_write_text_choice(out, piece);
    }
    out->failed |= c->text.failed;
    strbuf_release(&calls);
}

void generation_write_body(struct generation *g, struct strbuf *out)
{
    strbuf_add(out, g->head.buf, g->head.len);
    for (int i = 0; i < g->n_choices; i++) {
        struct choice *c = &g->choices[i];
        struct openai_piece piece;

        if (c->index < 0)
            continue; /* not among the best */
        piece = piece_of(c);
        piece.finish_reason = finish_word(c);
        if (g->params.return_token_ids)
            piece.prompt_ids = &g->prompts[c->prompt_idx].ids_text;
        if (g->params.n_prompt_logprobs >= 0)
            piece.prompt_logprobs = &c->prompt_logprobs;
        if (c->index > 0)
            strbuf_addch(out, ',');
        write_choice(g, c, &piece, out);
    }
    strbuf_addch(out, ']');
    if (g->api == API_CHAT && g->params.return_token_ids)
        openai_write_list(out, "prompt_token_ids", &g->prompts[0].ids_text);
    if (g->api == API_CHAT && g->params.n_prompt_logprobs >= 0)
        openai_write_list(out, "prompt_logprobs", &g->choices[0].prompt_logprobs);
    strbuf_addstr(out, ",\"usage\":");
    openai_write_usage(out, &g->usage);
    strbuf_addch(out, '}');
}

void generation_write_tokens(struct generation *g, struct strbuf *out)
{
    const struct generation_prompt *p = &g->prompts[0];
    struct strbuf bytes = STRBUF_INIT;

    if (g->api == API_DETOKENIZE) {
        strbuf_addstr(out, "{\"prompt\":");
        strbuf_add_json(out, p->echo.buf, p->echo.len);
        strbuf_addch(out, '}');
        return;
    }
    strbuf_addf(out, "{\"count\":%d,\"max_model_len\":%d,\"tokens\":[", p->n_ids,
                g->server->limits.max_seq_len);
    for (int i = 0; i < p->n_ids; i++)
        strbuf_addf(out, i ? ",%d" : "%d", p->ids[i]);
    strbuf_addstr(out,
                  g->params.return_token_strs ? "],\"token_strs\":[" : "],\"token_strs\":null}");
    for (int i = 0; g->params.return_token_strs && i < p->n_ids; i++) {
        strbuf_reset(&bytes);
        engine_token_bytes(g->server->engine, p->ids[i], &bytes);
        if (i > 0)
            strbuf_addch(out, ',');
        strbuf_add_json(out, bytes.buf, bytes.len);
    }
    if (g->params.return_token_strs)
        strbuf_addstr(out, "]}");
    strbuf_release(&bytes);
}
