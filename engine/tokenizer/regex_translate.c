/*
 * regex_translate - an Oniguruma expression in PCRE2's spelling.
 *
 * One pass over the pattern, groups on an explicit stack. Most of it is copied; rewritten are
 *
 *   \h \H        hexadecimal digits, not blanks          \v          vertical tab, one character
 *   \s \w \d \b  by Unicode 16.0 (PCRE2's \s has U+180E, its \w no marks)
 *   \p{X}        with the characters that PCRE2's Unicode version may lack; long names
 *   {n,m}+       a repeated repeat, not a possessive one  {,m}       {0,m}
 *   {n}?         optional, not lazy                       (?m)        PCRE2's (?s)
 *   (?i)a|b      the option holds for both branches       [a[b]&&c]  alternatives and lookaheads
 *
 * ^ and $ are line anchors in both, since expressions are compiled with PCRE2_MULTILINE.
 */
#include "engine/tokenizer/split_regex.h"

#include "base/err.h"
#include "base/strbuf.h"
#include "engine/tokenizer/unicode.h"
#include "engine/tokenizer/utf8.h"

#include <ctype.h>
#include <stdlib.h>
#include <string.h>
#include <utf8proc.h>

#define MAX_GROUPS      64 /* nested groups; real patterns have 3 */
#define MAX_CLASS_DEPTH 8
#define MAX_PATTERN     65536
#define MAX_OUTPUT      (1 << 20) /* a property costs up to 2 KB: 64 KiB of them would be hostile */
#define NO_ATOM         ((size_t)-1)

#define SPACE_BODY                                                                                 \
    "\\x09-\\x0d\\x20\\x85\\xa0\\x{1680}\\x{2000}-\\x{200a}\\x{2028}\\x{2029}\\x{202f}\\x{205f}"   \
    "\\x{3000}"
#define HEX_BODY    "0-9a-fA-F"
#define LATIN1_WORD "\\xb2\\xb3\\xb9\\xbc-\\xbe" /* Oniguruma's \w has them, its [:word:] not */
#define ANY_CHAR    "(?s:.)"

struct translation {
    const char *p, *end;
    struct strbuf *out;
    size_t atom;              /* where in out the last thing that can be repeated begins */
    size_t start[MAX_GROUPS]; /* by depth: where the group begins in out */
    int extra[MAX_GROUPS];    /* by depth: groups opened for (?i), closed with this one */
    int depth;
    struct err *err;
};

/* A set of characters: a class body and single-character alternatives that fit into no body. */
struct char_set {
    struct strbuf body, alts;
    bool negated;
};

static void char_set_init(struct char_set *set)
{
    strbuf_init(&set->body);
    strbuf_init(&set->alts);
    set->negated = false;
}

static void char_set_release(struct char_set *set)
{
    strbuf_release(&set->body);
    strbuf_release(&set->alts);
}

static void char_set_add_alt(struct char_set *set, const char *alt)
{
    if (set->alts.len)
        strbuf_addch(&set->alts, '|');
    strbuf_addstr(&set->alts, alt);
}

static void char_set_add_negated(struct char_set *set, const char *body)
{
    struct strbuf alt = STRBUF_INIT;

    strbuf_addf(&alt, "[^%s]", body);
    char_set_add_alt(set, alt.buf);
    strbuf_release(&alt);
}

/* The set as an expression for one character. */
static void char_set_write(const struct char_set *set, struct strbuf *out)
{
    if (!set->alts.len) {
        if (set->body.len)
            strbuf_addf(out, set->negated ? "[^%s]" : "[%s]", set->body.buf);
        else
            strbuf_addstr(out, set->negated ? ANY_CHAR : "(?!)");
        return;
    }
    if (set->negated) {
        strbuf_addf(out, "(?:(?!%s)", set->alts.buf);
        if (set->body.len)
            strbuf_addf(out, "[^%s])", set->body.buf);
        else
            strbuf_addstr(out, ANY_CHAR ")");
        return;
    }
    strbuf_addstr(out, "(?:");
    if (set->body.len)
        strbuf_addf(out, "[%s]|", set->body.buf);
    strbuf_addf(out, "%s)", set->alts.buf);
}

