/*
 * test_block_run - drives model_forward_blocks. See test_block_run.h.
 */
#include "tests/lib/test_block_run.h"

#include "base/err.h"

#include <stdlib.h>
#include <string.h>

/* One sequence under way. */
struct run {
    struct test_model *t;
    const struct block_config *c;
    int32_t *virt; /* [n_virt] lead and tokens */
    int n_virt, lead;
    float *logits;
    void *device[8]; /* this step's arrays */
    int n_device, rc;
    struct err *err;
};

static int32_t *put(struct run *r, const int32_t *host, int n)
{
    void *p = NULL;
    const struct backend_ops *ops = r->t->be->ops;

    if (r->rc == 0)
        r->rc = ops->alloc(r->t->be, &p, (size_t)(n ? n : 1) * sizeof(*host), r->err);
    if (r->rc == 0)
        r->rc = ops->upload(r->t->be, p, host, (size_t)n * sizeof(*host), r->err);
    r->device[r->n_device++] = p;
    return p;
}

static void forward(struct run *r, const struct block_step *step)
{
    const struct backend_ops *ops = r->t->be->ops;
    const struct step_batch *b = step->tokens.n_rows ? &step->tokens : &step->blocks;

    if (r->rc == 0)
        r->rc = ops->step_begin(r->t->be, b, r->err);
    if (r->rc == 0)
        r->rc = model_forward_blocks(r->t->model, step, &r->t->kv, r->err);
    if (r->rc == 0)
        r->rc = ops->step_end(r->t->be, r->err);
}

/* The logits of item i predict the virtual token of its block at `phase`. */
static void take_logits(struct run *r, int first_block, int n_items, int phase)
{
    size_t row = (size_t)r->t->cfg.vocab_size;
    float *got = calloc((size_t)n_items * row, sizeof(*got));

    if (r->rc == 0)
        r->rc = r->t->be->ops->download(r->t->be, got, model_logits(r->t->model),
                                        (size_t)n_items * row * sizeof(*got), r->err);
    for (int i = 0; i < n_items && r->rc == 0; i++) {
        int at = (first_block + i) * r->c->block_len + phase;

        if (at <= r->n_virt)
            memcpy(r->logits + (size_t)(at - r->lead) * row, got + (size_t)i * row,
                   row * sizeof(*got));
    }
    free(got);
}

static void release_step(struct run *r)
{
    for (int i = 0; i < r->n_device; i++)
        r->t->be->ops->free(r->t->be, r->device[i]);
    r->n_device = 0;
}

/* Rows of the token decoder: n_items blocks at `phase`. Items sit in the slab from its end on. */
static void put_tokens(struct run *r, struct step_batch *b, int first_block, int n_items, int phase)
{
    int per = phase == 0 ? r->c->n_prefix : 1, n = n_items * per;
    int32_t *a = calloc(5 * (size_t)n, sizeof(*a));

    for (int i = 0; i < n; i++) {
        int item = i / per, pos = phase == 0 ? i % per : r->c->n_prefix + phase - 1;
        int at = (first_block + item) * r->c->block_len + phase - 1;

        a[i] = phase > 0 && at < r->n_virt ? r->virt[at] : 0;
        a[n + i] = pos;
        a[2 * n + i] = r->t->params.max_items - 1 - item;
        a[3 * n + i] = !r->c->shares_prefix_pos ? pos : phase == 0 ? 0 : phase;
        a[4 * n + i] = i * per + per - 1; /* the first n_items of them */
    }
    *b = (struct step_batch){.n_rows = n, .n_decode = n, .n_logits = n_items};
    b->token = put(r, a, 5 * n);
    b->pos = b->token + n;
    b->slot = b->token + 2 * n;
    b->rope_pos = b->token + 3 * n;
    b->logit_row = b->token + 4 * n;
    free(a);
}

/* Blocks first .. first + n - 1 through the block decoder; what follows each of them. */
static void run_blocks(struct run *r, int first, int n, bool decode)
{
    int len = r->c->block_len;
    int32_t *a = calloc(3 * (size_t)n, sizeof(*a));
    struct step_chunk chunk = {.n_rows = n, .pos0 = first};
    struct block_step step = {.from_context = true, .n_items = n};
    int32_t *dev;

    for (int i = 0; i < n; i++) {
        a[i] = first + i;
        a[n + i] = 0;
        a[2 * n + i] = i;
    }
    dev = put(r, a, 3 * n);
    step.blocks = (struct step_batch){.n_rows = n,
                                      .n_decode = decode ? n : 0,
                                      .n_chunks = decode ? 0 : 1,
                                      .pos = dev,
                                      .slot = dev + n};
    step.context_row = dev + 2 * n;
    step.blocks.chunks = (void *)put(r, (int32_t *)&chunk, sizeof(chunk) / sizeof(int32_t));
    step.block_token = put(r, r->virt + (size_t)first * len, n * len);
    put_tokens(r, &step.tokens, first + 1, n, 0);
    forward(r, &step);
    take_logits(r, first + 1, n, 0);
    release_step(r);
    for (int phase = 1; phase < len && r->rc == 0; phase++) {
        struct block_step next = {.n_items = n};

        put_tokens(r, &next.tokens, first + 1, n, phase);
        forward(r, &next);
        take_logits(r, first + 1, n, phase);
        release_step(r);
    }
    free(a);
}

int test_block_sequence(struct test_model *t, const int32_t *tokens, int n, int n_prompt,
                        float *logits, struct err *err)
{
    struct run r = {.t = t, .c = &t->cfg.block, .logits = logits, .err = err};
    int n_prompt_blocks;

    r.lead = block_config_lead(r.c, n_prompt);
    r.n_virt = r.lead + n;
    r.virt = calloc((size_t)r.n_virt + 1, sizeof(*r.virt));
    for (int i = 0; i < r.n_virt; i++)
        r.virt[i] = i < r.lead ? r.c->start_id : tokens[i - r.lead];
    n_prompt_blocks = (r.lead + n_prompt) / r.c->block_len;
    run_blocks(&r, 0, n_prompt_blocks, false);
    for (int b = n_prompt_blocks; b < r.n_virt / r.c->block_len && r.rc == 0; b++)
        run_blocks(&r, b, 1, true);
    free(r.virt);
    return r.rc;
}
