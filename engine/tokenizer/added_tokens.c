/*
 * added_tokens - the tokens that are cut out of a text first. See added_tokens.h.
 *
 * Each set is a trie of bytes. A search tries the trie at every byte that begins a token, which
 * costs one look at a table of 256 elsewhere; no token of a real file is long enough for the
 * retries to matter.
 */
#include "engine/tokenizer/added_tokens.h"

#include "base/err.h"
#include "base/hashmap.h"
#include "base/strbuf.h"
#include "engine/tokenizer/bpe.h"
#include "engine/tokenizer/component.h"
#include "engine/tokenizer/normalizer.h"
#include "engine/tokenizer/split_regex.h"
#include "engine/tokenizer/tokenizer.h"
#include "engine/tokenizer/unicode.h"
#include "engine/tokenizer/utf8.h"

#include <stdlib.h>
#include <string.h>

#define MAX_ADDED      65536 /* the largest real file has 8,000 */
#define MAX_CONTENT    4096  /* bytes of one: a search may walk it at every byte of a text */
#define MAX_TRIE_NODES (1 << 22)

struct trie_node {
    int32_t child, sibling; /* 0: none */
    int32_t token;          /* index of the token that ends here, -1: none */
    unsigned char byte;
};

struct trie {
    struct trie_node *nodes; /* [n], the first one unused */
    size_t n, alloc;
    int32_t root[256];
};

struct added_tokens {
    struct added_token *tokens; /* [n] */
    size_t n;
    struct strmap by_text; /* to index */
    struct u64map by_id;   /* to index */
    struct trie sets[2];   /* [normalized] */
};

static int32_t trie_add_node(struct trie *t, unsigned char byte, int32_t sibling)
{
    if (t->n == t->alloc) {
        size_t alloc = t->alloc ? t->alloc * 2 : 256;
        struct trie_node *nodes =
            alloc > MAX_TRIE_NODES ? NULL : realloc(t->nodes, alloc * sizeof(*nodes));

        if (!nodes)
            return 0;
        t->nodes = nodes;
        t->alloc = alloc;
        if (t->n == 0)
            t->n = 1;
    }
    t->nodes[t->n] = (struct trie_node){.sibling = sibling, .token = -1, .byte = byte};
    return (int32_t)t->n++;
}

static int32_t trie_child(const struct trie *t, int32_t node, unsigned char byte)
{
    int32_t i = t->nodes[node].child;

    while (i && t->nodes[i].byte != byte)
        i = t->nodes[i].sibling;
    return i;
}

/* The first of two tokens with one text stays. False when memory is out. */
static bool trie_add(struct trie *t, const char *text, size_t len, int32_t token)
{
    int32_t node = 0;

    for (size_t i = 0; i < len; i++) {
        unsigned char byte = (unsigned char)text[i];
        int32_t next = i ? trie_child(t, node, byte) : t->root[byte];

        if (!next) {
            next = trie_add_node(t, byte, i ? t->nodes[node].child : 0);
            if (!next)
                return false;
            if (i)
                t->nodes[node].child = next;
            else
                t->root[byte] = next;
        }
        node = next;
    }
    if (node && t->nodes[node].token < 0)
        t->nodes[node].token = token;
    return true;
}

/* The leftmost longest match at or behind from. */
static int32_t trie_find(const struct trie *t, const char *text, size_t len, size_t from,
                         size_t *start, size_t *end)
{
    for (size_t at = from; at < len; at++) {
        int32_t node = t->root[(unsigned char)text[at]], token = -1;

        for (size_t i = at; node;) {
            i++;
            if (t->nodes[node].token >= 0) {
                token = t->nodes[node].token;
                *end = i;
            }
            node = i < len ? trie_child(t, node, (unsigned char)text[i]) : 0;
        }
        if (token >= 0) {
            *start = at;
            return token;
        }
    }
    return -1;
}

