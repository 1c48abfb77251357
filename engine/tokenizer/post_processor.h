/*
 * post_processor - the `post_processor` member of tokenizer.json: what stands around a text.
 *
 * All kinds come down to ids before and ids behind. Built: TemplateProcessing, BertProcessing,
 * RobertaProcessing, ByteLevel (offsets only), Sequence.
 */
#ifndef POST_PROCESSOR_H
#define POST_PROCESSOR_H

#include <jansson.h>
#include <stddef.h>
#include <stdint.h>

#define POST_MAX_IDS 32 /* on one side; real files have 1 */

struct err;

struct post_processor {
    int32_t before[POST_MAX_IDS], after[POST_MAX_IDS];
    int n_before, n_after;
};

/* json may be NULL or null: nothing stands around then. n_ids: ids have to be below it. */
int post_processor_load(struct post_processor *pp, const json_t *json, int32_t n_ids,
                        struct err *err);

#endif
