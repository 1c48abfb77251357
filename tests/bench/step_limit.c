/*
 * step_limit - bytes and FLOPs of a model's tokens. See step_limit.h.
 */
#include "tests/bench/step_limit.h"

#include "engine/model/stack_config.h"

#include <stdlib.h>

/* What the plan leaves of a sequence. */
struct shape_of {
    struct kv_geom *geom;
    int32_t *window;
    int n_heads;
};

static struct shape_of shape_new(const struct engine *e, int n)
{
    const struct kv_shape *shape = &e->env.shape;
    struct shape_of s = {.n_heads = kv_shape_heads(shape)};

    s.geom = calloc((size_t)s.n_heads, sizeof(*s.geom));
    s.window = calloc((size_t)shape->n_layers * shape->n_heads, sizeof(*s.window));
    if (!s.geom || !s.window)
        abort();
    plan_geometry(e->plan, step_limit_entries(e, n), s.geom, s.window);
    return s;
}

static void shape_free(struct shape_of *s)
{
    free(s->geom);
    free(s->window);
}

int step_limit_entries(const struct engine *e, int n)
{
    return e->env.block ? block_config_entries(e->env.block, 0, n) : n;
}

int step_limit_entry_tokens(const struct engine *e)
{
    return e->env.block ? e->env.block->block_len : 1;
}

/* Keys of one KV head that some query head of its group sees from position pos. */
static int64_t keys_seen(struct kv_geom g, const int32_t *windows, int n_group, int pos)
{
    int64_t kept = kv_geom_keys_read(g, pos), widest = 0, seen;

    for (int i = 0; i < n_group; i++)
        widest = windows[i] > widest ? windows[i] : widest;
    seen = g.n_sink + widest;
    return kept < seen ? kept : seen;
}

/* What a token reads of its block's slab: the prefixes, and the tokens before it. */
static double slab_bytes(const struct engine *e)
{
    const struct block_config *b = e->env.block;
    double keys = b ? b->n_prefix + (b->block_len - 1) / 2.0 : 0;

    return b ? keys * 2 * b->token.n_layers * b->token.n_kv_heads * b->token.head_dim *
                   (double)dtype_bytes(e->be->act_dtype)
             : 0;
}

double step_limit_kv_bytes(const struct engine *e, int n, int pos)
{
    const struct kv_shape *shape = &e->env.shape;
    struct shape_of s = shape_new(e, n);
    int n_group = shape->n_heads / shape->n_kv_heads;
    double keys = 0;

    for (int i = 0; i < s.n_heads; i++)
        keys += (double)keys_seen(s.geom[i], &s.window[i * n_group], n_group,
                                  pos / step_limit_entry_tokens(e));
    shape_free(&s);
    keys /= step_limit_entry_tokens(e);
    return keys * 2 * shape->head_dim * (double)dtype_bytes(shape->dtype) + slab_bytes(e);
}

/* Weights of the token decoder's layers. */
static void token_params(const struct engine *e, int64_t *matrices, int64_t *vectors)
{
    stack_config_params(&e->model_config.block.token, matrices, vectors);
}

/* A Block Transformer's: the token decoder and the head, and a block's share of the rest. */
static double block_weight_bytes(const struct engine *e)
{
    const struct model_config *mc = &e->model_config;
    const struct block_config *b = &mc->block;
    double esize = (double)dtype_bytes(e->env.shape.dtype), vocab = mc->vocab_size;
    double once = vocab * (b->embed_dim + (mc->tie_embeddings ? 0 : b->token.dim)) * esize;
    int64_t matrices, vectors;
    double token;

    token_params(e, &matrices, &vectors);
    token = (double)matrices * esize + (double)vectors * sizeof(float);
    token += vocab * b->token.dim * esize;
    return token + ((double)e->info.weight_bytes - token - once) / b->block_len;
}

double step_limit_weight_bytes(const struct engine *e)
{
    const struct model_config *mc = &e->model_config;
    double table = (double)mc->vocab_size * mc->stack.dim * (double)dtype_bytes(e->env.shape.dtype);

    if (e->env.block)
        return block_weight_bytes(e);
    return (double)e->info.weight_bytes - (mc->tie_embeddings ? 0 : table);
}

/* Of a row of the layers; of a Block Transformer the block decoder's, its projection included. */
static double stack_flops(const struct engine *e)
{
    const struct model_config *mc = &e->model_config;
    int64_t matrices, vectors;
    double flops;

    stack_config_params(&mc->stack, &matrices, &vectors);
    flops = 2.0 * (double)matrices;
    if (e->env.block && mc->block.projects)
        flops += 2.0 * mc->stack.dim * mc->block.block_len * mc->block.embed_dim;
    return flops;
}

double step_limit_flops(const struct engine *e)
{
    const struct model_config *mc = &e->model_config;
    const struct block_config *b = &mc->block;
    int64_t matrices, vectors;
    double once;

    if (!e->env.block)
        return stack_flops(e) + 2.0 * mc->vocab_size * mc->stack.dim;
    token_params(e, &matrices, &vectors);
    /* Once a block: the block decoder, the expansion, and a row more for every prefix but one. */
    once = stack_flops(e) + 2.0 * b->n_prefix * b->token.dim * mc->stack.dim +
           (b->n_prefix - 1) * 2.0 * (double)matrices;
    return 2.0 * (double)matrices + 2.0 * mc->vocab_size * b->token.dim + once / b->block_len;
}

double step_limit_prompt_flops(const struct engine *e)
{
    return stack_flops(e) / step_limit_entry_tokens(e);
}

struct step_limit_sample step_limit_sample(const struct engine *e, int n)
{
    const struct kv_shape *shape = &e->env.shape;
    struct shape_of s = shape_new(e, n);
    struct step_limit_sample sample = {0};
    int entries = step_limit_entries(e, n);
    struct kv_need need;

    kv_need_init(&need, shape, s.geom, s.window, entries);
    sample.page_bytes = (double)need.n_pages_limit * (double)kv_page_bytes(shape);
    for (int i = 0; i < s.n_heads; i++)
        sample.exact_bytes += (double)kv_geom_keys_read(s.geom[i], entries - 1) * 2 *
                              shape->head_dim * (double)dtype_bytes(shape->dtype);
    shape_free(&s);
    return sample;
}

int step_limit_batch(const struct engine *e, int n)
{
    double one = step_limit_sample(e, n).page_bytes / (double)kv_page_bytes(&e->env.shape);
    double most = (double)e->info.n_pages / one;

    return most < e->info.max_batch ? (int)most : e->info.max_batch;
}
