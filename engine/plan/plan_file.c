/*
 * plan_file - MoA plans as they are published, and what our own say about themselves.
 *
 *     {"alphas": [[0, -1024, ...], ...],   tokens          [n_layers][n_heads]
 *      "betas":  [[0.125, 1, ...], ...],   0..1            likewise
 *      "spand":  {...}}                    optional
 *
 * Published files have the first two members alone, and readers of those skip the third. Other
 * members are other people's metadata and are skipped by us. In "spand" all is optional, whatever
 * is there must be true, and nothing else may be there:
 *
 *     n_layers, n_heads, n_kv_heads, head_dim   of the model that the plan was made for
 *     sink, block          64: the tokens at the start that stay, the unit of spans
 *     span                 "includes_sink" or "excludes_sink": whether alpha + beta * N counts them
 *     density              {"8192": 0.4922, ...}: the share of a dense cache that the KV heads keep
 *     about                anything: for people, not read
 */
#include "engine/plan/plan_impl.h"

#include "base/err.h"
#include "base/json_file.h"
#include "engine/model/json_fields.h"

#include <math.h>
#include <stdio.h>
#include <string.h>

#define DENSITY_SLACK 0.001 /* files have densities of three digits or more */

/* Walks table[layer][head] and stores each number through put(). */
static int read_table(struct plan *p, const json_t *root, const char *key, double lo, double hi,
                      void (*put)(struct kv_rule *rule, double value), struct err *err)
{
    const json_t *table = json_object_get(root, key);
    int n_layers = p->shape.n_layers, n_heads = p->shape.n_heads;
    char found[64];

    if (!json_is_array(table))
        return err_set(err, ERR_PARSE, "plan %s: want a list \"%s\" of %d layers", p->name, key,
                       n_layers);
    if (json_array_size(table) != (size_t)n_layers)
        return err_set(err, ERR_PARSE, "plan %s: %s has %zu layers, the model has %d", p->name, key,
                       json_array_size(table), n_layers);
    for (int layer = 0; layer < n_layers; layer++) {
        const json_t *row = json_array_get(table, (size_t)layer);

        if (!json_is_array(row))
            return err_set(err, ERR_PARSE, "plan %s: %s[%d] is no list of %d heads", p->name, key,
                           layer, n_heads);
        if (json_array_size(row) != (size_t)n_heads)
            return err_set(err, ERR_PARSE, "plan %s: %s[%d] has %zu heads, the model has %d",
                           p->name, key, layer, json_array_size(row), n_heads);
        for (int head = 0; head < n_heads; head++) {
            const json_t *v = json_array_get(row, (size_t)head);
            double value = json_is_number(v) ? json_number_value(v) : (double)NAN;

            if (!(value >= lo && value <= hi)) {
                json_describe(found, sizeof(found), v);
                return err_set(err, ERR_PARSE,
                               "plan %s: %s[%d][%d] is %s, want a number in %.0f..%.0f", p->name,
                               key, layer, head, found, lo, hi);
            }
            put(&p->rules[(size_t)layer * n_heads + head], value);
        }
    }
    return 0;
}

static void put_alpha(struct kv_rule *rule, double value)
{
    rule->kind = KV_RULE_ELASTIC;
    rule->alpha = value;
}

static void put_beta(struct kv_rule *rule, double value)
{
    rule->beta = value;
}

/* A member that must have one value, if it is there. */
static void want_int(struct json_fields *f, const char *key, int want, const char *whose)
{
    int value = json_fields_int(f, key, 0, INT_MAX, want);

    if (f->rc == 0 && value != want)
        f->rc =
            err_set(f->err, ERR_PARSE, "%s: %s is %d, %s %d", f->where, key, value, whose, want);
}

