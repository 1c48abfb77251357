/*
 * engine_dump - the inside of a running engine as JSON, for /debug and the crash report.
 *
 * Any thread. What changes is read under e->mu, which the engine thread gives up for every forward
 * pass; who cannot get it says so instead of waiting.
 */
#include "engine/engine_state.h"

#include "base/strbuf.h"
#include "engine/kv/kv_sweep.h"

#include <string.h>
#include <time.h>

#define DUMP_TRIES    100 /* a dump waits this many ms for the engine thread, then does without */
#define DUMP_TRY_NS   1000000
#define DUMP_MAX_SEQS 256 /* requests a dump names of each list */

static const char *const state_names[] = {"idle", "waiting", "prefill", "decode"};

/* Locks e->mu, but never waits long: the crash report may come from the thread that holds it. */
static bool lock_for_dump(struct engine *e)
{
    for (int i = 0; i < DUMP_TRIES; i++) {
        struct timespec pause = {.tv_nsec = DUMP_TRY_NS};

        if (pthread_mutex_trylock(&e->mu) == 0)
            return true;
        nanosleep(&pause, NULL);
    }
    return false;
}

static void dump_list(const struct sched_list *list, const char *name, struct strbuf *out)
{
    int n = 0;

    strbuf_addf(out, ",\"%s\":[", name);
    for (const struct sched_seq *s = list->head; s && n < DUMP_MAX_SEQS; s = s->next, n++) {
        const struct request *r = s->owner;

        strbuf_addf(out,
                    "%s{\"id\":%llu,\"state\":\"%s\",\"slot\":%d,\"prompt\":%d,\"tokens\":%d,"
                    "\"done\":%d,\"limit\":%d,\"pages_limit\":%lld,\"growable\":%s,"
                    "\"preempted\":%d}",
                    n ? "," : "", (unsigned long long)r->id, state_names[s->state], s->slot,
                    (int)s->n_prompt, (int)s->n_tokens, (int)s->n_done, (int)s->n_limit,
                    (long long)s->need.n_pages_limit, s->need.growable ? "true" : "false",
                    s->n_preempted);
    }
    strbuf_addf(out, "],\"n_%s\":%d", name, list->n);
}

void engine_dump(struct engine *e, struct strbuf *out)
{
    strbuf_addstr(out, "{\"model\":");
    strbuf_add_json(out, e->info.model_id, strlen(e->info.model_id));
    strbuf_addstr(out, ",\"device\":");
    strbuf_add_json(out, e->info.device, strlen(e->info.device));
    strbuf_addf(out,
                ",\"dtype\":\"%s\",\"pool\":{\"pages\":%lld,\"page_bytes\":%lld,\"bytes\":%lld,"
                "\"page_entries\":%d,\"table_entries\":%lld},\"plan\":",
                e->info.dtype, (long long)e->info.n_pages, (long long)e->info.page_bytes,
                (long long)e->info.kv_bytes, e->env.shape.page_entries, (long long)e->kv.table_len);
    plan_describe(e->plan, e->env.max_seq_len, out);
    if (lock_for_dump(e)) {
        strbuf_addf(out, ",\"pages_free\":%d,\"preemptions\":%lld", (int)e->kv.pool.n_free,
                    (long long)e->sched.n_preemptions);
        dump_list(&e->sched.running, "running", out);
        dump_list(&e->sched.waiting, "waiting", out);
        strbuf_addstr(out, ",\"last_failure\":");
        strbuf_add_json(out, e->failure, strlen(e->failure));
        pthread_mutex_unlock(&e->mu);
    } else {
        strbuf_addstr(out, ",\"busy\":true");
    }
    strbuf_addstr(out, ",\"steps\":");
    stats_dump_recent(&e->stats, out);
    strbuf_addch(out, '}');
}

static const struct sched_seq *seq_in_slot(const struct engine *e, int slot)
{
    const struct sched_seq *s = e->sched.running.head;

    while (s && s->slot != slot)
        s = s->next;
    return s;
}

static void dump_slot(const struct engine *e, int slot, struct strbuf *out)
{
    const struct kv_slot *s = &e->kv.slots[slot];
    const struct sched_seq *seq = seq_in_slot(e, slot);
    const struct request *r = seq ? seq->owner : NULL;

    strbuf_addf(out, "{\"slot\":%d,\"request\":%llu,\"state\":\"%s\",", slot,
                r ? (unsigned long long)r->id : 0ULL, seq ? state_names[seq->state] : "idle");
    strbuf_addf(out,
                "\"tokens\":%d,\"limit\":%d,\"room\":%d,\"fixed\":%s,\"pages\":%lld,"
                "\"pages_limit\":%lld,\"bytes\":%lld",
                seq ? (int)seq->n_done : 0, (int)s->n_limit, (int)s->n_room,
                s->growable ? "false" : "true", (long long)s->n_pages, (long long)s->table_len,
                (long long)(s->n_pages * e->info.page_bytes));
}

