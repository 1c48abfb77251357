/*
 * engine_inspect - what a model and a plan cost, reckoned from config.json alone: no weights, no
 * tokenizer, no device.
 *
 * The largest batch is how many sequences of one length the memory for keys and values holds: what
 * a memory size leaves beside the weights, else kv_memory, else half of what the host has free once
 * the weights are loaded. The buffers of a step are left out; the daemon says what it really took.
 */
#include "engine/engine.h"

#include "base/strbuf.h"
#include "config/config.h"
#include "engine/engine_open.h"
#include "engine/plan/plan_draw.h"

#include <stdlib.h>
#include <string.h>

#define FIRST_LENGTH 1024 /* of the lengths that are listed: powers of two up to the context */

struct inspection {
    struct model_config *cfg;
    struct kv_shape shape;
    struct plan *plan;
    enum dtype dtype;
    int n, max_seq_len;
    int64_t n_params, weight_bytes, bytes_per_token;
    int64_t memory; /* given for weights, keys and values together; 0: none was */
    int64_t kv_bytes;
};

/* What sequences of one length cost. */
struct cost {
    int n;
    int64_t slots_query, slots_kv, bytes_per_seq, max_batch;
    double density_query, density_kv;
};

/* Positions of keys that n tokens take, a Block Transformer's blocks. */
static int entries_at(const struct inspection *in, int n)
{
    return in->cfg->block.block_len ? block_config_entries(&in->cfg->block, 0, n) : n;
}

static int cost_at(const struct inspection *in, int n, struct cost *out, struct err *err)
{
    int n_heads = kv_shape_heads(&in->shape), n_entries = entries_at(in, n);
    struct kv_geom *geom = calloc((size_t)n_heads, sizeof(*geom));
    int32_t *window = calloc((size_t)in->shape.n_layers * in->shape.n_heads, sizeof(*window));
    int64_t n_pages = 0;
    int rc = 0;

    if (!geom || !window) {
        rc = err_set(err, ERR_NO_ROOM, "inspect: out of memory");
        goto out;
    }
    plan_geometry(in->plan, n_entries, geom, window);
    for (int i = 0; i < n_heads; i++)
        n_pages += kv_geom_pages(geom[i], n_entries, in->shape.page_entries);
    *out = (struct cost){.n = n,
                         .slots_query = plan_query_slots(in->plan, n_entries),
                         .slots_kv = plan_kv_slots(in->plan, n_entries),
                         .bytes_per_seq = n_pages * (int64_t)kv_page_bytes(&in->shape),
                         .density_kv = plan_kv_density(in->plan, n_entries)};
    out->density_query =
        (double)out->slots_query / ((double)in->shape.n_layers * in->shape.n_heads * n_entries);
    out->max_batch = out->bytes_per_seq > 0 ? in->kv_bytes / out->bytes_per_seq : 0;
out:
    free(geom);
    free(window);
    return rc;
}

static int64_t kv_budget(const struct inspection *in, const struct config *config)
{
    int64_t left;

    if (in->memory)
        left = in->memory - in->weight_bytes;
    else if (config->kv_memory)
        left = config->kv_memory;
    else
        left = (engine_host_bytes_free() - in->weight_bytes) / 2;
    return left > 0 ? left : 0;
}

static int reckon(struct inspection *in, const struct config *config,
                  const struct engine_inspect *how, struct err *err)
{
    const struct model_config *cfg = in->cfg;
    int rc;

    in->dtype = engine_dtype(config, cfg);
    in->max_seq_len = config->max_seq_len > 0 ? config->max_seq_len : cfg->max_seq_len;
    in->n = how->n_tokens > 0 ? how->n_tokens : in->max_seq_len;
    in->memory = how->memory;
    if (config->page_entries > KV_TILE || KV_TILE % config->page_entries)
        return err_set(err, ERR_INVALID, "page_entries is %d, must divide %d", config->page_entries,
                       KV_TILE);
    in->shape = (struct kv_shape){.n_layers = cfg->stack.n_layers,
                                  .n_heads = cfg->stack.n_heads,
                                  .n_kv_heads = cfg->stack.n_kv_heads,
                                  .head_dim = cfg->stack.head_dim,
                                  .page_entries = config->page_entries,
                                  .dtype = in->dtype};
    /* The length asked about may exceed the context: inspect answers what-if questions. */
    rc = engine_plan_open(&in->plan, config, cfg, &in->shape,
                          in->n > in->max_seq_len ? in->n : in->max_seq_len, err);
    if (rc < 0)
        return rc;
    in->n_params = model_config_params(cfg);
    in->weight_bytes = model_config_weight_bytes(cfg, in->dtype);
    in->bytes_per_token = 2 * (int64_t)kv_shape_heads(&in->shape) * cfg->stack.head_dim *
                          (int64_t)dtype_bytes(in->dtype);
    if (cfg->block.block_len)
        in->bytes_per_token /= cfg->block.block_len;
    in->kv_bytes = kv_budget(in, config);
    return 0;
}

