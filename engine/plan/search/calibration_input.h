/*
 * calibration_input - the user's texts: a JSONL file, one object a line.
 *
 *     {"text": "..."}                     goes into the template, cut in the middle to a length
 *     {"prompt": "...", "answer": "..."}  is taken as it is; the answer is optional
 */
#ifndef CALIBRATION_INPUT_H
#define CALIBRATION_INPUT_H

#include <stdbool.h>
#include <stddef.h>

struct err;

struct calibration_text {
    char *text, *answer; /* owned; answer NULL when there is none */
    size_t len;
    bool is_prompt;
    int line;
};

struct calibration_input {
    int n_texts;
    struct calibration_text *texts;
};

/* ERR_PARSE names the line: not UTF-8, no JSON object, no text. ERR_INVALID: nothing in it. */
int calibration_input_load(struct calibration_input *in, const char *path, struct err *err);

/* The same from memory; path is for messages. */
int calibration_input_parse(struct calibration_input *in, const char *data, size_t len,
                            const char *path, struct err *err);
void calibration_input_release(struct calibration_input *in);

#endif
