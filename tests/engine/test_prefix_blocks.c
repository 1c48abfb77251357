/*
 * Prefix caching of Block Transformers, whose prompts share block by block: over random trees the
 * tokens and logprobs are those of an engine that caches nothing, and the cached tokens are those
 * of a model of the tree; with start blocks, pads and neither, with samples, salts, cancellations
 * and pages that run out. And the cache alone, where it knows the beginnings of pages.
 */
#include "base/rng.h"
#include "engine/kv/kv_sweep.h"
#include "engine/kv/prefix_cache.h"
#include "tests/engine/block_dir.h"
#include "tests/engine/engine_fixture.h"
#include "tests/lib/test.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define MAX_LEN   700
#define MAX_NEW   64
#define N_NEW     24     /* most of a tree's */
#define N_PROMPTS 12     /* of a tree */
#define ROOMY     "2MiB" /* more than a tree takes, and soon swept */
#if defined(__SANITIZE_ADDRESS__) || defined(__SANITIZE_THREAD__)
#define SLOWER 6 /* times: fewer trees then */
#else
#define SLOWER 1
#endif

enum alignment { START_BLOCK, NO_START_BLOCK, LEFT_PAD };

static const struct model {
    const char *variant; /* of tests/golden/block, or a path */
    enum alignment alignment;
    int block_len, max_len; /* max_len: most tokens of a prompt and its answer */
    const char *page_entries, *chunk_tokens, *run_ahead, *whole_blocks;
    int n_trees;
} models[] = {
    {"neox_concat", START_BLOCK, 4, 250, "8", "5", "off", "--whole-blocks", 60},
    {"neox_leftpad", LEFT_PAD, 4, 250, "8", "7", "on", "--no-whole-blocks", 40},
    {"neox_nostart", NO_START_BLOCK, 4, 250, "16", "37", "off", "--no-whole-blocks", 40},
    {"llama_concat", START_BLOCK, 4, 250, "64", "3", "on", "--whole-blocks", 40},
    {"llama_len8", START_BLOCK, 8, 250, "8", "2", "off", "--whole-blocks", 20},
    {"models/demo-block", START_BLOCK, 4, MAX_LEN, "64", "100", "on", "--whole-blocks", 40}};
#define N_MODELS   (int)(sizeof(models) / sizeof(models[0]))
#define DEMO_BLOCK (N_MODELS - 1)

struct prompt {
    int32_t ids[MAX_LEN];
    int n, n_new;
    int32_t answer[MAX_NEW]; /* n_new of them, once it ran */
};

static char dir[BLOCK_DIR_LEN];
static uint64_t draws;

static int draw(uint64_t tree, int below)
{
    return (int)(rng_u64(tree, 4, draws++) % (uint64_t)below);
}

/* SPAND_TEST_DEVICE=cuda (with CK_FORK=no): there, with heads that it has kernels for. */
static const char *device_for(const struct model *m)
{
    const char *name = getenv("SPAND_TEST_DEVICE");

    if (!name || !*name || !strcmp(name, "cpu"))
        return "cpu";
    return m == &models[DEMO_BLOCK] ? name : NULL;
}

static struct engine *open_engine(const struct model *m, const char *cache, const char *memory,
                                  const char *max_batch)
{
    bool is_path = strchr(m->variant, '/');
    const char *flags[] = {cache,
                           m->whole_blocks,
                           "--model",
                           is_path ? test_path(m->variant) : dir,
                           "--device",
                           device_for(m),
                           "--kv-memory",
                           memory,
                           "--page-entries",
                           m->page_entries,
                           "--threads",
                           "1",
                           "--kv-sweep-steps",
                           "1",
                           "--chunk-tokens",
                           m->chunk_tokens,
                           "--run-ahead",
                           m->run_ahead,
                           "--max-batch",
                           max_batch,
                           is_path ? NULL : "--dtype",
                           "f32",
                           NULL};
    struct engine *e;

    if (!is_path)
        block_dir_make(dir, m->variant);
    e = engine_fixture_open(flags, NULL);
    if (!is_path)
        block_dir_remove(dir);
    ck_assert_ptr_nonnull(e);
    return e;
}

