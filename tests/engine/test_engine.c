/*
 * The engine from its face, on a tiny model with random weights.
 */
#include "base/clock.h"
#include "engine/engine_state.h"
#include "tests/engine/engine_fixture.h"
#include "tests/lib/test.h"

#include <jansson.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#define MAX_FLAGS 48

static const char *run_ahead = "off";

static void ahead_setup(void)
{
    run_ahead = "on";
}

static struct engine *open_with(const char *const *more, const struct engine_hooks *hooks)
{
    const char *flags[MAX_FLAGS] = {"--model",          test_path("tests/fixtures/engine/tiny"),
                                    "--weights",        "random",
                                    "--device",         "cpu",
                                    "--kv-memory",      "8MiB",
                                    "--max-batch",      "4",
                                    "--threads",        "1",
                                    "--no-pin-threads", "--run-ahead",
                                    run_ahead};
    int n = 15;
    struct engine *e;

    for (int i = 0; more && more[i]; i++)
        flags[n++] = more[i];
    e = engine_fixture_open(flags, hooks);
    ck_assert_ptr_nonnull(e);
    return e;
}

static struct engine *open_tiny(void)
{
    return open_with(NULL, NULL);
}

static const int32_t prompt[] = {40, 71, 79, 79, 82, 259, 12, 70, 64, 83};

static struct engine_request greedy(int max_tokens)
{
    struct engine_request req = {.prompt = prompt, .n_prompt = 10};

    sampling_params_init(&req.sampling);
    req.sampling.temperature = 0;
    req.sampling.max_tokens = max_tokens;
    req.sampling.ignore_eos = true;
    return req;
}

static void run(struct engine *e, const struct engine_request *req, struct collected *c)
{
    ck_assert(engine_fixture_run(e, req, c));
    ck_assert(!c->broken);
    ck_assert_int_eq(c->n_final, 1);
}

/* The books are closed shortly after the last event. */
static struct engine_stats idle_stats(struct engine *e)
{
    struct engine_stats stats;

    for (int i = 0; i < 5000; i++) {
        engine_get_stats(e, &stats);
        if (stats.n_running == 0 && stats.n_waiting == 0 && stats.pages_used == 0)
            break;
        usleep(1000);
    }
    return stats;
}

/* max_tokens tokens, their text, times in order, and every page back. */
START_TEST(engine__answers)
{
    struct engine *e = open_tiny();
    struct engine_request req = greedy(20);
    struct engine_stats stats;
    struct collected c;

    run(e, &req, &c);
    ck_assert_int_eq(c.finish, FINISH_LENGTH);
    ck_assert_int_eq(c.n_tokens, 20);
    ck_assert_int_eq(c.stop_token, -1);
    ck_assert(isnan(c.tokens[0].logprob));
    ck_assert_int_le(c.submit_ns, c.start_ns);
    ck_assert_int_lt(c.start_ns, c.first_token_ns);
    ck_assert_int_lt(c.first_token_ns, c.last_token_ns);
    stats = idle_stats(e);
    ck_assert_int_eq(stats.pages_used, 0);
    ck_assert_int_eq(stats.generation_tokens, 20);
    ck_assert_int_eq(stats.prompt_tokens, 10);
    ck_assert_int_eq(stats.n_finished[FINISH_LENGTH], 1);
    ck_assert(stats.healthy);
    collected_release(&c);
    engine_close(e);
}
END_TEST

/* What is streamed is what the tokenizer makes of the whole. */
START_TEST(engine__streams_the_text_of_its_tokens)
{
    struct engine *e = open_tiny();
    struct engine_request req = greedy(60);
    struct strbuf whole = STRBUF_INIT;
    struct err err = {0};
    int32_t ids[60];
    struct collected c;

    req.sampling.temperature = 1;
    req.sampling.seed = 3;
    run(e, &req, &c);
    for (int i = 0; i < c.n_tokens; i++)
        ids[i] = c.tokens[i].id;
    ck_assert_int_eq(engine_detokenize(e, ids, c.n_tokens, true, &whole, &err), 0);
    ck_assert_str_eq(c.text.buf, whole.buf);
    strbuf_release(&whole);
    collected_release(&c);
    engine_close(e);
}
END_TEST

