/*
 * model_config - config.json and generation_config.json, checked. See model.h.
 *
 * Defaults, precedence and what a key means are those of transformers 5: a key that its
 * configuration class does not read is not read here either (attention_bias of a Mistral, say).
 * Both spellings of the rotary settings end in one struct rope_config.
 */
#include "base/dtype.h"
#include "base/err.h"
#include "base/json_file.h"
#include "engine/model/block_config.h"
#include "engine/model/json_fields.h"
#include "engine/model/model_config.h"
#include "engine/model/model_family.h"
#include "engine/model/rope_config.h"
#include "engine/model/safetensors.h"
#include "engine/model/stack_config.h"
#include "engine/model/weights_dir.h"

#include <jansson.h>
#include <limits.h>
#include <math.h>
#include <stdio.h>
#include <string.h>
#include <strings.h>

#define MAX_CONFIG_BYTES (4u << 20)
#define MAX_VOCAB        (1 << 23) /* the sampler's integer sums hold this many weights */

static void refuse_quantised(struct json_fields *f)
{
    static const char *const keys[] = {"quantization_config", "compression_config"};

    for (int i = 0; i < 2; i++) {
        const json_t *q = json_fields_obj(f, keys[i]);
        const char *method = json_string_value(json_object_get(q, "quant_method"));

        if (q && !f->rc)
            f->rc = err_set(f->err, ERR_UNSUPPORTED,
                            "%s: quantised with %.60s, which is not served; want bf16, f16 or f32 "
                            "weights",
                            f->where, method ? method : "a method it does not name");
    }
}

/* "bfloat16" in either key; false when neither is there. */
static bool read_dtype(struct model_config *cfg, struct json_fields *f)
{
    static const struct {
        const char *name;
        enum dtype dtype;
    } dtypes[] = {{"bfloat16", DTYPE_BF16},
                  {"float16", DTYPE_F16},
                  {"float32", DTYPE_F32},
                  {"half", DTYPE_F16},
                  {"float", DTYPE_F32}};
    const char *name = json_fields_str(f, "dtype", NULL);

    if (!name)
        name = json_fields_str(f, "torch_dtype", NULL);
    if (!name || f->rc || strcmp(name, "auto") == 0)
        return false;
    if (strncmp(name, "torch.", 6) == 0)
        name += 6;
    for (size_t i = 0; i < sizeof(dtypes) / sizeof(dtypes[0]); i++) {
        if (strcmp(name, dtypes[i].name) == 0) {
            cfg->dtype = dtypes[i].dtype;
            return true;
        }
    }
    f->rc = err_set(f->err, ERR_UNSUPPORTED,
                    "%s: dtype is %.60s; served are bfloat16, float16 and float32", f->where, name);
    return false;
}

/* The type of the first weight in the files; bf16 for a directory without any. */
static enum dtype peek_dtype(const char *dir)
{
    struct weights_dir *wd = NULL;
    enum dtype dtype = DTYPE_BF16;

    if (weights_dir_open(&wd, dir, NULL) < 0)
        return dtype; /* random weights need none; model_open() tells why a real load fails */
    for (size_t i = 0; i < weights_dir_count(wd); i++) {
        const struct safetensors_tensor *t = weights_dir_at(wd, i);

        if (t->is_weight) {
            dtype = t->dtype;
            break;
        }
    }
    weights_dir_close(wd);
    return dtype;
}

/* layer_types as a list of windows. */
static void read_layer_types(struct model_config *cfg, struct json_fields *f, const json_t *types,
                             int window)
{
    if (json_array_size(types) != (size_t)cfg->stack.n_layers) {
        f->rc = err_set(f->err, ERR_PARSE, "%s: layer_types has %zu entries, want %d", f->where,
                        json_array_size(types), cfg->stack.n_layers);
        return;
    }
    for (int i = 0; i < cfg->stack.n_layers; i++) {
        const char *type = json_string_value(json_array_get(types, i));

        if (type && strcmp(type, "full_attention") == 0) {
            cfg->window[i] = KV_WINDOW_ALL;
        } else if (type && strcmp(type, "sliding_attention") == 0) {
            if (window == KV_WINDOW_ALL) {
                f->rc = err_set(f->err, ERR_PARSE,
                                "%s: layer_types[%d] is sliding_attention, and there is no "
                                "sliding_window",
                                f->where, i);
                return;
            }
            cfg->window[i] = window;
        } else {
            f->rc = err_set(f->err, ERR_UNSUPPORTED,
                            "%s: layer_types[%d] is %.60s; served are full_attention and "
                            "sliding_attention",
                            f->where, i, type ? type : "no string");
            return;
        }
    }
}