/* A pool of so many of the pages that all heads take together. */
static const char *memory_of(const struct engine *e, int n_pages)
{
    static char memory[32];
    const struct engine_info *info = engine_get_info(e);

    snprintf(memory, sizeof(memory), "%lld",
             (long long)(info->page_bytes * info->n_layers * info->n_kv_heads * n_pages));
    return memory;
}

/* Tokens in front of a prompt, by the description in MODEL.md. */
static int lead_of(const struct model *m, int n_prompt)
{
    if (m->alignment == LEFT_PAD && n_prompt > 0)
        return (m->block_len - n_prompt % m->block_len) % m->block_len;
    return m->alignment == START_BLOCK || n_prompt < m->block_len ? m->block_len : 0;
}

/* Blocks that prompt rows compute: but for the last one where nothing follows it. */
static int blocks_of(const struct model *m, const struct prompt *p)
{
    int n = lead_of(m, p->n) + p->n, most = (n + p->n_new - 1) / m->block_len;

    most = most > 1 ? most : 1;
    return n / m->block_len < most ? n / m->block_len : most;
}

static int32_t token_at(const struct model *m, const struct prompt *p, int at)
{
    int lead = lead_of(m, p->n);

    return at < lead ? 0 : p->ids[at - lead];
}

/* The model of the tree: prompt tokens in the blocks that p shares with the earlier ones. */
static int known_tokens(const struct model *m, const struct prompt *p, const struct prompt *earlier,
                        int n_earlier)
{
    int lead = lead_of(m, p->n), known = 0;

    for (int e = 0; e < n_earlier; e++) {
        int most = blocks_of(m, p) - 1, n = 0; /* the last one must be computed */

        most = most < blocks_of(m, &earlier[e]) ? most : blocks_of(m, &earlier[e]);
        while (n < most * m->block_len && token_at(m, &earlier[e], n) == token_at(m, p, n))
            n++;
        n = n / m->block_len * m->block_len;
        known = n > known ? n : known;
    }
    return known > lead ? known - lead : 0;
}

/*
 * Some earlier prompt's beginning, or all of it and its answer, and something new; two tokens make
 * repeats likely.
 */
static void grow(const struct model *m, struct prompt *p, int i, uint64_t tree, int vocab_size)
{
    int room = m->max_len - MAX_NEW, keep = 0;

    p[i].n_new = draw(tree, 4) ? draw(tree, N_NEW + 1) : 0;
    if (i > 0) {
        const struct prompt *from = &p[draw(tree, i)];
        bool goes_on = draw(tree, 3) == 0;

        keep = goes_on ? from->n : draw(tree, from->n + 1);
        memcpy(p[i].ids, from->ids, (size_t)keep * sizeof(*p[i].ids));
        for (int k = 0; goes_on && k < from->n_new && keep < room; k++)
            p[i].ids[keep++] = from->answer[k];
    }
    p[i].n = keep + draw(tree, draw(tree, 2) ? 12 : room) + (keep == 0);
    p[i].n = p[i].n < room ? p[i].n : room;
    for (int k = keep; k < p[i].n; k++)
        p[i].ids[k] = 10 + draw(tree, draw(tree, 2) ? 2 : vocab_size - 10);
}

static struct engine_request request_of(const struct prompt *p, uint64_t tree, const char *salt)
{
    struct engine_request req = {.prompt = p->ids, .n_prompt = p->n, .cache_salt = salt};

    sampling_params_init(&req.sampling);
    req.sampling.max_tokens = p->n_new;
    req.sampling.n_logprobs = 2;
    req.sampling.temperature = tree % 2 ? 1.0f : 0.0f;
    req.sampling.seed = tree;
    req.sampling.ignore_eos = true;
    return req;
}

static void keep_answer(struct prompt *p, const struct collected *c)
{
    ck_assert_int_eq(c->n_tokens, p->n_new);
    for (int i = 0; i < c->n_tokens; i++)
        p->answer[i] = c->tokens[i].id;
}

