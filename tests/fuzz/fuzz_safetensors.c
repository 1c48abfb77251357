/*
 * fuzz_safetensors - any bytes as a checkpoint file: refused with a message, or every tensor of it
 * can be read from its first byte to its last.
 */
#include "base/check.h"
#include "base/err.h"
#include "engine/model/safetensors.h"

#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    struct safetensors *st = NULL;
    struct err err = {0};
    unsigned sum = 0;
    size_t covered = 0;
    int rc = safetensors_parse(&st, data, size, "input", &err);

    if (rc < 0) {
        CHECK(st == NULL);
        CHECK(err.code == rc);
        CHECK(err.msg[0] != '\0');
        return 0;
    }
    for (size_t i = 0; i < safetensors_count(st); i++) {
        const struct safetensors_tensor *t = safetensors_at(st, i);
        const unsigned char *bytes = t->data;

        for (size_t j = 0; j < t->bytes; j++)
            sum += bytes[j];
        covered += t->bytes;
        CHECK(safetensors_find(st, t->name) == t);
    }
    CHECK(covered <= size);
    safetensors_close(st);
    __asm__ volatile("" : : "r"(sum)); /* the reads stay */
    return 0;
}
