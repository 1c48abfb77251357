/*
 * model_family - what the configuration classes of the served models differ in.
 */
#ifndef MODEL_FAMILY_H
#define MODEL_FAMILY_H

#include "engine/model/model_config.h"

#include <stdbool.h>

struct json_fields;

enum bias_rule {
    BIAS_NONE,  /* no projection of attention has one */
    BIAS_QKV,   /* q, k and v always have one, o never */
    BIAS_KEY,   /* all four, if attention_bias says so */
    BIAS_UNLESS /* all four, unless attention_bias says no */
};

enum window_rule {
    WINDOW_NEVER,
    WINDOW_ALWAYS, /* sliding_window holds for every layer */
    WINDOW_LISTED, /* for the layers that layer_types names, all of them without the list */
    WINDOW_UPPER   /* use_sliding_window, and layer_types or max_window_layers pick the layers */
};

struct model_family {
    const char *model_type, *architecture;
    int n_kv_heads;            /* default when the key is absent; 0: n_heads */
    int max_seq_len, head_dim; /* defaults; head_dim 0: dim / n_heads */
    int bos_id, eos_id;        /* defaults; -1: none */
    enum bias_rule bias;
    enum window_rule window;
    bool mlp_bias_key, qk_norm;
    enum stack_kind kind;
    bool is_block; /* a Block Transformer: block_config.h reads it */
};

/*
 * The family that a config.json names by model_type, or by the architecture when there is no
 * model_type. NULL with f->rc and f->err set.
 */
const struct model_family *model_family_find(struct json_fields *f);

#endif
