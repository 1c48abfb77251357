/*
 * tokenizer - text to token ids and back. See tokenizer.h.
 *
 * Encoding is a line of stations: invalid bytes are replaced, added tokens cut out, what is
 * between them normalised, normalised added tokens cut out, the rest pre-tokenized, each piece
 * encoded. Scratch memory lives for one call, so a tokenizer needs no locks.
 */
#include "engine/tokenizer/tokenizer.h"

#include "base/err.h"
#include "base/file_map.h"
#include "base/strbuf.h"
#include "engine/tokenizer/byte_alphabet.h"
#include "engine/tokenizer/component.h"
#include "engine/tokenizer/detok.h"
#include "engine/tokenizer/split_regex.h"
#include "engine/tokenizer/tokenizer_impl.h"
#include "engine/tokenizer/utf8.h"

#include <jansson.h>
#include <stdlib.h>
#include <string.h>

#define MAX_FILE_BYTES (256u << 20) /* the largest real file has 35 MB */
#define MAX_TEXT_BYTES (512u << 20) /* pieces count in 32 bits, and texts may grow threefold */

void token_ids_init(struct token_ids *v)
{
    *v = (struct token_ids){0};
}

void token_ids_release(struct token_ids *v)
{
    free(v->ids);
    token_ids_init(v);
}

bool token_ids_add(struct token_ids *v, int32_t id)
{
    if (v->n == v->alloc) {
        size_t alloc = v->alloc ? v->alloc * 2 : 64;
        int32_t *ids = realloc(v->ids, alloc * sizeof(*ids));

        if (!ids)
            return false;
        v->ids = ids;
        v->alloc = alloc;
    }
    v->ids[v->n++] = id;
    return true;
}

/*
 * Loading.
 */

static int load_truncation(struct file_limits *l, const json_t *json, struct err *err)
{
    const char *direction, *strategy;
    size_t len;
    int rc;

    if (!json || json_is_null(json))
        return 0;
    rc = component_int(&l->max_length, json, "max_length", 512, err);
    if (rc == 0)
        rc = component_string(&direction, &len, json, "direction", err);
    if (rc == 0)
        rc = component_string(&strategy, &len, json, "strategy", err);
    if (rc < 0)
        return rc;
    if (l->max_length < 0)
        return err_set(err, ERR_PARSE, "truncation: a negative max_length");
    l->truncates = true;
    l->cuts_left = direction && strcmp(direction, "Left") == 0;
    l->refuses = strategy && strcmp(strategy, "OnlySecond") == 0;
    return 0;
}

static int load_padding(struct file_limits *l, const json_t *json, struct err *err)
{
    const json_t *strategy = json_object_get(json, "strategy");
    const char *direction;
    int64_t pad_id;
    size_t len;
    int rc;

    if (!json || json_is_null(json))
        return 0;
    rc = component_int(&l->pad_multiple, json, "pad_to_multiple_of", 0, err);
    if (rc == 0)
        rc = component_int(&pad_id, json, "pad_id", 0, err);
    if (rc == 0)
        rc = component_string(&direction, &len, json, "direction", err);
    if (rc == 0)
        rc = component_int(&l->pad_to, strategy, "Fixed", 0, err);
    if (rc < 0)
        return rc;
    if (l->pad_to < 0 || l->pad_to > (1 << 24) || l->pad_multiple < 0 ||
        l->pad_multiple > (1 << 24) || pad_id < 0 || pad_id > INT32_MAX)
        return err_set(err, ERR_PARSE, "padding: a number out of range");
    l->pads = true;
    l->pads_left = direction && strcmp(direction, "Left") == 0;
    l->pad_id = (int32_t)pad_id;
    return 0;
}

