/*
 * cli_tokenize - `spand tokenize`: one JSON string a line in, one JSON array of ids a line out.
 *
 * Gives what Tokenizer.encode(text).ids of the `tokenizers` library gives, to be compared with it.
 */
#include "server/cli.h"

#include "base/err.h"
#include "base/strbuf.h"
#include "config/config.h"
#include "engine/engine.h"

#include <jansson.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static int tokenize_line(const struct engine_tokenizer *t, const char *line, size_t len,
                         bool add_special, int line_no, struct err *err)
{
    json_error_t je;
    json_t *text = json_loadb(line, len, JSON_DECODE_ANY | JSON_ALLOW_NUL, &je);
    struct strbuf out = STRBUF_INIT;
    int32_t *ids = NULL;
    int n_ids = 0, rc;

    if (!json_is_string(text)) {
        rc = err_set(err, ERR_PARSE, "line %d is not a JSON string: %s", line_no,
                     text ? "another kind of value" : je.text);
        goto out;
    }
    rc = engine_tokenizer_encode(t, json_string_value(text), json_string_length(text), add_special,
                                 &ids, &n_ids, err);
    if (rc < 0)
        goto out;
    strbuf_addch(&out, '[');
    for (int i = 0; i < n_ids; i++)
        strbuf_addf(&out, i ? ",%d" : "%d", ids[i]);
    strbuf_addstr(&out, "]\n");
    fwrite(out.buf, 1, out.len, stdout);
out:
    free(ids);
    strbuf_release(&out);
    json_decref(text);
    return rc;
}

static int tokenize_stdin(const struct engine_tokenizer *t, bool add_special, struct err *err)
{
    char *line = NULL;
    size_t alloc = 0;
    ssize_t len;
    int rc = 0;

    for (int line_no = 1; rc == 0 && (len = getline(&line, &alloc, stdin)) >= 0; line_no++)
        rc = tokenize_line(t, line, (size_t)len, add_special, line_no, err);
    free(line);
    if (rc == 0 && fflush(stdout) != 0)
        rc = err_set(err, ERR_IO, "stdout: cannot write");
    return rc;
}

int cli_tokenize(int argc, char **argv)
{
    const char *path = NULL;
    bool special = true;
    const struct config_extra extras[] = {
        {"tokenizer", CONFIG_PATH, &path, "A tokenizer.json; else the model's.", 0, 0},
        {"special", CONFIG_BOOL, &special, "With BOS and the like (--no-special: without).", 0, 0},
    };
    struct engine_tokenizer *t = NULL;
    struct strbuf model_path = STRBUF_INIT;
    struct config config;
    struct err err = {0};
    int rc;

    if (!cli_configure(&config, "spand tokenize --tokenizer FILE < LINES", argc, argv, extras,
                       sizeof(extras) / sizeof(extras[0]), &rc))
        return rc;
    strbuf_addf(&model_path, "%s/tokenizer.json", config.model);
    if (engine_tokenizer_open(&t, path ? path : model_path.buf, &err) < 0 ||
        tokenize_stdin(t, special, &err) < 0)
        rc = cli_report(&err);
    else
        rc = CLI_OK;
    engine_tokenizer_close(t);
    strbuf_release(&model_path);
    config_release(&config);
    return rc;
}
