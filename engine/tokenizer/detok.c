/*
 * detok - ids back to text. See detok.h.
 *
 * Each token runs through the steps of the decoder; a step hands what it makes to the next one.
 * What a step keeps from token to token is in the detok. The whole decode is the same code with
 * every token pushed and one flush, so the two cannot differ.
 */
#include "engine/tokenizer/detok.h"

#include "engine/tokenizer/byte_alphabet.h"
#include "engine/tokenizer/tokenizer.h"
#include "engine/tokenizer/tokenizer_impl.h"
#include "engine/tokenizer/utf8.h"

#include <assert.h>
#include <string.h>

static_assert(DETOK_MAX_STEPS == TEXT_DECODER_MAX_STEPS, "a state for every step");

static void run_step(struct detok *d, int i, const char *text, size_t len, struct strbuf *out);

static const struct decode_step *step_at(const struct detok *d, int i)
{
    return &d->tok->decoder.steps[i];
}

/* Appends the bytes of a token of the byte alphabet; one with another character is text. */
static void add_token_bytes(struct strbuf *out, const char *token, size_t len)
{
    if (!byte_alphabet_read(out, token, len))
        strbuf_add(out, token, len);
}

/* Hands on what is complete of d->bytes; at the end, the rest as U+FFFD. */
static void emit_complete(struct detok *d, int i, bool at_end, struct strbuf *out)
{
    struct strbuf *text = &d->scratch[i];
    size_t at = 0;

    strbuf_reset(text);
    while (at < d->bytes.len) {
        size_t valid = utf8_valid_len(d->bytes.buf + at, d->bytes.len - at);
        int bad;

        strbuf_add(text, d->bytes.buf + at, valid);
        at += valid;
        if (at == d->bytes.len)
            break;
        bad = utf8_check(d->bytes.buf + at, d->bytes.len - at);
        if (bad == 0 && !at_end)
            break;
        strbuf_add(text, UTF8_REPLACEMENT, 3);
        at = bad ? at + (size_t)-bad : d->bytes.len;
    }
    strbuf_drop(&d->bytes, at);
    if (text->len)
        run_step(d, i + 1, text->buf, text->len, out);
}

/* A run that is no UTF-8: one U+FFFD, a token of its own, for each byte held. */
static void emit_bad_run(struct detok *d, int i, struct strbuf *out)
{
    for (size_t n = d->bytes.len; n; n--)
        run_step(d, i + 1, UTF8_REPLACEMENT, 3, out);
    strbuf_reset(&d->bytes);
    d->n_valid = 0;
    d->run_is_bad = true;
}

static void end_run(struct detok *d, int i, struct strbuf *out)
{
    if (d->bytes.len && d->n_valid < d->bytes.len)
        emit_bad_run(d, i, out);
    else if (d->bytes.len)
        run_step(d, i + 1, d->bytes.buf, d->bytes.len, out);
    strbuf_reset(&d->bytes);
    d->n_valid = 0;
    d->run_is_bad = false;
}

static void add_to_run(struct detok *d, int i, int byte, struct strbuf *out)
{
    strbuf_addch(&d->bytes, byte);
    while (!d->run_is_bad && d->n_valid < d->bytes.len) {
        int n = utf8_check(d->bytes.buf + d->n_valid, d->bytes.len - d->n_valid);

        if (n == 0)
            break;
        if (n < 0)
            d->run_is_bad = true;
        else
            d->n_valid += (size_t)n;
    }
    if (d->run_is_bad) {
        emit_bad_run(d, i, out);
    } else if (!d->unbounded && d->bytes.len > DETOK_HOLD_BYTES && d->n_valid) {
        run_step(d, i + 1, d->bytes.buf, d->n_valid, out);
        strbuf_drop(&d->bytes, d->n_valid);
        d->n_valid = 0;
    }
}

/* How many of the first bytes of text are up to max marks; counted in *n. */
static size_t leading_marks(uint32_t mark, const char *text, size_t len, int max, int *n)
{
    size_t at = 0;
    int n_bytes;

    for (*n = 0; *n < max && at < len && utf8_get(text + at, &n_bytes) == mark; ++*n)
        at += (size_t)n_bytes;
    return at;
}

static size_t trailing_marks(uint32_t mark, const char *text, size_t len, int max)
{
    size_t end = len;
    char c[4];
    size_t mark_len = (size_t)utf8_put(c, mark);

    for (int n = 0; n < max && end > 0 && utf8_before(text, end) == mark; n++)
        end -= mark_len;
    return len - end;
}

static void strip_token(struct detok *d, int i, const char *text, size_t len, struct strbuf *out)
{
    const struct decode_step *step = step_at(d, i);
    int n;
    size_t start = leading_marks(step->mark, text, len, step->n_start, &n);
    size_t stop = trailing_marks(step->mark, text, len, step->n_stop);

    if (start + stop <= len)
        run_step(d, i + 1, text + start, len - start - stop, out);
}

/* Strip behind Fuse: state counts what the beginning has lost, held are marks of a possible end. */
static void strip_text(struct detok *d, int i, const char *text, size_t len, struct strbuf *out)
{
    const struct decode_step *step = step_at(d, i);
    int n;
    size_t start = leading_marks(step->mark, text, len, step->n_start - d->state[i], &n);
    size_t stop;

    text += start;
    len -= start;
    d->state[i] += n;
    if (len)
        d->state[i] = step->n_start;
    if (!step->n_stop) {
        run_step(d, i + 1, text, len, out);
        return;
    }
    strbuf_add(&d->held, text, len);
    stop = trailing_marks(step->mark, d->held.buf, d->held.len, step->n_stop);
    run_step(d, i + 1, d->held.buf, d->held.len - stop, out);
    strbuf_drop(&d->held, d->held.len - stop);
}