static int load(struct tokenizer *t, const json_t *doc, struct err *err)
{
    int rc;

    if (!json_is_object(doc))
        return err_set(err, ERR_PARSE, "not an object");
    rc = bpe_new(&t->model, json_object_get(doc, "model"), err);
    if (rc == 0)
        rc = normalizer_new(&t->normalizer, json_object_get(doc, "normalizer"), err);
    if (rc == 0)
        rc = pre_tokenizer_new(&t->pre, json_object_get(doc, "pre_tokenizer"), err);
    if (rc == 0)
        rc = added_tokens_new(&t->added, json_object_get(doc, "added_tokens"), t->model,
                              t->normalizer, err);
    if (rc < 0)
        return rc;
    t->n_ids = bpe_n_ids(t->model);
    for (size_t i = 0; i < added_tokens_count(t->added); i++) {
        int32_t id = added_tokens_at(t->added, i)->id;

        t->n_ids = id >= t->n_ids ? id + 1 : t->n_ids;
    }
    rc = post_processor_load(&t->post, json_object_get(doc, "post_processor"), t->n_ids, err);
    if (rc == 0)
        rc = text_decoder_load(&t->decoder, json_object_get(doc, "decoder"), err);
    if (rc == 0)
        rc = load_truncation(&t->limits, json_object_get(doc, "truncation"), err);
    if (rc == 0)
        rc = load_padding(&t->limits, json_object_get(doc, "padding"), err);
    if (rc < 0)
        return rc;
    t->keep_bytes = pre_tokenizer_ends_in_bytes(t->pre) && bpe_use_raw_bytes(t->model);
    return bpe_index_words(t->model, err);
}

int tokenizer_open_text(struct tokenizer **out, const char *json, size_t len, const char *name,
                        struct err *err)
{
    struct tokenizer *t = calloc(1, sizeof(*t));
    json_t *doc = NULL;
    json_error_t at;
    int rc;

    if (!t) {
        rc = err_set(err, ERR_NO_ROOM, "out of memory");
        goto out;
    }
    doc = json_loadb(json, len, JSON_REJECT_DUPLICATES | JSON_ALLOW_NUL, &at);
    if (!doc) {
        rc = err_set(err, ERR_PARSE, "line %d, column %d: %s", at.line, at.column, at.text);
        goto out;
    }
    rc = load(t, doc, err);
    if (rc < 0)
        goto out;
    *out = t;
    t = NULL; /* the caller owns it now */
out:
    if (rc < 0)
        err_prefix(err, "%s", name);
    json_decref(doc);
    tokenizer_free(t);
    return rc;
}

int tokenizer_open(struct tokenizer **out, const char *path, struct err *err)
{
    char *text;
    size_t len;
    int rc = file_read_text(&text, &len, path, MAX_FILE_BYTES, err);

    if (rc < 0)
        return rc;
    rc = tokenizer_open_text(out, text, len, path, err);
    free(text);
    return rc;
}

void tokenizer_free(struct tokenizer *t)
{
    if (!t)
        return;
    bpe_free(t->model);
    normalizer_free(t->normalizer);
    pre_tokenizer_free(t->pre);
    added_tokens_free(t->added);
    text_decoder_release(&t->decoder);
    free(t);
}

/*
 * Encoding.
 */

struct encoding { /* one call of tokenizer_encode() */
    const struct tokenizer *t;
    bool parse_special;
    const struct text_span *client; /* [n_client] */
    size_t n_client, client_at;
    struct split_matcher *matcher;
    struct pre_scratch pre;
    struct bpe_scratch bpe;
    struct strbuf normalized;
    struct token_ids *out;
    struct err *err;
};

static int add_id(struct encoding *e, int32_t id)
{
    return token_ids_add(e->out, id) ? 0 : err_set(e->err, ERR_NO_ROOM, "out of memory");
}

