/*
 * Tests of base/arena.c: the cap is a promise, and what is handed out is aligned and zero.
 */
#include "tests/lib/test.h"

#include "base/arena.h"

#include <stdint.h>
#include <string.h>

static struct arena a;

static void setup(void)
{
    arena_init(&a, 10000, 256);
}

static void teardown(void)
{
    arena_release(&a);
}

/* Every size, in chunks and beyond them, comes 16-byte aligned and zeroed. */
START_TEST(arena__gives_aligned_zeroed_memory)
{
    for (size_t size = 1; size < 130; size++) {
        unsigned char *p = arena_alloc(&a, size);

        ck_assert_ptr_nonnull(p);
        ck_assert_uint_eq((uintptr_t)p % 16, 0);
        for (size_t i = 0; i < size; i++)
            ck_assert_uint_eq(p[i], 0);
        memset(p, 0xff, size);
        if (arena_used(&a) > 9000)
            arena_reset(&a); /* the kept chunk is dirty now */
    }
}
END_TEST

/* Allocations do not overlap: each keeps the value that was written to it. */
START_TEST(arena__gives_memory_that_does_not_overlap)
{
    unsigned char *p[100];

    for (int i = 0; i < 100; i++) {
        p[i] = arena_alloc(&a, i % 60 + 1);
        memset(p[i], i, i % 60 + 1);
    }
    for (int i = 0; i < 100; i++)
        for (int k = 0; k <= i % 60; k++)
            ck_assert_int_eq(p[i][k], i);
}
END_TEST

/* The cap refuses, and refusing leaves the count as it was; what fits exactly is given. */
START_TEST(arena__stops_at_the_cap)
{
    arena_release(&a);
    arena_init(&a, 64, 256);
    ck_assert_ptr_nonnull(arena_alloc(&a, 48));
    ck_assert_ptr_null(arena_alloc(&a, 17));
    ck_assert_uint_eq(arena_used(&a), 48);
    ck_assert_ptr_nonnull(arena_alloc(&a, 16));
    ck_assert_ptr_null(arena_alloc(&a, 0));
    ck_assert_uint_eq(arena_used(&a), 64);
}
END_TEST

/* Size 0 still names a thing of its own. */
START_TEST(arena__gives_unique_pointers_for_size_0)
{
    void *p = arena_alloc(&a, 0);
    void *q = arena_alloc(&a, 0);

    ck_assert_ptr_nonnull(p);
    ck_assert_ptr_nonnull(q);
    ck_assert_ptr_ne(p, q);
}
END_TEST

/* Sizes near SIZE_MAX must not wrap around to small ones. */
START_TEST(arena__refuses_sizes_that_overflow)
{
    arena_release(&a);
    arena_init(&a, SIZE_MAX, 256);
    ck_assert_ptr_null(arena_alloc(&a, SIZE_MAX));
    ck_assert_ptr_null(arena_alloc(&a, SIZE_MAX - 14));
    ck_assert_ptr_null(arena_alloc(&a, SIZE_MAX - 31));
    ck_assert_ptr_null(arena_array(&a, SIZE_MAX / 2, 3));
    ck_assert_ptr_null(arena_strndup(&a, "x", SIZE_MAX));
    ck_assert_uint_eq(arena_used(&a), 0);
}
END_TEST

/* An allocation larger than a chunk does not waste the room left in the current one. */
START_TEST(arena__keeps_filling_a_chunk_after_a_large_one)
{
    char *p = arena_alloc(&a, 16);
    char *large = arena_alloc(&a, 1000);
    char *q = arena_alloc(&a, 16);

    ck_assert_ptr_nonnull(large);
    ck_assert_ptr_eq(q, p + 16);
}
END_TEST

/* Reset gives the whole cap back and the arena serves again from the chunk it kept. */
START_TEST(arena__resets_to_empty)
{
    void *p = arena_alloc(&a, 16);

    ck_assert_ptr_nonnull(arena_alloc(&a, 5000));
    arena_reset(&a);
    ck_assert_uint_eq(arena_used(&a), 0);
    ck_assert_ptr_eq(arena_alloc(&a, 16), p);
    ck_assert_ptr_nonnull(arena_alloc(&a, 9000));
}
END_TEST

/* A reset arena that never held a normal chunk holds nothing. */
START_TEST(arena__does_not_keep_an_outsized_chunk)
{
    ck_assert_ptr_nonnull(arena_alloc(&a, 5000));
    arena_reset(&a);
    ck_assert_ptr_null(a.head);
}
END_TEST

/* Strings are copied to their length and ended. */
START_TEST(arena__copies_strings)
{
    char *s = arena_strndup(&a, "abcdef", 3);

    ck_assert_str_eq(s, "abc");
    ck_assert_str_eq(arena_strndup(&a, NULL, 0), "");
}
END_TEST

/* A zeroed arena can be released, and so can one twice. */
START_TEST(arena__releases_what_holds_nothing)
{
    struct arena zeroed = {0};

    arena_release(&zeroed);
    arena_release(&a);
    arena_release(&a);
}
END_TEST

TEST_SUITE(arena)
{
    TCase *tc = test_case(suite, "core");

    tcase_add_checked_fixture(tc, setup, teardown);
    tcase_add_test(tc, arena__gives_aligned_zeroed_memory);
    tcase_add_test(tc, arena__gives_memory_that_does_not_overlap);
    tcase_add_test(tc, arena__stops_at_the_cap);
    tcase_add_test(tc, arena__gives_unique_pointers_for_size_0);
    tcase_add_test(tc, arena__refuses_sizes_that_overflow);
    tcase_add_test(tc, arena__keeps_filling_a_chunk_after_a_large_one);
    tcase_add_test(tc, arena__resets_to_empty);
    tcase_add_test(tc, arena__does_not_keep_an_outsized_chunk);
    tcase_add_test(tc, arena__copies_strings);
    tcase_add_test(tc, arena__releases_what_holds_nothing);
}
