/*
 * sse - server-sent events as SDKs parse them: one `data:` line an event, then an empty line.
 */
#ifndef SSE_H
#define SSE_H

struct strbuf;

/* An event is written between these two, straight into the connection's buffer. */
void sse_begin(struct strbuf *out);
void sse_end(struct strbuf *out);

/* The end marker: exactly `data: [DONE]`, since the Node SDK compares for equality. */
void sse_done(struct strbuf *out);

/* A comment that keeps proxies from closing a silent stream. */
void sse_ping(struct strbuf *out);

#endif
