/*
 * bpe - byte-pair encoding of one piece of text. See bpe.h.
 *
 * Three ways to the same ids. A word that is a token which its own text encodes to is found in a
 * table made at load. Short pieces merge by looking for the lowest rank again and again. Long
 * ones use a heap over a linked list. Pieces of a vocabulary whose tokens never hold a U+2581
 * behind another character are cut in front of each U+2581 first: no merge can cross there, so
 * Llama-2's whole texts become words.
 */
#include "engine/tokenizer/bpe.h"

#include "base/check.h"
#include "base/err.h"
#include "base/hashmap.h"
#include "base/strbuf.h"
#include "engine/tokenizer/byte_alphabet.h"
#include "engine/tokenizer/component.h"
#include "engine/tokenizer/tokenizer.h"
#include "engine/tokenizer/utf8.h"

#include <stdlib.h>
#include <string.h>

#define MAX_IDS     (1 << 22) /* tables are as long as the highest id; real ones stay below 2^19 */
#define MAX_AFFIX   64
#define SCAN_MAX    48 /* symbols up to which scanning beats the heap */
#define NO_MERGE    INT64_MAX
#define N_DIRECT    0x3000 /* characters whose id is looked up in a plain table */
#define METASPACE   "\xe2\x96\x81"
#define METASPACE_N 3

struct token_text {
    const char *text; /* into blob; NULL: no such id */
    uint32_t len;
};

struct bpe {
    char *blob, *raw_blob;     /* the spellings; the bytes they spell */
    struct token_text *tokens; /* [n_ids] */
    int32_t n_ids;
    size_t vocab_size;
    struct strmap vocab;       /* spelling to id */
    struct u64map merges;      /* left << 32 | right to rank << 32 | id */
    struct strmap words;       /* piece to id */
    int32_t byte_ids[256];     /* of raw bytes */
    int32_t fallback_ids[256]; /* of <0xXX>, -1: none */
    int32_t direct_ids[N_DIRECT];
    char *unk_token, *prefix, *suffix; /* NULL: none */
    int32_t unk_id;
    bool fuse_unk, byte_fallback, ignore_merges;
    bool raw_bytes, cut_at_metaspace;
};

/*
 * Loading.
 */

static int load_vocab(struct bpe *b, const json_t *vocab, struct err *err)
{
    size_t total = 0, at = 0;
    const char *key;
    json_t *value;
    json_int_t max_id = -1;

    if (!json_is_object(vocab))
        return err_set(err, ERR_PARSE, "model: vocab is not an object");
    json_object_foreach((json_t *)vocab, key, value)
    {
        json_int_t id = json_integer_value(value);

        if (!json_is_integer(value) || id < 0 || id >= MAX_IDS)
            return err_set(err, ERR_PARSE, "model: token '%.64s' has no id in 0..%d", key,
                           MAX_IDS - 1);
        max_id = id > max_id ? id : max_id;
        total += strlen(key) + 1;
        b->vocab_size++;
    }
    b->n_ids = (int32_t)max_id + 1;
    b->blob = malloc(total + 1);
    b->tokens = calloc((size_t)b->n_ids + 1, sizeof(*b->tokens));
    if (!b->blob || !b->tokens)
        return err_set(err, ERR_NO_ROOM, "model: out of memory");
    json_object_foreach((json_t *)vocab, key, value)
    {
        struct token_text *tok = &b->tokens[json_integer_value(value)];
        size_t len = strlen(key);

        if (tok->text)
            return err_set(err, ERR_PARSE, "model: tokens '%.64s' and '%.64s' share an id",
                           tok->text, key);
        memcpy(b->blob + at, key, len + 1);
        *tok = (struct token_text){b->blob + at, (uint32_t)len};
        if (strmap_put(&b->vocab, b->blob + at, len, json_integer_value(value)) < 0)
            return err_set(err, ERR_NO_ROOM, "model: out of memory");
        at += len + 1;
    }
    return 0;
}