static void add_ranges(struct strbuf *body, const struct unicode_range *r, size_t n,
                       bool (*takes)(int value, const char *cat), const char *cat)
{
    for (size_t i = 0; i < n; i++) {
        uint32_t first = r[i].first, last = r[i].last;

        if (takes && !takes(r[i].value, cat))
            continue;
        while (i + 1 < n && r[i + 1].first == last + 1 && (!takes || takes(r[i + 1].value, cat)))
            last = r[++i].last;
        strbuf_addf(body, "\\x{%x}", first);
        if (last > first)
            strbuf_addf(body, "-\\x{%x}", last);
    }
}

/* Whether a utf8proc category is in "L", "Lu", ... */
static bool in_category(int value, const char *cat)
{
    static const char names[][3] = {
        [UTF8PROC_CATEGORY_LU] = "Lu", [UTF8PROC_CATEGORY_LL] = "Ll", [UTF8PROC_CATEGORY_LT] = "Lt",
        [UTF8PROC_CATEGORY_LM] = "Lm", [UTF8PROC_CATEGORY_LO] = "Lo", [UTF8PROC_CATEGORY_MN] = "Mn",
        [UTF8PROC_CATEGORY_MC] = "Mc", [UTF8PROC_CATEGORY_ME] = "Me", [UTF8PROC_CATEGORY_ND] = "Nd",
        [UTF8PROC_CATEGORY_NL] = "Nl", [UTF8PROC_CATEGORY_NO] = "No", [UTF8PROC_CATEGORY_PC] = "Pc",
        [UTF8PROC_CATEGORY_PD] = "Pd", [UTF8PROC_CATEGORY_PS] = "Ps", [UTF8PROC_CATEGORY_PE] = "Pe",
        [UTF8PROC_CATEGORY_PI] = "Pi", [UTF8PROC_CATEGORY_PF] = "Pf", [UTF8PROC_CATEGORY_PO] = "Po",
        [UTF8PROC_CATEGORY_SM] = "Sm", [UTF8PROC_CATEGORY_SC] = "Sc", [UTF8PROC_CATEGORY_SK] = "Sk",
        [UTF8PROC_CATEGORY_SO] = "So", [UTF8PROC_CATEGORY_CF] = "Cf",
    };
    const char *name;

    if (value < 0 || (size_t)value >= sizeof(names) / sizeof(names[0]) || !names[value][0])
        return false;
    name = names[value];
    return name[0] == cat[0] && (!cat[1] || name[1] == cat[1]);
}

static void add_category(struct strbuf *body, const char *cat)
{
    size_t n;
    const struct unicode_range *r = unicode_new_in_16(&n);

    strbuf_addf(body, "\\p{%s}", cat);
    add_ranges(body, r, n, in_category, cat);
}

static void add_word(struct strbuf *body)
{
    size_t n;
    const struct unicode_range *r = unicode_word_other(&n);

    add_category(body, "L");
    add_category(body, "M");
    add_category(body, "Nd");
    add_category(body, "Nl");
    add_category(body, "Pc");
    add_ranges(body, r, n, NULL, NULL);
}

static void add_han(struct strbuf *body)
{
    size_t n;
    const struct unicode_range *r = unicode_han(&n);

    add_ranges(body, r, n, NULL, NULL);
}

