/*
 * safetensors - one checkpoint file. See safetensors.h.
 *
 * The header is hostile until proven otherwise: its length is bounded before it is read, jansson
 * bounds its depth (2048 levels) and refuses duplicate names, and no offset is used before all of
 * them are known to be in order.
 */
#include "engine/model/safetensors.h"

#include "base/arena.h"
#include "base/err.h"
#include "base/file_map.h"
#include "base/hashmap.h"
#include "engine/model/json_fields.h"

#include <jansson.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#define PREFIX_BYTES     8
#define MAX_HEADER_BYTES 100000000 /* the limit of the format's own reader */
#define MAX_NAME_BYTES   1024

struct safetensors {
    struct file_map map; /* empty when parsed from memory */
    const unsigned char *data;
    size_t data_bytes;
    const char *where;
    struct safetensors_tensor *tensors; /* [n_tensors] in file order */
    size_t n_tensors;
    struct strmap by_name;
    struct arena arena; /* names and the table */
};

/* Element sizes in bits: some newer types are smaller than a byte. */
static const struct {
    const char *name;
    int bits;
    int dtype; /* -1: no weight of ours */
} dtype_table[] = {
    {"F32", 32, DTYPE_F32}, {"BF16", 16, DTYPE_BF16}, {"F16", 16, DTYPE_F16}, {"F64", 64, -1},
    {"I64", 64, -1},        {"U64", 64, -1},          {"I32", 32, -1},        {"U32", 32, -1},
    {"I16", 16, -1},        {"U16", 16, -1},          {"I8", 8, -1},          {"U8", 8, -1},
    {"BOOL", 8, -1},        {"F8_E4M3", 8, -1},       {"F8_E5M2", 8, -1},     {"F8_E8M0", 8, -1},
    {"F8_E4M3FNUZ", 8, -1}, {"F8_E5M2FNUZ", 8, -1},   {"F6_E2M3", 6, -1},     {"F6_E3M2", 6, -1},
    {"F4", 4, -1},          {"C64", 64, -1},
};

static int parse_dtype(const struct safetensors *st, struct safetensors_tensor *t, const json_t *v,
                       int *bits, struct err *err)
{
    char found[64];

    if (json_is_string(v)) {
        for (size_t i = 0; i < sizeof(dtype_table) / sizeof(dtype_table[0]); i++) {
            if (strcmp(json_string_value(v), dtype_table[i].name) != 0)
                continue;
            t->dtype_name = dtype_table[i].name;
            t->is_weight = dtype_table[i].dtype >= 0;
            t->dtype = t->is_weight ? (enum dtype)dtype_table[i].dtype : DTYPE_F32;
            *bits = dtype_table[i].bits;
            return 0;
        }
    }
    if (!v)
        return err_set(err, ERR_PARSE, "%s: tensor %s: has no dtype", st->where, t->name);
    json_describe(found, sizeof(found), v);
    return err_set(err, ERR_PARSE, "%s: tensor %s: dtype is %s, which the format does not know",
                   st->where, t->name, found);
}

/* Fills shape and the bytes that it asks for. */
static int parse_shape(const struct safetensors *st, struct safetensors_tensor *t, const json_t *v,
                       int bits, struct err *err)
{
    uint64_t n = 1, n_bits;

    if (!json_is_array(v))
        return err_set(err, ERR_PARSE, "%s: tensor %s: shape is not an array", st->where, t->name);
    if (json_array_size(v) > SAFETENSORS_MAX_DIMS)
        return err_set(err, ERR_PARSE, "%s: tensor %s: %zu dimensions, want at most %d", st->where,
                       t->name, json_array_size(v), SAFETENSORS_MAX_DIMS);
    t->n_dims = (int)json_array_size(v);
    for (int i = 0; i < t->n_dims; i++) {
        const json_t *d = json_array_get(v, i);

        if (!json_is_integer(d) || json_integer_value(d) < 0)
            return err_set(err, ERR_PARSE, "%s: tensor %s: shape[%d] is not a size", st->where,
                           t->name, i);
        t->shape[i] = json_integer_value(d);
        if (__builtin_mul_overflow(n, (uint64_t)t->shape[i], &n))
            return err_set(err, ERR_PARSE, "%s: tensor %s: shape overflows 64 bits", st->where,
                           t->name);
    }
    if (__builtin_mul_overflow(n, (uint64_t)bits, &n_bits))
        return err_set(err, ERR_PARSE, "%s: tensor %s: shape overflows 64 bits", st->where,
                       t->name);
    if (n_bits % 8 != 0)
        return err_set(err, ERR_PARSE, "%s: tensor %s: does not fill whole bytes", st->where,
                       t->name);
    t->bytes = n_bits / 8;
    return 0;
}

