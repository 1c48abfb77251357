/*
 * item_text - made-up calibration texts: long inputs whose question only a look far back answers.
 *
 * retrieval  a record of lines "line ADJECTIVE-NOUN: REGISTER_CONTENT is <NUMBER>" in the form of
 *            LongEval, asked for one of them
 * summary    a run of short reports with places, people and figures, asked for a summary
 */
#ifndef ITEM_TEXT_H
#define ITEM_TEXT_H

#include <stddef.h>
#include <stdint.h>

struct strbuf;

enum item_kind { ITEM_RETRIEVAL, ITEM_SUMMARY };

/*
 * The text of item number idx with about n_units lines or reports; the same arguments give the same
 * text. position, 0..1, is where the line asked for stands. answer gets what a perfect reader
 * would say: nothing for a summary.
 */
void item_text_make(struct strbuf *text, struct strbuf *answer, enum item_kind kind, uint64_t seed,
                    int idx, int n_units, double position);

#endif
