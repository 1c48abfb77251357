/*
 * grammar_run - where one text stands in a grammar. See grammar_run.h.
 */
#include "engine/grammar/grammar_run.h"

#include "base/check.h"
#include "engine/backend.h"

#include <stdlib.h>
#include <string.h>

#define STACK_BOTTOM  (-1) /* the text ends when this returns */
#define STACK_UNKNOWN (-2) /* in a walk of one state: whoever called it */

#define DEPTH_MARGIN 64 /* frames that one token may add */

#define CLOSURE_MAX 256 /* stacks looked at while one byte is taken */

struct grammar_scratch {
    struct stack_node nodes[GRAMMAR_NODES];
    int n_nodes;
    int32_t *pending;         /* [n_vocab_nodes, and at least GRAMMAR_NODES] */
    uint32_t *bits, *sum;     /* [mask words] of a state, of all tops */
    int32_t *level_nodes;     /* [max_depth + 1] n_nodes when the level was reached */
    struct stack_set *levels; /* [max_depth + 1] */
};

int grammar_masks_init(struct grammar_masks *m, const struct grammar_dfa *dfa,
                       const struct grammar_vocab *vocab, size_t max_bytes, struct err *err)
{
    *m = (struct grammar_masks){.dfa = dfa, .vocab = vocab, .max_bytes = max_bytes};
    m->states = calloc((size_t)dfa->n_states, sizeof(*m->states));
    return m->states ? 0 : err_set(err, ERR_NO_ROOM, "no memory for %d states", dfa->n_states);
}

static void forget_masks(struct grammar_masks *m)
{
    for (int32_t i = 0; m->states && i < m->dfa->n_states; i++) {
        free(m->states[i].bits);
        free(m->states[i].pending);
        m->states[i] = (struct state_mask){0};
    }
    m->n_bytes = 0;
}

void grammar_masks_release(struct grammar_masks *m)
{
    forget_masks(m);
    free(m->states);
    *m = (struct grammar_masks){0};
}

int grammar_scratch_new(struct grammar_scratch **out, const struct grammar_vocab *vocab,
                        struct err *err)
{
    struct grammar_scratch *s = calloc(1, sizeof(*s));

    if (s) {
        size_t n_words = (size_t)SAMPLE_MASK_WORDS(vocab->vocab_size);
        size_t n_places = vocab->n_nodes > GRAMMAR_NODES ? (size_t)vocab->n_nodes : GRAMMAR_NODES;

        s->pending = calloc(n_places, sizeof(*s->pending));
        s->bits = calloc(n_words, sizeof(*s->bits));
        s->sum = calloc(n_words, sizeof(*s->sum));
        s->levels = calloc((size_t)vocab->max_depth + 2, sizeof(*s->levels));
        s->level_nodes = calloc((size_t)vocab->max_depth + 2, sizeof(*s->level_nodes));
    }
    if (!s || !s->pending || !s->bits || !s->sum || !s->levels || !s->level_nodes) {
        grammar_scratch_free(s);
        return err_set(err, ERR_NO_ROOM, "no memory for walks over %d nodes", vocab->n_nodes);
    }
    *out = s;
    return 0;
}

void grammar_scratch_free(struct grammar_scratch *s)
{
    if (!s)
        return;
    free(s->pending);
    free(s->bits);
    free(s->sum);
    free(s->levels);
    free(s->level_nodes);
    free(s);
}

/* Stacks */

/* Are both stacks the same states all the way down? */
static bool is_same_below(const struct grammar_scratch *s, int32_t a, int32_t b)
{
    while (a != b) {
        if (a < 0 || b < 0 || s->nodes[a].state != s->nodes[b].state)
            return false;
        a = s->nodes[a].below;
        b = s->nodes[b].below;
    }
    return true;
}

static bool has_top(const struct grammar_scratch *s, const struct stack_top *tops, int n,
                    struct stack_top top)
{
    for (int i = 0; i < n; i++) {
        if (tops[i].state == top.state && is_same_below(s, tops[i].below, top.below))
            return true;
    }
    return false;
}

