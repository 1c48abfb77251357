/*
 * Tests of base/hashmap.c: both maps against what was put in, the awkward keys, memory running out.
 */
#include "tests/lib/test.h"

#include "base/err.h"
#include "base/hashmap.h"

#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>

#define N_KEYS 20000

/* An empty map answers, and so does one that was released. */
START_TEST(strmap__misses_when_empty)
{
    struct strmap m;
    int64_t value = 5;

    strmap_init(&m);
    ck_assert(!strmap_get(&m, "a", 1, &value));
    strmap_release(&m);
    ck_assert(!strmap_get(&m, "a", 1, &value));
    ck_assert_int_eq(value, 5);
}
END_TEST

/* Many keys, many growths: each is found with its value, and nothing else is. */
START_TEST(strmap__finds_what_was_put)
{
    static char keys[N_KEYS][16];
    struct strmap m;
    int64_t value;

    strmap_init(&m);
    for (int i = 0; i < N_KEYS; i++) {
        snprintf(keys[i], sizeof(keys[i]), "key%d", i);
        ck_assert_int_eq(strmap_put(&m, keys[i], strlen(keys[i]), -i), 0);
    }
    ck_assert_uint_eq(m.n_entries, N_KEYS);
    for (int i = 0; i < N_KEYS; i++) {
        ck_assert(strmap_get(&m, keys[i], strlen(keys[i]), &value));
        ck_assert_int_eq(value, -i);
    }
    ck_assert(!strmap_get(&m, "key", 3, &value));
    ck_assert(!strmap_get(&m, "key20000", 8, &value));
    strmap_release(&m);
}
END_TEST

/* The second put of a key replaces its value. */
START_TEST(strmap__replaces)
{
    struct strmap m;
    int64_t value;

    strmap_init(&m);
    strmap_put(&m, "a", 1, 1);
    strmap_put(&m, "a", 1, 2);
    ck_assert(strmap_get(&m, "a", 1, &value));
    ck_assert_int_eq(value, 2);
    ck_assert_uint_eq(m.n_entries, 1);
    strmap_release(&m);
}
END_TEST

/* Keys are bytes: the empty one, NULs inside and common prefixes are all different. */
START_TEST(strmap__tells_awkward_keys_apart)
{
    static const char bytes[] = "\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0";
    struct strmap m;
    int64_t value;

    strmap_init(&m);
    for (size_t len = 0; len <= 20; len++)
        ck_assert_int_eq(strmap_put(&m, bytes, len, (int64_t)len), 0);
    for (size_t len = 0; len <= 20; len++) {
        ck_assert(strmap_get(&m, bytes, len, &value));
        ck_assert_int_eq(value, (int64_t)len);
    }
    ck_assert(strmap_get(&m, NULL, 0, &value));
    ck_assert_int_eq(value, 0);
    strmap_release(&m);
}
END_TEST

/* The same for 64-bit keys, with key 0, which the table uses as a mark, among them. */
START_TEST(u64map__finds_what_was_put)
{
    struct u64map m;
    int64_t value;

    u64map_init(&m);
    ck_assert(!u64map_get(&m, 0, &value));
    for (uint64_t i = 0; i < N_KEYS; i++)
        ck_assert_int_eq(u64map_put(&m, i << 32 | (i * 7), (int64_t)i), 0);
    ck_assert_uint_eq(m.n_entries, N_KEYS);
    for (uint64_t i = 0; i < N_KEYS; i++) {
        ck_assert(u64map_get(&m, i << 32 | (i * 7), &value));
        ck_assert_int_eq(value, (int64_t)i);
    }
    ck_assert(!u64map_get(&m, 1, &value));
    ck_assert(!u64map_get(&m, UINT64_MAX, &value));
    u64map_release(&m);
}
END_TEST

/* Key 0 is absent until put, replaced like any other, and any value may be stored. */
START_TEST(u64map__treats_key_0_like_any_other)
{
    struct u64map m;
    int64_t value;

    u64map_init(&m);
    u64map_put(&m, 1, 10);
    ck_assert(!u64map_get(&m, 0, &value));
    u64map_put(&m, 0, INT64_MIN);
    u64map_put(&m, 0, -1);
    ck_assert(u64map_get(&m, 0, &value));
    ck_assert_int_eq(value, -1);
    ck_assert_uint_eq(m.n_entries, 2);
    u64map_release(&m);
}
END_TEST

#if !defined(__SANITIZE_ADDRESS__) && !defined(__SANITIZE_THREAD__)
/* When memory runs out the put is refused and every earlier entry is still there. */
START_TEST(u64map__survives_a_failed_growth)
{
    struct rlimit old, tight;
    struct u64map m;
    int64_t value;
    uint64_t n = 1;
    int rc = 0;

    u64map_init(&m);
    ck_assert_int_eq(getrlimit(RLIMIT_AS, &old), 0);
    tight = old;
    tight.rlim_cur = 256 << 20;
    ck_assert_int_eq(setrlimit(RLIMIT_AS, &tight), 0);
    while (n < 1 << 26 && (rc = u64map_put(&m, n, -(int64_t)n)) == 0)
        n++;
    setrlimit(RLIMIT_AS, &old);
    ck_assert_int_eq(rc, ERR_NO_ROOM);
    ck_assert_uint_eq(m.n_entries, n - 1);
    ck_assert(!u64map_get(&m, n, &value));
    for (uint64_t i = 1; i < n; i += 997) {
        ck_assert(u64map_get(&m, i, &value));
        ck_assert_int_eq(value, -(int64_t)i);
    }
    u64map_release(&m);
}
END_TEST
#endif

TEST_SUITE(hashmap)
{
    TCase *tc = test_case(suite, "core");

    tcase_add_test(tc, strmap__misses_when_empty);
    tcase_add_test(tc, strmap__finds_what_was_put);
    tcase_add_test(tc, strmap__replaces);
    tcase_add_test(tc, strmap__tells_awkward_keys_apart);
    tcase_add_test(tc, u64map__finds_what_was_put);
    tcase_add_test(tc, u64map__treats_key_0_like_any_other);
#if !defined(__SANITIZE_ADDRESS__) && !defined(__SANITIZE_THREAD__)
    tcase_add_test(tc, u64map__survives_a_failed_growth);
#endif
}
