/*
 * engine_tokenize_cli - a tokenizer by itself, for `spand tokenize`.
 *
 * Unlike the server it obeys the file's truncation and padding, since it exists to be compared with
 * the `tokenizers` library, which does.
 */
#include "engine/engine.h"

#include "engine/tokenizer/tokenizer.h"

/* The struct exists only as a name: server/ may not see struct tokenizer. */
static const struct tokenizer *inner(const struct engine_tokenizer *t)
{
    return (const struct tokenizer *)t;
}

int engine_tokenizer_open(struct engine_tokenizer **out, const char *path, struct err *err)
{
    struct tokenizer *t;
    int rc = tokenizer_open(&t, path, err);

    if (rc == 0)
        *out = (struct engine_tokenizer *)t;
    return rc;
}

int engine_tokenizer_encode(const struct engine_tokenizer *t, const char *text, size_t len,
                            bool add_special, int32_t **ids, int *n_ids, struct err *err)
{
    struct token_ids v;
    int rc;

    token_ids_init(&v);
    rc = tokenizer_encode(inner(t), text, len, add_special, true, &v, err);
    if (rc == 0)
        rc = tokenizer_file_limits(inner(t), add_special, &v, err);
    if (rc < 0) {
        token_ids_release(&v);
        return rc;
    }
    *ids = v.ids; /* malloc'ed, or NULL when there are none */
    *n_ids = (int)v.n;
    return 0;
}

void engine_tokenizer_close(struct engine_tokenizer *t)
{
    tokenizer_free((struct tokenizer *)t);
}
