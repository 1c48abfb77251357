/*
 * grammar_regex - regular expressions to trees. See grammar_regex.h.
 */
#include "engine/grammar/grammar_regex.h"

#include <string.h>

#define DIGITS_MAX 6 /* of a repetition's numbers */

static bool is_at_end(const struct regex_reader *r)
{
    return r->at >= r->end || r->b->rc < 0;
}

static bool take(struct regex_reader *r, char c)
{
    if (is_at_end(r) || *r->at != c)
        return false;
    r->at++;
    return true;
}

static int refuse(struct regex_reader *r, const char *what)
{
    return grammar_fail(r->b, ERR_INVALID, "regular expression: %s", what);
}

uint32_t regex_code_point(struct regex_reader *r)
{
    static const uint32_t least[] = {0, 0, 0x80, 0x800, 0x10000};
    unsigned char c = (unsigned char)*r->at++;
    uint32_t cp;
    int n = c < 0x80 ? 1 : c >= 0xf0 ? 4 : c >= 0xe0 ? 3 : c >= 0xc0 ? 2 : 0;

    if (n == 1)
        return c;
    cp = n == 4 ? c & 7u : n == 3 ? c & 15u : c & 31u;
    for (int i = 1; i < n && n; i++) {
        if (r->at >= r->end || ((unsigned char)*r->at & 0xc0) != 0x80)
            n = 0;
        else
            cp = cp << 6 | ((unsigned char)*r->at++ & 63u);
    }
    if (n == 0 || cp < least[n] || cp > 0x10ffff)
        refuse(r, "not UTF-8");
    return cp;
}

static void add_digits(struct grammar_build *b, struct cp_set *set)
{
    cp_set_add(b, set, '0', '9');
}

static void add_words(struct grammar_build *b, struct cp_set *set)
{
    add_digits(b, set);
    cp_set_add(b, set, 'a', 'z');
    cp_set_add(b, set, 'A', 'Z');
    cp_set_add(b, set, '_', '_');
}

/* Those that both ECMA 262 and Python's re call white: what is between them is left out. */
static void add_spaces(struct grammar_build *b, struct cp_set *set)
{
    cp_set_add(b, set, '\t', '\r');
    cp_set_add(b, set, ' ', ' ');
}

static uint32_t read_hex(struct regex_reader *r, int n)
{
    uint32_t v = 0;

    for (int i = 0; i < n; i++) {
        char c = is_at_end(r) ? 0 : *r->at++;

        if (c >= '0' && c <= '9')
            v = v * 16 + (uint32_t)(c - '0');
        else if ((c >= 'a' && c <= 'f') || (c >= 'A' && c <= 'F'))
            v = v * 16 + (uint32_t)((c | 32) - 'a' + 10);
        else
            refuse(r, "a hexadecimal digit is missing");
    }
    return v;
}

static uint32_t read_unicode(struct regex_reader *r)
{
    uint32_t v = 0;

    if (!take(r, '{'))
        return read_hex(r, 4);
    while (!is_at_end(r) && *r->at != '}' && v <= 0x10ffff)
        v = v * 16 + read_hex(r, 1);
    if (!take(r, '}') || v > 0x10ffff)
        refuse(r, "\\u{...} is no code point");
    return v;
}