/* Text without added tokens. */
static int encode_plain(struct encoding *e, const char *text, size_t len, size_t n_origin)
{
    struct pre_result r;
    int rc;

    if (!len)
        return 0;
    rc = pre_tokenizer_apply(e->t->pre, &e->pre, text, len, n_origin, e->t->keep_bytes, &r, e->err);
    for (size_t i = 0; rc == 0 && i < r.pieces->n; i++) { /* r is not filled on failure */
        const struct piece *p = &r.pieces->v[i];

        rc = bpe_encode(e->t->model, &e->bpe, r.text + p->at, p->len, e->out, e->err);
    }
    return rc;
}

/*
 * The spans of clients in a section at [at, at + len) of the text, relative to it, into *out, which
 * the caller frees.
 */
static int section_spans(struct encoding *e, size_t at, size_t len, struct text_span **out,
                         size_t *n)
{
    *out = NULL;
    *n = 0;
    while (e->client_at < e->n_client &&
           e->client[e->client_at].at + e->client[e->client_at].len <= at)
        e->client_at++; /* sections come in order */
    while (e->client_at + *n < e->n_client && e->client[e->client_at + *n].at < at + len)
        ++*n;
    if (!*n)
        return 0;
    *out = calloc(*n, sizeof(**out));
    if (!*out)
        return err_set(e->err, ERR_NO_ROOM, "out of memory");
    for (size_t i = 0; i < *n; i++) {
        const struct text_span *c = &e->client[e->client_at + i];
        size_t start = c->at > at ? c->at - at : 0, end = c->at + c->len - at;

        (*out)[i] = (struct text_span){start, (end < len ? end : len) - start};
    }
    return 0;
}

/* Text without added tokens of the first set, at place `at` of the whole text. */
static int encode_section(struct encoding *e, const char *whole, size_t at, size_t len)
{
    const char *text = whole + at;
    struct added_walk walk = {
        .text = text, .len = len, .normalized = true, .parse_markers = e->parse_special};
    struct text_span *client = NULL;
    const struct added_token *tok;
    size_t n_origin = len ? (size_t)utf8_len((unsigned char)text[0]) : 0, start, end;
    int rc = e->n_client ? section_spans(e, at, len, &client, &walk.n_client) : 0;

    walk.client = client;
    if (rc == 0 && e->t->normalizer && len) {
        strbuf_reset(&e->normalized);
        rc = normalizer_apply(e->t->normalizer, e->matcher, text, len, &e->normalized, &n_origin,
                              e->err);
        walk.text = e->normalized.buf;
        walk.len = e->normalized.len;
        if (rc == 0 && walk.len > 3 * (size_t)MAX_TEXT_BYTES)
            rc =
                err_set(e->err, ERR_LIMIT, "text to tokenize: %zu bytes once normalised", walk.len);
        /* Where the normaliser has moved a client's words is not known: all are the client's. */
        if (walk.n_client && (walk.len != len || memcmp(walk.text, text, len) != 0))
            walk.parse_markers = false;
    }
    if (at)
        n_origin = 0;
    do {
        if (rc < 0)
            break;
        tok = added_tokens_next(e->t->added, &walk, &start, &end);
        rc = encode_plain(e, walk.text + start, end - start,
                          n_origin > start ? n_origin - start : 0);
        if (rc == 0 && tok)
            rc = add_id(e, tok->id);
    } while (tok);
    free(client);
    return rc;
}

static int encode_text(struct encoding *e, const char *text, size_t len)
{
    struct added_walk walk = {.text = text,
                              .len = len,
                              .parse_markers = e->parse_special,
                              .client = e->client,
                              .n_client = e->n_client};
    const struct added_token *tok;
    size_t start, end;
    int rc;

    do {
        tok = added_tokens_next(e->t->added, &walk, &start, &end);
        rc = encode_section(e, text, start, end - start);
        if (rc == 0 && tok)
            rc = add_id(e, tok->id);
    } while (tok && rc == 0);
    return rc;
}

