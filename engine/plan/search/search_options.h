/*
 * search_options - what spand-plan was asked for, and where it puts things.
 *
 * Every stage leaves a file in `dir` that begins with a key: a text of all settings the result
 * depends on, those of earlier stages included. A stage whose file has the wanted key is not run
 * again.
 */
#ifndef SEARCH_OPTIONS_H
#define SEARCH_OPTIONS_H

#include "engine/model/model.h"
#include "engine/plan/search/rule_grid.h"
#include "engine/plan/search/search_program.h"

#include <stdbool.h>

struct config;
struct strbuf;

enum search_answers { ANSWERS_MODEL, ANSWERS_GIVEN };
enum search_source { SOURCE_BOTH, SOURCE_RETRIEVAL, SOURCE_SUMMARY, SOURCE_FILE };

struct search_options {
    const struct config *config; /* model, device, dtype, threads ... */
    const struct model_config *model;
    char dir[4096];            /* the report's directory */
    const char *output;        /* the plan */
    const char *input;         /* JSONL of the user's, or NULL */
    const char *template_text; /* with {text}; NULL: a summary's */
    enum search_source source;
    enum search_answers answers;
    bool whole_context_loss, log_odds, raw_prompts; /* raw: no chat template */
    bool focus;                                     /* see focus.h; not with whole_context_loss */
    bool scale_layers;                              /* see layer_scale.h */
    int sums;                                       /* enum grad_sum */
    bool per_query_head, baselines;
    int n_lengths, length[SEARCH_MAX_LENGTHS];
    struct search_caps caps;
    int items, validate_items, validate_length, validate_best, answer_tokens;
    struct rule_grid_params grid;
    int max_rules_per_layer, n_intervals;
    double gap;
    int64_t max_nodes, seed, profile_memory; /* bytes; 0: what is free */
    bool use_cbc;
    double density;
    double limit_tflops; /* of the device, to compare the profile with; 0: what is measured */
};

/* The model's heads as plans are computed for them. */
struct kv_shape search_shape(const struct search_options *o);

/* DIR/NAME into path. */
void search_path(char *path, size_t size, const struct search_options *o, const char *name);

/* Ctrl-C and SIGTERM set it: stages end at the next item and keep what they have. */
bool search_is_stopped(void);
void search_catch_signals(void);

/* A line of progress for people on stderr: it replaces the last one on a terminal. */
void search_progress(const char *stage, int done, int total, double seconds, const char *detail);
void search_progress_end(void);

/* What the calibration's and the profile's results depend on. */
void search_key_items(struct strbuf *out, const struct search_options *o);
void search_key_profile(struct strbuf *out, const struct search_options *o);

#endif