/* The two halves of a merge, "a b" or ["a", "b"]; borrowed. */
static bool merge_halves(const json_t *merge, const char *half[2], size_t len[2])
{
    if (json_is_array(merge)) {
        for (size_t i = 0; i < 2; i++) {
            const json_t *h = json_array_get(merge, i);

            half[i] = json_string_value(h);
            len[i] = json_string_length(h);
        }
        return json_array_size(merge) == 2 && half[0] && half[1];
    }
    if (json_is_string(merge)) {
        const char *space;

        half[0] = json_string_value(merge);
        space = strchr(half[0], ' ');
        if (!space || strchr(space + 1, ' '))
            return false;
        len[0] = (size_t)(space - half[0]);
        half[1] = space + 1;
        len[1] = strlen(half[1]);
        return true;
    }
    return false;
}

static int add_merge(struct bpe *b, const json_t *merge, int64_t rank, struct err *err)
{
    struct strbuf joined = STRBUF_INIT;
    size_t prefix_len = b->prefix ? strlen(b->prefix) : 0;
    const char *half[2];
    size_t len[2];
    int32_t left, right, id;
    int rc = 0;

    if (!merge_halves(merge, half, len))
        return err_set(err, ERR_PARSE, "model: merge %lld is not a pair", (long long)rank);
    left = bpe_id(b, half[0], len[0]);
    right = bpe_id(b, half[1], len[1]);
    if (left < 0 || right < 0)
        return err_set(err, ERR_PARSE, "model: merge %lld names '%.*s', which is no token",
                       (long long)rank, (int)(len[left >= 0] > 64 ? 64 : len[left >= 0]),
                       half[left >= 0]);
    if (len[1] < prefix_len)
        return err_set(err, ERR_PARSE, "model: merge %lld lacks the subword prefix",
                       (long long)rank);
    strbuf_add(&joined, half[0], len[0]);
    strbuf_add(&joined, half[1] + prefix_len, len[1] - prefix_len);
    id = bpe_id(b, joined.buf, joined.len);
    if (id < 0)
        rc = err_set(err, ERR_PARSE, "model: merge %lld makes '%.64s', which is no token",
                     (long long)rank, joined.buf);
    else if (u64map_put(&b->merges, (uint64_t)left << 32 | (uint32_t)right, rank << 32 | id) < 0)
        rc = err_set(err, ERR_NO_ROOM, "model: out of memory");
    strbuf_release(&joined);
    return rc;
}

static int load_merges(struct bpe *b, const json_t *merges, struct err *err)
{
    int64_t rank = 0;
    const json_t *merge;
    size_t i;

    if (!json_is_array(merges))
        return err_set(err, ERR_PARSE, "model: merges is not an array");
    if (json_array_size(merges) > INT32_MAX)
        return err_set(err, ERR_PARSE, "model: too many merges");
    json_array_foreach((json_t *)merges, i, merge)
    {
        const char *line = json_string_value(merge);
        int rc;

        if (line && strncmp(line, "#version", 8) == 0)
            continue; /* the first line of a merges.txt */
        rc = add_merge(b, merge, rank++, err);
        if (rc < 0)
            return rc;
    }
    return 0;
}

static int take_string(char **out, const json_t *json, const char *key, struct err *err)
{
    const char *text;
    size_t len;
    int rc = component_string(&text, &len, json, key, err);

    if (rc < 0 || !text || !len) /* an empty affix adds nothing */
        return rc;
    if (len > MAX_AFFIX)
        return err_set(err, ERR_UNSUPPORTED, "model: %s of %zu bytes", key, len);
    *out = strdup(text);
    return *out ? 0 : err_set(err, ERR_NO_ROOM, "out of memory");
}

static int load_options(struct bpe *b, const json_t *json, struct err *err)
{
    const char *type = json_string_value(json_object_get(json, "type"));
    const json_t *dropout = json_object_get(json, "dropout");
    int rc;

    if (!json_is_object(json))
        return err_set(err, ERR_PARSE, "no model");
    if (type && strcmp(type, "BPE") != 0)
        return err_set(err, ERR_UNSUPPORTED, "model of type %.32s is not supported, only BPE",
                       type);
    if (!type && !json_object_get(json, "merges"))
        return err_set(err, ERR_UNSUPPORTED, "model without merges is not BPE");
    if (dropout && !json_is_null(dropout) && json_number_value(dropout) != 0.0)
        return err_set(err, ERR_UNSUPPORTED, "model: dropout would make ids random");
    rc = take_string(&b->unk_token, json, "unk_token", err);
    if (rc == 0)
        rc = take_string(&b->prefix, json, "continuing_subword_prefix", err);
    if (rc == 0)
        rc = take_string(&b->suffix, json, "end_of_word_suffix", err);
    if (rc == 0)
        rc = component_bool(&b->fuse_unk, json, "fuse_unk", false, err);
    if (rc == 0)
        rc = component_bool(&b->byte_fallback, json, "byte_fallback", false, err);
    if (rc == 0)
        rc = component_bool(&b->ignore_merges, json, "ignore_merges", false, err);
    return rc;
}