/* A stop id ends the text before itself; include_stop keeps it. */
START_TEST(engine__stops_at_a_token)
{
    struct engine *e = open_tiny();
    struct engine_request req = greedy(20);
    struct collected all, cut, kept;
    int first = 0;

    run(e, &req, &all);
    while (all.tokens[first].id != all.tokens[8].id)
        first++;
    req.sampling.stop_ids = &all.tokens[8].id;
    req.sampling.n_stop_ids = 1;
    run(e, &req, &cut);
    ck_assert_int_eq(cut.finish, FINISH_STOP);
    ck_assert_int_eq(cut.stop_token, all.tokens[8].id);
    ck_assert_int_eq(cut.n_tokens, first + 1);
    ck_assert_int_eq(cut.tokens[first].text_len, 0);
    req.sampling.include_stop = true;
    run(e, &req, &kept);
    ck_assert_int_eq(kept.n_tokens, first + 1);
    ck_assert_uint_ge(kept.text.len, cut.text.len);
    collected_release(&all);
    collected_release(&cut);
    collected_release(&kept);
    engine_close(e);
}
END_TEST

/* The model's EOS ids count unless ignored, and min_tokens keeps them away. */
START_TEST(engine__obeys_eos_and_min_tokens)
{
    struct engine *e = open_tiny();
    struct engine_request req = greedy(30);
    struct engine_bias push = {.token = e->model_config.eos_ids[0], .value = 100};
    struct collected c;

    req.sampling.bias = &push;
    req.sampling.n_bias = 1;
    run(e, &req, &c);
    ck_assert_int_eq(c.n_tokens, 30);
    ck_assert_int_eq(c.tokens[0].id, push.token);
    ck_assert_uint_eq(c.text.len, 0);
    collected_release(&c);
    req.sampling.ignore_eos = false;
    run(e, &req, &c);
    ck_assert_int_eq(c.finish, FINISH_STOP);
    ck_assert_int_eq(c.n_tokens, 1);
    collected_release(&c);
    req.sampling.min_tokens = 7;
    run(e, &req, &c);
    ck_assert_int_eq(c.finish, FINISH_STOP);
    ck_assert_int_eq(c.n_tokens, 8);
    collected_release(&c);
    engine_close(e);
}
END_TEST

/* Every piece of the text as a stop string: cut before it, or behind it when asked. */
START_TEST(engine__stops_at_strings_across_tokens)
{
    struct engine *e = open_tiny();
    struct engine_request req = greedy(40);
    struct collected all, c;

    req.sampling.temperature = 1;
    req.sampling.seed = 11;
    run(e, &req, &all);
    for (int at = 0; at + 5 < all.n_tokens; at++) {
        char stop[32];
        const char *stops[2] = {"never in it, this", stop};
        int from = all.tokens[at].text_at;
        int len = all.tokens[at + 3].text_at - from;
        const char *first;

        if (len < 2 || len > 31)
            continue;
        snprintf(stop, sizeof(stop), "%.*s", len, all.text.buf + from);
        if (((unsigned char)stop[0] & 0xc0) == 0x80)
            continue;
        first = strstr(all.text.buf, stop);
        ck_assert_ptr_nonnull(first);
        req.sampling.stop = stops;
        req.sampling.n_stop = 2;
        req.sampling.include_stop = at % 2;
        run(e, &req, &c);
        ck_assert_int_eq(c.finish, FINISH_STOP);
        ck_assert_str_eq(c.stop_string, stop);
        ck_assert_uint_eq(c.text.len, (size_t)(first - all.text.buf) + (at % 2 ? (size_t)len : 0));
        ck_assert_int_eq(memcmp(c.text.buf, all.text.buf, c.text.len), 0);
        collected_release(&c);
    }
    collected_release(&all);
    engine_close(e);
}
END_TEST

/* Stop strings do not count before min_tokens, and text held back for them is not lost. */
START_TEST(engine__passes_early_stop_strings)
{
    struct engine *e = open_tiny();
    struct engine_request req = greedy(30);
    static const char *const stops[] = {"a", "b", "c", "d", "e", "f", "g", "h", "i", "j"};
    struct collected all, c;

    req.sampling.temperature = 1;
    req.sampling.seed = 5;
    run(e, &req, &all);
    req.sampling.stop = stops;
    req.sampling.n_stop = 10;
    req.sampling.min_tokens = 30;
    run(e, &req, &c);
    ck_assert(collected_same(&all, &c));
    collected_release(&all);
    collected_release(&c);
    engine_close(e);
}
END_TEST

