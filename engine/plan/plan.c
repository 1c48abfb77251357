/*
 * plan - which head keeps how much. See plan.h.
 */
#include "engine/plan/plan.h"

#include "base/check.h"
#include "base/err.h"
#include "base/json_file.h"
#include "base/strbuf.h"

#include <errno.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define MAX_FILE_BYTES (16u << 20) /* 80 layers of 64 heads take 64 KB */
#define MAX_TOKENS     (1 << 28)   /* bound of alpha, SINK and RECENT: far above any context */

static int parse_stream(struct plan *p, const char *args, struct err *err)
{
    char *end;
    long sink, recent;

    errno = 0;
    sink = strtol(args, &end, 10);
    if (end == args || *end != ',' || errno || sink < 0 || sink > MAX_TOKENS)
        return err_set(err, ERR_PARSE, "plan %s: want streaming:SINK,RECENT with SINK in 0..%d",
                       p->name, MAX_TOKENS);
    args = end + 1;
    recent = strtol(args, &end, 10);
    if (end == args || *end || errno || recent < 1 || recent > MAX_TOKENS)
        return err_set(err, ERR_PARSE, "plan %s: want streaming:SINK,RECENT with RECENT in 1..%d",
                       p->name, MAX_TOKENS);
    p->kind = PLAN_STREAMING;
    for (int i = 0; i < p->n_layers * p->n_heads; i++)
        p->rules[i] = (struct kv_rule){
            .kind = KV_RULE_STREAM, .n_sink = (int32_t)sink, .n_recent = (int32_t)recent};
    return 0;
}

static int parse_uniform(struct plan *p, const char *args, struct err *err)
{
    char *end;
    double density = strtod(args, &end);

    if (end == args || *end || !(density >= 0.0 && density <= 1.0))
        return err_set(err, ERR_PARSE, "plan %s: want uniform:DENSITY with DENSITY in 0..1",
                       p->name);
    p->kind = PLAN_UNIFORM;
    for (int i = 0; i < p->n_layers * p->n_heads; i++)
        p->rules[i] = (struct kv_rule){.kind = KV_RULE_ELASTIC, .beta = density};
    return 0;
}

