/*
 * Spans against the published runtime's rounding, geometry against a token-by-token simulation.
 */
#include "base/rng.h"
#include "engine/kv/kv_layout.h"
#include "tests/lib/test.h"

#include <string.h>

/* Every cell of the table of rounding vectors: six rules at six lengths. */
START_TEST(kv_layout__rounds_spans_like_the_published_runtime)
{
    static const struct {
        double alpha, beta;
    } rule[6] = {{0, .125}, {0, .625}, {-1024, 1}, {1024, .125}, {0, .875}, {1024, 0}};
    static const struct {
        int n;
        int64_t want[6];
    } row[6] = {
        {100, {128, 128, 128, 128, 128, 128}},
        {1000, {128, 640, 128, 1024, 896, 1024}},
        {4096, {512, 2560, 3072, 1536, 3584, 1024}},
        {5000, {640, 3136, 4032, 1664, 4416, 1024}},
        {9000, {1152, 5632, 8000, 2176, 7936, 1024}},
        {13312, {1664, 8320, 12288, 2688, 11648, 1024}},
    };

    for (int r = 0; r < 6; r++) {
        for (int c = 0; c < 6; c++)
            ck_assert_msg(kv_elastic_tokens(rule[c].alpha, rule[c].beta, row[r].n,
                                            KV_SPAN_INCLUDES_SINK) == row[r].want[c],
                          "n %d rule (%g, %g): %lld, want %lld", row[r].n, rule[c].alpha,
                          rule[c].beta,
                          (long long)kv_elastic_tokens(rule[c].alpha, rule[c].beta, row[r].n,
                                                       KV_SPAN_INCLUDES_SINK),
                          (long long)row[r].want[c]);
    }
}
END_TEST

/* The optimiser's convention adds the sink on top, capped at the length. */
START_TEST(kv_layout__can_charge_the_sink_on_top)
{
    ck_assert_int_eq(kv_elastic_tokens(0, .5, 4096, KV_SPAN_EXCLUDES_SINK), 2048 + 64);
    ck_assert_int_eq(kv_elastic_tokens(0, 1, 4096, KV_SPAN_EXCLUDES_SINK), 4096);
    ck_assert_int_eq(kv_elastic_tokens(8192, 0, 1000, KV_SPAN_EXCLUDES_SINK), 1024);
}
END_TEST

/* Numbers at the rim of double and int never overflow. */
START_TEST(kv_layout__survives_extreme_rules)
{
    ck_assert_int_eq(kv_elastic_tokens(1e300, 1, 1 << 20, KV_SPAN_INCLUDES_SINK), 1 << 20);
    ck_assert_int_eq(kv_elastic_tokens(-1e300, 1, 1 << 20, KV_SPAN_INCLUDES_SINK), 128);
    ck_assert_int_eq(kv_elastic_tokens(0, 0, 1, KV_SPAN_INCLUDES_SINK), 128);
}
END_TEST

/* A KV head keeps its group's largest ring, and each query head keeps its own window. */
START_TEST(kv_layout__merges_a_group_to_its_maximum)
{
    struct kv_shape shape = {
        .n_layers = 1, .n_heads = 4, .n_kv_heads = 2, .head_dim = 64, .page_entries = 64};
    struct kv_rule rules[4] = {{.kind = KV_RULE_ELASTIC, .beta = .125},
                               {.kind = KV_RULE_ELASTIC, .beta = .5},
                               {.kind = KV_RULE_ELASTIC, .alpha = 256},
                               {.kind = KV_RULE_ELASTIC, .alpha = 128}};
    struct kv_geom geom[2];
    int32_t window[4];

    kv_layout_geometry(&shape, rules, 4096, KV_SPAN_INCLUDES_SINK, geom, window);
    ck_assert_int_eq(geom[0].n_sink, 64);
    ck_assert_int_eq(geom[0].ring, 2048 - 64);
    ck_assert_int_eq(geom[0].mask, KV_MASK_BLOCK);
    ck_assert_int_eq(geom[1].ring, 256 - 64);
    ck_assert_int_eq(window[0], 512 - 64);
    ck_assert_int_eq(window[1], 2048 - 64);
    ck_assert_int_eq(window[3], 128 - 64);
    ck_assert_int_eq(kv_layout_query_slots(&shape, rules, 4096, KV_SPAN_INCLUDES_SINK),
                     512 + 2048 + 256 + 128);
    ck_assert_int_eq(kv_layout_kv_slots(&shape, rules, 4096, KV_SPAN_INCLUDES_SINK), 2048 + 256);
}
END_TEST

/* A trained window keeps its exact width; only its memory is rounded. */
START_TEST(kv_layout__keeps_stream_windows_exact)
{
    struct kv_rule rule = {.kind = KV_RULE_STREAM, .n_sink = 4, .n_recent = 100};
    struct kv_span span = kv_rule_span(&rule, 5000, KV_SPAN_INCLUDES_SINK);

    ck_assert_int_eq(span.window, 100);
    ck_assert_int_eq(span.ring, 128);
    ck_assert_int_eq(span.n_sink, 4);
    ck_assert_int_eq(span.mask, KV_MASK_TOKEN);
}
END_TEST

