/*
 * Prefix caching: over random trees of prompts the tokens and logprobs are those of an engine that
 * caches nothing, and the cached tokens are those of a model of the tree; with pages of one owner
 * too few, with many at once, and with salts.
 */
#include "base/rng.h"
#include "engine/kv/prefix_cache.h"
#include "tests/engine/engine_fixture.h"
#include "tests/lib/test.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#define PAGE      16
#define MAX_LEN   120
#define N_PROMPTS 12 /* of a tree */
#if defined(__SANITIZE_ADDRESS__) || defined(__SANITIZE_THREAD__)
#define SLOWER 12 /* times: fewer trees then, the addresses are what counts */
#else
#define SLOWER 1
#endif
#define N_TREES (200 / SLOWER)
#define N_NEW   3

static const char model_dir[] = "tests/fixtures/engine/tiny";

struct prompt {
    int32_t ids[MAX_LEN];
    int n, n_known; /* n_known: tokens that are in the tree already, by the model of it */
};

static uint64_t draws;

static int draw(uint64_t tree, int below)
{
    return (int)(rng_u64(tree, 3, draws++) % (uint64_t)below);
}

/* Each prompt is some earlier one's beginning and something new; two tokens make repeats likely. */
static void grow_tree(struct prompt *p, int n, uint64_t tree, int vocab_size)
{
    for (int i = 0; i < n; i++) {
        int from = i ? draw(tree, i) : 0, keep = i ? draw(tree, p[from].n + 1) : 0;

        memcpy(p[i].ids, p[from].ids, (size_t)keep * sizeof(*p[i].ids));
        p[i].n = keep + draw(tree, MAX_LEN - keep);
        p[i].n = p[i].n ? p[i].n : 1;
        for (int k = keep; k < p[i].n; k++)
            p[i].ids[k] = 10 + draw(tree, draw(tree, 2) ? 2 : vocab_size - 10);
        p[i].n_known = 0;
        for (int e = 0; e < i; e++) {
            int same = 0, most = p[e].n / PAGE * PAGE;

            while (same < most && same < p[i].n && p[e].ids[same] == p[i].ids[same])
                same++;
            same = same / PAGE * PAGE;
            if (same == p[i].n)
                same -= PAGE; /* the last row must be computed */
            p[i].n_known = same > p[i].n_known ? same : p[i].n_known;
        }
    }
}

static struct engine_request request_of(const struct prompt *p, struct collected *c)
{
    struct engine_request req = {.prompt = p->ids, .n_prompt = p->n, .user = c};

    sampling_params_init(&req.sampling);
    req.sampling.max_tokens = N_NEW;
    req.sampling.n_logprobs = 2;
    req.sampling.seed = 5;
    req.sampling.ignore_eos = true;
    return req;
}

static struct engine *open_engine(const char *cache, const char *memory)
{
    const char *flags[] = {cache,
                           "--model",
                           test_path(model_dir),
                           "--kv-memory",
                           memory,
                           "--page-entries",
                           "16",
                           "--weights",
                           "random",
                           "--threads",
                           "1",
                           "--kv-sweep-steps",
                           "1",
                           "--chunk-tokens",
                           "37",
                           "--max-batch",
                           "4",
                           NULL};
    struct engine *e = engine_fixture_open(flags, NULL);

    ck_assert_ptr_nonnull(e);
    return e;
}

