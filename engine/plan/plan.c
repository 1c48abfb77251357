/*
 * plan - which head keeps how much. See plan.h.
 */
#include "engine/plan/plan.h"

#include "base/check.h"
#include "base/err.h"
#include "base/strbuf.h"
#include "engine/plan/plan_impl.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static size_t n_rules(const struct plan *p)
{
    return (size_t)p->shape.n_layers * p->shape.n_heads;
}

bool plan_parse_long(const char *text, const char **end, long lo, long hi, long *out)
{
    char *stop;

    errno = 0;
    *out = strtol(text, &stop, 10);
    *end = stop;
    return stop != text && !errno && *out >= lo && *out <= hi;
}

static int parse_stream(struct plan *p, const char *args, struct err *err)
{
    const char *end;
    long sink, recent;

    if (!plan_parse_long(args, &end, 0, PLAN_MAX_TOKENS, &sink) || *end != ',')
        return err_set(err, ERR_PARSE, "plan %s: want streaming:SINK,RECENT with SINK in 0..%d",
                       p->name, PLAN_MAX_TOKENS);
    if (!plan_parse_long(end + 1, &end, 1, PLAN_MAX_TOKENS, &recent) || *end)
        return err_set(err, ERR_PARSE, "plan %s: want streaming:SINK,RECENT with RECENT in 1..%d",
                       p->name, PLAN_MAX_TOKENS);
    p->kind = PLAN_STREAMING;
    for (size_t i = 0; i < n_rules(p); i++)
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
    for (size_t i = 0; i < n_rules(p); i++)
        p->rules[i] = (struct kv_rule){.kind = KV_RULE_ELASTIC, .beta = density};
    return 0;
}

static bool rules_equal(const struct kv_rule *a, const struct kv_rule *b)
{
    return a->kind == b->kind && a->alpha == b->alpha && a->beta == b->beta &&
           a->n_sink == b->n_sink && a->n_recent == b->n_recent;
}

static void count_distinct(struct plan *p)
{
    size_t seen[64]; /* a count for people: past 64 it says 64 */

    p->n_distinct = 0;
    for (size_t i = 0; i < n_rules(p) && p->n_distinct < 64; i++) {
        int k = 0;

        while (k < p->n_distinct && !rules_equal(&p->rules[seen[k]], &p->rules[i]))
            k++;
        if (k == p->n_distinct)
            seen[p->n_distinct++] = i;
    }
}

static int read_spec(struct plan *p, const char *spec, enum plan_convention convention,
                     struct err *err)
{
    if (!strcmp(spec, "dense"))
        return 0;
    if (!strncmp(spec, "streaming:", 10))
        return parse_stream(p, spec + 10, err);
    if (!strncmp(spec, "uniform:", 8))
        return parse_uniform(p, spec + 8, err);
    if (!strncmp(spec, "duo:", 4))
        return plan_read_duo(p, spec + 4, err);
    return plan_read_file(p, spec, convention, err);
}

int plan_open(struct plan **out, const char *spec, const struct kv_shape *shape,
              enum plan_convention convention, struct err *err)
{
    struct plan *p = calloc(1, sizeof(*p));
    size_t len;
    int rc;

    CHECK(shape->n_layers > 0);
    CHECK(shape->n_kv_heads > 0);
    CHECK(shape->n_heads % shape->n_kv_heads == 0);
    if (!p)
        return err_set(err, ERR_NO_ROOM, "plan: out of memory");
    if (!spec || !*spec)
        spec = "dense";
    len = strlen(spec);
    snprintf(p->name, sizeof(p->name), "%s",
             len < sizeof(p->name) ? spec : spec + len - sizeof(p->name) + 1);
    p->shape = *shape;
    p->convention =
        convention == PLAN_SPAN_EXCLUDES_SINK ? KV_SPAN_EXCLUDES_SINK : KV_SPAN_INCLUDES_SINK;
    p->rules = calloc(n_rules(p), sizeof(*p->rules));
    p->windows = calloc((size_t)shape->n_layers, sizeof(*p->windows));
    if (!p->rules || !p->windows) {
        rc = err_set(err, ERR_NO_ROOM, "plan %s: out of memory", p->name);
        goto out;
    }
    for (int layer = 0; layer < shape->n_layers; layer++)
        p->windows[layer] = KV_WINDOW_ALL;
    rc = read_spec(p, spec, convention, err);
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
    free(p->windows);
    free(p);
}

