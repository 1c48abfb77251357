/*
 * scramble - the same request and seed give the same tokens, alone and in any company.
 *
 * 256 random requests run one by one in a roomy engine, step by step, then 32 at a time in one that
 * runs ahead, with chunks of 17 tokens and a pool of 40 % of what 32 of them would fill. Ids,
 * texts, logprobs and finish reasons must be equal to the bit; there must have been preemptions,
 * and no page may be left.
 *
 *     scramble [MODEL_DIR [PLAN [REQUESTS]]]      fewer requests, for builds with a sanitizer
 */
#include "base/clock.h"
#include "base/rng.h"
#include "tests/engine/engine_fixture.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#define N_REQUESTS      256
#define N_AT_ONCE       32
#define MAX_PROMPT      220
#define MAX_NEW         110
#define MIN_PREEMPTIONS 20
#define POOL_PERCENT    40
#define PAGE_ENTRIES    "16" /* small pages: sequences this short must grow often */
#define SEED            20240811
#define TIMEOUT_S       600

struct job {
    struct engine_request req;
    int32_t prompt[MAX_PROMPT];
    struct engine_bias bias[3];
    int32_t stop_ids[2];
    const char *stop[2];
    char stop_text[2][4];
    struct collected alone, crowd;
};

static struct job jobs[N_REQUESTS];
static int n_requests = N_REQUESTS;
static uint64_t draws;

static int draw(int below)
{
    return (int)(rng_u64(SEED, 0, draws++) % (uint64_t)below);
}

static float draw_f(float lo, float hi)
{
    return lo + (hi - lo) * rng_f32(SEED, 1, draws++);
}

/* Each option is on in a part of the requests, so that all mixtures occur. */
static void job_init(struct job *job, int i, int vocab_size)
{
    struct sampling_params *p = &job->req.sampling;

    sampling_params_init(p);
    job->req.prompt = job->prompt;
    job->req.n_prompt = draw(5) ? 1 + draw(30) : 1 + draw(MAX_PROMPT);
    for (int k = 0; k < job->req.n_prompt; k++)
        job->prompt[k] = draw(vocab_size);
    p->max_tokens = 1 + draw(MAX_NEW);
    p->seed = rng_u64(SEED, 2, (uint64_t)i);
    p->sample_idx = (uint32_t)draw(3);
    p->temperature = draw(3) ? draw_f(0.2f, 1.5f) : 0.0f;
    p->ignore_eos = draw(2);
    if (draw(3) == 0)
        p->top_k = 1 + draw(50);
    if (draw(3) == 0)
        p->top_p = draw_f(0.3f, 1.0f);
    if (draw(4) == 0)
        p->min_p = draw_f(0.0f, 0.2f);
    /* Penalties in the second half alone: beside them no step runs ahead. */
    if (i >= n_requests / 2 && draw(4) == 0)
        p->repetition_penalty = draw_f(0.9f, 1.5f);
    if (i >= n_requests / 2 && draw(4) == 0)
        p->presence_penalty = draw_f(-1.0f, 1.0f);
    if (i >= n_requests / 2 && draw(4) == 0)
        p->frequency_penalty = draw_f(-1.0f, 1.0f);
    if (draw(3) == 0)
        p->n_logprobs = draw(6);
    if (draw(8) == 0)
        p->n_prompt_logprobs = draw(4);
    if (draw(4) == 0)
        p->min_tokens = draw(p->max_tokens + 1);
    if (draw(4) == 0) {
        p->bias = job->bias;
        p->n_bias = 3;
        for (int k = 0; k < 3; k++)
            job->bias[k] = (struct engine_bias){.token = draw(vocab_size / 3) * 3 + k % 3,
                                                .value = draw_f(-20.0f, 5.0f)};
    }
    if (draw(4) == 0) {
        p->stop_ids = job->stop_ids;
        p->n_stop_ids = 2;
        job->stop_ids[0] = draw(vocab_size);
        job->stop_ids[1] = draw(vocab_size);
    }
    if (draw(3) == 0) {
        p->stop = job->stop;
        p->n_stop = 2;
        for (int k = 0; k < 2; k++) {
            snprintf(job->stop_text[k], sizeof(job->stop_text[k]), "%c%c", 'a' + draw(26),
                     'a' + draw(26));
            job->stop[k] = job->stop_text[k];
        }
        p->include_stop = draw(2);
    }
}

