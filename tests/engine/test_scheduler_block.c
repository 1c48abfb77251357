/*
 * The scheduler of Block Transformers as a state machine: random loads on a model that is a record
 * of which block was written where, and of which block each seat of the token decoder is at.
 *
 * An entry of a page holds a hash of all tokens up to its block's end, so that pages which two
 * sequences share, or of which one copied what it begins with, must have been written for equal
 * beginnings. The pool is swept behind every plan.
 */
#include "base/err.h"
#include "base/rng.h"
#include "engine/kv/kv_sweep.h"
#include "engine/scheduler.h"
#include "tests/lib/test.h"

#include <stdlib.h>
#include <string.h>

#define N_HEADS      2
#define PAGE_ENTRIES 4
#define MAX_SEQS     24
#define MAX_PROMPT   90
#define MAX_LEN      150
#define MAX_LEAD     8
#define MAX_POOL     120
#define MAX_ITEMS    80
#define MAX_LOGITS   48

static const struct kv_shape shape = {.n_layers = 1,
                                      .n_heads = N_HEADS,
                                      .n_kv_heads = N_HEADS,
                                      .head_dim = 8,
                                      .page_entries = PAGE_ENTRIES};

struct fake_seq {
    struct sched_seq seq;
    struct kv_geom geom[N_HEADS];
    int32_t window[N_HEADS];
    int32_t memory[MAX_LEAD + MAX_LEN]; /* lead and tokens, those to come too */
    int n_seen[MAX_PROMPT];             /* logits of each prompt token */
    int n_finished, arrives_at, cancel_at, stop_after;
    bool prompt_ended;
};

/* A block that the token decoder is at: what its seat holds. */
struct seat {
    const struct fake_seq *f;
    int block, phase;
};

struct queued {
    struct sched_item items[MAX_ITEMS];
    int n_items;
};

struct world {
    struct kv_slots kv;
    struct prefix_cache cache;
    struct scheduler sched;
    struct fake_seq seqs[MAX_SEQS];
    uint64_t entry[MAX_POOL][PAGE_ENTRIES];
    struct seat seats[MAX_LOGITS];
    struct queued queue[2];
    int n_queued, run_ahead, n_seqs, n_live, len, max_batch, phase;
    int64_t n_dropped, n_forced, n_whole, n_surplus, n_copied;
    uint64_t seed, draws;
};

static struct world w;

