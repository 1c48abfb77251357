/*
 * Slots: growth page by page, whole reservation, and no page or table entry lost or shared.
 */
#include "base/err.h"
#include "base/rng.h"
#include "engine/kv/kv_slot.h"
#include "tests/lib/test.h"

#include <stdlib.h>
#include <string.h>

#define N_LAYERS 3
#define N_HEADS  4
#define N_KV     2
#define N_SLOTS  6
#define N_PAGES  200

static const struct kv_shape shape = {.n_layers = N_LAYERS,
                                      .n_heads = N_HEADS,
                                      .n_kv_heads = N_KV,
                                      .head_dim = 8,
                                      .page_entries = 64};

struct plan_case {
    struct kv_geom geom[N_LAYERS * N_KV];
    int32_t window[N_LAYERS * N_HEADS];
    struct kv_need need;
};

static void plan_case_init(struct plan_case *pc, struct kv_rule rule, int n)
{
    struct kv_rule rules[N_LAYERS * N_HEADS];

    for (int i = 0; i < N_LAYERS * N_HEADS; i++)
        rules[i] = rule;
    kv_layout_geometry(&shape, rules, n, KV_SPAN_INCLUDES_SINK, pc->geom, pc->window);
    kv_need_init(&pc->need, &shape, pc->geom, pc->window, n);
}

/* A dense sequence holds the pages of what it has, rounded up, and grows by a page a head. */
START_TEST(kv_slot__grows_a_dense_sequence_page_by_page)
{
    struct err err = {0};
    struct kv_slots ks;
    struct plan_case pc;
    int slot;

    plan_case_init(&pc, (struct kv_rule){.kind = KV_RULE_DENSE}, 300);
    ck_assert_int_eq(kv_slots_init(&ks, &shape, N_SLOTS, N_PAGES, 1000, &err), 0);
    ck_assert(pc.need.growable);
    ck_assert_int_eq(pc.need.n_pages_limit, 5 * 6);
    slot = kv_slot_take(&ks, &pc.need, 10, 0);
    ck_assert_int_ge(slot, 0);
    ck_assert_int_eq(ks.slots[slot].n_pages, 6);
    ck_assert_int_eq(ks.slots[slot].n_room, 64);
    ck_assert(kv_slot_grow(&ks, slot, 64));
    ck_assert_int_eq(ks.slots[slot].n_pages, 6);
    ck_assert(kv_slot_grow(&ks, slot, 65));
    ck_assert_int_eq(ks.slots[slot].n_pages, 12);
    ck_assert(kv_slot_grow(&ks, slot, 300));
    ck_assert_int_eq(ks.slots[slot].n_room, 300);
    kv_slot_give(&ks, slot);
    ck_assert_int_eq(ks.pool.n_free, N_PAGES);
    kv_slots_release(&ks);
}
END_TEST

/* A sequence with a ring shorter than itself holds everything from the start. */
START_TEST(kv_slot__reserves_an_elastic_sequence_whole)
{
    struct err err = {0};
    struct kv_slots ks;
    struct plan_case pc;
    int slot;

    plan_case_init(&pc, (struct kv_rule){.kind = KV_RULE_ELASTIC, .beta = .5}, 512);
    ck_assert_int_eq(kv_slots_init(&ks, &shape, N_SLOTS, N_PAGES, 1000, &err), 0);
    ck_assert(!pc.need.growable);
    ck_assert_int_eq(pc.need.n_pages_limit, 4 * 6);
    slot = kv_slot_take(&ks, &pc.need, 1, 0);
    ck_assert_int_ge(slot, 0);
    ck_assert_int_eq(ks.slots[slot].n_pages, 24);
    ck_assert(kv_slot_grow(&ks, slot, 512));
    ck_assert_int_eq(ks.slots[slot].n_pages, 24);
    kv_slot_give(&ks, slot);
    kv_slots_release(&ks);
}
END_TEST

/* An elastic rule that covers its length needs no ring and grows like a dense one. */
START_TEST(kv_slot__lets_a_covering_span_grow)
{
    struct plan_case pc;

    plan_case_init(&pc, (struct kv_rule){.kind = KV_RULE_ELASTIC, .beta = 1}, 512);
    ck_assert(pc.need.growable);
    plan_case_init(&pc, (struct kv_rule){.kind = KV_RULE_ELASTIC, .alpha = -1024, .beta = 1}, 100);
    ck_assert(pc.need.growable);
}
END_TEST

