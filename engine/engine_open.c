/*
 * engine_open - puts an engine together: model, backend, plan, memory for every step to come.
 *
 * All that a step needs is sized here, so that the step path never allocates. The order matters in
 * one place: the key-value pool comes last, since it takes a share of what is left.
 */
#include "engine/engine_open.h"

#include "base/build_info.h"
#include "base/clock.h"
#include "base/log.h"
#include "config/config.h"
#include "engine/engine_step.h"
#include "engine/grammar/grammar.h"
#include "engine/tokenizer/chat_template.h"
#include "engine/tokenizer/tokenizer.h"

#include <errno.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/random.h>
#include <sys/stat.h>

#define SEEN_PER_SEQ 4096 /* penalty entries a step has room for, a sequence */

static int max_int(int a, int b)
{
    return a > b ? a : b;
}

static int64_t min64(int64_t a, int64_t b)
{
    return a < b ? a : b;
}

enum dtype engine_dtype(const struct config *config, const struct model_config *mc)
{
    switch ((enum config_dtype)config->dtype) {
    case CONFIG_DTYPE_F32:
        return DTYPE_F32;
    case CONFIG_DTYPE_BF16:
        return DTYPE_BF16;
    case CONFIG_DTYPE_F16:
        return DTYPE_F16;
    case CONFIG_DTYPE_AUTO:
        break;
    }
    return mc->dtype;
}

static int read_limits(struct engine *e, const struct config *config, struct err *err)
{
    const struct model_config *mc = &e->model_config;

    e->env.max_seq_len = config->max_seq_len ? config->max_seq_len : mc->max_seq_len;
    if (e->env.max_seq_len > mc->max_seq_len)
        return err_set(err, ERR_INVALID, "max_seq_len is %d, the model's limit is %d",
                       config->max_seq_len, mc->max_seq_len);
    if (config->page_entries > KV_TILE || KV_TILE % config->page_entries)
        return err_set(err, ERR_INVALID, "page_entries is %d, must divide %d", config->page_entries,
                       KV_TILE);
    return 0;
}

/* 0 for "request". */
static int read_plan_length(const char *text, int *out, struct err *err)
{
    char *end;
    long length;

    *out = 0;
    if (strcmp(text, "request") == 0)
        return 0;
    errno = 0;
    length = strtol(text, &end, 10);
    if (errno || end == text || *end || length < 1 || length > 16777216)
        return err_set(err, ERR_INVALID, "plan_length is %s, want request or 1..16777216", text);
    *out = (int)length;
    return 0;
}

int engine_plan_open(struct plan **out, const struct config *config, const struct model_config *mc,
                     const struct kv_shape *shape, int max_seq_len, struct err *err)
{
    int length;
    int rc = read_plan_length(config->plan_length, &length, err);

    if (rc == 0)
        rc =
            plan_open(out, config->plan, shape, (enum plan_convention)config->span_convention, err);
    if (rc < 0)
        return rc;
    if (mc->block.block_len && strcmp(config->plan, "dense") != 0)
        return err_set(err, ERR_UNSUPPORTED,
                       "plan %.200s: a Block Transformer keeps every block; want dense",
                       config->plan);
    plan_set_length(*out, length);
    for (int layer = 0; layer < mc->stack.n_layers; layer++) {
        if (mc->window[layer] < max_seq_len)
            plan_set_window(*out, layer, mc->window[layer]);
    }
    return 0;
}

static int open_plan(struct engine *e, const struct config *config, struct err *err)
{
    int rc = engine_plan_open(&e->plan, config, &e->model_config, &e->env.shape, e->env.max_seq_len,
                              err);

    e->env.plan = e->plan;
    return rc;
}

static int open_backend(struct engine *e, const struct config *config, struct err *err)
{
    const struct model_config *mc = &e->model_config;
    const struct block_config *b = e->env.block;
    int max_logits = config->max_batch + ENGINE_PROMPT_LOGITS;
    int max_rows = config->max_batch + config->chunk_tokens;
    struct backend_params params = {
        .device = config->device,
        .dtype = engine_dtype(config, mc),
        .n_threads = config->threads,
        .pin_threads = config->pin_threads,
        .max_rows = max_int(max_rows, b ? max_logits * b->n_prefix : 0),
        .max_dim = model_config_max_dim(mc),
        .max_vocab = mc->vocab_size,
        .max_logits = max_logits,
        .max_decode = b ? max_logits * b->n_prefix : 0,
        .max_positions = e->env.max_seq_len,
        .max_graphs = b ? engine_steps_graphs(max_logits) : 0,
        .time_every = config->op_timing_steps,
        .batch_variant = !config->batch_invariant,
    };
    int rc = backend_open(&e->be, &params, err);

    if (rc == 0 && e->be->ops->supports)
        rc = e->be->ops->supports(mc->stack.head_dim, config->page_entries, err);
    return rc;
}