static void check_tree(const struct model *m, struct engine *plain, struct engine *cached,
                       uint64_t tree, int64_t *n_found, int64_t *n_parts)
{
    static struct prompt prompts[N_PROMPTS];
    int vocab_size = engine_get_info(plain)->vocab_size;
    int page_tokens = engine_get_info(plain)->page_tokens;
    char salt[24];

    snprintf(salt, sizeof(salt), "tree %d", (int)tree); /* trees know nothing of each other */
    for (int i = 0; i < N_PROMPTS; i++) {
        struct prompt *p = &prompts[i];
        struct engine_request req;
        struct collected want, got;
        int known;

        grow(m, prompts, i, tree, vocab_size);
        known = known_tokens(m, p, prompts, i);
        req = request_of(p, tree, salt);
        ck_assert(engine_fixture_run(plain, &req, &want));
        ck_assert(engine_fixture_run(cached, &req, &got));
        ck_assert_msg(collected_same(&want, &got), "%s: tree %d, prompt %d, %d cached", m->variant,
                      (int)tree, i, got.n_cached_tokens);
        ck_assert_int_eq(want.n_cached_tokens, 0);
        ck_assert_msg(got.n_cached_tokens == known,
                      "%s: tree %d, prompt %d of %d tokens: %d cached, want %d", m->variant,
                      (int)tree, i, p->n, got.n_cached_tokens, known);
        *n_found += known;
        *n_parts += known && (lead_of(m, p->n) + known) % page_tokens != 0;
        keep_answer(p, &got);
        collected_release(&want);
        collected_release(&got);
    }
}

/* Ids and logprobs with and without, and what was found, over all trees; greedy and drawn. */
START_TEST(prefix_blocks__give_what_computing_gives)
{
    const struct model *m = &models[_i];
    struct engine *plain, *cached;
    int64_t n_found = 0, n_parts = 0;
    struct engine_stats stats;

    if (!device_for(m))
        return;
    plain = open_engine(m, "--no-prefix-cache", ROOMY, "4");
    cached = open_engine(m, "--prefix-cache", ROOMY, "4");
    for (int tree = 0; tree < (m->n_trees + SLOWER - 1) / SLOWER; tree++)
        check_tree(m, plain, cached, (uint64_t)tree, &n_found, &n_parts);
    engine_get_stats(cached, &stats);
    ck_assert_int_eq(stats.n_prefix_found, n_found);
    ck_assert_int_gt(n_found, SLOWER > 1 ? 100 : 5000);
    ck_assert_int_gt(n_parts, SLOWER > 1 ? 2 : 40);
    ck_assert_int_eq(stats.pages_used, 0);
    engine_close(plain);
    engine_close(cached);
}
END_TEST

/* All prompts of a tree at once, under two salts, with pages for two of them: some are preempted,
 * some are cancelled, and what the cache holds goes. */
