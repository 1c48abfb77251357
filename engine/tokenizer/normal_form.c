/*
 * normal_form - Unicode normalisation. See normal_form.h.
 *
 * Most text needs none, so it is cut into stretches: characters below a limit never change unless
 * a later one combines with them, and only what lies between is worked on.
 */
#include "engine/tokenizer/normal_form.h"

#include "base/err.h"
#include "base/strbuf.h"
#include "engine/tokenizer/unicode.h"
#include "engine/tokenizer/utf8.h"

#include <stdbool.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#include <utf8proc.h>

#define MAX_DECOMPOSED 32 /* the longest compatibility decomposition is 18 */

struct mark {
    utf8proc_int32_t cp;
    uint32_t order; /* class << 24 | place: a plain sort is then stable */
};

/* Characters below it are the same in this form, and no character before composes with them. */
static uint32_t inert_limit(enum normal_form form)
{
    switch (form) {
    case NORMAL_NFC:
        return 0x300;
    case NORMAL_NFD:
        return 0xc0;
    default:
        return 0xa0;
    }
}

static int by_order(const void *a, const void *b)
{
    uint32_t x = ((const struct mark *)a)->order, y = ((const struct mark *)b)->order;

    return x < y ? -1 : x > y;
}

/* Sorts each run of marks by combining class. marks is scratch, [n]. */
static void order_marks(utf8proc_int32_t *cps, size_t n, struct mark *marks)
{
    for (size_t i = 0; i < n;) {
        size_t n_marks = 0;
        bool sorted = true;

        for (; i + n_marks < n; n_marks++) {
            int class = unicode_combining_class((uint32_t)cps[i + n_marks]);

            if (class == 0)
                break;
            marks[n_marks].cp = cps[i + n_marks];
            marks[n_marks].order = (uint32_t) class << 24 | (uint32_t)(n_marks & 0xffffff);
            sorted = sorted && (n_marks == 0 || marks[n_marks - 1].order < marks[n_marks].order);
            if (n_marks == 0xffffff) { /* the place would not fit: such a run stays as it is */
                sorted = true;
                n_marks++;
                break;
            }
        }
        if (!sorted) {
            qsort(marks, n_marks, sizeof(*marks), by_order);
            for (size_t j = 0; j < n_marks; j++)
                cps[i + j] = marks[j].cp;
        }
        i += n_marks ? n_marks : 1;
    }
}

/* Whether cp begins anew: utf8proc would compose it with what is before, Unicode 9.0 did not. */
static bool starts_stretch(utf8proc_int32_t cp)
{
    bool is_late_mark = unicode_combining_class((uint32_t)cp) == 0 &&
                        utf8proc_get_property(cp)->combining_class != 0;

    return is_late_mark || cp == 0x11930 || (cp >= 0x113b8 && cp <= 0x113c9) ||
           (cp >= 0x1611e && cp <= 0x16129) || (cp >= 0x16d63 && cp <= 0x16d67);
}

/* utf8proc composes in place; returns the new length. */
static size_t compose(utf8proc_int32_t *cps, size_t n)
{
    size_t n_out = 0;

    for (size_t i = 0; i < n;) {
        size_t end = i + 1;
        utf8proc_ssize_t len;

        while (end < n && !starts_stretch(cps[end]))
            end++;
        len = utf8proc_normalize_utf32(cps + i, (utf8proc_ssize_t)(end - i),
                                       UTF8PROC_COMPOSE | UTF8PROC_STABLE);
        memmove(cps + n_out, cps + i, (size_t)len * sizeof(*cps));
        n_out += (size_t)len;
        i = end;
    }
    return n_out;
}

/* Normalises a stretch of text into out. */
static int add_stretch(struct strbuf *out, const char *text, size_t len, enum normal_form form)
{
    bool compat = form == NORMAL_NFKC || form == NORMAL_NFKD;
    utf8proc_option_t options =
        UTF8PROC_DECOMPOSE | UTF8PROC_STABLE | (compat ? UTF8PROC_COMPAT : 0);
    size_t n = 0, n_alloc = utf8_count(text, len) * 2 + MAX_DECOMPOSED;
    utf8proc_int32_t *cps = malloc(n_alloc * sizeof(*cps));
    struct mark *marks = NULL;
    int last_class = 0, n_bytes, rc = ERR_NO_ROOM;

    if (!cps)
        return rc;
    for (size_t at = 0; at < len; at += (size_t)n_bytes) {
        uint32_t cp = utf8_get(text + at, &n_bytes);

        if (n_alloc - n < MAX_DECOMPOSED) {
            utf8proc_int32_t *more = realloc(cps, n_alloc * 2 * sizeof(*cps));

            if (!more)
                goto out;
            cps = more;
            n_alloc *= 2;
        }
        if (unicode_may_decompose(cp))
            n += (size_t)utf8proc_decompose_char((utf8proc_int32_t)cp, cps + n, MAX_DECOMPOSED,
                                                 options, &last_class);
        else
            cps[n++] = (utf8proc_int32_t)cp;
    }
    marks = malloc(n * sizeof(*marks));
    if (!marks)
        goto out;
    order_marks(cps, n, marks);
    if (form == NORMAL_NFC || form == NORMAL_NFKC)
        n = compose(cps, n);
    for (size_t i = 0; i < n; i++)
        utf8_add(out, (uint32_t)cps[i]);
    rc = out->failed ? ERR_NO_ROOM : 0;
out:
    free(marks);
    free(cps);
    return rc;
}

int normal_form_add(struct strbuf *out, const char *text, size_t len, enum normal_form form)
{
    uint32_t limit = inert_limit(form);
    size_t done = 0; /* text before it is in out */
    size_t at = 0;
    size_t last = 0; /* where the last character began */
    int n_bytes, rc;

    while (at < len) {
        size_t begin;

        if (utf8_get(text + at, &n_bytes) < limit) {
            last = at;
            at += (size_t)n_bytes;
            continue;
        }
        begin = last < at && last >= done ? last : at; /* its base, which it may change */
        while (at < len && utf8_get(text + at, &n_bytes) >= limit)
            at += (size_t)n_bytes;
        strbuf_add(out, text + done, begin - done);
        rc = add_stretch(out, text + begin, at - begin, form);
        if (rc < 0)
            return rc;
        done = last = at;
    }
    strbuf_add(out, text + done, len - done);
    return out->failed ? ERR_NO_ROOM : 0;
}
