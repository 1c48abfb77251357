/*
 * step_trace - the scheduler's calls and decisions as JSON lines. See step_trace.h.
 */
#include "engine/step_trace.h"

#include "base/clock.h"
#include "base/err.h"
#include "base/log.h"
#include "base/strbuf.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/random.h>

#define N_GEOMS 64 /* geometries kept to be named again; prompts of many lengths have many */

struct step_trace {
    FILE *file;
    step_trace_id_fn *id_of;
    int64_t n_steps, start_ns, n_geoms;
    uint64_t secret;
    int n_heads;
    struct kv_geom *geoms; /* [N_GEOMS, n_heads] number k lies at k % N_GEOMS */
    struct strbuf line, tokens, ends;
    bool has_failed;
};

static uint64_t mix(uint64_t h, uint64_t v)
{
    h = (h ^ v) * 0xff51afd7ed558ccdu;
    return h ^ h >> 32;
}

/* Hashes are read again as JSON's integers. */
static long long shown(uint64_t h)
{
    return (long long)(h >> 1);
}

/* A disk that is full ends the trace, not the daemon. */
static void put(struct step_trace *t)
{
    if (!t->has_failed &&
        (t->line.failed || fwrite(t->line.buf, 1, t->line.len, t->file) < t->line.len)) {
        log_error("trace: cannot write, it ends here");
        t->has_failed = true;
    }
    strbuf_reset(&t->line);
}

/* Tokens and ends of different sequences change places freely; an end comes behind its tokens. */
static void put_news(struct step_trace *t)
{
    if (t->tokens.len + t->ends.len == 0)
        return;
    strbuf_addf(&t->line, "{\"tokens\":[%s],\"end\":[%s]}\n", t->tokens.buf, t->ends.buf);
    t->line.failed |= t->tokens.failed | t->ends.failed;
    strbuf_reset(&t->tokens);
    strbuf_reset(&t->ends);
    put(t);
}

static void put_head(struct step_trace *t, const struct scheduler *s)
{
    const struct kv_slots *kv = s->kv;

    strbuf_addf(&t->line,
                "{\"trace\":%d,\"max_batch\":%d,\"chunk_tokens\":%d,\"max_logits\":%d,"
                "\"max_seen\":%d,\"block_len\":%d,\"n_prefix\":%d,\"n_layers\":%d,\"n_heads\":%d,"
                "\"n_kv_heads\":%d,\"head_dim\":%d,"
                "\"page_entries\":%d,\"n_pages\":%d,\"table_len\":%lld,\"prefix_cache\":%s,"
                "\"whole_blocks\":%s}\n",
                STEP_TRACE_VERSION, s->params.max_batch, s->params.chunk_tokens,
                s->params.max_logits, s->params.max_seen, s->params.block_len, s->params.n_prefix,
                kv->shape.n_layers, kv->shape.n_heads, kv->shape.n_kv_heads, kv->shape.head_dim,
                kv->shape.page_entries, kv->pool.n_pages, (long long)kv->table_len,
                s->cache ? "true" : "false", s->params.whole_blocks ? "true" : "false");
    put(t);
}

int step_trace_open(struct step_trace **out, const char *path, step_trace_id_fn *id_of,
                    const struct scheduler *s, struct err *err)
{
    struct step_trace *t;

    *out = NULL;
    if (!path || !*path)
        return 0;
    t = calloc(1, sizeof(*t));
    if (!t)
        return err_set(err, ERR_NO_ROOM, "trace %s: out of memory", path);
    strbuf_init(&t->line);
    strbuf_init(&t->tokens);
    strbuf_init(&t->ends);
    t->id_of = id_of;
    t->n_heads = kv_shape_heads(&s->kv->shape);
    t->start_ns = clock_ns();
    if (getrandom(&t->secret, sizeof(t->secret), GRND_NONBLOCK) < (ssize_t)sizeof(t->secret))
        t->secret = (uint64_t)clock_ns();
    t->geoms = calloc((size_t)N_GEOMS * t->n_heads, sizeof(*t->geoms));
    t->file = t->geoms ? fopen(path, "we") : NULL;
    if (!t->file) {
        int rc = err_set_errno(err, ERR_IO, errno, "trace %s", path);

        step_trace_close(t);
        return rc;
    }
    put_head(t, s);
    *out = t;
    return 0;
}

