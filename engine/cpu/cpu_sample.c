/*
 * cpu_sample - logits to tokens, as specified above struct sample_args.
 *
 * Nothing is ever sorted but the few tokens that are reported. A cut-off that surely keeps enough
 * tokens is found by vector passes; the tokens above it are collected in the order of their id;
 * prefix_cut() then finds the exact border of top_k or top_p by radix over the logits' bits. All
 * sums are of integers, so any order of adding gives what a full sort would.
 */
#include "engine/cpu/cpu_backend.h"

#include "base/check.h"
#include "base/clock.h"
#include "base/exp_poly.h"
#include "base/rng.h"

#include <math.h>
#include <string.h>

#define GREEDY_BELOW 1e-5f /* temperatures below are 0: their inverse is no use in f32 */
#define CUT_FIRST    2.0f  /* nats below the maximum of the first cut-off; doubled at each miss */
#define CUT_LAST     256.0f
#define CUT_HALVINGS 4   /* a pass each; collecting tokens costs as much as several */
#define CUT_FEW      512 /* tokens that are cheap to collect */

/* One thread's room. */
struct sample_work {
    float *raw; /* [vocab_size] cleaned logits */
    float *x;   /* [vocab_size] after penalties, bias and temperature; may be raw itself */
    struct sample_cand *cand;
    int vocab_size;
    float raw_max, max; /* of raw, of x */
    uint64_t raw_sum;   /* of weights of raw */
};

static size_t round_up_64(size_t n)
{
    return (n + 63) / 64 * 64;
}

size_t cpu_sample_scratch(int max_vocab)
{
    size_t n = (size_t)max_vocab;

    return 2 * round_up_64(n * sizeof(float)) + round_up_64(n * sizeof(struct sample_cand));
}

/* Greater logit, greater key; 0.0 and -0.0 alike. */
static uint32_t logit_key(float x)
{
    uint32_t u;

    x += 0.0f;
    memcpy(&u, &x, sizeof(u));
    return u & 0x80000000u ? ~u : u | 0x80000000u;
}

/*
 * Keeps the shortest prefix of cand, ordered by (logit descending, token ascending), whose measure
 * reaches goal: its length, or its weight. cand is in the order of tokens and stays so.
 */
static int prefix_cut(struct sample_cand *cand, int n, bool by_weight, uint64_t goal)
{
    uint64_t measure[256], above = 0; /* of keys greater than any in question */
    uint32_t key = 0, mask = 0;       /* bits of the border's key found so far */
    int kept = 0;

    for (int shift = 24; shift >= 0; shift -= 8) {
        int b = 255;

        memset(measure, 0, sizeof(measure));
        for (int i = 0; i < n; i++) {
            uint32_t k = logit_key(cand[i].logit);

            if ((k & mask) == key)
                measure[k >> shift & 255] += by_weight ? cand[i].weight : 1;
        }
        for (; b > 0 && above + measure[b] < goal; b--)
            above += measure[b];
        key |= (uint32_t)b << shift;
        mask |= 255u << shift;
    }
    for (int i = 0; i < n; i++) {
        uint32_t k = logit_key(cand[i].logit);

        if (k < key || (k == key && above >= goal))
            continue;
        if (k == key)
            above += by_weight ? cand[i].weight : 1;
        cand[kept++] = cand[i];
    }
    return kept;
}

/* What a cut-off must keep: so many tokens, or so much weight. */
struct cut_goal {
    bool by_weight;
    uint64_t measure;
};

static bool cut_keeps_enough(const struct cpu_kernels *kern, const float *x, int n, float max,
                             float cut, struct cut_goal goal)
{
    uint64_t kept =
        goal.by_weight ? kern->weight_sum(x, n, max, cut) : (uint64_t)kern->count_ge(x, n, cut);

    return kept >= goal.measure;
}

/* A cut-off that reaches the goal, not far below the best one if the logits are ordinary. */
static float cut_for(const struct cpu_kernels *kern, const float *x, int n, float max,
                     struct cut_goal goal)
{
    float low = 0.0f, depth = CUT_FIRST; /* low does not reach the goal, depth will */