/* Keeps n_at_once in flight until all are done. */
static bool run_all(struct engine *e, int n_at_once, bool crowd)
{
    int64_t end_ns = clock_ns() + TIMEOUT_S * (int64_t)1000000000;
    int next = 0, n_done = 0;

    while (n_done < n_requests) {
        struct err err = {0};
        uint64_t id;

        while (next < n_requests && next - n_done < n_at_once) {
            struct job *job = &jobs[next];

            job->req.user = crowd ? &job->crowd : &job->alone;
            if (engine_submit(e, &job->req, &id, &err) < 0) {
                fprintf(stderr, "request %d: %s\n", next, err.msg);
                return false;
            }
            next++;
        }
        engine_wait(e, 100000000);
        engine_poll(e, collected_add, NULL);
        n_done = 0;
        for (int i = 0; i < n_requests; i++)
            n_done += (crowd ? jobs[i].crowd.n_final : jobs[i].alone.n_final) > 0;
        if (clock_ns() > end_ns) {
            fprintf(stderr, "%d of %d done after %d s\n", n_done, n_requests, TIMEOUT_S);
            return false;
        }
    }
    return true;
}

static int count_failures(void)
{
    int n_bad = 0;

    for (int i = 0; i < n_requests; i++) {
        const struct collected *a = &jobs[i].alone, *b = &jobs[i].crowd;
        int k = 0;

        if (!a->broken && !b->broken && a->n_final == 1 && b->n_final == 1 &&
            a->finish != FINISH_ERROR && collected_same(a, b))
            continue;
        while (k < a->n_tokens && k < b->n_tokens && a->tokens[k].id == b->tokens[k].id)
            k++;
        fprintf(stderr,
                "request %d (prompt %d): alone %d tokens, finish %d; crowd %d tokens, finish %d; "
                "ids differ from %d on%s\n",
                i, jobs[i].req.n_prompt, a->n_tokens, (int)a->finish, b->n_tokens, (int)b->finish,
                k, a->broken || b->broken ? "; an event is broken" : "");
        n_bad++;
    }
    return n_bad;
}

/*
 * The average request's bytes times N_AT_ONCE, of which the pool gets POOL_PERCENT. A Block
 * Transformer's pages hold blocks, and its sequences may begin with one of their own.
 */
static long long crowd_pool_bytes(const struct engine_info *info, const char *page_entries)
{
    int page = info->page_tokens,
        lead = page / atoi(page_entries) > 1 ? page / atoi(page_entries) : 0;
    long long n_pages = 0, most = 0, heads = (long long)info->n_layers * info->n_kv_heads;

    for (int i = 0; i < n_requests; i++) {
        int n = lead + jobs[i].req.n_prompt + jobs[i].alone.n_tokens;
        int limit = lead + jobs[i].req.n_prompt + jobs[i].req.sampling.max_tokens;

        n_pages += heads * ((n + page - 1) / page);
        most =
            heads * ((limit + page - 1) / page) > most ? heads * ((limit + page - 1) / page) : most;
    }
    n_pages = n_pages * N_AT_ONCE / n_requests * POOL_PERCENT / 100;
    return (n_pages > most ? n_pages : most) * (long long)info->page_bytes;
}

static void print_stats(const char *what, const struct engine_stats *s, int64_t ns)
{
    printf("%-6s %6.1f s, %lld steps, %lld prompt rows, %lld tokens, %lld preemptions, "
           "%lld of %lld pages left in use\n",
           what, (double)ns * 1e-9, (long long)s->n_steps, (long long)s->prompt_tokens,
           (long long)s->generation_tokens, (long long)s->n_preemptions, (long long)s->pages_used,
           (long long)s->pages_total);
}

