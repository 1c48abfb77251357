/*
 * Ids and texts against what the `tokenizers` package gave: tests/golden/tokenizer_golden.py.
 */
#include "base/err.h"
#include "base/file_map.h"
#include "base/strbuf.h"
#include "engine/tokenizer/detok.h"
#include "engine/tokenizer/tokenizer.h"
#include "tests/lib/test.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define DECODE_GROUP 32

static const char *const tokenizers[] = {
    "tests/fixtures/tokenizers/gpt2",           "tests/fixtures/tokenizers/gpt-neox-20b",
    "tests/fixtures/tokenizers/llama2-prepend", "models/demo-llama",
    "tests/fixtures/tokenizers/llama2-first",   "tests/fixtures/tokenizers/llama2-always",
    "tests/fixtures/tokenizers/llama3",         "tests/fixtures/tokenizers/qwen2",
    "tests/fixtures/tokenizers/tekken",         "tests/fixtures/tokenizers/o200k",
    "tests/fixtures/tokenizers/cl100k",         "tests/fixtures/tokenizers/kimi",
    "tests/fixtures/tokenizers/deepseek",       "tests/fixtures/tokenizers/starcoder",
    "tests/fixtures/tokenizers/oniguruma",      "tests/fixtures/tokenizers/roberta",
    "tests/fixtures/tokenizers/flags",          "tests/fixtures/tokenizers/suffix",
    "tests/fixtures/tokenizers/prefix",         "tests/fixtures/tokenizers/splits",
};
#define N_TOKENIZERS ((int)(sizeof(tokenizers) / sizeof(tokenizers[0])))

static uint32_t fnv(uint32_t h, const void *data, size_t len)
{
    const unsigned char *p = data;

    for (size_t i = 0; i < len; i++)
        h = (h ^ p[i]) * 16777619u;
    return h;
}

static void map(struct file_map *m, const char *relative)
{
    struct err err = {0};

    ck_assert_msg(file_map_open(m, test_path(relative), &err) == 0, "%s", err.msg);
}

struct golden {
    struct file_map lines, hashes;
    size_t at;         /* into lines */
    const uint32_t *h; /* group, then the hashes */
};

/* The next line; false at the end. */
static bool next_line(struct golden *g, const char **text, size_t *len)
{
    const unsigned char *p = g->lines.data + g->at;

    if (g->at == g->lines.len)
        return false;
    *len = (size_t)p[0] | (size_t)p[1] << 8;
    *text = (const char *)p + 2;
    g->at += 2 + *len;
    return true;
}

/* Pushes ids one by one: each piece must be whole characters, all of them the decoded text. */
static void check_stream(const struct tokenizer *t, const struct token_ids *ids,
                         const struct strbuf *whole)
{
    struct strbuf text = STRBUF_INIT;
    struct detok d;

    detok_init(&d, t, true, true);
    for (size_t i = 0; i < ids->n; i++) {
        size_t before = text.len;

        detok_push(&d, ids->ids[i], &text);
        ck_assert(text.len == before || ((unsigned char)text.buf[before] & 0xc0) != 0x80);
    }
    detok_finish(&d, &text);
    ck_assert_uint_eq(text.len, whole->len);
    ck_assert_mem_eq(text.buf, whole->buf, whole->len);
    detok_release(&d);
    strbuf_release(&text);
}

/* All lines encode and decode as the package has it, and streaming equals the whole decode. */
START_TEST(tokenizer__equals_the_reference)
{
    const char *dir = tokenizers[_i];
    const char *name = strrchr(dir, '/') + 1;
    struct err err = {0};
    struct golden g = {0};
    struct tokenizer *t = NULL;
    struct token_ids ids = {0};
    struct strbuf decoded = STRBUF_INIT;
    char path[256];
    const char *text;
    size_t len, n = 0, n_groups, n_bad = 0, first_bad = 0;
    uint32_t h_ids = 2166136261u, h_text = 2166136261u;

    snprintf(path, sizeof(path), "%s/tokenizer.json", dir);
    ck_assert_msg(tokenizer_open(&t, test_path(path), &err) == 0, "%s", err.msg);
    map(&g.lines, "tests/golden/tokenizer_lines.bin");
    snprintf(path, sizeof(path), "tests/golden/tokenizer_%s.hash", name);
    map(&g.hashes, path);
    g.h = (const uint32_t *)(const void *)g.hashes.data;
    n_groups = g.hashes.len / 4 - 1;
    while (next_line(&g, &text, &len)) {
        uint32_t count;

        ids.n = 0;
        ck_assert_msg(tokenizer_encode(t, text, len, true, true, &ids, &err) == 0, "%s", err.msg);
        count = (uint32_t)ids.n;
        h_ids = fnv(fnv(h_ids, &count, 4), ids.ids, ids.n * 4);
        strbuf_reset(&decoded);
        ck_assert_int_eq(tokenizer_decode(t, ids.ids, ids.n, true, &decoded), 0);
        count = (uint32_t)decoded.len;
        h_text = fnv(fnv(h_text, &count, 4), decoded.buf, decoded.len);
        if (n % 8 == 0)
            check_stream(t, &ids, &decoded);
        n++;
        if (n % g.h[0] == 0) {
            if (h_ids != g.h[n / g.h[0]] && n_bad++ == 0)
                first_bad = n - 1;
            h_ids = 2166136261u;
        }
        if (n % DECODE_GROUP == 0) {
            if (h_text != g.h[1 + n_groups - 20480 / DECODE_GROUP + n / DECODE_GROUP - 1] &&
                n_bad++ == 0)
                first_bad = n - 1;
            h_text = 2166136261u;
        }
    }
    ck_assert_uint_eq(n, 20480);
    ck_assert_msg(n_bad == 0, "%s: %zu groups differ, the first one ends at line %zu", name, n_bad,
                  first_bad);
    file_map_close(&g.lines);
    file_map_close(&g.hashes);
    strbuf_release(&decoded);
    token_ids_release(&ids);
    tokenizer_free(t);
}
END_TEST

TEST_SUITE(tokenizer_golden)
{
    TCase *tc = test_case(suite, "lines");

    tcase_add_loop_test(tc, tokenizer__equals_the_reference, 0, N_TOKENIZERS);
}
