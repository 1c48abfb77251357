/*
 * sampler - the arrays of the sample op. See sampler.h.
 */
#include "engine/sampler.h"

#include "base/check.h"
#include "base/clock.h"
#include "engine/request.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

enum {
    DEV_ROWS,
    DEV_BIAS,
    DEV_SEEN,
    DEV_MASK,
    DEV_RESULT,
    DEV_TOP_TOKEN,
    DEV_TOP_LOGPROB,
    DEV_COUNT
};

static size_t mask_words(const struct sampler *s)
{
    return (size_t)SAMPLE_MASK_WORDS(s->params.vocab_size);
}

int sampler_init(struct sampler *s, struct backend *be, const struct sampler_params *params,
                 struct err *err)
{
    size_t n_rows = (size_t)params->max_logits;
    size_t n = n_rows * (size_t)(params->n_phases > 0 ? params->n_phases : 1);
    const size_t bytes[DEV_COUNT] = {
        [DEV_ROWS] = n_rows * sizeof(*s->rows),
        [DEV_BIAS] = (size_t)params->max_bias * sizeof(*s->bias),
        [DEV_SEEN] = (size_t)params->max_seen * sizeof(*s->seen),
        [DEV_MASK] = (size_t)params->max_batch * SAMPLE_MASK_WORDS((size_t)params->vocab_size) *
                     sizeof(*s->mask),
        [DEV_RESULT] = n * sizeof(struct sample_result),
        [DEV_TOP_TOKEN] = n * ENGINE_MAX_TOP * sizeof(int32_t),
        [DEV_TOP_LOGPROB] = n * ENGINE_MAX_TOP * sizeof(float),
    };
    int rc = 0;

    *s = (struct sampler){.params = *params, .be = be};
    s->rows = calloc(1, bytes[DEV_ROWS]);
    s->bias = calloc(1, bytes[DEV_BIAS]);
    s->seen = calloc(1, bytes[DEV_SEEN]);
    s->mask = calloc(1, bytes[DEV_MASK]);
    s->masked = calloc((size_t)params->max_batch, sizeof(*s->masked));
    if (!s->rows || !s->bias || !s->seen || !s->mask || !s->masked)
        rc = err_set(err, ERR_NO_ROOM, "sampler: no memory for %d rows", params->max_logits);
    for (int i = 0; i < DEV_COUNT && rc == 0; i++)
        rc = be->ops->alloc(be, &s->device[i], bytes[i], err);
    if (rc < 0)
        sampler_release(s);
    return rc;
}

void sampler_release(struct sampler *s)
{
    if (!s || !s->be)
        return;
    for (int i = 0; i < DEV_COUNT; i++)
        s->be->ops->free(s->be, s->device[i]);
    free(s->rows);
    free(s->bias);
    free(s->seen);
    free(s->mask);
    free(s->masked);
    *s = (struct sampler){0};
}

int sampler_results_init(struct sampler_results *r, struct backend *be, int n, struct err *err)
{
    size_t n_tops = (size_t)n * ENGINE_MAX_TOP;
    void *result = NULL, *top_token = NULL, *top_logprob = NULL;
    int rc = be->ops->host_alloc(be, &result, (size_t)n * sizeof(*r->result), err);

    if (rc == 0)
        rc = be->ops->host_alloc(be, &top_token, n_tops * sizeof(*r->top_token), err);
    if (rc == 0)
        rc = be->ops->host_alloc(be, &top_logprob, n_tops * sizeof(*r->top_logprob), err);
    *r = (struct sampler_results){
        .result = result, .top_token = top_token, .top_logprob = top_logprob, .be = be};
    if (rc < 0)
        sampler_results_release(r);
    return rc;
}

void sampler_results_release(struct sampler_results *r)
{
    if (!r || !r->be)
        return;
    r->be->ops->host_free(r->be, r->result);
    r->be->ops->host_free(r->be, r->top_token);
    r->be->ops->host_free(r->be, r->top_logprob);
    *r = (struct sampler_results){0};
}

void sampler_begin(struct sampler *s)
{
    s->n_rows = s->n_bias = s->n_seen = s->n_masks = s->max_top = 0;
}