void plan_set_window(struct plan *p, int layer, int window)
{
    CHECK(layer >= 0 && layer < p->shape.n_layers);
    CHECK(window > 0);
    p->windows[layer] = window;
}

void plan_set_length(struct plan *p, int length)
{
    CHECK(length >= 0);
    p->length = length;
}

int plan_span_length(const struct plan *p, int n_limit)
{
    return p->length ? p->length : n_limit;
}

/* One length for all promises the same spans for all, so windows then hold for short texts too. */
static bool window_binds(const struct plan *p, int layer, int n_limit)
{
    return p->windows[layer] != KV_WINDOW_ALL && (p->length || n_limit > p->windows[layer]);
}

struct kv_rule plan_rule(const struct plan *p, int layer, int head, int n_limit)
{
    const struct kv_rule *rule = &p->rules[(size_t)layer * p->shape.n_heads + head];
    int32_t window = p->windows[layer];
    int64_t kept = window;

    if (!window_binds(p, layer, n_limit))
        return *rule;
    if (rule->kind == KV_RULE_ELASTIC)
        kept =
            kv_elastic_tokens(rule->alpha, rule->beta, plan_span_length(p, n_limit), p->convention);
    else if (rule->kind == KV_RULE_STREAM)
        kept = (int64_t)rule->n_sink + rule->n_recent;
    return (struct kv_rule){.kind = KV_RULE_STREAM,
                            .n_recent = kept < window ? (int32_t)kept : window};
}

void plan_geometry(const struct plan *p, int n_limit, struct kv_geom *geom, int32_t *window)
{
    int n_group = p->shape.n_heads / p->shape.n_kv_heads;
    int n = plan_span_length(p, n_limit);

    for (int i = 0; i < kv_shape_heads(&p->shape); i++) {
        int layer = i / p->shape.n_kv_heads, first = i % p->shape.n_kv_heads * n_group;

        geom[i] = (struct kv_geom){.mask = KV_MASK_TOKEN};
        for (int head = first; head < first + n_group; head++) {
            struct kv_rule rule = plan_rule(p, layer, head, n_limit);
            struct kv_span span = kv_rule_span(&rule, n, p->convention);

            window[(size_t)layer * p->shape.n_heads + head] = span.window;
            kv_geom_merge(&geom[i], span);
        }
    }
}

int64_t plan_head_tokens(const struct plan *p, int layer, int head, int n)
{
    struct kv_rule rule = plan_rule(p, layer, head, n), dense = {.kind = KV_RULE_DENSE};
    int64_t tokens, most;

    if (rule.kind != KV_RULE_ELASTIC)
        return kv_rule_tokens(&rule, n, p->convention);
    tokens = kv_rule_tokens(&rule, plan_span_length(p, n), p->convention);
    /* A span for a longer text holds this one whole. Published totals count the floor as well. */
    most = kv_rule_tokens(&dense, n, p->convention);
    most = most > KV_ELASTIC_FLOOR ? most : KV_ELASTIC_FLOOR;
    return tokens < most ? tokens : most;
}

int64_t plan_kv_head_tokens(const struct plan *p, int layer, int kv_head, int n)
{
    int n_group = p->shape.n_heads / p->shape.n_kv_heads;
    int64_t most = 0;

    for (int head = kv_head * n_group; head < (kv_head + 1) * n_group; head++) {
        int64_t tokens = plan_head_tokens(p, layer, head, n);

        most = tokens > most ? tokens : most;
    }
    return most;
}

int64_t plan_query_slots(const struct plan *p, int n)
{
    int64_t total = 0;

    for (int layer = 0; layer < p->shape.n_layers; layer++) {
        for (int head = 0; head < p->shape.n_heads; head++)
            total += plan_head_tokens(p, layer, head, n);
    }
    return total;
}

