/*
 * jinja_parse - tokens to a tree, by recursive descent with a bound on the depth.
 */
#include "base/err.h"
#include "engine/tokenizer/jinja_lex.h"
#include "engine/tokenizer/jinja_node.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

#define MAX_NESTING 150 /* of tags and parentheses; real templates have 10 */

struct parser {
    const struct jinja_token *t; /* the next token */
    struct arena *arena;
    struct err *err;
    int rc; /* the first failure */
    int depth, loops;
};

static struct jinja_node *expression(struct parser *p);
static struct jinja_node *unary(struct parser *p, bool with_filters);
static struct jinja_node *statements(struct parser *p, const char *const *ends);

static void *fail(struct parser *p, const char *what)
{
    if (p->rc == 0)
        p->rc = err_set(p->err, ERR_PARSE, "chat template, line %d: %s, at '%.40s'", p->t->line,
                        what, p->t->text);
    return NULL;
}

/* Never NULL: after a failure, a node that nothing will look at. */
static struct jinja_node *node_new(struct parser *p, enum jinja_node_kind kind)
{
    static struct jinja_node nowhere;
    struct jinja_node *n = arena_alloc(p->arena, sizeof(*n));

    if (!n) {
        if (p->rc == 0)
            p->rc = err_set(p->err, ERR_NO_ROOM, "chat template: too large");
        return &nowhere;
    }
    n->kind = kind;
    n->line = p->t->line;
    return n;
}

static bool is_op(const struct parser *p, const char *op)
{
    return p->t->kind == TOKEN_OP && strcmp(p->t->text, op) == 0;
}

static bool is_name(const struct parser *p, const char *name)
{
    return p->t->kind == TOKEN_NAME && strcmp(p->t->text, name) == 0;
}

static void next(struct parser *p)
{
    if (p->t->kind != TOKEN_EOF)
        p->t++;
}

static bool take_op(struct parser *p, const char *op)
{
    if (!is_op(p, op))
        return false;
    next(p);
    return true;
}

static bool take_name(struct parser *p, const char *name)
{
    if (!is_name(p, name))
        return false;
    next(p);
    return true;
}

static void expect_op(struct parser *p, const char *op)
{
    if (!take_op(p, op))
        fail(p, "something else was expected");
}

static void expect(struct parser *p, enum jinja_token_kind kind)
{
    if (p->t->kind != kind)
        fail(p, "something else was expected");
    else
        next(p);
}

static void take_text(struct parser *p, struct jinja_node *n)
{
    if (p->t->kind != TOKEN_NAME) {
        fail(p, "a name was expected");
        n->text = "";
        return;
    }
    n->text = p->t->text;
    n->text_len = p->t->len;
    next(p);
}

/* The arguments of a call behind its parenthesis. */
static struct jinja_node *arguments(struct parser *p)
{
    struct jinja_node *first = NULL, **last = &first;

    while (p->rc == 0 && !take_op(p, ")")) {
        struct jinja_node *n;

        if (first)
            expect_op(p, ",");
        if (first && take_op(p, ")"))
            break;
        if (p->t->kind == TOKEN_NAME && p->t[1].kind == TOKEN_OP &&
            strcmp(p->t[1].text, "=") == 0) {
            n = node_new(p, NODE_NAMED);
            take_text(p, n);
            next(p);
            n->a = expression(p);
        } else {
            struct jinja_node *value = expression(p);

            n = node_new(p, NODE_LIST); /* a positional argument: its value in a */
            n->a = value;
        }
        *last = n;
        last = &n->next;
    }
    return first;
}

static struct jinja_node *literal(struct parser *p, struct jinja_value v)
{
    struct jinja_node *n = node_new(p, NODE_LITERAL);

    n->value = v;
    return n;
}

static struct jinja_node *string_literal(struct parser *p)
{
    struct jinja_node *n = node_new(p, NODE_LITERAL);
    size_t len = 0, at = 0;
    char *text;

    for (int i = 0; p->t[i].kind == TOKEN_STRING; i++) /* neighbours are joined */
        len += p->t[i].len;
    text = arena_alloc(p->arena, len + 1);
    for (; p->t->kind == TOKEN_STRING; next(p)) {
        if (text)
            memcpy(text + at, p->t->text, p->t->len);
        at += p->t->len;
    }
    if (!text)
        return fail(p, "too large");
    n->string = (struct jinja_string){.text = text, .len = len};
    n->value = (struct jinja_value){.kind = JINJA_STRING, .string = &n->string};
    return n;
}