    while (!cut_keeps_enough(kern, x, n, max, max - depth, goal)) {
        if (depth >= CUT_LAST)
            return -INFINITY;
        low = depth;
        depth *= 2.0f;
    }
    for (int i = 0; i < CUT_HALVINGS && kern->count_ge(x, n, max - depth) > CUT_FEW; i++) {
        float mid = 0.5f * (low + depth);

        if (cut_keeps_enough(kern, x, n, max, max - mid, goal))
            depth = mid;
        else
            low = mid;
    }
    return max - depth;
}

/* floor(part * total), at least 1: a prefix is never empty. */
static uint64_t weight_goal(float part, uint64_t total)
{
    double goal = (double)part * (double)total;

    return goal < 1.0 ? 1 : (uint64_t)goal;
}

static float penalise(float l, const struct sample_row *r, const struct sample_seen *seen)
{
    if (r->repetition_penalty != 1.0f && r->repetition_penalty > 0.0f)
        l = l > 0.0f ? l / r->repetition_penalty : l * r->repetition_penalty;
    if (seen->n_generated > 0) {
        l = l - (float)seen->n_generated * r->frequency_penalty;
        l = l - r->presence_penalty;
    }
    return l;
}

/* Whole words at a time where none or all of their tokens are allowed, as most are. */
static void mask_out(struct sample_work *w, const uint32_t *mask)
{
    for (int at = 0; at < w->vocab_size; at += 32) {
        int n = w->vocab_size - at < 32 ? w->vocab_size - at : 32;
        uint32_t word = mask[at / 32];

        if (word == UINT32_MAX)
            continue;
        for (int i = 0; i < n; i++) {
            if (!(word >> i & 1))
                w->x[at + i] = -INFINITY;
        }
    }
}

/* Raw logits to x: penalties, bias, mask, temperature. Returns x's maximum. */
static float logits_modify(const struct cpu_kernels *kern, struct sample_work *w,
                           const struct sample_args *a, const struct sample_row *r, float scale)
{
    bool is_early = r->position + a->phase < r->min_end;
    int n_bias = is_early ? r->n_bias_min : r->n_bias;
    const struct sample_bias *biases = a->bias + (is_early ? r->bias_min_at : r->bias_at);
    bool has_bias = n_bias > 0 || r->n_seen > 0 || r->mask > 0;

    w->x = w->raw;
    if (!has_bias && scale == 1.0f)
        return w->raw_max;
    w->x = w->raw + round_up_64((size_t)w->vocab_size * sizeof(float)) / sizeof(float);
    memcpy(w->x, w->raw, sizeof(float) * (size_t)w->vocab_size);
    for (int i = 0; i < r->n_seen; i++) {
        const struct sample_seen *seen = &a->seen[r->seen_at + i];

        if (seen->token >= 0 && seen->token < w->vocab_size)
            w->x[seen->token] = penalise(w->x[seen->token], r, seen);
    }
    for (int i = 0; i < n_bias; i++) {
        if (biases[i].token >= 0 && biases[i].token < w->vocab_size)
            w->x[biases[i].token] += biases[i].value;
    }
    if (r->mask > 0)
        mask_out(w, a->mask + (int64_t)(r->mask - 1) * SAMPLE_MASK_WORDS(w->vocab_size));
    kern->logits_clean(w->x, w->x, w->vocab_size);
    return kern->logits_scale(w->x, w->vocab_size, scale);
}

static int32_t first_max(const struct sample_work *w)
{
    for (int i = 0; i < w->vocab_size; i++) {
        if (w->x[i] == w->max)
            return i;
    }
    return 0;
}

/* The first token in the order of ids whose running sum exceeds target. */
static int32_t draw_from(const struct sample_cand *cand, int n, uint64_t target)
{
    uint64_t sum = 0;

    for (int i = 0; i < n; i++) {
        sum += cand[i].weight;
        if (sum > target)
            return cand[i].token;
    }
    return cand[n - 1].token;
}

