/*
 * jinja_lex - the source of a template as tokens, white space control already applied.
 */
#ifndef JINJA_LEX_H
#define JINJA_LEX_H

#include <stddef.h>

struct arena;
struct err;

enum jinja_token_kind {
    TOKEN_TEXT,      /* template text as it goes out */
    TOKEN_VAR_BEGIN, /* {{ */
    TOKEN_VAR_END,
    TOKEN_BLOCK_BEGIN, /* {% */
    TOKEN_BLOCK_END,
    TOKEN_NAME,
    TOKEN_STRING, /* escapes resolved */
    TOKEN_INT,
    TOKEN_FLOAT,
    TOKEN_OP,
    TOKEN_EOF
};

struct jinja_token {
    enum jinja_token_kind kind;
    const char *text; /* [len], NUL-terminated */
    size_t len;
    int line;
};

struct jinja_tokens {
    struct jinja_token *v; /* [n], the last one TOKEN_EOF; from malloc, the caller frees it */
    size_t n, alloc;
};

/* Texts live in arena. */
int jinja_lex(struct jinja_tokens *out, struct arena *arena, const char *source, size_t len,
              struct err *err);

#endif
