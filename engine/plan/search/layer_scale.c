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

#define LEAST_SHARE    0.02 /* of the largest factor: no layer is of no account */
#define MAX_FILE_BYTES ((size_t)1 << 24)

struct scaling {
    const struct search_options *o;
    const struct calibration *c;
    const struct profile *p;
    struct search_input in; /* dense, and uniform spans */
    struct kv_rule rules[2];
    int *rule; /* [n_units] */
};

static int init(struct scaling *s, struct err *err)
{
    const struct search_options *o = s->o;

    s->rules[0] = (struct kv_rule){.kind = KV_RULE_ELASTIC, .alpha = 0, .beta = 1};
    s->rules[1] = (struct kv_rule){.kind = KV_RULE_ELASTIC, .alpha = 0, .beta = o->density};
    s->in =
        (struct search_input){.n_layers = s->p->n_layers,
                              .units_per_layer = s->p->units_per_layer,
                              .rules = s->rules,
                              .n_rules = 2,
                              .convention = o->config->span_convention == PLAN_SPAN_EXCLUDES_SINK
                                                ? KV_SPAN_EXCLUDES_SINK
                                                : KV_SPAN_INCLUDES_SINK};
    s->rule = calloc((size_t)s->p->n_layers * (size_t)s->p->units_per_layer, sizeof(*s->rule));
    return s->rule ? 0 : err_set(err, ERR_NO_ROOM, "layer scale: out of memory");
}

/* The loss with uniform spans in one layer, -1: in none. */
static int loss_without(const struct scaling *s, int length, int layer, double *out,
                        struct err *err)
{
    struct strbuf plan = STRBUF_INIT;
    char path[4200], label[64];
    struct answer_loss_args run = {
        .o = s->o, .items = s->c, .length = length, .spec = path, .label = label};
    int rc;

    for (int u = 0; u < s->in.n_layers * s->in.units_per_layer; u++)
        s->rule[u] = u / s->in.units_per_layer == layer;
    search_path(path, sizeof(path), s->o, "layer.json");
    snprintf(label, sizeof(label), "layer %d of %d at %d tokens", layer + 1, s->in.n_layers,
             length);
    plan_write(&plan, s->o, &s->in, s->rule, "{}");
    rc = plan.failed ? err_set(err, ERR_NO_ROOM, "layer scale: out of memory")
                     : file_write_whole(path, plan.buf, plan.len, err);
    if (rc == 0)
        rc = answer_loss_mean(&run, out, err);
    strbuf_release(&plan);
    remove(path);
    return rc < 0 ? rc : 0;
}

/* What the profile says of the same, a mean over items. */
static double predicted(const struct scaling *s, int length_idx, int layer)
{
    const struct profile_length *at = &s->p->at[length_idx];
    int window = kv_rule_span(&s->rules[1], at->length, s->in.convention).window / KV_TILE;
    double sum = 0;

    for (int u = layer * s->in.units_per_layer; u < (layer + 1) * s->in.units_per_layer; u++)
        for (int b = window; b < at->n_blocks; b++)
            sum += at->band[(int64_t)u * at->n_blocks + b];
    return at->n_items ? sum / at->n_items : 0.0;
}

/* Factors of one length; a layer with a trained window keeps its influence, scaled as the mean. */
static int measure(const struct scaling *s, int length_idx, double *factor, struct err *err)
{
    double dense, most = 0;
    int length = s->p->at[length_idx].length;
    int rc = loss_without(s, length, -1, &dense, err);

    for (int layer = 0; layer < s->in.n_layers && rc == 0; layer++) {
        double with, says = predicted(s, length_idx, layer);

        rc = loss_without(s, length, layer, &with, err);
        factor[layer] = rc == 0 && says > 0 && with > dense ? (with - dense) / says : 0.0;
        most = factor[layer] > most ? factor[layer] : most;
    }
    for (int layer = 0; layer < s->in.n_layers && rc == 0; layer++) {
        if (most == 0)
            factor[layer] = 1;
        else if (factor[layer] < LEAST_SHARE * most)
            factor[layer] = LEAST_SHARE * most;
    }
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
        for (int layer = 0; at && layer < s->p->n_layers; layer++) {
            int length, number, used = 0;

            ok = sscanf(at, "%d,%d,%lf%n", &length, &number, &out->factor[i][layer], &used) == 3 &&
                 length == s->p->at[i].length && number == layer && at[used] == '\n';
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

    strbuf_addf(&out, "%s\nlength,layer,factor\n", key);
    for (int i = 0; i < s->p->n_lengths; i++)
        for (int layer = 0; layer < s->p->n_layers; layer++)
            strbuf_addf(&out, "%d,%d,%.17g\n", s->p->at[i].length, layer, l->factor[i][layer]);
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
            double factor = l->factor[i][u / p->units_per_layer];

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
    search_path(path, sizeof(path), o, "layer_scale.csv");
    strbuf_addstr(&key, "# ");
    search_key_profile(&key, o);
    strbuf_addf(&key, " units=%d density=%.6g", p->units_per_layer, o->density);
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