/* Ids and logprobs with and without, and what was found, over all trees. */
START_TEST(prefix_cache__gives_what_computing_gives)
{
    struct engine *plain = open_engine("--no-prefix-cache", "64MiB"),
                  *cached = open_engine("--prefix-cache", "64MiB");
    int vocab_size = engine_get_info(plain)->vocab_size;
    struct prompt prompts[N_PROMPTS];
    int64_t n_found = 0;

    for (uint64_t tree = 0; tree < N_TREES; tree++) {
        char salt[24];

        grow_tree(prompts, N_PROMPTS, tree, vocab_size);
        snprintf(salt, sizeof(salt), "tree %d", (int)tree); /* trees know nothing of each other */
        for (int i = 0; i < N_PROMPTS; i++) {
            struct collected want, got;
            struct engine_request req;

            collected_init(&want);
            collected_init(&got);
            req = request_of(&prompts[i], &want);
            ck_assert(engine_fixture_run(plain, &req, &want));
            req.user = &got;
            req.cache_salt = salt;
            ck_assert(engine_fixture_run(cached, &req, &got));
            ck_assert_msg(collected_same(&want, &got), "tree %d, prompt %d", (int)tree, i);
            ck_assert_int_eq(want.n_cached_tokens, 0);
            ck_assert_msg(got.n_cached_tokens == prompts[i].n_known,
                          "tree %d, prompt %d of %d tokens: %d cached, want %d", (int)tree, i,
                          prompts[i].n, got.n_cached_tokens, prompts[i].n_known);
            n_found += got.n_cached_tokens;
            collected_release(&want);
            collected_release(&got);
        }
    }
    ck_assert_int_gt(n_found, SLOWER > 1 ? 0 : 10000);
    engine_close(plain);
    engine_close(cached);
}
END_TEST

/* All prompts of a tree at once, in a pool that holds few of them: the same answers. */
START_TEST(prefix_cache__gives_up_pages_under_pressure)
{
    struct engine *plain = open_engine("--no-prefix-cache", "64MiB"), *cached;
    const struct engine_info *info = engine_get_info(plain);
    struct prompt prompts[N_PROMPTS];
    struct engine_stats stats;
    char memory[32];

    /* Two and a half of the longest prompts. */
    snprintf(memory, sizeof(memory), "%lld",
             (long long)(info->page_bytes * info->n_layers * info->n_kv_heads * 20));
    cached = open_engine("--prefix-cache", memory);
    for (uint64_t tree = 1000; tree < 1000 + (30 + SLOWER - 1) / SLOWER; tree++) {
        struct collected want[N_PROMPTS], got[N_PROMPTS];

        grow_tree(prompts, N_PROMPTS, tree, info->vocab_size);
        for (int i = 0; i < N_PROMPTS; i++) {
            struct engine_request req;
            struct err err = {0};
            uint64_t id;

            collected_init(&want[i]);
            collected_init(&got[i]);
            req = request_of(&prompts[i], &want[i]);
            ck_assert(engine_fixture_run(plain, &req, &want[i]));
            req.user = &got[i];
            ck_assert_msg(engine_submit(cached, &req, &id, &err) == 0, "%s", err.msg);
        }
        for (int i = 0; i < N_PROMPTS; i++) {
            ck_assert(engine_fixture_wait(cached, &got[i], 60));
            ck_assert_msg(collected_same(&want[i], &got[i]), "tree %d, prompt %d", (int)tree, i);
            collected_release(&want[i]);
            collected_release(&got[i]);
        }
    }
    engine_get_stats(cached, &stats);
    ck_assert_int_gt(stats.n_prefix_found, 0);
    ck_assert_int_lt(stats.n_prefix_found, stats.n_prefix_asked);
    engine_close(plain);
    engine_close(cached);
}
END_TEST

/* Samples of one prompt, sent together, compute it once. */
START_TEST(prefix_cache__samples_share_their_prompt)
{
    struct engine *e = open_engine("--prefix-cache", "64MiB");
    struct collected c[4];
    struct prompt p;
    struct engine_stats before, after;

    draws = 0;
    grow_tree(&p, 1, 77, engine_get_info(e)->vocab_size);
    while (p.n < 100)
        p.ids[p.n++] = 11;
    engine_get_stats(e, &before);
    for (int i = 0; i < 4; i++) {
        struct engine_request req = request_of(&p, &c[i]);
        struct err err = {0};
        uint64_t id;

        collected_init(&c[i]);
        req.sampling.sample_idx = (uint32_t)i;
        ck_assert_int_eq(engine_submit(e, &req, &id, &err), 0);
    }
    for (int i = 0; i < 4; i++) {
        ck_assert(engine_fixture_wait(e, &c[i], 60));
        ck_assert_int_eq(c[i].n_cached_tokens, i ? (p.n - 1) / PAGE * PAGE : 0);
        collected_release(&c[i]);
    }
    engine_get_stats(e, &after);
    ck_assert_int_eq(after.prompt_tokens - before.prompt_tokens,
                     p.n + 3 * (p.n - (p.n - 1) / PAGE * PAGE));
    ck_assert_int_eq(after.pages_used, 0);
    engine_close(e);
}
END_TEST

