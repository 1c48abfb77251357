/*
 * profile - how much each head's attention matters. See profile.h.
 */
#include "engine/plan/search/profile.h"

#include "base/check.h"
#include "base/clock.h"
#include "base/err.h"
#include "base/file_map.h"
#include "base/file_write.h"
#include "base/strbuf.h"
#include "config/config.h"
#include "engine/engine_open.h"
#include "engine/plan/search/grad_pass.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define MAX_FILE_BYTES ((size_t)1 << 30)
#define SAVE_NS        INT64_C(10000000000) /* at most every 10 s */

struct runner {
    const struct search_options *o;
    const struct calibration *c;
    struct backend *be;
    struct model *model;
    struct grad_pass *pass;
    struct profile *out;
    struct strbuf key;
    struct err *err;
};

static size_t n_units(const struct profile *p)
{
    return (size_t)p->n_layers * (size_t)p->units_per_layer;
}

/* ---- files ---- */

static void file_of(char *path, size_t size, const struct search_options *o, int length)
{
    char name[64];

    snprintf(name, sizeof(name), "profile_%d.csv", length);
    search_path(path, size, o, name);
}

static int save(const struct runner *r, const struct profile_length *at)
{
    struct strbuf out = STRBUF_INIT;
    char path[4200];
    int rc;

    file_of(path, sizeof(path), r->o, at->length);
    strbuf_addf(&out, "# key %s\n# items %d loss %.17g\n", r->key.buf, at->n_items, at->loss);
    strbuf_addstr(&out, "layer,unit,block,band,sink\n");
    for (size_t u = 0; u < n_units(r->out); u++)
        for (int b = 0; b < at->n_blocks; b++)
            strbuf_addf(&out, "%zu,%zu,%d,%.17g,%.17g\n", u / (size_t)r->out->units_per_layer,
                        u % (size_t)r->out->units_per_layer, b,
                        at->band[u * (size_t)at->n_blocks + (size_t)b],
                        at->sink[u * (size_t)at->n_blocks + (size_t)b]);
    rc = out.failed ? err_set(r->err, ERR_NO_ROOM, "%s: out of memory", path)
                    : file_write_whole(path, out.buf, out.len, r->err);
    strbuf_release(&out);
    return rc;
}

/* Reads a number and the character behind it. */
static bool read_number(char **at, double *out, char behind)
{
    char *end;

    *out = strtod(*at, &end);
    if (end == *at || *end != behind)
        return false;
    *at = end + 1;
    return true;
}

static bool parse(const struct runner *r, struct profile_length *at, char *text)
{
    size_t key_len = r->key.len;
    double n_items, column[5];

    if (strncmp(text, "# key ", 6) || strncmp(text + 6, r->key.buf, key_len) ||
        text[6 + key_len] != '\n')
        return false;
    text += 6 + key_len + 1;
    if (strncmp(text, "# items ", 8))
        return false;
    text += 8;
    if (!read_number(&text, &n_items, ' ') || strncmp(text, "loss ", 5))
        return false;
    text += 5;
    if (!read_number(&text, &at->loss, '\n') || !(text = strchr(text, '\n')))
        return false;
    text++;
    for (size_t i = 0; i < n_units(r->out) * (size_t)at->n_blocks; i++) {
        for (int c = 0; c < 5; c++)
            if (!read_number(&text, &column[c], c < 4 ? ',' : '\n'))
                return false;
        at->band[i] = column[3];
        at->sink[i] = column[4];
    }
    at->n_items = (int)n_items;
    return *text == 0;
}

/* What an earlier run left; a file of another search, or a broken one, counts as none. */
static void load(const struct runner *r, struct profile_length *at)
{
    size_t n = n_units(r->out) * (size_t)at->n_blocks;
    struct err ignored = {0};
    char path[4200], *text = NULL;

    file_of(path, sizeof(path), r->o, at->length);
    if (file_read_text(&text, NULL, path, MAX_FILE_BYTES, &ignored) < 0)
        return;
    if (!parse(r, at, text)) {
        memset(at->band, 0, sizeof(*at->band) * n);
        memset(at->sink, 0, sizeof(*at->sink) * n);
        at->loss = 0;
        at->n_items = 0;
    }
    free(text);
}

/* ---- the pass ---- */

/*
 * Gradients leave the range of f16, so a GPU profiles such models in bf16. The CPU computes in f32
 * whatever the weights are.
 */
static enum dtype profile_dtype(const struct runner *r, const char *backend)
{
    enum dtype dtype = engine_dtype(r->o->config, r->o->model);

    return dtype == DTYPE_F16 && strcmp(backend, "cuda") == 0 ? DTYPE_BF16 : dtype;
}

