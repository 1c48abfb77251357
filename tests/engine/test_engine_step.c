/*
 * Two steps on their way: who stops, is cancelled or fails between them. The backend is the CPU's,
 * which computes at once, so what is tested is who gets which results.
 */
#include "engine/engine_step.h"
#include "tests/engine/engine_fixture.h"
#include "tests/lib/test.h"

#include <string.h>
#include <unistd.h>

static struct engine *open_ahead(const char *max_batch, const struct engine_hooks *hooks)
{
    const char *flags[] = {"--model",     test_path("tests/fixtures/engine/tiny"),
                           "--weights",   "random",
                           "--device",    "cpu",
                           "--kv-memory", "8MiB",
                           "--max-batch", max_batch,
                           "--threads",   "1",
                           "--run-ahead", "on",
                           NULL};
    struct engine *e = engine_fixture_open(flags, hooks);

    ck_assert_ptr_nonnull(e);
    return e;
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

static void submit(struct engine *e, const struct engine_request *req, struct collected *c,
                   uint64_t *id)
{
    struct engine_request mine = *req;
    struct err err = {0};

    collected_init(c);
    mine.user = c;
    ck_assert_int_eq(engine_submit(e, &mine, id, &err), 0);
}

/* The surplus step is taken shortly after the last event. */
static struct engine_stats idle_stats(struct engine *e)
{
    struct engine_stats stats;

