/*
 * config - the settings of the daemon and its tools: sources and their order. See config.h.
 *
 * Flags are read before anything is set, because they name the file; they are applied last,
 * because they override it.
 */
#include "config/config.h"

#include "base/err.h"
#include "base/json_file.h"
#include "base/strbuf.h"
#include "config/config_hint.h"
#include "config/config_value.h"

#include <ctype.h>
#include <limits.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define FILE_BYTES_MAX (1 << 20) /* a config is a page of text; this is only a bound */
#define ENV_PREFIX     "SPAND_"
#define SOURCE_BYTES   256

/* One flag as it was written. Exactly one of key and extra is set. */
struct flag {
    const struct config_key *key;
    const struct config_extra *extra;
    const char *value;
};

struct flags {
    struct flag *list; /* [n], room for one an argument */
    int n;
    const char *file;
    enum config_action action;
};

static void *field(struct config *cfg, const struct config_key *key)
{
    return (char *)cfg + key->offset;
}

void config_release(struct config *cfg)
{
    if (!cfg)
        return;
    for (int i = 0; i < config_n_keys; i++) {
        const struct config_key *key = &config_keys[i];

        if (key->name && (key->type == CONFIG_STRING || key->type == CONFIG_PATH))
            free(*(char **)field(cfg, key));
    }
    *cfg = (struct config){0};
}

int config_init(struct config *cfg, struct err *err)
{
    int rc = 0;

    *cfg = (struct config){0};
    for (int i = 0; i < config_n_keys && rc == 0; i++) {
        const struct config_key *key = &config_keys[i];

        if (key->name)
            rc = config_value_set_text(key, field(cfg, key), key->default_text, key->name, err);
    }
    if (rc < 0)
        config_release(cfg);
    return rc;
}

/* "SOURCE: no such WHAT; did you mean HINT?", the hint written as the source writes names. */
static int refuse_unknown(const char *source, const char *what, const char *hint,
                          const char *otherwise, struct err *err)
{
    if (!hint)
        return err_set(err, ERR_INVALID, "%.100s: no such %s%s", source, what, otherwise);
    return err_set(err, ERR_INVALID, "%.100s: no such %s; did you mean %s?", source, what, hint);
}

/* The flag that a key is written as: "--max-batch" for max_batch. */
static void flag_name(char *out, size_t size, const char *key_name)
{
    snprintf(out, size, "--%s", key_name);
    for (char *p = out + 2; *p; p++) {
        if (*p == '_')
            *p = '-';
    }
}

/* The environment variable of a key: "SPAND_MAX_BATCH" for max_batch. */
static void env_name(char *out, size_t size, const char *key_name)
{
    snprintf(out, size, ENV_PREFIX "%s", key_name);
    for (char *p = out; *p; p++)
        *p = (char)toupper((unsigned char)*p);
}

/* What stands before the equals sign of NAME=VALUE, cut to size. */
static void copy_name(char *out, size_t size, const char *text)
{
    size_t len = strcspn(text, "=");

    if (len > size - 1)
        len = size - 1;
    memcpy(out, text, len);
    out[len] = '\0';
}

static int load_file(struct config *cfg, const char *path, struct err *err)
{
    json_t *doc = NULL, *value;
    const char *name;
    char source[SOURCE_BYTES];
    int rc;

    rc = json_file_load(&doc, path, FILE_BYTES_MAX, err);
    if (rc < 0) {
        err_prefix(err, "config file");
        return rc;
    }
    if (!json_is_object(doc)) {
        rc = err_set(err, ERR_PARSE, "%s: not a JSON object of keys and values", path);
        goto out;
    }
    json_object_foreach(doc, name, value)
    {
        const struct config_key *key = config_key_find(name);

        snprintf(source, sizeof(source), "%.150s: %.100s", path, name);
        if (key)
            rc = config_value_set_json(key, field(cfg, key), value, source, err);
        else
            rc = refuse_unknown(source, "key", config_hint(name, NULL, 0), "", err);
        if (rc < 0)
            goto out;
    }
out:
    json_decref(doc);
    return rc;
}

/*
 * Variables of our prefix that are not ours: Kubernetes describes a service named spand to every
 * pod as SPAND_PORT=tcp://..., SPAND_SERVICE_HOST and so on; tests and debug switches read theirs
 * themselves.
 */
static bool is_foreign_env(const char *key_name, const char *value)
{
    static const char *const prefixes[] = {"service_", "port_", "test_", "debug_"};

    if (strcmp(key_name, "port") == 0)
        return strstr(value, "://") != NULL;
    for (size_t i = 0; i < sizeof(prefixes) / sizeof(prefixes[0]); i++) {
        if (strncmp(key_name, prefixes[i], strlen(prefixes[i])) == 0)
            return !config_key_find(key_name);
    }
    return false;
}

/*
 * Splits NAME=VALUE of our prefix: *value, and the key's name in lower case. False when the
 * variable is none of ours.
 */