/* What does not fit is refused, and refusing costs nothing. */
START_TEST(kv_slot__refuses_without_a_trace)
{
    struct err err = {0};
    struct kv_slots ks;
    struct plan_case pc;
    int slot;

    plan_case_init(&pc, (struct kv_rule){.kind = KV_RULE_DENSE}, 4096);
    ck_assert_int_eq(kv_slots_init(&ks, &shape, N_SLOTS, 20, 1000, &err), 0);
    ck_assert(!kv_slots_could_hold(&ks, &pc.need));
    ck_assert_int_eq(kv_slot_take(&ks, &pc.need, 300, 0), ERR_NO_ROOM);
    ck_assert_int_eq(kv_slot_take(&ks, &pc.need, 150, 3), ERR_NO_ROOM);
    ck_assert_int_eq(ks.pool.n_free, 20);
    ck_assert_int_eq(ks.n_used, 0);
    slot = kv_slot_take(&ks, &pc.need, 150, 2);
    ck_assert_int_ge(slot, 0);
    ck_assert(!kv_slot_grow(&ks, slot, 193));
    ck_assert_int_eq(ks.slots[slot].n_pages, 18);
    ck_assert_int_eq(ks.pool.n_free, 2);
    kv_slots_release(&ks);
}
END_TEST

/* No two heads of any two slots name the same page, and every page held is named once. */
static void check_table(const struct kv_slots *ks)
{
    bool named[N_PAGES] = {false};
    int n_named = 0;

    for (int slot = 0; slot < ks->n_slots; slot++) {
        for (int h = 0; ks->slots[slot].used && h < kv_shape_heads(&shape); h++) {
            int at = slot * kv_shape_heads(&shape) + h;

            for (int p = 0; p < ks->head_pages[at]; p++) {
                int32_t page = ks->page_table[ks->head_base[at] + p];

                ck_assert_int_ge(ks->head_base[at], ks->slots[slot].table_at);
                ck_assert_int_lt(ks->head_base[at] + p,
                                 ks->slots[slot].table_at + ks->slots[slot].table_len);
                ck_assert(!named[page]);
                named[page] = true;
                n_named++;
            }
        }
    }
    ck_assert_int_eq(n_named + ks->pool.n_free, N_PAGES);
    ck_assert(kv_pool_is_consistent(&ks->pool));
}

/* Thousands of random takes, growths and gives in a table too short for comfort. */
START_TEST(kv_slot__keeps_pages_apart_under_random_use)
{
    struct err err = {0};
    struct kv_slots ks;
    int n_taken = 0, n_refused = 0;

    ck_assert_int_eq(kv_slots_init(&ks, &shape, N_SLOTS, N_PAGES, 130, &err), 0);
    for (uint64_t i = 0; i < 5000; i++) {
        uint64_t r = rng_u64(11, 0, i);
        int slot = (int)((r >> 8) % N_SLOTS);
        int n = 1 + (int)((r >> 16) % 900);
        struct kv_rule rule = {.kind = (enum kv_rule_kind)((r >> 40) % 3),
                               .beta = .25,
                               .n_sink = (int32_t)((r >> 44) % 80),
                               .n_recent = 1 + (int32_t)((r >> 48) % 200)};

        if (!ks.slots[slot].used) {
            struct plan_case next;
            int got;

            plan_case_init(&next, rule, n);
            got = kv_slot_take(&ks, &next.need, 1 + n / 2, 0);
            n_refused += got < 0;
            n_taken += got >= 0;
        } else if (r & 1) {
            int want = 1 + (int)((r >> 20) % (unsigned)ks.slots[slot].n_limit);

            kv_slot_grow(&ks, slot, want);
        } else {
            kv_slot_give(&ks, slot);
        }
        check_table(&ks);
    }
    ck_assert_int_gt(n_taken, 500);
    ck_assert_int_gt(n_refused, 50);
    kv_slots_release(&ks);
}
END_TEST

TEST_SUITE(kv_slot)
{
    TCase *tc = test_case(suite, "core");

    tcase_add_test(tc, kv_slot__grows_a_dense_sequence_page_by_page);
    tcase_add_test(tc, kv_slot__reserves_an_elastic_sequence_whole);
    tcase_add_test(tc, kv_slot__lets_a_covering_span_grow);
    tcase_add_test(tc, kv_slot__refuses_without_a_trace);
    tcase_add_test(tc, kv_slot__keeps_pages_apart_under_random_use);
}