static int token_parse(struct added_token *tok, const json_t *json, struct err *err)
{
    const char *text;
    int rc;

    if (!json_is_object(json))
        return err_set(err, ERR_PARSE, "added_tokens: an entry is not an object");
    rc = component_string(&text, &tok->content_len, json, "content", err);
    if (rc == 0 && !text)
        rc = err_set(err, ERR_PARSE, "added_tokens: an entry without content");
    if (rc == 0 && tok->content_len > MAX_CONTENT)
        rc = err_set(err, ERR_UNSUPPORTED, "added_tokens: %zu bytes in one, at most %d",
                     tok->content_len, MAX_CONTENT);
    if (rc == 0)
        rc = component_bool(&tok->single_word, json, "single_word", false, err);
    if (rc == 0)
        rc = component_bool(&tok->lstrip, json, "lstrip", false, err);
    if (rc == 0)
        rc = component_bool(&tok->rstrip, json, "rstrip", false, err);
    if (rc == 0)
        rc = component_bool(&tok->special, json, "special", false, err);
    if (rc == 0)
        rc = component_bool(&tok->normalized, json, "normalized", !tok->special, err);
    if (rc < 0)
        return rc;
    tok->content = malloc(tok->content_len + 1);
    if (!tok->content)
        return err_set(err, ERR_NO_ROOM, "out of memory");
    memcpy(tok->content, text, tok->content_len + 1);
    tok->marker = tok->special || strncmp(text, "<|", 2) == 0 ||
                  strncmp(text, "<\xef\xbd\x9c", 4) == 0; /* DeepSeek's wide bar */
    return 0;
}

static bool tokens_agree(const struct added_token *a, const struct added_token *b)
{
    return a->single_word == b->single_word && a->lstrip == b->lstrip && a->rstrip == b->rstrip &&
           a->normalized == b->normalized && a->special == b->special;
}

/* Files tok, which it consumes, under its id and text; *max_id is the highest id given so far, or
 * -1. */
static int token_file(struct added_tokens *a, struct added_token *tok, const struct bpe *model,
                      int32_t *max_id, struct err *err)
{
    const struct added_token *same = added_tokens_by_text(a, tok->content, tok->content_len);
    int32_t vocab_size = (int32_t)bpe_vocab_size(model);

    if (same || tok->content_len == 0) {
        int rc = 0;

        if (same && !tokens_agree(same, tok))
            rc = err_set(err, ERR_PARSE, "added_tokens: '%.64s' twice, with different flags",
                         tok->content);
        free(tok->content);
        return rc;
    }
    tok->id = bpe_id(model, tok->content, tok->content_len);
    if (tok->id < 0)
        tok->id = *max_id >= vocab_size ? *max_id + 1 : vocab_size;
    if (tok->id > *max_id)
        *max_id = tok->id;
    a->tokens[a->n] = *tok;
    if (strmap_put(&a->by_text, tok->content, tok->content_len, (int64_t)a->n) < 0 ||
        u64map_put(&a->by_id, (uint64_t)tok->id, (int64_t)a->n) < 0) {
        free(tok->content);
        return err_set(err, ERR_NO_ROOM, "out of memory");
    }
    a->n++;
    return 0;
}

/* Since 0.23 the library decodes a normalised token from what the normaliser makes of it. */
static int spell(const struct added_tokens *a, struct added_token *tok, const struct strbuf *text,
                 struct err *err)
{
    const struct added_token *same = added_tokens_by_text(a, text->buf, text->len);

    tok->skipped = same && same->special;
    tok->spelling = malloc(text->len + 1);
    if (!tok->spelling)
        return err_set(err, ERR_NO_ROOM, "out of memory");
    memcpy(tok->spelling, text->buf, text->len + 1);
    tok->spelling_len = text->len;
    return 0;
}

/* Builds both sets: special tokens first, since of two equal patterns the first one counts. */
static int build_sets(struct added_tokens *a, const struct normalizer *n, struct err *err)
{
    struct split_matcher *m = split_matcher_new();
    struct strbuf text = STRBUF_INIT;
    size_t n_origin;
    int rc = m ? 0 : err_set(err, ERR_NO_ROOM, "out of memory");

    for (int special = 1; special >= 0 && rc == 0; special--) {
        for (size_t i = 0; i < a->n && rc == 0; i++) {
            struct added_token *tok = &a->tokens[i];

            if (tok->special != (special == 1))
                continue;
            strbuf_reset(&text);
            rc = normalizer_apply(tok->normalized ? n : NULL, m, tok->content, tok->content_len,
                                  &text, &n_origin, err);
            if (rc == 0 && !trie_add(&a->sets[tok->normalized], text.buf, text.len, (int32_t)i))
                rc = err_set(err, ERR_NO_ROOM, "added_tokens: out of memory");
            if (rc == 0)
                rc = spell(a, tok, &text, err);
        }
    }
    split_matcher_free(m);
    strbuf_release(&text);
    return rc;
}

