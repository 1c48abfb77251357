/*
 * pre_tokenizer - text to pieces. See pre_tokenizer.h.
 *
 * Each step turns a list of pieces into another. Steps that change the text write a new one, and
 * the two texts and lists of the scratch take turns. Ids need no offsets into the original text,
 * so none are kept, but for the one question that Metaspace asks: is this the beginning?
 */
#include "engine/tokenizer/pre_tokenizer.h"

#include "base/err.h"
#include "engine/tokenizer/byte_alphabet.h"
#include "engine/tokenizer/component.h"
#include "engine/tokenizer/split_regex.h"
#include "engine/tokenizer/unicode.h"
#include "engine/tokenizer/utf8.h"

#include <stdlib.h>
#include <string.h>

/* OpenAI's expression for GPT-2, which the format's ByteLevel implies. */
#define GPT2_PATTERN                                                                               \
    "'s|'t|'re|'ve|'m|'ll|'d| ?\\p{L}+| ?\\p{N}+| ?[^\\s\\p{L}\\p{N}]+|\\s+(?!\\S)|\\s+"

enum step_kind { STEP_BYTES, STEP_REGEX, STEP_CHARS, STEP_WORDS, STEP_METASPACE };
enum behaviour { REMOVED, ISOLATED, MERGED_WITH_PREVIOUS, MERGED_WITH_NEXT, CONTIGUOUS };
enum scheme { PREPEND_ALWAYS, PREPEND_FIRST, PREPEND_NEVER };

struct step {
    enum step_kind kind;
    enum behaviour behaviour;
    bool invert;
    struct split_regex *pattern;  /* owned; STEP_BYTES without one does not split */
    bool (*is_char)(uint32_t cp); /* STEP_CHARS: the delimiters */
    uint32_t delimiter;           /* STEP_CHARS without is_char; the replacement of Metaspace */
    bool add_prefix_space;        /* STEP_BYTES */
    enum scheme scheme;           /* STEP_METASPACE */
    bool split;                   /* STEP_METASPACE */
};

struct pre_tokenizer {
    int n_steps;
    struct step steps[2 * COMPONENT_MAX_STEPS]; /* BertPreTokenizer is two */
};

void pre_scratch_init(struct pre_scratch *s, struct split_matcher *matcher)
{
    *s = (struct pre_scratch){.matcher = matcher};
    strbuf_init(&s->text[0]);
    strbuf_init(&s->text[1]);
}

void pre_scratch_release(struct pre_scratch *s)
{
    for (int i = 0; i < 2; i++) {
        strbuf_release(&s->text[i]);
        free(s->pieces[i].v);
        s->pieces[i] = (struct piece_list){0};
    }
}

/*
 * Building.
 */

static int parse_behaviour(enum behaviour *out, const json_t *json, enum behaviour otherwise,
                           struct err *err)
{
    static const char *const names[] = {"Removed", "Isolated", "MergedWithPrevious",
                                        "MergedWithNext", "Contiguous"};
    const char *name;
    size_t len;
    int rc = component_string(&name, &len, json, "behavior", err);

    *out = otherwise;
    if (rc < 0 || !name)
        return rc;
    for (int i = 0; i < 5; i++) {
        if (strcmp(name, names[i]) == 0) {
            *out = (enum behaviour)i;
            return 0;
        }
    }
    return err_set(err, ERR_UNSUPPORTED, "pre_tokenizer %s: behavior %.32s", component_type(json),
                   name);
}

static int parse_char(uint32_t *cp, const json_t *json, const char *key, struct err *err)
{
    const char *text;
    size_t len;
    int n_bytes, rc = component_string(&text, &len, json, key, err);

    if (rc < 0)
        return rc;
    if (!text || !len || (size_t)utf8_len((unsigned char)text[0]) != len)
        return err_set(err, ERR_PARSE, "pre_tokenizer %s: %s is not one character",
                       component_type(json), key);
    *cp = utf8_get(text, &n_bytes);
    return 0;
}

