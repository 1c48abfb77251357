/*
 * sample.cu - logits to tokens, the CPU sampler's to the bit: see struct sample_args.
 *
 *   logits  f32  [n_rows, vocab_size]
 *
 * Work     one CTA per row, rows in turn when there are more than CTAs. Every step is a pass over
 *          the row: greatest logit, sums of weights, a radix search for the border of top_k and
 *          top_p among the tokens near the top, a walk to the drawn token. Weights are integers, so
 *          the order of adding is free; x is recomputed from raw in each pass, and written out only
 *          where penalties or bias change single tokens.
 * Border   of a prefix in (logit descending, id ascending): a key and how many of the tokens that
 *          have exactly it belong, lowest ids first
 * Bound    L2: a row of 128k logits is 512 KB, about ten passes with top_p, three without filters
 * Checked  against cpu, exactly, in tests/cuda/test_sample.c
 */
#include "base/exp_poly.h"
#include "base/rng.h"
#include "cuda/cuda_backend.h"
#include "cuda/device.cuh"

#include <float.h>

#define SAMPLE_THREADS 1024
#define SAMPLE_WARPS   (SAMPLE_THREADS / WARP_LANES)
#define N_DEPTHS       8     /* cut-offs 2, 4, ... 256 nats below the maximum */
#define GREEDY_BELOW   1e-5f /* temperatures below are 0, as on the CPU */
#define WEIGHT_ONE     1099511627776.0

struct sample_kernel_args {
    struct sample_args a;
    float *rows; /* [gridDim.x, max_vocab] */
    int64_t row_stride;
};

/* What all threads of the CTA share; written between two barriers. */
struct sample_shared {
    unsigned long long warp_u64[SAMPLE_WARPS];
    int warp_i32[SAMPLE_WARPS];
    unsigned long long bins[256];
    unsigned long long depth_weight[N_DEPTHS];
    int depth_count[N_DEPTHS];
    int32_t bias_token[SAMPLE_THREADS];
    uint32_t key; /* results of one thread for the others */
    unsigned long long above;
    int32_t token;
};

/* Logits of a row as a pass sees them: cleaned raw, or x after penalties, bias and temperature. */
struct sample_view {
    const float *values;
    float scale;
    int n;

    __device__ float at(int i) const
    {
        float v = values[i];

        v = v >= -INFINITY ? v : -INFINITY;
        v = v > FLT_MAX ? FLT_MAX : v;
        v = __fmul_rn(v, scale);
        return v > FLT_MAX ? FLT_MAX : v;
    }
};

/* Greater logit, greater key; 0.0 and -0.0 alike. */
static __device__ uint32_t logit_key(float x)
{
    uint32_t u = __float_as_uint(__fadd_rn(x, 0.0f));

    return u & 0x80000000u ? ~u : u | 0x80000000u;
}

static __device__ unsigned long long sum_u64(unsigned long long v, sample_shared *s)
{
    unsigned long long total = 0;

    for (int m = 16; m > 0; m >>= 1)
        v += __shfl_xor_sync(0xffffffffu, v, m);
    __syncthreads(); /* results of an earlier call have been read */
    if (threadIdx.x % WARP_LANES == 0)
        s->warp_u64[threadIdx.x / WARP_LANES] = v;
    __syncthreads(); /* all warps' sums are there */
    for (int i = 0; i < SAMPLE_WARPS; i++)
        total += s->warp_u64[i];
    return total;
}

static __device__ unsigned long long max_u64(unsigned long long v, sample_shared *s)
{
    unsigned long long top = 0;

    for (int m = 16; m > 0; m >>= 1) {
        unsigned long long other = __shfl_xor_sync(0xffffffffu, v, m);

        v = other > v ? other : v;
    }
    __syncthreads(); /* results of an earlier call have been read */
    if (threadIdx.x % WARP_LANES == 0)
        s->warp_u64[threadIdx.x / WARP_LANES] = v;
    __syncthreads(); /* all warps' maxima are there */
    for (int i = 0; i < SAMPLE_WARPS; i++)
        top = s->warp_u64[i] > top ? s->warp_u64[i] : top;
    return top;
}

/* Key and token in one number that orders by (logit descending, id ascending): greater is before.
 */
static __device__ unsigned long long rank_of(float x, int token)
{
    return (unsigned long long)logit_key(x) << 32 | (0xffffffffu - (uint32_t)token);
}

