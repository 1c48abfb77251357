/*
 * chat_template - messages in, prompt text out. See chat_template.h.
 */
#include "engine/tokenizer/chat_template.h"

#include "base/err.h"
#include "base/file_map.h"
#include "base/json_file.h"
#include "base/strbuf.h"
#include "engine/tokenizer/jinja.h"
#include "engine/tokenizer/tokenizer.h"
#include "engine/tokenizer/utf8.h"

#include <stdlib.h>
#include <string.h>

#define MAX_TEMPLATE_BYTES (1u << 20)  /* the longest published one has 30 KB */
#define MAX_TREE_BYTES     (64u << 20) /* a node has 200 bytes, a token at least one */
#define MAX_CONFIG_BYTES   (64u << 20)

struct chat_template {
    struct arena arena; /* owns the tree */
    const struct jinja_node *root;
    const char *source;
    json_t *tokens; /* bos_token and its like, as strings */
};

/* Takes the named tokens of a configuration: strings, or objects with a content. */
static int add_tokens(json_t *to, const json_t *config)
{
    static const char suffix[] = "_token";
    const char *key;
    json_t *value;

    json_object_foreach((json_t *)config, key, value)
    {
        size_t len = strlen(key), n = sizeof(suffix) - 1;
        json_t *text = json_is_object(value) ? json_object_get(value, "content") : value;

        if (len > n && strcmp(key + len - n, suffix) == 0 && json_is_string(text) &&
            !json_object_get(to, key) && json_object_set(to, key, text) < 0)
            return ERR_NO_ROOM;
    }
    return 0;
}

int chat_template_new(struct chat_template **out, const char *source, size_t len,
                      const json_t *tokens, struct err *err)
{
    struct chat_template *ct = calloc(1, sizeof(*ct));
    int rc;

    if (!ct)
        return err_set(err, ERR_NO_ROOM, "out of memory");
    arena_init(&ct->arena, MAX_TREE_BYTES, 0);
    ct->tokens = json_object();
    if (!ct->tokens || (tokens && add_tokens(ct->tokens, tokens) < 0)) {
        rc = err_set(err, ERR_NO_ROOM, "out of memory");
        goto out;
    }
    if (len > MAX_TEMPLATE_BYTES || utf8_valid_len(source, len) != len || memchr(source, 0, len)) {
        rc = err_set(err, ERR_PARSE, "chat template: %zu bytes, at most %u of valid UTF-8", len,
                     MAX_TEMPLATE_BYTES);
        goto out;
    }
    ct->source = arena_strndup(&ct->arena, source, len);
    rc = jinja_parse(&ct->root, &ct->arena, source, len, err);
    if (rc < 0)
        goto out;
    *out = ct;
    ct = NULL; /* the caller owns it now */
out:
    chat_template_free(ct);
    return rc;
}

void chat_template_free(struct chat_template *ct)
{
    if (!ct)
        return;
    arena_release(&ct->arena);
    json_decref(ct->tokens);
    free(ct);
}

/* The member chat_template: a string, or a list of {name, template}. Borrowed; NULL: none. */
static const char *template_of(const json_t *config)
{
    const json_t *member = json_object_get(config, "chat_template"), *entry;
    size_t i;

    if (json_is_string(member))
        return json_string_value(member);
    json_array_foreach((json_t *)member, i, entry)
    {
        const char *name = json_string_value(json_object_get(entry, "name"));

        if (name && strcmp(name, "default") == 0)
            return json_string_value(json_object_get(entry, "template"));
    }
    return NULL;
}

static int load_optional(json_t **out, const char *dir, const char *name, struct err *err)
{
    struct strbuf path = STRBUF_INIT;
    struct err here = {0};
    int rc;

    strbuf_addf(&path, "%s/%s", dir, name);
    rc = json_file_load(out, path.buf, MAX_CONFIG_BYTES, &here);
    strbuf_release(&path);
    if (rc == ERR_NOT_FOUND)
        return 0;
    return rc < 0 ? err_set(err, rc, "%s", here.msg) : 0;
}

