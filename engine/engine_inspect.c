/*
 * engine_inspect - what a model and a plan cost, reckoned from config.json alone: no weights, no
 * tokenizer, no device.
 *
 * max_batch is how many sequences of the given length the KV memory holds: kv_memory, or half of
 * what the host has free once the weights are loaded.
 */
#include "engine/engine.h"

#include "base/strbuf.h"
#include "config/config.h"
#include "engine/kv/kv_layout.h"
#include "engine/model/model.h"
#include "engine/plan/plan.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

struct inspection {
    struct model_config *cfg;
    struct kv_shape shape;
    struct plan *plan;
    enum dtype dtype;
    int n, span_n; /* tokens of the sequence; the length that the spans are computed for */
    int64_t n_params, weight_bytes, bytes_per_token, slots_query, slots_kv;
    int64_t bytes_per_seq, kv_bytes, max_batch;
    double density;
};

static enum dtype pick_dtype(const struct config *config, const struct model_config *cfg)
{
    switch (config->dtype) {
    case CONFIG_DTYPE_F32:
        return DTYPE_F32;
    case CONFIG_DTYPE_BF16:
        return DTYPE_BF16;
    case CONFIG_DTYPE_F16:
        return DTYPE_F16;
    default:
        return cfg->dtype;
    }
}

/* MemAvailable of /proc/meminfo; 0 when it cannot be read. */
static int64_t free_host_bytes(void)
{
    FILE *f = fopen("/proc/meminfo", "r");
    char line[128];
    long long kib = 0;

    while (f && fgets(line, sizeof(line), f)) {
        if (sscanf(line, "MemAvailable: %lld kB", &kib) == 1)
            break;
    }
    if (f)
        fclose(f);
    return kib * 1024;
}

/* Pages that one sequence of n tokens holds, in bytes. */
static int sum_pages(struct inspection *in, struct err *err)
{
    int n_heads = kv_shape_heads(&in->shape);
    struct kv_geom *geom = calloc(n_heads, sizeof(*geom));
    int32_t *window = calloc((size_t)in->shape.n_layers * in->shape.n_heads, sizeof(*window));
    int64_t n_pages = 0;
    int rc = 0;

    if (!geom || !window) {
        rc = err_set(err, ERR_NO_ROOM, "inspect: out of memory");
        goto out;
    }
    kv_layout_geometry(&in->shape, in->plan->rules, in->span_n, in->plan->convention, geom, window);
    for (int i = 0; i < n_heads; i++)
        n_pages += kv_geom_pages(geom[i], in->n, in->shape.page_entries);
    in->bytes_per_seq = n_pages * (int64_t)kv_page_bytes(&in->shape);
out:
    free(geom);
    free(window);
    return rc;
}

static void pick_lengths(struct inspection *in, const struct config *config, int n_tokens)
{
    if (n_tokens > 0)
        in->n = n_tokens;
    else
        in->n = config->max_seq_len > 0 ? config->max_seq_len : in->cfg->max_seq_len;
    in->span_n = strcmp(config->plan_length, "request") ? atoi(config->plan_length) : in->n;
}

static int reckon(struct inspection *in, const struct config *config, int n_tokens, struct err *err)
{
    const struct model_config *cfg = in->cfg;
    int64_t left;
    int rc;

    in->dtype = pick_dtype(config, cfg);
    pick_lengths(in, config, n_tokens);
    if (in->span_n < 1)
        return err_set(err, ERR_INVALID, "plan_length is %s, want request or a length",
                       config->plan_length);
    if (config->page_entries > KV_TILE || KV_TILE % config->page_entries)
        return err_set(err, ERR_INVALID, "page_entries is %d, must divide %d", config->page_entries,
                       KV_TILE);
    in->shape = (struct kv_shape){.n_layers = cfg->n_layers,
                                  .n_heads = cfg->n_heads,
                                  .n_kv_heads = cfg->n_kv_heads,
                                  .head_dim = cfg->head_dim,
                                  .page_entries = config->page_entries,
                                  .dtype = in->dtype};
    rc =
        plan_open(&in->plan, config->plan, cfg->n_layers, cfg->n_heads, KV_SPAN_INCLUDES_SINK, err);
    if (rc < 0)
        return rc;
    for (int layer = 0; layer < cfg->n_layers; layer++) {
        if (cfg->window[layer] != KV_WINDOW_ALL)
            plan_set_window(in->plan, layer, cfg->window[layer]);
    }
    in->n_params = model_config_params(cfg);
    in->weight_bytes = model_config_weight_bytes(cfg, in->dtype);
    in->bytes_per_token =
        2 * (int64_t)kv_shape_heads(&in->shape) * cfg->head_dim * (int64_t)dtype_bytes(in->dtype);
    in->slots_query =
        kv_layout_query_slots(&in->shape, in->plan->rules, in->span_n, in->plan->convention);
    in->slots_kv =
        kv_layout_kv_slots(&in->shape, in->plan->rules, in->span_n, in->plan->convention);
    in->density = plan_kv_density(in->plan, &in->shape, in->span_n);
    rc = sum_pages(in, err);
    left = (free_host_bytes() - in->weight_bytes) / 2;
    in->kv_bytes = config->kv_memory > 0 ? config->kv_memory : left > 0 ? left : 0;
    in->max_batch = in->bytes_per_seq > 0 ? in->kv_bytes / in->bytes_per_seq : 0;
    return rc;
}

