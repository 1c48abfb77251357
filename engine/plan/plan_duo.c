/*
 * plan_duo - DuoAttention's trained gates as a plan.
 *
 * Their repository has one folder a model: full_attention_heads.tsv with one line a layer and one
 * number a KV head, and a config.json of which sink_size and recent_size count. A head whose gate
 * is open keeps everything, any other the first sink_size and the last recent_size tokens, which
 * is what it was trained with: exact numbers, the TOKEN mask.
 *
 *     duo:DIR            gates of 0.5 and more are open
 *     duo:DIR,SHARE      the SHARE of all heads with the largest gates are; of equal ones the first
 */
#include "engine/plan/plan_impl.h"

#include "base/err.h"
#include "base/file_map.h"
#include "base/json_file.h"
#include "engine/model/json_fields.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define THRESHOLD      0.5
#define MAX_PATH_BYTES 4096

struct duo {
    char dir[MAX_PATH_BYTES];
    double share; /* negative: by the threshold */
    int sink, recent;
    double *gates; /* [n_layers, n_kv_heads] */
    int n_gates;
};

static int parse_args(struct plan *p, struct duo *d, const char *args, struct err *err)
{
    const char *comma = strrchr(args, ',');
    size_t len = comma ? (size_t)(comma - args) : strlen(args);
    char *end;

    d->share = -1;
    if (comma) {
        d->share = strtod(comma + 1, &end);
        if (end == comma + 1 || *end || !(d->share >= 0 && d->share <= 1))
            return err_set(err, ERR_PARSE, "plan %s: want duo:DIR,SHARE with SHARE in 0..1",
                           p->name);
    }
    if (len == 0 || len + sizeof("/full_attention_heads.tsv") > sizeof(d->dir))
        return err_set(err, ERR_PARSE, "plan %s: want duo:DIR or duo:DIR,SHARE", p->name);
    memcpy(d->dir, args, len);
    d->dir[len] = '\0';
    return 0;
}

static int read_sizes(struct duo *d, struct err *err)
{
    char path[MAX_PATH_BYTES + 32];
    json_t *root = NULL;
    struct json_fields f = {.where = path, .err = err};

    snprintf(path, sizeof(path), "%s/config.json", d->dir);
    f.rc = json_file_load(&root, path, PLAN_MAX_FILE_BYTES, err);
    if (f.rc < 0)
        return f.rc;
    f.obj = root;
    if (!json_is_object(root))
        f.rc = err_set(err, ERR_PARSE, "%s: want an object", path);
    d->sink = json_fields_int(&f, "sink_size", 0, PLAN_MAX_TOKENS, JSON_FIELD_REQUIRED);
    d->recent = json_fields_int(&f, "recent_size", 1, PLAN_MAX_TOKENS, JSON_FIELD_REQUIRED);
    json_decref(root);
    return f.rc;
}

/* One line: a gate for each KV head. */
static int read_line(const struct plan *p, struct duo *d, char *line, const char *path, int line_no,
                     struct err *err)
{
    int n_kv = p->shape.n_kv_heads, n = 0;
    char *save = NULL;

    for (char *field = strtok_r(line, " \t\r", &save); field;
         field = strtok_r(NULL, " \t\r", &save)) {
        char *end;
        double gate = strtod(field, &end);

        if (*end || !isfinite(gate))
            return err_set(err, ERR_PARSE, "%s:%d: gate %d is %.40s, want a number", path, line_no,
                           n + 1, field);
        if (n < n_kv && d->n_gates < kv_shape_heads(&p->shape))
            d->gates[d->n_gates++] = fmin(fmax(gate, 0.0), 1.0);
        n++;
    }
    if (n != n_kv && n != 0)
        return err_set(err, ERR_PARSE, "%s:%d: %d gates, the model has %d key-value heads", path,
                       line_no, n, n_kv);
    return n;
}

static int read_gates(const struct plan *p, struct duo *d, struct err *err)
{
    char path[MAX_PATH_BYTES + 32], *text = NULL, *save = NULL;
    int n_layers = 0, line_no = 0, rc;
    size_t len;

    snprintf(path, sizeof(path), "%s/full_attention_heads.tsv", d->dir);
    rc = file_read_text(&text, &len, path, PLAN_MAX_FILE_BYTES, err);
    if (rc < 0)
        return rc;
    d->gates = calloc((size_t)kv_shape_heads(&p->shape), sizeof(*d->gates));
    if (!d->gates)
        rc = err_set(err, ERR_NO_ROOM, "%s: out of memory", path);
    for (char *line = text; rc >= 0 && line; line = save) {
        save = strchr(line, '\n');
        if (save)
            *save++ = '\0';
        rc = read_line(p, d, line, path, ++line_no, err);
        n_layers += rc > 0;
    }
    if (rc >= 0 && n_layers != p->shape.n_layers)
        rc = err_set(err, ERR_PARSE, "%s: %d lines of gates, the model has %d layers", path,
                     n_layers, p->shape.n_layers);
    free(text);
    return rc < 0 ? rc : 0;
}

/* How many heads come before this one when all are sorted by gate, largest first. */
static int rank_of(const struct duo *d, int at)
{
    int rank = 0;

    for (int i = 0; i < d->n_gates; i++)
        rank += d->gates[i] > d->gates[at] || (d->gates[i] == d->gates[at] && i < at);
    return rank;
}

static void set_rules(struct plan *p, const struct duo *d)
{
    int n_group = p->shape.n_heads / p->shape.n_kv_heads;
    int n_open = (int)lround(d->share * d->n_gates);

    for (int i = 0; i < d->n_gates; i++) {
        bool open = d->share < 0 ? d->gates[i] >= THRESHOLD : rank_of(d, i) < n_open;

        for (int k = 0; k < n_group; k++)
            p->rules[i * n_group + k] = open ? (struct kv_rule){.kind = KV_RULE_DENSE}
                                             : (struct kv_rule){.kind = KV_RULE_STREAM,
                                                                .n_sink = d->sink,
                                                                .n_recent = d->recent};
    }
}

int plan_read_duo(struct plan *p, const char *args, struct err *err)
{
    struct duo *d = calloc(1, sizeof(*d));
    int rc;

    p->kind = PLAN_DUO;
    if (!d)
        return err_set(err, ERR_NO_ROOM, "plan %s: out of memory", p->name);
    rc = parse_args(p, d, args, err);
    if (rc == 0) {
        rc = read_sizes(d, err);
        if (rc == 0)
            rc = read_gates(p, d, err);
        if (rc == 0)
            set_rules(p, d);
        else
            err_prefix(err, "plan");
    }
    free(d->gates);
    free(d);
    return rc;
}