/* The first token of that order behind `after` (exclusive); 0 when there is none. */
static __device__ unsigned long long best_after(sample_view v, unsigned long long after,
                                                sample_shared *s)
{
    unsigned long long best = 0;

    for (int i = threadIdx.x; i < v.n; i += SAMPLE_THREADS) {
        unsigned long long rank = rank_of(v.at(i), i);

        if (rank < after && rank > best)
            best = rank;
    }
    return max_u64(best, s);
}

static __device__ int token_of(unsigned long long rank)
{
    return (int)(0xffffffffu - (uint32_t)rank);
}

static __device__ unsigned long long weight_total(sample_view v, float max, sample_shared *s)
{
    unsigned long long sum = 0;

    for (int i = threadIdx.x; i < v.n; i += SAMPLE_THREADS)
        sum += exp_weight(v.at(i) - max);
    return sum_u64(sum, s);
}

/* Counts and weights of the tokens at most 2, 4, ... nats below max, into s->depth_*. */
static __device__ void measure_depths(sample_view v, float max, sample_shared *s)
{
    unsigned long long weight[N_DEPTHS] = {};
    int count[N_DEPTHS] = {};

    for (int i = threadIdx.x; i < v.n; i += SAMPLE_THREADS) {
        float x = v.at(i);
        unsigned long long w = exp_weight(x - max);

#pragma unroll
        for (int d = 0; d < N_DEPTHS; d++) {
            bool in = x >= max - (float)(2 << d);

            count[d] += in;
            weight[d] += in ? w : 0;
        }
    }
#pragma unroll
    for (int d = 0; d < N_DEPTHS; d++) {
        unsigned long long n = sum_u64((unsigned long long)count[d], s);
        unsigned long long w = sum_u64(weight[d], s);

        if (threadIdx.x == 0) {
            s->depth_count[d] = (int)n;
            s->depth_weight[d] = w;
        }
    }
    __syncthreads(); /* the depths are there */
}

/* A prefix of the order: all keys greater than key, and the first n_ties of those equal to it. */
struct border {
    uint32_t key;
    unsigned long long n_ties;
};

/* The logit behind a key. */
static __device__ float logit_of(uint32_t key)
{
    return __uint_as_float(key & 0x80000000u ? key & 0x7fffffffu : ~key);
}

/*
 * The shortest prefix of prefix b whose measure (length, or weight) reaches goal, which b's own
 * does. Tokens below cut must not be needed for it.
 */
static __device__ struct border border_find(sample_view v, float max, float cut, bool by_weight,
                                            unsigned long long goal, struct border b,
                                            sample_shared *s)
{
    unsigned long long above = 0, tie = 1;
    uint32_t key = 0, mask = 0;
    struct border found;

    for (int shift = 24; shift >= 0; shift -= 8) {
        __syncthreads(); /* bins and results of an earlier pass have been read */
        if (threadIdx.x < 256)
            s->bins[threadIdx.x] = 0;
        __syncthreads(); /* the bins are empty */
        for (int i = threadIdx.x; i < v.n; i += SAMPLE_THREADS) {
            float x = v.at(i);
            uint32_t k = logit_key(x);

            if (x >= cut && k > b.key && (k & mask) == key)
                atomicAdd(&s->bins[k >> shift & 255],
                          by_weight ? (unsigned long long)exp_weight(x - max) : 1ull);
        }
        if (threadIdx.x == 0 && b.n_ties > 0 && (b.key & mask) == key)
            atomicAdd(&s->bins[b.key >> shift & 255],
                      b.n_ties * (by_weight ? (unsigned long long)exp_weight(logit_of(b.key) - max)
                                            : 1ull));
        __syncthreads(); /* the bins are full */
        if (threadIdx.x == 0) {
            int bin = 255;

            for (; bin > 0 && above + s->bins[bin] < goal; bin--)
                above += s->bins[bin];
            s->key = key | (uint32_t)bin << shift;
            s->above = above;
        }
        __syncthreads(); /* the digit is found */
        key = s->key;
        above = s->above;
        mask |= 255u << shift;
    }
    if (by_weight)
        tie = exp_weight(logit_of(key) - max);
    found.key = key;
    found.n_ties = above >= goal ? 0 : tie > 0 ? (goal - above + tie - 1) / tie : ~0ull >> 1;
    if (key == b.key && found.n_ties > b.n_ties)
        found.n_ties = b.n_ties;
    return found;
}