START_TEST(prefix_blocks__give_up_pages_under_pressure)
{
    const struct model *m = &models[_i];
    static struct prompt prompts[N_PROMPTS];
    struct engine *plain, *cached;
    struct engine_stats stats;
    int longest = (m->block_len + m->max_len) / m->block_len / atoi(m->page_entries) + 1;

    if (!device_for(m))
        return;
    plain = open_engine(m, "--no-prefix-cache", ROOMY, "4");
    cached = open_engine(m, "--prefix-cache", memory_of(plain, 2 * longest), "6");
    for (uint64_t tree = 1000; tree < 1000 + (24 + SLOWER - 1) / SLOWER; tree++) {
        struct collected want[N_PROMPTS], got[N_PROMPTS];

        for (int i = 0; i < N_PROMPTS; i++) {
            struct engine_request req;

            grow(m, prompts, i, tree, engine_get_info(plain)->vocab_size);
            prompts[i].n_new = MAX_NEW;
            req = request_of(&prompts[i], tree, NULL);
            ck_assert(engine_fixture_run(plain, &req, &want[i]));
            keep_answer(&prompts[i], &want[i]);
        }
        for (int i = 0; i < N_PROMPTS; i++) {
            struct engine_request req =
                request_of(&prompts[i], tree, draw(tree, 3) ? "a" : "another");
            struct err err = {0};
            uint64_t id;

            collected_init(&got[i]);
            req.user = &got[i];
            req.priority = draw(tree, 3);
            ck_assert_msg(engine_submit(cached, &req, &id, &err) == 0, "%s", err.msg);
            if (i % 5 == 4)
                engine_cancel(cached, id);
        }
        for (int i = 0; i < N_PROMPTS; i++) {
            ck_assert(engine_fixture_wait(cached, &got[i], 60));
            ck_assert_msg(got[i].finish == FINISH_CANCELED || collected_same(&want[i], &got[i]),
                          "%s: tree %d, prompt %d", m->variant, (int)tree, i);
            collected_release(&want[i]);
            collected_release(&got[i]);
        }
    }
    engine_get_stats(cached, &stats);
    ck_assert_int_eq(stats.pages_used, 0);
    ck_assert_int_gt(stats.n_prefix_found, 0);
    ck_assert_int_lt(stats.n_prefix_found, stats.n_prefix_asked);
    if (m->block_len * atoi(m->page_entries) == 32) /* longer pages are seldom filled twice */
        ck_assert_int_gt(stats.n_preemptions, 0);
    engine_close(plain);
    engine_close(cached);
}
END_TEST

static struct prompt random_prompt(uint64_t tree, int n, int vocab_size)
{
    struct prompt p = {.n = n, .n_new = 7};

    for (int k = 0; k < n; k++)
        p.ids[k] = 10 + draw(tree, vocab_size - 10);
    return p;
}

/* Submits n of them, one right behind the other, and waits for all. */
static void run_together(struct engine *e, const struct prompt *p, int n, struct collected *c)
{
    for (int i = 0; i < n; i++) {
        struct engine_request req = request_of(&p[i], 1, NULL);
        struct err err = {0};
        uint64_t id;

        collected_init(&c[i]);
        req.user = &c[i];
        req.sampling.sample_idx = (uint32_t)i;
        ck_assert_msg(engine_submit(e, &req, &id, &err) == 0, "%s", err.msg);
    }
    for (int i = 0; i < n; i++)
        ck_assert(engine_fixture_wait(e, &c[i], 60));
}

/* Samples of a prompt, sent together, compute all but its last block once. */
START_TEST(prefix_blocks__samples_share_their_prompt)
{
    const struct model *m = &models[_i];
    static const int lengths[] = {9, 30, 61, 100, 120};
    struct engine *e, *plain;

    if (!device_for(m))
        return;
    e = open_engine(m, "--prefix-cache", ROOMY, "4");
    plain = open_engine(m, "--no-prefix-cache", ROOMY, "4");
    for (size_t k = 0; k < sizeof(lengths) / sizeof(lengths[0]); k++) {
        struct prompt p[4] = {random_prompt(77 + k, lengths[k], engine_get_info(e)->vocab_size)};
        struct collected c[4], want[4];
        struct engine_stats before, after;
        int lead = lead_of(m, p->n), shared = (blocks_of(m, p) - 1) * m->block_len - lead;

        shared = shared > 0 ? shared : 0;
        p[1] = p[2] = p[3] = p[0];
        engine_get_stats(e, &before);
        run_together(e, p, 4, c);
        run_together(plain, p, 4, want);
        engine_get_stats(e, &after);
        for (int i = 0; i < 4; i++) {
            ck_assert_msg(c[i].n_cached_tokens == (i ? shared : 0),
                          "%s: %d tokens, sample %d: %d cached, want %d", m->variant, p->n, i,
                          c[i].n_cached_tokens, i ? shared : 0);
            ck_assert(collected_same(&c[i], &want[i]));
            collected_release(&c[i]);
            collected_release(&want[i]);
        }
        ck_assert_int_eq(after.n_prefix_found - before.n_prefix_found, 3 * shared);
        ck_assert_int_eq(after.prompt_tokens - before.prompt_tokens, 4 * p->n - 3 * shared);
        ck_assert_int_eq(after.pages_used, 0);
    }
    engine_close(e);
    engine_close(plain);
}
END_TEST