/* Walks table[layer][head] and stores each number through put(). */
static int read_table(struct plan *p, const json_t *root, const char *key, double lo, double hi,
                      void (*put)(struct kv_rule *rule, double value), struct err *err)
{
    const json_t *table = json_object_get(root, key);

    if (!json_is_array(table))
        return err_set(err, ERR_PARSE, "plan %s: want a list \"%s\" of %d layers", p->name, key,
                       p->n_layers);
    if (json_array_size(table) != (size_t)p->n_layers)
        return err_set(err, ERR_PARSE, "plan %s: %s has %zu layers, the model has %d", p->name, key,
                       json_array_size(table), p->n_layers);
    for (int layer = 0; layer < p->n_layers; layer++) {
        const json_t *row = json_array_get(table, (size_t)layer);

        if (!json_is_array(row) || json_array_size(row) != (size_t)p->n_heads)
            return err_set(err, ERR_PARSE, "plan %s: %s[%d] has %zu heads, the model has %d",
                           p->name, key, layer, json_array_size(row), p->n_heads);
        for (int head = 0; head < p->n_heads; head++) {
            const json_t *v = json_array_get(row, (size_t)head);
            double value = json_is_number(v) ? json_number_value(v) : (double)NAN;

            if (!(value >= lo && value <= hi))
                return err_set(err, ERR_PARSE,
                               "plan %s: %s[%d][%d] is %s%.17g, want a number in %.0f..%.0f",
                               p->name, key, layer, head,
                               json_is_number(v) ? "" : "no number: ", value, lo, hi);
            put(&p->rules[(size_t)layer * p->n_heads + head], value);
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

static int read_file(struct plan *p, const char *path, struct err *err)
{
    json_t *root = NULL;
    int rc = json_file_load(&root, path, MAX_FILE_BYTES, err);

    if (rc < 0)
        goto out;
    if (!json_is_object(root)) {
        rc = err_set(err, ERR_PARSE, "plan %s: want an object with alphas and betas", p->name);
        goto out;
    }
    rc = read_table(p, root, "alphas", -MAX_TOKENS, MAX_TOKENS, put_alpha, err);
    if (rc < 0)
        goto out;
    rc = read_table(p, root, "betas", 0.0, 1.0, put_beta, err);
    p->kind = PLAN_FILE;
out:
    json_decref(root);
    return rc;
}

static bool rules_equal(const struct kv_rule *a, const struct kv_rule *b)
{
    return a->kind == b->kind && a->alpha == b->alpha && a->beta == b->beta &&
           a->n_sink == b->n_sink && a->n_recent == b->n_recent;
}

static void count_distinct(struct plan *p)
{
    int n = p->n_layers * p->n_heads;
    int seen[64]; /* a count for people: past 64 it says 64 */

    p->n_distinct = 0;
    for (int i = 0; i < n && p->n_distinct < 64; i++) {
        int k = 0;

        while (k < p->n_distinct && !rules_equal(&p->rules[seen[k]], &p->rules[i]))
            k++;
        if (k == p->n_distinct)
            seen[p->n_distinct++] = i;
    }
}

int plan_open(struct plan **out, const char *spec, int n_layers, int n_heads,
              enum kv_convention convention, struct err *err)
{
    struct plan *p = calloc(1, sizeof(*p));
    size_t len;
    int rc = 0;

    CHECK(n_layers > 0);
    CHECK(n_heads > 0);
    if (!p)
        return err_set(err, ERR_NO_ROOM, "plan: out of memory");
    if (!spec || !*spec)
        spec = "dense";
    len = strlen(spec);
    snprintf(p->name, sizeof(p->name), "%s",
             len < sizeof(p->name) ? spec : spec + len - sizeof(p->name) + 1);
    p->n_layers = n_layers;
    p->n_heads = n_heads;
    p->convention = convention;
    p->rules = calloc((size_t)n_layers * n_heads, sizeof(*p->rules));
    if (!p->rules) {
        rc = err_set(err, ERR_NO_ROOM, "plan %s: out of memory", p->name);
        goto out;
    }
    if (!strcmp(spec, "dense"))
        p->kind = PLAN_DENSE;
    else if (!strncmp(spec, "streaming:", 10))
        rc = parse_stream(p, spec + 10, err);
    else if (!strncmp(spec, "uniform:", 8))
        rc = parse_uniform(p, spec + 8, err);
    else
        rc = read_file(p, spec, err);
    if (rc < 0)
        goto out;
    count_distinct(p);
    *out = p;
    p = NULL;
out:
    plan_free(p);
    return rc;
}

void plan_free(struct plan *p)
{
    if (!p)
        return;
    free(p->rules);
    free(p);
}

void plan_set_window(struct plan *p, int layer, int window)
{
    CHECK(layer >= 0 && layer < p->n_layers);
    CHECK(window > 0);
    for (int head = 0; head < p->n_heads; head++)
        p->rules[(size_t)layer * p->n_heads + head] =
            (struct kv_rule){.kind = KV_RULE_STREAM, .n_sink = 0, .n_recent = window};
    count_distinct(p);
}

double plan_kv_density(const struct plan *p, const struct kv_shape *shape, int n)
{
    double dense = (double)kv_shape_heads(shape) * n;

    return n > 0 ? (double)kv_layout_kv_slots(shape, p->rules, n, p->convention) / dense : 0.0;
}

void plan_describe(const struct plan *p, const struct kv_shape *shape, int n, struct strbuf *out)
{
    static const char *const kinds[] = {"dense", "streaming", "uniform", "file"};

    strbuf_addstr(out, "{\"name\":");
    strbuf_add_json(out, p->name, strlen(p->name));
    strbuf_addf(out, ",\"kind\":\"%s\",\"span_includes_sink\":%s,\"distinct_rules\":%d",
                kinds[p->kind], p->convention == KV_SPAN_INCLUDES_SINK ? "true" : "false",
                p->n_distinct);
    strbuf_addf(out,
                ",\"n\":%d,\"slots_query_heads\":%lld,\"slots_kv_heads\":%lld,"
                "\"density_kv\":%.6f}",
                n, (long long)kv_layout_query_slots(shape, p->rules, n, p->convention),
                (long long)kv_layout_kv_slots(shape, p->rules, n, p->convention),
                plan_kv_density(p, shape, n));
}