static int open_backend(struct runner *r, enum dtype dtype, int max_rows)
{
    const struct search_options *o = r->o;
    struct backend_params be = {.device = o->config->device,
                                .dtype = dtype,
                                .n_threads = o->config->threads,
                                .pin_threads = o->config->pin_threads,
                                .max_rows = max_rows,
                                .max_dim = model_config_max_dim(o->model),
                                .max_vocab = o->model->vocab_size,
                                .max_logits = 64,
                                .max_positions = max_rows};

    return backend_open(&r->be, &be, r->err);
}

/* Weights and the model's own buffers, for the longest length that has items to run. */
static int open_model(struct runner *r, int max_rows)
{
    const struct search_options *o = r->o;
    struct model_params model = {.dir = o->config->model,
                                 .random_weights = o->config->weights == CONFIG_WEIGHTS_RANDOM,
                                 .seed = (uint64_t)o->config->weights_seed,
                                 .max_rows = max_rows,
                                 .max_logits = 1};
    int64_t t0 = clock_ns();
    int rc = open_backend(r, profile_dtype(r, "cpu"), max_rows);

    if (rc == 0 && profile_dtype(r, r->be->ops->name) != profile_dtype(r, "cpu")) {
        r->be->ops->close(r->be);
        r->be = NULL;
        rc = open_backend(r, profile_dtype(r, "cuda"), max_rows);
    }
    if (rc < 0)
        return rc;
    model.dtype = profile_dtype(r, r->be->ops->name);
    rc = model_open(&r->model, o->model, r->be, &model, r->err);
    r->out->open_seconds = (double)(clock_ns() - t0) * 1e-9;
    return rc;
}

static void close_model(struct runner *r)
{
    model_close(r->model);
    if (r->be)
        r->be->ops->close(r->be);
    r->model = NULL;
    r->be = NULL;
}

/* Adds the size of one item's influence, query heads of a unit summed. */
static void add_up(const struct runner *r, struct profile_length *at, const double *band,
                   const double *sink, int n_blocks)
{
    const struct model_config *m = r->o->model;
    int group = m->stack.n_heads / r->out->units_per_layer;

    for (int64_t h = 0; h < (int64_t)m->stack.n_layers * m->stack.n_heads; h++) {
        int64_t unit =
            h / m->stack.n_heads * r->out->units_per_layer + h % m->stack.n_heads / group;

        for (int b = 0; b < n_blocks; b++) {
            at->band[unit * at->n_blocks + b] += fabs(band[h * n_blocks + b]);
            at->sink[unit * at->n_blocks + b] += fabs(sink[h * n_blocks + b]);
        }
    }
}

static int run_item(struct runner *r, struct profile_length *at,
                    const struct calibration_item *item)
{
    const struct model_config *m = r->o->model;
    int n = item->n_prompt + item->n_answer;
    int n_blocks = (n - 1 + GRAD_BLOCK - 1) / GRAD_BLOCK;
    int first = calibration_first_target(item, r->o->whole_context_loss);
    size_t n_sums = (size_t)m->stack.n_layers * (size_t)m->stack.n_heads * (size_t)n_blocks;
    int32_t *row = calloc((size_t)n, sizeof(*row)), *target = calloc((size_t)n, sizeof(*target));
    struct grad_pass_args args = {.tokens = item->ids,
                                  .n_rows = n - 1, /* nothing follows the last token */
                                  .row = row,
                                  .target = target,
                                  .kind =
                                      r->o->log_odds ? GRAD_LOSS_LOG_ODDS : GRAD_LOSS_CROSS_ENTROPY,
                                  .band = calloc(n_sums, sizeof(double)),
                                  .sink = calloc(n_sums, sizeof(double))};
    int rc;

    if (!row || !target || !args.band || !args.sink) {
        rc = err_set(r->err, ERR_NO_ROOM, "profile: out of memory");
        goto out;
    }
    for (int i = first; i < n; i++) {
        if (item->bears && !item->bears[i - first])
            continue;
        row[args.n_targets] = i - 1;
        target[args.n_targets++] = item->ids[i];
    }
    rc = grad_pass_run(r->pass, &args, r->err);
    if (rc < 0)
        goto out;
    add_up(r, at, args.band, args.sink, n_blocks);
    at->loss = (at->loss * at->n_items + args.loss) / (at->n_items + 1);
    at->n_items++;
    at->n_ran++;
    at->n_tokens += args.n_rows;
out:
    free(row);
    free(target);
    free(args.band);
    free(args.sink);
    return rc;
}