/* Alternatives come best first; greedy takes the best; probabilities stay below one. */
START_TEST(engine__reports_logprobs)
{
    struct engine *e = open_tiny();
    struct engine_request req = greedy(10);
    struct collected c;

    req.sampling.n_logprobs = 5;
    run(e, &req, &c);
    for (int i = 0; i < c.n_tokens; i++) {
        const struct engine_token *t = &c.tokens[i];
        double sum = 0;

        ck_assert_int_eq(t->n_top, 5);
        ck_assert_int_eq(t->top_id[0], t->id);
        ck_assert(t->top_logprob[0] == t->logprob);
        for (int k = 0; k < 5; k++) {
            sum += exp((double)t->top_logprob[k]);
            ck_assert(k == 0 || t->top_logprob[k] <= t->top_logprob[k - 1]);
        }
        ck_assert(sum < 1.0);
    }
    collected_release(&c);
    engine_close(e);
}
END_TEST

/* The prompt's logprobs are what decoding the same tokens reported, in chunks of any size. */
START_TEST(engine__scores_a_prompt)
{
    static const char *const more[] = {"--chunk-tokens", "7", NULL};
    struct engine *e = open_with(more, NULL);
    struct engine_request req = greedy(50);
    int32_t text[60];
    struct collected made, scored;

    req.sampling.n_logprobs = 2;
    run(e, &req, &made);
    memcpy(text, prompt, sizeof(prompt));
    for (int i = 0; i < 50; i++)
        text[10 + i] = made.tokens[i].id;
    req.prompt = text;
    req.n_prompt = 60;
    req.sampling.max_tokens = 0;
    req.sampling.n_prompt_logprobs = 2;
    run(e, &req, &scored);
    ck_assert_int_eq(scored.finish, FINISH_LENGTH);
    ck_assert_int_eq(scored.n_tokens, 0);
    ck_assert_int_eq(scored.n_prompt, 60);
    ck_assert(isnan(scored.prompt[0].logprob));
    for (int i = 1; i < 60; i++)
        ck_assert_int_eq(scored.prompt[i].id, text[i]);
    for (int i = 0; i < 50; i++) {
        ck_assert_int_eq(scored.prompt[10 + i].n_top, 2);
        /* Chunk rows and decode rows sum in different orders, in bf16. */
        ck_assert_double_eq_tol((double)scored.prompt[10 + i].logprob,
                                (double)made.tokens[i].logprob, 0.1);
    }
    req.sampling.prompt_logprobs_at = 45;
    collected_release(&made);
    run(e, &req, &made);
    ck_assert_int_eq(made.n_prompt, 60);
    for (int i = 0; i < 60; i++) {
        ck_assert_int_eq(isnan(made.prompt[i].logprob) != 0, i < 45);
        ck_assert(i < 45 || made.prompt[i].logprob == scored.prompt[i].logprob);
    }
    collected_release(&made);
    collected_release(&scored);
    engine_close(e);
}
END_TEST

/* top_k 1, top_p 0 and min_p 1 leave one token each: the greedy one. */
START_TEST(engine__narrows_to_greedy)
{
    struct engine *e = open_tiny();
    struct engine_request req = greedy(15);
    struct collected best, c;

    run(e, &req, &best);
    for (int i = 0; i < 3; i++) {
        sampling_params_init(&req.sampling);
        req.sampling.max_tokens = 15;
        req.sampling.ignore_eos = true;
        req.sampling.seed = 77;
        req.sampling.top_k = i == 0;
        req.sampling.top_p = i == 1 ? 0.0f : 1.0f;
        req.sampling.min_p = i == 2 ? 1.0f : 0.0f;
        run(e, &req, &c);
        ck_assert(collected_same(&best, &c));
        collected_release(&c);
    }
    collected_release(&best);
    engine_close(e);
}
END_TEST

