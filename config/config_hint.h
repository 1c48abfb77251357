/*
 * config_hint - what somebody may have meant who wrote a name that is no key.
 * Used inside config/ only.
 */
#ifndef CONFIG_HINT_H
#define CONFIG_HINT_H

#include "config/config.h"

/* Longest name that is looked at; no key comes near it. */
#define CONFIG_NAME_BYTES 64

/*
 * The nearest key, extra or built-in flag, or NULL when none is near. `name` is written with
 * underscores. Borrowed from the table or from extras.
 */
const char *config_hint(const char *name, const struct config_extra *extras, int n_extras);

/* Insertions, deletions, replacements and swaps of neighbours between a and b. */
int config_hint_distance(const char *a, const char *b);

#endif