/* Behind a backslash: one character, or a class (then `set` gets it and the result is -1). */
static int64_t read_escape(struct regex_reader *r, struct cp_set *set)
{
    static const char letters[] = "tnrfv0", values[] = "\t\n\r\f\v";
    struct cp_set class = {0};
    const char *found;
    uint32_t c;

    if (is_at_end(r)) {
        refuse(r, "it ends in a backslash");
        return 0;
    }
    c = regex_code_point(r);
    switch (c) {
    case 'd':
    case 'D':
        add_digits(r->b, &class);
        break;
    case 'w':
    case 'W':
        add_words(r->b, &class);
        break;
    case 's':
    case 'S':
        add_spaces(r->b, &class);
        break;
    case 'x':
        return read_hex(r, 2);
    case 'u':
        return read_unicode(r);
    default:
        found = c < 0x80 && c ? strchr(letters, (int)c) : NULL;
        if (found)
            return values[found - letters];
        if ((c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z') || (c >= '0' && c <= '9'))
            grammar_fail(r->b, ERR_INVALID, "regular expression: \\%c is not supported", (char)c);
        return c;
    }
    if (c >= 'A' && c <= 'Z')
        class = cp_set_negate(r->b, &class);
    cp_set_add_all(r->b, set, &class);
    return -1;
}

/* One end of a range in a class; -1 for a class of its own, which went into `set`. */
static int64_t class_atom(struct regex_reader *r, struct cp_set *set)
{
    return take(r, '\\') ? read_escape(r, set) : (int64_t)regex_code_point(r);
}

struct cp_set regex_class(struct regex_reader *r)
{
    bool negated = take(r, '^');
    struct cp_set set = {0};

    while (!is_at_end(r) && *r->at != ']') {
        int64_t lo = class_atom(r, &set), hi = lo;

        if (lo < 0)
            continue;
        if (r->end - r->at >= 2 && r->at[0] == '-' && r->at[1] != ']') {
            r->at++;
            hi = class_atom(r, &set);
            if (hi < lo) {
                refuse(r, "a range of characters is out of order");
                break;
            }
        }
        cp_set_add(r->b, &set, (uint32_t)lo, (uint32_t)hi);
    }
    if (!take(r, ']'))
        refuse(r, "a ] is missing");
    return negated ? cp_set_negate(r->b, &set) : set;
}

static bool read_number(struct regex_reader *r, int *out)
{
    int n = 0;

    for (*out = 0; !is_at_end(r) && *r->at >= '0' && *r->at <= '9' && n < DIGITS_MAX; n++)
        *out = *out * 10 + (*r->at++ - '0');
    return n > 0;
}

const struct expr *regex_repeat(struct regex_reader *r, const struct expr *e)
{
    int min = 1, max = 1;

    if (take(r, '*')) {
        min = 0;
        max = GRAMMAR_NO_MAX;
    } else if (take(r, '+')) {
        max = GRAMMAR_NO_MAX;
    } else if (take(r, '?')) {
        min = 0;
    } else if (take(r, '{')) {
        if (!read_number(r, &min))
            refuse(r, "{ without a number");
        max = min;
        if (take(r, ',') && !read_number(r, &max))
            max = GRAMMAR_NO_MAX;
        if (!take(r, '}') || (max != GRAMMAR_NO_MAX && max < min))
            refuse(r, "the repetition {...} is malformed");
    } else {
        return e;
    }
    take(r, '?'); /* lazy or not: the language is the same */
    if (!is_at_end(r) && strchr("*+?{", *r->at))
        refuse(r, "nothing to repeat");
    return expr_repeat(r->b, e, min, max);
}

static const struct expr *spelled(struct regex_reader *r, uint32_t cp)
{
    struct cp_set one = {0};

    cp_set_add(r->b, &one, cp, cp);
    return r->options->spell(r->b, &one);
}

static const struct expr *read_alternatives(struct regex_reader *r, bool *from_start, bool *to_end);

static const struct expr *read_group(struct regex_reader *r)
{
    const struct expr *e;

    if (take(r, '?') && !take(r, ':')) {
        if (!take(r, '<') || is_at_end(r) || *r->at == '=' || *r->at == '!')
            refuse(r, "look-around and flags are not supported");
        while (!is_at_end(r) && *r->at != '>')
            r->at++;
        take(r, '>');
    }
    if (++r->depth > GRAMMAR_MAX_DEPTH)
        refuse(r, "groups nest too deeply");
    e = read_alternatives(r, NULL, NULL);
    r->depth--;
    if (!take(r, ')'))
        refuse(r, "a ) is missing");
    return e;
}

static const struct expr *read_atom(struct regex_reader *r)
{
    struct cp_set set = {0};
    int64_t c;

    if (take(r, '('))
        return read_group(r);
    if (take(r, '[')) {
        set = regex_class(r);
        return r->options->spell(r->b, &set);
    }
    if (take(r, '.')) {
        cp_set_add(r->b, &set, '\n', '\n');
        cp_set_add(r->b, &set, '\r', '\r');
        set = cp_set_negate(r->b, &set);
        return r->options->spell(r->b, &set);
    }
    if (take(r, '\\')) {
        c = read_escape(r, &set);
        return c < 0 ? r->options->spell(r->b, &set) : spelled(r, (uint32_t)c);
    }
    if (strchr("*+?{^$", *r->at)) {
        refuse(r, strchr("^$", *r->at) ? "^ and $ are supported at the ends only"
                                       : "nothing to repeat");
        return expr_never(r->b);
    }
    return spelled(r, regex_code_point(r));
}

/* One alternative. The flags, NULL inside groups, tell whether ^ and $ tie it to the ends. */
static const struct expr *read_sequence(struct regex_reader *r, bool *from_start, bool *to_end)
{
    const struct expr *e = expr_empty(r->b);
    bool anchored = from_start && take(r, '^'), ends = false;

    while (!is_at_end(r) && *r->at != '|' && *r->at != ')') {
        if (to_end && *r->at == '$' && (r->at + 1 == r->end || r->at[1] == '|')) {
            r->at++;
            ends = true;
            break;
        }
        e = expr_seq(r->b, e, regex_repeat(r, read_atom(r)));
    }
    if (from_start) {
        *from_start = anchored;
        *to_end = ends;
    }
    return e;
}

static const struct expr *any_text(struct regex_reader *r)
{
    struct cp_set none = {0}, all = cp_set_negate(r->b, &none);

    return expr_repeat(r->b, r->options->spell(r->b, &all), 0, GRAMMAR_NO_MAX);
}

static const struct expr *read_alternatives(struct regex_reader *r, bool *from_start, bool *to_end)
{
    const struct expr *all = expr_never(r->b);

    do {
        const struct expr *e = read_sequence(r, from_start, to_end);

        if (from_start && r->options->search && !*from_start)
            e = expr_seq(r->b, any_text(r), e);
        if (from_start && r->options->search && !*to_end)
            e = expr_seq(r->b, e, any_text(r));
        all = expr_alt(r->b, all, e);
    } while (take(r, '|'));
    return all;
}

const struct expr *grammar_regex(struct grammar_build *b, const char *text, size_t len,
                                 const struct regex_options *options)
{
    struct regex_reader r = {.b = b, .at = text, .end = text + len, .options = options};
    bool from_start, to_end;
    const struct expr *e = read_alternatives(&r, &from_start, &to_end);

    if (r.at < r.end && b->rc == 0)
        refuse(&r, "a ) without its (");
    return e;
}