int added_tokens_new(struct added_tokens **out, const json_t *json, const struct bpe *model,
                     const struct normalizer *n, struct err *err)
{
    struct added_tokens *a = calloc(1, sizeof(*a));
    size_t count = json_is_null(json) ? 0 : json_array_size(json);
    int32_t max_id = -1;
    int rc = 0;

    if (!a)
        return err_set(err, ERR_NO_ROOM, "out of memory");
    strmap_init(&a->by_text);
    u64map_init(&a->by_id);
    if (json && !json_is_null(json) && !json_is_array(json))
        rc = err_set(err, ERR_PARSE, "added_tokens is not an array");
    else if (count > MAX_ADDED)
        rc = err_set(err, ERR_UNSUPPORTED, "added_tokens: %zu, at most %d", count, MAX_ADDED);
    if (rc < 0)
        goto out;
    a->tokens = calloc(count + 1, sizeof(*a->tokens));
    if (!a->tokens) {
        rc = err_set(err, ERR_NO_ROOM, "out of memory");
        goto out;
    }
    for (size_t i = 0; i < count; i++) {
        struct added_token tok = {0};

        rc = token_parse(&tok, json_array_get(json, i), err);
        if (rc == 0)
            rc = token_file(a, &tok, model, &max_id, err);
        else
            free(tok.content);
        if (rc < 0)
            goto out;
    }
    rc = build_sets(a, n, err);
    if (rc < 0)
        goto out;
    *out = a;
    a = NULL; /* the caller owns it now */
out:
    added_tokens_free(a);
    return rc;
}

void added_tokens_free(struct added_tokens *a)
{
    if (!a)
        return;
    for (size_t i = 0; i < a->n; i++) {
        free(a->tokens[i].content);
        free(a->tokens[i].spelling);
    }
    free(a->tokens);
    free(a->sets[0].nodes);
    free(a->sets[1].nodes);
    strmap_release(&a->by_text);
    u64map_release(&a->by_id);
    free(a);
}

size_t added_tokens_count(const struct added_tokens *a)
{
    return a->n;
}

const struct added_token *added_tokens_at(const struct added_tokens *a, size_t i)
{
    return &a->tokens[i];
}

const struct added_token *added_tokens_by_text(const struct added_tokens *a, const char *text,
                                               size_t len)
{
    int64_t i;

    return strmap_get(&a->by_text, text, len, &i) ? &a->tokens[i] : NULL;
}

const struct added_token *added_tokens_by_id(const struct added_tokens *a, int32_t id)
{
    int64_t i;

    return u64map_get(&a->by_id, (uint64_t)id, &i) ? &a->tokens[i] : NULL;
}

/* Whether tok, found at [start, end), is glued to a word on either side. */
static bool is_inside_word(const struct added_walk *w, size_t start, size_t end)
{
    int n_bytes;

    return (start > 0 && unicode_is_word(utf8_before(w->text, start))) ||
           (end < w->len && unicode_is_word(utf8_get(w->text + end, &n_bytes)));
}

/* Moves start to the left over spaces, not beyond the last token. */
static size_t strip_left(const struct added_walk *w, size_t start)
{
    char c[4];

    while (start > w->done) {
        uint32_t cp = utf8_before(w->text, start);

        if (!unicode_is_space(cp))
            break;
        start -= (size_t)utf8_put(c, cp);
    }
    return start;
}

static size_t strip_right(const struct added_walk *w, size_t end)
{
    int n_bytes;

    while (end < w->len && unicode_is_space(utf8_get(w->text + end, &n_bytes)))
        end += (size_t)n_bytes;
    return end;
}

/* Whether a client wrote a part of [start, end). Asked with growing starts. */
static bool is_touched(struct added_walk *w, size_t start, size_t end)
{
    while (w->client_at < w->n_client &&
           w->client[w->client_at].at + w->client[w->client_at].len <= start)
        w->client_at++;
    return w->client_at < w->n_client && w->client[w->client_at].at < end;
}

const struct added_token *added_tokens_next(const struct added_tokens *a, struct added_walk *w,
                                            size_t *start, size_t *end)
{
    size_t from, to;
    int32_t i;

    while ((i = trie_find(&a->sets[w->normalized], w->text, w->len, w->search, &from, &to)) >= 0) {
        const struct added_token *tok = &a->tokens[i];

        w->search = to;
        if (tok->marker && (!w->parse_markers || is_touched(w, from, to)))
            continue;
        if (tok->single_word && is_inside_word(w, from, to))
            continue;
        if (tok->lstrip)
            from = strip_left(w, from);
        if (tok->rstrip)
            to = strip_right(w, to);
        *start = w->done;
        *end = from > w->done ? from : w->done;
        w->done = to > w->done ? to : w->done;
        return tok;
    }
    *start = w->done;
    *end = w->len;
    w->search = w->done = w->len;
    return NULL;
}
