/*
 * step_replay - a recorded run of the scheduler, once more and without a model.
 *
 * The trace (step_trace.h) has the scheduler's inputs in the order they came, so the same code must
 * decide the same. Prompts are made up: pages that had the same hash get the same tokens, which is
 * all that the prefix cache looks at. The file is input: every number is checked before it is used.
 */
#include "base/err.h"
#include "base/strbuf.h"
#include "engine/engine.h"
#include "engine/step_trace.h"

#include <errno.h>
#include <jansson.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define MAX_SLOTS  65536
#define MAX_HEADS  (1 << 20)
#define MAX_TOKENS (1 << 26)
#define MAX_BLOCK  256

struct geometry {
    int64_t number;
    int n_refs;
    struct kv_geom heads[];
};

struct replay_seq {
    struct sched_seq seq;
    uint64_t id;
    struct geometry *geometry;
    int32_t *tokens; /* [lead + limit] */
};

struct replay {
    struct kv_slots kv;
    struct prefix_cache cache;
    struct scheduler sched;
    bool has_kv, has_cache, has_sched;
    int32_t *windows; /* all the same: they decide nothing */
    struct geometry **geoms;
    int64_t n_geoms;
    struct replay_seq **seqs; /* [n_seqs] that have not ended */
    int n_seqs, n_alloc;
    struct strbuf text;
    int line;
    struct engine_replay *told;
};

static uint64_t id_of(const struct sched_seq *seq)
{
    return ((const struct replay_seq *)seq->owner)->id;
}

static int bad(const struct replay *r, struct err *err, const char *what)
{
    return err_set(err, ERR_PARSE, "line %d: %s", r->line, what);
}

/* A member that is an integer of low..high. */
static int get_int(const struct replay *r, const json_t *o, const char *key, int64_t low,
                   int64_t high, int64_t *out, struct err *err)
{
    const json_t *v = json_object_get(o, key);

    *out = json_integer_value(v);
    if (!json_is_integer(v) || *out < low || *out > high)
        return err_set(err, ERR_PARSE, "line %d: %s is missing or out of range", r->line, key);
    return 0;
}

/* Tokens of a position of keys. */
static int entry_tokens(const struct replay *r)
{
    return r->sched.params.block_len ? r->sched.params.block_len : 1;
}

/* The head of the trace */

struct head_field {
    const char *key;
    int64_t low, high, value;
};

static int open_scheduler(struct replay *r, const json_t *o, struct err *err)
{
    struct head_field f[] = {
        {"trace", STEP_TRACE_VERSION, STEP_TRACE_VERSION, 0},
        {"max_batch", 1, MAX_SLOTS, 0},
        {"chunk_tokens", 1, MAX_TOKENS, 0},
        {"max_logits", 2, MAX_TOKENS, 0},
        {"max_seen", 0, INT32_MAX, 0},
        {"block_len", 0, MAX_BLOCK, 0},
        {"n_prefix", 0, MAX_BLOCK, 0},
        {"n_layers", 1, 4096, 0},
        {"n_heads", 1, 4096, 0},
        {"n_kv_heads", 1, 4096, 0},
        {"head_dim", 1, 65536, 0},
        {"page_entries", 2, KV_TILE, 0},
        {"n_pages", 1, MAX_TOKENS, 0},
        {"table_len", 1, INT32_MAX, 0},
    };
    struct sched_params params;
    struct kv_shape shape;
    int rc = 0;

    for (size_t i = 0; rc == 0 && i < sizeof(f) / sizeof(f[0]); i++)
        rc = get_int(r, o, f[i].key, f[i].low, f[i].high, &f[i].value, err);
    if (rc < 0)
        return rc;
    params =
        (struct sched_params){.max_batch = (int)f[1].value,
                              .chunk_tokens = (int)f[2].value,
                              .max_logits = (int)f[3].value,
                              .max_seen = (int32_t)f[4].value,
                              .block_len = (int)f[5].value,
                              .n_prefix = (int)f[6].value,
                              .whole_blocks = json_is_true(json_object_get(o, "whole_blocks"))};
    shape = (struct kv_shape){.n_layers = (int)f[7].value,
                              .n_heads = (int)f[8].value,
                              .n_kv_heads = (int)f[9].value,
                              .head_dim = (int)f[10].value,
                              .page_entries = (int)f[11].value,
                              .dtype = DTYPE_F32};
    if (params.max_logits <= params.max_batch || shape.n_heads % shape.n_kv_heads ||
        KV_TILE % shape.page_entries || kv_shape_heads(&shape) > MAX_HEADS)
        return bad(r, err, "the sizes contradict each other");
    r->windows = malloc((size_t)shape.n_layers * shape.n_heads * sizeof(*r->windows));
    if (!r->windows)
        return err_set(err, ERR_NO_ROOM, "out of memory");
    for (int i = 0; i < shape.n_layers * shape.n_heads; i++)
        r->windows[i] = KV_WINDOW_ALL;
    rc = kv_slots_init(&r->kv, &shape, params.max_batch, (int32_t)f[12].value, f[13].value, err);
    r->has_kv = rc == 0;
    if (rc == 0)
        rc = scheduler_init(&r->sched, &params, &r->kv, err);
    r->has_sched = rc == 0;
    if (rc == 0 && json_is_true(json_object_get(o, "prefix_cache"))) {
        rc = prefix_cache_init(&r->cache, &r->kv, entry_tokens(r), params.block_len > 0, err);
        r->has_cache = rc == 0;
        r->sched.cache = rc == 0 ? &r->cache : NULL;
    }
    return rc;
}

