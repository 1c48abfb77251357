/*
 * fuzz_config - any file, environment and flags: config_load() accepts or refuses them, and what
 * it accepts it prints as a file that it accepts again with the same values.
 *
 * Input: lines before the first NUL are variables (SPAND_ is put in front) and flags, told apart by
 * their first byte; what follows the NUL is the config file.
 */
#include "base/check.h"
#include "base/err.h"
#include "base/strbuf.h"
#include "config/config.h"

#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#define MAX_ITEMS 16

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

/* A file in memory that a path leads to; the descriptor is the caller's. */
static int file_of(const void *data, size_t size, char *path, size_t path_size)
{
    int fd = memfd_create("config", 0);

    CHECK(fd >= 0);
    CHECK(write(fd, data, size) == (ssize_t)size);
    snprintf(path, path_size, "/proc/self/fd/%d", fd);
    return fd;
}

struct items {
    char *args[MAX_ITEMS + 1];
    char *envp[MAX_ITEMS + 1];
    int n_args, n_envp;
};

static void split_lines(char *text, struct items *items)
{
    for (char *line = strtok(text, "\n"); line; line = strtok(NULL, "\n")) {
        if (line[0] == '-' && items->n_args < MAX_ITEMS) {
            items->args[items->n_args++] = line;
        } else if (line[0] != '-' && items->n_envp < MAX_ITEMS) {
            char *entry = malloc(strlen(line) + 7);

            CHECK(entry != NULL);
            sprintf(entry, "SPAND_%s", line);
            items->envp[items->n_envp++] = entry;
        }
    }
}

/* Prints cfg, loads that as a file, prints again: both texts are equal. */
static void check_round_trip(const struct config *cfg)
{
    struct strbuf first = STRBUF_INIT, second = STRBUF_INIT;
    struct config again;
    struct config_sources from = {0};
    struct err err = {0};
    char path[64];
    int fd;

    config_print_json(cfg, &first);
    fd = file_of(first.buf, first.len, path, sizeof(path));
    from.file = path;
    CHECK(config_load(&again, &from, &err) == 0);
    config_print_json(&again, &second);
    CHECK(strcmp(first.buf, second.buf) == 0);
    config_release(&again);
    strbuf_release(&first);
    strbuf_release(&second);
    close(fd);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    char *text = malloc(size + 1);
    const char *prompt = "";
    bool json = false;
    int max_tokens = 1;
    struct config_extra extras[] = {{"prompt", CONFIG_STRING, &prompt, "", 0, 0},
                                    {"max_tokens", CONFIG_INT, &max_tokens, "", 1, 100},
                                    {"json", CONFIG_BOOL, &json, "", 0, 0}};
    struct config_sources from = {.extras = extras, .n_extras = 3};
    struct items items = {0};
    struct config cfg;
    struct err err = {0};
    size_t head;
    char path[64];
    int fd = -1, rc;

    CHECK(text != NULL);
    memcpy(text, data, size);
    text[size] = '\0';
    head = strlen(text);
    split_lines(text, &items);
    if (head < size) {
        fd = file_of(data + head + 1, size - head - 1, path, sizeof(path));
        from.file = path;
    }
    from.argc = items.n_args;
    from.argv = items.args;
    from.envp = items.envp;
    rc = config_load(&cfg, &from, &err);
    if (rc == 0) {
        CHECK(cfg.max_batch >= 1 && cfg.max_batch <= 4096);
        CHECK(max_tokens >= 1 && max_tokens <= 100);
        check_round_trip(&cfg);
        config_release(&cfg);
    } else {
        CHECK(err.code == rc);
        CHECK(err.msg[0] != '\0');
    }
    if (fd >= 0)
        close(fd);
    for (int i = 0; i < items.n_envp; i++)
        free(items.envp[i]);
    free(text);
    return 0;
}
