/*
 * grammar_schema - JSON Schema to rules.
 *
 * What is written satisfies the schema; not everything that satisfies it can be written. Properties
 * come in the schema's order; where additionalProperties is not given, none are added to those that
 * are named. A keyword that is not understood is an error, never passed over, unless it is an
 * annotation such as `title`.
 */
#ifndef GRAMMAR_SCHEMA_H
#define GRAMMAR_SCHEMA_H

#include "engine/grammar/grammar_expr.h"

#include <jansson.h>

/* Adds the rules to b and sets b->root. schema must stay until the build is compiled. */
void grammar_schema(struct grammar_build *b, const json_t *schema);

#endif