/* Whether a U+2581 stands behind another character in text. */
static bool holds_inner_metaspace(const char *text, size_t len)
{
    const char *at = text;

    while ((at = memmem(at, len - (size_t)(at - text), METASPACE, METASPACE_N)) != NULL) {
        if (at > text &&
            (at - text < METASPACE_N || memcmp(at - METASPACE_N, METASPACE, METASPACE_N) != 0))
            return true;
        at += METASPACE_N;
    }
    return false;
}

static void make_tables(struct bpe *b)
{
    char text[8];

    for (int i = 0; i < 256; i++) {
        snprintf(text, sizeof(text), "<0x%02X>", (unsigned)i);
        b->fallback_ids[i] = bpe_id(b, text, 6);
        b->byte_ids[i] =
            bpe_id(b, text, (size_t)utf8_put(text, byte_alphabet_char((unsigned char)i)));
    }
    for (uint32_t cp = 0; cp < N_DIRECT; cp++)
        b->direct_ids[cp] = bpe_id(b, text, (size_t)utf8_put(text, cp));
    b->unk_id = b->unk_token ? bpe_id(b, b->unk_token, strlen(b->unk_token)) : -1;
    b->cut_at_metaspace =
        !b->prefix && !b->suffix && !b->ignore_merges && bpe_id(b, METASPACE, METASPACE_N) >= 0;
    for (int32_t id = 0; id < b->n_ids && b->cut_at_metaspace; id++)
        if (b->tokens[id].text && holds_inner_metaspace(b->tokens[id].text, b->tokens[id].len))
            b->cut_at_metaspace = false;
}

int bpe_new(struct bpe **out, const json_t *json, struct err *err)
{
    struct bpe *b = calloc(1, sizeof(*b));
    int rc;

    if (!b)
        return err_set(err, ERR_NO_ROOM, "out of memory");
    strmap_init(&b->vocab);
    strmap_init(&b->words);
    u64map_init(&b->merges);
    rc = load_options(b, json, err);
    if (rc == 0)
        rc = load_vocab(b, json_object_get(json, "vocab"), err);
    if (rc == 0)
        rc = load_merges(b, json_object_get(json, "merges"), err);
    if (rc < 0) {
        bpe_free(b);
        return rc;
    }
    make_tables(b);
    *out = b;
    return 0;
}

void bpe_free(struct bpe *b)
{
    if (!b)
        return;
    strmap_release(&b->vocab);
    strmap_release(&b->words);
    u64map_release(&b->merges);
    free(b->tokens);
    free(b->blob);
    free(b->raw_blob);
    free(b->unk_token);
    free(b->prefix);
    free(b->suffix);
    free(b);
}

bool bpe_use_raw_bytes(struct bpe *b)
{
    if (b->prefix || b->suffix)
        return false;
    for (int i = 0; i < 256; i++)
        if (b->byte_ids[i] < 0)
            return false;
    b->raw_bytes = true;
    b->cut_at_metaspace = false;
    return true;
}

size_t bpe_vocab_size(const struct bpe *b)
{
    return b->vocab_size;
}

int32_t bpe_n_ids(const struct bpe *b)
{
    return b->n_ids;
}

int32_t bpe_id(const struct bpe *b, const char *text, size_t len)
{
    int64_t id;

    return strmap_get(&b->vocab, text, len, &id) ? (int32_t)id : -1;
}

const char *bpe_text(const struct bpe *b, int32_t id, size_t *len)
{
    if (id < 0 || id >= b->n_ids || !b->tokens[id].text)
        return NULL;
    *len = b->tokens[id].len;
    return b->tokens[id].text;
}

