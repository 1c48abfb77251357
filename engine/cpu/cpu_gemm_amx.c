/*
 * cpu_gemm_amx - products of prompt rows on AMX tiles.
 *
 *     A  16 outputs x 32 k, bf16: rows of the weight as they lie, gathered into 1 KiB tiles
 *     B  16 pairs of k x 16 rows x 2: the packed rows as they lie
 *     C  16 outputs x 16 rows, f32
 *
 * Two by two tiles of C share their operands: 64 bytes a cycle of loads, half from L1, half from
 * L2. K is cut in blocks of K_BLOCK so that two groups of packed rows (32 KiB) stay in L1 while
 * all outputs of the item pass by; sums rest in f32 between the blocks, so the order of a sum is
 * plain ascending k, whatever the number of rows.
 *
 * Each call loads and releases its thread's configuration: some 100 cycles of 10^5, and no tile
 * state outlives it. Tests run this source on tiles modelled in plain C
 * (tests/engine/cpu/cpu_amx_gemm_avx512bf16.c), since few machines have real ones.
 */
#if defined(__x86_64__)
#include "base/check.h"
#include "engine/cpu/cpu_gemm_impl.h"

#define SIDE       16 /* rows of a tile */
#define TILE_K     32
#define TILE_BYTES 1024
#define K_BLOCK    512
#define GRAIN      64 /* outputs of an item; twice that when gated */
#define SUM_PAD    16 /* keeps columns of the sums out of one cache set */

void cpu_gemm_pack_bf16(void *group, const float *x, int64_t ldx, int n_rows, int n_in);
void cpu_gemm_epilogue_bf16(const struct gemm_args *a, const struct gemm_tile *t, int n_groups);

struct tile_config {
    uint8_t palette, start_row, reserved[14];
    uint16_t row_bytes[16];
    uint8_t rows[16];
};

static void tiles_configure(void)
{
    struct tile_config c = {.palette = 1};

    for (int i = 0; i < 8; i++) {
        c.row_bytes[i] = 64;
        c.rows[i] = SIDE;
    }
    /* GCC 12's intrinsic declares 8 bytes of the configuration as read: keep all its stores, and
     * keep later ones out of its place. */
    __asm__ volatile("" : : "r"(&c) : "memory");
    _tile_loadconfig(&c);
    __asm__ volatile("" : : "r"(&c) : "memory");
}

static int round_up(int n, int m)
{
    return (n + m - 1) / m * m;
}

/* One item: its weight rows are `sides` (gate and up) times side_rows, padded to whole tiles. */
struct item {
    const struct gemm_args *a;
    int out0, n_out, sides, side_rows, n_tiles;
    int n_groups, ld, k_pad;
    char *weights; /* [n_tiles, K_BLOCK / TILE_K] tiles */
    float *sum;    /* [n_tiles * SIDE, ld] */
};

/* k0 .. k0 + kn - 1 of the item's weight rows as tiles; zeros beyond rows and columns. */
static void fill_weights(const struct item *it, int k0, int kn)
{
    for (int t = 0; t < it->n_tiles; t++) {
        int side = t * SIDE / it->side_rows, first = t * SIDE % it->side_rows;
        const uint16_t *w = side ? it->a->w_up : it->a->w;
        char *out = it->weights + (size_t)t * (K_BLOCK / TILE_K) * TILE_BYTES;

        for (int r = 0; r < SIDE; r++) {
            const uint16_t *row = w + (int64_t)(it->out0 + first + r) * it->a->n_in + k0;
            bool there = first + r < it->n_out;

            for (int k = 0; k < kn; k += TILE_K) {
                __m512i *at = (__m512i *)(out + (size_t)(k / TILE_K) * TILE_BYTES + r * 64);
                int left = it->a->n_in - k0 - k;

                if (there && left >= TILE_K)
                    _mm512_storeu_si512(at, _mm512_loadu_si512(row + k));
                else if (there && left > 0)
                    _mm512_storeu_si512(at, _mm512_maskz_loadu_epi16((1u << left) - 1, row + k));
                else
                    _mm512_storeu_si512(at, _mm512_setzero_si512());
            }
        }
    }
}