static void add_cost_json(const struct cost *c, struct strbuf *out)
{
    strbuf_addf(out, "\"n\":%d,\"slots_query_heads\":%lld,\"slots_kv_heads\":%lld,", c->n,
                (long long)c->slots_query, (long long)c->slots_kv);
    strbuf_addf(out,
                "\"density_query\":%.6f,\"density_kv\":%.6f,\"kv_bytes_per_seq\":%lld,"
                "\"max_batch\":%lld",
                c->density_query, c->density_kv, (long long)c->bytes_per_seq,
                (long long)c->max_batch);
}

static int write_json(const struct inspection *in, struct strbuf *out, struct err *err)
{
    const struct model_config *cfg = in->cfg;
    struct cost c;
    int rc = cost_at(in, in->n, &c, err);

    strbuf_addstr(out, "{\"model_type\":");
    strbuf_add_json(out, cfg->model_type, strlen(cfg->model_type));
    strbuf_addf(out,
                ",\"vocab_size\":%d,\"dim\":%d,\"n_layers\":%d,\"n_heads\":%d,\"n_kv_heads\":%d,"
                "\"head_dim\":%d,\"ffn_dim\":%d,\"max_seq_len\":%d,\"tie_embeddings\":%s",
                cfg->vocab_size, cfg->stack.dim, cfg->stack.n_layers, cfg->stack.n_heads,
                cfg->stack.n_kv_heads, cfg->stack.head_dim, cfg->stack.ffn_dim, cfg->max_seq_len,
                cfg->tie_embeddings ? "true" : "false");
    if (cfg->block.block_len)
        strbuf_addf(out,
                    ",\"block_len\":%d,\"n_prefix\":%d,\"token_decoder\":{\"dim\":%d,"
                    "\"n_layers\":%d,\"n_heads\":%d,\"n_kv_heads\":%d,\"head_dim\":%d,"
                    "\"ffn_dim\":%d}",
                    cfg->block.block_len, cfg->block.n_prefix, cfg->block.token.dim,
                    cfg->block.token.n_layers, cfg->block.token.n_heads,
                    cfg->block.token.n_kv_heads, cfg->block.token.head_dim,
                    cfg->block.token.ffn_dim);
    strbuf_addf(out, ",\"dtype\":\"%s\",\"params\":%lld,\"weights_bytes\":%lld",
                dtype_name(in->dtype), (long long)in->n_params, (long long)in->weight_bytes);
    strbuf_addf(out, ",\"page_entries\":%d,\"page_bytes\":%zu,\"kv_bytes_per_token\":%lld,",
                in->shape.page_entries, kv_page_bytes(&in->shape), (long long)in->bytes_per_token);
    add_cost_json(&c, out);
    if (in->memory)
        strbuf_addf(out, ",\"memory_bytes\":%lld", (long long)in->memory);
    strbuf_addf(out, ",\"kv_memory_bytes\":%lld,\"by_length\":[", (long long)in->kv_bytes);
    for (int n = FIRST_LENGTH; rc == 0 && n <= in->max_seq_len; n *= 2) {
        rc = cost_at(in, n, &c, err);
        strbuf_addstr(out, n == FIRST_LENGTH ? "{" : ",{");
        add_cost_json(&c, out);
        strbuf_addch(out, '}');
    }
    strbuf_addstr(out, "],\"plan\":");
    plan_describe(in->plan, in->n, out);
    strbuf_addstr(out, "}\n");
    return rc;
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

static void write_model(const struct inspection *in, const char *dir, struct strbuf *out)
{
    const struct model_config *cfg = in->cfg;

    strbuf_addf(out, "%s: %s, %d layers, dim %d, ffn %d\n", dir, cfg->model_type,
                cfg->stack.n_layers, cfg->stack.dim, cfg->stack.ffn_dim);
    strbuf_addf(out, "  %-26s%d query, %d key-value, of %d\n", "heads", cfg->stack.n_heads,
                cfg->stack.n_kv_heads, cfg->stack.head_dim);
    if (cfg->block.block_len)
        strbuf_addf(out,
                    "  %-26sof %d tokens become %d prefixes of %d layers, dim %d, ffn %d, heads "
                    "%d of %d\n",
                    "blocks", cfg->block.block_len, cfg->block.n_prefix, cfg->block.token.n_layers,
                    cfg->block.token.dim, cfg->block.token.ffn_dim, cfg->block.token.n_heads,
                    cfg->block.token.head_dim);
    strbuf_addf(out, "  %-26s%d tokens, context %d\n", "vocabulary", cfg->vocab_size,
                cfg->max_seq_len);
    strbuf_addf(out, "  %-26s%lld (%.3g B)\n", "parameters", (long long)in->n_params,
                in->n_params * 1e-9);
    strbuf_addf(out, "  %-26s", "weights");
    add_bytes(out, in->weight_bytes);
    strbuf_addf(out, " in %s\n  %-26s", dtype_name(in->dtype), "keys and values a token");
    add_bytes(out, in->bytes_per_token);
    strbuf_addf(out, "\n  %-26s", "memory for them");
    add_bytes(out, in->kv_bytes);
    if (in->memory) {
        strbuf_addstr(out, ", what the weights leave of ");
        add_bytes(out, in->memory);
    }
    strbuf_addch(out, '\n');
}

static int write_length(const struct inspection *in, int n, struct strbuf *out, struct err *err)
{
    struct cost c;
    int rc = cost_at(in, n, &c, err);

    if (rc < 0)
        return rc;
    strbuf_addf(out, "  %8d %14lld %14lld %8.2f %% %8.2f %%  ", n, (long long)c.slots_query,
                (long long)c.slots_kv, 100 * c.density_query, 100 * c.density_kv);
    add_bytes(out, c.bytes_per_seq);
    strbuf_addf(out, "  batch %lld\n", (long long)c.max_batch);
    return 0;
}

static int write_text(const struct inspection *in, const char *dir, enum plan_colours colours,
                      struct strbuf *out, struct err *err)
{
    int rc = 0;

    write_model(in, dir, out);
    strbuf_addf(out, "plan %s", in->plan->name);
    if (in->plan->length)
        strbuf_addf(out, ", spans computed for %d tokens", in->plan->length);
    strbuf_addf(out, "\n  %8s %14s %14s %10s %10s  a sequence\n", "tokens", "of query heads",
                "of kv heads", "density", "kv");
    for (int n = FIRST_LENGTH; rc == 0 && n <= in->max_seq_len; n *= 2) {
        if (n > in->n && n / 2 < in->n)
            rc = write_length(in, in->n, out, err);
        if (rc == 0)
            rc = write_length(in, n, out, err);
    }
    if (rc == 0 && (in->n < FIRST_LENGTH || in->n > in->max_seq_len))
        rc = write_length(in, in->n, out, err);
    if (rc == 0)
        plan_draw_text(in->plan, in->n, colours, out);
    return rc;
}

int engine_inspect(const struct config *config, const struct engine_inspect *how,
                   struct strbuf *out, struct err *err)
{
    struct inspection in = {.cfg = calloc(1, sizeof(*in.cfg))};
    char name[256];
    int rc;

    if (!in.cfg)
        return err_set(err, ERR_NO_ROOM, "inspect: out of memory");
    rc = model_config_load(in.cfg, config->model, err);
    if (rc == 0)
        rc = reckon(&in, config, how, err);
    if (rc < 0)
        goto out;
    switch (how->form) {
    case INSPECT_TEXT:
        rc = write_text(&in, config->model, (enum plan_colours)how->colours, out, err);
        break;
    case INSPECT_JSON:
        rc = write_json(&in, out, err);
        break;
    case INSPECT_SVG:
        engine_model_name(name, sizeof(name), config);
        plan_draw_svg(in.plan, name, in.n, out);
        break;
    }
    if (rc == 0 && out->failed)
        rc = err_set(err, ERR_NO_ROOM, "inspect: out of memory");
out:
    plan_free(in.plan);
    free(in.cfg);
    return rc;
}
