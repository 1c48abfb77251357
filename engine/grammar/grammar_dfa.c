/*
 * grammar_dfa - rules as automata over bytes. See grammar_dfa.h.
 *
 * Subset construction, rule by rule, then three passes over all states: what can reach the end of
 * its rule stays, what cannot is cut off; and a rule that would call itself without reading a byte
 * is refused, since a stack could grow forever on it.
 */
#include "engine/grammar/grammar_dfa.h"

#include "base/check.h"
#include "engine/grammar/grammar_nfa.h"

#include <stdlib.h>
#include <string.h>

/* A set of states of the rule at hand. */
struct subset {
    int32_t at, n; /* in dfa_builder.members */
    uint32_t hash;
};

struct dfa_builder {
    struct grammar_build *b;
    struct grammar_dfa *d;
    int32_t *start;           /* [n_rules] */
    struct grammar_nfa *nfas; /* [n_rules] */
    int32_t n_states_room, n_calls_room;
    struct subset *subsets; /* [n_subsets] of the rule at hand */
    int32_t n_subsets, n_subsets_room, first_state;
    int32_t *members, n_members, n_members_room;
    int32_t *table, n_table; /* subset + 1 by hash */
    int32_t *marks, mark;    /* [n_nfa_states] who is in the set that grows */
    int32_t *set, *work;     /* [n_nfa_states] */
    int32_t n_set;
    unsigned char sample[256]; /* one byte of each class */
    size_t n_bytes;
};

static bool take_bytes(struct dfa_builder *x, size_t n)
{
    x->n_bytes += n;
    if (x->n_bytes > x->b->budget.max_bytes)
        grammar_fail(x->b, ERR_LIMIT, "the grammar's automaton takes more than %zu bytes",
                     x->b->budget.max_bytes);
    return x->b->rc == 0;
}

/* *items grows to hold n. */
static bool reserve(struct dfa_builder *x, void *items, int32_t n, int32_t *n_room, size_t size)
{
    void **at = items, *p;
    int32_t more = *n_room ? *n_room : 64;

    if (n <= *n_room)
        return true;
    while (more < n)
        more *= 2;
    if (!take_bytes(x, (size_t)(more - *n_room) * size))
        return false;
    p = realloc(*at, (size_t)more * size);
    if (!p) {
        grammar_fail(x->b, ERR_NO_ROOM, "no memory for the grammar's automaton");
        return false;
    }
    *at = p;
    *n_room = more;
    return true;
}

/* Of every class that the set cuts in two, the part inside gets a number of its own. */
static int split_classes(uint8_t *class_of, int n, const uint32_t *set)
{
    int n_all[256] = {0}, n_in[256] = {0};
    int16_t split[256];

    memset(split, -1, sizeof(split));
    for (int c = 0; c < 256; c++) {
        n_all[class_of[c]]++;
        n_in[class_of[c]] += set[c / 32] >> (c % 32) & 1;
    }
    for (int c = 0; c < 256; c++) {
        int k = class_of[c];

        if (!(set[c / 32] >> (c % 32) & 1) || n_in[k] == n_all[k])
            continue;
        if (split[k] < 0)
            split[k] = (int16_t)n++;
        class_of[c] = (uint8_t)split[k];
    }
    return n;
}

/* Bytes that no set of the grammar tells apart share a class. */
static void find_classes(struct dfa_builder *x)
{
    struct grammar_dfa *d = x->d;
    int n = 1;

    memset(d->class_of, 0, sizeof(d->class_of));
    for (int r = 0; r < x->b->n_rules; r++) {
        for (int32_t i = 0; i < x->nfas[r].n_edges && n < 256 && grammar_step(x->b); i++) {
            if (x->nfas[r].edges[i].kind == NFA_BYTES)
                n = split_classes(d->class_of, n, x->nfas[r].edges[i].bytes);
        }
    }
    d->n_classes = n;
    for (int c = 255; c >= 0; c--)
        x->sample[d->class_of[c]] = (unsigned char)c;
}

static void set_begin(struct dfa_builder *x)
{
    x->mark++;
    x->n_set = 0;
}

