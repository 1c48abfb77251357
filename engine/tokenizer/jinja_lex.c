/*
 * jinja_lex - the source of a template as tokens. See jinja_lex.h.
 *
 * White space, as with trim_blocks and lstrip_blocks: the newline behind a block or a comment goes,
 * and so do blanks in front of one that stand at the beginning of a line; a minus sign takes all
 * white space on its side, a plus sign none.
 */
#include "engine/tokenizer/jinja_lex.h"

#include "base/arena.h"
#include "base/err.h"
#include "base/strbuf.h"
#include "engine/tokenizer/utf8.h"

#include <ctype.h>
#include <stdbool.h>
#include <stdlib.h>
#include <string.h>

struct lexer {
    const char *p, *end;
    struct jinja_tokens *out;
    struct arena *arena;
    struct err *err;
    int line;
};

static int fail(struct lexer *lx, const char *what)
{
    return err_set(lx->err, ERR_PARSE, "chat template, line %d: %s", lx->line, what);
}

static int add(struct lexer *lx, enum jinja_token_kind kind, const char *text, size_t len)
{
    struct jinja_tokens *t = lx->out;

    if (t->n == t->alloc) {
        size_t alloc = t->alloc ? t->alloc * 2 : 256;
        struct jinja_token *v = realloc(t->v, alloc * sizeof(*v));

        if (!v)
            return err_set(lx->err, ERR_NO_ROOM, "out of memory");
        t->v = v;
        t->alloc = alloc;
    }
    t->v[t->n].text = arena_strndup(lx->arena, text, len);
    if (!t->v[t->n].text)
        return err_set(lx->err, ERR_NO_ROOM, "chat template: out of memory");
    t->v[t->n].kind = kind;
    t->v[t->n].len = len;
    t->v[t->n].line = lx->line;
    t->n++;
    return 0;
}

static bool starts(const struct lexer *lx, const char *with)
{
    size_t n = strlen(with);

    return (size_t)(lx->end - lx->p) >= n && memcmp(lx->p, with, n) == 0;
}

static void advance(struct lexer *lx, size_t n)
{
    for (; n && lx->p < lx->end; n--)
        lx->line += *lx->p++ == '\n';
}

static void skip_space(struct lexer *lx)
{
    while (lx->p < lx->end && isspace((unsigned char)*lx->p))
        advance(lx, 1);
}

/* Behind the end of a tag: what it takes of the text that follows. */
static void after_tag(struct lexer *lx, char sign, bool is_block)
{
    if (sign == '-')
        skip_space(lx);
    else if (is_block && sign != '+' && lx->p < lx->end && *lx->p == '\n')
        advance(lx, 1);
}

/* The text up to the tag at lx->p + len, without what the tag takes of it. */
static int add_text(struct lexer *lx, size_t len, char kind, char sign, bool at_line_start)
{
    const char *text = lx->p;
    size_t keep = len;

    if (sign == '-') {
        while (keep && isspace((unsigned char)text[keep - 1]))
            keep--;
    } else if (kind != '{' && sign != '+') {
        while (keep && (text[keep - 1] == ' ' || text[keep - 1] == '\t' || text[keep - 1] == '\v' ||
                        text[keep - 1] == '\f'))
            keep--;
        if (keep ? text[keep - 1] != '\n' : !at_line_start)
            keep = len; /* not at the beginning of a line */
    }
    if (keep) {
        int rc = add(lx, TOKEN_TEXT, text, keep);

        if (rc < 0)
            return rc;
    }
    advance(lx, len);
    return 0;
}

static int add_escape(struct lexer *lx, struct strbuf *out)
{
    static const char names[] = "nrtabfv0\\'\"";
    static const char values[] = {'\n', '\r', '\t', '\a', '\b', '\f', '\v', 0, '\\', '\'', '"'};
    const char *known = lx->p < lx->end ? memchr(names, *lx->p, sizeof(names) - 1) : NULL;
    char digits[9] = {0};
    size_t n;
    unsigned long cp;

    if (known && *lx->p != '0') {
        strbuf_addch(out, values[known - names]);
        advance(lx, 1);
        return 0;
    }
    if (lx->p == lx->end)
        return fail(lx, "an unfinished string");
    if (*lx->p == '\n') { /* a line goes on */
        advance(lx, 1);
        return 0;
    }
    n = *lx->p == 'x' ? 2 : *lx->p == 'u' ? 4 : *lx->p == 'U' ? 8 : 0;
    if (!n) {
        strbuf_addch(out, '\\');
        return 0;
    }
    if ((size_t)(lx->end - lx->p) <= n)
        return fail(lx, "an unfinished escape");
    memcpy(digits, lx->p + 1, n);
    if (strspn(digits, "0123456789abcdefABCDEF") != n)
        return fail(lx, "an escape that is not hexadecimal");
    cp = strtoul(digits, NULL, 16);
    if (cp == 0 || cp > 0x10ffff || (cp >= 0xd800 && cp < 0xe000))
        return fail(lx, "an escape that is no character");
    utf8_add(out, (uint32_t)cp);
    advance(lx, n + 1);
    return 0;
}