static const struct {
    const char *name, *cat; /* cat: a general category */
} long_names[] = {
    {"letter", "L"},
    {"mark", "M"},
    {"combiningmark", "M"},
    {"number", "N"},
    {"punctuation", "P"},
    {"symbol", "S"},
    {"separator", "Z"},
    {"uppercaseletter", "Lu"},
    {"lowercaseletter", "Ll"},
    {"titlecaseletter", "Lt"},
    {"modifierletter", "Lm"},
    {"otherletter", "Lo"},
    {"nonspacingmark", "Mn"},
    {"spacingmark", "Mc"},
    {"enclosingmark", "Me"},
    {"decimalnumber", "Nd"},
    {"letternumber", "Nl"},
    {"othernumber", "No"},
    {"connectorpunctuation", "Pc"},
    {"dashpunctuation", "Pd"},
    {"openpunctuation", "Ps"},
    {"closepunctuation", "Pe"},
    {"initialpunctuation", "Pi"},
    {"finalpunctuation", "Pf"},
    {"otherpunctuation", "Po"},
    {"mathsymbol", "Sm"},
    {"currencysymbol", "Sc"},
    {"modifiersymbol", "Sk"},
    {"othersymbol", "So"},
    {"spaceseparator", "Zs"},
    {"lineseparator", "Zl"},
    {"paragraphseparator", "Zp"},
    {"control", "Cc"},
    {"format", "Cf"},
    {"privateuse", "Co"},
    {"digit", "Nd"},
    {"cntrl", "Cc"},
};

static const char *category_of(const char *name)
{
    size_t len = strlen(name);

    for (size_t i = 0; i < sizeof(long_names) / sizeof(long_names[0]); i++)
        if (strcmp(long_names[i].name, name) == 0)
            return long_names[i].cat;
    if (len == 1 && strchr("lmnpsz", name[0])) {
        static const char *const major[] = {"L", "M", "N", "P", "S", "Z"};

        return major[strchr("lmnpsz", name[0]) - "lmnpsz"];
    }
    for (size_t i = 0; len == 2 && i < sizeof(long_names) / sizeof(long_names[0]); i++) {
        const char *c = long_names[i].cat;

        if (c[1] && tolower((unsigned char)c[0]) == name[0] && c[1] == name[1])
            return c;
    }
    return NULL;
}

/*
 * Adds the set that a property or POSIX class names, in lower case without blanks, to body.
 * *negated when body then holds the complement.
 */
static bool add_named(struct strbuf *body, const char *name, bool *negated)
{
    const char *cat = category_of(name);

    *negated = false;
    if (cat) {
        add_category(body, cat);
    } else if (!strcmp(name, "space") || !strcmp(name, "whitespace")) {
        strbuf_addstr(body, SPACE_BODY);
    } else if (!strcmp(name, "word")) {
        add_word(body);
    } else if (!strcmp(name, "punct")) {
        add_category(body, "P");
        add_category(body, "S");
    } else if (!strcmp(name, "alpha") || !strcmp(name, "alphabetic")) {
        strbuf_addstr(body, "\\p{Alphabetic}");
        add_category(body, "L");
        add_category(body, "Nl");
    } else if (!strcmp(name, "alnum")) {
        strbuf_addstr(body, "\\p{Alphabetic}");
        add_category(body, "L");
        add_category(body, "Nl");
        add_category(body, "Nd");
    } else if (!strcmp(name, "upper") || !strcmp(name, "uppercase")) {
        strbuf_addstr(body, "\\p{Uppercase}");
        add_category(body, "Lu");
    } else if (!strcmp(name, "lower") || !strcmp(name, "lowercase")) {
        strbuf_addstr(body, "\\p{Lowercase}");
        add_category(body, "Ll");
    } else if (!strcmp(name, "xdigit") || !strcmp(name, "asciihexdigit")) {
        strbuf_addstr(body, HEX_BODY);
    } else if (!strcmp(name, "blank")) {
        strbuf_addstr(body, "\\x09\\p{Zs}");
    } else if (!strcmp(name, "ascii")) {
        strbuf_addstr(body, "\\x00-\\x7f");
    } else if (!strcmp(name, "any")) {
        strbuf_addstr(body, "\\x{0}-\\x{10ffff}");
    } else if (!strcmp(name, "han") || !strcmp(name, "hani")) {
        add_han(body);
    } else if (!strcmp(name, "c") || !strcmp(name, "other")) {
        for (const char *const *c = (const char *const[]){"L", "M", "N", "P", "S", "Z", NULL}; *c;
             c++)
            add_category(body, *c);
        *negated = true;
    } else if (!strcmp(name, "cn") || !strcmp(name, "unassigned")) {
        for (const char *const *c =
                 (const char *const[]){"L", "M", "N", "P", "S", "Z", "Cc", "Cf", "Co", NULL};
             *c; c++)
            add_category(body, *c);
        *negated = true;
    } else if (!strcmp(name, "emoji") || !strcmp(name, "emojipresentation") ||
               !strcmp(name, "emojimodifier") || !strcmp(name, "extendedpictographic") ||
               !strcmp(name, "ideographic")) {
        strbuf_addf(body, "\\p{%s}", name);
    } else {
        strbuf_addf(body, "\\p{sc:%s}", name); /* a script; PCRE2 refuses what it does not know */
    }
    return true;
}