/* Every head of a slot: what it keeps and the pages it keeps it in. */
static void dump_heads(const struct engine *e, int slot, struct strbuf *out)
{
    const struct kv_slots *ks = &e->kv;
    int n_kv = ks->shape.n_kv_heads, n_group = ks->shape.n_heads / n_kv;

    strbuf_addstr(out, ",\"heads\":[");
    for (int i = 0; i < kv_shape_heads(&ks->shape); i++) {
        size_t at = (size_t)slot * kv_shape_heads(&ks->shape) + i;
        const int32_t *window = &ks->window[at * n_group];

        strbuf_addf(out, "%s{\"layer\":%d,\"kv_head\":%d,\"sink\":%d,\"ring\":", i ? "," : "",
                    i / n_kv, i % n_kv, (int)ks->geom[at].n_sink);
        if (ks->geom[at].ring == KV_RING_DENSE)
            strbuf_addstr(out, "null");
        else
            strbuf_addf(out, "%d", (int)ks->geom[at].ring);
        strbuf_addf(out, ",\"mask\":\"%s\",\"windows\":[",
                    ks->geom[at].mask == KV_MASK_BLOCK ? "block" : "token");
        for (int q = 0; q < n_group; q++) {
            if (window[q] == KV_WINDOW_ALL)
                strbuf_addf(out, "%snull", q ? "," : "");
            else
                strbuf_addf(out, "%s%d", q ? "," : "", (int)window[q]);
        }
        strbuf_addstr(out, "],\"pages\":[");
        for (int32_t p = 0; p < ks->head_pages[at]; p++)
            strbuf_addf(out, "%s%d", p ? "," : "", (int)ks->page_table[ks->head_base[at] + p]);
        strbuf_addstr(out, "]}");
    }
    strbuf_addch(out, ']');
}

const int32_t *engine_cache_refs(const struct engine *e)
{
    if (!e->sched.cache)
        return NULL;
    memset(e->cache_refs, 0, (size_t)e->kv.pool.n_pages * sizeof(*e->cache_refs));
    prefix_cache_count_refs(e->sched.cache, e->cache_refs);
    return e->cache_refs;
}

static void dump_sweep(const struct engine *e, struct strbuf *out)
{
    struct err err = {0};
    struct kv_sweep sweep;
    int rc = kv_sweep_slots(&sweep, &e->kv, engine_cache_refs(e), &err);

    if (rc < 0) {
        strbuf_addf(out, ",\"sweep\":{\"ok\":%s,\"error\":", rc == ERR_NO_ROOM ? "null" : "false");
        strbuf_add_json(out, err.msg, strlen(err.msg));
        strbuf_addch(out, '}');
        return;
    }
    strbuf_addf(
        out, ",\"sweep\":{\"ok\":true,\"free\":%d,\"held\":%d,\"shared\":%d,\"named\":%lld}",
        (int)sweep.n_free, (int)sweep.n_held, (int)sweep.n_shared, (long long)sweep.n_named);
}

static void dump_pool(const struct engine *e, struct strbuf *out)
{
    const struct kv_slots *ks = &e->kv;
    struct engine_pages pages = engine_count_pages(e);
    int64_t table_used = 0;

    for (int i = 0; i < ks->n_used; i++)
        table_used += ks->slots[ks->by_table[i]].table_len;
    strbuf_addf(out, "{\"page_bytes\":%lld,\"page_entries\":%d,", (long long)e->info.page_bytes,
                ks->shape.page_entries);
    strbuf_addf(out,
                "\"pages\":{\"total\":%d,\"free\":%d,\"idle\":%d,\"prefill\":%lld,\"decode\":%lld,"
                "\"shared\":%lld,\"fixed\":%lld},\"table\":{\"entries\":%lld,\"used\":%lld},",
                (int)ks->pool.n_pages, (int)ks->pool.n_free, (int)ks->pool.n_idle,
                (long long)pages.prefill, (long long)pages.decode, (long long)pages.shared,
                (long long)pages.fixed, (long long)ks->table_len, (long long)table_used);
    strbuf_addf(out, "\"slots\":{\"total\":%d,\"used\":%d}", ks->n_slots, ks->n_used);
}

int engine_dump_kv(struct engine *e, int slot, struct strbuf *out, struct err *err)
{
    bool first = true;
    int rc = 0;

    if (!lock_for_dump(e)) {
        strbuf_addstr(out, "{\"busy\":true}");
        return 0;
    }
    if (slot >= e->kv.n_slots || (slot >= 0 && !e->kv.slots[slot].used)) {
        rc = err_set(err, ERR_NOT_FOUND, "slot %d of %d is not in use", slot, e->kv.n_slots);
    } else if (slot >= 0) {
        dump_slot(e, slot, out);
        dump_heads(e, slot, out);
        strbuf_addch(out, '}');
    } else {
        dump_pool(e, out);
        dump_sweep(e, out);
        strbuf_addstr(out, ",\"running\":[");
        for (int i = 0; i < e->kv.n_slots; i++) {
            if (!e->kv.slots[i].used)
                continue;
            strbuf_addstr(out, first ? "" : ",");
            dump_slot(e, i, out);
            strbuf_addch(out, '}');
            first = false;
        }
        strbuf_addstr(out, "]}");
    }
    pthread_mutex_unlock(&e->mu);
    return rc;
}

int engine_dump_plan(const struct engine *e, int n_tokens, struct strbuf *out, struct err *err)
{
    if (n_tokens < 0 || n_tokens > e->env.max_seq_len)
        return err_set(err, ERR_NOT_FOUND, "no sequence of %d tokens: the context is %d", n_tokens,
                       e->env.max_seq_len);
    plan_describe_all(e->plan, n_tokens ? n_tokens : e->env.max_seq_len, out);
    return 0;
}