/* Another salt, another tree. */
START_TEST(prefix_blocks__keep_salts_apart)
{
    static const char *const salts[] = {NULL, "a", "b", "a", NULL, "b", "c"};
    static const bool known[] = {false, false, false, true, true, true, false};
    const struct model *m = &models[0];
    struct engine *e = open_engine(m, "--prefix-cache", ROOMY, "4");
    struct prompt p = random_prompt(78, 26, engine_get_info(e)->vocab_size);

    for (int i = 0; i < 7; i++) {
        struct collected c;
        struct engine_request req = request_of(&p, 1, salts[i]);

        ck_assert(engine_fixture_run(e, &req, &c));
        ck_assert_int_eq(c.n_cached_tokens, known[i] ? 20 : 0); /* 26 tokens fill 6 blocks */
        collected_release(&c);
    }
    engine_close(e);
}
END_TEST

static int run_cached(struct engine *e, const struct prompt *p)
{
    struct engine_request req = request_of(p, 1, NULL);
    struct collected c;
    int n;

    ck_assert(engine_fixture_run(e, &req, &c));
    n = c.n_cached_tokens;
    collected_release(&c);
    return n;
}

/* Three prompts of a page fill the pool; whoever comes next takes the page not used for longest. */
START_TEST(prefix_blocks__go_by_last_use)
{
    const struct model *m = &models[0];
    struct engine *e = open_engine(m, "--prefix-cache", ROOMY, "4");
    int vocab_size = engine_get_info(e)->vocab_size;
    const char *memory = memory_of(e, 3);
    struct prompt p[4];

    engine_close(e);
    e = open_engine(m, "--prefix-cache", memory, "4");
    for (int i = 0; i < 4; i++)
        p[i] = random_prompt(90 + (uint64_t)i, 17, vocab_size);
    for (int i = 0; i < 3; i++)
        ck_assert_int_eq(run_cached(e, &p[i]), 0);
    ck_assert_int_eq(run_cached(e, &p[0]), 12); /* 4 blocks; the copy takes the place of p[1] */
    ck_assert_int_eq(run_cached(e, &p[2]), 12); /* the page of that copy is free */
    ck_assert_int_eq(run_cached(e, &p[3]), 0);
    ck_assert_int_eq(run_cached(e, &p[1]), 0);  /* takes the place of p[0] */
    ck_assert_int_eq(run_cached(e, &p[2]), 12); /* of p[3] */
    ck_assert_int_eq(run_cached(e, &p[1]), 12);
    ck_assert_int_eq(run_cached(e, &p[0]), 0);
    engine_close(e);
}
END_TEST

/* Where a part and its copy have no room beside each other, the part makes way. */
START_TEST(prefix_blocks__part_makes_way_for_its_reader)
{
    const struct model *m = &models[0];
    struct engine *plain = open_engine(m, "--no-prefix-cache", ROOMY, "4");
    int vocab_size = engine_get_info(plain)->vocab_size;
    struct engine *e = open_engine(m, "--prefix-cache", memory_of(plain, 2), "4");
    struct prompt p = random_prompt(95, 22, vocab_size), longer;
    struct engine_request req;
    struct collected want, got;

    longer = random_prompt(95, 40, vocab_size);
    memcpy(longer.ids, p.ids, sizeof(*p.ids) * (size_t)p.n);
    ck_assert_int_eq(run_cached(e, &p), 0);
    ck_assert_int_eq(run_cached(e, &p), 16); /* there is a page for the copy */
    req = request_of(&longer, 1, NULL);
    ck_assert(engine_fixture_run(plain, &req, &want));
    ck_assert(engine_fixture_run(e, &req, &got)); /* two pages are all there are */
    ck_assert_int_eq(got.n_cached_tokens, 0);
    ck_assert(collected_same(&want, &got));
    collected_release(&want);
    collected_release(&got);
    ck_assert_int_eq(run_cached(e, &longer), 28); /* the first page, which is whole */
    engine_close(plain);
    engine_close(e);
}
END_TEST

