/*
 * grammar_schema_impl - what grammar_schema.c and its parts share.
 */
#ifndef GRAMMAR_SCHEMA_IMPL_H
#define GRAMMAR_SCHEMA_IMPL_H

#include "base/hashmap.h"
#include "engine/grammar/grammar_json.h"
#include "engine/grammar/grammar_schema.h"

/* A schema that a rule stands for, compiled when its turn comes. */
struct schema_task {
    const json_t *schema;
    int rule;
};

struct schema_reader {
    struct grammar_build *b;
    struct grammar_json json;
    const json_t *root;
    struct u64map rules;       /* address of a schema -> its rule */
    struct schema_task *tasks; /* [n_tasks] of which n_done are compiled */
    int n_tasks, n_done, n_tasks_room;
};

/* The rule of a schema, made when it is first asked for: cycles end here. */
const struct expr *schema_call(struct schema_reader *s, const json_t *schema, const char *name);

/* What the members of `schema` allow of one type. */
const struct expr *schema_of_object(struct schema_reader *s, const json_t *schema);
const struct expr *schema_of_array(struct schema_reader *s, const json_t *schema);
const struct expr *schema_of_string(struct schema_reader *s, const json_t *schema);
const struct expr *schema_of_number(struct schema_reader *s, const json_t *schema, bool integer);

/* A count that is not negative; `otherwise` when absent. */
int schema_count(struct schema_reader *s, const json_t *schema, const char *key, int otherwise);

void schema_refuse(struct schema_reader *s, const char *keyword, const char *why);

#endif
