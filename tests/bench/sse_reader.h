/*
 * sse_reader - splits server-sent events out of bytes that arrive cut anywhere.
 *
 * Of an event only its data is kept: several data lines joined by a line feed, as the HTML standard
 * has it. Comments and other fields are skipped, and so is an event without data. Lines end with
 * LF, CR or CR LF.
 */
#ifndef SSE_READER_H
#define SSE_READER_H

#include "base/strbuf.h"

#include <stdbool.h>
#include <stddef.h>

struct err;

#define SSE_EVENT_MAX (4 << 20) /* bytes of one event: a server that sends more is broken */

/* data is NUL-terminated and borrowed until the return; a NUL inside is possible. */
typedef void sse_event_fn(void *arg, const char *data, size_t len);

struct sse_reader { /* fields are private */
    struct strbuf line, data;
    bool has_data, after_cr;
};

/* Allocates nothing yet. */
void sse_reader_init(struct sse_reader *s);
void sse_reader_release(struct sse_reader *s);

/* Forgets a half-read event: before the next response. Memory is kept. */
void sse_reader_reset(struct sse_reader *s);

/*
 * Takes bytes as they came; on_event is called for each event that they complete. ERR_LIMIT over
 * SSE_EVENT_MAX, ERR_NO_ROOM without memory; the reader needs a reset then.
 */
int sse_reader_feed(struct sse_reader *s, const char *data, size_t len, sse_event_fn *on_event,
                    void *arg, struct err *err);

#endif