static void read_windows(struct model_config *cfg, struct json_fields *f,
                         const struct model_family *fam)
{
    const json_t *types = NULL;
    int window = KV_WINDOW_ALL, n_full = 0;
    bool used = fam->window != WINDOW_NEVER;

    if (fam->window == WINDOW_UPPER)
        used = json_fields_bool(f, "use_sliding_window", false);
    if (used)
        window = json_fields_int(f, "sliding_window", 1, KV_WINDOW_ALL,
                                 json_fields_has(f, "sliding_window") ? KV_WINDOW_ALL : 4096);
    if (used && fam->window == WINDOW_UPPER)
        n_full = json_fields_int(f, "max_window_layers", 0, INT_MAX, 28);
    for (int i = 0; i < cfg->stack.n_layers; i++)
        cfg->window[i] = i < n_full ? KV_WINDOW_ALL : window;
    if (fam->window == WINDOW_UPPER || fam->window == WINDOW_LISTED)
        types = json_fields_array(f, "layer_types");
    if (types && !f->rc)
        read_layer_types(cfg, f, types, window);
}

/* Adds an id unless it is there already or no token can have it. */
static void add_eos(struct model_config *cfg, struct json_fields *f, const json_t *v)
{
    json_int_t id = json_integer_value(v);
    char found[64];

    if (!json_is_integer(v)) {
        json_describe(found, sizeof(found), v);
        f->rc = err_set(f->err, ERR_PARSE, "%s: eos_token_id holds %s, want token ids", f->where,
                        found);
        return;
    }
    if (id < 0 || id >= cfg->vocab_size)
        return;
    for (int i = 0; i < cfg->n_eos; i++) {
        if (cfg->eos_ids[i] == id)
            return;
    }
    if (cfg->n_eos == MODEL_MAX_EOS) {
        f->rc = err_set(f->err, ERR_PARSE, "%s: eos_token_id: more than %d ids", f->where,
                        MODEL_MAX_EOS);
        return;
    }
    cfg->eos_ids[cfg->n_eos++] = (int)id;
}

/* An id or a list of ids. */
static void read_eos(struct model_config *cfg, struct json_fields *f)
{
    const json_t *v = json_object_get(f->obj, "eos_token_id");

    if (f->rc || !v || json_is_null(v))
        return;
    if (!json_is_array(v)) {
        add_eos(cfg, f, v);
        return;
    }
    for (size_t i = 0; i < json_array_size(v) && !f->rc; i++)
        add_eos(cfg, f, json_array_get(v, i));
}

static void read_bos(struct model_config *cfg, struct json_fields *f)
{
    int id = json_fields_int(f, "bos_token_id", INT_MIN + 1, INT_MAX, cfg->bos_id);

    cfg->bos_id = id < cfg->vocab_size ? (id < 0 ? -1 : id) : -1;
}

/* generation_config.json may be absent. *has_eos: it has the key. */
static int read_generation_config(struct model_config *cfg, const char *dir, bool *has_eos,
                                  struct err *err)
{
    char path[PATH_MAX];
    struct err absent = {0};
    json_t *doc = NULL;
    struct json_fields f = {.where = path, .err = err};
    int rc;

    *has_eos = false;
    if (snprintf(path, sizeof(path), "%s/generation_config.json", dir) >= (int)sizeof(path))
        return err_set(err, ERR_INVALID, "%s: path is too long", dir);
    rc = json_file_load(&doc, path, MAX_CONFIG_BYTES, &absent);
    if (rc == ERR_NOT_FOUND)
        return 0;
    if (rc < 0)
        return err_set(err, rc, "%s", absent.msg);
    f.obj = doc;
    if (!json_is_object(doc))
        f.rc = err_set(err, ERR_PARSE, "%s: not a JSON object", path);
    *has_eos = json_fields_has(&f, "eos_token_id");
    read_eos(cfg, &f);
    if (cfg->bos_id < 0)
        read_bos(cfg, &f);
    cfg->default_temperature = (float)json_fields_num(&f, "temperature", 0, 100, NAN);
    cfg->default_top_p = (float)json_fields_num(&f, "top_p", 0, 1, NAN);
    cfg->default_repetition_penalty =
        (float)json_fields_num(&f, "repetition_penalty", 1e-3, 100, NAN);
    cfg->default_top_k = json_fields_int(&f, "top_k", -1, INT_MAX, 0);
    if (cfg->default_top_k < 0)
        cfg->default_top_k = 0; /* off is written both ways */
    json_decref(doc);
    return f.rc;
}

