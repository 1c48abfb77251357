/*
 * weight_list - which tensors make which weight, and how they get onto the backend.
 *
 * The architecture is written down once, as a list of (weight, tensor names, shape); checking the
 * files, loading them and drawing random weights walk that list. All tensors are checked before the
 * first is loaded, so a bad file costs no minutes. Loading is engine-thread work.
 */
#include "base/err.h"
#include "base/hashmap.h"
#include "engine/model/model_impl.h"
#include "engine/model/safetensors.h"
#include "engine/model/weights_dir.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define MAX_PARTS       3  /* q, k, v */
#define MAX_LAYER_ITEMS 14 /* members of struct stack_layer */
#define MAX_OUTER_ITEMS 12 /* tables, heads, last norms, what is between two decoders */
#define MAX_TENSOR_NAME 96

/* One weight of the model and the tensors that are stacked to make it. */
struct item {
    struct weight *w;
    bool is_matrix; /* else a vector: n_in 1, one dimension in the file, f32 on the backend */
    bool is_gain;   /* random weights: ones */
    int n_parts, n_in;
    int n_heads; /* > 0: the tensor's rows are q, k, v of head 0, of head 1 ..; wanted: all q, .. */
    int kernel;  /* > 0: a convolution's [n_out, n_in / kernel, kernel]; wanted: kernel outside */
    int n_out[MAX_PARTS];
    char name[MAX_PARTS][MAX_TENSOR_NAME];
    const struct safetensors_tensor *tensor[MAX_PARTS];
};

struct list {
    struct item *items; /* [n_items] */
    int n_items, n_alloc;
    const char *dir;    /* for messages */
    const char *prefix; /* "model.", "gpt_neox.", or "" for files of the bare decoder */
    const char *head;   /* the tensor of the output layer */
};

static struct item *add(struct list *l, struct weight *w, int n_in)
{
    struct item *it = &l->items[l->n_items++];

    it->w = w;
    it->n_in = n_in;
    it->is_matrix = true;
    return it;
}

static void add_part(struct item *it, int n_out, const char *prefix, const char *name)
{
    it->n_out[it->n_parts] = n_out;
    snprintf(it->name[it->n_parts], MAX_TENSOR_NAME, "%s%s", prefix, name);
    it->n_parts++;
}

static struct item *add_vector(struct list *l, struct weight *w)
{
    struct item *it = add(l, w, 1);

    it->is_matrix = false;
    return it;
}

static void add_gain(struct list *l, struct weight *w, int n, const char *prefix, const char *name)
{
    struct item *it = add_vector(l, w);

    it->is_gain = true;
    add_part(it, n, prefix, name);
}

static void add_bias(struct list *l, struct weight *w, int n, const char *prefix, const char *name)
{
    add_part(add_vector(l, w), n, prefix, name);
}

static void list_llama_layer(struct list *l, struct stack *s, int layer_idx, const char *p)
{
    const struct stack_config *c = &s->cfg;
    struct stack_layer *y = &s->layers[layer_idx];
    int q = c->n_heads * c->head_dim, kv = c->n_kv_heads * c->head_dim;
    struct item *it;

    add_gain(l, &y->attn_norm, c->dim, p, "input_layernorm.weight");
    it = add(l, &y->wqkv, c->dim);
    add_part(it, q, p, "self_attn.q_proj.weight");
    add_part(it, kv, p, "self_attn.k_proj.weight");
    add_part(it, kv, p, "self_attn.v_proj.weight");
    if (c->qkv_bias) {
        it = add_vector(l, &y->bqkv);
        add_part(it, q, p, "self_attn.q_proj.bias");
        add_part(it, kv, p, "self_attn.k_proj.bias");
        add_part(it, kv, p, "self_attn.v_proj.bias");
    }
    if (c->qk_norm) {
        add_gain(l, &y->q_norm, c->head_dim, p, "self_attn.q_norm.weight");
        add_gain(l, &y->k_norm, c->head_dim, p, "self_attn.k_norm.weight");
    }
    add_part(add(l, &y->wo, q), c->dim, p, "self_attn.o_proj.weight");
    if (c->o_bias)
        add_bias(l, &y->bo, c->dim, p, "self_attn.o_proj.bias");
    add_gain(l, &y->ffn_norm, c->dim, p, "post_attention_layernorm.weight");
    it = add(l, &y->w_in, c->dim);
    add_part(it, c->ffn_dim, p, "mlp.gate_proj.weight");
    add_part(it, c->ffn_dim, p, "mlp.up_proj.weight");
    add_part(add(l, &y->w_down, c->ffn_dim), c->dim, p, "mlp.down_proj.weight");
    if (c->ffn_bias) {
        it = add_vector(l, &y->b_in);
        add_part(it, c->ffn_dim, p, "mlp.gate_proj.bias");
        add_part(it, c->ffn_dim, p, "mlp.up_proj.bias");
        add_bias(l, &y->b_down, c->dim, p, "mlp.down_proj.bias");
    }
}