/* The file's word counts where the config has none; where both speak they must agree. */
static void read_span(struct plan *p, struct json_fields *f, enum plan_convention convention)
{
    static const char *const words[] = {"includes_sink", "excludes_sink"};
    const char *span = json_fields_str(f, "span", NULL);
    int said = 0;

    if (!span || f->rc < 0)
        return;
    while (said < 2 && strcmp(span, words[said]))
        said++;
    if (said == 2) {
        f->rc = err_set(f->err, ERR_PARSE,
                        "%s: span is \"%.40s\", want includes_sink or "
                        "excludes_sink",
                        f->where, span);
        return;
    }
    if (convention == PLAN_SPAN_AUTO)
        p->convention = said ? KV_SPAN_EXCLUDES_SINK : KV_SPAN_INCLUDES_SINK;
    else if (p->convention != (said ? KV_SPAN_EXCLUDES_SINK : KV_SPAN_INCLUDES_SINK))
        f->rc = err_set(f->err, ERR_PARSE, "%s: span is %s, the config's span_convention is %s",
                        f->where, words[said], words[!said]);
}

static void check_densities(const struct plan *p, struct json_fields *f)
{
    const json_t *densities = json_fields_obj(f, "density"), *v;
    const char *key;

    json_object_foreach((json_t *)densities, key, v)
    {
        const char *end;
        long n;
        double said = json_is_number(v) ? json_number_value(v) : (double)NAN, is;
        char found[64];

        if (f->rc < 0)
            return;
        json_describe(found, sizeof(found), v);
        if (!plan_parse_long(key, &end, 1, PLAN_MAX_TOKENS, &n) || *end) {
            f->rc = err_set(f->err, ERR_PARSE, "%s: density has a member \"%.40s\", want a length",
                            f->where, key);
            return;
        }
        is = plan_kv_density(p, (int)n);
        if (!(fabs(said - is) <= DENSITY_SLACK))
            f->rc = err_set(f->err, ERR_PARSE,
                            "%s: density at %ld is %s, but the rules give %.4f over the model's "
                            "key-value heads",
                            f->where, n, found, is);
    }
}

static int read_metadata(struct plan *p, const json_t *meta, enum plan_convention convention,
                         struct err *err)
{
    static const char *const known[] = {"n_layers", "n_heads", "n_kv_heads", "head_dim", "sink",
                                        "block",    "span",    "density",    "about"};
    char where[192];
    struct json_fields f = {.obj = meta, .where = where, .err = err};
    const char *key;
    const json_t *v;

    snprintf(where, sizeof(where), "plan %s: spand", p->name);
    if (!json_is_object(meta))
        return err_set(err, ERR_PARSE, "%s is no object", where);
    json_object_foreach((json_t *)meta, key, v)
    {
        size_t i = 0, n = sizeof(known) / sizeof(known[0]);

        while (i < n && strcmp(key, known[i]))
            i++;
        if (i == n)
            return err_set(err, ERR_PARSE, "%s has a member \"%.40s\" that is not known", where,
                           key);
    }
    want_int(&f, "n_layers", p->shape.n_layers, "the model has");
    want_int(&f, "n_heads", p->shape.n_heads, "the model has");
    want_int(&f, "n_kv_heads", p->shape.n_kv_heads, "the model has");
    want_int(&f, "head_dim", p->shape.head_dim, "the model has");
    want_int(&f, "sink", KV_ELASTIC_SINK, "this version can do");
    want_int(&f, "block", KV_TILE, "this version can do");
    read_span(p, &f, convention);
    check_densities(p, &f);
    return f.rc;
}

int plan_read_file(struct plan *p, const char *path, enum plan_convention convention,
                   struct err *err)
{
    json_t *root = NULL;
    int rc = json_file_load(&root, path, PLAN_MAX_FILE_BYTES, err);

    p->kind = PLAN_FILE;
    if (rc < 0) {
        err_prefix(err, "plan");
        goto out;
    }
    if (!json_is_object(root)) {
        rc = err_set(err, ERR_PARSE, "plan %s: want an object with alphas and betas", p->name);
        goto out;
    }
    rc = read_table(p, root, "alphas", -PLAN_MAX_TOKENS, PLAN_MAX_TOKENS, put_alpha, err);
    if (rc == 0)
        rc = read_table(p, root, "betas", 0.0, 1.0, put_beta, err);
    if (rc == 0 && json_object_get(root, "spand"))
        rc = read_metadata(p, json_object_get(root, "spand"), convention, err);
out:
    json_decref(root);
    return rc;
}
