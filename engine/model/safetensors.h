/*
 * safetensors - one checkpoint file: named tensors in a mapped file, every claim of it checked.
 *
 *     u64 LE n | JSON header, n bytes | tensor data
 *
 * The header maps a name to {"dtype", "shape", "data_offsets": [begin, end)}, offsets counted from
 * the first byte behind the header. After a successful open: shape times element size is the
 * range's length for each tensor, and the ranges cover the data without gap or overlap. What a
 * tensor's name or shape should be is the caller's business. Immutable, so any thread may read.
 */
#ifndef SAFETENSORS_H
#define SAFETENSORS_H

#include "base/dtype.h"

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

struct err;
struct safetensors;

#define SAFETENSORS_MAX_DIMS 8 /* decoders have at most 2; more is bounded, not forbidden */

struct safetensors_tensor {
    const char *name;       /* borrowed from the file, as are the others */
    const char *dtype_name; /* "BF16", "F32", "I64", ... */
    bool is_weight;         /* F32, BF16 or F16: dtype is set */
    enum dtype dtype;
    int n_dims;
    int64_t shape[SAFETENSORS_MAX_DIMS]; /* [n_dims] */
    size_t begin, end;                   /* private: offsets in the data */
    const void *data;                    /* as aligned as the file has it */
    size_t bytes;
};

/*
 * Maps and checks the file. Messages name the file and, where there is one, the tensor.
 * ERR_NOT_FOUND, ERR_IO from the system; ERR_PARSE for everything that the format forbids.
 */
int safetensors_open(struct safetensors **out, const char *path, struct err *err);
void safetensors_close(struct safetensors *st);

size_t safetensors_count(const struct safetensors *st);
const struct safetensors_tensor *safetensors_at(const struct safetensors *st, size_t i);

/* NULL when the file has no such tensor. */
const struct safetensors_tensor *safetensors_find(const struct safetensors *st, const char *name);

/* Asks the system to read the tensor's pages ahead. A hint: errors are of no interest. */
void safetensors_prefetch(const struct safetensors *st, const struct safetensors_tensor *t);

/* Parses a file that is already in memory; data must outlive st. `where` is for messages. */
int safetensors_parse(struct safetensors **out, const void *data, size_t len, const char *where,
                      struct err *err);

#endif