static void list_neox_layer(struct list *l, struct stack *s, int layer_idx, const char *p)
{
    const struct stack_config *c = &s->cfg;
    struct stack_layer *y = &s->layers[layer_idx];
    int q = c->n_heads * c->head_dim;
    struct item *it;

    add_gain(l, &y->attn_norm, c->dim, p, "input_layernorm.weight");
    add_bias(l, &y->attn_norm_bias, c->dim, p, "input_layernorm.bias");
    it = add(l, &y->wqkv, c->dim);
    it->n_heads = c->n_heads;
    add_part(it, 3 * q, p, "attention.query_key_value.weight");
    if (c->qkv_bias) {
        it = add_vector(l, &y->bqkv);
        it->n_heads = c->n_heads;
        add_part(it, 3 * q, p, "attention.query_key_value.bias");
    }
    add_part(add(l, &y->wo, q), c->dim, p, "attention.dense.weight");
    if (c->o_bias)
        add_bias(l, &y->bo, c->dim, p, "attention.dense.bias");
    add_gain(l, &y->ffn_norm, c->dim, p, "post_attention_layernorm.weight");
    add_bias(l, &y->ffn_norm_bias, c->dim, p, "post_attention_layernorm.bias");
    add_part(add(l, &y->w_in, c->dim), c->ffn_dim, p, "mlp.dense_h_to_4h.weight");
    add_bias(l, &y->b_in, c->ffn_dim, p, "mlp.dense_h_to_4h.bias");
    add_part(add(l, &y->w_down, c->ffn_dim), c->dim, p, "mlp.dense_4h_to_h.weight");
    add_bias(l, &y->b_down, c->dim, p, "mlp.dense_4h_to_h.bias");
}

/* The layers and the norm behind them. */
static void list_stack(struct list *l, struct stack *s, const char *prefix)
{
    const struct stack_config *c = &s->cfg;

    for (int i = 0; i < c->n_layers; i++) {
        char p[48];

        snprintf(p, sizeof(p), "%slayers.%d.", prefix, i);
        if (c->kind == STACK_NEOX)
            list_neox_layer(l, s, i, p);
        else
            list_llama_layer(l, s, i, p);
    }
    if (c->kind == STACK_NEOX) {
        add_gain(l, &s->norm, c->dim, prefix, "final_layer_norm.weight");
        add_bias(l, &s->norm_bias, c->dim, prefix, "final_layer_norm.bias");
    } else {
        add_gain(l, &s->norm, c->dim, prefix, "norm.weight");
    }
}

/* embed_name is the tensor of the table: the head's where a tied file has only that. */
static void list_model(struct list *l, struct model *m, const char *embed_name)
{
    int dim = m->cfg.stack.dim;

    add_part(add(l, &m->embed, dim), m->cfg.vocab_size, "", embed_name);
    if (!m->cfg.tie_embeddings)
        add_part(add(l, &m->head, dim), m->cfg.vocab_size, "", l->head);
    list_stack(l, &m->stack, l->prefix);
}