/* Does min_p let the token pass? The greatest weight is that of the maximum: 2^40. */
static __device__ bool passes(float x, float max, unsigned long long w, float min_p)
{
    return !((double)w < (double)min_p * WEIGHT_ONE && x < max);
}

/*
 * Draws from the prefix b: the first token in the order of ids whose running sum exceeds u, scaled
 * to the sum of all. Warps take contiguous strips; the warp whose strip holds the target walks it.
 */
static __device__ int draw_from(sample_view v, float max, float min_p, struct border b, uint64_t u,
                                sample_shared *s)
{
    int warp = threadIdx.x / WARP_LANES, lane = threadIdx.x % WARP_LANES;
    int strip = (v.n + SAMPLE_WARPS - 1) / SAMPLE_WARPS;
    int begin = warp * strip, end = begin + strip < v.n ? begin + strip : v.n;
    unsigned long long sum = 0, total = 0, before = 0, target, tie;
    unsigned long long ties_before = 0;
    int ties = 0;

    tie = exp_weight(logit_of(b.key) - max);
    if (!passes(logit_of(b.key), max, tie, min_p))
        b.n_ties = 0;
    for (int i = begin + lane; i < end; i += WARP_LANES) {
        float x = v.at(i);
        uint32_t k = logit_key(x);
        unsigned long long w = exp_weight(x - max);

        ties += k == b.key;
        if (k > b.key && passes(x, max, w, min_p))
            sum += w;
    }
    for (int m = 16; m > 0; m >>= 1) {
        sum += __shfl_xor_sync(0xffffffffu, sum, m);
        ties += __shfl_xor_sync(0xffffffffu, ties, m);
    }
    __syncthreads(); /* results of an earlier pass have been read */
    if (lane == 0) {
        s->warp_u64[warp] = sum;
        s->warp_i32[warp] = ties;
    }
    if (threadIdx.x == 0)
        s->token = -1;
    __syncthreads(); /* all strips are summed */
    for (int i = 0; i < SAMPLE_WARPS; i++) {
        unsigned long long room = b.n_ties > ties_before ? b.n_ties - ties_before : 0;
        unsigned long long n = s->warp_i32[i];

        if (i == warp)
            before = total;
        total += s->warp_u64[i] + (n < room ? n : room) * tie;
        if (i == warp)
            sum = total; /* up to and with this strip */
        ties_before += n;
    }
    target = __umul64hi(u, total);
    ties_before = 0;
    for (int i = 0; i < warp; i++)
        ties_before += s->warp_i32[i];
    if (before <= target && target < sum) { /* one warp, all its lanes */
        for (int base = begin; base < end; base += WARP_LANES) {
            int i = base + lane;
            float x = i < end ? v.at(i) : 0.0f;
            uint32_t k = i < end ? logit_key(x) : 0;
            bool is_tie = i < end && k == b.key;
            unsigned tie_lanes = __ballot_sync(0xffffffffu, is_tie), hit;
            unsigned long long w = 0, running;

            if (i < end && k > b.key) {
                w = exp_weight(x - max);
                w = passes(x, max, w, min_p) ? w : 0;
            } else if (is_tie && ties_before + __popc(tie_lanes & ((1u << lane) - 1)) < b.n_ties) {
                w = tie;
            }
            running = w;
            for (int m = 1; m < WARP_LANES; m <<= 1) {
                unsigned long long below = __shfl_up_sync(0xffffffffu, running, m);

                running += lane >= m ? below : 0;
            }
            hit = __ballot_sync(0xffffffffu, before + running > target);
            if (hit) {
                if (lane == 0)
                    s->token = base + __ffs(hit) - 1;
                break;
            }
            before += __shfl_sync(0xffffffffu, running, WARP_LANES - 1);
            ties_before += __popc(tie_lanes);
        }
    }
    __syncthreads(); /* the token is there */
    return s->token;
}

/* floor(part * total), at least 1: a prefix is never empty. */
static __device__ unsigned long long weight_goal(float part, unsigned long long total)
{
    double goal = (double)part * (double)total;

    return goal < 1.0 ? 1 : (unsigned long long)goal;
}