/* A return to `after` on top of `below`; STACK_UNKNOWN - 1 when there is no room. */
static int32_t push_node(struct grammar_scratch *s, int32_t after, int32_t below)
{
    int32_t depth = below < 0 ? 1 : s->nodes[below].depth + 1;

    if (s->n_nodes == GRAMMAR_NODES || depth > GRAMMAR_MAX_FRAMES)
        return STACK_UNKNOWN - 1;
    s->nodes[s->n_nodes] = (struct stack_node){after, below, depth};
    return s->n_nodes++;
}

/* Adds a stack to out as the stacks with bytes that it comes to by calls and returns. */
static void add_closed(struct grammar_scratch *s, const struct grammar_dfa *dfa,
                       struct stack_set *out, struct stack_top first)
{
    struct stack_top seen[CLOSURE_MAX];
    int n_seen = 0;

    seen[n_seen++] = first;
    for (int i = 0; i < n_seen; i++) {
        struct stack_top t = seen[i];
        const struct dfa_state *state = &dfa->states[t.state];

        if (state->has_bytes && out->n < GRAMMAR_MAX_STACKS && !has_top(s, out->tops, out->n, t))
            out->tops[out->n++] = t;
        for (int32_t c = 0; c < state->n_calls; c++) {
            const struct dfa_call *call = &dfa->calls[state->call_at + c];
            /* A return to where nothing but a return follows is skipped: lists stay flat. */
            int32_t below =
                dfa->states[call->after].is_last ? t.below : push_node(s, call->after, t.below);
            struct stack_top next = {call->start, below};

            if (below >= STACK_UNKNOWN && n_seen < CLOSURE_MAX && !has_top(s, seen, n_seen, next))
                seen[n_seen++] = next;
        }
        if (!state->accepts)
            continue;
        if (t.below == STACK_BOTTOM) {
            out->can_end = true;
        } else if (t.below == STACK_UNKNOWN) {
            out->has_popped = true;
        } else {
            struct stack_top next = {s->nodes[t.below].state, s->nodes[t.below].below};

            if (n_seen < CLOSURE_MAX && !has_top(s, seen, n_seen, next))
                seen[n_seen++] = next;
        }
    }
}

static void take_byte(struct grammar_scratch *s, const struct grammar_dfa *dfa,
                      const struct stack_set *from, struct stack_set *out, unsigned char byte)
{
    out->n = 0;
    out->can_end = out->has_popped = false;
    for (int i = 0; i < from->n; i++) {
        int32_t to = dfa_next(dfa, from->tops[i].state, byte);
        const struct dfa_state *state;

        if (to < 0)
            continue;
        state = &dfa->states[to];
        if (from->n == 1 && state->n_calls == 0 && !state->accepts) {
            out->tops[out->n++] = (struct stack_top){to, from->tops[i].below};
            return;
        }
        add_closed(s, dfa, out, (struct stack_top){to, from->tops[i].below});
    }
}

/* Walks */

static void allow(const struct grammar_vocab *v, int32_t node, uint32_t *bits)
{
    for (int32_t i = v->token_at[node]; i < v->token_at[node + 1]; i++)
        bits[v->tokens[i] / 32] |= UINT32_C(1) << (v->tokens[i] % 32);
}

/*
 * Sets the bits of all tokens in nodes from..to that levels[base] can read. Nodes where the walk
 * popped below its beginning, and that have something below them, go to `pending`.
 */
static int32_t walk(struct grammar_scratch *s, const struct grammar_masks *m, int32_t from,
                    int32_t to, uint32_t *bits, int32_t *pending)
{
    const struct grammar_vocab *v = m->vocab;
    int32_t n_pending = 0, node = from;
    int base = from < to ? v->depth[from] - 1 : 0;

    s->level_nodes[base] = s->n_nodes;
    while (node < to) {
        int depth = v->depth[node];
        struct stack_set *out = &s->levels[depth];

        s->n_nodes = s->level_nodes[depth - 1];
        take_byte(s, m->dfa, &s->levels[depth - 1], out, v->byte[node]);
        if (out->n == 0 && !out->can_end && !out->has_popped) {
            node = v->end[node];
            continue;
        }
        s->level_nodes[depth] = s->n_nodes;
        allow(v, node, bits);
        if (out->has_popped && pending && v->end[node] > node + 1)
            pending[n_pending++] = node;
        node = out->n ? node + 1 : v->end[node];
    }
    s->n_nodes = s->level_nodes[base];
    return n_pending;
}