static int parse_metaspace(struct step *step, const json_t *json, struct err *err)
{
    const char *scheme;
    bool add_prefix;
    size_t len;
    int rc;

    step->kind = STEP_METASPACE;
    rc = parse_char(&step->delimiter, json, "replacement", err);
    if (rc == 0)
        rc = component_string(&scheme, &len, json, "prepend_scheme", err);
    if (rc == 0)
        rc = component_bool(&add_prefix, json, "add_prefix_space", true, err);
    if (rc == 0)
        rc = component_bool(&step->split, json, "split", true, err);
    if (rc < 0)
        return rc;
    if (!scheme) /* files older than the scheme */
        step->scheme = add_prefix ? PREPEND_ALWAYS : PREPEND_NEVER;
    else if (strcmp(scheme, "always") == 0)
        step->scheme = PREPEND_ALWAYS;
    else if (strcmp(scheme, "first") == 0)
        step->scheme = PREPEND_FIRST;
    else if (strcmp(scheme, "never") == 0)
        step->scheme = PREPEND_NEVER;
    else
        return err_set(err, ERR_UNSUPPORTED, "pre_tokenizer Metaspace: prepend_scheme %.32s",
                       scheme);
    if (!add_prefix && step->scheme != PREPEND_NEVER)
        return err_set(err, ERR_PARSE,
                       "pre_tokenizer Metaspace: add_prefix_space contradicts prepend_scheme");
    return 0;
}

static int parse_bytes(struct step *step, const json_t *json, struct err *err)
{
    bool use_regex;
    int rc;

    step->kind = STEP_BYTES;
    step->behaviour = ISOLATED;
    rc = component_bool(&step->add_prefix_space, json, "add_prefix_space", true, err);
    if (rc == 0)
        rc = component_bool(&use_regex, json, "use_regex", true, err);
    if (rc == 0 && use_regex)
        rc = split_regex_new(&step->pattern, GPT2_PATTERN, strlen(GPT2_PATTERN), err);
    return rc;
}

/* Parses one component into one or two steps; returns how many. */
static int step_parse(struct step *step, const json_t *json, struct err *err)
{
    const char *type = component_type(json);
    bool individual;
    int rc = 0;

    step->kind = STEP_CHARS;
    if (strcmp(type, "ByteLevel") == 0) {
        rc = parse_bytes(step, json, err);
    } else if (strcmp(type, "Metaspace") == 0) {
        rc = parse_metaspace(step, json, err);
    } else if (strcmp(type, "Split") == 0) {
        step->kind = STEP_REGEX;
        rc = parse_behaviour(&step->behaviour, json, REMOVED, err);
        if (rc == 0)
            rc = component_bool(&step->invert, json, "invert", false, err);
        if (rc == 0)
            rc = component_pattern(&step->pattern, json, err);
    } else if (strcmp(type, "Digits") == 0) {
        rc = component_bool(&individual, json, "individual_digits", false, err);
        step->behaviour = rc == 0 && individual ? ISOLATED : CONTIGUOUS;
        step->is_char = unicode_is_numeric;
    } else if (strcmp(type, "Punctuation") == 0) {
        rc = parse_behaviour(&step->behaviour, json, ISOLATED, err);
        step->is_char = unicode_is_punctuation;
    } else if (strcmp(type, "Whitespace") == 0) {
        step->kind = STEP_WORDS;
    } else if (strcmp(type, "WhitespaceSplit") == 0) {
        step->behaviour = REMOVED;
        step->is_char = unicode_is_space;
    } else if (strcmp(type, "CharDelimiterSplit") == 0) {
        step->behaviour = REMOVED;
        rc = parse_char(&step->delimiter, json, "delimiter", err);
    } else if (strcmp(type, "BertPreTokenizer") == 0) {
        step[0].behaviour = REMOVED;
        step[0].is_char = unicode_is_space;
        step[1] = (struct step){
            .kind = STEP_CHARS, .behaviour = ISOLATED, .is_char = unicode_is_punctuation};
        return 2;
    } else {
        return component_unknown("pre_tokenizer", type, err);
    }
    return rc < 0 ? rc : 1;
}

