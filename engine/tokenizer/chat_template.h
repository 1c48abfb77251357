/*
 * chat_template - a model's Jinja chat template: messages in, prompt text out.
 *
 * The template comes with the model and is trusted like its weights; the messages come from
 * clients. So the output is a list of segments, each marked as written by the template or taken
 * from the caller's data: a special token that a user typed is never a special token.
 *
 * A compiled template is immutable; any number of threads may render it at once. Rendering is
 * bounded in steps, depth and output bytes.
 */
#ifndef CHAT_TEMPLATE_H
#define CHAT_TEMPLATE_H

#include <jansson.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

struct chat_template;
struct err;
struct token_ids;
struct tokenizer;

/*
 * Finds the template of a model directory: chat_template.jinja, else the member chat_template of
 * tokenizer_config.json (a string, or a list of named ones, of which "default" is taken). Takes
 * bos_token, eos_token and the other named tokens from tokenizer_config.json and
 * special_tokens_map.json. ERR_NOT_FOUND when the directory has no template.
 */
int chat_template_open(struct chat_template **out, const char *model_dir, struct err *err);

/* From memory; tokens is an object of names like bos_token, borrowed, or NULL. */
int chat_template_new(struct chat_template **out, const char *source, size_t len,
                      const json_t *tokens, struct err *err);
void chat_template_free(struct chat_template *ct);

/* The template as it was read, borrowed from ct. */
const char *chat_template_source(const struct chat_template *ct);

struct chat_segment {
    size_t at, len; /* into chat_prompt.text */
    bool trusted;   /* the template's own words: special tokens count */
};

struct chat_prompt {
    char *text; /* [len], NUL-terminated */
    size_t len;
    struct chat_segment *segments; /* [n_segments], neighbours differ in trusted */
    size_t n_segments;
};

void chat_prompt_release(struct chat_prompt *p);

struct chat_args {          /* all borrowed; NULL where absent */
    const json_t *messages; /* array of {role, content, ...} */
    const json_t *tools;    /* array, or NULL */
    const json_t *extra;    /* object: chat_template_kwargs, become variables */
    bool add_generation_prompt;
    int64_t now_unix; /* what strftime_now() tells, in seconds; 0: the clock's time */
};

/*
 * Appends the ids of the prompt. Words may reach over the borders of segments, so this is not the
 * same as encoding one segment behind the other: it gives what encoding the whole text gives, but
 * that no special token is found where a client wrote even one of its letters.
 */
int chat_prompt_encode(const struct chat_prompt *p, const struct tokenizer *t,
                       struct token_ids *out, struct err *err);

/*
 * ERR_INVALID carries what the template's raise_exception() said: the client's mistake.
 * ERR_LIMIT when a bound was reached, ERR_PARSE when the template itself is at fault.
 */
int chat_template_render(const struct chat_template *ct, const struct chat_args *args,
                         struct chat_prompt *out, struct err *err);

#endif