/*
 * Encoding.
 */

struct candidate {  /* a merge that may happen: pos with its right neighbour */
    uint64_t order; /* rank << 32 | pos */
    int32_t id;     /* what it makes */
};

/* The arrays of one piece, cut from the scratch. */
struct work {
    int32_t *ids;           /* [n] */
    int64_t *pair;          /* [n] for scanning: the merge of i and i + 1, or NO_MERGE */
    int32_t *prev, *next;   /* [n] for the heap: -1 ends; next -2: merged into its left */
    struct candidate *heap; /* [3n]: each merge adds at most two */
    size_t n, n_heap;
};

void bpe_scratch_release(struct bpe_scratch *s)
{
    free(s->memory);
    *s = (struct bpe_scratch){0};
}

static bool work_init(struct work *w, struct bpe_scratch *s, size_t len)
{
    size_t n = len + 1; /* a character becomes one symbol or its bytes */
    bool scans = n <= SCAN_MAX;
    size_t need = n * (sizeof(*w->ids) + sizeof(*w->pair));

    if (!scans)
        need = n * (3 * sizeof(int32_t) + 3 * sizeof(*w->heap)) + sizeof(*w->heap);
    if (need > s->n_bytes) {
        void *memory = realloc(s->memory, need * 2);

        if (!memory)
            return false;
        s->memory = memory;
        s->n_bytes = need * 2;
    }
    w->n = w->n_heap = 0;
    if (scans) {
        w->pair = s->memory;
        w->ids = (int32_t *)(w->pair + n);
    } else {
        w->heap = s->memory;
        w->ids = (int32_t *)(w->heap + 3 * n);
        w->prev = w->ids + n;
        w->next = w->prev + n;
    }
    return true;
}

static int64_t merge_of(const struct bpe *b, int32_t left, int32_t right)
{
    int64_t value;

    return u64map_get(&b->merges, (uint64_t)left << 32 | (uint32_t)right, &value) ? value
                                                                                  : NO_MERGE;
}

/* The id of one character as a symbol, with the affixes that its place asks for. */
static int32_t char_id(const struct bpe *b, const char *c, size_t len, bool is_first, bool is_last)
{
    char text[2 * MAX_AFFIX + 8];
    size_t n = 0;

    if ((is_first || !b->prefix) && (!is_last || !b->suffix)) {
        int n_bytes;
        uint32_t cp = utf8_get(c, &n_bytes);

        return cp < N_DIRECT ? b->direct_ids[cp] : bpe_id(b, c, len);
    }
    if (!is_first && b->prefix) {
        n = strlen(b->prefix);
        memcpy(text, b->prefix, n);
    }
    memcpy(text + n, c, len);
    n += len;
    if (is_last && b->suffix) {
        memcpy(text + n, b->suffix, strlen(b->suffix));
        n += strlen(b->suffix);
    }
    return bpe_id(b, text, n);
}

/* Adds the byte tokens of a character; false, and none added, if one is missing. */
static bool add_fallback(const struct bpe *b, struct work *w, const char *c, size_t len)
{
    for (size_t i = 0; i < len; i++)
        if (b->fallback_ids[(unsigned char)c[i]] < 0)
            return false;
    for (size_t i = 0; i < len; i++)
        w->ids[w->n++] = b->fallback_ids[(unsigned char)c[i]];
    return true;
}

/*
 * The piece as symbols. An unknown character waits: fuse_unk may join it to the next, and, as in
 * the library, byte tokens overtake it.
 */
static int add_symbols(const struct bpe *b, struct work *w, const char *piece, size_t len,
                       struct err *err)
{
    bool unk_waits = false;