int pre_tokenizer_new(struct pre_tokenizer **out, const json_t *json, struct err *err)
{
    const json_t *steps[COMPONENT_MAX_STEPS];
    struct pre_tokenizer *pt;
    int n, rc;

    *out = NULL;
    n = component_flatten(steps, json, "pretokenizers", "pre_tokenizer", err);
    if (n <= 0)
        return n;
    pt = calloc(1, sizeof(*pt));
    if (!pt)
        return err_set(err, ERR_NO_ROOM, "out of memory");
    for (int i = 0; i < n; i++) {
        rc = step_parse(&pt->steps[pt->n_steps], steps[i], err);
        pt->n_steps += rc < 0 ? 1 : rc; /* a half-built step has something to free */
        if (rc < 0)
            goto out;
    }
    *out = pt;
    pt = NULL; /* the caller owns it now */
    rc = 0;
out:
    pre_tokenizer_free(pt);
    return rc;
}

void pre_tokenizer_free(struct pre_tokenizer *pt)
{
    if (!pt)
        return;
    for (int i = 0; i < pt->n_steps; i++)
        split_regex_free(pt->steps[i].pattern);
    free(pt);
}

bool pre_tokenizer_ends_in_bytes(const struct pre_tokenizer *pt)
{
    return pt && pt->steps[pt->n_steps - 1].kind == STEP_BYTES;
}

/*
 * Splitting. A splitter receives the stretches of one piece in order, each a match or not, and
 * builds the new pieces by the step's behaviour.
 */

struct splitter {
    struct piece_list *to;
    struct piece from;
    enum behaviour behaviour;
    bool invert;
    bool last_was_match; /* of the stretch before */
    bool has_last;       /* a piece of `from` that may still grow is at the end of the list */
    bool failed;
};

static bool piece_add(struct piece_list *list, struct piece p)
{
    if (list->n == list->alloc) {
        size_t alloc = list->alloc ? list->alloc * 2 : 64;
        struct piece *v = realloc(list->v, alloc * sizeof(*v));

        if (!v)
            return false;
        list->v = v;
        list->alloc = alloc;
    }
    list->v[list->n++] = p;
    return true;
}

static void splitter_push(struct splitter *s, size_t start, size_t end)
{
    struct piece p = {.at = s->from.at + (uint32_t)start, .len = (uint32_t)(end - start)};

    p.n_origin = s->from.n_origin > start ? s->from.n_origin - (uint32_t)start : 0;
    /* An empty piece that nothing has grown has no further use. */
    if (s->has_last && s->to->v[s->to->n - 1].len == 0)
        s->to->n--;
    if (!piece_add(s->to, p))
        s->failed = true;
    s->has_last = !s->failed;
}

static void splitter_grow(struct splitter *s, size_t end)
{
    struct piece *last = &s->to->v[s->to->n - 1];

    last->len = s->from.at + (uint32_t)end - last->at;
}

static void splitter_stretch(struct splitter *s, size_t start, size_t end, bool is_match)
{
    bool grows = false;

    is_match = is_match != s->invert;
    switch (s->behaviour) {
    case REMOVED:
        if (is_match)
            return;
        break;
    case ISOLATED:
        break;
    case MERGED_WITH_PREVIOUS:
        grows = is_match && !s->last_was_match;
        break;
    case MERGED_WITH_NEXT:
        grows = !is_match && s->last_was_match;
        break;
    case CONTIGUOUS:
        grows = is_match == s->last_was_match;
        break;
    }
    s->last_was_match = is_match;
    if (grows && s->has_last)
        splitter_grow(s, end);
    else
        splitter_push(s, start, end);
}

static int splitter_end(struct splitter *s, struct err *err)
{
    if (s->failed)
        return err_set(err, ERR_NO_ROOM, "out of memory");
    if (s->has_last && s->to->v[s->to->n - 1].len == 0)
        s->to->n--;
    return 0;
}

static int split_by_regex(const struct step *step, struct split_matcher *m, const char *text,
                          struct splitter *s, struct err *err)
{
    struct split_search at = {.text = text + s->from.at, .len = s->from.len};
    size_t done = 0, start, end;
    int rc;