static void on_load(void *arg, size_t done, size_t total)
{
    struct engine *e = arg;

    if (e->hooks.progress)
        e->hooks.progress(e->hooks.progress_arg, "weights", done, total);
}

static int open_model(struct engine *e, const struct config *config, struct err *err)
{
    struct model_params params = {
        .dir = config->model,
        .random_weights = config->weights == CONFIG_WEIGHTS_RANDOM,
        .seed = (uint64_t)config->weights_seed,
        .dtype = engine_dtype(config, &e->model_config),
        .max_rows = config->max_batch + config->chunk_tokens,
        .max_logits = config->max_batch + ENGINE_PROMPT_LOGITS,
        .max_items = config->max_batch + ENGINE_PROMPT_LOGITS,
        .n_pool_slots = e->env.embedding_dim ? config->max_batch : 0,
        .progress = on_load,
        .progress_arg = e,
    };

    return model_open(&e->model, &e->model_config, e->be, &params, err);
}

/*
 * A missing tokenizer is an error, unless the weights are random: then numbers are all there is.
 * A chat template that is missing or broken is not: completions work without, chat says why not.
 */
static int open_text(struct engine *e, const struct config *config, struct err *err)
{
    char path[4200];
    struct err absent = {0};
    int rc = model_tokenizer_path(path, sizeof(path), config->model, &absent);

    if (rc < 0 && config->weights != CONFIG_WEIGHTS_RANDOM)
        return err_set(err, rc, "%s", absent.msg);
    if (rc == 0) {
        rc = tokenizer_open(&e->tokenizer, path, err);
        if (rc < 0)
            return rc;
        e->env.tokenizer = e->tokenizer;
    }
    rc = chat_template_open(&e->chat_template, config->model, &e->template_err);
    if (rc == 0)
        e->template_err = (struct err){0};
    return 0;
}

int64_t engine_host_bytes_free(void)
{
    FILE *f = fopen("/proc/meminfo", "r");
    long long kib = 0;
    char line[256];

    if (!f)
        return 0;
    while (fgets(line, sizeof(line), f)) {
        if (sscanf(line, "MemAvailable: %lld kB", &kib) == 1)
            break;
    }
    fclose(f);
    return (int64_t)kib * 1024;
}

static int64_t pool_bytes(const struct engine *e, const struct config *config)
{
    size_t device_free = e->be->ops->mem_free ? e->be->ops->mem_free(e->be) : 0;
    double used;

    if (config->kv_memory)
        return config->kv_memory;
    if (strcmp(e->be->ops->name, "cpu") == 0 || device_free == 0)
        return engine_host_bytes_free() / 2;
    /* The fraction is of all the memory; what the model took is part of it. */
    used = (double)model_weight_bytes(e->model) + (double)model_buffer_bytes(e->model);
    return (int64_t)(config->gpu_memory_fraction * (used + (double)device_free) - used);
}

/* Positions of keys that a sequence of n tokens may take. */
static int entries_at(const struct engine *e, int n)
{
    return e->env.block ? block_config_entries(e->env.block, 0, n) : n;
}

/* Pages and page-table entries of one sequence of n positions under the plan. */
static int64_t pages_at(const struct engine *e, int n, int64_t *bytes, struct err *err)
{
    const struct kv_shape *shape = &e->env.shape;
    struct kv_geom *geom = calloc((size_t)kv_shape_heads(shape), sizeof(*geom));
    int32_t *window = calloc((size_t)shape->n_layers * shape->n_heads, sizeof(*window));
    struct kv_need need = {0};

    if (geom && window) {
        plan_geometry(e->plan, n, geom, window);
        kv_need_init(&need, shape, geom, window, n);
    } else {
        err_set(err, ERR_NO_ROOM, "no memory for the geometry of %d heads", kv_shape_heads(shape));
    }
    free(geom);
    free(window);
    *bytes = need.n_pages_limit * (int64_t)kv_page_bytes(shape);
    return need.n_pages_limit;
}

