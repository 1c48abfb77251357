/*
 * focus - leaves loss to the answer tokens that depend on the far context. See focus.h.
 */
#include "engine/plan/search/focus.h"

#include "base/clock.h"
#include "base/err.h"
#include "base/file_map.h"
#include "base/file_write.h"
#include "base/strbuf.h"
#include "engine/plan/search/answer_loss.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define LEAST_LOSS     0.6931471805599453 /* log 2: half as likely */
#define MAX_FILE_BYTES ((size_t)1 << 28)

/* Losses of all answer tokens, items one after the other. */
struct table {
    const struct calibration *c;
    float *dense, *window, *to; /* to: the one that is being filled */
    int n;
};

static int first_of(const struct calibration *c, const struct calibration_item *item)
{
    int first = 0;

    for (const struct calibration_item *i = c->items; i < item; i++)
        first += i->n_answer;
    return first;
}

static void fill_item(void *arg, const struct calibration_item *item, const float *loss, int n)
{
    struct table *t = arg;

    /* With the whole context's loss the answer is its end. */
    memcpy(t->to + first_of(t->c, item), loss + n - item->n_answer,
           sizeof(*loss) * (size_t)item->n_answer);
}

static int measure(struct table *t, const struct search_options *o, struct err *err)
{
    char uniform[64];
    struct answer_loss_args run = {.o = o, .items = t->c, .on_item = fill_item, .arg = t};
    int rc;

    snprintf(uniform, sizeof(uniform), "uniform:%.6g", o->density);
    t->to = t->dense;
    run.spec = "dense";
    run.label = "focus, dense";
    rc = answer_loss_run(&run, err);
    if (rc < 0)
        return rc;
    t->to = t->window;
    run.spec = uniform;
    run.label = "focus, windows";
    return answer_loss_run(&run, err);
}

static int save(const struct table *t, const char *path, const char *key, struct err *err)
{
    struct strbuf out = STRBUF_INIT;
    int rc, at = 0;

    strbuf_addf(&out, "%s\nitem,token,id,dense,window\n", key);
    for (int i = 0; i < t->c->n_items; i++) {
        const struct calibration_item *item = &t->c->items[i];

        for (int k = 0; k < item->n_answer; k++, at++)
            strbuf_addf(&out, "%d,%d,%d,%.9g,%.9g\n", i, k, item->ids[item->n_prompt + k],
                        (double)t->dense[at], (double)t->window[at]);
    }
    rc = out.failed ? err_set(err, ERR_NO_ROOM, "%s: out of memory", path)
                    : file_write_whole(path, out.buf, out.len, err);
    strbuf_release(&out);
    return rc;
}

/* What an earlier run left; false for a file of another search, or a broken one. */
static bool load(struct table *t, const char *path, const char *key)
{
    struct err ignored = {0};
    char *text = NULL, *at;
    bool ok = false;
    int n = 0;

    if (file_read_text(&text, NULL, path, MAX_FILE_BYTES, &ignored) < 0)
        return false;
    if (strncmp(text, key, strlen(key)) || !(at = strstr(text + strlen(key), "window\n")))
        goto out;
    for (at += strlen("window\n"); *at && n < t->n; n++) {
        int item, token, id, used = 0;

        if (sscanf(at, "%d,%d,%d,%f,%f%n", &item, &token, &id, &t->dense[n], &t->window[n],
                   &used) != 5 ||
            at[used] != '\n')
            goto out;
        at += used + 1;
    }
    ok = n == t->n && !*at;
out:
    free(text);
    return ok;
}

/* Marks an item's tokens; the number that bear loss. */
static int mark(struct calibration_item *item, const float *dense, const float *window)
{
    int n = 0;

    for (int k = 0; k < item->n_answer; k++) {
        item->bears[k] = (double)window[k] - (double)dense[k] >= LEAST_LOSS;
        n += item->bears[k];
    }
    return n;
}

/* Drops the items that lose no token. */
static void drop(struct focus *out, struct calibration *c)
{
    int left = 0;

    for (int i = 0; i < c->n_items; i++) {
        struct calibration_item *item = &c->items[i];

        if (memchr(item->bears, 1, (size_t)item->n_answer)) {
            c->items[left++] = *item;
            continue;
        }
        free(item->ids);
        free(item->bears);
        out->n_dropped++;
    }
    c->n_items = left;
}

static int choose(struct focus *out, struct calibration *c, const struct table *t, struct err *err)
{
    int at = 0;

    out->n_items = c->n_items;
    for (int i = 0; i < c->n_items; i++) {
        struct calibration_item *item = &c->items[i];

        item->bears = calloc((size_t)item->n_answer, 1);
        if (!item->bears)
            return err_set(err, ERR_NO_ROOM, "focus: out of memory");
        out->n_kept += mark(item, t->dense + at, t->window + at);
        at += item->n_answer;
    }
    out->n_tokens = at;
    drop(out, c);
    return 0;
}

static int check_length(const struct calibration *c, int length, struct err *err)
{
    for (int i = 0; i < c->n_items; i++)
        if (c->items[i].length == length)
            return 0;
    return err_set(err, ERR_INVALID,
                   "focus: no answer at %d tokens depends on what windows of this density forget: "
                   "give more --items, longer texts or --focus false",
                   length);
}

int focus_apply(struct focus *out, struct calibration *c, const struct search_options *o,
                struct err *err)
{
    struct table t = {.c = c};
    struct strbuf key = STRBUF_INIT;
    int64_t t0 = clock_ns();
    char path[4200];
    int rc = 0;

    memset(out, 0, sizeof(*out));
    for (int i = 0; i < c->n_items; i++)
        t.n += c->items[i].n_answer;
    t.dense = calloc((size_t)t.n, sizeof(*t.dense));
    t.window = calloc((size_t)t.n, sizeof(*t.window));
    search_path(path, sizeof(path), o, "focus.csv");
    strbuf_addstr(&key, "# ");
    search_key_items(&key, o);
    strbuf_addf(&key, " density=%.6g", o->density);
    if (!t.dense || !t.window || key.failed) {
        rc = err_set(err, ERR_NO_ROOM, "focus: out of memory");
        goto out;
    }
    out->was_kept = load(&t, path, key.buf);
    if (!out->was_kept) {
        rc = measure(&t, o, err);
        rc = rc < 0 ? rc : save(&t, path, key.buf, err);
    }
    if (rc == 0)
        rc = choose(out, c, &t, err);
    for (int i = 0; i < o->n_lengths && rc == 0; i++)
        rc = check_length(c, o->length[i], err);
    if (rc == 0 && o->validate_best > 0)
        rc = check_length(c, o->validate_length, err);
    out->seconds = (double)(clock_ns() - t0) * 1e-9;
out:
    strbuf_release(&key);
    free(t.dense);
    free(t.window);
    return rc;
}
