/*
 * config_value - one key of the table, and its value as text, as JSON and as a C variable.
 *
 * Everything goes through text but what JSON has a type of its own for, so a value means the same
 * whether a file, the environment or a flag brings it.
 */
#include "config/config_value.h"

#include "base/err.h"
#include "base/strbuf.h"
#include "base/text.h"

#include <ctype.h>
#include <errno.h>
#include <limits.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>
#include <strings.h>

#define PLAN_LENGTH_MAX 16777216
#define CUDA_DEVICE_MAX 63
#define SHOWN_BYTES     80 /* of a refused value: enough to recognise it */

const struct config_key config_keys[] = {
#define CONFIG_SECTION(title_, prose_) {.section = title_, .help = prose_},
#define CONFIG_KEY(type_, name_, default_, min_, max_, unit_, help_)                               \
    {.name = #name_,                                                                               \
     .type = CONFIG_##type_,                                                                       \
     .offset = offsetof(struct config, name_),                                                     \
     .default_text = default_,                                                                     \
     .min = min_,                                                                                  \
     .max = max_,                                                                                  \
     .unit = unit_,                                                                                \
     .help = help_},
#include "config/config_keys.h"
};

const int config_n_keys = sizeof(config_keys) / sizeof(config_keys[0]);

const struct config_key *config_key_find(const char *name)
{
    for (int i = 0; i < config_n_keys; i++) {
        if (config_keys[i].name && strcmp(config_keys[i].name, name) == 0)
            return &config_keys[i];
    }
    return NULL;
}

static const struct {
    const char *name;
    int64_t bytes;
} suffixes[] = {
    {"TiB", (int64_t)1 << 40},
    {"GiB", 1 << 30},
    {"MiB", 1 << 20},
    {"KiB", 1 << 10},
    {"T", (int64_t)1 << 40},
    {"G", 1 << 30},
    {"M", 1 << 20},
    {"K", 1 << 10},
    {"B", 1},
    {"", 1},
};

static void add_bytes(int64_t bytes, struct strbuf *out)
{
    for (int i = 0; i < 4 && bytes > 0; i++) {
        if (bytes % suffixes[i].bytes == 0) {
            strbuf_addf(out, "%lld%s", (long long)(bytes / suffixes[i].bytes), suffixes[i].name);
            return;
        }
    }
    strbuf_addf(out, "%lld", (long long)bytes);
}

/* The words of an ENUM's unit; calls with idx beyond them return NULL. */
static const char *word_at(const char *words, int idx, size_t *len)
{
    for (;;) {
        *len = strcspn(words, " ");
        if (idx-- == 0)
            return *len ? words : NULL;
        if (!words[*len])
            return NULL;
        words += *len + 1;
    }
}

static void add_words(const char *words, struct strbuf *out)
{
    const char *word;
    size_t len;

    for (int i = 0; (word = word_at(words, i, &len)) != NULL; i++) {
        if (i)
            strbuf_addstr(out, ", ");
        strbuf_add(out, word, len);
    }
}

void config_value_add_wanted(const struct config_key *key, struct strbuf *out)
{
    switch (key->type) {
    case CONFIG_STRING:
    case CONFIG_PATH:
        if (*key->unit)
            strbuf_addstr(out, key->unit);
        else
            strbuf_addf(out, "%s of %.0f..%.0f bytes", key->type == CONFIG_PATH ? "a path" : "text",
                        key->min, key->max);
        return;
    case CONFIG_INT:
    case CONFIG_INT64:
        strbuf_addf(out, "%.0f..%.0f", key->min, key->max);
        break;
    case CONFIG_BYTES:
        add_bytes((int64_t)key->min, out);
        strbuf_addstr(out, "..");
        add_bytes((int64_t)key->max, out);
        break;
    case CONFIG_DOUBLE:
        strbuf_addf(out, "%g..%g", key->min, key->max);
        break;
    case CONFIG_BOOL:
        strbuf_addstr(out, "true or false");
        return;
    case CONFIG_ENUM:
        strbuf_addstr(out, "one of ");
        add_words(key->unit, out);
        return;
    }
    if (*key->unit)
        strbuf_addf(out, " %s", key->unit);
}

/* "SOURCE: VALUE is WRONG, want WANTED". */
static int refuse(const struct config_key *key, const char *value, const char *wrong,
                  const char *source, struct err *err)
{
    struct strbuf wanted = STRBUF_INIT;
    bool cut = strlen(value) > SHOWN_BYTES;

    config_value_add_wanted(key, &wanted);
    err_set(err, ERR_INVALID, "%s: \"%.*s\"%s %s, want %s", source, SHOWN_BYTES, value,
            cut ? "..." : "", wrong, wanted.buf);
    strbuf_release(&wanted);
    return ERR_INVALID;
}

enum number_fault { NUMBER_OK, NUMBER_MALFORMED, NUMBER_TOO_LARGE };