/* Adds a state and what it reaches for nothing. */
static void set_add(struct dfa_builder *x, const struct grammar_nfa *nfa, int32_t state)
{
    int32_t n_work = 0;

    if (x->marks[state] == x->mark)
        return;
    x->marks[state] = x->mark;
    x->work[n_work++] = state;
    while (n_work > 0) {
        int32_t s = x->work[--n_work];

        x->set[x->n_set++] = s;
        for (int32_t i = nfa->edge_at[s]; i < nfa->edge_at[s + 1]; i++) {
            int32_t to = nfa->edges[i].to;

            if (nfa->edges[i].kind != NFA_EPSILON || x->marks[to] == x->mark)
                continue;
            x->marks[to] = x->mark;
            x->work[n_work++] = to;
        }
    }
}

static int compare_int32(const void *a, const void *b)
{
    int32_t x = *(const int32_t *)a, y = *(const int32_t *)b;

    return x < y ? -1 : x > y;
}

/* Only states with an edge that is no epsilon, and the last, tell sets apart. */
static void set_finish(struct dfa_builder *x, const struct grammar_nfa *nfa)
{
    int32_t n = 0;

    for (int32_t k = 0; k < x->n_set; k++) {
        int32_t s = x->set[k];
        bool matters = s == nfa->last;

        for (int32_t i = nfa->edge_at[s]; i < nfa->edge_at[s + 1] && !matters; i++)
            matters = nfa->edges[i].kind != NFA_EPSILON;
        if (matters)
            x->set[n++] = s;
    }
    x->n_set = n;
    qsort(x->set, (size_t)n, sizeof(*x->set), compare_int32);
}

static bool table_grow(struct dfa_builder *x)
{
    int32_t n = x->n_table ? 2 * x->n_table : 256;
    int32_t *table;

    if (2 * x->n_subsets < x->n_table)
        return true;
    table = calloc((size_t)n, sizeof(*table));
    if (!table) {
        grammar_fail(x->b, ERR_NO_ROOM, "no memory for the grammar's automaton");
        return false;
    }
    for (int32_t i = 0; i < x->n_subsets; i++) {
        uint32_t at = x->subsets[i].hash & (uint32_t)(n - 1);

        while (table[at])
            at = (at + 1) & (uint32_t)(n - 1);
        table[at] = i + 1;
    }
    free(x->table);
    x->table = table;
    x->n_table = n;
    return true;
}

/* The state of the set at hand, new or known; -1 for the empty set. */
static int32_t state_of_set(struct dfa_builder *x, const struct grammar_nfa *nfa)
{
    struct grammar_dfa *d = x->d;
    uint32_t hash = 2166136261u, at;
    int32_t room = x->n_states_room;

    set_finish(x, nfa);
    if (x->n_set == 0)
        return -1;
    for (int32_t i = 0; i < x->n_set; i++)
        hash = (hash ^ (uint32_t)x->set[i]) * 16777619u;
    hash ^= hash >> 15;
    if (!table_grow(x))
        return -1;
    for (at = hash & (uint32_t)(x->n_table - 1); x->table[at];
         at = (at + 1) & (uint32_t)(x->n_table - 1)) {
        const struct subset *s = &x->subsets[x->table[at] - 1];

        if (s->hash == hash && s->n == x->n_set &&
            !memcmp(&x->members[s->at], x->set, (size_t)s->n * sizeof(*x->set)))
            return x->first_state + x->table[at] - 1;
    }
    if (!reserve(x, &x->subsets, x->n_subsets + 1, &x->n_subsets_room, sizeof(*x->subsets)) ||
        !reserve(x, &x->members, x->n_members + x->n_set, &x->n_members_room,
                 sizeof(*x->members)) ||
        !reserve(x, &d->states, d->n_states + 1, &room, sizeof(*d->states)) ||
        !reserve(x, &d->next, d->n_states + 1, &x->n_states_room,
                 (size_t)d->n_classes * sizeof(*d->next)))
        return -1;
    memcpy(&x->members[x->n_members], x->set, (size_t)x->n_set * sizeof(*x->set));
    x->subsets[x->n_subsets] = (struct subset){x->n_members, x->n_set, hash};
    x->n_members += x->n_set;
    x->table[at] = ++x->n_subsets;
    d->states[d->n_states] = (struct dfa_state){0};
    return d->n_states++;
}