/* The state's own tokens; NULL when there is no memory for them. */
static const struct state_mask *mask_of(struct grammar_scratch *s, struct grammar_masks *m,
                                        int32_t state)
{
    struct state_mask *mask = &m->states[state];
    size_t n_bits = (size_t)SAMPLE_MASK_WORDS(m->vocab->vocab_size) * sizeof(*mask->bits);
    int n_nodes = s->n_nodes;
    int32_t n;

    if (mask->bits)
        return mask;
    s->levels[0].n = 1;
    s->levels[0].tops[0] = (struct stack_top){state, STACK_UNKNOWN};
    memset(s->bits, 0, n_bits);
    n = walk(s, m, 0, m->vocab->n_nodes, s->bits, s->pending);
    s->n_nodes = n_nodes;
    if (m->n_bytes + n_bits + (size_t)n * sizeof(int32_t) > m->max_bytes)
        forget_masks(m);
    mask->bits = malloc(n_bits);
    mask->pending = malloc(((size_t)n + 1) * sizeof(*mask->pending));
    if (!mask->bits || !mask->pending) {
        free(mask->bits);
        free(mask->pending);
        *mask = (struct state_mask){0};
        return NULL;
    }
    memcpy(mask->bits, s->bits, n_bits);
    memcpy(mask->pending, s->pending, (size_t)n * sizeof(*mask->pending));
    mask->n_pending = n;
    m->n_bytes += n_bits + (size_t)n * sizeof(int32_t);
    return mask;
}

/* What follows where the top's rule ends inside a token. */
static void walk_behind(struct grammar_scratch *s, const struct grammar_masks *m,
                        const struct state_mask *mask, int32_t below, uint32_t *bits)
{
    struct stack_set behind = {0};
    int n_nodes = s->n_nodes;

    if (below < 0)
        return; /* the text ends there, so the token would have to */
    add_closed(s, m->dfa, &behind,
               (struct stack_top){s->nodes[below].state, s->nodes[below].below});
    for (int32_t i = 0; i < mask->n_pending && behind.n > 0; i++) {
        int32_t node = mask->pending[i];

        s->levels[m->vocab->depth[node]] = behind;
        walk(s, m, node + 1, m->vocab->end[node], bits, NULL);
    }
    s->n_nodes = n_nodes;
}

/* A stack so high that a token might not fit on it: the walk is made with the stack itself. */
static bool walk_exactly(struct grammar_scratch *s, const struct grammar_masks *m,
                         struct stack_top top, uint32_t *bits)
{
    if (top.below < 0 || s->nodes[top.below].depth <= GRAMMAR_MAX_FRAMES - DEPTH_MARGIN)
        return false;
    s->levels[0] = (struct stack_set){.n = 1, .tops = {top}};
    walk(s, m, 0, m->vocab->n_nodes, bits, NULL);
    return true;
}

/* Runs */

static void load(struct grammar_scratch *s, const struct grammar_run *r)
{
    memcpy(s->nodes, r->nodes, (size_t)r->n_nodes * sizeof(*s->nodes));
    s->n_nodes = r->n_nodes;
}

