/*
 * http_load - drives an OpenAI-compatible server: n_streams clients, each with one request at a
 * time and the next one as soon as it is answered (a closed loop). One thread, one libuv loop.
 *
 * Times are the client's: ttft from the first byte of the request handed to the kernel to the first
 * event with text; itl between events with text (a server may put several tokens into one); tpot
 * (last - first) / (completion_tokens - 1) a request; total to the last byte of the response.
 * A connect is in none of them. A failed request is counted as an error and as nothing else.
 */
#ifndef HTTP_LOAD_H
#define HTTP_LOAD_H

#include "base/err.h"

#include <netinet/in.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

struct http_load_params {
    struct sockaddr_storage addr;
    const char *host;   /* for the Host header: name and port */
    const char *prefix; /* of the paths: "" or "/some/path" */
    const char *model;  /* NULL: not sent */
    int n_streams, n_requests;
    int n_warmup;                  /* requests before those that count */
    const char *prompt;            /* the text behind a number that makes each distinct; or NULL: */
    int prompt_tokens, vocab_size; /* so many random ids below vocab_size */
    int max_tokens;
    double temperature;
    uint64_t seed; /* the same seed: the same requests */
    bool stream;
    int timeout_ms; /* without a byte; ends a request as an error */
};

struct http_samples {
    int64_t *ns; /* [n] */
    size_t n, alloc;
    bool failed; /* memory was out: some are missing */
};

struct http_load_result {
    int n_ok, n_errors;
    int n_short;                                        /* of n_ok: fewer tokens than max_tokens */
    int64_t prompt_tokens, completion_tokens, n_events; /* of n_ok */
    int64_t wall_ns;                                    /* first request to last answer */
    int64_t n_connects, n_repeats; /* of the whole run, warm-up included; see http_conn.h */
    double client_cpu;             /* this process, in cores */
    bool interrupted;              /* by SIGINT: what was under way counts as nothing */
    struct err first_error;
    struct http_samples ttft, itl, tpot, total;
};

/* About twice a second while the requests that count are under way; may be NULL. */
typedef void http_load_progress_fn(void *arg, const struct http_load_result *so_far);

/*
 * Runs to the end. 0 also when requests failed: they are in *out. Negative when the run could not
 * be made or the warm-up failed. http_load_result_release() in any case.
 */
int http_load_run(struct http_load_result *out, const struct http_load_params *params,
                  http_load_progress_fn *on_progress, void *arg, struct err *err);
void http_load_result_release(struct http_load_result *r);

#endif
