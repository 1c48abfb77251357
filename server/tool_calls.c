/*
 * tool_calls - finds calls of tools in what a model writes. See tool_calls.h.
 */
#include "server/tool_calls.h"

#include <jansson.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/random.h>

#define MISTRAL_ID 9 /* letters and digits that Mistral's templates insist on */

/* Where the reader is. */
enum { AT_START, IN_TEXT, BEFORE_OBJECT, IN_OBJECT, BEHIND_OBJECT, IN_ARGUMENTS, IN_REST };

/* Where it is in an object of depth 1. */
enum { WANT_KEY, IN_KEY, WANT_COLON, IN_VALUE };

static const char hermes_begin[] = "<tool_call>", hermes_end[] = "</tool_call>";
static const char mistral_begin[] = "[TOOL_CALLS]", llama_begin[] = "<|python_tag|>";

void tool_calls_init(struct tool_calls *t, enum tool_format format, const char *forced_name)
{
    *t = (struct tool_calls){.format = format, .forced_name = forced_name};
    t->state = format == TOOLS_HERMES      ? IN_TEXT
               : format == TOOLS_ARGUMENTS ? IN_ARGUMENTS
                                           : AT_START;
    strbuf_init(&t->held);
    strbuf_init(&t->key);
    strbuf_init(&t->value);
}

static void call_release(struct tool_call *c)
{
    strbuf_release(&c->name);
    strbuf_release(&c->arguments);
}

void tool_calls_release(struct tool_calls *t)
{
    for (int i = 0; i < t->n_calls; i++)
        call_release(&t->calls[i]);
    free(t->calls);
    strbuf_release(&t->held);
    strbuf_release(&t->key);
    strbuf_release(&t->value);
    *t = (struct tool_calls){0};
}

static void make_id(const struct tool_calls *t, char *out, size_t size)
{
    static const char letters[] = "abcdefghijklmnopqrstuvwxyz0123456789";
    bool mistral = t->format == TOOLS_MISTRAL;
    size_t n = mistral ? 0 : (size_t)snprintf(out, size, "call_");
    size_t end = mistral ? MISTRAL_ID : 24 + n;
    unsigned char r[32] = {0};

    if (getrandom(r, sizeof(r), GRND_NONBLOCK) < 0)
        memset(r, 7, sizeof(r));
    for (size_t i = 0; n < end && n + 1 < size; i++)
        out[n++] = letters[r[i] % 36];
    out[n] = '\0';
}

static struct tool_call *add_call(struct tool_calls *t)
{
    struct tool_call *calls;

    if (t->n_calls == TOOL_CALLS_MAX)
        return NULL;
    calls = realloc(t->calls, (size_t)(t->n_calls + 1) * sizeof(*calls));
    if (!calls)
        return NULL;
    t->calls = calls;
    calls[t->n_calls] = (struct tool_call){0};
    strbuf_init(&calls[t->n_calls].name);
    strbuf_init(&calls[t->n_calls].arguments);
    make_id(t, calls[t->n_calls].id, sizeof(calls->id));
    return &calls[t->n_calls++];
}

static struct tool_call *last_call(struct tool_calls *t)
{
    return &t->calls[t->n_calls - 1];
}

static bool is_space(char c)
{
    return c == ' ' || c == '\n' || c == '\t' || c == '\r';
}

/* Objects */

static void begin_object(struct tool_calls *t)
{
    t->state = IN_OBJECT;
    t->depth = 1;
    t->place = WANT_KEY;
    t->in_string = t->is_escaped = false;
    strbuf_reset(&t->key);
    strbuf_reset(&t->value);
}

/* A JSON string's text; false when it is none. */
static bool unquote(const struct strbuf *json, struct strbuf *out)
{
    json_t *v = json_loadb(json->buf, json->len, JSON_DECODE_ANY, NULL);
    bool ok = json_is_string(v);

    if (ok)
        strbuf_add(out, json_string_value(v), json_string_length(v));
    json_decref(v);
    return ok;
}