/*
 * Under plans that drop tokens. Prompts are all longer than what some head keeps, so that none of
 * them shares page by page.
 */
#define LONG_MIN 200
#define LONG_MAX 330

static const struct {
    const char *plan, *length;
    int n_trees;
} plans[] = {
    {"mixed", "300", 80},
    {"uniform:0.5", "300", 40},
    {"streaming:64,64", "request", 40},
    {"streaming:5,90", "request", 40},
    {"streaming:0,100", "request", 20},
};

static char plan_path[64];

/* SPAND_TEST_DEVICE=cuda (with CK_FORK=no): snapshots there, with heads that it has kernels for. */
struct device_model {
    const char *device, *dir;
    int n_layers, n_heads,
        memory; /* memory: of a token's keys, as a multiple of the tiny model's */
};

static struct device_model device_model(void)
{
    const char *name = getenv("SPAND_TEST_DEVICE");

    if (name && *name && strcmp(name, "cpu"))
        return (struct device_model){name, "tests/golden/models/llama-head128-gelu", 2, 2, 3};
    return (struct device_model){"cpu", model_dir, 3, 4, 1};
}

/* A rule of its own for every head: dense, at the floor, and in between. */
static void write_plan(void)
{
    int n_layers = device_model().n_layers, n_heads = device_model().n_heads;
    static const int alphas[] = {0, 0, 64, -32}, betas[] = {100, 0, 30, 80};
    FILE *f;
    int fd;

    snprintf(plan_path, sizeof(plan_path), "/tmp/spand-plan-XXXXXX");
    fd = mkstemp(plan_path);
    ck_assert_int_ge(fd, 0);
    f = fdopen(fd, "w");
    for (int k = 0; k < 2; k++) {
        fputs(k ? "], \"betas\": [" : "{\"alphas\": [", f);
        for (int i = 0; i < n_layers * n_heads; i++) {
            fputs(i % n_heads ? ", " : i ? ", [" : "[", f);
            fprintf(f, "%g", k ? betas[i * 7 % 4] / 100.0 : alphas[i * 7 % 4]);
            if (i % n_heads == n_heads - 1)
                fputs("]", f);
        }
    }
    fputs("]}", f);
    fclose(f);
}

static struct engine *open_planned(const char *cache, const char *memory, const char *plan,
                                   const char *length, const char *run_ahead)
{
    struct device_model m = device_model();
    const char *flags[] = {cache,
                           "--model",
                           test_path(m.dir),
                           "--kv-memory",
                           memory,
                           "--page-entries",
                           "16",
                           "--weights",
                           "random",
                           "--threads",
                           "1",
                           "--kv-sweep-steps",
                           "1",
                           "--chunk-tokens",
                           "75",
                           "--max-batch",
                           "4",
                           "--device",
                           m.device,
                           "--run-ahead",
                           run_ahead,
                           "--plan",
                           strcmp(plan, "mixed") ? plan : plan_path,
                           "--plan-length",
                           length,
                           NULL};
    struct engine *e = engine_fixture_open(flags, NULL);

    ck_assert_ptr_nonnull(e);
    return e;
}

struct long_prompt {
    int32_t ids[LONG_MAX];
    int n;
};

static void grow_long_tree(struct long_prompt *p, int n, uint64_t tree, int vocab_size)
{
    for (int i = 0; i < n; i++) {
        int from = i ? draw(tree, i) : 0, keep = i ? draw(tree, p[from].n + 1) : 0;

        memcpy(p[i].ids, p[from].ids, (size_t)keep * sizeof(*p[i].ids));
        p[i].n = keep > LONG_MIN ? keep : LONG_MIN;
        p[i].n += draw(tree, LONG_MAX + 1 - p[i].n);
        for (int k = keep; k < p[i].n; k++)
            p[i].ids[k] = 10 + draw(tree, draw(tree, 2) ? 2 : vocab_size - 10);
    }
}

