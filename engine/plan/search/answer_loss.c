/*
 * answer_loss - what every answer token costs under a plan. See answer_loss.h.
 */
#include "engine/plan/search/answer_loss.h"

#include "base/clock.h"
#include "base/err.h"
#include "config/config.h"
#include "engine/engine.h"

#include <stdlib.h>

#define WAIT_NS    INT64_C(200000000)
#define MAX_FLIGHT 4

struct run {
    const struct answer_loss_args *args;
    struct engine *e;
    struct err *err;
    int rc, n_flight, n_done, n_all, next;
    int64_t t0;
};

struct flight {
    const struct calibration_item *item;
    int first; /* token that bears loss */
};

static void tell(struct run *r, const struct flight *f, const struct engine_event *ev)
{
    int n = ev->n_prompt_tokens - f->first;
    float *loss = malloc(sizeof(*loss) * (size_t)n);

    if (!loss) {
        r->rc = err_set(r->err, ERR_NO_ROOM, "%s: out of memory", r->args->label);
        return;
    }
    for (int i = 0; i < n; i++)
        loss[i] = -ev->prompt_tokens[f->first + i].logprob;
    r->args->on_item(r->args->arg, f->item, loss, n);
    free(loss);
    r->n_done++;
    search_progress(r->args->label, r->n_done, r->n_all, (double)(clock_ns() - r->t0) * 1e-9, NULL);
}

static void on_event(void *arg, const struct engine_event *ev)
{
    struct run *r = arg;
    struct flight *f = ev->user;

    if (ev->prompt_tokens)
        tell(r, f, ev);
    if (ev->finish == FINISH_NONE)
        return;
    if (ev->finish == FINISH_ERROR)
        r->rc =
            err_set(r->err, ERR_DEVICE, "%s: %s", r->args->label, ev->error ? ev->error : "failed");
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
        return err_set(r->err, ERR_NO_ROOM, "%s: out of memory", r->args->label);
    f->item = item;
    f->first = calibration_first_target(item, r->args->o->whole_context_loss);
    sampling_params_init(&req.sampling);
    req.sampling.max_tokens = 0;
    req.sampling.n_logprobs = -1;
    req.sampling.n_prompt_logprobs = 0;
    req.sampling.prompt_logprobs_at = f->first;
    rc = engine_submit(r->e, &req, &id, r->err);
    if (rc < 0) {
        free(f);
        err_prefix(r->err, "%s, an item of %d tokens", r->args->label, req.n_prompt);
        return rc;
    }
    r->n_flight++;
    return 0;
}

static bool is_wanted(const struct run *r, const struct calibration_item *item)
{
    return r->args->length == 0 || item->length == r->args->length;
}

static int run_items(struct run *r)
{
    const struct calibration *c = r->args->items;

    for (int i = 0; i < c->n_items; i++)
        r->n_all += is_wanted(r, &c->items[i]);
    while (r->rc == 0 && (r->next < c->n_items || r->n_flight > 0) && !search_is_stopped()) {
        while (r->next < c->n_items && r->n_flight < MAX_FLIGHT && r->rc == 0) {
            if (is_wanted(r, &c->items[r->next]))
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
        r->rc = err_set(r->err, ERR_CLOSED, "interrupted; what was done before %s is kept",
                        r->args->label);
    return r->rc;
}

int answer_loss_run(const struct answer_loss_args *args, struct err *err)
{
    struct config config = *args->o->config;
    struct run r = {.args = args, .err = err, .t0 = clock_ns()};
    int rc;

    config.plan = (char *)(uintptr_t)args->spec;
    rc = engine_open(&r.e, &config, NULL, err);
    if (rc == 0)
        rc = run_items(&r);
    engine_close(r.e);
    return rc < 0 ? rc : r.n_done;
}

struct total {
    double loss;
    int n_items;
};

static void add_item(void *arg, const struct calibration_item *item, const float *loss, int n)
{
    struct total *t = arg;
    double sum = 0;
    int n_bear = 0;

    for (int i = 0; i < n; i++) {
        if (item->bears && !item->bears[i])
            continue;
        sum += (double)loss[i];
        n_bear++;
    }
    t->loss += sum / n_bear;
    t->n_items++;
}

int answer_loss_mean(const struct answer_loss_args *args, double *mean, struct err *err)
{
    struct answer_loss_args run = *args;
    struct total total = {0};
    int rc;

    run.on_item = add_item;
    run.arg = &total;
    rc = answer_loss_run(&run, err);
    *mean = total.n_items ? total.loss / total.n_items : 0.0;
    return rc;
}