static bool is_arguments(const struct tool_calls *t)
{
    return !strcmp(t->key.buf, "\"arguments\"") || !strcmp(t->key.buf, "\"parameters\"");
}

static void trim_end(struct strbuf *s)
{
    while (s->len > 0 && strchr(" \t\r\n", s->buf[s->len - 1]))
        strbuf_truncate(s, s->len - 1);
}

/* A member is complete. */
static void end_value(struct tool_calls *t)
{
    struct tool_call *c = last_call(t);

    trim_end(&t->value);
    if (!strcmp(t->key.buf, "\"name\"") && !c->is_named) {
        c->is_named = unquote(&t->value, &c->name);
    } else if (is_arguments(t) && c->is_quoted) {
        unquote(&t->value, &c->arguments);
        c->is_quoted = false;
    }
    strbuf_reset(&t->key);
    strbuf_reset(&t->value);
}

/* A byte of a member's value; arguments go straight to the call, but for what may be the end. */
static void add_value(struct tool_calls *t, char c)
{
    struct tool_call *call = last_call(t);

    if (t->value.len == 0 && strchr(" \t\r\n", c))
        return;
    strbuf_addch(&t->value, c);
    if (!is_arguments(t))
        return;
    if (t->value.len == 1) {
        call->is_quoted = c == '"';
        call->has_begun = true;
    }
    if (call->is_quoted)
        return;
    /* White space outside strings is passed on once something follows it. */
    if (!is_space(c) || t->in_string) {
        strbuf_add(&call->arguments, t->value.buf + call->n_taken, t->value.len - call->n_taken);
        call->n_taken = t->value.len;
    }
}

/* One byte of an object; true when it was the last. */
static bool object_byte(struct tool_calls *t, char c)
{
    bool was_string = t->in_string;

    if (t->in_string) {
        if (t->is_escaped)
            t->is_escaped = false;
        else if (c == '\\')
            t->is_escaped = true;
        else if (c == '"')
            t->in_string = false;
    } else if (c == '"') {
        t->in_string = true;
    } else if (c == '{' || c == '[') {
        t->depth++;
    } else if (c == '}' || c == ']') {
        t->depth--;
    }
    if (t->place == IN_VALUE && t->depth <= 1 && !was_string && (c == ',' || t->depth == 0)) {
        end_value(t);
        t->place = WANT_KEY;
        return t->depth == 0;
    }
    switch (t->place) {
    case WANT_KEY:
        if (c == '"') {
            t->place = IN_KEY;
            strbuf_addch(&t->key, c);
        }
        break;
    case IN_KEY:
        strbuf_addch(&t->key, c);
        t->place = t->in_string ? IN_KEY : WANT_COLON;
        break;
    case WANT_COLON:
        t->place = c == ':' ? IN_VALUE : WANT_COLON;
        break;
    default:
        add_value(t, c);
        break;
    }
    return t->depth == 0;
}

/* Frames */

/* How much of `marker` the end of s already is. */
static size_t begun(const struct strbuf *s, const char *marker)
{
    size_t len = strlen(marker), n = s->len < len - 1 ? s->len : len - 1;

    while (n > 0 && memcmp(s->buf + s->len - n, marker, n))
        n--;
    return n;
}

static void release_held(struct tool_calls *t, struct strbuf *content)
{
    strbuf_add(content, t->held.buf, t->held.len);
    strbuf_reset(&t->held);
}

static void text_byte(struct tool_calls *t, char c, struct strbuf *content)
{
    size_t len = strlen(hermes_begin), keep;

    strbuf_addch(&t->held, c);
    if (t->held.len >= len && !memcmp(t->held.buf + t->held.len - len, hermes_begin, len)) {
        strbuf_add(content, t->held.buf, t->held.len - len);
        strbuf_reset(&t->held);
        t->state = BEFORE_OBJECT;
        return;
    }
    keep = begun(&t->held, hermes_begin);
    strbuf_add(content, t->held.buf, t->held.len - keep);
    strbuf_drop(&t->held, t->held.len - keep);
}

