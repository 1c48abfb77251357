/*
 * validation - the loss of plans at an unseen length. See validation.h.
 */
#include "engine/plan/search/validation.h"

#include "base/clock.h"
#include "base/err.h"
#include "base/file_map.h"
#include "base/file_write.h"
#include "base/strbuf.h"
#include "engine/plan/search/answer_loss.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

/* The file of a plan's result: one line, behind its key. */
static bool load(struct validation *out, const char *path, const char *key)
{
    struct err ignored = {0};
    char *text = NULL;
    bool ok = false;

    if (file_read_text(&text, NULL, path, 1 << 20, &ignored) < 0)
        return false;
    if (!strncmp(text, key, strlen(key)))
        ok = sscanf(text + strlen(key), "\nloss,items,seconds\n%lf,%d,%lf", &out->loss,
                    &out->n_items, &out->seconds) == 3;
    free(text);
    out->was_kept = ok;
    return ok;
}

/* A plan's text stands in the key, so that another plan of the same name is measured anew. */
static int make_key(struct strbuf *key, const struct search_options *o, const char *spec,
                    struct err *err)
{
    char *text = NULL;
    uint64_t h = 14695981039346656037u;
    struct err ignored = {0};

    strbuf_addstr(key, "# ");
    search_key_profile(key, o);
    if (file_read_text(&text, NULL, spec, 16 << 20, &ignored) == 0) {
        for (const char *p = text; *p; p++)
            h = (h ^ (unsigned char)*p) * 1099511628211u;
        strbuf_addf(key, " plan=%016llx", (unsigned long long)h);
    } else {
        strbuf_addf(key, " plan=%s", spec);
    }
    free(text);
    return key->failed ? err_set(err, ERR_NO_ROOM, "validate: out of memory") : 0;
}

int validation_get(struct validation *out, const struct search_options *o,
                   const struct calibration *c, const char *spec, const char *label,
                   struct err *err)
{
    char path[4200], name[128], title[128];
    struct answer_loss_args run = {
        .o = o, .items = c, .length = o->validate_length, .spec = spec, .label = title};
    struct strbuf key = STRBUF_INIT, text = STRBUF_INIT;
    int64_t t0 = clock_ns();
    int rc;

    memset(out, 0, sizeof(*out));
    snprintf(name, sizeof(name), "validation_%s.csv", label);
    snprintf(title, sizeof(title), "validate %s", label);
    search_path(path, sizeof(path), o, name);
    rc = make_key(&key, o, spec, err);
    if (rc < 0 || load(out, path, key.buf))
        goto out;
    rc = answer_loss_mean(&run, &out->loss, err);
    if (rc == 0)
        rc = err_set(err, ERR_INVALID, "validate: no item has %d tokens", o->validate_length);
    if (rc < 0)
        goto out;
    out->n_items = rc;
    out->seconds = (double)(clock_ns() - t0) * 1e-9;
    strbuf_addf(&text, "%s\nloss,items,seconds\n%.17g,%d,%.3f\n", key.buf, out->loss, out->n_items,
                out->seconds);
    rc = file_write_whole(path, text.buf, text.len, err);
out:
    strbuf_release(&key);
    strbuf_release(&text);
    return rc;
}
