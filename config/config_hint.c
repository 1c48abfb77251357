/*
 * config_hint - what somebody may have meant who wrote a name that is no key.
 */
#include "config/config_hint.h"

#include "config/config_value.h"

#include <string.h>

/* What other servers call the same thing: nobody finds these by spelling. */
static const struct {
    const char *theirs, *ours;
} synonyms[] = {
    {"max_model_len", "max_seq_len"},
    {"ctx_size", "max_seq_len"},
    {"max_num_seqs", "max_batch"},
    {"max_running_requests", "max_batch"},
    {"parallel", "max_batch"},
    {"max_num_batched_tokens", "chunk_tokens"},
    {"chunked_prefill_size", "chunk_tokens"},
    {"gpu_memory_utilization", "gpu_memory_fraction"},
    {"mem_fraction_static", "gpu_memory_fraction"},
    {"load_format", "weights"},
    {"model_path", "model"},
    {"alias", "served_model_name"},
    {"block_size", "page_entries"},
    {"seed", "weights_seed"},
};

static const char *const built_in[] = {"config", "help", "version", "print_config"};

static int min3(int a, int b, int c)
{
    int least = a < b ? a : b;

    return least < c ? least : c;
}

int config_hint_distance(const char *a, const char *b)
{
    int rows[3][CONFIG_NAME_BYTES + 1];
    int a_len = (int)strnlen(a, CONFIG_NAME_BYTES), b_len = (int)strnlen(b, CONFIG_NAME_BYTES);
    int *before = rows[0], *above = rows[1], *row = rows[2];

    for (int j = 0; j <= b_len; j++)
        above[j] = j;
    for (int i = 1; i <= a_len; i++) {
        int *spare = before;

        row[0] = i;
        for (int j = 1; j <= b_len; j++) {
            int replace = above[j - 1] + (a[i - 1] != b[j - 1]);

            row[j] = min3(replace, above[j] + 1, row[j - 1] + 1);
            if (i > 1 && j > 1 && a[i - 1] == b[j - 2] && a[i - 2] == b[j - 1] &&
                before[j - 2] + 1 < row[j])
                row[j] = before[j - 2] + 1;
        }
        before = above;
        above = row;
        row = spare;
    }
    return above[b_len];
}

struct nearest {
    const char *name;
    int distance;
};

static void consider(struct nearest *best, const char *wanted, const char *name)
{
    int distance = config_hint_distance(wanted, name);

    if (distance < best->distance)
        *best = (struct nearest){.name = name, .distance = distance};
}

const char *config_hint(const char *name, const struct config_extra *extras, int n_extras)
{
    /* Two slips, or one in three letters: more would suggest names that have nothing in common. */
    int limit = (int)strnlen(name, CONFIG_NAME_BYTES) / 3;
    struct nearest best = {.distance = (limit > 2 ? limit : 2) + 1};

    for (size_t i = 0; i < sizeof(synonyms) / sizeof(synonyms[0]); i++) {
        if (strcmp(name, synonyms[i].theirs) == 0)
            return synonyms[i].ours;
    }
    for (int i = 0; i < n_extras; i++)
        consider(&best, name, extras[i].name);
    for (int i = 0; i < config_n_keys; i++) {
        if (config_keys[i].name)
            consider(&best, name, config_keys[i].name);
    }
    for (size_t i = 0; i < sizeof(built_in) / sizeof(built_in[0]); i++)
        consider(&best, name, built_in[i]);
    return best.name;
}