/* One engine from start to end; the stats are those after its last request. */
static bool run_engine(const char *const *flags, int n_at_once, bool crowd, const char *what,
                       const char *page_entries, struct engine_stats *stats, long long *pool_bytes)
{
    struct engine *e = engine_fixture_open(flags, NULL);
    int64_t start_ns;
    bool ok;

    if (!e)
        return false;
    if (!crowd) {
        for (int i = 0; i < n_requests; i++)
            job_init(&jobs[i], i, engine_get_info(e)->vocab_size);
    }
    start_ns = clock_ns();
    ok = run_all(e, n_at_once, crowd);
    /* The last event leaves before the step is counted; wait until the books are closed. */
    for (int i = 0; i < 1000; i++) {
        engine_get_stats(e, stats);
        if (stats->n_running == 0 && stats->pages_used == 0)
            break;
        usleep(1000);
    }
    print_stats(what, stats, clock_ns() - start_ns);
    if (!crowd)
        *pool_bytes = crowd_pool_bytes(engine_get_info(e), page_entries);
    engine_close(e);
    return ok;
}

int main(int argc, char **argv)
{
    const char *model = argc > 1 ? argv[1] : "tests/fixtures/engine/tiny";
    const char *plan = argc > 2 ? argv[2] : "dense";
    const char *page_entries = argc > 4 ? argv[4] : PAGE_ENTRIES;
    char one[4200], index[4200], pool[32];
    struct engine_stats alone = {0}, crowd = {0};
    long long pool_bytes = 0;
    const char *weights;
    int n_bad, min_preemptions;

    if (argc > 3)
        n_requests = atoi(argv[3]);
    if (n_requests < 1 || n_requests > N_REQUESTS) {
        fprintf(stderr, "want 1..%d requests\n", N_REQUESTS);
        return 2;
    }
    min_preemptions = MIN_PREEMPTIONS * n_requests / N_REQUESTS;
    snprintf(one, sizeof(one), "%s/model.safetensors", model);
    snprintf(index, sizeof(index), "%s/model.safetensors.index.json", model);
    weights = access(one, R_OK) == 0 || access(index, R_OK) == 0 ? "file" : "random";
    for (int i = 0; i < n_requests; i++) {
        collected_init(&jobs[i].alone);
        collected_init(&jobs[i].crowd);
    }
    {
        const char *flags[] = {
            "--model",        model, "--weights",   weights, "--device",         "cpu",
            "--plan",         plan,  "--run-ahead", "off",   "--max-batch",      "1",
            "--chunk-tokens", "512", "--kv-memory", "1GiB",  "--no-pin-threads", "--page-entries",
            page_entries,     NULL};

        if (!run_engine(flags, 1, false, "alone", page_entries, &alone, &pool_bytes))
            return 1;
    }
    snprintf(pool, sizeof(pool), "%lld", pool_bytes);
    {
        const char *flags[] = {
            "--model",        model, "--weights",   weights, "--device",         "cpu",
            "--plan",         plan,  "--run-ahead", "on",    "--max-batch",      "32",
            "--chunk-tokens", "17",  "--kv-memory", pool,    "--no-pin-threads", "--page-entries",
            page_entries,     NULL};

        if (!run_engine(flags, N_AT_ONCE, true, "crowd", page_entries, &crowd, &pool_bytes))
            return 1;
    }
    n_bad = count_failures();
    printf("%s, %s weights, plan %s: %d of %d requests identical, %lld preemptions, %lld pages "
           "left\n",
           model, weights, plan, n_requests - n_bad, n_requests, (long long)crowd.n_preemptions,
           (long long)(alone.pages_used + crowd.pages_used));
    for (int i = 0; i < n_requests; i++) {
        collected_release(&jobs[i].alone);
        collected_release(&jobs[i].crowd);
    }
    if (n_bad || alone.pages_used || crowd.pages_used)
        return 1;
    if (strcmp(plan, "dense") == 0 && crowd.n_preemptions < min_preemptions) {
        fprintf(stderr, "fewer than %d preemptions: nothing was proved\n", min_preemptions);
        return 1;
    }
    return 0;
}
