/*
 * search_program - from influence and rules to a multiple-choice knapsack. See search_program.h.
 */
#include "engine/plan/search/search_program.h"

#include "base/check.h"
#include "base/err.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static int n_blocks(int length)
{
    return (length + KV_TILE - 1) / KV_TILE;
}

/* Does a trained window shorter than n bound what the layer's heads keep? */
static bool window_binds(const struct search_input *in, int layer, int n)
{
    return in->window && in->window[layer] < n;
}

/* The last tokens that a rule leaves in such a layer. */
static int recent_tokens(const struct search_input *in, int layer, int n, int rule)
{
    int64_t kept =
        kv_elastic_tokens(in->rules[rule].alpha, in->rules[rule].beta, n, in->convention);

    return kept < in->window[layer] ? (int)kept : in->window[layer];
}

/*
 * Influence of what the rule hides at a length: block diagonals from the ring's size on, and with
 * a trained window the sink as well, from the row block on that no longer reaches it.
 */
static double rule_loss(const struct search_input *in, int length_idx, int unit, const double *tail,
                        int rule)
{
    int n = in->length[length_idx], blocks = n_blocks(n), layer = unit / in->units_per_layer;
    const double *sink = in->sink[length_idx];
    double loss = 0;
    int seen;

    if (!window_binds(in, layer, n)) {
        seen = kv_rule_span(&in->rules[rule], n, in->convention).window / KV_TILE;
        return seen >= blocks ? 0.0 : tail[seen];
    }
    seen = recent_tokens(in, layer, n, rule);
    if (seen >= in->window[layer])
        return 0.0; /* all that the head ever saw */
    seen /= KV_TILE;
    for (int i = seen; sink && i < blocks; i++)
        loss += sink[(int64_t)unit * blocks + i];
    return seen >= blocks ? loss : loss + tail[seen];
}

static int64_t rule_tokens(const struct search_input *in, int cap_idx, int layer, int rule)
{
    int n = in->caps.length[cap_idx];
    struct kv_rule last = {.kind = KV_RULE_STREAM};

    if (!window_binds(in, layer, n))
        return kv_rule_tokens(&in->rules[rule], n, in->convention);
    last.n_recent = recent_tokens(in, layer, n, rule);
    return kv_rule_tokens(&last, n, in->convention);
}

static int64_t common_divisor(int64_t a, int64_t b)
{
    while (b) {
        int64_t t = a % b;

        a = b;
        b = t;
    }
    return a;
}

static void fill_losses(struct search_program *s, int length_idx, double *tail)
{
    const struct search_input *in = &s->in;
    int blocks = n_blocks(in->length[length_idx]);
    double most_sum = 0;

    for (int u = 0; u < s->n_units; u++) {
        struct choice_group *g = &s->problem.groups[u];
        const double *band = in->band[length_idx] + (int64_t)u * blocks;
        double most = 0;

        tail[blocks] = 0;
        for (int k = blocks - 1; k >= 0; k--)
            tail[k] = tail[k + 1] + band[k];
        for (int r = 0; r < in->n_rules; r++) {
            double loss = rule_loss(in, length_idx, u, tail, r);

            g->value[(int64_t)length_idx * g->n_alloc + r] = loss;
            most = loss > most ? loss : most;
        }
        most_sum += most;
    }
    s->loss_scale[length_idx] = most_sum > 0 ? most_sum / s->n_units : 1.0;
    for (int u = 0; u < s->n_units; u++) {
        struct choice_group *g = &s->problem.groups[u];

        for (int r = 0; r < in->n_rules; r++)
            g->value[(int64_t)length_idx * g->n_alloc + r] /= s->loss_scale[length_idx];
    }
}

/* A total of multiples is a multiple, so the limit is cut to one: it then divides fewer heads. */
static void fill_densities(struct search_program *s)
{
    const struct search_input *in = &s->in;

    for (int c = 0; c < in->caps.n; c++) {
        double n = in->caps.length[c], most;
        int64_t unit = 0;

        for (int u = 0; u < s->n_units; u++) {
            struct choice_group *g = &s->problem.groups[u];

            for (int r = 0; r < in->n_rules; r++) {
                int64_t tokens = rule_tokens(in, c, u / in->units_per_layer, r);

                unit = common_divisor(tokens, unit);
                g->value[(int64_t)(in->n_lengths + c) * g->n_alloc + r] = (double)tokens / n;
            }
        }
        most = in->caps.density[c] * s->n_units * n;
        s->problem.limit[in->n_lengths + c] =
            floor(most / (double)unit * (1 + 1e-12)) * (double)unit / n;
    }
}

/* Is option b at no value better than a, and not the one to be kept of two equal ones? */
static bool is_dominated(const struct choice_group *g, int n_values, int b, int a)
{
    bool equal = true;

    for (int v = 0; v < n_values; v++) {
        double x = choice_value(g, v, a), y = choice_value(g, v, b);

        if (x > y)
            return false;
        equal &= x == y;
    }
    return !equal || a < b;
}

