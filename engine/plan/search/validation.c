/*
 * validation - the loss of plans at an unseen length. See validation.h.
 */
#include "engine/plan/search/validation.h"

#include "base/clock.h"
#include "base/err.h"
#include "base/file_map.h"
#include "base/file_write.h"
#include "base/strbuf.h"
#include "config/config.h"
#include "engine/engine.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define WAIT_NS    INT64_C(200000000)
#define MAX_FLIGHT 4

struct run {
    const struct search_options *o;
    struct engine *e;
    struct err *err;
    int rc, n_flight, n_done, n_all, next;
    double sum;
    const char *label;
    int64_t t0;
};

struct flight {
    int first; /* token that bears loss */
};

static void on_event(void *arg, const struct engine_event *ev)
{
    struct run *r = arg;
    struct flight *f = ev->user;

    if (ev->prompt_tokens) {
        double sum = 0;

        for (int i = f->first; i < ev->n_prompt_tokens; i++)
            sum -= (double)ev->prompt_tokens[i].logprob;
        r->sum += sum / (ev->n_prompt_tokens - f->first);
        r->n_done++;
        search_progress(r->label, r->n_done, r->n_all, (double)(clock_ns() - r->t0) * 1e-9, NULL);
    }
    if (ev->finish == FINISH_NONE)
        return;
    if (ev->finish == FINISH_ERROR)
        r->rc = err_set(r->err, ERR_DEVICE, "%s: %s", r->label, ev->error ? ev->error : "failed");
    r->n_flight--;
    free(f);
}

static int submit(struct run *r, const struct calibration_item *item)
{
    struct flight *f = calloc(1, sizeof(*f));
    struct engine_request req = {
        .prompt = item->ids, .n_prompt = item->n_prompt + item->n_answer, .user = f};
    uint64_t id;
    int rc;

    if (!f)
        return err_set(r->err, ERR_NO_ROOM, "validate: out of memory");
    f->first = calibration_first_target(item, r->o->whole_context_loss);
    sampling_params_init(&req.sampling);
    req.sampling.max_tokens = 0;
    req.sampling.n_logprobs = -1;
    req.sampling.n_prompt_logprobs = 0;
    req.sampling.prompt_logprobs_at = f->first;
    rc = engine_submit(r->e, &req, &id, r->err);
    if (rc < 0) {
        free(f);
        err_prefix(r->err, "%s, an item of %d tokens", r->label, req.n_prompt);
        return rc;
    }
    r->n_flight++;
    return 0;
}

static int measure(struct run *r, const struct calibration *c)
{
    for (int i = 0; i < c->n_items; i++)
        r->n_all += c->items[i].length == r->o->validate_length;
    while (r->rc == 0 && (r->next < c->n_items || r->n_flight > 0) && !search_is_stopped()) {
        while (r->next < c->n_items && r->n_flight < MAX_FLIGHT && r->rc == 0) {
            if (c->items[r->next].length == r->o->validate_length)
                r->rc = submit(r, &c->items[r->next]);
            r->next++;
        }
        if (r->n_flight > 0) {
            engine_wait(r->e, WAIT_NS);
            engine_poll(r->e, on_event, r);
        }
    }
    search_progress_end();
    if (r->rc == 0 && search_is_stopped())
        r->rc = err_set(r->err, ERR_CLOSED, "interrupted; plans validated so far are kept");
    if (r->rc == 0 && r->n_done == 0)
        r->rc =
            err_set(r->err, ERR_INVALID, "validate: no item has %d tokens", r->o->validate_length);
    return r->rc;
}

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
    struct config config = *o->config;
    char path[4200], name[128], title[128];
    struct run r = {.o = o, .err = err, .label = title, .t0 = clock_ns()};
    struct strbuf key = STRBUF_INIT, text = STRBUF_INIT;
    int rc;

    memset(out, 0, sizeof(*out));
    snprintf(name, sizeof(name), "validation_%s.csv", label);
    snprintf(title, sizeof(title), "validate %s", label);
    search_path(path, sizeof(path), o, name);
    rc = make_key(&key, o, spec, err);
    if (rc < 0 || load(out, path, key.buf))
        goto out;
    config.plan = (char *)(uintptr_t)spec;
    rc = engine_open(&r.e, &config, NULL, err);
    if (rc == 0)
        rc = measure(&r, c);
    engine_close(r.e);
    if (rc < 0)
        goto out;
    out->loss = r.sum / r.n_done;
    out->n_items = r.n_done;
    out->seconds = (double)(clock_ns() - r.t0) * 1e-9;
    strbuf_addf(&text, "%s\nloss,items,seconds\n%.17g,%d,%.3f\n", key.buf, out->loss, out->n_items,
                out->seconds);
    rc = file_write_whole(path, text.buf, text.len, err);
out:
    strbuf_release(&key);
    strbuf_release(&text);
    return rc;
}