static int bad(struct translation *t, const char *what)
{
    return err_set(t->err, ERR_UNSUPPORTED,
                   "regular expression: %s is not supported, before '%.*s'", what,
                   (int)(t->end - t->p > 40 ? 40 : t->end - t->p), t->p);
}

/* Reads {Name} behind \p or \P into set. */
static int property(struct translation *t, struct char_set *set, bool negated)
{
    struct strbuf body = STRBUF_INIT;
    char name[64];
    size_t n = 0;
    bool flip;

    if (t->p == t->end || *t->p != '{')
        return bad(t, "\\p without braces");
    t->p++;
    if (t->p < t->end && *t->p == '^') {
        negated = !negated;
        t->p++;
    }
    for (; t->p < t->end && *t->p != '}'; t->p++) {
        unsigned char c = (unsigned char)*t->p;

        if (c == ' ' || c == '_' || c == '-')
            continue;
        if (n + 1 == sizeof(name) || !isalnum(c))
            return bad(t, "this property name");
        name[n++] = (char)tolower(c);
    }
    if (t->p == t->end)
        return bad(t, "an unfinished property name");
    t->p++;
    name[n] = '\0';
    add_named(&body, name, &flip);
    if (negated != flip)
        char_set_add_negated(set, body.buf);
    else
        strbuf_addstr(&set->body, body.buf);
    strbuf_release(&body);
    return 0;
}

static int hex_value(char c)
{
    if (c >= '0' && c <= '9')
        return c - '0';
    c |= 32;
    return c >= 'a' && c <= 'f' ? c - 'a' + 10 : -1;
}

/* Reads up to max hexadecimal digits. -1 when there is none. */
static int64_t hex(struct translation *t, int max)
{
    int64_t value = -1;

    for (; max > 0 && t->p < t->end && hex_value(*t->p) >= 0; max--, t->p++)
        value = (value < 0 ? 0 : value * 16) + hex_value(*t->p);
    return value;
}

/*
 * An escape that stands for one character, t->p behind the backslash: 1 and *cp. 0 when it is
 * something else, and t->p is unmoved.
 */