/* The same seed gives the same tokens, another seed or another sample others. */
START_TEST(engine__samples_by_seed)
{
    struct engine *e = open_tiny();
    struct engine_request req = greedy(30);
    struct collected first, again, seed, sample;

    req.sampling.temperature = 1;
    req.sampling.seed = 1;
    run(e, &req, &first);
    run(e, &req, &again);
    req.sampling.seed = 2;
    run(e, &req, &seed);
    req.sampling.seed = 1;
    req.sampling.sample_idx = 1;
    run(e, &req, &sample);
    ck_assert(collected_same(&first, &again));
    ck_assert(!collected_same(&first, &seed));
    ck_assert(!collected_same(&first, &sample));
    collected_release(&first);
    collected_release(&again);
    collected_release(&seed);
    collected_release(&sample);
    engine_close(e);
}
END_TEST

/* Penalties change what greedy repeats. */
START_TEST(engine__penalises_repetition)
{
    struct engine *e = open_tiny();
    struct engine_request req = greedy(60);
    struct collected plain, penal;
    int n_plain = 0, n_penal = 0;

    run(e, &req, &plain);
    req.sampling.presence_penalty = 2;
    req.sampling.frequency_penalty = 2;
    req.sampling.repetition_penalty = 2;
    run(e, &req, &penal);
    for (int i = 1; i < 60; i++) {
        bool again = false, again_penal = false;

        for (int k = 0; k < i; k++) {
            again = again || plain.tokens[k].id == plain.tokens[i].id;
            again_penal = again_penal || penal.tokens[k].id == penal.tokens[i].id;
        }
        n_plain += again;
        n_penal += again_penal;
    }
    ck_assert_int_lt(n_penal, n_plain);
    collected_release(&plain);
    collected_release(&penal);
    engine_close(e);
}
END_TEST

static const struct {
    size_t field; /* a float of sampling_params, or (size_t)-1 */
    float value;
    const char *wants;
} bad_floats[] = {
    {offsetof(struct sampling_params, temperature), -0.5f, "temperature"},
    {offsetof(struct sampling_params, temperature), NAN, "temperature"},
    {offsetof(struct sampling_params, temperature), INFINITY, "temperature"},
    {offsetof(struct sampling_params, top_p), 1.5f, "top_p"},
    {offsetof(struct sampling_params, top_p), -0.1f, "top_p"},
    {offsetof(struct sampling_params, min_p), 2.0f, "min_p"},
    {offsetof(struct sampling_params, repetition_penalty), 0.0f, "repetition_penalty"},
    {offsetof(struct sampling_params, presence_penalty), 3.0f, "presence_penalty"},
    {offsetof(struct sampling_params, frequency_penalty), NAN, "frequency_penalty"},
};

static void check_refused(struct engine *e, const struct engine_request *req, int code,
                          const char *wants)
{
    struct err err = {0};
    uint64_t id;

    ck_assert_int_eq(engine_submit(e, req, &id, &err), code);
    ck_assert_msg(strstr(err.msg, wants) != NULL, "message: %s", err.msg);
}

/* Each wrong value is named in the message, and the engine goes on. */
START_TEST(engine__refuses_bad_parameters)
{
    struct engine *e = open_tiny();
    struct engine_request good = greedy(4), req;
    static const int32_t bad_ids[] = {1, -5};
    static const char *const empty[] = {""};
    static const struct engine_bias bad_bias = {.token = 1, .value = 1000};
    struct collected c;

    for (size_t i = 0; i < sizeof(bad_floats) / sizeof(bad_floats[0]); i++) {
        req = good;
        memcpy((char *)&req.sampling + bad_floats[i].field, &bad_floats[i].value, sizeof(float));
        check_refused(e, &req, ERR_INVALID, bad_floats[i].wants);
    }
    req = good;
    req.sampling.top_k = -2;
    check_refused(e, &req, ERR_INVALID, "top_k");
    req = good;
    req.sampling.max_tokens = -1;
    check_refused(e, &req, ERR_INVALID, "max_tokens");
    req = good;
    req.sampling.min_tokens = 5;
    check_refused(e, &req, ERR_INVALID, "min_tokens");
    req = good;
    req.sampling.n_logprobs = 21;
    check_refused(e, &req, ERR_INVALID, "logprobs");
    req = good;
    req.sampling.stop = empty;
    req.sampling.n_stop = 1;
    check_refused(e, &req, ERR_INVALID, "stop[0]");
    req = good;
    req.sampling.stop_ids = bad_ids;
    req.sampling.n_stop_ids = 2;
    check_refused(e, &req, ERR_INVALID, "stop_token_ids[1]");
    req = good;
    req.sampling.bias = &bad_bias;
    req.sampling.n_bias = 1;
    check_refused(e, &req, ERR_INVALID, "logit_bias");
    req = good;
    req.n_prompt = 0;
    check_refused(e, &req, ERR_INVALID, "empty");
    req = good;
    req.prompt = bad_ids;
    req.n_prompt = 2;
    check_refused(e, &req, ERR_INVALID, "prompt token 1");
    run(e, &good, &c);
    ck_assert_int_eq(c.n_tokens, 4);
    collected_release(&c);
    engine_close(e);
}
END_TEST