    if (b->raw_bytes) {
        for (size_t i = 0; i < len; i++)
            w->ids[i] = b->byte_ids[(unsigned char)piece[i]];
        w->n = len;
        return 0;
    }
    for (size_t at = 0; at < len;) {
        size_t n = (size_t)utf8_len((unsigned char)piece[at]);
        int32_t id = char_id(b, piece + at, n, at == 0, at + n == len);

        if (id >= 0) {
            if (unk_waits)
                w->ids[w->n++] = b->unk_id;
            unk_waits = false;
            w->ids[w->n++] = id;
        } else if (!(b->byte_fallback && !b->prefix && !b->suffix &&
                     add_fallback(b, w, piece + at, n)) &&
                   b->unk_token) {
            if (b->unk_id < 0)
                return err_set(err, ERR_UNSUPPORTED,
                               "tokenizer: unk_token '%.64s' is not in its vocabulary",
                               b->unk_token);
            if (unk_waits && !b->fuse_unk)
                w->ids[w->n++] = b->unk_id;
            unk_waits = true;
        }
        at += n;
    }
    if (unk_waits)
        w->ids[w->n++] = b->unk_id;
    return 0;
}

/* Merges the lowest rank, leftmost first, until none is left. */
static void merge_by_scan(const struct bpe *b, struct work *w)
{
    for (size_t i = 0; i + 1 < w->n; i++)
        w->pair[i] = merge_of(b, w->ids[i], w->ids[i + 1]);
    while (w->n > 1) {
        int64_t low = w->pair[0];
        size_t at = 0;

        for (size_t i = 1; i + 1 < w->n; i++) {
            if (w->pair[i] >> 32 < low >> 32) {
                low = w->pair[i];
                at = i;
            }
        }
        if (low == NO_MERGE)
            return;
        w->ids[at] = (int32_t)low;
        memmove(w->ids + at + 1, w->ids + at + 2, (w->n - at - 2) * sizeof(*w->ids));
        if (at + 3 <= w->n)
            memmove(w->pair + at, w->pair + at + 1, (w->n - at - 2) * sizeof(*w->pair));
        w->n--;
        if (at)
            w->pair[at - 1] = merge_of(b, w->ids[at - 1], w->ids[at]);
        if (at + 1 < w->n)
            w->pair[at] = merge_of(b, w->ids[at], w->ids[at + 1]);
    }
}

static void heap_push(struct work *w, struct candidate c)
{
    size_t i = w->n_heap++;

    while (i && w->heap[(i - 1) / 2].order > c.order) {
        w->heap[i] = w->heap[(i - 1) / 2];
        i = (i - 1) / 2;
    }
    w->heap[i] = c;
}

static struct candidate heap_pop(struct work *w)
{
    struct candidate top = w->heap[0], last = w->heap[--w->n_heap];
    size_t i = 0;

    for (;;) {
        size_t child = 2 * i + 1;

        if (child >= w->n_heap)
            break;
        if (child + 1 < w->n_heap && w->heap[child + 1].order < w->heap[child].order)
            child++;
        if (w->heap[child].order >= last.order)
            break;
        w->heap[i] = w->heap[child];
        i = child;
    }
    w->heap[i] = last;
    return top;
}

static void consider(const struct bpe *b, struct work *w, int32_t pos)
{
    int64_t merge =
        pos < 0 || w->next[pos] < 0 ? NO_MERGE : merge_of(b, w->ids[pos], w->ids[w->next[pos]]);

    if (merge != NO_MERGE)
        heap_push(
            w, (struct candidate){(uint64_t)(merge >> 32) << 32 | (uint32_t)pos, (int32_t)merge});
}

static void merge_by_heap(const struct bpe *b, struct work *w)
{
    int32_t n = (int32_t)w->n;
    size_t n_left = 0;

    for (int32_t i = 0; i < n; i++) {
        w->prev[i] = i - 1;
        w->next[i] = i + 1 < n ? i + 1 : -1;
    }
    for (int32_t i = 0; i + 1 < n; i++)
        consider(b, w, i);
    while (w->n_heap) {
        struct candidate c = heap_pop(w);
        int32_t pos = (int32_t)(uint32_t)c.order, right = w->next[pos];
        int64_t merge;

        if (right < 0) /* the end, or merged away since */
            continue;
        merge = merge_of(b, w->ids[pos], w->ids[right]);
        if (merge == NO_MERGE || (int32_t)merge != c.id)
            continue; /* a neighbour has changed since */
        w->ids[pos] = c.id;
        w->next[pos] = w->next[right];
        if (w->next[right] >= 0)
            w->prev[w->next[right]] = pos;
        w->next[right] = -2;
        consider(b, w, w->prev[pos]);
        consider(b, w, pos);
    }
    for (int32_t i = 0; i >= 0 && i < n; i = w->next[i])
        w->ids[n_left++] = w->ids[i]; /* n_left <= i: nothing unread is overwritten */
    w->n = n_left;
}