    while ((rc = split_regex_next(step->pattern, m, &at, &start, &end, err)) > 0) {
        if (done < start)
            splitter_stretch(s, done, start, false);
        splitter_stretch(s, start, end, true);
        done = end;
        if (s->failed)
            break;
    }
    if (rc < 0)
        return rc;
    if (done < at.len)
        splitter_stretch(s, done, at.len, false);
    return splitter_end(s, err);
}

static int split_by_chars(const struct step *step, const char *text, struct splitter *s,
                          struct err *err)
{
    const char *from = text + s->from.at;
    size_t done = 0;
    int n_bytes;

    for (size_t at = 0; at < s->from.len && !s->failed; at += (size_t)n_bytes) {
        uint32_t cp = utf8_get(from + at, &n_bytes);

        if (step->is_char ? !step->is_char(cp) : cp != step->delimiter)
            continue;
        if (done < at)
            splitter_stretch(s, done, at, false);
        done = at + (size_t)n_bytes;
        splitter_stretch(s, at, done, true);
    }
    if (done < s->from.len)
        splitter_stretch(s, done, s->from.len, false);
    return splitter_end(s, err);
}

/* \w+|[^\w\s]+ : runs of word characters, and of all others but spaces, which vanish. */
static int split_words(const char *text, struct splitter *s, struct err *err)
{
    const char *from = text + s->from.at;
    size_t start = 0;
    int kind = 0, n_bytes; /* 0 space, 1 word, 2 other */

    for (size_t at = 0; at < s->from.len && !s->failed; at += (size_t)n_bytes) {
        uint32_t cp = utf8_get(from + at, &n_bytes);
        int here = unicode_is_word(cp) ? 1 : unicode_is_space(cp) ? 0 : 2;

        if (here == kind)
            continue;
        if (kind)
            splitter_push(s, start, at);
        kind = here;
        start = at;
    }
    if (kind)
        splitter_push(s, start, s->from.len);
    return splitter_end(s, err);
}

/* Appends p, as the pieces that a Metaspace step makes of it, to the text and the list. */
static int add_metaspace(const struct step *step, const char *text, const struct piece *p,
                         struct strbuf *to_text, struct piece_list *to, struct err *err)
{
    struct splitter s = {.to = to, .behaviour = MERGED_WITH_NEXT};
    char mark[4];
    size_t mark_len = (size_t)utf8_put(mark, step->delimiter), at = to_text->len;
    const char *from = text + p->at;
    bool starts_marked =
        from[0] == ' ' || (p->len >= mark_len && memcmp(from, mark, mark_len) == 0);
    struct piece whole = {.at = (uint32_t)at, .n_origin = p->n_origin};

    if (!starts_marked &&
        (step->scheme == PREPEND_ALWAYS || (step->scheme == PREPEND_FIRST && p->n_origin > 0))) {
        strbuf_add(to_text, mark, mark_len);
        whole.n_origin += p->n_origin ? (uint32_t)mark_len : 0;
    }
    for (size_t i = 0; i < p->len;) {
        const char *space = memchr(from + i, ' ', p->len - i);
        size_t n = space ? (size_t)(space - from) - i : p->len - i;

        strbuf_add(to_text, from + i, n);
        if (space)
            strbuf_add(to_text, mark, mark_len);
        i += n + (space ? 1 : 0);
    }
    if (to_text->failed)
        return err_set(err, ERR_NO_ROOM, "out of memory");
    whole.len = (uint32_t)(to_text->len - at);
    if (!step->split)
        return piece_add(to, whole) ? 0 : err_set(err, ERR_NO_ROOM, "out of memory");
    s.from = whole;
    return split_by_chars(step, to_text->buf, &s, err);
}

/* Runs a step that leaves the text as it is. */
static int apply_split(const struct step *step, struct split_matcher *m, const char *text,
                       const struct piece_list *from, struct piece_list *to, struct err *err)
{
    int rc = 0;

    for (size_t i = 0; i < from->n && rc == 0; i++) {
        struct splitter s = {
            .to = to, .from = from->v[i], .behaviour = step->behaviour, .invert = step->invert};

        if (step->kind == STEP_WORDS)
            rc = split_words(text, &s, err);
        else if (step->kind == STEP_CHARS)
            rc = split_by_chars(step, text, &s, err);
        else
            rc = split_by_regex(step, m, text, &s, err);
    }
    return rc;
}

