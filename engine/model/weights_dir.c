/*
 * weights_dir - the safetensors of one model directory. See weights_dir.h.
 *
 * The index is hostile like any file: a shard is a plain file name ending in .safetensors, so that
 * it cannot point out of the directory, and a tensor must be where the index says it is.
 */
#include "engine/model/weights_dir.h"

#include "base/err.h"
#include "base/hashmap.h"
#include "base/json_file.h"
#include "engine/model/json_fields.h"
#include "engine/model/safetensors.h"

#include <dirent.h>
#include <limits.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#define SINGLE_NAME     "model.safetensors"
#define INDEX_NAME      "model.safetensors.index.json"
#define MAX_INDEX_BYTES (64u << 20) /* the largest published index has 10 MB */
#define MAX_SHARDS      1024

struct shard {
    struct safetensors *st;
    char *path;
    char *name; /* behind the last slash of path */
};

struct entry {
    const struct safetensors_tensor *tensor;
    int shard_idx;
};

struct weights_dir {
    struct shard shards[MAX_SHARDS];
    int n_shards;
    struct entry *entries; /* [n_entries] */
    size_t n_entries;
    struct strmap by_name;
};

static bool ends_with(const char *s, const char *end)
{
    size_t n = strlen(s), m = strlen(end);

    return n >= m && strcmp(s + n - m, end) == 0;
}

/* Says what a directory without safetensors has instead. */
static int refuse_dir(const char *dir, struct err *err)
{
    char bin[NAME_MAX + 1] = "", other[NAME_MAX + 1] = "";
    struct dirent *de;
    DIR *d = opendir(dir);

    if (!d)
        return err_set(err, ERR_NOT_FOUND, "%s: not a directory that can be read", dir);
    while ((de = readdir(d))) {
        const char *s = de->d_name;

        if (ends_with(s, ".bin") && strncmp(s, "pytorch_model", 13) == 0)
            snprintf(bin, sizeof(bin), "%s", s);
        else if (ends_with(s, ".gguf") || ends_with(s, ".pth") || ends_with(s, ".pt") ||
                 ends_with(s, ".safetensors") || ends_with(s, ".msgpack") || ends_with(s, ".h5"))
            snprintf(other, sizeof(other), "%s", s);
    }
    closedir(d);
    if (bin[0])
        return err_set(err, ERR_UNSUPPORTED,
                       "%s: the weights are in %s, want %s; tools/convert/to_safetensors.py "
                       "converts them",
                       dir, bin, SINGLE_NAME);
    if (other[0])
        return err_set(err, ERR_UNSUPPORTED, "%s: found %s, want %s or %s", dir, other, SINGLE_NAME,
                       INDEX_NAME);
    return err_set(err, ERR_NOT_FOUND, "%s: no weights: want %s or %s", dir, SINGLE_NAME,
                   INDEX_NAME);
}

static int shard_open(struct weights_dir *wd, const char *dir, const char *name, struct err *err)
{
    struct shard *s = &wd->shards[wd->n_shards];
    size_t size = strlen(dir) + strlen(name) + 2;

    if (wd->n_shards == MAX_SHARDS)
        return err_set(err, ERR_PARSE, "%s/%s: more than %d shards", dir, INDEX_NAME, MAX_SHARDS);
    s->path = malloc(size);
    if (!s->path)
        return err_set(err, ERR_NO_ROOM, "%s: out of memory", dir);
    wd->n_shards++;
    snprintf(s->path, size, "%s/%s", dir, name);
    s->name = s->path + strlen(dir) + 1;
    return safetensors_open(&s->st, s->path, err);
}

static int entry_add(struct weights_dir *wd, const struct safetensors_tensor *t, int shard_idx,
                     struct err *err)
{
    struct entry *e = &wd->entries[wd->n_entries];

    e->tensor = t;
    e->shard_idx = shard_idx;
    if (strmap_put(&wd->by_name, t->name, strlen(t->name), (int64_t)wd->n_entries) < 0)
        return err_set(err, ERR_NO_ROOM, "tensor %s: out of memory", t->name);
    wd->n_entries++;
    return 0;
}

static int open_single(struct weights_dir *wd, const char *dir, struct err *err)
{
    int rc = shard_open(wd, dir, SINGLE_NAME, err);
    size_t n;

    if (rc < 0)
        return rc;
    n = safetensors_count(wd->shards[0].st);
    wd->entries = calloc(n + 1, sizeof(*wd->entries));
    if (!wd->entries)
        return err_set(err, ERR_NO_ROOM, "%s: out of memory", dir);
    for (size_t i = 0; i < n && rc == 0; i++)
        rc = entry_add(wd, safetensors_at(wd->shards[0].st, i), 0, err);
    return rc;
}