/* The model of the snapshots of a tree: where each prompt leaves one, and what the next one finds.
 */
struct known {
    const struct long_prompt *of;
    int n;
};

static int same_tokens(const struct long_prompt *a, const struct long_prompt *b, int most)
{
    int n = 0;

    while (n < most && a->ids[n] == b->ids[n])
        n++;
    return n;
}

static int add_known(struct known *known, int n_known, const struct long_prompt *p, int n)
{
    for (int i = 0; i < n_known; i++) {
        if (known[i].n == n && same_tokens(known[i].of, p, n) == n)
            return n_known;
    }
    known[n_known] = (struct known){p, n};
    return n_known + 1;
}

/* Returns the cached tokens of p, and adds what p leaves behind. */
static int look_up(struct known *known, int *n_known, const struct long_prompt *p)
{
    int last = (p->n - 1) / PAGE * PAGE, found = 0, parts = 0;

    for (int i = 0; i < *n_known; i++) {
        int most = known[i].n < last ? known[i].n : last;
        int same = same_tokens(known[i].of, p, most);

        if (same == known[i].n && same > found)
            found = same;
        if (same / PAGE * PAGE > parts)
            parts = same / PAGE * PAGE;
    }
    if (parts > found)
        *n_known = add_known(known, *n_known, p, parts);
    if (last > found)
        *n_known = add_known(known, *n_known, p, last);
    return found;
}

static struct engine_request long_request(const struct long_prompt *p, struct collected *c,
                                          const char *salt)
{
    struct prompt none = {.n = 1};
    struct engine_request req = request_of(&none, c);

    req.prompt = p->ids;
    req.n_prompt = p->n;
    req.cache_salt = salt;
    return req;
}

/* Ids and logprobs with and without, and what was found, over trees of long prompts. */
START_TEST(prefix_cache__keeps_what_rings_held)
{
    static struct long_prompt prompts[N_PROMPTS];
    struct engine *plain, *cached;
    int vocab_size;
    int64_t n_found = 0;

    write_plan();
    plain = open_planned("--no-prefix-cache", "64MiB", plans[_i].plan, plans[_i].length, "off");
    cached = open_planned("--prefix-cache", "64MiB", plans[_i].plan, plans[_i].length,
                          _i % 2 ? "on" : "off");
    vocab_size = engine_get_info(plain)->vocab_size;
    for (uint64_t tree = 0; tree < (uint64_t)(plans[_i].n_trees + SLOWER - 1) / SLOWER; tree++) {
        struct known known[2 * N_PROMPTS];
        int n_known = 0;
        char salt[24];

        grow_long_tree(prompts, N_PROMPTS, tree, vocab_size);
        snprintf(salt, sizeof(salt), "tree %d", (int)tree);
        for (int i = 0; i < N_PROMPTS; i++) {
            struct collected want, got;
            struct engine_request req = long_request(&prompts[i], NULL, salt);
            int n_cached = look_up(known, &n_known, &prompts[i]);

            ck_assert(engine_fixture_run(plain, &req, &want));
            ck_assert(engine_fixture_run(cached, &req, &got));
            ck_assert_msg(collected_same(&want, &got), "tree %d, prompt %d, %d cached", (int)tree,
                          i, got.n_cached_tokens);
            ck_assert_msg(got.n_cached_tokens == n_cached,
                          "tree %d, prompt %d of %d tokens: %d cached, want %d", (int)tree, i,
                          prompts[i].n, got.n_cached_tokens, n_cached);
            n_found += got.n_cached_tokens;
            collected_release(&want);
            collected_release(&got);
        }
    }
    ck_assert_int_ge(n_found, SLOWER > 1 ? 1 : 600 * plans[_i].n_trees);
    engine_close(plain);
    engine_close(cached);
    unlink(plan_path);
}
END_TEST