static int read_config(struct model_config *cfg, const char *dir, struct json_fields *f)
{
    const struct model_family *fam;
    bool has_dtype, has_eos = false;

    refuse_quantised(f);
    fam = model_family_find(f);
    if (!fam)
        return f->rc;
    snprintf(cfg->model_type, sizeof(cfg->model_type), "%s", fam->model_type);
    cfg->vocab_size = json_fields_int(f, "vocab_size", 1, MAX_VOCAB, JSON_FIELD_REQUIRED);
    if (fam->is_block)
        block_config_read(cfg, f);
    else
        stack_config_read(&cfg->stack, &cfg->max_seq_len, f, fam);
    cfg->tie_embeddings = json_fields_bool(f, "tie_word_embeddings", false);
    has_dtype = read_dtype(cfg, f);
    if (!f->rc)
        read_windows(cfg, f, fam);
    read_eos(cfg, f);
    cfg->bos_id = json_fields_has(f, "bos_token_id") ? -1 : fam->bos_id;
    read_bos(cfg, f);
    if (!f->rc)
        f->rc = read_generation_config(cfg, dir, &has_eos, f->err);
    /* The class's own EOS counts only where no file says anything. */
    if (!f->rc && !has_eos && !json_fields_has(f, "eos_token_id") && fam->eos_id >= 0 &&
        fam->eos_id < cfg->vocab_size)
        cfg->eos_ids[cfg->n_eos++] = fam->eos_id;
    if (!f->rc && !has_dtype)
        cfg->dtype = peek_dtype(dir);
    return f->rc;
}

int model_config_load(struct model_config *cfg, const char *dir, struct err *err)
{
    char path[PATH_MAX];
    json_t *doc = NULL;
    struct json_fields f = {.where = path, .err = err};
    int rc;

    *cfg = (struct model_config){.bos_id = -1,
                                 .default_temperature = NAN,
                                 .default_top_p = NAN,
                                 .default_repetition_penalty = NAN};
    if (snprintf(path, sizeof(path), "%s/config.json", dir) >= (int)sizeof(path))
        return err_set(err, ERR_INVALID, "model dir: path of %zu bytes is too long", strlen(dir));
    rc = json_file_load(&doc, path, MAX_CONFIG_BYTES, err);
    if (rc < 0)
        return rc;
    f.obj = doc;
    if (json_is_object(doc))
        rc = read_config(cfg, dir, &f);
    else
        rc = err_set(err, ERR_PARSE, "%s: not a JSON object", path);
    json_decref(doc);
    return rc;
}

/* Elements of matrices and of vectors (gains and biases). */
static void count_params(const struct model_config *cfg, int64_t *matrices, int64_t *vectors)
{
    int64_t vocab = cfg->vocab_size;

    stack_config_params(&cfg->stack, matrices, vectors);
    if (cfg->block.block_len) {
        block_config_params(cfg, matrices, vectors);
        return;
    }
    *matrices += (cfg->tie_embeddings ? 1 : 2) * vocab * cfg->stack.dim;
}

int64_t model_config_params(const struct model_config *cfg)
{
    int64_t matrices, vectors;

    count_params(cfg, &matrices, &vectors);
    return matrices + vectors;
}

int64_t model_config_weight_bytes(const struct model_config *cfg, enum dtype dtype)
{
    int64_t matrices, vectors;

    count_params(cfg, &matrices, &vectors);
    return matrices * (int64_t)dtype_bytes(dtype) + vectors * (int64_t)sizeof(float);
}

int model_config_max_dim(const struct model_config *cfg)
{
    int widest = stack_config_max_dim(&cfg->stack);
    int block = cfg->block.block_len ? block_config_max_dim(&cfg->block) : 0;

    return block > widest ? block : widest;
}
