/*
 * plan_write - a plan as a file. See plan_write.h and engine/plan/plan_file.c.
 */
#include "engine/plan/search/plan_write.h"

#include "base/strbuf.h"

#include <stdlib.h>

void plan_write_rules(struct kv_rule *out, const struct search_options *o,
                      const struct search_input *in, const int *rule)
{
    int n_heads = o->model->stack.n_heads, group = n_heads / in->units_per_layer;

    for (int layer = 0; layer < in->n_layers; layer++)
        for (int h = 0; h < n_heads; h++)
            out[layer * n_heads + h] = in->rules[rule[layer * in->units_per_layer + h / group]];
}

static void add_table(struct strbuf *out, const struct search_options *o,
                      const struct kv_rule *rules, bool beta)
{
    int n_heads = o->model->stack.n_heads;

    for (int layer = 0; layer < o->model->stack.n_layers; layer++) {
        strbuf_addstr(out, layer ? ",\n  [" : "\n  [");
        for (int h = 0; h < n_heads; h++) {
            const struct kv_rule *r = &rules[layer * n_heads + h];

            strbuf_addf(out, h ? ", %.17g" : "%.17g", beta ? r->beta : r->alpha);
        }
        strbuf_addch(out, ']');
    }
}

void plan_write(struct strbuf *out, const struct search_options *o, const struct search_input *in,
                const int *rule, const char *about)
{
    const struct model_config *m = o->model;
    struct kv_shape shape = search_shape(o);
    struct kv_rule *rules =
        calloc((size_t)m->stack.n_layers * (size_t)m->stack.n_heads, sizeof(*rules));

    if (!rules) {
        out->failed = true;
        return;
    }
    plan_write_rules(rules, o, in, rule);
    strbuf_addstr(out, "{\"alphas\": [");
    add_table(out, o, rules, false);
    strbuf_addstr(out, "],\n \"betas\": [");
    add_table(out, o, rules, true);
    strbuf_addf(out,
                "],\n \"spand\": {\"n_layers\": %d, \"n_heads\": %d, \"n_kv_heads\": %d, "
                "\"head_dim\": %d, \"sink\": %d, \"block\": %d,\n  \"span\": \"%s\", "
                "\"density\": {",
                m->stack.n_layers, m->stack.n_heads, m->stack.n_kv_heads, m->stack.head_dim,
                KV_ELASTIC_SINK, KV_TILE,
                in->convention == KV_SPAN_INCLUDES_SINK ? "includes_sink" : "excludes_sink");
    for (int c = 0; c < in->caps.n; c++) {
        int n = in->caps.length[c];
        double dense = (double)kv_shape_heads(&shape) * n;

        strbuf_addf(out, c ? ", \"%d\": %.6f" : "\"%d\": %.6f", n,
                    (double)kv_layout_kv_slots(&shape, rules, n, in->convention) / dense);
    }
    strbuf_addf(out, "},\n  \"about\": %s}}\n", about);
    free(rules);
}
