/*
 * templates - published chat templates against what transformers renders of them.
 *
 *     templates EXPECTED.json [DIR]     EXPECTED.json comes from tests/golden/chat_templates.py
 *
 * One line a template, and both texts where they differ. What transformers refuses must be refused.
 */
#include "base/err.h"
#include "base/file_map.h"
#include "base/json_file.h"
#include "engine/tokenizer/chat_template.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define MAX_BYTES (64u << 20)

struct score {
    int n, n_equal, n_refused;
};

static void show(const char *file, const char *conversation, const char *what, const char *text)
{
    printf("%s, %s, %s:\n%s\n", file, conversation, what, text);
}

static void compare(const struct chat_template *ct, const char *file, const json_t *conversation,
                    const json_t *want, int64_t now, struct score *score)
{
    const char *name = json_string_value(json_object_get(conversation, "name"));
    const json_t *tools = json_object_get(conversation, "tools");
    struct chat_args args = {.messages = json_object_get(conversation, "messages"),
                             .tools = json_is_null(tools) ? NULL : tools,
                             .add_generation_prompt =
                                 json_is_true(json_object_get(conversation, "generate")),
                             .now_unix = now};
    struct chat_prompt p = {0};
    struct err err = {0};
    int rc = chat_template_render(ct, &args, &p, &err);

    score->n++;
    if (json_is_null(want) && rc < 0) {
        score->n_equal++;
        score->n_refused++;
    } else if (json_is_null(want)) {
        show(file, name, "want a refusal, got", p.text);
    } else if (rc < 0) {
        show(file, name, "want a text, got the error", err.msg);
    } else if (json_string_length(want) == p.len &&
               !memcmp(json_string_value(want), p.text, p.len)) {
        score->n_equal++;
    } else {
        show(file, name, "want", json_string_value(want));
        show(file, name, "got", p.text);
    }
    chat_prompt_release(&p);
}

static int run_template(const json_t *all, const char *dir, const char *file, const json_t *texts,
                        struct score *total)
{
    const json_t *conversations = json_object_get(all, "conversations");
    struct chat_template *ct = NULL;
    struct score score = {0};
    struct err err = {0};
    char path[4096], *source = NULL;
    size_t len;
    int rc;

    snprintf(path, sizeof(path), "%s/%s", dir, file);
    rc = file_read_text(&source, &len, path, MAX_BYTES, &err);
    if (rc == 0)
        rc = chat_template_new(&ct, source, len, json_object_get(all, "tokens"), &err);
    if (rc < 0)
        printf("%s: %s\n", file, err.msg);
    for (size_t i = 0; i < json_array_size(conversations) && ct; i++)
        compare(ct, file, json_array_get(conversations, i), json_array_get(texts, i),
                json_integer_value(json_object_get(all, "now")), &score);
    if (!ct)
        score.n = (int)json_array_size(conversations);
    printf("%-30s %d of %d identical, %d of them refused by both\n", file, score.n_equal, score.n,
           score.n_refused);
    total->n += score.n;
    total->n_equal += score.n_equal;
    total->n_refused += score.n_refused;
    chat_template_free(ct);
    free(source);
    return rc;
}

int main(int argc, char **argv)
{
    const char *dir = argc > 2 ? argv[2] : "tests/fixtures/chat_templates";
    struct score total = {0};
    struct err err = {0};
    json_t *all = NULL, *texts;
    const char *file;

    if (argc < 2 || argc > 3) {
        fprintf(stderr, "usage: templates EXPECTED.json [DIR]\n");
        return 2;
    }
    setenv("TZ", "UTC", 1); /* as the expected dates are */
    if (json_file_load(&all, argv[1], MAX_BYTES, &err) < 0) {
        fprintf(stderr, "templates: %s\n", err.msg);
        return 1;
    }
    json_object_foreach(json_object_get(all, "templates"), file, texts)
        run_template(all, dir, file, texts, &total);
    printf("templates: %d of %d identical: %d texts, %d refused by both\n", total.n_equal, total.n,
           total.n_equal - total.n_refused, total.n_refused);
    json_decref(all);
    return total.n > 0 && total.n_equal == total.n ? 0 : 1;
}