static int open_kv(struct engine *e, const struct config *config, struct err *err)
{
    struct kv_shape *shape = &e->env.shape;
    int64_t page_bytes = (int64_t)kv_page_bytes(shape);
    int64_t budget = pool_bytes(e, config);
    int64_t one_bytes, least_bytes, table;
    int n_most = entries_at(e, e->env.max_seq_len);
    int64_t one = pages_at(e, n_most, &one_bytes, err);
    int64_t least = pages_at(e, 2, &least_bytes, err);
    int64_t n_pages = min64(budget / page_bytes, INT32_MAX);
    int rc;

    if (!one || !least)
        return err->code;
    if (!config->kv_memory) /* more than every seat filled to the context is of no use */
        n_pages = min64(n_pages, one * config->max_batch);
    if (n_pages < least)
        return err_set(err, ERR_NO_ROOM,
                       "the key-value pool of %lld bytes holds %lld pages of %lld bytes, but the "
                       "shortest sequence takes %lld under plan %s",
                       (long long)budget, (long long)n_pages, (long long)page_bytes,
                       (long long)least, e->plan->name);
    /* Growable sequences hold table entries for their whole length before they have the pages. */
    table = min64(one * config->max_batch, 4 * n_pages > one ? 4 * n_pages : one);
    rc = kv_slots_init(&e->kv, shape, config->max_batch, (int32_t)n_pages, min64(table, INT32_MAX),
                       err);
    if (rc < 0)
        return rc;
    return kv_memory_init(&e->kv_memory, e->be, &e->kv, err);
}

static uint64_t id_of(const struct sched_seq *seq)
{
    return ((const struct request *)seq->owner)->id;
}

static int open_steps(struct engine *e, const struct config *config, struct err *err)
{
    const struct block_config *block = e->env.block;
    int max_logits = config->max_batch + ENGINE_PROMPT_LOGITS;
    int max_items = block ? config->max_batch + max_logits : config->max_batch;
    int most_seen = e->env.max_seq_len < e->env.vocab_size ? e->env.max_seq_len : e->env.vocab_size;
    struct sched_params sched = {.max_batch = config->max_batch,
                                 .chunk_tokens = config->chunk_tokens,
                                 .max_logits = max_logits,
                                 .max_seen = max_int(config->max_batch * SEEN_PER_SEQ, most_seen),
                                 .block_len = block ? block->block_len : 0,
                                 .n_prefix = block ? block->n_prefix : 0,
                                 .whole_blocks = block && config->whole_blocks};
    struct sampler_params sampler = {
        .max_logits = max_logits,
        .max_batch = config->max_batch,
        /* A block may begin before min_tokens and end behind. */
        .max_bias =
            config->max_batch * (2 * REQUEST_MAX_BIAS + MODEL_MAX_EOS + ENGINE_MAX_STOP_IDS),
        .max_seen = sched.max_seen,
        .vocab_size = e->env.vocab_size,
        .n_phases = block ? block->block_len : 1};
    struct batch_params batch = {.max_rows = config->max_batch + config->chunk_tokens,
                                 .max_logits = max_logits,
                                 .n_slots = config->max_batch,
                                 .block = block};
    bool on = config->run_ahead == CONFIG_RUN_AHEAD_ON;
    int rc = scheduler_init(&e->sched, &sched, &e->kv, err);

    if (config->run_ahead == CONFIG_RUN_AHEAD_AUTO)
        on = e->be->is_async;
    e->use_graphs = config->cuda_graphs;
    e->run_ahead = on ? BACKEND_STEPS - 1 : 0;
    if (rc == 0 && config->prefix_cache) {
        rc = prefix_cache_init(&e->cache, &e->kv, block ? block->block_len : 1, block != NULL, err);
        e->cache_refs = calloc((size_t)e->kv.pool.n_pages, sizeof(*e->cache_refs));
        if (rc == 0 && !e->cache_refs)
            rc = err_set(err, ERR_NO_ROOM, "prefix cache: no memory for page counts");
        e->sched.cache = rc == 0 ? &e->cache : NULL;
    }

    if (rc == 0)
        rc = batch_init(&e->batch, e->be, &batch, err);
    if (rc == 0)
        rc = sampler_init(&e->sampler, e->be, &sampler, err);
    if (rc == 0)
        rc = engine_steps_init(e, max_items, max_logits, err);
    if (rc == 0)
        rc = step_trace_open(&e->trace, config->trace, id_of, &e->sched, err);
    return rc;
}

