/*
 * cpu_amx_model - see the header. Compiled for AVX2 because its fmaf() is then one instruction.
 */
#include "tests/engine/cpu/cpu_amx_model.h"

#include "base/dtype.h"

#include <float.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static _Thread_local struct amx_model state;

struct amx_model *amx_model_state(void)
{
    return &state;
}

/* Offsets in a configuration: palette, start_row, 14 reserved, 16 words, 16 bytes. */
#define ROW_BYTES_AT 16
#define ROWS_AT      48

static void fault(const char *instruction, const char *what)
{
    fprintf(stderr, "amx model: %s: %s\n", instruction, what);
    abort();
}

const char *amx_config_fault(const uint8_t config[64])
{
    if (config[0] != 1)
        return "palette is not 1";
    if (config[1] != 0)
        return "start_row is not 0"; /* legal for the processor, an interrupted load for us */
    for (int i = 2; i < ROW_BYTES_AT; i++) {
        if (config[i])
            return "a reserved byte is set";
    }
    for (int i = 0; i < 16; i++) {
        int row_bytes = config[ROW_BYTES_AT + 2 * i] | config[ROW_BYTES_AT + 2 * i + 1] << 8;
        int rows = config[ROWS_AT + i];

        if (i >= AMX_TILES && (rows || row_bytes))
            return "a tile beyond the eighth is described";
        if (row_bytes > AMX_ROW_BYTES)
            return "a row is longer than 64 bytes";
        if (rows > AMX_ROWS)
            return "a tile has more than 16 rows";
        if (!rows != !row_bytes)
            return "rows without bytes, or bytes without rows";
    }
    return NULL;
}

void amx_loadconfig(const void *config)
{
    const uint8_t *c = config;
    const char *what = amx_config_fault(c);

    if (what)
        fault("ldtilecfg", what);
    for (int i = 0; i < AMX_TILES; i++) {
        state.row_bytes[i] = c[ROW_BYTES_AT + 2 * i] | c[ROW_BYTES_AT + 2 * i + 1] << 8;
        state.rows[i] = c[ROWS_AT + i];
    }
    memset(state.tile, 0xff, sizeof(state.tile));
    state.configured = true;
    state.n_configs++;
}

void amx_release(void)
{
    state.configured = false;
    state.n_releases++;
}

static void tile_check(const char *instruction, int tile)
{
    if (!state.configured)
        fault(instruction, "no configuration is loaded");
    if (tile < 0 || tile >= AMX_TILES || !state.rows[tile])
        fault(instruction, "the tile is not in the configuration");
}

void amx_zero(int tile)
{
    tile_check("tilezero", tile);
    memset(state.tile[tile], 0, sizeof(state.tile[tile]));
}

void amx_loadd(int tile, const void *base, size_t stride)
{
    tile_check("tileloadd", tile);
    memset(state.tile[tile], 0, sizeof(state.tile[tile])); /* what lies beyond rows and columns */
    for (int r = 0; r < state.rows[tile]; r++)
        memcpy(state.tile[tile][r], (const char *)base + (size_t)r * stride,
               (size_t)state.row_bytes[tile]);
}

void amx_stored(int tile, void *base, size_t stride)
{
    tile_check("tilestored", tile);
    for (int r = 0; r < state.rows[tile]; r++)
        memcpy((char *)base + (size_t)r * stride, state.tile[tile][r],
               (size_t)state.row_bytes[tile]);
}

const char *amx_product_fault(int dst, int a, int b)
{
    if (dst == a || dst == b || a == b)
        return "a tile is named twice";
    if (state.row_bytes[dst] % 4 || state.row_bytes[a] % 4 || state.row_bytes[b] % 4)
        return "a row is not of whole pairs";
    if (state.rows[dst] != state.rows[a])
        return "dst and a differ in rows";
    if (state.row_bytes[dst] != state.row_bytes[b])
        return "dst and b differ in columns";
    if (state.row_bytes[a] / 4 != state.rows[b])
        return "a's pairs are not b's rows";
    return NULL;
}

/* Denormals are zeros, going in and coming out. */
static float flush(float x)
{
    return fabsf(x) < FLT_MIN ? copysignf(0.0f, x) : x;
}

static float element(int tile, int row, int i)
{
    uint16_t bits;

    memcpy(&bits, &state.tile[tile][row][2 * i], sizeof(bits));
    return flush(bf16_to_f32(bits));
}

/*
 * dst[m][n] += sum of even products + sum of odd products, each sum by fused multiply-adds in
 * ascending order from zero: one rounding to nearest even a step.
 */
void amx_dpbf16ps(int dst, int a, int b)
{
    const char *what;
    int n_cols, n_pairs;

    tile_check("tdpbf16ps", dst);
    tile_check("tdpbf16ps", a);
    tile_check("tdpbf16ps", b);
    what = amx_product_fault(dst, a, b);
    if (what)
        fault("tdpbf16ps", what);
    n_cols = state.row_bytes[dst] / 4;
    n_pairs = state.row_bytes[a] / 4;
    for (int m = 0; m < state.rows[dst]; m++) {
        float sum[2 * AMX_ROW_BYTES / 4] = {0};
        float row[AMX_ROW_BYTES / 4];

        for (int k = 0; k < n_pairs; k++) {
            float even = element(a, m, 2 * k), odd = element(a, m, 2 * k + 1);

            for (int n = 0; n < n_cols; n++) {
                sum[2 * n] = flush(fmaf(even, element(b, k, 2 * n), sum[2 * n]));
                sum[2 * n + 1] = flush(fmaf(odd, element(b, k, 2 * n + 1), sum[2 * n + 1]));
            }
        }
        memcpy(row, state.tile[dst][m], sizeof(row));
        for (int n = 0; n < n_cols; n++)
            row[n] = flush(flush(row[n]) + flush(sum[2 * n] + sum[2 * n + 1]));
        memset(state.tile[dst][m], 0, AMX_ROW_BYTES);
        memcpy(state.tile[dst][m], row, (size_t)n_cols * 4);
    }
    for (int m = state.rows[dst]; m < AMX_ROWS; m++)
        memset(state.tile[dst][m], 0, AMX_ROW_BYTES);
    state.n_products++;
}
