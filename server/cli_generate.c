/*
 * cli_generate - `spand generate`: one completion to stdout as it is made, without HTTP.
 *
 * stdout gets the completion's bytes and nothing else, so that it can be piped and compared; what
 * there is to say about it goes to stderr.
 */
#include "server/cli.h"

#include "base/clock.h"
#include "base/err.h"
#include "base/file_map.h"
#include "base/log.h"
#include "config/config.h"
#include "engine/engine.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#define MAX_PROMPT_BYTES ((size_t)256 << 20)
#define WAIT_NS          INT64_C(1000000000)

struct generate_flags {
    const char *prompt, *prompt_file, *stop;
    int max_tokens, min_tokens, top_k;
    double temperature, top_p, min_p, repetition_penalty;
    int64_t seed;
    bool ignore_eos, quiet;
};

struct generate_run {
    bool is_done;
    int n_prompt, n_tokens;
    enum finish_reason finish;
    int64_t start_ns, first_ns, last_ns;
    struct err *err;
};

static void on_event(void *arg, const struct engine_event *ev)
{
    struct generate_run *run = arg;

    fwrite(ev->text, 1, ev->text_len, stdout);
    fflush(stdout);
    run->n_prompt = ev->n_prompt_tokens;
    run->n_tokens = ev->n_completion_tokens;
    run->start_ns = ev->submit_ns;
    run->first_ns = ev->first_token_ns;
    run->last_ns = ev->last_token_ns;
    if (ev->finish == FINISH_NONE)
        return;
    run->is_done = true;
    run->finish = ev->finish;
    if (ev->finish == FINISH_ERROR)
        err_set(run->err, ERR_DEVICE, "%s", ev->error ? ev->error : "the generation failed");
}

/* The prompt's tokens; an empty prompt is BOS where the tokenizer has one. */
static int read_prompt(const struct engine *e, const struct generate_flags *f, int32_t **ids,
                       int *n_ids, struct err *err)
{
    char *text = NULL;
    size_t len = f->prompt ? strlen(f->prompt) : 0;
    int rc = 0;

    if (f->prompt_file)
        rc = file_read_text(&text, &len, f->prompt_file, MAX_PROMPT_BYTES, err);
    if (rc == 0)
        rc = engine_tokenize(e, text ? text : f->prompt, len, true, true, ids, n_ids, err);
    free(text);
    if (rc < 0 || *n_ids > 0)
        return rc;
    free(*ids);
    *ids = malloc(sizeof(**ids));
    if (!*ids)
        return err_set(err, ERR_NO_ROOM, "out of memory");
    **ids = engine_get_info(e)->bos_id;
    *n_ids = 1;
    if (**ids < 0)
        return err_set(err, ERR_INVALID,
                       "the prompt is empty, and this model has no token to begin with");
    return 0;
}

static void fill_request(struct engine_request *req, const struct generate_flags *f)
{
    struct sampling_params *p = &req->sampling;

    sampling_params_init(p);
    p->temperature = (float)f->temperature;
    p->top_p = (float)f->top_p;
    p->min_p = (float)f->min_p;
    p->top_k = f->top_k;
    p->repetition_penalty = (float)f->repetition_penalty;
    p->seed = (uint64_t)f->seed;
    p->max_tokens = f->max_tokens;
    p->min_tokens = f->min_tokens;
    p->ignore_eos = f->ignore_eos;
    p->skip_special = true;
    p->n_logprobs = -1;
    p->n_prompt_logprobs = -1;
    p->stop = &f->stop;
    p->n_stop = f->stop && *f->stop ? 1 : 0;
}

static void print_summary(const struct generate_run *run)
{
    double ttft_ms = (run->first_ns - run->start_ns) * 1e-6;
    double decode_s = (run->last_ns - run->first_ns) * 1e-9;

    fprintf(stderr, "\n%d prompt tokens, %d generated (%s)", run->n_prompt, run->n_tokens,
            run->finish == FINISH_STOP ? "stop" : "length");
    if (run->n_tokens > 0)
        fprintf(stderr, "; first after %.1f ms", ttft_ms);
    if (run->n_tokens > 1 && decode_s > 0)
        fprintf(stderr, ", then %.1f tokens/s", (run->n_tokens - 1) / decode_s);
    fputc('\n', stderr);
}

static int generate(struct engine *e, const struct generate_flags *f, struct err *err)
{
    struct generate_run run = {.err = err};
    struct engine_request req = {.user = &run};
    int32_t *ids = NULL;
    uint64_t id;
    int rc = read_prompt(e, f, &ids, &req.n_prompt, err);

    if (rc < 0)
        goto out;
    req.prompt = ids;
    fill_request(&req, f);
    rc = engine_submit(e, &req, &id, err);
    if (rc < 0)
        goto out;
    while (!run.is_done) {
        engine_wait(e, WAIT_NS);
        engine_poll(e, on_event, &run);
        if (ferror(stdout) && !run.is_done)
            engine_cancel(e, id); /* nobody can read the rest; main() says so */
    }
    rc = run.finish == FINISH_ERROR ? err->code : 0;
    if (rc == 0 && !f->quiet && !ferror(stdout))
        print_summary(&run);
out:
    free(ids);
    return rc;
}

int cli_generate(int argc, char **argv)
{
    struct generate_flags f = {
        .max_tokens = 128, .top_p = 1, .repetition_penalty = 1, .temperature = 0};
    const struct config_extra extras[] = {
        {"prompt", CONFIG_STRING, &f.prompt, "The text to continue.", 0, 0},
        {"prompt_file", CONFIG_PATH, &f.prompt_file, "A file that holds it instead.", 0, 0},
        {"max_tokens", CONFIG_INT, &f.max_tokens, "The most tokens to generate.", 0, 16777216},
        {"min_tokens", CONFIG_INT, &f.min_tokens, "No end before so many.", 0, 16777216},
        {"temperature", CONFIG_DOUBLE, &f.temperature, "0 takes the likeliest token.", 0, 2},
        {"top_p", CONFIG_DOUBLE, &f.top_p, "Samples from this share of the mass.", 1e-9, 1},
        {"top_k", CONFIG_INT, &f.top_k, "Samples from the K likeliest; 0: from all.", 0, 1 << 30},
        {"min_p", CONFIG_DOUBLE, &f.min_p, "Drops tokens below this share of the best.", 0, 1},
        {"repetition_penalty", CONFIG_DOUBLE, &f.repetition_penalty, "1 is off.", 1e-9, 10},
        {"seed", CONFIG_INT64, &f.seed, "The same seed gives the same text.", 0, 0},
        {"stop", CONFIG_STRING, &f.stop, "Ends before this text.", 0, 0},
        {"ignore_eos", CONFIG_BOOL, &f.ignore_eos, "Goes on behind the end token.", 0, 0},
        {"quiet", CONFIG_BOOL, &f.quiet, "No summary on stderr.", 0, 0},
    };
    struct config config;
    struct engine *e = NULL;
    struct err err = {0};
    int rc;

    if (!cli_configure(&config, "spand generate --model DIR --prompt TEXT [--max-tokens N] ...",
                       argc, argv, extras, sizeof(extras) / sizeof(extras[0]), &rc))
        return rc;
    if (!f.prompt && !f.prompt_file) {
        fprintf(stderr, "spand: generate needs --prompt or --prompt-file\n");
        rc = CLI_USAGE;
    } else if (engine_open(&e, &config, NULL, &err) < 0 || generate(e, &f, &err) < 0) {
        rc = cli_report(&err);
    } else {
        rc = CLI_OK;
    }
    engine_close(e);
    config_release(&config);
    return rc;
}
