/*
 * json_file - a JSON document from a file. See json_file.h.
 */
#include "base/json_file.h"

#include "base/err.h"
#include "base/file_map.h"

#include <stdlib.h>

int json_file_load(json_t **out, const char *path, size_t max_bytes, struct err *err)
{
    json_error_t at;
    json_t *doc;
    char *text;
    size_t len;
    int rc;

    rc = file_read_text(&text, &len, path, max_bytes, err);
    if (rc < 0)
        return rc;
    doc = json_loadb(text, len, JSON_REJECT_DUPLICATES, &at);
    free(text);
    if (!doc) {
        rc = json_error_code(&at) == json_error_out_of_memory ? ERR_NO_ROOM : ERR_PARSE;
        return err_set(err, rc, "%s:%d:%d: %s", path, at.line, at.column, at.text);
    }
    *out = doc;
    return 0;
}