static int encode_part(const struct bpe *b, struct bpe_scratch *s, const char *piece, size_t len,
                       struct token_ids *out, struct err *err)
{
    struct work w = {0};
    int64_t word;
    int rc;

    if (strmap_get(&b->words, piece, len, &word))
        return token_ids_add(out, (int32_t)word) ? 0 : err_set(err, ERR_NO_ROOM, "out of memory");
    if (!work_init(&w, s, len))
        return err_set(err, ERR_NO_ROOM, "out of memory");
    rc = add_symbols(b, &w, piece, len, err);
    if (rc < 0)
        return rc;
    if (w.heap)
        merge_by_heap(b, &w);
    else
        merge_by_scan(b, &w);
    for (size_t i = 0; i < w.n; i++)
        if (!token_ids_add(out, w.ids[i]))
            return err_set(err, ERR_NO_ROOM, "out of memory");
    return 0;
}

int bpe_encode(const struct bpe *b, struct bpe_scratch *s, const char *piece, size_t len,
               struct token_ids *out, struct err *err)
{
    size_t from = 0, at = 0;
    int rc = 0;

    if (!b->cut_at_metaspace)
        return encode_part(b, s, piece, len, out, err);
    while (from < len && rc == 0) {
        /* Past the marks that begin the word, then to the next mark. */
        while (len - at >= METASPACE_N && memcmp(piece + at, METASPACE, METASPACE_N) == 0)
            at += METASPACE_N;
        while (at < len && !(len - at >= METASPACE_N && piece[at] == METASPACE[0] &&
                             memcmp(piece + at, METASPACE, METASPACE_N) == 0))
            at++;
        rc = encode_part(b, s, piece + from, at - from, out, err);
        from = at;
    }
    return rc;
}

/* Files id under piece if the piece encodes to it alone, or must. */
static int index_word(struct bpe *b, struct bpe_scratch *s, const char *piece, size_t len,
                      int32_t id, struct token_ids *ids, struct err *err)
{
    int rc = 0;

    if (!b->ignore_merges) {
        ids->n = 0;
        rc = bpe_encode(b, s, piece, len, ids, NULL);
        if (rc == ERR_NO_ROOM)
            return err_set(err, rc, "model: out of memory");
        if (rc < 0 || ids->n != 1 || ids->ids[0] != id)
            return 0;
    }
    return strmap_put(&b->words, piece, len, id) < 0
               ? err_set(err, ERR_NO_ROOM, "model: out of memory")
               : 0;
}

int bpe_index_words(struct bpe *b, struct err *err)
{
    struct strbuf raw = STRBUF_INIT;
    struct bpe_scratch scratch = {0};
    struct token_ids ids = {0};
    size_t *starts = NULL; /* [n_ids + 1] into raw */
    int rc = 0;

    if (b->raw_bytes) {
        starts = calloc((size_t)b->n_ids + 1, sizeof(*starts));
        if (!starts) {
            rc = err_set(err, ERR_NO_ROOM, "model: out of memory");
            goto out;
        }
        for (int32_t id = 0; id < b->n_ids; id++) {
            starts[id] = raw.len;
            if (b->tokens[id].text)
                byte_alphabet_read(&raw, b->tokens[id].text, b->tokens[id].len);
        }
        starts[b->n_ids] = raw.len;
        b->raw_blob = strbuf_detach(&raw, NULL);
        if (!b->raw_blob) {
            rc = err_set(err, ERR_NO_ROOM, "model: out of memory");
            goto out;
        }
    }
    for (int32_t id = 0; id < b->n_ids && rc == 0; id++) {
        const char *piece = b->raw_bytes ? b->raw_blob + starts[id] : b->tokens[id].text;
        size_t len = b->raw_bytes ? starts[id + 1] - starts[id] : b->tokens[id].len;

        if (piece && len)
            rc = index_word(b, &scratch, piece, len, id, &ids, err);
    }
out:
    free(starts);
    strbuf_release(&raw);
    bpe_scratch_release(&scratch);
    token_ids_release(&ids);
    return rc;
}
