/*
 * layer_scale - scales influence to what a layer's spans really cost. See layer_scale.h.
 */
#include "engine/plan/search/layer_scale.h"

#include "base/clock.h"
#include "base/err.h"
#include "base/file_map.h"
#include "base/file_write.h"
#include "base/strbuf.h"
#include "config/config.h"
#include "engine/plan/plan.h"
#include "engine/plan/search/answer_loss.h"
#include "engine/plan/search/plan_write.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define LEAST_SHARE    0.02 /* of the largest factor: no unit is of no account */
#define LOOK_CLOSER    0.1  /* of what all layers cost: from here on units are measured */
#define MAX_FILE_BYTES ((size_t)1 << 24)

struct scaling {
    const struct search_options *o;
    const struct calibration *c;
    const struct profile *p;
    struct search_input in;
    struct kv_rule rules[2]; /* dense, and the cheapest of the grid */
    int *rule;               /* [n_units] */
};

/* The rule that keeps least at the longest length: what a unit of no account will get. */
static int find_cheapest(const struct scaling *s, struct kv_rule *out, struct err *err)
{
    struct kv_rule *rules = NULL;
    int n_rules = 0, longest = s->p->at[s->p->n_lengths - 1].length;
    int rc = rule_grid_make(&rules, &n_rules, &s->o->grid, err);
    int64_t least = INT64_MAX;

    for (int r = 0; r < n_rules && rc == 0; r++) {
        int64_t tokens = kv_rule_tokens(&rules[r], longest, s->in.convention);

        if (tokens >= least)
            continue;
        least = tokens;
        *out = rules[r];
    }
    free(rules);
    return rc;
}

static int init(struct scaling *s, struct err *err)
{
    const struct search_options *o = s->o;

    int rc;

    s->rules[0] = (struct kv_rule){.kind = KV_RULE_ELASTIC, .alpha = 0, .beta = 1};
    s->in =
        (struct search_input){.n_layers = s->p->n_layers,
                              .units_per_layer = s->p->units_per_layer,
                              .rules = s->rules,
                              .n_rules = 2,
                              .convention = o->config->span_convention == PLAN_SPAN_EXCLUDES_SINK
                                                ? KV_SPAN_EXCLUDES_SINK
                                                : KV_SPAN_INCLUDES_SINK};
    rc = find_cheapest(s, &s->rules[1], err);
    if (rc < 0)
        return rc;
    s->rule = calloc((size_t)s->p->n_layers * (size_t)s->p->units_per_layer, sizeof(*s->rule));
    return s->rule ? 0 : err_set(err, ERR_NO_ROOM, "layer scale: out of memory");
}

/* The loss with the cheapest spans in units first .. end - 1; label says which those are. */
static int loss_without(const struct scaling *s, int length, int first, int end, const char *label,
                        double *out, struct err *err)
{
    struct strbuf plan = STRBUF_INIT;
    char path[4200];
    struct answer_loss_args run = {
        .o = s->o, .items = s->c, .length = length, .spec = path, .label = label};
    int rc;

    for (int u = 0; u < s->in.n_layers * s->in.units_per_layer; u++)
        s->rule[u] = u >= first && u < end;
    search_path(path, sizeof(path), s->o, "layer.json");
    plan_write(&plan, s->o, &s->in, s->rule, "{}");
    rc = plan.failed ? err_set(err, ERR_NO_ROOM, "layer scale: out of memory")
                     : file_write_whole(path, plan.buf, plan.len, err);
    if (rc == 0)
        rc = answer_loss_mean(&run, out, err);
    strbuf_release(&plan);
    remove(path);
    return rc < 0 ? rc : 0;
}

/* What the profile says that the cheapest spans hide in a unit, a mean over items. */
static double predicted(const struct scaling *s, int length_idx, int unit)
{
    const struct profile_length *at = &s->p->at[length_idx];
    int window = kv_rule_span(&s->rules[1], at->length, s->in.convention).window / KV_TILE;
    double sum = 0;

    for (int b = window; b < at->n_blocks; b++)
        sum += at->band[(int64_t)unit * at->n_blocks + b];
    return at->n_items ? sum / at->n_items : 0.0;
}

/* What each layer alone costs, into cost [n_layers]; *dense is the loss without spans. */
static int measure_layers(const struct scaling *s, int length, double *cost, double *dense,
                          struct err *err)
{
    int per = s->in.units_per_layer, rc;
    char label[64];

    snprintf(label, sizeof(label), "dense at %d tokens", length);
    rc = loss_without(s, length, 0, 0, label, dense, err);
    for (int layer = 0; layer < s->in.n_layers && rc == 0; layer++) {
        double with;

        snprintf(label, sizeof(label), "layer %d of %d at %d tokens", layer + 1, s->in.n_layers,
                 length);
        rc = loss_without(s, length, layer * per, (layer + 1) * per, label, &with, err);
        cost[layer] = rc == 0 ? fmax(with - *dense, 0.0) : 0.0;
    }
    return rc;
}

/* Deals a layer's cost to its units as each costs alone; as predicted where none costs anything. */
static int measure_units(const struct scaling *s, int length_idx, int layer, double dense,
                         double cost, double *factor, struct err *err)
{
    int per = s->in.units_per_layer, first = layer * per, rc = 0;
    double sum = 0;
    char label[64];

    for (int u = first; u < first + per && rc == 0; u++) {
        double with;

        snprintf(label, sizeof(label), "layer %d, unit %d of %d at %d tokens", layer + 1,
                 u - first + 1, per, s->p->at[length_idx].length);
        rc = loss_without(s, s->p->at[length_idx].length, u, u + 1, label, &with, err);
        factor[u] = rc == 0 ? fmax(with - dense, 0.0) : 0.0;
        sum += factor[u];
    }
    for (int u = first; u < first + per && rc == 0 && sum > 0; u++) {
        double says = predicted(s, length_idx, u);

        factor[u] = says > 0 ? factor[u] * cost / sum / says : 0.0;
    }
    return rc;
}

