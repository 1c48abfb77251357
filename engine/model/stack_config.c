/*
 * stack_config - the layers of a config.json. See stack_config.h.
 */
#include "engine/model/stack_config.h"

#include "base/err.h"
#include "engine/model/json_fields.h"
#include "engine/model/rope_config.h"

#include <string.h>

/* Bounds: several times what any published decoder has, and low enough for products in 64 bits. */
#define MAX_DIM      65536
#define MAX_FFN_DIM  (1 << 20)
#define MAX_HEADS    4096
#define MAX_HEAD_DIM 256 /* what the backends have scratch for; no published decoder has more */
#define MAX_QKV_ROWS (1 << 20)
#define MAX_SEQ_LEN  ROPE_CONFIG_MAX_SEQ_LEN

static void read_kv_heads(struct stack_config *s, struct json_fields *f,
                          const struct model_family *fam)
{
    int absent_kv, absent_head_dim;

    /* null means n_heads and dim / n_heads; only an absent key means the family's default. */
    absent_kv = fam->n_kv_heads && !json_fields_has(f, "num_key_value_heads") ? fam->n_kv_heads
                                                                              : s->n_heads;
    s->n_kv_heads = json_fields_int(f, "num_key_value_heads", 1, MAX_HEADS, absent_kv);
    absent_head_dim = json_fields_has(f, "head_dim") ? 0 : fam->head_dim;
    s->head_dim = json_fields_int(f, "head_dim", 2, MAX_HEAD_DIM, absent_head_dim);
}

static void read_shape(struct stack_config *s, struct json_fields *f,
                       const struct model_family *fam)
{
    s->dim = json_fields_int(f, "hidden_size", 1, MAX_DIM, JSON_FIELD_REQUIRED);
    s->n_layers = json_fields_int(f, "num_hidden_layers", 1, MODEL_MAX_LAYERS, JSON_FIELD_REQUIRED);
    s->n_heads = json_fields_int(f, "num_attention_heads", 1, MAX_HEADS, JSON_FIELD_REQUIRED);
    s->ffn_dim = json_fields_int(f, "intermediate_size", 1, MAX_FFN_DIM, JSON_FIELD_REQUIRED);
    s->n_kv_heads = s->n_heads;
    if (fam->kind == STACK_LLAMA)
        read_kv_heads(s, f, fam);
    if (f->rc < 0)
        return;
    if (s->head_dim == 0) {
        if (s->dim % s->n_heads != 0 || s->dim / s->n_heads > MAX_HEAD_DIM)
            f->rc = err_set(f->err, ERR_PARSE,
                            "%s: hidden_size %d and num_attention_heads %d give no head_dim in "
                            "2..%d",
                            f->where, s->dim, s->n_heads, MAX_HEAD_DIM);
        s->head_dim = s->dim / s->n_heads;
    }
    if (!f->rc && (s->head_dim < 2 || s->head_dim % 2 != 0))
        f->rc = err_set(f->err, ERR_PARSE, "%s: head_dim is %d, want an even number in 2..%d",
                        f->where, s->head_dim, MAX_HEAD_DIM);
    if (!f->rc && s->n_heads % s->n_kv_heads != 0)
        f->rc = err_set(f->err, ERR_PARSE,
                        "%s: num_key_value_heads is %d, want a divisor of num_attention_heads %d",
                        f->where, s->n_kv_heads, s->n_heads);
    if (!f->rc && (s->n_heads + 2 * s->n_kv_heads) * s->head_dim > MAX_QKV_ROWS)
        f->rc = err_set(f->err, ERR_PARSE,
                        "%s: %d heads of %d dims give %d rows of q, k and v, want at most %d",
                        f->where, s->n_heads, s->head_dim,
                        (s->n_heads + 2 * s->n_kv_heads) * s->head_dim, MAX_QKV_ROWS);
}

