/*
 * sse - event framing. The JSON in between has no raw newline, so one data line always suffices.
 */
#include "server/sse.h"

#include "base/strbuf.h"

void sse_begin(struct strbuf *out)
{
    strbuf_add(out, "data: ", 6);
}

void sse_end(struct strbuf *out)
{
    strbuf_add(out, "\n\n", 2);
}

void sse_done(struct strbuf *out)
{
    strbuf_addstr(out, "data: [DONE]\n\n");
}

void sse_ping(struct strbuf *out)
{
    strbuf_addstr(out, ": ping\n\n");
}
