/*
 * The sweep finds nothing in a pool that is used as intended, and every kind of damage.
 */
#include "base/err.h"
#include "base/rng.h"
#include "engine/kv/kv_sweep.h"
#include "tests/lib/test.h"

#include <string.h>

#define N_LAYERS 2
#define N_HEADS  4
#define N_KV     2
#define N_SLOTS  5
#define N_PAGES  120

static const struct kv_shape shape = {.n_layers = N_LAYERS,
                                      .n_heads = N_HEADS,
                                      .n_kv_heads = N_KV,
                                      .head_dim = 8,
                                      .page_entries = 64};

static struct kv_slots ks;

static int take(enum kv_rule_kind kind, int n_limit, int n_tokens)
{
    struct kv_rule rules[N_LAYERS * N_HEADS];
    struct kv_geom geom[N_LAYERS * N_KV];
    int32_t window[N_LAYERS * N_HEADS];
    struct kv_need need;

    for (int i = 0; i < N_LAYERS * N_HEADS; i++)
        rules[i] = (struct kv_rule){.kind = kind, .beta = i % 3 * .25, .n_recent = 64 + i};
    kv_layout_geometry(&shape, rules, n_limit, KV_SPAN_INCLUDES_SINK, geom, window);
    kv_need_init(&need, &shape, geom, window, n_limit);
    return kv_slot_take(&ks, &need, n_tokens, 0);
}

static int sweep(struct kv_sweep *out, const int32_t *other_refs, struct err *err)
{
    *err = (struct err){0};
    return kv_sweep_slots(out, &ks, other_refs, err);
}

static void setup(void)
{
    struct err err = {0};

    ck_assert_int_eq(kv_slots_init(&ks, &shape, N_SLOTS, N_PAGES, 400, &err), 0);
}

static void teardown(void)
{
    kv_slots_release(&ks);
}

/* Growing and fixed slots, taken and given back in any order, leave every page with one owner. */
START_TEST(kv_sweep__accepts_a_pool_in_use)
{
    struct kv_sweep out;
    struct err err;
    int n_seated = 0;

    for (uint64_t i = 0; i < 2000; i++) {
        int slot = (int)(rng_u64(3, 0, i) % N_SLOTS), n = 1 + (int)(rng_u64(3, 1, i) % 700);

        if (ks.slots[slot].used && rng_u64(3, 2, i) & 1)
            kv_slot_give(&ks, slot);
        else if (ks.slots[slot].used)
            kv_slot_grow(&ks, slot, 1 + n % ks.slots[slot].n_limit);
        else
            n_seated += take((enum kv_rule_kind)(rng_u64(3, 3, i) % 3), n, 1 + n / 3) >= 0;
        ck_assert_msg(sweep(&out, NULL, &err) == 0, "%s", err.msg);
        ck_assert_int_eq(out.n_free + out.n_held, N_PAGES);
        ck_assert_int_eq(out.n_named, out.n_held);
        ck_assert_int_eq(out.n_shared, 0);
    }
    ck_assert_int_gt(n_seated, 200);
}
END_TEST

static void name_a_page_twice(int slot)
{
    ks.page_table[ks.head_base[slot * N_LAYERS * N_KV]] =
        ks.page_table[ks.head_base[slot * N_LAYERS * N_KV + 1]];
}

static void free_a_held_page(int slot)
{
    kv_pool_give(&ks.pool, ks.page_table[ks.slots[slot].table_at]);
}

static void lose_a_page(int slot)
{
    (void)slot;
    ks.pool.n_free--;
}

static void free_a_page_twice(int slot)
{
    (void)slot;
    ks.pool.free_pages[0] = ks.pool.free_pages[1];
}

static void leave_the_pool(int slot)
{
    ks.page_table[ks.slots[slot].table_at] = N_PAGES;
}

static void leave_the_range(int slot)
{
    ks.head_base[slot * N_LAYERS * N_KV + 2]++;
}

static void overlap(int slot)
{
    ks.slots[slot].table_at--;
}

static void miscount(int slot)
{
    ks.slots[slot].n_pages++;
}

static void grow_too_long(int slot)
{
    ks.head_pages[slot * N_LAYERS * N_KV] += 20;
}

static void reference_twice(int slot)
{
    kv_pool_share(&ks.pool, ks.page_table[ks.slots[slot].table_at]);
}

static const struct {
    void (*damage)(int slot);
    const char *wants;
} damages[] = {
    {name_a_page_twice, "owners"},
    {free_a_held_page, "owners"},
    {lose_a_page, "lost"},
    {free_a_page_twice, "twice in the free list"},
    {leave_the_pool, "names page 120"},
    {leave_the_range, "starts at entry"},
    {overlap, "those before end"},
    {miscount, "counts"},
    {grow_too_long, "head 0 has"},
    {reference_twice, "1 owners and 2 references"},
};

/* Each way to break the pool is found and named. */
START_TEST(kv_sweep__names_the_damage)
{
    struct kv_sweep out;
    struct err err;
    int slot;

    ck_assert_int_ge(take(KV_RULE_ELASTIC, 500, 1), 0);
    slot = take(KV_RULE_ELASTIC, 600, 1);
    ck_assert_int_ge(slot, 0);
    ck_assert_int_eq(sweep(&out, NULL, &err), 0);
    damages[_i].damage(slot);
    ck_assert_int_eq(sweep(&out, NULL, &err), ERR_INVALID);
    ck_assert_msg(strstr(err.msg, damages[_i].wants) != NULL, "%s", err.msg);
}
END_TEST

/* A cache that keeps pages beside the slots counts as an owner. */
START_TEST(kv_sweep__counts_other_owners)
{
    int32_t other[N_PAGES] = {0};
    struct kv_sweep out;
    struct err err;
    int32_t kept = kv_pool_take(&ks.pool), shared;
    int slot = take(KV_RULE_DENSE, 300, 100);

    shared = ks.page_table[ks.slots[slot].table_at];
    kv_pool_share(&ks.pool, shared);
    ck_assert_int_eq(sweep(&out, NULL, &err), ERR_INVALID);
    other[kept] = other[shared] = 1;
    ck_assert_msg(sweep(&out, other, &err) == 0, "%s", err.msg);
    ck_assert_int_eq(out.n_shared, 1);
    ck_assert_int_eq(out.n_held, out.n_named + 1);
}
END_TEST

#define COUNT(a) ((int)(sizeof(a) / sizeof((a)[0])))

TEST_SUITE(kv_sweep)
{
    TCase *tc = test_case(suite, "core");

    tcase_add_checked_fixture(tc, setup, teardown);
    tcase_add_test(tc, kv_sweep__accepts_a_pool_in_use);
    tcase_add_loop_test(tc, kv_sweep__names_the_damage, 0, COUNT(damages));
    tcase_add_test(tc, kv_sweep__counts_other_owners);
}