static int char_escape(struct translation *t, uint32_t *cp)
{
    static const char names[] = "tnrfave";
    static const char values[] = {'\t', '\n', '\r', '\f', '\a', '\v', 0x1b};
    const char *known = memchr(names, *t->p, sizeof(names) - 1);
    int64_t value;
    int len;

    if (known) {
        t->p++;
        *cp = (unsigned char)values[known - names];
        return 1;
    }
    if (*t->p == 'x' || *t->p == 'u') {
        bool braces = *t->p == 'x' && t->end - t->p > 1 && t->p[1] == '{';

        t->p += braces ? 2 : 1;
        value = hex(t, braces ? 8 : t->p[-1] == 'u' ? 4 : 2);
        if (value < 0 || value > 0x10ffff || (value >= 0xd800 && value < 0xe000))
            return bad(t, "this hexadecimal escape");
        if (braces && (t->p == t->end || *t->p++ != '}'))
            return bad(t, "this hexadecimal escape");
        if (!braces && t->p[-1] != 'u' && value > 0x7f && t->p[-3] == 'x')
            return bad(t, "a byte beyond ASCII");
        *cp = (uint32_t)value;
        return 1;
    }
    if (isalnum((unsigned char)*t->p))
        return 0;
    *cp = utf8_get(t->p, &len);
    t->p += len;
    return 1;
}

/* A set escape: \s \S \w \W \d \D \h \H \p \P, t->p behind the backslash. 0: none of them. */
static int set_escape(struct translation *t, struct char_set *set)
{
    struct strbuf body = STRBUF_INIT;
    char c = *t->p;
    int rc;

    switch (c | 32) {
    case 's':
        strbuf_addstr(&body, SPACE_BODY);
        break;
    case 'h':
        strbuf_addstr(&body, HEX_BODY);
        break;
    case 'd':
        add_category(&body, "Nd");
        break;
    case 'w':
        add_word(&body);
        strbuf_addstr(&body, LATIN1_WORD);
        break;
    case 'p':
        t->p++;
        rc = property(t, set, c == 'P');
        return rc < 0 ? rc : 1;
    default:
        return 0;
    }
    t->p++;
    if (c & 32)
        strbuf_addstr(&set->body, body.buf);
    else
        char_set_add_negated(set, body.buf);
    strbuf_release(&body);
    return 1;
}

static void add_char(struct strbuf *out, uint32_t cp)
{
    if (cp < 0x80 && isalnum((int)cp))
        strbuf_addch(out, (int)cp);
    else
        strbuf_addf(out, "\\x{%x}", cp);
}

/* [:name:] or [:^name:], t->p at the colon. 0: it is not one. */
static int posix_class(struct translation *t, struct char_set *set)
{
    const char *close = memmem(t->p, (size_t)(t->end - t->p), ":]", 2);
    const char *name = t->p + 1;
    bool negated, flip;
    struct strbuf body = STRBUF_INIT;
    char word[16];
    size_t n;

    if (!close || close == t->p)
        return 0;
    negated = *name == '^';
    name += negated;
    n = (size_t)(close - name);
    if (n == 0 || n >= sizeof(word))
        return 0;
    for (size_t i = 0; i < n; i++)
        if (!islower((unsigned char)name[i]))
            return 0;
    memcpy(word, name, n);
    word[n] = '\0';
    if (!strcmp(word, "graph") || !strcmp(word, "print"))
        return bad(t, "[:graph:] and [:print:]");
    add_named(&body, word, &flip);
    if (negated != flip)
        char_set_add_negated(set, body.buf);
    else
        strbuf_addstr(&set->body, body.buf);
    strbuf_release(&body);
    t->p = close + 2;
    return 1;
}

static int char_class(struct translation *t, struct strbuf *out, int depth);

/* One member of a class: 1 with *cp when it is a character, 0 when it went into set. */
static int class_member(struct translation *t, struct char_set *set, uint32_t *cp, int depth)
{
    int len, rc;

    if (*t->p == '[') {
        struct strbuf nested = STRBUF_INIT;

        t->p++;
        if (t->p < t->end && *t->p == ':') {
            rc = posix_class(t, set);
            if (rc)
                return rc < 0 ? rc : 0;
        }
        rc = char_class(t, &nested, depth + 1);
        if (rc == 0)
            char_set_add_alt(set, nested.buf);
        strbuf_release(&nested);
        return rc;
    }
    if (*t->p == '\\') {
        if (++t->p == t->end)
            return bad(t, "a backslash at the end");
        if (*t->p == 'b') { /* backspace */
            t->p++;
            *cp = 8;
            return 1;
        }
        rc = set_escape(t, set);
        if (rc)
            return rc < 0 ? rc : 0;
        rc = char_escape(t, cp);
        return rc ? rc : bad(t, "this escape in a class");
    }
    *cp = utf8_get(t->p, &len);
    t->p += len;
    return 1;
}

