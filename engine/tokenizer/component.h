/*
 * component - reading the members of tokenizer.json's components.
 *
 * Each component is an object with a "type"; lists of them nest in "Sequence". The walkers here
 * flatten the lists, so the rest of the code sees plain arrays of steps.
 */
#ifndef COMPONENT_H
#define COMPONENT_H

#include <jansson.h>
#include <stdbool.h>
#include <stddef.h>

struct err;
struct split_regex;

#define COMPONENT_MAX_STEPS 32 /* in one flattened list; real files have up to 5 */
#define COMPONENT_MAX_DEPTH 4

/*
 * Flattens json, whose lists are the member `list` of type "Sequence", into steps [up to
 * COMPONENT_MAX_STEPS], borrowed. Returns how many, or an error; kind names the component.
 */
int component_flatten(const json_t **steps, const json_t *json, const char *list, const char *kind,
                      struct err *err);

/* The "type" of a step; never NULL behind component_flatten(). */
const char *component_type(const json_t *step);

/* A member with its default when absent or null. Another type is ERR_PARSE. */
int component_bool(bool *out, const json_t *json, const char *key, bool otherwise, struct err *err);
int component_int(int64_t *out, const json_t *json, const char *key, int64_t otherwise,
                  struct err *err);

/* A string member, borrowed; *out stays NULL when absent or null. */
int component_string(const char **out, size_t *len, const json_t *json, const char *key,
                     struct err *err);

/* The member "pattern": {"String": s} or {"Regex": s}. */
int component_pattern(struct split_regex **out, const json_t *json, struct err *err);

/* ERR_UNSUPPORTED for a type that is not built. */
int component_unknown(const char *kind, const char *type, struct err *err);

#endif
