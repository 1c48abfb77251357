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
#define MAX_LAYER_ITEMS 13 /* members of struct llama_layer */
#define MAX_TENSOR_NAME 96

/* One weight of the model and the tensors that are stacked to make it. */
struct item {
    struct weight *w;
    bool is_matrix; /* else a vector: n_in 1, one dimension in the file, f32 on the backend */
    bool is_gain;   /* random weights: ones */
    int n_parts, n_in;
    int n_out[MAX_PARTS];
    char name[MAX_PARTS][MAX_TENSOR_NAME];
    const struct safetensors_tensor *tensor[MAX_PARTS];
};

struct list {
    struct item *items; /* [n_items] */
    int n_items, n_alloc;
    const char *dir;    /* for messages */
    const char *prefix; /* "model.", or "" for files of the bare decoder */
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

static void list_layer(struct list *l, struct model *m, int layer_idx)
{
    const struct model_config *c = &m->cfg;
    struct llama_layer *y = &m->layers[layer_idx];
    int q = c->n_heads * c->head_dim, kv = c->n_kv_heads * c->head_dim;
    char p[48];
    struct item *it;

    snprintf(p, sizeof(p), "%slayers.%d.", l->prefix, layer_idx);
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
        add_part(add_vector(l, &y->bo), c->dim, p, "self_attn.o_proj.bias");
    add_gain(l, &y->ffn_norm, c->dim, p, "post_attention_layernorm.weight");
    it = add(l, &y->w_in, c->dim);
    add_part(it, c->ffn_dim, p, "mlp.gate_proj.weight");
    add_part(it, c->ffn_dim, p, "mlp.up_proj.weight");
    add_part(add(l, &y->w_down, c->ffn_dim), c->dim, p, "mlp.down_proj.weight");
    if (c->ffn_bias) {
        it = add_vector(l, &y->b_in);
        add_part(it, c->ffn_dim, p, "mlp.gate_proj.bias");
        add_part(it, c->ffn_dim, p, "mlp.up_proj.bias");
        add_part(add_vector(l, &y->b_down), c->dim, p, "mlp.down_proj.bias");
    }
}

/* embed_name is the tensor of the table: lm_head.weight where a tied file has only that. */
static void list_model(struct list *l, struct model *m, const char *embed_name)
{
    const struct model_config *c = &m->cfg;

    add_part(add(l, &m->embed, c->dim), c->vocab_size, "", embed_name);
    if (!c->tie_embeddings)
        add_part(add(l, &m->head, c->dim), c->vocab_size, "", "lm_head.weight");
    for (int i = 0; i < c->n_layers; i++)
        list_layer(l, m, i);
    add_gain(l, &m->norm, c->dim, l->prefix, "norm.weight");
}

static void describe_shape(char *buf, size_t size, const struct safetensors_tensor *t)
{
    size_t at = 0;

    buf[0] = '\0';
    for (int i = 0; i < t->n_dims && at < size; i++)
        at += snprintf(buf + at, size - at, "%s%lld", i ? "," : "", (long long)t->shape[i]);
}

/* Finds the tensor of one part and checks type and shape. */
static int resolve_part(const struct list *l, const struct model *m, struct item *it, int part,
                        struct err *err)
{
    const struct safetensors_tensor *t = weights_dir_find(m->files, it->name[part]);
    int n_dims = it->is_matrix ? 2 : 1;
    char found[96], want[48];

