/*
 * weights_dir - the safetensors of one model directory: a single model.safetensors, or the shards
 * that model.safetensors.index.json lists. Immutable after open; tensors are borrowed from it.
 */
#ifndef WEIGHTS_DIR_H
#define WEIGHTS_DIR_H

#include <stddef.h>

struct err;
struct safetensors_tensor;
struct weights_dir;

/*
 * Maps all files. A directory without safetensors is refused with ERR_UNSUPPORTED by the name of
 * what it has instead (pytorch_model.bin, a GGUF file, ...), or with ERR_NOT_FOUND.
 */
int weights_dir_open(struct weights_dir **out, const char *dir, struct err *err);
void weights_dir_close(struct weights_dir *wd);

/* NULL when there is no such tensor. */
const struct safetensors_tensor *weights_dir_find(const struct weights_dir *wd, const char *name);

size_t weights_dir_count(const struct weights_dir *wd);
const struct safetensors_tensor *weights_dir_at(const struct weights_dir *wd, size_t i);

/* The path of the file that holds t, which must be one of wd's. Borrowed. */
const char *weights_dir_file_of(const struct weights_dir *wd, const struct safetensors_tensor *t);

/* Asks the system to read the tensor's pages ahead. */
void weights_dir_prefetch(const struct weights_dir *wd, const struct safetensors_tensor *t);

#endif