static __device__ int draw(sample_view v, float max, const sample_row &r, int phase,
                           sample_shared *s)
{
    bool by_count = r.top_k > 0 && r.top_k < v.n, by_weight = r.top_p < 1.0f;
    struct border b = {0, 0}; /* every key is greater than 0 */
    float cut = -INFINITY;

    if (max == -INFINITY)
        return 0; /* every token is banned */
    if (by_count || by_weight)
        measure_depths(v, max, s);
    if (by_count) {
        for (int d = N_DEPTHS - 1; d >= 0 && s->depth_count[d] >= r.top_k; d--)
            cut = max - (float)(2 << d);
        b = border_find(v, max, cut, false, r.top_k, b, s);
    }
    if (by_weight) {
        unsigned long long total = 0;

        if (by_count) {
            cut = logit_of(b.key);
            for (int i = threadIdx.x; i < v.n; i += SAMPLE_THREADS) {
                float x = v.at(i);

                total += logit_key(x) > b.key ? exp_weight(x - max) : 0;
            }
            total = sum_u64(total, s) + b.n_ties * exp_weight(cut - max);
        } else {
            total = weight_total(v, max, s);
        }
        unsigned long long goal = weight_goal(r.top_p, total);

        if (!by_count) {
            for (int d = N_DEPTHS - 1; d >= 0 && s->depth_weight[d] >= goal; d--)
                cut = max - (float)(2 << d);
        }
        b = border_find(v, max, cut, true, goal, b, s);
    }
    return draw_from(v, max, r.min_p, b,
                     rng_u64(r.seed, r.sample_idx, (uint64_t)(r.position + phase)), s);
}

static __device__ float penalise(float l, const sample_row &r, int32_t n_generated)
{
    if (r.repetition_penalty != 1.0f && r.repetition_penalty > 0.0f)
        l = l > 0.0f ? __fdiv_rn(l, r.repetition_penalty) : __fmul_rn(l, r.repetition_penalty);
    if (n_generated > 0) {
        l = __fsub_rn(l, __fmul_rn((float)n_generated, r.frequency_penalty));
        l = __fsub_rn(l, r.presence_penalty);
    }
    return l;
}

/* Adds the biases in their order; the first thread with a token applies all of the batch's. */
static __device__ void add_biases(float *x, int n, const sample_bias *bias, int n_bias,
                                  sample_shared *s)
{
    for (int base = 0; base < n_bias; base += SAMPLE_THREADS) {
        int in_batch = n_bias - base < SAMPLE_THREADS ? n_bias - base : SAMPLE_THREADS;
        int me = threadIdx.x, token = me < in_batch ? bias[base + me].token : -1;
        bool first = token >= 0 && token < n;

        __syncthreads(); /* the batch before is done */
        s->bias_token[me] = token;
        __syncthreads(); /* the batch's tokens are there */
        for (int i = 0; i < me && first; i++)
            first = s->bias_token[i] != token;
        for (int i = me; i < in_batch && first; i++) {
            if (s->bias_token[i] == token)
                x[token] = __fadd_rn(x[token], bias[base + i].value);
        }
    }
    __syncthreads(); /* all of x is written */
}

/* A range of the biases. */
struct bias_range {
    int at, n;
};

static __device__ bias_range biases_of(const sample_row &r, int phase)
{
    return r.position + phase < r.min_end ? bias_range{r.bias_min_at, r.n_bias_min}
                                          : bias_range{r.bias_at, r.n_bias};
}

/* Copies the cleaned row to x with penalties, bias and mask. */
static __device__ void row_modify(const sample_args &a, const sample_row &r, bias_range bias,
                                  sample_view raw, float *x, sample_shared *s)
{
    __syncthreads(); /* an earlier row's x has been read */
    for (int i = threadIdx.x; i < raw.n; i += SAMPLE_THREADS)
        x[i] = raw.at(i);
    __syncthreads(); /* x is complete */
    for (int i = threadIdx.x; i < r.n_seen; i += SAMPLE_THREADS) {
        sample_seen seen = a.seen[r.seen_at + i];

        if (seen.token >= 0 && seen.token < raw.n)
            x[seen.token] = penalise(x[seen.token], r, seen.n_generated);
    }
    __syncthreads(); /* penalties come before biases */
    add_biases(x, raw.n, a.bias + bias.at, bias.n, s);
    if (r.mask > 0) {
        const uint32_t *mask = a.mask + (int64_t)(r.mask - 1) * SAMPLE_MASK_WORDS(raw.n);

        for (int i = threadIdx.x; i < raw.n; i += SAMPLE_THREADS) {
            if (!(mask[i / 32] >> i % 32 & 1))
                x[i] = -INFINITY;
        }
        __syncthreads(); /* x is masked */
    }
}

