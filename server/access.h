/*
 * access - may this request be served? API keys, requests per key, and browsers' CORS.
 *
 * Decided on the path as it was received, when the head is complete. Only the health checks, and
 * /metrics where metrics_without_key says so, are open to those without a key; a path that does not
 * exist is not, so it tells nothing.
 */
#ifndef ACCESS_H
#define ACCESS_H

#include <stdbool.h>

struct api_error;
struct exchange;
struct MHD_Response;

/* Sets ex->key. ERR_INVALID with a 401 in *e. */
int access_check_key(struct exchange *ex, struct api_error *e);

/* Counts a generation under ex->key, until the exchange ends. ERR_INVALID with a 429 in *e. */
int access_begin_generation(struct exchange *ex, struct api_error *e);
void access_end(struct exchange *ex);

/* A browser's question whether a page may call us; true when it was answered. */
bool access_answer_preflight(struct exchange *ex);

/* Is `origin` in the list "https://a.org, https://b.org" or "*"? */
bool access_allows_origin(const char *list, const char *origin);

/* The headers by which a browser learns what it may do. */
void access_add_headers(const struct exchange *ex, struct MHD_Response *r);

#endif
