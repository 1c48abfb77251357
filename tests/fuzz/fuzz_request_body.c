/*
 * fuzz_request_body - any bytes as the body of any POST: refused with a complete error object, or
 * parameters within their bounds.
 *
 * Input: the first byte chooses the endpoint, the rest is the body.
 */
#include "base/arena.h"
#include "base/check.h"
#include "base/strbuf.h"
#include "server/api_error.h"
#include "server/json_in.h"
#include "server/openai_params.h"

#include <stddef.h>
#include <stdint.h>
#include <string.h>

#define ARENA_BYTES (1 << 20)

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

static const struct openai_limits limits = {
    .model_id = "m",
    .vocab_size = 1000,
    .max_seq_len = 4096,
    .max_prompts = 8,
    .max_choices = 16,
    .max_logprobs = 20,
    .json_depth = 32,
    .temperature = 1,
    .top_p = 1,
    .repetition_penalty = 1,
};

/* The engine's, which is not linked: the values do not matter here. */
void sampling_params_init(struct sampling_params *p)
{
    *p = (struct sampling_params){.temperature = 1,
                                  .top_p = 1,
                                  .repetition_penalty = 1,
                                  .n_logprobs = -1,
                                  .n_prompt_logprobs = -1};
}

static void check_ids(const int32_t *ids, int n)
{
    for (int i = 0; i < n; i++) {
        CHECK(ids[i] >= 0);
        CHECK(ids[i] < limits.vocab_size);
    }
}

static void check_params(const struct openai_params *p)
{
    const struct sampling_params *s = &p->sampling;

    CHECK(s->temperature >= 0);
    CHECK(s->temperature <= 2);
    CHECK(s->top_p >= 0);
    CHECK(s->top_p <= 1);
    CHECK(s->top_k >= 0);
    CHECK(s->n_stop <= OPENAI_MAX_STOPS);
    CHECK(s->n_stop_ids <= ENGINE_MAX_STOP_IDS);
    CHECK(s->n_logprobs <= ENGINE_MAX_TOP);
    CHECK(s->n_prompt_logprobs <= ENGINE_MAX_TOP);
    CHECK(p->n >= 1);
    CHECK(p->n_prompts <= limits.max_prompts);
    CHECK((int64_t)p->n * p->n_prompts <= limits.max_choices);
    CHECK(p->max_tokens >= -1);
    CHECK(p->max_tokens < 0 || s->min_tokens <= p->max_tokens);
    for (int i = 0; i < s->n_stop; i++)
        CHECK(s->stop[i][0] != '\0');
    for (int i = 0; i < s->n_bias; i++)
        CHECK(s->bias[i].token < limits.vocab_size);
    check_ids(s->stop_ids, s->n_stop_ids);
    check_ids(p->tokens, p->n_tokens);
    for (int i = 0; i < p->n_prompts; i++)
        check_ids(p->prompts[i].ids, p->prompts[i].n_ids);
    for (int i = 0; i < p->n_messages; i++)
        CHECK(strlen(p->messages[i].content) == p->messages[i].content_len);
}

static void check_error(const struct api_error *e)
{
    struct strbuf out = STRBUF_INIT;
    struct api_error again = {0};
    json_t *root;

    CHECK(e->status == 400 || e->status == 404);
    api_error_write(e, &out);
    CHECK(json_in_parse(&root, out.buf, out.len, 8, &again) == 0);
    CHECK(json_object_size(json_object_get(root, "error")) == 4);
    json_decref(root);
    strbuf_release(&out);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    struct openai_params params;
    struct api_error e = {0};
    struct arena arena;
    json_t *root = NULL;
    int rc;

    if (size == 0)
        return 0;
    arena_init(&arena, ARENA_BYTES, 0);
    rc = json_in_parse(&root, (const char *)data + 1, size - 1, limits.json_depth, &e);
    if (rc == 0)
        rc = openai_params_read(&params, (enum openai_api)(1u << (data[0] & 3)), root, &limits,
                                &arena, &e);
    if (rc == 0)
        check_params(&params);
    else
        check_error(&e);
    json_decref(root);
    arena_release(&arena);
    return 0;
}