/* The cache alone: one head, pages of four positions, each of two tokens. */
#define ENTRIES 4
#define N_SLOTS 4
#define N_PAGES 12

struct alone {
    struct kv_slots kv;
    struct prefix_cache cache;
    struct kv_need need;
    struct kv_copies copies;
    int32_t src[N_PAGES], dst[N_PAGES];
};

static const struct kv_shape shape = {
    .n_layers = 1, .n_heads = 1, .n_kv_heads = 1, .head_dim = 8, .page_entries = ENTRIES};
static const struct kv_geom geom = {.ring = KV_RING_DENSE};
static const int32_t window = KV_WINDOW_ALL;
static const struct prefix_key key = {1, 2};

static void alone_init(struct alone *a)
{
    struct err err = {0};

    *a = (struct alone){.copies = {.src = a->src, .dst = a->dst}};
    ck_assert_int_eq(kv_slots_init(&a->kv, &shape, N_SLOTS, N_PAGES, 4 * N_PAGES, &err), 0);
    ck_assert_int_eq(prefix_cache_init(&a->cache, &a->kv, 2, true, &err), 0);
    kv_need_init(&a->need, &shape, &geom, &window, 3 * ENTRIES);
}

static void alone_sweep(const struct alone *a)
{
    int32_t refs[N_PAGES] = {0};
    struct kv_sweep told;
    struct err err = {0};

    prefix_cache_count_refs(&a->cache, refs);
    ck_assert_msg(kv_sweep_slots(&told, &a->kv, refs, &err) == 0, "%s", err.msg);
}

static void alone_release(struct alone *a)
{
    alone_sweep(a);
    prefix_cache_clear(&a->cache);
    ck_assert_int_eq(a->kv.pool.n_free, N_PAGES);
    prefix_cache_release(&a->cache);
    kv_slots_release(&a->kv);
}

/* The page of which the hit has a part. */
static int32_t part_of(const struct prefix_hit *hit)
{
    return hit->shared.part ? hit->shared.part[0] : -1;
}

static int32_t page_at(const struct alone *a, int slot, int page)
{
    return a->kv.page_table[a->kv.head_base[slot] + page];
}

/* A page's beginning is found as far as it has been computed, and by whole positions. */
START_TEST(prefix_cache__finds_beginnings_of_pages)
{
    static const int32_t tokens[2 * ENTRIES] = {1, 2, 3, 4, 5, 6, 7, 8};
    static const int32_t other[2 * ENTRIES] = {1, 2, 3, 4, 5, 0, 7, 8};
    struct alone a;
    struct prefix_hit hit;
    int slot, node;

    alone_init(&a);
    slot = kv_slot_take(&a.kv, &a.need, ENTRIES + 1, 0);
    ck_assert_int_eq(prefix_cache_find(&a.cache, key, tokens, 8).n_tokens, 0);
    ck_assert_int_eq(prefix_cache_add(&a.cache, key, PREFIX_NONE, tokens, 2, slot, 0), PREFIX_NONE);
    ck_assert_int_eq(prefix_cache_find(&a.cache, key, tokens, 8).n_tokens, 2);
    ck_assert_int_eq(prefix_cache_add(&a.cache, key, PREFIX_NONE, tokens, 6, slot, 0), PREFIX_NONE);
    ck_assert_int_eq(a.cache.n_nodes, 1);
    for (int n = 0; n <= 8; n++) {
        hit = prefix_cache_find(&a.cache, key, tokens, n);
        ck_assert_int_eq(hit.n_tokens, n / 2 * 2 < 6 ? n / 2 * 2 : 6);
        ck_assert_int_eq(hit.node, PREFIX_NONE);
        ck_assert_int_eq(hit.shared.n, 0);
        ck_assert_int_eq(part_of(&hit), n < 2 ? -1 : page_at(&a, slot, 0));
        hit = prefix_cache_find(&a.cache, key, other, n);
        ck_assert_int_eq(hit.n_tokens, n / 2 * 2 < 4 ? n / 2 * 2 : 4);
    }
    ck_assert_int_eq(prefix_cache_find(&a.cache, (struct prefix_key){1, 3}, tokens, 8).n_tokens, 0);
    node = prefix_cache_add(&a.cache, key, PREFIX_NONE, tokens, 8, slot, 0);
    ck_assert_int_ge(node, 0);
    ck_assert_int_eq(a.cache.n_nodes, 1);
    hit = prefix_cache_find(&a.cache, key, tokens, 8);
    ck_assert_int_eq(hit.node, node);
    ck_assert_int_eq(hit.n_tokens, 8);
    ck_assert_int_eq(hit.shared.n, 1);
    ck_assert_int_eq(part_of(&hit), -1);
    hit = prefix_cache_find(&a.cache, key, tokens, 7); /* a part of it can be had as well */
    ck_assert_int_eq(hit.node, PREFIX_NONE);
    ck_assert_int_eq(hit.n_tokens, 6);
    ck_assert_int_eq(part_of(&hit), page_at(&a, slot, 0));
    kv_slot_give(&a.kv, slot);
    alone_release(&a);
}
END_TEST