/* Geometries */

static void drop_geometry(struct geometry *g)
{
    if (g && --g->n_refs == 0)
        free(g);
}

static bool read_heads(struct geometry *g, int n_heads, const json_t *runs)
{
    int at = 0;

    for (size_t i = 0; i < json_array_size(runs); i++) {
        int64_t v[4];

        for (size_t k = 0; k < 4; k++) {
            const json_t *n = json_array_get(json_array_get(runs, i), k);

            v[k] = json_integer_value(n);
            if (!json_is_integer(n) || v[k] < 0 || v[k] > KV_RING_DENSE)
                return false;
        }
        if (v[0] == 0 || v[0] > n_heads - at || v[2] == 0 || v[2] % KV_TILE || v[3] > KV_MASK_BLOCK)
            return false;
        for (int64_t k = 0; k < v[0]; k++)
            g->heads[at++] = (struct kv_geom){(int32_t)v[1], (int32_t)v[2], (int32_t)v[3]};
    }
    return at == n_heads;
}

static int add_geometry(struct replay *r, const json_t *o, struct err *err)
{
    int n_heads = kv_shape_heads(&r->kv.shape);
    struct geometry **more, *g;
    int64_t number;

    if (get_int(r, o, "geom", r->n_geoms, r->n_geoms, &number, err) < 0)
        return ERR_PARSE;
    more = realloc(r->geoms, (size_t)(r->n_geoms + 1) * sizeof(struct geometry *));
    g = more ? calloc(1, sizeof(*g) + (size_t)n_heads * sizeof(g->heads[0])) : NULL;
    if (more)
        r->geoms = more;
    if (!g)
        return err_set(err, ERR_NO_ROOM, "out of memory");
    g->number = number;
    g->n_refs = 1;
    r->geoms[r->n_geoms++] = g;
    if (!read_heads(g, n_heads, json_object_get(o, "heads")))
        return bad(r, err, "heads are malformed");
    return 0;
}

/* Sequences */

static void free_seq(struct replay_seq *s)
{
    if (!s)
        return;
    drop_geometry(s->geometry);
    free(s->tokens);
    free(s);
}

static int find_seq(const struct replay *r, uint64_t id)
{
    for (int i = 0; i < r->n_seqs; i++) {
        if (r->seqs[i]->id == id)
            return i;
    }
    return -1;
}

/* The hash of a page, or block, in two of its tokens; what is behind the last is compared by
 * nobody. */
static int fill_tokens(struct replay *r, struct replay_seq *s, const json_t *pages, struct err *err)
{
    int page = r->sched.params.block_len ? r->sched.params.block_len : r->kv.shape.page_entries;

    if ((int64_t)json_array_size(pages) != (s->seq.lead + s->seq.n_prompt) / page)
        return bad(r, err, "pages are not those of the prompt");
    for (size_t i = 0; i < json_array_size(pages); i++) {
        int64_t h = json_integer_value(json_array_get(pages, i));

        s->tokens[i * (size_t)page] = (int32_t)(h & 0x7fffffff);
        if (page > 1)
            s->tokens[i * (size_t)page + 1] = (int32_t)(h >> 31 & 0x7fffffff);
    }
    return 0;
}

