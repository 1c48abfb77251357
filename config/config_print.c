/*
 * config_print - the table as JSON, as help and as a page of documentation. See config.h.
 */
#include "config/config.h"

#include "base/strbuf.h"
#include "config/config_value.h"

#include <string.h>

#define HELP_COLUMNS 80
#define HELP_INDENT  6

void config_print_json(const struct config *cfg, struct strbuf *out)
{
    bool first = true;

    strbuf_addstr(out, "{");
    for (int i = 0; i < config_n_keys; i++) {
        const struct config_key *key = &config_keys[i];

        if (!key->name)
            continue;
        strbuf_addf(out, "%s\n  \"%s\": ", first ? "" : ",", key->name);
        config_value_add_json(key, (const char *)cfg + key->offset, out);
        first = false;
    }
    strbuf_addstr(out, "\n}\n");
}

/* Words of text, broken at spaces so that no line passes HELP_COLUMNS. */
static void add_wrapped(const char *text, struct strbuf *out)
{
    size_t column = 0;

    while (*text) {
        size_t len = strcspn(text, " ");

        if (column == 0 || column + 1 + len > HELP_COLUMNS) {
            strbuf_addf(out, "%s%*s", column ? "\n" : "", HELP_INDENT, "");
            column = HELP_INDENT + len;
        } else {
            strbuf_addch(out, ' ');
            column += 1 + len;
        }
        strbuf_add(out, text, len);
        text += len + (text[len] == ' ');
    }
    strbuf_addch(out, '\n');
}

static const char *placeholder(enum config_type type)
{
    switch (type) {
    case CONFIG_STRING:
        return " TEXT";
    case CONFIG_PATH:
        return " PATH";
    case CONFIG_INT:
    case CONFIG_INT64:
        return " N";
    case CONFIG_BYTES:
        return " BYTES";
    case CONFIG_DOUBLE:
        return " X";
    case CONFIG_BOOL:
        return "";
    case CONFIG_ENUM:
        return " WORD";
    }
    return "";
}

static void add_flag(const char *name, enum config_type type, bool negated, struct strbuf *out)
{
    strbuf_addstr(out, negated ? "--no-" : "--");
    for (; *name; name++)
        strbuf_addch(out, *name == '_' ? '-' : *name);
    strbuf_addstr(out, placeholder(type));
}

static void add_key_help(const struct config_key *key, struct strbuf *out)
{
    bool is_on = key->type == CONFIG_BOOL && strcmp(key->default_text, "true") == 0;

    strbuf_addstr(out, "\n  ");
    add_flag(key->name, key->type, is_on, out);
    if (key->type == CONFIG_BOOL) {
        strbuf_addf(out, "   [on or off, default %s]\n", is_on ? "on" : "off");
    } else {
        strbuf_addstr(out, "   [");
        config_value_add_wanted(key, out);
        strbuf_addf(out, "%s%s]\n", *key->default_text ? ", default " : ", default empty",
                    key->default_text);
    }
    add_wrapped(key->help, out);
}

void config_print_help(const struct config_extra *extras, int n_extras, struct strbuf *out)
{
    for (int i = 0; i < n_extras; i++) {
        strbuf_addstr(out, "\n  ");
        add_flag(extras[i].name, extras[i].type, false, out);
        strbuf_addch(out, '\n');
        add_wrapped(extras[i].help, out);
    }
    for (int i = 0; i < config_n_keys; i++) {
        const struct config_key *key = &config_keys[i];

        if (key->name)
            add_key_help(key, out);
        else
            strbuf_addf(out, "\n%s: %s\n", key->section, key->help);
    }
    strbuf_addstr(out, "\nOther:\n"
                       "\n  --config PATH\n"
                       "      A JSON file of the keys above, written with underscores.\n"
                       "\n  --print-config\n"
                       "      Prints the settings that would be used, as such a file, and exits.\n"
                       "\n  --version, --help\n"
                       "\nEach key may also be set in the environment: SPAND_MAX_BATCH is "
                       "--max-batch. Flags\noverride the environment, which overrides the file.\n");
}

static const char *type_words(const struct config_key *key)
{
    switch (key->type) {
    case CONFIG_STRING:
        return "text";
    case CONFIG_PATH:
        return "path";
    case CONFIG_INT:
    case CONFIG_INT64:
        return "whole number";
    case CONFIG_BYTES:
        return "bytes";
    case CONFIG_DOUBLE:
        return "number";
    case CONFIG_BOOL:
        return "switch";
    case CONFIG_ENUM:
        return "word";
    }
    return "";
}

static void add_key_row(const struct config_key *key, struct strbuf *out)
{
    strbuf_addf(out, "| `%s` | %s | ", key->name, type_words(key));
    if (*key->default_text)
        strbuf_addf(out, "`%s`", key->default_text);
    else
        strbuf_addstr(out, "empty");
    strbuf_addstr(out, " | ");
    config_value_add_wanted(key, out);
    strbuf_addf(out, " | %s |\n", key->help);
}

void config_print_markdown(struct strbuf *out)
{
    strbuf_addstr(
        out,
        "# Settings\n"
        "\n"
        "<!-- Written by `make docs` from config/config_keys.h; change it there. -->\n"
        "\n"
        "Each key below can be set in four places. The later ones override the earlier:\n"
        "\n"
        "1. its default, which this page shows and `config/default.json` holds;\n"
        "2. a JSON file named with `--config FILE` or `SPAND_CONFIG`: `{\"max_batch\": 64}`;\n"
        "3. the environment: `SPAND_MAX_BATCH=64`;\n"
        "4. a flag: `--max-batch 64` or `--max-batch=64`. A switch is `--metrics`, `--no-metrics`\n"
        "   or `--metrics=false`.\n"
        "\n"
        "A key that does not exist and a value that is not allowed stop the start with exit code "
        "2\n"
        "and a message that says where the value stood and what is allowed. `--print-config` "
        "shows\n"
        "the settings that would be used, as a file that `--config` reads back.\n"
        "\n"
        "Bytes take the suffixes K, M, G, T or KiB, MiB, GiB, TiB, all powers of 1024; in JSON "
        "they\n"
        "are then a string. Variables that begin with `SPAND_SERVICE_`, `SPAND_PORT_`, "
        "`SPAND_TEST_`\n"
        "or `SPAND_DEBUG_` are left alone unless they are a key, and so is `SPAND_PORT` when it\n"
        "holds a URL: Kubernetes sets such variables for a service named spand.\n");
    for (int i = 0; i < config_n_keys; i++) {
        const struct config_key *key = &config_keys[i];

        if (key->name) {
            add_key_row(key, out);
            continue;
        }
        strbuf_addf(out,
                    "\n## %s\n\n%s\n\n| Key | Type | Default | Allowed | Meaning |\n"
                    "|---|---|---|---|---|\n",
                    key->section, key->help);
    }
}
