/*
 * post_processor - what stands around a text. See post_processor.h.
 */
#include "engine/tokenizer/post_processor.h"

#include "base/err.h"
#include "engine/tokenizer/component.h"

#include <string.h>

/* The ids of one step, in order; those of later steps go outside. */
struct around {
    int32_t before[POST_MAX_IDS], after[POST_MAX_IDS];
    int n_before, n_after;
    int32_t n_ids;
};

static int around_add(struct around *a, bool behind, const json_t *id, struct err *err)
{
    json_int_t value = json_integer_value(id);
    int *n = behind ? &a->n_after : &a->n_before;

    if (!json_is_integer(id) || value < 0 || value >= a->n_ids)
        return err_set(err, ERR_PARSE, "post_processor: an id that is not in the vocabulary");
    if (*n == POST_MAX_IDS)
        return err_set(err, ERR_UNSUPPORTED, "post_processor: more than %d ids", POST_MAX_IDS);
    (behind ? a->after : a->before)[(*n)++] = (int32_t)value;
    return 0;
}

static int parse_template(struct around *a, const json_t *step, struct err *err)
{
    const json_t *single = json_object_get(step, "single"), *piece;
    const json_t *tokens = json_object_get(step, "special_tokens");
    bool behind = false;
    size_t i, j;

    if (!json_is_array(single))
        return err_set(err, ERR_PARSE, "post_processor: single is not an array");
    json_array_foreach((json_t *)single, i, piece)
    {
        const json_t *special = json_object_get(piece, "SpecialToken");
        const json_t *sequence = json_object_get(piece, "Sequence");
        const char *name = json_string_value(json_object_get(special ? special : sequence, "id"));
        const json_t *ids, *id;
        int rc = 0;

        if (!name)
            return err_set(err, ERR_PARSE, "post_processor: a template piece without an id");
        if (sequence) {
            if (strcmp(name, "A") != 0 || behind)
                return err_set(err, ERR_UNSUPPORTED,
                               "post_processor: a template for one text needs it just once");
            behind = true;
            continue;
        }
        ids = json_object_get(json_object_get(tokens, name), "ids");
        if (!json_is_array(ids))
            return err_set(err, ERR_PARSE, "post_processor: special token '%.64s' has no ids",
                           name);
        json_array_foreach((json_t *)ids, j, id)
        {
            rc = around_add(a, behind, id, err);
            if (rc < 0)
                return rc;
        }
    }
    return behind ? 0 : err_set(err, ERR_UNSUPPORTED, "post_processor: a template without a text");
}

static int parse_step(struct around *a, const json_t *step, struct err *err)
{
    const char *type = component_type(step);
    int rc;

    if (strcmp(type, "ByteLevel") == 0)
        return 0;
    if (strcmp(type, "TemplateProcessing") == 0)
        return parse_template(a, step, err);
    if (strcmp(type, "BertProcessing") == 0 || strcmp(type, "RobertaProcessing") == 0) {
        rc = around_add(a, false, json_array_get(json_object_get(step, "cls"), 1), err);
        return rc < 0 ? rc
                      : around_add(a, true, json_array_get(json_object_get(step, "sep"), 1), err);
    }
    return component_unknown("post_processor", type, err);
}

int post_processor_load(struct post_processor *pp, const json_t *json, int32_t n_ids,
                        struct err *err)
{
    const json_t *steps[COMPONENT_MAX_STEPS];
    int n, rc;

    *pp = (struct post_processor){0};
    n = component_flatten(steps, json, "processors", "post_processor", err);
    if (n < 0)
        return n;
    for (int i = 0; i < n; i++) {
        struct around a = {.n_ids = n_ids};

        rc = parse_step(&a, steps[i], err);
        if (rc < 0)
            return rc;
        if (pp->n_before + a.n_before > POST_MAX_IDS || pp->n_after + a.n_after > POST_MAX_IDS)
            return err_set(err, ERR_UNSUPPORTED, "post_processor: more than %d ids", POST_MAX_IDS);
        memmove(pp->before + a.n_before, pp->before, (size_t)pp->n_before * sizeof(*pp->before));
        memcpy(pp->before, a.before, (size_t)a.n_before * sizeof(*pp->before));
        memcpy(pp->after + pp->n_after, a.after, (size_t)a.n_after * sizeof(*pp->after));
        pp->n_before += a.n_before;
        pp->n_after += a.n_after;
    }
    return 0;
}
