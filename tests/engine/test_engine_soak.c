/*
 * Many requests of random lengths under a plan, cancelled at random, while every step ends with a
 * sweep over all pages: each has one owner, and in the end all are free.
 *
 * SPAND_SOAK_REQUESTS says how many (default 400); `make test-soak` runs 10,000, with SAN=address
 * under ASan.
 */
#include "base/clock.h"
#include "base/rng.h"
#include "engine/engine.h"
#include "tests/engine/engine_fixture.h"
#include "tests/lib/test.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#define N_LIVE     24  /* requests that run or wait at once: three times the seats */
#define CONTEXT    512 /* of the requests; the tiny model could do 1024 */
#define TIMEOUT_NS (INT64_C(3600) * 1000000000)

struct soak {
    struct engine *e;
    uint64_t ids[N_LIVE]; /* 0: an empty place */
    bool cancelled[N_LIVE];
    int n_live, n_submitted, n_refused, n_finished[FINISH_ERROR + 1];
    bool broken; /* a final event twice, or for nobody */
};

static void on_event(void *arg, const struct engine_event *event)
{
    struct soak *s = arg;
    uint64_t *place = event->user;
    int at = (int)(place - s->ids);

    if (event->finish == FINISH_NONE)
        return;
    s->broken = s->broken || *place != event->id;
    s->broken = s->broken || (event->finish == FINISH_CANCELED && !s->cancelled[at]);
    s->n_finished[event->finish]++;
    *place = 0;
    s->n_live--;
}

/* Mostly short, some long, a few that end at the context or ask for nothing. */
static int draw_length(uint64_t r, int most)
{
    int limit = r % 8 < 5 ? 48 : r % 8 < 7 ? 200 : most;

    return (int)((r >> 8) % (uint64_t)((limit < most ? limit : most) + 1));
}

static void submit_one(struct soak *s, int i)
{
    static int32_t prompt[CONTEXT];
    struct engine_request req = {.prompt = prompt};
    struct err err = {0};
    int at = 0, rc;

    while (s->ids[at])
        at++;
    for (int k = 0; k < CONTEXT; k++)
        prompt[k] = 3 + (int32_t)(rng_u64(i, 99, k) % 250);
    sampling_params_init(&req.sampling);
    req.n_prompt = 1 + draw_length(rng_u64(5, i, 0), CONTEXT - 2);
    req.sampling.max_tokens = draw_length(rng_u64(5, i, 1), CONTEXT - req.n_prompt);
    req.sampling.seed = (uint64_t)i;
    req.sampling.ignore_eos = rng_u64(5, i, 2) & 1;
    req.user = &s->ids[at];
    s->cancelled[at] = false;
    rc = engine_submit(s->e, &req, &s->ids[at], &err);
    if (rc == 0) {
        s->n_live++;
        s->n_submitted++;
        return;
    }
    s->ids[at] = 0;
    s->n_refused++;
    /* The pool is too small for the longest; nothing else may be wrong with them. */
    ck_assert_msg(rc == ERR_CONTEXT, "%s", err.msg);
}

/* Cancels somebody, who may have just ended, or be in any state before that. */
static void cancel_one(struct soak *s, uint64_t r)
{
    int at = (int)(r % N_LIVE);

    if (!s->ids[at])
        return;
    s->cancelled[at] = true;
    engine_cancel(s->e, s->ids[at]);
}

static void soak(struct soak *s, int n_requests)
{
    int64_t end_ns = clock_ns() + TIMEOUT_NS;

    for (int i = 0; i < n_requests || s->n_live > 0;) {
        ck_assert_msg(clock_ns() < end_ns, "%d of %d requests hang", s->n_live, i);
        while (i < n_requests && s->n_live < N_LIVE) {
            submit_one(s, i);
            if (rng_u64(5, i, 3) % 10 < 4)
                cancel_one(s, rng_u64(5, i, 4));
            i++;
        }
        engine_wait(s->e, 100000000);
        engine_poll(s->e, on_event, s);
    }
}

static int n_requests_wanted(void)
{
    const char *text = getenv("SPAND_SOAK_REQUESTS");
    int n = text && *text ? atoi(text) : 400;

    ck_assert_int_gt(n, 0);
    return n;
}

#define MIXED "tests/fixtures/engine/mixed-spans.json" /* a span of its own for each head */

/* Under a length, short requests may grow and be preempted. */
static const struct {
    const char *plan, *length, *run_ahead;
    bool refuses; /* some requests are too long for the pool */
} ways[] = {{MIXED, "request", "on", true},
            {MIXED, "160", "off", false},
            {"streaming:4,60", "request", "off", false},
            {"dense", "request", "on", true}};

START_TEST(engine_soak__gives_every_page_back)
{
    char model[512], plan[512];
    /* 30 pages of 8 KiB: one long request, or some short ones. */
    const char *const flags[] = {"--model",
                                 model,
                                 "--weights",
                                 "random",
                                 "--device",
                                 "cpu",
                                 "--dtype",
                                 "f32",
                                 "--kv-memory",
                                 "240KiB",
                                 "--max-batch",
                                 "8",
                                 "--max-waiting",
                                 "32",
                                 "--chunk-tokens",
                                 "96",
                                 "--threads",
                                 "1",
                                 "--kv-sweep-steps",
                                 "1",
                                 "--plan",
                                 plan,
                                 "--plan-length",
                                 ways[_i].length,
                                 "--run-ahead",
                                 ways[_i].run_ahead,
                                 NULL};
    struct soak s = {0};
    int n = n_requests_wanted(), n_final = 0;
    struct engine_stats stats;

    snprintf(model, sizeof(model), "%s", test_path("tests/fixtures/engine/tiny"));
    snprintf(plan, sizeof(plan), "%s",
             strchr(ways[_i].plan, '/') ? test_path(ways[_i].plan) : ways[_i].plan);
    s.e = engine_fixture_open(flags, NULL);
    ck_assert_ptr_nonnull(s.e);
    soak(&s, n);
    /* The last step's figures may still be on their way; with nobody alive they must come to 0. */
    for (int i = 0; i < 5000; i++) {
        engine_get_stats(s.e, &stats);
        if (stats.pages_used == 0)
            break;
        usleep(1000);
    }
    engine_close(s.e);
    for (int i = 0; i <= FINISH_ERROR; i++)
        n_final += s.n_finished[i];
    printf("soak under %s, length %s: %d requests, %d refused, %d cancelled, %lld steps, %lld "
           "preemptions\n",
           ways[_i].plan, ways[_i].length, n, s.n_refused, s.n_finished[FINISH_CANCELED],
           (long long)stats.n_steps, (long long)stats.n_preemptions);
    ck_assert(!s.broken);
    ck_assert_int_eq(s.n_submitted + s.n_refused, n);
    ck_assert_int_eq(n_final, s.n_submitted);
    ck_assert_int_eq(s.n_finished[FINISH_ERROR], 0);
    ck_assert_int_gt(s.n_finished[FINISH_CANCELED], n / 20);
    ck_assert_int_eq(s.n_refused > 0, ways[_i].refuses);
    ck_assert_int_eq(stats.pages_used, 0);
    ck_assert(stats.healthy);
}
END_TEST

#define COUNT(a) ((int)(sizeof(a) / sizeof((a)[0])))

TEST_SUITE(engine_soak)
{
    TCase *tc = test_case(suite, "core");

    tcase_set_timeout(tc, 3600);
    tcase_add_loop_test(tc, engine_soak__gives_every_page_back, 0, COUNT(ways));
}