static uint64_t scale_to(uint64_t u, uint64_t sum)
{
    return (uint64_t)((unsigned __int128)u * sum >> 64);
}

/* No filter at all: sums of strips find the strip, then the token in it. */
static int32_t draw_from_all(const struct cpu_kernels *kern, struct sample_work *w, uint64_t u)
{
    enum { STRIP = 512 };
    uint64_t total =
        w->x == w->raw ? w->raw_sum : kern->weight_sum(w->x, w->vocab_size, w->max, -INFINITY);
    uint64_t target = scale_to(u, total), before = 0;

    for (int at = 0; at < w->vocab_size; at += STRIP) {
        int n = w->vocab_size - at < STRIP ? w->vocab_size - at : STRIP;
        uint64_t sum = kern->weight_sum(w->x + at, n, w->max, -INFINITY);

        if (before + sum > target) {
            n = kern->collect_ge(w->cand, w->x + at, n, w->max, -INFINITY);
            return at + draw_from(w->cand, n, target - before);
        }
        before += sum;
    }
    return first_max(w);
}

static int32_t draw(const struct cpu_kernels *kern, struct sample_work *w,
                    const struct sample_row *r, int phase)
{
    uint64_t u = rng_u64(r->seed, r->sample_idx, (uint64_t)(r->position + phase)), sum = 0;
    bool by_count = r->top_k > 0 && r->top_k < w->vocab_size;
    bool by_weight = r->top_p < 1.0f;
    float cut = -INFINITY;
    int n, kept = 0;

    if (w->max == -INFINITY)
        return 0; /* every token is banned */
    if (!by_count && !by_weight && !(r->min_p > 0.0f))
        return draw_from_all(kern, w, u);
    if (by_count) {
        cut = cut_for(kern, w->x, w->vocab_size, w->max,
                      (struct cut_goal){.measure = (uint64_t)r->top_k});
    } else if (by_weight) {
        sum =
            w->x == w->raw ? w->raw_sum : kern->weight_sum(w->x, w->vocab_size, w->max, -INFINITY);
        cut = cut_for(kern, w->x, w->vocab_size, w->max,
                      (struct cut_goal){.by_weight = true, .measure = weight_goal(r->top_p, sum)});
    } else {
        cut = w->max + logf(r->min_p < 1.0f ? r->min_p : 1.0f) - 0.1f; /* a bit more, then exact */
    }
    n = kern->collect_ge(w->cand, w->x, w->vocab_size, w->max, cut);
    if (by_count && n > r->top_k)
        n = prefix_cut(w->cand, n, false, (uint64_t)r->top_k);
    if (by_weight) {
        if (by_count) {
            for (int i = 0; i < n; i++)
                sum += w->cand[i].weight;
        }
        n = prefix_cut(w->cand, n, true, weight_goal(r->top_p, sum));
    }
    sum = 0;
    for (int i = 0; i < n; i++) {
        /* The greatest weight is that of the maximum: 2^40. */
        if ((double)w->cand[i].weight < (double)r->min_p * 1099511627776.0 &&
            w->cand[i].logit < w->max)
            continue;
        w->cand[kept] = w->cand[i];
        sum += w->cand[kept++].weight;
    }
    return draw_from(w->cand, kept, scale_to(u, sum));
}

/* log softmax of a raw logit, from the integer sum. */
static float logprob_of(const struct sample_work *w, float raw)
{
    if (w->raw_sum == 0)
        return -INFINITY;
    return (float)((double)(raw - w->raw_max) - log((double)w->raw_sum * 0x1p-40));
}

static bool cand_is_before(const struct sample_cand *a, const struct sample_cand *b)
{
    return a->logit > b->logit || (a->logit == b->logit && a->token < b->token);
}

