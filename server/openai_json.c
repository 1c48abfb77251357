/*
 * openai_json - response writers. Key order is fixed so that tests can compare bytes.
 */
#include "server/openai_json.h"

#include "engine/engine.h"

#include <math.h>
#include <string.h>

void logprob_list_init(struct logprob_list *l, enum logprob_style style)
{
    memset(l, 0, sizeof(*l));
    l->style = style;
    strbuf_init(&l->tokens);
    strbuf_init(&l->values);
    strbuf_init(&l->tops);
    strbuf_init(&l->offsets);
}

void logprob_list_release(struct logprob_list *l)
{
    strbuf_release(&l->tokens);
    strbuf_release(&l->values);
    strbuf_release(&l->tops);
    strbuf_release(&l->offsets);
}

static bool is_utf8(const char *s, size_t len)
{
    struct strbuf quoted = STRBUF_INIT;
    bool ok;

    /* The JSON writer puts U+FFFD where the bytes are not UTF-8; a token that spells it is text. */
    strbuf_add_json(&quoted, s, len);
    ok = !strstr(quoted.buf, "\xef\xbf\xbd") || (len >= 3 && memmem(s, len, "\xef\xbf\xbd", 3));
    strbuf_release(&quoted);
    return ok;
}

static bool is_ascii(const char *s, size_t len)
{
    for (size_t i = 0; i < len; i++) {
        if ((unsigned char)s[i] >= 0x80)
            return false;
    }
    return true;
}

/* The token as a JSON string. */
static void spell(struct strbuf *out, const struct token_speller *speller, int32_t id,
                  const struct strbuf *bytes)
{
    if (speller->as_ids) {
        strbuf_addf(out, "\"token_id:%d\"", id);
    } else if (is_ascii(bytes->buf, bytes->len) || is_utf8(bytes->buf, bytes->len)) {
        strbuf_add_json(out, bytes->buf, bytes->len);
    } else {
        strbuf_addstr(out, "\"bytes:");
        for (size_t i = 0; i < bytes->len; i++)
            strbuf_addf(out, "\\\\x%02x", (unsigned char)bytes->buf[i]);
        strbuf_addch(out, '"');
    }
}

static void add_logprob(struct strbuf *out, float logprob)
{
    if (isnan(logprob))
        strbuf_addstr(out, "null");
    else if (logprob < OPENAI_LOGPROB_MIN)
        strbuf_addstr(out, "-9999.0");
    else
        strbuf_addf(out, "%.9g", logprob);
}

static void add_comma(struct strbuf *out)
{
    if (out->len > 0)
        strbuf_addch(out, ',');
}

/* Characters that begin in these bytes; additive over tokens, also over split characters. */
static int64_t count_code_points(const char *s, size_t len)
{
    int64_t n = 0;

    for (size_t i = 0; i < len; i++)
        n += ((unsigned char)s[i] & 0xc0) != 0x80;
    return n;
}

/* Raw quotes occur only around strings, so a key is one that follows the start or a comma. */
static bool has_key(const struct strbuf *map, const struct strbuf *key)
{
    const char *at = map->buf;

    while ((at = strstr(at, key->buf))) {
        if (at == map->buf || at[-1] == ',')
            return true;
        at++;
    }
    return false;
}

/* `"text": logprob` unless a more likely token already has that text. */
static void add_map_entry(struct strbuf *map, const struct token_speller *speller, int32_t id,
                          float logprob)
{
    struct strbuf bytes = STRBUF_INIT;
    struct strbuf key = STRBUF_INIT;

    speller->bytes(speller->arg, id, &bytes);
    spell(&key, speller, id, &bytes);
    strbuf_addch(&key, ':');
    if (!key.failed && !has_key(map, &key)) {
        add_comma(map);
        strbuf_add(map, key.buf, key.len);
        add_logprob(map, logprob);
    }
    strbuf_release(&bytes);
    strbuf_release(&key);
}

static void add_completions_entry(struct logprob_list *l, const struct engine_token *t, int n_top,
                                  const struct token_speller *speller, const struct strbuf *bytes)
{
    struct strbuf map = STRBUF_INIT;

    add_comma(&l->tokens);
    spell(&l->tokens, speller, t->id, bytes);
    add_comma(&l->values);
    add_logprob(&l->values, t->logprob);
    add_comma(&l->offsets);
    strbuf_addf(&l->offsets, "%lld", (long long)(l->text_at > 0 ? l->text_at : 0));
    add_comma(&l->tops);
    if (isnan(t->logprob)) {
        strbuf_addstr(&l->tops, "null");
        return;
    }
    for (int i = 0; i < t->n_top && i < n_top; i++)
        add_map_entry(&map, speller, t->top_id[i], t->top_logprob[i]);
    add_map_entry(&map, speller, t->id, t->logprob);
    strbuf_addch(&l->tops, '{');
    strbuf_add(&l->tops, map.buf, map.len);
    strbuf_addch(&l->tops, '}');
    strbuf_release(&map);
}

