/*
 * arena - memory named after whose life it shares: process, request, step.
 *
 * Always: bytes handed out <= cap, each request rounded up to 16. Reaching the cap gives NULL,
 * never an abort: the caller refuses the work with ERR_NO_ROOM. Not thread-safe; the owner of the
 * arena owns its memory.
 */
#ifndef ARENA_H
#define ARENA_H

#include <stddef.h>

struct arena_chunk;

struct arena { /* fields are private */
    struct arena_chunk *head;
    size_t used;
    size_t cap;
    size_t chunk_bytes;
};

/* chunk_bytes: how much is asked of malloc at a time; 0 means 64 KiB. Allocates nothing yet. */
void arena_init(struct arena *a, size_t cap, size_t chunk_bytes);

/* Frees every chunk. Accepts a zeroed arena. */
void arena_release(struct arena *a);

/* Forgets every allocation, keeps one chunk of chunk_bytes for reuse. */
void arena_reset(struct arena *a);

/* 16-byte aligned, zeroed; NULL at the cap or when malloc fails. size 0 gives a unique pointer. */
void *arena_alloc(struct arena *a, size_t size);

/* n * size with overflow checked. */
void *arena_array(struct arena *a, size_t n, size_t size);

/* Copies len bytes and adds a NUL. */
char *arena_strndup(struct arena *a, const char *s, size_t len);

size_t arena_used(const struct arena *a);

#endif