/* The token before turns out not to be the last one. */
static void hold_suffix(struct detok *d, int i, const char *text, size_t len, struct strbuf *out)
{
    strbuf_reset(&d->scratch[i]);
    text_decoder_replace(step_at(d, i), d->held.buf, d->held.len, &d->scratch[i]);
    strbuf_reset(&d->held);
    strbuf_add(&d->held, text, len);
    run_step(d, i + 1, d->scratch[i].buf, d->scratch[i].len, out);
}

/* Gives one token, or a part of the one text, to step i. Depth is bounded by the steps. */
static void run_step(struct detok *d, int i, const char *text, size_t len, struct strbuf *out)
{
    const struct decode_step *step = step_at(d, i);
    struct strbuf *made;
    int byte;

    if (i == d->tok->decoder.n_steps) {
        strbuf_add(out, text, len);
        return;
    }
    made = &d->scratch[i];
    switch (step->kind) {
    case DECODE_BYTES:
        add_token_bytes(&d->bytes, text, len);
        emit_complete(d, i, false, out);
        return;
    case DECODE_FALLBACK:
        byte = step->on_text ? -1 : text_decoder_fallback_byte(text, len);
        if (byte >= 0) {
            add_to_run(d, i, byte, out);
            return;
        }
        end_run(d, i, out);
        break;
    case DECODE_METASPACE:
        strbuf_reset(made);
        text_decoder_marks(step, text, len, step->drops_first && !d->state[i], made);
        d->state[i] = !step->on_text;
        run_step(d, i + 1, made->buf, made->len, out);
        return;
    case DECODE_REPLACE:
        strbuf_reset(made);
        text_decoder_replace(step, text, len, made);
        run_step(d, i + 1, made->buf, made->len, out);
        return;
    case DECODE_STRIP:
        if (step->on_text)
            strip_text(d, i, text, len, out);
        else
            strip_token(d, i, text, len, out);
        return;
    case DECODE_SUFFIX:
        hold_suffix(d, i, text, len, out);
        return;
    case DECODE_JOIN:
        if (d->state[i])
            strbuf_addch(out, ' ');
        d->state[i] = 1;
        break;
    case DECODE_FUSE:
        break;
    }
    run_step(d, i + 1, text, len, out);
}

static void end_step(struct detok *d, int i, struct strbuf *out)
{
    struct decode_step last;

    switch (step_at(d, i)->kind) {
    case DECODE_BYTES:
        emit_complete(d, i, true, out);
        break;
    case DECODE_FALLBACK:
        end_run(d, i, out);
        break;
    case DECODE_SUFFIX:
        last = *step_at(d, i);
        last.content_len = 0; /* no space behind the last word */
        strbuf_reset(&d->scratch[i]);
        text_decoder_replace(&last, d->held.buf, d->held.len, &d->scratch[i]);
        strbuf_reset(&d->held);
        run_step(d, i + 1, d->scratch[i].buf, d->scratch[i].len, out);
        break;
    default: /* marks that strip_text() holds are dropped */
        break;
    }
}

void detok_init(struct detok *d, const struct tokenizer *t, bool skip_special, bool at_start)
{
    *d = (struct detok){.tok = t};
    strbuf_init(&d->bytes);
    strbuf_init(&d->held);
    for (int i = 0; i < DETOK_MAX_STEPS; i++)
        strbuf_init(&d->scratch[i]);
    detok_reset(d, skip_special, at_start);
}

void detok_reset(struct detok *d, bool skip_special, bool at_start)
{
    strbuf_reset(&d->bytes);
    strbuf_reset(&d->held);
    d->n_valid = 0;
    d->run_is_bad = false;
    d->skip_special = skip_special;
    for (int i = 0; i < d->tok->decoder.n_steps; i++) {
        const struct decode_step *step = step_at(d, i);

        d->state[i] = at_start ? 0 : step->kind == DECODE_STRIP ? step->n_start : 1;
    }
}

void detok_release(struct detok *d)
{
    strbuf_release(&d->bytes);
    strbuf_release(&d->held);
    for (int i = 0; i < DETOK_MAX_STEPS; i++)
        strbuf_release(&d->scratch[i]);
}

void detok_unbound(struct detok *d)
{
    d->unbounded = true;
}

void detok_push(struct detok *d, int32_t id, struct strbuf *out)
{
    size_t len;
    const char *text = tokenizer_spelling(d->tok, id, &len);

    if (!text)
        return;
    if (d->skip_special) {
        const struct added_token *tok = added_tokens_by_id(d->tok->added, id);

        if (tok && tok->skipped)
            return;
    }
    run_step(d, 0, text, len, out);
}

void detok_prime(struct detok *d, const int32_t *ids, size_t n)
{
    struct strbuf unused = STRBUF_INIT;

    for (size_t i = 0; i < n; i++) {
        detok_push(d, ids[i], &unused);
        strbuf_reset(&unused);
    }
    strbuf_release(&unused);
}

void detok_finish(struct detok *d, struct strbuf *out)
{
    for (int i = 0; i < d->tok->decoder.n_steps; i++)
        end_step(d, i, out);
}