static struct jinja_node *number(struct parser *p)
{
    struct jinja_node *n;

    errno = 0;
    if (p->t->kind == TOKEN_INT)
        n = literal(p, jinja_int(strtoll(p->t->text, NULL, 10)));
    else
        n = literal(p, jinja_float(strtod(p->t->text, NULL)));
    if (errno == ERANGE)
        fail(p, "a number out of range");
    next(p);
    return n;
}

/* Items up to the closing operator, which is taken; pairs for a dictionary. */
static struct jinja_node *items(struct parser *p, const char *close, bool pairs)
{
    struct jinja_node *first = NULL, **last = &first;

    while (p->rc == 0 && !take_op(p, close)) {
        struct jinja_node *n = node_new(p, NODE_LIST);

        if (first)
            expect_op(p, ",");
        if (first && take_op(p, close))
            break;
        n->a = expression(p);
        if (pairs) {
            expect_op(p, ":");
            n->b = expression(p);
        }
        *last = n;
        last = &n->next;
    }
    return first;
}

static struct jinja_node *parenthesis(struct parser *p)
{
    struct jinja_node *n, *tuple, **last;

    if (take_op(p, ")"))
        return node_new(p, NODE_TUPLE);
    n = expression(p);
    if (take_op(p, ")"))
        return n;
    tuple = node_new(p, NODE_TUPLE);
    tuple->list = node_new(p, NODE_LIST);
    tuple->list->a = n;
    last = &tuple->list->next;
    while (p->rc == 0 && !take_op(p, ")")) {
        expect_op(p, ",");
        if (take_op(p, ")"))
            break;
        *last = node_new(p, NODE_LIST);
        (*last)->a = expression(p);
        last = &(*last)->next;
    }
    return tuple;
}

static struct jinja_node *primary(struct parser *p)
{
    struct jinja_node *n;

    switch (p->t->kind) {
    case TOKEN_STRING:
        return string_literal(p);
    case TOKEN_INT:
    case TOKEN_FLOAT:
        return number(p);
    case TOKEN_NAME:
        if (is_name(p, "true") || is_name(p, "True"))
            n = literal(p, jinja_bool(true));
        else if (is_name(p, "false") || is_name(p, "False"))
            n = literal(p, jinja_bool(false));
        else if (is_name(p, "none") || is_name(p, "None"))
            n = literal(p, jinja_none());
        else
            n = node_new(p, NODE_NAME);
        take_text(p, n);
        return n;
    default:
        break;
    }
    if (take_op(p, "("))
        return parenthesis(p);
    if (take_op(p, "[")) {
        n = node_new(p, NODE_LIST);
        n->list = items(p, "]", false);
        return n;
    }
    if (take_op(p, "{")) {
        n = node_new(p, NODE_DICT);
        n->list = items(p, "}", true);
        return n;
    }
    return fail(p, "an expression was expected");
}

/* a[b] or a[b:c:d], behind the bracket. */
static struct jinja_node *subscript(struct parser *p, struct jinja_node *a)
{
    struct jinja_node *n = node_new(p, NODE_ITEM);

    n->a = a;
    if (!is_op(p, ":"))
        n->b = expression(p);
    if (take_op(p, ":")) {
        n->kind = NODE_SLICE;
        if (!is_op(p, "]") && !is_op(p, ":"))
            n->c = expression(p);
        if (take_op(p, ":") && !is_op(p, "]"))
            n->d = expression(p);
    }
    expect_op(p, "]");
    return n;
}

static struct jinja_node *postfix(struct parser *p, struct jinja_node *a)
{
    while (p->rc == 0) {
        struct jinja_node *n;

        if (take_op(p, ".")) {
            if (p->t->kind == TOKEN_INT) {
                n = node_new(p, NODE_ITEM);
                n->a = a;
                n->b = number(p);
            } else {
                n = node_new(p, NODE_ATTR);
                n->a = a;
                take_text(p, n);
            }
        } else if (take_op(p, "[")) {
            n = subscript(p, a);
        } else if (take_op(p, "(")) {
            n = node_new(p, NODE_CALL);
            n->a = a;
            n->list = arguments(p);
        } else {
            break;
        }
        a = n;
    }
    return a;
}

static struct jinja_node *filter(struct parser *p, struct jinja_node *a)
{
    struct jinja_node *n = node_new(p, NODE_FILTER);

    n->a = a;
    take_text(p, n);
    if (take_op(p, "("))
        n->list = arguments(p);
    return n;
}