/* Too long for the context, or for the pool for good: the numbers are in the message. */
START_TEST(engine__refuses_what_never_fits)
{
    static const char *const more[] = {"--kv-memory", "100KiB", NULL};
    struct engine *e = open_tiny();
    struct engine_request req = greedy(1015);

    check_refused(e, &req, ERR_CONTEXT, "1025");
    engine_close(e);
    /* 25 pages of 4096 bytes; 1010 tokens of 6 heads want 96. */
    e = open_with(more, NULL);
    req.sampling.max_tokens = 1000;
    check_refused(e, &req, ERR_CONTEXT, "96 pages");
    engine_close(e);
}
END_TEST

/* Beyond max_batch + max_waiting requests are refused until some are collected. */
START_TEST(engine__bounds_its_queue)
{
    static const char *const more[] = {"--max-waiting", "3", NULL};
    struct engine *e = open_with(more, NULL);
    struct engine_request req = greedy(5);
    static struct collected c[8];
    struct err err = {0};
    uint64_t id;

    for (int i = 0; i < 7; i++) {
        collected_init(&c[i]);
        req.user = &c[i];
        ck_assert_int_eq(engine_submit(e, &req, &id, &err), 0);
    }
    req.user = &c[7];
    ck_assert_int_eq(engine_submit(e, &req, &id, &err), ERR_LIMIT);
    for (int i = 0; i < 7; i++)
        ck_assert(engine_fixture_wait(e, &c[i], 30));
    collected_init(&c[7]);
    ck_assert_int_eq(engine_submit(e, &req, &id, &err), 0);
    ck_assert(engine_fixture_wait(e, &c[7], 30));
    for (int i = 0; i < 8; i++)
        collected_release(&c[i]);
    engine_close(e);
}
END_TEST

/* Who gets no seat in time ends with an error and without a start; who runs is left alone. */
START_TEST(engine__ends_who_waits_too_long)
{
    static const char *const more[] = {"--max-batch", "1", "--queue-timeout-ms", "20", NULL};
    struct engine *e = open_with(more, NULL);
    struct engine_request req = greedy(900);
    static struct collected c[2];
    struct err err = {0};
    uint64_t id;

    for (int i = 0; i < 2; i++) {
        collected_init(&c[i]);
        req.user = &c[i];
        ck_assert_int_eq(engine_submit(e, &req, &id, &err), 0);
    }
    for (int i = 0; i < 2; i++)
        ck_assert(engine_fixture_wait(e, &c[i], 30));
    ck_assert_int_eq(c[0].finish, FINISH_LENGTH);
    ck_assert_int_eq(c[1].finish, FINISH_ERROR);
    ck_assert_int_eq(c[1].start_ns, 0);
    ck_assert_int_eq(c[1].n_tokens, 0);
    for (int i = 0; i < 2; i++)
        collected_release(&c[i]);
    engine_close(e);
}
END_TEST

