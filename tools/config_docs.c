/*
 * config_docs - writes what is generated from config/config_keys.h; `make docs` runs it.
 *
 *     config-docs markdown > config/CONFIG.md
 *     config-docs json > config/default.json
 */
#include "base/err.h"
#include "base/strbuf.h"
#include "config/config.h"

#include <stdio.h>
#include <string.h>

int main(int argc, char **argv)
{
    struct err err = {0};
    struct strbuf out = STRBUF_INIT;
    struct config cfg;

    if (config_init(&cfg, &err) < 0) {
        fprintf(stderr, "config-docs: %s\n", err.msg);
        return 1;
    }
    if (argc == 2 && strcmp(argv[1], "markdown") == 0) {
        config_print_markdown(&out);
    } else if (argc == 2 && strcmp(argv[1], "json") == 0) {
        config_print_json(&cfg, &out);
    } else {
        fprintf(stderr, "usage: config-docs markdown|json\n");
        config_release(&cfg);
        return 2;
    }
    config_release(&cfg);
    if (out.failed || fwrite(out.buf, 1, out.len, stdout) != out.len || fflush(stdout) != 0) {
        fprintf(stderr, "config-docs: cannot write\n");
        return 1;
    }
    strbuf_release(&out);
    return 0;
}