static enum number_fault parse_int(const char *text, int64_t *value, const char **end)
{
    char *stop;

    if (!isdigit((unsigned char)text[*text == '-']))
        return NUMBER_MALFORMED; /* strtoll would skip spaces and take a plus */
    errno = 0;
    *value = strtoll(text, &stop, 10);
    *end = stop;
    return errno == ERANGE ? NUMBER_TOO_LARGE : NUMBER_OK;
}

static int set_int64(const struct config_key *key, int64_t *at, const char *text,
                     const char *source, struct err *err)
{
    const char *end = text;
    int64_t value;
    enum number_fault fault = parse_int(text, &value, &end);

    if (fault == NUMBER_MALFORMED || *end)
        return refuse(key, text, "is not a whole number", source, err);
    if (fault == NUMBER_TOO_LARGE || (double)value < key->min || (double)value > key->max)
        return refuse(key, text, "is out of range", source, err);
    *at = value;
    return 0;
}

static int set_bytes(const struct config_key *key, int64_t *at, const char *text,
                     const char *source, struct err *err)
{
    const char *end = text;
    int64_t value, unit = 0;
    enum number_fault fault = parse_int(text, &value, &end);

    for (size_t i = 0; i < sizeof(suffixes) / sizeof(suffixes[0]) && fault == NUMBER_OK; i++) {
        if (strcasecmp(end, suffixes[i].name) == 0)
            unit = suffixes[i].bytes;
    }
    if (fault == NUMBER_OK && unit == 0)
        fault = NUMBER_MALFORMED;
    if (fault == NUMBER_MALFORMED)
        return refuse(key, text, "is not a number of bytes (suffixes: K M G T, KiB MiB GiB TiB)",
                      source, err);
    if (fault == NUMBER_TOO_LARGE || __builtin_mul_overflow(value, unit, &value) ||
        (double)value < key->min || (double)value > key->max)
        return refuse(key, text, "is out of range", source, err);
    *at = value;
    return 0;
}

static int set_double(const struct config_key *key, double *at, const char *text,
                      const char *source, struct err *err)
{
    char *end;
    double value;

    /* strtod also reads spaces, infinities, NaN and hexadecimal. */
    if (!*text || strspn(text, "0123456789.eE+-") != strlen(text))
        return refuse(key, text, "is not a number", source, err);
    value = strtod(text, &end);
    if (*end || end == text)
        return refuse(key, text, "is not a number", source, err);
    if (!isfinite(value) || value < key->min || value > key->max)
        return refuse(key, text, "is out of range", source, err);
    *at = value;
    return 0;
}

static int set_bool(const struct config_key *key, bool *at, const char *text, const char *source,
                    struct err *err)
{
    static const char *const words[] = {"false", "true", "0", "1", "no", "yes", "off", "on"};

    for (int i = 0; i < 8; i++) {
        if (strcasecmp(text, words[i]) == 0) {
            *at = i & 1;
            return 0;
        }
    }
    return refuse(key, text, "is not a switch", source, err);
}

static int set_enum(const struct config_key *key, int *at, const char *text, const char *source,
                    struct err *err)
{
    const char *word;
    size_t len;

    for (int i = 0; (word = word_at(key->unit, i, &len)) != NULL; i++) {
        if (strlen(text) == len && memcmp(text, word, len) == 0) {
            *at = i;
            return 0;
        }
    }
    return refuse(key, text, "is unknown", source, err);
}

/* A whole number in lo..hi without sign, spaces or anything behind it. */
static bool is_number_in(const char *text, int64_t lo, int64_t hi)
{
    const char *end = text;
    int64_t value;

    return *text != '-' && parse_int(text, &value, &end) == NUMBER_OK && !*end && value >= lo &&
           value <= hi;
}

static bool is_device(const char *text)
{
    return strcmp(text, "auto") == 0 || strcmp(text, "cpu") == 0 || strcmp(text, "cuda") == 0 ||
           (strncmp(text, "cuda:", 5) == 0 && is_number_in(text + 5, 0, CUDA_DEVICE_MAX));
}

static bool is_plan_length(const char *text)
{
    return strcmp(text, "request") == 0 || is_number_in(text, 1, PLAN_LENGTH_MAX);
}

/* Strings with a syntax that can be told without looking at files. */
static const struct {
    const char *key;
    bool (*holds)(const char *text);
} syntaxes[] = {
    {"device", is_device},
    {"plan_length", is_plan_length},
};

static int set_string(const struct config_key *key, char **at, const char *text, const char *source,
                      struct err *err)
{
    size_t len = strlen(text);
    char *copy;

