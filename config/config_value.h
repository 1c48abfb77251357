/*
 * config_value - one key of the table, and its value as text, as JSON and as a C variable.
 * Used inside config/ only.
 */
#ifndef CONFIG_VALUE_H
#define CONFIG_VALUE_H

#include "config/config.h"

#include <jansson.h>
#include <stddef.h>

struct config_key {
    const char *section; /* not NULL: this row opens a section, help is its prose */
    const char *name;
    enum config_type type;
    size_t offset; /* in struct config */
    const char *default_text;
    double min, max; /* exact for integers: every bound is below 2^53 */
    const char *unit;
    const char *help;
};

/* All rows of config_keys.h in their order, sections among them. */
extern const struct config_key config_keys[];
extern const int config_n_keys;

/* NULL when there is no such key. */
const struct config_key *config_key_find(const char *name);

/*
 * Sets the variable `at` from text or from JSON. `source` opens the message: "--max-batch",
 * "file.json: max_batch". Strings are copied, the old one is freed; a failure leaves *at alone.
 */
int config_value_set_text(const struct config_key *key, void *at, const char *text,
                          const char *source, struct err *err);
int config_value_set_json(const struct config_key *key, void *at, const json_t *value,
                          const char *source, struct err *err);

/* As JSON, bytes with the largest suffix that divides them. */
void config_value_add_json(const struct config_key *key, const void *at, struct strbuf *out);

/* What is allowed, in words: "1..4096 sequences", "one of auto, f32, bf16, f16". */
void config_value_add_wanted(const struct config_key *key, struct strbuf *out);

#endif