static int parse_offsets(const struct safetensors *st, struct safetensors_tensor *t,
                         const json_t *v, struct err *err)
{
    const json_t *b = json_array_get(v, 0), *e = json_array_get(v, 1);

    if (!json_is_array(v) || json_array_size(v) != 2 || !json_is_integer(b) ||
        !json_is_integer(e) || json_integer_value(b) < 0 || json_integer_value(e) < 0)
        return err_set(err, ERR_PARSE, "%s: tensor %s: data_offsets is not [begin, end]", st->where,
                       t->name);
    t->begin = (size_t)json_integer_value(b);
    t->end = (size_t)json_integer_value(e);
    if (t->begin > t->end)
        return err_set(err, ERR_PARSE, "%s: tensor %s: data_offsets [%zu, %zu] run backwards",
                       st->where, t->name, t->begin, t->end);
    if (t->end - t->begin != t->bytes)
        return err_set(err, ERR_PARSE,
                       "%s: tensor %s: data_offsets [%zu, %zu] hold %zu bytes, its shape and %s "
                       "need %zu",
                       st->where, t->name, t->begin, t->end, t->end - t->begin, t->dtype_name,
                       t->bytes);
    if (t->end > st->data_bytes)
        return err_set(err, ERR_PARSE,
                       "%s: tensor %s: ends at byte %zu of the data, the file has %zu: truncated?",
                       st->where, t->name, t->end, st->data_bytes);
    t->data = st->data + t->begin;
    return 0;
}

static int parse_tensor(struct safetensors *st, const char *name, const json_t *v, struct err *err)
{
    struct safetensors_tensor *t = &st->tensors[st->n_tensors];
    size_t len = strlen(name);
    int rc, bits = 0;

    if (len > MAX_NAME_BYTES)
        return err_set(err, ERR_PARSE, "%s: tensor %.60s...: name of %zu bytes, want at most %d",
                       st->where, name, len, MAX_NAME_BYTES);
    t->name = arena_strndup(&st->arena, name, len);
    if (!t->name)
        return err_set(err, ERR_NO_ROOM, "%s: out of memory", st->where);
    if (!json_is_object(v))
        return err_set(err, ERR_PARSE, "%s: tensor %s: its entry is not an object", st->where,
                       name);
    rc = parse_dtype(st, t, json_object_get(v, "dtype"), &bits, err);
    if (rc == 0)
        rc = parse_shape(st, t, json_object_get(v, "shape"), bits, err);
    if (rc == 0)
        rc = parse_offsets(st, t, json_object_get(v, "data_offsets"), err);
    if (rc == 0)
        st->n_tensors++;
    return rc;
}

static int by_offset(const void *a, const void *b)
{
    const struct safetensors_tensor *x = a, *y = b;

    if (x->begin != y->begin)
        return x->begin < y->begin ? -1 : 1;
    if (x->end != y->end)
        return x->end < y->end ? -1 : 1;
    return strcmp(x->name, y->name);
}

/* The ranges must follow one another from the first byte to the last: no gap, no overlap. */
static int check_coverage(const struct safetensors *st, struct err *err)
{
    size_t at = 0;

    for (size_t i = 0; i < st->n_tensors; i++) {
        const struct safetensors_tensor *t = &st->tensors[i];

        if (t->begin != at)
            return err_set(err, ERR_PARSE, "%s: tensor %s: begins at byte %zu, want %zu: %s",
                           st->where, t->name, t->begin, at,
                           t->begin < at ? "it overlaps its predecessor"
                                         : "a gap that no tensor covers");
        at = t->end;
    }
    if (at != st->data_bytes)
        return err_set(err, ERR_PARSE, "%s: %zu bytes behind the last tensor %s", st->where,
                       st->data_bytes - at,
                       st->n_tensors ? st->tensors[st->n_tensors - 1].name : "(there is none)");
    return 0;
}

static int parse_header(struct safetensors *st, const json_t *header, struct err *err)
{
    const char *name;
    json_t *v;
    int rc;

    if (!json_is_object(header))
        return err_set(err, ERR_PARSE, "%s: the header is not a JSON object", st->where);
    st->tensors = arena_array(&st->arena, json_object_size(header) + 1, sizeof(*st->tensors));
    if (!st->tensors)
        return err_set(err, ERR_NO_ROOM, "%s: out of memory", st->where);
    json_object_foreach((json_t *)header, name, v)
    {
        if (strcmp(name, "__metadata__") == 0)
            continue;
        rc = parse_tensor(st, name, v, err);
        if (rc < 0)
            return rc;
    }
    qsort(st->tensors, st->n_tensors, sizeof(*st->tensors), by_offset);
    for (size_t i = 0; i < st->n_tensors; i++) {
        const char *key = st->tensors[i].name;

        if (strmap_put(&st->by_name, key, strlen(key), (int64_t)i) < 0)
            return err_set(err, ERR_NO_ROOM, "%s: out of memory", st->where);
    }
    return check_coverage(st, err);
}