/* Items of the length from number at->n_items on. */
static int run_items(struct runner *r, struct profile_length *at, int n_all)
{
    int64_t t0 = clock_ns(), saved = t0;
    int rc = 0, number = 0;
    char stage[48], detail[64];

    snprintf(stage, sizeof(stage), "profile %d tokens", at->length);
    for (int i = 0; i < r->c->n_items && rc == 0; i++) {
        const struct calibration_item *item = &r->c->items[i];

        if (item->length != at->length || number++ < at->n_items)
            continue;
        if (search_is_stopped()) {
            rc = err_set(r->err, ERR_CLOSED, "interrupted; %d items of %d at %d tokens are kept",
                         at->n_items, n_all, at->length);
            break;
        }
        rc = run_item(r, at, item);
        snprintf(detail, sizeof(detail), "loss %.4f", at->loss);
        search_progress(stage, at->n_items, n_all,
                        (double)(clock_ns() - t0) * 1e-9 / at->n_ran * at->n_items, detail);
        if (rc == 0 && clock_ns() - saved > SAVE_NS && at->n_items < n_all) {
            rc = save(r, at);
            saved = clock_ns();
        }
    }
    search_progress_end();
    at->seconds = (double)(clock_ns() - t0) * 1e-9;
    return rc;
}

static int count_items(const struct runner *r, int length)
{
    int n = 0;

    for (int i = 0; i < r->c->n_items; i++)
        n += r->c->items[i].length == length;
    return n;
}

static int run_length(struct runner *r, struct profile_length *at)
{
    struct grad_pass_params params = {
        .max_rows = at->length, .max_bytes = (size_t)r->o->profile_memory, .keep = KEEP_WIDE};
    int n_all = count_items(r, at->length), rc;

    if (at->n_items >= n_all)
        return 0;
    rc = grad_pass_open(&r->pass, r->model, r->be, &params, r->err);
    if (rc == 0)
        rc = run_items(r, at, n_all);
    if (rc == 0)
        rc = grad_pass_product_rate(r->pass, &r->out->product_rate, r->err);
    if (r->pass) {
        at->flops_done = grad_pass_flops(r->pass).done;
        at->flops_needed = grad_pass_flops(r->pass).needed;
    }
    grad_pass_close(r->pass);
    r->pass = NULL;
    if ((rc == 0 || rc == ERR_CLOSED) && at->n_ran > 0) {
        int saved_rc = save(r, at);

        rc = rc == 0 ? saved_rc : rc;
    }
    return rc;
}

/* All lengths that are not complete, the shortest first. */
static int run_lengths(struct runner *r)
{
    int longest = 0, rc;

    for (int i = 0; i < r->out->n_lengths; i++) {
        const struct profile_length *at = &r->out->at[i];

        if (at->n_items < count_items(r, at->length))
            longest = at->length > longest ? at->length : longest;
    }
    if (longest == 0)
        return 0;
    rc = open_model(r, longest);
    for (int i = 0; i < r->out->n_lengths && rc == 0; i++)
        rc = run_length(r, &r->out->at[i]);
    close_model(r);
    return rc;
}

int profile_get(struct profile *out, const struct search_options *o, const struct calibration *c,
                struct err *err)
{
    struct runner r = {.o = o, .c = c, .out = out, .err = err, .key = STRBUF_INIT};
    int rc = 0;

    memset(out, 0, sizeof(*out));
    out->n_lengths = o->n_lengths;
    out->n_layers = o->model->stack.n_layers;
    out->units_per_layer = o->per_query_head ? o->model->stack.n_heads : o->model->stack.n_kv_heads;
    search_key_profile(&r.key, o);
    strbuf_addf(&r.key, " units=%d", out->units_per_layer);
    for (int i = 0; i < o->n_lengths && rc == 0; i++) {
        struct profile_length *at = &out->at[i];

        at->length = o->length[i];
        at->n_blocks = (at->length + GRAD_BLOCK - 1) / GRAD_BLOCK;
        at->band = calloc(n_units(out) * (size_t)at->n_blocks, sizeof(*at->band));
        at->sink = calloc(n_units(out) * (size_t)at->n_blocks, sizeof(*at->sink));
        if (!at->band || !at->sink) {
            rc = err_set(err, ERR_NO_ROOM, "profile: out of memory");
            break;
        }
        load(&r, at);
    }
    if (rc == 0)
        rc = run_lengths(&r);
    strbuf_release(&r.key);
    if (rc < 0)
        profile_release(out);
    return rc;
}

void profile_release(struct profile *p)
{
    if (!p)
        return;
    for (int i = 0; i < SEARCH_MAX_LENGTHS; i++) {
        free(p->at[i].band);
        free(p->at[i].sink);
    }
    memset(p, 0, sizeof(*p));
}