int64_t plan_kv_slots(const struct plan *p, int n)
{
    int64_t total = 0;

    for (int layer = 0; layer < p->shape.n_layers; layer++) {
        for (int kv_head = 0; kv_head < p->shape.n_kv_heads; kv_head++)
            total += plan_kv_head_tokens(p, layer, kv_head, n);
    }
    return total;
}

double plan_kv_density(const struct plan *p, int n)
{
    return n > 0 ? (double)plan_kv_slots(p, n) / ((double)kv_shape_heads(&p->shape) * n) : 0.0;
}

static void describe(const struct plan *p, int n, struct strbuf *out)
{
    static const char *const kinds[] = {"dense", "streaming", "uniform", "file", "duo"};

    strbuf_addstr(out, "{\"name\":");
    strbuf_add_json(out, p->name, strlen(p->name));
    strbuf_addf(out, ",\"kind\":\"%s\",\"span_includes_sink\":%s,\"distinct_rules\":%d,\"length\":",
                kinds[p->kind], p->convention == KV_SPAN_INCLUDES_SINK ? "true" : "false",
                p->n_distinct);
    if (p->length)
        strbuf_addf(out, "%d", p->length);
    else
        strbuf_addstr(out, "\"request\"");
    strbuf_addf(out,
                ",\"n\":%d,\"slots_query_heads\":%lld,\"slots_kv_heads\":%lld,"
                "\"density_kv\":%.6f",
                n, (long long)plan_query_slots(p, n), (long long)plan_kv_slots(p, n),
                plan_kv_density(p, n));
}

void plan_describe(const struct plan *p, int n, struct strbuf *out)
{
    describe(p, n, out);
    strbuf_addch(out, '}');
}

static void describe_rule(const struct kv_rule *rule, struct strbuf *out)
{
    switch (rule->kind) {
    case KV_RULE_ELASTIC:
        strbuf_addf(out, "[%.17g,%.17g]", rule->alpha, rule->beta);
        return;
    case KV_RULE_STREAM:
        strbuf_addf(out, "{\"sink\":%d,\"recent\":%d}", (int)rule->n_sink, (int)rule->n_recent);
        return;
    case KV_RULE_DENSE:
        break;
    }
    strbuf_addstr(out, "null");
}

/* [n_layers][n_heads]: of query heads their rules or tokens, of KV heads their tokens. */
enum table { TABLE_RULES, TABLE_QUERY_TOKENS, TABLE_KV_TOKENS };

static void describe_table(const struct plan *p, enum table table, int n, struct strbuf *out)
{
    int n_heads = table == TABLE_KV_TOKENS ? p->shape.n_kv_heads : p->shape.n_heads;

    strbuf_addch(out, '[');
    for (int layer = 0; layer < p->shape.n_layers; layer++) {
        strbuf_addstr(out, layer ? ",[" : "[");
        for (int head = 0; head < n_heads; head++) {
            strbuf_addstr(out, head ? "," : "");
            if (table == TABLE_RULES)
                describe_rule(&p->rules[(size_t)layer * p->shape.n_heads + head], out);
            else if (table == TABLE_QUERY_TOKENS)
                strbuf_addf(out, "%lld", (long long)plan_head_tokens(p, layer, head, n));
            else
                strbuf_addf(out, "%lld", (long long)plan_kv_head_tokens(p, layer, head, n));
        }
        strbuf_addch(out, ']');
    }
    strbuf_addch(out, ']');
}

void plan_describe_all(const struct plan *p, int n, struct strbuf *out)
{
    describe(p, n, out);
    strbuf_addstr(out, ",\"windows\":[");
    for (int layer = 0; layer < p->shape.n_layers; layer++) {
        if (p->windows[layer] == KV_WINDOW_ALL)
            strbuf_addf(out, "%snull", layer ? "," : "");
        else
            strbuf_addf(out, "%s%d", layer ? "," : "", (int)p->windows[layer]);
    }
    strbuf_addstr(out, "],\"rules\":");
    describe_table(p, TABLE_RULES, n, out);
    strbuf_addstr(out, ",\"tokens_query_heads\":");
    describe_table(p, TABLE_QUERY_TOKENS, n, out);
    strbuf_addstr(out, ",\"tokens_kv_heads\":");
    describe_table(p, TABLE_KV_TOKENS, n, out);
    strbuf_addch(out, '}');
}
