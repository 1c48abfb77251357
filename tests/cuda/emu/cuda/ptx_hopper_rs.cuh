/*
 * ptx_hopper_rs - the warpgroup products of cuda/ptx_hopper*.cuh for the emulator. They are done
 * when they are asked for: a missing wait does not show here, a wrong place or shape does. See
 * emu.h.
 */
#ifndef PTX_HOPPER_RS_CUH
#define PTX_HOPPER_RS_CUH

#include "cuda/ptx.cuh"

#define WGMMA_K 16

/* Descriptors count 16 bytes: an address, and above it the way to the next 64 columns. */
#define EMU_COLUMNS_AT 48

static inline uint64_t emu_desc(smem_ref addr, uint32_t next_columns)
{
    if (addr % 1024)
        emu_die("a tile for wgmma is not aligned to 1,024 bytes");
    return (uint64_t)addr >> 4 | (uint64_t)(next_columns >> 4) << EMU_COLUMNS_AT;
}
static inline uint64_t wgmma_desc(smem_ref addr)
{
    return emu_desc(addr, 0);
}
static inline uint64_t wgmma_desc_t(smem_ref addr, uint32_t next_columns)
{
    return emu_desc(addr, next_columns);
}

/* Element (row, byte / 2) of a tile of rows of 128 bytes whose 16-byte pieces are swizzled. */
template <typename T> static inline float emu_swizzled(uint64_t desc, int row, int byte)
{
    uint64_t at =
        ((desc & ((1ull << EMU_COLUMNS_AT) - 1)) << 4) + (uint64_t)row * 128 + (uint64_t)byte;
    T v;

    at ^= (at >> 7 & 7) << 4;
    memcpy(&v, (const void *)at, sizeof(v));
    return (float)v;
}

static inline void wgmma_fence()
{
}
static inline void wgmma_commit()
{
}
template <int N> static inline void wgmma_wait()
{
}
template <int N> static inline void wgmma_pin(float (&)[N])
{
}
static inline void async_proxy_fence()
{
}

template <typename T, int N> struct wgmma_ss {
    static void run(float *d, uint64_t a, uint64_t b, int accumulate)
    {
        int warp = emu_self->warp % 4, g = emu_self->lane / 4, t = emu_self->lane % 4;

        for (int i = 0; i < N / 2; i++) {
            int row = 16 * warp + g + i / 2 % 2 * 8, col = i / 4 * 8 + 2 * t + i % 2;
            float sum = accumulate ? d[i] : 0;

            for (int k = 0; k < WGMMA_K; k++)
                sum += emu_swizzled<T>(a, row, 2 * k) * emu_swizzled<T>(b, col, 2 * k);
            d[i] = sum;
        }
    }
};

/* b's rows are the depth here, and its columns lie in boxes of 64. */
template <typename T, int N> struct wgmma_rs_t {
    static void run(float *d, const uint32_t a[4], uint64_t b)
    {
        const unsigned char(*all)[32] = emu_exchange(a, 4 * sizeof(*a));
        uint64_t next = b >> EMU_COLUMNS_AT;
        int g = emu_self->lane / 4, t = emu_self->lane % 4;
        float x[2][WGMMA_K];

        for (int i = 0; i < 2; i++) {
            for (int k = 0; k < WGMMA_K; k += 2) {
                uint32_t u;

                memcpy(&u, all[4 * g + k % 8 / 2] + 4 * (i + 2 * (k / 8)), 4);
                emu_pair<T>(&x[i][k], u);
            }
        }
        for (int i = 0; i < N / 2; i++) {
            int col = i / 4 * 8 + 2 * t + i % 2;
            uint64_t box = (b & ((1ull << EMU_COLUMNS_AT) - 1)) + (uint64_t)(col / 64) * next;

            for (int k = 0; k < WGMMA_K; k++)
                d[i] += x[i / 2 % 2][k] * emu_swizzled<T>(box, k, 2 * (col % 64));
        }
    }
};

#endif