static bool starts_test_argument(const struct parser *p)
{
    if (p->t->kind == TOKEN_NAME)
        return !is_name(p, "else") && !is_name(p, "or") && !is_name(p, "and") &&
               !is_name(p, "is") && !is_name(p, "if") && !is_name(p, "in") && !is_name(p, "not");
    return p->t->kind == TOKEN_STRING || p->t->kind == TOKEN_INT || p->t->kind == TOKEN_FLOAT ||
           is_op(p, "[") || is_op(p, "{");
}

static struct jinja_node *test(struct parser *p, struct jinja_node *a)
{
    bool negated = take_name(p, "not");
    struct jinja_node *n = node_new(p, NODE_TEST), *not_n;

    n->a = a;
    take_text(p, n);
    if (take_op(p, "(")) {
        n->list = arguments(p);
    } else if (starts_test_argument(p)) {
        n->list = node_new(p, NODE_LIST);
        n->list->a = postfix(p, primary(p));
    }
    if (!negated)
        return n;
    not_n = node_new(p, NODE_NOT);
    not_n->a = n;
    return not_n;
}

static struct jinja_node *filters(struct parser *p, struct jinja_node *a)
{
    while (p->rc == 0) {
        if (take_op(p, "|")) {
            a = filter(p, a);
        } else if (take_name(p, "is")) {
            a = test(p, a);
        } else if (take_op(p, "(")) {
            struct jinja_node *n = node_new(p, NODE_CALL);

            n->a = a;
            n->list = arguments(p);
            a = n;
        } else {
            break;
        }
    }
    return a;
}

static struct jinja_node *unary(struct parser *p, bool with_filters)
{
    struct jinja_node *n;

    if (++p->depth > MAX_NESTING)
        return fail(p, "nested too deeply");
    if (is_op(p, "-") || is_op(p, "+")) {
        n = node_new(p, is_op(p, "-") ? NODE_NEGATE : NODE_PLUS);
        next(p);
        n->a = unary(p, false);
    } else {
        n = postfix(p, primary(p));
    }
    p->depth--;
    return with_filters ? filters(p, n) : n;
}

/* The operators of one level, and the level below it. */
static const struct {
    const char *text;
    enum jinja_op op;
    int level;
} operators[] = {
    {"+", OP_ADD, 0}, {"-", OP_SUB, 0}, {"~", OP_CONCAT, 1},     {"*", OP_MUL, 2},
    {"/", OP_DIV, 2}, {"%", OP_MOD, 2}, {"//", OP_FLOOR_DIV, 2}, {"**", OP_POW, 3},
};

static struct jinja_node *binary(struct parser *p, int level)
{
    struct jinja_node *a = level == 3 ? unary(p, true) : binary(p, level + 1);

    for (size_t i = 0; p->rc == 0 && i < sizeof(operators) / sizeof(operators[0]);) {
        struct jinja_node *n;

        if (operators[i].level != level || !is_op(p, operators[i].text)) {
            i++;
            continue;
        }
        n = node_new(p, NODE_BINARY);
        n->op = operators[i].op;
        next(p);
        n->a = a;
        n->b = level == 3 ? unary(p, true) : binary(p, level + 1);
        a = n;
        i = 0;
    }
    return a;
}

static bool comparison(struct parser *p, enum jinja_op *op)
{
    static const char *const texts[] = {"==", "!=", "<", "<=", ">", ">="};

    for (int i = 0; i < 6; i++) {
        if (take_op(p, texts[i])) {
            *op = (enum jinja_op)(OP_EQ + i);
            return true;
        }
    }
    if (take_name(p, "in")) {
        *op = OP_IN;
        return true;
    }
    if (is_name(p, "not") && p->t[1].kind == TOKEN_NAME && strcmp(p->t[1].text, "in") == 0) {
        next(p);
        next(p);
        *op = OP_NOT_IN;
        return true;
    }
    return false;
}

static struct jinja_node *compare(struct parser *p)
{
    struct jinja_node *a = binary(p, 0), *n = NULL, **last = NULL;
    enum jinja_op op;

    while (p->rc == 0 && comparison(p, &op)) {
        struct jinja_node *operand = node_new(p, NODE_OPERAND);

        operand->op = op;
        operand->a = binary(p, 0);
        if (!n) {
            n = node_new(p, NODE_COMPARE);
            n->a = a;
            last = &n->list;
        }
        *last = operand;
        last = &operand->next;
    }
    return n ? n : a;
}

static struct jinja_node *negation(struct parser *p)
{
    struct jinja_node *n;

