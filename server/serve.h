/*
 * serve - the daemon: opens the engine, serves until a signal, drains, closes.
 */
#ifndef SERVE_H
#define SERVE_H

struct config;
struct config_sources;
struct err;

/*
 * Returns after a clean stop; negative, with the reason in err, when it cannot start. From `from`
 * (may be NULL) the settings are read again on SIGHUP: config then changes, on this thread.
 */
int serve_run(struct config *config, const struct config_sources *from, struct err *err);

#endif