/* What another's page has as well goes; what has less than a newcomer goes; the rest stays. */
START_TEST(prefix_cache__keeps_no_beginning_twice)
{
    static const int32_t tokens[2 * ENTRIES] = {1, 2, 3, 4, 5, 6, 7, 8};
    static const int32_t other[2 * ENTRIES] = {1, 2, 3, 4, 9, 9, 9, 9};
    struct alone a;
    struct prefix_hit hit;
    int slot[3];

    alone_init(&a);
    for (int i = 0; i < 3; i++)
        slot[i] = kv_slot_take(&a.kv, &a.need, ENTRIES, 0);
    prefix_cache_add(&a.cache, key, PREFIX_NONE, tokens, 4, slot[0], 0);
    prefix_cache_add(&a.cache, key, PREFIX_NONE, tokens, 4, slot[1], 0); /* known: not his */
    ck_assert_int_eq(a.cache.n_nodes, 1);
    hit = prefix_cache_find(&a.cache, key, tokens, 8);
    ck_assert_int_eq(part_of(&hit), page_at(&a, slot[0], 0));
    prefix_cache_add(&a.cache, key, PREFIX_NONE, tokens, 6, slot[1], 0); /* more: his alone */
    ck_assert_int_eq(a.cache.n_nodes, 1);
    ck_assert_int_eq(a.kv.pool.n_refs[page_at(&a, slot[0], 0)], 1);
    hit = prefix_cache_find(&a.cache, key, tokens, 8);
    ck_assert_int_eq(hit.n_tokens, 6);
    ck_assert_int_eq(part_of(&hit), page_at(&a, slot[1], 0));
    prefix_cache_add(&a.cache, key, PREFIX_NONE, other, 6, slot[2], 0); /* parts from it */
    ck_assert_int_eq(a.cache.n_nodes, 2);
    hit = prefix_cache_find(&a.cache, key, other, 8);
    ck_assert_int_eq(hit.n_tokens, 6);
    ck_assert_int_eq(part_of(&hit), page_at(&a, slot[2], 0));
    /* The first has it all at last: the second's goes, though he goes on. */
    ck_assert_int_ge(prefix_cache_add(&a.cache, key, PREFIX_NONE, tokens, 8, slot[0], 0), 0);
    ck_assert_int_eq(a.cache.n_nodes, 2);
    ck_assert_int_eq(prefix_cache_add(&a.cache, key, PREFIX_NONE, tokens, 8, slot[1], 0),
                     PREFIX_FOREIGN);
    ck_assert_int_eq(a.cache.n_nodes, 2);
    ck_assert_int_eq(a.kv.pool.n_refs[page_at(&a, slot[1], 0)], 1);
    alone_sweep(&a);
    for (int i = 0; i < 3; i++)
        kv_slot_give(&a.kv, slot[i]);
    ck_assert_int_eq(a.kv.pool.n_free, N_PAGES - 2);
    ck_assert_int_eq(a.kv.pool.n_idle, 2);
    alone_release(&a);
}
END_TEST

