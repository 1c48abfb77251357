/*
 * config_reload - the list of what can change, and the comparison of all keys.
 */
#include "server/config_reload.h"

#include "base/err.h"
#include "base/log.h"
#include "config/config.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

static const char *const reloadable[] = {
    "log_level",        "log_requests",         "log_prompts",
    "metrics",          "debug_endpoints",      "max_body_bytes",
    "max_headers",      "max_connections",      "idle_timeout_ms",
    "body_timeout_ms",  "header_timeout_ms",    "write_timeout_ms",
    "min_rate",         "sse_ping_ms",          "drain_timeout_ms",
    "stall_timeout_ms", "self_test_ms",         "request_timeout_ms",
    "api_keys_file",    "max_requests_per_key", "metrics_without_key",
    "tls_cert_file",    "tls_key_file",         "cors_origins",
};

bool config_is_reloadable(const char *key)
{
    for (size_t i = 0; i < sizeof(reloadable) / sizeof(reloadable[0]); i++) {
        if (!strcmp(reloadable[i], key))
            return true;
    }
    return false;
}

#define DIFFERS_STRING(a, b) (strcmp(a, b) != 0)
#define DIFFERS_PATH(a, b)   (strcmp(a, b) != 0)
#define DIFFERS_INT(a, b)    ((a) != (b))
#define DIFFERS_INT64(a, b)  ((a) != (b))
#define DIFFERS_BYTES(a, b)  ((a) != (b))
#define DIFFERS_DOUBLE(a, b) ((a) != (b))
#define DIFFERS_BOOL(a, b)   ((a) != (b))
#define DIFFERS_ENUM(a, b)   ((a) != (b))

/* Exchanging, so that the fresh config's release frees the old strings. */
#define SWAP(type, a, b)                                                                           \
    do {                                                                                           \
        CONFIG_C_##type t = (a);                                                                   \
        (a) = (b);                                                                                 \
        (b) = t;                                                                                   \
    } while (0)

static void take_over(struct config *live, struct config *fresh)
{
#define CONFIG_KEY(type, name, default_text, min, max, unit, help)                                 \
    if (DIFFERS_##type(live->name, fresh->name)) {                                                 \
        if (config_is_reloadable(#name)) {                                                         \
            SWAP(type, live->name, fresh->name);                                                   \
            log_info("reload: %s has changed", #name);                                             \
        } else {                                                                                   \
            log_warn("reload: %s has changed, which takes a restart", #name);                      \
        }                                                                                          \
    }
#include "config/config_keys.h"
}

static int find_credential(char **path, const char *dir, const char *name, struct err *err)
{
    char full[4096];
    char *copy;

    if (**path || !dir || (size_t)snprintf(full, sizeof(full), "%s/%s", dir, name) >= sizeof(full))
        return 0;
    if (access(full, F_OK) < 0)
        return 0;
    copy = strdup(full);
    if (!copy)
        return err_set(err, ERR_NO_ROOM, "%s: out of memory", full);
    free(*path);
    *path = copy;
    return 0;
}

int config_find_credentials(struct config *config, struct err *err)
{
    const char *dir = getenv("CREDENTIALS_DIRECTORY");
    int rc = find_credential(&config->api_keys_file, dir, "api-keys", err);

    if (rc == 0)
        rc = find_credential(&config->tls_cert_file, dir, "tls-cert", err);
    if (rc == 0)
        rc = find_credential(&config->tls_key_file, dir, "tls-key", err);
    return rc;
}

int config_reload(struct config *live, const struct config_sources *from, struct err *err)
{
    struct config fresh;
    int rc = config_load(&fresh, from, err);

    if (rc < 0)
        return rc;
    rc = config_find_credentials(&fresh, err);
    if (rc == 0 && !live->tls_cert_file[0] != !fresh.tls_cert_file[0])
        rc = err_set(err, ERR_INVALID, "tls_cert_file: TLS can only be switched by a restart");
    if (rc == 0)
        take_over(live, &fresh);
    config_release(&fresh);
    return rc;
}
