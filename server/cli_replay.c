/*
 * cli_replay - `spand replay --trace FILE`: a recorded run through the scheduler again, without a
 * model: does it still decide the same?
 */
#include "server/cli.h"

#include "base/err.h"
#include "config/config.h"
#include "engine/engine.h"

#include <stdio.h>

int cli_replay(int argc, char **argv)
{
    struct engine_replay told = {0};
    struct config config;
    struct err err = {0};
    int rc;

    if (!cli_configure(&config, "spand replay --trace FILE", argc, argv, NULL, 0, &rc))
        return rc;
    if (!config.trace[0])
        rc = err_set(&err, ERR_INVALID, "replay: name the recorded run with --trace FILE");
    else
        rc = engine_replay(config.trace, &told, &err);
    if (rc == 0)
        printf("%lld sequences, %lld steps of %lld rows, %lld preemptions: the same decisions%s\n",
               (long long)told.n_sequences, (long long)told.n_steps, (long long)told.n_rows,
               (long long)told.n_preemptions,
               told.is_cut ? "; the trace ends in the middle of a line" : "");
    config_release(&config);
    if (rc == 0)
        return CLI_OK;
    rc = cli_report(&err);
    return told.differs ? CLI_FAILED : rc;
}
