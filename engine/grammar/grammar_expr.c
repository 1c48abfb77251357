/*
 * grammar_expr - a language of bytes as a tree. See grammar_expr.h.
 */
#include "engine/grammar/grammar_expr.h"

#include "base/clock.h"

#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define STEPS_A_LOOK  1024 /* at the clock */
#define MAX_RULES     20000
#define SURROGATE_LO  0xd800u
#define SURROGATE_HI  0xdfffu
#define CODE_POINT_HI 0x10ffffu

static const struct expr never = {.kind = EXPR_NEVER};
static const struct expr empty = {.kind = EXPR_EMPTY};

void grammar_build_init(struct grammar_build *b, const struct grammar_budget *budget,
                        struct err *err)
{
    *b = (struct grammar_build){.err = err, .budget = *budget, .root = -1};
    arena_init(&b->arena, budget->max_bytes, 0);
}

void grammar_build_release(struct grammar_build *b)
{
    arena_release(&b->arena);
    free(b->rules);
    b->rules = NULL;
}

int grammar_fail(struct grammar_build *b, enum err_code code, const char *fmt, ...)
{
    char text[ERR_MSG_BYTES];
    va_list ap;

    if (b->rc < 0)
        return b->rc;
    va_start(ap, fmt);
    vsnprintf(text, sizeof(text), fmt, ap);
    va_end(ap);
    b->rc = err_set(b->err, code, "%s", text);
    return b->rc;
}

bool grammar_step(struct grammar_build *b)
{
    if (b->rc < 0)
        return false;
    if (++b->n_steps % STEPS_A_LOOK == 0 && clock_ns() > b->budget.deadline_ns)
        grammar_fail(b, ERR_LIMIT, "the grammar takes too long to compile");
    return b->rc == 0;
}

static void *take(struct grammar_build *b, size_t n, size_t size)
{
    void *p = b->rc < 0 ? NULL : arena_array(&b->arena, n, size);

    if (!p)
        grammar_fail(b, ERR_LIMIT, "the grammar takes more than %zu bytes", b->budget.max_bytes);
    return p;
}

int grammar_rule_new(struct grammar_build *b, const char *name, size_t len)
{
    if (b->n_rules == MAX_RULES)
        grammar_fail(b, ERR_LIMIT, "the grammar has more than %d rules", MAX_RULES);
    if (b->rc == 0 && b->n_rules == b->n_rules_room) {
        int n_room = b->n_rules_room ? 2 * b->n_rules_room : 64;
        struct grammar_rule *rules = realloc(b->rules, (size_t)n_room * sizeof(*rules));

        if (!rules) {
            grammar_fail(b, ERR_NO_ROOM, "no memory for %d rules", n_room);
        } else {
            b->rules = rules;
            b->n_rules_room = n_room;
        }
    }
    if (b->rc < 0)
        return 0;
    b->rules[b->n_rules].name = arena_strndup(&b->arena, name, len);
    b->rules[b->n_rules].body = NULL;
    return b->n_rules++;
}

void grammar_rule_set(struct grammar_build *b, int rule, const struct expr *body)
{
    if (b->rc == 0)
        b->rules[rule].body = body;
}

static struct expr *expr_new(struct grammar_build *b, enum expr_kind kind)
{
    struct expr *e = grammar_step(b) ? take(b, 1, sizeof(*e)) : NULL;

    if (e)
        *e = (struct expr){.kind = kind};
    return e;
}

const struct expr *expr_empty(struct grammar_build *b)
{
    (void)b;
    return &empty;
}

const struct expr *expr_never(struct grammar_build *b)
{
    (void)b;
    return &never;
}

const struct expr *expr_byte_range(struct grammar_build *b, int lo, int hi)
{
    struct expr *e = lo > hi ? NULL : expr_new(b, EXPR_BYTES);

    if (!e)
        return &never;
    for (int c = lo; c <= hi; c++)
        e->bytes[c / 32] |= UINT32_C(1) << (c % 32);
    return e;
}

const struct expr *expr_text(struct grammar_build *b, const char *text, size_t len)
{
    const struct expr *e = &empty;

    for (size_t i = len; i > 0; i--) {
        int c = (unsigned char)text[i - 1];

        e = expr_seq(b, expr_byte_range(b, c, c), e);
    }
    return e;
}

