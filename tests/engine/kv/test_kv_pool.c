/*
 * Pages are conserved, whatever the order of takes, shares and gives.
 */
#include "base/err.h"
#include "base/rng.h"
#include "engine/kv/kv_pool.h"
#include "tests/lib/test.h"

#include <stdlib.h>

#define N_PAGES 97

/* 20,000 random operations against a model that counts references itself. */
START_TEST(kv_pool__conserves_pages_under_random_use)
{
    struct err err = {0};
    struct kv_pool pool;
    int refs[N_PAGES] = {0}, n_free = N_PAGES;

    ck_assert_int_eq(kv_pool_init(&pool, N_PAGES, &err), 0);
    for (uint64_t i = 0; i < 20000; i++) {
        uint64_t r = rng_u64(3, 0, i);
        int page = (int)((r >> 8) % N_PAGES);

        if (r % 3 == 0 && kv_pool_has_room(&pool, 1)) {
            page = kv_pool_take(&pool);
            ck_assert_int_eq(refs[page], 0);
            refs[page] = 1;
            n_free--;
        } else if (r % 3 == 1 && refs[page] > 0) {
            kv_pool_share(&pool, page);
            refs[page]++;
        } else if (refs[page] > 0) {
            kv_pool_give(&pool, page);
            n_free += --refs[page] == 0;
        }
        ck_assert_int_eq(pool.n_free, n_free);
    }
    ck_assert(kv_pool_is_consistent(&pool));
    kv_pool_release(&pool);
}
END_TEST

/* Having room for n pages means that n pages can be taken, and not one more. */
START_TEST(kv_pool__has_exactly_its_pages)
{
    struct err err = {0};
    struct kv_pool pool;

    ck_assert_int_eq(kv_pool_init(&pool, N_PAGES, &err), 0);
    ck_assert(kv_pool_has_room(&pool, N_PAGES));
    ck_assert(!kv_pool_has_room(&pool, N_PAGES + 1));
    for (int i = 0; i < N_PAGES; i++)
        kv_pool_take(&pool);
    ck_assert(!kv_pool_has_room(&pool, 1));
    kv_pool_release(&pool);
}
END_TEST

/* A shuffled pool hands out every page once. */
START_TEST(kv_pool__shuffles_without_losing_a_page)
{
    struct err err = {0};
    struct kv_pool pool;
    bool seen[N_PAGES] = {false};
    int n_moved = 0;

    ck_assert_int_eq(kv_pool_init(&pool, N_PAGES, &err), 0);
    kv_pool_shuffle(&pool, 5);
    for (int i = 0; i < N_PAGES; i++) {
        int32_t page = kv_pool_take(&pool);

        ck_assert(!seen[page]);
        seen[page] = true;
        n_moved += page != i;
    }
    ck_assert_int_gt(n_moved, N_PAGES / 2);
    kv_pool_release(&pool);
}
END_TEST

/* Giving back a page that nobody holds is our own bug and ends the program. */
START_TEST(kv_pool__aborts_on_a_double_give)
{
    struct err err = {0};
    struct kv_pool pool;
    int32_t page;

    ck_assert_int_eq(kv_pool_init(&pool, N_PAGES, &err), 0);
    page = kv_pool_take(&pool);
    kv_pool_give(&pool, page);
    kv_pool_give(&pool, page);
}
END_TEST

TEST_SUITE(kv_pool)
{
    TCase *tc = test_case(suite, "core");

    tcase_add_test(tc, kv_pool__conserves_pages_under_random_use);
    tcase_add_test(tc, kv_pool__has_exactly_its_pages);
    tcase_add_test(tc, kv_pool__shuffles_without_losing_a_page);
    tcase_add_test_raise_signal(tc, kv_pool__aborts_on_a_double_give, 6);
}
