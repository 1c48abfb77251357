/*
 * model_dir - which files of a model directory are there, and what to say when they are not. See
 * model.h.
 */
#include "base/err.h"
#include "engine/model/model_config.h"
#include "engine/model/weights_dir.h"

#include <stdio.h>
#include <unistd.h>

static bool has_file(char *path, size_t size, const char *dir, const char *name)
{
    return snprintf(path, size, "%s/%s", dir, name) < (int)size && access(path, F_OK) == 0;
}

int model_tokenizer_path(char *path, size_t size, const char *dir, struct err *err)
{
    static const struct {
        const char *name, *hint;
    } others[] = {
        {"tokenizer.model", "tools/convert/to_safetensors.py converts it"},
        {"tekken.json", "the Hugging Face form of the model has one"},
        {"vocab.json", "save it with a fast tokenizer of transformers"},
        {"spiece.model", "only BPE is served"},
    };
    struct weights_dir *weights = NULL;
    struct err other_kind = {0};

    if (has_file(path, size, dir, "tokenizer.json"))
        return 0;
    for (size_t i = 0; i < sizeof(others) / sizeof(others[0]); i++) {
        if (has_file(path, size, dir, others[i].name))
            return err_set(err, ERR_UNSUPPORTED,
                           "model dir %s: the tokenizer is in %s, want tokenizer.json; %s", dir,
                           others[i].name, others[i].hint);
    }
    /* A directory of another kind lacks this file too; its kind is what must be said. */
    if (weights_dir_open(&weights, dir, &other_kind) == ERR_UNSUPPORTED)
        return err_set(err, ERR_UNSUPPORTED, "%s", other_kind.msg);
    weights_dir_close(weights);
    return err_set(err, ERR_NOT_FOUND, "model dir %s: no tokenizer.json", dir);
}
