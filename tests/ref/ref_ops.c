/*
 * ref_ops - written to be read against the contract, not to be fast.
 */
#include "tests/ref/ref_ops.h"

#include "base/exp_poly.h"
#include "base/rng.h"

#include <float.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>

void ref_norm(double *out, const double *x, int dim, enum norm_kind kind, double eps,
              const float *gain, const float *bias)
{
    double mean = 0.0, var = 0.0;

    for (int i = 0; kind == NORM_LAYER && i < dim; i++)
        mean += x[i] / dim;
    for (int i = 0; i < dim; i++)
        var += (x[i] - mean) * (x[i] - mean) / dim;
    for (int i = 0; i < dim; i++)
        out[i] = (x[i] - mean) / sqrt(var + eps) * gain[i] + (bias ? bias[i] : 0.0);
}

void ref_linear(double *y, const double *x, const float *w, const float *bias, int n_out, int n_in)
{
    for (int o = 0; o < n_out; o++) {
        y[o] = bias ? bias[o] : 0.0;
        for (int k = 0; k < n_in; k++)
            y[o] += x[k] * w[(int64_t)o * n_in + k];
    }
}

double ref_act(double x, enum act_kind kind)
{
    if (kind == ACT_SILU)
        return x / (1.0 + exp(-x));
    if (kind == ACT_GELU_TANH)
        return 0.5 * x *
               (1.0 + tanh(sqrt(2.0 / 3.14159265358979323846) * (x + 0.044715 * x * x * x)));
    return 0.5 * x * (1.0 + erf(x / sqrt(2.0)));
}

void ref_rope(double *x, int rope_dim, int32_t pos, const float *inv_freq, double scale)
{
    int half = rope_dim / 2;

    for (int i = 0; i < half; i++) {
        float angle = (float)pos * inv_freq[i];
        double c = cos((double)angle) * scale, s = sin((double)angle) * scale;
        double a = x[i], b = x[i + half];

        x[i] = a * c - b * s;
        x[i + half] = b * c + a * s;
    }
}

void ref_attend(double *out, const double *q, const float *k, const float *v, const bool *sees,
                int n, int head_dim, double scale)
{
    double *score = malloc(sizeof(double) * (size_t)n), max = -INFINITY, sum = 0.0;

    for (int j = 0; j < n; j++) {
        double s = 0.0;

        for (int d = 0; d < head_dim; d++)
            s += q[d] * k[(int64_t)j * head_dim + d];
        score[j] = s * scale;
        if (sees[j] && score[j] > max)
            max = score[j];
    }
    memset(out, 0, sizeof(double) * (size_t)head_dim);
    for (int j = 0; j < n; j++) {
        double w = sees[j] ? exp(score[j] - max) : 0.0;

        sum += w;
        for (int d = 0; d < head_dim; d++)
            out[d] += w * v[(int64_t)j * head_dim + d];
    }
    for (int d = 0; d < head_dim; d++)
        out[d] /= sum;
    free(score);
}

/* ---- sampling ---- */

static float clean(float l)
{
    return isnan(l) ? -INFINITY : l > FLT_MAX ? FLT_MAX : l;
}

struct ranked {
    float logit;
    int32_t token;
};

static int by_rank(const void *pa, const void *pb)
{
    const struct ranked *a = pa, *b = pb;

    if (a->logit != b->logit)
        return a->logit > b->logit ? -1 : 1;
    return a->token < b->token ? -1 : 1;
}

static struct ranked *ranking(const float *x, int n)
{
    struct ranked *r = malloc(sizeof(*r) * (size_t)n);

    for (int i = 0; i < n; i++)
        r[i] = (struct ranked){.logit = x[i], .token = i};
    qsort(r, (size_t)n, sizeof(*r), by_rank);
    return r;
}

