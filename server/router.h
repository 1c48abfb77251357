/*
 * router - which handler serves a method and a path.
 *
 * One table. Paths are matched as sent, but for the last part of /v1/models/{id}, which may be
 * percent-encoded and may hold slashes. HEAD goes wherever GET goes.
 */
#ifndef ROUTER_H
#define ROUTER_H

#include <stdbool.h>
#include <stddef.h>

struct exchange;

enum route_method { ROUTE_GET = 1, ROUTE_POST = 2 };

/* Who gets there, and when: everybody with a key, even those without, ... */
enum route_gate { ROUTE_ALWAYS, ROUTE_OPEN, ROUTE_PAGE, ROUTE_IF_METRICS, ROUTE_IF_DEBUG };

struct route {
    const char *path; /* ends in / when a name follows */
    enum route_method method;
    enum route_gate gate;
    void (*handle)(struct exchange *ex);
};

struct route_match {
    const struct route *route; /* NULL: nothing serves that path, or not by that method */
    const char *allow;         /* when the path is known: the methods for an Allow header */
    enum route_gate gate;      /* of a known path, whatever the method */
    const char *rest;          /* behind a path that ends in /, still percent-encoded */
    int idx;                   /* for metrics; the last index stands for unknown paths */
};

/* target is the request target without its query, in origin or absolute form. */
struct route_match router_find(const char *method, const char *target);

/* Decodes %XX in place. False when an escape is broken or gives NUL. */
bool router_percent_decode(char *s);

int router_count(void);
const char *router_name(int idx);

#endif