static void top_tokens(const struct cpu_kernels *kern, struct sample_work *w, int n_top,
                       int max_top, int32_t *token, float *logprob)
{
    int n_want = n_top < w->vocab_size ? n_top : w->vocab_size, n = 0;

    if (n_want > 0) {
        float cut = cut_for(kern, w->raw, w->vocab_size, w->raw_max,
                            (struct cut_goal){.measure = (uint64_t)n_want});

        n = kern->collect_ge(w->cand, w->raw, w->vocab_size, w->raw_max, cut);
        if (n > n_want)
            n = prefix_cut(w->cand, n, false, (uint64_t)n_want);
    }
    for (int i = 1; i < n; i++) { /* insertion sort: n is 20 at most in the API */
        struct sample_cand c = w->cand[i];
        int at = i;

        for (; at > 0 && cand_is_before(&c, &w->cand[at - 1]); at--)
            w->cand[at] = w->cand[at - 1];
        w->cand[at] = c;
    }
    for (int i = 0; i < max_top; i++) {
        token[i] = i < n ? w->cand[i].token : -1;
        logprob[i] = i < n ? logprob_of(w, w->cand[i].logit) : -INFINITY;
    }
}

static void sample_one(const struct cpu_kernels *kern, struct sample_work *w,
                       const struct sample_args *a, int row)
{
    const struct sample_row *r = &a->rows[row];
    bool has_logprob = r->n_top >= 0;
    int32_t token = r->forced_token;

    if (a->phase < r->first_phase || (r->end_phase > 0 && a->phase >= r->end_phase))
        return;
    w->raw_max =
        kern->logits_clean(w->raw, a->logits + (int64_t)row * a->vocab_size, a->vocab_size);
    /* A draw from all of the raw logits wants the sum too. */
    if (has_logprob || (r->temperature >= GREEDY_BELOW && token < 0))
        w->raw_sum = kern->weight_sum(w->raw, a->vocab_size, w->raw_max, -INFINITY);
    if (a->max_top > 0)
        top_tokens(kern, w, r->n_top < a->max_top ? r->n_top : a->max_top, a->max_top,
                   a->top_token + (int64_t)row * a->max_top,
                   a->top_logprob + (int64_t)row * a->max_top);
    if (token < 0) {
        bool greedy = !(r->temperature >= GREEDY_BELOW);

        w->max = logits_modify(kern, w, a, r, greedy ? 1.0f : 1.0f / r->temperature);
        token = greedy ? first_max(w) : draw(kern, w, r, a->phase);
    }
    CHECK(token < a->vocab_size);
    a->result[row] = (struct sample_result){
        .token = token, .logprob = has_logprob ? logprob_of(w, w->raw[token]) : 0.0f};
    if (a->slot_token && r->slot >= 0)
        a->slot_token[(int64_t)r->slot * (a->slot_stride > 0 ? a->slot_stride : 1)] = token;
}

struct sample_job {
    struct cpu_backend *cb;
    const struct sample_args *a;
};

static void sample_items(void *arg, int64_t begin, int64_t end, int thread)
{
    const struct sample_job *j = arg;
    char *room = j->cb->sample_scratch + (size_t)thread * j->cb->sample_bytes;
    size_t row_bytes = round_up_64((size_t)j->a->vocab_size * sizeof(float));
    struct sample_work w = {.raw = (float *)room,
                            .cand = (struct sample_cand *)(room + 2 * row_bytes),
                            .vocab_size = j->a->vocab_size};

    for (int64_t row = begin; row < end; row++)
        sample_one(j->cb->kern, &w, j->a, (int)row);
}

int cpu_sample(struct backend *be, const struct sample_args *a, struct err *err)
{
    struct cpu_backend *cb = cpu_of(be);
    struct sample_job job = {.cb = cb, .a = a};
    int64_t t0 = clock_ns();

    (void)err;
    CHECK(a->vocab_size <= cb->params.max_vocab);
    cpu_threads_run(cb->threads, a->n_rows, 1, sample_items, &job);
    cpu_cost_add(cb, OP_SAMPLE, t0, 4.0 * a->n_rows * a->vocab_size, 0.0);
    return 0;
}