static bool has_byte(const struct nfa_edge *e, unsigned char c)
{
    return e->kind == NFA_BYTES && (e->bytes[c / 32] >> (c % 32) & 1);
}

/* The set behind subset s along edges that `along` takes; its state. */
static int32_t step_bytes(struct dfa_builder *x, const struct grammar_nfa *nfa, struct subset s,
                          unsigned char byte)
{
    set_begin(x);
    for (int32_t k = 0; k < s.n; k++) {
        int32_t from = x->members[s.at + k];

        for (int32_t i = nfa->edge_at[from]; i < nfa->edge_at[from + 1]; i++) {
            if (has_byte(&nfa->edges[i], byte))
                set_add(x, nfa, nfa->edges[i].to);
        }
    }
    return state_of_set(x, nfa);
}

static int32_t step_call(struct dfa_builder *x, const struct grammar_nfa *nfa, struct subset s,
                         int32_t rule)
{
    set_begin(x);
    for (int32_t k = 0; k < s.n; k++) {
        int32_t from = x->members[s.at + k];

        for (int32_t i = nfa->edge_at[from]; i < nfa->edge_at[from + 1]; i++) {
            if (nfa->edges[i].kind == NFA_CALL && nfa->edges[i].rule == rule)
                set_add(x, nfa, nfa->edges[i].to);
        }
    }
    return state_of_set(x, nfa);
}

/* Rules go into `start` until all have states. */
static void add_call(struct dfa_builder *x, int32_t rule, int32_t after)
{
    struct grammar_dfa *d = x->d;

    if (!reserve(x, &d->calls, d->n_calls + 1, &x->n_calls_room, sizeof(*d->calls)))
        return;
    d->calls[d->n_calls++] = (struct dfa_call){.start = rule, .after = after};
}

static void expand_calls(struct dfa_builder *x, const struct grammar_nfa *nfa, int32_t state,
                         struct subset s)
{
    struct grammar_dfa *d = x->d;

    d->states[state].call_at = d->n_calls;
    for (int32_t k = 0; k < s.n; k++) {
        int32_t from = x->members[s.at + k];

        for (int32_t i = nfa->edge_at[from]; i < nfa->edge_at[from + 1]; i++) {
            int32_t rule = nfa->edges[i].rule;
            bool known = nfa->edges[i].kind != NFA_CALL;

            for (int32_t c = d->states[state].call_at; c < d->n_calls && !known; c++)
                known = d->calls[c].start == rule;
            if (!known && grammar_step(x->b))
                add_call(x, rule, step_call(x, nfa, s, rule));
        }
    }
    d->states[state].n_calls = d->n_calls - d->states[state].call_at;
}

static void compile_rule(struct dfa_builder *x, int rule)
{
    const struct grammar_nfa *nfa = &x->nfas[rule];
    struct grammar_dfa *d = x->d;

    x->n_subsets = x->n_members = 0;
    x->first_state = d->n_states;
    if (x->table)
        memset(x->table, 0, (size_t)x->n_table * sizeof(*x->table));
    set_begin(x);
    set_add(x, nfa, nfa->first);
    x->start[rule] = state_of_set(x, nfa);
    if (x->start[rule] < 0 && x->b->rc == 0) { /* an empty body: a state that leads nowhere */
        set_begin(x);
        x->set[x->n_set++] = nfa->last;
        x->start[rule] = state_of_set(x, nfa);
        if (x->b->rc == 0) {
            for (int c = 0; c < d->n_classes; c++)
                d->next[(int64_t)x->start[rule] * d->n_classes + c] = -1;
        }
        return;
    }
    for (int32_t i = 0; i < x->n_subsets && x->b->rc == 0; i++) {
        int32_t state = x->first_state + i;
        struct subset s = x->subsets[i];

        for (int c = 0; c < d->n_classes && grammar_step(x->b); c++) {
            int32_t to = step_bytes(x, nfa, s, x->sample[c]);

            d->next[(int64_t)state * d->n_classes + c] = to;
        }
        for (int32_t k = 0; k < s.n; k++)
            d->states[state].accepts |= x->members[s.at + k] == nfa->last;
        if (x->b->rc == 0)
            expand_calls(x, nfa, state, s);
    }
}