/* Cancelled while waiting, in the prompt, while decoding, and when it is over. */
START_TEST(engine__cancels_at_every_state)
{
    static const char *const more[] = {"--max-batch", "1", "--chunk-tokens", "1", NULL};
    struct engine *e = open_with(more, NULL);
    struct engine_request req = greedy(900);
    static struct collected c[3];
    static int32_t long_prompt[100];
    struct err err = {0};
    uint64_t id[3];

    for (int i = 0; i < 3; i++)
        collected_init(&c[i]);
    req.user = &c[0];
    ck_assert_int_eq(engine_submit(e, &req, &id[0], &err), 0);
    while (c[0].n_tokens == 0) {
        engine_wait(e, 10000000);
        engine_poll(e, collected_add, NULL);
    }
    req.user = &c[1];
    ck_assert_int_eq(engine_submit(e, &req, &id[1], &err), 0);
    engine_cancel(e, id[1]); /* waits behind the first */
    ck_assert(engine_fixture_wait(e, &c[1], 30));
    ck_assert_int_eq(c[1].finish, FINISH_CANCELED);
    ck_assert_int_eq(c[1].n_tokens, 0);
    ck_assert_int_eq(c[0].n_final, 0);
    engine_cancel(e, id[0]);
    ck_assert(engine_fixture_wait(e, &c[0], 30));
    ck_assert_int_eq(c[0].finish, FINISH_CANCELED);
    ck_assert_int_gt(c[0].n_tokens, 0);
    req.prompt = long_prompt;
    req.n_prompt = 100;
    req.user = &c[2];
    ck_assert_int_eq(engine_submit(e, &req, &id[2], &err), 0);
    engine_cancel(e, id[2]); /* its prompt takes a hundred steps */
    ck_assert(engine_fixture_wait(e, &c[2], 30));
    ck_assert_int_eq(c[2].finish, FINISH_CANCELED);
    ck_assert_int_eq(c[2].n_tokens, 0);
    for (int i = 0; i < 3; i++)
        engine_cancel(e, id[i]); /* all over: nothing happens */
    engine_cancel(e, 0);
    engine_cancel(e, UINT64_MAX);
    ck_assert_int_eq(idle_stats(e).n_finished[FINISH_CANCELED], 3);
    ck_assert_int_eq(engine_poll(e, collected_add, NULL), 0);
    for (int i = 0; i < 3; i++)
        collected_release(&c[i]);
    engine_close(e);
}
END_TEST

/* Who polls late finds everything in one event, and has held nobody up. */
START_TEST(engine__waits_for_no_poller)
{
    struct engine *e = open_tiny();
    struct engine_request req = greedy(50);
    struct collected prompt_one, late;
    struct err err = {0};
    uint64_t id;

    run(e, &req, &prompt_one);
    collected_init(&late);
    req.user = &late;
    ck_assert_int_eq(engine_submit(e, &req, &id, &err), 0);
    while (idle_stats(e).n_finished[FINISH_LENGTH] < 2)
        usleep(1000);
    ck_assert_int_eq(engine_poll(e, collected_add, NULL), 1);
    ck_assert_int_eq(late.n_events, 1);
    ck_assert(collected_same(&prompt_one, &late));
    collected_release(&prompt_one);
    collected_release(&late);
    engine_close(e);
}
END_TEST

#define CROWD_THREADS  3
#define CROWD_REQUESTS 60

static struct engine *crowd_engine;
static struct collected crowd[CROWD_THREADS][CROWD_REQUESTS];
static atomic_int crowd_refused;

static void *submit_and_cancel(void *arg)
{
    struct collected *mine = arg;

    for (int i = 0; i < CROWD_REQUESTS; i++) {
        struct engine_request req = greedy(1 + i % 40);
        struct err err = {0};
        uint64_t id;

        req.user = &mine[i];
        while (engine_submit(crowd_engine, &req, &id, &err) < 0) {
            atomic_fetch_add(&crowd_refused, 1);
            usleep(500);
        }
        if (i % 3 == 0)
            engine_cancel(crowd_engine, id);
        if (i % 5 == 0)
            usleep(300);
    }
    return NULL;
}

