/*
 * ring_queue - a bounded first-in first-out queue between threads. See ring_queue.h.
 */
#include "base/ring_queue.h"

#include "base/check.h"
#include "base/err.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

int ring_queue_init(struct ring_queue *q, size_t item_bytes, size_t capacity, struct err *err)
{
    pthread_condattr_t attr;
    int rc;

    CHECK(item_bytes > 0);
    CHECK(capacity > 0);
    *q = (struct ring_queue){.item_bytes = item_bytes, .capacity = capacity};
    q->items = calloc(capacity, item_bytes);
    if (!q->items)
        return err_set(err, ERR_NO_ROOM, "queue: no memory for %zu items of %zu bytes", capacity,
                       item_bytes);
    pthread_mutex_init(&q->mu, NULL);
    /* Time limits count on the monotonic clock: a clock that is set must not stall the engine. */
    pthread_condattr_init(&attr);
    pthread_condattr_setclock(&attr, CLOCK_MONOTONIC);
    rc = pthread_cond_init(&q->not_empty, &attr);
    pthread_condattr_destroy(&attr);
    CHECK(rc == 0);
    return 0;
}

void ring_queue_release(struct ring_queue *q)
{
    if (!q || !q->items)
        return;
    pthread_cond_destroy(&q->not_empty);
    pthread_mutex_destroy(&q->mu);
    free(q->items);
    q->items = NULL;
}

bool ring_queue_push(struct ring_queue *q, const void *item)
{
    bool pushed = false;

    pthread_mutex_lock(&q->mu);
    if (!q->closed && q->n_items < q->capacity) {
        size_t at = (q->head + q->n_items) % q->capacity;

        memcpy(q->items + at * q->item_bytes, item, q->item_bytes);
        q->n_items++;
        pushed = true;
        pthread_cond_signal(&q->not_empty);
    }
    pthread_mutex_unlock(&q->mu);
    return pushed;
}

size_t ring_queue_pop_many(struct ring_queue *q, void *items, size_t max)
{
    size_t n, until_wrap, first;

    pthread_mutex_lock(&q->mu);
    n = q->n_items < max ? q->n_items : max;
    if (n) {
        until_wrap = q->capacity - q->head;
        first = n < until_wrap ? n : until_wrap;
        memcpy(items, q->items + q->head * q->item_bytes, first * q->item_bytes);
        memcpy((unsigned char *)items + first * q->item_bytes, q->items,
               (n - first) * q->item_bytes);
        q->head = (q->head + n) % q->capacity;
        q->n_items -= n;
    }
    pthread_mutex_unlock(&q->mu);
    return n;
}

bool ring_queue_wait(struct ring_queue *q, int64_t timeout_ns)
{
    struct timespec until;
    bool has_item;
    int rc = 0;

    if (timeout_ns >= 0) {
        clock_gettime(CLOCK_MONOTONIC, &until);
        until.tv_sec += timeout_ns / 1000000000;
        until.tv_nsec += timeout_ns % 1000000000;
        if (until.tv_nsec >= 1000000000) {
            until.tv_sec++;
            until.tv_nsec -= 1000000000;
        }
    }
    pthread_mutex_lock(&q->mu);
    while (!q->n_items && !q->closed && rc != ETIMEDOUT) {
        if (timeout_ns >= 0)
            rc = pthread_cond_timedwait(&q->not_empty, &q->mu, &until);
        else
            pthread_cond_wait(&q->not_empty, &q->mu);
    }
    has_item = q->n_items > 0;
    pthread_mutex_unlock(&q->mu);
    return has_item;
}

void ring_queue_close(struct ring_queue *q)
{
    pthread_mutex_lock(&q->mu);
    q->closed = true;
    pthread_cond_broadcast(&q->not_empty);
    pthread_mutex_unlock(&q->mu);
}

size_t ring_queue_len(struct ring_queue *q)
{
    size_t n;

    pthread_mutex_lock(&q->mu);
    n = q->n_items;
    pthread_mutex_unlock(&q->mu);
    return n;
}