/* Reads one operand of a class, up to ] or &&. */
static int class_operand(struct translation *t, struct char_set *set, bool first, int depth)
{
    uint32_t low, high;
    int rc;

    while (t->p < t->end) {
        if (*t->p == ']' && !first)
            return 0;
        if (t->end - t->p >= 2 && t->p[0] == '&' && t->p[1] == '&')
            return 0;
        first = false;
        rc = class_member(t, set, &low, depth);
        if (rc < 0)
            return rc;
        if (rc == 0)
            continue;
        add_char(&set->body, low);
        if (t->end - t->p >= 2 && t->p[0] == '-' && t->p[1] != ']') {
            struct char_set other;

            if (t->p[1] == '[')
                return bad(t, "a range that ends in a class");
            t->p++;
            char_set_init(&other);
            rc = class_member(t, &other, &high, depth);
            if (rc == 1 && high < low)
                rc = bad(t, "an empty range");
            if (rc == 1) {
                strbuf_addch(&set->body, '-');
                add_char(&set->body, high);
            } else if (rc == 0) { /* [a-\s]: a, a minus and the set */
                strbuf_addstr(&set->body, "\\-");
                strbuf_addstr(&set->body, other.body.buf);
                if (other.alts.len)
                    char_set_add_alt(set, other.alts.buf);
            }
            char_set_release(&other);
            if (rc < 0)
                return rc;
        }
    }
    return bad(t, "an unfinished class");
}

/* A class, t->p behind its [; writes an expression for one character. */
static int char_class(struct translation *t, struct strbuf *out, int depth)
{
    struct strbuf others = STRBUF_INIT; /* the operands before the last, as lookaheads */
    struct char_set set;
    bool negated = false;
    int rc = 0;

    char_set_init(&set);
    if (depth > MAX_CLASS_DEPTH) {
        rc = bad(t, "a class nested this deep");
        goto out;
    }
    if (t->p < t->end && *t->p == '^') {
        negated = true;
        t->p++;
    }
    for (bool first = true;; first = false) {
        rc = class_operand(t, &set, first, depth);
        if (rc < 0)
            goto out;
        if (*t->p == ']')
            break;
        t->p += 2; /* && */
        strbuf_addstr(&others, "(?=");
        char_set_write(&set, &others);
        strbuf_addch(&others, ')');
        strbuf_reset(&set.body);
        strbuf_reset(&set.alts);
    }
    t->p++;
    if (!others.len) {
        set.negated = negated;
        char_set_write(&set, out);
    } else {
        strbuf_addstr(out, negated ? "(?:(?!" : "(?:");
        strbuf_add(out, others.buf, others.len);
        char_set_write(&set, out);
        strbuf_addstr(out, negated ? ")" ANY_CHAR ")" : ")");
    }
out:
    char_set_release(&set);
    strbuf_release(&others);
    return rc;
}

/* \b and \B, whose idea of a word is \w's. */
static void word_boundary(struct strbuf *out, bool negated)
{
    struct strbuf w = STRBUF_INIT;

    add_word(&w);
    strbuf_addstr(&w, LATIN1_WORD);
    strbuf_addf(out,
                negated ? "(?:(?<=[%s])(?=[%s])|(?<![%s])(?![%s]))"
                        : "(?:(?<=[%s])(?![%s])|(?<![%s])(?=[%s]))",
                w.buf, w.buf, w.buf, w.buf);
    strbuf_release(&w);
}

