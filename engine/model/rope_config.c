/*
 * rope_config - the rotary settings of config.json. See rope_config.h.
 */
#include "engine/model/rope_config.h"

#include "base/err.h"
#include "engine/model/json_fields.h"
#include "engine/model/model_config.h"

#include <jansson.h>
#include <limits.h>
#include <math.h>
#include <stdio.h>
#include <string.h>

/* A dynamic base is defined for every length: a small maximum says when it starts to grow. */
#define DYNAMIC_MIN_SEQ_LEN 8192

static const char *const rope_names[] = {"default", "linear", "dynamic", "llama3", "yarn"};

static void read_kind(struct rope_config *rope, struct json_fields *f)
{
    const char *name = json_fields_str(f, "rope_type", NULL);

    if (!name)
        name = json_fields_str(f, "type", "default");
    for (int i = 0; i < 5; i++) {
        if (strcmp(name, rope_names[i]) == 0) {
            rope->kind = (enum rope_kind)i;
            return;
        }
    }
    if (!f->rc)
        f->rc = err_set(f->err, ERR_UNSUPPORTED,
                        "%s: rope_type is %.60s; served are default, linear, dynamic, llama3 and "
                        "yarn",
                        f->where, name);
}

static void require(struct json_fields *f, const char *key)
{
    if (!f->rc && (!json_fields_has(f, key) || json_is_null(json_object_get(f->obj, key))))
        f->rc = err_set(f->err, ERR_PARSE, "%s: %s is missing", f->where, key);
}

/* The members that only some kinds have. `top` is config.json itself. */
static void read_scaling(struct rope_config *r, int max_seq_len, struct json_fields *f,
                         struct json_fields *top)
{
    if (r->kind == ROPE_DEFAULT)
        return;
    if (r->kind != ROPE_YARN)
        require(f, "factor");
    r->factor = json_fields_num(f, "factor", 1e-3, 1e6, 0);
    if (r->kind == ROPE_LLAMA3 || r->kind == ROPE_YARN) {
        /* Beside the rope settings it wins over inside them: so it is in transformers. */
        r->original_max_seq_len = json_fields_int(f, "original_max_position_embeddings", 1,
                                                  ROPE_CONFIG_MAX_SEQ_LEN, max_seq_len);
        r->original_max_seq_len = json_fields_int(top, "original_max_position_embeddings", 1,
                                                  ROPE_CONFIG_MAX_SEQ_LEN, r->original_max_seq_len);
    }
    if (r->kind == ROPE_LLAMA3) {
        require(f, "low_freq_factor");
        require(f, "high_freq_factor");
        r->low_freq_factor = json_fields_num(f, "low_freq_factor", 1e-3, 1e6, 1);
        r->high_freq_factor = json_fields_num(f, "high_freq_factor", 1e-3, 1e6, 4);
        if (!f->rc && r->high_freq_factor == r->low_freq_factor)
            f->rc = err_set(f->err, ERR_PARSE,
                            "%s: high_freq_factor and low_freq_factor are both %g, want two "
                            "values",
                            f->where, r->low_freq_factor);
    }
    if (r->kind == ROPE_YARN) {
        if (r->factor == 0)
            r->factor = (double)max_seq_len / r->original_max_seq_len;
        r->attention_factor = json_fields_num(f, "attention_factor", 0, 1e3, 0);
        r->mscale = json_fields_num(f, "mscale", 0, 1e3, 0);
        r->mscale_all_dim = json_fields_num(f, "mscale_all_dim", 0, 1e3, 0);
        r->beta_fast = json_fields_num(f, "beta_fast", 0, 1e6, 0);
        r->beta_slow = json_fields_num(f, "beta_slow", 0, 1e6, 0);
        r->beta_fast = r->beta_fast == 0 ? 32 : r->beta_fast;
        r->beta_slow = r->beta_slow == 0 ? 1 : r->beta_slow;
        /* An explicit null counts as false there. */
        r->truncate = json_fields_bool(f, "truncate", !json_fields_has(f, "truncate"));
    }
}

