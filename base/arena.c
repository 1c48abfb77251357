/*
 * arena - memory named after whose life it shares. See arena.h.
 *
 * Chunks form a list, the one being filled in front. A request too large for a chunk gets one of
 * its own behind the front, so the room left in the front is not lost.
 */
#include "base/arena.h"

#include <stdalign.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#define ALIGN               16
#define DEFAULT_CHUNK_BYTES 65536

struct arena_chunk {
    struct arena_chunk *next;
    size_t used;
    size_t size;
    alignas(ALIGN) unsigned char data[];
};

void arena_init(struct arena *a, size_t cap, size_t chunk_bytes)
{
    *a = (struct arena){.cap = cap, .chunk_bytes = chunk_bytes ? chunk_bytes : DEFAULT_CHUNK_BYTES};
}

void arena_release(struct arena *a)
{
    struct arena_chunk *chunk = a->head;

    while (chunk) {
        struct arena_chunk *next = chunk->next;

        free(chunk);
        chunk = next;
    }
    a->head = NULL;
    a->used = 0;
}

void arena_reset(struct arena *a)
{
    struct arena_chunk *kept = NULL;
    struct arena_chunk *chunk = a->head;

    while (chunk) {
        struct arena_chunk *next = chunk->next;

        /* An outsized chunk is not kept: one large request must not hold its memory for good. */
        if (!kept && chunk->size == a->chunk_bytes)
            kept = chunk;
        else
            free(chunk);
        chunk = next;
    }
    if (kept) {
        kept->next = NULL;
        kept->used = 0;
    }
    a->head = kept;
    a->used = 0;
}

static struct arena_chunk *chunk_new(size_t size)
{
    struct arena_chunk *chunk;

    if (size > SIZE_MAX - sizeof(*chunk))
        return NULL;
    chunk = malloc(sizeof(*chunk) + size);
    if (!chunk)
        return NULL;
    chunk->next = NULL;
    chunk->used = 0;
    chunk->size = size;
    return chunk;
}

/* A chunk with room for size bytes, linked in; NULL when malloc fails. */
static struct arena_chunk *chunk_with_room(struct arena *a, size_t size)
{
    struct arena_chunk *chunk = a->head;

    if (chunk && chunk->size - chunk->used >= size)
        return chunk;
    chunk = chunk_new(size > a->chunk_bytes ? size : a->chunk_bytes);
    if (!chunk)
        return NULL;
    if (a->head && size > a->chunk_bytes) {
        chunk->next = a->head->next;
        a->head->next = chunk;
    } else {
        chunk->next = a->head;
        a->head = chunk;
    }
    return chunk;
}

void *arena_alloc(struct arena *a, size_t size)
{
    struct arena_chunk *chunk;
    void *p;

    if (size > SIZE_MAX - ALIGN)
        return NULL;
    size = size ? (size + ALIGN - 1) & ~(size_t)(ALIGN - 1) : ALIGN;
    if (size > a->cap - a->used)
        return NULL;
    chunk = chunk_with_room(a, size);
    if (!chunk)
        return NULL;
    p = chunk->data + chunk->used;
    chunk->used += size;
    a->used += size;
    return memset(p, 0, size);
}

void *arena_array(struct arena *a, size_t n, size_t size)
{
    size_t bytes;

    if (__builtin_mul_overflow(n, size, &bytes))
        return NULL;
    return arena_alloc(a, bytes);
}

char *arena_strndup(struct arena *a, const char *s, size_t len)
{
    char *copy;

    if (len == SIZE_MAX)
        return NULL;
    copy = arena_alloc(a, len + 1);
    if (copy && len)
        memcpy(copy, s, len);
    return copy;
}

size_t arena_used(const struct arena *a)
{
    return a->used;
}