    if (len == 0 && key->min > 0)
        return refuse(key, text, "is empty", source, err);
    if ((double)len > key->max)
        return refuse(key, text, "is too long", source, err);
    if (!text_is_utf8(text, len))
        return refuse(key, text, "is not UTF-8", source, err);
    for (size_t i = 0; i < sizeof(syntaxes) / sizeof(syntaxes[0]); i++) {
        if (strcmp(key->name, syntaxes[i].key) == 0 && !syntaxes[i].holds(text))
            return refuse(key, text, "is unknown", source, err);
    }
    copy = strdup(text);
    if (!copy)
        return err_set(err, ERR_NO_ROOM, "%s: out of memory", source);
    free(*at);
    *at = copy;
    return 0;
}

int config_value_set_text(const struct config_key *key, void *at, const char *text,
                          const char *source, struct err *err)
{
    int64_t value;
    int rc;

    switch (key->type) {
    case CONFIG_STRING:
    case CONFIG_PATH:
        return set_string(key, at, text, source, err);
    case CONFIG_INT:
        rc = set_int64(key, &value, text, source, err);
        if (rc == 0)
            *(int *)at = (int)value; /* the bounds of an INT fit an int */
        return rc;
    case CONFIG_INT64:
        return set_int64(key, at, text, source, err);
    case CONFIG_BYTES:
        return set_bytes(key, at, text, source, err);
    case CONFIG_DOUBLE:
        return set_double(key, at, text, source, err);
    case CONFIG_BOOL:
        return set_bool(key, at, text, source, err);
    case CONFIG_ENUM:
        return set_enum(key, at, text, source, err);
    }
    return err_set(err, ERR_INVALID, "%s: no such type", source);
}

/* True when JSON of this type may stand for the key: "32" is no number, 1 is no switch. */
static bool json_type_fits(const struct config_key *key, const json_t *value)
{
    switch (key->type) {
    case CONFIG_STRING: /* plan_length: 8192 is what one would write */
        return json_is_string(value) ||
               (json_is_integer(value) && strcmp(key->name, "plan_length") == 0);
    case CONFIG_PATH:
    case CONFIG_ENUM:
        return json_is_string(value);
    case CONFIG_INT:
    case CONFIG_INT64:
        return json_is_integer(value);
    case CONFIG_BYTES:
        return json_is_integer(value) || json_is_string(value);
    case CONFIG_DOUBLE:
        return json_is_number(value);
    case CONFIG_BOOL:
        return json_is_boolean(value);
    }
    return false;
}

int config_value_set_json(const struct config_key *key, void *at, const json_t *value,
                          const char *source, struct err *err)
{
    static const char *const names[] = {[JSON_OBJECT] = "object",
                                        [JSON_ARRAY] = "array",
                                        [JSON_STRING] = "string",
                                        [JSON_INTEGER] = "whole number",
                                        [JSON_REAL] = "number with a fraction",
                                        [JSON_TRUE] = "true",
                                        [JSON_FALSE] = "false",
                                        [JSON_NULL] = "null"};
    char *text;
    int rc;

    if (json_is_string(value) && json_type_fits(key, value))
        return config_value_set_text(key, at, json_string_value(value), source, err);
    text = json_dumps(value, JSON_ENCODE_ANY | JSON_COMPACT | JSON_REAL_PRECISION(17));
    if (!text)
        return err_set(err, ERR_NO_ROOM, "%s: out of memory", source);
    if (json_type_fits(key, value)) {
        rc = config_value_set_text(key, at, text, source, err);
    } else {
        char wrong[64];

        snprintf(wrong, sizeof(wrong), "has the wrong JSON type (%s)", names[json_typeof(value)]);
        rc = refuse(key, json_is_string(value) ? json_string_value(value) : text, wrong, source,
                    err);
    }
    free(text);
    return rc;
}

void config_value_add_json(const struct config_key *key, const void *at, struct strbuf *out)
{
    const char *s;
    size_t len;

    switch (key->type) {
    case CONFIG_STRING:
    case CONFIG_PATH:
        s = *(char *const *)at;
        strbuf_add_json(out, s, strlen(s));
        break;
    case CONFIG_INT:
        strbuf_addf(out, "%d", *(const int *)at);
        break;
    case CONFIG_INT64:
        strbuf_addf(out, "%lld", (long long)*(const int64_t *)at);
        break;
    case CONFIG_BYTES:
        if (*(const int64_t *)at == 0) {
            strbuf_addch(out, '0');
            break;
        }
        strbuf_addch(out, '"');
        add_bytes(*(const int64_t *)at, out);
        strbuf_addch(out, '"');
        break;
    case CONFIG_DOUBLE:
        strbuf_addf(out, "%.15g", *(const double *)at);
        break;
    case CONFIG_BOOL:
        strbuf_addstr(out, *(const bool *)at ? "true" : "false");
        break;
    case CONFIG_ENUM:
        s = word_at(key->unit, *(const int *)at, &len);
        strbuf_add_json(out, s ? s : "", s ? len : 0);
        break;
    }
}
