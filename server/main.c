/*
 * main - picks the subcommand. Without one, `spand` serves.
 */
#include "base/build_info.h"
#include "server/cli.h"

#include <fcntl.h>
#include <jansson.h>
#include <stdio.h>
#include <string.h>
#include <unistd.h>

static const char usage[] =
    "usage: spand [serve] [flags]     serve the model over HTTP\n"
    "       spand generate [flags]    continue a prompt on the terminal\n"
    "       spand inspect [flags]     shapes, parameters, memory per token and per sequence\n"
    "       spand tokenize [flags]    JSON strings in, arrays of token ids out\n"
    "       spand replay --trace FILE a recorded run through the scheduler again, without a model\n"
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
    {"tokenize", cli_tokenize}, {"replay", cli_replay},     {"version", run_version},
    {"help", run_help},
};

/*
 * A standard descriptor that came closed is taken, or a client's socket would get its number and
 * with it what is printed and logged. Read-only, so that writing to it still fails.
 */
static void hold_standard_fds(void)
{
    int fd = open("/dev/null", O_RDONLY);

    while (fd >= 0 && fd <= STDERR_FILENO)
        fd = open("/dev/null", O_RDONLY);
    if (fd >= 0)
        close(fd);
}

static int run_command(int argc, char **argv)
{
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

int main(int argc, char **argv)
{
    int rc;

    hold_standard_fds();
    json_object_seed(0); /* before there are threads that could race for it */
    rc = run_command(argc, argv);
    if ((fflush(stdout) != 0 || ferror(stdout)) && rc == CLI_OK) {
        fprintf(stderr, "spand: stdout: cannot write\n");
        rc = CLI_FAILED;
    }
    return rc;
}