/* Several threads submit and cancel, one polls: each request ends once, and nothing is left. */
START_TEST(engine__serves_many_threads)
{
    static const char *const more[] = {"--max-waiting", "10", "--kv-memory", "200KiB", NULL};
    pthread_t threads[CROWD_THREADS];
    int64_t end_ns = clock_ns() + 50 * (int64_t)1000000000;
    struct engine_stats stats;
    int n_done = 0;

    crowd_engine = open_with(more, NULL);
    for (int t = 0; t < CROWD_THREADS; t++) {
        for (int i = 0; i < CROWD_REQUESTS; i++)
            collected_init(&crowd[t][i]);
        ck_assert_int_eq(pthread_create(&threads[t], NULL, submit_and_cancel, crowd[t]), 0);
    }
    while (n_done < CROWD_THREADS * CROWD_REQUESTS && clock_ns() < end_ns) {
        engine_wait(crowd_engine, 10000000);
        engine_poll(crowd_engine, collected_add, NULL);
        n_done = 0;
        for (int t = 0; t < CROWD_THREADS; t++) {
            for (int i = 0; i < CROWD_REQUESTS; i++)
                n_done += crowd[t][i].n_final;
        }
    }
    for (int t = 0; t < CROWD_THREADS; t++)
        pthread_join(threads[t], NULL);
    ck_assert_int_eq(n_done, CROWD_THREADS * CROWD_REQUESTS);
    stats = idle_stats(crowd_engine);
    ck_assert_int_eq(stats.pages_used, 0);
    ck_assert_int_eq(stats.n_submitted, CROWD_THREADS * CROWD_REQUESTS);
    ck_assert_int_eq(stats.n_rejected, atomic_load(&crowd_refused));
    ck_assert_int_eq(stats.n_finished[FINISH_CANCELED] + stats.n_finished[FINISH_LENGTH],
                     CROWD_THREADS * CROWD_REQUESTS);
    for (int t = 0; t < CROWD_THREADS; t++) {
        for (int i = 0; i < CROWD_REQUESTS; i++) {
            ck_assert(!crowd[t][i].broken && crowd[t][i].n_final == 1);
            collected_release(&crowd[t][i]);
        }
    }
    engine_close(crowd_engine);
}
END_TEST

static void count_wakes(void *arg)
{
    atomic_fetch_add((atomic_int *)arg, 1);
}

/* One wake-up a step, none while idle, if nobody takes a step's events before it is told. */
START_TEST(engine__wakes_once_a_step)
{
    static atomic_int n_wakes;
    struct engine_hooks hooks = {.wake = count_wakes, .arg = &n_wakes};
    struct engine *e = open_with(NULL, &hooks);
    struct engine_request req = greedy(20);
    struct err err = {0};
    struct collected c;
    uint64_t id;

    collected_init(&c);
    req.user = &c;
    ck_assert_int_eq(engine_submit(e, &req, &id, &err), 0);
    while (idle_stats(e).n_finished[FINISH_LENGTH] < 1)
        usleep(1000);
    usleep(50000);
    ck_assert_int_eq(atomic_load(&n_wakes), 20);
    ck_assert_int_eq(idle_stats(e).n_steps, 20);
    ck_assert_int_eq(engine_poll(e, collected_add, NULL), 1);
    collected_release(&c);
    engine_close(e);
}
END_TEST

/* Closing with requests running, waiting and uncollected frees them all. */
START_TEST(engine__closes_with_work_left)
{
    struct engine *e = open_tiny();
    struct engine_request req = greedy(900);
    struct err err = {0};
    uint64_t id;

    for (int i = 0; i < 12; i++)
        ck_assert_int_eq(engine_submit(e, &req, &id, &err), 0);
    usleep(20000);
    engine_close(e);
}
END_TEST

static struct backend_ops broken_ops;

static int broken_embed(struct backend *be, const struct embed_args *a, struct err *err)
{
    (void)be;
    (void)a;
    return err_set(err, ERR_DEVICE, "the fuse is blown");
}

/* A step that fails ends its requests with an error; three in a row make the engine unhealthy,
 * and a step that works again makes it well. */
START_TEST(engine__survives_failing_steps)
{
    struct engine *e = open_tiny();
    const struct backend_ops *ops = e->be->ops;
    struct engine_request req = greedy(5);
    struct collected c;

    broken_ops = *ops;
    broken_ops.embed = broken_embed;
    e->be->ops = &broken_ops;
    for (int i = 0; i < ENGINE_MAX_FAILURES; i++) {
        run(e, &req, &c);
        ck_assert_int_eq(c.finish, FINISH_ERROR);
        ck_assert_uint_gt(strlen(c.error), 0);
        collected_release(&c);
    }
    ck_assert(!idle_stats(e).healthy);
    ck_assert_int_eq(idle_stats(e).pages_used, 0);
    e->be->ops = ops;
    run(e, &req, &c);
    ck_assert_int_eq(c.finish, FINISH_LENGTH);
    ck_assert(idle_stats(e).healthy);
    collected_release(&c);
    engine_close(e);
}
END_TEST

