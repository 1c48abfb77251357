/*
 * http_framing - 0.9.75 parses in place: method, version, names and values point into the bytes as
 * they were received. So two bytes behind each line the next one must begin, and four behind the
 * last one the head must end. A lone CR stays inside a value, where it is looked for; a folded
 * header was copied elsewhere, and a NUL ends a value early: both fail too.
 */
#include "server/http_framing.h"

#include <microhttpd.h>
#include <string.h>

#if MHD_VERSION < 0x01000000

struct walk {
    const char *end; /* of the line before */
    bool plain;
};

static enum MHD_Result visit(void *cls, enum MHD_ValueKind kind, const char *name,
                             const char *value)
{
    struct walk *w = cls;

    (void)kind;
    w->plain = w->plain && value && name == w->end + 2 && !strchr(value, '\r');
    if (w->plain)
        w->end = value + strlen(value);
    return w->plain ? MHD_YES : MHD_NO;
}

bool http_framing_is_plain(struct MHD_Connection *conn, const char *method, const char *target,
                           const char *version)
{
    struct walk w = {.end = version + strlen(version), .plain = true};
    const union MHD_ConnectionInfo *info =
        MHD_get_connection_info(conn, MHD_CONNECTION_INFO_REQUEST_HEADER_SIZE);

    MHD_get_connection_values(conn, MHD_HEADER_KIND, visit, &w);
    return w.plain && info && target == method + strlen(method) + 1 &&
           w.end + 4 == method + info->header_size;
}

#else

bool http_framing_is_plain(struct MHD_Connection *conn, const char *method, const char *target,
                           const char *version)
{
    (void)conn;
    (void)method;
    (void)target;
    (void)version;
    return true;
}

#endif
