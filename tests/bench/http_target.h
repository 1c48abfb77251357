/*
 * http_target - where a URL leads, and what the server there serves.
 */
#ifndef HTTP_TARGET_H
#define HTTP_TARGET_H

#include <netinet/in.h>

struct err;

struct http_target {
    struct sockaddr_storage addr; /* the first address of the name that takes a connection */
    char *host;                   /* for the Host header */
    char *prefix;                 /* of the paths, without a slash behind: "" or "/some/path" */
    char *model;                  /* the first that /v1/models lists, or NULL */
    int vocab_size;               /* what its `meta` says; 0: nothing */
};

/*
 * Takes http://HOST[:PORT][/PREFIX], where a trailing /v1 is forgiven, and connects once. Blocks.
 * ERR_INVALID for the URL, ERR_IO for the rest. http_target_release() in any case.
 */
int http_target_open(struct http_target *t, const char *url, struct err *err);

/* Asks /v1/models. Blocks. ERR_IO or ERR_PARSE when there is no such answer. */
int http_target_ask_model(struct http_target *t, struct err *err);

/* Accepts a zeroed struct. */
void http_target_release(struct http_target *t);

#endif