static bool split_env(const char *entry, char key_name[CONFIG_NAME_BYTES], const char **value)
{
    const char *equals = strchr(entry, '=');

    if (!equals || strncmp(entry, ENV_PREFIX, strlen(ENV_PREFIX)) != 0)
        return false;
    copy_name(key_name, CONFIG_NAME_BYTES, entry + strlen(ENV_PREFIX));
    for (char *p = key_name; *p; p++) {
        /* A small letter leaves the alphabet of keys: SPAND_port is not SPAND_PORT. */
        *p = (char)(islower((unsigned char)*p) ? '?' : tolower((unsigned char)*p));
    }
    *value = equals + 1;
    return !is_foreign_env(key_name, *value);
}

static const char *env_config_file(char **envp)
{
    for (; envp && *envp; envp++) {
        if (strncmp(*envp, ENV_PREFIX "CONFIG=", strlen(ENV_PREFIX "CONFIG=")) == 0)
            return *envp + strlen(ENV_PREFIX "CONFIG=");
    }
    return NULL;
}

static int load_env(struct config *cfg, char **envp, struct err *err)
{
    char name[CONFIG_NAME_BYTES], key_name[CONFIG_NAME_BYTES];
    char source[SOURCE_BYTES], meant[SOURCE_BYTES];
    const char *value, *hint;
    int rc = 0;

    for (; envp && *envp && rc == 0; envp++) {
        const struct config_key *key;

        if (!split_env(*envp, key_name, &value) || strcmp(key_name, "config") == 0)
            continue;
        copy_name(name, sizeof(name), *envp);
        snprintf(source, sizeof(source), "environment %s", name);
        key = config_key_find(key_name);
        if (key) {
            rc = config_value_set_text(key, field(cfg, key), value, source, err);
            continue;
        }
        hint = config_hint(key_name, NULL, 0);
        if (hint)
            env_name(meant, sizeof(meant), hint);
        rc = refuse_unknown(source, "variable", hint ? meant : NULL, "", err);
    }
    return rc;
}

static const struct config_extra *find_extra(const struct config_sources *from, const char *name)
{
    for (int i = 0; i < from->n_extras; i++) {
        if (strcmp(from->extras[i].name, name) == 0)
            return &from->extras[i];
    }
    return NULL;
}

/* Finds what a flag of this name sets, among extras and keys. */
static bool find_flag(const struct config_sources *from, const char *name, struct flag *flag,
                      enum config_type *type)
{
    flag->extra = find_extra(from, name);
    flag->key = flag->extra ? NULL : config_key_find(name);
    if (!flag->extra && !flag->key)
        return false;
    *type = flag->extra ? flag->extra->type : flag->key->type;
    return true;
}

static int refuse_flag(const struct config_sources *from, const char *arg, const char *name,
                       struct err *err)
{
    bool negated = strncmp(name, "no_", 3) == 0;
    const char *hint = config_hint(negated ? name + 3 : name, from->extras, from->n_extras);
    char source[SOURCE_BYTES], meant[SOURCE_BYTES], dashed[2 * CONFIG_NAME_BYTES];

    copy_name(source, sizeof(source), arg);
    if (hint) {
        snprintf(dashed, sizeof(dashed), "%s%s", negated ? "no_" : "", hint);
        flag_name(meant, sizeof(meant), dashed);
    }
    return refuse_unknown(source, "flag", hint ? meant : NULL, "; --help lists them", err);
}

/* The flags that are no keys. True when `name` is one of them. */
static bool is_action(struct flags *flags, const char *name)
{
    if (strcmp(name, "help") == 0)
        flags->action = CONFIG_SHOW_HELP;
    else if (strcmp(name, "version") == 0)
        flags->action = CONFIG_SHOW_VERSION;
    else if (strcmp(name, "print_config") == 0)
        flags->action = CONFIG_SHOW_CONFIG;
    else
        return false;
    return true;
}

/* Copies the name behind the dashes, up to an equals sign, with underscores for dashes. */
static void key_name_of(const char *arg, char name[CONFIG_NAME_BYTES])
{
    size_t len = strcspn(arg + 2, "=");

    if (len > CONFIG_NAME_BYTES - 1)
        len = CONFIG_NAME_BYTES - 1; /* cut, it is still no key */
    for (size_t i = 0; i < len; i++)
        name[i] = (char)(arg[2 + i] == '-' ? '_' : arg[2 + i]);
    name[len] = '\0';
}

/*
 * The value of the flag at argv[*idx]: behind its equals sign, or the next argument, which is then
 * stepped over. A key's value never starts with two dashes unless written with an equals sign; the
 * text of an extra, a prompt for one, may start with anything.
 */
static int take_value(const struct config_sources *from, int *idx, const struct flag *flag,
                      const char **value, struct err *err)
{
    const char *arg = from->argv[*idx];
    const char *equals = strchr(arg, '=');
    bool any_text = flag->extra && flag->extra->type == CONFIG_STRING;
    struct strbuf wanted = STRBUF_INIT;

    if (equals) {
        *value = equals + 1;
        return 0;
    }
    if (*idx + 1 < from->argc && (any_text || strncmp(from->argv[*idx + 1], "--", 2) != 0)) {
        *value = from->argv[++*idx];
        return 0;
    }
    if (flag->key) {
        strbuf_addstr(&wanted, ", want ");
        config_value_add_wanted(flag->key, &wanted);
    }
    err_set(err, ERR_INVALID, "%.100s: the value is missing%s", arg, wanted.buf);
    strbuf_release(&wanted);
    return ERR_INVALID;
}