    for (int i = 0; i < 5000; i++) {
        pthread_mutex_lock(&e->mu);
        engine_get_stats(e, &stats);
        if (stats.n_running == 0 && stats.n_waiting == 0 && e->n_queued == 0)
            i = 5000;
        pthread_mutex_unlock(&e->mu);
        if (i < 5000)
            usleep(1000);
    }
    return stats;
}

/* A length stop queues nothing behind the last token; a stop token costs one row too many, which
 * shows in the count of steps alone. */
START_TEST(engine_step__drops_the_row_behind_a_stop)
{
    struct engine *e = open_ahead("2", NULL);
    struct engine_request req = greedy(20);
    struct collected all, cut;
    struct engine_stats before, after;
    int first = 0;

    ck_assert(engine_fixture_run(e, &req, &all));
    ck_assert_int_eq(all.n_tokens, 20);
    before = idle_stats(e);
    ck_assert_int_eq(before.n_steps, 20);
    while (all.tokens[first].id != all.tokens[8].id)
        first++;
    req.sampling.stop_ids = &all.tokens[8].id;
    req.sampling.n_stop_ids = 1;
    ck_assert(engine_fixture_run(e, &req, &cut));
    ck_assert_int_eq(cut.finish, FINISH_STOP);
    ck_assert_int_eq(cut.n_tokens, first + 1);
    after = idle_stats(e);
    ck_assert_int_eq(after.n_steps - before.n_steps, first + 2);
    ck_assert_int_eq(after.generation_tokens, 20 + first + 1);
    ck_assert_int_eq(after.pages_used, 0);
    collected_release(&all);
    collected_release(&cut);
    engine_close(e);
}
END_TEST

/* Whoever gets the seat and the pages of one that stopped has the tokens it has alone. */
START_TEST(engine_step__reuses_a_seat_behind_a_stop)
{
    struct engine *e = open_ahead("1", NULL);
    struct engine_request stops = greedy(20), other = greedy(30);
    struct collected all, alone, first, second;
    uint64_t id;

    other.n_prompt = 4;
    ck_assert(engine_fixture_run(e, &stops, &all));
    ck_assert(engine_fixture_run(e, &other, &alone));
    stops.sampling.stop_ids = &all.tokens[5].id;
    stops.sampling.n_stop_ids = 1;
    submit(e, &stops, &first, &id);
    submit(e, &other, &second, &id);
    ck_assert(engine_fixture_wait(e, &first, 50));
    ck_assert(engine_fixture_wait(e, &second, 50));
    ck_assert_int_eq(first.finish, FINISH_STOP);
    ck_assert(collected_same(&alone, &second));
    ck_assert_int_eq(idle_stats(e).pages_used, 0);
    collected_release(&all);
    collected_release(&alone);
    collected_release(&first);
    collected_release(&second);
    engine_close(e);
}
END_TEST

/* Penalties need each token on the host: no step is queued before the one in front is taken. */
START_TEST(engine_step__waits_for_tokens_it_needs)
{
    struct engine *e = open_ahead("2", NULL);
    struct engine_request req = greedy(20), plain = greedy(20);
    struct collected c, two[2];
    int64_t n_steps, n_after;
    uint64_t id;

    req.sampling.frequency_penalty = 1;
    ck_assert(engine_fixture_run(e, &req, &c));
    n_steps = idle_stats(e).n_steps;
    plain.sampling.stop_ids = req.sampling.stop_ids = &c.tokens[10].id;
    plain.sampling.n_stop_ids = req.sampling.n_stop_ids = 1;
    submit(e, &req, &two[0], &id);
    ck_assert(engine_fixture_wait(e, &two[0], 50));
    ck_assert_int_eq(two[0].finish, FINISH_STOP);
    /* One step a token, and none for nothing. */
    n_after = idle_stats(e).n_steps;
    ck_assert_int_eq(n_after - n_steps, two[0].n_tokens);
    collected_release(&two[0]);
    /* Beside one that needs no token both have what they have alone. */
    plain = greedy(20);
    ck_assert(engine_fixture_run(e, &plain, &two[1]));
    collected_release(&two[1]);
    req.sampling.n_stop_ids = 0;
    submit(e, &req, &two[0], &id);
    submit(e, &plain, &two[1], &id);
    ck_assert(engine_fixture_wait(e, &two[0], 50));
    ck_assert(engine_fixture_wait(e, &two[1], 50));
    ck_assert(collected_same(&two[0], &c));
    ck_assert_int_eq(two[1].n_tokens, 20);
    collected_release(&c);
    collected_release(&two[0]);
    collected_release(&two[1]);
    engine_close(e);
}
END_TEST

/* What the engine thread's wake-up does after a number of steps. */
struct trigger {
    struct engine *e;
    uint64_t id;
    int at_step, n_wakes, n_queued;
    int64_t n_steps;
};

static void cancel_at(void *arg)
{
    struct trigger *t = arg;
    struct engine_stats stats;

    if (++t->n_wakes != t->at_step)
        return;
    engine_get_stats(t->e, &stats);
    t->n_steps = stats.n_steps;
    t->n_queued = t->e->n_queued;
    engine_cancel(t->e, t->id);
}

/* A cancel that comes with a step on its way: that step is the last, and its token is not told. */
START_TEST(engine_step__cancels_with_a_step_on_its_way)
{
    static struct trigger t;
    struct engine_hooks hooks = {.wake = cancel_at, .arg = &t};
    struct engine_request req = greedy(500);
    struct engine_stats stats;
    struct collected c;

    t = (struct trigger){.at_step = 7};
    t.e = open_ahead("1", &hooks);
    pthread_mutex_lock(&t.e->mu); /* the first step waits until the id is there */
    submit(t.e, &req, &c, &t.id);
    pthread_mutex_unlock(&t.e->mu);
    ck_assert(engine_fixture_wait(t.e, &c, 50));
    ck_assert_int_eq(c.finish, FINISH_CANCELED);
    ck_assert_int_eq(t.n_queued, 1);
    ck_assert_int_eq(c.n_tokens, 7);
    stats = idle_stats(t.e);
    ck_assert_int_eq(stats.n_steps, t.n_steps + 1);
    ck_assert_int_eq(stats.pages_used, 0);
    collected_release(&c);
    engine_close(t.e);
}
END_TEST

static const struct backend_ops *whole_ops;
static struct backend_ops torn_ops;
static int64_t torn_step;

static int torn_wait(struct backend *be, int64_t step, struct err *err)
{
    if (step == torn_step)
        return err_set(err, ERR_DEVICE, "the fuse is blown");
    return whole_ops->step_wait(be, step, err);
}

/* A step that turns out to have failed ends its requests, though a good one of theirs is queued
 * behind it; who comes next is served. */
START_TEST(engine_step__fails_with_a_step_on_its_way)
{
    struct engine *e = open_ahead("2", NULL);
    struct engine_request req = greedy(40);
    struct engine_stats stats;
    struct collected alone, c[3];
    uint64_t id;

    ck_assert(engine_fixture_run(e, &req, &alone));
    idle_stats(e);
    whole_ops = e->be->ops;
    torn_ops = *whole_ops;
    torn_ops.step_wait = torn_wait;
    torn_step = e->be->n_steps + 9;
    e->be->ops = &torn_ops;
    pthread_mutex_lock(&e->mu); /* all three at once */
    for (int i = 0; i < 3; i++)
        submit(e, &req, &c[i], &id);
    pthread_mutex_unlock(&e->mu);
    for (int i = 0; i < 3; i++)
        ck_assert(engine_fixture_wait(e, &c[i], 50));
    for (int i = 0; i < 2; i++) {
        ck_assert_int_eq(c[i].finish, FINISH_ERROR);
        ck_assert_int_eq(c[i].n_tokens, 8);
        ck_assert_uint_gt(strlen(c[i].error), 0);
    }
    ck_assert(collected_same(&alone, &c[2]));
    stats = idle_stats(e);
    ck_assert_int_eq(stats.pages_used, 0);
    ck_assert(stats.healthy);
    for (int i = 0; i < 3; i++)
        collected_release(&c[i]);
    collected_release(&alone);
    engine_close(e);
}
END_TEST

static int torn_embed(struct backend *be, const struct embed_args *a, struct err *err)
{
    if (be->n_steps + 1 == torn_step)
        return err_set(err, ERR_DEVICE, "the fuse is blown");
    return whole_ops->embed(be, a, err);
}

/* A step that cannot be queued takes nothing from the one on its way: its tokens are told. */
START_TEST(engine_step__keeps_the_step_before_a_failure)
{
    struct engine *e = open_ahead("2", NULL);
    struct engine_request req = greedy(40);
    struct collected c, again;

    whole_ops = e->be->ops;
    torn_ops = *whole_ops;
    torn_ops.embed = torn_embed;
    torn_step = 9;
    e->be->ops = &torn_ops;
    ck_assert(engine_fixture_run(e, &req, &c));
    ck_assert_int_eq(c.finish, FINISH_ERROR);
    ck_assert_int_eq(c.n_tokens, 8);
    ck_assert(engine_fixture_run(e, &req, &again));
    ck_assert_int_eq(again.finish, FINISH_LENGTH);
    for (int i = 0; i < 8; i++)
        ck_assert_int_eq(again.tokens[i].id, c.tokens[i].id);
    ck_assert_int_eq(idle_stats(e).pages_used, 0);
    collected_release(&c);
    collected_release(&again);
    engine_close(e);
}
END_TEST

/* max_tokens 0 and 1 queue nothing they do not want, in chunks and whole. */
START_TEST(engine_step__queues_nothing_past_the_prompt)
{
    struct engine *e = open_ahead("2", NULL);

    for (int n = 0; n < 2; n++) {
        struct engine_request req = greedy(n);
        int64_t before = idle_stats(e).n_steps;
        struct collected c;

        ck_assert(engine_fixture_run(e, &req, &c));
        ck_assert_int_eq(c.finish, FINISH_LENGTH);
        ck_assert_int_eq(c.n_tokens, n);
        ck_assert_int_eq(idle_stats(e).n_steps, before + 1);
        collected_release(&c);
    }
    engine_close(e);
}
END_TEST

TEST_SUITE(engine_step)
{
    TCase *tc = test_case(suite, "core");

    tcase_add_test(tc, engine_step__drops_the_row_behind_a_stop);
    tcase_add_test(tc, engine_step__reuses_a_seat_behind_a_stop);
    tcase_add_test(tc, engine_step__waits_for_tokens_it_needs);
    tcase_add_test(tc, engine_step__cancels_with_a_step_on_its_way);
    tcase_add_test(tc, engine_step__fails_with_a_step_on_its_way);
    tcase_add_test(tc, engine_step__keeps_the_step_before_a_failure);
    tcase_add_test(tc, engine_step__queues_nothing_past_the_prompt);
}
