/*
 * fuzz_model_config - any bytes as config.json and generation_config.json: refused with a message,
 * or a configuration within its bounds, whose arithmetic neither overflows nor divides by zero.
 *
 * Input: config.json, and behind the first NUL generation_config.json.
 */
#include "base/check.h"
#include "base/err.h"
#include "engine/model/model.h"
#include "engine/model/rope.h"

#include <math.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

static char dir[64];

static void clean_up(void)
{
    char path[128];

    snprintf(path, sizeof(path), "%s/config.json", dir);
    unlink(path);
    snprintf(path, sizeof(path), "%s/generation_config.json", dir);
    unlink(path);
    rmdir(dir);
}

static void put(const char *name, const void *data, size_t size)
{
    char path[128];
    FILE *f;

    snprintf(path, sizeof(path), "%s/%s", dir, name);
    f = fopen(path, "w");
    CHECK(f);
    CHECK(fwrite(data, 1, size, f) == size);
    CHECK(fclose(f) == 0);
}

static void check_config(const struct model_config *c)
{
    static float freq[512];
    static const int lens[] = {1, 100, 1 << 28};

    CHECK(c->stack.dim >= 1);
    CHECK(c->vocab_size >= 1);
    CHECK(c->max_seq_len >= 1);
    CHECK(c->stack.n_layers >= 1);
    CHECK(c->stack.n_layers <= MODEL_MAX_LAYERS);
    CHECK(c->stack.n_heads % c->stack.n_kv_heads == 0);
    CHECK(c->stack.head_dim >= 2);
    CHECK(c->stack.head_dim <= 256);
    CHECK(c->n_eos <= MODEL_MAX_EOS);
    CHECK(c->bos_id < c->vocab_size);
    for (int i = 0; i < c->n_eos; i++)
        CHECK(c->eos_ids[i] < c->vocab_size);
    for (int i = 0; i < c->stack.n_layers; i++)
        CHECK(c->window[i] >= 1);
    CHECK(model_config_params(c) > 0);
    CHECK(model_config_weight_bytes(c, DTYPE_F32) > 0);
    CHECK(model_config_max_dim(c) >= c->stack.dim);
    for (int i = 0; i < 3; i++)
        rope_inv_freq(freq, &c->stack.rope, lens[i]);
    if (c->block.block_len) {
        int lead = block_config_lead(&c->block, 3);

        CHECK(lead >= 0);
        CHECK(lead <= c->block.block_len);
        CHECK(block_config_entries(&c->block, 0, c->max_seq_len) >= 1);
        CHECK(c->block.n_prefix >= 1);
        CHECK(c->block.start_id < c->vocab_size);
        CHECK(c->block.token.head_dim >= 2);
        rope_inv_freq(freq, &c->block.token.rope, 1);
    }
    CHECK(!isnan(rope_scale(&c->stack.rope)));
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    const uint8_t *nul = memchr(data, 0, size);
    size_t n = nul ? (size_t)(nul - data) : size;
    struct model_config cfg;
    struct err err = {0};
    int rc;

    if (!dir[0]) {
        /* Memory, not a disk: the files are written for every input. */
        strcpy(dir, access("/dev/shm", W_OK) == 0 ? "/dev/shm/spand-fuzz-XXXXXX"
                                                  : "/tmp/spand-fuzz-XXXXXX");
        CHECK(mkdtemp(dir));
        atexit(clean_up);
    }
    put("config.json", data, n);
    put("generation_config.json", nul ? nul + 1 : (const uint8_t *)"{}", nul ? size - n - 1 : 2);
    rc = model_config_load(&cfg, dir, &err);
    if (rc == 0) {
        check_config(&cfg);
    } else {
        CHECK(err.code == rc);
        CHECK(err.msg[0] != '\0');
    }
    return 0;
}
