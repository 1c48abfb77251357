/*
 * config_reload - SIGHUP: which settings change in a running daemon. Loop thread only.
 *
 * Only settings that the loop thread alone reads can change; the engine's are fixed when it opens.
 */
#ifndef CONFIG_RELOAD_H
#define CONFIG_RELOAD_H

#include <stdbool.h>

struct config;
struct config_sources;
struct err;

/*
 * Reads the sources again and takes over what can change, logging each change, and warning of those
 * that need a restart. On failure, with a setting that is wrong, nothing changes.
 */
int config_reload(struct config *live, const struct config_sources *from, struct err *err);

/*
 * Where a path of Access is empty and systemd passed the credential of that name
 * ($CREDENTIALS_DIRECTORY/api-keys, tls-cert, tls-key), sets the path.
 */
int config_find_credentials(struct config *config, struct err *err);

bool config_is_reloadable(const char *key);

#endif