static struct sample_row *add_row(struct sampler *s, int n_top)
{
    CHECK(s->n_rows < s->params.max_logits);
    if (n_top > s->max_top)
        s->max_top = n_top;
    return &s->rows[s->n_rows++];
}

/* The row of the mask that r's filter comes to, counted from 1; 0 without a filter. */
static int32_t add_mask(struct sampler *s, struct request *r)
{
    if (!token_filter_is_active(&r->filter))
        return 0;
    CHECK(s->n_masks < s->params.max_batch);
    s->masked[s->n_masks] = r;
    return ++s->n_masks;
}

/* Copies n biases; where they lie. */
static int32_t add_biases(struct sampler *s, const struct sample_bias *bias, int n)
{
    int32_t at = s->n_bias;

    CHECK(s->n_bias + n <= s->params.max_bias);
    if (n)
        memcpy(&s->bias[at], bias, (size_t)n * sizeof(*bias));
    s->n_bias += n;
    return at;
}

/* A row that draws for positions first to end - 1. */
static struct sample_row *add_draws(struct sampler *s, struct request *r, int64_t first,
                                    int64_t end)
{
    const struct sampling_params *p = &r->sampling;
    int64_t min_end = (int64_t)r->seq.n_prompt + p->min_tokens;
    bool early = first<min_end, late = end> min_end;
    struct sample_row *row = add_row(s, p->n_logprobs);

    CHECK(s->n_seen + r->counts.n_rows <= s->params.max_seen);
    *row = (struct sample_row){.temperature = p->temperature,
                               .top_p = p->top_p,
                               .min_p = p->min_p,
                               .repetition_penalty = p->repetition_penalty,
                               .presence_penalty = p->presence_penalty,
                               .frequency_penalty = p->frequency_penalty,
                               .top_k = p->top_k,
                               .seed = p->seed,
                               .sample_idx = p->sample_idx,
                               .position = first,
                               .forced_token = -1,
                               .n_top = p->n_logprobs,
                               .n_bias = late ? r->n_bias : 0,
                               .n_bias_min = early ? r->n_bias_min : 0,
                               .min_end = min_end,
                               .seen_at = s->n_seen,
                               .n_seen = r->counts.n_rows,
                               .mask = add_mask(s, r),
                               .slot = r->seq.slot};
    row->bias_at = add_biases(s, r->bias, row->n_bias);
    row->bias_min_at = add_biases(s, r->bias_min, row->n_bias_min);
    if (r->counts.n_rows)
        memcpy(&s->seen[s->n_seen], r->counts.rows, (size_t)r->counts.n_rows * sizeof(*s->seen));
    s->n_seen += r->counts.n_rows;
    return row;
}

void sampler_add_draw(struct sampler *s, struct request *r)
{
    int64_t at = sched_seq_len(&r->seq);

    add_draws(s, r, at, at + 1);
}

void sampler_add_block(struct sampler *s, struct request *r, int64_t position, int first, int end)
{
    struct sample_row *row = add_draws(s, r, position + first, position + end);

    row->position = position;
    row->first_phase = first;
    row->end_phase = end > 0 ? end : 1; /* first may be end: then nothing is drawn */
}

void sampler_pad(struct sampler *s, int n)
{
    while (s->n_rows < n)
        *add_row(s, -1) = (struct sample_row){.first_phase = INT32_MAX, .n_top = -1, .slot = -1};
}

void sampler_add_prompt(struct sampler *s, const struct request *r, int32_t pos)
{
    int n_top = r->sampling.n_prompt_logprobs;

    CHECK(pos >= 0);
    CHECK(pos < r->seq.n_prompt);
    *add_row(s, n_top) = (struct sample_row){.temperature = 1.0f,
                                             .top_p = 1.0f,
                                             .repetition_penalty = 1.0f,
                                             .position = pos,
                                             .forced_token = r->tokens[pos],
                                             .n_top = n_top,
                                             .seen_at = s->n_seen,
                                             .slot = -1};
}

void sampler_fill_masks(struct sampler *s)
{
    int64_t t0 = s->n_masks ? clock_ns() : 0;

    for (int i = 0; i < s->n_masks; i++) {
        struct request *r = s->masked[i];

        r->has_choice =
            token_filter_fill(&r->filter, &r->tokens[r->seq.n_prompt], request_n_generated(r),
                              s->mask + (size_t)i * mask_words(s));
    }
    if (s->n_masks)
        s->mask_ns += clock_ns() - t0;
}