/* Runs one encoding that is set up but for its scratch; on failure out is as it was. */
static int encode_run(struct encoding *e, const char *text, size_t len, bool add_special)
{
    const struct post_processor *post = &e->t->post;
    size_t n_before = e->out->n;
    int rc = 0;

    strbuf_init(&e->normalized);
    e->matcher = split_matcher_new();
    pre_scratch_init(&e->pre, e->matcher);
    if (!e->matcher)
        rc = err_set(e->err, ERR_NO_ROOM, "out of memory");
    for (int i = 0; add_special && rc == 0 && i < post->n_before; i++)
        rc = add_id(e, post->before[i]);
    if (rc == 0)
        rc = encode_text(e, text, len);
    for (int i = 0; add_special && rc == 0 && i < post->n_after; i++)
        rc = add_id(e, post->after[i]);
    if (rc < 0)
        e->out->n = n_before;
    strbuf_release(&e->normalized);
    pre_scratch_release(&e->pre);
    bpe_scratch_release(&e->bpe);
    split_matcher_free(e->matcher);
    return rc;
}

int tokenizer_encode(const struct tokenizer *t, const char *text, size_t len, bool add_special,
                     bool parse_special, struct token_ids *out, struct err *err)
{
    struct encoding e = {.t = t, .parse_special = parse_special, .out = out, .err = err};
    struct strbuf valid = STRBUF_INIT;
    int rc;

    if (len > MAX_TEXT_BYTES)
        return err_set(err, ERR_LIMIT, "text to tokenize: %zu bytes, at most %u", len,
                       MAX_TEXT_BYTES);
    if (utf8_valid_len(text, len) != len) {
        utf8_sanitise(&valid, text, len);
        text = valid.buf;
        len = valid.len;
    }
    rc = valid.failed ? err_set(err, ERR_NO_ROOM, "out of memory")
                      : encode_run(&e, text, len, add_special);
    strbuf_release(&valid);
    return rc;
}

int tokenizer_encode_prompt(const struct tokenizer *t, const char *text, size_t len,
                            const struct text_span *client, size_t n_client, struct token_ids *out,
                            struct err *err)
{
    struct encoding e = {.t = t,
                         .parse_special = true,
                         .client = client,
                         .n_client = n_client,
                         .out = out,
                         .err = err};

    if (len > MAX_TEXT_BYTES || utf8_valid_len(text, len) != len)
        return err_set(err, ERR_LIMIT, "prompt: %zu bytes, at most %u of valid UTF-8", len,
                       MAX_TEXT_BYTES);
    return encode_run(&e, text, len, false);
}

static int pad(const struct file_limits *l, struct token_ids *ids, struct err *err)
{
    size_t want = ids->n > (size_t)l->pad_to ? ids->n : (size_t)l->pad_to, n_pads;

    if (l->pad_multiple)
        want = (want + (size_t)l->pad_multiple - 1) / (size_t)l->pad_multiple *
               (size_t)l->pad_multiple;
    n_pads = want - ids->n;
    for (size_t i = 0; i < n_pads; i++)
        if (!token_ids_add(ids, l->pad_id))
            return err_set(err, ERR_NO_ROOM, "out of memory");
    if (l->pads_left && n_pads) {
        memmove(ids->ids + n_pads, ids->ids, (ids->n - n_pads) * sizeof(*ids->ids));
        for (size_t i = 0; i < n_pads; i++)
            ids->ids[i] = l->pad_id;
    }
    return 0;
}

int tokenizer_file_limits(const struct tokenizer *t, bool add_special, struct token_ids *ids,
                          struct err *err)
{
    const struct file_limits *l = &t->limits;
    size_t n_before = add_special ? (size_t)t->post.n_before : 0;
    size_t n_after = add_special ? (size_t)t->post.n_after : 0;
    size_t n = ids->n - n_before - n_after, room = (size_t)l->max_length;

