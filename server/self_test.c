/*
 * self_test - the request and its end.
 */
#include "server/self_test.h"

#include "base/clock.h"
#include "base/log.h"
#include "engine/engine.h"

int self_test_start(struct self_test *t, struct engine *e, struct err *err)
{
    int bos_id = engine_get_info(e)->bos_id;
    int32_t token = bos_id >= 0 ? bos_id : 0;
    struct engine_request req = {.prompt = &token, .n_prompt = 1, .user = t};
    uint64_t id;
    int rc;

    if (t->since_ns)
        return 0;
    sampling_params_init(&req.sampling);
    req.sampling.temperature = 0;
    req.sampling.max_tokens = 1;
    req.sampling.ignore_eos = true;
    t->since_ns = clock_ns();
    rc = engine_submit(e, &req, &id, err);
    if (rc < 0)
        t->since_ns = 0;
    else
        t->n_submitted++;
    return rc;
}

bool self_test_owns(const struct self_test *t, const struct engine_event *ev)
{
    return ev->user == t;
}

void self_test_take_event(struct self_test *t, const struct engine_event *ev)
{
    if (ev->finish == FINISH_NONE)
        return;
    t->since_ns = 0;
    if (ev->finish == FINISH_LENGTH || ev->finish == FINISH_STOP) {
        if (t->has_failed)
            log_info("the self-test passes again");
        t->n_passed++;
        t->has_failed = false;
    } else if (ev->finish == FINISH_ERROR) {
        log_error("the self-test failed: %s", ev->error ? ev->error : "no token came");
        t->n_failed++;
        t->has_failed = true;
    }
}

void self_test_hide(const struct self_test *t, struct engine_stats *s)
{
    s->n_submitted -= t->n_submitted;
    s->n_finished[FINISH_LENGTH] -= t->n_passed;
    s->n_finished[FINISH_ERROR] -= t->n_failed;
    s->prompt_tokens -= t->n_passed;
    s->generation_tokens -= t->n_passed;
}
