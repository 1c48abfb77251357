/*
 * sched_prefix - what the scheduler does with the beginnings of prompts: finds what is known of
 * them, and decides what becomes known.
 *
 *   pages      of sequences whose every head keeps everything: shared page by page; of a Block
 *              Transformer, whose pages are long, block by block, for which the beginning of the
 *              last page is copied (kv/prefix_cache.h)
 *   snapshots  of the others, where a chunk of their prompt ends (kv/kv_snapshot.h). Chunks are cut
 *              for that: at the last page border in front of the prompt's last token, for whoever
 *              sends it again or goes on from it; and where it parts from another prompt that was
 *              computed, is being computed or waits, for whoever begins like both
 *
 * A newcomer of whose beginning somebody is about to compute enough waits for it. Engine thread
 * only.
 */
#ifndef SCHED_PREFIX_H
#define SCHED_PREFIX_H

#include "engine/scheduler.h"

struct sched_prefix_hit {
    int32_t n_tokens, n_shareable; /* found; that could have been; with the lead */
    int32_t node;                  /* of the page tree */
    struct kv_shared shared;
    const int32_t *pages; /* of a snapshot; NULL: none */
};

/* What is known of a waiting sequence's prompt. False: more will be, it should wait. */
bool sched_prefix_find(struct scheduler *s, struct sched_seq *seq, struct sched_prefix_hit *hit);

/*
 * Takes a slot that begins with what was found; hit->n_tokens becomes less where a snapshot, or
 * part of a page, and its copy have no room beside each other. As kv_slot_take_shared().
 */
int sched_prefix_seat(struct scheduler *s, const struct sched_seq *seq, int64_t headroom,
                      struct sched_prefix_hit *hit);

/* Where a chunk from n_done to `end` is to end. */
int32_t sched_prefix_cut(const struct sched_seq *seq, int32_t end);

/* The step being planned brings a seated sequence to `end`. */
void sched_prefix_planned(struct scheduler *s, const struct sched_seq *seq, int32_t end);

/* Its rows from position `from` to n_done were queued. */
void sched_prefix_queued(struct scheduler *s, struct sched_seq *seq, int32_t from);

#endif