static int open_queues(struct engine *e, const struct config *config, struct err *err)
{
    struct live_table *live = &e->live;

    live->n_max = live->n_free = config->max_batch + config->max_waiting;
    live->max_bytes = config->request_memory_bytes;
    live->by_idx = calloc((size_t)live->n_max, sizeof(struct request *));
    live->free_idx = calloc((size_t)live->n_max, sizeof(*live->free_idx));
    e->drained = calloc((size_t)live->n_max, sizeof(struct request *));
    if (!live->by_idx || !live->free_idx || !e->drained)
        return err_set(err, ERR_NO_ROOM, "no memory for a queue of %d requests", live->n_max);
    for (int i = 0; i < live->n_max; i++)
        live->free_idx[i] = live->n_max - 1 - i;
    return ring_queue_init(&e->inbox, sizeof(struct request *), (size_t)live->n_max, err);
}

void engine_model_name(char *out, size_t out_bytes, const struct config *config)
{
    const char *path = config->model;
    size_t len = strlen(path), at;

    if (*config->served_model_name) {
        snprintf(out, out_bytes, "%s", config->served_model_name);
        return;
    }
    while (len > 1 && path[len - 1] == '/')
        len--;
    at = len;
    while (at > 0 && path[at - 1] != '/')
        at--;
    snprintf(out, out_bytes, "%.*s", (int)(len - at), path + at);
}

static uint64_t fnv1a(uint64_t h, const char *s)
{
    for (; *s; s++)
        h = (h ^ (unsigned char)*s) * 1099511628211u;
    return h;
}

static float or_default(float value, float otherwise)
{
    return isnan(value) ? otherwise : value;
}

static void fill_info(struct engine *e, const struct config *config)
{
    const struct model_config *mc = &e->model_config;
    bool by_model = config->sampling_defaults == CONFIG_SAMPLING_DEFAULTS_MODEL;
    enum dtype dtype = engine_dtype(config, mc);
    uint64_t h = 14695981039346656037u;
    char path[4200];
    struct stat st;

    engine_model_name(e->served_name, sizeof(e->served_name), config);
    h = fnv1a(h, e->served_name);
    h = fnv1a(h, build_commit());
    h = fnv1a(h, e->plan->name);
    h = fnv1a(h, e->be->ops->name);
    h = fnv1a(h, dtype_name(dtype));
    snprintf(e->fingerprint, sizeof(e->fingerprint), "fp_%010llx",
             (unsigned long long)(h & 0xffffffffffull));
    plan_describe(e->plan, e->env.max_seq_len, &e->plan_json);
    snprintf(path, sizeof(path), "%s/config.json", config->model);
    e->info = (struct engine_info){
        .model_id = e->served_name,
        .model_type = mc->model_type,
        .plan = e->plan->name,
        .plan_json = e->plan_json.buf,
        .device = e->be->description,
        .dtype = dtype_name(dtype),
        .fingerprint = e->fingerprint,
        .vocab_size = mc->vocab_size,
        .max_seq_len = e->env.max_seq_len,
        .n_layers = mc->stack.n_layers,
        .n_heads = mc->stack.n_heads,
        .n_kv_heads = mc->stack.n_kv_heads,
        .head_dim = mc->stack.head_dim,
        .max_batch = config->max_batch,
        .embedding_dim = e->env.embedding_dim,
        .bos_id = e->tokenizer ? tokenizer_bos(e->tokenizer) : -1,
        .takes_empty_prompts = e->env.block != NULL,
        .n_params = model_config_params(mc),
        .weight_bytes = (int64_t)model_weight_bytes(e->model),
        .kv_bytes = (int64_t)e->kv.pool.n_pages * (int64_t)kv_page_bytes(&e->env.shape),
        .created_unix = stat(path, &st) == 0 ? (int64_t)st.st_mtime : clock_unix_ms() / 1000,
        .n_pages = e->kv.pool.n_pages,
        .page_bytes = (int64_t)kv_page_bytes(&e->env.shape),
        .page_tokens = e->env.shape.page_entries * (e->env.block ? e->env.block->block_len : 1),
        .has_tokenizer = e->tokenizer != NULL,
        .has_chat_template = e->chat_template != NULL,
        .chat_template = e->chat_template ? chat_template_source(e->chat_template) : NULL,
        .default_temperature = by_model ? or_default(mc->default_temperature, 1.0f) : 1.0f,
        .default_top_p = by_model ? or_default(mc->default_top_p, 1.0f) : 1.0f,
        .default_repetition_penalty =
            by_model ? or_default(mc->default_repetition_penalty, 1.0f) : 1.0f,
        .default_top_k = by_model ? mc->default_top_k : 0,
    };
    if (e->info.default_top_p == 0.0f)
        e->info.default_top_p = 1.0f;
    if (e->info.default_repetition_penalty == 0.0f)
        e->info.default_repetition_penalty = 1.0f;
}

