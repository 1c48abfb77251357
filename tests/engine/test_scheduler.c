/*
 * The scheduler as a pure state machine: thousands of random loads on a model that is only a
 * record of which position was written where.
 */
#include "base/err.h"
#include "base/rng.h"
#include "engine/scheduler.h"
#include "tests/lib/test.h"

#include <stdlib.h>
#include <string.h>

#define N_LAYERS 2
#define N_HEADS  4
#define N_KV     2
#define MAX_SEQS 40
#define MAX_LEN  400
#define MAX_POOL 400

static const struct kv_shape shape = {.n_layers = N_LAYERS,
                                      .n_heads = N_HEADS,
                                      .n_kv_heads = N_KV,
                                      .head_dim = 8,
                                      .page_entries = 64};

struct fake_seq {
    struct sched_seq seq;
    struct kv_geom geom[N_LAYERS * N_KV];
    int32_t window[N_LAYERS * N_HEADS];
    int32_t tokens[MAX_LEN + 1];
    int n_finished, n_prompt_logits, arrives_at, cancel_at, stop_after;
    bool was_admitted;
};

/* ck_assert reports even when it holds, which is too dear inside millions of rows. */
#define REQUIRE(cond)                                                                              \
    do {                                                                                           \
        if (!(cond))                                                                               \
            ck_abort_msg("%s", #cond);                                                             \
    } while (0)

/* A queued step whose tokens are not known; items of sequences that ended since have no seq. */
struct queued {
    struct sched_item items[MAX_SEQS];
    int n_items;
};

/* What each page entry holds: sequence and position, as one number; 0 nothing. */
struct world {
    struct kv_slots kv;
    struct scheduler sched;
    struct fake_seq seqs[MAX_SEQS];
    uint32_t entry[MAX_POOL][64];
    struct queued queue[2];
    int n_queued, run_ahead; /* how many steps may be queued before the next one is planned */
    int n_seqs, n_live, chunk_tokens, max_batch;
    int n_dropped; /* rows of sequences that had stopped */
    uint64_t last_first_admission;
    uint64_t seed, draws;
};

static struct world w;

static uint64_t draw(uint64_t below)
{
    return rng_u64(w.seed, 1, w.draws++) % below;
}

static uint32_t tag_of(const struct fake_seq *f, int pos)
{
    return (uint32_t)((f - w.seqs + 1) * 4096 + pos);
}

static uint32_t *entry_at(const struct fake_seq *f, int head, int pos)
{
    int at = f->seq.slot * kv_shape_heads(&shape) + head;
    int32_t index = kv_index_of(f->geom[head], pos);

    if (index / 64 >= w.kv.head_pages[at])
        ck_abort_msg("position %d of sequence %d has no page", pos, (int)(f - w.seqs));
    return &w.entry[w.kv.page_table[w.kv.head_base[at] + index / 64]][index % 64];
}

static void world_init(uint64_t seed)
{
    struct err err = {0};
    int n_pages;

    memset(&w, 0, sizeof(w));
    w.seed = seed;
    n_pages = 30 + (int)draw(draw(2) ? 40 : MAX_POOL - 30);
    w.max_batch = 1 + (int)draw(10);
    w.chunk_tokens = 1 + (int)draw(draw(2) ? 20 : 300);
    w.run_ahead = (int)draw(2);
    ck_assert_int_eq(kv_slots_init(&w.kv, &shape, w.max_batch, n_pages, n_pages * 2, &err), 0);
    ck_assert_int_eq(
        scheduler_init(&w.sched,
                       &(struct sched_params){.max_batch = w.max_batch,
                                              .chunk_tokens = w.chunk_tokens,
                                              .max_logits = w.max_batch + 1 + (int)draw(10),
                                              .max_seen = 600},
                       &w.kv, &err),
        0);
}

/* Draws a sequence that the pool can hold. */
static void seq_init(struct fake_seq *f)
{
    do {
        struct kv_rule rules[N_LAYERS * N_HEADS];
        struct kv_rule rule = {.kind = KV_RULE_DENSE};
        int n_limit = 2 + (int)draw(MAX_LEN - 2);

        if (draw(4) == 0)
            rule = (struct kv_rule){.kind = KV_RULE_ELASTIC, .beta = .25};
        else if (draw(6) == 0)
            rule = (struct kv_rule){.kind = KV_RULE_STREAM, .n_sink = 4, .n_recent = 50};
        for (int i = 0; i < N_LAYERS * N_HEADS; i++)
            rules[i] = rule;
        kv_layout_geometry(&shape, rules, n_limit, KV_SPAN_INCLUDES_SINK, f->geom, f->window);
        kv_need_init(&f->seq.need, &shape, f->geom, f->window, n_limit);
    } while (!kv_slots_could_hold(&w.kv, &f->seq.need));
    f->seq.n_limit = f->seq.need.n_limit;
    f->seq.n_prompt = 1 + (int)draw((uint64_t)f->seq.n_limit);
    f->seq.n_tokens = f->seq.n_prompt;
    f->seq.tokens = f->tokens;
    f->seq.n_seen_max = draw(3) ? 0 : (int)draw(600);
    f->seq.wants_prompt_logits = draw(5) == 0;
    f->arrives_at = (int)draw(100);
    f->cancel_at = draw(6) ? -1 : f->arrives_at + (int)draw(200);
    f->stop_after = draw(3) ? MAX_LEN : 1 + (int)draw(40);
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

static void check_policy(const struct sched_step *step)
{
    REQUIRE(step->n_rows - step->n_decode <= w.chunk_tokens);
    REQUIRE(step->n_items <= w.max_batch);
    for (int i = 0; i < step->n_admitted; i++) {
        struct fake_seq *f = step->admitted[i]->owner;

        if (!f->was_admitted) {
            REQUIRE(f->seq.order > w.last_first_admission);
            w.last_first_admission = f->seq.order;
        }
        f->was_admitted = true;
    }
    for (int i = 0; i < step->n_preempted; i++) {
        const struct sched_seq *victim = step->preempted[i];

        REQUIRE(victim->need.growable);
        REQUIRE(w.sched.running.head);
        REQUIRE(w.sched.running.head->order < victim->order);
        for (const struct sched_seq *s = w.sched.running.head; s; s = s->next)
            REQUIRE(!s->need.growable || s->order < victim->order);
    }
    REQUIRE(kv_pool_is_consistent(&w.kv.pool));
}

/* Every key a row may see was written by its own sequence at the right position. */
static void run_row(struct fake_seq *f, int pos, bool is_decode)
{
    for (int head = 0; head < N_LAYERS * N_KV; head++) {
        struct kv_geom g = f->geom[head];

        if (is_decode) {
            *entry_at(f, head, pos) = tag_of(f, pos);
            for (int j = 0; j <= pos; j++) {
                if (kv_sees_decode(g, f->window[0], pos, j) &&
                    *entry_at(f, head, j) != tag_of(f, j))
                    ck_abort_msg("row %d of sequence %d: key %d of head %d is gone", pos,
                                 (int)(f - w.seqs), j, head);
            }
        } else {
            *entry_at(f, head, pos) = tag_of(f, pos);
        }
    }
}

/* Results of the oldest queued step. */
static void take_step(void)
{
    struct queued step = w.queue[0];

    REQUIRE(w.n_queued > 0);
    w.queue[0] = w.queue[1];
    w.n_queued--;
    for (int i = 0; i < step.n_items; i++) {
        const struct sched_item *item = &step.items[i];
        struct fake_seq *f;
        int n_generated;

        if (!item->seq)
            continue;
        f = item->seq->owner;
        if (item->samples)
            scheduler_push_token(&f->seq);
        n_generated = f->seq.n_tokens - f->seq.n_prompt;
        if (item->pos0 + item->n_rows >= f->seq.n_prompt &&
            (f->seq.n_tokens == f->seq.n_limit || n_generated >= f->stop_after)) {
            REQUIRE(f->n_prompt_logits == (f->seq.wants_prompt_logits ? f->seq.n_prompt - 1 : 0));
            REQUIRE(n_generated <= f->stop_after);
            finish(f);
        }
    }
}

/* Queues a step, whose rows run in the order of queueing, and takes what need not wait. */
static void run_step(const struct sched_step *step)
{
    struct queued *q = &w.queue[w.n_queued];
    int row = 0, logit = 0;

    for (int i = 0; i < step->n_items; i++) {
        const struct sched_item *item = &step->items[i];
        struct fake_seq *f = item->seq->owner;

        REQUIRE(item->row0 == row);
        REQUIRE(item->logit0 == logit);
        REQUIRE(item->is_decode == (i < step->n_decode));
        REQUIRE(item->is_decode == (item->pos0 >= f->seq.n_prompt));
        REQUIRE(!item->is_decode || item->n_rows == 1);
        REQUIRE(item->pos0 + item->n_rows <= sched_seq_len(&f->seq));
        for (int r = 0; r < item->n_rows; r++)
            run_row(f, item->pos0 + r, item->is_decode);
        row += item->n_rows;
        logit += item->n_prompt_logits + item->samples;
        f->n_prompt_logits += item->n_prompt_logits;
    }
    REQUIRE(step->n_rows == row);
    REQUIRE(step->n_logits == logit);
    if (step->n_rows > 0) {
        memcpy(q->items, step->items, (size_t)step->n_items * sizeof(*q->items));
        q->n_items = step->n_items;
        w.n_queued++;
        scheduler_queued(&w.sched);
    }
    if (w.n_queued > (step->n_rows > 0 ? w.run_ahead : 0))
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
    check_policy(step);
    /* Work that can be done is done: an idle step means an empty house, or tokens to come. */
    if (step->n_rows == 0)
        REQUIRE(w.n_live == 0 || w.n_queued > 0);
    run_step(step);
}

/* Nobody is lost, nobody finishes twice, nothing leaks, whatever arrives and leaves. */
START_TEST(scheduler__serves_random_loads)
{
    int64_t n_preemptions = 0, n_dropped = 0;

    for (uint64_t seed = 0; seed < 200; seed++) {
        int now = 0;

        world_init(1000 * (uint64_t)_i + seed);
        w.n_seqs = 1 + (int)draw(MAX_SEQS);
        for (int i = 0; i < w.n_seqs; i++)
            seq_init(&w.seqs[i]);
        for (; now < 300 || w.n_live > 0 || w.n_queued > 0; now++) {
            ck_assert_int_lt(now, 300 + MAX_SEQS * MAX_LEN * 4);
            tick(now);
        }
        for (int i = 0; i < w.n_seqs; i++)
            ck_assert_int_eq(w.seqs[i].n_finished, 1);
        ck_assert_int_eq(w.kv.pool.n_free, w.kv.pool.n_pages);
        ck_assert_int_eq(w.sched.n_seen, 0);
        ck_assert_int_eq(w.n_queued, 0);
        n_preemptions += w.sched.n_preemptions;
        n_dropped += w.n_dropped;
        scheduler_release(&w.sched);
        kv_slots_release(&w.kv);
    }
    ck_assert_int_gt(n_preemptions, 20);
    ck_assert_int_gt(n_dropped, 20);
}
END_TEST

static void add_dense(struct fake_seq *f, int n_prompt, int n_limit)
{
    struct kv_rule rules[N_LAYERS * N_HEADS] = {{.kind = KV_RULE_DENSE}};

    kv_layout_geometry(&shape, rules, n_limit, KV_SPAN_INCLUDES_SINK, f->geom, f->window);
    kv_need_init(&f->seq.need, &shape, f->geom, f->window, n_limit);
    f->seq.n_limit = n_limit;
    f->seq.n_prompt = f->seq.n_tokens = n_prompt;
    f->seq.tokens = f->tokens;
    f->seq.owner = f;
    f->stop_after = MAX_LEN;
    scheduler_add(&w.sched, &f->seq);
    w.n_live++;
}

static void small_world(int n_pages, int max_batch, int chunk_tokens)
{
    struct err err = {0};

    memset(&w, 0, sizeof(w));
    w.max_batch = max_batch;
    w.chunk_tokens = chunk_tokens;
    ck_assert_int_eq(kv_slots_init(&w.kv, &shape, max_batch, n_pages, 4 * n_pages, &err), 0);
    ck_assert_int_eq(scheduler_init(&w.sched,
                                    &(struct sched_params){.max_batch = max_batch,
                                                           .chunk_tokens = chunk_tokens,
                                                           .max_logits = max_batch + 4,
                                                           .max_seen = 100},
                                    &w.kv, &err),
                     0);
}

/* Chunks end on whole tiles while the budget allows, and the last one gives a token. */
START_TEST(scheduler__cuts_chunks_at_tiles)
{
    static const int want[] = {128, 128, 44};
    const struct sched_step *step;

    small_world(100, 2, 150);
    add_dense(&w.seqs[0], 300, 310);
    for (int i = 0; i < 3; i++) {
        step = scheduler_plan(&w.sched);
        ck_assert_int_eq(step->n_items, 1);
        ck_assert_int_eq(step->items[0].n_rows, want[i]);
        ck_assert_int_eq(step->items[0].samples, i == 2);
        run_step(step);
    }
    step = scheduler_plan(&w.sched);
    ck_assert_int_eq(step->n_decode, 1);
    ck_assert_int_eq(step->items[0].pos0, 300);
}
END_TEST

/* Decode rows come first; what the budget leaves goes to a newcomer's prompt in the same step. */
START_TEST(scheduler__batches_a_newcomer_beside_a_decode)
{
    const struct sched_step *step;

    small_world(100, 4, 64);
    add_dense(&w.seqs[0], 10, 100);
    run_step(scheduler_plan(&w.sched));
    add_dense(&w.seqs[1], 40, 100);
    step = scheduler_plan(&w.sched);
    ck_assert_int_eq(step->n_decode, 1);
    ck_assert_int_eq(step->n_rows, 41);
    ck_assert_int_eq(step->n_logits, 2);
    ck_assert_int_eq(step->n_admitted, 1);
}
END_TEST

/* The youngest yields its pages, then recomputes: prompt rows without logits, replayed rows
 * without sampling, and only then a new token. */
START_TEST(scheduler__replays_a_preempted_sequence)
{
    struct fake_seq *old = &w.seqs[0], *young = &w.seqs[1];
    int n_before, n_replayed = 0;

    small_world(4 * 3, 2, 256);
    add_dense(old, 62, 190);
    add_dense(young, 60, 100);
    /* Both fill their first page column; the old one takes columns until the pool is dry. */
    while (w.sched.n_preemptions == 0)
        run_step(scheduler_plan(&w.sched));
    ck_assert_int_eq(young->seq.state, SEQ_WAITING);
    ck_assert_int_eq(young->seq.n_preempted, 1);
    n_before = young->seq.n_tokens;
    ck_assert_int_gt(n_before, 60);
    while (old->seq.state != SEQ_IDLE)
        run_step(scheduler_plan(&w.sched));
    while (young->seq.n_tokens == n_before && young->seq.state != SEQ_IDLE) {
        const struct sched_step *step = scheduler_plan(&w.sched);

        ck_assert_int_eq(step->n_items, 1);
        if (step->items[0].is_decode && !step->items[0].samples)
            n_replayed++;
        if (!step->items[0].is_decode)
            ck_assert_int_eq(step->n_logits, 0);
        run_step(step);
    }
    ck_assert_int_eq(n_replayed, n_before - 60 - 1);
}
END_TEST

/* A large request at the head of the queue is not overtaken by small ones behind it. */
START_TEST(scheduler__lets_nobody_overtake)
{
    const struct sched_step *step;

    small_world(4 * 5, 4, 512);
    add_dense(&w.seqs[0], 100, 120);
    run_step(scheduler_plan(&w.sched));
    add_dense(&w.seqs[1], 250, 300);
    add_dense(&w.seqs[2], 5, 10);
    step = scheduler_plan(&w.sched);
    ck_assert_int_eq(step->n_admitted, 0);
    run_step(step);
    while (w.seqs[0].seq.state != SEQ_IDLE)
        run_step(scheduler_plan(&w.sched));
    step = scheduler_plan(&w.sched);
    ck_assert_int_ge(step->n_admitted, 1);
    ck_assert_ptr_eq(step->admitted[0], &w.seqs[1].seq);
}
END_TEST

/* max_tokens 0 computes the prompt and samples nothing. */
START_TEST(scheduler__samples_nothing_at_the_limit)
{
    const struct sched_step *step;

    small_world(100, 2, 64);
    add_dense(&w.seqs[0], 20, 20);
    step = scheduler_plan(&w.sched);
    ck_assert_int_eq(step->n_rows, 20);
    ck_assert_int_eq(step->n_logits, 0);
    run_step(step);
    ck_assert_int_eq(w.seqs[0].n_finished, 1);
}
END_TEST

/* A row is planned before its token is known, and none behind the last token: who is sure to end
 * leaves with the row that ends it, and its seat is free while the token is still to come. */
START_TEST(scheduler__runs_ahead_of_the_tokens)
{
    struct fake_seq *f = &w.seqs[0];
    const struct sched_step *step;

    small_world(4, 1, 64);
    w.run_ahead = 1;
    add_dense(f, 10, 13);
    run_step(scheduler_plan(&w.sched));
    ck_assert_int_eq(f->seq.n_tokens, 10);
    ck_assert_int_eq(f->seq.n_pending, 1);
    step = scheduler_plan(&w.sched);
    ck_assert_int_eq(step->items[0].pos0, 10);
    ck_assert(step->items[0].samples);
    run_step(step); /* and takes the first token */
    ck_assert_int_eq(f->seq.n_tokens, 11);
    ck_assert_int_eq(f->seq.n_pending, 1);
    add_dense(&w.seqs[1], 10, 13);
    step = scheduler_plan(&w.sched);
    ck_assert_int_eq(step->n_admitted, 0);
    run_step(step);
    ck_assert_int_eq(f->seq.state, SEQ_IDLE);
    ck_assert_int_eq(f->seq.n_tokens, 12);
    ck_assert_int_eq(f->n_finished, 0);
    step = scheduler_plan(&w.sched);
    ck_assert_int_eq(step->n_admitted, 1);
    ck_assert_int_eq(step->n_items, 1);
    run_step(step);
    ck_assert_int_eq(f->seq.n_tokens, 13);
    ck_assert_int_eq(f->n_finished, 1);
}
END_TEST

/* Who is preempted with a token to come waits for it before it is replayed. */
START_TEST(scheduler__replays_no_unknown_token)
{
    struct fake_seq *young = &w.seqs[1];
    int n_before;

    small_world(4 * 3, 2, 256);
    w.run_ahead = 1;
    add_dense(&w.seqs[0], 62, 190);
    add_dense(young, 60, 100);
    while (w.sched.n_preemptions == 0)
        run_step(scheduler_plan(&w.sched));
    ck_assert_int_eq(young->seq.state, SEQ_WAITING);
    ck_assert_int_eq(young->seq.n_pending, 0); /* that step's results were taken */
    n_before = young->seq.n_tokens;
    while (young->seq.state == SEQ_WAITING)
        run_step(scheduler_plan(&w.sched));
    while (young->seq.n_tokens == n_before && young->seq.state != SEQ_IDLE)
        run_step(scheduler_plan(&w.sched)); /* run_row() misses no key */
    ck_assert_int_eq(young->seq.n_tokens, n_before + 1);
}
END_TEST

TEST_SUITE(scheduler)
{
    TCase *tc = test_case(suite, "core");
    TCase *random = test_case(suite, "random");

    tcase_add_test(tc, scheduler__cuts_chunks_at_tiles);
    tcase_add_test(tc, scheduler__batches_a_newcomer_beside_a_decode);
    tcase_add_test(tc, scheduler__replays_a_preempted_sequence);
    tcase_add_test(tc, scheduler__lets_nobody_overtake);
    tcase_add_test(tc, scheduler__samples_nothing_at_the_limit);
    tcase_add_test(tc, scheduler__runs_ahead_of_the_tokens);
    tcase_add_test(tc, scheduler__replays_no_unknown_token);
    tcase_add_loop_test(random, scheduler__serves_random_loads, 0, 10);
}
