/*
 * sched_prefix - beginnings of prompts. See sched_prefix.h.
 */
#include "engine/sched_prefix.h"

#include "engine/scheduler_impl.h"
#include "base/err.h"

#include <string.h>

#define LOOK_AHEAD 8 /* waiting sequences that a newcomer is compared with */

static int32_t min32(int32_t a, int32_t b)
{
    return a < b ? a : b;
}

static bool takes_snapshots(const struct scheduler *s, const struct sched_seq *seq)
{
    return s->cache && seq->shares_prefix && !seq->need.growable;
}

static int32_t page_tokens(const struct scheduler *s)
{
    return s->kv->shape.page_entries * scheduler_entry_tokens(s);
}

/* Positions that prompts share at a time: pages, or a Block Transformer's blocks. */
static int32_t grain_entries(const struct scheduler *s)
{
    return s->params.block_len ? 1 : s->kv->shape.page_entries;
}

static int32_t grain_tokens(const struct scheduler *s)
{
    return grain_entries(s) * scheduler_entry_tokens(s);
}

/* A sequence's tokens from its lead on: what is compared and counted here. */

static const int32_t *lead_tokens(const struct sched_seq *seq)
{
    return seq->tokens - seq->lead;
}

/* Tokens of whole grains that a prompt can hand on. */
static int32_t whole_grains(const struct scheduler *s, const struct sched_seq *seq)
{
    return scheduler_prompt_entries(s, seq) / grain_entries(s) * grain_tokens(s);
}

/* Tokens of whole grains that a prompt may take from others: its last row must be computed. */
static int32_t shareable(const struct scheduler *s, const struct sched_seq *seq)
{
    int32_t n_grains = (scheduler_prompt_entries(s, seq) - 1) / grain_entries(s);

    return s->cache && seq->shares_prefix && !seq->wants_prompt_logits &&
                   seq->pooling != POOLING_MEAN /* of rows that are computed */
               ? n_grains * grain_tokens(s)
               : 0;
}

/* Tokens of whole grains, up to `most`, that both prompts begin with. */
static int32_t common(const struct scheduler *s, const struct sched_seq *a,
                      const struct sched_seq *b, int32_t most)
{
    const int32_t *x = lead_tokens(a), *y = lead_tokens(b);
    int32_t grain = grain_tokens(s), n = 0;

    if (!a->shares_prefix || !b->shares_prefix || a->need.growable != b->need.growable ||
        a->key.a != b->key.a || a->key.b != b->key.b)
        return 0;
    while (n + grain <= most && !memcmp(x + n, y + n, (size_t)grain * sizeof(*x)))
        n += grain;
    return n;
}

/* Makes a chunk of seq end at n, if it has not come so far; false when there are cuts enough. */
static bool add_cut(struct sched_seq *seq, int32_t n)
{
    int at = 0;

    while (at < seq->n_cuts && seq->cuts[at] < n)
        at++;
    if (at < seq->n_cuts && seq->cuts[at] == n)
        return true;
    if (seq->n_cuts == SCHED_MAX_CUTS)
        return false;
    memmove(&seq->cuts[at + 1], &seq->cuts[at], (size_t)(seq->n_cuts - at) * sizeof(*seq->cuts));
    seq->cuts[at] = n;
    seq->n_cuts++;
    return true;
}

/*
 * Is it better to wait for n tokens, where n_known are there? For a page it is, and for as much as
 * is left then: the few blocks that most prompts begin with cost less than to be late for the
 * blocks that begin now.
 */
static bool is_worth_a_wait(const struct scheduler *s, const struct sched_seq *seq, int32_t n_known,
                            int32_t n)
{
    int32_t n_more = n - (n_known > seq->lead ? n_known : seq->lead);
    int32_t n_left = scheduler_prompt_entries(s, seq) * scheduler_entry_tokens(s) - n;

    return n_more >= page_tokens(s) || (n_more > 0 && n_more >= n_left);
}

/* Is somebody about to compute more of seq's beginning than is known, and enough to wait for? */
static bool is_being_computed(const struct scheduler *s, const struct sched_seq *seq,
                              int32_t n_known)
{
    int32_t most = shareable(s, seq);

    for (struct sched_seq *r = s->running.head; r; r = r->next) {
        int32_t n;

        if (r->state != SEQ_PREFILL)
            continue;
        n = common(s, r, seq, min32(most, whole_grains(s, r)));
        if (is_worth_a_wait(s, seq, n_known, n) && n > r->n_done * scheduler_entry_tokens(s) &&
            (seq->need.growable || add_cut(r, n)))
            return true;
    }
    return false;
}

