/*
 * kv_layout - how much each head keeps. See kv_layout.h.
 */
#include "engine/kv/kv_layout.h"

#include "base/check.h"

#include <assert.h>

static_assert(KV_ELASTIC_FLOOR % KV_TILE == 0, "spans are whole tiles");
static_assert(KV_ELASTIC_SINK % KV_TILE == 0, "an elastic sink has no padding");

static int64_t round_up_tile(int64_t n)
{
    return (n + KV_TILE - 1) / KV_TILE * KV_TILE;
}

static int32_t max32(int32_t a, int32_t b)
{
    return a > b ? a : b;
}

int64_t kv_elastic_tokens(double alpha, double beta, int n, enum kv_convention convention)
{
    double raw = alpha + (double)n * beta;
    int64_t tokens;

    /* The bounds come before the cast: a double beyond int64 must not reach it. */
    if (raw > (double)n)
        tokens = n;
    else if (raw < 0)
        tokens = 0;
    else
        tokens = (int64_t)raw;
    if (convention == KV_SPAN_EXCLUDES_SINK) {
        tokens += KV_ELASTIC_SINK;
        tokens = tokens < n ? tokens : n;
    }
    return round_up_tile(tokens > KV_ELASTIC_FLOOR ? tokens : KV_ELASTIC_FLOOR);
}

struct kv_span kv_rule_span(const struct kv_rule *rule, int n, enum kv_convention convention)
{
    int32_t ring;

    switch (rule->kind) {
    case KV_RULE_ELASTIC:
        ring =
            (int32_t)(kv_elastic_tokens(rule->alpha, rule->beta, n, convention) - KV_ELASTIC_SINK);
        return (struct kv_span){
            .n_sink = KV_ELASTIC_SINK, .ring = ring, .window = ring, .mask = KV_MASK_BLOCK};
    case KV_RULE_STREAM:
        return (struct kv_span){.n_sink = rule->n_sink,
                                .ring = (int32_t)round_up_tile(rule->n_recent),
                                .window = rule->n_recent,
                                .mask = KV_MASK_TOKEN};
    case KV_RULE_DENSE:
        break;
    }
    return (struct kv_span){
        .n_sink = 0, .ring = KV_RING_DENSE, .window = KV_WINDOW_ALL, .mask = KV_MASK_TOKEN};
}

static int64_t span_tokens(struct kv_span span, int n)
{
    struct kv_geom g = {.n_sink = span.n_sink, .ring = span.ring, .mask = span.mask};

    if (span.mask == KV_MASK_BLOCK)
        return (int64_t)span.n_sink + span.ring; /* published totals count the floor as well */
    return round_up_tile(kv_geom_entries(g, n));
}

int64_t kv_rule_tokens(const struct kv_rule *rule, int n, enum kv_convention convention)
{
    return span_tokens(kv_rule_span(rule, n, convention), n);
}

void kv_geom_merge(struct kv_geom *g, struct kv_span span)
{
    g->ring = max32(g->ring, span.ring);
    g->n_sink = max32(g->n_sink, span.n_sink);
    if (span.mask == KV_MASK_BLOCK)
        g->mask = KV_MASK_BLOCK;
}

void kv_layout_geometry(const struct kv_shape *shape, const struct kv_rule *rules, int n,
                        enum kv_convention convention, struct kv_geom *geom, int32_t *window)
{
    int n_group = shape->n_heads / shape->n_kv_heads;

    for (int layer = 0; layer < shape->n_layers; layer++) {
        for (int kv_head = 0; kv_head < shape->n_kv_heads; kv_head++) {
            struct kv_geom g = {.mask = KV_MASK_TOKEN};

            for (int i = 0; i < n_group; i++) {
                int64_t at = (int64_t)layer * shape->n_heads + kv_head * n_group + i;
                struct kv_span span = kv_rule_span(&rules[at], n, convention);

                window[at] = span.window;
                kv_geom_merge(&g, span);
            }
            geom[(int64_t)layer * shape->n_kv_heads + kv_head] = g;
        }
    }
}

int64_t kv_layout_query_slots(const struct kv_shape *shape, const struct kv_rule *rules, int n,
                              enum kv_convention convention)
{
    int64_t total = 0;

    for (int64_t i = 0; i < (int64_t)shape->n_layers * shape->n_heads; i++)
        total += kv_rule_tokens(&rules[i], n, convention);
    return total;
}

int64_t kv_layout_kv_slots(const struct kv_shape *shape, const struct kv_rule *rules, int n,
                           enum kv_convention convention)
{
    int n_group = shape->n_heads / shape->n_kv_heads;
    int64_t total = 0;

    for (int64_t g = 0; g < kv_shape_heads(shape); g++) {
        int64_t most = 0;

        for (int i = 0; i < n_group; i++) {
            int64_t tokens = kv_rule_tokens(&rules[g * n_group + i], n, convention);

            most = tokens > most ? tokens : most;
        }
        total += most;
    }
    return total;
}

size_t kv_page_bytes(const struct kv_shape *shape)
{
    return 2 * (size_t)shape->page_entries * shape->head_dim * dtype_bytes(shape->dtype);
}

int64_t kv_geom_entries(struct kv_geom g, int64_t n_tokens)
{
    int64_t behind = n_tokens - g.n_sink;

    if (behind <= 0)
        return n_tokens;
    return round_up_tile(g.n_sink) + (behind < g.ring ? behind : g.ring);
}

int64_t kv_geom_pages(struct kv_geom g, int64_t n_tokens, int page_entries)
{
    return (kv_geom_entries(g, n_tokens) + page_entries - 1) / page_entries;
}

int32_t kv_geom_room(struct kv_geom g, int64_t n_pages, int page_entries)
{
    int64_t entries = n_pages * page_entries;
    int64_t behind = entries - round_up_tile(g.n_sink);

    if (behind >= g.ring)
        return INT32_MAX;
    if (behind > 0)
        return (int32_t)(g.n_sink + behind);
    return (int32_t)(entries < g.n_sink ? entries : g.n_sink);
}

int64_t kv_geom_keys_read(struct kv_geom g, int64_t pos)
{
    int64_t n_tokens = pos + 1;
    int64_t behind = n_tokens - g.n_sink;

    CHECK(pos >= 0);
    if (behind <= 0)
        return n_tokens;
    return g.n_sink + (behind < g.ring ? behind : g.ring);
}

bool kv_geom_page_is_final(struct kv_geom g, int64_t page, int64_t n_tokens, int64_t n_limit,
                           int page_entries)
{
    int64_t end = (page + 1) * page_entries, ring_at = round_up_tile(g.n_sink);

    if (n_limit <= n_tokens)
        return true;
    if (end <= ring_at)
        return n_tokens >= (end < g.n_sink ? end : g.n_sink);
    return kv_geom_keeps_all(g, n_limit) && g.n_sink + end - ring_at <= n_tokens;
}
