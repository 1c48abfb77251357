/*
 * ring_queue - a bounded first-in first-out queue between threads.
 *
 * Any thread may push and pop. Items are copied. A full queue refuses: the bound is the
 * promise. The lock `mu` guards every field; waiting uses the condition `not_empty`.
 */
#ifndef RING_QUEUE_H
#define RING_QUEUE_H

#include <pthread.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

struct err;

struct ring_queue { /* fields are private */
    pthread_mutex_t mu;
    pthread_cond_t not_empty;
    unsigned char *items;
    size_t item_bytes, capacity, head, n_items;
    bool closed;
};

/* ERR_NO_ROOM when the memory for capacity items is not there. */
int ring_queue_init(struct ring_queue *q, size_t item_bytes, size_t capacity, struct err *err);

/* No thread may be using q. Accepts NULL and a zeroed queue. */
void ring_queue_release(struct ring_queue *q);

/* False when full or closed. */
bool ring_queue_push(struct ring_queue *q, const void *item);

/* Takes up to max items without waiting; returns how many. */
size_t ring_queue_pop_many(struct ring_queue *q, void *items, size_t max);

/*
 * Waits until an item is there, the queue is closed, or timeout_ns has passed (-1: no limit).
 * True when an item is there.
 */
bool ring_queue_wait(struct ring_queue *q, int64_t timeout_ns);

/* Refuses pushes from now on and wakes the waiters; what is inside can still be popped. */
void ring_queue_close(struct ring_queue *q);

size_t ring_queue_len(struct ring_queue *q);

#endif
