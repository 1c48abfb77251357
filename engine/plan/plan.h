/*
 * plan - which head keeps how much: one rule per layer and query head.
 *
 * A spec is one of
 *     dense                     every head keeps everything
 *     streaming:SINK,RECENT     every head the first SINK and the last RECENT tokens
 *     uniform:DENSITY           every head DENSITY * N tokens, the first 64 among them
 *     PATH                      a MoA plan: {"alphas": [layers][heads], "betas": likewise}
 *
 * In a plan file alpha is the constant, in tokens, and beta the slope. Layers and heads are in
 * the checkpoint's order, heads are query heads. Other members are metadata and are skipped.
 * A plan never changes after plan_open(): any thread may read it.
 */
#ifndef PLAN_H
#define PLAN_H

#include "engine/kv/kv_layout.h"

#include <stdint.h>

struct err;
struct strbuf;

enum plan_kind { PLAN_DENSE = 0, PLAN_STREAMING, PLAN_UNIFORM, PLAN_FILE };

struct plan {
    enum plan_kind kind;
    enum kv_convention convention;
    int n_layers, n_heads;
    struct kv_rule *rules; /* [n_layers, n_heads] */
    int n_distinct;        /* rules */
    char name[128];        /* the spec, a file's path cut to its end */
};

/*
 * ERR_PARSE: not a spec, or a file whose shape or values are wrong: layer, head, value and the
 * wanted range are named. *out is owned by the caller: plan_free().
 */
int plan_open(struct plan **out, const char *spec, int n_layers, int n_heads,
              enum kv_convention convention, struct err *err);
void plan_free(struct plan *p);

/*
 * Puts a layer's trained window in force: its heads keep the last `window` tokens whatever the
 * plan says, since no rule may show a head what it never saw in training.
 */
void plan_set_window(struct plan *p, int layer, int window);

/* Tokens kept at length n over all KV heads, as a share of a dense cache. */
double plan_kv_density(const struct plan *p, const struct kv_shape *shape, int n);

/* Name, distinct rules and densities as a JSON object. */
void plan_describe(const struct plan *p, const struct kv_shape *shape, int n, struct strbuf *out);

#endif
