/*
 * grammar_nfa - a rule's tree as states and edges. See grammar_nfa.h.
 *
 * A tree may be as deep as its text is long, so it is walked with a list of what is left to do.
 */
#include "engine/grammar/grammar_nfa.h"

#include <stdlib.h>
#include <string.h>

/* The tree `e` is to lead from one state to the other. */
struct task {
    const struct expr *e;
    int32_t from, to;
};

struct task_list {
    struct task *items;
    size_t n, n_room;
};

static const uint32_t digit_sets[10][8] = {
    {0, 1u << 16}, {0, 1u << 17}, {0, 1u << 18}, {0, 1u << 19}, {0, 1u << 20},
    {0, 1u << 21}, {0, 1u << 22}, {0, 1u << 23}, {0, 1u << 24}, {0, 1u << 25},
};

/* *items has room for one more of `size` bytes, or b has failed. */
static bool grow(struct grammar_build *b, void **items, size_t n, size_t *n_room, size_t size)
{
    size_t more = *n_room ? 2 * *n_room : 256;
    void *p;

    if (n < *n_room)
        return true;
    if (more * size > b->budget.max_bytes) {
        grammar_fail(b, ERR_LIMIT, "the grammar takes more than %zu bytes", b->budget.max_bytes);
        return false;
    }
    p = realloc(*items, more * size);
    if (!p) {
        grammar_fail(b, ERR_NO_ROOM, "no memory for the grammar");
        return false;
    }
    *items = p;
    *n_room = more;
    return true;
}

static void push(struct grammar_build *b, struct task_list *list, const struct expr *e,
                 int32_t from, int32_t to)
{
    void *items = list->items;

    if (!grow(b, &items, list->n, &list->n_room, sizeof(*list->items)))
        return;
    list->items = items;
    list->items[list->n++] = (struct task){e, from, to};
}

static void add_edge(struct grammar_build *b, struct grammar_nfa *n, struct nfa_edge edge)
{
    void *edges = n->edges;
    size_t n_room = (size_t)n->n_edges_room;

    if (!grammar_step(b) || !grow(b, &edges, (size_t)n->n_edges, &n_room, sizeof(edge)))
        return;
    n->edges = edges;
    n->n_edges_room = (int32_t)n_room;
    n->edges[n->n_edges++] = edge;
}

static void add_epsilon(struct grammar_build *b, struct grammar_nfa *n, int32_t from, int32_t to)
{
    add_edge(b, n, (struct nfa_edge){.kind = NFA_EPSILON, .from = from, .to = to});
}

static void add_repeat(struct grammar_build *b, struct grammar_nfa *n, struct task_list *list,
                       struct task t)
{
    int32_t at = t.from;

    for (int i = 0; i < t.e->min && b->rc == 0; i++) {
        push(b, list, t.e->left, at, n->n_states);
        at = n->n_states++;
    }
    if (t.e->max == GRAMMAR_NO_MAX) {
        int32_t loop = n->n_states++;

        add_epsilon(b, n, at, loop);
        push(b, list, t.e->left, loop, loop);
        add_epsilon(b, n, loop, t.to);
        return;
    }
    add_epsilon(b, n, at, t.to);
    for (int i = t.e->min; i < t.e->max && b->rc == 0; i++) {
        push(b, list, t.e->left, at, n->n_states);
        at = n->n_states++;
        add_epsilon(b, n, at, t.to);
    }
}

/* One state a remainder. */
static void add_multiple(struct grammar_build *b, struct grammar_nfa *n, struct task t)
{
    int32_t of = t.e->min, first = n->n_states;

    n->n_states += of;
    for (int digit = 0; digit < 10; digit++) {
        struct nfa_edge edge = {.kind = NFA_BYTES, .bytes = digit_sets[digit], .from = t.from};

        edge.to = digit ? first + digit % of : t.to;
        add_edge(b, n, edge);
        for (int32_t r = 0; r < of; r++) {
            edge.from = first + r;
            edge.to = first + (10 * r + digit) % of;
            add_edge(b, n, edge);
        }
    }
    add_epsilon(b, n, first, t.to);
}

static void do_task(struct grammar_build *b, struct grammar_nfa *n, struct task_list *list,
                    struct task t)
{
    int32_t mid;

    switch (t.e->kind) {
    case EXPR_EMPTY:
        add_epsilon(b, n, t.from, t.to);
        break;
    case EXPR_NEVER:
        break;
    case EXPR_BYTES:
        add_edge(
            b, n,
            (struct nfa_edge){.kind = NFA_BYTES, .from = t.from, .to = t.to, .bytes = t.e->bytes});
        break;
    case EXPR_SEQ:
        mid = n->n_states++;
        push(b, list, t.e->right, mid, t.to);
        push(b, list, t.e->left, t.from, mid);
        break;
    case EXPR_ALT:
        push(b, list, t.e->right, t.from, t.to);
        push(b, list, t.e->left, t.from, t.to);
        break;
    case EXPR_REPEAT:
        add_repeat(b, n, list, t);
        break;
    case EXPR_CALL:
        add_edge(
            b, n,
            (struct nfa_edge){.kind = NFA_CALL, .from = t.from, .to = t.to, .rule = t.e->rule});
        break;
    case EXPR_MULTIPLE:
        add_multiple(b, n, t);
        break;
    }
}

/* Edges in the order of where they begin, by counting. */
static void sort_edges(struct grammar_build *b, struct grammar_nfa *n)
{
    struct nfa_edge *sorted = calloc((size_t)n->n_edges + 1, sizeof(*sorted));

    n->edge_at = calloc((size_t)n->n_states + 2, sizeof(*n->edge_at));
    if (!sorted || !n->edge_at) {
        free(sorted);
        grammar_fail(b, ERR_NO_ROOM, "no memory for the grammar");
        return;
    }
    for (int32_t i = 0; i < n->n_edges; i++)
        n->edge_at[n->edges[i].from + 2]++;
    for (int32_t s = 2; s < n->n_states + 2; s++)
        n->edge_at[s] += n->edge_at[s - 1];
    for (int32_t i = 0; i < n->n_edges; i++)
        sorted[n->edge_at[n->edges[i].from + 1]++] = n->edges[i];
    free(n->edges);
    n->edges = sorted;
}

int grammar_nfa_init(struct grammar_nfa *n, struct grammar_build *b, const struct expr *body)
{
    struct task_list list = {0};

    *n = (struct grammar_nfa){.first = 0, .last = 1, .n_states = 2};
    push(b, &list, body, n->first, n->last);
    while (list.n > 0 && grammar_step(b))
        do_task(b, n, &list, list.items[--list.n]);
    free(list.items);
    if (b->rc == 0)
        sort_edges(b, n);
    return b->rc;
}

void grammar_nfa_release(struct grammar_nfa *n)
{
    free(n->edges);
    free(n->edge_at);
    *n = (struct grammar_nfa){0};
}