/*
 * Entries, room and keys of random heads agree with writing the positions one by one: every
 * index lies below the entries counted, and no index of a kept key is ever shared.
 */
START_TEST(kv_layout__agrees_with_writing_token_by_token)
{
    enum { MOST = 1024 };
    static int32_t at_index[2 * MOST];

    for (uint64_t trial = 0; trial < 300; trial++) {
        struct kv_geom g = {.n_sink = (int32_t)(rng_u64(7, 0, trial) % 130),
                            .ring = (int32_t)(1 + rng_u64(7, 1, trial) % 6) * KV_TILE};
        int n_tokens = (int)(1 + rng_u64(7, 2, trial) % MOST), n_kept = 0, highest = 0;

        if (trial % 10 == 0)
            g = (struct kv_geom){.n_sink = 0, .ring = KV_RING_DENSE};
        memset(at_index, 0xff, sizeof(at_index));
        for (int32_t p = 0; p < n_tokens; p++) {
            at_index[kv_index_of(g, p)] = p;
            highest = kv_index_of(g, p) > highest ? kv_index_of(g, p) : highest;
        }
        ck_assert_int_eq(kv_geom_entries(g, n_tokens), highest + 1);
        for (int i = 0; i < 2 * MOST; i++)
            n_kept += at_index[i] >= 0;
        ck_assert_int_eq(kv_geom_keys_read(g, n_tokens - 1), n_kept);
        ck_assert_int_eq(kv_geom_keeps_all(g, n_tokens), n_kept == n_tokens);
        for (int32_t p = n_tokens - 1; p >= 0 && p >= g.n_sink && p > n_tokens - 1 - g.ring; p--)
            ck_assert_int_eq(at_index[kv_index_of(g, p)], p);
    }
}
END_TEST

/* With the pages that `room` says, the room's last token has a page and the next one has none. */
START_TEST(kv_layout__room_is_the_inverse_of_pages)
{
    for (uint64_t trial = 0; trial < 2000; trial++) {
        struct kv_geom g = {.n_sink = (int32_t)(rng_u64(8, 0, trial) % 130),
                            .ring = (int32_t)(1 + rng_u64(8, 1, trial) % 6) * KV_TILE};
        int page_entries = rng_u64(8, 2, trial) & 1 ? 64 : 16;
        int64_t n_pages = (int64_t)(rng_u64(8, 3, trial) % 40);
        int32_t room = kv_geom_room(g, n_pages, page_entries);

        if (room == INT32_MAX) {
            ck_assert_int_le(kv_geom_pages(g, 1 << 29, page_entries), n_pages);
            continue;
        }
        ck_assert_int_le(kv_geom_pages(g, room, page_entries), n_pages);
        ck_assert_int_gt(kv_geom_pages(g, room + 1, page_entries), n_pages);
    }
}
END_TEST

/* A final page is written by none of the positions to come, and full pages of heads that keep all
 * are final. */
START_TEST(kv_layout__final_pages_are_not_written_again)
{
    static const struct kv_geom geoms[] = {{0, KV_RING_DENSE, 0}, {64, 64, 1}, {64, 192, 1},
                                           {5, 128, 0},           {0, 64, 0},  {100, 64, 0}};
    int n_final = 0, n_shared = 0;

    for (size_t k = 0; k < sizeof(geoms) / sizeof(geoms[0]); k++) {
        struct kv_geom g = geoms[k];

        for (int n = 1; n < 330; n += 7) {
            for (int limit = n; limit < 400; limit += 31) {
                for (int page = 0; page < kv_geom_pages(g, n, 16); page++) {
                    bool is_final = kv_geom_page_is_final(g, page, n, limit, 16);
                    bool is_written = false, is_full = (page + 1) * 16 <= n;

                    for (int pos = n; pos < limit; pos++)
                        is_written = is_written || kv_index_of(g, pos) / 16 == page;
                    ck_assert_msg(!is_final || !is_written, "geom %zu, page %d at %d of %d", k,
                                  page, n, limit);
                    if (g.n_sink % KV_TILE == 0 && kv_geom_keeps_all(g, limit) && is_full)
                        ck_assert(is_final);
                    n_final += is_final;
                    n_shared += is_final && limit > n && !kv_geom_keeps_all(g, limit);
                }
            }
        }
    }
    ck_assert_int_gt(n_final, 1000);
    ck_assert_int_gt(n_shared, 1000); /* sinks of heads that drop tokens */
}
END_TEST

TEST_SUITE(kv_layout)
{
    TCase *tc = test_case(suite, "core");

    tcase_add_test(tc, kv_layout__rounds_spans_like_the_published_runtime);
    tcase_add_test(tc, kv_layout__can_charge_the_sink_on_top);
    tcase_add_test(tc, kv_layout__survives_extreme_rules);
    tcase_add_test(tc, kv_layout__merges_a_group_to_its_maximum);
    tcase_add_test(tc, kv_layout__keeps_stream_windows_exact);
    tcase_add_test(tc, kv_layout__agrees_with_writing_token_by_token);
    tcase_add_test(tc, kv_layout__room_is_the_inverse_of_pages);
    tcase_add_test(tc, kv_layout__final_pages_are_not_written_again);
}