    if (!is_name(p, "not"))
        return compare(p);
    if (++p->depth > MAX_NESTING)
        return fail(p, "nested too deeply");
    n = node_new(p, NODE_NOT);
    next(p);
    n->a = negation(p);
    p->depth--;
    return n;
}

static struct jinja_node *logic(struct parser *p, bool is_or)
{
    struct jinja_node *a = is_or ? logic(p, false) : negation(p);

    while (p->rc == 0 && take_name(p, is_or ? "or" : "and")) {
        struct jinja_node *n = node_new(p, is_or ? NODE_OR : NODE_AND);

        n->a = a;
        n->b = is_or ? logic(p, false) : negation(p);
        a = n;
    }
    return a;
}

static struct jinja_node *expression(struct parser *p)
{
    struct jinja_node *a;

    if (++p->depth > MAX_NESTING)
        return fail(p, "nested too deeply");
    a = logic(p, true);
    while (p->rc == 0 && take_name(p, "if")) {
        struct jinja_node *n = node_new(p, NODE_COND);

        n->a = a;
        n->b = logic(p, true);
        if (take_name(p, "else"))
            n->c = expression(p);
        a = n;
    }
    p->depth--;
    return a;
}

/* An expression, or several with commas between: a tuple. Over: up to the word `in`. */
static struct jinja_node *tuple(struct parser *p, bool is_target)
{
    struct jinja_node *a = is_target ? postfix(p, primary(p)) : expression(p), *n, **last;

    if (!is_op(p, ","))
        return a;
    n = node_new(p, NODE_TUPLE);
    n->list = node_new(p, NODE_LIST);
    n->list->a = a;
    last = &n->list->next;
    while (p->rc == 0 && take_op(p, ",")) {
        if (p->t->kind == TOKEN_BLOCK_END || p->t->kind == TOKEN_VAR_END || is_op(p, "="))
            break;
        *last = node_new(p, NODE_LIST);
        (*last)->a = is_target ? postfix(p, primary(p)) : expression(p);
        last = &(*last)->next;
    }
    return n;
}

static struct jinja_node *if_statement(struct parser *p)
{
    struct jinja_node *n = node_new(p, NODE_IF), *at = n;

    for (;;) {
        at->a = tuple(p, false);
        expect(p, TOKEN_BLOCK_END);
        at->body = statements(p, (const char *const[]){"elif", "else", "endif", NULL});
        if (p->rc < 0 || !take_name(p, "elif"))
            break;
        at->other = node_new(p, NODE_IF);
        at = at->other;
    }
    if (take_name(p, "else")) {
        expect(p, TOKEN_BLOCK_END);
        at->other = statements(p, (const char *const[]){"endif", NULL});
    }
    take_name(p, "endif");
    return n;
}

static struct jinja_node *for_statement(struct parser *p)
{
    struct jinja_node *n = node_new(p, NODE_FOR);

    n->target = tuple(p, true);
    if (!take_name(p, "in"))
        return fail(p, "`in` was expected");
    n->a = logic(p, true);
    if (is_op(p, ","))
        return fail(p, "a tuple without parentheses");
    if (take_name(p, "if"))
        n->b = expression(p);
    if (is_name(p, "recursive"))
        return fail(p, "recursive loops are not supported");
    expect(p, TOKEN_BLOCK_END);
    p->loops++;
    n->body = statements(p, (const char *const[]){"endfor", "else", NULL});
    p->loops--;
    if (take_name(p, "else")) {
        expect(p, TOKEN_BLOCK_END);
        n->other = statements(p, (const char *const[]){"endfor", NULL});
    }
    take_name(p, "endfor");
    return n;
}

static struct jinja_node *set_statement(struct parser *p)
{
    struct jinja_node *n = node_new(p, NODE_SET);

    n->target = tuple(p, true);
    if (take_op(p, "=")) {
        n->a = tuple(p, false);
        return n;
    }
    if (take_op(p, "|")) /* a block through a filter */
        n->b = filter(p, NULL);
    expect(p, TOKEN_BLOCK_END);
    n->body = statements(p, (const char *const[]){"endset", NULL});
    take_name(p, "endset");
    return n;
}

static struct jinja_node *parameters(struct parser *p)
{
    struct jinja_node *first = NULL, **last = &first;

    while (p->rc == 0 && !take_op(p, ")")) {
        if (first)
            expect_op(p, ",");
        *last = node_new(p, NODE_NAME);
        take_text(p, *last);
        if (take_op(p, "="))
            (*last)->a = expression(p);
        last = &(*last)->next;
    }
    return first;
}