/* Reads the flag at argv[*idx] and its value. */
static int read_flag(const struct config_sources *from, int *idx, struct flags *flags,
                     struct err *err)
{
    const char *arg = from->argv[*idx];
    struct flag *flag = &flags->list[flags->n];
    char name[CONFIG_NAME_BYTES];
    enum config_type type;

    key_name_of(arg, name);
    if (find_flag(from, name, flag, &type)) {
        flags->n++;
        if (type == CONFIG_BOOL && !strchr(arg, '=')) {
            flag->value = "true";
            return 0;
        }
        return take_value(from, idx, flag, &flag->value, err);
    }
    if (strcmp(name, "config") == 0)
        return take_value(from, idx, flag, &flags->file, err);
    if (is_action(flags, name)) {
        if (strchr(arg, '='))
            return err_set(err, ERR_INVALID, "%.100s: takes no value", arg);
        return 0;
    }
    if (strncmp(name, "no_", 3) == 0 && find_flag(from, name + 3, flag, &type)) {
        if (type != CONFIG_BOOL)
            return err_set(err, ERR_INVALID, "%.100s: %s is no switch that --no- could turn off",
                           arg, name + 3);
        if (strchr(arg, '='))
            return err_set(err, ERR_INVALID, "%.100s: --no- takes no value", arg);
        flag->value = "false";
        flags->n++;
        return 0;
    }
    return refuse_flag(from, arg, name, err);
}

/* Reads all flags; --help and --version end it, so that they work beside any mistake. */
static int read_flags(const struct config_sources *from, struct flags *flags, struct err *err)
{
    int rc = 0;

    for (int i = 0; i < from->argc && rc == 0; i++) {
        const char *arg = from->argv[i];

        if (strcmp(arg, "-h") == 0) {
            flags->action = CONFIG_SHOW_HELP;
            return 0;
        }
        if (strncmp(arg, "--", 2) != 0 || !arg[2])
            return err_set(err, ERR_INVALID, "\"%.80s\": unexpected argument; flags start with --",
                           arg);
        rc = read_flag(from, &i, flags, err);
        if (flags->action == CONFIG_SHOW_HELP || flags->action == CONFIG_SHOW_VERSION)
            return rc;
    }
    return rc;
}

/* Sets the variable of an extra. Its bounds are a key's, or those of the type. */
static int set_extra(const struct config_extra *extra, const char *value, const char *source,
                     struct err *err)
{
    struct config_key key = {
        .name = extra->name, .type = extra->type, .min = extra->min, .max = extra->max, .unit = ""};

    if (extra->type == CONFIG_STRING || extra->type == CONFIG_PATH) {
        *(const char **)extra->value = value;
        return 0;
    }
    if (extra->min == 0 && extra->max == 0) {
        key.max = extra->type == CONFIG_INT      ? INT_MAX
                  : extra->type == CONFIG_DOUBLE ? 1e300
                                                 : 0x1p53;
        key.min = extra->type == CONFIG_BYTES ? 0 : -key.max;
    }
    return config_value_set_text(&key, extra->value, value, source, err);
}

static int apply_flags(struct config *cfg, const struct flags *flags, struct err *err)
{
    char source[SOURCE_BYTES];
    int rc = 0;

    for (int i = 0; i < flags->n && rc == 0; i++) {
        const struct flag *flag = &flags->list[i];

        flag_name(source, sizeof(source), flag->key ? flag->key->name : flag->extra->name);
        if (flag->extra)
            rc = set_extra(flag->extra, flag->value, source, err);
        else
            rc = config_value_set_text(flag->key, field(cfg, flag->key), flag->value, source, err);
    }
    return rc;
}

int config_load(struct config *cfg, const struct config_sources *from, struct err *err)
{
    struct flags flags = {.action = CONFIG_RUN};
    const char *file;
    int rc;

    rc = config_init(cfg, err);
    if (rc < 0)
        return rc;
    flags.list = calloc((size_t)from->argc + 1, sizeof(*flags.list));
    if (!flags.list) {
        rc = err_set(err, ERR_NO_ROOM, "config: out of memory");
        goto out;
    }
    rc = read_flags(from, &flags, err);
    if (rc < 0)
        goto out;
    cfg->action = flags.action;
    if (flags.action == CONFIG_SHOW_HELP || flags.action == CONFIG_SHOW_VERSION)
        goto out;
    file = flags.file ? flags.file : env_config_file(from->envp);
    if (!file)
        file = from->file;
    rc = file ? load_file(cfg, file, err) : 0;
    if (rc == 0)
        rc = load_env(cfg, from->envp, err);
    if (rc == 0)
        rc = apply_flags(cfg, &flags, err);
out:
    free(flags.list);
    if (rc < 0)
        config_release(cfg);
    return rc;
}
