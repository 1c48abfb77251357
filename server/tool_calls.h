/*
 * tool_calls - finds calls of tools in what a model writes, as it is written.
 *
 * Every family has its own frame around the same thing, an object with the tool's name and its
 * arguments:
 *
 *     hermes, qwen   text <tool_call>{"name": ..., "arguments": {...}}</tool_call> ...
 *     llama3         {"name": ..., "parameters": {...}}; {...}       alone, or behind
 * <|python_tag|> mistral        [TOOL_CALLS][{"name": ..., "arguments": {...}}, ...]       marker
 * often unseen array          [{"name": ..., "parameters": {...}}, ...]       what "required" is
 * held to arguments      {...}                                           what a named tool is held
 * to
 *
 * Text that may be the beginning of a frame is held back until it is clear; what turns out to be
 * none is content after all. Loop thread only.
 */
#ifndef TOOL_CALLS_H
#define TOOL_CALLS_H

#include "base/strbuf.h"

#include <stdbool.h>

enum tool_format {
    TOOLS_NONE = 0,
    TOOLS_HERMES,
    TOOLS_LLAMA3,
    TOOLS_MISTRAL,
    TOOLS_ARRAY,
    TOOLS_ARGUMENTS
};

#define TOOL_CALLS_MAX 128 /* of one answer; more stay content */

struct tool_call {
    char id[32];
    struct strbuf name, arguments; /* the arguments as the model spells them */
    bool is_named, is_announced;   /* the name is known; it was written to the client */
    bool has_begun, is_quoted;     /* arguments came; as a string that holds JSON */
    size_t n_taken;                /* bytes of the value at hand that are in arguments */
    size_t n_written;              /* bytes of arguments that the client has */
};

struct tool_calls { /* zeroed: not looking for any; fields are private but for calls */
    enum tool_format format;
    const char *forced_name; /* TOOLS_ARGUMENTS */
    int state;
    struct tool_call *calls; /* [n_calls] */
    int n_calls;
    struct strbuf held;       /* text whose meaning is not clear yet */
    struct strbuf key, value; /* of the object at hand */
    int depth, place;
    bool in_string, is_escaped;
};

void tool_calls_init(struct tool_calls *t, enum tool_format format, const char *forced_name);
void tool_calls_release(struct tool_calls *t);

/* Reads a piece of text; what is content goes to *content. False when memory is out. */
bool tool_calls_feed(struct tool_calls *t, const char *text, size_t len, struct strbuf *content);

/* The text has ended: what is still held and is no call becomes content. */
bool tool_calls_finish(struct tool_calls *t, struct strbuf *content);

/* Calls whose name is known. */
int tool_calls_count(const struct tool_calls *t);

/* Entries of a delta's tool_calls that the client has not seen, without brackets. */
void tool_calls_write_delta(struct tool_calls *t, struct strbuf *out);
bool tool_calls_has_delta(const struct tool_calls *t);

/* Entries of a message's tool_calls, without brackets. */
void tool_calls_write(const struct tool_calls *t, struct strbuf *out);

/* By what a chat template writes itself. TOOLS_NONE: unknown. */
enum tool_format tool_format_of_template(const char *text);

#endif