static int lex_string(struct lexer *lx)
{
    struct strbuf text = STRBUF_INIT;
    char quote = *lx->p;
    int rc = 0;

    advance(lx, 1);
    while (rc == 0 && lx->p < lx->end && *lx->p != quote) {
        if (*lx->p == '\\') {
            advance(lx, 1);
            rc = add_escape(lx, &text);
        } else {
            strbuf_addch(&text, *lx->p);
            advance(lx, 1);
        }
    }
    if (rc == 0 && lx->p == lx->end)
        rc = fail(lx, "an unfinished string");
    if (rc == 0)
        rc = add(lx, TOKEN_STRING, text.buf, text.len);
    advance(lx, 1);
    strbuf_release(&text);
    return rc;
}

static int lex_number(struct lexer *lx)
{
    char digits[64];
    size_t n = 0;
    bool is_float = false;

    for (; lx->p < lx->end; lx->p++) {
        char c = *lx->p;

        if (c == '_')
            continue;
        if (c == '.' && (is_float || lx->end - lx->p < 2 || !isdigit((unsigned char)lx->p[1])))
            break;
        if ((c == 'e' || c == 'E') && lx->end - lx->p > 1 &&
            (isdigit((unsigned char)lx->p[1]) || lx->p[1] == '-' || lx->p[1] == '+')) {
            is_float = true;
            if (n + 3 > sizeof(digits))
                return fail(lx, "a number this long");
            digits[n++] = c;
            digits[n++] = *++lx->p;
            continue;
        }
        if (!isdigit((unsigned char)c) && c != '.')
            break;
        is_float = is_float || c == '.';
        if (n + 2 > sizeof(digits))
            return fail(lx, "a number this long");
        digits[n++] = c;
    }
    return add(lx, is_float ? TOKEN_FLOAT : TOKEN_INT, digits, n);
}

static int lex_op(struct lexer *lx)
{
    static const char *const ops[] = {"**", "//", "==", "!=", "<=", ">=", "+", "-", "*",
                                      "/",  "%",  "~",  "<",  ">",  "=",  ".", ",", ":",
                                      ";",  "|",  "(",  ")",  "[",  "]",  "{", "}"};

    for (size_t i = 0; i < sizeof(ops) / sizeof(ops[0]); i++) {
        if (starts(lx, ops[i])) {
            int rc = add(lx, TOKEN_OP, ops[i], strlen(ops[i]));

            advance(lx, strlen(ops[i]));
            return rc;
        }
    }
    return fail(lx, "a character that has no meaning here");
}

/* The inside of a tag up to its end, which is behind lx->p afterwards. */
static int lex_tag(struct lexer *lx, bool is_block)
{
    const char *close = is_block ? "%}" : "}}";
    int braces = 0, rc = 0;

    while (rc == 0) {
        char c, sign = 0;

        skip_space(lx);
        if (lx->p == lx->end)
            return fail(lx, "an unfinished tag");
        c = *lx->p;
        if ((c == '-' || c == '+') && lx->end - lx->p > 2 && memcmp(lx->p + 1, close, 2) == 0)
            sign = c;
        if (sign || (starts(lx, close) && braces == 0)) {
            rc = add(lx, is_block ? TOKEN_BLOCK_END : TOKEN_VAR_END, "", 0);
            advance(lx, sign ? 3 : 2);
            after_tag(lx, sign, is_block);
            return rc;
        }
        if (isalpha((unsigned char)c) || c == '_') {
            size_t n = 1;

            while (lx->p + n < lx->end && (isalnum((unsigned char)lx->p[n]) || lx->p[n] == '_'))
                n++;
            rc = add(lx, TOKEN_NAME, lx->p, n);
            advance(lx, n);
        } else if (isdigit((unsigned char)c)) {
            rc = lex_number(lx);
        } else if (c == '\'' || c == '"') {
            rc = lex_string(lx);
        } else {
            braces += (c == '{') - (c == '}');
            rc = lex_op(lx);
        }
    }
    return rc;
}