/* Which states can reach the end of their rule, to a fixed point. */
static bool *find_alive(struct dfa_builder *x)
{
    const struct grammar_dfa *d = x->d;
    bool *alive = calloc((size_t)d->n_states + 1, sizeof(*alive)), changed = true;

    if (!alive) {
        grammar_fail(x->b, ERR_NO_ROOM, "no memory for the grammar's automaton");
        return NULL;
    }
    while (changed && x->b->rc == 0) {
        changed = false;
        for (int32_t s = d->n_states - 1; s >= 0 && grammar_step(x->b); s--) {
            bool is = d->states[s].accepts;

            for (int c = 0; c < d->n_classes && !is && !alive[s]; c++) {
                int32_t to = d->next[(int64_t)s * d->n_classes + c];

                is = to >= 0 && alive[to];
            }
            for (int32_t c = 0; c < d->states[s].n_calls && !is && !alive[s]; c++) {
                const struct dfa_call *call = &d->calls[d->states[s].call_at + c];

                is = alive[x->start[call->start]] && alive[call->after];
            }
            if (is && !alive[s])
                alive[s] = changed = true;
        }
    }
    return alive;
}

/* Cuts off what is not alive; calls get the states of their rules. */
static void prune(struct dfa_builder *x, const bool *alive)
{
    struct grammar_dfa *d = x->d;

    for (int32_t s = 0; s < d->n_states; s++) {
        struct dfa_state *state = &d->states[s];
        int32_t n = 0;

        for (int c = 0; c < d->n_classes; c++) {
            int32_t *to = &d->next[(int64_t)s * d->n_classes + c];

            if (*to >= 0 && !alive[*to])
                *to = -1;
            state->has_bytes |= *to >= 0;
        }
        for (int32_t c = 0; c < state->n_calls; c++) {
            struct dfa_call call = d->calls[state->call_at + c];

            if (!alive[x->start[call.start]] || !alive[call.after])
                continue;
            call.start = x->start[call.start];
            d->calls[state->call_at + n++] = call;
        }
        state->n_calls = n;
        state->is_last = state->accepts && !state->has_bytes && n == 0;
    }
}

/* States that end their rule without a byte, by calls of rules that do. */
static void find_nullable(struct dfa_builder *x, bool *nullable)
{
    const struct grammar_dfa *d = x->d;
    bool changed = true;

    while (changed && x->b->rc == 0) {
        changed = false;
        for (int32_t s = d->n_states - 1; s >= 0 && grammar_step(x->b); s--) {
            bool is = d->states[s].accepts;

            for (int32_t c = 0; c < d->states[s].n_calls && !is && !nullable[s]; c++) {
                const struct dfa_call *call = &d->calls[d->states[s].call_at + c];

                is = nullable[call->start] && nullable[call->after];
            }
            if (is && !nullable[s])
                nullable[s] = changed = true;
        }
    }
}

/* What can be reached from a rule's first state without a byte; true when that calls the rule. */
static bool calls_itself(struct dfa_builder *x, const bool *nullable, int32_t start, int32_t *seen,
                         int32_t *work)
{
    const struct grammar_dfa *d = x->d;
    int32_t n_work = 0;

    seen[start] = start + 1;
    work[n_work++] = start;
    while (n_work > 0 && grammar_step(x->b)) {
        const struct dfa_state *s = &d->states[work[--n_work]];

        for (int32_t c = 0; c < s->n_calls; c++) {
            const struct dfa_call *call = &d->calls[s->call_at + c];

            if (call->start == start)
                return true;
            if (seen[call->start] != start + 1) {
                seen[call->start] = start + 1;
                work[n_work++] = call->start;
            }
            if (nullable[call->start] && seen[call->after] != start + 1) {
                seen[call->after] = start + 1;
                work[n_work++] = call->after;
            }
        }
    }
    return false;
}

