/*
 * api_keys - the file, the digests, the comparison.
 */
#include "server/api_keys.h"

#include "base/err.h"
#include "base/file_map.h"

#include <gnutls/crypto.h>
#include <gnutls/gnutls.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <strings.h>

#define MAX_FILE_BYTES (1 << 20)
#define MIN_KEY_BYTES  8 /* shorter ones are guessed in no time */
#define MAX_KEY_BYTES  512
#define ID_HEX_BYTES   5

static const char blanks[] = " \t\r";

static bool digest_of(const char *key, size_t len, unsigned char out[32])
{
    return gnutls_hash_fast(GNUTLS_DIG_SHA256, key, len, out) == 0;
}

/* A name is logged and goes into labels, so it is as plain as a host's name. */
static bool is_name(const char *s)
{
    return strspn(s, "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_.@") ==
               strlen(s) &&
           strlen(s) < API_KEY_ID_BYTES;
}

static struct api_key *find_digest(struct api_key *list, const unsigned char digest[32])
{
    for (struct api_key *key = list; key; key = key->next) {
        if (!key->is_gone && !memcmp(key->digest, digest, sizeof(key->digest)))
            return key;
    }
    return NULL;
}

static int add_line(struct api_key **list, char *line, const char *path, int n, struct err *err)
{
    char *save = NULL;
    char *first = strtok_r(line, blanks, &save);
    char *second = strtok_r(NULL, blanks, &save);
    const char *key = second ? second : first;
    struct api_key *new_key;

    if (!first || *first == '#')
        return 0;
    if (strtok_r(NULL, blanks, &save))
        return err_set(err, ERR_INVALID, "%s line %d: want a key, or a name and a key", path, n);
    if (second && !is_name(first))
        return err_set(err, ERR_INVALID, "%s line %d: a name has up to %d letters, digits and -_.@",
                       path, n, API_KEY_ID_BYTES - 1);
    if (strlen(key) < MIN_KEY_BYTES || strlen(key) > MAX_KEY_BYTES)
        return err_set(err, ERR_INVALID, "%s line %d: a key has %d to %d characters, not %zu", path,
                       n, MIN_KEY_BYTES, MAX_KEY_BYTES, strlen(key));
    new_key = calloc(1, sizeof(*new_key));
    if (!new_key || !digest_of(key, strlen(key), new_key->digest)) {
        free(new_key);
        return err_set(err, ERR_NO_ROOM, "%s: out of memory", path);
    }
    if (find_digest(*list, new_key->digest)) {
        free(new_key);
        return err_set(err, ERR_INVALID, "%s line %d: the key is there twice", path, n);
    }
    if (second)
        snprintf(new_key->id, sizeof(new_key->id), "%s", first);
    else
        for (int i = 0, at = snprintf(new_key->id, sizeof(new_key->id), "k-"); i < ID_HEX_BYTES;
             i++)
            at += snprintf(new_key->id + at, sizeof(new_key->id) - at, "%02x", new_key->digest[i]);
    new_key->next = *list;
    *list = new_key;
    return 0;
}

static void free_list(struct api_key *list)
{
    while (list) {
        struct api_key *next = list->next;

        free(list);
        list = next;
    }
}

static int read_list(struct api_key **list, const char *path, struct err *err)
{
    char *text = NULL, *rest;
    size_t len = 0;
    int rc = file_read_text(&text, &len, path, MAX_FILE_BYTES, err);

    rest = text;
    for (int n = 1; rc == 0 && rest; n++)
        rc = add_line(list, strsep(&rest, "\n"), path, n, err);
    if (rc == 0 && !*list)
        rc = err_set(err, ERR_INVALID, "%s holds no key", path);
    if (text)
        gnutls_memset(text, 0, len);
    free(text);
    return rc;
}

int api_keys_load(struct api_keys *k, const char *path, struct err *err)
{
    struct api_key *fresh = NULL, **at = &k->list;
    int rc = read_list(&fresh, path, err);

    if (rc < 0) {
        free_list(fresh);
        return rc;
    }
    /* Requests that run keep their key's struct, and its count if the key stays. */
    while (*at) {
        struct api_key *old = *at, *same = find_digest(fresh, old->digest);

        if (old->n_active == 0) {
            *at = old->next;
            free(old);
            continue;
        }
        if (same && !old->is_gone) {
            struct api_key **p = &fresh;

            memcpy(old->id, same->id, sizeof(old->id));
            while (*p != same)
                p = &(*p)->next;
            *p = same->next;
            free(same);
        } else {
            old->is_gone = true;
        }
        at = &old->next;
    }
    *at = fresh;
    k->is_required = true;
    return 0;
}

void api_keys_release(struct api_keys *k)
{
    free_list(k->list);
    *k = (struct api_keys){0};
}

/* Looks at every byte of every key, whatever it finds. */
static struct api_key *compare_all(const struct api_keys *k, const char *key, size_t len)
{
    struct api_key *found = NULL;
    unsigned char digest[32];

    if (len == 0 || len > MAX_KEY_BYTES || !digest_of(key, len, digest))
        return NULL;
    for (struct api_key *c = k->list; c; c = c->next) {
        bool same = gnutls_memcmp(c->digest, digest, sizeof(digest)) == 0;

        found = same && !c->is_gone ? c : found;
    }
    return found;
}

/* "user:key" in base64, as browsers send it for the page; the user may be anything. */
static struct api_key *find_basic(const struct api_keys *k, const char *text)
{
    gnutls_datum_t in = {.data = (unsigned char *)text, .size = (unsigned)strlen(text)};
    gnutls_datum_t out = {0};
    struct api_key *key = NULL;
    const char *colon;

    if (gnutls_base64_decode2(&in, &out) < 0)
        return NULL;
    colon = out.data ? memchr(out.data, ':', out.size) : NULL;
    if (colon)
        key = compare_all(k, colon + 1, (size_t)((char *)out.data + out.size - (colon + 1)));
    gnutls_free(out.data);
    return key;
}

struct api_key *api_keys_find(const struct api_keys *k, const char *authorization, const char *bare)
{
    if (authorization && !strncasecmp(authorization, "Bearer ", 7)) {
        authorization += 7 + strspn(authorization + 7, " ");
        return compare_all(k, authorization, strlen(authorization));
    }
    if (authorization && !strncasecmp(authorization, "Basic ", 6))
        return find_basic(k, authorization + 6 + strspn(authorization + 6, " "));
    return bare ? compare_all(k, bare, strlen(bare)) : NULL;
}

void api_key_take(struct api_key *key)
{
    key->n_active++;
}

void api_key_give(struct api_keys *k, struct api_key *key)
{
    struct api_key **at = &k->list;

    if (--key->n_active > 0 || !key->is_gone)
        return;
    while (*at != key)
        at = &(*at)->next;
    *at = key->next;
    free(key);
}
