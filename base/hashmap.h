/*
 * hashmap - byte strings or 64-bit keys to 64-bit values, open addressing, linear probing.
 *
 * Keys of the string map are borrowed: they must outlive the map. Neither map can delete; both
 * are built once and read often, so a built map may be read from any number of threads.
 */
#ifndef HASHMAP_H
#define HASHMAP_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

struct strmap_entry;

struct strmap { /* fields are private */
    struct strmap_entry *entries;
    size_t n_entries, n_alloc;
};

void strmap_init(struct strmap *m);
void strmap_release(struct strmap *m);

/* Inserts or replaces. ERR_NO_ROOM when memory is out; the map is then unchanged. */
int strmap_put(struct strmap *m, const char *key, size_t len, int64_t value);
bool strmap_get(const struct strmap *m, const char *key, size_t len, int64_t *value);

struct u64map_entry;

struct u64map { /* fields are private */
    struct u64map_entry *entries;
    size_t n_entries, n_alloc;
};

void u64map_init(struct u64map *m);
void u64map_release(struct u64map *m);
int u64map_put(struct u64map *m, uint64_t key, int64_t value);
bool u64map_get(const struct u64map *m, uint64_t key, int64_t *value);

#endif
