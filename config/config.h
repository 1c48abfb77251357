/*
 * config - the settings of the daemon and its tools.
 *
 * Four sources, each overriding the one before: defaults, a JSON file, the environment
 * (SPAND_MAX_BATCH for the key max_batch), flags (--max-batch 8, --max-batch=8, --no-metrics).
 * What no key knows, or no key allows, is refused with the place, the value and what is wanted.
 * A loaded config is read-only: any thread may read it.
 */
#ifndef CONFIG_H
#define CONFIG_H

#include <stdbool.h>
#include <stdint.h>

struct err;
struct strbuf;

/* C types of the fields; strings are owned by the config and never NULL after a load. */
#define CONFIG_C_STRING char *
#define CONFIG_C_PATH   char *
#define CONFIG_C_INT    int
#define CONFIG_C_INT64  int64_t
#define CONFIG_C_BYTES  int64_t
#define CONFIG_C_DOUBLE double
#define CONFIG_C_BOOL   bool
#define CONFIG_C_ENUM   int /* one of the enums below */

enum config_type {
    CONFIG_STRING,
    CONFIG_PATH,
    CONFIG_INT,
    CONFIG_INT64,
    CONFIG_BYTES, /* a number with an optional suffix: K, M, G, T or KiB, MiB, GiB, TiB */
    CONFIG_DOUBLE,
    CONFIG_BOOL,
    CONFIG_ENUM
};

/* The order of the words in config_keys.h. */
enum config_dtype { CONFIG_DTYPE_AUTO, CONFIG_DTYPE_F32, CONFIG_DTYPE_BF16, CONFIG_DTYPE_F16 };
enum config_run_ahead { CONFIG_RUN_AHEAD_AUTO, CONFIG_RUN_AHEAD_OFF, CONFIG_RUN_AHEAD_ON };
enum config_weights { CONFIG_WEIGHTS_FILE, CONFIG_WEIGHTS_RANDOM };
enum config_sampling_defaults { CONFIG_SAMPLING_DEFAULTS_OPENAI, CONFIG_SAMPLING_DEFAULTS_MODEL };
enum config_prefix_cache_scope { CONFIG_PREFIX_CACHE_SCOPE_SERVER, CONFIG_PREFIX_CACHE_SCOPE_KEY };
enum config_tool_format {
    CONFIG_TOOL_FORMAT_AUTO,
    CONFIG_TOOL_FORMAT_HERMES,
    CONFIG_TOOL_FORMAT_LLAMA3,
    CONFIG_TOOL_FORMAT_MISTRAL
};
enum config_embedding_pooling {
    CONFIG_EMBEDDING_POOLING_OFF,
    CONFIG_EMBEDDING_POOLING_MEAN,
    CONFIG_EMBEDDING_POOLING_LAST
};
enum config_scheduling { CONFIG_SCHEDULING_ARRIVAL, CONFIG_SCHEDULING_PRIORITY };
/* log_level and log_format have the values of enum log_level and enum log_format of base/log.h. */

/* What the flags ask for besides running. */
enum config_action { CONFIG_RUN, CONFIG_SHOW_HELP, CONFIG_SHOW_CONFIG, CONFIG_SHOW_VERSION };

struct config {
#define CONFIG_KEY(type, name, default_text, min, max, unit, help) CONFIG_C_##type name;
#include "config/config_keys.h"
    enum config_action action; /* --help, --print-config, --version; else CONFIG_RUN */
};

/*
 * A flag of one subcommand, beside the keys; it hides a key of the same name. It is written
 * through `value`, which the caller sets to the default: const char ** for CONFIG_STRING and
 * CONFIG_PATH (then borrowed from argv), int *, int64_t *, double *, bool *. No CONFIG_ENUM.
 */
struct config_extra {
    const char *name; /* "max_tokens" is --max-tokens */
    enum config_type type;
    void *value;
    const char *help;
    double min, max; /* both 0: any number of the type */
};

struct config_sources {
    const char *file; /* read when neither --config nor SPAND_CONFIG names one; NULL: none */
    char **envp;      /* as environ; NULL: none */
    int argc;
    char **argv; /* [argc], behind the program's and the subcommand's name */
    const struct config_extra *extras;
    int n_extras;
};

/*
 * Fills cfg, which the caller releases. On failure cfg holds nothing. --help and --version end
 * the reading: only cfg->action and the defaults are then set. ERR_INVALID for keys and values,
 * ERR_PARSE for a file that is no JSON object, and the codes of file_read_text().
 */
int config_load(struct config *cfg, const struct config_sources *from, struct err *err);

/* The defaults alone. */
int config_init(struct config *cfg, struct err *err);

/* Accepts NULL, zeroed and half-loaded configs. */
void config_release(struct config *cfg);

/* All keys with their values, as a JSON object that config_load() reads back. */
void config_print_json(const struct config *cfg, struct strbuf *out);

/* The flags of a subcommand, its extras first, wrapped to 80 columns; usage is up to the caller. */
void config_print_help(const struct config_extra *extras, int n_extras, struct strbuf *out);

/* CONFIG.md. */
void config_print_markdown(struct strbuf *out);

#endif