/* All prompts of a tree at once, in pools that hold one and a half or many of them. */
START_TEST(prefix_cache__gives_up_snapshots_under_pressure)
{
    static const int memories[] = {2048, 192, 112}; /* KiB */
    char memory[32];
    static struct long_prompt prompts[N_PROMPTS];
    struct engine *plain, *cached;
    struct engine_stats stats;

    write_plan();
    plain = open_planned("--no-prefix-cache", "64MiB", "mixed", "300", "off");
    snprintf(memory, sizeof(memory), "%dKiB", memories[_i] * device_model().memory);
    cached = open_planned("--prefix-cache", memory, "mixed", "300", "on");
    for (uint64_t tree = 2000; tree < 2000 + (12 + SLOWER - 1) / SLOWER; tree++) {
        struct collected want[N_PROMPTS], got[N_PROMPTS];

        grow_long_tree(prompts, N_PROMPTS, tree, engine_get_info(plain)->vocab_size);
        for (int i = 0; i < N_PROMPTS; i++) {
            struct engine_request req = long_request(&prompts[i], &want[i], NULL);
            struct err err = {0};
            uint64_t id;

            ck_assert(engine_fixture_run(plain, &req, &want[i]));
            collected_init(&got[i]);
            req.user = &got[i];
            ck_assert_msg(engine_submit(cached, &req, &id, &err) == 0, "%s", err.msg);
            if (i % 5 == 4)
                engine_cancel(cached, id);
        }
        for (int i = 0; i < N_PROMPTS; i++) {
            ck_assert(engine_fixture_wait(cached, &got[i], 60));
            ck_assert_msg(got[i].finish == FINISH_CANCELED || collected_same(&want[i], &got[i]),
                          "tree %d, prompt %d", (int)tree, i);
            collected_release(&want[i]);
            collected_release(&got[i]);
        }
    }
    engine_get_stats(cached, &stats);
    ck_assert_int_eq(stats.pages_used, 0);
    ck_assert_int_lt(stats.n_prefix_found, stats.n_prefix_asked);
    if (_i == 0)
        ck_assert_int_gt(stats.n_prefix_found, 0);
    engine_close(plain);
    engine_close(cached);
    unlink(plan_path);
}
END_TEST

/* Samples of a prompt compute it once, and questions behind one text compute the text once. */
START_TEST(prefix_cache__prompts_sent_together_share_under_a_plan)
{
    struct engine *e = open_planned("--prefix-cache", "64MiB", "streaming:5,90", "request", "on");
    static struct long_prompt p[4];
    struct collected c[4];
    struct engine_stats before, after;

    for (int turn = 0; turn < 2; turn++) {
        int shared = turn ? 192 : 240; /* another text of 200 tokens; all but the last 10 */
        int64_t n_computed = 0;

        grow_long_tree(p, 1, 99 + (uint64_t)turn, engine_get_info(e)->vocab_size);
        p[0].n = 250;
        for (int k = LONG_MIN; k < p[0].n; k++)
            p[0].ids[k] = 20;
        for (int i = 1; i < 4; i++) {
            p[i] = p[0];
            for (int k = 200; turn && k < p[i].n; k++)
                p[i].ids[k] = 20 + i;
        }
        engine_get_stats(e, &before);
        for (int i = 0; i < 4; i++) {
            struct engine_request req = long_request(&p[i], &c[i], NULL);
            struct err err = {0};
            uint64_t id;

            collected_init(&c[i]);
            req.sampling.sample_idx = (uint32_t)i;
            ck_assert_int_eq(engine_submit(e, &req, &id, &err), 0);
        }
        for (int i = 0; i < 4; i++) {
            ck_assert(engine_fixture_wait(e, &c[i], 60));
            n_computed += p[i].n - c[i].n_cached_tokens;
            collected_release(&c[i]);
        }
        engine_get_stats(e, &after);
        ck_assert_int_eq(after.prompt_tokens - before.prompt_tokens, n_computed);
        /* The first of a turn may have run ahead before the others were seen. */
        ck_assert_int_le(n_computed, 2 * p[0].n + 3 * (p[0].n - shared));
    }
    engine_get_stats(e, &after);
    ck_assert_int_eq(after.pages_used, 0);
    engine_close(e);
}
END_TEST

