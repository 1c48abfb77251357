/*
 * rope - inverse frequencies. See rope.h.
 *
 * The order of operations and the places of rounding to f32 are those of torch: a scalar divided by
 * a tensor is the tensor's reciprocal times the scalar there, and stays so here.
 */
#include "engine/model/rope.h"

#include "engine/model/model_config.h"

#include <math.h>

#define TWO_PI 6.283185307179586

/* base^(2i/dim), the wavelength over 2 pi */
static float period(float base, int i, int dim)
{
    return powf(base, (float)(2 * i) / (float)dim);
}

/* The base grows with the sequence once it passes the length of training. */
static float dynamic_base(const struct rope_config *r, int seq_len)
{
    float grown;

    if (seq_len <= r->original_max_seq_len)
        return (float)r->theta;
    grown =
        (float)r->factor * (float)seq_len / (float)r->original_max_seq_len - (float)(r->factor - 1);
    return (float)r->theta * powf(grown, (float)((double)r->dim / (r->dim - 2)));
}

/* Long waves are stretched by the factor, short ones kept, those between are blended. */
static float llama3_freq(const struct rope_config *r, float inv_freq)
{
    float wavelen = 1.0f / inv_freq * (float)TWO_PI;
    float len = (float)r->original_max_seq_len, smooth;

    if (wavelen > (float)(r->original_max_seq_len / r->low_freq_factor))
        return inv_freq / (float)r->factor;
    if (wavelen < (float)(r->original_max_seq_len / r->high_freq_factor))
        return inv_freq;
    smooth = (1.0f / wavelen * len - (float)r->low_freq_factor) /
             (float)(r->high_freq_factor - r->low_freq_factor);
    return (1.0f - smooth) * inv_freq / (float)r->factor + smooth * inv_freq;
}

/* The dimension whose wave turns n_rotations times in the length of training. */
static double yarn_dim(const struct rope_config *r, double n_rotations)
{
    return r->dim * log(r->original_max_seq_len / (n_rotations * TWO_PI)) / (2 * log(r->theta));
}

/* The dimensions between which yarn goes from keeping a frequency to stretching it. */
static void yarn_range(const struct rope_config *r, double *low, double *high)
{
    *low = yarn_dim(r, r->beta_fast);
    *high = yarn_dim(r, r->beta_slow);
    if (r->truncate) {
        *low = floor(*low);
        *high = ceil(*high);
    }
    *low = fmax(*low, 0);
    *high = fmin(*high, r->dim - 1);
    if (*low == *high)
        *high += 0.001; /* no division by zero below */
}

static float yarn_freq(const struct rope_config *r, int i, double low, double high)
{
    float freq = period((float)r->theta, i, r->dim);
    float kept = 1.0f / freq, stretched = 1.0f / ((float)r->factor * freq);
    float ramp = ((float)i - (float)low) / (float)(high - low);
    float keep = 1.0f - fminf(fmaxf(ramp, 0.0f), 1.0f);

    return stretched * (1.0f - keep) + kept * keep;
}

void rope_inv_freq(float *out, const struct rope_config *r, int seq_len)
{
    float base = (float)r->theta;
    double low = 0, high = 1;

    if (r->kind == ROPE_DYNAMIC)
        base = dynamic_base(r, seq_len);
    if (r->kind == ROPE_YARN)
        yarn_range(r, &low, &high);
    for (int i = 0; i < r->dim / 2; i++) {
        float freq = 1.0f / period(base, i, r->dim);

        if (r->kind == ROPE_LINEAR)
            freq /= (float)r->factor;
        else if (r->kind == ROPE_LLAMA3)
            freq = llama3_freq(r, freq);
        else if (r->kind == ROPE_YARN)
            freq = yarn_freq(r, i, low, high);
        out[i] = freq;
    }
}

static double yarn_mscale(double factor, double mscale)
{
    return factor <= 1 ? 1 : 0.1 * mscale * log(factor) + 1;
}

float rope_scale(const struct rope_config *r)
{
    if (r->kind != ROPE_YARN)
        return 1.0f;
    if (r->attention_factor > 0)
        return (float)r->attention_factor;
    if (r->mscale > 0 && r->mscale_all_dim > 0)
        return (float)(yarn_mscale(r->factor, r->mscale) /
                       yarn_mscale(r->factor, r->mscale_all_dim));
    return (float)yarn_mscale(r->factor, 1);
}
