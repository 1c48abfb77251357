/*
 * trace_context - traceparent and tracestate. See trace_context.h.
 */
#include "server/trace_context.h"

#include "base/clock.h"

#include <stdio.h>
#include <string.h>
#include <sys/random.h>

#define MEMBERS_MAX 32

static int hex_digit(char c)
{
    if (c >= '0' && c <= '9')
        return c - '0';
    return c >= 'a' && c <= 'f' ? c - 'a' + 10 : -1; /* capitals are malformed */
}

/* False when there is anything but digits, or nothing but zeroes. */
static bool read_id(const char *s, uint8_t *out, size_t n)
{
    uint8_t any = 0;

    for (size_t i = 0; i < n; i++) {
        int high = hex_digit(s[2 * i]), low = high < 0 ? -1 : hex_digit(s[2 * i + 1]);

        if (low < 0)
            return false;
        out[i] = (uint8_t)(high << 4 | low);
        any |= out[i];
    }
    return any != 0;
}

/* version-trace_id-parent_id-flags; later versions may add to it behind a dash. */
bool trace_context_take_parent(struct trace_context *c, const char *traceparent)
{
    struct trace_context got = *c;
    uint8_t version = 0, flags = 0;
    size_t len = strlen(traceparent);

    if (len < TRACE_PARENT_SIZE - 1 || traceparent[2] != '-' || traceparent[35] != '-' ||
        traceparent[52] != '-')
        return false;
    if (!read_id(traceparent, &version, 1) && strncmp(traceparent, "00", 2))
        return false;
    if (version == 0xff || (version == 0 && len > TRACE_PARENT_SIZE - 1) ||
        (len > TRACE_PARENT_SIZE - 1 && traceparent[55] != '-'))
        return false;
    if (!read_id(traceparent + 3, got.trace_id, TRACE_ID_BYTES) ||
        !read_id(traceparent + 36, got.parent_id, TRACE_SPAN_BYTES))
        return false;
    if (!read_id(traceparent + 53, &flags, 1) && strncmp(traceparent + 53, "00", 2))
        return false;
    got.has_parent = true;
    got.is_sampled = flags & 1;
    *c = got;
    return true;
}

/* Its members are separated by commas; those that follow another stand behind it. */
void trace_context_add_state(struct trace_context *c, const char *tracestate)
{
    size_t len = strlen(c->state);
    int n_members = len > 0;

    for (const char *s = c->state; *s; s++)
        n_members += *s == ',';
    while (*tracestate) {
        size_t n = strcspn(tracestate, ",");
        const char *begin = tracestate, *end = tracestate + n;
        bool plain = true;

        tracestate = end + (*end == ',');
        while (begin < end && (*begin == ' ' || *begin == '\t'))
            begin++;
        while (end > begin && (end[-1] == ' ' || end[-1] == '\t'))
            end--;
        n = (size_t)(end - begin);
        for (const char *s = begin; s < end; s++)
            plain &= *s >= 0x20 && *s <= 0x7e;
        if (n == 0)
            continue;
        if (!plain || !memchr(begin, '=', n) || n_members == MEMBERS_MAX ||
            len + n + (len > 0) >= TRACE_STATE_SIZE)
            return;
        if (len > 0)
            c->state[len++] = ',';
        memcpy(c->state + len, begin, n);
        len += n;
        c->state[len] = '\0';
        n_members++;
    }
}

/* Never all zeroes, which stands for "none". */
static void draw(uint8_t *out, size_t n)
{
    if (getrandom(out, n, GRND_NONBLOCK) < (ssize_t)n) {
        int64_t now = clock_ns();

        memcpy(out, &now, sizeof(now) < n ? sizeof(now) : n);
    }
    out[n - 1] |= 1;
}

void trace_context_new_span(uint8_t id[TRACE_SPAN_BYTES])
{
    draw(id, TRACE_SPAN_BYTES);
}

void trace_context_start(struct trace_context *c, double ratio)
{
    uint64_t r;

    trace_context_new_span(c->span_id);
    if (c->has_parent)
        return;
    c->state[0] = '\0'; /* means nothing without a parent */
    draw(c->trace_id, TRACE_ID_BYTES);
    memcpy(&r, c->trace_id + 4, sizeof(r));
    c->is_sampled = (double)(r >> 11) * 0x1p-53 < ratio;
}

void trace_context_hex(const uint8_t *bytes, size_t n, char *out)
{
    for (size_t i = 0; i < n; i++)
        snprintf(out + 2 * i, 3, "%02x", bytes[i]);
}

void trace_context_format(const struct trace_context *c, char out[TRACE_PARENT_SIZE])
{
    char trace[2 * TRACE_ID_BYTES + 1], span[2 * TRACE_SPAN_BYTES + 1];

    trace_context_hex(c->trace_id, TRACE_ID_BYTES, trace);
    trace_context_hex(c->span_id, TRACE_SPAN_BYTES, span);
    snprintf(out, TRACE_PARENT_SIZE, "00-%s-%s-%02x", trace, span, c->is_sampled);
}
