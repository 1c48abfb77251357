/*
 * jinja - the part of the Jinja template language that chat templates use. For chat_template.c.
 *
 * As Python's jinja2 with trim_blocks, lstrip_blocks, loop controls and an immutable sandbox, which
 * is how chat templates are run elsewhere. A parsed template is immutable. A run allocates from its
 * own arena and is bounded in steps, depth, memory and output.
 *
 * Every string knows which of its bytes come from a client; concatenating, slicing and filtering
 * keep that knowledge.
 */
#ifndef JINJA_H
#define JINJA_H

#include <jansson.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "base/arena.h"

#define JINJA_MAX_STEPS  20000000     /* a template over 10,000 messages takes 5 million */
#define JINJA_MAX_DEPTH  200          /* of calls and nested expressions */
#define JINJA_MAX_MEMORY (256u << 20) /* strings are immutable: loops over long ones copy */
#define JINJA_MAX_OUTPUT (32u << 20)

struct err;
struct jinja_node;

enum jinja_kind {
    JINJA_UNDEFINED,
    JINJA_NONE,
    JINJA_BOOL,
    JINJA_INT,
    JINJA_FLOAT,
    JINJA_STRING,
    JINJA_LIST,
    JINJA_TUPLE,
    JINJA_DICT,
    JINJA_NAMESPACE,
    JINJA_MACRO,
    JINJA_FUNCTION,
    JINJA_METHOD,
    JINJA_LOOP
};

struct jinja_string {
    const char *text; /* [len], valid UTF-8 */
    size_t len;
    const unsigned char *client; /* [len], 1 where a client wrote it; NULL: nowhere */
};

struct jinja_value {
    enum jinja_kind kind;
    union {
        bool truth;
        int64_t number;
        double real;
        struct jinja_string *string;
        struct jinja_list *list; /* LIST, TUPLE */
        struct jinja_dict *dict; /* DICT, NAMESPACE */
        const struct jinja_node *macro;
        struct jinja_method *method; /* METHOD, and FUNCTION with no self */
        struct jinja_loop *loop;
        const char *name; /* UNDEFINED: what was not there, or NULL */
    };
};

struct jinja_list {
    struct jinja_value *items; /* [n] */
    size_t n, alloc;
};

struct jinja_pair {
    struct jinja_value key, value;
};

struct jinja_dict {           /* in order of insertion */
    struct jinja_pair *pairs; /* [n] */
    size_t n, alloc;
};

struct jinja_method {
    struct jinja_value self;
    const char *name;
};

struct jinja_loop {
    struct jinja_list *items;
    size_t at;
    int depth;
    struct jinja_value last_changed;
    bool has_changed;
};

struct jinja_call_args {
    struct jinja_value *pos; /* [n_pos] */
    size_t n_pos;
    struct jinja_dict *named; /* NULL: none */
};

/* One rendering. The first failure stays in rc; what is called afterwards does nothing much. */
struct jinja_run {
    struct arena arena;
    struct err *err;
    int rc;
    int64_t n_steps;
    int depth;
    int64_t now_unix; /* 0: the clock */
    struct jinja_scope *scope;
    struct jinja_builder *out;
};

/* A string that grows. */
struct jinja_builder {
    struct jinja_run *run;
    char *text;
    unsigned char *client;
    size_t len, alloc;
    bool any_client;
};

/* jinja_parse.c: the tree of a template, allocated from arena. */
int jinja_parse(const struct jinja_node **out, struct arena *arena, const char *source, size_t len,
                struct err *err);

/* jinja_eval.c: renders into out with the given variables. */
int jinja_render(const struct jinja_node *root, struct jinja_run *run, struct jinja_dict *variables,
                 struct jinja_builder *out);
struct jinja_value jinja_call_value(struct jinja_run *run, struct jinja_value callee,
                                    const struct jinja_call_args *args);

/* jinja_value.c */
struct jinja_value jinja_fail(struct jinja_run *run, int code, const char *fmt, ...)
    __attribute__((format(printf, 3, 4)));