/* Where the steps are: text and list that the next one reads. */
struct progress {
    struct pre_scratch *scratch;
    const char *text;
    int list, next_text;
};

static int apply_metaspace(const struct step *step, struct progress *at, struct err *err)
{
    struct piece_list *from = &at->scratch->pieces[at->list];
    struct piece_list *to = &at->scratch->pieces[!at->list];
    struct strbuf *text = &at->scratch->text[at->next_text];
    int rc = 0;

    to->n = 0;
    strbuf_reset(text);
    for (size_t i = 0; i < from->n && rc == 0; i++)
        rc = add_metaspace(step, at->text, &from->v[i], text, to, err);
    at->list = !at->list;
    at->text = text->buf;
    at->next_text = !at->next_text;
    return rc;
}

/* Rewrites every piece into the next text: with a space in front, or spelled in the alphabet. */
static int rewrite(struct progress *at, bool add_space, bool spell, struct err *err)
{
    struct piece_list *list = &at->scratch->pieces[at->list];
    struct strbuf *text = &at->scratch->text[at->next_text];

    strbuf_reset(text);
    for (size_t i = 0; i < list->n; i++) {
        struct piece *p = &list->v[i];
        const char *from = at->text + p->at;
        size_t start = text->len;

        if (add_space && from[0] != ' ') {
            strbuf_addch(text, ' ');
            p->n_origin += p->n_origin ? 1 : 0;
        }
        if (spell) {
            byte_alphabet_spell(text, from, p->len);
            p->n_origin = p->n_origin ? 1 : 0;
        } else {
            strbuf_add(text, from, p->len);
        }
        p->at = (uint32_t)start;
        p->len = (uint32_t)(text->len - start);
    }
    at->text = text->buf;
    at->next_text = !at->next_text;
    return text->failed ? err_set(err, ERR_NO_ROOM, "out of memory") : 0;
}

static bool any_lacks_space(const struct progress *at)
{
    const struct piece_list *list = &at->scratch->pieces[at->list];

    for (size_t i = 0; i < list->n; i++)
        if (at->text[list->v[i].at] != ' ')
            return true;
    return false;
}

static int apply_step(const struct step *step, struct progress *at, bool keep_bytes,
                      struct err *err)
{
    int rc = 0;

    if (step->kind == STEP_METASPACE)
        return apply_metaspace(step, at, err);
    if (step->kind == STEP_BYTES && step->add_prefix_space && any_lacks_space(at))
        rc = rewrite(at, true, false, err);
    if (rc == 0 && (step->kind != STEP_BYTES || step->pattern)) {
        struct piece_list *to = &at->scratch->pieces[!at->list];

        to->n = 0;
        rc = apply_split(step, at->scratch->matcher, at->text, &at->scratch->pieces[at->list], to,
                         err);
        at->list = !at->list;
    }
    if (rc == 0 && step->kind == STEP_BYTES && !keep_bytes)
        rc = rewrite(at, false, true, err);
    return rc;
}

int pre_tokenizer_apply(const struct pre_tokenizer *pt, struct pre_scratch *scratch,
                        const char *text, size_t len, size_t n_origin, bool keep_bytes,
                        struct pre_result *out, struct err *err)
{
    struct progress at = {.scratch = scratch, .text = text};
    int n_steps = pt ? pt->n_steps : 0, rc = 0;

    scratch->pieces[0].n = 0;
    if (len && !piece_add(&scratch->pieces[0],
                          (struct piece){.len = (uint32_t)len, .n_origin = (uint32_t)n_origin}))
        return err_set(err, ERR_NO_ROOM, "out of memory");
    for (int i = 0; i < n_steps && rc == 0; i++)
        rc = apply_step(&pt->steps[i], &at, keep_bytes && i + 1 == n_steps, err);
    out->text = at.text;
    out->pieces = &scratch->pieces[at.list];
    return rc;
}