static int escape(struct translation *t)
{
    struct char_set set;
    uint32_t cp;
    char c;
    int rc;

    if (++t->p == t->end)
        return bad(t, "a backslash at the end");
    t->atom = t->out->len;
    c = *t->p;
    if (c == 'b' || c == 'B') {
        word_boundary(t->out, c == 'B');
        t->p++;
        return 0;
    }
    if (strchr("AzZGKRX123456789", c)) {
        strbuf_addf(t->out, "\\%c", c);
        t->p++;
        return 0;
    }
    char_set_init(&set);
    rc = set_escape(t, &set);
    if (rc == 1)
        char_set_write(&set, t->out);
    char_set_release(&set);
    if (rc)
        return rc < 0 ? rc : 0;
    rc = char_escape(t, &cp);
    if (rc == 0)
        return bad(t, "this escape");
    if (rc < 0)
        return rc;
    add_char(t->out, cp);
    return 0;
}

/* The options of (?imx-imx) or (?imx-imx:, t->p behind the question mark. */
static int group_options(struct translation *t)
{
    strbuf_addstr(t->out, "(?");
    for (; t->p < t->end; t->p++) {
        if (*t->p == 'm')
            strbuf_addch(t->out, 's');
        else if (*t->p == 'i' || *t->p == '-')
            strbuf_addch(t->out, *t->p);
        else
            break;
    }
    if (t->p == t->end || (*t->p != ':' && *t->p != ')'))
        return bad(t, "this group option");
    strbuf_addch(t->out, ':');
    if (*t->p++ == ')') { /* to the end of the group around, over its | as well */
        t->extra[t->depth]++;
        t->atom = NO_ATOM;
        return 0;
    }
    t->depth++;
    t->extra[t->depth] = 0;
    return 0;
}

static int open_group(struct translation *t)
{
    static const char *const openers[] = {"?:", "?=", "?!", "?>", "?<=", "?<!"};
    size_t left = (size_t)(t->end - t->p);

    if (t->depth + 1 == MAX_GROUPS)
        return bad(t, "a group nested this deep");
    t->start[t->depth + 1] = t->out->len;
    t->atom = NO_ATOM;
    if (left < 2 || t->p[1] != '?') {
        strbuf_addch(t->out, '(');
        t->p++;
        t->extra[++t->depth] = 0;
        return 0;
    }
    if (left > 2 && t->p[2] == '#') {
        const char *close = memchr(t->p, ')', left);

        if (!close)
            return bad(t, "an unfinished comment");
        t->p = close + 1;
        return 0;
    }
    for (size_t i = 0; i < sizeof(openers) / sizeof(openers[0]); i++) {
        size_t n = strlen(openers[i]);

        if (left > n && memcmp(t->p + 1, openers[i], n) == 0) {
            strbuf_addf(t->out, "(%s", openers[i]);
            t->p += n + 1;
            t->extra[++t->depth] = 0;
            return 0;
        }
    }
    if (left > 3 && t->p[2] == '<' && isalpha((unsigned char)t->p[3])) {
        const char *close = memchr(t->p, '>', left);

        if (!close)
            return bad(t, "an unfinished group name");
        strbuf_addch(t->out, '('); /* names only matter to backreferences by name */
        t->p = close + 1;
        t->extra[++t->depth] = 0;
        return 0;
    }
    t->p += 2;
    return group_options(t);
}

static void close_extra(struct translation *t)
{
    for (; t->extra[t->depth] > 0; t->extra[t->depth]--)
        strbuf_addch(t->out, ')');
}

static int close_group(struct translation *t)
{
    if (t->depth == 0)
        return bad(t, "a closing parenthesis without its opening one");
    close_extra(t);
    strbuf_addch(t->out, ')');
    t->atom = t->start[t->depth--];
    t->p++;
    return 0;
}