static int read_seq(struct replay *r, struct replay_seq *s, const json_t *o, struct err *err)
{
    struct sched_seq *q = &s->seq;
    int64_t id, prompt, lead, limit, entries, geom, seen, priority, first, pooling;
    int rc, n = entry_tokens(r);
    bool is_block = r->sched.params.block_len > 0;

    if (get_int(r, o, "add", 1, INT64_MAX, &id, err) < 0 ||
        get_int(r, o, "limit", 1, MAX_TOKENS, &limit, err) < 0 ||
        get_int(r, o, "lead", 0, is_block ? MAX_BLOCK : 0, &lead, err) < 0 ||
        get_int(r, o, "prompt", lead ? 0 : 1, limit, &prompt, err) < 0 ||
        get_int(r, o, "entries", is_block ? 0 : limit, is_block ? (lead + limit) / n + 1 : limit,
                &entries, err) < 0 ||
        get_int(r, o, "geom", 0, r->n_geoms - 1, &geom, err) < 0 ||
        get_int(r, o, "seen", 0, INT32_MAX, &seen, err) < 0 ||
        get_int(r, o, "priority", INT32_MIN, INT32_MAX, &priority, err) < 0 ||
        get_int(r, o, "first_logits", 0, prompt, &first, err) < 0 ||
        get_int(r, o, "pooling", POOLING_NONE, POOLING_LAST, &pooling, err) < 0)
        return ERR_PARSE;
    if (find_seq(r, (uint64_t)id) >= 0)
        return bad(r, err, "the sequence is there already");
    s->id = (uint64_t)id;
    s->geometry = r->geoms[geom];
    s->geometry->n_refs++;
    s->tokens = calloc((size_t)(lead + limit), sizeof(*s->tokens));
    if (!s->tokens)
        return err_set(err, ERR_NO_ROOM, "out of memory");
    *q = (struct sched_seq){.owner = s,
                            .tokens = s->tokens + lead,
                            .lead = (int32_t)lead,
                            .n_limit = (int32_t)limit,
                            .n_prompt = (int32_t)prompt,
                            .n_tokens = (int32_t)prompt,
                            .n_seen_max = (int32_t)seen,
                            .priority = (int32_t)priority,
                            .pooling = (enum engine_pooling)pooling,
                            .first_logits_row = (int32_t)first};
    q->wants_prompt_logits = json_is_true(json_object_get(o, "prompt_logits"));
    q->needs_tokens = json_is_true(json_object_get(o, "needs_tokens"));
    q->shares_prefix = json_is_true(json_object_get(o, "shares"));
    q->key.a = (uint64_t)json_integer_value(json_object_get(o, "key"));
    kv_need_init(&q->need, &r->kv.shape, s->geometry->heads, r->windows, (int32_t)entries);
    if (q->shares_prefix && r->has_cache) {
        if (!prefix_cache_suits(&r->kv.shape, &q->need))
            return bad(r, err, "the sequence cannot share pages");
        rc = fill_tokens(r, s, json_object_get(o, "pages"), err);
        if (rc < 0)
            return rc;
    }
    if (!scheduler_could_hold(&r->sched, q))
        return bad(r, err, "the pool could never hold the sequence");
    return 0;
}

static int add_seq(struct replay *r, const json_t *o, struct err *err)
{
    struct replay_seq *s = calloc(1, sizeof(*s));
    int rc = s ? read_seq(r, s, o, err) : err_set(err, ERR_NO_ROOM, "out of memory");

    if (rc == 0 && r->n_seqs == r->n_alloc) {
        int n = r->n_alloc ? 2 * r->n_alloc : 64;
        struct replay_seq **more = realloc(r->seqs, (size_t)n * sizeof(struct replay_seq *));

        if (more) {
            r->seqs = more;
            r->n_alloc = n;
        } else {
            rc = err_set(err, ERR_NO_ROOM, "out of memory");
        }
    }
    if (rc < 0) {
        free_seq(s);
        return rc;
    }
    r->seqs[r->n_seqs++] = s;
    scheduler_add(&r->sched, &s->seq);
    r->told->n_sequences++;
    return 0;
}

static int take_tokens(struct replay *r, const json_t *ids, struct err *err)
{
    for (size_t i = 0; i < json_array_size(ids); i++) {
        int k = find_seq(r, (uint64_t)json_integer_value(json_array_get(ids, i)));
        struct sched_seq *q = k < 0 ? NULL : &r->seqs[k]->seq;

        if (!q || q->n_pending == 0 || q->n_tokens == q->n_limit)
            return bad(r, err, "a token of a sequence that wants none");
        scheduler_push_token(q);
    }
    return 0;
}