void *jinja_alloc(struct jinja_run *run, size_t n, size_t size);
void jinja_build_init(struct jinja_builder *b, struct jinja_run *run);
void jinja_build_add(struct jinja_builder *b, const char *text, size_t len,
                     const unsigned char *client);
void jinja_build_str(struct jinja_builder *b, const char *text); /* trusted */
void jinja_build_string(struct jinja_builder *b, const struct jinja_string *s);
void jinja_build_value(struct jinja_builder *b, struct jinja_value v); /* as {{ v }} prints it */
struct jinja_value jinja_build_done(struct jinja_builder *b);
struct jinja_value jinja_text(struct jinja_run *run, const char *text, size_t len);
struct jinja_value jinja_substring(struct jinja_run *run, const struct jinja_string *s, size_t at,
                                   size_t len);
struct jinja_value jinja_list_new(struct jinja_run *run, enum jinja_kind kind);
void jinja_list_add(struct jinja_run *run, struct jinja_list *list, struct jinja_value v);
struct jinja_value jinja_dict_new(struct jinja_run *run);
void jinja_dict_put(struct jinja_run *run, struct jinja_dict *d, struct jinja_value key,
                    struct jinja_value v);
const struct jinja_value *jinja_dict_get(struct jinja_run *run, const struct jinja_dict *d,
                                         struct jinja_value key);
const struct jinja_value *jinja_dict_find(const struct jinja_dict *d, const char *key);
struct jinja_value jinja_from_json(struct jinja_run *run, const json_t *json, bool client);
void jinja_to_json(struct jinja_builder *b, struct jinja_value v,
                   const struct jinja_call_args *options);
bool jinja_is_true(struct jinja_value v);
bool jinja_equal(struct jinja_run *run, struct jinja_value a, struct jinja_value b);
int jinja_compare(struct jinja_run *run, struct jinja_value a, struct jinja_value b);
bool jinja_contains(struct jinja_run *run, struct jinja_value in, struct jinja_value v);
const char *jinja_kind_name(struct jinja_value v);
size_t jinja_length(struct jinja_run *run, struct jinja_value v);
struct jinja_list *jinja_iterate(struct jinja_run *run, struct jinja_value v); /* never NULL */

static inline struct jinja_value jinja_undefined(const char *name)
{
    return (struct jinja_value){.kind = JINJA_UNDEFINED, .name = name};
}

static inline struct jinja_value jinja_none(void)
{
    return (struct jinja_value){.kind = JINJA_NONE};
}

static inline struct jinja_value jinja_bool(bool b)
{
    return (struct jinja_value){.kind = JINJA_BOOL, .truth = b};
}

static inline struct jinja_value jinja_int(int64_t n)
{
    return (struct jinja_value){.kind = JINJA_INT, .number = n};
}

static inline struct jinja_value jinja_float(double d)
{
    return (struct jinja_value){.kind = JINJA_FLOAT, .real = d};
}

/* jinja_builtin.c: filters, tests, functions; jinja_method.c: methods. */
struct jinja_value jinja_filter(struct jinja_run *run, const char *name, struct jinja_value v,
                                const struct jinja_call_args *args);
bool jinja_test(struct jinja_run *run, const char *name, struct jinja_value v,
                const struct jinja_call_args *args);
struct jinja_value jinja_function(struct jinja_run *run, const char *name,
                                  const struct jinja_call_args *args);
bool jinja_is_function(const char *name);
bool jinja_has_method(struct jinja_value self, const char *name);
struct jinja_value jinja_method_call(struct jinja_run *run, struct jinja_value self,
                                     const char *name, const struct jinja_call_args *args);
struct jinja_value jinja_trim(struct jinja_run *run, const struct jinja_string *s,
                              const struct jinja_string *chars, bool left, bool right);
struct jinja_value jinja_replace(struct jinja_run *run, const struct jinja_string *s,
                                 const struct jinja_string *from, const struct jinja_string *to,
                                 int64_t max);

/* An argument by place or name; UNDEFINED without a name when it was not given. */
struct jinja_value jinja_arg(const struct jinja_call_args *args, size_t at, const char *name);

#endif
