/*
 * serve - the daemon: opens the engine, serves until a signal, drains, closes.
 */
#ifndef SERVE_H
#define SERVE_H

struct config;
struct err;

/* Returns after a clean stop; negative, with the reason in err, when it cannot start. */
int serve_run(const struct config *config, struct err *err);

#endif