/* A Block Transformer; embed_name is the token decoder's table. */
static void list_block_model(struct list *l, struct model *m, const char *embed_name)
{
    const struct block_config *b = &m->cfg.block;
    struct block_parts *parts = &m->block;
    int dim = m->cfg.stack.dim, wide = b->n_prefix * b->token.dim;
    bool neox = b->token.kind == STACK_NEOX;
    struct item *it;

    add_part(add(l, &m->embed, b->embed_dim), m->cfg.vocab_size, "", "embedder.embeddings.weight");
    if (b->projects) {
        it = add(l, &parts->proj, b->block_len * b->embed_dim);
        it->kernel = b->block_len;
        add_part(it, dim, "", "embedder.projection_layer.weight");
        add_bias(l, &parts->proj_bias, dim, "", "embedder.projection_layer.bias");
    }
    list_stack(l, &m->stack, neox ? "block_decoder.gpt_neox." : "block_decoder.model.");
    it = add(l, &parts->expand, dim);
    it->kernel = 1;
    add_part(it, wide, "", "token_decoder.expansion_layer.weight");
    add_bias(l, &parts->expand_bias, wide, "", "token_decoder.expansion_layer.bias");
    add_part(add(l, &parts->token_embed, b->token.dim), m->cfg.vocab_size, "", embed_name);
    if (!m->cfg.tie_embeddings)
        add_part(add(l, &m->head, b->token.dim), m->cfg.vocab_size, "", l->head);
    list_stack(l, &parts->token, l->prefix);
}

static void describe_shape(char *buf, size_t size, const struct safetensors_tensor *t)
{
    size_t at = 0;

    buf[0] = '\0';
    for (int i = 0; i < t->n_dims && at < size; i++)
        at += snprintf(buf + at, size - at, "%s%lld", i ? "," : "", (long long)t->shape[i]);
}

/* The shape that the tensor of a part must have; returns its number of dimensions. */
static int wanted_shape(const struct item *it, int part, int64_t shape[3])
{
    shape[0] = it->n_out[part];
    shape[1] = it->kernel ? it->n_in / it->kernel : it->n_in;
    shape[2] = it->kernel;
    return !it->is_matrix ? 1 : it->kernel ? 3 : 2;
}

static bool has_shape(const struct item *it, int part, const struct safetensors_tensor *t)
{
    int64_t shape[3];
    int n_dims = wanted_shape(it, part, shape);

    if (it->kernel == 1 && t->n_dims == 2)
        n_dims = 2; /* a product, and written as one */
    for (int i = 0; i < n_dims && i < t->n_dims; i++) {
        if (t->shape[i] != shape[i])
            return false;
    }
    return t->n_dims == n_dims;
}

/* Finds the tensor of one part and checks type and shape. */
static int resolve_part(const struct list *l, const struct model *m, struct item *it, int part,
                        struct err *err)
{
    const struct safetensors_tensor *t = weights_dir_find(m->files, it->name[part]);
    struct safetensors_tensor want = {0};
    char found[96], wanted[96];

    if (!t)
        return err_set(err, ERR_PARSE, "%s: tensor %s: missing", l->dir, it->name[part]);
    if (!t->is_weight)
        return err_set(err, ERR_UNSUPPORTED, "%s: tensor %s: dtype is %s, want BF16, F16 or F32",
                       weights_dir_file_of(m->files, t), t->name, t->dtype_name);
    if (!has_shape(it, part, t)) {
        want.n_dims = wanted_shape(it, part, want.shape);
        describe_shape(found, sizeof(found), t);
        describe_shape(wanted, sizeof(wanted), &want);
        return err_set(err, ERR_PARSE, "%s: tensor %s: shape [%s], want [%s]",
                       weights_dir_file_of(m->files, t), t->name, found, wanted);
    }
    it->tensor[part] = t;
    return 0;
}

