/*
 * grammar_ebnf - EBNF to rules. See grammar_ebnf.h.
 */
#include "engine/grammar/grammar_ebnf.h"

#include "base/hashmap.h"
#include "engine/grammar/grammar_regex.h"

#include <string.h>

static const struct regex_options plain = {.spell = expr_code_points};

struct ebnf_reader {
    struct regex_reader r;
    const char *source;
    struct strmap rules; /* name -> number; names point into the source */
};

static int refuse(struct ebnf_reader *e, const char *what)
{
    int line = 1;

    for (const char *p = e->source; p < e->r.at; p++)
        line += *p == '\n';
    return grammar_fail(e->r.b, ERR_INVALID, "grammar, line %d: %s", line, what);
}

static bool is_name(char c)
{
    return (c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z') || (c >= '0' && c <= '9') || c == '_' ||
           c == '-';
}

/* White space and comments; inside a rule a line end counts only when the next line goes on. */
static void skip(struct ebnf_reader *e)
{
    while (e->r.at < e->r.end) {
        if (*e->r.at == '#') {
            while (e->r.at < e->r.end && *e->r.at != '\n')
                e->r.at++;
        } else if (strchr(" \t\r\n", *e->r.at)) {
            e->r.at++;
        } else {
            break;
        }
    }
}

static size_t name_len(const struct ebnf_reader *e)
{
    size_t n = 0;

    while (e->r.at + n < e->r.end && is_name(e->r.at[n]))
        n++;
    return n;
}

/* Does a rule's head begin here: a name and ::= ? */
static bool is_head(const struct ebnf_reader *e)
{
    const char *p = e->r.at + name_len(e);

    if (p == e->r.at)
        return false;
    while (p < e->r.end && (*p == ' ' || *p == '\t'))
        p++;
    return e->r.end - p >= 3 && !memcmp(p, "::=", 3);
}

static int rule_of(struct ebnf_reader *e, const char *name, size_t len)
{
    int64_t rule;

    if (strmap_get(&e->rules, name, len, &rule))
        return (int)rule;
    rule = grammar_rule_new(e->r.b, name, len);
    if (strmap_put(&e->rules, name, len, rule) < 0)
        grammar_fail(e->r.b, ERR_NO_ROOM, "no memory for the grammar");
    return (int)rule;
}

/* A code point behind a backslash. */
static uint32_t read_escape(struct ebnf_reader *e)
{
    static const char letters[] = "ntr", values[] = "\n\t\r";
    char c = *e->r.at++;
    const char *found = c ? strchr(letters, c) : NULL;
    int n = c == 'x' ? 2 : c == 'u' ? 4 : c == 'U' ? 8 : 0;
    uint32_t cp = 0;

    if (found)
        return (unsigned char)values[found - letters];
    if (n == 0)
        return (unsigned char)c;
    for (int i = 0; i < n; i++) {
        char h = e->r.at < e->r.end ? *e->r.at++ : 0;

        if (h >= '0' && h <= '9')
            cp = cp * 16 + (uint32_t)(h - '0');
        else if ((h | 32) >= 'a' && (h | 32) <= 'f')
            cp = cp * 16 + (uint32_t)((h | 32) - 'a' + 10);
        else
            refuse(e, "a hexadecimal digit is missing");
    }
    if (cp > 0x10ffff)
        refuse(e, "an escape is no code point");
    return cp;
}

/* A quoted text behind its quote. */
static const struct expr *read_text(struct ebnf_reader *e, char quote)
{
    const struct expr *all = expr_empty(e->r.b);

    while (e->r.at < e->r.end && *e->r.at != quote && e->r.b->rc == 0) {
        struct cp_set one = {0};
        bool escaped = *e->r.at == '\\' && e->r.end - e->r.at > 1;
        uint32_t cp;

        e->r.at += escaped;
        cp = escaped ? read_escape(e) : regex_code_point(&e->r);
        cp_set_add(e->r.b, &one, cp, cp);
        all = expr_seq(e->r.b, all, expr_code_points(e->r.b, &one));
    }
    if (e->r.at >= e->r.end || *e->r.at != quote)
        refuse(e, "a text's closing quote is missing");
    else
        e->r.at++;
    return all;
}

static const struct expr *read_alternatives(struct ebnf_reader *e);

static const struct expr *read_item(struct ebnf_reader *e)
{
    struct cp_set set = {0};
    const struct expr *x;
    size_t len = name_len(e);
    char c = *e->r.at;

    if (len > 0) {
        const char *name = e->r.at;

        e->r.at += len;
        return expr_call(e->r.b, rule_of(e, name, len));
    }
    e->r.at++;
    switch (c) {
    case '"':
    case '\'':
        return read_text(e, c);
    case '[':
        set = regex_class(&e->r);
        return expr_code_points(e->r.b, &set);
    case '.':
        set = cp_set_negate(e->r.b, &set);
        return expr_code_points(e->r.b, &set);
    case '(':
        if (++e->r.depth > GRAMMAR_MAX_DEPTH)
            refuse(e, "groups nest too deeply");
        x = read_alternatives(e);
        e->r.depth--;
        skip(e);
        if (e->r.at >= e->r.end || *e->r.at != ')')
            refuse(e, "a ) is missing");
        else
            e->r.at++;
        return x;
    default:
        refuse(e, "an unexpected character");
        return expr_never(e->r.b);
    }
}

static const struct expr *read_sequence(struct ebnf_reader *e)
{
    const struct expr *all = expr_empty(e->r.b);

    for (skip(e); e->r.at < e->r.end && e->r.b->rc == 0; skip(e)) {
        if (*e->r.at == '|' || *e->r.at == ')' || is_head(e))
            break;
        all = expr_seq(e->r.b, all, regex_repeat(&e->r, read_item(e)));
    }
    return all;
}

static const struct expr *read_alternatives(struct ebnf_reader *e)
{
    const struct expr *all = read_sequence(e);

    while (e->r.at < e->r.end && *e->r.at == '|' && e->r.b->rc == 0) {
        e->r.at++;
        all = expr_alt(e->r.b, all, read_sequence(e));
    }
    return all;
}

static void read_rule(struct ebnf_reader *e)
{
    const char *name = e->r.at;
    size_t len = name_len(e);
    int rule;

    if (!is_head(e)) {
        refuse(e, "a rule must begin with its name and ::=");
        return;
    }
    rule = rule_of(e, name, len);
    if (e->r.b->rc == 0 && e->r.b->rules[rule].body)
        grammar_fail(e->r.b, ERR_INVALID, "grammar: rule '%.*s' is defined twice",
                     (int)(len < 60 ? len : 60), name);
    e->r.at = (const char *)memchr(name, '=', (size_t)(e->r.end - name)) + 1;
    grammar_rule_set(e->r.b, rule, read_alternatives(e));
    if (e->r.at < e->r.end && *e->r.at == ')')
        refuse(e, "a ) without its (");
}

void grammar_ebnf(struct grammar_build *b, const char *text, size_t len)
{
    struct ebnf_reader e = {.source = text,
                            .r = {.b = b, .at = text, .end = text + len, .options = &plain}};
    int64_t root;

    strmap_init(&e.rules);
    for (skip(&e); e.r.at < e.r.end && b->rc == 0; skip(&e))
        read_rule(&e);
    if (strmap_get(&e.rules, "root", 4, &root))
        b->root = (int)root;
    else
        refuse(&e, "there is no rule 'root'");
    strmap_release(&e.rules);
}
