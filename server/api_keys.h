/*
 * api_keys - who may use the server. Loop thread only.
 *
 * A file of keys, one a line: the key, or a name and the key. Empty lines and lines that begin with
 * # are skipped. Only SHA-256 digests are kept, and a presented key's digest is compared with all
 * of them in constant time, so time tells nothing about any. What is logged is the name, or "k-"
 * and the first bytes of the digest.
 */
#ifndef API_KEYS_H
#define API_KEYS_H

#include <stdbool.h>
#include <stddef.h>

struct err;

#define API_KEY_ID_BYTES 40

struct api_key {
    struct api_key *next;
    unsigned char digest[32];
    char id[API_KEY_ID_BYTES];
    int n_active, n_generations; /* requests under it; those that generate and are counted */
    bool is_gone; /* not in the file any more; lives until its last request has ended */
};

struct api_keys { /* zeroed: none are needed; fields are private */
    struct api_key *list;
    bool is_required;
};

/*
 * Replaces the keys by the file's; running requests keep theirs. On failure nothing has changed.
 * ERR_INVALID names the line; a file without a key is refused, as it would lock everybody out.
 */
int api_keys_load(struct api_keys *k, const char *path, struct err *err);

/* No request may be active any more. */
void api_keys_release(struct api_keys *k);

static inline bool api_keys_are_required(const struct api_keys *k)
{
    return k->is_required;
}

/*
 * The key that an Authorization header ("Bearer KEY", or "Basic" with the key as the password) or
 * a bare key (from X-Api-Key) stands for; either may be NULL. NULL: none of ours.
 */
struct api_key *api_keys_find(const struct api_keys *k, const char *authorization,
                              const char *bare);

/* A request runs under the key, until api_key_give(). */
void api_key_take(struct api_key *key);
void api_key_give(struct api_keys *k, struct api_key *key);

#endif