static void find_useless(struct search_program *s)
{
    int n = s->in.n_rules;

    for (int u = 0; u < s->n_units; u++) {
        for (int b = 0; b < n; b++) {
            bool *out = &s->useless[(int64_t)u * n + b];

            for (int a = 0; a < n && !*out; a++)
                *out = a != b && !s->useless[(int64_t)u * n + a] &&
                       is_dominated(&s->problem.groups[u], s->problem.n_values, b, a);
        }
    }
}

/* The least density that any rules give, cap by cap. */
static int check_caps(const struct search_program *s, struct err *err)
{
    const struct search_input *in = &s->in;

    for (int c = 0; c < in->caps.n; c++) {
        double least = 0;

        for (int u = 0; u < s->n_units; u++) {
            double best = INFINITY;

            for (int r = 0; r < in->n_rules; r++)
                best = fmin(best, choice_value(&s->problem.groups[u], in->n_lengths + c, r));
            least += best;
        }
        if (least > s->problem.limit[in->n_lengths + c] + CHOICE_EPS)
            return err_set(err, ERR_INVALID,
                           "density %.4f at %d tokens cannot be kept: the smallest rules of the "
                           "grid already take %.4f, %.4f too much",
                           in->caps.density[c], in->caps.length[c], least / s->n_units,
                           least / s->n_units - in->caps.density[c]);
    }
    return 0;
}

int search_program_init(struct search_program *s, const struct search_input *in, struct err *err)
{
    struct choice_problem *p = &s->problem;
    double *tail = NULL;
    int rc = 0, most_blocks = 1;

    memset(s, 0, sizeof(*s));
    s->in = *in;
    s->n_units = in->n_layers * in->units_per_layer;
    CHECK(in->n_lengths >= 1);
    CHECK(in->n_lengths + in->caps.n <= CHOICE_MAX_VALUES);
    p->n_groups = s->n_units;
    p->n_values = in->n_lengths + in->caps.n;
    for (int v = 0; v < p->n_values; v++)
        p->limit[v] = INFINITY;
    for (int i = 0; i < in->n_lengths; i++)
        most_blocks = n_blocks(in->length[i]) > most_blocks ? n_blocks(in->length[i]) : most_blocks;
    tail = calloc((size_t)most_blocks + 1, sizeof(*tail));
    p->groups = calloc((size_t)s->n_units, sizeof(*p->groups));
    s->useless = calloc((size_t)s->n_units * in->n_rules, sizeof(*s->useless));
    if (!tail || !p->groups || !s->useless) {
        rc = err_set(err, ERR_NO_ROOM, "no memory for a program of %d heads", s->n_units);
        goto out;
    }
    for (int u = 0; u < s->n_units; u++) {
        struct choice_group *g = &p->groups[u];

        g->n_options = g->n_alloc = in->n_rules;
        g->value = calloc((size_t)p->n_values * g->n_alloc, sizeof(*g->value));
        g->banned = calloc((size_t)g->n_alloc, 1);
        if (!g->value || !g->banned) {
            rc = err_set(err, ERR_NO_ROOM, "no memory for a program of %d heads", s->n_units);
            goto out;
        }
    }
    for (int i = 0; i < in->n_lengths; i++)
        fill_losses(s, i, tail);
    fill_densities(s);
    find_useless(s);
    rc = check_caps(s, err);
out:
    free(tail);
    if (rc < 0)
        search_program_release(s);
    return rc;
}

void search_program_release(struct search_program *s)
{
    if (!s)
        return;
    for (int u = 0; s->problem.groups && u < s->n_units; u++) {
        free(s->problem.groups[u].value);
        free(s->problem.groups[u].banned);
    }
    free(s->problem.groups);
    free(s->useless);
    memset(s, 0, sizeof(*s));
}

void search_program_ban(struct search_program *s, bool useless)
{
    for (int u = 0; u < s->n_units; u++)
        for (int r = 0; r < s->in.n_rules; r++)
            s->problem.groups[u].banned[r] = useless && s->useless[(int64_t)u * s->in.n_rules + r];
}

double search_program_loss(const struct search_program *s, int length_idx, const double *total)
{
    return total[length_idx] * s->loss_scale[length_idx];
}

double search_program_density(const struct search_program *s, int cap_idx, const double *total)
{
    return total[s->in.n_lengths + cap_idx] / s->n_units;
}

int search_program_infeasible(const struct search_program *s, const double *excess, struct err *err)
{
    char list[256] = "";
    int len = 0;

    for (int c = 0; c < s->in.caps.n; c++) {
        double over = excess[s->in.n_lengths + c] / s->n_units;

        if (over > 0 && len < (int)sizeof(list) - 64)
            len += snprintf(list + len, sizeof(list) - (size_t)len, "%s%.4f at %d tokens by %.4f",
                            len ? ", " : "", s->in.caps.density[c], s->in.caps.length[c], over);
    }
    return err_set(err, ERR_INVALID,
                   "no rules keep all density caps together: at best they miss %s", list);
}