int chat_template_open(struct chat_template **out, const char *model_dir, struct err *err)
{
    json_t *config = NULL, *map = NULL, *tokens = json_object();
    struct strbuf path = STRBUF_INIT;
    struct err missing = {0};
    char *file = NULL;
    const char *source;
    size_t len = 0;
    int rc;

    rc = load_optional(&config, model_dir, "tokenizer_config.json", err);
    if (rc == 0)
        rc = load_optional(&map, model_dir, "special_tokens_map.json", err);
    if (rc < 0)
        goto out;
    if (!tokens || add_tokens(tokens, config) < 0 || add_tokens(tokens, map) < 0) {
        rc = err_set(err, ERR_NO_ROOM, "out of memory");
        goto out;
    }
    strbuf_addf(&path, "%s/chat_template.jinja", model_dir);
    rc = file_read_text(&file, &len, path.buf, MAX_TEMPLATE_BYTES, &missing);
    source = rc == 0 ? file : template_of(config);
    if (rc < 0 && rc != ERR_NOT_FOUND) {
        rc = err_set(err, rc, "%s", missing.msg);
        goto out;
    }
    if (!source) {
        rc = err_set(err, ERR_NOT_FOUND, "%s: no chat_template", model_dir);
        goto out;
    }
    rc = chat_template_new(out, source, file ? len : strlen(source), tokens, err);
    if (rc < 0)
        err_prefix(err, "%s", model_dir);
out:
    free(file);
    strbuf_release(&path);
    json_decref(config);
    json_decref(map);
    json_decref(tokens);
    return rc;
}

const char *chat_template_source(const struct chat_template *ct)
{
    return ct->source;
}

static void put(struct jinja_run *run, struct jinja_dict *d, const char *name, struct jinja_value v)
{
    jinja_dict_put(run, d, jinja_text(run, name, strlen(name)), v);
}

/* The variables that a template starts with. */
static struct jinja_dict *variables(const struct chat_template *ct, struct jinja_run *run,
                                    const struct chat_args *args)
{
    struct jinja_dict *d = jinja_dict_new(run).dict;
    const char *key;
    json_t *value;

    json_object_foreach(ct->tokens, key, value)
        put(run, d, key, jinja_from_json(run, value, false));
    put(run, d, "messages",
        args->messages ? jinja_from_json(run, args->messages, true)
                       : jinja_list_new(run, JINJA_LIST));
    put(run, d, "tools", args->tools ? jinja_from_json(run, args->tools, true) : jinja_none());
    put(run, d, "documents", jinja_none());
    put(run, d, "add_generation_prompt", jinja_bool(args->add_generation_prompt));
    json_object_foreach((json_t *)args->extra, key, value)
        put(run, d, key, jinja_from_json(run, value, true));
    return d;
}

/* Cuts what was built into stretches by who wrote them. */
static int take_output(const struct jinja_builder *b, struct chat_prompt *out, struct err *err)
{
    size_t n = 0, alloc = 1;

    for (size_t i = 1; i < b->len; i++)
        alloc += b->client[i] != b->client[i - 1];
    out->text = malloc(b->len + 1);
    out->segments = malloc(alloc * sizeof(*out->segments));
    if (!out->text || !out->segments) {
        chat_prompt_release(out);
        return err_set(err, ERR_NO_ROOM, "out of memory");
    }
    if (b->len)
        memcpy(out->text, b->text, b->len);
    out->text[b->len] = '\0';
    out->len = b->len;
    for (size_t i = 0; i < b->len; i++) {
        if (!n || b->client[i] != b->client[i - 1])
            out->segments[n++] = (struct chat_segment){.at = i, .trusted = !b->client[i]};
        out->segments[n - 1].len++;
    }
    out->n_segments = n;
    return 0;
}

int chat_template_render(const struct chat_template *ct, const struct chat_args *args,
                         struct chat_prompt *out, struct err *err)
{
    struct jinja_run run = {.err = err, .now_unix = args->now_unix};
    struct jinja_builder text;
    struct jinja_dict *names;

    *out = (struct chat_prompt){0};
    arena_init(&run.arena, JINJA_MAX_MEMORY, 0);
    jinja_build_init(&text, &run);
    names = variables(ct, &run, args);
    if (run.rc == 0)
        run.rc = jinja_render(ct->root, &run, names, &text);
    if (run.rc == 0)
        run.rc = take_output(&text, out, err);
    arena_release(&run.arena);
    return run.rc;
}

void chat_prompt_release(struct chat_prompt *p)
{
    free(p->text);
    free(p->segments);
    *p = (struct chat_prompt){0};
}

int chat_prompt_encode(const struct chat_prompt *p, const struct tokenizer *t,
                       struct token_ids *out, struct err *err)
{
    struct text_span *client = calloc(p->n_segments + 1, sizeof(*client));
    size_t n = 0;
    int rc;

    if (!client)
        return err_set(err, ERR_NO_ROOM, "out of memory");
    for (size_t i = 0; i < p->n_segments; i++)
        if (!p->segments[i].trusted)
            client[n++] = (struct text_span){p->segments[i].at, p->segments[i].len};
    rc = tokenizer_encode_prompt(t, p->text ? p->text : "", p->len, client, n, out, err);
    free(client);
    return rc;
}
