/*
 * cli - the subcommands that work without HTTP. Each gets the arguments behind its name and returns
 * the exit code: 0, 1 for a failure, 2 for wrong usage or configuration.
 */
#ifndef CLI_H
#define CLI_H

#include <stdbool.h>

struct config;
struct config_extra;
struct err;

enum cli_exit { CLI_OK = 0, CLI_FAILED = 1, CLI_USAGE = 2 };

int cli_serve(int argc, char **argv);
int cli_generate(int argc, char **argv);
int cli_tokenize(int argc, char **argv);
int cli_inspect(int argc, char **argv);
int cli_replay(int argc, char **argv);

/*
 * Reads the flags of a subcommand into *config and answers --help and the like. True: go on;
 * false: *rc is the exit code and *config needs no release.
 */
bool cli_configure(struct config *config, const char *usage, int argc, char **argv,
                   const struct config_extra *extras, int n_extras, int *rc);

/* Prints "spand: message" to stderr and says which exit code the error stands for. */
int cli_report(const struct err *err);

#endif