/* A part is copied into the reader's own page, and held until that is done, whoever runs out. */
START_TEST(prefix_cache__holds_a_part_while_it_is_copied)
{
    int32_t tokens[6 * ENTRIES] = {0};
    struct alone a;
    struct prefix_hit hit;
    int first, second, third, node;
    int32_t source;

    alone_init(&a);
    for (int i = 0; i < 6 * ENTRIES; i++)
        tokens[i] = i;
    first = kv_slot_take(&a.kv, &a.need, 2 * ENTRIES, 0);
    node = prefix_cache_add(&a.cache, key, PREFIX_NONE, tokens, 8, first, 0);
    ck_assert_int_eq(prefix_cache_add(&a.cache, key, node, tokens + 8, 6, first, 1), node);
    source = page_at(&a, first, 1);
    kv_slot_give(&a.kv, first);
    hit = prefix_cache_find(&a.cache, key, tokens, 13); /* two of the second page's positions */
    ck_assert_int_eq(hit.n_tokens, 12);
    ck_assert_int_eq(hit.node, node);
    second = kv_slot_take_shared(&a.kv, &a.need, 3 * ENTRIES, 0, &hit.shared, &a.copies);
    ck_assert_int_eq(a.copies.n, 1);
    ck_assert_int_eq(a.copies.src[0], source);
    ck_assert_int_eq(a.copies.dst[0], page_at(&a, second, 1));
    ck_assert_int_ne(source, page_at(&a, second, 1));
    ck_assert_int_eq(a.kv.slots[second].n_shared, 1);
    ck_assert_int_eq(a.kv.pool.n_refs[source], 2);
    /* 12 pages: the reader's three, its source, and eight that are free. */
    ck_assert_int_eq(a.kv.pool.n_free, 8);
    third = kv_slot_take(&a.kv, &a.need, 3 * ENTRIES, 5);
    ck_assert_int_ge(third, 0);
    ck_assert_int_eq(kv_slot_take(&a.kv, &a.need, 3 * ENTRIES, 3), ERR_NO_ROOM);
    hit = prefix_cache_find(&a.cache, key, tokens, 13);
    /* Four fit where the source may go; the source and the copy do not. */
    ck_assert_int_eq(kv_slot_take_shared(&a.kv, &a.need, 3 * ENTRIES, 4, &hit.shared, &a.copies),
                     ERR_NO_ROOM);
    ck_assert_int_eq(a.copies.n, 1);
    ck_assert_int_eq(a.kv.pool.n_refs[source], 2);
    kv_pool_give(&a.kv.pool, source); /* the copy was made */
    ck_assert_int_eq(a.kv.pool.n_idle, 1);
    kv_slot_give(&a.kv, second);
    kv_slot_give(&a.kv, third);
    alone_release(&a);
}
END_TEST

TEST_SUITE(prefix_blocks)
{
    TCase *tc = test_case(suite, "core");

    tcase_set_timeout(tc, 300);
    tcase_add_loop_test(tc, prefix_blocks__give_what_computing_gives, 0, N_MODELS);
    tcase_add_loop_test(tc, prefix_blocks__give_up_pages_under_pressure, 0, N_MODELS);
    tcase_add_loop_test(tc, prefix_blocks__samples_share_their_prompt, 0, N_MODELS);
    tcase_add_test(tc, prefix_blocks__keep_salts_apart);
    tcase_add_test(tc, prefix_blocks__go_by_last_use);
    tcase_add_test(tc, prefix_blocks__part_makes_way_for_its_reader);
    tcase_add_test(tc, prefix_cache__finds_beginnings_of_pages);
    tcase_add_test(tc, prefix_cache__keeps_no_beginning_twice);
    tcase_add_test(tc, prefix_cache__holds_a_part_while_it_is_copied);
}