void step_trace_close(struct step_trace *t)
{
    if (!t)
        return;
    if (t->file) {
        put_news(t);
        if (fclose(t->file) != 0 && !t->has_failed)
            log_error("trace: cannot write its end");
    }
    strbuf_release(&t->line);
    strbuf_release(&t->tokens);
    strbuf_release(&t->ends);
    free(t->geoms);
    free(t);
}

void step_trace_flush(struct step_trace *t)
{
    if (!t)
        return;
    put_news(t);
    if (fflush(t->file) != 0 && !t->has_failed) {
        log_error("trace: cannot write, it ends here");
        t->has_failed = true;
    }
}

/* The number of a geometry, which gets a line of its own when it is not among the last ones. */
static int64_t name_geom(struct step_trace *t, const struct kv_geom *geom)
{
    size_t bytes = (size_t)t->n_heads * sizeof(*geom);
    int64_t first = t->n_geoms > N_GEOMS ? t->n_geoms - N_GEOMS : 0;
    int n;

    for (int64_t k = t->n_geoms - 1; k >= first; k--) {
        if (!memcmp(&t->geoms[k % N_GEOMS * t->n_heads], geom, bytes))
            return k;
    }
    memcpy(&t->geoms[t->n_geoms % N_GEOMS * t->n_heads], geom, bytes);
    strbuf_addf(&t->line, "{\"geom\":%lld,\"heads\":[", (long long)t->n_geoms);
    for (int i = 0; i < t->n_heads; i += n) {
        for (n = 1; i + n < t->n_heads && !memcmp(&geom[i], &geom[i + n], sizeof(*geom)); n++)
            ;
        strbuf_addf(&t->line, "%s[%d,%d,%d,%d]", i ? "," : "", n, geom[i].n_sink, geom[i].ring,
                    geom[i].mask);
    }
    strbuf_addstr(&t->line, "]}\n");
    put(t);
    return t->n_geoms++;
}

/* Whole pages or blocks of the prompt, each with all before it: what the prefix cache compares. */
static void add_pages(struct step_trace *t, const struct scheduler *s, const struct sched_seq *seq)
{
    int page = s->params.block_len ? s->params.block_len : s->kv->shape.page_entries;
    const int32_t *tokens = seq->tokens - seq->lead;
    uint64_t key = mix(mix(t->secret, seq->key.a), seq->key.b), h = t->secret;

    strbuf_addf(&t->line, ",\"key\":%lld,\"pages\":[", shown(key));
    for (int32_t at = 0; at + page <= seq->lead + seq->n_prompt; at += page) {
        for (int i = 0; i < page; i++)
            h = mix(h, (uint32_t)tokens[at + i]);
        strbuf_addf(&t->line, "%s%lld", at ? "," : "", shown(h));
    }
    strbuf_addch(&t->line, ']');
}

void step_trace_add(struct step_trace *t, const struct scheduler *s, const struct sched_seq *seq)
{
    int64_t geom;

    if (!t)
        return;
    put_news(t);
    geom = name_geom(t, seq->need.geom);
    strbuf_addf(&t->line,
                "{\"add\":%llu,\"prompt\":%d,\"lead\":%d,\"limit\":%d,\"entries\":%d,\"geom\":%lld,"
                "\"seen\":%d,"
                "\"priority\":%d,\"prompt_logits\":%s,\"first_logits\":%d,\"pooling\":%d,"
                "\"needs_tokens\":%s,\"shares\":%s",
                (unsigned long long)t->id_of(seq), seq->n_prompt, seq->lead, seq->n_limit,
                seq->need.n_limit, (long long)geom, seq->n_seen_max, seq->priority,
                seq->wants_prompt_logits ? "true" : "false", seq->first_logits_row,
                (int)seq->pooling, seq->needs_tokens ? "true" : "false",
                seq->shares_prefix ? "true" : "false");
    if (s->cache && seq->shares_prefix)
        add_pages(t, s, seq);
    strbuf_addstr(&t->line, "}\n");
    put(t);
}