    if (!t)
        return err_set(err, ERR_PARSE, "%s: tensor %s: missing", l->dir, it->name[part]);
    if (!t->is_weight)
        return err_set(err, ERR_UNSUPPORTED, "%s: tensor %s: dtype is %s, want BF16, F16 or F32",
                       weights_dir_file_of(m->files, t), t->name, t->dtype_name);
    if (t->n_dims != n_dims || t->shape[0] != it->n_out[part] ||
        (n_dims == 2 && t->shape[1] != it->n_in)) {
        describe_shape(found, sizeof(found), t);
        if (n_dims == 2)
            snprintf(want, sizeof(want), "%d,%d", it->n_out[part], it->n_in);
        else
            snprintf(want, sizeof(want), "%d", it->n_out[part]);
        return err_set(err, ERR_PARSE, "%s: tensor %s: shape [%s], want [%s]",
                       weights_dir_file_of(m->files, t), t->name, found, want);
    }
    it->tensor[part] = t;
    return 0;
}

/* Buffers that old files carry and that are computed here. */
static bool is_known_buffer(const char *name)
{
    static const char *const ends[] = {"rotary_emb.inv_freq", "rotary_emb.cos_cached",
                                       "rotary_emb.sin_cached"};
    size_t n = strlen(name);

    for (int i = 0; i < 3; i++) {
        size_t k = strlen(ends[i]);

        if (n >= k && strcmp(name + n - k, ends[i]) == 0)
            return true;
    }
    return false;
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
        if (m->cfg.tie_embeddings && strcmp(name, "lm_head.weight") == 0)
            continue; /* the table's second name */
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
static const char *settle_tie(struct model *m, const char *embed_name)
{
    const struct safetensors_tensor *head = weights_dir_find(m->files, "lm_head.weight");
    const struct safetensors_tensor *embed = weights_dir_find(m->files, embed_name);

    if (!m->cfg.tie_embeddings || !head)
        return embed_name;
    if (!embed)
        return "lm_head.weight";
    if (head->bytes != embed->bytes || head->dtype != embed->dtype ||
        memcmp(head->data, embed->data, head->bytes) != 0)
        m->cfg.tie_embeddings = false;
    return embed_name;
}

static int list_build(struct list *l, struct model *m, struct err *err)
{
    char embed_name[MAX_TENSOR_NAME];
    const char *name = embed_name;

    l->prefix = "model.";
    if (m->files && !weights_dir_find(m->files, "model.embed_tokens.weight") &&
        weights_dir_find(m->files, "embed_tokens.weight"))
        l->prefix = "";
    snprintf(embed_name, sizeof(embed_name), "%sembed_tokens.weight", l->prefix);
    if (m->files)
        name = settle_tie(m, embed_name);
    l->n_alloc = 3 + m->cfg.n_layers * MAX_LAYER_ITEMS;
    l->items = calloc(l->n_alloc, sizeof(*l->items));
    if (!l->items)
        return err_set(err, ERR_NO_ROOM, "list of %d weights: out of memory", l->n_alloc);
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

/* The tensor's data, copied when the file holds it where its type must not be read. */
static int aligned_data(struct model *m, const struct safetensors_tensor *t, const void **data,
                        struct err *err)
{
    void **list, *copy;

    *data = t->data;
    if ((uintptr_t)t->data % dtype_bytes(t->dtype) == 0)
        return 0;
    list = realloc(m->aligned, (m->n_aligned + 1) * sizeof(*list));
    if (list)
        m->aligned = list;
    copy = list ? malloc(t->bytes) : NULL;
    if (!copy)
        return err_set(err, ERR_NO_ROOM, "tensor %s: no memory for %zu bytes", t->name, t->bytes);
    memcpy(copy, t->data, t->bytes);
    m->aligned[m->n_aligned++] = copy;
    *data = copy;
    return 0;
}

static int item_load(struct model *m, struct item *it, enum dtype dtype, struct err *err)
{
    struct weight_part parts[MAX_PARTS];
    int rc;

    for (int p = 0; p < it->n_parts; p++) {
        const struct safetensors_tensor *t = it->tensor[p];

        weights_dir_prefetch(m->files, t);
        parts[p] = (struct weight_part){.dtype = t->dtype, .n_out = it->n_out[p], .n_in = it->n_in};
        rc = aligned_data(m, t, &parts[p].host, err);
        if (rc < 0)
            return rc;
    }
    rc = m->be->ops->weight_load(m->be, it->w, parts, it->n_parts, dtype, it->is_matrix, err);
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
