/*
 * grammar_vocab - the bytes of all tokens as a trie. See grammar_vocab.h.
 */
#include "engine/grammar/grammar_vocab.h"

#include "base/strbuf.h"
#include "engine/tokenizer/tokenizer.h"

#include <stdlib.h>
#include <string.h>

struct sort_item {
    const uint8_t *text;
    int32_t len, id;
};

static int compare_items(const void *a, const void *b)
{
    const struct sort_item *x = a, *y = b;
    int32_t n = x->len < y->len ? x->len : y->len;
    int order = memcmp(x->text, y->text, (size_t)n);

    if (order)
        return order;
    if (x->len != y->len)
        return x->len < y->len ? -1 : 1;
    return x->id < y->id ? -1 : 1;
}

static bool is_eos(const struct grammar_vocab *v, int32_t id)
{
    for (int i = 0; i < v->n_eos; i++) {
        if (v->eos_ids[i] == id)
            return true;
    }
    return false;
}

/* Markers are the words of chat templates, flagged as special or not. */
static bool is_marker(const struct strbuf *s)
{
    return s->len > 4 && !memcmp(s->buf, "<|", 2) && !memcmp(s->buf + s->len - 2, "|>", 2);
}

/* All texts, one behind the other; *n_items of them are not empty. */
static int read_texts(struct grammar_vocab *v, const struct tokenizer *t, int *n_items)
{
    struct strbuf all = STRBUF_INIT, one = STRBUF_INIT;

    for (int32_t id = 0; id < v->vocab_size; id++) {
        v->text_at[id] = (int32_t)all.len;
        strbuf_reset(&one);
        if (is_eos(v, id) || tokenizer_is_special(t, id) || !tokenizer_token_bytes(t, id, &one) ||
            one.len == 0 || one.len > GRAMMAR_MAX_TOKEN || is_marker(&one))
            continue;
        strbuf_add(&all, one.buf, one.len);
        (*n_items)++;
    }
    v->text_at[v->vocab_size] = (int32_t)all.len;
    if (!all.failed && !one.failed)
        v->text = malloc(all.len + 1);
    if (v->text)
        memcpy(v->text, all.buf, all.len);
    strbuf_release(&all);
    strbuf_release(&one);
    return v->text ? 0 : ERR_NO_ROOM;
}

static int32_t common_prefix(const struct sort_item *a, const struct sort_item *b)
{
    int32_t n = 0;

    while (n < a->len && n < b->len && a->text[n] == b->text[n])
        n++;
    return n;
}

/* Sorted texts come in the order of the walk. Counts nodes, and fills them in when there is room.
 */
static int build_nodes(struct grammar_vocab *v, const struct sort_item *items, int n_items)
{
    int32_t path[GRAMMAR_MAX_TOKEN + 1]; /* node at each depth */
    int32_t depth = 0;
    int n = 0;

    for (int i = 0; i < n_items; i++) {
        int32_t shared = i ? common_prefix(&items[i - 1], &items[i]) : 0;

        for (; v->end && depth > shared; depth--)
            v->end[path[depth]] = n;
        for (int32_t d = shared; d < items[i].len; d++, n++) {
            if (!v->end)
                continue;
            path[d + 1] = n;
            v->byte[n] = items[i].text[d];
            v->depth[n] = (uint8_t)(d + 1);
            v->token_at[n] = i;
        }
        depth = items[i].len;
        if (depth > v->max_depth)
            v->max_depth = depth;
        if (v->end)
            v->tokens[i] = items[i].id;
    }
    for (; v->end && depth > 0; depth--)
        v->end[path[depth]] = n;
    return n;
}

/*
 * token_at as built is the first token whose path made the node; a node's own tokens are those from
 * there on that end in it. Sorted order has them first, so the next node's start ends them.
 */
static void fix_tokens(struct grammar_vocab *v, const struct sort_item *items, int n_items)
{
    v->token_at[v->n_nodes] = n_items;
    for (int n = 0; n < v->n_nodes; n++) {
        /* A node made on the way to a longer text has no token of its own. */
        if (items[v->token_at[n]].len != v->depth[n])
            v->token_at[n] = n + 1 < v->n_nodes ? v->token_at[n + 1] : n_items;
    }
}

int grammar_vocab_new(struct grammar_vocab **out, const struct tokenizer *t, int vocab_size,
                      const int *eos_ids, int n_eos, struct err *err)
{
    struct grammar_vocab *v = calloc(1, sizeof(*v));
    struct sort_item *items = NULL;
    int n_items = 0, rc = ERR_NO_ROOM;
    size_t n;

    if (!v)
        goto out;
    v->vocab_size = vocab_size;
    for (int i = 0; i < n_eos && i < 64; i++)
        v->eos_ids[v->n_eos++] = eos_ids[i];
    v->text_at = calloc((size_t)vocab_size + 1, sizeof(*v->text_at));
    if (!v->text_at || read_texts(v, t, &n_items) < 0)
        goto out;
    items = calloc((size_t)n_items + 1, sizeof(*items));
    v->tokens = calloc((size_t)n_items + 1, sizeof(*v->tokens));
    if (!items || !v->tokens)
        goto out;
    n_items = 0;
    for (int32_t id = 0; id < vocab_size; id++) {
        int32_t len = v->text_at[id + 1] - v->text_at[id];

        if (len > 0)
            items[n_items++] = (struct sort_item){v->text + v->text_at[id], len, id};
    }
    qsort(items, (size_t)n_items, sizeof(*items), compare_items);
    v->n_nodes = build_nodes(v, items, n_items);
    n = (size_t)v->n_nodes + 1;
    v->byte = calloc(n, 1);
    v->depth = calloc(n, 1);
    v->token_at = calloc(n, sizeof(*v->token_at));
    v->end = calloc(n, sizeof(*v->end));
    if (!v->byte || !v->depth || !v->token_at || !v->end)
        goto out;
    build_nodes(v, items, n_items);
    fix_tokens(v, items, n_items);
    *out = v;
    v = NULL;
    rc = 0;
out:
    free(items);
    grammar_vocab_free(v);
    return rc < 0 ? err_set(err, rc, "no memory for the bytes of %d tokens", vocab_size) : 0;
}

void grammar_vocab_free(struct grammar_vocab *v)
{
    if (!v)
        return;
    free(v->byte);
    free(v->depth);
    free(v->end);
    free(v->token_at);
    free(v->tokens);
    free(v->text_at);
    free(v->text);
    free(v);
}