static struct jinja_node *macro_statement(struct parser *p)
{
    struct jinja_node *n = node_new(p, NODE_MACRO);
    int loops = p->loops;

    take_text(p, n);
    expect_op(p, "(");
    n->list = parameters(p);
    expect(p, TOKEN_BLOCK_END);
    p->loops = 0;
    n->body = statements(p, (const char *const[]){"endmacro", NULL});
    p->loops = loops;
    take_name(p, "endmacro");
    if (p->t->kind == TOKEN_NAME)
        next(p); /* its name again */
    return n;
}

static struct jinja_node *call_statement(struct parser *p)
{
    struct jinja_node *n = node_new(p, NODE_CALL_BLOCK);

    n->other = node_new(p, NODE_MACRO);
    n->other->text = "caller";
    if (take_op(p, "("))
        n->other->list = parameters(p);
    n->a = postfix(p, primary(p));
    if (p->rc == 0 && n->a->kind != NODE_CALL)
        return fail(p, "a call was expected");
    expect(p, TOKEN_BLOCK_END);
    n->other->body = statements(p, (const char *const[]){"endcall", NULL});
    take_name(p, "endcall");
    return n;
}

static struct jinja_node *statement(struct parser *p)
{
    struct jinja_node *n;

    if (take_name(p, "if"))
        return if_statement(p);
    if (take_name(p, "for"))
        return for_statement(p);
    if (take_name(p, "set"))
        return set_statement(p);
    if (take_name(p, "macro"))
        return macro_statement(p);
    if (take_name(p, "call"))
        return call_statement(p);
    if (is_name(p, "break") || is_name(p, "continue")) {
        if (!p->loops)
            return fail(p, "outside of a loop");
        n = node_new(p, is_name(p, "break") ? NODE_BREAK : NODE_CONTINUE);
        next(p);
        return n;
    }
    if (take_name(p, "filter")) {
        n = node_new(p, NODE_FILTER_BLOCK);
        n->b = filter(p, NULL);
        expect(p, TOKEN_BLOCK_END);
        n->body = statements(p, (const char *const[]){"endfilter", NULL});
        take_name(p, "endfilter");
        return n;
    }
    if (take_name(p, "generation")) { /* marks an assistant's words for training */
        n = node_new(p, NODE_IF);
        n->a = literal(p, jinja_bool(true));
        expect(p, TOKEN_BLOCK_END);
        n->body = statements(p, (const char *const[]){"endgeneration", NULL});
        take_name(p, "endgeneration");
        return n;
    }
    return fail(p, "this tag is not supported");
}

static bool is_end(const struct parser *p, const char *const *ends)
{
    for (; ends && *ends; ends++)
        if (p->t[1].kind == TOKEN_NAME && strcmp(p->t[1].text, *ends) == 0)
            return true;
    return false;
}

/* Statements up to a tag among ends, whose name is then the next token; NULL: to the end. */
static struct jinja_node *statements(struct parser *p, const char *const *ends)
{
    struct jinja_node *first = NULL, **last = &first;

    if (++p->depth > MAX_NESTING)
        return fail(p, "nested too deeply");
    while (p->rc == 0) {
        struct jinja_node *n;

        if (p->t->kind == TOKEN_EOF) {
            if (ends)
                fail(p, "a tag is not closed");
            break;
        }
        if (p->t->kind == TOKEN_BLOCK_BEGIN && is_end(p, ends)) {
            next(p);
            break;
        }
        if (p->t->kind == TOKEN_TEXT) {
            n = node_new(p, NODE_TEXT);
            n->text = p->t->text;
            n->text_len = p->t->len;
            next(p);
        } else if (p->t->kind == TOKEN_VAR_BEGIN) {
            n = node_new(p, NODE_OUTPUT);
            next(p);
            n->a = tuple(p, false);
            expect(p, TOKEN_VAR_END);
        } else {
            expect(p, TOKEN_BLOCK_BEGIN);
            n = statement(p);
            expect(p, TOKEN_BLOCK_END);
        }
        if (p->rc < 0)
            break;
        *last = n;
        last = &n->next;
    }
    p->depth--;
    return first;
}

int jinja_parse(const struct jinja_node **out, struct arena *arena, const char *source, size_t len,
                struct err *err)
{
    struct jinja_tokens tokens = {0};
    struct parser p = {.arena = arena, .err = err};
    int rc = jinja_lex(&tokens, arena, source, len, err);

    if (rc == 0) {
        p.t = tokens.v;
        *out = statements(&p, NULL);
        rc = p.rc;
    }
    free(tokens.v);
    return rc;
}
