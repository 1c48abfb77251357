/*
 * plan_write - a plan as the file that the daemon, and readers of the two-key format, load.
 */
#ifndef PLAN_WRITE_H
#define PLAN_WRITE_H

#include "engine/plan/search/search_options.h"

struct err;
struct strbuf;

/*
 * rule [n_layers * units_per_layer] indexes rules; a unit's rule is repeated for its query heads.
 * about is JSON text of an object, for people.
 */
void plan_write(struct strbuf *out, const struct search_options *o, const struct search_input *in,
                const int *rule, const char *about);

/* Rules of all query heads: out [n_layers * n_heads]. */
void plan_write_rules(struct kv_rule *out, const struct search_options *o,
                      const struct search_input *in, const int *rule);

#endif