/* Buffers that old files carry and that are computed here. */
static bool is_known_buffer(const char *name)
{
    static const char *const ends[] = {"rotary_emb.inv_freq", "rotary_emb.cos_cached",
                                       "rotary_emb.sin_cached", ".attention.bias",
                                       ".attention.masked_bias"};
    size_t n = strlen(name);

    for (size_t i = 0; i < sizeof(ends) / sizeof(ends[0]); i++) {
        size_t k = strlen(ends[i]);

        if (n >= k && strcmp(name + n - k, ends[i]) == 0)
            return true;
    }
    return false;
}

static bool is_block_table(const char *name)
{
    return strcmp(name, "block_decoder.gpt_neox.embed_in.weight") == 0 ||
           strcmp(name, "block_decoder.model.embed_tokens.weight") == 0;
}

/* Counts the tensors that no item took. */
static int count_unused(struct model *m, const struct list *l, struct err *err)
{
    struct strmap used;
    int rc = 0;

    strmap_init(&used);
    for (int i = 0; i < l->n_items; i++) {
        for (int p = 0; p < l->items[i].n_parts && rc == 0; p++) {
            const char *name = l->items[i].name[p];

            rc = strmap_put(&used, name, strlen(name), 1);
        }
    }
    for (size_t i = 0; i < weights_dir_count(m->files) && rc == 0; i++) {
        const char *name = weights_dir_at(m->files, i)->name;
        int64_t unused;

        if (strmap_get(&used, name, strlen(name), &unused) || is_known_buffer(name))
            continue;
        if (m->cfg.tie_embeddings && strcmp(name, l->head) == 0)
            continue; /* the table's second name */
        if (m->cfg.block.block_len && is_block_table(name))
            continue; /* the published block decoders have one, and never used it */
        m->n_unused++;
        m->unused = name;
    }
    strmap_release(&used);
    return rc < 0 ? err_set(err, rc, "list of %d weights: out of memory", l->n_items) : 0;
}

/*
 * Ties as transformers does: a head in the file that equals the table stays tied, one that differs
 * wins over the configuration, and a file with the head alone ties the table to it.
 */
static const char *settle_tie(struct model *m, const char *embed_name, const char *head_name)
{
    const struct safetensors_tensor *head = weights_dir_find(m->files, head_name);
    const struct safetensors_tensor *embed = weights_dir_find(m->files, embed_name);

    if (!m->cfg.tie_embeddings || !head)
        return embed_name;
    if (!embed)
        return head_name;
    if (head->bytes != embed->bytes || head->dtype != embed->dtype ||
        memcmp(head->data, embed->data, head->bytes) != 0)
        m->cfg.tie_embeddings = false;
    return embed_name;
}

/* How files call what lies around the layers; alternatives where they lack the first. */
struct outer_names {
    const char *prefix, *embed, *head;
    const char *other_prefix, *other_head;
};

static const struct outer_names outer_names[2][2] = {
    /* by stack_kind: decoders, and the token decoders of Block Transformers */
    [STACK_LLAMA] = {{"model.", "embed_tokens.weight", "lm_head.weight", "", NULL},
                     {"token_decoder.model.", "embed_tokens.weight", "token_decoder.lm_head.weight",
                      NULL, NULL}},
    [STACK_NEOX] = {{"gpt_neox.", "embed_in.weight", "embed_out.weight", "", "lm_head.weight"},
                    {"token_decoder.gpt_neox.", "embed_in.weight", "token_decoder.embed_out.weight",
                     NULL, NULL}},
};

static void join(char out[MAX_TENSOR_NAME], const char *prefix, const char *name)
{
    snprintf(out, MAX_TENSOR_NAME, "%s%s", prefix, name);
}

