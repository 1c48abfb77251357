/*
 * hashmap - byte strings or 64-bit keys to 64-bit values. See hashmap.h.
 *
 * Tables are powers of two and at most half full: a miss, the common case of a BPE merge look-up,
 * then ends after one or two probes. The hashes are not keyed: both maps are filled from files
 * that the operator chose, never with what a client sent.
 */
#include "base/hashmap.h"

#include "base/err.h"

#include <stdlib.h>
#include <string.h>

#define MIN_ALLOC 16

struct strmap_entry {
    const char *key; /* NULL marks an empty entry */
    size_t len;
    uint64_t hash;
    int64_t value;
};

/* The finaliser of splitmix64: every input bit reaches every output bit. */
static uint64_t mix(uint64_t x)
{
    x ^= x >> 30;
    x *= 0xbf58476d1ce4e5b9u;
    x ^= x >> 27;
    x *= 0x94d049bb133111ebu;
    return x ^ x >> 31;
}

static uint64_t hash_bytes(const char *key, size_t len)
{
    uint64_t h = 0x9e3779b97f4a7c15u ^ len;
    uint64_t word;

    for (; len >= 8; key += 8, len -= 8) {
        memcpy(&word, key, 8);
        h = mix(h ^ word);
    }
    if (len) {
        word = 0;
        memcpy(&word, key, len);
        h = mix(h ^ word);
    }
    return h;
}

void strmap_init(struct strmap *m)
{
    *m = (struct strmap){0};
}

void strmap_release(struct strmap *m)
{
    free(m->entries);
    strmap_init(m);
}

/* The entry that holds key, or the empty one where it belongs. n_alloc > 0. */
static struct strmap_entry *str_entry(struct strmap_entry *entries, size_t n_alloc, uint64_t hash,
                                      const char *key, size_t len)
{
    size_t i = hash & (n_alloc - 1);

    for (;;) {
        struct strmap_entry *e = &entries[i];

        if (!e->key)
            return e;
        if (e->hash == hash && e->len == len && memcmp(e->key, key, len) == 0)
            return e;
        i = (i + 1) & (n_alloc - 1);
    }
}

static bool strmap_grow(struct strmap *m)
{
    size_t n_alloc = m->n_alloc ? m->n_alloc * 2 : MIN_ALLOC;
    struct strmap_entry *entries = calloc(n_alloc, sizeof(*entries));

    if (!entries)
        return false;
    for (size_t i = 0; i < m->n_alloc; i++) {
        struct strmap_entry *e = &m->entries[i];

        if (e->key)
            *str_entry(entries, n_alloc, e->hash, e->key, e->len) = *e;
    }
    free(m->entries);
    m->entries = entries;
    m->n_alloc = n_alloc;
    return true;
}

int strmap_put(struct strmap *m, const char *key, size_t len, int64_t value)
{
    struct strmap_entry *e;
    uint64_t hash;

    if (!key)
        key = "";
    if ((m->n_entries + 1) * 2 > m->n_alloc && !strmap_grow(m))
        return ERR_NO_ROOM;
    hash = hash_bytes(key, len);
    e = str_entry(m->entries, m->n_alloc, hash, key, len);
    if (!e->key) {
        *e = (struct strmap_entry){.key = key, .len = len, .hash = hash};
        m->n_entries++;
    }
    e->value = value;
    return 0;
}

bool strmap_get(const struct strmap *m, const char *key, size_t len, int64_t *value)
{
    struct strmap_entry *e;

    if (!m->n_alloc)
        return false;
    if (!key)
        key = "";
    e = str_entry(m->entries, m->n_alloc, hash_bytes(key, len), key, len);
    if (!e->key)
        return false;
    *value = e->value;
    return true;
}

/*
 * Key 0 marks an empty entry, so that four entries fill a cache line; the real key 0 lives in
 * entries[n_alloc], behind the table, whose own key field says whether it is there.
 */
struct u64map_entry {
    uint64_t key;
    int64_t value;
};

void u64map_init(struct u64map *m)
{
    *m = (struct u64map){0};
}

void u64map_release(struct u64map *m)
{
    free(m->entries);
    u64map_init(m);
}

/* The entry that holds key, or the empty one where it belongs. n_alloc > 0, key is not 0. */
static struct u64map_entry *u64_entry(struct u64map_entry *entries, size_t n_alloc, uint64_t key)
{
    size_t i = mix(key) & (n_alloc - 1);

    while (entries[i].key && entries[i].key != key)
        i = (i + 1) & (n_alloc - 1);
    return &entries[i];
}

static bool u64map_grow(struct u64map *m)
{
    size_t n_alloc = m->n_alloc ? m->n_alloc * 2 : MIN_ALLOC;
    struct u64map_entry *entries = calloc(n_alloc + 1, sizeof(*entries));

    if (!entries)
        return false;
    for (size_t i = 0; i < m->n_alloc; i++) {
        struct u64map_entry *e = &m->entries[i];

        if (e->key)
            *u64_entry(entries, n_alloc, e->key) = *e;
    }
    if (m->n_alloc)
        entries[n_alloc] = m->entries[m->n_alloc];
    free(m->entries);
    m->entries = entries;
    m->n_alloc = n_alloc;
    return true;
}

int u64map_put(struct u64map *m, uint64_t key, int64_t value)
{
    struct u64map_entry *e;

    if ((m->n_entries + 1) * 2 > m->n_alloc && !u64map_grow(m))
        return ERR_NO_ROOM;
    e = key ? u64_entry(m->entries, m->n_alloc, key) : &m->entries[m->n_alloc];
    if (!e->key) {
        e->key = key ? key : 1;
        m->n_entries++;
    }
    e->value = value;
    return 0;
}

bool u64map_get(const struct u64map *m, uint64_t key, int64_t *value)
{
    struct u64map_entry *e;

    if (!m->n_alloc)
        return false;
    e = key ? u64_entry(m->entries, m->n_alloc, key) : &m->entries[m->n_alloc];
    if (!e->key)
        return false;
    *value = e->value;
    return true;
}
