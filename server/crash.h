/*
 * crash - the process explains its own death, between two lines that say START and END.
 *
 * On SIGSEGV, SIGBUS, SIGFPE, SIGILL and SIGABRT (a failed CHECK, systemd's watchdog) it writes to
 * stderr: the build, the signal, the settings, the stack, and, as far as the engine still lets
 * itself be asked, the last steps and the live requests. Then the signal takes its course.
 */
#ifndef CRASH_H
#define CRASH_H

struct config;
struct engine;

/* From now on. Takes what it needs of the config; paths of keys are shown, never their contents. */
void crash_install(const struct config *config);

/* Which engine to ask; NULL: none any more. */
void crash_set_engine(struct engine *engine);

#endif
