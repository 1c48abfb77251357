/*
 * kv_layout - how much each head keeps, as pure arithmetic: rules to spans, spans to pages.
 *
 * A rule belongs to a query head and gives a span for a length N. Memory belongs to KV heads: the
 * query heads that share one keep the largest ring of their group, and each tests its own window.
 * Nothing here allocates or touches a page. backend_kv.h says where in a span a position lives.
 */
#ifndef KV_LAYOUT_H
#define KV_LAYOUT_H

#include "base/dtype.h"
#include "engine/backend_kv.h"

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#define KV_ELASTIC_SINK  64  /* the first block, never evicted */
#define KV_ELASTIC_FLOOR 128 /* the published runtime's least span: the sink and one block */

struct kv_shape {
    int n_layers, n_heads, n_kv_heads, head_dim;
    int page_entries; /* divides KV_TILE */
    enum dtype dtype;
};

enum kv_rule_kind {
    KV_RULE_DENSE = 0, /* keeps everything */
    KV_RULE_ELASTIC,   /* alpha + beta * N tokens */
    KV_RULE_STREAM     /* the first n_sink and the last n_recent tokens */
};

struct kv_rule {
    enum kv_rule_kind kind;
    double alpha, beta;       /* KV_RULE_ELASTIC: tokens, and 0..1 */
    int32_t n_sink, n_recent; /* KV_RULE_STREAM */
};

/*
 * Whether alpha + beta*N counts the 64 sink tokens. The published runtime and the paper's text
 * include them; the optimiser that made the published plans charged them on top.
 */
enum kv_convention { KV_SPAN_INCLUDES_SINK = 0, KV_SPAN_EXCLUDES_SINK };

/* One query head's span at one length. */
struct kv_span {
    int32_t n_sink, ring, window, mask;
};

/* Tokens an elastic rule keeps at length n: a multiple of 64, KV_ELASTIC_FLOOR at least. */
int64_t kv_elastic_tokens(double alpha, double beta, int n, enum kv_convention convention);

struct kv_span kv_rule_span(const struct kv_rule *rule, int n, enum kv_convention convention);

/* Tokens that a rule keeps of n, in the unit of the published totals: rounded to 64, dense too. */
int64_t kv_rule_tokens(const struct kv_rule *rule, int n, enum kv_convention convention);

/* Widens a KV head's geometry to hold what one of its query heads keeps; g starts out zeroed. */
void kv_geom_merge(struct kv_geom *g, struct kv_span span);

/*
 * Spans of all heads at length n. rules [n_layers, n_heads]; geom [n_layers, n_kv_heads] gets the
 * groups' maxima, window [n_layers, n_heads] each query head's own.
 */
void kv_layout_geometry(const struct kv_shape *shape, const struct kv_rule *rules, int n,
                        enum kv_convention convention, struct kv_geom *geom, int32_t *window);

/* Totals over all query heads, and over all KV heads by their groups' maxima. */
int64_t kv_layout_query_slots(const struct kv_shape *shape, const struct kv_rule *rules, int n,
                              enum kv_convention convention);
int64_t kv_layout_kv_slots(const struct kv_shape *shape, const struct kv_rule *rules, int n,
                           enum kv_convention convention);

static inline int kv_shape_heads(const struct kv_shape *shape)
{
    return shape->n_layers * shape->n_kv_heads;
}

/* K and V of page_entries indices. */
size_t kv_page_bytes(const struct kv_shape *shape);

/* Entries of a head's index space that n tokens touch, sink padding included. */
int64_t kv_geom_entries(struct kv_geom g, int64_t n_tokens);
int64_t kv_geom_pages(struct kv_geom g, int64_t n_tokens, int page_entries);

/* Tokens that fit into n_pages of a head before another page is needed; INT32_MAX: all. */
int32_t kv_geom_room(struct kv_geom g, int64_t n_pages, int page_entries);

/*
 * Does the page hold what it will hold at n_limit tokens already at n_tokens? False where that is
 * not sure: the pages of a ring that turns.
 */
bool kv_geom_page_is_final(struct kv_geom g, int64_t page, int64_t n_tokens, int64_t n_limit,
                           int page_entries);

/* Does the head still hold everything after n tokens? */
static inline bool kv_geom_keeps_all(struct kv_geom g, int64_t n_tokens)
{
    return n_tokens <= (int64_t)g.n_sink + g.ring;
}

/* Keys a decode row at position pos reads from a head, for byte counts. */
int64_t kv_geom_keys_read(struct kv_geom g, int64_t pos);

#endif