/* `"token":..,"logprob":..,"bytes":[..]`; a silent token has a name, but no bytes in the text. */
static void add_chat_fields(struct strbuf *out, int32_t id, float logprob, bool is_silent,
                            const struct token_speller *speller)
{
    struct strbuf bytes = STRBUF_INIT;

    speller->bytes(speller->arg, id, &bytes);
    strbuf_addstr(out, "\"token\":");
    spell(out, speller, id, &bytes);
    strbuf_addstr(out, ",\"logprob\":");
    add_logprob(out, logprob);
    strbuf_addstr(out, ",\"bytes\":[");
    for (size_t i = 0; i < bytes.len && !is_silent; i++)
        strbuf_addf(out, i ? ",%d" : "%d", (unsigned char)bytes.buf[i]);
    strbuf_addch(out, ']');
    strbuf_release(&bytes);
}

static void add_chat_entry(struct logprob_list *l, const struct engine_token *t, int n_top,
                           bool is_silent, const struct token_speller *speller)
{
    add_comma(&l->tokens);
    strbuf_addch(&l->tokens, '{');
    add_chat_fields(&l->tokens, t->id, t->logprob, is_silent, speller);
    strbuf_addstr(&l->tokens, ",\"top_logprobs\":[");
    for (int i = 0; i < t->n_top && i < n_top; i++) {
        strbuf_addstr(&l->tokens, i ? ",{" : "{");
        add_chat_fields(&l->tokens, t->top_id[i], t->top_logprob[i], false, speller);
        strbuf_addch(&l->tokens, '}');
    }
    strbuf_addstr(&l->tokens, "]}");
}

void logprob_list_add(struct logprob_list *l, const struct engine_token *t, int n_top,
                      bool is_silent, const struct token_speller *speller)
{
    struct strbuf bytes = STRBUF_INIT;

    speller->bytes(speller->arg, t->id, &bytes);
    if (l->style == LOGPROBS_CHAT)
        add_chat_entry(l, t, n_top, is_silent, speller);
    else
        add_completions_entry(l, t, n_top, speller, &bytes);
    if (!is_silent)
        l->text_at += count_code_points(bytes.buf, bytes.len);
    l->n++;
    strbuf_release(&bytes);
}

void logprob_list_write(struct logprob_list *l, struct strbuf *out)
{
    if (l->style == LOGPROBS_CHAT) {
        strbuf_addstr(out, "{\"content\":[");
        strbuf_add(out, l->tokens.buf, l->tokens.len);
        strbuf_addstr(out, "],\"refusal\":null}");
    } else {
        strbuf_addstr(out, "{\"tokens\":[");
        strbuf_add(out, l->tokens.buf, l->tokens.len);
        strbuf_addstr(out, "],\"token_logprobs\":[");
        strbuf_add(out, l->values.buf, l->values.len);
        strbuf_addstr(out, "],\"top_logprobs\":[");
        strbuf_add(out, l->tops.buf, l->tops.len);
        strbuf_addstr(out, "],\"text_offset\":[");
        strbuf_add(out, l->offsets.buf, l->offsets.len);
        strbuf_addstr(out, "]}");
    }
    out->failed |= l->tokens.failed | l->values.failed | l->tops.failed | l->offsets.failed;
    strbuf_reset(&l->tokens);
    strbuf_reset(&l->values);
    strbuf_reset(&l->tops);
    strbuf_reset(&l->offsets);
    l->n = 0;
}

static void add_ranked(struct strbuf *list, int32_t id, float logprob, int rank,
                       const struct token_speller *speller)
{
    struct strbuf bytes = STRBUF_INIT;

    speller->bytes(speller->arg, id, &bytes);
    strbuf_addf(list, "\"%d\":{\"logprob\":", id);
    add_logprob(list, logprob);
    if (rank > 0)
        strbuf_addf(list, ",\"rank\":%d,\"decoded_token\":", rank);
    else
        strbuf_addstr(list, ",\"rank\":null,\"decoded_token\":");
    strbuf_add_json(list, bytes.buf, bytes.len);
    strbuf_addch(list, '}');
    strbuf_release(&bytes);
}

void openai_add_prompt_logprob(struct strbuf *list, const struct engine_token *t, int n_top,
                               const struct token_speller *speller)
{
    int n = t->n_top < n_top ? t->n_top : n_top;
    bool listed = false;

    add_comma(list);
    if (isnan(t->logprob)) {
        strbuf_addstr(list, "null");
        return;
    }
    strbuf_addch(list, '{');
    for (int i = 0; i < n; i++) {
        if (i > 0)
            strbuf_addch(list, ',');
        add_ranked(list, t->top_id[i], t->top_logprob[i], i + 1, speller);
        listed |= t->top_id[i] == t->id;
    }
    if (!listed) {
        if (n > 0)
            strbuf_addch(list, ',');
        add_ranked(list, t->id, t->logprob, 0, speller);
    }
    strbuf_addch(list, '}');
}

