/*
 * cli - what the subcommands share, and `spand serve`.
 */
#include "server/cli.h"

#include "base/build_info.h"
#include "base/err.h"
#include "base/log.h"
#include "base/strbuf.h"
#include "config/config.h"
#include "server/serve.h"

#include <stdio.h>
#include <unistd.h>

int cli_report(const struct err *err)
{
    fprintf(stderr, "spand: %s\n", err->msg[0] ? err->msg : err_code_name(err->code));
    switch (err->code) {
    case ERR_INVALID:
    case ERR_PARSE:
    case ERR_UNSUPPORTED:
    case ERR_NOT_FOUND:
    case ERR_CONTEXT:
        return CLI_USAGE; /* what was asked for cannot be, now or later */
    default:
        return CLI_FAILED;
    }
}

static void show(const struct config *config, const char *usage, const struct config_extra *extras,
                 int n_extras)
{
    struct strbuf text = STRBUF_INIT;

    if (config->action == CONFIG_SHOW_VERSION) {
        strbuf_addf(&text, "spand %s (%s)\n", build_version(), build_commit());
    } else if (config->action == CONFIG_SHOW_CONFIG) {
        config_print_json(config, &text);
    } else {
        strbuf_addf(&text, "usage: %s\n\n", usage);
        config_print_help(extras, n_extras, &text);
    }
    if (text.len > 0 && text.buf[text.len - 1] != '\n')
        strbuf_addch(&text, '\n');
    fwrite(text.buf, 1, text.len, stdout);
    strbuf_release(&text);
}

bool cli_configure(struct config *config, const char *usage, int argc, char **argv,
                   const struct config_extra *extras, int n_extras, int *rc)
{
    struct config_sources from = {
        .envp = environ, .argc = argc, .argv = argv, .extras = extras, .n_extras = n_extras};
    struct err err = {0};

    if (config_load(config, &from, &err) < 0) {
        cli_report(&err);
        *rc = CLI_USAGE;
        return false;
    }
    log_configure(config->log_level, config->log_format);
    if (config->action == CONFIG_RUN)
        return true;
    show(config, usage, extras, n_extras);
    config_release(config);
    *rc = CLI_OK;
    return false;
}

int cli_serve(int argc, char **argv)
{
    struct config_sources from = {.envp = environ, .argc = argc, .argv = argv};
    struct config config;
    struct err err = {0};
    int rc;

    if (!cli_configure(&config, "spand [serve] [--model DIR] [--port N] ...", argc, argv, NULL, 0,
                       &rc))
        return rc;
    rc = serve_run(&config, &from, &err) < 0 ? cli_report(&err) : CLI_OK;
    config_release(&config);
    return rc;
}