static int list_build(struct list *l, struct model *m, struct err *err)
{
    bool is_block = m->cfg.block.block_len > 0;
    const struct outer_names *names = &outer_names[m->cfg.stack.kind][is_block];
    char embed_name[MAX_TENSOR_NAME], other[MAX_TENSOR_NAME];
    const char *name = embed_name;

    l->prefix = names->prefix;
    l->head = names->head;
    join(embed_name, l->prefix, names->embed);
    if (m->files && names->other_prefix && !weights_dir_find(m->files, embed_name)) {
        join(other, names->other_prefix, names->embed);
        if (weights_dir_find(m->files, other)) {
            l->prefix = names->other_prefix;
            join(embed_name, l->prefix, names->embed);
        }
    }
    if (m->files && names->other_head && !weights_dir_find(m->files, l->head) &&
        weights_dir_find(m->files, names->other_head))
        l->head = names->other_head;
    if (m->files)
        name = settle_tie(m, embed_name, l->head);
    l->n_alloc =
        MAX_OUTER_ITEMS + (m->cfg.stack.n_layers + m->cfg.block.token.n_layers) * MAX_LAYER_ITEMS;
    l->items = calloc(l->n_alloc, sizeof(*l->items));
    if (!l->items)
        return err_set(err, ERR_NO_ROOM, "list of %d weights: out of memory", l->n_alloc);
    if (is_block)
        list_block_model(l, m, name);
    else
        list_model(l, m, name);
    return 0;
}

static int list_resolve(struct list *l, struct model *m, struct err *err)
{
    for (int i = 0; i < l->n_items; i++) {
        for (int p = 0; p < l->items[i].n_parts; p++) {
            int rc = resolve_part(l, m, &l->items[i], p, err);

            if (rc < 0)
                return rc;
        }
    }
    return count_unused(m, l, err);
}

/* Host memory that lives as long as the model: the backend may borrow it. */
static void *keep_copy(struct model *m, const struct safetensors_tensor *t, struct err *err)
{
    void **list = realloc(m->aligned, (m->n_aligned + 1) * sizeof(*list)), *copy;

    if (list)
        m->aligned = list;
    copy = list ? malloc(t->bytes) : NULL;
    if (!copy)
        err_set(err, ERR_NO_ROOM, "tensor %s: no memory for %zu bytes", t->name, t->bytes);
    else
        m->aligned[m->n_aligned++] = copy;
    return copy;
}

/* The tensor's data, copied when the file holds it where its type must not be read. */
static int aligned_data(struct model *m, const struct safetensors_tensor *t, const void **data,
                        struct err *err)
{
    void *copy;

    *data = t->data;
    if ((uintptr_t)t->data % dtype_bytes(t->dtype) == 0)
        return 0;
    copy = keep_copy(m, t, err);
    if (!copy)
        return ERR_NO_ROOM;
    memcpy(copy, t->data, t->bytes);
    *data = copy;
    return 0;
}

/* From [n_out, n_in, kernel] to [n_out, kernel, n_in]: a row as inputs side by side meet it. */
static int kernel_outside(struct model *m, const struct item *it, const void **data,
                          struct err *err)
{
    const struct safetensors_tensor *t = it->tensor[0];
    size_t esize = dtype_bytes(t->dtype);
    int n_in = it->n_in / it->kernel;
    char *copy = keep_copy(m, t, err);

    if (!copy)
        return ERR_NO_ROOM;
    for (int64_t o = 0; o < it->n_out[0]; o++) {
        for (int i = 0; i < n_in; i++) {
            for (int k = 0; k < it->kernel; k++)
                memcpy(copy + (o * it->n_in + (int64_t)k * n_in + i) * (int64_t)esize,
                       (const char *)t->data +
                           (o * it->n_in + (int64_t)i * it->kernel + k) * (int64_t)esize,
                       esize);
        }
    }
    *data = copy;
    return 0;
}

/* Which rows of a tensor go where: all q, all k, all v of rows that come head by head. */
static int split_heads(struct weight_part *out, const struct weight_part *whole, int n_heads)
{
    int n_out = whole->n_out / (3 * n_heads);
    size_t bytes = (size_t)n_out * whole->n_in * dtype_bytes(whole->dtype);

    for (int i = 0; i < 3 * n_heads; i++) {
        int which = i / n_heads, head = i % n_heads;

        out[i] = *whole;
        out[i].n_out = n_out;
        out[i].host = (const char *)whole->host + (size_t)(3 * head + which) * bytes;
    }
    return 3 * n_heads;
}

