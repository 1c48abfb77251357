/*
 * model_config - what a model is, as its config.json and generation_config.json say. Any thread.
 */
#ifndef MODEL_CONFIG_H
#define MODEL_CONFIG_H

#include "base/err.h"
#include "engine/backend.h"

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#define MODEL_MAX_LAYERS 512 /* deeper than any published decoder; bounds hostile files */
#define MODEL_MAX_EOS    16

enum rope_kind { ROPE_DEFAULT, ROPE_LINEAR, ROPE_DYNAMIC, ROPE_LLAMA3, ROPE_YARN };

/* The rotary embedding as config.json describes it, in either spelling. */
struct rope_config {
    enum rope_kind kind;
    double theta;
    double factor;                            /* 1 for ROPE_DEFAULT */
    double low_freq_factor, high_freq_factor; /* llama3 */
    double beta_fast, beta_slow;              /* yarn */
    double attention_factor;       /* yarn, <= 0: computed from factor, mscale, mscale_all_dim */
    double mscale, mscale_all_dim; /* yarn, 0 when absent */
    bool truncate;                 /* yarn, round the correction range */
    int original_max_seq_len;      /* of training: llama3, yarn; dynamic: max_position_embeddings */
    int dim;                       /* rotated dims of a head (even) */
};

/* Whose layers they are: it decides the names of their tensors. */
enum stack_kind { STACK_LLAMA = 0, STACK_NEOX };

/* A stack of decoder layers, as far as the layers themselves go. */
struct stack_config {
    enum stack_kind kind;
    int dim, n_layers, n_heads, n_kv_heads, head_dim, ffn_dim;
    enum norm_kind norm;
    float norm_eps;
    enum act_kind act;
    bool is_gated;    /* act(gate) * up; else act(up) */
    bool is_parallel; /* x + attention(norm(x)) + ffn(norm'(x)); else one after the other */
    struct rope_config rope;
    bool qkv_bias, o_bias, ffn_bias, qk_norm;
};

#define BLOCK_MAX_LEN    8 /* tokens of a block; published ones have 1 to 8 */
#define BLOCK_MAX_PREFIX 4

/*
 * What a Block Transformer has besides the block decoder (model_config.stack): see MODEL.md. A
 * sequence is its lead, the prompt and what was generated, cut into blocks from its start.
 */
struct block_config {
    int block_len;  /* tokens of a block; 0: the model is none, and nothing here counts */
    int n_prefix;   /* vectors that a block's context becomes for the token decoder */
    int embed_dim;  /* width of the embedder's table */
    bool projects;  /* the embedder's rows go through a product; else they are put side by side */
    bool pads_left; /* the lead fills up the prompt's last block */
    bool has_start_block;      /* the lead is a whole block; without: only for shorter prompts */
    bool shares_prefix_pos;    /* rotation: prefixes at 0, tokens from 1 on; else all in a row */
    int32_t start_id;          /* what leads are made of */
    struct stack_config token; /* the token decoder */
};

struct model_config {
    char model_type[32]; /* "llama", "mistral", "ministral", "qwen2", "qwen3", "gpt_neox", ... */
    int vocab_size;
    int max_seq_len; /* max_position_embeddings, stretched where rope scaling stretches it */
    struct stack_config stack;
    struct block_config block;
    bool tie_embeddings;
    int window[MODEL_MAX_LAYERS];      /* sliding window a layer, KV_WINDOW_ALL for none */
    int eos_ids[MODEL_MAX_EOS], n_eos; /* config.json and generation_config.json together */
    int bos_id;                        /* -1 when there is none */
    enum dtype dtype;                  /* dtype or torch_dtype, else of the weights, else bf16 */
    /* generation_config.json, for sampling_defaults: model; NAN or 0 when absent */
    float default_temperature, default_top_p, default_repetition_penalty;
    int default_top_k;
};

/*
 * Reads DIR/config.json and, if it is there, DIR/generation_config.json. ERR_UNSUPPORTED names what
 * is not served (architecture, quantisation, activation); ERR_PARSE names key, value and wanted
 * range.
 */
int model_config_load(struct model_config *cfg, const char *dir, struct err *err);

/*
 * Writes the path of DIR/tokenizer.json. ERR_UNSUPPORTED names what the directory has instead
 * (tokenizer.model, vocab.json, weights that are not served) and what converts it; ERR_NOT_FOUND
 * when it has nothing.
 */
int model_tokenizer_path(char *path, size_t size, const char *dir, struct err *err);

/*
 * Parameters, and bytes of the weights in dtype, by the formula of the architecture. Matrices have
 * dtype, vectors (norm gains, biases) are f32 always; a packed copy is not counted.
 */
int64_t model_config_params(const struct model_config *cfg);
int64_t model_config_weight_bytes(const struct model_config *cfg, enum dtype dtype);

/* The widest activation row, fused outputs included: what backend_params.max_dim asks for. */
int model_config_max_dim(const struct model_config *cfg);

/* Tokens of a Block Transformer's sequence in front of a prompt of n_prompt. */
int block_config_lead(const struct block_config *b, int n_prompt);

/*
 * Positions of keys and values that a sequence of n_tokens in all comes to take: the blocks in
 * front of the one that its last token lies in, 1 at least. n_prompt decides the lead.
 */
int block_config_entries(const struct block_config *b, int n_prompt, int n_tokens);

#endif
