/*
 * calibration_input - the user's texts. See calibration_input.h.
 */
#include "engine/plan/search/calibration_input.h"

#include "base/err.h"
#include "base/file_map.h"
#include "base/text.h"

#include <jansson.h>
#include <stdlib.h>
#include <string.h>

#define MAX_FILE_BYTES ((size_t)4 << 30)

static int add_text(struct calibration_input *in, int *n_alloc, const json_t *root,
                    const char *path, int line, struct err *err)
{
    const json_t *text = json_object_get(root, "text"), *prompt = json_object_get(root, "prompt");
    const json_t *answer = json_object_get(root, "answer"), *from = prompt ? prompt : text;
    struct calibration_text *t;

    if (!json_is_string(from) || (text && prompt))
        return err_set(err, ERR_PARSE, "%s:%d: want an object with a string \"text\" or \"prompt\"",
                       path, line);
    if (answer && !json_is_string(answer))
        return err_set(err, ERR_PARSE, "%s:%d: \"answer\" is no string", path, line);
    if (json_string_length(from) == 0)
        return err_set(err, ERR_PARSE, "%s:%d: the text is empty", path, line);
    if (in->n_texts == *n_alloc) {
        int n = *n_alloc ? 2 * *n_alloc : 64;

        t = realloc(in->texts, sizeof(*t) * (size_t)n);
        if (!t)
            return err_set(err, ERR_NO_ROOM, "%s: no memory for %d texts", path, n);
        in->texts = t;
        *n_alloc = n;
    }
    t = &in->texts[in->n_texts];
    *t = (struct calibration_text){.text = strdup(json_string_value(from)),
                                   .answer = answer ? strdup(json_string_value(answer)) : NULL,
                                   .len = json_string_length(from),
                                   .is_prompt = prompt != NULL,
                                   .line = line};
    in->n_texts++;
    if (!t->text || (answer && !t->answer))
        return err_set(err, ERR_NO_ROOM, "%s: out of memory", path);
    return 0;
}

static bool is_blank(const char *s, size_t n)
{
    for (size_t i = 0; i < n; i++)
        if (s[i] != ' ' && s[i] != '\t' && s[i] != '\r')
            return false;
    return true;
}

static int parse_lines(struct calibration_input *in, const char *data, size_t len, const char *path,
                       struct err *err)
{
    int n_alloc = 0, rc = 0;
    size_t at = 0;

    for (int line = 1; at < len && rc == 0; line++) {
        const char *nl = memchr(data + at, '\n', len - at);
        size_t n = nl ? (size_t)(nl - data) - at : len - at;
        json_error_t why;
        json_t *root;

        if (!text_is_utf8(data + at, n))
            return err_set(err, ERR_PARSE, "%s:%d: not UTF-8", path, line);
        if (!is_blank(data + at, n)) {
            root = json_loadb(data + at, n, JSON_REJECT_DUPLICATES, &why);
            if (!root)
                return err_set(err, ERR_PARSE, "%s:%d: no JSON object: %s", path, line, why.text);
            rc = add_text(in, &n_alloc, root, path, line, err);
            json_decref(root);
        }
        at += n + 1;
    }
    if (rc == 0 && in->n_texts == 0)
        rc = err_set(err, ERR_INVALID, "%s: holds no texts: want one JSON object a line", path);
    return rc;
}

int calibration_input_parse(struct calibration_input *in, const char *data, size_t len,
                            const char *path, struct err *err)
{
    int rc;

    memset(in, 0, sizeof(*in));
    rc = parse_lines(in, data, len, path, err);
    if (rc < 0)
        calibration_input_release(in);
    return rc;
}

int calibration_input_load(struct calibration_input *in, const char *path, struct err *err)
{
    char *data = NULL;
    size_t len;
    int rc = file_read_text(&data, &len, path, MAX_FILE_BYTES, err);

    memset(in, 0, sizeof(*in));
    if (rc < 0)
        return rc;
    rc = calibration_input_parse(in, data, len, path, err);
    free(data);
    return rc;
}

void calibration_input_release(struct calibration_input *in)
{
    if (!in)
        return;
    for (int i = 0; i < in->n_texts; i++) {
        free(in->texts[i].text);
        free(in->texts[i].answer);
    }
    free(in->texts);
    memset(in, 0, sizeof(*in));
}
