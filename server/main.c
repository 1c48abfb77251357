/*
 * main - picks the subcommand. Without one, `spand` serves.
 */
#include "base/build_info.h"
#include "server/cli.h"

#include <jansson.h>
#include <stdio.h>
#include <string.h>

static const char usage[] =
    "usage: spand [serve] [flags]     serve the model over HTTP\n"
    "       spand generate [flags]    continue a prompt on the terminal\n"
    "       spand inspect [flags]     shapes, parameters, memory per token and per sequence\n"
    "       spand tokenize [flags]    JSON strings in, arrays of token ids out\n"
    "       spand version\n"
    "       spand help\n"
    "\n"
    "`spand SUBCOMMAND --help` lists the flags. Exit codes: 0 clean stop, 1 failure, 2 usage or\n"
    "configuration.\n";

static int run_help(int argc, char **argv)
{
    (void)argc;
    (void)argv;
    fputs(usage, stdout);
    return CLI_OK;
}

static int run_version(int argc, char **argv)
{
    (void)argc;
    (void)argv;
    printf("spand %s (%s)\n", build_version(), build_commit());
    return CLI_OK;
}

static const struct {
    const char *name;
    int (*run)(int argc, char **argv);
} commands[] = {
    {"serve", cli_serve},       {"generate", cli_generate}, {"inspect", cli_inspect},
    {"tokenize", cli_tokenize}, {"version", run_version},   {"help", run_help},
};

int main(int argc, char **argv)
{
    json_object_seed(0); /* before there are threads that could race for it */
    if (argc < 2)
        return cli_serve(0, NULL);
    for (size_t i = 0; i < sizeof(commands) / sizeof(commands[0]); i++) {
        if (!strcmp(argv[1], commands[i].name))
            return commands[i].run(argc - 2, argv + 2);
    }
    if (argv[1][0] == '-')
        return cli_serve(argc - 1, argv + 1);
    fprintf(stderr, "spand: unknown command '%s'\n%s", argv[1], usage);
    return CLI_USAGE;
}
