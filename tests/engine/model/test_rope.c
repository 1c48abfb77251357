/*
 * Inverse frequencies against transformers at full size: tests/golden/rope.json.
 *
 * Tolerance: 4 units in the last place. Both sides take powers in f32 with errors below one unit,
 * and up to four roundings follow; a formula that is off shows in the third digit.
 */
#include "base/err.h"
#include "base/json_file.h"
#include "engine/model/model.h"
#include "engine/model/rope.h"
#include "tests/lib/test.h"

#include <jansson.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#define ULPS 4

/* Loads a config that stands inside another document. */
static void load_config(struct model_config *cfg, const json_t *config)
{
    char dir[] = "/tmp/spand-test-rope-XXXXXX", path[64];
    struct err err = {0};

    ck_assert_ptr_nonnull(mkdtemp(dir));
    snprintf(path, sizeof(path), "%s/config.json", dir);
    ck_assert_int_eq(json_dump_file(config, path, 0), 0);
    ck_assert_msg(model_config_load(cfg, dir, &err) == 0, "%s", err.msg);
    unlink(path);
    rmdir(dir);
}

/* Every published setting gives the frequencies and the scale that transformers computes. */
START_TEST(rope__frequencies_match_transformers)
{
    struct err err = {0};
    const char *name;
    json_t *doc, *entry;

    ck_assert_msg(json_file_load(&doc, test_path("tests/golden/rope.json"), 1 << 20, &err) == 0,
                  "%s", err.msg);
    ck_assert_uint_ge(json_object_size(doc), 9);
    json_object_foreach(doc, name, entry)
    {
        const json_t *want = json_object_get(entry, "inv_freq");
        float got[256];
        struct model_config c;

        load_config(&c, json_object_get(entry, "config"));
        ck_assert_uint_eq(json_array_size(want), (size_t)c.stack.rope.dim / 2);
        rope_inv_freq(got, &c.stack.rope, 1);
        for (int i = 0; i < c.stack.rope.dim / 2; i++) {
            double w = json_number_value(json_array_get(want, i));

            ck_assert_msg(fabs(got[i] - w) <= ULPS * 1.2e-7 * w, "%s: %d: %.9g, want %.9g", name, i,
                          got[i], w);
        }
        ck_assert_float_eq_tol(rope_scale(&c.stack.rope),
                               (float)json_number_value(json_object_get(entry, "scale")), 1e-6f);
    }
    json_decref(doc);
}
END_TEST

/* The dynamic base stays until the length passes max_seq_len, and grows with it from there. */
START_TEST(rope__dynamic_base_grows_past_the_maximum)
{
    struct rope_config r = {
        .kind = ROPE_DYNAMIC, .theta = 10000, .factor = 2, .dim = 8, .original_max_seq_len = 100};
    float at_start[4], short_seq[4], just_past[4], far_past[4];

    rope_inv_freq(at_start, &r, 100);
    rope_inv_freq(short_seq, &r, 7);
    rope_inv_freq(just_past, &r, 101);
    rope_inv_freq(far_past, &r, 200);
    ck_assert_mem_eq(at_start, short_seq, sizeof(at_start));
    ck_assert_float_eq(just_past[0], 1.0f);
    ck_assert_float_lt(just_past[3], at_start[3]);
    ck_assert_float_lt(far_past[3], just_past[3]);
    /* base 10000 * (2*200/100 - 1)^(8/6), third power of its fourth root */
    ck_assert_float_eq_tol(far_past[3], powf(10000.0f * powf(3.0f, 8.0f / 6.0f), -0.75f), 1e-9f);
}
END_TEST

TEST_SUITE(rope)
{
    TCase *tc = test_case(suite, "rope");

    tcase_add_test(tc, rope__frequencies_match_transformers);
    tcase_add_test(tc, rope__dynamic_base_grows_past_the_maximum);
}
