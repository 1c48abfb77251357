/*
 * bench_main - spand-bench: engine throughput, kernels against the memory's speed, tokenizer, HTTP.
 */
#include "tests/bench/bench.h"

#include "base/strbuf.h"
#include "config/config.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

struct bench {
    const char *name, *help;
    int (*run)(int argc, char **argv);
};

static int by_value(const void *a, const void *b)
{
    double x = *(const double *)a, y = *(const double *)b;

    return x < y ? -1 : x > y;
}

double bench_median(double *values, int n)
{
    qsort(values, (size_t)n, sizeof(*values), by_value);
    return values[n / 2];
}

int bench_read_flags(struct config *config, int argc, char **argv,
                     const struct config_extra *extras, int n_extras, const char *help,
                     struct err *err)
{
    struct config_sources from = {
        .argc = argc - 1, .argv = argv + 1, .extras = extras, .n_extras = n_extras};
    struct strbuf text = STRBUF_INIT;
    int rc = config_load(config, &from, err);

    if (rc == 0 && config->action != CONFIG_SHOW_HELP)
        return 0;
    if (rc == 0) {
        config_print_help(extras, n_extras, &text);
        printf("%s%s", help, text.buf);
        strbuf_release(&text);
        rc = 1;
    }
    config_release(config);
    return rc;
}

static void usage(FILE *out, const struct bench *benches, int n)
{
    fprintf(out, "usage: spand-bench <bench> [options] [--csv FILE]\n\n");
    for (int i = 0; i < n; i++)
        fprintf(out, "  %-10s %s%s\n", benches[i].name, benches[i].help,
                benches[i].run ? "" : " (not built in)");
}

int main(int argc, char **argv)
{
    const struct bench benches[] = {
        {"engine", "tokens per second through the scheduler, and percent of the limit",
         bench_engine},
        {"load", "tokens per second of many requests, prompts and answers together", bench_load},
        {"kernels", "each op of the CPU backend in GB/s and GFLOP/s", bench_kernels},
        {"tokenizer", "bytes per second of encoding and decoding", bench_tokenizer},
        {"request", "microseconds a request beside the model: JSON, template, tokens, answer",
         bench_request},
        {"http", "streams per second over loopback", bench_http},
    };
    const int n = (int)(sizeof(benches) / sizeof(benches[0]));

    if (argc < 2) {
        usage(stderr, benches, n);
        return 2;
    }
    if (strcmp(argv[1], "--help") == 0 || strcmp(argv[1], "-h") == 0) {
        usage(stdout, benches, n);
        return 0;
    }
    for (int i = 0; i < n; i++) {
        if (strcmp(argv[1], benches[i].name) != 0)
            continue;
        if (!benches[i].run) {
            fprintf(stderr, "spand-bench: %s is not built in\n", argv[1]);
            return 2;
        }
        return benches[i].run(argc - 1, argv + 1);
    }
    fprintf(stderr, "spand-bench: no bench named \"%s\"\n", argv[1]);
    usage(stderr, benches, n);
    return 2;
}
