/*
 * unicode - the properties of characters. See unicode.h.
 */
#include "engine/tokenizer/unicode.h"

#include <utf8proc.h>

#define COUNT(a) (sizeof(a) / sizeof((a)[0]))

/* The names that unicode_tables.inc uses. */
enum {
    LU = UTF8PROC_CATEGORY_LU,
    LL = UTF8PROC_CATEGORY_LL,
    LT = UTF8PROC_CATEGORY_LT,
    LM = UTF8PROC_CATEGORY_LM,
    LO = UTF8PROC_CATEGORY_LO,
    MN = UTF8PROC_CATEGORY_MN,
    MC = UTF8PROC_CATEGORY_MC,
    ME = UTF8PROC_CATEGORY_ME,
    ND = UTF8PROC_CATEGORY_ND,
    NL = UTF8PROC_CATEGORY_NL,
    NO = UTF8PROC_CATEGORY_NO,
    PC = UTF8PROC_CATEGORY_PC,
    PD = UTF8PROC_CATEGORY_PD,
    PS = UTF8PROC_CATEGORY_PS,
    PE = UTF8PROC_CATEGORY_PE,
    PI = UTF8PROC_CATEGORY_PI,
    PF = UTF8PROC_CATEGORY_PF,
    PO = UTF8PROC_CATEGORY_PO,
    SM = UTF8PROC_CATEGORY_SM,
    SC = UTF8PROC_CATEGORY_SC,
    SK = UTF8PROC_CATEGORY_SK,
    SO = UTF8PROC_CATEGORY_SO,
    CF = UTF8PROC_CATEGORY_CF,
};

#include "engine/tokenizer/unicode_tables.inc"

static const struct unicode_range *find(const struct unicode_range *table, size_t n, uint32_t cp)
{
    size_t low = 0, high = n;

    while (low < high) {
        size_t mid = (low + high) / 2;

        if (cp > table[mid].last)
            low = mid + 1;
        else if (cp < table[mid].first)
            high = mid;
        else
            return &table[mid];
    }
    return NULL;
}

#define IN(table, cp) (find(table, COUNT(table), cp) != NULL)

int unicode_category(uint32_t cp)
{
    const struct unicode_range *r = find(cat_delta, COUNT(cat_delta), cp);

    return r ? r->value : (int)utf8proc_category((utf8proc_int32_t)cp);
}

bool unicode_is_space(uint32_t cp)
{
    if (cp < 0x85)
        return cp == ' ' || (cp >= 9 && cp <= 13);
    return cp == 0x85 || cp == 0xa0 || cp == 0x1680 || (cp >= 0x2000 && cp <= 0x200a) ||
           cp == 0x2028 || cp == 0x2029 || cp == 0x202f || cp == 0x205f || cp == 0x3000;
}

bool unicode_is_numeric(uint32_t cp)
{
    int cat = unicode_category(cp);

    return cat == ND || cat == NL || cat == NO || IN(numeric_17, cp);
}

bool unicode_is_word(uint32_t cp)
{
    int cat;

    if (cp < 0x80)
        return cp == '_' || (cp >= '0' && cp <= '9') || ((cp | 32) >= 'a' && (cp | 32) <= 'z');
    if (cp == 0x200c || cp == 0x200d)
        return true; /* Join_Control */
    cat = unicode_category(cp);
    return (cat >= LU && cat <= LO) || (cat >= MN && cat <= ME) || cat == ND || cat == NL ||
           cat == PC || IN(word_other, cp);
}

bool unicode_is_punctuation(uint32_t cp)
{
    int cat;

    if (cp < 0x80)
        return cp > ' ' && cp != 0x7f && (cp == '_' || !unicode_is_word(cp));
    cat = unicode_category(cp);
    return (cat >= PC && cat <= PO) != IN(punct_flip, cp);
}

bool unicode_is_accent(uint32_t cp)
{
    int cat = unicode_category(cp);

    return cat >= MN && cat <= ME && !IN(marks_after_9, cp);
}

int unicode_lower(uint32_t cp, uint32_t out[3])
{
    const struct unicode_range *r = find(lower_delta, COUNT(lower_delta), cp);

    if (cp == 0x130) { /* the only character whose small form is two */
        out[0] = 'i';
        out[1] = 0x307;
        return 2;
    }
    out[0] = r ? (uint32_t)((int32_t)cp + r->value) : (uint32_t)utf8proc_tolower((int32_t)cp);
    return 1;
}

int unicode_upper(uint32_t cp, uint32_t out[3])
{
    if (cp == 0xdf) { /* sharp s */
        out[0] = out[1] = 'S';
        return 2;
    }
    out[0] = (uint32_t)utf8proc_toupper((int32_t)cp);
    return 1;
}

int unicode_combining_class(uint32_t cp)
{
    if (IN(marks_after_9, cp))
        return 0;
    return utf8proc_get_property((utf8proc_int32_t)cp)->combining_class;
}

bool unicode_may_decompose(uint32_t cp)
{
    return !IN(decomposed_after_9, cp);
}

const struct unicode_range *unicode_new_in_16(size_t *n)
{
    *n = COUNT(cat_delta);
    return cat_delta;
}

const struct unicode_range *unicode_han(size_t *n)
{
    *n = COUNT(han_script);
    return han_script;
}

const struct unicode_range *unicode_word_other(size_t *n)
{
    *n = COUNT(word_other);
    return word_other;
}