/* {% raw %}, lx->p at its brace: 1 when the text up to {% endraw %} was taken, 0 when it is not. */
static int lex_raw(struct lexer *lx)
{
    struct lexer look = *lx;
    size_t len = 0;
    int rc;
    char sign = 0;

    look.p += 2;
    if (look.p < look.end && (*look.p == '-' || *look.p == '+'))
        look.p++;
    skip_space(&look);
    if (!starts(&look, "raw"))
        return 0;
    look.p += 3;
    skip_space(&look);
    if (look.p < look.end && (*look.p == '-' || *look.p == '+'))
        sign = *look.p++;
    if (!starts(&look, "%}"))
        return 0;
    look.p += 2;
    after_tag(&look, sign, true);
    *lx = look;
    for (; lx->p + len < lx->end; len++) {
        look.p = lx->p + len;
        if (!starts(&look, "{%"))
            continue;
        look.p += 2;
        sign = look.p < look.end && (*look.p == '-' || *look.p == '+') ? *look.p++ : 0;
        skip_space(&look);
        if (!starts(&look, "endraw"))
            continue;
        rc = add_text(lx, len, '%', sign, true);
        if (rc < 0)
            return rc;
        while (lx->p < lx->end && !starts(lx, "%}"))
            advance(lx, 1);
        sign = lx->p[-1];
        advance(lx, 2);
        after_tag(lx, sign, true);
        return 1;
    }
    return fail(lx, "raw without endraw");
}

static int lex_comment(struct lexer *lx)
{
    const char *close = memmem(lx->p + 2, (size_t)(lx->end - lx->p - 2), "#}", 2);
    char sign;

    if (!close)
        return fail(lx, "an unfinished comment");
    sign = close[-1];
    advance(lx, (size_t)(close + 2 - lx->p));
    after_tag(lx, sign, true);
    return 0;
}

static int lex_template(struct lexer *lx)
{
    bool at_line_start = true; /* whether lx->p is where a line begins, but for tags */
    int rc = 0;

    while (rc == 0 && lx->p < lx->end) {
        size_t len = 0, left = (size_t)(lx->end - lx->p);
        char kind, sign;

        while (len + 1 < left &&
               !(lx->p[len] == '{' && strchr("{%#", lx->p[len + 1]) && lx->p[len + 1]))
            len++;
        if (len + 1 >= left)
            return add(lx, TOKEN_TEXT, lx->p, left);
        kind = lx->p[len + 1];
        sign = len + 2 < left ? lx->p[len + 2] : 0;
        rc = add_text(lx, len, kind, sign, at_line_start);
        if (rc < 0)
            return rc;
        if (kind == '%') {
            rc = lex_raw(lx);
            if (rc) {
                rc = rc < 0 ? rc : 0;
                at_line_start = rc == 0 && lx->p[-1] == '\n';
                continue;
            }
        }
        if (kind == '#') {
            rc = lex_comment(lx);
        } else {
            rc = add(lx, kind == '%' ? TOKEN_BLOCK_BEGIN : TOKEN_VAR_BEGIN, "", 0);
            advance(lx, sign == '-' || sign == '+' ? 3 : 2);
            if (rc == 0)
                rc = lex_tag(lx, kind == '%');
        }
        at_line_start = rc == 0 && lx->p[-1] == '\n'; /* a tag lies behind */
    }
    return rc;
}

int jinja_lex(struct jinja_tokens *out, struct arena *arena, const char *source, size_t len,
              struct err *err)
{
    struct strbuf plain = STRBUF_INIT; /* newlines unified */
    struct lexer lx = {.out = out, .arena = arena, .err = err, .line = 1};
    int rc;

    for (size_t i = 0; i < len; i++) {
        if (source[i] != '\r')
            strbuf_addch(&plain, source[i]);
        else if (i + 1 == len || source[i + 1] != '\n')
            strbuf_addch(&plain, '\n');
    }
    if (plain.len && plain.buf[plain.len - 1] == '\n')
        strbuf_truncate(&plain, plain.len - 1); /* one newline at the end does not count */
    lx.p = plain.buf;
    lx.end = plain.buf + plain.len;
    rc = plain.failed ? err_set(err, ERR_NO_ROOM, "out of memory") : lex_template(&lx);
    if (rc == 0)
        rc = add(&lx, TOKEN_EOF, "", 0);
    strbuf_release(&plain);
    return rc;
}
