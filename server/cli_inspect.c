/*
 * cli_inspect - `spand inspect`: what a model and a plan will cost, from config.json alone.
 */
#include "server/cli.h"

#include "base/err.h"
#include "base/strbuf.h"
#include "config/config.h"
#include "engine/engine.h"

#include <stdio.h>

int cli_inspect(int argc, char **argv)
{
    int n_tokens = 0;
    bool json = false;
    const struct config_extra extras[] = {
        {"tokens", CONFIG_INT, &n_tokens, "The sequence length to reckon with; 0: the context.", 0,
         16777216},
        {"json", CONFIG_BOOL, &json, "As a JSON object.", 0, 0},
    };
    struct strbuf out = STRBUF_INIT;
    struct config config;
    struct err err = {0};
    int rc;

    if (!cli_configure(&config, "spand inspect --model DIR [--plan P] [--tokens N] [--json]", argc,
                       argv, extras, sizeof(extras) / sizeof(extras[0]), &rc))
        return rc;
    if (engine_inspect(&config, json, n_tokens, &out, &err) < 0) {
        rc = cli_report(&err);
    } else {
        fwrite(out.buf, 1, out.len, stdout);
        rc = CLI_OK;
    }
    strbuf_release(&out);
    config_release(&config);
    return rc;
}