/* log softmax of a raw logit, from the integer sum. */
static __device__ float logprob_of(float raw, float raw_max, unsigned long long raw_sum)
{
    if (raw_sum == 0)
        return -INFINITY;
    return (float)((double)__fsub_rn(raw, raw_max) - log((double)raw_sum / WEIGHT_ONE));
}

/* CTA -> rows blockIdx.x, + gridDim.x, ... */
static __global__ void __launch_bounds__(SAMPLE_THREADS, 1)
    sample_kernel(const __grid_constant__ sample_kernel_args k)
{
    __shared__ sample_shared s;
    const sample_args &a = k.a;

    for (int row = blockIdx.x; row < a.n_rows; row += gridDim.x) {
        const sample_row &r = a.rows[row];
        sample_view raw = {a.logits + (int64_t)row * a.vocab_size, 1.0f, a.vocab_size}, x = raw;
        unsigned long long best, rank, raw_sum = 0;
        bias_range bias = biases_of(r, a.phase);
        int token = r.forced_token;
        float raw_max;

        if (a.phase < r.first_phase || (r.end_phase > 0 && a.phase >= r.end_phase))
            continue;
        best = rank = best_after(raw, ~0ull, &s);
        raw_max = raw.at(token_of(best));
        if (r.n_top >= 0)
            raw_sum = weight_total(raw, raw_max, &s);
        for (int i = 0; i < a.max_top; i++) {
            bool wanted = i < r.n_top && i < a.vocab_size;

            if (threadIdx.x == 0) {
                int64_t at = (int64_t)row * a.max_top + i;

                a.top_token[at] = wanted ? token_of(rank) : -1;
                a.top_logprob[at] =
                    wanted ? logprob_of(raw.at(token_of(rank)), raw_max, raw_sum) : -INFINITY;
            }
            if (wanted && i + 1 < r.n_top && i + 1 < a.max_top)
                rank = best_after(raw, rank, &s);
        }
        if (token < 0) {
            bool greedy = !(r.temperature >= GREEDY_BELOW);

            if (r.n_seen > 0 || bias.n > 0 || r.mask > 0) {
                x.values = k.rows + blockIdx.x * k.row_stride;
                row_modify(a, r, bias, raw, k.rows + blockIdx.x * k.row_stride, &s);
            }
            x.scale = greedy ? 1.0f : __fdiv_rn(1.0f, r.temperature);
            if (x.values != raw.values || x.scale != 1.0f)
                best = best_after(x, ~0ull, &s);
            token = greedy ? token_of(best) : draw(x, x.at(token_of(best)), r, a.phase, &s);
        }
        if (threadIdx.x == 0) {
            a.result[row].token = token;
            a.result[row].logprob =
                r.n_top >= 0 ? logprob_of(raw.at(token), raw_max, raw_sum) : 0.0f;
            if (a.slot_token && r.slot >= 0)
                a.slot_token[(int64_t)r.slot * a.slot_stride] = token;
        }
    }
}

int sample_launch(struct cuda_backend *cb, const struct sample_args *p, struct err *err)
{
    struct sample_kernel_args k = {};
    int n_ctas;

    if (p->n_rows == 0)
        return 0;
    if (p->vocab_size > cb->params.max_vocab)
        return err_set(err, ERR_UNSUPPORTED, "sample: vocabulary of %d, opened for %d",
                       p->vocab_size, cb->params.max_vocab);
    k.a = *p;
    k.a.slot_stride = p->slot_stride > 0 ? p->slot_stride : 1;
    k.rows = cb->sample_rows;
    k.row_stride = cb->params.max_vocab;
    n_ctas = p->n_rows > cb->n_sample_ctas ? cb->n_sample_ctas : p->n_rows;
    sample_kernel<<<n_ctas, SAMPLE_THREADS, 0, cb->stream>>>(k);
    return cuda_launched(cb, "sample", err);
}
