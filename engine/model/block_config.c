/*
 * block_config - the config.json of a Block Transformer. See block_config.h.
 */
#include "engine/model/block_config.h"

#include "base/err.h"
#include "engine/model/json_fields.h"
#include "engine/model/rope_config.h"
#include "engine/model/stack_config.h"

#include <limits.h>
#include <stdio.h>
#include <string.h>

#define MAX_EMBED_DIM 65536

/* One of two words; the first where the key is absent. True for the second. */
static bool read_word(struct json_fields *f, const char *key, const char *first, const char *second)
{
    const char *word = json_fields_str(f, key, first);

    if (!f->rc && strcmp(word, first) != 0 && strcmp(word, second) != 0)
        f->rc = err_set(f->err, ERR_PARSE, "%s: %s is %.40s, want %s or %s", f->where, key, word,
                        first, second);
    return strcmp(word, second) == 0;
}

/* The object under key as fields of their own; where is the memory of their name. */
static struct json_fields inner_fields(struct json_fields *f, const char *key, char *where,
                                       size_t size)
{
    struct json_fields in = {.obj = json_fields_obj(f, key), .where = where, .err = f->err};

    snprintf(where, size, "%s: %s", f->where, key);
    if (!f->rc && !in.obj)
        f->rc = err_set(f->err, ERR_PARSE, "%s is missing", where);
    in.rc = f->rc;
    return in;
}

/* The layers of one of the two decoders. */
static void read_decoder(struct stack_config *s, struct json_fields *f, const char *key,
                         int vocab_size)
{
    char where[PATH_MAX + 32];
    struct json_fields in = inner_fields(f, key, where, sizeof(where));
    const struct model_family *fam = in.rc ? NULL : model_family_find(&in);
    int unused, vocab;

    if (fam && (fam->is_block || fam->window != WINDOW_NEVER || fam->bias == BIAS_QKV))
        in.rc =
            err_set(in.err, ERR_UNSUPPORTED, "%s: model_type is %s; served are gpt_neox and llama",
                    where, fam->model_type);
    if (!in.rc)
        stack_config_read(s, &unused, &in, fam);
    vocab = json_fields_int(&in, "vocab_size", 1, INT_MAX, vocab_size);
    if (!in.rc && vocab != vocab_size)
        in.rc = err_set(in.err, ERR_PARSE, "%s: vocab_size is %d, the embedder's is %d", where,
                        vocab, vocab_size);
    if (!in.rc && s->rope.kind == ROPE_DYNAMIC)
        in.rc = err_set(in.err, ERR_UNSUPPORTED,
                        "%s: rope_type dynamic is not served in a Block Transformer", where);
    f->rc = in.rc;
}

static void read_embedder(struct block_config *b, struct json_fields *f, int block_dim)
{
    char where[PATH_MAX + 32];
    struct json_fields in = inner_fields(f, "embedder", where, sizeof(where));
    const char *type = json_fields_str(&in, "type", "lookup");

    if (!in.rc && strcmp(type, "lookup") != 0)
        in.rc =
            err_set(in.err, ERR_UNSUPPORTED, "%s: type is %.40s; served is lookup", where, type);
    b->embed_dim = json_fields_int(&in, "hidden_size", 1, MAX_EMBED_DIM, JSON_FIELD_REQUIRED);
    b->projects = read_word(&in, "projection", "concat", "projection");
    if (!in.rc && !b->projects && b->embed_dim * b->block_len != block_dim)
        in.rc = err_set(in.err, ERR_PARSE,
                        "%s: %d tokens of hidden_size %d side by side are %d wide, the "
                        "block_decoder's hidden_size is %d",
                        where, b->block_len, b->embed_dim, b->embed_dim * b->block_len, block_dim);
    f->rc = in.rc;
}

void block_config_read(struct model_config *cfg, struct json_fields *f)
{
    struct block_config *b = &cfg->block;

    cfg->max_seq_len = json_fields_int(f, "max_position_embeddings", 1, ROPE_CONFIG_MAX_SEQ_LEN,
                                       JSON_FIELD_REQUIRED);
    b->block_len = json_fields_int(f, "block_length", 1, BLOCK_MAX_LEN, JSON_FIELD_REQUIRED);
    b->n_prefix = json_fields_int(f, "n_prefix", 1, BLOCK_MAX_PREFIX, JSON_FIELD_REQUIRED);
    b->pads_left = read_word(f, "alignment", "left", "left_pad");
    b->has_start_block = json_fields_bool(f, "start_block", true);
    b->shares_prefix_pos = read_word(f, "token_positions", "forward", "generate");
    b->start_id = json_fields_int(f, "start_id", 0, INT_MAX, 0);
    if (!f->rc && b->start_id >= cfg->vocab_size)
        f->rc = err_set(f->err, ERR_PARSE, "%s: start_id is %d, want 0..%d", f->where,
                        (int)b->start_id, cfg->vocab_size - 1);
    read_decoder(&cfg->stack, f, "block_decoder", cfg->vocab_size);
    read_decoder(&b->token, f, "token_decoder", cfg->vocab_size);
    read_embedder(b, f, cfg->stack.dim);
    if (!f->rc && b->token.kind != cfg->stack.kind)
        f->rc =
            err_set(f->err, ERR_UNSUPPORTED,
                    "%s: block_decoder and token_decoder have layers of different kinds", f->where);
}

int block_config_lead(const struct block_config *b, int n_prompt)
{
    if (b->pads_left && n_prompt > 0)
        return (b->block_len - n_prompt % b->block_len) % b->block_len;
    return b->has_start_block || n_prompt < b->block_len ? b->block_len : 0;
}

int block_config_entries(const struct block_config *b, int n_prompt, int n_tokens)
{
    int64_t n = ((int64_t)block_config_lead(b, n_prompt) + n_tokens - 1) / b->block_len;

    return n > 0 ? (int)n : 1;
}

void block_config_params(const struct model_config *cfg, int64_t *matrices, int64_t *vectors)
{
    const struct block_config *b = &cfg->block;
    int64_t vocab = cfg->vocab_size, dim = cfg->stack.dim,
            wide = b->n_prefix * (int64_t)b->token.dim;
    int64_t m, v;

    stack_config_params(&b->token, &m, &v);
    *matrices += m + vocab * b->embed_dim + wide * dim;
    *matrices += (cfg->tie_embeddings ? 1 : 2) * vocab * b->token.dim;
    *vectors += v + wide;
    if (b->projects) {
        *matrices += dim * b->block_len * b->embed_dim;
        *vectors += dim;
    }
}

int block_config_max_dim(const struct block_config *b)
{
    int widest = stack_config_max_dim(&b->token);
    int gathered = b->block_len * b->embed_dim, prefixes = b->n_prefix * b->token.dim;

    widest = gathered > widest ? gathered : widest;
    return prefixes > widest ? prefixes : widest;
}