const struct expr *expr_str(struct grammar_build *b, const char *text)
{
    return expr_text(b, text, strlen(text));
}

static const struct expr *pair(struct grammar_build *b, enum expr_kind kind,
                               const struct expr *left, const struct expr *right)
{
    struct expr *e = expr_new(b, kind);

    if (!e)
        return &never;
    e->left = left;
    e->right = right;
    return e;
}

const struct expr *expr_seq(struct grammar_build *b, const struct expr *left,
                            const struct expr *right)
{
    if (left->kind == EXPR_NEVER || right->kind == EXPR_NEVER)
        return &never;
    if (left->kind == EXPR_EMPTY)
        return right;
    return right->kind == EXPR_EMPTY ? left : pair(b, EXPR_SEQ, left, right);
}

const struct expr *expr_alt(struct grammar_build *b, const struct expr *left,
                            const struct expr *right)
{
    struct expr *e;

    if (left->kind == EXPR_NEVER)
        return right;
    if (right->kind == EXPR_NEVER)
        return left;
    if (left->kind != EXPR_BYTES || right->kind != EXPR_BYTES)
        return pair(b, EXPR_ALT, left, right);
    e = expr_new(b, EXPR_BYTES);
    if (!e)
        return &never;
    for (int i = 0; i < 8; i++)
        e->bytes[i] = left->bytes[i] | right->bytes[i];
    return e;
}

const struct expr *expr_repeat(struct grammar_build *b, const struct expr *e, int min, int max)
{
    struct expr *r;

    if (min > GRAMMAR_MAX_REPEAT || max > GRAMMAR_MAX_REPEAT) {
        grammar_fail(b, ERR_LIMIT, "a repetition of %d is beyond %d", min > max ? min : max,
                     GRAMMAR_MAX_REPEAT);
        return &never;
    }
    if (max == 0 || e->kind == EXPR_EMPTY || (e->kind == EXPR_NEVER && min == 0))
        return &empty;
    if (max != GRAMMAR_NO_MAX && max < min)
        return &never;
    if (e->kind == EXPR_NEVER || (min == 1 && max == 1))
        return e;
    r = expr_new(b, EXPR_REPEAT);
    if (!r)
        return &never;
    r->left = e;
    r->min = min;
    r->max = max;
    return r;
}

const struct expr *expr_call(struct grammar_build *b, int rule)
{
    struct expr *e = expr_new(b, EXPR_CALL);

    if (!e)
        return &never;
    e->rule = rule;
    return e;
}

const struct expr *expr_multiple(struct grammar_build *b, int of)
{
    struct expr *e = expr_new(b, EXPR_MULTIPLE);

    if (!e)
        return &never;
    e->min = of;
    return e;
}

/* Code points */

static void insert_range(struct grammar_build *b, struct cp_set *set, uint32_t lo, uint32_t hi)
{
    int at = 0, end;

    if (set->n == set->n_room) {
        int n_room = set->n_room ? 2 * set->n_room : 16;
        struct cp_range *ranges = take(b, (size_t)n_room, sizeof(*ranges));

        if (!ranges)
            return;
        if (set->n)
            memcpy(ranges, set->ranges, (size_t)set->n * sizeof(*ranges));
        set->ranges = ranges;
        set->n_room = n_room;
    }
    while (at < set->n && set->ranges[at].hi + 1 < lo)
        at++;
    for (end = at; end < set->n && set->ranges[end].lo <= hi + 1; end++) {
        lo = set->ranges[end].lo < lo ? set->ranges[end].lo : lo;
        hi = set->ranges[end].hi > hi ? set->ranges[end].hi : hi;
    }
    memmove(&set->ranges[at + 1], &set->ranges[end], (size_t)(set->n - end) * sizeof(*set->ranges));
    set->ranges[at] = (struct cp_range){lo, hi};
    set->n += 1 - (end - at);
}

void cp_set_add(struct grammar_build *b, struct cp_set *set, uint32_t lo, uint32_t hi)
{
    if (!grammar_step(b) || lo > hi)
        return;
    if (lo < SURROGATE_LO)
        insert_range(b, set, lo, hi < SURROGATE_LO ? hi : SURROGATE_LO - 1);
    if (hi > SURROGATE_HI)
        insert_range(b, set, lo > SURROGATE_HI ? lo : SURROGATE_HI + 1, hi);
}

