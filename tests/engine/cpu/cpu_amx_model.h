/*
 * cpu_amx_model - AMX tiles in plain C: the intrinsics of cpu_gemm_amx.c as the architecture manual
 * describes them, for processors that have none.
 *
 * Palette 1 only: 8 tiles of up to 16 rows of 64 bytes. Whatever the processor would answer with a
 * fault ends the program with a message. Values that the manual leaves in a tile unsaid (rows of a
 * tile that nobody loaded since the configuration) are NaN here, not the zeros of the processor.
 */
#ifndef CPU_AMX_MODEL_H
#define CPU_AMX_MODEL_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#define AMX_TILES     8
#define AMX_ROWS      16
#define AMX_ROW_BYTES 64

/* One thread's tile state. */
struct amx_model {
    bool configured;
    int rows[AMX_TILES], row_bytes[AMX_TILES]; /* of the configuration */
    uint8_t tile[AMX_TILES][AMX_ROWS][AMX_ROW_BYTES];
    int64_t n_products, n_configs, n_releases; /* since the program began */
};

/* This thread's state. */
struct amx_model *amx_model_state(void);

/* What is wrong with a 64-byte configuration, or with a product; NULL when nothing is. */
const char *amx_config_fault(const uint8_t config[64]);
const char *amx_product_fault(int dst, int a, int b);

void amx_loadconfig(const void *config);
void amx_release(void);
void amx_zero(int tile);
void amx_loadd(int tile, const void *base, size_t stride);
void amx_stored(int tile, void *base, size_t stride);
void amx_dpbf16ps(int dst, int a, int b);

#endif