/* Finds or opens the shard that the index names for a tensor. */
static int shard_of(struct weights_dir *wd, const char *dir, const char *tensor,
                    const json_t *value, int *shard_idx, struct err *err)
{
    const char *name = json_string_value(value);
    char found[64];
    int rc;

    if (!name || !ends_with(name, ".safetensors") || strchr(name, '/') || strchr(name, '\\') ||
        name[0] == '.' || strlen(name) > NAME_MAX) {
        json_describe(found, sizeof(found), value);
        return err_set(err, ERR_PARSE,
                       "%s/%s: tensor %.100s: file is %s, want a plain name ending in .safetensors",
                       dir, INDEX_NAME, tensor, found);
    }
    for (int i = wd->n_shards - 1; i >= 0; i--) {
        if (strcmp(wd->shards[i].name, name) == 0) {
            *shard_idx = i;
            return 0;
        }
    }
    rc = shard_open(wd, dir, name, err);
    *shard_idx = wd->n_shards - 1;
    return rc;
}

static int read_weight_map(struct weights_dir *wd, const char *dir, const json_t *index,
                           struct err *err)
{
    json_t *map = json_object_get(index, "weight_map"), *value;
    const char *name;

    if (!json_is_object(map))
        return err_set(err, ERR_PARSE, "%s/%s: weight_map is missing", dir, INDEX_NAME);
    wd->entries = calloc(json_object_size(map) + 1, sizeof(*wd->entries));
    if (!wd->entries)
        return err_set(err, ERR_NO_ROOM, "%s: out of memory", dir);
    json_object_foreach(map, name, value)
    {
        const struct safetensors_tensor *t;
        int shard_idx = 0, rc;

        rc = shard_of(wd, dir, name, value, &shard_idx, err);
        if (rc < 0)
            return rc;
        t = safetensors_find(wd->shards[shard_idx].st, name);
        if (!t)
            return err_set(err, ERR_PARSE, "%s: tensor %.100s: not in this file, where %s has it",
                           wd->shards[shard_idx].path, name, INDEX_NAME);
        rc = entry_add(wd, t, shard_idx, err);
        if (rc < 0)
            return rc;
    }
    return 0;
}

static int open_sharded(struct weights_dir *wd, const char *dir, const char *index_path,
                        struct err *err)
{
    json_t *index = NULL;
    int rc;

    rc = json_file_load(&index, index_path, MAX_INDEX_BYTES, err);
    if (rc == 0)
        rc = read_weight_map(wd, dir, index, err);
    json_decref(index);
    return rc;
}

int weights_dir_open(struct weights_dir **out, const char *dir, struct err *err)
{
    struct weights_dir *wd = NULL;
    char path[PATH_MAX];
    int rc;

    if (strlen(dir) + NAME_MAX + 2 > sizeof(path))
        return err_set(err, ERR_INVALID, "model dir: path of %zu bytes is too long", strlen(dir));
    wd = calloc(1, sizeof(*wd));
    if (!wd)
        return err_set(err, ERR_NO_ROOM, "%s: out of memory", dir);
    strmap_init(&wd->by_name);
    /* The single file goes first where a directory has both, as transformers does it. */
    snprintf(path, sizeof(path), "%s/%s", dir, SINGLE_NAME);
    if (access(path, F_OK) == 0) {
        rc = open_single(wd, dir, err);
    } else {
        snprintf(path, sizeof(path), "%s/%s", dir, INDEX_NAME);
        if (access(path, F_OK) == 0)
            rc = open_sharded(wd, dir, path, err);
        else
            rc = refuse_dir(dir, err);
    }
    if (rc == 0) {
        *out = wd;
        wd = NULL; /* the caller owns it now */
    }
    weights_dir_close(wd);
    return rc;
}

void weights_dir_close(struct weights_dir *wd)
{
    if (!wd)
        return;
    for (int i = 0; i < wd->n_shards; i++) {
        safetensors_close(wd->shards[i].st);
        free(wd->shards[i].path);
    }
    strmap_release(&wd->by_name);
    free(wd->entries);
    free(wd);
}

static const struct entry *find_entry(const struct weights_dir *wd, const char *name)
{
    int64_t i;

    return strmap_get(&wd->by_name, name, strlen(name), &i) ? &wd->entries[i] : NULL;
}

const struct safetensors_tensor *weights_dir_find(const struct weights_dir *wd, const char *name)
{
    const struct entry *e = find_entry(wd, name);

    return e ? e->tensor : NULL;
}

size_t weights_dir_count(const struct weights_dir *wd)
{
    return wd->n_entries;
}

const struct safetensors_tensor *weights_dir_at(const struct weights_dir *wd, size_t i)
{
    return wd->entries[i].tensor;
}

const char *weights_dir_file_of(const struct weights_dir *wd, const struct safetensors_tensor *t)
{
    return wd->shards[find_entry(wd, t->name)->shard_idx].path;
}

void weights_dir_prefetch(const struct weights_dir *wd, const struct safetensors_tensor *t)
{
    safetensors_prefetch(wd->shards[find_entry(wd, t->name)->shard_idx].st, t);
}