/*
 * transformers leaves partial_rotary_factor unread for the Llama families' default rotation and
 * fails on a tensor shape with every other kind.
 */
static void refuse_partial_rotary(const struct rope_config *r, struct json_fields *f,
                                  struct json_fields *top)
{
    double part = json_fields_num(top, "partial_rotary_factor", 0, 1, 1);

    part = json_fields_num(f, "partial_rotary_factor", 0, 1, part);
    if (!f->rc && r->kind != ROPE_DEFAULT && (int)(r->dim * part) != r->dim)
        f->rc = err_set(f->err, ERR_UNSUPPORTED,
                        "%s: partial_rotary_factor %g with rope_type %s is not served here",
                        f->where, part, rope_names[r->kind]);
}

/* GPT-NeoX rotates a part of each head. */
static void read_partial_rotary(struct rope_config *r, struct json_fields *f,
                                struct json_fields *top)
{
    double part = json_fields_num(top, "rotary_pct", 0, 1, 0.25);
    int dim;

    part = json_fields_num(f, "partial_rotary_factor", 0, 1, part);
    dim = (int)(r->dim * part);
    if (!f->rc && (dim < 2 || dim % 2 != 0))
        f->rc = err_set(f->err, ERR_UNSUPPORTED,
                        "%s: %g of %d dims of a head are %d to rotate, want an even number from 2 "
                        "on",
                        f->where, part, r->dim, dim);
    r->dim = dim;
}

void rope_config_read(struct rope_config *r, const struct stack_config *stack, int max_seq_len,
                      struct json_fields *top)
{
    bool neox = stack->kind == STACK_NEOX;
    char where[PATH_MAX + 32];
    struct json_fields f = {.err = top->err};
    const json_t *scaling = json_fields_obj(top, "rope_scaling");
    const json_t *params = json_fields_obj(top, "rope_parameters");
    json_t *none = NULL;

    *r = (struct rope_config){
        .factor = 1, .dim = stack->head_dim, .original_max_seq_len = max_seq_len};
    f.obj = json_object_size(scaling) > 0 ? scaling : params;
    snprintf(where, sizeof(where), "%s: %s", top->where,
             f.obj && f.obj == scaling ? "rope_scaling" : "rope_parameters");
    f.where = where;
    f.rc = top->rc;
    if (!f.obj)
        f.obj = none = json_object();
    if (json_is_object(json_object_get(f.obj, "full_attention")) && !f.rc)
        f.rc =
            err_set(f.err, ERR_UNSUPPORTED, "%s: settings per layer type are not served", f.where);
    read_kind(r, &f);
    r->theta = json_fields_num(top, neox ? "rotary_emb_base" : "rope_theta", 1e-3, 1e15, 10000);
    r->theta = json_fields_num(&f, "rope_theta", 1e-3, 1e15, r->theta);
    read_scaling(r, max_seq_len, &f, top);
    if (neox)
        read_partial_rotary(r, &f, top);
    else
        refuse_partial_rotary(r, &f, top);
    if (!f.rc && r->kind == ROPE_DYNAMIC && r->dim < 4)
        f.rc = err_set(f.err, ERR_UNSUPPORTED, "%s: dynamic with head_dim %d, want at least 4",
                       f.where, r->dim);
    if (!f.rc && r->kind == ROPE_YARN && r->theta == 1)
        f.rc = err_set(f.err, ERR_PARSE, "%s: yarn with rope_theta 1 has no wavelengths", f.where);
    if (!top->rc)
        top->rc = f.rc;
    json_decref(none);
}

int rope_config_max_seq_len(const struct rope_config *r, int max_position_embeddings)
{
    double len = max_position_embeddings;

    if (r->kind == ROPE_LINEAR || r->kind == ROPE_DYNAMIC || r->kind == ROPE_YARN)
        len = fmax(len, r->original_max_seq_len * r->factor);
    if (r->kind == ROPE_DYNAMIC)
        len = fmax(len, DYNAMIC_MIN_SEQ_LEN);
    return (int)fmin(len, ROPE_CONFIG_MAX_SEQ_LEN);
}
