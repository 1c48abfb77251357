/*
 * sse_reader - lines to events. See sse_reader.h.
 */
#include "tests/bench/sse_reader.h"

#include "base/err.h"

#include <string.h>

void sse_reader_init(struct sse_reader *s)
{
    strbuf_init(&s->line);
    strbuf_init(&s->data);
    s->has_data = s->after_cr = false;
}

void sse_reader_release(struct sse_reader *s)
{
    strbuf_release(&s->line);
    strbuf_release(&s->data);
}

void sse_reader_reset(struct sse_reader *s)
{
    strbuf_reset(&s->line);
    strbuf_reset(&s->data);
    s->has_data = s->after_cr = false;
}

/* A whole line, without its end. */
static void read_line(struct sse_reader *s, sse_event_fn *on_event, void *arg)
{
    const char *line = s->line.buf;
    size_t len = s->line.len;

    if (len == 0) {
        if (s->has_data)
            on_event(arg, s->data.buf, s->data.len);
        strbuf_reset(&s->data);
        s->has_data = false;
    } else if (len >= 4 && !memcmp(line, "data", 4) && (len == 4 || line[4] == ':')) {
        size_t at = len == 4 ? 4 : 5;

        if (at < len && line[at] == ' ')
            at++;
        if (s->has_data)
            strbuf_addch(&s->data, '\n');
        strbuf_add(&s->data, line + at, len - at);
        s->has_data = true;
    }
    strbuf_reset(&s->line);
}

/* Bytes before the first CR or LF. */
static size_t line_bytes(const char *data, size_t len)
{
    const char *lf = memchr(data, '\n', len);
    size_t n = lf ? (size_t)(lf - data) : len;
    const char *cr = memchr(data, '\r', n);

    return cr ? (size_t)(cr - data) : n;
}

int sse_reader_feed(struct sse_reader *s, const char *data, size_t len, sse_event_fn *on_event,
                    void *arg, struct err *err)
{
    size_t at = 0;

    while (at < len) {
        size_t n;

        if (s->after_cr && data[at] == '\n') {
            s->after_cr = false;
            at++;
            continue;
        }
        s->after_cr = false;
        n = line_bytes(data + at, len - at);
        if (s->line.len + s->data.len + n > SSE_EVENT_MAX)
            return err_set(err, ERR_LIMIT, "an event of more than %d bytes", SSE_EVENT_MAX);
        strbuf_add(&s->line, data + at, n);
        at += n;
        if (at < len) {
            s->after_cr = data[at++] == '\r';
            if (s->line.failed)
                return err_set(err, ERR_NO_ROOM, "out of memory");
            read_line(s, on_event, arg);
        }
        if (s->line.failed || s->data.failed)
            return err_set(err, ERR_NO_ROOM, "out of memory");
    }
    return 0;
}
