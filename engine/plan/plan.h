/*
 * plan - which head keeps how much: one rule per layer and query head.
 *
 * A spec is one of
 *     dense                      every head keeps everything
 *     streaming:SINK,RECENT      every head the first SINK and the last RECENT tokens
 *     uniform:DENSITY            every head DENSITY * N tokens, the first 64 among them
 *     duo:DIR[,SHARE]            DuoAttention's gates: plan_duo.c
 *     PATH                       a MoA plan, {"alphas": [layers][heads], "betas": likewise}, and
 *                                what we may say about it: plan_file.c
 *
 * In a plan file alpha is the constant, in tokens, and beta the slope. Layers and heads are in
 * the checkpoint's order, heads are query heads.
 *
 * N is the length of the sequence to its end, prompt and answer, or plan_set_length()'s. Layers
 * that were trained with a window W obey both: while the sequence cannot outgrow W the plan holds
 * as it is; beyond, a head keeps the last tokens alone, as many as the plan gives it and W at most,
 * since no rule may show a head what it never saw in training, the sink of a long text included.
 *
 * After opening and setting up, a plan never changes: any thread may read it.
 */
#ifndef PLAN_H
#define PLAN_H

#include "engine/kv/kv_layout.h"

#include <stdint.h>

struct err;
struct strbuf;

enum plan_kind { PLAN_DENSE = 0, PLAN_STREAMING, PLAN_UNIFORM, PLAN_FILE, PLAN_DUO };

/* Whether alpha + beta * N counts the sink; AUTO takes what a file says of itself, else that it
 * does. The order of the words of span_convention in config_keys.h. */
enum plan_convention { PLAN_SPAN_AUTO = 0, PLAN_SPAN_INCLUDES_SINK, PLAN_SPAN_EXCLUDES_SINK };

struct plan {
    enum plan_kind kind;
    enum kv_convention convention;
    struct kv_shape shape;
    struct kv_rule *rules; /* [n_layers, n_heads] */
    int32_t *windows;      /* [n_layers] trained ones, KV_WINDOW_ALL for none */
    int length;            /* 0: N is each sequence's own */
    int n_distinct;        /* rules */
    char name[128];        /* the spec, a file's path cut to its end */
};

/*
 * ERR_PARSE: not a spec, or a file whose shape, values or metadata do not fit the model: the place,
 * the value and what is wanted are named. *out is owned by the caller: plan_free().
 */
int plan_open(struct plan **out, const char *spec, const struct kv_shape *shape,
              enum plan_convention convention, struct err *err);
void plan_free(struct plan *p);

/* Puts a layer's trained window in force. */
void plan_set_window(struct plan *p, int layer, int window);

/* Computes all spans for one length, whatever a sequence's own is; 0: for each its own. */
void plan_set_length(struct plan *p, int length);

/* The rule in force for a sequence that ends at n_limit tokens. */
struct kv_rule plan_rule(const struct plan *p, int layer, int head, int n_limit);

/* The length that the spans of a sequence of n_limit tokens are computed for. */
int plan_span_length(const struct plan *p, int n_limit);

/*
 * What each head keeps of a sequence that ends at n_limit tokens. geom [n_layers, n_kv_heads] gets
 * the groups' maxima, window [n_layers, n_heads] each query head's own.
 */
void plan_geometry(const struct plan *p, int n_limit, struct kv_geom *geom, int32_t *window);

/* Tokens kept of n by one query head, by one KV head, by all of either. */
int64_t plan_head_tokens(const struct plan *p, int layer, int head, int n);
int64_t plan_kv_head_tokens(const struct plan *p, int layer, int kv_head, int n);
int64_t plan_query_slots(const struct plan *p, int n);
int64_t plan_kv_slots(const struct plan *p, int n);

/* Tokens kept at length n over all KV heads, as a share of a dense cache. */
double plan_kv_density(const struct plan *p, int n);

/* Name, distinct rules and densities as a JSON object. */
void plan_describe(const struct plan *p, int n, struct strbuf *out);

/* The same with every rule, window and span at length n. */
void plan_describe_all(const struct plan *p, int n, struct strbuf *out);

#endif