/* Keeps what the tops of r stand on: nodes below come first, so one pass from above marks them. */
static bool store(struct grammar_scratch *s, struct grammar_run *r)
{
    static const int32_t unused = -1;
    int32_t *place = s->pending;
    int32_t n = 0;

    for (int i = 0; i < s->n_nodes; i++)
        place[i] = unused;
    for (int i = 0; i < r->now.n; i++) {
        for (int32_t k = r->now.tops[i].below; k >= 0 && place[k] == unused; k = s->nodes[k].below)
            place[k] = 0;
    }
    for (int i = 0; i < s->n_nodes; i++)
        place[i] = place[i] == unused ? unused : n++;
    if (n > r->n_nodes_room) {
        struct stack_node *nodes = realloc(r->nodes, 2 * (size_t)n * sizeof(*nodes));

        if (!nodes)
            return false;
        r->nodes = nodes;
        r->n_nodes_room = 2 * n;
    }
    for (int i = 0; i < s->n_nodes; i++) {
        if (place[i] == unused)
            continue;
        r->nodes[place[i]] = s->nodes[i];
        if (s->nodes[i].below >= 0)
            r->nodes[place[i]].below = place[s->nodes[i].below];
    }
    for (int i = 0; i < r->now.n; i++) {
        if (r->now.tops[i].below >= 0)
            r->now.tops[i].below = place[r->now.tops[i].below];
    }
    r->n_nodes = n;
    return true;
}

int grammar_run_init(struct grammar_run *r, struct grammar_masks *masks, struct err *err)
{
    *r = (struct grammar_run){.masks = masks, .n_nodes_room = 16};
    r->nodes = calloc((size_t)r->n_nodes_room, sizeof(*r->nodes));
    if (!r->nodes)
        return err_set(err, ERR_NO_ROOM, "no memory for a text's place in its grammar");
    /* Not closed yet: that takes a scratch, which is the engine thread's. */
    r->now.n = -1;
    return 0;
}

void grammar_run_release(struct grammar_run *r)
{
    free(r->nodes);
    *r = (struct grammar_run){0};
}

/* The scratch holds r's stacks afterwards. */
static void begin(struct grammar_run *r, struct grammar_scratch *s)
{
    load(s, r);
    if (r->now.n >= 0)
        return;
    r->now = (struct stack_set){0};
    add_closed(s, r->masks->dfa, &r->now, (struct stack_top){r->masks->dfa->start, STACK_BOTTOM});
    if (!store(s, r))
        r->is_lost = true;
    load(s, r);
}

void grammar_run_take(struct grammar_run *r, struct grammar_scratch *s, int32_t token)
{
    const struct grammar_vocab *v = r->masks->vocab;

    begin(r, s);
    CHECK(token >= 0 && token < v->vocab_size);
    if (v->text_at[token] == v->text_at[token + 1])
        r->now.n = 0; /* the end, or nothing that a grammar knows */
    for (int32_t i = v->text_at[token]; i < v->text_at[token + 1]; i++) {
        struct stack_set next;

        take_byte(s, r->masks->dfa, &r->now, &next, v->text[i]);
        r->now.n = next.n;
        r->now.can_end = next.can_end;
        memcpy(r->now.tops, next.tops, (size_t)next.n * sizeof(*next.tops));
    }
    if ((r->now.n == 0 && !r->now.can_end) || !store(s, r))
        r->is_lost = true;
}

void grammar_run_mask(struct grammar_run *r, struct grammar_scratch *s, uint32_t *mask)
{
    const struct grammar_vocab *v = r->masks->vocab;
    int n_words = SAMPLE_MASK_WORDS(v->vocab_size);
    uint32_t *bits = s->sum;

    begin(r, s);
    memset(bits, 0, (size_t)n_words * sizeof(*bits));
    for (int i = 0; i < r->now.n && !r->is_lost; i++) {
        const struct state_mask *own;

        if (walk_exactly(s, r->masks, r->now.tops[i], bits))
            continue;
        own = mask_of(s, r->masks, r->now.tops[i].state);
        for (int k = 0; own && k < n_words; k++)
            bits[k] |= own->bits[k];
        if (own)
            walk_behind(s, r->masks, own, r->now.tops[i].below, bits);
    }
    for (int i = 0; grammar_run_can_end(r) && i < v->n_eos; i++)
        bits[v->eos_ids[i] / 32] |= UINT32_C(1) << (v->eos_ids[i] % 32);
    for (int k = 0; k < n_words; k++)
        mask[k] &= bits[k];
}
