/*
 * block_dir - a golden Block Transformer as a model directory. See block_dir.h.
 */
#include "tests/engine/block_dir.h"

#include "tests/lib/test.h"

#include <limits.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

static void link_file(const char *dir, const char *from, const char *name)
{
    char path[BLOCK_DIR_LEN + 32], relative[512], target[PATH_MAX];

    snprintf(path, sizeof(path), "%s/%s", dir, name);
    snprintf(relative, sizeof(relative), "%s/%s", from, name);
    ck_assert_ptr_nonnull(realpath(relative, target));
    ck_assert_int_eq(symlink(target, path), 0);
}

void block_dir_make(char dir[BLOCK_DIR_LEN], const char *variant)
{
    char from[512];

    strcpy(dir, "/tmp/spand-test-blocks-XXXXXX");
    ck_assert_ptr_nonnull(mkdtemp(dir));
    snprintf(from, sizeof(from), "%s/%s", test_path("tests/golden/block"), variant);
    link_file(dir, from, "config.json");
    link_file(dir, from, "model.safetensors");
    link_file(dir, test_path("tests/fixtures/engine/tiny"), "tokenizer.json");
}

void block_dir_remove(const char *dir)
{
    static const char *const names[] = {"config.json", "model.safetensors", "tokenizer.json"};
    char path[BLOCK_DIR_LEN + 32];

    for (int i = 0; i < 3; i++) {
        snprintf(path, sizeof(path), "%s/%s", dir, names[i]);
        unlink(path);
    }
    rmdir(dir);
}