/* The dump is JSON, idle and busy. */
START_TEST(engine__dumps_json)
{
    struct engine *e = open_tiny();
    struct engine_request req = greedy(900);
    struct err err = {0};
    uint64_t id;

    for (int i = 0; i < 8; i++) {
        struct strbuf out = STRBUF_INIT;
        json_t *root;

        engine_dump(e, &out);
        root = json_loads(out.buf, 0, NULL);
        ck_assert_msg(root != NULL, "%s", out.buf);
        ck_assert_ptr_nonnull(json_object_get(root, "plan"));
        json_decref(root);
        strbuf_release(&out);
        ck_assert_int_eq(engine_submit(e, &req, &id, &err), 0);
        usleep(3000);
    }
    engine_close(e);
}
END_TEST

/* The trace has a JSON line for every step. */
START_TEST(engine__traces_its_steps)
{
    char path[] = "/tmp/spand-trace-XXXXXX";
    const char *more[] = {"--trace", path, NULL};
    struct engine_request req = greedy(20);
    int fd = mkstemp(path), n_lines = 0;
    struct collected c;
    struct engine *e;
    char line[4096];
    FILE *f;

    ck_assert_int_ge(fd, 0);
    e = open_with(more, NULL);
    run(e, &req, &c);
    collected_release(&c);
    engine_close(e);
    f = fdopen(fd, "r");
    while (fgets(line, sizeof(line), f)) {
        json_t *root = json_loads(line, 0, NULL);

        ck_assert_msg(root != NULL, "%s", line);
        n_lines += json_object_get(root, "step") != NULL;
        json_decref(root);
    }
    ck_assert_int_eq(n_lines, 20);
    fclose(f);
    unlink(path);
}
END_TEST

/* A plan that keeps little runs past its ring, and gives all pages back. */
START_TEST(engine__runs_elastic_plans)
{
    const char *more[] = {"--plan", _i ? "uniform:0.25" : "streaming:4,100", NULL};
    struct engine *e = open_with(more, NULL);
    struct engine_request req = greedy(500);
    struct collected c;

    run(e, &req, &c);
    ck_assert_int_eq(c.n_tokens, 500);
    ck_assert_int_eq(idle_stats(e).pages_used, 0);
    collected_release(&c);
    engine_close(e);
}
END_TEST

static void add_tests(TCase *tc)
{
    tcase_add_test(tc, engine__answers);
    tcase_add_test(tc, engine__streams_the_text_of_its_tokens);
    tcase_add_test(tc, engine__stops_at_a_token);
    tcase_add_test(tc, engine__obeys_eos_and_min_tokens);
    tcase_add_test(tc, engine__stops_at_strings_across_tokens);
    tcase_add_test(tc, engine__passes_early_stop_strings);
    tcase_add_test(tc, engine__reports_logprobs);
    tcase_add_test(tc, engine__scores_a_prompt);
    tcase_add_test(tc, engine__narrows_to_greedy);
    tcase_add_test(tc, engine__samples_by_seed);
    tcase_add_test(tc, engine__penalises_repetition);
    tcase_add_test(tc, engine__refuses_bad_parameters);
    tcase_add_test(tc, engine__refuses_what_never_fits);
    tcase_add_test(tc, engine__bounds_its_queue);
    tcase_add_test(tc, engine__ends_who_waits_too_long);
    tcase_add_test(tc, engine__cancels_at_every_state);
    tcase_add_test(tc, engine__waits_for_no_poller);
    tcase_add_test(tc, engine__serves_many_threads);
    tcase_add_test(tc, engine__wakes_once_a_step);
    tcase_add_test(tc, engine__closes_with_work_left);
    tcase_add_test(tc, engine__survives_failing_steps);
    tcase_add_test(tc, engine__dumps_json);
    tcase_add_test(tc, engine__traces_its_steps);
    tcase_add_loop_test(tc, engine__runs_elastic_plans, 0, 2);
}

/* All of it twice: step by step, and with the next step queued before the last one's tokens. */
TEST_SUITE(engine)
{
    TCase *ahead = test_case(suite, "run_ahead");

    add_tests(test_case(suite, "core"));
    tcase_add_checked_fixture(ahead, ahead_setup, NULL);
    add_tests(ahead);
}