/* The first bytes decide whether there is a frame at all. */
static void start_byte(struct tool_calls *t, char c, struct strbuf *content)
{
    const char *marker = t->format == TOOLS_LLAMA3 ? llama_begin : mistral_begin;
    size_t at = 0;

    strbuf_addch(&t->held, c);
    while (at < t->held.len && is_space(t->held.buf[at]))
        at++;
    if (at == t->held.len)
        return;
    if (t->held.len - at == strlen(marker) && !strncmp(t->held.buf + at, marker, strlen(marker)))
        t->state = BEFORE_OBJECT;
    else if (!strncmp(t->held.buf + at, marker, t->held.len - at) &&
             (t->held.len - at > 1 || t->format == TOOLS_LLAMA3))
        return; /* it may become the marker */
    else if (t->format == TOOLS_LLAMA3 && c == '{' && t->held.len - at == 1)
        t->state = BEFORE_OBJECT;
    else if (t->format != TOOLS_LLAMA3 && t->held.buf[at] == '[' &&
             (t->held.len - at == 1 || is_space(c)))
        return; /* [ alone: an array of calls, or the marker */
    else if (t->format != TOOLS_LLAMA3 && t->held.buf[at] == '[' && c == '{')
        t->state = BEFORE_OBJECT;
    else
        t->state = IN_REST;
    if (t->state == IN_REST)
        release_held(t, content);
}

static void feed_byte(struct tool_calls *t, char c, struct strbuf *content)
{
    switch (t->state) {
    case AT_START:
        start_byte(t, c, content);
        if (t->state != BEFORE_OBJECT || c != '{')
            break;
        /* fall through */
    case BEFORE_OBJECT:
        if (t->state == BEFORE_OBJECT && c != '{') {
            if (c == ']' && t->n_calls > 0) {
                t->state = IN_REST; /* of the list of calls */
                strbuf_reset(&t->held);
                break;
            }
            strbuf_addch(&t->held, c); /* white space, [, a comma */
            if (!is_space(c) && c != '[' && c != ',' && c != ';') {
                t->state = IN_REST;
                release_held(t, content);
            }
            break;
        }
        if (t->held.len == 0 || t->held.buf[t->held.len - 1] != '{')
            strbuf_addch(&t->held, c);
        if (!add_call(t)) {
            t->state = IN_REST;
            release_held(t, content);
            break;
        }
        begin_object(t);
        break;
    case IN_OBJECT:
        strbuf_addch(&t->held, c);
        if (!object_byte(t, c))
            break;
        if (last_call(t)->is_named) {
            strbuf_reset(&t->held);
        } else { /* an object, but no call: content */
            call_release(last_call(t));
            t->n_calls--;
            release_held(t, content);
        }
        t->state = t->format == TOOLS_HERMES ? BEHIND_OBJECT : BEFORE_OBJECT;
        break;
    case BEHIND_OBJECT:
        strbuf_addch(&t->held, c);
        if (t->held.len >= strlen(hermes_end) && strstr(t->held.buf, hermes_end)) {
            strbuf_reset(&t->held);
            t->state = IN_TEXT;
        }
        break;
    case IN_ARGUMENTS:
        strbuf_addch(&last_call(t)->arguments, c);
        break;
    case IN_TEXT:
        text_byte(t, c, content);
        break;
    default:
        strbuf_addch(content, c);
        break;
    }
}

bool tool_calls_feed(struct tool_calls *t, const char *text, size_t len, struct strbuf *content)
{
    if (t->format == TOOLS_NONE) {
        strbuf_add(content, text, len);
        return !content->failed;
    }
    if (t->format == TOOLS_ARGUMENTS && t->n_calls == 0) {
        struct tool_call *c = add_call(t);

        if (!c)
            return false;
        strbuf_addstr(&c->name, t->forced_name);
        c->is_named = true;
    }
    for (size_t i = 0; i < len; i++)
        feed_byte(t, text[i], content);
    return !content->failed && !t->held.failed;
}