static void add_ids(struct strbuf *out, const char *key, step_trace_id_fn *id_of,
                    struct sched_seq *const *seqs, int n)
{
    strbuf_addf(out, ",\"%s\":[", key);
    for (int i = 0; i < n; i++)
        strbuf_addf(out, "%s%llu", i ? "," : "", (unsigned long long)id_of(seqs[i]));
    strbuf_addch(out, ']');
}

/* Is it the token decoder's? */
static bool is_token(const struct sched_item *item)
{
    return item->kind == SCHED_TOKEN || item->kind == SCHED_WHOLE;
}

void step_trace_format(const struct scheduler *s, step_trace_id_fn *id_of, struct strbuf *out)
{
    const struct sched_step *step = &s->step;

    const char *comma = "";
    int n_first = 0;

    while (n_first < step->n_items && step->items[n_first].is_decode &&
           !is_token(&step->items[n_first]))
        n_first++;
    strbuf_addf(out, "\"rows\":%d,\"decode\":[", step->n_rows);
    for (int i = 0; i < n_first; i++)
        strbuf_addf(out, "%s%llu", i ? "," : "", (unsigned long long)id_of(step->items[i].seq));
    strbuf_addstr(out, "],\"prefill\":[");
    for (int i = n_first; i < step->n_items && !is_token(&step->items[i]); i++)
        strbuf_addf(out, "%s[%llu,%d,%d]", i > n_first ? "," : "",
                    (unsigned long long)id_of(step->items[i].seq), (int)step->items[i].pos0,
                    (int)step->items[i].n_rows);
    strbuf_addch(out, ']');
    if (s->params.block_len) {
        strbuf_addf(out, ",\"phase\":%d", step->phase);
        if (step->n_phases > 1)
            strbuf_addf(out, ",\"phases\":%d", step->n_phases);
        strbuf_addstr(out, ",\"token\":[");
        for (int i = n_first; i < step->n_items; i++) {
            if (!is_token(&step->items[i]))
                continue;
            strbuf_addf(out, "%s[%llu,%d,%d]", comma, (unsigned long long)id_of(step->items[i].seq),
                        (int)step->items[i].pos0, (int)step->items[i].seat);
            comma = ",";
        }
        strbuf_addch(out, ']');
    }
    add_ids(out, "admit", id_of, step->admitted, step->n_admitted);
    add_ids(out, "preempt", id_of, step->preempted, step->n_preempted);
    strbuf_addf(out, ",\"stalled\":%d,\"waiting\":%d,\"free_pages\":%d", step->n_stalled,
                s->waiting.n, (int)s->kv->pool.n_free);
}

void step_trace_write(struct step_trace *t, const struct scheduler *s)
{
    const struct sched_step *step = &s->step;

    if (!t)
        return;
    /* An empty plan has touched nothing unless somebody waits to be let in. */
    if (step->n_rows == 0 && step->n_preempted == 0 && s->waiting.n == 0)
        return;
    put_news(t);
    strbuf_addf(&t->line, "{\"step\":%lld,\"us\":%lld,", (long long)t->n_steps,
                (long long)(clock_ns() - t->start_ns) / 1000);
    t->n_steps += step->n_rows > 0;
    step_trace_format(s, t->id_of, &t->line);
    strbuf_addstr(&t->line, "}\n");
    put(t);
}

static void add_id(struct step_trace *t, struct strbuf *list, const struct sched_seq *seq)
{
    strbuf_addf(list, "%s%llu", list->len ? "," : "", (unsigned long long)t->id_of(seq));
}

void step_trace_token(struct step_trace *t, const struct sched_seq *seq)
{
    if (t)
        add_id(t, &t->tokens, seq);
}

void step_trace_end(struct step_trace *t, const struct sched_seq *seq)
{
    if (t)
        add_id(t, &t->ends, seq);
}

void step_trace_clear(struct step_trace *t)
{
    if (!t)
        return;
    put_news(t);
    strbuf_addstr(&t->line, "{\"clear\":true}\n");
    put(t);
}