/* Puts what is repeated into a group of its own, so that it can be repeated once more. */
static void wrap_atom(struct translation *t)
{
    struct strbuf tail = STRBUF_INIT;

    strbuf_add(&tail, t->out->buf + t->atom, t->out->len - t->atom);
    strbuf_truncate(t->out, t->atom);
    strbuf_addf(t->out, "(?:%s)", tail.buf);
    strbuf_release(&tail);
}

/* {n}, {n,}, {,m}, {n,m}: 0 when the brace is no interval but a character. */
static int interval(struct translation *t)
{
    const char *p = t->p + 1;
    char *stop;
    long low = 0, high = -1;
    bool has_low = p < t->end && isdigit((unsigned char)*p);
    bool comma;

    if (has_low) {
        low = strtol(p, &stop, 10); /* the pattern ends in a NUL or a brace */
        p = stop;
    }
    comma = p < t->end && *p == ',';
    if (comma)
        p++;
    if (comma && p < t->end && isdigit((unsigned char)*p)) {
        high = strtol(p, &stop, 10);
        p = stop;
    }
    if (p >= t->end || *p != '}' || (!has_low && high < 0))
        return 0;
    if (low > 65535 || high > 65535)
        return bad(t, "a repeat this large");
    p++;
    t->p = p;
    if (comma && high >= 0)
        strbuf_addf(t->out, "{%ld,%ld}", low, high);
    else
        strbuf_addf(t->out, comma ? "{%ld,}" : "{%ld}", low);
    if (p < t->end && *p == '?') {
        t->p++;
        if (comma) {
            strbuf_addch(t->out, '?');
        } else {
            wrap_atom(t);
            strbuf_addch(t->out, '?');
        }
    } else if (p < t->end && *p == '+') {
        t->p++;
        wrap_atom(t);
        strbuf_addch(t->out, '+');
    }
    return 1;
}

static int repeat(struct translation *t)
{
    if (t->atom == NO_ATOM)
        return bad(t, "a repeat of nothing");
    strbuf_addch(t->out, *t->p++);
    if (t->p < t->end && (*t->p == '+' || *t->p == '?'))
        strbuf_addch(t->out, *t->p++);
    if (t->p < t->end && strchr("*+?{", *t->p))
        wrap_atom(t); /* a second repeat, a**, is legal in Oniguruma */
    return 0;
}

static int step(struct translation *t)
{
    uint32_t cp;
    int len, rc;

    switch (*t->p) {
    case '\\':
        return escape(t);
    case '[':
        t->p++;
        t->atom = t->out->len;
        return char_class(t, t->out, 0);
    case '(':
        return open_group(t);
    case ')':
        return close_group(t);
    case '|':
        strbuf_addch(t->out, *t->p++);
        t->atom = NO_ATOM;
        return 0;
    case '^':
    case '$':
    case '.':
        t->atom = t->out->len;
        strbuf_addch(t->out, *t->p++);
        return 0;
    case '*':
    case '+':
    case '?':
        return repeat(t);
    case '{':
        rc = t->atom == NO_ATOM ? 0 : interval(t);
        if (rc)
            return rc < 0 ? rc : 0;
        break;
    default:
        break;
    }
    cp = utf8_get(t->p, &len);
    t->p += len;
    t->atom = t->out->len;
    add_char(t->out, cp);
    return 0;
}

int regex_translate(struct strbuf *out, const char *pattern, size_t len, struct err *err)
{
    struct translation t = {
        .p = pattern, .end = pattern + len, .out = out, .atom = NO_ATOM, .err = err};
    int rc;

    if (len > MAX_PATTERN || utf8_valid_len(pattern, len) != len || memchr(pattern, 0, len))
        return err_set(err, ERR_UNSUPPORTED, "regular expression: %zu bytes, not valid text", len);
    while (t.p < t.end) {
        rc = step(&t);
        if (rc < 0)
            return rc;
        if (out->len > MAX_OUTPUT)
            return bad(&t, "an expression this large");
    }
    if (t.depth)
        return bad(&t, "an unfinished group");
    close_extra(&t);
    return 0;
}
