/*
 * calibration - the sequences that a search measures on: prompts that fill a length, and answers.
 *
 * Prompts come from a JSONL file or from item_text. The dense model writes the answers, through the
 * engine, at temperature 0; or the given ones are taken. What was answered is kept in
 * calibration.part until all is done, then in calibration.jsonl.
 */
#ifndef CALIBRATION_H
#define CALIBRATION_H

#include "engine/plan/search/search_options.h"

#include <stdint.h>

struct err;

struct calibration_item {
    int length;             /* the profile or validation length that it was made for */
    int n_prompt, n_answer; /* tokens; what ended the answer counts as part of it */
    int32_t *ids;           /* [n_prompt + n_answer] */
    uint8_t *bears;         /* which answer tokens bear loss; NULL: all. See focus.h */
    char source[32];        /* "retrieval", "summary", "line 12" */
};

struct calibration {
    int n_items;
    struct calibration_item *items;
    bool was_kept; /* from an earlier run */
    int n_short;   /* items that were left out: their answers were empty */
};

/* Makes or loads. ERR_CLOSED when it was interrupted: the answers so far are kept. */
int calibration_get(struct calibration *out, const struct search_options *o, struct err *err);
void calibration_release(struct calibration *c);

/* The first token that bears loss: the answer's, or the second of all. */
static inline int calibration_first_target(const struct calibration_item *item, bool whole)
{
    return whole ? 1 : item->n_prompt;
}

#endif