/* For those who want to know what share of the memory's speed the ops reach. 0: unknown. */
static double measure_memory(const struct engine *e)
{
    struct err err = {0};
    double bytes_per_s = 0;

    if (e->be->ops->read_bandwidth(e->be, &bytes_per_s, &err) < 0) {
        log_warn("measure_memory: %s", err.msg);
        return 0;
    }
    log_info("the device reads its memory at %.1f GB/s", bytes_per_s * 1e-9);
    return bytes_per_s;
}

int engine_parts_open(struct engine *e, const struct config *config, struct err *err)
{
    const struct model_config *mc = &e->model_config;
    int rc = model_config_load(&e->model_config, config->model, err);

    e->sweep_steps = config->kv_sweep_steps;
    if (rc == 0)
        rc = read_limits(e, config, err);
    if (rc < 0)
        return rc;
    e->env.block = mc->block.block_len ? &mc->block : NULL;
    e->env.vocab_size = mc->vocab_size;
    e->env.eos_ids = mc->eos_ids;
    e->env.n_eos = mc->n_eos;
    if (config->embedding_pooling != CONFIG_EMBEDDING_POOLING_OFF && !mc->block.block_len)
        e->env.embedding_dim = mc->stack.dim;
    e->env.shape = (struct kv_shape){.n_layers = mc->stack.n_layers,
                                     .n_heads = mc->stack.n_heads,
                                     .n_kv_heads = mc->stack.n_kv_heads,
                                     .head_dim = mc->stack.head_dim,
                                     .page_entries = config->page_entries,
                                     .dtype = engine_dtype(config, mc)};
    rc = open_plan(e, config, err);
    if (rc == 0)
        rc = open_text(e, config, err);
    if (rc == 0 && e->tokenizer)
        rc = grammar_cache_new(&e->grammars,
                               &(struct grammar_cache_params){
                                   .tokenizer = e->tokenizer,
                                   .vocab_size = mc->vocab_size,
                                   .eos_ids = mc->eos_ids,
                                   .n_eos = mc->n_eos,
                                   .n_max = config->grammar_cache,
                                   .max_bytes = config->grammar_memory_bytes,
                                   .timeout_ns = config->grammar_timeout_ms * INT64_C(1000000)},
                               err);
    if (rc == 0)
        rc = open_backend(e, config, err);
    if (rc == 0) {
        e->env.has_masks = e->be->ops->has_masks;
        rc = open_model(e, config, err);
    }
    if (rc == 0) {
        e->env.rope_by_prompt = model_wants_rope_len(e->model);
        if (getrandom(e->env.cache_secret, sizeof(e->env.cache_secret), 0) < 0)
            rc = err_set_errno(err, ERR_IO, errno, "random numbers");
    }
    if (rc == 0)
        rc = open_queues(e, config, err);
    if (rc == 0)
        rc = open_kv(e, config, err);
    if (rc == 0)
        rc = open_steps(e, config, err);
    if (rc == 0) {
        stats_init(&e->stats, e->kv.pool.n_pages, config->measure_memory ? measure_memory(e) : 0);
        fill_info(e, config);
    }
    return rc;
}

void engine_parts_close(struct engine *e)
{
    for (int i = 0; e->live.by_idx && i < e->live.n_max; i++)
        request_free(e->live.by_idx[i]);
    free(e->live.by_idx);
    free(e->live.free_idx);
    free(e->drained);
    step_trace_close(e->trace);
    engine_steps_release(e);
    sampler_release(&e->sampler);
    batch_release(&e->batch);
    scheduler_release(&e->sched);
    prefix_cache_release(&e->cache);
    free(e->cache_refs);
    kv_memory_release(&e->kv_memory);
    kv_slots_release(&e->kv);
    ring_queue_release(&e->inbox);
    model_close(e->model);
    if (e->be)
        e->be->ops->close(e->be);
    grammar_cache_free(e->grammars);
    chat_template_free(e->chat_template);
    tokenizer_free(e->tokenizer);
    plan_free(e->plan);
    strbuf_release(&e->plan_json);
}
