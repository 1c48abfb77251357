/*
 * Sample rows say what their requests asked for. The backend is a stand-in that only allocates.
 */
#include "engine/request.h"
#include "engine/sampler.h"
#include "tests/lib/test.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

static int fake_alloc(struct backend *be, void **out, size_t bytes, struct err *err)
{
    (void)be;
    (void)err;
    *out = calloc(1, bytes);
    return 0;
}

static void fake_free(struct backend *be, void *ptr)
{
    (void)be;
    free(ptr);
}

static const struct backend_ops fake_ops = {.name = "fake", .alloc = fake_alloc, .free = fake_free};
static struct backend fake = {.ops = &fake_ops};
static struct kv_rule rules[2] = {{.kind = KV_RULE_DENSE}, {.kind = KV_RULE_DENSE}};
static int32_t windows[1] = {KV_WINDOW_ALL};
static struct plan plan = {
    .shape = {.n_layers = 1, .n_heads = 2, .n_kv_heads = 1}, .rules = rules, .windows = windows};
static const int eos[] = {7, 9};
static struct request_env env;
static struct sampler sampler;
static struct outbox outbox;

static void setup(void)
{
    struct err err = {0};

    env = (struct request_env){
        .plan = &plan,
        .shape = {.n_layers = 1, .n_heads = 2, .n_kv_heads = 1, .head_dim = 8, .page_entries = 64},
        .vocab_size = 100,
        .max_seq_len = 1000,
        .eos_ids = eos,
        .n_eos = 2};
    ck_assert_int_eq(
        sampler_init(
            &sampler, &fake,
            &(struct sampler_params){
                .max_logits = 8, .max_batch = 4, .max_bias = 64, .max_seen = 64, .vocab_size = 100},
            &err),
        0);
    outbox_init(&outbox);
}

static void teardown(void)
{
    sampler_release(&sampler);
    outbox_release(&outbox);
}

static const int32_t prompt[] = {5, 6, 5, 8};

static struct request *make(const struct sampling_params *p)
{
    struct engine_request req = {.prompt = prompt, .n_prompt = 4, .sampling = *p};
    struct request *r = NULL;
    struct err err = {0};

    ck_assert_msg(request_new(&r, &env, &req, 1, &err) == 0, "%s", err.msg);
    return r;
}

/* As if the scheduler had run the rows up to the next token. */
static void push(struct request *r, int32_t id)
{
    r->seq.n_pending = 1;
    request_push_token(r, &(struct engine_token){.id = id}, 1);
    request_tell(r, &outbox);
}

/* Every number of the request is in the row, and the position is that of the token drawn. */
START_TEST(sampler__copies_what_was_asked)
{
    struct sampling_params p;
    const struct sample_row *row = sampler.rows;
    struct request *r;

    sampling_params_init(&p);
    p.temperature = 0.5f;
    p.top_p = 0.25f;
    p.min_p = 0.125f;
    p.top_k = 3;
    p.seed = 1234567890123456789u;
    p.sample_idx = 2;
    p.n_logprobs = 4;
    r = make(&p);
    push(r, 50);
    sampler_begin(&sampler);
    sampler_add_draw(&sampler, r);
    ck_assert_int_eq(sampler.n_rows, 1);
    ck_assert_int_eq(sampler.max_top, 4);
    ck_assert(row->temperature == 0.5f && row->top_p == 0.25f && row->min_p == 0.125f);
    ck_assert_int_eq(row->top_k, 3);
    ck_assert_uint_eq(row->seed, 1234567890123456789u);
    ck_assert_uint_eq(row->sample_idx, 2);
    ck_assert_int_eq(row->position, 5);
    ck_assert_int_eq(row->forced_token, -1);
    ck_assert_int_eq(row->n_seen, 0);
    ck_assert_int_eq(row->n_bias, 0);
    request_free(r);
}
END_TEST

/* Tokens for the penalties appear once, with how often they were generated. */
START_TEST(sampler__counts_tokens_for_penalties)
{
    struct sampling_params p;
    struct request *r;

    sampling_params_init(&p);
    p.frequency_penalty = 0.5f;
    r = make(&p);
    push(r, 5);
    push(r, 42);
    push(r, 42);
    sampler_begin(&sampler);
    sampler_add_draw(&sampler, r);
    ck_assert_int_eq(sampler.n_seen, 4);
    for (int i = 0; i < 4; i++) {
        const struct sample_seen *s = &sampler.seen[i];
        int want = s->token == 5 ? 1 : s->token == 42 ? 2 : 0;

        ck_assert_int_eq(s->n_generated, want);
        ck_assert(s->token == 5 || s->token == 6 || s->token == 8 || s->token == 42);
    }
    request_free(r);
}
END_TEST

/* Before min_tokens EOS and stop ids are banned, once each, over the client's own bias. */
START_TEST(sampler__bans_ends_before_min_tokens)
{
    static const struct engine_bias bias[] = {{.token = 9, .value = 50}, {.token = 3, .value = -1}};
    static const int32_t stop_ids[] = {11};
    struct sampling_params p;
    struct request *r;
    int n_banned = 0;

    sampling_params_init(&p);
    p.min_tokens = 1;
    p.bias = bias;
    p.n_bias = 2;
    p.stop_ids = stop_ids;
    p.n_stop_ids = 1;
    r = make(&p);
    sampler_begin(&sampler);
    sampler_add_draw(&sampler, r);
    ck_assert_int_eq(sampler.n_bias, 4);
    for (int i = 0; i < 4; i++)
        n_banned += isinf(sampler.bias[i].value) && sampler.bias[i].value < 0;
    ck_assert_int_eq(n_banned, 3);
    push(r, 50);
    sampler_begin(&sampler);
    sampler_add_draw(&sampler, r);
    ck_assert_int_eq(sampler.n_bias, 2);
    ck_assert(sampler.bias[0].value == 50.0f);
    request_free(r);
}
END_TEST

/* A prompt row draws nothing and is touched by no option. */
START_TEST(sampler__forces_prompt_tokens)
{
    struct sampling_params p;
    struct request *r;

    sampling_params_init(&p);
    p.n_prompt_logprobs = 2;
    p.frequency_penalty = 1;
    r = make(&p);
    sampler_begin(&sampler);
    sampler_add_prompt(&sampler, r, 3);
    ck_assert_int_eq(sampler.rows[0].forced_token, 8);
    ck_assert_int_eq(sampler.rows[0].n_top, 2);
    ck_assert_int_eq(sampler.rows[0].n_seen, 0);
    request_free(r);
}
END_TEST

TEST_SUITE(sampler)
{
    TCase *tc = test_case(suite, "core");

    tcase_add_checked_fixture(tc, setup, teardown);
    tcase_add_test(tc, sampler__copies_what_was_asked);
    tcase_add_test(tc, sampler__counts_tokens_for_penalties);
    tcase_add_test(tc, sampler__bans_ends_before_min_tokens);
    tcase_add_test(tc, sampler__forces_prompt_tokens);
}