/* C += A B over one block of k: T tiles of outputs by G groups of rows. */
VEC_FN void block_sum(float *c, int ld, const char *w, const char *x, size_t xg, int n_k,
                      bool first, const int T, const int G)
{
    size_t wt = (size_t)(K_BLOCK / TILE_K) * TILE_BYTES;
    size_t stride = (size_t)ld * sizeof(float);

    if (first) {
        _tile_zero(0);
        _tile_zero(1);
        _tile_zero(2);
        _tile_zero(3);
    } else {
        _tile_loadd(0, c, stride);
        if (G == 2)
            _tile_loadd(1, c + SIDE, stride);
        if (T == 2)
            _tile_loadd(2, c + SIDE * ld, stride);
        if (T == 2 && G == 2)
            _tile_loadd(3, c + SIDE * ld + SIDE, stride);
    }
    for (int k = 0; k < n_k; k++) {
        _tile_loadd(4, w + (size_t)k * TILE_BYTES, 64);
        _tile_loadd(6, x + (size_t)k * TILE_BYTES, 64);
        _tile_dpbf16ps(0, 4, 6);
        if (G == 2) {
            _tile_loadd(7, x + xg + (size_t)k * TILE_BYTES, 64);
            _tile_dpbf16ps(1, 4, 7);
        }
        if (T == 2) {
            _tile_loadd(5, w + wt + (size_t)k * TILE_BYTES, 64);
            _tile_dpbf16ps(2, 5, 6);
            if (G == 2)
                _tile_dpbf16ps(3, 5, 7);
        }
    }
    _tile_stored(0, c, stride);
    if (G == 2)
        _tile_stored(1, c + SIDE, stride);
    if (T == 2)
        _tile_stored(2, c + SIDE * ld, stride);
    if (T == 2 && G == 2)
        _tile_stored(3, c + SIDE * ld + SIDE, stride);
}

static void block_of_k(const struct item *it, int k0, int kn)
{
    size_t group_bytes = (size_t)it->k_pad * SIDE * 2;
    size_t weight_tile = (size_t)(K_BLOCK / TILE_K) * TILE_BYTES;
    int n_k = kn / TILE_K;

    for (int g = 0; g < it->n_groups; g += 2) {
        const char *x = (const char *)it->a->packed + (size_t)g * group_bytes +
                        (size_t)(k0 / TILE_K) * TILE_BYTES;
        bool two = it->n_groups - g >= 2;
        int t = 0;

        for (; t + 2 <= it->n_tiles; t += 2) {
            float *c = it->sum + (int64_t)t * SIDE * it->ld + g * SIDE;
            const char *w = it->weights + (size_t)t * weight_tile;

            if (two)
                block_sum(c, it->ld, w, x, group_bytes, n_k, k0 == 0, 2, 2);
            else
                block_sum(c, it->ld, w, x, group_bytes, n_k, k0 == 0, 2, 1);
        }
        if (t < it->n_tiles) {
            float *c = it->sum + (int64_t)t * SIDE * it->ld + g * SIDE;
            const char *w = it->weights + (size_t)t * weight_tile;

            if (two)
                block_sum(c, it->ld, w, x, group_bytes, n_k, k0 == 0, 1, 2);
            else
                block_sum(c, it->ld, w, x, group_bytes, n_k, k0 == 0, 1, 1);
        }
    }
}

static size_t scratch_bytes(int n_in)
{
    (void)n_in;
    return (size_t)(2 * GRAIN / SIDE) * (K_BLOCK / TILE_K) * TILE_BYTES +
           sizeof(float) * 2 * GRAIN * (GEMM_MAX_ROWS + SUM_PAD);
}

static void run(const struct gemm_args *a, int out0, int n_out, void *scratch)
{
    struct item it = {.a = a, .out0 = out0, .n_out = n_out, .sides = a->w_up ? 2 : 1};

    CHECK(n_out <= GRAIN);
    CHECK(a->n_rows <= GEMM_MAX_ROWS);
    it.side_rows = round_up(n_out, SIDE);
    it.n_tiles = it.sides * it.side_rows / SIDE;
    it.n_groups = (a->n_rows + SIDE - 1) / SIDE;
    it.ld = it.n_groups * SIDE + SUM_PAD;
    it.k_pad = round_up(a->n_in, TILE_K);
    it.weights = scratch;
    it.sum = (float *)(it.weights + (size_t)(2 * GRAIN / SIDE) * (K_BLOCK / TILE_K) * TILE_BYTES);
    tiles_configure();
    for (int k0 = 0; k0 < it.k_pad; k0 += K_BLOCK) {
        int kn = it.k_pad - k0 < K_BLOCK ? it.k_pad - k0 : K_BLOCK;

        fill_weights(&it, k0, kn);
        __asm__ volatile("" : : : "memory"); /* tile loads do not say what they read */
        block_of_k(&it, k0, kn);
    }
    _tile_release();
    for (int i = 0; i < n_out; i += SIDE) {
        for (int g = 0; g < it.n_groups; g++) {
            struct gemm_tile t = {
                .sum = it.sum + (int64_t)i * it.ld + g * SIDE,
                .sum_up = a->w_up ? it.sum + (int64_t)(it.side_rows + i) * it.ld + g * SIDE : NULL,
                .ld = it.ld,
                .out0 = out0 + i,
                .n_out = n_out - i < SIDE ? n_out - i : SIDE,
                .row0 = g * SIDE};

            cpu_gemm_epilogue_bf16(a, &t, 1);
        }
    }
}

const struct cpu_gemm cpu_gemm_amx = {
    .name = "amx",
    .lanes = SIDE,
    .k_multiple = TILE_K,
    .bf16 = true,
    .grain = GRAIN,
    .scratch_bytes = scratch_bytes,
    .pack = cpu_gemm_pack_bf16,
    .run = run,
};
#endif
