/*
 * bench_tokenizer - how fast text becomes ids and ids become text, on one thread.
 *
 *     spand-bench tokenizer TOKENIZER.JSON TEXT
 *
 * CPU time of the best of five runs over the whole file, and over pieces of 2 KB, which is what
 * chat prompts look like.
 */
#include "base/err.h"
#include "base/file_map.h"
#include "base/strbuf.h"
#include "engine/tokenizer/detok.h"
#include "engine/tokenizer/tokenizer.h"

#include <stdio.h>
#include <stdlib.h>
#include <time.h>

#define N_RUNS      5
#define PIECE_BYTES 2048

int bench_tokenizer(int argc, char **argv);

static double cpu_seconds(void)
{
    struct timespec t;

    clock_gettime(CLOCK_THREAD_CPUTIME_ID, &t);
    return (double)t.tv_sec + (double)t.tv_nsec * 1e-9;
}

/* Encodes text in pieces; the best time of all runs, or a negative error. */
static double encode_seconds(const struct tokenizer *t, const struct file_map *text, size_t piece,
                             struct token_ids *ids, struct err *err)
{
    double best = 1e30;

    for (int run = 0; run < N_RUNS; run++) {
        double start = cpu_seconds(), took;

        ids->n = 0;
        for (size_t at = 0; at < text->len; at += piece) {
            size_t n = text->len - at < piece ? text->len - at : piece;

            if (tokenizer_encode(t, (const char *)text->data + at, n, false, true, ids, err) < 0)
                return -1.0;
        }
        took = cpu_seconds() - start;
        best = took < best ? took : best;
    }
    return best;
}

static double stream_seconds(const struct tokenizer *t, const struct token_ids *ids)
{
    struct strbuf out = STRBUF_INIT;
    struct detok d;
    double start;

    detok_init(&d, t, true, true);
    start = cpu_seconds();
    for (size_t i = 0; i < ids->n; i++) {
        strbuf_reset(&out);
        detok_push(&d, ids->ids[i], &out);
    }
    start = cpu_seconds() - start;
    detok_release(&d);
    strbuf_release(&out);
    return start;
}

int bench_tokenizer(int argc, char **argv)
{
    struct tokenizer *t = NULL;
    struct file_map text = {0};
    struct token_ids ids = {0};
    struct err err = {0};
    double load, whole, pieces, stream, mb;
    int rc = 1;

    if (argc != 3) {
        fprintf(stderr, "usage: spand-bench tokenizer TOKENIZER.JSON TEXT\n");
        return 2;
    }
    load = cpu_seconds();
    if (tokenizer_open(&t, argv[1], &err) < 0 || file_map_open(&text, argv[2], &err) < 0)
        goto out;
    load = cpu_seconds() - load;
    pieces = encode_seconds(t, &text, PIECE_BYTES, &ids, &err);
    whole = encode_seconds(t, &text, text.len + 1, &ids, &err);
    if (pieces < 0 || whole < 0)
        goto out;
    stream = stream_seconds(t, &ids);
    mb = (double)text.len * 1e-6;
    printf("load_ms %.0f\nbytes %zu\nids %zu\nencode_mb_s %.1f\nencode_2kb_mb_s %.1f\n"
           "detok_ids_s %.0f\n",
           load * 1e3, text.len, ids.n, mb / whole, mb / pieces, (double)ids.n / stream);
    rc = 0;
out:
    if (rc)
        fprintf(stderr, "spand-bench: %s\n", err.msg);
    token_ids_release(&ids);
    file_map_close(&text);
    tokenizer_free(t);
    return rc;
}