void cp_set_add_all(struct grammar_build *b, struct cp_set *set, const struct cp_set *other)
{
    for (int i = 0; i < other->n; i++)
        cp_set_add(b, set, other->ranges[i].lo, other->ranges[i].hi);
}

struct cp_set cp_set_negate(struct grammar_build *b, const struct cp_set *set)
{
    struct cp_set out = {0};
    uint32_t next = 0;

    for (int i = 0; i < set->n; i++) {
        if (set->ranges[i].lo > next)
            cp_set_add(b, &out, next, set->ranges[i].lo - 1);
        next = set->ranges[i].hi + 1;
    }
    if (next <= CODE_POINT_HI)
        cp_set_add(b, &out, next, CODE_POINT_HI);
    return out;
}

bool cp_set_has(const struct cp_set *set, uint32_t cp)
{
    for (int i = 0; i < set->n; i++) {
        if (cp >= set->ranges[i].lo && cp <= set->ranges[i].hi)
            return true;
    }
    return false;
}

static int utf8_encode(uint32_t cp, unsigned char *out)
{
    if (cp < 0x80) {
        out[0] = (unsigned char)cp;
        return 1;
    }
    if (cp < 0x800) {
        out[0] = (unsigned char)(0xc0 | cp >> 6);
        out[1] = (unsigned char)(0x80 | (cp & 63));
        return 2;
    }
    if (cp < 0x10000) {
        out[0] = (unsigned char)(0xe0 | cp >> 12);
        out[1] = (unsigned char)(0x80 | (cp >> 6 & 63));
        out[2] = (unsigned char)(0x80 | (cp & 63));
        return 3;
    }
    out[0] = (unsigned char)(0xf0 | cp >> 18);
    out[1] = (unsigned char)(0x80 | (cp >> 12 & 63));
    out[2] = (unsigned char)(0x80 | (cp >> 6 & 63));
    out[3] = (unsigned char)(0x80 | (cp & 63));
    return 4;
}

/*
 * Encodings of one length from lo to hi. The first byte is lo's, between, or hi's; only then do
 * the other bytes depend on it. At most four bytes deep.
 */
static const struct expr *encodings(struct grammar_build *b, const unsigned char *lo,
                                    const unsigned char *hi, int n)
{
    static const unsigned char least[] = {0x80, 0x80, 0x80}, most[] = {0xbf, 0xbf, 0xbf};
    const struct expr *e, *mid;

    if (n == 0)
        return &empty;
    if (lo[0] == hi[0])
        return expr_seq(b, expr_byte_range(b, lo[0], lo[0]), encodings(b, lo + 1, hi + 1, n - 1));
    e = expr_seq(b, expr_byte_range(b, lo[0], lo[0]), encodings(b, lo + 1, most, n - 1));
    e = expr_alt(b, e,
                 expr_seq(b, expr_byte_range(b, hi[0], hi[0]), encodings(b, least, hi + 1, n - 1)));
    mid = expr_seq(b, expr_byte_range(b, lo[0] + 1, hi[0] - 1), encodings(b, least, most, n - 1));
    return expr_alt(b, e, mid);
}

const struct expr *expr_code_points(struct grammar_build *b, const struct cp_set *set)
{
    static const uint32_t last_of_len[] = {0x7f, 0x7ff, 0xffff, CODE_POINT_HI};
    const struct expr *e = &never;

    for (int i = 0; i < set->n; i++) {
        uint32_t lo = set->ranges[i].lo;

        for (int len = 1; len <= 4 && lo <= set->ranges[i].hi; len++) {
            uint32_t hi =
                set->ranges[i].hi < last_of_len[len - 1] ? set->ranges[i].hi : last_of_len[len - 1];
            unsigned char from[4], to[4];

            if (lo > last_of_len[len - 1])
                continue;
            utf8_encode(lo, from);
            utf8_encode(hi, to);
            e = expr_alt(b, e, encodings(b, from, to, len));
            lo = hi + 1;
        }
    }
    return e;
}