static void refuse_left_recursion(struct dfa_builder *x, const bool *nullable)
{
    int32_t *seen = calloc((size_t)x->d->n_states + 1, sizeof(*seen));
    int32_t *work = calloc((size_t)x->d->n_states + 1, sizeof(*work));

    if (!seen || !work)
        grammar_fail(x->b, ERR_NO_ROOM, "no memory for the grammar's automaton");
    for (int r = 0; r < x->b->n_rules && x->b->rc == 0; r++) {
        if (calls_itself(x, nullable, x->start[r], seen, work))
            grammar_fail(x->b, ERR_INVALID,
                         "rule '%.60s' can call itself before it has read anything",
                         x->b->rules[r].name);
    }
    free(seen);
    free(work);
}

static void finish(struct dfa_builder *x)
{
    bool *alive = find_alive(x), *nullable = calloc((size_t)x->d->n_states + 1, sizeof(bool));

    if (alive && x->b->rc == 0 && !alive[x->start[x->b->root]])
        grammar_fail(x->b, ERR_INVALID, "no text can satisfy the grammar");
    if (!nullable)
        grammar_fail(x->b, ERR_NO_ROOM, "no memory for the grammar's automaton");
    if (x->b->rc == 0) {
        prune(x, alive);
        find_nullable(x, nullable);
        refuse_left_recursion(x, nullable);
        x->d->start = x->start[x->b->root];
    }
    free(alive);
    free(nullable);
}

static void builder_release(struct dfa_builder *x)
{
    for (int r = 0; x->nfas && r < x->b->n_rules; r++)
        grammar_nfa_release(&x->nfas[r]);
    free(x->nfas);
    free(x->start);
    free(x->subsets);
    free(x->members);
    free(x->table);
    free(x->marks);
    free(x->set);
    free(x->work);
}

/* All rules as NFAs, and room for the largest set. */
static void builder_init(struct dfa_builder *x)
{
    int n_rules = x->b->n_rules;
    int32_t n_most = 1;

    x->nfas = calloc((size_t)n_rules + 1, sizeof(*x->nfas));
    x->start = calloc((size_t)n_rules + 1, sizeof(*x->start));
    for (int r = 0; x->nfas && r < n_rules && x->b->rc == 0; r++) {
        if (!x->b->rules[r].body) {
            grammar_fail(x->b, ERR_INVALID, "rule '%.60s' is not defined", x->b->rules[r].name);
            return;
        }
        if (grammar_nfa_init(&x->nfas[r], x->b, x->b->rules[r].body) == 0 &&
            x->nfas[r].n_states > n_most)
            n_most = x->nfas[r].n_states;
    }
    x->marks = calloc((size_t)n_most, sizeof(*x->marks));
    x->set = calloc((size_t)n_most, sizeof(*x->set));
    x->work = calloc((size_t)n_most, sizeof(*x->work));
    if (!x->nfas || !x->start || !x->marks || !x->set || !x->work)
        grammar_fail(x->b, ERR_NO_ROOM, "no memory for the grammar's automaton");
}

int grammar_dfa_init(struct grammar_dfa *d, struct grammar_build *b)
{
    struct dfa_builder x = {.b = b, .d = d};

    *d = (struct grammar_dfa){0};
    if (b->rc == 0)
        CHECK(b->root >= 0);
    if (b->rc == 0)
        builder_init(&x);
    if (b->rc == 0)
        find_classes(&x);
    for (int r = 0; r < b->n_rules && b->rc == 0; r++)
        compile_rule(&x, r);
    if (b->rc == 0)
        finish(&x);
    builder_release(&x);
    if (b->rc < 0)
        grammar_dfa_release(d);
    return b->rc;
}

void grammar_dfa_release(struct grammar_dfa *d)
{
    free(d->next);
    free(d->states);
    free(d->calls);
    *d = (struct grammar_dfa){0};
}

size_t grammar_dfa_bytes(const struct grammar_dfa *d)
{
    return (size_t)d->n_states * ((size_t)d->n_classes * sizeof(*d->next) + sizeof(*d->states)) +
           (size_t)d->n_calls * sizeof(*d->calls);
}
