/*
 * cli_inspect - `spand inspect`: what a model and a plan will cost, from config.json alone.
 */
#include "server/cli.h"

#include "base/err.h"
#include "base/strbuf.h"
#include "config/config.h"
#include "engine/engine.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

/* Colours only for a terminal that has them, and for nobody who asked for none. */
static enum inspect_colours pick_colours(void)
{
    const char *term = getenv("TERM"), *depth = getenv("COLORTERM"), *no = getenv("NO_COLOR");

    if (!isatty(STDOUT_FILENO) || (no && *no) || !term || !strcmp(term, "dumb"))
        return INSPECT_COLOURS_NONE;
    if (depth && (!strcmp(depth, "truecolor") || !strcmp(depth, "24bit")))
        return INSPECT_COLOURS_RGB;
    return INSPECT_COLOURS_256;
}

static int write_file(const char *path, const struct strbuf *text, struct err *err)
{
    FILE *f = fopen(path, "w");
    size_t n;

    if (!f)
        return err_set_errno(err, ERR_IO, errno, "%s", path);
    n = fwrite(text->buf, 1, text->len, f);
    if (fclose(f) != 0 || n != text->len)
        return err_set_errno(err, ERR_IO, errno, "%s", path);
    return 0;
}

int cli_inspect(int argc, char **argv)
{
    struct engine_inspect how = {.form = INSPECT_TEXT};
    const char *svg = NULL;
    bool json = false;
    const struct config_extra extras[] = {
        {"tokens", CONFIG_INT, &how.n_tokens, "The sequence length to reckon with; 0: the context.",
         0, 16777216},
        {"memory", CONFIG_BYTES, &how.memory,
         "A device's memory: the largest batch is what fits beside the weights. 0: as much as "
         "--kv-memory says, or half of what this machine has free.",
         0, 1125899906842624},
        {"json", CONFIG_BOOL, &json, "As a JSON object.", 0, 0},
        {"svg", CONFIG_PATH, &svg, "Draws the map of spans into this file as well.", 0, 0},
    };
    struct strbuf out = STRBUF_INIT, map = STRBUF_INIT;
    struct config config;
    struct err err = {0};
    int rc;

    if (!cli_configure(&config,
                       "spand inspect --model DIR [--plan P] [--tokens N] [--memory SIZE] "
                       "[--json] [--svg FILE]",
                       argc, argv, extras, sizeof(extras) / sizeof(extras[0]), &rc))
        return rc;
    how.colours = pick_colours();
    how.form = json ? INSPECT_JSON : INSPECT_TEXT;
    rc = engine_inspect(&config, &how, &out, &err);
    how.form = INSPECT_SVG;
    if (rc == 0 && svg)
        rc = engine_inspect(&config, &how, &map, &err);
    if (rc == 0 && svg)
        rc = write_file(svg, &map, &err);
    if (rc == 0)
        fwrite(out.buf, 1, out.len, stdout);
    rc = rc < 0 ? cli_report(&err) : CLI_OK;
    strbuf_release(&out);
    strbuf_release(&map);
    config_release(&config);
    return rc;
}