    if (l->truncates) {
        room = room > n_before + n_after ? room - n_before - n_after : 0;
        if (n > room && l->refuses)
            return err_set(err, ERR_INVALID, "truncation: the second of two texts, there is one");
        if (n > room) {
            int32_t *text = ids->ids + n_before;

            if (l->cuts_left)
                memmove(text, text + n - room, room * sizeof(*text));
            memmove(text + room, text + n, n_after * sizeof(*text));
            ids->n = n_before + room + n_after;
        }
    }
    return l->pads ? pad(l, ids, err) : 0;
}

/*
 * Decoding and questions.
 */

const char *tokenizer_spelling(const struct tokenizer *t, int32_t id, size_t *len)
{
    const struct added_token *tok = added_tokens_by_id(t->added, id);

    if (!tok)
        return bpe_text(t->model, id, len);
    *len = tok->spelling_len;
    return tok->spelling;
}

int tokenizer_decode(const struct tokenizer *t, const int32_t *ids, size_t n, bool skip_special,
                     struct strbuf *out)
{
    struct detok d;

    detok_init(&d, t, skip_special, true);
    detok_unbound(&d);
    for (size_t i = 0; i < n; i++)
        detok_push(&d, ids[i], out);
    detok_finish(&d, out);
    detok_release(&d);
    return out->failed ? ERR_NO_ROOM : 0;
}

bool tokenizer_token_bytes(const struct tokenizer *t, int32_t id, struct strbuf *out)
{
    struct strbuf here = STRBUF_INIT, next = STRBUF_INIT;
    size_t len;
    const char *text = tokenizer_spelling(t, id, &len);

    if (!text)
        return false;
    strbuf_add(&here, text, len);
    for (int i = 0; i < t->decoder.n_steps; i++) {
        const struct decode_step *step = &t->decoder.steps[i];
        struct strbuf swap;
        int byte = -1;

        strbuf_reset(&next);
        if (step->kind == DECODE_FALLBACK)
            byte = text_decoder_fallback_byte(here.buf, here.len);
        if (step->kind == DECODE_METASPACE)
            text_decoder_marks(step, here.buf, here.len, false, &next);
        else if (step->kind == DECODE_REPLACE || step->kind == DECODE_SUFFIX)
            text_decoder_replace(step, here.buf, here.len, &next);
        else if (byte >= 0)
            strbuf_addch(&next, byte);
        else if (step->kind != DECODE_BYTES || !byte_alphabet_read(&next, here.buf, here.len))
            strbuf_add(&next, here.buf, here.len);
        swap = here;
        here = next;
        next = swap;
        if (byte >= 0 || step->kind == DECODE_BYTES)
            break; /* no longer text */
    }
    strbuf_add(out, here.buf, here.len);
    strbuf_release(&here);
    strbuf_release(&next);
    return true;
}

const char *tokenizer_token_text(const struct tokenizer *t, int32_t id)
{
    size_t len;

    return tokenizer_spelling(t, id, &len);
}

int tokenizer_vocab_size(const struct tokenizer *t)
{
    int n = (int)bpe_vocab_size(t->model);

    for (size_t i = 0; i < added_tokens_count(t->added); i++) {
        const struct added_token *tok = added_tokens_at(t->added, i);

        n += bpe_id(t->model, tok->content, tok->content_len) < 0;
    }
    return n;
}

int tokenizer_n_ids(const struct tokenizer *t)
{
    return t->n_ids;
}

int32_t tokenizer_id(const struct tokenizer *t, const char *token)
{
    const struct added_token *tok = added_tokens_by_text(t->added, token, strlen(token));

    return tok ? tok->id : bpe_id(t->model, token, strlen(token));
}

bool tokenizer_is_special(const struct tokenizer *t, int32_t id)
{
    const struct added_token *tok = added_tokens_by_id(t->added, id);

    return tok && tok->special;
}

int32_t tokenizer_bos(const struct tokenizer *t)
{
    return t->post.n_before ? t->post.before[0] : -1;
}

bool tokenizer_adds_bos(const struct tokenizer *t)
{
    return t->post.n_before > 0;
}
