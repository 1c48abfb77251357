/*
 * test_model_run - drives model_forward with a KV pool of its own. See test_model_run.h.
 */
#include "tests/lib/test_model_run.h"

#include "base/err.h"

#include <stdlib.h>
#include <string.h>

#define PAGE_ENTRIES 64

static int round_up(int n, int to)
{
    return (n + to - 1) / to * to;
}

static struct kv_geom geom_of(const struct test_model *t, int layer)
{
    struct kv_geom g = {.n_sink = 0, .ring = KV_RING_DENSE, .mask = KV_MASK_TOKEN};

    if (t->params.rings && t->cfg.window[layer] != KV_WINDOW_ALL)
        g.ring = round_up(t->cfg.window[layer], KV_TILE);
    return g;
}

static int pages_of(const struct test_model *t, int layer)
{
    struct kv_geom g = geom_of(t, layer);
    int n = g.ring < t->params.max_positions ? g.ring : t->params.max_positions;

    return round_up(n, PAGE_ENTRIES) / PAGE_ENTRIES;
}

/* A copy of host memory on the device. */
static int to_device(struct test_model *t, void *out, const void *host, size_t bytes,
                     struct err *err)
{
    void *p = NULL;
    int rc = t->be->ops->alloc(t->be, &p, bytes, err);

    if (rc == 0) {
        memcpy(out, &p, sizeof(p));
        rc = t->be->ops->upload(t->be, p, host, bytes, err);
    }
    return rc;
}

/* Fills the arrays that say where pages are; n_pages of them in a scrambled order. */
static void fill_tables(const struct test_model *t, int32_t *table, int32_t *base,
                        struct kv_geom *geom, int32_t *window, int n_pages)
{
    const struct model_config *c = &t->cfg;
    int at = 0, head = 0, query = 0;

    for (int i = 0; i < n_pages; i++)
        table[i] = i;
    srand(7);
    for (int i = n_pages - 1; i > 0; i--) {
        int j = rand() % (i + 1), swap = table[i];

        table[i] = table[j];
        table[j] = swap;
    }
    for (int slot = 0; slot < t->params.n_slots; slot++) {
        for (int layer = 0; layer < c->stack.n_layers; layer++) {
            for (int h = 0; h < c->stack.n_kv_heads; h++, head++) {
                base[head] = at;
                geom[head] = geom_of(t, layer);
                at += pages_of(t, layer);
            }
            for (int h = 0; h < c->stack.n_heads; h++)
                window[query++] = c->window[layer];
        }
    }
}

static int open_kv(struct test_model *t, struct err *err)
{
    const struct model_config *c = &t->cfg;
    size_t n_heads = (size_t)t->params.n_slots * c->stack.n_layers * c->stack.n_kv_heads, bytes;
    size_t n_query = (size_t)t->params.n_slots * c->stack.n_layers * c->stack.n_heads;
    int n_pages = 0, rc;
    int32_t *table, *base, *window;
    struct kv_geom *geom;
    unsigned char *fill;

    t->kv = (struct kv_view){
        .page_entries = PAGE_ENTRIES,
        .head_dim = c->stack.head_dim,
        .n_layers = c->stack.n_layers,
        .n_heads = c->stack.n_heads,
        .n_kv_heads = c->stack.n_kv_heads,
        .dtype = t->be->act_dtype,
        .page_bytes = (size_t)2 * PAGE_ENTRIES * c->stack.head_dim * dtype_bytes(t->be->act_dtype),
    };
    for (int layer = 0; layer < c->stack.n_layers; layer++)
        n_pages += t->params.n_slots * c->stack.n_kv_heads * pages_of(t, layer);
    bytes = n_pages * t->kv.page_bytes;
    fill = malloc(bytes);
    table = calloc(n_pages, sizeof(*table));
    base = calloc(n_heads, sizeof(*base));
    geom = calloc(n_heads, sizeof(*geom));
    window = calloc(n_query, sizeof(*window));
    fill_tables(t, table, base, geom, window, n_pages);
    memset(fill, 0xff, bytes); /* NaN in every type */
    rc = to_device(t, &t->kv.pages, fill, bytes, err);
    if (rc == 0)
        rc = to_device(t, &t->kv.page_table, table, n_pages * sizeof(*table), err);
    if (rc == 0)
        rc = to_device(t, &t->kv.head_base, base, n_heads * sizeof(*base), err);
    if (rc == 0)
        rc = to_device(t, &t->kv.geom, geom, n_heads * sizeof(*geom), err);
    if (rc == 0)
        rc = to_device(t, &t->kv.window, window, n_query * sizeof(*window), err);
    free(fill);
    free(table);
    free(base);
    free(geom);
    free(window);
    return rc;
}