static int item_load(struct model *m, struct item *it, enum dtype dtype, struct err *err)
{
    struct weight_part whole[MAX_PARTS], *parts = whole, *pieces = NULL;
    int n_parts = it->n_parts, rc = 0;

    for (int p = 0; p < it->n_parts && rc == 0; p++) {
        const struct safetensors_tensor *t = it->tensor[p];

        weights_dir_prefetch(m->files, t);
        whole[p] = (struct weight_part){.dtype = t->dtype, .n_out = it->n_out[p], .n_in = it->n_in};
        if (it->kernel > 1)
            rc = kernel_outside(m, it, &whole[p].host, err);
        else
            rc = aligned_data(m, t, &whole[p].host, err);
    }
    if (rc == 0 && it->n_heads > 0) {
        parts = pieces = calloc((size_t)it->n_heads * 3, sizeof(*pieces));
        if (pieces)
            n_parts = split_heads(pieces, whole, it->n_heads);
        else
            rc = err_set(err, ERR_NO_ROOM, "no memory for the parts of %d heads", it->n_heads);
    }
    if (rc == 0)
        rc = m->be->ops->weight_load(m->be, it->w, parts, n_parts, dtype, it->is_matrix, err);
    free(pieces);
    if (rc < 0)
        err_prefix(err, "tensor %s", it->name[0]);
    return rc;
}

static int item_random(struct model *m, struct item *it, enum dtype dtype, uint64_t seed,
                       uint32_t stream, struct err *err)
{
    /* Uniform with variance 1/n_in: every layer adds about 1 to the variance, at any depth. */
    float scale = it->is_gain ? 0.0f : it->is_matrix ? sqrtf(3.0f / (float)it->n_in) : 0.02f;
    int n_out = 0;

    for (int p = 0; p < it->n_parts; p++)
        n_out += it->n_out[p];
    return m->be->ops->weight_random(m->be, it->w, n_out, it->n_in, dtype, it->is_matrix, seed,
                                     stream, scale, it->is_gain ? 1.0f : 0.0f, err);
}

/* Bytes of the weight on the backend. */
static size_t item_bytes(const struct item *it, enum dtype dtype)
{
    size_t n = 0;

    for (int p = 0; p < it->n_parts; p++)
        n += (size_t)it->n_out[p] * it->n_in;
    return n * dtype_bytes(dtype);
}

static int list_load(struct list *l, struct model *m, const struct model_params *params,
                     struct err *err)
{
    size_t done = 0;

    for (int i = 0; i < l->n_items; i++)
        m->weight_bytes +=
            item_bytes(&l->items[i], l->items[i].is_matrix ? params->dtype : DTYPE_F32);
    for (int i = 0; i < l->n_items; i++) {
        struct item *it = &l->items[i];
        enum dtype dtype = it->is_matrix ? params->dtype : DTYPE_F32;
        int rc;

        if (m->files)
            rc = item_load(m, it, dtype, err);
        else
            rc = item_random(m, it, dtype, params->seed, (uint32_t)i, err);
        if (rc < 0)
            return rc;
        done += item_bytes(it, dtype);
        if (params->progress)
            params->progress(params->progress_arg, done, m->weight_bytes);
    }
    return 0;
}

int weight_list_load(struct model *m, const struct model_params *params, struct err *err)
{
    struct list l = {.dir = params->dir};
    int rc = 0;

    if (!params->random_weights)
        rc = weights_dir_open(&m->files, params->dir, err);
    if (rc == 0)
        rc = list_build(&l, m, err);
    if (rc == 0 && m->files)
        rc = list_resolve(&l, m, err);
    if (rc == 0)
        rc = list_load(&l, m, params, err);
    free(l.items);
    return rc;
}