/* The logits that are drawn from, before temperature. */
static void modify(float *x, int n, const struct sample_row *row, const struct sample_bias *bias,
                   const struct sample_seen *seen)
{
    for (int i = 0; i < row->n_seen; i++) {
        const struct sample_seen *s = &seen[row->seen_at + i];
        float l = x[s->token];

        if (row->repetition_penalty != 1.0f)
            l = l > 0.0f ? l / row->repetition_penalty : l * row->repetition_penalty;
        if (s->n_generated > 0) {
            float product = (float)s->n_generated * row->frequency_penalty;

            l = l - product;
            l = l - row->presence_penalty;
        }
        x[s->token] = l;
    }
    for (int i = 0; i < row->n_bias; i++)
        x[bias[row->bias_at + i].token] += bias[row->bias_at + i].value;
    for (int i = 0; i < n; i++)
        x[i] = clean(x[i]);
}

/* The weights of what the filters leave; 0 elsewhere. */
static void filter(uint64_t *weight, const float *x, int n, const struct sample_row *row)
{
    struct ranked *r = ranking(x, n);
    uint64_t total = 0, sum = 0, goal;
    int n_left = row->top_k > 0 && row->top_k < n ? row->top_k : n, n_kept = 0;

    memset(weight, 0, sizeof(*weight) * (size_t)n);
    for (int i = 0; i < n_left; i++)
        total += exp_weight(r[i].logit - r[0].logit);
    goal = (uint64_t)((double)row->top_p * (double)total);
    if (goal < 1)
        goal = 1;
    while (n_kept < n_left && (row->top_p >= 1.0f || sum < goal))
        sum += exp_weight(r[n_kept++].logit - r[0].logit);
    for (int i = 0; i < n_kept; i++) {
        uint64_t w = exp_weight(r[i].logit - r[0].logit);

        if (r[i].logit == r[0].logit || (double)w >= (double)row->min_p * 1099511627776.0)
            weight[r[i].token] = w;
    }
    free(r);
}

struct sample_result ref_sample(const float *logits, int vocab_size, const struct sample_row *row,
                                const struct sample_bias *bias, const struct sample_seen *seen,
                                uint64_t *weights)
{
    size_t n = (size_t)vocab_size;
    float *x = malloc(sizeof(float) * n);
    uint64_t *weight = calloc(n, sizeof(*weight)), sum = 0, running = 0, target;
    struct sample_result res = {.token = 0};
    struct ranked *r;

    for (int i = 0; i < vocab_size; i++)
        x[i] = clean(logits[i]);
    modify(x, vocab_size, row, bias, seen);
    r = ranking(x, vocab_size);
    res.token = r[0].token; /* greedy; also when all are banned, it is token 0 */
    if (row->temperature >= 1e-5f && r[0].logit > -INFINITY) {
        float scale = 1.0f / row->temperature;

        for (int i = 0; i < vocab_size; i++)
            x[i] = clean(x[i] * scale);
        filter(weight, x, vocab_size, row);
        for (int i = 0; i < vocab_size; i++)
            sum += weight[i];
        target = (uint64_t)((unsigned __int128)rng_u64(row->seed, row->sample_idx,
                                                       (uint64_t)row->position) *
                                sum >>
                            64);
        for (int i = 0; i < vocab_size; i++) {
            running += weight[i];
            if (running > target) {
                res.token = i;
                break;
            }
        }
    }
    if (row->forced_token >= 0)
        res.token = row->forced_token;
    res.logprob = (float)ref_logprob(logits, vocab_size, res.token);
    if (weights)
        memcpy(weights, weight, sizeof(*weight) * n);
    free(r);
    free(weight);
    free(x);
    return res;
}

void ref_top(const float *logits, int vocab_size, int n, int32_t *token)
{
    float *x = malloc(sizeof(float) * (size_t)vocab_size);
    struct ranked *r;

    for (int i = 0; i < vocab_size; i++)
        x[i] = clean(logits[i]);
    r = ranking(x, vocab_size);
    for (int i = 0; i < n; i++)
        token[i] = i < vocab_size ? r[i].token : -1;
    free(r);
    free(x);
}

double ref_logprob(const float *logits, int vocab_size, int token)
{
    double max = -INFINITY, sum = 0.0;

    for (int i = 0; i < vocab_size; i++)
        max = clean(logits[i]) > max ? clean(logits[i]) : max;
    for (int i = 0; i < vocab_size; i++)
        sum += exp(clean(logits[i]) - max);
    return clean(logits[token]) - max - log(sum);
}
