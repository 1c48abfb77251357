/*
 * null_main - spand serve with the null engine, for benches of the front-end: spand-null [serve]
 * [flags].
 */
#include "base/err.h"
#include "base/log.h"
#include "config/config.h"
#include "server/serve.h"

#include <stdio.h>
#include <string.h>
#include <unistd.h>

int main(int argc, char **argv)
{
    int skip = argc > 1 && !strcmp(argv[1], "serve") ? 2 : 1;
    struct config_sources from = {.envp = environ, .argc = argc - skip, .argv = argv + skip};
    struct config config;
    struct err err = {0};
    int rc = config_load(&config, &from, &err);

    if (rc == 0) {
        log_configure(config.log_level, config.log_format);
        rc = serve_run(&config, &from, &err);
        config_release(&config);
    }
    if (rc < 0)
        fprintf(stderr, "spand-null: %s\n", err.msg);
    return rc < 0;
}