bool tool_calls_finish(struct tool_calls *t, struct strbuf *content)
{
    bool unclear = t->state == AT_START || t->state == IN_TEXT;

    if (t->state == IN_OBJECT && !last_call(t)->is_named) {
        call_release(last_call(t));
        t->n_calls--;
        unclear = true;
    }
    if (unclear)
        release_held(t, content);
    strbuf_reset(&t->held);
    return !content->failed;
}

int tool_calls_count(const struct tool_calls *t)
{
    int n = t->n_calls;

    return n > 0 && !t->calls[n - 1].is_named ? n - 1 : n;
}

bool tool_calls_has_delta(const struct tool_calls *t)
{
    for (int i = 0; i < tool_calls_count(t); i++) {
        if (!t->calls[i].is_announced || t->calls[i].n_written < t->calls[i].arguments.len)
            return true;
    }
    return false;
}

/* Whole characters only: arguments may stop in the middle of one. */
static size_t whole_len(const struct strbuf *s)
{
    size_t n = s->len;

    while (n > 0 && s->len - n < 4 && ((unsigned char)s->buf[n - 1] & 0xc0) == 0x80)
        n--;
    if (n > 0 && (unsigned char)s->buf[n - 1] >= 0xc0) {
        unsigned char c = (unsigned char)s->buf[n - 1];
        size_t want = c >= 0xf0 ? 4 : c >= 0xe0 ? 3 : 2;

        if (s->len - n + 1 < want)
            return n - 1;
    }
    return s->len;
}

void tool_calls_write_delta(struct tool_calls *t, struct strbuf *out)
{
    bool any = false;

    for (int i = 0; i < tool_calls_count(t); i++) {
        struct tool_call *c = &t->calls[i];
        size_t end = whole_len(&c->arguments);

        if (c->is_announced && c->n_written >= end)
            continue;
        strbuf_addf(out, "%s{\"index\":%d,", any ? "," : "", i);
        if (!c->is_announced) {
            strbuf_addf(out, "\"id\":\"%s\",\"type\":\"function\",\"function\":{\"name\":", c->id);
            strbuf_add_json(out, c->name.buf, c->name.len);
            strbuf_addch(out, ',');
        } else {
            strbuf_addstr(out, "\"function\":{");
        }
        strbuf_addstr(out, "\"arguments\":");
        strbuf_add_json(out, c->arguments.buf + c->n_written, end - c->n_written);
        strbuf_addstr(out, "}}");
        c->n_written = end;
        c->is_announced = any = true;
    }
}

void tool_calls_write(const struct tool_calls *t, struct strbuf *out)
{
    for (int i = 0; i < tool_calls_count(t); i++) {
        const struct tool_call *c = &t->calls[i];

        strbuf_addf(out,
                    "%s{\"id\":\"%s\",\"type\":\"function\",\"function\":{\"name\":", i ? "," : "",
                    c->id);
        strbuf_add_json(out, c->name.buf, c->name.len);
        strbuf_addstr(out, ",\"arguments\":");
        if (c->arguments.len)
            strbuf_add_json(out, c->arguments.buf, c->arguments.len);
        else
            strbuf_addstr(out, "\"{}\"");
        strbuf_addstr(out, "}}");
    }
}

enum tool_format tool_format_of_template(const char *text)
{
    if (!text || !strstr(text, "tools"))
        return TOOLS_NONE;
    if (strstr(text, "[TOOL_CALLS]"))
        return TOOLS_MISTRAL;
    if (strstr(text, "<tool_call>"))
        return TOOLS_HERMES;
    return strstr(text, "python_tag") || strstr(text, "\"parameters\"") ? TOOLS_LLAMA3 : TOOLS_NONE;
}
