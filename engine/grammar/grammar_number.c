/*
 * grammar_number - numbers between two bounds, as the digits that spell them. Part of grammar_json.
 *
 * Fractions have up to six digits, so a bound is a whole number of millionths, rounded inwards:
 * what is written is always within the bounds, since reading decimals keeps their order.
 */
#include "engine/grammar/grammar_json.h"

#include <math.h>
#include <stdio.h>
#include <string.h>

#define FRACTION_DIGITS 6
#define MILLION         1000000
#define LARGEST         1000000000000 /* of a bound of numbers with fractions, in whole numbers */
#define DIGITS_OPEN     15            /* an integer without an upper bound has no more */

static const struct expr *digits(struct grammar_build *b, char lo, char hi)
{
    return expr_byte_range(b, lo, hi);
}

static const struct expr *any_digits(struct grammar_build *b, int min, int max)
{
    return expr_repeat(b, digits(b, '0', '9'), min, max);
}

/* Digit strings of lo's length from lo to hi; NULL for a hi of nines. At most 19 deep. */
static const struct expr *between(struct grammar_build *b, const char *lo, const char *hi, int n)
{
    static const char zeros[] = "0000000000000000000", nines[] = "9999999999999999999";
    const struct expr *e, *low, *high;

    if (n == 0)
        return expr_empty(b);
    if (!memcmp(lo, zeros, (size_t)n) && !memcmp(hi, nines, (size_t)n))
        return any_digits(b, n, n);
    if (lo[0] == hi[0])
        return expr_seq(b, digits(b, lo[0], lo[0]), between(b, lo + 1, hi + 1, n - 1));
    low = expr_seq(b, digits(b, lo[0], lo[0]), between(b, lo + 1, nines, n - 1));
    high = expr_seq(b, digits(b, hi[0], hi[0]), between(b, zeros, hi + 1, n - 1));
    e = expr_seq(b, digits(b, (char)(lo[0] + 1), (char)(hi[0] - 1)), any_digits(b, n - 1, n - 1));
    return expr_alt(b, low, expr_alt(b, e, high));
}

static int64_t power_of_10(int n)
{
    int64_t p = 1;

    while (n-- > 0)
        p *= 10;
    return p;
}

/* 0 <= lo; no leading zeros. */
static const struct expr *natural_range(struct grammar_build *b, int64_t lo, int64_t hi)
{
    const struct expr *e = expr_never(b);

    for (int n = 1; n <= 18 && lo <= hi; n++) {
        int64_t last = power_of_10(n) - 1;
        char from[24], to[24];

        if (lo > last)
            continue;
        last = last < hi ? last : hi;
        snprintf(from, sizeof(from), "%lld", (long long)lo);
        snprintf(to, sizeof(to), "%lld", (long long)last);
        e = expr_alt(b, e, between(b, from, to, n));
        lo = last + 1;
    }
    return e;
}

const struct expr *grammar_json_integer_range(struct grammar_build *b, int64_t lo, int64_t hi)
{
    const int64_t most = power_of_10(18) - 1;
    const struct expr *e = expr_never(b);

    if (hi == INT64_MAX)
        hi = lo < power_of_10(DIGITS_OPEN) ? power_of_10(DIGITS_OPEN) - 1 : most;
    if (lo == INT64_MIN)
        lo = hi > -power_of_10(DIGITS_OPEN) ? 1 - power_of_10(DIGITS_OPEN) : -most;
    lo = lo < -most ? -most : lo;
    hi = hi > most ? most : hi;
    if (hi >= 0)
        e = natural_range(b, lo > 0 ? lo : 0, hi);
    if (lo < 0)
        e = expr_alt(b, e, expr_seq(b, expr_str(b, "-"), natural_range(b, hi < 0 ? -hi : 1, -lo)));
    return e;
}

/* Fractions of exactly six digits from lo to hi millionths, with their point. */
static const struct expr *fraction(struct grammar_build *b, int64_t lo, int64_t hi)
{
    char from[24], to[24];

    if (lo > hi)
        return expr_never(b);
    snprintf(from, sizeof(from), "%06lld", (long long)lo);
    snprintf(to, sizeof(to), "%06lld", (long long)hi);
    return expr_seq(b, expr_str(b, "."), between(b, from, to, FRACTION_DIGITS));
}

/* One whole number and the fractions on top of it from lo to hi millionths. */
static const struct expr *on_whole(struct grammar_build *b, int64_t whole, int64_t lo, int64_t hi)
{
    const struct expr *e = fraction(b, lo, hi);

    if (lo == 0)
        e = expr_alt(b, expr_empty(b), e);
    return expr_seq(b, natural_range(b, whole, whole), e);
}

/* From lo to hi millionths, 0 <= lo. */
static const struct expr *positive_range(struct grammar_build *b, int64_t lo, int64_t hi)
{
    int64_t first = lo / MILLION, last = hi / MILLION;
    const struct expr *e, *free_fraction;

    if (lo > hi)
        return expr_never(b);
    if (first == last)
        return on_whole(b, first, lo % MILLION, hi % MILLION);
    free_fraction =
        expr_repeat(b, expr_seq(b, expr_str(b, "."), any_digits(b, 1, FRACTION_DIGITS)), 0, 1);
    e = on_whole(b, first, lo % MILLION, MILLION - 1);
    e = expr_alt(b, e, on_whole(b, last, 0, hi % MILLION));
    if (first + 1 < last)
        e = expr_alt(b, e, expr_seq(b, natural_range(b, first + 1, last - 1), free_fraction));
    return e;
}

/* A bound in millionths, rounded towards the inside. */
static int64_t millionths(double bound, bool excluded, bool is_low)
{
    double v = bound * MILLION, r = is_low ? ceil(v) : floor(v);

    /* The product is rounded itself: one more step inwards costs nothing. */
    if (excluded || r != v || fabs(v) > 9e15)
        r += is_low ? 1 : -1;
    return (int64_t)r;
}

const struct expr *grammar_json_number_range(struct grammar_build *b,
                                             struct grammar_json_bounds bounds)
{
    const struct expr *e = expr_never(b);
    double lo = bounds.lo, hi = bounds.hi;
    int64_t from, to;

    if (isinf(lo))
        lo = hi < LARGEST ? -(double)LARGEST : hi;
    if (isinf(hi))
        hi = lo > -(double)LARGEST ? LARGEST : lo;
    if (fabs(lo) > LARGEST || fabs(hi) > LARGEST) {
        grammar_fail(b, ERR_INVALID, "bounds of numbers beyond 1e12 are not supported");
        return e;
    }
    from = millionths(lo, bounds.excludes_lo, true);
    to = millionths(hi, bounds.excludes_hi, false);
    if (to >= 0)
        e = positive_range(b, from > 0 ? from : 0, to);
    if (from < 0)
        e = expr_alt(b, e,
                     expr_seq(b, expr_str(b, "-"), positive_range(b, to < 0 ? -to : 1, -from)));
    return e;
}