int test_model_open(struct test_model *t, const struct test_model_params *params, struct err *err)
{
    struct backend_params bp = {
        .device = params->device ? params->device : "cpu",
        .dtype = params->dtype,
        .n_threads = 1,
        .max_rows = params->max_rows,
        .max_logits = params->max_rows,
        .max_positions = params->max_positions,
    };
    struct model_params mp = {
        .dir = params->dir,
        .random_weights = params->random_weights,
        .seed = 1,
        .dtype = params->dtype,
        .max_rows = params->max_rows,
        .max_logits = params->max_rows,
        .max_items = params->max_items,
    };
    int rc;

    *t = (struct test_model){.params = *params};
    rc = model_config_load(&t->cfg, params->dir, err);
    if (rc < 0)
        return rc;
    bp.max_dim = model_config_max_dim(&t->cfg);
    bp.max_vocab = t->cfg.vocab_size;
    rc = backend_open(&t->be, &bp, err);
    if (rc == 0)
        rc = model_open(&t->model, &t->cfg, t->be, &mp, err);
    if (rc == 0)
        rc = open_kv(t, err);
    t->host = calloc(4 * (size_t)params->max_rows, sizeof(*t->host));
    t->rope_len = calloc(params->max_rows, sizeof(*t->rope_len));
    if (rc == 0)
        rc = t->be->ops->alloc(t->be, (void **)&t->rows,
                               4 * (size_t)params->max_rows * sizeof(*t->rows), err);
    if (rc == 0)
        rc = t->be->ops->alloc(t->be, (void **)&t->chunks,
                               (params->n_slots + 1) * sizeof(*t->chunks), err);
    return rc;
}

void test_model_close(struct test_model *t)
{
    const void *kv[] = {t->kv.pages, t->kv.page_table, t->kv.head_base, t->kv.geom, t->kv.window};

    model_close(t->model);
    for (int i = 0; t->be && i < 5; i++)
        t->be->ops->free(t->be, (void *)kv[i]);
    if (t->be) {
        t->be->ops->free(t->be, t->rows);
        t->be->ops->free(t->be, t->chunks);
        t->be->ops->close(t->be);
    }
    free(t->host);
    free(t->rope_len);
}

/* Writes the rows of seqs to the device and describes them in *batch. */
static int upload_batch(struct test_model *t, struct step_batch *batch,
                        const struct test_rows *seqs, int n_seqs, struct err *err)
{
    int max = t->params.max_rows, n = 0, rc;
    struct step_chunk chunks[64];

    *batch = (struct step_batch){0};
    for (int s = 0; s < n_seqs; s++) {
        if (seqs[s].decode)
            batch->n_decode++;
        else
            chunks[batch->n_chunks++] =
                (struct step_chunk){seqs[s].slot, n, seqs[s].n, seqs[s].pos0};
        for (int i = 0; i < seqs[s].n; i++, n++) {
            t->host[n] = seqs[s].tokens[i];
            t->host[max + n] = seqs[s].pos0 + i;
            t->host[2 * max + n] = seqs[s].slot;
            t->host[3 * max + n] = n;
            t->rope_len[n] = seqs[s].rope_len;
        }
    }
    batch->n_rows = batch->n_logits = n;
    batch->token = t->rows;
    batch->pos = t->rows + max;
    batch->slot = t->rows + 2 * max;
    batch->logit_row = t->rows + 3 * max;
    batch->chunks = t->chunks;
    rc = t->be->ops->upload(t->be, t->rows, t->host, 4 * (size_t)max * sizeof(*t->rows), err);
    if (rc == 0 && batch->n_chunks > 0)
        rc = t->be->ops->upload(t->be, t->chunks, chunks, batch->n_chunks * sizeof(*chunks), err);
    return rc;
}

int test_model_step(struct test_model *t, const struct test_rows *seqs, int n_seqs, float *logits,
                    struct err *err)
{
    struct step_batch batch;
    int rc = upload_batch(t, &batch, seqs, n_seqs, err);

    if (rc == 0)
        rc = t->be->ops->step_begin(t->be, &batch, err);
    if (rc == 0)
        rc = model_forward(t->model, &batch, &t->kv,
                           model_wants_rope_len(t->model) ? t->rope_len : NULL, err);
    if (rc == 0)
        rc = t->be->ops->step_end(t->be, err);
    if (rc == 0)
        rc = t->be->ops->download(t->be, logits, model_logits(t->model),
                                  (size_t)batch.n_logits * t->cfg.vocab_size * sizeof(float), err);
    return rc;
}

int test_model_sequence(struct test_model *t, const int32_t *tokens, int n, int n_prompt,
                        int chunk_len, float *logits, struct err *err)
{
    int rc = 0, n_now;

    for (int pos = 0; pos < n && rc == 0; pos += n_now) {
        struct test_rows r = {.pos0 = pos, .tokens = tokens + pos, .decode = pos >= n_prompt};

        n_now = r.decode ? 1 : n_prompt - pos;
        if (!r.decode && chunk_len > 0 && n_now > chunk_len)
            n_now = chunk_len;
        r.n = n_now;
        r.rope_len = r.decode ? pos + 1 : n_prompt;
        rc = test_model_step(t, &r, 1, logits + (size_t)pos * t->cfg.vocab_size, err);
    }
    return rc;
}

int32_t test_argmax(const float *logits, int n)
{
    int32_t best = 0;

    for (int i = 1; i < n; i++) {
        if (logits[i] > logits[best])
            best = i;
    }
    return best;
}
