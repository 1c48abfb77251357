/*
 * Stop strings against a naive search over the whole text, in random pieces.
 */
#include "base/arena.h"
#include "base/err.h"
#include "base/rng.h"
#include "engine/stop_match.h"
#include "tests/lib/test.h"

#include <string.h>

static uint64_t draws;

static int draw(int below)
{
    return (int)(rng_u64(21, 0, draws++) % (uint64_t)below);
}

static void random_word(char *out, int len)
{
    for (int i = 0; i < len; i++)
        out[i] = "ab"[draw(2)];
    out[len] = '\0';
}

/* Where the first match ends, and which string it is; -1 when there is none. */
static int naive(const char *text, const char *const *stops, int n_stops, int *end)
{
    for (*end = 1; *end <= (int)strlen(text); (*end)++) {
        int found = -1;

        for (int i = 0; i < n_stops; i++) {
            int len = (int)strlen(stops[i]);

            if (len <= *end && memcmp(text + *end - len, stops[i], (size_t)len) == 0 &&
                (found < 0 || len > (int)strlen(stops[found])))
                found = i;
        }
        if (found >= 0)
            return found;
    }
    return -1;
}

/* The longest end of text[0..len) that begins some stop string without being one. */
static int naive_held(const char *text, int len, const char *const *stops, int n_stops)
{
    for (int held = len; held > 0; held--) {
        for (int i = 0; i < n_stops; i++) {
            if (held < (int)strlen(stops[i]) &&
                memcmp(text + len - held, stops[i], (size_t)held) == 0)
                return held;
        }
    }
    return 0;
}

/* Thousands of texts of two letters, where borders and overlaps are the rule. */
START_TEST(stop_match__agrees_with_a_naive_search)
{
    struct arena arena;
    int n_hits = 0;

    arena_init(&arena, 1 << 20, 0);
    for (int trial = 0; trial < 3000; trial++) {
        char text[64], words[4][8];
        const char *stops[4] = {words[0], words[1], words[2], words[3]};
        struct stop_match m;
        struct stop_hit hit;
        struct err err = {0};
        int n_stops = 1 + draw(4), n = draw(60), at = 0, want, want_end;
        bool found = false;

        for (int i = 0; i < n_stops; i++)
            random_word(words[i], 1 + draw(6));
        random_word(text, n);
        want = naive(text, stops, n_stops, &want_end);
        if (stop_match_init(&m, &arena, stops, n_stops, &err) < 0)
            ck_abort_msg("%s", err.msg);
        while (at < n && !found) {
            int piece = 1 + draw(5);

            piece = piece > n - at ? n - at : piece;
            found = stop_match_feed(&m, text + at, (size_t)piece, true, &hit);
            if (found)
                break;
            at += piece;
            if ((int)stop_match_held(&m) != naive_held(text, at, stops, n_stops))
                ck_abort_msg("trial %d: held %zu of %.*s", trial, stop_match_held(&m), at, text);
        }
        if (found != (want >= 0))
            ck_abort_msg("trial %d: %s: found %d, want %d", trial, text, found, want);
        if (found && (strcmp(stops[hit.which], stops[want]) || at + (int)hit.end != want_end ||
                      hit.len != strlen(stops[want])))
            ck_abort_msg("trial %d: %s: ends at %d, want %d", trial, text, at + (int)hit.end,
                         want_end);
        n_hits += found;
        arena_reset(&arena);
    }
    ck_assert_int_gt(n_hits, 500);
    arena_release(&arena);
}
END_TEST

/* A match that is not honoured is passed over, and one that overlaps it is still found. */
START_TEST(stop_match__passes_over_when_told)
{
    static const char *const stops[] = {"aba"};
    struct stop_match m;
    struct stop_hit hit;
    struct err err = {0};
    struct arena arena;

    arena_init(&arena, 1 << 20, 0);
    ck_assert_int_eq(stop_match_init(&m, &arena, stops, 1, &err), 0);
    ck_assert(!stop_match_feed(&m, "xaba", 4, false, &hit));
    ck_assert_uint_eq(stop_match_held(&m), 1);
    ck_assert(stop_match_feed(&m, "ba", 2, true, &hit));
    ck_assert_uint_eq(hit.end, 2);
    ck_assert_str_eq(stop_match_string(&m, hit.which), "aba");
    arena_release(&arena);
}
END_TEST

/* Without strings nothing is held and nothing found. */
START_TEST(stop_match__does_nothing_without_strings)
{
    struct stop_match m;
    struct stop_hit hit;
    struct err err = {0};
    struct arena arena;

    arena_init(&arena, 1 << 20, 0);
    ck_assert_int_eq(stop_match_init(&m, &arena, NULL, 0, &err), 0);
    ck_assert(!stop_match_feed(&m, "anything", 8, true, &hit));
    ck_assert_uint_eq(stop_match_held(&m), 0);
    arena_release(&arena);
}
END_TEST

TEST_SUITE(stop_match)
{
    TCase *tc = test_case(suite, "core");

    tcase_add_test(tc, stop_match__agrees_with_a_naive_search);
    tcase_add_test(tc, stop_match__passes_over_when_told);
    tcase_add_test(tc, stop_match__does_nothing_without_strings);
}