static int parse(struct safetensors *st, const unsigned char *file, size_t len, struct err *err)
{
    json_error_t at;
    json_t *header;
    uint64_t n = 0;
    int rc;

    if (len < PREFIX_BYTES)
        return err_set(err, ERR_PARSE, "%s: %zu bytes, too short for a header length", st->where,
                       len);
    for (int i = PREFIX_BYTES - 1; i >= 0; i--)
        n = n << 8 | file[i];
    if (n > MAX_HEADER_BYTES)
        return err_set(err, ERR_PARSE, "%s: header of %llu bytes, want at most %d", st->where,
                       (unsigned long long)n, MAX_HEADER_BYTES);
    if (n > len - PREFIX_BYTES)
        return err_set(err, ERR_PARSE,
                       "%s: header of %llu bytes, the file has %zu behind the "
                       "length: truncated?",
                       st->where, (unsigned long long)n, len - PREFIX_BYTES);
    st->data = file + PREFIX_BYTES + n;
    st->data_bytes = len - PREFIX_BYTES - n;
    header = json_loadb((const char *)file + PREFIX_BYTES, n, JSON_REJECT_DUPLICATES, &at);
    if (!header)
        return err_set(err,
                       json_error_code(&at) == json_error_out_of_memory ? ERR_NO_ROOM : ERR_PARSE,
                       "%s: header at byte %d: %s", st->where, at.position, at.text);
    rc = parse_header(st, header, err);
    json_decref(header);
    return rc;
}

static struct safetensors *new_file(const char *where, size_t len)
{
    struct safetensors *st = calloc(1, sizeof(*st));

    if (!st)
        return NULL;
    strmap_init(&st->by_name);
    /* Names and entries come from the header, so they are bounded by a multiple of its bytes. */
    arena_init(&st->arena, (len < MAX_HEADER_BYTES ? len : MAX_HEADER_BYTES) * 64 + 65536, 0);
    st->where = arena_strndup(&st->arena, where, strlen(where));
    if (!st->where) {
        safetensors_close(st);
        return NULL;
    }
    return st;
}

int safetensors_parse(struct safetensors **out, const void *data, size_t len, const char *where,
                      struct err *err)
{
    struct safetensors *st = new_file(where, len);
    int rc;

    if (!st)
        return err_set(err, ERR_NO_ROOM, "%s: out of memory", where);
    rc = parse(st, data, len, err);
    if (rc == 0) {
        *out = st;
        st = NULL; /* the caller owns it now */
    }
    safetensors_close(st);
    return rc;
}

int safetensors_open(struct safetensors **out, const char *path, struct err *err)
{
    struct file_map map;
    int rc;

    rc = file_map_open(&map, path, err);
    if (rc < 0)
        return rc;
    rc = safetensors_parse(out, map.data, map.len, path, err);
    if (rc < 0) {
        file_map_close(&map);
        return rc;
    }
    (*out)->map = map;
    if (map.len)
        madvise((void *)map.data, map.len, MADV_SEQUENTIAL);
    return 0;
}

void safetensors_close(struct safetensors *st)
{
    if (!st)
        return;
    strmap_release(&st->by_name);
    file_map_close(&st->map);
    arena_release(&st->arena);
    free(st);
}

size_t safetensors_count(const struct safetensors *st)
{
    return st->n_tensors;
}

const struct safetensors_tensor *safetensors_at(const struct safetensors *st, size_t i)
{
    return &st->tensors[i];
}

const struct safetensors_tensor *safetensors_find(const struct safetensors *st, const char *name)
{
    int64_t i;

    return strmap_get(&st->by_name, name, strlen(name), &i) ? &st->tensors[i] : NULL;
}

void safetensors_prefetch(const struct safetensors *st, const struct safetensors_tensor *t)
{
    uintptr_t page = (uintptr_t)sysconf(_SC_PAGESIZE);
    uintptr_t lo = (uintptr_t)t->data & ~(page - 1), hi = (uintptr_t)t->data + t->bytes;

    if (st->map.len && t->bytes)
        madvise((void *)lo, hi - lo, MADV_WILLNEED);
}
