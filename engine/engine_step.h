/*
 * engine_step - one step from the plan to its tokens. Engine thread only.
 *
 * A step is queued, runs on the device, and its results are taken. With run_ahead the next one is
 * queued in between, on the assumption that every sequence goes on:
 *
 *     host    plan k+1, queue it | take k  | plan k+2, queue it | take k+1 | ...
 *     device  step k ............|step k+1 .....................|step k+2 ...
 *
 *   tokens    those of step k feed step k+1 on the device (step_batch.slot_token)
 *   blocks    a step of a Block Transformer is a macro step where it can be (whole_blocks): the
 *             block decoder's rows, then a token of every block and its sampling for each phase,
 *             without the host in between. Known tokens and surplus ones, behind a stop or the last
 *             of max_tokens, are rows like the others whose draws nobody takes
 *   stops     length stops are known in advance. Who stops otherwise has a row in step k+1, which
 *             is dropped: its item's seq becomes NULL. Its pages are free at once, for whoever
 *             gets them writes in a later step
 *   waiting   where a request needs its token on the host (request_needs_token_on_host()), step k
 *             is taken before k+1 is planned; so it is after a step that could not be queued
 *   failures  all requests with a row in the step that failed or in the one behind it end
 */
#ifndef ENGINE_STEP_H
#define ENGINE_STEP_H

#include "engine/engine_state.h"

/* max_items: of a step. */
int engine_steps_init(struct engine *e, int max_items, int max_logits, struct err *err);
/* Keys of graphs that a Block Transformer's steps ask for. */
int engine_steps_graphs(int max_logits);
void engine_steps_release(struct engine *e); /* accepts half-built */

/* Plans the next step and queues it. False when nothing can run before the oldest step is taken. */
bool engine_step_queue(struct engine *e);

/* Waits for the oldest queued step and takes its results. e->mu is free while it waits. */
void engine_step_take(struct engine *e);

/* Ends a request in whatever state it is. */
void engine_step_end_request(struct engine *e, struct request *r, enum finish_reason reason,
                             const char *error);

#endif