static void write_json(const struct inspection *in, struct strbuf *out)
{
    const struct model_config *cfg = in->cfg;

    strbuf_addstr(out, "{\"model_type\":");
    strbuf_add_json(out, cfg->model_type, strlen(cfg->model_type));
    strbuf_addf(out,
                ",\"vocab_size\":%d,\"dim\":%d,\"n_layers\":%d,\"n_heads\":%d,\"n_kv_heads\":%d,"
                "\"head_dim\":%d,\"ffn_dim\":%d,\"max_seq_len\":%d,\"tie_embeddings\":%s",
                cfg->vocab_size, cfg->dim, cfg->n_layers, cfg->n_heads, cfg->n_kv_heads,
                cfg->head_dim, cfg->ffn_dim, cfg->max_seq_len,
                cfg->tie_embeddings ? "true" : "false");
    strbuf_addf(out, ",\"dtype\":\"%s\",\"params\":%lld,\"weights_bytes\":%lld",
                dtype_name(in->dtype), (long long)in->n_params, (long long)in->weight_bytes);
    strbuf_addf(out, ",\"page_entries\":%d,\"page_bytes\":%zu,\"kv_bytes_per_token\":%lld",
                in->shape.page_entries, kv_page_bytes(&in->shape), (long long)in->bytes_per_token);
    strbuf_addf(out,
                ",\"n\":%d,\"slots_query_heads\":%lld,\"slots_kv_heads\":%lld,\"density_kv\":%.6f,"
                "\"kv_bytes_per_seq\":%lld,\"kv_memory_bytes\":%lld,\"max_batch\":%lld,\"plan\":",
                in->n, (long long)in->slots_query, (long long)in->slots_kv, in->density,
                (long long)in->bytes_per_seq, (long long)in->kv_bytes, (long long)in->max_batch);
    plan_describe(in->plan, &in->shape, in->span_n, out);
    strbuf_addstr(out, "}\n");
}

/* "1.25 GiB": with the unit that leaves one to four digits before the point. */
static void add_bytes(struct strbuf *out, int64_t bytes)
{
    static const char *const units[] = {"B", "KiB", "MiB", "GiB", "TiB"};
    double v = (double)bytes;
    int unit = 0;

    while (v >= 1024 && unit < 4) {
        v /= 1024;
        unit++;
    }
    strbuf_addf(out, unit ? "%.2f %s" : "%.0f %s", v, units[unit]);
}

static void add_bytes_line(struct strbuf *out, const char *name, int64_t bytes)
{
    strbuf_addf(out, "  %-26s", name);
    add_bytes(out, bytes);
    strbuf_addch(out, '\n');
}

static void write_text(const struct inspection *in, const char *dir, struct strbuf *out)
{
    const struct model_config *cfg = in->cfg;

    strbuf_addf(out, "%s: %s, %d layers, dim %d, ffn %d\n", dir, cfg->model_type, cfg->n_layers,
                cfg->dim, cfg->ffn_dim);
    strbuf_addf(out, "  %-26s%d query, %d key-value, of %d\n", "heads", cfg->n_heads,
                cfg->n_kv_heads, cfg->head_dim);
    strbuf_addf(out, "  %-26s%d tokens, context %d\n", "vocabulary", cfg->vocab_size,
                cfg->max_seq_len);
    strbuf_addf(out, "  %-26s%lld (%.3g B)\n", "parameters", (long long)in->n_params,
                in->n_params * 1e-9);
    strbuf_addf(out, "  %-26s", "weights");
    add_bytes(out, in->weight_bytes);
    strbuf_addf(out, " in %s\n", dtype_name(in->dtype));
    add_bytes_line(out, "keys and values a token", in->bytes_per_token);
    strbuf_addf(out, "plan %s at %d tokens\n", in->plan->name, in->n);
    strbuf_addf(out, "  %-26s%lld of query heads, %lld of key-value heads\n", "tokens kept",
                (long long)in->slots_query, (long long)in->slots_kv);
    strbuf_addf(out, "  %-26s%.2f %%\n", "density", in->density * 100);
    add_bytes_line(out, "a sequence's pages", in->bytes_per_seq);
    strbuf_addf(out, "  %-26s%lld sequences in ", "batch that fits", (long long)in->max_batch);
    add_bytes(out, in->kv_bytes);
    strbuf_addch(out, '\n');
}

int engine_inspect(const struct config *config, bool json, int n_tokens, struct strbuf *out,
                   struct err *err)
{
    struct inspection in = {.cfg = calloc(1, sizeof(*in.cfg))};
    int rc;

    if (!in.cfg)
        return err_set(err, ERR_NO_ROOM, "inspect: out of memory");
    rc = model_config_load(in.cfg, config->model, err);
    if (rc == 0)
        rc = reckon(&in, config, n_tokens, err);
    if (rc == 0 && json)
        write_json(&in, out);
    else if (rc == 0)
        write_text(&in, config->model, out);
    plan_free(in.plan);
    free(in.cfg);
    return rc;
}