/* Factors of one length [n_units]. */
static int measure(const struct scaling *s, int length_idx, double *factor, struct err *err)
{
    int per = s->in.units_per_layer, n_units = s->in.n_layers * per, rc;
    double cost[MODEL_MAX_LAYERS], dense, total = 0, most = 0;

    rc = measure_layers(s, s->p->at[length_idx].length, cost, &dense, err);
    for (int layer = 0; layer < s->in.n_layers && rc == 0; layer++)
        total += cost[layer];
    for (int layer = 0; layer < s->in.n_layers && rc == 0; layer++) {
        double says = 0;

        for (int u = layer * per; u < (layer + 1) * per; u++)
            says += predicted(s, length_idx, u);
        for (int u = layer * per; u < (layer + 1) * per; u++)
            factor[u] = says > 0 ? cost[layer] / says : 0.0;
        if (per > 1 && total > 0 && cost[layer] >= LOOK_CLOSER * total)
            rc = measure_units(s, length_idx, layer, dense, cost[layer], factor, err);
    }
    for (int u = 0; u < n_units && rc == 0; u++)
        most = fmax(most, factor[u]);
    for (int u = 0; u < n_units && rc == 0; u++)
        factor[u] = most > 0 ? fmax(factor[u], LEAST_SHARE * most) : 1.0;
    return rc;
}

static bool load(const struct scaling *s, struct layer_scale *out, const char *path,
                 const char *key)
{
    struct err ignored = {0};
    char *text = NULL, *at;
    bool ok = true;

    if (file_read_text(&text, NULL, path, MAX_FILE_BYTES, &ignored) < 0)
        return false;
    at = strncmp(text, key, strlen(key)) ? NULL : strstr(text + strlen(key), "factor\n");
    at = at ? at + strlen("factor\n") : NULL;
    for (int i = 0; at && i < s->p->n_lengths; i++) {
        for (int u = 0; at && u < s->p->n_layers * s->p->units_per_layer; u++) {
            int length, number, used = 0;

            ok = sscanf(at, "%d,%d,%lf%n", &length, &number, &out->factor[i][u], &used) == 3 &&
                 length == s->p->at[i].length && number == u && at[used] == '\n';
            at = ok ? at + used + 1 : NULL;
        }
    }
    ok = ok && at && !*at;
    free(text);
    return ok;
}

static int save(const struct scaling *s, const struct layer_scale *l, const char *path,
                const char *key, struct err *err)
{
    struct strbuf out = STRBUF_INIT;
    int rc;

    strbuf_addf(&out, "%s\nlength,unit,factor\n", key);
    for (int i = 0; i < s->p->n_lengths; i++)
        for (int u = 0; u < s->p->n_layers * s->p->units_per_layer; u++)
            strbuf_addf(&out, "%d,%d,%.17g\n", s->p->at[i].length, u, l->factor[i][u]);
    rc = out.failed ? err_set(err, ERR_NO_ROOM, "%s: out of memory", path)
                    : file_write_whole(path, out.buf, out.len, err);
    strbuf_release(&out);
    return rc;
}

static void scale(struct profile *p, const struct layer_scale *l)
{
    for (int i = 0; i < p->n_lengths; i++) {
        struct profile_length *at = &p->at[i];

        for (int u = 0; u < p->n_layers * p->units_per_layer; u++) {
            double factor = l->factor[i][u];

            for (int b = 0; b < at->n_blocks; b++) {
                at->band[(int64_t)u * at->n_blocks + b] *= factor;
                at->sink[(int64_t)u * at->n_blocks + b] *= factor;
            }
        }
    }
}

int layer_scale_apply(struct layer_scale *out, struct profile *p, const struct search_options *o,
                      const struct calibration *c, struct err *err)
{
    struct scaling s = {.o = o, .c = c, .p = p};
    struct strbuf key = STRBUF_INIT;
    int64_t t0 = clock_ns();
    char path[4200];
    int rc = init(&s, err);

    memset(out, 0, sizeof(*out));
    for (int i = 0; i < p->n_lengths && rc == 0; i++) {
        out->factor[i] =
            calloc((size_t)p->n_layers * (size_t)p->units_per_layer, sizeof(*out->factor[i]));
        if (!out->factor[i])
            rc = err_set(err, ERR_NO_ROOM, "layer scale: out of memory");
    }
    search_path(path, sizeof(path), o, "layer_scale.csv");
    strbuf_addstr(&key, "# ");
    search_key_profile(&key, o);
    strbuf_addf(&key, " units=%d rule=%.6g,%.6g", p->units_per_layer, s.rules[1].alpha,
                s.rules[1].beta);
    if (rc == 0 && key.failed)
        rc = err_set(err, ERR_NO_ROOM, "layer scale: out of memory");
    if (rc == 0)
        out->was_kept = load(&s, out, path, key.buf);
    for (int i = 0; i < p->n_lengths && rc == 0 && !out->was_kept; i++)
        rc = measure(&s, i, out->factor[i], err);
    if (rc == 0 && !out->was_kept)
        rc = save(&s, out, path, key.buf, err);
    if (rc == 0)
        scale(p, out);
    out->seconds = (double)(clock_ns() - t0) * 1e-9;
    strbuf_release(&key);
    free(s.rule);
    return rc;
}

void layer_scale_release(struct layer_scale *l)
{
    for (int i = 0; i < SEARCH_MAX_LENGTHS; i++)
        free(l->factor[i]);
    memset(l, 0, sizeof(*l));
}
