/*
 * jinja_node - the tree of a parsed template. Shared by jinja_parse.c and jinja_eval.c.
 */
#ifndef JINJA_NODE_H
#define JINJA_NODE_H

#include "engine/tokenizer/jinja.h"

enum jinja_node_kind {
    /* Statements; `next` chains them. */
    NODE_TEXT,   /* text */
    NODE_OUTPUT, /* a */
    NODE_IF,     /* a; body; other: the else part */
    NODE_FOR,    /* target; a: what over; b: the filter; body; other: when empty */
    NODE_SET,    /* target; a, or body for a block */
    NODE_MACRO,  /* text: name; list: the parameters, NODE_NAME with a default in a; body */
    NODE_BREAK,
    NODE_CONTINUE,
    NODE_FILTER_BLOCK, /* a: the filter over an empty operand; body */
    NODE_CALL_BLOCK,   /* a: the call; body becomes caller() */
    /* Expressions. */
    NODE_LITERAL, /* value */
    NODE_NAME,    /* text */
    NODE_ATTR,    /* a . text */
    NODE_ITEM,    /* a [ b ] */
    NODE_SLICE,   /* a [ b : c : d ] */
    NODE_CALL,    /* a ( list, named ) */
    NODE_FILTER,  /* a | text ( list, named ) */
    NODE_TEST,    /* a is text ( list ) */
    NODE_NOT,
    NODE_NEGATE,
    NODE_PLUS,
    NODE_AND,
    NODE_OR,
    NODE_BINARY,  /* a op b */
    NODE_COMPARE, /* a, then list of NODE_OPERAND */
    NODE_OPERAND, /* op a */
    NODE_COND,    /* a if b else c */
    NODE_LIST,
    NODE_TUPLE,
    NODE_DICT, /* list: keys and values in turn */
    NODE_NAMED /* text = a, in the arguments of a call */
};

enum jinja_op {
    OP_ADD,
    OP_SUB,
    OP_MUL,
    OP_DIV,
    OP_FLOOR_DIV,
    OP_MOD,
    OP_POW,
    OP_CONCAT,
    OP_EQ,
    OP_NE,
    OP_LT,
    OP_LE,
    OP_GT,
    OP_GE,
    OP_IN,
    OP_NOT_IN
};

struct jinja_node {
    enum jinja_node_kind kind;
    enum jinja_op op;
    int line;
    const char *text; /* [text_len], NUL-terminated */
    size_t text_len;
    struct jinja_value value;
    struct jinja_string string; /* what a string literal's value points to */
    struct jinja_node *a, *b, *c, *d;
    struct jinja_node *target, *body, *other, *list;
    struct jinja_node *next; /* in a body or a list */
};

#endif
