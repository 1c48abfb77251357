/*
 * fuzz_http_client - any bytes as a server's stream of events, cut as the first byte says: whole
 * and in pieces they give the same verdict and the same events.
 */
#include "base/check.h"
#include "base/err.h"
#include "base/strbuf.h"
#include "tests/bench/http_response.h"
#include "tests/bench/sse_reader.h"

#include <stdint.h>
#include <string.h>

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

struct outcome {
    struct sse_reader sse;
    struct strbuf events;
    struct err err;
    bool is_done;
    int rc;
    size_t n_taken;
};

static void on_event(void *arg, const char *data, size_t len)
{
    struct outcome *o = arg;

    CHECK(data[len] == '\0');
    strbuf_add(&o->events, data, len);
    strbuf_addch(&o->events, '\n');
}

static void on_body(void *arg, const char *data, size_t len)
{
    struct outcome *o = arg;

    CHECK(len > 0);
    CHECK(sse_reader_feed(&o->sse, data, len, on_event, o, NULL) == 0);
}

static void run(struct outcome *o, const char *data, size_t len, size_t step)
{
    static struct http_response r;

    memset(o, 0, sizeof(*o));
    strbuf_init(&o->events);
    sse_reader_init(&o->sse);
    http_response_init(&r);
    while (o->n_taken < len && !r.is_done) {
        size_t n = len - o->n_taken < step ? len - o->n_taken : step;
        ssize_t taken = http_response_feed(&r, data + o->n_taken, n, on_body, o, &o->err);

        if (taken < 0) {
            o->rc = (int)taken;
            CHECK(o->err.msg[0] != '\0');
            return;
        }
        CHECK(r.is_done || (size_t)taken == n);
        o->n_taken += taken;
    }
    o->rc = http_response_eof(&r, &o->err);
    o->is_done = r.is_done;
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    struct outcome whole, cut;

    if (size == 0)
        return 0;
    run(&whole, (const char *)data + 1, size - 1, size);
    run(&cut, (const char *)data + 1, size - 1, 1 + data[0] % 61);
    CHECK(whole.rc == cut.rc);
    CHECK(whole.is_done == cut.is_done);
    CHECK(whole.rc < 0 || whole.n_taken == cut.n_taken);
    CHECK(whole.events.len == cut.events.len);
    CHECK(!memcmp(whole.events.buf, cut.events.buf, whole.events.len));
    strbuf_release(&whole.events);
    strbuf_release(&cut.events);
    sse_reader_release(&whole.sse);
    sse_reader_release(&cut.sse);
    return 0;
}