/* Where chunks of a newcomer are to end, n_common being what it shares with earlier prompts. */
static void plan_cuts(struct scheduler *s, struct sched_seq *seq, int32_t n_known, int32_t n_common)
{
    const struct sched_seq *w = seq->next;
    int32_t page = s->kv->shape.page_entries;

    seq->n_cuts = 0;
    add_cut(seq, (seq->n_prompt - 1) / page * page);
    add_cut(seq, n_common);
    for (int i = 0; i < LOOK_AHEAD && w; i++, w = w->next)
        add_cut(seq, common(s, seq, w, min32(whole_grains(s, seq), shareable(s, w))));
    while (seq->n_cuts > 0 && seq->cuts[0] <= n_known)
        memmove(&seq->cuts[0], &seq->cuts[1], (size_t)--seq->n_cuts * sizeof(*seq->cuts));
}

/* Whole pages are all that is taken. */
static void forget_part(const struct scheduler *s, struct sched_prefix_hit *hit)
{
    hit->shared.part = NULL;
    hit->n_tokens = hit->shared.n * page_tokens(s);
}

bool sched_prefix_find(struct scheduler *s, struct sched_seq *seq, struct sched_prefix_hit *hit)
{
    *hit = (struct sched_prefix_hit){.node = PREFIX_NONE, .n_shareable = shareable(s, seq)};
    if (takes_snapshots(s, seq)) {
        struct kv_snapshot_hit known =
            kv_snapshot_find(&s->cache->snapshots, seq->key, seq->tokens, hit->n_shareable);

        if (hit->n_shareable && is_being_computed(s, seq, known.n_tokens))
            return false;
        hit->n_tokens = known.n_tokens;
        hit->pages = known.pages;
        plan_cuts(s, seq, known.n_tokens, known.n_common);
    } else if (hit->n_shareable) {
        struct prefix_hit known =
            prefix_cache_find(s->cache, seq->key, lead_tokens(seq), hit->n_shareable);

        if (is_being_computed(s, seq, known.n_tokens))
            return false;
        hit->n_tokens = known.n_tokens;
        hit->node = known.node;
        hit->shared = known.shared;
        if (hit->n_tokens <= seq->lead)
            forget_part(s, hit); /* no copy for the sake of the lead alone */
    }
    return true;
}

/* Positions that a newcomer must have room for: those of its tokens, and one more. */
static int32_t first_entries(const struct scheduler *s, const struct sched_seq *seq)
{
    int32_t n = (seq->lead + seq->n_tokens) / scheduler_entry_tokens(s) + 1;

    return min32(n, seq->need.n_limit);
}

int sched_prefix_seat(struct scheduler *s, const struct sched_seq *seq, int64_t headroom,
                      struct sched_prefix_hit *hit)
{
    struct kv_copies *copies = s->cache ? &s->cache->snapshots.out_of : NULL;
    int slot;

    if (hit->pages) {
        slot = kv_slot_take_copied(s->kv, &seq->need, hit->n_tokens, headroom, hit->pages, copies);
        if (slot >= 0)
            return slot;
        hit->n_tokens = 0;
        hit->pages = NULL;
    }
    slot = kv_slot_take_shared(s->kv, &seq->need, first_entries(s, seq), headroom, &hit->shared,
                               copies);
    if (slot >= 0 || !hit->shared.part)
        return slot;
    forget_part(s, hit);
    return kv_slot_take_shared(s->kv, &seq->need, first_entries(s, seq), headroom, &hit->shared,
                               NULL);
}

int32_t sched_prefix_cut(const struct sched_seq *seq, int32_t end)
{
    for (int i = 0; i < seq->n_cuts; i++) {
        if (seq->cuts[i] > seq->n_done)
            return min32(end, seq->cuts[i]);
    }
    return end;
}

void sched_prefix_planned(struct scheduler *s, const struct sched_seq *seq, int32_t end)
{
    for (int i = 0; takes_snapshots(s, seq) && i < seq->n_cuts; i++) {
        if (seq->cuts[i] == end)
            kv_snapshot_add(&s->cache->snapshots, seq->key, seq->tokens, end, seq->slot);
    }
}

/* The prompt pages that were completed, or begun, from position `from` on go into the cache. */
void sched_prefix_queued(struct scheduler *s, struct sched_seq *seq, int32_t from)
{
    int32_t page = s->kv->shape.page_entries;

    if (!s->cache || !seq->shares_prefix || !seq->need.growable)
        return;
    for (int32_t p = from / page; p * page < seq->n_done; p++) {
        int32_t n = min32(page, seq->n_done - p * page) / grain_entries(s) * grain_tokens(s);

        if (n == 0 || seq->prefix_node == PREFIX_FOREIGN)
            return;
        seq->prefix_node =
            prefix_cache_add(s->cache, seq->key, seq->prefix_node,
                             lead_tokens(seq) + (int64_t)p * page_tokens(s), n, seq->slot, p);
    }
}