static int end_seqs(struct replay *r, const json_t *ids, struct err *err)
{
    for (size_t i = 0; i < json_array_size(ids); i++) {
        int k = find_seq(r, (uint64_t)json_integer_value(json_array_get(ids, i)));

        if (k < 0)
            return bad(r, err, "the end of a sequence that is not there");
        if (r->seqs[k]->seq.state != SEQ_IDLE)
            scheduler_remove(&r->sched, &r->seqs[k]->seq);
        free_seq(r->seqs[k]);
        r->seqs[k] = r->seqs[--r->n_seqs];
    }
    return 0;
}

/* Steps */

static int plan(struct replay *r, json_t *o, struct err *err)
{
    const struct sched_step *step = scheduler_plan(&r->sched);
    struct strbuf *text = &r->text;
    json_t *now;
    bool same;

    strbuf_reset(text);
    strbuf_addch(text, '{');
    step_trace_format(&r->sched, id_of, text);
    strbuf_addch(text, '}');
    now = json_loadb(text->buf, text->len, 0, NULL);
    json_object_del(o, "step");
    json_object_del(o, "us");
    same = now && json_equal(o, now);
    json_decref(now);
    if (!same) {
        char *was = json_dumps(o, JSON_COMPACT | JSON_PRESERVE_ORDER);

        r->told->differs = true;
        err_set(err, ERR_INVALID, "line %d, step %lld: decided %.240s, the trace has %.240s",
                r->line, (long long)r->told->n_steps, text->buf, was ? was : "?");
        free(was);
        return ERR_INVALID;
    }
    r->told->n_steps += step->n_rows > 0;
    r->told->n_rows += step->n_rows;
    r->told->n_preemptions = r->sched.n_preemptions;
    if (step->n_rows > 0)
        scheduler_queued(&r->sched);
    return 0;
}

static int take_line(struct replay *r, json_t *o, struct err *err)
{
    int rc;

    if (!r->has_sched)
        return open_scheduler(r, o, err);
    if (json_object_get(o, "step"))
        return plan(r, o, err);
    if (json_object_get(o, "add"))
        return add_seq(r, o, err);
    if (json_object_get(o, "geom"))
        return add_geometry(r, o, err);
    if (json_object_get(o, "clear")) {
        if (r->has_cache)
            prefix_cache_clear(&r->cache);
        return 0;
    }
    if (!json_object_get(o, "tokens"))
        return bad(r, err, "nothing that a trace has");
    rc = take_tokens(r, json_object_get(o, "tokens"), err);
    return rc < 0 ? rc : end_seqs(r, json_object_get(o, "end"), err);
}

static void release(struct replay *r)
{
    for (int i = 0; i < r->n_seqs; i++) {
        if (r->seqs[i]->seq.state != SEQ_IDLE)
            scheduler_remove(&r->sched, &r->seqs[i]->seq);
        free_seq(r->seqs[i]);
    }
    for (int64_t i = 0; i < r->n_geoms; i++)
        drop_geometry(r->geoms[i]);
    if (r->has_cache)
        prefix_cache_release(&r->cache);
    if (r->has_sched)
        scheduler_release(&r->sched);
    if (r->has_kv)
        kv_slots_release(&r->kv);
    strbuf_release(&r->text);
    free(r->seqs);
    free(r->geoms);
    free(r->windows);
}

int engine_replay(const char *path, struct engine_replay *out, struct err *err)
{
    struct replay r = {.text = STRBUF_INIT, .told = out};
    FILE *f = fopen(path, "re");
    char *line = NULL;
    size_t alloc = 0;
    ssize_t len;
    int rc = 0;

    *out = (struct engine_replay){0};
    if (!f)
        return err_set_errno(err, ERR_IO, errno, "trace %s", path);
    while (rc == 0 && (len = getline(&line, &alloc, f)) > 0) {
        json_t *o = json_loadb(line, (size_t)len, JSON_REJECT_DUPLICATES, NULL);

        r.line++;
        if (json_is_object(o))
            rc = take_line(&r, o, err);
        else if (line[len - 1] != '\n' && r.line > 1)
            out->is_cut = true; /* the daemon was killed while it wrote */
        else
            rc = bad(&r, err, "no JSON object");
        json_decref(o);
    }
    if (rc == 0 && ferror(f))
        rc = err_set_errno(err, ERR_IO, errno, "trace %s", path);
    if (rc == 0 && !r.has_sched)
        rc = err_set(err, ERR_PARSE, "trace %s: it is empty", path);
    out->n_open = r.n_seqs;
    free(line);
    fclose(f);
    release(&r);
    return rc;
}
