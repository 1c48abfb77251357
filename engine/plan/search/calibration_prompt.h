/*
 * calibration_prompt - prompts of a wanted length, as tokens.
 */
#ifndef CALIBRATION_PROMPT_H
#define CALIBRATION_PROMPT_H

#include "engine/plan/search/calibration_input.h"
#include "engine/plan/search/search_options.h"

#include <stdint.h>

struct calibration_item;
struct engine;
struct strbuf;

/*
 * The prompt of the idx-th item for a length: it ends answer_tokens or more before it. given gets
 * the known answer, if there is one. *next_text is where in the input to go on; it is moved. False
 * (no error) when the input has no text left that fills the length.
 */
bool calibration_prompt_make(struct calibration_item *out, struct strbuf *given,
                             const struct engine *e, const struct search_options *o,
                             const struct calibration_input *in, int *next_text, int length,
                             int idx, struct err *err);

#endif
