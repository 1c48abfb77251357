/*
 * fuzz_tokenizer - any tokenizer.json and any text: refused, or encoded, decoded and streamed with
 * the promises kept. An input that begins with a T is a chat template instead, with its messages.
 *
 * Input: the file up to the first NUL, then the text. For templates: T, the template, NUL, JSON.
 */
#include "base/check.h"
#include "base/err.h"
#include "base/strbuf.h"
#include "engine/tokenizer/chat_template.h"
#include "engine/tokenizer/detok.h"
#include "engine/tokenizer/tokenizer.h"

#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

/* Pushing one by one gives whole characters, and all of them what decoding gives. */
static void check_stream(const struct tokenizer *t, const struct token_ids *ids)
{
    struct strbuf whole = STRBUF_INIT, pieces = STRBUF_INIT;
    struct detok d;

    CHECK(tokenizer_decode(t, ids->ids, ids->n, true, &whole) == 0);
    detok_init(&d, t, true, true);
    for (size_t i = 0; i < ids->n; i++) {
        size_t before = pieces.len;

        detok_push(&d, ids->ids[i], &pieces);
        CHECK(pieces.len == before || ((unsigned char)pieces.buf[before] & 0xc0) != 0x80);
    }
    detok_finish(&d, &pieces);
    if (ids->n < DETOK_HOLD_BYTES) {
        CHECK(pieces.len == whole.len);
        CHECK(memcmp(pieces.buf, whole.buf, whole.len) == 0);
    }
    detok_release(&d);
    strbuf_release(&whole);
    strbuf_release(&pieces);
}

static void run_tokenizer(const char *json, size_t json_len, const char *text, size_t len)
{
    struct tokenizer *t = NULL;
    struct token_ids ids = {0};
    struct err err = {0};

    if (tokenizer_open_text(&t, json, json_len, "input", &err) < 0) {
        CHECK(t == NULL);
        CHECK(err.msg[0] != '\0');
        return;
    }
    for (int mode = 0; mode < 4; mode++) {
        ids.n = 0;
        if (tokenizer_encode(t, text, len, mode & 1, mode & 2, &ids, &err) < 0) {
            CHECK(ids.n == 0);
            continue;
        }
        for (size_t i = 0; i < ids.n; i++)
            CHECK(ids.ids[i] >= 0 && ids.ids[i] < tokenizer_n_ids(t));
        check_stream(t, &ids);
    }
    token_ids_release(&ids);
    tokenizer_free(t);
}

static void run_template(const char *source, size_t source_len, const char *json, size_t len)
{
    struct chat_template *ct = NULL;
    struct chat_prompt p = {0};
    struct err err = {0};
    json_t *messages = json_loadb(json, len, 0, NULL);
    size_t at = 0;

    if (messages && chat_template_new(&ct, source, source_len, NULL, &err) == 0 &&
        chat_template_render(ct, &(struct chat_args){.messages = messages}, &p, &err) == 0) {
        for (size_t i = 0; i < p.n_segments; i++) {
            CHECK(p.segments[i].at == at);
            at += p.segments[i].len;
        }
        CHECK(at == p.len);
    }
    chat_prompt_release(&p);
    chat_template_free(ct);
    json_decref(messages);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    const char *first = (const char *)data;
    const char *nul = size ? memchr(first, 0, size) : NULL;
    size_t n = nul ? (size_t)(nul - first) : size;
    const char *rest = nul ? nul + 1 : first + size;
    size_t n_rest = nul ? size - n - 1 : 0;

    if (n && first[0] == 'T')
        run_template(first + 1, n - 1, rest, n_rest);
    else
        run_tokenizer(first, n, rest, n_rest);
    return 0;
}