#define REQUIRE(cond)                                                                              \
    do {                                                                                           \
        if (!(cond))                                                                               \
            ck_abort_msg("seed %d: %s", (int)w.seed, #cond);                                       \
    } while (0)

static int draw(int below)
{
    return (int)(rng_u64(w.seed, 3, (int64_t)w.draws++) % (uint64_t)below);
}

static void world_init(uint64_t seed)
{
    struct err err = {0};
    int n_pages;

    memset(&w, 0, sizeof(w));
    w.seed = seed;
    n_pages = 8 + draw(draw(3) ? 24 : MAX_POOL - 8);
    w.len = 1 + draw(8);
    w.max_batch = 1 + draw(8);
    w.run_ahead = draw(2);
    ck_assert_int_eq(kv_slots_init(&w.kv, &shape, w.max_batch, n_pages, n_pages * 2, &err), 0);
    ck_assert_int_eq(
        scheduler_init(&w.sched,
                       &(struct sched_params){.max_batch = w.max_batch,
                                              .chunk_tokens = 1 + draw(draw(2) ? 4 : 40),
                                              .max_logits = w.max_batch + 1 + draw(32),
                                              .max_seen = 100,
                                              .block_len = w.len,
                                              .n_prefix = 1 + draw(4),
                                              .whole_blocks = draw(2)},
                       &w.kv, &err),
        0);
    if (draw(2)) {
        ck_assert_int_eq(prefix_cache_init(&w.cache, &w.kv, w.len, true, &err), 0);
        w.sched.cache = &w.cache;
    }
}

/* Draws a sequence that the pool can hold: any lead that block_config_lead() may give. */
static void seq_init(struct fake_seq *f)
{
    struct kv_rule rules[N_HEADS] = {{.kind = KV_RULE_DENSE}, {.kind = KV_RULE_DENSE}};
    int n_prompt, n_limit, lead, n_entries;

    do {
        n_prompt = draw(3) ? draw(20) : draw(MAX_PROMPT);
        n_limit = n_prompt + draw(draw(4) ? MAX_LEN - MAX_PROMPT : 6);
        lead = draw(3) == 0 ? (w.len - n_prompt % w.len) % w.len : draw(2) * w.len;
        if (n_prompt < w.len && lead + n_prompt < w.len)
            lead = w.len;
        n_entries = (lead + n_limit - 1) / w.len;
        n_entries = n_entries > 0 ? n_entries : 1;
        kv_layout_geometry(&shape, rules, n_entries, KV_SPAN_INCLUDES_SINK, f->geom, f->window);
        kv_need_init(&f->seq.need, &shape, f->geom, f->window, n_entries);
    } while (!kv_slots_could_hold(&w.kv, &f->seq.need) || n_limit + lead == 0);
    for (int i = 0; i < lead + n_limit; i++)
        f->memory[i] = i < lead             ? 0
                       : i < 40 && draw(50) ? i % 7 /* many begin alike */
                                            : 1 + draw(9);
    f->seq.tokens = f->memory + lead;
    f->seq.lead = lead;
    f->seq.n_prompt = f->seq.n_tokens = n_prompt;
    f->seq.n_limit = n_limit;
    f->seq.wants_prompt_logits = draw(3) == 0;
    f->seq.first_logits_row = f->seq.wants_prompt_logits && draw(2) ? draw(n_prompt + 1) : 0;
    f->seq.needs_tokens = draw(8) == 0;
    f->seq.shares_prefix = true;
    f->seq.priority = draw(4) ? 0 : draw(3);
    f->arrives_at = draw(40);
    f->cancel_at = draw(6) ? -1 : f->arrives_at + draw(150);
    f->stop_after = draw(3) ? MAX_LEN : 1 + draw(20);
}

/* All tokens up to the end of a block. */
static uint64_t hash_of(const struct fake_seq *f, int block)
{
    uint64_t h = 1469598103934665603u;

    for (int i = 0; i < (block + 1) * w.len; i++)
        h = (h ^ (uint64_t)(uint32_t)f->memory[i]) * 1099511628211u;
    return h;
}

static uint64_t *entry_at(const struct fake_seq *f, int head, int block)
{
    int at = f->seq.slot * N_HEADS + head;

    if (block / PAGE_ENTRIES >= w.kv.head_pages[at])
        ck_abort_msg("seed %d: block %d has no page", (int)w.seed, block);
    return &w.entry[w.kv.page_table[w.kv.head_base[at] + block / PAGE_ENTRIES]]
                   [block % PAGE_ENTRIES];
}

/* A row of the block decoder: all blocks before it are there. */
static void run_block(const struct fake_seq *f, int block)
{
    for (int head = 0; head < N_HEADS; head++) {
        *entry_at(f, head, block) = hash_of(f, block) + (uint64_t)head;
        for (int b = 0; b <= block; b++)
            REQUIRE(*entry_at(f, head, b) == hash_of(f, b) + (uint64_t)head);
    }
}

static void run_blocks(const struct sched_item *item)
{
    const struct fake_seq *f = item->seq->owner;
    int n_prompt = (f->seq.lead + f->seq.n_prompt) / w.len;

    REQUIRE(item->pos0 == f->seq.n_done);
    REQUIRE(item->n_rows > 0);
    REQUIRE(item->is_decode == (item->pos0 >= n_prompt));
    REQUIRE(!item->is_decode || item->n_rows == 1);
    REQUIRE(item->is_decode || item->pos0 + item->n_rows <= n_prompt);
    REQUIRE((item->pos0 + item->n_rows) * w.len <= f->seq.lead + sched_seq_len(&f->seq));
    for (int r = 0; r < item->n_rows; r++)
        run_block(f, item->pos0 + r);
}

/* The item whose row of the block decoder gives the context of another's block. */
static void check_context(const struct sched_step *step, const struct sched_item *token, int block)
{
    for (int i = 0; i < step->n_items; i++) {
        const struct sched_item *b = &step->items[i];
        int at = token->context_row - b->row0;

        if (b->kind == SCHED_BLOCKS && at >= 0 && at < b->n_rows) {
            REQUIRE(b->seq == token->seq);
            REQUIRE(b->pos0 + at == block - 1);
            return;
        }
    }
    ck_abort_msg("seed %d: context row %d is nobody's", (int)w.seed, token->context_row);
}

static void run_token(const struct sched_step *step, const struct sched_item *item)
{
    struct fake_seq *f = item->seq->owner;
    struct seat *seat = &w.seats[item->seat];
    int at = f->seq.lead + item->pos0, block = at / w.len;
    bool is_own = item->seat == f->seq.slot;

    REQUIRE(item->seat < w.sched.params.max_logits);
    REQUIRE(at % w.len == step->phase);
    REQUIRE(item->n_rows == (step->phase == 0 ? w.sched.params.n_prefix : 1));
    if (step->phase == 0) {
        check_context(step, item, block);
        *seat = (struct seat){.f = f, .block = block, .phase = -1};
    }
    REQUIRE(seat->f == f);
    REQUIRE(seat->block == block);
    REQUIRE(seat->phase == step->phase - 1);
    seat->phase++;
    REQUIRE(item->pos0 < f->seq.n_limit);
    REQUIRE(item->pos0 <= sched_seq_len(&f->seq));
    REQUIRE(item->samples == (item->pos0 == sched_seq_len(&f->seq)));
    REQUIRE(!item->samples || is_own);
    REQUIRE(item->n_prompt_logits == 0 || item->pos0 < f->seq.n_prompt);
    w.n_forced += !item->samples && is_own;
    if (item->n_prompt_logits) {
        REQUIRE(f->seq.wants_prompt_logits);
        REQUIRE(item->pos0 >= f->seq.first_logits_row);
        f->n_seen[item->pos0]++;
    }
}

/* All phases of a block at once: who needs the host in between is not among them. */
static void run_whole(const struct sched_step *step, const struct sched_item *item)
{
    struct fake_seq *f = item->seq->owner;
    int at = f->seq.lead + item->pos0, n = item->n_phases;

    REQUIRE(w.sched.params.whole_blocks);
    REQUIRE(step->phase == 0 && step->n_phases == w.len);
    REQUIRE(item->seat == f->seq.slot);
    REQUIRE(!f->seq.needs_tokens);
    REQUIRE(at % w.len == 0);
    check_context(step, item, at / w.len);
    w.seats[item->seat] = (struct seat){0};
    REQUIRE(n >= 1 && n <= w.len);
    REQUIRE(n == w.len || item->pos0 + n == f->seq.n_limit);
    REQUIRE(item->n_rows == w.sched.params.n_prefix + n - 1);
    REQUIRE(item->n_known >= 0 && item->n_known <= n);
    REQUIRE(item->n_known == n || item->pos0 + item->n_known == sched_seq_len(&f->seq));
    REQUIRE(item->samples == (item->n_known < n));
    REQUIRE(item->n_prompt_logits == 0 && !item->ends && !item->ends_prompt);
    /* Logits of its prompt came before, or nobody wants them. */
    for (int i = item->pos0; f->seq.wants_prompt_logits && i < f->seq.n_prompt; i++)
        REQUIRE(i < f->seq.first_logits_row || i < w.len - f->seq.lead || f->n_seen[i] > 0);
    w.n_forced += item->n_known;
    w.n_whole++;
}

static void finish(struct fake_seq *f)
{
    if (f->seq.state != SEQ_IDLE)
        scheduler_remove(&w.sched, &f->seq);
    for (int q = 0; q < w.n_queued; q++) {
        for (int i = 0; i < w.queue[q].n_items; i++) {
            if (w.queue[q].items[i].seq == &f->seq) {
                w.queue[q].items[i].seq = NULL;
                w.n_dropped++;
            }
        }
    }
    f->n_finished++;
    w.n_live--;
}

/* Whoever ends by himself has all that he asked for. */
static void check_end(const struct fake_seq *f)
{
    int first = w.len - f->seq.lead;

    first = f->seq.first_logits_row > first ? f->seq.first_logits_row : first;
    for (int i = 0; f->seq.wants_prompt_logits && i < f->seq.n_prompt; i++)
        REQUIRE((f->n_seen[i] > 0) == (i >= first));
    REQUIRE(f->prompt_ended || !f->seq.wants_prompt_logits);
}

/* The item's tokens, of which a stop may leave some over. True at the end of the sequence. */
static bool take_tokens(const struct sched_item *item)
{
    struct fake_seq *f = item->seq->owner;
    int n = item->kind == SCHED_WHOLE ? item->n_phases - item->n_known : item->samples;

    for (int i = 0; i < n; i++) {
        scheduler_push_token(&f->seq);
        if (f->seq.n_tokens == f->seq.n_limit ||
            f->seq.n_tokens - f->seq.n_prompt >= f->stop_after) {
            w.n_surplus += n - 1 - i;
            return true;
        }
    }
    return false;
}

static void take_step(void)
{
    struct queued *step = &w.queue[0];

    REQUIRE(w.n_queued > 0);
    for (int i = 0; i < step->n_items; i++) {
        const struct sched_item *item = &step->items[i];
        struct fake_seq *f = item->seq ? item->seq->owner : NULL;

        if (!f)
            continue;
        f->prompt_ended |= item->ends_prompt;
        if (take_tokens(item) || item->ends) {
            REQUIRE(!item->ends || f->seq.n_limit == f->seq.n_prompt);
            check_end(f);
            finish(f);
        }
    }
    w.queue[0] = w.queue[1];
    w.n_queued--;
}

/* In front of the step's rows: what sequences begin with that share parts of pages. */
static void copy_pages(void)
{
    const struct kv_copies *c = &w.cache.snapshots.out_of;

    for (int i = 0; w.sched.cache && i < c->n; i++) {
        REQUIRE(c->src[i] != c->dst[i]);
        REQUIRE(w.kv.pool.n_refs[c->dst[i]] == 1);
        memcpy(w.entry[c->dst[i]], w.entry[c->src[i]], sizeof(w.entry[0]));
        w.n_copied++;
    }
}

static void sweep(void)
{
    int32_t refs[MAX_POOL] = {0};
    struct kv_sweep told;
    struct err err = {0};

    if (w.sched.cache)
        prefix_cache_count_refs(&w.cache, refs);
    ck_assert_msg(kv_sweep_slots(&told, &w.kv, refs, &err) == 0, "seed %d: %s", (int)w.seed,
                  err.msg);
}

static void run_step(const struct sched_step *step)
{
    struct queued *q = &w.queue[w.n_queued];
    int rows = 0, block_rows = 0, logit = 0, n_tokens = 0;
    bool tokens_began = false;

    REQUIRE(step->n_items <= MAX_ITEMS);
    REQUIRE(step->phase == 0 || step->phase == w.phase);
    REQUIRE(step->phase == 0 || step->n_admitted == 0);
    sweep();
    copy_pages();
    for (int i = 0; i < step->n_items; i++) {
        const struct sched_item *item = &step->items[i];

        REQUIRE(item->kind != SCHED_ROWS);
        rows += item->n_rows;
        if (item->kind == SCHED_BLOCKS) {
            REQUIRE(step->phase == 0);
            REQUIRE(!tokens_began);
            REQUIRE(item->row0 == block_rows);
            REQUIRE(item->is_decode == (item->row0 < step->n_block_decode));
            block_rows += item->n_rows;
            run_blocks(item);
        } else {
            tokens_began = true;
            REQUIRE(item->logit0 == logit);
            n_tokens++;
            if (item->kind == SCHED_WHOLE)
                run_whole(step, item);
            else
                run_token(step, item);
        }
        logit += item->kind == SCHED_WHOLE ? 1 : item->n_prompt_logits + item->samples;
    }
    REQUIRE(step->n_rows == rows);
    REQUIRE(step->n_block_rows == block_rows);
    REQUIRE(step->n_logits == logit);
    REQUIRE(block_rows <= w.max_batch + w.sched.params.chunk_tokens);
    REQUIRE(n_tokens <= w.sched.params.max_logits);
    if (rows > 0) {
        memcpy(q->items, step->items, (size_t)step->n_items * sizeof(*q->items));
        q->n_items = step->n_items;
        w.n_queued++;
        REQUIRE(step->n_phases == 1 || step->n_phases == w.len);
        w.phase = (step->phase + step->n_phases) % w.len;
        scheduler_queued(&w.sched);
    }
    if (w.n_queued > (rows > 0 ? w.run_ahead : 0))
        take_step();
}

static void tick(int now)
{
    const struct sched_step *step;

    for (int i = 0; i < w.n_seqs; i++) {
        struct fake_seq *f = &w.seqs[i];

        if (f->arrives_at == now) {
            f->seq.owner = f;
            scheduler_add(&w.sched, &f->seq);
            w.n_live++;
        } else if (f->cancel_at == now && f->arrives_at < now && !f->n_finished) {
            finish(f);
        }
    }
    step = scheduler_plan(&w.sched);
    REQUIRE(kv_pool_is_consistent(&w.kv.pool));
    if (step->n_rows == 0)
        REQUIRE(w.n_live == 0 || w.n_queued > 0);
    run_step(step);
}

/* Nobody is lost, contexts are those of the block before, tokens come once and in order. */
START_TEST(scheduler_block__serves_random_loads)
{
    int64_t n_preemptions = 0, n_dropped = 0, n_found = 0, n_forced = 0, n_whole = 0, n_surplus = 0;
    int64_t n_copied = 0;

    for (uint64_t seed = 0; seed < 300; seed++) {
        int now = 0;

        world_init(1000 * (uint64_t)_i + seed);
        w.n_seqs = 1 + draw(MAX_SEQS);
        for (int i = 0; i < w.n_seqs; i++)
            seq_init(&w.seqs[i]);
        for (; now < 300 || w.n_live > 0 || w.n_queued > 0; now++) {
            ck_assert_int_lt(now, 300 + MAX_SEQS * MAX_LEN * 20);
            tick(now);
        }
        for (int i = 0; i < w.n_seqs; i++)
            ck_assert_int_eq(w.seqs[i].n_finished, 1);
        ck_assert_int_eq(kv_pool_used(&w.kv.pool), 0);
        sweep();
        n_preemptions += w.sched.n_preemptions;
        n_found += w.sched.n_prefix_found;
        n_dropped += w.n_dropped;
        n_forced += w.n_forced;
        n_whole += w.n_whole;
        n_surplus += w.n_surplus;
        n_copied += w.n_copied;
        scheduler_release(&w.sched);
        if (w.cache.kv)
            prefix_cache_release(&w.cache);
        kv_slots_release(&w.kv);
    }
    ck_assert_int_gt(n_preemptions, 50);
    ck_assert_int_gt(n_dropped, 100);
    ck_assert_int_gt(n_found, 100);
    ck_assert_int_gt(n_forced, 1000);
    ck_assert_int_gt(n_whole, 1000);
    ck_assert_int_gt(n_surplus, 100);
    ck_assert_int_gt(n_copied, 500);
}
END_TEST

TEST_SUITE(scheduler_block)
{
    TCase *tc = test_case(suite, "core");

    tcase_add_loop_test(tc, scheduler_block__serves_random_loads, 0, 4);
}