static int upload(struct sampler *s, int which, const void *host, size_t bytes, struct err *err)
{
    return bytes ? s->be->ops->upload(s->be, s->device[which], host, bytes, err) : 0;
}

static int fetch(struct sampler *s, void *host, int which, size_t bytes, struct err *err)
{
    return s->be->ops->fetch(s->be, host, s->device[which], bytes, err);
}

int sampler_upload(struct sampler *s, struct err *err)
{
    int rc = upload(s, DEV_ROWS, s->rows, (size_t)s->n_rows * sizeof(*s->rows), err);

    if (rc == 0)
        rc = upload(s, DEV_BIAS, s->bias, (size_t)s->n_bias * sizeof(*s->bias), err);
    if (rc == 0)
        rc = upload(s, DEV_SEEN, s->seen, (size_t)s->n_seen * sizeof(*s->seen), err);
    if (rc == 0)
        rc = upload(s, DEV_MASK, s->mask, (size_t)s->n_masks * mask_words(s) * sizeof(*s->mask),
                    err);
    return rc;
}

int sampler_draw(struct sampler *s, const struct sampler_part *part, struct err *err)
{
    int64_t at = (int64_t)part->phase * s->n_rows + part->first;
    struct sample_args args = {.n_rows = part->n,
                               .vocab_size = s->params.vocab_size,
                               .max_top = s->max_top,
                               .logits = part->logits,
                               .rows = (const struct sample_row *)s->device[DEV_ROWS] + part->first,
                               .bias = s->device[DEV_BIAS],
                               .seen = s->device[DEV_SEEN],
                               .mask = s->device[DEV_MASK],
                               .phase = part->phase,
                               .result = (struct sample_result *)s->device[DEV_RESULT] + at,
                               .slot_token = part->slot_token,
                               .slot_stride = part->slot_stride,
                               .top_token = (int32_t *)s->device[DEV_TOP_TOKEN] + at * s->max_top,
                               .top_logprob =
                                   (float *)s->device[DEV_TOP_LOGPROB] + at * s->max_top};

    CHECK(part->first + part->n <= s->n_rows);
    return part->n > 0 ? s->be->ops->sample(s->be, &args, err) : 0;
}

int sampler_fetch(struct sampler *s, int n_phases, struct sampler_results *out, struct err *err)
{
    size_t n = (size_t)s->n_rows * (size_t)n_phases, n_top = n * (size_t)s->max_top;
    int rc = fetch(s, out->result, DEV_RESULT, n * sizeof(*out->result), err);

    out->n_rows = s->n_rows;
    out->n_phases = n_phases;
    out->max_top = s->max_top;
    if (rc == 0 && n_top)
        rc = fetch(s, out->top_token, DEV_TOP_TOKEN, n_top * sizeof(*out->top_token), err);
    if (rc == 0 && n_top)
        rc = fetch(s, out->top_logprob, DEV_TOP_LOGPROB, n_top * sizeof(*out->top_logprob), err);
    return rc;
}

int sampler_run(struct sampler *s, float *logits, int32_t *slot_token, struct sampler_results *out,
                struct err *err)
{
    struct sampler_part part = {.n = s->n_rows, .logits = logits, .slot_token = slot_token};
    int rc = sampler_upload(s, err);

    if (rc == 0)
        rc = sampler_draw(s, &part, err);
    return rc < 0 ? rc : sampler_fetch(s, 1, out, err);
}

void sampler_token(const struct sampler_results *r, int phase, int i, int n_top,
                   struct engine_token *out)
{
    size_t row = (size_t)phase * r->n_rows + i, at = row * r->max_top;

    CHECK(i < r->n_rows);
    CHECK(phase < r->n_phases);
    CHECK(n_top <= r->max_top || n_top <= 0);
    out->id = r->result[row].token;
    out->logprob = n_top < 0 ? NAN : r->result[row].logprob;
    out->n_top = out->text_at = out->text_len = 0;
    for (int k = 0; k < n_top && r->top_token[at + k] >= 0; k++) {
        out->top_id[k] = r->top_token[at + k];
        out->top_logprob[k] = r->top_logprob[at + k];
        out->n_top++;
    }
}