/* Another salt, another tree. */
START_TEST(prefix_cache__keeps_salts_apart)
{
    static const char *const salts[] = {NULL, "a", "b", "a", NULL};
    static const bool known[] = {false, false, false, true, true};
    struct engine *e = open_engine("--prefix-cache", "64MiB");
    struct prompt p;

    grow_tree(&p, 1, 78, engine_get_info(e)->vocab_size);
    while (p.n < 40)
        p.ids[p.n++] = 11;
    for (int i = 0; i < 5; i++) {
        struct collected c;
        struct engine_request req = request_of(&p, &c);

        collected_init(&c);
        req.cache_salt = salts[i];
        ck_assert(engine_fixture_run(e, &req, &c));
        ck_assert_int_eq(c.n_cached_tokens > 0, known[i]);
        collected_release(&c);
    }
    engine_close(e);
}
END_TEST

/* Who computed a known page himself holds none of the cache's: they may go, so nothing of his goes
 * behind them. */
START_TEST(prefix_cache__builds_on_no_page_of_others)
{
    const struct kv_shape shape = {
        .n_layers = 1, .n_heads = 1, .n_kv_heads = 1, .head_dim = 8, .page_entries = PAGE};
    const struct kv_geom geom = {.ring = KV_RING_DENSE};
    const int32_t window = KV_WINDOW_ALL, tokens[2 * PAGE] = {0};
    const struct prefix_key key = {1, 2};
    struct prefix_cache cache;
    struct kv_slots kv;
    struct kv_need need;
    struct err err = {0};
    int first, second, node;

    ck_assert_int_eq(kv_slots_init(&kv, &shape, 2, 8, 16, &err), 0);
    ck_assert_int_eq(prefix_cache_init(&cache, &kv, 1, false, &err), 0);
    kv_need_init(&need, &shape, &geom, &window, 2 * PAGE);
    first = kv_slot_take(&kv, &need, 2 * PAGE, 0);
    second = kv_slot_take(&kv, &need, 2 * PAGE, 0);
    node = prefix_cache_add(&cache, key, PREFIX_NONE, tokens, PAGE, first, 0);
    ck_assert_int_ge(node, 0);
    ck_assert_int_eq(prefix_cache_add(&cache, key, PREFIX_NONE, tokens, PAGE, first, 0), node);
    ck_assert_int_eq(prefix_cache_add(&cache, key, PREFIX_NONE, tokens, PAGE, second, 0),
                     PREFIX_FOREIGN);
    kv_slot_give(&kv, first);
    prefix_cache_clear(&cache);
    ck_assert_int_eq(prefix_cache_find(&cache, key, tokens, 2 * PAGE).n_tokens, 0);
    kv_slot_give(&kv, second);
    ck_assert_int_eq(kv.pool.n_free, 8);
    prefix_cache_release(&cache);
    kv_slots_release(&kv);
}
END_TEST

TEST_SUITE(prefix_cache)
{
    TCase *tc = test_case(suite, "core");

    tcase_set_timeout(tc, 300);
    tcase_add_test(tc, prefix_cache__gives_what_computing_gives);
    tcase_add_test(tc, prefix_cache__gives_up_pages_under_pressure);
    tcase_add_test(tc, prefix_cache__samples_share_their_prompt);
    tcase_add_loop_test(tc, prefix_cache__keeps_what_rings_held, 0,
                        (int)(sizeof(plans) / sizeof(plans[0])));
    tcase_add_loop_test(tc, prefix_cache__gives_up_snapshots_under_pressure, 0, 3);
    tcase_add_test(tc, prefix_cache__prompts_sent_together_share_under_a_plan);
    tcase_add_test(tc, prefix_cache__keeps_salts_apart);
    tcase_add_test(tc, prefix_cache__builds_on_no_page_of_others);
}