static void read_act(struct stack_config *s, struct json_fields *f, const char *otherwise)
{
    static const struct {
        const char *name;
        enum act_kind act;
    } acts[] = {
        {"silu", ACT_SILU},
        {"swish", ACT_SILU},
        {"gelu", ACT_GELU_ERF},
        {"gelu_new", ACT_GELU_TANH},
        {"gelu_pytorch_tanh", ACT_GELU_TANH},
        {"gelu_fast", ACT_GELU_TANH},
    };
    const char *name = json_fields_str(f, "hidden_act", otherwise);

    for (size_t i = 0; i < sizeof(acts) / sizeof(acts[0]); i++) {
        if (strcmp(name, acts[i].name) == 0) {
            s->act = acts[i].act;
            return;
        }
    }
    if (!f->rc)
        f->rc = err_set(f->err, ERR_UNSUPPORTED,
                        "%s: hidden_act is %.60s; served are silu, gelu, gelu_new, gelu_fast and "
                        "gelu_pytorch_tanh",
                        f->where, name);
}

static void read_biases(struct stack_config *s, struct json_fields *f,
                        const struct model_family *fam)
{
    bool all = fam->bias == BIAS_UNLESS;

    if (fam->bias == BIAS_KEY || fam->bias == BIAS_UNLESS)
        s->qkv_bias = s->o_bias = json_fields_bool(f, "attention_bias", all);
    else
        s->qkv_bias = fam->bias == BIAS_QKV;
    s->ffn_bias =
        fam->kind == STACK_NEOX || (fam->mlp_bias_key && json_fields_bool(f, "mlp_bias", false));
}

void stack_config_read(struct stack_config *s, int *max_seq_len, struct json_fields *f,
                       const struct model_family *fam)
{
    bool neox = fam->kind == STACK_NEOX;
    int max_positions;

    *s = (struct stack_config){.kind = fam->kind,
                               .norm = neox ? NORM_LAYER : NORM_RMS,
                               .is_gated = !neox,
                               .qk_norm = fam->qk_norm};
    read_shape(s, f, fam);
    max_positions = json_fields_int(f, "max_position_embeddings", 1, MAX_SEQ_LEN, fam->max_seq_len);
    read_act(s, f, neox ? "gelu" : "silu");
    s->norm_eps = neox ? (float)json_fields_num(f, "layer_norm_eps", 0, 1, 1e-5)
                       : (float)json_fields_num(f, "rms_norm_eps", 0, 1, 1e-6);
    s->is_parallel = neox && json_fields_bool(f, "use_parallel_residual", true);
    read_biases(s, f, fam);
    if (f->rc)
        return;
    rope_config_read(&s->rope, s, max_positions, f);
    if (!f->rc)
        *max_seq_len = rope_config_max_seq_len(&s->rope, max_positions);
}

void stack_config_params(const struct stack_config *s, int64_t *matrices, int64_t *vectors)
{
    int64_t dim = s->dim, q = (int64_t)s->n_heads * s->head_dim;
    int64_t kv = (int64_t)s->n_kv_heads * s->head_dim;
    int64_t in = (s->is_gated ? 2 : 1) * (int64_t)s->ffn_dim;
    int64_t norm = s->norm == NORM_LAYER ? 2 * dim : dim;
    int64_t layer_m = dim * (q + 2 * kv) + q * dim + dim * (in + s->ffn_dim);
    int64_t layer_v = 2 * norm;

    layer_v += s->qkv_bias ? q + 2 * kv : 0;
    layer_v += s->o_bias ? dim : 0;
    layer_v += s->ffn_bias ? in + dim : 0;
    layer_v += s->qk_norm ? 2 * s->head_dim : 0;
    *matrices = s->n_layers * layer_m;
    *vectors = s->n_layers * layer_v + norm;
}

int stack_config_max_dim(const struct stack_config *s)
{
    int qkv = (s->n_heads + 2 * s->n_kv_heads) * s->head_dim;
    int widest = (s->is_gated ? 2 : 1) * s->ffn_dim;

    if (qkv > widest)
        widest = qkv;
    return s->dim > widest ? s->dim : widest;
}