void openai_write_list(struct strbuf *out, const char *key, const struct strbuf *list)
{
    if (!list)
        return;
    strbuf_addf(out, ",\"%s\":[", key);
    strbuf_add(out, list->buf, list->len);
    strbuf_addch(out, ']');
    out->failed |= list->failed;
}

/* Everything behind the text: logprobs, reasons, token ids. */
static void write_rest(struct strbuf *out, const struct openai_piece *p)
{
    strbuf_addstr(out, ",\"logprobs\":");
    if (p->logprobs)
        logprob_list_write(p->logprobs, out);
    else
        strbuf_addstr(out, "null");
    if (!p->finish_reason)
        strbuf_addstr(out, ",\"finish_reason\":null");
    else
        strbuf_addf(out, ",\"finish_reason\":\"%s\",\"stop_reason\":", p->finish_reason);
    if (p->finish_reason && p->stop_string)
        strbuf_add_json(out, p->stop_string, strlen(p->stop_string));
    else if (p->finish_reason && p->stop_token >= 0)
        strbuf_addf(out, "%d", p->stop_token);
    else if (p->finish_reason)
        strbuf_addstr(out, "null");
    openai_write_list(out, "token_ids", p->token_ids);
}

void openai_write_text_choice(struct strbuf *out, const struct openai_piece *p)
{
    strbuf_addf(out, "{\"index\":%d,\"text\":", p->index);
    strbuf_add_json(out, p->text ? p->text : "", p->text_len);
    write_rest(out, p);
    openai_write_list(out, "prompt_logprobs", p->prompt_logprobs);
    openai_write_list(out, "prompt_token_ids", p->prompt_ids);
    strbuf_addch(out, '}');
}

void openai_write_message_choice(struct strbuf *out, const struct openai_piece *p)
{
    strbuf_addf(out, "{\"index\":%d,\"message\":{\"role\":\"assistant\",\"content\":", p->index);
    if (p->tool_calls && !p->text)
        strbuf_addstr(out, "null");
    else
        strbuf_add_json(out, p->text ? p->text : "", p->text_len);
    strbuf_addstr(out, ",\"refusal\":null");
    openai_write_list(out, "tool_calls", p->tool_calls);
    strbuf_addch(out, '}');
    write_rest(out, p);
    strbuf_addch(out, '}');
}

void openai_write_delta_choice(struct strbuf *out, const struct openai_piece *p)
{
    strbuf_addf(out, "{\"index\":%d,\"delta\":{", p->index);
    if (p->with_role)
        strbuf_addstr(out, "\"role\":\"assistant\"");
    if (p->text) {
        strbuf_addstr(out, p->with_role ? ",\"content\":" : "\"content\":");
        strbuf_add_json(out, p->text, p->text_len);
    }
    if (p->tool_calls) {
        strbuf_addstr(out, p->text || p->with_role ? ",\"tool_calls\":[" : "\"tool_calls\":[");
        strbuf_add(out, p->tool_calls->buf, p->tool_calls->len);
        strbuf_addch(out, ']');
    }
    strbuf_addch(out, '}');
    write_rest(out, p);
    strbuf_addch(out, '}');
}

void openai_write_usage(struct strbuf *out, const struct openai_usage *u)
{
    strbuf_addf(out,
                "{\"prompt_tokens\":%lld,\"completion_tokens\":%lld,\"total_tokens\":%lld,"
                "\"prompt_tokens_details\":{\"cached_tokens\":%lld}}",
                (long long)u->prompt_tokens, (long long)u->completion_tokens,
                (long long)(u->prompt_tokens + u->completion_tokens), (long long)u->cached_tokens);
}

void openai_write_head(struct strbuf *out, const struct openai_head *h)
{
    strbuf_addf(out, "{\"id\":\"%s\",\"object\":\"%s\",\"created\":%lld,\"model\":", h->id,
                h->object, (long long)h->created);
    strbuf_add_json(out, h->model, strlen(h->model));
    strbuf_addstr(out, ",\"system_fingerprint\":");
    if (h->fingerprint)
        strbuf_add_json(out, h->fingerprint, strlen(h->fingerprint));
    else
        strbuf_addstr(out, "null");
    strbuf_addstr(out, ",\"choices\":[");
}

void openai_add_id(struct strbuf *list, int32_t id)
{
    strbuf_addf(list, list->len ? ",%d" : "%d", id);
}
